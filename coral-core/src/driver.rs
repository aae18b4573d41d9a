//! The embedded host of the [`Machine`]: one actor a run, steps as tasks, every event durable
//! before it is applied.

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tracing::Instrument;

use crate::agent::{HandoffDraft, panicked};
use crate::context::AgentContext;
use crate::error::{Error, ErrorKind};
use crate::event::{EffectKind, Event, Outcome, Record, RunStatus, Seq, Stage};
use crate::handoff::{HandoffContext, HandoffSource};
use crate::machine::{Command, Machine, StepState};
use crate::payload::Payload;
use crate::program::{self, Body};
use crate::runner::Ports;
use crate::task::{Deliverable, HandoffMessage, MessageType};
use crate::tool::EffectClass;

/// How long an event that nobody waits for may wait for others to share its append with.
const LINGER: Duration = Duration::from_millis(2);

/// Messages to the driver that may wait; beyond, steps wait.
const INBOX: usize = 256;

/// Events of one append at the most.
const BATCH: usize = 1_024;

/// What the steps of a run share with its driver and its handles.
pub(crate) struct RunShared {
    pub(crate) id: Arc<str>,
    pub(crate) project: Arc<str>,
    pub(crate) facts: Arc<BTreeMap<String, Value>>,
    pub(crate) ports: Arc<Ports>,
    pub(crate) inbox: mpsc::Sender<ToDriver>,
    pub(crate) cancel: watch::Sender<Option<Arc<str>>>,
    pub(crate) head: watch::Sender<Seq>,
    pub(crate) end: watch::Sender<Option<Arc<RunEnd>>>,
}

/// How a driver ended.
#[derive(Debug)]
pub(crate) enum RunEnd {
    /// The run is over.
    Finished { status: RunStatus, output: Option<Payload>, error: Option<Error> },
    /// The driver could not go on; the run can be resumed.
    Broken(Error),
}

impl RunShared {
    pub(crate) fn new(
        id: Arc<str>,
        project: Arc<str>,
        facts: Arc<BTreeMap<String, Value>>,
        ports: Arc<Ports>,
    ) -> (Arc<Self>, mpsc::Receiver<ToDriver>) {
        let (inbox, receiver) = mpsc::channel(INBOX);
        let shared = RunShared {
            id,
            project,
            facts,
            ports,
            inbox,
            cancel: watch::Sender::new(None),
            head: watch::Sender::new(0),
            end: watch::Sender::new(None),
        };
        (Arc::new(shared), receiver)
    }

    /// Makes `events` durable.
    pub(crate) async fn append(&self, events: Vec<Event>) -> Result<(), Error> {
        let (done, wait) = oneshot::channel();
        self.send(ToDriver::Append(events, done)).await;
        match wait.await {
            Ok(result) => result,
            // The driver is gone and drops this step next.
            Err(_) => std::future::pending().await,
        }
    }

    pub(crate) async fn send(&self, message: ToDriver) {
        // A driver that is gone has said why through `end`; nothing more can be recorded.
        let _ = self.inbox.send(message).await;
    }
}

pub(crate) enum ToDriver {
    /// An event that the sender does not wait for.
    Record(Event),
    /// Events that must be durable before the sender goes on.
    Append(Vec<Event>, oneshot::Sender<Result<(), Error>>),
    /// A step's attempt is over.
    StepDone { step: usize, attempt: u32, result: Result<Payload, Error> },
    /// The wait before an attempt is over.
    RetryDue { step: usize, attempt: u32 },
    /// Somebody asked for the run to end.
    Cancel(Arc<str>),
    /// Stop here; the run will be resumed.
    Suspend,
}

/// What is recorded of an attempt that did not end.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepLog {
    attempt: u32,
    effects: Vec<RecordedEffect>,
    stage: Option<Stage>,
    handed_off: Vec<Arc<str>>,
    notes: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct RecordedEffect {
    pub(crate) seq: Seq,
    pub(crate) index: u32,
    pub(crate) effect: EffectKind,
    pub(crate) label: Arc<str>,
    pub(crate) digest: String,
    pub(crate) class: EffectClass,
    pub(crate) outcome: Option<Outcome>,
}

