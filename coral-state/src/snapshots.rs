//! Views kept beside the journal, so that long runs open fast.

use async_trait::async_trait;
use coral_core::{Error, Journal, Seq};
use serde::{Deserialize, Serialize};

use crate::ledger::is_erased;
use crate::views::WorkflowState;

/// The version of what is kept: a snapshot of another one is folded anew.
const FORMAT: u32 = 1;
/// Records beyond the last snapshot that are worth a new one.
const WORTH: Seq = 512;

/// Where snapshots of runs are kept. Losing one costs time, never correctness: what it holds is a
/// fold over the journal and is folded again.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// The snapshot of a run, if there is one.
    async fn load(&self, run: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Keeps `bytes` as the snapshot of the run as of `last`, unless there is a later one, or the
    /// run is gone.
    async fn save(&self, run: &str, last: Seq, bytes: Vec<u8>) -> Result<(), Error>;
}

#[derive(Serialize, Deserialize)]
struct Kept<T> {
    format: u32,
    state: T,
}

impl WorkflowState {
    /// The same as [`of`](WorkflowState::of), beginning with the last snapshot if there is one and
    /// folding in only what came after. Leaves a new one behind when much came.
    ///
    /// # Errors
    /// Those of the journal and of `snapshots`.
    pub async fn open(
        journal: &(impl Journal + ?Sized),
        snapshots: &(impl Snapshots + ?Sized),
        run: &str,
    ) -> Result<Option<Self>, Error> {
        let Some(head) = journal.head(run).await? else { return Ok(None) };
        let found = match snapshots.load(run).await {
            // The journal says so better.
            Err(error) if is_erased(&error) => None,
            result => result?,
        };
        // One that can't be read is of another release.
        let kept = found.and_then(|bytes| serde_json::from_slice::<Kept<WorkflowState>>(&bytes).ok());
        let usable = |kept: &Kept<WorkflowState>| {
            kept.format == FORMAT
                && kept.state.run == run
                && kept.state.last_seq <= head.last_seq
                && kept.state.started_at_ms == head.started_at_ms
        };
        let mut state =
            kept.filter(usable).map_or_else(|| WorkflowState::new(run), |kept| kept.state.restored());
        let before = state.last_seq;
        state.advance(journal).await?;
        if state.last_seq >= before + WORTH {
            let bytes = serde_json::to_vec(&Kept { format: FORMAT, state: &state })
                .map_err(|e| Error::invalid("snapshot", format!("it can't be written as JSON: {e}")))?;
            snapshots.save(run, state.last_seq, bytes).await?;
        }
        Ok((state.last_seq > 0).then_some(state))
    }
}
