//! The embedded host of the [`Machine`]: one actor a run, steps as tasks, every event durable before anything is
//! done on the strength of it, but for [what may go ahead](ahead).

mod ahead;
mod before;
mod begin;
mod deadline;
mod inbox;
mod kept;
mod log;
mod park;
mod review;
mod shared;
mod step;
mod wait;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::ahead::Ahead;
use self::deadline::Deadlines;
use self::kept::Kept;
use self::log::StepLogs;
use self::wait::Waits;
use crate::budget::Used;
use crate::error::{Error, ErrorKind};
use crate::event::{Event, Record, RunStatus, Seq};
use crate::handoff::Returned;
use crate::machine::{Command, Machine, StepState};
use crate::money::Usd;
use crate::outside::{Outside, Reply, Told};
use crate::payload::Payload;
use crate::program;
use crate::task::{Deliverable, HandoffMessage};

pub(crate) use self::kept::{Before, What};
pub(crate) use self::log::{RecordedEffect, StepLog};
pub(crate) use self::shared::{Resting, RunEnd, RunShared, ToDriver};

/// How long an event that nobody waits for may wait for others to share its append with.
const LINGER: Duration = Duration::from_millis(2);

/// What the attempt of an agent takes of a budget.
const ONE_AGENT: Used = Used { usd: Usd::ZERO, tokens: 0, calls: 0, agents: 1 };

/// Stands for the attempt of a task that waits between two attempts.
const BACKOFF: u32 = 0;

/// Events of one append at the most.
const BATCH: usize = 1_024;

/// Why a driver stops working.
enum Turn {
    /// The run is over, or stands still.
    Over(RunEnd),
    /// It only waits.
    Rests,
}

/// Lets nobody wait for a driver that is gone, however it went.
struct Closing(Arc<RunShared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.inbox.close();
    }
}

/// A task that works for a step.
struct Live {
    attempt: u32,
    task: AbortHandle,
    /// Asks an agent to stop, so that it can clean up.
    cancel: Option<oneshot::Sender<Error>>,
}

/// Drives one run: an actor that owns its journal's end.
pub(crate) struct Driver {
    shared: Arc<RunShared>,
    program: Arc<program::Inner>,
    pub(crate) machine: Machine,
    /// The epoch that the run is held under; 0 while it has not begun.
    epoch: u64,
    /// The last durable record.
    pub(crate) seq: Seq,
    /// Whether the run began under another definition.
    migrated: bool,
    /// The effects of the attempts that a journal left open.
    logs: StepLogs,
    kept: Kept,
    /// When the attempts are due that a journal left waiting, in milliseconds since the Unix epoch.
    retries_due: HashMap<Arc<str>, u64>,
    /// The handoffs, by the paths of giver and taker.
    messages: HashMap<(Arc<str>, Arc<str>), Arc<HandoffMessage>>,
    /// What was sent back, by the paths of those who did and of those who are to mend it.
    reviews: HashMap<Arc<str>, Vec<Arc<HandoffMessage>>>,
    /// What had been delivered when each step began.
    available: HashMap<usize, Arc<[Deliverable]>>,
    outside: Outside,
    /// Events that are not durable yet, with the step that they are about where that is known.
    batch: Vec<(Event, Option<usize>)>,
    ahead: Ahead,
    /// Those who wait for the batch.
    acks: Vec<oneshot::Sender<Result<(), Error>>>,
    /// What came from outside with the batch, to be passed on once that is durable.
    told: Vec<Told>,
    /// Whether somebody waits for the batch.
    urgent: bool,
    /// The task that works for each step, by number.
    live: Vec<Option<Live>>,
    /// How many there are.
    working: usize,
    /// The steps that do nothing but wait.
    waits: Waits,
    deadlines: Deadlines,
    commands: Vec<Command>,
    end: Option<RunEnd>,
}

