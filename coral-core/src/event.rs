//! The events of a run: its whole state is a fold over them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::budget::{Budget, Used};
use crate::error::Error;
use crate::graph::GraphData;
use crate::handoff::Returned;
use crate::hash::sha256_hex;
use crate::migration::renamed_path;
use crate::model::Usage;
use crate::money::Usd;
use crate::payload::Payload;
use crate::task::HandoffMessage;
use crate::tool::EffectClass;

/// The number of a record in its run, from 1.
pub type Seq = u64;

/// The version of the event format that this release writes. Every release reads all before it.
pub const EVENT_FORMAT: u32 = 1;

/// An event with its place in a journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number in the run, from 1, without gaps.
    pub seq: Seq,
    /// When it was recorded, in milliseconds since the Unix epoch. Never read by replay.
    pub at_ms: u64,
    /// What happened.
    pub event: Event,
}

/// What can happen in a run.
///
/// Paths name steps within the run (`build`, or `build/item[3]/api` when nested) and are derived
/// from the graph, never drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run begins: always the first event, and the definition travels with it.
    RunStarted {
        /// [`EVENT_FORMAT`] of the writer.
        format: u32,
        /// The project that the run belongs to; may be empty.
        project: Arc<str>,
        /// What the run executes.
        graph: Arc<GraphData>,
        /// What the run is pinned to.
        pins: Arc<Pins>,
        /// The workflow's input.
        input: Payload,
        /// Facts that conditions ask for.
        facts: Arc<BTreeMap<String, Value>>,
        /// What it may use.
        #[serde(default, skip_serializing_if = "Budget::is_unlimited")]
        budget: Box<Budget>,
        /// Where it was forked off, if it was: the records up to there are those of the other run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        forked_from: Option<ForkPoint>,
    },
    /// A process took the run up again.
    RunResumed {
        /// The epoch of the new holder.
        epoch: u64,
    },
    /// The run goes on under another definition, by a declared [`Migration`](crate::Migration).
    Migrated {
        /// What the run executes from here on.
        graph: Arc<GraphData>,
        /// What it is pinned to from here on.
        pins: Arc<Pins>,
        /// The steps that have another name now, by their old names.
        renamed: Arc<Renamed>,
        /// The steps whose attempts are given up, so that others begin.
        restarted: Vec<Arc<str>>,
        /// Why.
        reason: Arc<str>,
    },
    /// The run may use more.
    BudgetToppedUp {
        /// By how much each limit is raised.
        more: Box<Budget>,
    },
    /// A step was given its input.
    StepStarted {
        /// The step.
        path: Arc<str>,
        /// Its attempt, from 1.
        attempt: u32,
    },
    /// A step that holds other steps was given its input, and opens.
    ScopeOpened {
        /// The step.
        path: Arc<str>,
        /// What goes in: for a map, the list.
        input: Payload,
    },
    /// An agent step entered a stage of its lifecycle.
    StageEntered {
        /// The step.
        path: Arc<str>,
        /// Its attempt.
        attempt: u32,
        /// The stage.
        stage: Stage,
    },
    /// A step is about to do something outside of itself.
    EffectIntended {
        /// The step.
        path: Arc<str>,
        /// Its attempt.
        attempt: u32,
        /// The effect's index in the attempt, from 0.
        index: u32,
        /// What it is.
        effect: EffectKind,
        /// What it is, for people: a model's or a tool's name.
        label: Arc<str>,
        /// SHA-256 of the request, in hexadecimal: what replay compares.
        digest: String,
        /// What may be done when its outcome is unknown.
        class: EffectClass,
        /// What it may have used if no outcome is ever recorded, with all that was done of it before; `None`
        /// for one call of a model or a tool, and for nothing of what is no call.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reserved: Option<Box<Used>>,
        /// The effect of an earlier attempt that this one goes on with, under that one's key, since it is not
        /// known whether that took place.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        follows: Option<EffectPlace>,
    },
    /// It is known how the effect ended.
    EffectDone {
        /// The step.
        path: Arc<str>,
        /// Its attempt.
        attempt: u32,
        /// The effect's index.
        index: u32,
        /// What came of it.
        outcome: Outcome,
        /// What it used and cost.
        #[serde(default, skip_serializing_if = "Spent::is_nothing")]
        spent: Box<Spent>,
    },
    /// A call within an effect failed and is made again.
    CallRetried {
        /// The step.
        path: Arc<str>,
        /// Its attempt.
        attempt: u32,
        /// The effect's index.
        index: u32,
        /// Why.
        error: Error,
        /// After how many milliseconds.
        delay_ms: u64,
    },
    /// A model or toolbox noted something about a call of the step, such as why it chose a model.
    CallNoted {
        /// The step.
        path: Arc<str>,
        /// Its attempt.
        attempt: u32,
        /// The effect's index.
        index: u32,
        /// What kind of note, such as `model_chosen`.
        topic: Arc<str>,
        /// The note.
        note: Value,
    },
    /// A step ended well.
    StepSucceeded {
        /// The step.
        path: Arc<str>,
        /// Its attempt.
        attempt: u32,
        /// What it gave.
        output: Payload,
    },
    /// A step's attempt failed.
    StepFailed {
        /// The step.
        path: Arc<str>,
        /// Its attempt.
        attempt: u32,
        /// Why.
        error: Error,
        /// Milliseconds until the next attempt; `None` if there is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_in_ms: Option<u64>,
    },
    /// A step sent work back, and ended with that: once what runs of it is over, the steps that
    /// the work goes to, and all behind them, begin anew.
    SentBack {
        /// The step.
        path: Arc<str>,
        /// Its attempt.
        attempt: u32,
        /// How often it has done so, from 1.
        round: u32,
        /// To whom, and why.
        returned: Vec<Returned>,
    },
    /// The wait before a step's next attempt is over.
    RetryDue {
        /// The step.
        path: Arc<str>,
        /// The attempt that begins.
        attempt: u32,
    },
    /// A step will not run.
    StepSkipped {
        /// The step.
        path: Arc<str>,
        /// Why not.
        reason: SkipReason,
    },
    /// An agent's work was handed to the next agent.
    HandedOff {
        /// The step that hands over.
        from: Arc<str>,
        /// The step that takes over.
        to: Arc<str>,
        /// The message.
        message: Arc<HandoffMessage>,
    },
    /// A person is asked; the step waits for the answer.
    QuestionAsked {
        /// The step.
        path: Arc<str>,
        /// The question.
        question: Arc<Question>,
    },
    /// A question has its answer: the first that came.
    QuestionAnswered {
        /// The question's id.
        id: Arc<str>,
        /// The answer.
        answer: Payload,
        /// Who answered.
        by: Arc<str>,
    },
    /// Something was signalled from outside.
    SignalReceived {
        /// The signal's name.
        name: Arc<str>,
        /// What came with it.
        payload: Payload,
    },
    /// An agent noted something for people, metrics or audits.
    Noted {
        /// The step.
        path: Arc<str>,
        /// What kind of note, such as `context_truncated`.
        topic: Arc<str>,
        /// The note.
        note: Value,
    },
    /// Somebody asked for the run to end.
    CancelRequested {
        /// Why.
        reason: Arc<str>,
    },
    /// The run is over, or stands still until it is resumed.
    RunFinished {
        /// How.
        status: RunStatus,
        /// The workflow's output, if it succeeded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<Payload>,
        /// Why it did not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Error>,
    },
}

