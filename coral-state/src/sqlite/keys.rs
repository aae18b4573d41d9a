//! The data keys of a store, one line of them for each project.

use std::sync::Arc;

use coral_core::{Clock, Error, ErrorKind, Record, SystemClock};
use rusqlite::{Connection, OptionalExtension, params};

use super::SqliteStore;
use super::fault::storage;
use super::upkeep::revise;
use crate::crypto::{DataKey, Sealed};
use crate::vault::{KeyRow, Since, Stone, Tombstone, Vault, erased, missing, no_project, not_encrypted};

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<KeyRow> {
    Ok(KeyRow { id: row.get(0)?, scope: row.get(1)?, master: row.get(2)?, wrapped: row.get(3)? })
}

pub(super) fn erased_at(conn: &Connection, scope: &str) -> rusqlite::Result<Option<u64>> {
    conn.prepare_cached("SELECT erased_at_ms FROM tombstones WHERE scope = ?1")?
        .query_row([scope], |row| row.get::<_, i64>(0))
        .optional()
        .map(|at| at.map(i64::cast_unsigned))
}

/// Refuses what is sealed by a key that was destroyed since.
pub(super) fn check(conn: &Connection, sealed: &Sealed<'_>) -> rusqlite::Result<Result<(), Error>> {
    let found: Option<(String, bool)> = conn
        .prepare_cached("SELECT scope, wrapped IS NOT NULL FROM data_keys WHERE id = ?1")?
        .query_row([sealed.key], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(match found {
        Some((_, true)) => Ok(()),
        Some((scope, false)) => Err(erased(&scope, erased_at(conn, &scope)?)),
        None => Err(missing(sealed.key)),
    })
}

/// The key that seals what is new in `scope`, made if there is none yet.
pub(super) async fn of_scope(store: &SqliteStore, vault: &Vault, scope: &str) -> Result<Arc<DataKey>, Error> {
    if let Some(key) = vault.current(scope) {
        return Ok(key);
    }
    let since = vault.since();
    let fresh = vault.ring().draw(scope)?;
    let (master, name): (Box<str>, Box<str>) = (vault.ring().current().id().into(), scope.into());
    let row = store
        .write("make a data key", move |conn| {
            if let Some(at) = erased_at(conn, &name)? {
                return Ok(Err(erased(&name, Some(at))));
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
            .query_row([&name], read)
            .map(Ok)
        })
        .await??;
    since.add_current(&row)
}

/// The key that seals what `run` appends; its first batch says which project it belongs to.
pub(super) async fn of_run(
    store: &SqliteStore,
    vault: &Vault,
    run: &str,
    records: &[Record],
) -> Result<Arc<DataKey>, Error> {
    if let Some(scope) = vault.scope_of(run, records) {
        return of_scope(store, vault, &scope).await;
    }
    let name: Box<str> = run.into();
    let project: Option<String> = store
        .read("read the journal", move |conn| {
            conn.prepare_cached("SELECT project FROM runs WHERE run = ?1 AND last_seq > 0")?
                .query_row([name], |row| row.get(0))
                .optional()
        })
        .await?;
    // A run that has not begun refuses the batch, whatever it is sealed by.
    let Some(project) = project else { return of_scope(store, vault, "").await };
    vault.learn_scope(run, &project);
    of_scope(store, vault, &project).await
}

/// The first key that `scope` ever had, which rotation leaves alone.
pub(super) async fn first_of(store: &SqliteStore, vault: &Vault, scope: &str) -> Result<Arc<DataKey>, Error> {
    of_scope(store, vault, scope).await?;
    let since = vault.since();
    let scope: Box<str> = scope.into();
    let row = store
        .read("read a data key", move |conn| {
            conn.prepare_cached(
                "SELECT id, scope, master, wrapped FROM data_keys WHERE scope = ?1 ORDER BY id LIMIT 1",
            )?
            .query_row([&scope], read)
        })
        .await?;
    since.add(&row)
}

/// What was sealed as `about`.
pub(super) fn open(
    vault: Since<'_>,
    conn: &Connection,
    sealed: &Sealed<'_>,
    about: &[u8],
) -> Result<Vec<u8>, Error> {
    let key = match vault.get(sealed.key) {
        Some(key) => key,
        None => {
            let failed = |e: rusqlite::Error| storage("read a data key", &e);
            let row = conn
                .prepare_cached("SELECT id, scope, master, wrapped FROM data_keys WHERE id = ?1")
                .and_then(|mut select| select.query_row([sealed.key], read).optional())
                .map_err(failed)?
                .ok_or_else(|| missing(sealed.key))?;
            if row.wrapped.is_none() {
                return Err(erased(&row.scope, erased_at(conn, &row.scope).map_err(failed)?));
            }
            vault.add(&row)?
        }
    };
    key.open(sealed, about)
}

impl SqliteStore {
    fn keys(&self) -> Result<&Arc<Vault>, Error> {
        self.0.keys.as_ref().ok_or_else(|| not_encrypted("SqliteOptions::keys"))
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
                let current = keys.ring().current().id();
                let mut select = conn.prepare(
                    "SELECT id, scope, master, wrapped FROM data_keys WHERE master <> ?1 AND wrapped IS NOT NULL",
                )?;
                let rows: Vec<KeyRow> = select.query_map([current], read)?.collect::<Result<_, _>>()?;
                for row in &rows {
                    match keys.rewrap(row) {
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
        let fresh = keys.ring().draw(project)?;
        let (master, scope): (Box<str>, Box<str>) = (keys.ring().current().id().into(), project.into());
        self.write("rotate a data key", move |conn| {
            if let Some(at) = erased_at(conn, &scope)? {
                return Ok(Err(erased(&scope, Some(at))));
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
    /// Other processes are refused from then on when they append. A key that one of them already
    /// holds in memory is gone when that process ends; a backup of this file that holds the wrapped
    /// key must be destroyed too.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the store is not encrypted, or `project` is empty: what
    /// belongs to no project shares the store's own keys.
    pub async fn erase_project(&self, project: &str) -> Result<Tombstone, Error> {
        let keys = Arc::clone(self.keys()?);
        if project.is_empty() {
            return Err(no_project());
        }
        let ring = keys.ring().clone();
        let scope: Box<str> = project.into();
        let now = SystemClock.now_ms().cast_signed();
        self.write_runs("erase a project", move |conn| {
            if erased_at(conn, &scope)?.is_none() {
                let count: i64 =
                    conn.query_row("SELECT count(*) FROM data_keys WHERE scope = ?1", [&scope], |row| row.get(0))?;
                conn.execute("UPDATE data_keys SET wrapped = NULL WHERE scope = ?1", [&scope])?;
                let stone = Stone::carve(&ring, &scope, now, count);
                conn.execute(
                    "INSERT INTO tombstones (scope, erased_at_ms, keys, master, signature) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![stone.scope, stone.at_ms, stone.keys, stone.master, stone.signature],
                )?;
            }
            revise(conn, "project = ?1", &scope)?;
            super::index::forget_project(conn, &scope)?;
            conn.execute(
                "DELETE FROM snapshots WHERE run_id IN (SELECT id FROM runs WHERE project = ?1)",
                [&scope],
            )?;
            // Their names are hashes of what they held.
            conn.execute("DELETE FROM blobs WHERE scope = ?1", [&scope])?;
            // Its entries belong to no project, so any may hold something of this one.
            conn.execute("DELETE FROM cache", [])
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
        let ring = self.keys()?.ring().clone();
        self.read("read the tombstones", move |conn| {
            conn.prepare(
                "SELECT scope, erased_at_ms, keys, master, signature FROM tombstones ORDER BY scope",
            )?
            .query_map([], |row| {
                let stone = Stone {
                    scope: row.get(0)?,
                    at_ms: row.get(1)?,
                    keys: row.get(2)?,
                    master: row.get(3)?,
                    signature: row.get(4)?,
                };
                Ok(stone.read(&ring))
            })?
            .collect()
        })
        .await
    }

    /// Empties the log, where pages as they were before a change still lie.
    pub(super) async fn scrub(&self) -> Result<(), Error> {
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
