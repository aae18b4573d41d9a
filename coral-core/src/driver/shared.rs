//! What a run's driver, its steps and its handles share.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::Value;
use tokio::sync::{Notify, oneshot};

use crate::budget::Ledger;
use crate::call::Caller;
use crate::context::StepPlace;
use crate::driver::inbox::Inbox;
use crate::error::Error;
use crate::event::{Event, Question, RunStatus};
use crate::payload::Payload;
use crate::runner::Ports;
use crate::spec::AgentSpec;

/// What the steps of a run share with its driver and its handles.
pub(crate) struct RunShared {
    pub(crate) id: Arc<str>,
    pub(crate) project: Arc<str>,
    pub(crate) facts: Arc<BTreeMap<String, Value>>,
    pub(crate) ports: Arc<Ports>,
    ledger: Mutex<Ledger>,
    /// Steps that wait for a person, a time or a signal.
    resting: AtomicUsize,
    /// Whether no step is to begin any more.
    draining: AtomicBool,
    pub(super) inbox: Inbox,
    /// Told of each append, and of the end.
    pub(crate) news: Notify,
    end: OnceLock<RunEnd>,
    over: Notify,
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
    ) -> Arc<Self> {
        Arc::new(RunShared {
            id,
            project,
            facts,
            ports,
            ledger: Mutex::default(),
            resting: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            inbox: Inbox::default(),
            news: Notify::new(),
            end: OnceLock::new(),
            over: Notify::new(),
        })
    }

    /// How the driver ended, once it has.
    pub(crate) fn end(&self) -> Option<&RunEnd> {
        self.end.get()
    }

    /// Waits until the driver has ended.
    pub(crate) async fn ended(&self) -> &RunEnd {
        loop {
            let mut over = pin!(self.over.notified());
            over.as_mut().enable();
            if let Some(end) = self.end() {
                return end;
            }
            over.await;
        }
    }

    /// Says how the driver ended, once.
    pub(crate) fn finish(&self, end: RunEnd) {
        // Only the driver says it, or whoever finds the run over before there is one.
        let _ = self.end.set(end);
        self.over.notify_waiters();
        self.news.notify_waiters();
    }

    /// Who calls when the agent of `spec` works at `place`.
    pub(crate) fn caller(&self, spec: &AgentSpec, place: &StepPlace) -> Caller {
        Caller {
            run: self.id.clone(),
            path: place.path.clone(),
            agent: spec.id.as_str().into(),
            category: spec.category,
            project: self.project.clone(),
            phase: place.phase.clone(),
        }
    }

    /// Counts a step as waiting, as long as what is returned lives.
    pub(crate) fn rest(self: &Arc<Self>) -> Resting {
        self.resting.fetch_add(1, Ordering::SeqCst);
        Resting(self.clone())
    }

    /// Lets the driver look again whether all that works is over, where it waits for that.
    pub(crate) async fn tell_of_rest(&self) {
        if self.draining.load(Ordering::SeqCst) {
            self.send(ToDriver::Drain).await;
        }
    }

    pub(super) fn resting(&self) -> usize {
        self.resting.load(Ordering::SeqCst)
    }

    pub(crate) fn begin_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// The run's budgets.
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `events` durable; does `then` as soon as they are on their way, even if nobody waits for them to arrive.
    pub(crate) async fn append(&self, events: Vec<Event>, then: impl FnOnce()) -> Result<(), Error> {
        let (done, wait) = oneshot::channel();
        self.send(ToDriver::Append(events, done)).await;
        then();
        match wait.await {
            Ok(result) => result,
            // The driver is gone and drops this step next.
            Err(_) => std::future::pending().await,
        }
    }

    /// Asks a person, or asks again after a restart, and waits for the answer.
    pub(crate) async fn ask(&self, path: Arc<str>, question: Arc<Question>) -> Payload {
        let (reply, answer) = oneshot::channel();
        self.send(ToDriver::Ask { path, question, reply }).await;
        match answer.await {
            Ok(answer) => answer,
            // The driver is gone and drops this step next.
            Err(_) => std::future::pending().await,
        }
    }

    /// Answers a question; says whether this answer is the one that counts.
    pub(crate) async fn answer(
        &self,
        id: Arc<str>,
        answer: Payload,
        by: Arc<str>,
    ) -> Option<Result<bool, Error>> {
        let (taken, wait) = oneshot::channel();
        self.send(ToDriver::Answer { id, answer, by, taken }).await;
        wait.await.ok()
    }

    /// Sends a message to the driver. One that is gone has said why through `end`; nothing more can be
    /// recorded.
    pub(crate) async fn send(&self, message: ToDriver) {
        self.inbox.send(message).await;
    }
}

/// A step waits as long as this lives.
pub(crate) struct Resting(Arc<RunShared>);

impl Drop for Resting {
    fn drop(&mut self) {
        self.0.resting.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) enum ToDriver {
    /// An event that the sender does not wait for.
    Record(Box<Event>),
    /// Events that must be durable before the sender goes on.
    Append(Vec<Event>, oneshot::Sender<Result<(), Error>>),
    /// A step's attempt is over.
    StepDone { step: usize, attempt: u32, result: Result<Payload, Error> },
    /// The input of a step that holds steps is there.
    Opened { step: usize, attempt: u32, result: Result<Payload, Error> },
    /// The wait before an attempt is over.
    RetryDue { step: usize, attempt: u32 },
    /// A step asks a person.
    Ask { path: Arc<str>, question: Arc<Question>, reply: oneshot::Sender<Payload> },
    /// Somebody answers a question; whether it was open is told back.
    Answer { id: Arc<str>, answer: Payload, by: Arc<str>, taken: oneshot::Sender<Result<bool, Error>> },
    /// A step waits for a signal.
    AwaitSignal { name: Arc<str>, reply: oneshot::Sender<Payload> },
    /// Somebody sends a signal.
    Signal { name: Arc<str>, payload: Payload, taken: oneshot::Sender<Result<(), Error>> },
    /// Somebody wants to know which questions are open.
    Questions(oneshot::Sender<Vec<Arc<Question>>>),
    /// Somebody asked for the run to end.
    Cancel(Arc<str>),
    /// Begin no more steps, and stop once those that work are over.
    Drain,
    /// Stop here; the run will be resumed.
    Suspend,
}