impl StepLog {
    pub(crate) fn effect(&self, index: u32) -> Option<&RecordedEffect> {
        self.effects.get(usize::try_from(index).ok()?).filter(|effect| effect.index == index)
    }

    pub(crate) fn entered(&self, stage: Stage) -> bool {
        self.stage.is_some_and(|last| stage <= last)
    }

    pub(crate) fn has_handed_off(&self, to: &Arc<str>) -> bool {
        self.handed_off.contains(to)
    }

    /// Whether the next note is recorded already.
    pub(crate) fn take_note(&mut self) -> bool {
        let recorded = self.notes > 0;
        self.notes = self.notes.saturating_sub(1);
        recorded
    }
}

/// The logs of the attempts that have begun and not ended: a fold over the journal.
#[derive(Debug, Default)]
pub(crate) struct StepLogs(HashMap<Arc<str>, StepLog>);

impl StepLogs {
    pub(crate) fn apply(&mut self, record: &Record) {
        match &record.event {
            Event::StepStarted { path, attempt } => {
                self.0.insert(path.clone(), StepLog { attempt: *attempt, ..Default::default() });
            }
            Event::StageEntered { path, stage, .. } => {
                if let Some(log) = self.0.get_mut(path) {
                    log.stage = Some(*stage);
                }
            }
            Event::EffectIntended { path, index, effect, label, digest, class, .. } => {
                if let Some(log) = self.0.get_mut(path) {
                    log.effects.push(RecordedEffect {
                        seq: record.seq,
                        index: *index,
                        effect: *effect,
                        label: label.clone(),
                        digest: digest.clone(),
                        class: *class,
                        outcome: None,
                    });
                }
            }
            Event::EffectDone { path, index, outcome, .. } => {
                let effect =
                    self.0.get_mut(path).and_then(|log| log.effects.get_mut(usize::try_from(*index).ok()?));
                if let Some(effect) = effect {
                    effect.outcome = Some(outcome.clone());
                }
            }
            Event::HandedOff { from, to, .. } => {
                if let Some(log) = self.0.get_mut(from) {
                    log.handed_off.push(to.clone());
                }
            }
            Event::Noted { path, .. } => {
                if let Some(log) = self.0.get_mut(path) {
                    log.notes += 1;
                }
            }
            Event::StepSucceeded { path, .. }
            | Event::StepFailed { path, .. }
            | Event::StepSkipped { path, .. } => {
                self.0.remove(path);
            }
            _ => {}
        }
    }

    fn take(&mut self, path: &Arc<str>, attempt: u32) -> StepLog {
        self.0.remove(path).filter(|log| log.attempt == attempt).unwrap_or_default()
    }
}

