//! The engine's decisions, without I/O, clock, randomness or map-iteration order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use crate::error::{Error, ErrorKind};
use crate::event::{Event, RunStatus, SkipReason};
use crate::graph::{Graph, Join, StepKind};
use crate::payload::Payload;

/// What the [`Machine`] asks of its host. Steps are named by their number in the graph.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Command {
    /// Run a step: record [`Event::StepStarted`], and in the end [`Event::StepSucceeded`] or
    /// [`Event::StepFailed`].
    Run {
        /// The step.
        step: usize,
        /// Its attempt, from 1.
        attempt: u32,
    },
    /// Record [`Event::StepSkipped`].
    Skip {
        /// The step.
        step: usize,
        /// Why.
        reason: SkipReason,
    },
    /// Record [`Event::RetryDue`] after a while.
    Timer {
        /// The step.
        step: usize,
        /// The attempt that the timer starts.
        attempt: u32,
        /// After how many milliseconds.
        delay_ms: u64,
    },
    /// Stop a running step; it ends as failed.
    Abort {
        /// The step.
        step: usize,
    },
    /// Record [`Event::RunFinished`].
    Finish {
        /// How the run ended.
        status: RunStatus,
        /// Its output.
        output: Option<Payload>,
        /// Why it failed.
        error: Option<Error>,
    },
}

/// How a step stands.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum StepState {
    /// Steps before it are not over.
    Waiting,
    /// It may run; the host has not recorded its start yet.
    Ready {
        /// The attempt that begins.
        attempt: u32,
    },
    /// It runs.
    Running {
        /// The attempt.
        attempt: u32,
    },
    /// It failed and waits for its next attempt.
    Backoff {
        /// The attempt that comes.
        attempt: u32,
        /// How long the wait is, in milliseconds.
        delay_ms: u64,
    },
    /// It will not run; the host has not recorded it yet.
    Skipping(SkipReason),
    /// It gave its output.
    Succeeded(Payload),
    /// It failed for good.
    Failed(Error),
    /// It did not run.
    Skipped(SkipReason),
}

impl StepState {
    /// Whether the step is over.
    pub fn is_settled(&self) -> bool {
        matches!(self, StepState::Succeeded(_) | StepState::Failed(_) | StepState::Skipped(_))
    }

