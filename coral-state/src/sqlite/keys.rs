//! The data keys of a store, one line of them for each project.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coral_core::{Clock, Error, ErrorKind, Event, Record, Seq, SystemClock, rfc3339};
use rusqlite::{Connection, OptionalExtension, params};

use super::SqliteStore;
use super::fault::storage;
use crate::crypto::{DataKey, KeyRing, Sealed};
use crate::ledger::DATA_KEY;

/// Runs whose project is remembered.
const RUNS: usize = 16_384;

/// What remains of a project whose keys were destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tombstone {
    /// The project.
    pub project: String,
    /// When its keys were destroyed, in milliseconds since the Unix epoch.
    pub erased_at_ms: u64,
    /// How many keys that were.
    pub keys: usize,
    /// The master key that signed this.
    pub master: String,
    /// Whether the signature is good; `None` if the ring does not hold that master key.
    pub signature: Option<bool>,
}

pub(super) struct Keys {
    ring: KeyRing,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<u32, Arc<DataKey>>,
    current: HashMap<Box<str>, Arc<DataKey>>,
    runs: HashMap<Box<str>, Box<str>>,
}

/// What a chunk is sealed as: the place that it may be read from.
pub(super) fn about_chunk(run: &str, last: Seq) -> Vec<u8> {
    [b"chunk\0", &last.to_le_bytes()[..], run.as_bytes()].concat()
}

