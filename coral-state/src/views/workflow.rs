//! The state of one run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coral_core::{
    Deliverable, Error, Event, GraphData, HandoffMessage, Journal, Payload, Record, Renamed, RunStatus, Seq,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Spending;
use super::agents::{agent_at, agents_in, renamed_path};

/// Records read at once.
const BATCH: usize = 1_024;

/// How a step stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepStatus {
    /// It has not begun.
    #[default]
    Waiting,
    /// It has begun, or waits for its next attempt.
    Running,
    /// It gave its output.
    Succeeded,
    /// It failed for good.
    Failed,
    /// It does not run.
    Skipped,
}

impl StepStatus {
    /// Whether nothing more comes of it.
    pub fn is_over(self) -> bool {
        matches!(self, StepStatus::Succeeded | StepStatus::Failed | StepStatus::Skipped)
    }
}

/// One step of the graph, with all that runs within it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepView {
    /// Its name.
    pub name: Arc<str>,
    /// The agent that runs it; empty for a function, and where it holds other steps.
    pub agent: Arc<str>,
    /// The agents that may work in it: its own, or those of the steps that it holds.
    pub agents: BTreeSet<Arc<str>>,
    /// The phase that it belongs to; may be empty.
    pub phase: Arc<str>,
    /// How it stands.
    pub status: StepStatus,
    /// Attempts begun.
    pub attempts: u32,
    /// When its first attempt began, in milliseconds since the Unix epoch.
    pub started_at_ms: Option<u64>,
    /// When it was over.
    pub ended_at_ms: Option<u64>,
    /// What it used and cost.
    pub spent: Spending,
    /// Why its last attempt failed, if it did.
    pub error: Option<Error>,
    /// The steps that it comes after.
    pub follows: Vec<Arc<str>>,
}

impl StepView {
    /// Takes back how it ended: it begins anew.
    fn reopen(&mut self) {
        self.status = StepStatus::Waiting;
        self.ended_at_ms = None;
        self.error = None;
    }

    fn took_ms(&self) -> Option<u64> {
        Some(self.ended_at_ms?.saturating_sub(self.started_at_ms?))
    }
}

/// How often and how long an agent worked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Worked {
    /// Steps that it ended well.
    pub steps: u64,
    /// Milliseconds that these took.
    pub took_ms: u64,
}

impl Worked {
    /// The mean, in milliseconds.
    pub fn mean_ms(&self) -> Option<u64> {
        self.took_ms.checked_div(self.steps)
    }
}

impl std::ops::AddAssign for Worked {
    fn add_assign(&mut self, other: Worked) {
        self.steps = self.steps.saturating_add(other.steps);
        self.took_ms = self.took_ms.saturating_add(other.took_ms);
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Steps that are over, skipped ones included.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// What remains, in milliseconds, if every step takes as long as those before it did and
    /// independent steps run side by side; `None` before the first one is done.
    pub remaining_ms: Option<u64>,
}

/// One run as it stands: the fold of its records.
///
/// ```
/// use coral_core::{Event, GraphData, Payload, Record, RunStatus, StepData, StepKind};
/// use coral_state::{StepStatus, WorkflowState};
///
/// let mut graph = GraphData { name: "delivery".into(), ..Default::default() };
/// graph.steps.push(StepData::new("design", StepKind::Agent("project_architect".into())));
/// let started = Event::RunStarted {
///     format: 1,
///     project: "reef".into(),
///     graph: graph.into(),
///     pins: Default::default(),
///     input: Payload::null(),
///     facts: Default::default(),
///     budget: Box::default(),
///     forked_from: None,
/// };
/// let begun = Event::StepStarted { path: "design".into(), attempt: 1 };
///
/// let mut state = WorkflowState::new("run-1");
/// for (seq, event) in (1..).zip([started, begun]) {
///     state.apply(&Record { seq, at_ms: 1_000 * seq, event });
/// }
/// assert_eq!(state.status, RunStatus::Running);
/// assert_eq!(state.steps[0].status, StepStatus::Running);
/// assert_eq!(state.progress().total, 1);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkflowState {
    /// The run's id.
    pub run: String,
    /// The workflow's name.
    pub workflow: String,
    /// The project; may be empty.
    pub project: Arc<str>,
    /// How the run stands.
    pub status: RunStatus,
    /// Its last record.
    pub last_seq: Seq,
    /// When it began, in milliseconds since the Unix epoch.
    pub started_at_ms: u64,
    /// When its last record was made.
    pub updated_at_ms: u64,
    /// The facts that conditions ask for.
    pub facts: Arc<BTreeMap<String, Value>>,
    /// What it was given.
    pub input: Option<Payload>,
    /// The steps, in the order of the graph.
    pub steps: Vec<StepView>,
    /// Handoffs made.
    pub handoffs: Vec<Arc<HandoffMessage>>,
    /// What was delivered, each once.
    pub deliverables: Vec<Deliverable>,
    /// What it used and cost.
    pub spent: Spending,
    /// The workflow's output, once there is one.
    pub output: Option<Payload>,
    /// Why it did not succeed.
    pub error: Option<Error>,
    /// How agents worked, by their ids, in steps at any depth.
    pub worked: BTreeMap<Arc<str>, Worked>,
    graph: Arc<GraphData>,
    /// When the agents' steps at work began.
    began: BTreeMap<Arc<str>, u64>,
    #[serde(skip)]
    places: BTreeMap<Arc<str>, usize>,
}

