//! Removing blobs that nothing refers to any more.

use std::collections::HashMap;
use std::io;

use async_trait::async_trait;
use coral_core::{BlobRef, Blobs, Clock, Error, Journal, RunFilter, Seq, SystemClock};

use crate::ledger::is_erased;

const BATCH: usize = 512;
const HEX: usize = 64;

/// [`Blobs`] that can be told to let go of what nobody needs.
#[async_trait]
pub trait BlobSweep: Blobs {
    /// The project that the blobs belong to; empty if to none.
    fn project(&self) -> &str;

    /// The blobs that were last put before `cutoff_ms`, in milliseconds since the Unix epoch.
    async fn older_than(&self, cutoff_ms: u64) -> Result<Vec<BlobRef>, Error>;

    /// Removes a blob unless it was put again at `cutoff_ms` or later, looking and removing as
    /// one; whether it did.
    async fn sweep(&self, blob: &BlobRef, cutoff_ms: u64) -> Result<bool, Error>;
}

/// What [`collect_garbage`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GarbageReport {
    /// Blobs removed.
    pub removed: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs of that age that some run refers to.
    pub referenced: usize,
}

impl std::ops::AddAssign for GarbageReport {
    fn add_assign(&mut self, other: Self) {
        self.removed += other.removed;
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.referenced += other.referenced;
    }
}

/// Removes the blobs that no record of the journal names and that were last put more than
/// `grace_ms` before `now_ms`.
///
/// A name is any 64 hexadecimal digits within any record, so whatever shape a reference has, it
/// counts. A writer puts a blob first and appends its name after, so the grace must be longer than
/// a writer takes between the two, an hour say; putting a blob again begins its grace anew, even
/// while garbage is collected. Blobs of a project are looked for in the runs of that project,
/// those of no project in all runs.
///
/// # Errors
/// Those of the journal and the store. Nothing is removed before every run was read.
pub async fn collect_garbage(
    journal: &impl Journal,
    blobs: &impl BlobSweep,
    grace_ms: u64,
    now_ms: u64,
) -> Result<GarbageReport, Error> {
    // What the caller's clock says must not make young what the store's own clock dated.
    let cutoff_ms = now_ms.min(SystemClock.now_ms()).saturating_sub(grace_ms);
    let mut report = GarbageReport::default();
    let mut unmarked: HashMap<String, BlobRef> =
        blobs.older_than(cutoff_ms).await?.into_iter().map(|blob| (blob.sha256.clone(), blob)).collect();
    let old = unmarked.len();
    let mut filter = RunFilter::default();
    filter.project = Some(blobs.project().to_owned()).filter(|project| !project.is_empty());
    let mut read: HashMap<String, Seq> = HashMap::new();
    // A second look finds what was appended while the first one read.
    for _ in 0..2 {
        if unmarked.is_empty() {
            break;
        }
        for head in journal.runs(&filter).await? {
            let from = read.get(&head.run).map_or(1, |last| last + 1);
            if from <= head.last_seq {
                let last = mark(journal, &head.run, from, &mut unmarked).await?;
                read.insert(head.run, last);
            }
        }
    }
    report.referenced = old - unmarked.len();
    for blob in unmarked.into_values() {
        if blobs.sweep(&blob, cutoff_ms).await? {
            report.removed += 1;
            report.bytes = report.bytes.saturating_add(blob.bytes);
        }
    }
    Ok(report)
}

/// Takes out of `unmarked` what the run's records from `from` on name; the last seq read.
async fn mark(
    journal: &impl Journal,
    run: &str,
    from: Seq,
    unmarked: &mut HashMap<String, BlobRef>,
) -> Result<Seq, Error> {
    let mut last = from.saturating_sub(1);
    loop {
        let records = match journal.read(run, last + 1, BATCH).await {
            // What was sealed with it can't be read either.
            Err(error) if is_erased(&error) => return Ok(Seq::MAX - 1),
            result => result?,
        };
        let mut names = Names::new(unmarked);
        serde_json::to_writer(&mut names, &records)
            .map_err(|e| Error::storage("read the journal", e).at(format!("run `{run}`")))?;
        last = records.last().map_or(last, |record| record.seq);
        if records.len() < BATCH {
            return Ok(last);
        }
    }
}

/// Reads text, and takes out of a map the names that it sees.
struct Names<'a> {
    unmarked: &'a mut HashMap<String, BlobRef>,
    digits: String,
}

impl<'a> Names<'a> {
    fn new(unmarked: &'a mut HashMap<String, BlobRef>) -> Self {
        Names { unmarked, digits: String::with_capacity(2 * HEX) }
    }
}

impl io::Write for Names<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        for byte in text {
            if !byte.is_ascii_hexdigit() {
                self.digits.clear();
                continue;
            }
            if self.digits.len() == HEX {
                self.digits.remove(0);
            }
            self.digits.push(char::from(byte.to_ascii_lowercase()));
            if self.digits.len() == HEX {
                self.unmarked.remove(&self.digits);
            }
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
