use super::*;
use crate::{parse_agent, parse_workflow};

fn registry(agents: &[(&str, &str)]) -> Registry {
    let mut registry = Registry::new();
    for (front, task) in agents {
        let text = format!(
            "---\nname: N\nsummary: S\ncapabilities: [c]\n{front}\n---\n## Role\nR\n## Task\n{task}\n"
        );
        registry.insert(parse_agent("a.md", &text).unwrap()).unwrap();
    }
    registry
}

#[track_caller]
fn check(registry: &Registry, expected: &[&str]) {
    let findings: Vec<String> = registry.check().iter().map(ToString::to_string).collect();
    assert_eq!(findings, expected);
}

#[test]
fn the_built_in_registry_fits_together() {
    check(&Registry::builtin(), &[]);
}

#[test]
fn references_of_agents_are_checked() {
    let registry = registry(&[
        (
            "id: writer\noutputs: [{type: text, path: docs/a.md, description: d}]\n\
             handoff: {next_agents: [reader, raeder], preserve: [text, decisions, words, lists, other, next_tasks]}\n\
             phases: {early: {output_schema: {type: object, required: [lost], properties: {lists: {type: array}}}}}\n\
             output_schema: {type: object, required: [words, lines], properties: {words: {type: integer}}}",
            "Write.",
        ),
        (
            "id: reader\naliases: [writer]\ndependencies: [text, txt]\noptional_dependencies: [notes]\n\
             operations: [read_file, red_file]\noutputs: [{type: view, path: docs/a.md, description: d}]\n\
             phases: {late: {dependencies: [never], next_agents: [reader]}}\noutput_schema: {type: string}",
            "Read.",
        ),
    ]);
    check(
        &registry,
        &[
            "error: agent `reader`: `output_schema` must have `type: object`",
            "error: agent `reader`: alias `writer` is the id of an agent",
            "error: agent `reader`: depends on `never`, and no agent delivers it",
            "error: agent `reader`: depends on `txt`, and no agent delivers it; did you mean `text`?",
            "error: agent `reader`: needs operation `red_file`, which is not known; did you mean `read_file`?",
            "error: agent `writer`: `output_schema` requires `lines` and does not describe it",
            "error: agent `writer`: hands off to `raeder`, and no agent is called that; did you mean `reader`?",
            "error: agent `writer`: preserves `other`, which is no output, no property of its data and no report field",
            "error: agent `writer`, phase `early`: `output_schema` requires `lost` and does not describe it",
            "warning: agent `reader`: depends on `notes`, and no agent delivers it",
            "warning: agent `reader`: hands off to itself",
            "warning: agent `writer`: preserves `next_tasks`, which every handoff carries anyway",
            "warning: agent `writer`: writes `docs/a.md`, and so does `reader`",
        ],
    );
}

#[test]
fn templates_are_checked() {
    let mut registry = registry(&[
        ("id: a", "{% include \"hous\" %}{%- include 'house' %}\n{{ broken"),
        ("id: b\nphases: {late: {}}", "Fine. {% if x %}{{ y }}{% endif %}"),
    ]);
    registry.insert_partial("house", "{% include 'rules' %}");
    registry.insert_partial("rules", "{%- include \"house\" -%}");
    registry.insert_partial("bad", "{% for %}");
    check(
        &registry,
        &[
            "error: agent `a`, section `Task`: includes `hous`, and no partial is called that; did you mean `house`?",
            "error: agent `a`, section `Task`: line 2 of the text: syntax error: unexpected end of input, expected end of variable block",
            "error: partial `bad`: line 1 of the text: syntax error: unexpected end of block, expected in",
            "error: partial `house`: includes itself, directly or through others",
            "error: partial `rules`: includes itself, directly or through others",
        ],
    );
}

#[test]
fn variables_and_schemas_are_checked() {
    check(
        &registry(&[
            ("id: a", "{{ brief.project }} {{ breif.project }}"),
            ("id: b\noutput_schema: {type: object, properties: {x: {type: strnig}}}", "x"),
        ]),
        &[
            "error: agent `a`, template `task`: variable `breif` of line 1 is not known; did you mean `brief`?",
            "error: agent `b`, output schema: /properties/x/type: \"strnig\" can't stand here",
        ],
    );
}

