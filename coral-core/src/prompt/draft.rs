//! A prompt in the making: sections, and the values that they are rendered with.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use minijinja::value::{Enumerator, Object, Serde, Value as Jinja};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::compiled::Fixed;
use super::tokens::{FRAME, TokenCounter};
use crate::model::Message;
use crate::spec::AgentSpec;
use crate::task::Task;
use crate::tool::ToolDef;

/// Where a section stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SectionPart {
    /// In the system message: the same for every task of an agent, so that providers can cache it.
    System,
    /// In the message that gives the task.
    Task,
}

/// What may be done with a section, or a value, when a prompt does not fit its model.
///
/// What has the lowest priority goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fit {
    /// It stays as it is. If all that is pinned does not fit, the step fails.
    Pinned,
    /// It is cut down to as much as fits, and to no less than `min_tokens`.
    Shorten {
        /// Its priority.
        priority: u8,
        /// What is left of it at least.
        min_tokens: u64,
    },
    /// It is left out as a whole.
    Drop {
        /// Its priority.
        priority: u8,
    },
}

impl Fit {
    pub(super) fn priority(self) -> Option<u8> {
        match self {
            Fit::Pinned => None,
            Fit::Shorten { priority, .. } | Fit::Drop { priority } => Some(priority),
        }
    }
}

/// A section of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Section {
    /// Its name, such as `role`, `system`, `task`, `context`, `output`.
    pub name: String,
    /// Where it stands.
    pub part: SectionPart,
    /// What may be done with it when the prompt does not fit.
    pub fit: Fit,
    /// Its text: from transformation on as the model gets it.
    pub text: Arc<str>,
    /// The compiled template that it is rendered from; its text is taken as it stands if there is none.
    pub(super) template: Option<Cow<'static, str>>,
}

impl Section {
    /// A pinned section of text.
    pub fn new(name: impl Into<String>, part: SectionPart, text: impl Into<Arc<str>>) -> Self {
        Section { name: name.into(), part, fit: Fit::Pinned, text: text.into(), template: None }
    }

    pub(super) fn from_template(
        name: &str,
        part: SectionPart,
        fit: Fit,
        template: impl Into<Cow<'static, str>>,
    ) -> Self {
        Section { name: name.to_owned(), part, fit, text: Arc::default(), template: Some(template.into()) }
    }

    /// Says what may be done with it when the prompt does not fit.
    #[must_use]
    pub fn fit(mut self, fit: Fit) -> Self {
        self.fit = fit;
        self
    }
}

/// What was left out of a part of a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeftOut {
    /// The section or the value.
    pub part: String,
    /// Its tokens before.
    pub tokens_before: u64,
    /// Its tokens after; 0 if it is gone.
    pub tokens_after: u64,
}

/// A prompt in the making, as the stages of its pipeline see and change it.
///
/// Stages before transformation change the values (`task`, `context`) and the list of sections, later ones their texts.
#[derive(Clone)]
#[non_exhaustive]
pub struct PromptDraft {
    /// The agent, as it stands in the phase.
    pub agent: Arc<AgentSpec>,
    /// The task, with what earlier agents handed over.
    pub task: Arc<Task>,
    /// The tools that the agent may call.
    pub tools: Arc<[ToolDef]>,
    /// The values of sources, which templates use by their names.
    pub context: Arc<BTreeMap<String, Value>>,
    /// The configuration: the value `config` of templates.
    pub config: Arc<Value>,
    /// The sections in the order in which they are read.
    pub sections: Vec<Section>,
    /// Tokens that the messages may take, where the model's context is known.
    pub limit: Option<u64>,
    pub(super) counter: Arc<dyn TokenCounter>,
    pub(super) left_out: Vec<LeftOut>,
    /// What is the same for other tasks, so that it need not be made again.
    pub(super) fixed: Arc<Fixed>,
}

impl PromptDraft {
    /// The section of this name.
    pub fn section(&mut self, name: &str) -> Option<&mut Section> {
        self.sections.iter_mut().find(|section| section.name == name)
    }

