//! A journal in which something happens while others look at it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use coral_core::{Error, Journal, Record, RunFilter, RunHead, Seq};
use futures_util::future::BoxFuture;

/// What happens, once.
pub(crate) type Action = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// When it happens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Once records were read.
    Read,
    /// Once runs were listed for the so manyth time.
    Listed(usize),
}

/// A journal in which `action` happens at a moment.
pub(crate) struct Meddled<J> {
    journal: J,
    moment: Moment,
    lists: AtomicUsize,
    action: Mutex<Option<Action>>,
}

impl<J> Meddled<J> {
    pub(crate) fn new(journal: J, moment: Moment, action: Action) -> Self {
        Meddled { journal, moment, lists: AtomicUsize::new(0), action: Mutex::new(Some(action)) }
    }

    async fn now_is(&self, moment: Moment) {
        if moment != self.moment {
            return;
        }
        let action = self.action.lock().unwrap().take();
        if let Some(action) = action {
            action().await;
        }
    }
}

#[async_trait::async_trait]
impl<J: Journal> Journal for Meddled<J> {
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

    async fn read(&self, run: &str, from: Seq, limit: usize) -> Result<Vec<Record>, Error> {
        let records = self.journal.read(run, from, limit).await;
        self.now_is(Moment::Read).await;
        records
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, Error> {
        self.journal.head(run).await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunHead>, Error> {
        let heads = self.journal.runs(filter).await;
        self.now_is(Moment::Listed(self.lists.fetch_add(1, Ordering::SeqCst) + 1)).await;
        heads
    }
}
