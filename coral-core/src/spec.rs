//! What an agent is, as data: the standard structure of an agent definition.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::handoff::OnGap;
use crate::model::Effort;

/// Whether an agent leads every project or is called for its field.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Leads: the architect and the technical writer.
    Core,
    /// Is called for its field.
    #[default]
    Specialist,
}

impl Category {
    /// `core` or `specialist`.
    pub fn as_str(self) -> &'static str {
        match self {
            Category::Core => "core",
            Category::Specialist => "specialist",
        }
    }
}

/// An agent as data: who it is, what it needs and gives, how it is prompted, to whom it hands off.
///
/// A typed agent fills in what applies to it (see [`AgentSpec::new`]); an agent that is data
/// alone is run by [`PromptAgent`](crate::PromptAgent), which uses all of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentSpec {
    /// The name in graphs, journals and permissions: lower case, digits and `_`.
    pub id: String,
    /// The name for people.
    pub name: String,
    /// Core or specialist.
    #[serde(default)]
    pub category: Category,
    /// The field, such as `development`, `ai_data`, `quality_security`, `operations`.
    #[serde(default)]
    pub group: String,
    /// One sentence for catalogues.
    #[serde(default)]
    pub summary: String,
    /// Other ids that mean this agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// What it can do, as search terms.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Deliverable types that others must have produced before it can start.
    #[serde(default)]
    pub dependencies: Vec<String>,
    /// Deliverable types that it uses where they are there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub optional_dependencies: Vec<String>,
    /// What it delivers.
    #[serde(default)]
    pub outputs: Vec<OutputSpec>,
    /// Its role and responsibilities.
    #[serde(default)]
    pub role_description: String,
    /// Its fields of expertise.
    #[serde(default)]
    pub expertise_areas: Vec<String>,
    /// Its approaches and frameworks.
    #[serde(default)]
    pub methodologies: Vec<String>,
    /// How it is prompted.
    #[serde(default)]
    pub prompt: PromptTemplate,
    /// To whom it hands off, and what goes along.
    #[serde(default)]
    pub handoff: HandoffSpec,
    /// What it needs of a model.
    #[serde(default)]
    pub model: ModelNeeds,
    /// Named operations that it needs of tools, such as `read_file` or `execute_query`.
    #[serde(default)]
    pub operations: Vec<String>,
    /// Bounds of one run of it.
    #[serde(default)]
    pub limits: AgentLimits,
    /// JSON Schema of `data` in its report, where it gives more than deliverables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
    /// What differs by phase of the workflow.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub phases: BTreeMap<String, PhaseSpec>,
}

/// One deliverable that an agent promises.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// The type, such as `api_specification`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it is written, relative to the project's root.
    pub path: String,
    /// What it holds.
    pub description: String,
    /// Whether the agent may leave it out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// How an agent is prompted. All texts are templates (minijinja, strict: an unknown variable is
/// an error).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptTemplate {
    /// Base behaviour: the same for every task, so that providers can cache it.
    #[serde(default)]
    pub system_instructions: String,
    /// The task, with its parameters.
    #[serde(default)]
    pub task_template: String,
    /// How the given context is to be used.
    #[serde(default)]
    pub context_integration: String,
    /// What the answer must look like.
    #[serde(default)]
    pub output_format: String,
}

/// To whom an agent hands off, and what goes along.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HandoffSpec {
    /// Agents that usually follow. In a route the agent may hand on only to one of these; a model to none if
    /// there are none, an agent of code then to any of the route.
    #[serde(default)]
    pub next_agents: Vec<String>,
    /// Template of the tasks for the next agent, one a line.
    #[serde(default)]
    pub template: String,
    /// What of the context the next agent must get to see: names of deliverable types, or of
    /// report fields such as `decisions`.
    #[serde(default)]
    pub preserve: Vec<String>,
    /// What happens where something that the agent depends on was not delivered; a step may say
    /// otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_gap: Option<OnGap>,
    /// The agents before it whose work it may send back with findings, where its step names none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reviews: Vec<String>,
    /// How often it may send work back; twice, if nobody says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rounds: Option<u32>,
}

/// What an agent needs of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelNeeds {
    /// The quality that the work is worth.
    #[serde(default)]
    pub tier: Tier,
    /// Capabilities such as `tools`, `vision`, `long_context`.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// How hard the model should think.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// A model asked for by name, before any routing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Sampling temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Output tokens of one call at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
}

/// A class of model quality.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Cheap and fast: formatting, extraction.
    Basic,
    /// The usual.
    #[default]
    Standard,
    /// The strongest: architecture, security.
    Strong,
}

/// Bounds of one run of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AgentLimits {
    /// Model calls at the most.
    pub max_turns: u32,
    /// Turns spent on an answer that does not fit its schema.
    pub max_repairs: u32,
    /// Tool calls of one turn at the most.
    pub max_tool_calls: u32,
    /// Milliseconds at the most; `None` leaves it to the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl Default for AgentLimits {
    fn default() -> Self {
        AgentLimits { max_turns: 24, max_repairs: 2, max_tool_calls: 32, timeout_ms: None }
    }
}

/// What differs when an agent works in a named phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PhaseSpec {
    /// Added to the task.
    #[serde(default)]
    pub instructions: String,
    /// In place of the spec's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dependencies: Option<Vec<String>>,
    /// In place of the spec's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Vec<OutputSpec>>,
    /// In place of the spec's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_agents: Option<Vec<String>>,
    /// In place of the spec's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
}

impl AgentSpec {
    /// A spec with an id and a name, all else empty or default.
    pub fn new(id: impl Into<String>, name: impl Into<String>) -> Self {
        AgentSpec { id: id.into(), name: name.into(), ..Default::default() }
    }

    /// The spec as it stands in `phase`. An unnamed or unknown phase changes nothing.
    #[must_use]
    pub fn in_phase(&self, phase: &str) -> AgentSpec {
        let mut spec = self.clone();
        if let Some(differs) = self.phases.get(phase) {
            if let Some(dependencies) = &differs.dependencies {
                spec.dependencies.clone_from(dependencies);
            }
            if let Some(outputs) = &differs.outputs {
                spec.outputs.clone_from(outputs);
            }
            if let Some(next) = &differs.next_agents {
                spec.handoff.next_agents.clone_from(next);
            }
            if differs.output_schema.is_some() {
                spec.output_schema.clone_from(&differs.output_schema);
            }
        }
        spec
    }

    /// Checks what can be checked of a spec alone.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), which names the field.
    pub fn validate(&self) -> Result<(), Error> {
        let what = || format!("agent `{}`", self.id);
        if !is_id(&self.id) {
            return Err(Error::invalid(
                what(),
                "`id` must be lower-case letters, digits and `_`, and begin with a letter",
            ));
        }
        if self.name.trim().is_empty() {
            return Err(Error::invalid(what(), "`name` is empty"));
        }
        if self.limits.max_turns == 0 {
            return Err(Error::invalid(what(), "`limits.max_turns` must be at least 1"));
        }
        let outputs =
            self.outputs.iter().chain(self.phases.values().filter_map(|p| p.outputs.as_ref()).flatten());
        for output in outputs {
            if output.kind.is_empty() {
                return Err(Error::invalid(what(), "an output has no `type`"));
            }
            let path = &output.path;
            if path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == "..") {
                return Err(Error::invalid(
                    what(),
                    format!("output path `{path}` must be relative and stay inside the project"),
                ));
            }
        }
        Ok(())
    }
}

/// Whether `text` can be the id of an agent or the name of a step.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}
