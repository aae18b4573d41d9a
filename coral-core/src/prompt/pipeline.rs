//! The stages that make a prompt, and what users add to them.

use std::sync::Arc;

use async_trait::async_trait;
use minijinja::value::{Serde, Value as Jinja};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::draft::{Fit, PromptDraft, SectionPart};
use crate::condition::Condition;
use crate::error::Error;
use crate::task::Task;

/// The four stages in which a prompt is made, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptPhase {
    /// Whether the task can be worked with.
    Validation,
    /// Which values and sections there are.
    Enrichment,
    /// From templates and values to texts.
    Transformation,
    /// To what fits the model: what is added here comes before the fitting, which is always last.
    Optimisation,
}

impl PromptPhase {
    /// All, in their order.
    pub const ALL: [PromptPhase; 4] = [
        PromptPhase::Validation,
        PromptPhase::Enrichment,
        PromptPhase::Transformation,
        PromptPhase::Optimisation,
    ];
}

/// A stage of your own in the making of prompts.
///
/// ```
/// use coral_core::{Error, PromptDraft, PromptPhase, PromptService, PromptStage};
///
/// /// Refuses briefs that carry what looks like a private key.
/// struct NoKeys;
///
/// impl PromptStage for NoKeys {
///     fn name(&self) -> &str {
///         "no_keys"
///     }
///
///     fn apply(&self, draft: &mut PromptDraft) -> Result<(), Error> {
///         match draft.task.brief.text.contains("PRIVATE KEY") {
///             true => Err(Error::invalid("brief", "it holds a private key; take it out")),
///             false => Ok(()),
///         }
///     }
/// }
///
/// let service = PromptService::builder().stage(PromptPhase::Validation, NoKeys).build()?;
/// let names: Vec<&str> = service.stages().into_iter().map(|(_, name)| name).collect();
/// assert_eq!(names, ["task", "no_keys", "sections", "render", "fit"]);
/// # Ok::<(), Error>(())
/// ```
///
/// # Duties of an implementation
/// The same draft must become the same prompt, in every process: what is asked of the model is compared when a step is
/// resumed. A stage reads no clock and nothing from outside; what comes from outside comes in through a
/// [`ContextSource`], whose answer is recorded. A stage of transformation or optimisation may be called several
/// times for one prompt, each time with freshly rendered sections.
pub trait PromptStage: Send + Sync {
    /// The name, for errors and lists.
    fn name(&self) -> &str;

    /// Changes the draft.
    ///
    /// # Errors
    /// What makes the task one that can't be worked with. The step fails with it.
    fn apply(&self, draft: &mut PromptDraft) -> Result<(), Error>;
}

/// Where a value comes from that templates may use: the state of the project, tickets, a style guide.
///
/// It is asked once for each step, as an effect of the step: its answer is recorded and given back when the step is
/// resumed. A template that names the value places it; otherwise it gets a section of its own.
#[async_trait]
pub trait ContextSource: Send + Sync {
    /// The name of the value in templates: lower case, digits and `_`.
    fn name(&self) -> &str;

    /// The value.
    ///
    /// # Errors
    /// The step fails with it; a transient one lets the step be tried again.
    async fn load(&self, query: &ContextQuery<'_>) -> Result<Value, Error>;
}

/// For whom a [`ContextSource`] is asked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ContextQuery<'a> {
    /// The agent's id.
    pub agent: &'a str,
    /// The run.
    pub run: &'a str,
    /// The project; may be empty.
    pub project: &'a str,
    /// The task, with the phase of the workflow.
    pub task: &'a Task,
}

/// A section that is there only for agents that can do something, or where a tool is at hand.
///
/// ```
/// use coral_core::{DynamicSection, Fit, PromptService};
///
/// let service = PromptService::builder()
///     .section(DynamicSection::new("sql", "## SQL\n\nLook before you write: `EXPLAIN` first.").for_tool("execute_query"))
///     .section(
///         DynamicSection::new("house_style", "## House style\n\n{{ config.style }}")
///             .for_capability("technical_writing")
///             .fit(Fit::Drop { priority: 50 }),
///     )
///     .section(DynamicSection::new("many", "Use as few tools as you can.").when("tools|length > 20")?)
///     .config("style", "Short sentences.")
///     .build()?;
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DynamicSection {
    pub(super) name: String,
    pub(super) part: SectionPart,
    pub(super) fit: Fit,
    pub(super) template: String,
    tools: Vec<String>,
    capabilities: Vec<String>,
    conditions: Vec<Arc<Condition>>,
}

impl DynamicSection {
    /// A section of the task message, rendered from a template, that is always there. Where several conditions are
    /// given, all must hold.
    pub fn new(name: impl Into<String>, template: impl Into<String>) -> Self {
        DynamicSection {
            name: name.into(),
            part: SectionPart::Task,
            fit: Fit::Pinned,
            template: template.into(),
            tools: Vec::new(),
            capabilities: Vec::new(),
            conditions: Vec::new(),
        }
    }

    /// Puts it into the system message. Its template may then use only what is the same for every task: `agent` and
    /// `config`.
    #[must_use]
    pub fn in_system(mut self) -> Self {
        self.part = SectionPart::System;
        self
    }

    /// Says what may be done with it when the prompt does not fit.
    #[must_use]
    pub fn fit(mut self, fit: Fit) -> Self {
        self.fit = fit;
        self
    }

    /// Only where this tool is at hand: by its whole name, or by the name without that of its server
    /// (`execute_query` for `db__execute_query`).
    #[must_use]
    pub fn for_tool(mut self, name: impl Into<String>) -> Self {
        self.tools.push(name.into());
        self
    }

    /// Only for agents of this capability.
    #[must_use]
    pub fn for_capability(mut self, capability: impl Into<String>) -> Self {
        self.capabilities.push(capability.into());
        self
    }

    /// Only where this condition holds, which sees what templates see: `phase == "fix"`, `inputs|length > 3`. What is
    /// not there is false.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if it can't be read.
    pub fn when(mut self, condition: &str) -> Result<Self, Error> {
        self.conditions.push(Arc::new(Condition::new(condition)?));
        Ok(self)
    }

    /// Whether it belongs into the prompt.
    pub(super) fn applies(&self, draft: &PromptDraft, scope: &Jinja) -> Result<bool, Error> {
        let has_tool = |name: &String| {
            draft.tools.iter().any(|tool| {
                tool.name == *name || tool.name.rsplit_once("__").is_some_and(|(_, short)| short == name)
            })
        };
        let can = |capability: &String| draft.agent.capabilities.contains(capability);
        if !self.tools.iter().all(has_tool) || !self.capabilities.iter().all(can) {
            return Ok(false);
        }
        for condition in &self.conditions {
            if !condition.holds_in(scope.clone())? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The section of a value that no template places.
pub(super) fn own_section(name: &str, value: &Value) -> String {
    let mut title = name.replace('_', " ");
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let text = match value {
        Value::Null => return String::new(),
        Value::String(text) if text.trim().is_empty() => return String::new(),
        Value::String(text) => text.trim().to_owned(),
        value => match serde_json::to_string_pretty(value) {
            Ok(json) => format!("```json\n{json}\n```"),
            Err(_) => return String::new(),
        },
    };
    format!("## {title}\n\n{text}")
}

/// The value of a part of a draft for templates.
pub(super) fn jinja(value: &impl Serialize) -> Jinja {
    Jinja::from(Serde(value))
}
