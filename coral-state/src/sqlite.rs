//! The embedded store: one SQLite file, one thread that writes it, any number of readers.

mod blobs;
mod cache;
mod fault;
mod index;
mod journal;
mod keys;
mod queue;
mod readers;
mod schema;
mod sealing;
mod snapshots;
mod upkeep;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use coral_core::{Error, ErrorKind};
use rusqlite::Connection;
use tokio::sync::oneshot;

pub use self::blobs::SqliteBlobs;
pub use self::cache::SqliteCache;
#[cfg(feature = "postgres")]
pub(crate) use self::fault::storage;
pub use self::index::SqliteIndex;
pub use self::journal::SqliteJournal;
#[cfg(feature = "postgres")]
pub(crate) use self::schema::{blank, check};
#[cfg(feature = "postgres")]
pub(crate) use self::upkeep::sync;

use self::queue::Queue;
use self::readers::Readers;
use self::writer::{Job, Request};
use crate::bell::Bell;
use crate::crypto::{KeyRing, Sealed};
use crate::vault::{Since, Vault};

/// What a power cut may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Durability {
    /// Nothing that was acknowledged: each commit waits for the disk.
    #[default]
    Full,
    /// The last commits, never half of one, and nothing when only the process dies. Some twenty
    /// times faster for a lone writer. A run that lost records repeats the effects they recorded.
    Normal,
}

/// How a [`SqliteStore`] is opened.
///
/// ```
/// use coral_state::{Durability, SqliteOptions};
///
/// let mut options = SqliteOptions::at("runs.db");
/// options.durability = Durability::Normal;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SqliteOptions {
    /// The file; made if it does not exist. Its directory must.
    pub path: PathBuf,
    /// What a power cut may take.
    pub durability: Durability,
    /// How long a write waits for another process on the same file.
    pub busy_timeout: Duration,
    /// The keys that protect what is kept; `None` keeps it readable. A store that holds something readable
    /// is not opened with keys; [`encrypted_copy`](SqliteStore::encrypted_copy) makes it one that is. The ids of runs and cache
    /// entries, and each run's workflow, project, status, times and, in the index, cost stay
    /// readable either way.
    pub keys: Option<KeyRing>,
    /// The size that the file may grow to; a write beyond it fails as on a full disk.
    pub max_bytes: Option<u64>,
    /// How often who follows a run looks for what other processes appended; what this one appends
    /// is told at once.
    pub poll: Duration,
    /// Requests that may wait for the writer before those who ask wait too.
    pub queue: usize,
}

impl SqliteOptions {
    /// The usual settings for the file at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        SqliteOptions {
            path: path.into(),
            durability: Durability::default(),
            busy_timeout: Duration::from_secs(10),
            keys: None,
            max_bytes: None,
            poll: Duration::from_millis(100),
            queue: 4_096,
        }
    }
}

/// One SQLite file with a journal, a blob store and a cache in it.
///
/// All writes go through one thread that commits what waits together, so that many runs share the
/// price of one sync; reads have connections of their own and wait for nobody. Several processes
/// may open the same file. Clones share the file; when the last one and the last of what it gave
/// out is dropped, the writer finishes its queue first.
///
/// ```
/// use coral_core::Journal;
/// use coral_state::SqliteStore;
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("coral.db");
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let store = SqliteStore::open(path)?;
/// let journal = store.journal();
/// assert_eq!(journal.acquire("run-1").await?, 1);
/// # Ok::<(), coral_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct SqliteStore(Arc<Inner>);

struct Inner {
    path: PathBuf,
    poll: Duration,
    bell: Arc<Bell>,
    keys: Option<Arc<Vault>>,
    readers: Arc<Readers>,
    requests: Arc<Queue<Request>>,
    writer: Option<JoinHandle<()>>,
}

impl SqliteStore {
    /// Opens the file at `path`, or makes it. Blocks for a few milliseconds.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the file belongs to another program or a newer release,
    /// [`Storage`](ErrorKind::Storage) if it can't be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(SqliteOptions::at(path.as_ref()))
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// As [`open`](SqliteStore::open).
    pub fn open_with(options: SqliteOptions) -> Result<Self, Error> {
        let conn = schema::open_writer(&options)?;
        let requests = Arc::new(Queue::new(options.queue));
        let served = Served(Arc::clone(&requests));
        let bell = Arc::new(Bell::default());
        let rung = Arc::clone(&bell);
        let writer = std::thread::Builder::new()
            .name("coral-sqlite".into())
            .spawn(move || writer::serve(&conn, &served.0, &rung))
            .map_err(|e| Error::storage("start the writer's thread", e))?;
        Ok(SqliteStore(Arc::new(Inner {
            path: options.path.clone(),
            poll: options.poll,
            bell,
            keys: options.keys.clone().map(|ring| Arc::new(Vault::new(ring))),
            readers: Arc::new(Readers::new(options)),
            requests,
            writer: Some(writer),
        })))
    }