impl Driver {
    pub(crate) fn new(shared: Arc<RunShared>, program: Arc<program::Inner>, epoch: u64) -> Self {
        Driver {
            machine: Machine::new(program.graph.clone()),
            shared,
            program,
            epoch,
            seq: 0,
            migrated: false,
            logs: StepLogs::default(),
            kept: Kept::default(),
            retries_due: HashMap::new(),
            messages: HashMap::new(),
            reviews: HashMap::new(),
            available: HashMap::new(),
            outside: Outside::default(),
            batch: Vec::new(),
            ahead: Ahead::default(),
            acks: Vec::new(),
            told: Vec::new(),
            urgent: false,
            live: Vec::new(),
            working: 0,
            waits: Waits::default(),
            deadlines: Deadlines::default(),
            commands: Vec::new(),
            end: None,
        }
    }

    /// Folds a record in that is durable already, and bills it.
    pub(crate) fn replay(&mut self, record: &Record) {
        self.fold(record);
        if let Event::StepStarted { path, .. } = &record.event
            && let Some(at) = self.machine.step(path)
        {
            self.open_budget(at, true);
        }
        self.shared.ledger().replay(record);
    }

    /// Folds a record in that is durable and billed already.
    fn fold(&mut self, record: &Record) {
        self.seq = record.seq;
        match &record.event {
            Event::StepFailed { path, retry_in_ms: Some(ms), .. } => {
                self.retries_due.insert(path.clone(), record.at_ms.saturating_add(*ms));
            }
            Event::RetryDue { path, .. } => {
                self.retries_due.remove(path);
            }
            _ => {}
        }
        self.logs.apply(record);
        self.remember(&record.event);
        self.outside.replay(&record.event);
        self.machine.on_event(&record.event, &mut self.commands);
        // What the journal goes on to answer is not to be done; the rest is asked for at the end.
        self.commands.clear();
    }

    /// The steps that have begun and not ended.
    pub(crate) fn at_work(&self) -> Vec<Arc<str>> {
        self.logs.open().cloned().collect()
    }

    /// Makes `event` durable, with which a run begins or is taken up again.
    pub(crate) async fn begin(&mut self, event: Event) -> Result<(), Error> {
        self.push(event, true);
        self.flush().await
    }

    /// Drives the run to its end, and says how it ended.
    pub(crate) async fn drive(mut self: Box<Self>) {
        let shared = self.shared.clone();
        let _closing = Closing(shared.clone());
        self.prepare();
        let mut driver = self;
        let end = loop {
            // What works is boxed, so that little is held while the run is parked.
            let worked = Box::pin(driver.work()).await;
            let next = match worked {
                Ok(Turn::Over(end)) => break end,
                Ok(Turn::Rests) => {
                    let parked = driver.park();
                    drop(driver);
                    parked.wait().await
                }
                Err(error) => Err(error),
            };
            match next {
                Ok(woken) => driver = woken,
                Err(error) => {
                    if !matches!(error.kind(), ErrorKind::Suspended { .. }) {
                        tracing::error!(run = %shared.id, %error, "the run stands still");
                    }
                    break RunEnd::Broken(error);
                }
            }
        };
        // Where another driver has taken the run over, what is kept for the run is that one's.
        if !matches!(&end, RunEnd::Broken(error) if error.is_fenced()) {
            shared.ports.tools.forget(&shared.id);
        }
        shared.finish(end);
    }

    /// Finds out what is to be done after a replay.
    fn prepare(&mut self) {
        if !self.messages.is_empty() {
            for step in self.machine.order() {
                self.gather(step);
            }
        }
        self.commands.clear();
        self.machine.outstanding(&mut self.commands);
    }