    /// The tokens of all sections as they stand, with the frames of their messages.
    pub fn tokens(&self) -> u64 {
        let of = |section: &Section| match section.text.is_empty() {
            true => 0,
            false => self.tokens_of(&section.text) + 1,
        };
        self.sections.iter().map(of).sum::<u64>() + 2 * FRAME
    }

    pub(super) fn tokens_of(&self, text: &Arc<str>) -> u64 {
        self.fixed.tokens_of(text, &*self.counter).unwrap_or_else(|| self.counter.text(text))
    }

    /// The system message and the message that gives the task.
    pub(super) fn messages(&self) -> Vec<Message> {
        let text = |part: SectionPart| {
            let texts =
                self.sections.iter().filter(|section| section.part == part && !section.text.is_empty());
            texts.map(|section| &*section.text).collect::<Vec<_>>().join("\n\n")
        };
        let mut messages =
            vec![Message::system(text(SectionPart::System)), Message::user(text(SectionPart::Task))];
        messages.iter_mut().for_each(|message| message.cache = true);
        messages
    }
}

impl fmt::Debug for PromptDraft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromptDraft")
            .field("agent", &self.agent.id)
            .field("sections", &self.sections)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// What templates of the task may use, besides the values of sources.
pub(crate) const TASK_NAMES: [&str; 9] =
    ["agent", "available", "brief", "config", "deliverables", "inputs", "instructions", "phase", "tools"];

/// What templates of the system message may use: nothing that differs from task to task.
pub(crate) const SYSTEM_NAMES: [&str; 2] = ["agent", "config"];

/// What templates of handoffs may use.
pub(crate) const HANDOFF_NAMES: [&str; 4] = ["agent", "phase", "report", "to"];

/// The values of a draft, made into those of templates when one asks for them, once.
pub(super) struct Scope {
    fixed: Arc<Fixed>,
    task: Arc<Task>,
    /// Where a stage has changed them.
    tools: Option<Arc<[ToolDef]>>,
    config: Option<Arc<Value>>,
    context: Arc<BTreeMap<String, Value>>,
    made: [OnceLock<Jinja>; 6],
}

impl Scope {
    pub(super) fn of(draft: &PromptDraft) -> Jinja {
        let fixed = draft.fixed.clone();
        Jinja::from_object(Scope {
            task: draft.task.clone(),
            tools: (!Arc::ptr_eq(&draft.tools, &fixed.tools)).then(|| draft.tools.clone()),
            config: (!Arc::ptr_eq(&draft.config, &fixed.config)).then(|| draft.config.clone()),
            context: draft.context.clone(),
            made: Default::default(),
            fixed,
        })
    }
}

impl Object for Scope {
    fn get_value(self: &Arc<Self>, key: &Jinja) -> Option<Jinja> {
        let [brief, inputs, available, instructions, tools, config] = &self.made;
        let made = |slot: &OnceLock<Jinja>, make: &dyn Fn() -> Jinja| Some(slot.get_or_init(make).clone());
        match key.as_str()? {
            "agent" => Some(self.fixed.values.agent.clone()),
            "deliverables" => Some(self.fixed.values.deliverables.clone()),
            "phase" => Some(Jinja::from(self.task.phase.as_str())),
            "brief" => made(brief, &|| Jinja::from(Serde(&self.task.brief))),
            "inputs" => made(inputs, &|| Jinja::from(Serde(&self.task.inputs))),
            "available" => made(available, &|| Jinja::from(Serde(&self.task.available))),
            "instructions" => made(instructions, &|| Jinja::from(Serde(&self.task.instructions))),
            "tools" => match &self.tools {
                None => Some(self.fixed.values.tools.clone()),
                Some(changed) => made(tools, &|| Jinja::from(Serde(changed))),
            },
            "config" => match &self.config {
                None => Some(self.fixed.values.config.clone()),
                Some(changed) => made(config, &|| Jinja::from(Serde(changed))),
            },
            name => self.context.get(name).map(|value| Jinja::from(Serde(value))),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let names = TASK_NAMES.iter().copied().map(str::to_owned).chain(self.context.keys().cloned());
        Enumerator::Values(names.map(Jinja::from).collect())
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}
