//! What is known of a run: a fold over its records.
//!
//! Nothing here asks the disk, the clock or the engine. The same records give the same report,
//! whether they come one by one from a run in progress or all at once from a journal.

use std::collections::BTreeMap;
use std::sync::Arc;

use coral_core::{
    EffectKind, Error, ErrorKind, Event, GraphData, HandoffMessage, Outcome, Record, Returned, RunStatus,
    SkipReason, Spent, StepData, StepKind, Usage, Usd, rfc3339,
};
use serde::Serialize;
use serde_json::Value;

/// A run, as far as its records tell.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub run: String,
    pub project: String,
    pub workflow: String,
    pub description: String,
    pub status: RunStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub started_at: String,
    pub updated_at: String,
    /// Milliseconds that some process worked on it; the time between a kill and a resume is left out.
    pub active_ms: u64,
    /// When it was taken up again, in milliseconds of active time.
    pub resumed_at_ms: Vec<u64>,
    pub facts: Arc<BTreeMap<String, Value>>,
    pub totals: Totals,
    pub steps: Vec<Step>,
    pub deliverables: Vec<Delivered>,
    pub handoffs: Vec<Handed>,
    pub effects: Vec<Effect>,
    /// The graph with the states of its steps, as a Mermaid flowchart.
    pub graph: String,
    #[serde(skip)]
    pub data: Arc<GraphData>,
    #[serde(skip)]
    clock: ActiveTime,
}

/// All steps together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    pub model_calls: u64,
    pub tool_calls: u64,
    pub retried_calls: u64,
    pub denied_calls: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// `None` if the price of a call is not known.
    pub usd: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    #[default]
    Waiting,
    Running,
    Succeeded,
    Failed,
    Skipped,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Running => "running",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Skipped => "skipped",
        }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Step {
    pub name: Arc<str>,
    /// The agent's or the function's name.
    pub agent: Arc<str>,
    pub phase: Arc<str>,
    pub state: State,
    /// Why it was skipped, or how it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Arc<str>>,
    pub duration_ms: u64,
    pub attempts: Vec<Attempt>,
    pub model_calls: u64,
    pub tool_calls: u64,
    pub usage: Usage,
    /// `None` if the price of a call is not known.
    pub usd: Option<f64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub summary: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<String>,
    #[serde(skip)]
    cost: Cost,
}

/// One try of a step, in milliseconds of active time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    pub number: u32,
    pub from_ms: u64,
    pub to_ms: u64,
    pub state: State,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Delivered {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: String,
    pub description: String,
    pub step: Arc<str>,
    pub agent: Arc<str>,
    /// Its size, where the file was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// A handoff: the steps, and the message of the protocol.
#[derive(Clone, Debug, Serialize)]
pub struct Handed {
    pub from_step: Arc<str>,
    pub to_step: Arc<str>,
    pub message: Arc<HandoffMessage>,
}

/// Something that a step did outside of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Effect {
    pub step: Arc<str>,
    pub attempt: u32,
    pub index: u32,
    pub kind: EffectKind,
    pub label: Arc<str>,
    pub digest: String,
    pub state: EffectState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectState {
    /// Its outcome is not recorded.
    Open,
    Done,
    Failed,
    Denied,
}

/// Money spent, as far as prices are known.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    known: Usd,
    unknown: bool,
}

impl Cost {
    fn add(&mut self, spent: &Spent) {
        match spent.cost {
            Some(cost) => self.known += cost,
            None => self.unknown = true,
        }
    }

    fn usd(self) -> Option<f64> {
        (!self.unknown).then(|| self.known.as_dollars())
    }
}

/// Turns wall time into time in which a process worked on the run.
#[derive(Clone, Copy, Debug, Default)]
struct ActiveTime {
    start_ms: u64,
    last_ms: u64,
    idle_ms: u64,
}

impl ActiveTime {
    fn at(&mut self, record: &Record) -> u64 {
        match record.event {
            Event::RunStarted { .. } => *self = ActiveTime { start_ms: record.at_ms, ..Default::default() },
            Event::RunResumed { .. } => self.idle_ms += record.at_ms.saturating_sub(self.last_ms),
            _ => {}
        }
        self.last_ms = record.at_ms;
        record.at_ms.saturating_sub(self.start_ms).saturating_sub(self.idle_ms)
    }
}

impl Report {
    pub fn new(run: &str) -> Self {
        Report { run: run.to_owned(), ..Report::default() }
    }

