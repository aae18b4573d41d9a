//! The port to journals: append-only lists of events, one list a run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
use crate::event::{Event, Record, RunStatus, Seq};

/// Records that are read from a journal at once.
pub(crate) const PAGE: usize = 1_000;

/// An append-only list of events for each run.
///
/// # Contract
/// - [`append`](Journal::append) is atomic and durable: when it returns, all of the batch
///   survives a power cut; when it fails, nothing of it is there. Batches of different runs may share one
///   write.
/// - Records of a run are numbered from 1 without gaps, and read back in that order.
/// - A writer first calls [`acquire`](Journal::acquire), which raises the run's epoch. From then
///   on an append under an older epoch fails with [`Fenced`](ErrorKind::Fenced).
/// - An append whose `expected` is not the run's last seq fails with
///   [`Conflict`](ErrorKind::Conflict). A batch that begins with
///   [`Event::RunStarted`] has `expected` 0.
/// - A dropped `append` future may or may not have taken effect, but never in part.
///
/// `coral_state::conformance` tests an implementation against all of this.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Takes the run over and returns the new epoch, at least 1. The run need not exist yet.
    async fn acquire(&self, run: &str) -> Result<u64, Error>;

    /// Appends `records`, the first of which has seq `expected + 1`.
    async fn append(&self, run: &str, epoch: u64, expected: Seq, records: Arc<[Record]>)
    -> Result<(), Error>;

    /// Begins a run with its first records, and returns its first epoch. A run that has begun already is left
    /// alone, with whoever has it: that is a [`Conflict`](ErrorKind::Conflict), see [`check_begin`].
    ///
    /// What is given takes the run over and appends. A backend that can do both in one write spares
    /// each run a write.
    async fn begin(&self, run: &str, records: Arc<[Record]>) -> Result<u64, Error> {
        if let Some(head) = self.head(run).await? {
            check_begin(&head)?;
        }
        let epoch = self.acquire(run).await?;
        self.append(run, epoch, 0, records).await?;
        Ok(epoch)
    }

    /// At most `limit` records from seq `from` on; none if the run has no more, or does not exist.
    async fn read(&self, run: &str, from: Seq, limit: usize) -> Result<Vec<Record>, Error>;

    /// The head of one run, if it exists.
    async fn head(&self, run: &str) -> Result<Option<RunHead>, Error>;

    /// The heads of all runs that `filter` lets through, in the order of their ids.
    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunHead>, Error>;
}

#[async_trait]
impl<J: Journal + ?Sized> Journal for Arc<J> {
    async fn acquire(&self, run: &str) -> Result<u64, Error> {
        (**self).acquire(run).await
    }

    async fn append(
        &self,
        run: &str,
        epoch: u64,
        expected: Seq,
        records: Arc<[Record]>,
    ) -> Result<(), Error> {
        (**self).append(run, epoch, expected, records).await
    }

    async fn begin(&self, run: &str, records: Arc<[Record]>) -> Result<u64, Error> {
        (**self).begin(run, records).await
    }

    async fn read(&self, run: &str, from: Seq, limit: usize) -> Result<Vec<Record>, Error> {
        (**self).read(run, from, limit).await
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, Error> {
        (**self).head(run).await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunHead>, Error> {
        (**self).runs(filter).await
    }
}

/// What is known of a run without reading its journal: a fold that backends keep with each append.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunHead {
    /// The run's id.
    pub run: String,
    /// The workflow's name.
    pub workflow: String,
    /// The project; may be empty.
    pub project: String,
    /// How it stands.
    pub status: RunStatus,
    /// The number of its last record.
    pub last_seq: Seq,
    /// When it began, in milliseconds since the Unix epoch.
    pub started_at_ms: u64,
    /// When its last record was made, in milliseconds since the Unix epoch.
    pub updated_at_ms: u64,
    /// Another number once what was recorded became something else: a person was taken out, a project
    /// erased, the run removed and begun anew. What was folded under one number says nothing under
    /// another. A backend whose records never change says 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub revision: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl RunHead {
    /// The head of a run that has no record yet.
    pub fn new(run: impl Into<String>) -> Self {
        RunHead { run: run.into(), ..Default::default() }
    }

    /// Folds one record in.
    pub fn apply(&mut self, record: &Record) {
        self.last_seq = record.seq;
        self.updated_at_ms = record.at_ms;
        match &record.event {
            Event::RunStarted { project, graph, .. } => {
                self.workflow.clone_from(&graph.name);
                self.project = project.to_string();
                self.started_at_ms = record.at_ms;
                self.status = RunStatus::Running;
            }
            Event::RunResumed { .. } => self.status = RunStatus::Running,
            Event::RunFinished { status, .. } => self.status = *status,
            _ => {}
        }
    }
}

/// Which runs to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunFilter {
    /// Only runs of this workflow.
    pub workflow: Option<String>,
    /// Only runs of this project.
    pub project: Option<String>,
    /// Only runs that stand like this.
    pub status: Option<RunStatus>,
}

impl RunFilter {
    /// Only runs that no process has finished.
    pub fn unfinished() -> Self {
        RunFilter { status: Some(RunStatus::Running), ..Default::default() }
    }