pub(crate) struct Driver {
    pub(crate) shared: Arc<RunShared>,
    pub(crate) program: Arc<program::Inner>,
    pub(crate) machine: Machine,
    pub(crate) inbox: mpsc::Receiver<ToDriver>,
    pub(crate) epoch: u64,
    /// The last durable record.
    pub(crate) seq: Seq,
    pub(crate) logs: StepLogs,
    pub(crate) messages: HashMap<(Arc<str>, Arc<str>), Arc<HandoffMessage>>,
    /// What had been delivered when each step began.
    available: HashMap<usize, Arc<[Deliverable]>>,
    batch: Vec<Event>,
    acks: Vec<oneshot::Sender<Result<(), Error>>>,
    /// Whether somebody waits for the batch.
    urgent: bool,
    live: HashMap<usize, (u32, AbortHandle)>,
    commands: Vec<Command>,
    end: Option<RunEnd>,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<RunShared>,
        program: Arc<program::Inner>,
        inbox: mpsc::Receiver<ToDriver>,
        epoch: u64,
    ) -> Self {
        Driver {
            machine: Machine::new(program.graph.clone()),
            shared,
            program,
            inbox,
            epoch,
            seq: 0,
            logs: StepLogs::default(),
            messages: HashMap::new(),
            available: HashMap::new(),
            batch: Vec::new(),
            acks: Vec::new(),
            urgent: false,
            live: HashMap::new(),
            commands: Vec::new(),
            end: None,
        }
    }

    /// Folds a record in that is durable already.
    pub(crate) fn replay(&mut self, record: &Record) {
        self.seq = record.seq;
        self.logs.apply(record);
        self.remember(&record.event);
        self.machine.on_event(&record.event, &mut self.commands);
        // What the journal goes on to answer is not to be done; the rest is asked for at the end.
        self.commands.clear();
    }

    /// Makes `event` durable and carries out what follows.
    pub(crate) async fn begin(&mut self, event: Event) -> Result<(), Error> {
        self.push(event, true);
        self.flush().await
    }

    /// Drives the run to its end, and says how it ended.
    pub(crate) async fn drive(mut self) {
        for step in self.program.graph.order() {
            self.gather(step);
        }
        self.commands.clear();
        self.machine.outstanding(&mut self.commands);
        let end = match self.work().await {
            Ok(end) => end,
            Err(error) => {
                tracing::error!(run = %self.shared.id, %error, "the run stands still");
                RunEnd::Broken(error)
            }
        };
        for (_, task) in self.live.values() {
            task.abort();
        }
        self.shared.end.send_replace(Some(Arc::new(end)));
    }

    async fn work(&mut self) -> Result<RunEnd, Error> {
        let linger = tokio::time::sleep(LINGER);
        tokio::pin!(linger);
        let mut armed = false;
        let mut letters = Vec::with_capacity(INBOX);
        loop {
            self.carry_out();
            if self.urgent || self.batch.len() >= BATCH {
                self.flush().await?;
                if let Some(end) = self.end.take_if(|_| self.machine.status() != RunStatus::Running) {
                    return Ok(end);
                }
                continue;
            }
            if !self.batch.is_empty() && !armed {
                linger.as_mut().reset(tokio::time::Instant::now() + LINGER);
                armed = true;
            }
            tokio::select! {
                biased;
                _ = self.inbox.recv_many(&mut letters, INBOX) => {
                    for letter in letters.drain(..) {
                        if self.take(letter) {
                            self.flush().await?;
                            return Ok(RunEnd::Broken(Error::new(ErrorKind::Suspended {
                                run: self.shared.id.to_string(),
                            })));
                        }
                    }
                }
                () = linger.as_mut(), if armed => {
                    armed = false;
                    self.urgent = !self.batch.is_empty();
                }
            }
        }
    }

    fn push(&mut self, event: Event, urgent: bool) {
        self.batch.push(event);
        self.urgent |= urgent;
    }

    /// Takes one message in; says whether to stop.
    fn take(&mut self, letter: ToDriver) -> bool {
        match letter {
            ToDriver::Record(event) => self.push(event, false),
            ToDriver::Append(events, ack) => {
                self.batch.extend(events);
                self.acks.push(ack);
                self.urgent = true;
            }
            ToDriver::StepDone { step, attempt, result } => {
                if self.live.get(&step).is_none_or(|(running, _)| *running != attempt) {
                    return false;
                }
                self.live.remove(&step);
                let Some(path) = self.program.steps.get(step).map(|step| step.place.path.clone()) else {
                    return false;
                };
                let event = match result {
                    Ok(output) => Event::StepSucceeded { path, attempt, output },
                    Err(error) => {
                        let retry_in_ms = self.machine.retry_delay_ms(step, attempt, &error);
                        Event::StepFailed { path, attempt, error, retry_in_ms }
                    }
                };
                self.push(event, true);
            }
            ToDriver::RetryDue { step, attempt } => {
                let waits = matches!(self.machine.state(step), Some(StepState::Backoff { attempt: a, .. }) if *a == attempt);
                if let (true, Some(step)) = (waits, self.program.steps.get(step)) {
                    self.push(Event::RetryDue { path: step.place.path.clone(), attempt }, true);
                }
            }
            ToDriver::Cancel(reason) => self.push(Event::CancelRequested { reason }, true),
            ToDriver::Suspend => return true,
        }
        false
    }

    /// Makes the batch durable, applies it, and answers those who wait.
    async fn flush(&mut self) -> Result<(), Error> {
        self.urgent = false;
        let at_ms = self.shared.ports.clock.now_ms();
        let records: Vec<Record> = self
            .batch
            .drain(..)
            .zip(self.seq + 1..)
            .map(|(event, seq)| Record { seq, at_ms, event })
            .collect();
        let Some(last) = records.last().map(|record| record.seq) else { return Ok(()) };
        let shared = self.shared.clone();
        let appended = shared.ports.journal.append(&shared.id, self.epoch, self.seq, records.clone()).await;
        for ack in self.acks.drain(..) {
            // A step that was dropped meanwhile does not wait for its answer.
            let _ = ack.send(appended.clone());
        }
        appended?;
        self.seq = last;
        for record in &records {
            self.remember(&record.event);
            self.machine.on_event(&record.event, &mut self.commands);
        }
        self.shared.head.send_replace(last);
        Ok(())
    }

    fn remember(&mut self, event: &Event) {
        if let Event::HandedOff { from, to, message } = event {
            self.messages.insert((from.clone(), to.clone()), message.clone());
        }
    }

    fn carry_out(&mut self) {
        let mut commands = std::mem::take(&mut self.commands);
        for command in commands.drain(..) {
            match command {
                Command::Run { step, attempt } => self.start(step, attempt),
                Command::Skip { step, reason } => {
                    if let Some(step) = self.program.steps.get(step) {
                        self.push(Event::StepSkipped { path: step.place.path.clone(), reason }, true);
                    }
                }
                Command::Timer { step, attempt, delay_ms } => {
                    let shared = self.shared.clone();
                    let task = tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                        shared.send(ToDriver::RetryDue { step, attempt }).await;
                    });
                    self.live.insert(step, (0, task.abort_handle()));
                }
                Command::Abort { step } => self.abort(step),
                Command::Finish { status, output, error } => {
                    self.end =
                        Some(RunEnd::Finished { status, output: output.clone(), error: error.clone() });
                    self.push(Event::RunFinished { status, output, error }, true);
                }
            }
        }
        self.commands = commands;
    }

    fn start(&mut self, at: usize, attempt: u32) {
        let program = self.program.clone();
        let Some(step) = program.steps.get(at) else { return };
        let path = step.place.path.clone();
        let log = self.logs.take(&path, attempt);
        if !matches!(self.machine.state(at), Some(StepState::Running { attempt: a }) if *a == attempt) {
            self.batch.push(Event::StepStarted { path: path.clone(), attempt });
        }
        let outputs = self.machine.inputs_of(at);
        let condition = self.machine.condition_holds(at);
        let shared = self.shared.clone();
        let task = match &step.body {
            Body::Function { call, feed } => {
                let cx =
                    if feed.is_identity() { HandoffContext::default() } else { self.handoff_context(at) };
                let (call, feed, place) = (call.clone(), feed.clone(), step.place.clone());
                tokio::spawn(async move {
                    let work = async {
                        condition?;
                        call(feed.apply(&outputs, &cx)?).await
                    };
                    let result = AssertUnwindSafe(work).catch_unwind().await;
                    let result = result.unwrap_or_else(|panic| Err(panicked(&path, &*panic)));
                    if result.is_ok() && !place.successors.is_empty() {
                        let spec = crate::spec::AgentSpec::new(&*path, &*path);
                        let mut cx =
                            AgentContext::new(shared.clone(), Arc::new(spec), place.clone(), attempt, log);
                        for successor in place.successors.iter() {
                            let draft = HandoffDraft {
                                message_type: MessageType::Handoff,
                                deliverables: Vec::new(),
                                next_tasks: Vec::new(),
                            };
                            cx.hand_off(successor, draft).await;
                        }
                    }
                    shared.send(ToDriver::StepDone { step: at, attempt, result }).await;
                })
            }
            Body::Agent { agent, feed } => {
                let cx = self.handoff_context(at);
                let (agent, feed) = (agent.clone(), feed.clone());
                let (spec, place) = (step.spec.clone(), step.place.clone());
                let span = tracing::info_span!(
                    "invoke_agent",
                    "gen_ai.operation.name" = "invoke_agent",
                    "gen_ai.agent.name" = %spec.id,
                    coral.run = %shared.id,
                    coral.step = %path,
                    coral.attempt = attempt,
                );
                let work = async move {
                    let mut context = AgentContext::new(shared.clone(), spec, place, attempt, log);
                    let work = async {
                        condition?;
                        let input = feed.apply(&outputs, &cx)?;
                        agent.run_erased(input, &mut context).await
                    };
                    // Only a conversion can panic here; the agent's own panics are caught inside,
                    // so that its clean-up runs.
                    let result = AssertUnwindSafe(work).catch_unwind().await;
                    let result = result.unwrap_or_else(|panic| Err(panicked(&path, &*panic)));
                    shared.send(ToDriver::StepDone { step: at, attempt, result }).await;
                };
                tokio::spawn(work.instrument(span))
            }
        };
        self.live.insert(at, (attempt, task.abort_handle()));
    }

    fn abort(&mut self, step: usize) {
        let Some(found) = self.program.steps.get(step) else { return };
        match found.body {
            // An agent is told, so that it can clean up; it ends by itself.
            Body::Agent { .. } => {
                let reason: Arc<str> = "the run was cancelled".into();
                self.shared.cancel.send_replace(Some(reason));
            }
            Body::Function { .. } => {
                if let Some((attempt, task)) = self.live.remove(&step) {
                    task.abort();
                    let path = found.place.path.clone();
                    let error =
                        Error::new(ErrorKind::Cancelled { reason: "the run was cancelled".to_owned() });
                    self.push(Event::StepFailed { path, attempt, error, retry_in_ms: None }, true);
                }
            }
        }
    }

    /// All that the steps before `at` have delivered so far.
    fn gather(&mut self, at: usize) -> Arc<[Deliverable]> {
        let Some(data) = self.program.graph.steps().get(at) else { return Arc::default() };
        let mut all: Vec<Deliverable> = Vec::new();
        for input in &data.inputs {
            let Some(from) = self.machine.step(&input.step) else { continue };
            let theirs = self.available.get(&from).into_iter().flat_map(|known| known.iter());
            let message = self.messages.get(&(input.step.clone(), data.name.clone()));
            let new = message.into_iter().flat_map(|message| &message.context.deliverables);
            for deliverable in theirs.chain(new) {
                if !all.contains(deliverable) {
                    all.push(deliverable.clone());
                }
            }
        }
        let all: Arc<[Deliverable]> = all.into();
        if !all.is_empty() {
            self.available.insert(at, all.clone());
        }
        all
    }

    fn handoff_context(&mut self, at: usize) -> HandoffContext {
        let Some(data) = self.program.graph.steps().get(at) else { return HandoffContext::default() };
        let sources = data
            .inputs
            .iter()
            .map(|input| match self.machine.step(&input.step).and_then(|from| self.program.steps.get(from)) {
                None => HandoffSource::default(),
                Some(from) => HandoffSource {
                    path: from.place.path.clone(),
                    agent: matches!(from.body, Body::Agent { .. }).then(|| from.spec.clone()),
                    message: self.messages.get(&(from.place.path.clone(), data.name.clone())).cloned(),
                },
            })
            .collect();
        let available = self.gather(at);
        let Some(data) = self.program.graph.steps().get(at) else { return HandoffContext::default() };
        HandoffContext {
            available,
            input: Some(self.machine.input().clone()),
            phase: data.phase.clone(),
            instructions: data.instructions.clone(),
            sources,
        }
    }
}
