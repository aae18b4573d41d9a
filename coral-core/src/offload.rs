//! Large values beside the journal, in a blob store.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cache::{BlobRef, Blobs};
use crate::error::Error;
use crate::event::{Record, Seq};
use crate::journal::{Journal, RunFilter, RunHead};
use crate::payload::Payload;

/// Bytes of JSON above which a value goes to the blob store, unless told otherwise.
const ABOVE_BYTES: usize = 64 << 10;

/// What stands in the journal for a value that lies elsewhere.
const MARK: &str = "$coral_blob";

/// A [`Journal`] that keeps what is large in [`Blobs`], by its SHA-256, and only that in the journal below.
///
/// A step's output stands in several events: in that of the step, of the steps around it, and of the run. By
/// its digest it is kept once. A blob is durable before the event that names it, so no event names what is
/// not there; whoever reads through this journal sees the values, whoever reads the one below sees
/// `{"$coral_blob": {"sha256": "…", "bytes": …}}`.
///
/// [`RunnerBuilder::blobs`](crate::RunnerBuilder::blobs) makes one of a runner's journal and a store.
///
/// ```
/// # use std::sync::Arc;
/// # use coral_core::{MemoryBlobs, MemoryJournal, OffloadingJournal};
/// let journal = OffloadingJournal::new(Arc::new(MemoryJournal::new()), Arc::new(MemoryBlobs::default()))
///     .above_bytes(16 << 10);
/// ```
pub struct OffloadingJournal {
    journal: Arc<dyn Journal>,
    blobs: Arc<dyn Blobs>,
    above_bytes: usize,
}

impl OffloadingJournal {
    /// Keeps values of more than 64 KiB of JSON in `blobs`.
    pub fn new(journal: Arc<dyn Journal>, blobs: Arc<dyn Blobs>) -> Self {
        OffloadingJournal { journal, blobs, above_bytes: ABOVE_BYTES }
    }

    /// Sets above how many bytes of JSON a value is kept in the blobs.
    #[must_use]
    pub fn above_bytes(mut self, bytes: usize) -> Self {
        self.above_bytes = bytes;
        self
    }

    /// What is to be written for a value, if that is not the value.
    async fn reference(&self, payload: &Payload) -> Result<Option<Payload>, Error> {
        let bytes = serde_json::to_vec(payload)
            .map_err(|e| Error::invalid("value", format!("it can't be written as JSON: {e}")))?;
        // A value that looks like a reference must not be taken for one.
        if bytes.len() <= self.above_bytes && !bytes.starts_with(b"{\"$coral_blob\":") {
            return Ok(None);
        }
        let blob = self.blobs.put(&bytes).await?;
        Ok(Some(Payload::from_json(json!({ MARK: blob }))))
    }

    /// The records as they are to be written.
    async fn offload(&self, records: Arc<[Record]>) -> Result<Arc<[Record]>, Error> {
        let mut replaced: Option<Vec<Record>> = None;
        for (at, record) in records.iter().enumerate() {
            let Some(payload) = record.event.payload() else { continue };
            let Some(reference) = self.reference(payload).await? else { continue };
            let replaced = replaced.get_or_insert_with(|| records.to_vec());
            if let Some(record) = replaced.get_mut(at) {
                record.event.set_payload(reference);
            }
        }
        Ok(replaced.map_or(records, Arc::from))
    }

    async fn restore(&self, seq: Seq, payload: &Payload) -> Result<Option<Payload>, Error> {
        let Some(blob) = reference_in(payload.json()?) else { return Ok(None) };
        let bytes = self.blobs.get(&blob).await?.ok_or_else(|| {
            let problem = format!("blob `{}` of record {seq} is not in the store", blob.sha256);
            Error::storage("read the journal", problem)
                .with_help("open the blob store that the run was written with, or restore it from a backup")
        })?;
        let value = serde_json::from_slice(&bytes).map_err(|e| Error::storage("read a blob", e))?;
        Ok(Some(Payload::from_json(value)))
    }
}

fn reference_in(value: &Value) -> Option<BlobRef> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    BlobRef::deserialize(object.get(MARK)?).ok()
}

#[async_trait]
impl Journal for OffloadingJournal {
    async fn acquire(&self, run: &str) -> Result<u64, Error> {
        self.journal.acquire(run).await
    }

    async fn begin(&self, run: &str, records: Arc<[Record]>) -> Result<u64, Error> {
        let records = self.offload(records).await?;
        self.journal.begin(run, records).await
    }

    async fn append(
        &self,
        run: &str,
        epoch: u64,
        expected: Seq,
        records: Arc<[Record]>,
    ) -> Result<(), Error> {
        let records = self.offload(records).await?;
        self.journal.append(run, epoch, expected, records).await
    }

    async fn read(&self, run: &str, from: Seq, limit: usize) -> Result<Vec<Record>, Error> {
        let mut records = self.journal.read(run, from, limit).await?;
        for record in &mut records {
            let Some(payload) = record.event.payload() else { continue };
            if let Some(value) = self.restore(record.seq, payload).await? {
                record.event.set_payload(value);
            }
        }
        Ok(records)
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, Error> {
        self.journal.head(run).await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunHead>, Error> {
        self.journal.runs(filter).await
    }
}
