//! Handing the work of one agent to the next.

mod hop;
mod review;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

pub use self::hop::Hop;
pub use self::review::{Finding, OnGap, Returned};
pub(crate) use self::review::{ReviewPolicy, Rework};
use crate::error::AgentError;
use crate::hash::hex;
use crate::payload::Payload;
use crate::spec::AgentSpec;
use crate::task::{Brief, Deliverable, HandoffMessage, Report, Task, TaskInput};

/// *`Self` can be handed to an agent that takes `Next`.*
///
/// An edge of a typed graph compiles only where this holds. Every type can be handed on as it is;
/// write an implementation where the next agent takes another type than the last one gave, or
/// takes the outputs of several:
///
/// ```
/// use coral_core::{AgentError, Handoff, HandoffContext};
/// # #[derive(Clone)] struct Api(String);
/// # #[derive(Clone)] struct Ui(String);
/// struct QaTask { scope: String }
///
/// impl Handoff<QaTask> for (Api, Ui) {
///     fn hand_off(self, _cx: &HandoffContext) -> Result<QaTask, AgentError> {
///         Ok(QaTask { scope: format!("{} and {}", self.0.0, self.1.0) })
///     }
/// }
/// ```
///
/// # Contract
/// It is a pure function: it runs again when a run is resumed, and must give the same.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be handed off to an agent that takes `{Next}`",
    label = "this output does not fit that agent's input",
    note = "implement `Handoff<{Next}>` for `{Self}`, or put a function step in between"
)]
pub trait Handoff<Next> {
    /// Turns this output into the next agent's input.
    ///
    /// # Errors
    /// Whatever makes the output unusable; the next step fails with it.
    fn hand_off(self, cx: &HandoffContext) -> Result<Next, AgentError>;
}

impl<T> Handoff<T> for T {
    fn hand_off(self, _cx: &HandoffContext) -> Result<T, AgentError> {
        Ok(self)
    }
}

/// What a [`Handoff`] may look at besides the outputs.
#[derive(Clone, Debug, Default)]
pub struct HandoffContext {
    pub(crate) input: Option<Payload>,
    pub(crate) phase: Arc<str>,
    pub(crate) instructions: Vec<String>,
    pub(crate) sources: Vec<HandoffSource>,
    pub(crate) available: Arc<[Deliverable]>,
    pub(crate) rework: Option<Arc<Rework>>,
}

/// One step whose output is handed over.
#[derive(Clone, Debug, Default)]
pub struct HandoffSource {
    /// The step's path; empty for the workflow's own input.
    pub path: Arc<str>,
    /// The agent that ran there, if one did.
    pub agent: Option<Arc<AgentSpec>>,
    /// The message that it sent to the taker.
    pub message: Option<Arc<HandoffMessage>>,
}

impl HandoffContext {
    /// The workflow's own input.
    pub fn input(&self) -> Option<&Payload> {
        self.input.as_ref()
    }

    /// The phase of the step that takes over.
    pub fn phase(&self) -> &str {
        &self.phase
    }

    /// What the graph asks of the step that takes over.
    pub fn instructions(&self) -> &[String] {
        &self.instructions
    }

    /// The steps that hand over, in the order of the edges.
    pub fn sources(&self) -> &[HandoffSource] {
        &self.sources
    }

    /// All that the steps before have delivered, theirs before them included.
    pub fn available(&self) -> &[Deliverable] {
        &self.available
    }

    /// What was sent back to this step, and by it, in the rounds before; empty in the first.
    pub fn reviews(&self) -> &[Arc<HandoffMessage>] {
        self.rework.as_ref().map(|rework| rework.messages.as_slice()).unwrap_or_default()
    }

    /// The brief of the run: its input if that is one; else its input as text.
    pub fn brief(&self) -> Brief {
        let Some(input) = &self.input else { return Brief::default() };
        if let Ok(brief) = input.get::<Brief>() {
            return brief;
        }
        let text = match input.json() {
            Ok(Value::String(text)) => text.clone(),
            Ok(other) => other.to_string(),
            Err(_) => String::new(),
        };
        Brief { text: text.into(), ..Default::default() }
    }

    /// An empty task for the agent that takes over.
    fn task(&self) -> Task {
        Task {
            brief: self.brief(),
            phase: self.phase.to_string(),
            inputs: Vec::new(),
            available: self.available.to_vec(),
            instructions: self.instructions.clone(),
            reviews: self.reviews().iter().map(|message| (**message).clone()).collect(),
            previous: self
                .rework
                .as_ref()
                .and_then(|rework| rework.previous.as_ref()?.get().ok())
                .map(Box::new),
        }
    }
}

/// What can be part of a [`Task`]: a [`Brief`], a [`Report`], one that may be missing, or several.
pub trait Contribution {
    /// Adds itself to `task`; `sources` are those that it came from.
    #[doc(hidden)]
    fn contribute(self, task: &mut Task, sources: &mut dyn Iterator<Item = &HandoffSource>);
}

impl Contribution for Brief {
    fn contribute(self, task: &mut Task, sources: &mut dyn Iterator<Item = &HandoffSource>) {
        sources.next();
        task.brief = self;
    }
}