    /// Takes one more record in.
    pub fn apply(&mut self, record: &Record) {
        let now = self.clock.at(record);
        self.active_ms = now;
        self.updated_at = rfc3339(record.at_ms);
        match &record.event {
            Event::RunStarted { project, graph, facts, .. } => {
                self.project = project.to_string();
                self.workflow.clone_from(&graph.name);
                self.description.clone_from(&graph.description);
                self.started_at = rfc3339(record.at_ms);
                self.facts = facts.clone();
                self.data = graph.clone();
                self.steps = graph.steps.iter().map(Step::of).collect();
            }
            Event::RunResumed { .. } => {
                self.resumed_at_ms.push(now);
                self.status = RunStatus::Running;
                self.error = None;
            }
            Event::RunFinished { status, error, .. } => {
                self.status = *status;
                self.error = error.as_ref().map(Error::to_string);
            }
            Event::HandedOff { from, to, message } => self.handoffs.push(Handed {
                from_step: from.clone(),
                to_step: to.clone(),
                message: message.clone(),
            }),
            event => {
                self.find_nested(event);
                self.apply_to_step(event, now);
            }
        }
        self.total();
    }

    /// Steps within steps are known when they begin.
    fn find_nested(&mut self, event: &Event) {
        let (Event::StepStarted { path, .. }
        | Event::StepSkipped { path, .. }
        | Event::ScopeOpened { path, .. }) = event
        else {
            return;
        };
        if self.step(path).is_none() {
            let agent = label_of(&self.data, path).unwrap_or_else(|| path.clone());
            let phase = self.step(path.split('/').next().unwrap_or_default()).map(|step| step.phase.clone());
            self.steps.push(Step {
                name: path.clone(),
                agent,
                phase: phase.unwrap_or_default(),
                ..Step::default()
            });
        }
    }

    fn apply_to_step(&mut self, event: &Event, now: u64) {
        let Some(step) = event.path().and_then(|path| self.steps.iter_mut().find(|step| step.name == *path))
        else {
            return;
        };
        match event {
            Event::StepStarted { attempt, .. } => {
                step.state = State::Running;
                step.reason = None;
                step.attempts.push(Attempt {
                    number: *attempt,
                    from_ms: now,
                    to_ms: now,
                    state: State::Running,
                });
            }
            Event::ScopeOpened { .. } => step.state = State::Running,
            Event::StepSucceeded { output, .. } => {
                step.end(State::Succeeded, now);
                if let Ok(report) = output.get::<coral_core::Report>() {
                    step.summary = report.summary;
                    step.decisions = report.decisions;
                    let (name, agent) = (step.name.clone(), step.agent.clone());
                    // In a second round it delivers the same again.
                    self.deliverables.retain(|delivered| delivered.step != name);
                    self.deliverables.extend(report.deliverables.into_iter().map(|deliverable| Delivered {
                        kind: deliverable.kind,
                        path: deliverable.path,
                        description: deliverable.description,
                        step: name.clone(),
                        agent: agent.clone(),
                        bytes: None,
                    }));
                }
            }
            Event::StepFailed { error, .. } => {
                step.end(State::Failed, now);
                step.reason = Some(error.to_string());
            }
            Event::SentBack { returned, .. } => {
                step.end(State::Waiting, now);
                let to = |returned: &Returned| {
                    format!("`{}`: {}", returned.to, returned.message.next_tasks.join("; "))
                };
                step.reason =
                    Some(format!("sent back {}", returned.iter().map(to).collect::<Vec<_>>().join("; ")));
            }
            Event::StepSkipped { reason, .. } => {
                step.state = State::Skipped;
                step.reason = Some(why(reason));
            }
            Event::CallRetried { .. } => self.totals.retried_calls += 1,
            Event::EffectIntended { path, attempt, index, effect, label, digest, .. } => {
                self.effects.push(Effect {
                    step: path.clone(),
                    attempt: *attempt,
                    index: *index,
                    kind: *effect,
                    label: label.clone(),
                    digest: digest.clone(),
                    state: EffectState::Open,
                    error: None,
                    tokens: None,
                    usd: None,
                });
            }
            Event::EffectDone { path, attempt, index, outcome, spent } => {
                let Some(effect) = self.effects.iter_mut().rfind(|effect| {
                    effect.step == *path && effect.attempt == *attempt && effect.index == *index
                }) else {
                    return;
                };
                (effect.state, effect.error) = match outcome {
                    Outcome::Ok(_) => (EffectState::Done, None),
                    Outcome::Err(error) if matches!(error.kind(), ErrorKind::Denied { .. }) => {
                        self.totals.denied_calls += 1;
                        (EffectState::Denied, Some(error.to_string()))
                    }
                    Outcome::Err(error) => (EffectState::Failed, Some(error.to_string())),
                };
                match effect.kind {
                    EffectKind::Chat => {
                        effect.tokens = Some(spent.usage.total_tokens());
                        effect.usd = spent.cost.map(Usd::as_dollars);
                        step.model_calls += 1;
                        step.usage += spent.usage;
                        if spent.model.is_some() {
                            step.model.clone_from(&spent.model);
                            step.cost.add(spent);
                        }
                    }
                    EffectKind::Tool => step.tool_calls += 1,
                    _ => {}
                }
                step.usd = step.cost.usd();
            }
            _ => {}
        }
    }

