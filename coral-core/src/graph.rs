//! The graph of a workflow, as data.

mod checked;
mod mermaid;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::budget::Budget;
use crate::error::Error;
use crate::handoff::OnGap;
use crate::hash::digest;

use self::checked::Checked;
pub use self::checked::Graph;
pub(crate) use self::checked::Wiring;

/// A graph as data: what a file describes and a journal keeps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphData {
    /// The workflow's name.
    pub name: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The steps, in the order of the definition.
    pub steps: Vec<StepData>,
    /// The step whose output is the workflow's. Left out, the output is an object of the outputs
    /// of all steps that nothing follows, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Arc<str>>,
}

/// One step as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepData {
    /// Its name, unique in the graph: lower-case letters, digits, `_` and `-`.
    pub name: Arc<str>,
    /// What runs.
    pub kind: StepKind,
    /// The steps whose outputs it takes, in order; `input` is the workflow's own, which it takes if
    /// there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
    /// Steps that must be over before it starts, whose outputs it does not take.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Arc<str>>,
    /// A condition over `facts`, `input` and `steps`; the step is skipped where it does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Arc<str>>,
    /// How many of its inputs it waits for.
    #[serde(default, skip_serializing_if = "Join::is_all")]
    pub join: Join,
    /// The phase of the workflow; may be empty.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub phase: Arc<str>,
    /// What the agent is asked to do beyond its definition; of a question, what is asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instructions: Vec<String>,
    /// How often it is tried.
    #[serde(default, skip_serializing_if = "RetryPolicy::is_default")]
    pub retry: RetryPolicy,
    /// Milliseconds that one attempt may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What the step, with all steps inside of it, may use; within what is left to those around it.
    #[serde(default, skip_serializing_if = "Budget::is_unlimited")]
    pub budget: Budget,
    /// What happens where something that its agent depends on was not delivered; the agent's own
    /// policy if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_gap: Option<OnGap>,
    /// The steps before it whose work it may send back with findings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reviews: Vec<Arc<str>>,
    /// How often it may send work back; the agent's own number if left out, else 2. Once more is an
    /// error that says what is still lacking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rounds: Option<u32>,
}

impl StepData {
    /// A step that runs `kind`, all else default.
    pub fn new(name: impl Into<Arc<str>>, kind: StepKind) -> Self {
        StepData {
            name: name.into(),
            kind,
            inputs: Vec::new(),
            after: Vec::new(),
            when: None,
            join: Join::All,
            phase: "".into(),
            instructions: Vec::new(),
            retry: RetryPolicy::default(),
            timeout_ms: None,
            budget: Budget::default(),
            on_gap: None,
            reviews: Vec::new(),
            max_rounds: None,
        }
    }
}

/// What a step runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepKind {
    /// The agent of this id.
    Agent(Arc<str>),
    /// The function of this name.
    Function(Arc<str>),
    /// A question to a person; gives the answer. What is asked is the step's input; with instructions, these
    /// are the question, and the input is what it is about: `{question, about}`.
    Ask {
        /// JSON Schema of the answer.
        answer: serde_json::Value,
        /// Milliseconds after which the default is taken.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<u64>,
        /// The answer if none came in time, which may be `null`.
        #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
        default: Option<serde_json::Value>,
    },
    /// A wait, in milliseconds, that survives restarts; gives its input.
    Timer(u64),
    /// A wait for a signal of this name; gives what came with it.
    Signal(Arc<str>),
    /// Another graph, in the same journal. Its steps are `STEP/NAME`.
    Workflow(Arc<GraphData>),
    /// A graph for each item of a list; gives the list of their outputs, in order. The steps of
    /// the item of index 3 are `STEP/item[3]/NAME`.
    Map {
        /// What runs for each item.
        body: Arc<GraphData>,
        /// Where in the input the list is, as keys with dots between them: `data.services`, and
        /// `STEP.data.services` where there are several inputs. Left out, the input is the list.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        over: Option<Arc<str>>,
        /// Items that run at once.
        concurrency: usize,
    },
    /// A graph again and again, each turn on the output of the one before, until a condition over
    /// `output` and `turn` holds. The steps of turn 2 are `STEP/turn[2]/NAME`.
    Loop {
        /// What runs in each turn.
        body: Arc<GraphData>,
        /// When it is done.
        until: Arc<str>,
        /// Turns at the most; one more is an error that names the step.
        max_turns: u32,
    },
    /// Agents that hand off to one another as their model decides (`next_agent` of their report),
    /// beginning with the first. The second that works is `STEP/hop[2]/AGENT`.
    Route {
        /// The agents that may take part.
        agents: Vec<Arc<str>>,
        /// Agents at the most; one more is an error that names the step.
        max_hops: u32,
    },
}

