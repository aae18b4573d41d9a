//! The engine's decisions, without I/O, clock, randomness or map-iteration order.

mod review;
mod scope;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use crate::error::{Error, ErrorKind};
use crate::event::{Event, RunStatus, SkipReason};
use crate::graph::{Graph, Join, StepData, StepKind};
use crate::hash::jitter;
use crate::machine::review::Reviewed;
use crate::machine::scope::Scope;
use crate::payload::Payload;

/// What the [`Machine`] asks of its host. Steps are named by their number in the run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Command {
    /// Run a step: record [`Event::StepStarted`], and in the end [`Event::StepSucceeded`] or
    /// [`Event::StepFailed`]. For a step that holds steps: record [`Event::ScopeOpened`] with its
    /// input.
    Run {
        /// The step.
        step: usize,
        /// Its attempt, from 1.
        attempt: u32,
    },
    /// A step that holds steps is over: record [`Event::StepSucceeded`] or [`Event::StepFailed`].
    Settle {
        /// The step.
        step: usize,
        /// Its attempt.
        attempt: u32,
        /// What came of it.
        result: Result<Payload, Error>,
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
        /// Why.
        reason: Arc<str>,
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

/// One step of a run.
#[derive(Debug)]
struct Slot {
    /// The scope that it belongs to, and its number in the scope's graph.
    scope: usize,
    at: usize,
    path: Arc<str>,
    state: StepState,
    /// Attempts begun.
    attempts: u32,
    /// Whether the last of them was started, and not refused before.
    started: bool,
    /// Steps before it that are not over.
    unsettled: usize,
    /// The steps whose outputs it takes, by number in the graph, where its join did not wait for all.
    taken: Option<Vec<usize>>,
    /// For a step that holds steps: what went in, the scopes that it opened, and what came of it.
    opened: Option<Payload>,
    children: Vec<usize>,
    /// Of these, how many are not over, and whether one failed.
    running: usize,
    failed: bool,
    verdict: Option<Result<Payload, Error>>,
    /// The step that went on without it: it is to stop.
    needless: Option<Arc<str>>,
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
    scopes: Vec<Scope>,
    slots: Vec<Slot>,
    /// The steps of graphs within graphs; those of the run's own are known by name.
    by_path: HashMap<Arc<str>, usize>,
    facts: Arc<BTreeMap<String, Value>>,
    cancel: Option<Arc<str>>,
    /// The steps that were part of a review.
    reviewed: BTreeMap<usize, Reviewed>,
    status: RunStatus,
    finishing: bool,
}

impl Machine {
    /// A run of `graph` before its first event.
    pub fn new(graph: Arc<Graph>) -> Self {
        let mut machine = Machine {
            graph: graph.clone(),
            scopes: Vec::with_capacity(1),
            slots: Vec::with_capacity(graph.steps().len()),
            by_path: HashMap::new(),
            facts: Arc::default(),
            cancel: None,
            reviewed: BTreeMap::new(),
            status: RunStatus::Running,
            finishing: false,
        };
        machine.add_scope(graph, "", Payload::null(), None);
        machine
    }

    /// The graph that runs.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// The run's facts.
    pub fn facts(&self) -> &Arc<BTreeMap<String, Value>> {
        &self.facts
    }

    /// How the run stands.
    pub fn status(&self) -> RunStatus {
        self.status
    }

    /// Every step so far, in the order of their numbers: its path and how it stands.
    pub fn steps(&self) -> impl Iterator<Item = (&Arc<str>, &StepState)> {
        self.slots.iter().filter(|slot| self.is_current(slot.scope)).map(|slot| (&slot.path, &slot.state))
    }

    /// How a step stands.
    pub fn state(&self, step: usize) -> Option<&StepState> {
        self.slots.get(step).map(|slot| &slot.state)
    }

    /// The path of a step.
    pub fn path(&self, step: usize) -> Option<&Arc<str>> {
        self.slots.get(step).map(|slot| &slot.path)
    }

    /// The number of the step at `path`.
    pub fn step(&self, path: &str) -> Option<usize> {
        self.graph.step(path).or_else(|| self.by_path.get(path).copied())
    }

    /// Whether a step holds steps and has opened.
    pub(crate) fn is_open(&self, step: usize) -> bool {
        self.slots.get(step).is_some_and(|slot| slot.opened.is_some())
    }

    /// The step as its graph has it.
    pub fn data(&self, step: usize) -> Option<&StepData> {
        let slot = self.slots.get(step)?;
        self.scopes.get(slot.scope)?.graph.steps().get(slot.at)
    }

    /// The outputs that `step` takes, in the order of its inputs: `None` for a step that was
    /// skipped, failed, or was not waited for. The input of its graph where it names none.
    pub fn inputs_of(&self, step: usize) -> Vec<Option<Payload>> {
        let Some((scope, wires)) = self.surroundings(step) else { return Vec::new() };
        let taken = self.slots.get(step).and_then(|slot| slot.taken.as_ref());
        wires
            .inputs
            .iter()
            .map(|input| match input {
                None => Some(scope.input.clone()),
                Some(from) if taken.is_some_and(|taken| !taken.contains(from)) => None,
                Some(from) => self.state(scope.first + from)?.output().cloned(),
            })
            .collect()
    }

    /// The first of [`inputs_of`](Self::inputs_of).
    pub(crate) fn input_of(&self, step: usize) -> Option<Payload> {
        let (scope, wires) = self.surroundings(step)?;
        let taken = self.slots.get(step).and_then(|slot| slot.taken.as_ref());
        match wires.inputs.first()? {
            None => Some(scope.input.clone()),
            Some(from) if taken.is_some_and(|taken| !taken.contains(from)) => None,
            Some(from) => self.state(scope.first + from)?.output().cloned(),
        }
    }

    /// Folds one event in and appends what follows from it to `commands`.
    pub fn on_event(&mut self, event: &Event, commands: &mut Vec<Command>) {
        let step = event.path().and_then(|path| self.step(path));
        self.on_event_of(event, step, commands);
    }

    /// [`on_event`](Self::on_event) for a host that knows which step the event is about.
    pub(crate) fn on_event_of(&mut self, event: &Event, step: Option<usize>, commands: &mut Vec<Command>) {
        match event {
            Event::RunStarted { input, facts, .. } => {
                self.facts = facts.clone();
                if let Some(root) = self.scopes.first_mut() {
                    root.input = input.clone();
                }
                for step in 0..self.slots.len() {
                    self.consider(step, None, commands);
                }
            }
            Event::RunResumed { .. } => {
                if matches!(self.status, RunStatus::Failed | RunStatus::Stopped) {
                    self.status = RunStatus::Running;
                    self.reopen(0, commands);
                }
            }
            Event::Migrated { restarted, .. } => {
                for step in restarted.iter().filter_map(|path| self.step(path)).collect::<Vec<_>>() {
                    if let Some(slot) = self.slots.get_mut(step) {
                        slot.started = false;
                    }
                    if matches!(self.state(step), Some(StepState::Running { .. } | StepState::Backoff { .. }))
                    {
                        let attempt = self.slots.get(step).map_or(1, |slot| slot.attempts + 1);
                        self.ready(step, attempt, commands);
                    }
                }
            }
            Event::StepStarted { attempt, .. } => {
                if let Some(slot) = self.slot(step) {
                    slot.attempts = *attempt;
                    slot.started = true;
                    slot.state = StepState::Running { attempt: *attempt };
                }
            }
            Event::ScopeOpened { input, .. } => {
                if let Some(slot) = self.slot(step) {
                    slot.opened = Some(input.clone());
                }
                if let Some(step) = step {
                    self.advance(step, commands);
                }
            }
            Event::StepSucceeded { output, .. } => {
                self.settle(step, StepState::Succeeded(output.clone()), commands);
            }
            Event::StepFailed { attempt, error, retry_in_ms, .. } => {
                // A start that was refused is the first that is heard of the attempt.
                if let Some(slot) = step.and_then(|step| self.slots.get_mut(step)) {
                    slot.attempts = slot.attempts.max(*attempt);
                }
                match (retry_in_ms, step) {
                    (Some(delay_ms), Some(step)) if self.cancel.is_none() => {
                        let (attempt, delay_ms) = (attempt + 1, *delay_ms);
                        if let Some(slot) = self.slots.get_mut(step) {
                            slot.state = StepState::Backoff { attempt, delay_ms };
                        }
                        commands.push(Command::Timer { step, attempt, delay_ms });
                    }
                    _ => self.settle(step, StepState::Failed(error.clone()), commands),
                }
            }
            Event::SentBack { round, returned, .. } => {
                if let Some(step) = step {
                    self.send_back(step, *round, returned, commands);
                }
            }
            Event::RetryDue { attempt, .. } => {
                if let Some(step) = step {
                    self.ready(step, *attempt, commands);
                }
            }
            Event::StepSkipped { reason, .. } => {
                self.settle(step, StepState::Skipped(reason.clone()), commands);
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
            | Event::CallNoted { .. }
            | Event::HandedOff { .. }
            | Event::QuestionAsked { .. }
            | Event::QuestionAnswered { .. }
            | Event::SignalReceived { .. }
            | Event::BudgetToppedUp { .. }
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
                    let attempt = *attempt;
                    match (&slot.opened, &slot.verdict) {
                        (Some(_), None) => {}
                        (Some(_), Some(result)) => {
                            commands.push(Command::Settle { step, attempt, result: result.clone() });
                        }
                        (None, _) => {
                            commands.push(Command::Run { step, attempt });
                            let needless = slot.needless.as_ref().map(|name| without(name));
                            if let Some(reason) = self.cancel.clone().or(needless) {
                                commands.push(Command::Abort { step, reason });
                            }
                        }
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

    fn slot(&mut self, step: Option<usize>) -> Option<&mut Slot> {
        self.slots.get_mut(step?)
    }

    fn settle(&mut self, step: Option<usize>, state: StepState, commands: &mut Vec<Command>) {
        let Some(slot) = self.slot(step) else { return };
        if slot.state.is_settled() {
            return;
        }
        slot.state = state;
        let (scope_id, at) = (slot.scope, slot.at);
        let Some(scope) = self.scopes.get_mut(scope_id) else { return };
        scope.open -= 1;
        let (graph, first) = (scope.graph.clone(), scope.first);
        for next in graph.wiring(at).into_iter().flat_map(|wires| &wires.behind) {
            if let Some(slot) = self.slots.get_mut(first + next) {
                slot.unsettled -= 1;
            }
            self.consider(first + next, Some(at), commands);
        }
        self.begin_anew(scope_id, commands);
        self.close(scope_id, commands);
    }

    /// Decides about a waiting step, of whose surroundings only `settled` has changed, if that is
    /// given.
    fn consider(&mut self, step: usize, settled: Option<usize>, commands: &mut Vec<Command>) {
        let (Some(slot), Some(data)) = (self.slots.get(step), self.data(step)) else { return };
        if slot.state != StepState::Waiting || self.cancel.is_some() || self.is_held(step) {
            return;
        }
        let verdict = match data.join {
            Join::All => self.all(step, slot.unsettled, settled),
            Join::Settle => (slot.unsettled == 0).then_some(Ok(None)),
            Join::FirstOk => self.quorum(step, 1),
            Join::Quorum(n) => self.quorum(step, n),
        };
        match verdict {
            None => {}
            Some(Err(reason)) => self.skip(step, reason, commands),
            Some(Ok(taken)) => {
                let (attempt, early) = (slot.attempts + 1, taken.is_some());
                if let Some(slot) = self.slots.get_mut(step) {
                    slot.taken = taken;
                }
                match self.condition_holds(step) {
                    Ok(false) => {
                        let when = self.data(step).and_then(|data| data.when.clone()).unwrap_or_default();
                        self.skip(step, SkipReason::Condition { when }, commands);
                    }
                    // A condition that can't be evaluated is the step's failure: the host runs
                    // into it when it starts the step, and records that.
                    Ok(true) | Err(_) => self.ready(step, attempt, commands),
                }
                if early {
                    self.release_losers(step, commands);
                }
            }
        }
    }

    /// Whether the condition of `step` holds over what is recorded.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if it can't be evaluated.
    pub fn condition_holds(&self, step: usize) -> Result<bool, Error> {
        let Some((slot, scope)) =
            self.slots.get(step).and_then(|slot| Some((slot, self.scopes.get(slot.scope)?)))
        else {
            return Ok(true);
        };
        let Some(condition) = scope.graph.condition(slot.at) else { return Ok(true) };
        let output = |name: &str| self.state(scope.first + scope.graph.step(name)?)?.output().cloned();
        condition.holds(&self.facts, &scope.input, output, None)
    }

    fn all(
        &self,
        step: usize,
        unsettled: usize,
        settled: Option<usize>,
    ) -> Option<Result<Option<Vec<usize>>, SkipReason>> {
        let (scope, wires) = self.surroundings(step)?;
        let lost = |&(from, optional): &(usize, bool)| match self.state(scope.first + from) {
            Some(StepState::Failed(_) | StepState::Skipped(SkipReason::InputFailed { .. })) => {
                Some(SkipReason::InputFailed { step: scope.name(from) })
            }
            Some(StepState::Skipped(_)) if !optional => {
                Some(SkipReason::InputSkipped { step: scope.name(from) })
            }
            _ => None,
        };
        let lost = match settled {
            // Whatever was lost earlier has been decided about already.
            Some(from) => wires
                .before
                .binary_search_by_key(&from, |(from, _)| *from)
                .ok()
                .and_then(|at| wires.before.get(at))
                .and_then(lost),
            None => wires.before.iter().find_map(lost),
        };
        match lost {
            Some(reason) => Some(Err(reason)),
            None => (unsettled == 0).then_some(Ok(None)),
        }
    }

    fn quorum(&self, step: usize, needed: usize) -> Option<Result<Option<Vec<usize>>, SkipReason>> {
        let (scope, wires) = self.surroundings(step)?;
        let inputs = || wires.inputs.iter().flatten().copied();
        let has_succeeded =
            |from: &usize| matches!(self.state(scope.first + from), Some(StepState::Succeeded(_)));
        let is_possible =
            |from: &usize| self.state(scope.first + from).is_some_and(|state| !state.is_settled());
        let succeeded = inputs().filter(has_succeeded).count();
        if succeeded >= needed {
            return Some(Ok(Some(inputs().filter(has_succeeded).collect())));
        }
        if succeeded + inputs().filter(is_possible).count() < needed {
            let lost = inputs().find(|from| !has_succeeded(from));
            let step = lost.map(|from| scope.name(from)).unwrap_or_default();
            return Some(Err(SkipReason::InputFailed { step }));
        }
        None
    }

    /// Stops the steps that `step` went on without, where nothing else waits for them.
    fn release_losers(&mut self, step: usize, commands: &mut Vec<Command>) {
        let name = self.data(step).map(|data| data.name.clone()).unwrap_or_default();
        self.release_inputs(step, &name, commands);
    }

    /// Stops the steps before `step` that work for nobody, and in turn those before them.
    fn release_inputs(&mut self, step: usize, name: &Arc<str>, commands: &mut Vec<Command>) {
        let Some((scope, wires)) = self.surroundings(step) else { return };
        let first = scope.first;
        let is_output = |from: usize| {
            let data = scope.graph.steps().get(from);
            data.is_some_and(|data| scope.graph.data().output.as_ref() == Some(&data.name))
        };
        let needless: Vec<usize> = wires
            .before
            .iter()
            .map(|(from, _)| *from)
            .filter(|from| {
                let takers =
                    scope.graph.wiring(*from).map(|wires| wires.behind.as_slice()).unwrap_or_default();
                let is_open = self.state(first + from).is_some_and(|state| !state.is_settled());
                let is_awaited =
                    takers.iter().any(|taker| matches!(self.state(first + taker), Some(StepState::Waiting)));
                is_open && !is_awaited && !is_output(*from)
            })
            .map(|from| first + from)
            .collect();
        for step in needless {
            self.stop(step, name, commands);
            self.release_inputs(step, name, commands);
        }
    }

    /// Stops a step that `name` went on without, and all steps inside of it.
    fn stop(&mut self, step: usize, name: &Arc<str>, commands: &mut Vec<Command>) {
        let Some(slot) = self.slots.get_mut(step) else { return };
        match slot.state {
            StepState::Waiting | StepState::Backoff { .. } => {
                self.skip(step, SkipReason::NotNeeded { step: name.clone() }, commands);
            }
            StepState::Ready { .. } | StepState::Running { .. } if slot.verdict.is_none() => {
                slot.needless = Some(name.clone());
                if slot.opened.is_none() {
                    return commands.push(Command::Abort { step, reason: without(name) });
                }
                for child in slot.children.clone() {
                    for inside in self.open_steps(child) {
                        self.stop(inside, name, commands);
                    }
                }
                self.advance(step, commands);
            }
            _ => {}
        }
    }

    fn ready(&mut self, step: usize, attempt: u32, commands: &mut Vec<Command>) {
        if let Some(slot) = self.slots.get_mut(step) {
            slot.started = false;
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
            let Some(slot) = self.slots.get(step) else { continue };
            match slot.state {
                StepState::Waiting | StepState::Backoff { .. } => {
                    self.skip(step, SkipReason::Cancelled, commands);
                }
                // A step that holds steps ends when they do.
                StepState::Ready { .. } | StepState::Running { .. } if slot.opened.is_none() => {
                    commands.push(Command::Abort { step, reason: reason.clone() });
                }
                _ => {}
            }
        }
        self.finish(commands);
    }

    fn finish(&mut self, commands: &mut Vec<Command>) {
        let Some(root) = self.scopes.first() else { return };
        if root.open > 0 || self.finishing || self.status != RunStatus::Running {
            return;
        }
        self.finishing = true;
        commands.push(match (&self.cancel, self.result_of(0)) {
            (Some(reason), _) => Command::Finish {
                status: RunStatus::Cancelled,
                output: Some(self.partial()),
                error: Some(Error::new(ErrorKind::Cancelled { reason: reason.to_string() })),
            },
            (None, Ok(output)) => {
                Command::Finish { status: RunStatus::Succeeded, output: Some(output), error: None }
            }
            (None, Err(error)) if matches!(error.kind(), ErrorKind::Budget { .. }) => Command::Finish {
                status: RunStatus::Stopped,
                output: Some(self.partial()),
                error: Some(error),
            },
            (None, Err(error)) => {
                Command::Finish { status: RunStatus::Failed, output: None, error: Some(error) }
            }
        });
    }

    /// What has been done so far: the output of each step that succeeded, by its path.
    fn partial(&self) -> Payload {
        let outputs = self.steps().filter_map(|(path, state)| Some((path.clone(), state.output()?.clone())));
        Payload::new(outputs.collect::<BTreeMap<Arc<str>, Payload>>())
    }

    /// Milliseconds after which a failed attempt of `step` is followed by another, if it is. The
    /// jitter is derived from the step and the attempt, so that a replay decides the same.
    pub fn retry_delay_ms(&self, step: usize, attempt: u32, error: &Error) -> Option<u64> {
        let (path, data) = (self.path(step)?, self.data(step)?);
        if data.kind.is_composite() {
            return None;
        }
        let attempt_of_round = attempt - self.attempts_before(step).min(attempt);
        data.retry.delay_ms(attempt_of_round, error, jitter(&format!("{path}#{attempt}")))
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
                StepKind::Route { agents, .. } => Some((next.name.clone(), agents.first()?.clone())),
                _ => None,
            })
            .collect()
    }
}

fn without(name: &str) -> Arc<str> {
    format!("`{name}` went on without it").into()
}