    fn total(&mut self) {
        let mut cost = Cost::default();
        let Totals { retried_calls, denied_calls, .. } = self.totals;
        let mut totals = Totals { retried_calls, denied_calls, ..Totals::default() };
        for step in &self.steps {
            totals.model_calls += step.model_calls;
            totals.tool_calls += step.tool_calls;
            totals.input_tokens += step.usage.input_tokens;
            totals.output_tokens += step.usage.output_tokens;
            cost.known += step.cost.known;
            cost.unknown |= step.cost.unknown;
        }
        totals.usd = cost.usd();
        self.totals = totals;
    }

    /// Draws the graph with the states as they are now.
    pub fn draw(&mut self) {
        let states: BTreeMap<&str, State> = self.steps.iter().map(|step| (&*step.name, step.state)).collect();
        let mut graph = self.data.mermaid(|name| states.get(name).map(|state| state.as_str()));
        for (state, style) in [
            ("succeeded", "fill:#e3f4e8,stroke:#2e7d4f"),
            ("failed", "fill:#fde7e6,stroke:#b3372f"),
            ("running", "fill:#e4eefc,stroke:#2f62b3"),
            ("skipped", "fill:#f2f2f2,stroke:#999,stroke-dasharray:4 3"),
        ] {
            graph.push_str(&format!("    classDef {state} {style}\n"));
        }
        self.graph = graph;
    }

    pub fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| &*step.name == name)
    }

    /// The steps of the workflow itself, without those within them.
    pub fn outer(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| !step.name.contains('/'))
    }

    /// How many of the workflow's own steps are in a state.
    pub fn count(&self, state: State) -> usize {
        self.outer().filter(|step| step.state == state).count()
    }

    /// Whether every answer came from the program that stands in for a model.
    pub fn is_offline(&self) -> bool {
        let mut models = self.steps.iter().filter_map(|step| step.model.as_deref()).peekable();
        models.peek().is_some() && models.all(|model| model == "offline")
    }
}

impl Step {
    fn of(data: &StepData) -> Self {
        Step { name: data.name.clone(), agent: label(data), phase: data.phase.clone(), ..Step::default() }
    }

    fn end(&mut self, state: State, now: u64) {
        self.state = state;
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.to_ms = now;
            attempt.state = state;
        }
        self.duration_ms =
            self.attempts.iter().map(|attempt| attempt.to_ms.saturating_sub(attempt.from_ms)).sum();
    }
}

/// What a step runs, for people.
fn label(step: &StepData) -> Arc<str> {
    match &step.kind {
        StepKind::Agent(name) | StepKind::Function(name) => name.clone(),
        StepKind::Workflow(graph) => format!("workflow {}", graph.name).into(),
        StepKind::Map { .. } => "for each item".into(),
        StepKind::Loop { .. } => "again and again".into(),
        StepKind::Route { .. } => "as the agents decide".into(),
        _ => step.name.clone(),
    }
}

/// What runs at a path such as `build/item[3]/api`.
fn label_of(graph: &GraphData, path: &str) -> Option<Arc<str>> {
    let (name, rest) = path.split_once('/').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let step = graph.steps.iter().find(|step| *step.name == *name)?;
    match (&step.kind, rest) {
        (_, None) => Some(label(step)),
        (StepKind::Workflow(graph), Some(rest)) => label_of(graph, rest),
        // The next segment is the item, the turn or the hop.
        (StepKind::Map { body, .. } | StepKind::Loop { body, .. }, Some(rest)) => {
            label_of(body, rest.split_once('/')?.1)
        }
        (StepKind::Route { .. }, Some(rest)) => Some(rest.split_once('/')?.1.into()),
        _ => None,
    }
}

fn why(reason: &SkipReason) -> String {
    match reason {
        SkipReason::Condition { when } => format!("condition `{when}` does not hold"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