    /// The step's output, if it succeeded.
    pub fn output(&self) -> Option<&Payload> {
        match self {
            StepState::Succeeded(output) => Some(output),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Slot {
    state: StepState,
    /// Attempts begun.
    attempts: u32,
    /// Steps before it that are not over.
    unsettled: usize,
    /// The steps whose outputs it takes, where its join did not wait for all.
    taken: Option<Vec<usize>>,
}

#[derive(Debug)]
struct Wiring {
    before: Vec<(usize, bool)>,
    behind: Vec<usize>,
}

/// One run's state and decisions: a fold over its events.
///
/// Feed it each event once, in the order of the journal. [`on_event`](Machine::on_event) gives the
/// commands that follow from the event. After a restart, feed the whole journal, drop what it
/// gave, and ask [`outstanding`](Machine::outstanding) what is to be done now.
///
/// The same events give the same commands, on every machine and in every release.
#[derive(Debug)]
pub struct Machine {
    graph: Arc<Graph>,
    wiring: Arc<[Wiring]>,
    by_name: HashMap<Arc<str>, usize>,
    slots: Vec<Slot>,
    open: usize,
    input: Payload,
    facts: Arc<BTreeMap<String, Value>>,
    cancel: Option<Arc<str>>,
    status: RunStatus,
    finishing: bool,
}

impl Machine {
    /// A run of `graph` before its first event.
    pub fn new(graph: Arc<Graph>) -> Self {
        let count = graph.steps().len();
        let wiring: Vec<Wiring> = (0..count)
            .map(|step| Wiring {
                before: graph.before(step).into_iter().map(|(from, edge)| (from, edge.optional)).collect(),
                behind: graph.behind(step),
            })
            .collect();
        let slots = wiring
            .iter()
            .map(|wires| Slot {
                state: StepState::Waiting,
                attempts: 0,
                unsettled: wires.before.len(),
                taken: None,
            })
            .collect();
        let by_name = graph.steps().iter().enumerate().map(|(i, step)| (step.name.clone(), i)).collect();
        Machine {
            graph,
            wiring: wiring.into(),
            by_name,
            slots,
            open: count,
            input: Payload::null(),
            facts: Arc::default(),
            cancel: None,
            status: RunStatus::Running,
            finishing: false,
        }
    }

    /// The graph that runs.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// The run's input.
    pub fn input(&self) -> &Payload {
        &self.input
    }

    /// The run's facts.
    pub fn facts(&self) -> &Arc<BTreeMap<String, Value>> {
        &self.facts
    }

    /// How the run stands.
    pub fn status(&self) -> RunStatus {
        self.status
    }

    /// How a step stands.
    pub fn state(&self, step: usize) -> Option<&StepState> {
        self.slots.get(step).map(|slot| &slot.state)
    }

    /// The number of the step at `path`.
    pub fn step(&self, path: &str) -> Option<usize> {
        self.by_name.get(path).copied()
    }

    /// The outputs that `step` takes, in the order of its inputs: `None` for a step that was
    /// skipped, failed, or was not waited for. The workflow's input where it names none.
    pub fn inputs_of(&self, step: usize) -> Vec<Option<Payload>> {
        let Some(data) = self.graph.steps().get(step) else { return Vec::new() };
        if data.inputs.is_empty() {
            return vec![Some(self.input.clone())];
        }
        let taken = self.slots.get(step).and_then(|slot| slot.taken.as_ref());
        data.inputs
            .iter()
            .map(|input| {
                if &*input.step == "input" {
                    return Some(self.input.clone());
                }
                let from = *self.by_name.get(&input.step)?;
                if taken.is_some_and(|taken| !taken.contains(&from)) {
                    return None;
                }
                self.slots.get(from)?.state.output().cloned()
            })
            .collect()
    }

    /// Folds one event in and appends what follows from it to `commands`.
    pub fn on_event(&mut self, event: &Event, commands: &mut Vec<Command>) {
        match event {
            Event::RunStarted { input, facts, .. } => {
                self.input = input.clone();
                self.facts = facts.clone();
                for step in 0..self.slots.len() {
                    self.consider(step, commands);
                }
            }
            Event::RunResumed { .. } => {
                if self.status == RunStatus::Failed {
                    self.reopen(commands);
                }
            }
            Event::StepStarted { path, attempt } => {
                if let Some(slot) = self.slot(path) {
                    slot.attempts = *attempt;
                    slot.state = StepState::Running { attempt: *attempt };
                }
            }
            Event::StepSucceeded { path, output, .. } => {
                self.settle(path, StepState::Succeeded(output.clone()), commands);
            }
            Event::StepFailed { path, attempt, error, retry_in_ms } => match retry_in_ms {
                Some(delay_ms) if self.cancel.is_none() => {
                    let (attempt, delay_ms) = (attempt + 1, *delay_ms);
                    if let Some(slot) = self.slot(path) {
                        slot.state = StepState::Backoff { attempt, delay_ms };
                    }
                    if let Some(step) = self.step(path) {
                        commands.push(Command::Timer { step, attempt, delay_ms });
                    }
                }
                _ => self.settle(path, StepState::Failed(error.clone()), commands),
            },
            Event::RetryDue { path, attempt } => {
                if let Some(step) = self.step(path) {
                    self.ready(step, *attempt, commands);
                }
            }
            Event::StepSkipped { path, reason } => {
                self.settle(path, StepState::Skipped(reason.clone()), commands);
            }
            Event::CancelRequested { reason } => self.cancel(reason, commands),
            Event::RunFinished { status, .. } => {
                self.status = *status;
                self.finishing = false;
            }
            Event::StageEntered { .. }
            | Event::EffectIntended { .. }
            | Event::EffectDone { .. }
            | Event::CallRetried { .. }
            | Event::HandedOff { .. }
            | Event::Noted { .. } => {}
        }
    }

    /// What is to be done now: each command that no event has answered yet, in the order of the
    /// steps. For a host that takes a run up again.
    pub fn outstanding(&mut self, commands: &mut Vec<Command>) {
        if self.status != RunStatus::Running {
            return;
        }
        for (step, slot) in self.slots.iter().enumerate() {
            match &slot.state {
                StepState::Ready { attempt } | StepState::Running { attempt } => {
                    commands.push(Command::Run { step, attempt: *attempt });
                    if self.cancel.is_some() {
                        commands.push(Command::Abort { step });
                    }
                }
                StepState::Backoff { attempt, delay_ms } => {
                    commands.push(Command::Timer { step, attempt: *attempt, delay_ms: *delay_ms });
                }
                StepState::Skipping(reason) => commands.push(Command::Skip { step, reason: reason.clone() }),
                StepState::Waiting
                | StepState::Succeeded(_)
                | StepState::Failed(_)
                | StepState::Skipped(_) => {}
            }
        }
        self.finishing = false;
        self.finish(commands);
    }

    fn slot(&mut self, path: &str) -> Option<&mut Slot> {
        let step = self.step(path)?;
        self.slots.get_mut(step)
    }

    fn settle(&mut self, path: &str, state: StepState, commands: &mut Vec<Command>) {
        let Some(step) = self.step(path) else { return };
        let Some(slot) = self.slots.get_mut(step) else { return };
        if slot.state.is_settled() {
            return;
        }
        slot.state = state;
        self.open -= 1;
        let wiring = self.wiring.clone();
        for &next in wiring.get(step).into_iter().flat_map(|wires| &wires.behind) {
            if let Some(slot) = self.slots.get_mut(next) {
                slot.unsettled -= 1;
            }
            self.consider(next, commands);
        }
        self.finish(commands);
    }

    /// Decides about a waiting step whose surroundings have changed.
    fn consider(&mut self, step: usize, commands: &mut Vec<Command>) {
        let (Some(slot), Some(data)) = (self.slots.get(step), self.graph.steps().get(step)) else { return };
        if slot.state != StepState::Waiting || self.cancel.is_some() {
            return;
        }
        let verdict = match data.join {
            Join::All => self.all(step, slot.unsettled),
            Join::Settle => (slot.unsettled == 0).then_some(Ok(None)),
            Join::FirstOk => self.quorum(step, 1),
            Join::Quorum(n) => self.quorum(step, n),
        };
        match verdict {
            None => {}
            Some(Err(reason)) => self.skip(step, reason, commands),
            Some(Ok(taken)) => {
                let attempt = slot.attempts + 1;
                if let Some(slot) = self.slots.get_mut(step) {
                    slot.taken = taken;
                }
                match self.condition_holds(step) {
                    Ok(true) => self.ready(step, attempt, commands),
                    Ok(false) => {
                        let when = self.graph.steps().get(step).and_then(|data| data.when.clone());
                        self.skip(step, SkipReason::Condition { when: when.unwrap_or_default() }, commands);
                    }
                    // A condition that can't be evaluated is the step's failure: it runs into it
                    // when it starts, and the host records that.
                    Err(_) => self.ready(step, attempt, commands),
                }
            }
        }
    }

    /// Whether the condition of `step` holds over what is recorded.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if it can't be evaluated.
    pub fn condition_holds(&self, step: usize) -> Result<bool, Error> {
        let Some(condition) = self.graph.condition(step) else { return Ok(true) };
        let output = |name: &str| {
            self.by_name
                .get(name)
                .and_then(|i| self.slots.get(*i))
                .and_then(|slot| slot.state.output().cloned())
        };
        condition.holds(&self.facts, &self.input, output)
    }

    fn all(&self, step: usize, unsettled: usize) -> Option<Result<Option<Vec<usize>>, SkipReason>> {
        let before = self.wiring.get(step).map(|wires| wires.before.as_slice()).unwrap_or_default();
        for &(from, optional) in before {
            match self.state(from) {
                Some(StepState::Failed(_)) => {
                    return Some(Err(SkipReason::InputFailed { step: self.name(from) }));
                }
                Some(StepState::Skipped(SkipReason::InputFailed { .. })) => {
                    return Some(Err(SkipReason::InputFailed { step: self.name(from) }));
                }
                Some(StepState::Skipped(_)) if !optional => {
                    return Some(Err(SkipReason::InputSkipped { step: self.name(from) }));
                }
                _ => {}
            }
        }
        (unsettled == 0).then_some(Ok(None))
    }

    fn quorum(&self, step: usize, needed: usize) -> Option<Result<Option<Vec<usize>>, SkipReason>> {
        let inputs: Vec<usize> = self
            .graph
            .steps()
            .get(step)
            .into_iter()
            .flat_map(|data| &data.inputs)
            .filter_map(|input| self.step(&input.step))
            .collect();
        let mut succeeded: Vec<usize> = Vec::new();
        let mut possible = 0;
        for &from in &inputs {
            match self.state(from) {
                Some(StepState::Succeeded(_)) => succeeded.push(from),
                Some(state) if !state.is_settled() => possible += 1,
                _ => {}
            }
        }
        if succeeded.len() >= needed {
            return Some(Ok(Some(succeeded)));
        }
        if succeeded.len() + possible < needed {
            let lost =
                inputs.iter().find(|from| !matches!(self.state(**from), Some(StepState::Succeeded(_))));
            return Some(Err(SkipReason::InputFailed {
                step: lost.map(|from| self.name(*from)).unwrap_or_default(),
            }));
        }
        None
    }

    fn name(&self, step: usize) -> Arc<str> {
        self.graph.steps().get(step).map(|data| data.name.clone()).unwrap_or_default()
    }

    fn ready(&mut self, step: usize, attempt: u32, commands: &mut Vec<Command>) {
        if let Some(slot) = self.slots.get_mut(step) {
            slot.state = StepState::Ready { attempt };
            commands.push(Command::Run { step, attempt });
        }
    }

    fn skip(&mut self, step: usize, reason: SkipReason, commands: &mut Vec<Command>) {
        if let Some(slot) = self.slots.get_mut(step) {
            slot.state = StepState::Skipping(reason.clone());
            commands.push(Command::Skip { step, reason });
        }
    }

    fn cancel(&mut self, reason: &Arc<str>, commands: &mut Vec<Command>) {
        if self.cancel.is_some() || self.status != RunStatus::Running {
            return;
        }
        self.cancel = Some(reason.clone());
        for step in 0..self.slots.len() {
            match self.slots.get(step).map(|slot| &slot.state) {
                Some(StepState::Waiting | StepState::Backoff { .. }) => {
                    self.skip(step, SkipReason::Cancelled, commands);
                }
                Some(StepState::Ready { .. } | StepState::Running { .. }) => {
                    commands.push(Command::Abort { step });
                }
                _ => {}
            }
        }
        self.finish(commands);
    }

    /// After a failed run is resumed: what failed, and what was skipped for it, is open again.
    fn reopen(&mut self, commands: &mut Vec<Command>) {
        self.status = RunStatus::Running;
        for slot in &mut self.slots {
            if matches!(slot.state, StepState::Failed(_) | StepState::Skipped(_)) {
                slot.state = StepState::Waiting;
                slot.taken = None;
                self.open += 1;
            }
        }
        for step in 0..self.slots.len() {
            let unsettled = self
                .wiring
                .get(step)
                .into_iter()
                .flat_map(|wires| &wires.before)
                .filter(|(from, _)| self.slots.get(*from).is_some_and(|slot| !slot.state.is_settled()))
                .count();
            if let Some(slot) = self.slots.get_mut(step) {
                slot.unsettled = unsettled;
            }
        }
        for step in 0..self.slots.len() {
            self.consider(step, commands);
        }
    }

    fn finish(&mut self, commands: &mut Vec<Command>) {
        if self.open > 0 || self.finishing || self.status != RunStatus::Running {
            return;
        }
        self.finishing = true;
        if let Some(reason) = &self.cancel {
            let error = Error::new(ErrorKind::Cancelled { reason: reason.to_string() });
            commands.push(Command::Finish { status: RunStatus::Cancelled, output: None, error: Some(error) });
            return;
        }
        let ends: Vec<usize> = match self.graph.output() {
            Some(output) => vec![output],
            None => (0..self.slots.len())
                .filter(|step| self.wiring.get(*step).is_some_and(|wires| wires.behind.is_empty()))
                .collect(),
        };
        let lost = ends.iter().any(|end| {
            matches!(
                self.state(*end),
                Some(StepState::Failed(_) | StepState::Skipped(SkipReason::InputFailed { .. }))
            )
        });
        if lost {
            let error = self.slots.iter().find_map(|slot| match &slot.state {
                StepState::Failed(error) => Some(error.clone()),
                _ => None,
            });
            commands.push(Command::Finish { status: RunStatus::Failed, output: None, error });
            return;
        }
        let output_of = |step: &usize| self.state(*step).and_then(StepState::output).cloned();
        let output = match self.graph.output() {
            Some(output) => output_of(&output).unwrap_or_else(Payload::null),
            None => Payload::new(
                ends.iter()
                    .filter_map(|end| Some((self.name(*end), output_of(end)?)))
                    .collect::<BTreeMap<Arc<str>, Payload>>(),
            ),
        };
        commands.push(Command::Finish { status: RunStatus::Succeeded, output: Some(output), error: None });
    }

    /// Milliseconds after which a failed attempt of `step` is followed by another, if it is. The
    /// jitter is derived from the step and the attempt, so that a replay decides the same.
    pub fn retry_delay_ms(&self, step: usize, attempt: u32, error: &Error) -> Option<u64> {
        let data = self.graph.steps().get(step)?;
        let seed = format!("{}#{attempt}", data.name);
        let hash = hmac_sha256::Hash::hash(seed.as_bytes());
        let jitter = hash.iter().take(8).fold(0, |n, byte| (n << 8) | u64::from(*byte));
        data.retry.delay_ms(attempt, error, jitter)
    }

    /// The agents of the steps that take the output of `step`, with the steps' names.
    pub(crate) fn successors(graph: &Graph, step: usize) -> Vec<(Arc<str>, Arc<str>)> {
        let Some(name) = graph.steps().get(step).map(|data| &data.name) else { return Vec::new() };
        graph
            .steps()
            .iter()
            .filter(|next| next.inputs.iter().any(|input| input.step == *name))
            .filter_map(|next| match &next.kind {
                StepKind::Agent(agent) => Some((next.name.clone(), agent.clone())),
                StepKind::Function(_) => None,
            })
            .collect()
    }
}