/// The path of the step that an event is about, by reference of either kind.
macro_rules! path_of {
    ($event:expr) => {
        match $event {
            Event::StepStarted { path, .. }
            | Event::ScopeOpened { path, .. }
            | Event::StageEntered { path, .. }
            | Event::EffectIntended { path, .. }
            | Event::EffectDone { path, .. }
            | Event::CallRetried { path, .. }
            | Event::CallNoted { path, .. }
            | Event::StepSucceeded { path, .. }
            | Event::StepFailed { path, .. }
            | Event::SentBack { path, .. }
            | Event::RetryDue { path, .. }
            | Event::StepSkipped { path, .. }
            | Event::HandedOff { from: path, .. }
            | Event::QuestionAsked { path, .. }
            | Event::Noted { path, .. } => Some(path),
            Event::RunStarted { .. }
            | Event::RunResumed { .. }
            | Event::Migrated { .. }
            | Event::BudgetToppedUp { .. }
            | Event::QuestionAnswered { .. }
            | Event::SignalReceived { .. }
            | Event::CancelRequested { .. }
            | Event::RunFinished { .. } => None,
        }
    };
}

impl Event {
    /// The step that the event is about, if it is about one.
    pub fn path(&self) -> Option<&Arc<str>> {
        path_of!(self)
    }