    /// The journal in this file.
    pub fn journal(&self) -> SqliteJournal {
        SqliteJournal::new(self.clone())
    }

    /// The blob store in this file, for what belongs to no project.
    pub fn blobs(&self) -> SqliteBlobs {
        self.blobs_of("")
    }

    /// The blob store of one project: in an encrypted store its blobs are erased with it.
    pub fn blobs_of(&self, project: &str) -> SqliteBlobs {
        SqliteBlobs::new(self.clone(), project)
    }

    /// The cache in this file, of at most `max_entries`.
    pub fn cache(&self, max_entries: usize) -> SqliteCache {
        SqliteCache::new(self.clone(), max_entries)
    }

    /// The index of the runs in this file.
    pub fn index(&self) -> SqliteIndex {
        SqliteIndex::new(self.clone())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    async fn send(&self, request: Request) -> Result<(), Error> {
        self.0.requests.push(request).await.map_err(|_| gone())
    }

    /// Reads on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let readers = Arc::clone(&self.0.readers);
        tokio::task::spawn_blocking(move || readers.with(operation, query))
            .await
            .map_err(|e| Error::storage(operation, e))?
    }

    /// Makes `change` within a commit of the writer.
    async fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let job = Change { operation, change: Some(change), made: None, changes_runs: false, answer };
        self.send(Request::Job(Box::new(job))).await?;
        answered.await.map_err(|_| gone())?
    }

    /// The same for a change of the tables that the journal's writer remembers.
    async fn write_runs<T: Send + 'static>(
        &self,
        operation: &'static str,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let job = Change { operation, change: Some(change), made: None, changes_runs: true, answer };
        self.send(Request::Job(Box::new(job))).await?;
        answered.await.map_err(|_| gone())?
    }
}

/// What is not in a journal and belongs to a project, as it lies in the file.
impl SqliteStore {
    async fn sealed(&self, scope: &str, about: &[u8], plain: Arc<[u8]>) -> Result<Arc<[u8]>, Error> {
        match &self.0.keys {
            Some(vault) => Ok(keys::of_scope(self, vault, scope).await?.seal(0, about, &plain)?.into()),
            None => Ok(plain),
        }
    }
}

/// What was made by [`SqliteStore::sealed`] as it was before. Without keys nothing is sealed,
/// whatever its first byte.
fn unsealed(
    vault: Option<Since<'_>>,
    conn: &Connection,
    bytes: &[u8],
    about: &[u8],
) -> Result<Arc<[u8]>, Error> {
    match vault.and_then(|vault| Some((vault, Sealed::parse(bytes)?))) {
        Some((vault, sealed)) => Ok(keys::open(vault, conn, &sealed, about)?.into()),
        None => Ok(bytes.into()),
    }
}

impl SqliteStore {
    /// Runs what can't be within a transaction, on the writer's connection.
    async fn aside<T: Send + 'static>(
        &self,
        operation: &'static str,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let act = Box::new(move |conn: &Connection| {
            // Who asked may have gone.
            let _ = answer.send(act(conn).map_err(|e| fault::storage(operation, &e)));
        });
        self.send(Request::Aside(act)).await?;
        answered.await.map_err(|_| gone())?
    }
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.0.path).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.requests.close();
        if let Some(writer) = self.writer.take() {
            // What a panic of the writer broke was already told to all who waited.
            let _ = writer.join();
        }
    }
}

/// Tells all who wait, should the writer's thread end by a panic.
struct Served(Arc<Queue<Request>>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Storage {
        operation: "write to the store".into(),
        problem: "its writer has ended".into(),
        transient: false,
    })
    .with_help("open the store again")
}

struct Change<F, T> {
    operation: &'static str,
    change: Option<F>,
    made: Option<T>,
    changes_runs: bool,
    answer: oneshot::Sender<Result<T, Error>>,
}

impl<F, T> Job for Change<F, T>
where
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn run(&mut self, conn: &Connection) -> Result<(), Error> {
        if let Some(change) = self.change.take() {
            self.made = Some(change(conn).map_err(|e| fault::storage(self.operation, &e))?);
        }
        Ok(())
    }

    fn changes_runs(&self) -> bool {
        self.changes_runs
    }

    fn answer(self: Box<Self>, outcome: Result<(), Error>) {
        let made = self.made.ok_or_else(gone);
        let _ = self.answer.send(outcome.and(made));
    }
}
