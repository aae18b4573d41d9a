//! Small journals of this crate's own: what happened to a project or a session.
//!
//! A ledger is a run like any other to the journal, begun and at once over, whose records are
//! notes. So every backend keeps it, every copy contains it, and whatever protects runs protects
//! it too. Its id holds a `:`, which no run's does.

use std::sync::Arc;

use coral_core::{
    Clock, EVENT_FORMAT, Error, ErrorKind, Event, GraphData, Journal, Payload, Record, RunFilter, RunHead,
    RunStatus, Seq,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use crate::snapshots::{self, Snapshots};

/// Times that a change is tried while other processes change the same ledger.
const TRIES: usize = 32;
const BATCH: usize = 1_024;
/// Records beyond the last snapshot that are worth a new one.
const WORTH: Seq = 32;

/// What a ledger folds into.
pub(crate) trait View: Clone + Serialize + DeserializeOwned + Send + Sync {
    /// The name of the ledger's workflow.
    const WORKFLOW: &'static str;
    /// What an id begins with.
    const PREFIX: &'static str;
    /// What can happen.
    type Change: Serialize + DeserializeOwned + Send + Sync;

    /// Nothing yet.
    fn empty(id: &str) -> Self;
    /// The project that the ledger is listed under.
    fn project(id: &str, changes: &[Self::Change]) -> String;
    /// What is left once its keys are destroyed.
    fn erased(id: &str) -> Self;
    /// Folds in one change.
    fn apply(&mut self, at_ms: u64, change: Self::Change);
}

/// Whether a journal is that of a run rather than of a project or a session, which are kept beside
/// runs and listed with them.
///
/// ```
/// use coral_core::RunHead;
/// use coral_state::is_run;
///
/// assert!(is_run(&RunHead::new("delivery-20250207-0001")));
/// assert!(!is_run(&RunHead::new("project:reef")));
/// ```
pub fn is_run(head: &RunHead) -> bool {
    !is_ledger(head)
}

/// Whether a run is a ledger rather than the work of agents.
pub(crate) fn is_ledger(head: &RunHead) -> bool {
    head.run.contains(':')
}

/// Checks an id: it becomes part of ids, paths and reports.
pub(crate) fn check_id(what: &str, id: &str) -> Result<(), Error> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !id.is_empty() && id.len() <= 64 && id.chars().all(fits) {
        return Ok(());
    }
    Err(Error::invalid(
        format!("{what} id"),
        format!("`{id}` is not 1 to 64 letters, digits, `-`, `_` or `.`"),
    ))
}

/// What the key is that an erased project lacks.
pub(crate) const DATA_KEY: &str = "data key of project";

/// Whether something can't be read since its project's keys were destroyed.
pub(crate) fn is_erased(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound { what, .. } if what == DATA_KEY)
}

pub(crate) struct Ledger {
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    snapshots: Option<Arc<dyn Snapshots>>,
    /// Within a process changes take turns, so that they need not fence one another.
    turn: Mutex<()>,
}

impl Ledger {
    pub(crate) fn new(journal: Arc<dyn Journal>, clock: Arc<dyn Clock>) -> Self {
        Ledger { journal, clock, snapshots: None, turn: Mutex::default() }
    }

    pub(crate) fn with_snapshots(mut self, snapshots: Arc<dyn Snapshots>) -> Self {
        self.snapshots = Some(snapshots);
        self
    }

    pub(crate) fn snapshots(&self) -> Option<&dyn Snapshots> {
        self.snapshots.as_deref()
    }

    pub(crate) fn journal(&self) -> &Arc<dyn Journal> {
        &self.journal
    }