    /// Whether a run is let through.
    pub fn matches(&self, head: &RunHead) -> bool {
        self.workflow.as_ref().is_none_or(|w| *w == head.workflow)
            && self.project.as_ref().is_none_or(|p| *p == head.project)
            && self.status.is_none_or(|s| s == head.status)
    }
}

/// Checks that no run has begun under this id yet.
///
/// # Errors
/// [`Conflict`](ErrorKind::Conflict).
pub fn check_begin(head: &RunHead) -> Result<(), Error> {
    if head.last_seq == 0 {
        return Ok(());
    }
    let conflict = ErrorKind::Conflict { run: head.run.clone(), expected: 0, found: head.last_seq };
    Err(Error::new(conflict).with_help("there is a run of this id: resume it, or start under another id"))
}

/// Checks of one append that are alike for every backend: `head` is the run's state before it,
/// `current` the run's epoch.
///
/// # Errors
/// [`Fenced`](ErrorKind::Fenced), [`Conflict`](ErrorKind::Conflict), or
/// [`Invalid`](ErrorKind::Invalid) if the batch is not numbered as it must be.
pub fn check_append(
    head: &RunHead,
    current: u64,
    epoch: u64,
    expected: Seq,
    records: &[Record],
) -> Result<(), Error> {
    if epoch != current {
        return Err(Error::new(ErrorKind::Fenced { run: head.run.clone(), held: epoch, found: current })
            .with_help("another process works on this run; let it, or stop it before resuming here"));
    }
    if expected != head.last_seq {
        return Err(Error::new(ErrorKind::Conflict {
            run: head.run.clone(),
            expected,
            found: head.last_seq,
        }));
    }
    let numbered = records.iter().zip(expected + 1..).all(|(record, seq)| record.seq == seq);
    let begins = match records.first() {
        Some(first) => (expected == 0) == matches!(first.event, Event::RunStarted { .. }),
        None => true,
    };
    if numbered && begins {
        Ok(())
    } else {
        Err(Error::invalid(
            "append",
            format!("records must follow seq {expected} without gaps, the first be `run_started`"),
        ))
    }
}

/// A [`Journal`] in memory: for tests, and for runs that need not outlive the process.
#[derive(Debug, Default)]
pub struct MemoryJournal(Mutex<Logs>);

/// Boxed, since the nodes of the map are half empty.
type Logs = BTreeMap<Box<str>, Box<RunLog>>;

#[derive(Debug, Default)]
struct RunLog {
    epoch: u64,
    head: RunHead,
    /// As they were appended: no record is ever copied.
    batches: Vec<Arc<[Record]>>,
}

impl RunLog {
    fn push(&mut self, records: Arc<[Record]>) {
        for record in records.iter() {
            self.head.apply(record);
        }
        if !records.is_empty() {
            self.batches.push(records);
        }
    }
}

impl MemoryJournal {
    /// An empty journal.
    pub fn new() -> Self {
        MemoryJournal::default()
    }

    fn with<T>(&self, act: impl FnOnce(&mut Logs) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn acquire(&self, run: &str) -> Result<u64, Error> {
        self.with(|runs| {
            let log = runs
                .entry(run.into())
                .or_insert_with(|| Box::new(RunLog { head: RunHead::new(run), ..Default::default() }));
            log.epoch += 1;
            Ok(log.epoch)
        })
    }

    async fn begin(&self, run: &str, records: Arc<[Record]>) -> Result<u64, Error> {
        self.with(|runs| {
            let mut log = RunLog { head: RunHead::new(run), ..Default::default() };
            if let Some(known) = runs.get(run) {
                check_begin(&known.head)?;
                log.epoch = known.epoch;
            }
            log.epoch += 1;
            check_append(&log.head, log.epoch, log.epoch, 0, &records)?;
            let epoch = log.epoch;
            log.push(records);
            runs.insert(run.into(), Box::new(log));
            Ok(epoch)
        })
    }

    async fn append(
        &self,
        run: &str,
        epoch: u64,
        expected: Seq,
        records: Arc<[Record]>,
    ) -> Result<(), Error> {
        self.with(|runs| {
            let Some(log) = runs.get_mut(run) else {
                return Err(Error::new(ErrorKind::Fenced { run: run.to_owned(), held: epoch, found: 0 }));
            };
            check_append(&log.head, log.epoch, epoch, expected, &records)?;
            log.push(records);
            Ok(())
        })
    }

    async fn read(&self, run: &str, from: Seq, limit: usize) -> Result<Vec<Record>, Error> {
        Ok(self.with(|runs| {
            let Some(log) = runs.get(run) else { return Vec::new() };
            let before = |batch: &Arc<[Record]>| batch.last().is_some_and(|last| last.seq < from);
            let first = log.batches.partition_point(before);
            let records = log.batches.iter().skip(first).flat_map(|batch| batch.iter());
            records.skip_while(|record| record.seq < from).take(limit).cloned().collect()
        }))
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, Error> {
        Ok(self.with(|runs| runs.get(run).filter(|log| log.head.last_seq > 0).map(|log| log.head.clone())))
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunHead>, Error> {
        Ok(self.with(|runs| {
            runs.values()
                .filter(|log| log.head.last_seq > 0 && filter.matches(&log.head))
                .map(|log| log.head.clone())
                .collect()
        }))
    }
}