    async fn work(&mut self) -> Result<Turn, Error> {
        let alarm = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(alarm);
        // When the alarm goes off. It is set anew only if that is too late: one that goes off too early is
        // cheaper.
        let mut armed: Option<Instant> = None;
        let mut linger_until: Option<Instant> = None;
        let mut rests_since: Option<Instant> = None;
        let mut letters = Vec::new();
        loop {
            if self.may_carry_out() {
                self.carry_out();
            }
            // Steps that need not wait for anything could keep the others from this thread.
            tokio::task::consume_budget().await;
            if self.urgent || self.batch.len() >= BATCH {
                if self.goes_ahead() {
                    self.go_ahead();
                    continue;
                }
                if self.working > 0 {
                    // What is about to end shares the write.
                    tokio::task::yield_now().await;
                    if self.take_all(&mut letters) {
                        self.flush().await?;
                        return Ok(Turn::Over(self.suspended()));
                    }
                }
                linger_until = None;
                self.flush().await?;
                if let Some(end) = self.end.take_if(|_| self.machine.status() != RunStatus::Running) {
                    return Ok(Turn::Over(end));
                }
                continue;
            }
            if self.batch.is_empty() && self.is_drained() {
                return Ok(Turn::Over(self.suspended()));
            }
            let mut until = self.waits.next_due().into_iter().chain(self.next_deadline()).min();
            if !self.batch.is_empty() {
                let linger = *linger_until.get_or_insert_with(|| Instant::now() + LINGER);
                until = until.into_iter().chain([linger]).min();
            }
            rests_since = if self.rests() { rests_since.or_else(|| Some(Instant::now())) } else { None };
            if let Some(since) = rests_since {
                until = until.into_iter().chain([self.park_at(since)]).min();
            }
            if let Some(until) = until.filter(|until| armed.is_none_or(|armed| *until < armed)) {
                alarm.as_mut().reset(until);
                armed = Some(until);
            }
            tokio::select! {
                biased;
                () = self.shared.inbox.arrived() => {
                    if self.take_all(&mut letters) {
                        self.flush().await?;
                        return Ok(Turn::Over(self.suspended()));
                    }
                }
                () = alarm.as_mut(), if armed.is_some() => {
                    armed = None;
                    let now = Instant::now();
                    if linger_until.take_if(|linger| *linger <= now).is_some() {
                        self.urgent = !self.batch.is_empty();
                    }
                    self.end_due(now);
                    self.end_times(now);
                    if rests_since.is_some_and(|since| self.park_at(since) <= now) && self.rests() {
                        return Ok(Turn::Rests);
                    }
                }
            }
        }
    }

    fn suspended(&self) -> RunEnd {
        RunEnd::Broken(Error::new(ErrorKind::Suspended { run: self.shared.id.to_string() }))
    }

    /// Whether no step is to begin and none is at work, but for those that wait.
    fn is_drained(&self) -> bool {
        let backoffs = || self.live.iter().flatten().filter(|live| live.attempt == BACKOFF).count();
        self.shared.is_draining() && self.working <= self.shared.resting() + backoffs()
    }

    fn push(&mut self, event: Event, urgent: bool) {
        self.batch.push((event, None));
        self.urgent |= urgent;
    }

    /// Takes all messages in that wait; says whether to stop. Those behind the one that says so are dropped.
    fn take_all(&mut self, letters: &mut Vec<ToDriver>) -> bool {
        self.shared.inbox.take(letters);
        letters.drain(..).any(|letter| self.take(letter))
    }