    /// The state of one ledger, and its last seq; `None` if there is no such ledger.
    pub(crate) async fn get<V: View>(&self, id: &str) -> Result<Option<(V, Seq)>, Error> {
        let run = format!("{}{id}", V::PREFIX);
        let mut revision = 0;
        let kept = match &self.snapshots {
            Some(snapshots) => {
                revision = snapshots::revision(&*self.journal, &run).await?;
                snapshots::load(&*self.journal, &**snapshots, &run, revision).await?
            }
            None => None,
        };
        let (mut view, mut last) = kept.unwrap_or_else(|| (V::empty(id), 0));
        let before = last;
        let mut at_ms = 0;
        loop {
            let records = match self.journal.read(&run, last + 1, BATCH).await {
                Err(error) if is_erased(&error) => return Ok(Some((V::erased(id), Seq::MAX))),
                result => result?,
            };
            let count = records.len();
            for record in records {
                (last, at_ms) = (record.seq, record.at_ms);
                if let Event::Noted { note, .. } = record.event {
                    let change = serde_json::from_value(note).map_err(|e| {
                        Error::storage("read the journal", format!("an unknown change: {e}"))
                            .with_help("it was written by a newer release; read it with that")
                            .at(format!("`{run}`, seq {last}"))
                    })?;
                    view.apply(record.at_ms, change);
                }
            }
            if count < BATCH {
                break;
            }
        }
        if let Some(snapshots) = self.snapshots.as_ref().filter(|_| last >= before + WORTH) {
            snapshots::save(&**snapshots, &run, (last, at_ms), revision, &view).await?;
        }
        Ok((last > 0).then_some((view, last)))
    }

    /// All ledgers of a kind, in the order of their ids.
    pub(crate) async fn all<V: View>(&self) -> Result<Vec<V>, Error> {
        let mut filter = RunFilter::default();
        filter.workflow = Some(V::WORKFLOW.to_owned());
        let mut views = Vec::new();
        for head in self.journal.runs(&filter).await? {
            if let Some(id) = head.run.strip_prefix(V::PREFIX)
                && let Some((view, _)) = self.get::<V>(id).await?
            {
                views.push(view);
            }
        }
        Ok(views)
    }

    /// Changes a ledger by what `decide` says to its present state; gives the state after.
    pub(crate) async fn change<V: View>(
        &self,
        id: &str,
        decide: impl Fn(Option<&V>) -> Result<Vec<V::Change>, Error> + Send + Sync,
    ) -> Result<V, Error> {
        let run = format!("{}{id}", V::PREFIX);
        let _turn = self.turn.lock().await;
        let mut tries = 0;
        loop {
            let found = self.get::<V>(id).await?;
            if found.as_ref().is_some_and(|(_, last)| *last == Seq::MAX) {
                return Err(Error::invalid(run, "its project was erased").with_help("begin another"));
            }
            let changes = decide(found.as_ref().map(|(view, _)| view))?;
            if changes.is_empty()
                && let Some((view, _)) = found
            {
                return Ok(view);
            }
            let (mut view, last) = found.unwrap_or_else(|| (V::empty(id), 0));
            let at_ms = self.clock.now_ms();
            let mut events = Vec::new();
            if last == 0 {
                events.extend(begin::<V>(id, &changes));
            }
            for change in changes {
                let note = serde_json::to_value(&change)
                    .map_err(|e| Error::invalid("change", format!("it can't be written as JSON: {e}")))?;
                events.push(Event::Noted { path: "".into(), topic: V::WORKFLOW.into(), note });
                view.apply(at_ms, change);
            }
            let records = (last + 1..).zip(events).map(|(seq, event)| Record { seq, at_ms, event }).collect();
            // Taken after reading: who changed the ledger since then shows as a conflict.
            let epoch = self.journal.acquire(&run).await?;
            match self.journal.append(&run, epoch, last, records).await {
                Ok(()) => return Ok(view),
                Err(error) if error.is_fenced() && tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

/// The records that make a run a ledger: begun, and at once over, so that nobody resumes it.
fn begin<V: View>(id: &str, changes: &[V::Change]) -> [Event; 2] {
    let graph = GraphData { name: V::WORKFLOW.to_owned(), ..Default::default() };
    let started = Event::RunStarted {
        format: EVENT_FORMAT,
        project: V::project(id, changes).into(),
        graph: graph.into(),
        pins: Arc::default(),
        input: Payload::null(),
        facts: Arc::default(),
        budget: Box::default(),
        forked_from: None,
    };
    [started, Event::RunFinished { status: RunStatus::Succeeded, output: None, error: None }]
}