    /// The value of a workflow's that the event carries, if it carries one.
    pub(crate) fn payload(&self) -> Option<&Payload> {
        match self {
            Event::RunStarted { input: payload, .. }
            | Event::ScopeOpened { input: payload, .. }
            | Event::EffectDone { outcome: Outcome::Ok(payload), .. }
            | Event::StepSucceeded { output: payload, .. }
            | Event::QuestionAnswered { answer: payload, .. }
            | Event::SignalReceived { payload, .. } => Some(payload),
            Event::QuestionAsked { question, .. } => Some(&question.question),
            Event::RunFinished { output, .. } => output.as_ref(),
            _ => None,
        }
    }

    /// Puts another value into the place of [`payload`](Self::payload).
    pub(crate) fn set_payload(&mut self, new: Payload) {
        match self {
            Event::RunStarted { input: payload, .. }
            | Event::ScopeOpened { input: payload, .. }
            | Event::EffectDone { outcome: Outcome::Ok(payload), .. }
            | Event::StepSucceeded { output: payload, .. }
            | Event::QuestionAnswered { answer: payload, .. }
            | Event::SignalReceived { payload, .. } => *payload = new,
            Event::QuestionAsked { question, .. } => Arc::make_mut(question).question = new,
            Event::RunFinished { output, .. } => *output = Some(new),
            _ => {}
        }
    }

    /// Calls the step that the event is about, and the ones that work is handed to, as they are called now.
    pub(crate) fn rename(&mut self, renamed: &Renamed) {
        let call = |path: &mut Arc<str>| {
            if let Some(new) = renamed_path(path, renamed) {
                *path = new;
            }
        };
        if let Some(path) = path_of!(&mut *self) {
            call(path);
        }
        match self {
            Event::HandedOff { to, .. } => call(to),
            Event::SentBack { returned, .. } => {
                returned.iter_mut().for_each(|returned| call(&mut returned.to));
            }
            _ => {}
        }
    }
}

/// The new names of steps, by their old ones.
pub type Renamed = BTreeMap<Arc<str>, Arc<str>>;

/// A place in a run at which another begins.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ForkPoint {
    /// The run that was forked.
    pub run: Arc<str>,
    /// Its last record that both have.
    pub seq: Seq,
}

/// What a run is pinned to: it does not go on under anything else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// Digest of the graph.
    pub graph: String,
    /// Digest of each agent's spec, by id.
    pub agents: BTreeMap<String, String>,
}

impl Pins {
    /// The digest of all of it: what a [`Migration`](crate::Migration) is declared for.
    pub fn digest(&self) -> String {
        let mut text = self.graph.clone();
        for (id, digest) in &self.agents {
            text.push_str(&format!("\n{id} {digest}"));
        }
        sha256_hex(text.as_bytes())
    }
}

/// The nine stages of an agent's lifecycle, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The agent sets up what it needs.
    Initialize,
    /// Its definition is fitted to the phase.
    LoadConfiguration,
    /// The deliverables that it depends on are checked.
    ValidateDependencies,
    /// Its input is brought into shape.
    PrepareContext,
    /// It does its work.
    Execute,
    /// Its output is brought into shape.
    ProcessOutput,
    /// Its output is recorded.
    StoreResults,
    /// The messages to its successors are made.
    GenerateHandoff,
    /// It lets go of what it held, whatever happened before.
    CleanUp,
}

