//! Writing agents as files of other tools.

use std::collections::BTreeSet;
use std::path::PathBuf;

use coral_core::{AgentSpec, Error, Templates};
use serde_json::json;

use super::tools;
use super::{Fate, Note};
use crate::registry::Registry;

/// A format that other tools read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Sub-agents: `.claude/agents/NAME.md`.
    Subagent,
    /// Skills: `.agents/skills/NAME/SKILL.md`.
    Skill,
}

/// A file for another tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Where it belongs, relative to a project's root.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// What became of each part of the agent.
    pub notes: Vec<Note>,
}

/// The most that a skill's description may hold.
const MAX_DESCRIPTION: usize = 1024;

/// Writes an agent of `registry` as a file of another tool.
///
/// What the other format has a field for goes there; the rest becomes text where a reader can use
/// it (deliverables, successors, phases) and is left out with a note where only Coral can.
///
/// # Errors
/// [`NotFound`](coral_core::ErrorKind::NotFound) if there is no such agent;
/// [`Invalid`](coral_core::ErrorKind::Invalid) if its system instructions can't be rendered.
///
/// ```
/// use coral_agents::{Format, Registry, export_agent};
///
/// let file = export_agent(&Registry::builtin(), "qa_testing", Format::Subagent)?;
/// assert_eq!(file.path.to_str(), Some(".claude/agents/qa-testing.md"));
/// assert!(file.text.starts_with("---\nname: qa-testing\ndescription: "));
/// # Ok::<(), coral_core::Error>(())
/// ```
pub fn export_agent(registry: &Registry, id: &str, format: Format) -> Result<Exported, Error> {
    let spec = registry.agent(id)?;
    let name = spec.id.replace('_', "-");
    let mut notes = Vec::new();
    let mut note = |part: &str, fate| notes.push(Note::new(0, part, fate));
    let mapped = |to: &str| Fate::Mapped(to.to_owned());
    let dropped = |why: &str| Fate::Dropped(why.to_owned());

    let mut front = vec![format!("name: {name}"), format!("description: {}", quoted(&description(spec)))];
    note("`id`", mapped("`name`"));
    note("`summary` and `capabilities`", mapped("`description`"));
    let mut missing = BTreeSet::new();
    let mut allowed: Vec<&str> = Vec::new();
    for operation in &spec.operations {
        let offered = tools::tools_for(operation);
        if offered.is_empty() {
            missing.insert(operation.as_str());
        }
        allowed.extend(offered.iter().filter(|tool| !allowed.contains(tool)).copied().collect::<Vec<_>>());
    }
    match format {
        Format::Subagent => {
            if !allowed.is_empty() {
                front.push(format!("tools: {}", allowed.join(", ")));
                note("`operations`", mapped("`tools`"));
            }
            let model = match &spec.model.name {
                Some(name) => quoted(name),
                None => tools::model_of(spec.model.tier).to_owned(),
            };
            front.push(format!("model: {model}"));
            front.push(format!("maxTurns: {}", spec.limits.max_turns));
            note("`model` and `limits.max_turns`", mapped("`model` and `maxTurns`"));
        }
        Format::Skill => {
            if !allowed.is_empty() {
                front.push(format!("allowed-tools: {}", allowed.join(" ")));
                note("`operations`", mapped("`allowed-tools`"));
            }
            note("`model` and `limits`", dropped("a skill runs on whatever model reads it"));
        }
    }
    for operation in missing {
        note(
            &format!("operation `{operation}`"),
            dropped("there is no tool of that kind; connect a server that offers it"),
        );
    }

    let body = body(spec, registry)?;
    note("`role_description`, `prompt.system_instructions`, `outputs`, `phases`", mapped("the text"));
    note(
        "`prompt.task_template` and `prompt.context_integration`",
        dropped("they are filled in from the run"),
    );
    note("`prompt.output_format` and `output_schema`", dropped("the report is read by the engine alone"));
    if !spec.handoff.next_agents.is_empty() {
        note("`handoff`", mapped("the text, as a suggestion"));
    }
    let path = match format {
        Format::Subagent => PathBuf::from(format!(".claude/agents/{name}.md")),
        Format::Skill => PathBuf::from(format!(".agents/skills/{name}/SKILL.md")),
    };
    Ok(Exported { path, text: format!("---\n{}\n---\n\n{body}", front.join("\n")), notes })
}

