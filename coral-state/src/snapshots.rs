//! Views kept beside the journal, so that long runs open fast.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{Cache, Error, Journal, Seq};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ledger::is_erased;
use crate::views::WorkflowState;

/// The version of what is kept: a snapshot of another one is folded anew.
const FORMAT: u32 = 3;
/// Records beyond the last snapshot that are worth a new one.
const WORTH: Seq = 512;

/// Where snapshots of runs are kept. Losing one costs time, never correctness: what it holds is a
/// fold over the journal and is folded again.
///
/// The stores keep them beside their journals; [`CachedSnapshots`] keeps them in any cache.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// The snapshot of a run, if there is one.
    async fn load(&self, run: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Keeps `bytes` as the snapshot of the run as of `last` and of `revision`, unless there is a later
    /// one, or the run is gone or of another [revision](coral_core::RunHead::revision).
    async fn save(&self, run: &str, last: Seq, revision: u64, bytes: Vec<u8>) -> Result<(), Error>;
}

/// A view, and the record that it goes up to.
#[derive(Serialize, Deserialize)]
struct Kept<T> {
    format: u32,
    last: Seq,
    at_ms: u64,
    revision: u64,
    state: T,
}

/// The revision of a run: taken before its records are read.
pub(crate) async fn revision(journal: &(impl Journal + ?Sized), run: &str) -> Result<u64, Error> {
    Ok(journal.head(run).await?.map_or(0, |head| head.revision))
}

/// The view in the snapshot of a run of that revision, and the seq of the last record that it holds; `None` if there
/// is none, or the journal does not have that record.
pub(crate) async fn load<T: DeserializeOwned>(
    journal: &(impl Journal + ?Sized),
    snapshots: &(impl Snapshots + ?Sized),
    run: &str,
    revision: u64,
) -> Result<Option<(T, Seq)>, Error> {
    let found = match snapshots.load(run).await {
        // The journal says so better.
        Err(error) if is_erased(&error) => None,
        result => result?,
    };
    // One that can't be read is of another release.
    let kept = found.and_then(|bytes| serde_json::from_slice::<Kept<T>>(&bytes).ok());
    // What was folded before an erasure says what is gone.
    let good = |kept: &Kept<T>| (kept.format, kept.revision) == (FORMAT, revision);
    let Some(kept) = kept.filter(good) else { return Ok(None) };
    // A run that began anew or was erased has outlived it.
    let same = match journal.read(run, kept.last, 1).await {
        Err(error) if is_erased(&error) => false,
        result => result?.first().is_some_and(|last| (last.seq, last.at_ms) == (kept.last, kept.at_ms)),
    };
    Ok(same.then_some((kept.state, kept.last)))
}

/// Keeps a view of a run as of its record `last`, which was made at `at_ms`, and of the revision that it
/// was folded under.
pub(crate) async fn save<T: Serialize>(
    snapshots: &(impl Snapshots + ?Sized),
    run: &str,
    (last, at_ms): (Seq, u64),
    revision: u64,
    state: &T,
) -> Result<(), Error> {
    let bytes = serde_json::to_vec(&Kept { format: FORMAT, last, at_ms, revision, state })
        .map_err(|e| Error::invalid("snapshot", format!("it can't be written as JSON: {e}")))?;
    snapshots.save(run, last, revision, bytes).await
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
        let revision = revision(journal, run).await?;
        let (mut state, before) = match load::<WorkflowState>(journal, snapshots, run, revision).await? {
            Some((state, last)) => (state.restored(), last),
            None => (WorkflowState::new(run), 0),
        };
        state.advance(journal).await?;
        if state.last_seq >= before + WORTH {
            save(snapshots, run, (state.last_seq, state.updated_at_ms), revision, &state).await?;
        }
        Ok((state.last_seq > 0).then_some(state))
    }
}

/// [`Snapshots`] in a [`Cache`], such as a Redis server behind memory: machines that share it open
/// long runs and sessions fast. Without the cache they are slower, and never wrong.
///
/// A snapshot holds what its run does, in plain text unless the cache seals it. One that was made before
/// a person or a project was erased is never used again, and lies there until `ttl` has passed or it is
/// [removed](CachedSnapshots::remove).
///
/// ```
/// use std::time::Duration;
///
/// use coral_core::{MemoryCache, MemoryJournal};
/// use coral_state::{CachedSnapshots, Sessions};
/// use serde_json::json;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let snapshots = CachedSnapshots::new(MemoryCache::new(1_000), Duration::from_secs(3_600));
/// let sessions = Sessions::new(MemoryJournal::new()).with_snapshots(snapshots);
/// sessions.begin("s-1", "reef", json!({"name": "Ada"})).await?;
/// assert_eq!(sessions.get("s-1").await?.unwrap().user["name"], "Ada");
/// # Ok::<(), coral_core::Error>(())
/// # }).unwrap();
/// ```
pub struct CachedSnapshots<C> {
    cache: C,
    ttl_ms: u64,
}

impl<C: Cache> CachedSnapshots<C> {
    /// Snapshots in `cache`, each forgotten after `ttl`.
    pub fn new(cache: C, ttl: Duration) -> Self {
        CachedSnapshots { cache, ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX) }
    }

    /// Takes out the snapshot of a run, or of a session as `session:ID`.
    ///
    /// # Errors
    /// Those of the cache.
    pub async fn remove(&self, run: &str) -> Result<(), Error> {
        self.cache.remove(&key(run)).await
    }
}

fn key(run: &str) -> String {
    format!("coral:snapshot:{run}")
}

#[async_trait]
impl<C: Cache> Snapshots for CachedSnapshots<C> {
    async fn load(&self, run: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.cache.get(&key(run)).await {
            Ok(found) => Ok(found.map(|bytes| bytes.to_vec())),
            Err(error) => {
                tracing::debug!(%error, run, "a snapshot can't be read");
                Ok(None)
            }
        }
    }

    async fn save(&self, run: &str, _: Seq, _: u64, bytes: Vec<u8>) -> Result<(), Error> {
        // Should an older one take the place of a later one, folding takes a little longer.
        if let Err(error) = self.cache.put(&key(run), bytes.into(), Some(self.ttl_ms)).await {
            tracing::debug!(%error, run, "a snapshot can't be kept");
        }
        Ok(())
    }
}

impl<C> fmt::Debug for CachedSnapshots<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedSnapshots").field("ttl_ms", &self.ttl_ms).finish_non_exhaustive()
    }
}
