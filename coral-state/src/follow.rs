//! Following a run while it grows.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{Error, Journal, Record, RunFilter, RunHead, Seq};

/// Records read at once.
const BATCH: usize = 256;

/// A [`Journal`] that can tell when a run has grown.
#[async_trait]
pub trait Follow: Journal {
    /// Returns once the run has a record of seq `from` or later, whichever process appended it.
    /// May also return earlier; never returns much later.
    ///
    /// Dropping the future is how a caller stops waiting.
    async fn grown(&self, run: &str, from: Seq) -> Result<(), Error>;
}

#[async_trait]
impl<J: Follow + ?Sized> Follow for Arc<J> {
    async fn grown(&self, run: &str, from: Seq) -> Result<(), Error> {
        (**self).grown(run, from).await
    }
}

/// Any journal, looked at again and again: follows where nothing better is to be had.
#[derive(Clone, Debug)]
pub struct Polled<J> {
    journal: J,
    every: Duration,
}

impl<J: Journal> Polled<J> {
    /// Looks at `journal` once in `every`.
    pub fn new(journal: J, every: Duration) -> Self {
        Polled { journal, every }
    }
}

#[async_trait]
impl<J: Journal> Journal for Polled<J> {
    async fn acquire(&self, run: &str) -> Result<u64, Error> {
        self.journal.acquire(run).await
    }

    async fn append(
        &self,
        run: &str,
        epoch: u64,
        expected: Seq,
        records: Arc<[Record]>,
    ) -> Result<(), Error> {
        self.journal.append(run, epoch, expected, records).await
    }

    async fn begin(&self, run: &str, records: Arc<[Record]>) -> Result<u64, Error> {
        self.journal.begin(run, records).await
    }

    async fn read(&self, run: &str, from: Seq, limit: usize) -> Result<Vec<Record>, Error> {
        self.journal.read(run, from, limit).await
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, Error> {
        self.journal.head(run).await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunHead>, Error> {
        self.journal.runs(filter).await
    }
}

#[async_trait]
impl<J: Journal> Follow for Polled<J> {
    async fn grown(&self, run: &str, from: Seq) -> Result<(), Error> {
        while self.head(run).await?.is_none_or(|head| head.last_seq < from) {
            tokio::time::sleep(self.every).await;
        }
        Ok(())
    }
}

/// The records of one run from some seq on, those to come included: in order, none left out, none
/// twice, at the reader's own pace.
///
/// It never ends by itself, since a run that is over may be resumed: stop at
/// [`Event::RunFinished`](coral_core::Event::RunFinished) if that is the end that you mean.
///
/// ```
/// use coral_core::{Journal, MemoryJournal};
/// use coral_state::{Follower, Polled};
///
/// # use coral_core::{Event, GraphData, Payload, Record};
/// # let event = Event::RunStarted {
/// #     format: 1, project: "".into(), graph: GraphData::default().into(), pins: Default::default(),
/// #     input: Payload::null(), facts: Default::default(),
/// #     budget: Box::default(),
/// #     forked_from: None,
/// # };
/// # let first = Record { seq: 1, at_ms: 0, event };
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let journal = std::sync::Arc::new(MemoryJournal::new());
/// let every = std::time::Duration::from_millis(10);
/// let mut follower = Follower::new(Polled::new(journal.clone(), every), "run", 1);
/// let epoch = journal.acquire("run").await?;
/// journal.append("run", epoch, 0, vec![first].into()).await?;
/// assert_eq!(follower.next().await?.seq, 1);
/// # Ok::<(), coral_core::Error>(())
/// # }).unwrap();
/// ```
pub struct Follower {
    journal: Arc<dyn Follow>,
    run: String,
    next: Seq,
    ready: VecDeque<Record>,
}

impl Follower {
    /// Follows `run` from seq `from` on. The run need not exist yet.
    pub fn new(journal: impl Follow + 'static, run: impl Into<String>, from: Seq) -> Self {
        let journal = Arc::new(journal);
        Follower { journal, run: run.into(), next: from.max(1), ready: VecDeque::new() }
    }

    /// The next record, once it is there. A call that is dropped loses nothing.
    ///
    /// # Errors
    /// Whatever the journal's reading fails with; the next call tries again.
    pub async fn next(&mut self) -> Result<Record, Error> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                self.next = record.seq + 1;
                return Ok(record);
            }
            self.ready = self.journal.read(&self.run, self.next, BATCH).await?.into();
            if self.ready.is_empty() {
                self.journal.grown(&self.run, self.next).await?;
            }
        }
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("run", &self.run).field("next", &self.next).finish_non_exhaustive()
    }
}
