//! What a run's driver, its steps and its handles share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use crate::budget::Ledger;
use crate::call::Caller;
use crate::context::StepPlace;
use crate::error::Error;
use crate::event::{Event, Question, RunStatus, Seq};
use crate::payload::Payload;
use crate::runner::Ports;
use crate::spec::AgentSpec;

/// Messages to the driver that may wait; beyond, steps wait.
pub(super) const INBOX: usize = 256;

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
    pub(crate) inbox: mpsc::Sender<ToDriver>,
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
            ledger: Mutex::default(),
            resting: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            inbox,
            head: watch::Sender::new(0),
            end: watch::Sender::new(None),
        };
        (Arc::new(shared), receiver)
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
    pub(crate) async fn rest(self: &Arc<Self>) -> Resting {
        self.resting.fetch_add(1, Ordering::SeqCst);
        let resting = Resting(self.clone());
        if self.draining.load(Ordering::SeqCst) {
            self.send(ToDriver::Drain).await;
        }
        resting
    }

    pub(super) fn resting(&self) -> usize {
        self.resting.load(Ordering::SeqCst)
    }

    pub(super) fn begin_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// The run's budgets.
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
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

    pub(crate) async fn send(&self, message: ToDriver) {
        // A driver that is gone has said why through `end`; nothing more can be recorded.
        if let Err(TrySendError::Full(message)) = self.inbox.try_send(message) {
            // Boxed, so that the tasks of steps are small: this is rare.
            let _ = Box::pin(self.inbox.send(message)).await;
        }
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