impl Keys {
    pub(super) fn new(ring: KeyRing) -> Self {
        Keys { ring, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key that seals what is new in `scope`, made if there is none yet.
    pub(super) async fn of_scope(
        self: &Arc<Self>,
        store: &SqliteStore,
        scope: &str,
    ) -> Result<Arc<DataKey>, Error> {
        if let Some(key) = self.known().current.get(scope) {
            return Ok(key.clone());
        }
        let fresh = self.ring.draw(scope)?;
        let (master, name): (Box<str>, Box<str>) = (self.ring.current().id().into(), scope.into());
        let row = store
            .write("make a data key", move |conn| {
                if let Some(at) = erased_at(conn, &name)? {
                    return Ok(Err(erased(&name, at)));
                }
                // Another process may have made one meanwhile; then that one it is.
                conn.prepare_cached(
                    "INSERT INTO data_keys (scope, master, wrapped) SELECT ?1, ?2, ?3
                     WHERE NOT EXISTS (SELECT 1 FROM data_keys WHERE scope = ?1)",
                )?
                .execute(params![name, master, fresh])?;
                conn.prepare_cached(
                    "SELECT id, scope, master, wrapped FROM data_keys WHERE scope = ?1 ORDER BY id DESC LIMIT 1",
                )?
                .query_row([&name], Row::read)
                .map(Ok)
            })
            .await??;
        let key = Arc::new(row.open(&self.ring)?);
        let mut known = self.known();
        known.by_id.insert(key.id, key.clone());
        known.current.insert(scope.into(), key.clone());
        Ok(key)
    }

    /// The key that seals what `run` appends; its first batch says which project it belongs to.
    pub(super) async fn of_run(
        self: &Arc<Self>,
        store: &SqliteStore,
        run: &str,
        records: &[Record],
    ) -> Result<Arc<DataKey>, Error> {
        if let Some(Event::RunStarted { project, .. }) = records.first().map(|record| &record.event) {
            self.known().runs.remove(run);
            return self.of_scope(store, project).await;
        }
        let scope = self.known().runs.get(run).cloned();
        let scope = match scope {
            Some(scope) => scope,
            None => {
                let name: Box<str> = run.into();
                let project: Option<String> = store
                    .read("read the journal", move |conn| {
                        conn.prepare_cached("SELECT project FROM runs WHERE run = ?1 AND last_seq > 0")?
                            .query_row([name], |row| row.get(0))
                            .optional()
                    })
                    .await?;
                // A run that has not begun refuses the batch, whatever it is sealed by.
                let Some(project) = project else { return self.of_scope(store, "").await };
                let scope: Box<str> = project.into();
                let mut known = self.known();
                if known.runs.len() >= RUNS {
                    known.runs.clear();
                }
                known.runs.insert(run.into(), scope.clone());
                scope
            }
        };
        self.of_scope(store, &scope).await
    }

    /// What was sealed as `about`.
    pub(super) fn open(
        &self,
        conn: &Connection,
        sealed: &Sealed<'_>,
        about: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let known = self.known().by_id.get(&sealed.key).cloned();
        let key = match known {
            Some(key) => key,
            None => {
                let failed = |e: rusqlite::Error| storage("read a data key", &e);
                let row = conn
                    .prepare_cached("SELECT id, scope, master, wrapped FROM data_keys WHERE id = ?1")
                    .and_then(|mut select| select.query_row([sealed.key], Row::read).optional())
                    .map_err(failed)?
                    .ok_or_else(|| {
                        Error::storage("unseal", format!("data key {} is missing", sealed.key))
                            .with_help("restore the store from a backup")
                    })?;
                if row.wrapped.is_none() {
                    let at = erased_at(conn, &row.scope).map_err(failed)?;
                    return Err(erased(&row.scope, at.unwrap_or(0)));
                }
                let key = Arc::new(row.open(&self.ring)?);
                self.known().by_id.insert(key.id, key.clone());
                key
            }
        };
        key.open(sealed, about)
    }

    fn forget(&self, scope: &str) {
        let mut known = self.known();
        known.current.remove(scope);
        // Which of these belong to the scope is not known; the others are found again.
        known.by_id.clear();
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

struct Row {
    id: u32,
    scope: String,
    master: String,
    wrapped: Option<Vec<u8>>,
}

impl Row {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Row { id: row.get(0)?, scope: row.get(1)?, master: row.get(2)?, wrapped: row.get(3)? })
    }

    fn open(&self, ring: &KeyRing) -> Result<DataKey, Error> {
        let wrapped = self.wrapped.as_deref().ok_or_else(|| erased(&self.scope, 0))?;
        ring.open(self.id, &self.scope, &self.master, wrapped)
    }
}

fn erased_at(conn: &Connection, scope: &str) -> rusqlite::Result<Option<u64>> {
    conn.prepare_cached("SELECT erased_at_ms FROM tombstones WHERE scope = ?1")?
        .query_row([scope], |row| row.get::<_, i64>(0))
        .optional()
        .map(|at| at.map(i64::cast_unsigned))
}

fn erased(scope: &str, at_ms: u64) -> Error {
    Error::new(ErrorKind::NotFound { what: DATA_KEY.to_owned(), name: scope.to_owned(), nearest: None })
        .with_help(format!("it was destroyed at {}, and with it all that it sealed", rfc3339(at_ms)))
}

fn epitaph(scope: &str, at_ms: i64, keys: i64) -> String {
    format!("{at_ms}\0{keys}\0{scope}")
}

impl SqliteStore {
    fn keys(&self) -> Result<&Arc<Keys>, Error> {
        self.0.keys.as_ref().ok_or_else(|| {
            Error::invalid("store", "it is not encrypted").with_help("open it with `SqliteOptions::keys`")
        })
    }

    /// Wraps all data keys by the ring's current master key, so that older ones are needed no more;
    /// says how many. What the data keys sealed is not touched, and nobody has to wait.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the store is not encrypted, or the ring lacks a key.
    pub async fn rotate_master_key(&self) -> Result<usize, Error> {
        let keys = Arc::clone(self.keys()?);
        let count = self
            .write("rotate the master key", move |conn| {
                let current = keys.ring.current().id();
                let mut select = conn.prepare(
                    "SELECT id, scope, master, wrapped FROM data_keys WHERE master <> ?1 AND wrapped IS NOT NULL",
                )?;
                let rows: Vec<Row> = select.query_map([current], Row::read)?.collect::<Result<_, _>>()?;
                for row in &rows {
                    let wrapped = row.wrapped.as_deref().unwrap_or_default();
                    match keys.ring.rewrap(&row.scope, &row.master, wrapped) {
                        Ok(wrapped) => conn.execute(
                            "UPDATE data_keys SET master = ?2, wrapped = ?3 WHERE id = ?1",
                            params![row.id, current, wrapped],
                        )?,
                        Err(error) => return Ok(Err(error)),
                    };
                }
                Ok(Ok(rows.len()))
            })
            .await??;
        self.scrub().await?;
        Ok(count)
    }

    /// Gives a project a new data key for what comes; what is there stays readable by its old one.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the store is not encrypted,
    /// [`NotFound`](ErrorKind::NotFound) if the project was erased.
    pub async fn rotate_data_key(&self, project: &str) -> Result<(), Error> {
        let keys = self.keys()?;
        let fresh = keys.ring.draw(project)?;
        let (master, scope): (Box<str>, Box<str>) = (keys.ring.current().id().into(), project.into());
        self.write("rotate a data key", move |conn| {
            if let Some(at) = erased_at(conn, &scope)? {
                return Ok(Err(erased(&scope, at)));
            }
            conn.execute(
                "INSERT INTO data_keys (scope, master, wrapped) VALUES (?1, ?2, ?3)",
                params![scope, master, fresh],
            )?;
            Ok(Ok(()))
        })
        .await??;
        keys.forget(project);
        Ok(())
    }

    /// Destroys a project's data keys, and with them all that they sealed: runs, blobs, whatever
    /// copies of them there are. A signed tombstone stays, and the journal can still be verified.
    /// Erasing what is erased gives the first tombstone again.
    ///
    /// A key that another process already holds in memory is gone when that process ends; a backup
    /// of this file that holds the wrapped key must be destroyed too.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the store is not encrypted.
    pub async fn erase_project(&self, project: &str) -> Result<Tombstone, Error> {
        let keys = Arc::clone(self.keys()?);
        let ring = keys.ring.clone();
        let scope: Box<str> = project.into();
        let now = SystemClock.now_ms().cast_signed();
        self.write("erase a project", move |conn| {
            if erased_at(conn, &scope)?.is_none() {
                let count: i64 =
                    conn.query_row("SELECT count(*) FROM data_keys WHERE scope = ?1", [&scope], |row| row.get(0))?;
                conn.execute("UPDATE data_keys SET wrapped = NULL WHERE scope = ?1", [&scope])?;
                conn.execute(
                    "INSERT INTO tombstones (scope, erased_at_ms, keys, master, signature) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![scope, now, count, ring.current().id(), ring.current().sign(&epitaph(&scope, now, count))],
                )?;
            }
            Ok(())
        })
        .await?;
        keys.forget(project);
        self.scrub().await?;
        let tombstone = self.tombstones().await?.into_iter().find(|tombstone| tombstone.project == project);
        tombstone.ok_or_else(|| Error::storage("erase a project", "its tombstone is missing"))
    }

    /// What remains of erased projects, in the order of their ids.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the store is not encrypted.
    pub async fn tombstones(&self) -> Result<Vec<Tombstone>, Error> {
        let ring = self.keys()?.ring.clone();
        self.read("read the tombstones", move |conn| {
            conn.prepare(
                "SELECT scope, erased_at_ms, keys, master, signature FROM tombstones ORDER BY scope",
            )?
            .query_map([], |row| {
                let (project, at, keys): (String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let (master, signature): (String, Vec<u8>) = (row.get(3)?, row.get(4)?);
                let signed = ring.get(&master).map(|key| key.sign(&epitaph(&project, at, keys)));
                Ok(Tombstone {
                    project,
                    erased_at_ms: at.cast_unsigned(),
                    keys: usize::try_from(keys).unwrap_or(0),
                    master,
                    signature: signed.map(|signed| signed[..] == signature[..]),
                })
            })?
            .collect()
        })
        .await
    }

    /// Empties the log, where pages as they were before a change still lie.
    async fn scrub(&self) -> Result<(), Error> {
        self.aside("empty the log", |conn| {
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
        })
        .await
        .and_then(|busy| {
            if busy == 0 {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Storage {
                operation: "empty the log".into(),
                problem: "another process is reading".into(),
                transient: true,
            })
            .with_help("the change is made; do it again once that process is done, so that no trace stays"))
        })
    }
}
