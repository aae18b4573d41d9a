//! Writing agents as files of other tools.

use std::collections::BTreeSet;
use std::path::PathBuf;

use coral_core::{AgentSpec, Error, OutputSpec, Templates};
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
    let mut export = Export { front: Vec::new(), notes: Vec::new() };
    export.front.push(format!("name: {name}"));
    export.front.push(format!("description: {}", quoted(&description(spec))));
    export.mapped("`id` and `name`", "`name`");
    export.mapped("`summary` and `capabilities`", "`description`");
    match format {
        Format::Subagent => {
            export.operations(spec, "tools", ", ");
            export.model(spec);
        }
        Format::Skill => {
            export.operations(spec, "allowed-tools", " ");
            export.dropped("`model` and `limits`", "a skill runs on whatever model reads it");
        }
    }
    export.the_rest(spec);
    let body = body(spec, registry)?;
    let path = match format {
        Format::Subagent => PathBuf::from(format!(".claude/agents/{name}.md")),
        Format::Skill => PathBuf::from(format!(".agents/skills/{name}/SKILL.md")),
    };
    let text = format!("---\n{}\n---\n\n{body}", export.front.join("\n"));
    Ok(Exported { path, text, notes: export.notes })
}

/// A file in the making.
struct Export {
    front: Vec<String>,
    notes: Vec<Note>,
}

impl Export {
    fn mapped(&mut self, part: &str, to: &str) {
        self.notes.push(Note::new(0, part, Fate::Mapped(to.to_owned())));
    }

    fn dropped(&mut self, part: &str, why: &str) {
        self.notes.push(Note::new(0, part, Fate::Dropped(why.to_owned())));
    }

    /// The tools for the operations, as a list under `key`.
    fn operations(&mut self, spec: &AgentSpec, key: &str, separator: &str) {
        let mut tools: Vec<String> = Vec::new();
        let mut missing = BTreeSet::new();
        for operation in &spec.operations {
            let offered = tools::tools_for(operation);
            if offered.is_empty() {
                missing.insert(operation.as_str());
            }
            for tool in offered {
                if !tools.contains(&tool) {
                    tools.push(tool);
                }
            }
        }
        if tools.iter().any(|tool| tool == "Bash") {
            // Whoever may run any command may run these.
            tools.retain(|tool| !tool.starts_with("Bash("));
            self.dropped(
                "the bounds of operation `run_code`",
                "`Bash` runs any command with the rights of its user: restrict it where the file is used",
            );
        }
        if !tools.is_empty() {
            self.front.push(format!("{key}: {}", tools.join(separator)));
            self.mapped("`operations`", &format!("`{key}`"));
        }
        for operation in missing {
            self.dropped(
                &format!("operation `{operation}`"),
                "there is no tool of that kind; connect a server that offers it",
            );
        }
    }

    fn model(&mut self, spec: &AgentSpec) {
        let needs = &spec.model;
        match &needs.name {
            Some(name) => {
                self.front.push(format!("model: {}", quoted(name)));
                self.mapped("`model.name`", "`model`");
                self.dropped("`model.tier`", "the model is named");
            }
            None => {
                self.front.push(format!("model: {}", tools::model_of(needs.tier)));
                self.mapped("`model.tier`", "`model`");
            }
        }
        if let Some(effort) = needs.effort.and_then(tools::effort_name) {
            self.front.push(format!("effort: {effort}"));
            self.mapped("`model.effort`", "`effort`");
        }
        if let Some(temperature) = needs.temperature {
            self.front.push(format!("temperature: {temperature}"));
            self.mapped("`model.temperature`", "`temperature`");
        }
        self.front.push(format!("maxTurns: {}", spec.limits.max_turns));
        self.mapped("`limits.max_turns`", "`maxTurns`");
        if needs.max_output_tokens.is_some() {
            self.dropped("`model.max_output_tokens`", "there is no field for it");
        }
        if !needs.capabilities.is_empty() {
            self.dropped("`model.capabilities`", "no model is chosen by them there");
        }
        self.dropped(
            "`limits.max_repairs`, `limits.max_tool_calls` and `limits.timeout_ms`",
            "they bound a run of the engine",
        );
    }

    /// What becomes text, and what only the engine can use.
    fn the_rest(&mut self, spec: &AgentSpec) {
        self.mapped(
            "`role_description`, `prompt.system_instructions`, `expertise_areas`, `methodologies`, `dependencies`, \
             `optional_dependencies`, `outputs` and `phases`",
            "the text",
        );
        if spec.phases.values().any(|phase| {
            phase.dependencies.is_some() || phase.next_agents.is_some() || phase.output_schema.is_some()
        }) {
            let part = "`dependencies`, `next_agents` and `output_schema` of `phases`";
            self.dropped(part, "phases belong to a workflow");
        }
        self.dropped(
            "`prompt.task_template` and `prompt.context_integration`",
            "they are filled in from the run",
        );
        self.dropped("`prompt.output_format` and `output_schema`", "the report is read by the engine alone");
        self.dropped("`category` and `group`", "they order the catalogue");
        if !spec.aliases.is_empty() {
            self.dropped("`aliases`", "an agent has one name there");
        }
        let handoff = &spec.handoff;
        if !handoff.next_agents.is_empty() {
            self.mapped("`handoff.next_agents`", "the text, as a suggestion");
        }
        for (part, is_set) in [
            ("`handoff.template`", !handoff.template.is_empty()),
            ("`handoff.preserve`", !handoff.preserve.is_empty()),
            ("`handoff.on_gap`", handoff.on_gap.is_some()),
            ("`handoff.reviews`", !handoff.reviews.is_empty()),
            ("`handoff.max_rounds`", handoff.max_rounds.is_some()),
        ] {
            if is_set {
                self.dropped(part, "who calls the agent hands its work on");
            }
        }
    }
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
    if !spec.optional_dependencies.is_empty() {
        parts.push(format!("## What you use where it is there\n\n{}.", ticked(&spec.optional_dependencies)));
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
    let line = |output: &OutputSpec, when: &str| {
        format!("- `{}` (`{}`{when}): {}", output.path, output.kind, output.description)
    };
    let own =
        spec.outputs.iter().map(|output| line(output, if output.optional { ", if it applies" } else { "" }));
    let phases = spec.phases.iter().flat_map(|(name, phase)| {
        let when = format!(", in the phase `{name}`");
        phase.outputs.iter().flatten().map(move |output| line(output, &when)).collect::<Vec<_>>()
    });
    own.chain(phases).collect()
}

fn ticked(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// `text` as a YAML scalar in double quotes, which JSON's are.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}