/// Writes all agents of `registry` as one `AGENTS.md`: who there is, what each gives and needs.
pub fn export_team(registry: &Registry) -> Exported {
    let mut text = String::from(
        "# Agents\n\nThe members of the team, what each of them delivers, and what it needs before it starts.\n",
    );
    let mut agents: Vec<_> = registry.agents().collect();
    agents.sort_by_key(|spec| (spec.category, spec.group.clone(), spec.name.clone()));
    for spec in agents {
        text.push_str(&format!("\n## {}\n\n{}\n", spec.name, spec.summary));
        let outputs: Vec<_> = outputs(spec);
        if !outputs.is_empty() {
            text.push_str("\nDelivers:\n\n");
            text.push_str(&outputs.join("\n"));
            text.push('\n');
        }
        if !spec.dependencies.is_empty() {
            text.push_str(&format!("\nNeeds: {}.\n", ticked(&spec.dependencies)));
        }
        if !spec.handoff.next_agents.is_empty() {
            text.push_str(&format!("\nUsually hands over to: {}.\n", ticked(&spec.handoff.next_agents)));
        }
    }
    let notes = vec![
        Note::new(
            0,
            "`name`, `summary`, `outputs`, `dependencies`, `handoff.next_agents`",
            Fate::Mapped("the text".to_owned()),
        ),
        Note::new(
            0,
            "prompts, models and limits",
            Fate::Dropped("export the agents one by one for those".to_owned()),
        ),
    ];
    Exported { path: PathBuf::from("AGENTS.md"), text, notes }
}

fn description(spec: &AgentSpec) -> String {
    let capabilities: Vec<String> =
        spec.capabilities.iter().map(|capability| capability.replace('_', " ")).collect();
    let mut text = spec.summary.trim().to_owned();
    for (i, capability) in capabilities.iter().enumerate() {
        let more = format!("{}{capability}", if i == 0 { " Call it for: " } else { ", " });
        if text.len() + more.len() + 1 > MAX_DESCRIPTION {
            break;
        }
        text.push_str(&more);
    }
    if !capabilities.is_empty() {
        text.push('.');
    }
    text
}

fn body(spec: &AgentSpec, registry: &Registry) -> Result<String, Error> {
    let mut templates = Templates::new();
    for (name, text) in registry.partials() {
        templates.add(name, text)?;
    }
    // No partial is called so: theirs are names of files.
    let system = templates
        .add("system instructions", spec.prompt.system_instructions.as_str())
        .and_then(|()| templates.render("system instructions", &json!({ "agent": spec })))
        .map_err(|error| error.at(format!("agent `{}`", spec.id)))?;
    let mut parts = vec![spec.role_description.trim().to_owned(), system.trim().to_owned()];
    for (title, list) in [("Expertise", &spec.expertise_areas), ("Methods", &spec.methodologies)] {
        if !list.is_empty() {
            parts.push(format!("## {title}\n\n- {}", list.join("\n- ")));
        }
    }
    if !spec.dependencies.is_empty() {
        parts.push(format!("## Before you start\n\nThese must be there: {}.", ticked(&spec.dependencies)));
    }
    let outputs = outputs(spec);
    if !outputs.is_empty() {
        parts.push(format!("## What you deliver\n\n{}", outputs.join("\n")));
    }
    for (name, phase) in spec.phases.iter().filter(|(_, phase)| !phase.instructions.is_empty()) {
        parts.push(format!("## In the phase `{name}`\n\n{}", phase.instructions.trim()));
    }
    if !spec.handoff.next_agents.is_empty() {
        let next: Vec<String> = spec.handoff.next_agents.iter().map(|id| id.replace('_', "-")).collect();
        parts.push(format!(
            "## When you are done\n\nSay what was decided and why. Usually next: {}.",
            ticked(&next)
        ));
    }
    parts.retain(|part| !part.is_empty());
    Ok(parts.join("\n\n") + "\n")
}

fn outputs(spec: &AgentSpec) -> Vec<String> {
    let phases = spec.phases.values().filter_map(|phase| phase.outputs.as_ref()).flatten();
    phases.chain(&spec.outputs).map(|output| format!("- `{}`: {}", output.path, output.description)).collect()
}

fn ticked(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// `text` as a YAML scalar in double quotes, which JSON's are.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}