#[test]
fn dependencies_of_steps_are_checked() {
    let mut registry = registry(&[
        ("id: giver\noutputs: [{type: text, path: a, description: d}]", "x"),
        ("id: late\nphases: {p: {outputs: [{type: more, path: b, description: d}]}}", "x"),
        ("id: taker\ndependencies: [text, more]", "x"),
    ]);
    for text in [
        "name: good
steps:
  - agent: giver
  - {agent: late, phase: p, inputs: giver, when: x}
  - {agent: taker, inputs: late, when: x}",
        "name: bad
steps:
  - agent: giver
  - {name: early, agent: taker}
  - {agent: late, inputs: giver}
  - {agent: taker, inputs: late}",
        "name: maybe
steps:
  - {agent: giver, when: x}
  - {agent: late, phase: p}
  - {agent: taker, inputs: [giver?, late]}",
        // A step that needs another one runs only if that does.
        "name: follows
steps:
  - {agent: giver, when: x}
  - {agent: late, phase: p, inputs: giver}
  - {agent: taker, inputs: late}",
        "name: settles
steps:
  - {agent: giver, when: x}
  - {agent: late, phase: p}
  - {agent: taker, inputs: [giver, late], join: settle}",
    ] {
        let workflow = parse_workflow("w.yaml", text, &registry).unwrap();
        registry.insert_workflow(workflow);
    }
    check(
        &registry,
        &[
            "error: workflow `bad`, step `early`: needs `more`, and no step before it delivers that; `late` would",
            "error: workflow `bad`, step `early`: needs `text`, and no step before it delivers that; `giver` would",
            "error: workflow `bad`, step `taker`: needs `more`, and no step before it delivers that; `late` would",
            "warning: workflow `maybe`, step `taker`: needs `text`, which is delivered only if `x` holds",
            "warning: workflow `settles`, step `taker`: needs `text`, which is delivered only if `x` holds",
        ],
    );
}

#[test]
fn a_phase_that_the_agent_does_not_know_is_found() {
    let mut registry = registry(&[("id: free", "x"), ("id: bound\nphases: {review: {}, build: {}}", "x")]);
    for text in [
        "name: a\nsteps:\n  - {agent: free, phase: anything}\n  - {agent: bound, phase: build, inputs: free}",
        "name: b\nsteps:\n  - {agent: bound, phase: reviews}\n  - {name: c, agent: bound, phase: later}\n  - {name: d, agent: bound}",
    ] {
        let workflow = parse_workflow("w.yaml", text, &registry).unwrap();
        registry.insert_workflow(workflow);
    }
    check(
        &registry,
        &[
            "warning: workflow `b`, step `bound`: `bound` defines no phase `reviews`, so it owes there what it owes without one; did you mean `review`?",
            "warning: workflow `b`, step `c`: `bound` defines no phase `later`, so it owes there what it owes without one; it defines build, review",
        ],
    );
}

#[test]
fn a_workflow_without_its_agents_is_found() {
    let mut registry = Registry::new();
    registry.insert_workflow((**Registry::builtin().workflow("backend_only").unwrap()).clone());
    let findings = registry.check();
    assert!(
        findings.iter().any(|f| f.to_string()
            == "error: workflow `backend_only`, step `architecture`: no agent is called `project_architect`"),
        "{findings:?}"
    );
}

#[test]
fn what_prompts_say_is_looked_at() {
    let registry = registry(&[(
        "id: a",
        "Always cite the sources of each claim.\n\nNever cite the sources of a claim.",
    )]);
    let findings: Vec<String> =
        registry.lint(&coral_core::LintRules::default()).iter().map(ToString::to_string).collect();
    assert!(
        findings
            .iter()
            .any(|f| f.starts_with("warning: agent `a`, template `task`, line 3: ")
                && f.contains("contradicts")),
        "{findings:?}"
    );
    let builtin: Vec<String> =
        Registry::builtin().lint(&coral_core::LintRules::default()).iter().map(ToString::to_string).collect();
    assert_eq!(builtin, [""; 0]);
}