    /// Takes one message in; says whether to stop.
    fn take(&mut self, letter: ToDriver) -> bool {
        match letter {
            ToDriver::Record(event) => self.push(*event, false),
            ToDriver::Append(events, ack) => {
                self.batch.extend(events.into_iter().map(|event| (event, None)));
                self.acks.push(ack);
                self.urgent = true;
            }
            ToDriver::StepDone { step, attempt, result } => {
                if self.is_live(step, attempt) {
                    self.end_live(step);
                    self.settle(step, attempt, result);
                }
            }
            ToDriver::Opened { step, attempt, result } => {
                if self.is_live(step, attempt) {
                    self.end_live(step);
                    match (result, self.machine.path(step).cloned()) {
                        (Ok(input), Some(path)) => self.push(Event::ScopeOpened { path, input }, true),
                        (result, _) => self.settle(step, attempt, result),
                    }
                }
            }
            ToDriver::RetryDue { step, attempt } => {
                let state = self.machine.state(step);
                let waits =
                    matches!(state, Some(StepState::Backoff { attempt: next, .. }) if *next == attempt);
                if let (true, Some(path)) = (waits, self.machine.path(step).cloned()) {
                    self.push(Event::RetryDue { path, attempt }, true);
                }
            }
            ToDriver::Ask { path, question, reply } => {
                let mut woken = Vec::new();
                if let Some(question) = self.outside.ask(&path, question, Reply::Agent(reply), &mut woken) {
                    self.push(Event::QuestionAsked { path, question }, false);
                }
            }
            ToDriver::Answer { id, answer, by, taken } => match self.outside.answer(&id, &answer) {
                Ok(true) => {
                    self.push(Event::QuestionAnswered { id: id.clone(), answer, by }, true);
                    self.told.push(Told::Answered(id, taken));
                }
                // Whoever asked may have gone; the answer is the same.
                other => drop(taken.send(other)),
            },
            ToDriver::AwaitSignal { name, reply } => {
                self.outside.await_signal(name, Reply::Agent(reply), &mut Vec::new());
            }
            ToDriver::Signal { name, payload, taken } => {
                self.push(Event::SignalReceived { name: name.clone(), payload: payload.clone() }, true);
                self.told.push(Told::Signalled(name, payload, taken));
            }
            ToDriver::Questions(reply) => drop(reply.send(self.outside.questions())),
            ToDriver::Cancel(reason) => self.push(Event::CancelRequested { reason }, true),
            ToDriver::Drain => self.shared.begin_draining(),
            ToDriver::Suspend => return true,
        }
        false
    }

    fn is_live(&self, step: usize, attempt: u32) -> bool {
        self.live.get(step).and_then(Option::as_ref).is_some_and(|live| live.attempt == attempt)
    }

    fn end_live(&mut self, step: usize) {
        if self.live.get_mut(step).and_then(Option::take).is_some() {
            self.working -= 1;
        }
    }

    fn set_live(&mut self, step: usize, live: Live) {
        if self.live.len() <= step {
            self.live.resize_with(step + 1, || None);
        }
        if let Some(slot) = self.live.get_mut(step)
            && slot.replace(live).is_none()
        {
            self.working += 1;
        }
    }

    /// Records how an attempt of a step ended.
    fn settle(&mut self, step: usize, attempt: u32, result: Result<Payload, Error>) {
        let Some(path) = self.machine.path(step).cloned() else { return };
        let event = match result {
            Ok(output) => Event::StepSucceeded { path, attempt, output },
            Err(error) => match self.sent_back(step, attempt, error) {
                Ok(event) => event,
                Err(error) => {
                    let retry_in_ms = self.machine.retry_delay_ms(step, attempt, &error);
                    Event::StepFailed { path, attempt, error, retry_in_ms }
                }
            },
        };
        self.batch.push((event, Some(step)));
        self.urgent = true;
    }

    /// Makes the batch durable, applies it, and answers those who wait.
    async fn flush(&mut self) -> Result<(), Error> {
        self.urgent = false;
        let at_ms = self.shared.ports.clock.now_ms();
        let mut about = Vec::with_capacity(self.batch.len());
        let ahead = self.ahead.take();
        let (applied, next) = (ahead.len(), self.seq + 1 + ahead.len() as u64);
        // Not a zip: with its length known, the list is made in one piece.
        let batch = self.batch.drain(..).enumerate().map(|(n, (event, step))| {
            about.push(step);
            Record { seq: next + n as u64, at_ms, event }
        });
        let records: Arc<[Record]> = ahead.into_iter().chain(batch).collect();
        let Some(last) = records.last().map(|record| record.seq) else { return Ok(()) };
        let shared = self.shared.clone();
        let journal = &shared.ports.journal;
        let appended = match self.epoch {
            0 => journal.begin(&shared.id, records.clone()).await.map(|epoch| self.epoch = epoch),
            epoch => journal.append(&shared.id, epoch, self.seq, records.clone()).await,
        };
        for ack in self.acks.drain(..) {
            // A step that was dropped meanwhile does not wait for its answer.
            let _ = ack.send(appended.clone());
        }
        let mut woken = Vec::new();
        for told in self.told.drain(..) {
            self.outside.pass_on(told, &appended, &mut woken);
        }
        appended?;
        self.seq = last;
        for (record, step) in records.iter().skip(applied).zip(about) {
            self.apply(record, step);
        }
        self.wake(woken);
        self.shared.news.notify_waiters();
        Ok(())
    }