impl StepKind {
    /// The agent's id, if one agent runs.
    pub fn agent(&self) -> Option<&Arc<str>> {
        match self {
            StepKind::Agent(id) => Some(id),
            _ => None,
        }
    }

    /// What runs, for people.
    fn label(&self) -> String {
        match self {
            StepKind::Agent(name) | StepKind::Function(name) => name.to_string(),
            StepKind::Ask { .. } => "ask".to_owned(),
            StepKind::Timer(ms) => format!("wait {ms} ms"),
            StepKind::Signal(name) => format!("signal: {name}"),
            StepKind::Workflow(graph) => graph.name.clone(),
            StepKind::Map { body, over: None, .. } => format!("each: {}", body.name),
            StepKind::Map { body, over: Some(over), .. } => format!("each of {over}: {}", body.name),
            StepKind::Loop { body, until, .. } => format!("{} until {until}", body.name),
            StepKind::Route { agents, .. } => format!("route: {}", agents.join(", ")),
        }
    }

    /// The graphs inside, as data.
    fn bodies(&self) -> Vec<GraphData> {
        match self {
            StepKind::Agent(_)
            | StepKind::Function(_)
            | StepKind::Ask { .. }
            | StepKind::Timer(_)
            | StepKind::Signal(_) => Vec::new(),
            StepKind::Workflow(body) | StepKind::Map { body, .. } | StepKind::Loop { body, .. } => {
                vec![(**body).clone()]
            }
            StepKind::Route { agents, .. } => agents
                .iter()
                .map(|agent| GraphData {
                    name: agent.to_string(),
                    steps: vec![StepData::new(agent.clone(), StepKind::Agent(agent.clone()))],
                    output: Some(agent.clone()),
                    ..GraphData::default()
                })
                .collect(),
        }
    }

    /// Whether it holds other steps.
    pub(crate) fn is_composite(&self) -> bool {
        matches!(
            self,
            StepKind::Workflow(_) | StepKind::Map { .. } | StepKind::Loop { .. } | StepKind::Route { .. }
        )
    }
}

/// An edge into a step. As text, `design` or, if the step can do without it, `design?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The step whose output is taken.
    pub step: Arc<str>,
    /// Whether the taker runs even if that step was skipped.
    pub optional: bool,
}

impl Input {
    /// An input that the step can't do without.
    pub fn required(step: impl Into<Arc<str>>) -> Self {
        Input { step: step.into(), optional: false }
    }

    /// An input that the step can do without.
    pub fn optional(step: impl Into<Arc<str>>) -> Self {
        Input { step: step.into(), optional: true }
    }
}

impl From<&str> for Input {
    fn from(text: &str) -> Self {
        match text.strip_suffix('?') {
            Some(step) => Input::optional(step),
            None => Input::required(text),
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.step, if self.optional { "?" } else { "" })
    }
}

impl Serialize for Input {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.optional { serializer.collect_str(self) } else { serializer.serialize_str(&self.step) }
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Input::from(text.as_str()))
    }
}

/// How many of its inputs a step waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Join {
    /// All must have succeeded, or been skipped where they are optional.
    #[default]
    All,
    /// The first that succeeds is enough.
    FirstOk,
    /// So many must have succeeded.
    Quorum(usize),
    /// All must be over, however they ended.
    Settle,
}

