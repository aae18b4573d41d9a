//! Copies of a file: backups, and a plain store made into an encrypted one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use coral_core::Error;
use rusqlite::{Connection, params};

use super::SqliteStore;
use super::fault::storage;
use super::upkeep::sync;
use crate::codec;
use crate::crypto::{DataKey, KeyRing};
use crate::vault::{about_blob, seal_chunk};

const BACKUP: &str = "write a backup";
const ENCRYPT: &str = "write an encrypted copy";
/// Rows read at once.
const BATCH: i64 = 256;

impl SqliteStore {
    /// Writes a copy of the whole store to a new file, as it is at one moment, while work goes on.
    /// The copy is a store like any other; an encrypted one stays so.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the file is there already or can't be written.
    /// Nothing is left of a copy that failed.
    pub async fn backup(&self, to: impl AsRef<Path>) -> Result<(), Error> {
        self.copy(BACKUP, to.as_ref(), |_| Ok(())).await
    }

    /// The same for a store that is kept readable, made into one that the keys of `ring` protect: the way
    /// to encrypt what was plain. Put the copy in the place of this file once nobody writes to it, and
    /// destroy the file. Caches, snapshots and the index are left out; they are made again.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if this store is encrypted already; as
    /// [`backup`](Self::backup).
    pub async fn encrypted_copy(&self, to: impl AsRef<Path>, ring: &KeyRing) -> Result<(), Error> {
        if self.0.keys.is_some() {
            return Err(Error::invalid("store", "it is encrypted already").with_help("`backup` keeps it so"));
        }
        let ring = ring.clone();
        self.copy(ENCRYPT, to.as_ref(), move |conn| seal_all(conn, &ring)).await
    }

    /// Copies the file, has `change` change the copy, and only then gives it its name.
    async fn copy(
        &self,
        operation: &'static str,
        to: &Path,
        change: impl FnOnce(&mut Connection) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (from, to) = (self.path().to_owned(), to.to_owned());
        let place = to.display().to_string();
        let work = move || {
            let failed = |e: rusqlite::Error| storage(operation, &e);
            if to.exists() {
                return Err(
                    Error::storage(operation, "there is a file already").with_help("choose another name")
                );
            }
            // Half a copy must not be taken for one, so it has another name until it is whole.
            let part = PathBuf::from(format!("{}.part-{}", to.display(), std::process::id()));
            let name = part.to_str().ok_or_else(|| Error::invalid("path", "it is not UTF-8"))?;
            let conn = Connection::open(&from).map_err(failed)?;
            let write = || -> Result<(), Error> {
                conn.execute("VACUUM INTO ?1", [name]).map_err(failed)?;
                let mut copy = Connection::open(&part).map_err(failed)?;
                change(&mut copy)?;
                copy.close().map_err(|(_, e)| failed(e))?;
                sync(&part)
                    .and_then(|()| std::fs::hard_link(&part, &to))
                    .map_err(|e| Error::storage(operation, e))
            };
            let written = write();
            // Of a copy that failed nothing stays; one that did not has its own name now.
            let _ = std::fs::remove_file(&part);
            written?;
            sync(&to).map_err(|e| Error::storage(operation, e))
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| Error::storage(operation, e))?
            .map_err(|e| e.at(place))
    }
}

/// Seals all that lies readable in a store that nobody else has open.
fn seal_all(conn: &mut Connection, ring: &KeyRing) -> Result<(), Error> {
    let failed = |e: rusqlite::Error| storage(ENCRYPT, &e);
    let tx = conn.transaction().map_err(failed)?;
    let mut keys = HashMap::new();
    let scopes: Vec<String> = tx
        .prepare("SELECT '' UNION SELECT project FROM runs UNION SELECT scope FROM blobs")
        .and_then(|mut select| select.query_map([], |row| row.get(0))?.collect())
        .map_err(failed)?;
    for scope in scopes {
        let (master, wrapped) = (ring.current().id(), ring.draw(&scope)?);
        tx.execute(
            "INSERT INTO data_keys (scope, master, wrapped) VALUES (?1, ?2, ?3)",
            params![scope, master, wrapped],
        )
        .map_err(failed)?;
        let id = u32::try_from(tx.last_insert_rowid()).unwrap_or(u32::MAX);
        let key = ring.open(id, &scope, master, &wrapped)?;
        keys.insert(scope, key);
    }
    let key_of = |scope: &str| {
        keys.get(scope).ok_or_else(|| Error::storage(ENCRYPT, format!("project `{scope}` has no key")))
    };
    seal_chunks(&tx, &key_of)?;
    seal_blobs(&tx, &key_of)?;
    tx.execute_batch(
        "DELETE FROM cache; DELETE FROM snapshots; DELETE FROM run_index; DELETE FROM run_terms;
         INSERT INTO run_text (run_text) VALUES ('delete-all');",
    )
    .map_err(failed)?;
    tx.commit().map_err(failed)?;
    // Pages that were freed hold what was there before.
    conn.execute_batch("VACUUM").map_err(failed)
}

fn seal_chunks<'k>(
    conn: &Connection,
    key_of: &impl Fn(&str) -> Result<&'k DataKey, Error>,
) -> Result<(), Error> {
    let failed = |e: rusqlite::Error| storage(ENCRYPT, &e);
    let mut after = 0i64;
    loop {
        let rows: Vec<(i64, i64, Vec<u8>, String, String)> = conn
            .prepare_cached(
                "SELECT c.id, c.last_seq, c.data, r.run, r.project FROM chunks c JOIN runs r ON r.id = c.run_id
                 WHERE c.id > ?1 ORDER BY c.id LIMIT ?2",
            )
            .and_then(|mut select| {
                let row = |row: &rusqlite::Row<'_>| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
                };
                select.query_map([after, BATCH], row)?.collect()
            })
            .map_err(failed)?;
        let Some((last, ..)) = rows.last() else { return Ok(()) };
        after = *last;
        for (id, last_seq, data, run, project) in rows {
            let count = codec::count(&data).map_err(|damage| damage.at(format!("run `{run}`")))?;
            let sealed = seal_chunk(key_of(&project)?, &run, last_seq.cast_unsigned(), count, &data)?;
            conn.prepare_cached("UPDATE chunks SET data = ?2 WHERE id = ?1")
                .and_then(|mut update| update.execute(params![id, sealed]))
                .map_err(failed)?;
        }
    }
}

fn seal_blobs<'k>(
    conn: &Connection,
    key_of: &impl Fn(&str) -> Result<&'k DataKey, Error>,
) -> Result<(), Error> {
    let failed = |e: rusqlite::Error| storage(ENCRYPT, &e);
    let ids: Vec<i64> = conn
        .prepare("SELECT id FROM blobs")
        .and_then(|mut select| select.query_map([], |row| row.get(0))?.collect())
        .map_err(failed)?;
    for id in ids {
        let (scope, sha256, data): (String, [u8; 32], Vec<u8>) = conn
            .prepare_cached("SELECT scope, sha256, data FROM blobs WHERE id = ?1")
            .and_then(|mut select| select.query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))))
            .map_err(failed)?;
        let sealed = key_of(&scope)?.seal(0, &about_blob(&sha256), &data)?;
        conn.prepare_cached("UPDATE blobs SET data = ?2 WHERE id = ?1")
            .and_then(|mut update| update.execute(params![id, sealed]))
            .map_err(failed)?;
    }
    Ok(())
}