impl WorkflowState {
    /// A run of which nothing is known yet.
    pub fn new(run: impl Into<String>) -> Self {
        WorkflowState { run: run.into(), ..Default::default() }
    }

    /// Folds a run from its journal; `None` if there is no such run.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn of(journal: &(impl Journal + ?Sized), run: &str) -> Result<Option<Self>, Error> {
        let mut state = WorkflowState::new(run);
        state.advance(journal).await?;
        Ok((state.last_seq > 0).then_some(state))
    }

    /// Folds in what the journal has gained since.
    ///
    /// # Errors
    /// Those of the journal; what was read before it failed is folded in.
    pub async fn advance(&mut self, journal: &(impl Journal + ?Sized)) -> Result<(), Error> {
        loop {
            let records = journal.read(&self.run, self.last_seq + 1, BATCH).await?;
            for record in &records {
                self.apply(record);
            }
            if records.len() < BATCH {
                return Ok(());
            }
        }
    }

    /// Folds one record in.
    pub fn apply(&mut self, record: &Record) {
        self.last_seq = record.seq;
        self.updated_at_ms = record.at_ms;
        self.time(record);
        match &record.event {
            Event::RunStarted { project, graph, input, facts, .. } => {
                self.started_at_ms = record.at_ms;
                self.project = project.clone();
                self.facts = facts.clone();
                self.input = Some(input.clone());
                self.begin(graph);
            }
            Event::Migrated { graph, renamed, restarted, .. } => self.migrate(graph, renamed, restarted),
            Event::RunResumed { .. } => {
                self.status = RunStatus::Running;
                self.error = None;
            }
            Event::StepStarted { path, attempt } => self.step(path, |step, whole| {
                if whole {
                    step.status = StepStatus::Running;
                    step.attempts = step.attempts.max(*attempt);
                    step.started_at_ms.get_or_insert(record.at_ms);
                    step.ended_at_ms = None;
                }
            }),
            Event::EffectDone { path, spent, .. } => {
                self.spent.add(spent);
                self.step(path, |step, _| step.spent.add(spent));
            }
            Event::StepSucceeded { path, .. } => self.step(path, |step, whole| {
                if whole {
                    step.status = StepStatus::Succeeded;
                    step.ended_at_ms = Some(record.at_ms);
                    step.error = None;
                }
            }),
            Event::StepFailed { path, error, retry_in_ms, .. } => self.step(path, |step, whole| {
                if whole {
                    step.error = Some(error.clone());
                    if retry_in_ms.is_none() {
                        step.status = StepStatus::Failed;
                        step.ended_at_ms = Some(record.at_ms);
                    }
                }
            }),
            Event::StepSkipped { path, .. } => self.step(path, |step, whole| {
                if whole {
                    step.status = StepStatus::Skipped;
                    step.ended_at_ms = Some(record.at_ms);
                }
            }),
            // It waits for what it sent back, and then begins anew itself.
            Event::SentBack { path, returned, .. } => {
                self.begin_anew(returned.iter().map(|to| to.to.clone()).chain([path.clone()]).collect());
            }
            Event::HandedOff { message, .. } => {
                for deliverable in &message.context.deliverables {
                    if !self.deliverables.contains(deliverable) {
                        self.deliverables.push(deliverable.clone());
                    }
                }
                self.handoffs.push(message.clone());
            }
            Event::RunFinished { status, output, error } => {
                self.status = *status;
                self.output.clone_from(output);
                self.error.clone_from(error);
            }
            _ => {}
        }
    }

    /// Notes when agents begin, and how long they took.
    fn time(&mut self, record: &Record) {
        match &record.event {
            Event::StepStarted { path, .. } if agent_at(&self.graph, path).is_some() => {
                self.began.entry(path.clone()).or_insert(record.at_ms);
            }
            Event::StepSucceeded { path, .. } => {
                if let (Some(began), Some(agent)) = (self.began.remove(path), agent_at(&self.graph, path)) {
                    let took = Worked { steps: 1, took_ms: record.at_ms.saturating_sub(began) };
                    *self.worked.entry(agent.clone()).or_default() += took;
                }
            }
            Event::StepFailed { path, retry_in_ms: None, .. } | Event::SentBack { path, .. } => {
                self.began.remove(path);
            }
            Event::Migrated { renamed, restarted, .. } => {
                let began = std::mem::take(&mut self.began).into_iter();
                let goes_on = |(path, _): &(Arc<str>, u64)| {
                    !restarted.iter().any(|name| Some(&**name) == path.split('/').next())
                };
                let named = began.map(|(path, at_ms)| (renamed_path(&path, renamed), at_ms));
                self.began = named.filter(goes_on).collect();
            }
            Event::RunFinished { .. } => self.began.clear(),
            _ => {}
        }
    }

    fn begin(&mut self, graph: &Arc<GraphData>) {
        self.graph = graph.clone();
        self.workflow.clone_from(&graph.name);
        self.steps = graph
            .steps
            .iter()
            .map(|step| StepView {
                name: step.name.clone(),
                agent: step.kind.agent().cloned().unwrap_or_default(),
                agents: agents_in(&step.kind),
                phase: step.phase.clone(),
                follows: step
                    .inputs
                    .iter()
                    .map(|input| input.step.clone())
                    .chain(step.after.iter().cloned())
                    .collect(),
                ..Default::default()
            })
            .collect();
        self.place();
    }

    /// Goes on under another graph, with what is known of the steps that are in both.
    fn migrate(&mut self, graph: &Arc<GraphData>, renamed: &Renamed, restarted: &[Arc<str>]) {
        let before = std::mem::take(&mut self.steps);
        self.begin(graph);
        for old in before {
            let name = renamed.get(&old.name).unwrap_or(&old.name);
            let place = self.places.get(name).copied();
            if let Some(step) = place.and_then(|place| self.steps.get_mut(place)) {
                let now = std::mem::take(step);
                *step = StepView {
                    name: now.name,
                    agent: now.agent,
                    agents: now.agents,
                    phase: now.phase,
                    follows: now.follows,
                    ..old
                };
                if restarted.contains(&step.name) {
                    step.reopen();
                }
            }
        }
    }

    /// Takes back the ends of `steps` and of all that come after them.
    fn begin_anew(&mut self, mut steps: BTreeSet<Arc<str>>) {
        loop {
            let behind: Vec<Arc<str>> = self
                .steps
                .iter()
                .filter(|step| {
                    !steps.contains(&step.name) && step.follows.iter().any(|name| steps.contains(name))
                })
                .map(|step| step.name.clone())
                .collect();
            if behind.is_empty() {
                break;
            }
            steps.extend(behind);
        }
        self.steps.iter_mut().filter(|step| steps.contains(&step.name)).for_each(StepView::reopen);
    }

    fn place(&mut self) {
        self.places = self.steps.iter().zip(0..).map(|(step, place)| (step.name.clone(), place)).collect();
    }

    /// With what is not written out made again.
    pub(crate) fn restored(mut self) -> Self {
        self.place();
        self
    }

    /// Changes the step that `path` lies in; the flag says whether the path is the step itself.
    fn step(&mut self, path: &str, change: impl FnOnce(&mut StepView, bool)) {
        let (name, within) = path.split_once('/').map_or((path, false), |(name, _)| (name, true));
        let name = name.split_once('[').map_or(name, |(name, _)| name);
        if let Some(step) = self.places.get(name).and_then(|place| self.steps.get_mut(*place)) {
            change(step, !within && name == path);
        }
    }

    /// The phase at work: that of the first step that runs, or else of the first that waits, or
    /// else of the last.
    pub fn current_phase(&self) -> Option<&Arc<str>> {
        let first = |status| self.steps.iter().find(|step| step.status == status);
        first(StepStatus::Running)
            .or_else(|| first(StepStatus::Waiting))
            .or_else(|| self.steps.last())
            .map(|step| &step.phase)
            .filter(|phase| !phase.is_empty())
    }

    /// The agents all of whose steps are over, at least one of them well, by name.
    pub fn completed_agents(&self) -> Vec<&Arc<str>> {
        let open: BTreeSet<_> =
            self.steps.iter().filter(|step| !step.status.is_over()).flat_map(|step| &step.agents).collect();
        // Of those whom a route may choose, some did nothing.
        let worked = |step: &StepView, agent: &str| *step.agent == *agent || self.worked.contains_key(agent);
        let done: BTreeSet<_> = self
            .steps
            .iter()
            .filter(|step| step.status == StepStatus::Succeeded)
            .flat_map(|step| step.agents.iter().filter(|agent| worked(step, agent)))
            .collect();
        done.difference(&open).copied().collect()
    }

    /// The steps that come next: those that wait and whose predecessors are all over.
    pub fn next_actions(&self) -> Vec<&Arc<str>> {
        if self.status != RunStatus::Running {
            return Vec::new();
        }
        let over = |name: &Arc<str>| {
            self.places
                .get(name)
                .and_then(|place| self.steps.get(*place))
                .is_none_or(|step| step.status.is_over())
        };
        self.steps
            .iter()
            .filter(|step| step.status == StepStatus::Waiting && step.follows.iter().all(over))
            .map(|step| &step.name)
            .collect()
    }

    /// How far it is, and what remains by the durations seen in this run.
    pub fn progress(&self) -> Progress {
        self.progress_by(|_| None)
    }

    /// The same, with `typical` durations of agents in milliseconds, from earlier runs, for
    /// agents that have not worked in this one.
    pub fn progress_by(&self, typical: impl Fn(&str) -> Option<u64>) -> Progress {
        let done = self.steps.iter().filter(|step| step.status.is_over()).count();
        let progress = Progress { done, total: self.steps.len(), remaining_ms: None };
        if self.status != RunStatus::Running || done == self.steps.len() {
            return Progress { remaining_ms: Some(0), ..progress };
        }
        let mut all = Worked::default();
        let worked = self.steps.iter().filter(|step| step.status == StepStatus::Succeeded);
        for took_ms in worked.filter_map(StepView::took_ms) {
            all += Worked { steps: 1, took_ms };
        }
        let by_agent =
            |agent: &Arc<str>| self.worked.get(agent).and_then(Worked::mean_ms).or_else(|| typical(agent));
        // A step that holds others takes as long as their agents one after the other.
        let expected = |step: &StepView| {
            let known = step.agents.iter().filter_map(by_agent);
            known.reduce(u64::saturating_add).or_else(|| all.mean_ms())
        };
        // The longest way through what is left. Predecessors may come later in the list, so ways
        // are lengthened until none grows; a graph has no cycles, so that ends.
        let mut ways: Vec<u64> = vec![0; self.steps.len()];
        for _ in 0..self.steps.len() {
            let mut grown = false;
            for (place, step) in self.steps.iter().enumerate().filter(|(_, step)| !step.status.is_over()) {
                let Some(mut own) = expected(step) else { return progress };
                if let Some(began) = step.started_at_ms {
                    own = own.saturating_sub(self.updated_at_ms.saturating_sub(began));
                }
                let before = step
                    .follows
                    .iter()
                    .filter_map(|name| self.places.get(name).and_then(|place| ways.get(*place)))
                    .max();
                let way = before.copied().unwrap_or(0).saturating_add(own);
                if let Some(slot) = ways.get_mut(place)
                    && *slot != way
                {
                    *slot = way;
                    grown = true;
                }
            }
            if !grown {
                break;
            }
        }
        Progress { remaining_ms: ways.into_iter().max(), ..progress }
    }

    /// The run's tags: those listed in the fact `tags`, and the names of facts that are `true`.
    pub fn tags(&self) -> BTreeSet<&str> {
        let listed = self.facts.get("tags").and_then(Value::as_array).into_iter().flatten();
        listed
            .filter_map(Value::as_str)
            .chain(
                self.facts.iter().filter(|(_, value)| **value == Value::Bool(true)).map(|(name, _)| &**name),
            )
            .collect()
    }
}