impl Join {
    fn is_all(&self) -> bool {
        *self == Join::All
    }
}

/// How often something is tried, and how long it waits in between: exponential backoff with full
/// jitter. Only transient errors are tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicy {
    /// Tries in all, the first included.
    pub max_attempts: u32,
    /// Milliseconds before the second try at the most; doubled each time.
    pub backoff_ms: u64,
    /// Milliseconds before any try at the most. A `Retry-After` beyond this ends the tries.
    pub max_backoff_ms: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy { max_attempts: 1, backoff_ms: 500, max_backoff_ms: 60_000 }
    }
}

impl RetryPolicy {
    /// Tries `max_attempts` times in all.
    pub fn attempts(max_attempts: u32) -> Self {
        RetryPolicy { max_attempts, ..Default::default() }
    }

    fn is_default(&self) -> bool {
        *self == RetryPolicy::default()
    }

    /// Milliseconds to wait after attempt `attempt` (from 1) failed with `error`, or `None` if it
    /// is not tried again. `jitter` spreads the wait.
    pub fn delay_ms(&self, attempt: u32, error: &Error, jitter: u64) -> Option<u64> {
        if attempt >= self.max_attempts || !error.is_transient() {
            return None;
        }
        if let Some(after) = error.retry_after_ms() {
            return (after <= self.max_backoff_ms).then_some(after);
        }
        let ceiling = self
            .backoff_ms
            .saturating_mul(1u64.checked_shl(attempt.saturating_sub(1)).unwrap_or(u64::MAX))
            .min(self.max_backoff_ms);
        // Between half and the whole of the ceiling, so that a wait is never nothing.
        Some(ceiling - jitter.checked_rem(ceiling / 2 + 1).unwrap_or(0))
    }
}

/// What is there, `null` too.
fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<serde_json::Value>, D::Error> {
    serde_json::Value::deserialize(value).map(Some)
}

/// Something that is wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphProblem {
    /// The step, if it is about one.
    pub step: Option<Arc<str>>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for GraphProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            Some(step) => write!(f, "step `{step}`: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl GraphData {
    /// All that is wrong with the graph by itself: names, edges, cycles, conditions, joins, steps
    /// that nothing uses. Empty if it can run.
    pub fn problems(&self) -> Vec<GraphProblem> {
        let mut problems = Checked::of(self).1;
        problems.extend(self.said_in_vain());
        problems
    }

    /// What the graph says and what would not hold. A journal of an earlier release may have a graph that says so,
    /// and is read nevertheless.
    pub(crate) fn said_in_vain(&self) -> Vec<GraphProblem> {
        let mut problems = Vec::new();
        for step in &self.steps {
            let mut problem =
                |message: String| problems.push(GraphProblem { step: Some(step.name.clone()), message });
            let instead = match &step.kind {
                StepKind::Agent(_) | StepKind::Function(_) => None,
                StepKind::Ask { .. } => Some("give a question a deadline and a default"),
                StepKind::Timer(_) => Some("a timer takes as long as it says"),
                StepKind::Signal(_) => Some("limit a wait for a signal by the `wall_ms` of its budget"),
                _ => Some("limit those inside, or all together by the `wall_ms` of a budget"),
            };
            if let (Some(instead), Some(_)) = (instead, step.timeout_ms) {
                problem(format!("`timeout_ms` holds for an agent or a function alone; {instead}"));
            }
            if let StepKind::Route { agents, .. } = &step.kind {
                for (at, id) in agents.iter().enumerate() {
                    if agents.iter().skip(at + 1).any(|other| other == id) {
                        problem(format!("agent `{id}` is in its route twice, and only the first would work"));
                    }
                }
            }
            for body in step.kind.bodies() {
                for inside in body.said_in_vain() {
                    problem(format!("inside: {inside}"));
                }
            }
        }
        problems
    }

    /// The SHA-256 of the graph in canonical JSON: what runs are pinned to.
    ///
    /// # Errors
    /// None in practice; the graph is plain data.
    pub fn digest(&self) -> Result<String, Error> {
        digest(self)
    }
}
