//! What becomes of runs that are over: alike for every store.

use async_trait::async_trait;
use coral_core::{Error, Journal, Record, RunFilter, RunHead, RunStatus, Seq};

use crate::codec;
use crate::garbage::{BlobSweep, GarbageReport, collect_garbage};
use crate::ledger::{View, is_ledger};
use crate::views::SessionState;

/// Records of one chunk after compaction.
const CHUNK: usize = 256;

/// What becomes of what a rule fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetentionAction {
    /// A run's records are packed into less room. For runs only.
    Compact,
    /// It is removed, head and all.
    Remove,
}

/// A class of data with a retention of its own. Caches are not among them: each of their entries
/// has its own end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DataClass {
    /// Journals of runs that are over: inputs, outputs, prompts, answers, costs.
    #[default]
    Runs,
    /// Sessions of users: who they are, what they watch and prefer.
    Sessions,
    /// Large payloads that no run refers to any more.
    Blobs,
}

/// One rule of retention. What is left out fits all of the class.
///
/// ```
/// use coral_state::{DataClass, RetentionAction, RetentionRule};
///
/// let day_ms = 24 * 60 * 60 * 1_000;
/// let mut sessions = RetentionRule::after(30 * day_ms, RetentionAction::Remove);
/// sessions.class = DataClass::Sessions;
/// let mut runs = RetentionRule::after(7 * day_ms, RetentionAction::Compact);
/// runs.project = Some("reef".into());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionRule {
    /// What it is about.
    pub class: DataClass,
    /// Only what belongs to this project.
    pub project: Option<String>,
    /// Only runs of this workflow.
    pub workflow: Option<String>,
    /// Only runs that stand like this. Runs at work are never touched.
    pub status: Option<RunStatus>,
    /// How long it is left alone after it was last changed, in milliseconds.
    pub keep_ms: u64,
    /// What becomes of it then.
    pub action: RetentionAction,
}

impl RetentionRule {
    /// A rule for all runs.
    pub fn after(keep_ms: u64, action: RetentionAction) -> Self {
        RetentionRule {
            class: DataClass::Runs,
            project: None,
            workflow: None,
            status: None,
            keep_ms,
            action,
        }
    }

    fn fits(&self, class: DataClass, head: &RunHead) -> bool {
        self.class == class
            && self.project.as_ref().is_none_or(|project| *project == head.project)
            && self.workflow.as_ref().is_none_or(|workflow| *workflow == head.workflow)
            && self.status.is_none_or(|status| status == head.status)
    }
}

/// What retention did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionReport {
    /// Runs that now take less room.
    pub compacted: Vec<String>,
    /// Runs and sessions that were removed, by the id of their journal.
    pub removed: Vec<String>,
    /// What became of blobs.
    pub blobs: GarbageReport,
}

/// What a store does for retention.
#[async_trait]
pub(crate) trait Upkeep: Send + Sync {
    type Blobs: BlobSweep;
    fn upkept(&self) -> impl Journal;
    fn blobs_in(&self, project: &str) -> Self::Blobs;
    async fn projects_with_blobs(&self) -> Result<Vec<String>, Error>;
    async fn remove(&self, run: &str) -> Result<bool, Error>;
    async fn pack(&self, run: &str) -> Result<bool, Error>;
}

/// Applies `rules`, each to what no rule before it fits.
pub(crate) async fn retain(
    store: &impl Upkeep,
    rules: &[RetentionRule],
    now_ms: u64,
) -> Result<RetentionReport, Error> {
    let mut report = RetentionReport::default();
    let journal = store.upkept();
    for head in journal.runs(&RunFilter::default()).await? {
        let class = match is_ledger(&head) {
            false if head.status == RunStatus::Running => continue,
            false => DataClass::Runs,
            true if head.run.starts_with(SessionState::PREFIX) => DataClass::Sessions,
            true => continue,
        };
        let Some(rule) = rules.iter().find(|rule| rule.fits(class, &head)) else { continue };
        if now_ms.saturating_sub(head.updated_at_ms) < rule.keep_ms {
            continue;
        }
        match rule.action {
            RetentionAction::Remove => {
                if store.remove(&head.run).await? {
                    report.removed.push(head.run);
                }
            }
            RetentionAction::Compact => {
                if store.pack(&head.run).await? {
                    report.compacted.push(head.run);
                }
            }
        }
    }
    for project in store.projects_with_blobs().await? {
        let fits = |rule: &&RetentionRule| {
            rule.class == DataClass::Blobs && rule.project.as_ref().is_none_or(|only| *only == project)
        };
        if let Some(rule) = rules.iter().find(fits) {
            let blobs = store.blobs_in(&project);
            report.blobs += collect_garbage(&journal, &blobs, rule.keep_ms, now_ms).await?;
        }
    }
    Ok(report)
}

/// The chunks of `records` packed into as few as may be, each with its last seq; `None` if they
/// are that few already.
pub(crate) fn repack(
    records: &[Record],
    chunks: usize,
    seal: impl Fn(Seq, usize, Vec<u8>) -> Result<Vec<u8>, Error>,
) -> Result<Option<Vec<(Seq, Vec<u8>)>>, Error> {
    if chunks <= records.len().div_ceil(CHUNK) {
        return Ok(None);
    }
    let mut packed = Vec::new();
    for batch in records.chunks(CHUNK) {
        let Some(last) = batch.last().map(|record| record.seq) else { continue };
        packed.push((last, seal(last, batch.len(), codec::encode(batch)?)?));
    }
    Ok(Some(packed))
}