impl Contribution for Report {
    fn contribute(self, task: &mut Task, sources: &mut dyn Iterator<Item = &HandoffSource>) {
        if let Some(source) = sources.next() {
            task.inputs.extend(task_input(&self, source));
        }
    }
}

impl Contribution for Option<Report> {
    fn contribute(self, task: &mut Task, sources: &mut dyn Iterator<Item = &HandoffSource>) {
        match self {
            Some(report) => report.contribute(task, sources),
            None => {
                sources.next();
            }
        }
    }
}

impl<T: Contribution> Contribution for Vec<T> {
    fn contribute(self, task: &mut Task, sources: &mut dyn Iterator<Item = &HandoffSource>) {
        for item in self {
            item.contribute(task, sources);
        }
    }
}

macro_rules! hand_off_to_task {
    ($(($($name:ident)+))+) => {$(
        #[diagnostic::do_not_recommend]
        impl<$($name: Contribution),+> Handoff<Task> for ($($name,)+) {
            #[expect(non_snake_case, reason = "the variables are named as their types")]
            fn hand_off(self, cx: &HandoffContext) -> Result<Task, AgentError> {
                let mut task = cx.task();
                let mut sources = cx.sources.iter();
                let ($($name,)+) = self;
                $($name.contribute(&mut task, &mut sources);)+
                Ok(task)
            }
        }
    )+};
}

hand_off_to_task! { (A B) (A B C) (A B C D) (A B C D E) (A B C D E F) }

macro_rules! hand_off_alone {
    ($($one:ty),+) => {$(
        #[diagnostic::do_not_recommend]
        impl Handoff<Task> for $one {
            fn hand_off(self, cx: &HandoffContext) -> Result<Task, AgentError> {
                let mut task = cx.task();
                self.contribute(&mut task, &mut cx.sources.iter());
                Ok(task)
            }
        }
    )+};
}

hand_off_alone! { Brief, Report, Option<Report>, Vec<Report>, Vec<Option<Report>> }

/// What `report` contributes to the task of the step that `source` hands over to.
fn task_input(report: &Report, source: &HandoffSource) -> Option<TaskInput> {
    let message = source.message.as_deref()?.clone();
    let mut preserved = BTreeMap::from([("summary".to_owned(), Value::String(report.summary.clone()))]);
    for name in source.agent.iter().flat_map(|spec| &spec.handoff.preserve) {
        let value = match name.as_str() {
            "decisions" => serde_json::to_value(&report.decisions).ok(),
            "data" => Some(report.data.clone()),
            kind => report
                .deliverables
                .iter()
                .find(|deliverable| deliverable.kind == kind)
                .map(|deliverable| Value::String(deliverable.path.clone()))
                .or_else(|| report.data.get(kind).cloned()),
        };
        if let Some(value) = value.filter(|value| !value.is_null()) {
            preserved.insert(name.clone(), value);
        }
    }
    Some(TaskInput { message, preserved })
}

/// The task of a step of a data graph, from the outputs of the steps before it.
pub(crate) fn task_of(outputs: &[Option<Payload>], cx: &HandoffContext) -> Task {
    let mut task = cx.task();
    for (output, source) in outputs.iter().zip(&cx.sources) {
        let Some(output) = output else { continue };
        let is_brief = source.path.is_empty() && cx.input.as_ref() == Some(output);
        let Some(message) = source.message.as_deref().filter(|_| !is_brief) else {
            if !is_brief {
                task.instructions.extend(told_of(output, source));
            }
            continue;
        };
        match output.get::<Report>() {
            Ok(report) => task.inputs.extend(task_input(&report, source)),
            // What a function gave is no report; it still reaches the agent.
            Err(_) => {
                if let Ok(value) = output.json() {
                    let preserved = BTreeMap::from([("output".to_owned(), value.clone())]);
                    task.inputs.push(TaskInput { message: message.clone(), preserved });
                }
            }
        }
    }
    task
}

/// What came without a message, in words: the input of a graph inside of another, such as one item of a list, is what
/// its agent is asked to do; a person, a signal, or a step that holds steps said something that the agent must know.
fn told_of(output: &Payload, source: &HandoffSource) -> Option<String> {
    let said = match output.json().ok()? {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Some(match source.path.rsplit('/').next().filter(|name| !name.is_empty()) {
        Some(name) => format!("`{name}` gave: {said}"),
        None => said,
    })
}

/// A UUID (version 8, RFC 9562) derived from `parts`: the same for the same parts.
pub(crate) fn derived_uuid(parts: &[&str]) -> String {
    let mut hash = hmac_sha256::Hash::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut bytes = hash.finalize();
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut bytes;
    *version = (*version & 0x0f) | 0x80;
    *variant = (*variant & 0x3f) | 0x80;
    let text = hex(&bytes);
    [text.get(..8), text.get(8..12), text.get(12..16), text.get(16..20), text.get(20..32)]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_uuids_are_stable_and_distinct() {
        let id = derived_uuid(&["run-1", "backend", "1", "qa"]);
        assert_eq!(id, derived_uuid(&["run-1", "backend", "1", "qa"]));
        assert_ne!(id, derived_uuid(&["run-1", "backend", "1q", "a"]));
        let groups: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12]);
        assert_eq!(id.as_bytes()[14], b'8');
    }
}
