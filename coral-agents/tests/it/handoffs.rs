//! What each built-in agent asks of the next, on every edge of every workflow.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use coral_agents::Registry;
use coral_core::{AgentSpec, Deliverable, GraphData, OutputSpec, Report, Templates};
use serde_json::json;

/// The handoff templates of all agents, by id.
fn templates(registry: &Registry) -> Templates {
    let mut templates = Templates::new();
    for (name, text) in registry.partials() {
        templates.add(name, text).unwrap();
    }
    for spec in registry.agents() {
        templates.add(format!("handoff of {}", spec.id), spec.handoff.template.as_str()).unwrap();
    }
    templates
}

/// What it delivers in any case.
fn is_owed(output: &OutputSpec) -> bool {
    !output.optional
}

/// The lines that `spec` hands to `to` in `phase`, when it has `delivered` of what it promises there.
fn handed(
    templates: &Templates,
    spec: &AgentSpec,
    phase: &str,
    to: &str,
    delivered: fn(&OutputSpec) -> bool,
) -> Vec<String> {
    let spec = spec.in_phase(phase);
    let deliverables = spec.outputs.iter().filter(|output| delivered(output)).map(|output| Deliverable {
        kind: output.kind.clone(),
        path: output.path.clone(),
        description: output.description.clone(),
    });
    let report =
        Report { summary: "Done.".to_owned(), deliverables: deliverables.collect(), ..Report::default() };
    let scope = json!({"agent": spec, "phase": phase, "report": report, "to": to});
    let text = templates.render(&format!("handoff of {}", spec.id), &scope).unwrap();
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// What is said to whoever has no part of his own: read what is there.
fn is_neutral(lines: &[String], spec: &AgentSpec) -> bool {
    let paths: Vec<&str> =
        spec.outputs.iter().filter(|output| !output.optional).map(|output| output.path.as_str()).collect();
    let neutral = format!(
        "Take what your own part needs from {}, and report what there contradicts what you find",
        paths.join(", ")
    );
    lines == [neutral]
}

/// The steps with an agent that follow one another: the names of both.
fn edges(graph: &GraphData) -> Vec<(usize, usize)> {
    let mut edges = Vec::new();
    for (from, step) in graph.steps.iter().enumerate() {
        for (to, other) in graph.steps.iter().enumerate() {
            let follows = other.inputs.iter().any(|input| input.step == step.name);
            if follows && step.kind.agent().is_some() && other.kind.agent().is_some() {
                edges.push((from, to));
            }
        }
    }
    edges
}

/// To take over a wanted change, run the test with `UPDATE_PROMPTS=1`.
#[test]
fn the_handoffs_of_every_workflow_are_as_recorded() {
    let registry = Registry::builtin();
    let templates = templates(&registry);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/handoffs");
    let mut different = Vec::new();
    for graph in registry.workflows() {
        let mut text = String::new();
        for (from, to) in edges(graph) {
            let (from, to) = (&graph.steps[from], &graph.steps[to]);
            let spec = registry.agent(from.kind.agent().unwrap()).unwrap();
            let taker = to.kind.agent().unwrap();
            text.push_str(&format!(
                "{} ({}, {}) -> {} ({taker}, {})\n",
                from.name, spec.id, from.phase, to.name, to.phase
            ));
            for line in handed(&templates, spec, &from.phase, taker, |_| true) {
                text.push_str(&format!("  {line}\n"));
            }
        }
        let path = dir.join(format!("{}.txt", graph.name));
        if std::env::var_os("UPDATE_PROMPTS").is_some() {
            fs::create_dir_all(&dir).unwrap();
            fs::write(&path, &text).unwrap();
        }
        if fs::read_to_string(&path).unwrap_or_default() != text {
            different.push(path.display().to_string());
        }
    }
    assert_eq!(different, [""; 0], "run with UPDATE_PROMPTS=1 if the change is wanted");
}

/// Only a suggested successor gets a task of its own; to all others a handoff says what there is to read.
#[test]
fn only_successors_get_a_task_of_their_own() {
    let registry = Registry::builtin();
    let templates = templates(&registry);
    let mut wrong = Vec::new();
    let mut told = 0;
    for spec in registry.agents() {
        let phases = [""].into_iter().chain(spec.phases.keys().map(String::as_str));
        for phase in phases {
            let in_phase = spec.in_phase(phase);
            for taker in registry.agents().map(|other| other.id.as_str()).chain(["stranger"]) {
                let lines = handed(&templates, spec, phase, taker, is_owed);
                let successor = in_phase.handoff.next_agents.iter().any(|next| next == taker);
                told += usize::from(successor && !is_neutral(&lines, &in_phase));
                if !successor && !is_neutral(&lines, &in_phase) {
                    wrong.push(format!("{} in `{phase}` to {taker}: {lines:?}", spec.id));
                }
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
    assert!(told > 200, "only {told} tasks are special");
}

/// A task names files that its giver delivers in that phase: no one is sent to a file that nobody owes.
#[test]
fn a_handoff_names_only_files_that_are_owed() {
    let registry = Registry::builtin();
    let templates = templates(&registry);
    let mut wrong = BTreeSet::new();
    for graph in registry.workflows() {
        for (from, to) in edges(graph) {
            let (from, to) = (&graph.steps[from], &graph.steps[to]);
            let spec = registry.agent(from.kind.agent().unwrap()).unwrap();
            let owed = spec.in_phase(&from.phase);
            for line in handed(&templates, spec, &from.phase, to.kind.agent().unwrap(), is_owed) {
                let words = line.split([' ', ',', ';', ':']).map(|word| word.trim_end_matches(['.', '\'']));
                for path in words.filter(|word| word.contains('/')) {
                    let place = path.trim_end_matches('/');
                    let known = owed
                        .outputs
                        .iter()
                        .any(|output| output.path == place || output.path.starts_with(&format!("{place}/")));
                    if !known {
                        wrong.insert(format!("{} in {}: {path}", spec.id, from.phase));
                    }
                }
            }
        }
    }
    assert_eq!(wrong, BTreeSet::new());
}

/// What a step owes, by workflow: a change of phase or of a definition shows here.
#[test]
fn what_every_step_owes_is_as_recorded() {
    let registry = Registry::builtin();
    let mut text = String::new();
    for graph in registry.workflows() {
        text.push_str(&format!("{}\n", graph.name));
        for step in &graph.steps {
            let Some(id) = step.kind.agent() else { continue };
            let spec = registry.agent(id).unwrap().in_phase(&step.phase);
            let owed: Vec<&str> = spec
                .outputs
                .iter()
                .filter(|output| !output.optional)
                .map(|output| output.kind.as_str())
                .collect();
            text.push_str(&format!("  {} ({id}, {}): {}\n", step.name, step.phase, owed.join(", ")));
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/owed.txt");
    if std::env::var_os("UPDATE_PROMPTS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(
        text,
        fs::read_to_string(&path).unwrap_or_default(),
        "run with UPDATE_PROMPTS=1 if the change is wanted"
    );
}