    fn apply(&mut self, record: &Record, step: Option<usize>) {
        self.remember(&record.event);
        self.shared.ledger().apply(record);
        match step {
            Some(_) => self.machine.on_event_of(&record.event, step, &mut self.commands),
            None => self.machine.on_event(&record.event, &mut self.commands),
        }
    }

    fn remember(&mut self, event: &Event) {
        self.kept.apply(event);
        self.outside.close(event);
        match event {
            Event::HandedOff { from, to, message } => {
                self.messages.insert((from.clone(), to.clone()), message.clone());
            }
            Event::SentBack { path, returned, .. } => {
                for Returned { to, message } in returned {
                    for step in [path, to] {
                        self.reviews.entry(step.clone()).or_default().push(message.clone());
                    }
                }
            }
            Event::Migrated { .. } => self.migrated = true,
            _ => {}
        }
    }

    /// Opens the budget of a step that starts; an agent's attempt is `counted`.
    fn open_budget(&self, at: usize, counted: bool) {
        let (Some(data), Some(path)) = (self.machine.data(at), self.machine.path(at)) else { return };
        if !data.budget.is_unlimited() {
            self.shared.ledger().open_step(path.clone(), self.machine.depth(at), data.budget.clone());
        }
        if counted && data.kind.agent().is_some() {
            self.shared.ledger().settle(path, Used::default(), ONE_AGENT);
        }
    }

    fn carry_out(&mut self) {
        let mut commands = std::mem::take(&mut self.commands);
        let alone = commands.len() == 1 && self.working == 0 && self.waits.is_empty();
        for command in commands.drain(..) {
            match command {
                // Whoever takes the run up again asks for them anew.
                Command::Run { .. } | Command::Timer { .. } if self.shared.is_draining() => {}
                Command::Run { step, attempt } => self.start(step, attempt, alone),
                Command::Skip { step, reason } => {
                    if let Some(path) = self.machine.path(step).cloned() {
                        self.batch.push((Event::StepSkipped { path, reason }, Some(step)));
                        self.urgent = true;
                        self.ahead.count(1);
                    }
                }
                Command::Settle { step, attempt, result } => {
                    self.settle(step, attempt, result);
                    self.ahead.count(1);
                }
                Command::Timer { step, attempt, mut delay_ms } => {
                    let shared = self.shared.clone();
                    let due_ms = self.machine.path(step).and_then(|path| self.retries_due.remove(path));
                    if let Some(due_ms) = due_ms {
                        // What has passed of the wait counts.
                        delay_ms = delay_ms.min(due_ms.saturating_sub(shared.ports.clock.now_ms()));
                    }
                    let task = tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                        shared.send(ToDriver::RetryDue { step, attempt }).await;
                    });
                    self.set_live(step, Live { attempt: BACKOFF, task: task.abort_handle(), cancel: None });
                }
                Command::Abort { step, reason } => {
                    self.abort(step, Error::new(ErrorKind::Cancelled { reason: reason.to_string() }));
                }
                Command::Finish { status, output, error } => {
                    self.end =
                        Some(RunEnd::Finished { status, output: output.clone(), error: error.clone() });
                    self.push(Event::RunFinished { status, output, error }, true);
                }
            }
        }
        self.commands = commands;
    }

    /// Stops what works for a step, which fails with `error`.
    fn abort(&mut self, step: usize, error: Error) {
        if self.abort_wait(step, &error) {
            return;
        }
        let Some(live) = self.live.get_mut(step).and_then(Option::as_mut) else { return };
        if let Some(cancel) = live.cancel.take() {
            // An agent is told, so that it can clean up; it ends by itself, if it has not yet.
            let _ = cancel.send(error);
            return;
        }
        let attempt = live.attempt;
        live.task.abort();
        self.end_live(step);
        self.settle(step, attempt, Err(error));
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        for live in self.live.iter().flatten() {
            live.task.abort();
        }
    }
}