impl Stage {
    /// All nine, in order.
    pub const ALL: [Stage; 9] = [
        Stage::Initialize,
        Stage::LoadConfiguration,
        Stage::ValidateDependencies,
        Stage::PrepareContext,
        Stage::Execute,
        Stage::ProcessOutput,
        Stage::StoreResults,
        Stage::GenerateHandoff,
        Stage::CleanUp,
    ];
}

/// A question to a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// Its id: step, attempt and effect, and the digest of the question. An approval can't be used for
    /// anything else.
    pub id: Arc<str>,
    /// What kind of question it is, such as `approve_deployment`.
    pub label: Arc<str>,
    /// What is asked.
    pub question: Payload,
    /// JSON Schema of the answer.
    pub answer_schema: Value,
    /// When the default is taken, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

impl Question {
    /// The id of the question that is effect `index` of an attempt; `digest` is that of what is asked.
    pub(crate) fn id_of(path: &str, attempt: u32, index: u32, digest: &str) -> Arc<str> {
        let digest = digest.get(..16).unwrap_or(digest);
        format!("{path}#{attempt}:{index}@{digest}").into()
    }
}

/// Where an effect stands in its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EffectPlace {
    /// The attempt.
    pub attempt: u32,
    /// The effect's index in the attempt, from 0.
    pub index: u32,
}

/// What an effect is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EffectKind {
    /// A model call.
    Chat,
    /// A tool call.
    Tool,
    /// The list of tools.
    ListTools,
    /// A reading of the clock.
    Now,
    /// A drawn number.
    Random,
    /// Something of the agent's own.
    Custom,
    /// A question to a person.
    Ask,
    /// A wait.
    Timer,
    /// A wait for a signal.
    Signal,
}

/// How an effect ended. A failure is data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It gave this.
    Ok(Payload),
    /// It failed.
    Err(Error),
}

/// What an effect used and cost, all its tries together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// The model that answered, in the provider's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Arc<str>>,
    /// Tokens.
    #[serde(default)]
    pub usage: Usage,
    /// Money, where the price is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Usd>,
    /// Tries that were made.
    #[serde(default)]
    pub tries: u32,
    /// What is held against the budgets, where that is not what the rest says: the calls made within the call,
    /// and the worst case of what was cut off, of which nobody knows what it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<Box<Used>>,
}

impl Spent {
    fn is_nothing(&self) -> bool {
        *self == Spent::default()
    }
}

/// Why a step does not run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SkipReason {
    /// Its condition does not hold.
    Condition {
        /// The condition.
        when: Arc<str>,
    },
    /// A step that it can't do without was skipped.
    InputSkipped {
        /// That step.
        step: Arc<str>,
    },
    /// A step that it can't do without failed.
    InputFailed {
        /// That step.
        step: Arc<str>,
    },
    /// The step that would have taken its output went on without it.
    NotNeeded {
        /// That step.
        step: Arc<str>,
    },
    /// The run was cancelled.
    Cancelled,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SkipReason::Condition { when } => write!(f, "`{when}` does not hold"),
            SkipReason::InputSkipped { step } => write!(f, "`{step}` was skipped"),
            SkipReason::InputFailed { step } => write!(f, "`{step}` failed"),
            SkipReason::NotNeeded { step } => write!(f, "`{step}` went on without it"),
            SkipReason::Cancelled => f.write_str("the run was cancelled"),
        }
    }
}

/// How a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunStatus {
    /// Some process works on it, or one should.
    #[default]
    Running,
    /// It gave its output.
    Succeeded,
    /// A step failed for good; resuming tries it again.
    Failed,
    /// A budget ended it; what was done until then is its output, and resuming with a top-up goes on.
    Stopped,
    /// It was cancelled; it can't be resumed.
    Cancelled,
}
