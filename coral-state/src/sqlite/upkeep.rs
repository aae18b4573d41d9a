//! Upkeep of a file: backups, retention, compaction.

use std::path::Path;

use async_trait::async_trait;
use coral_core::{Error, Journal};
use rusqlite::{Connection, params};

use super::fault::storage;
use super::{SqliteBlobs, SqliteStore, keys};
use crate::codec;
use crate::crypto::Sealed;
#[cfg(feature = "privacy")]
use crate::privacy::{Subject, SubjectErasure};
use crate::retention::{Change, RetentionReport, RetentionRule, Upkeep, pack, retain};
use crate::vault::{about_chunk, seal_chunk};

impl SqliteStore {
    /// Writes a copy of the whole store to a new file, as it is at one moment, while work goes on.
    /// The copy is a store like any other; an encrypted one stays so.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the file is there already or can't be written.
    pub async fn backup(&self, to: impl AsRef<Path>) -> Result<(), Error> {
        const BACKUP: &str = "write a backup";
        let to = to.as_ref().to_owned();
        let from = self.path().to_owned();
        let place = to.display().to_string();
        let work = move || {
            if to.exists() {
                return Err(
                    Error::storage(BACKUP, "there is a file already").with_help("choose another name")
                );
            }
            let failed = |e: rusqlite::Error| storage(BACKUP, &e);
            let conn = Connection::open(&from).map_err(failed)?;
            let name = to.to_str().ok_or_else(|| Error::invalid("path", "it is not UTF-8"))?;
            conn.execute("VACUUM INTO ?1", [name]).map_err(failed)?;
            sync(&to).map_err(|e| Error::storage(BACKUP, e))
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| Error::storage(BACKUP, e))?
            .map_err(|e| e.at(place))
    }

    /// Applies `rules` to what is here, to each by the first rule that fits it, as of `now_ms`.
    ///
    /// # Errors
    /// Those of the store; what was done before stays done, and doing it again goes on.
    pub async fn retain(&self, rules: &[RetentionRule], now_ms: u64) -> Result<RetentionReport, Error> {
        retain(self, rules, now_ms).await
    }

    /// Takes a person out of everything here: what spoke of them says `[erased]`, blobs that did are
    /// gone, the cache is emptied, and the store is written anew so that nothing lies on. Runs keep
    /// their records' numbers, times and shape. Caches elsewhere, in memory or on Redis, backups and logs of the server are the caller's to let expire.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if a word for the person is one of the format's;
    /// those of the store. What was done before stays done, and doing it again goes on.
    #[cfg(feature = "privacy")]
    pub async fn erase_subject(&self, subject: &Subject) -> Result<SubjectErasure, Error> {
        subject.erase(self).await
    }

    /// Removes a run that is over, with all its records; says whether there was one.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn remove_run(&self, run: &str) -> Result<bool, Error> {
        let run: Box<str> = run.into();
        self.write_runs("remove a run", move |conn| {
            conn.execute(
                "DELETE FROM chunks WHERE run_id = (SELECT id FROM runs WHERE run = ?1 AND status <> 'running')",
                [&run],
            )?;
            conn.execute(
                "DELETE FROM snapshots WHERE run_id = (SELECT id FROM runs WHERE run = ?1 AND status <> 'running')",
                [&run],
            )?;
            let removed = conn.execute("DELETE FROM runs WHERE run = ?1 AND status <> 'running'", [&run])? > 0;
            if removed {
                super::index::forget_run(conn, &run)?;
            }
            Ok(removed)
        })
        .await
    }

    /// Packs the records of a run that is over into less room; they read as before. Says whether
    /// anything changed.
    ///
    /// # Errors
    /// Those of the store and of reading the run.
    pub async fn compact(&self, run: &str) -> Result<bool, Error> {
        self.rewrite(run, Change::Pack).await
    }

    async fn rewritten(&self, run: &str, change: Change) -> Result<bool, Error> {
        let Some(head) = self.journal().head(run).await? else { return Ok(false) };
        let edits = change.edits();
        let key = match &self.0.keys {
            Some(vault) => Some((vault.clone(), keys::of_scope(self, vault, &head.project).await?)),
            None => None,
        };
        let run: Box<str> = run.into();
        self.write_runs("rewrite a run", move |conn| {
            let id: Option<i64> = conn
                .prepare_cached("SELECT max(id) FROM runs WHERE run = ?1 AND status <> 'running'")?
                .query_row([&run], |row| row.get(0))?;
            let mut records = Vec::new();
            let mut chunks = 0;
            let mut select =
                conn.prepare_cached("SELECT last_seq, data FROM chunks WHERE run_id = ?1 ORDER BY last_seq")?;
            let mut rows = select.query([id])?;
            while let Some(row) = rows.next()? {
                let last = row.get::<_, i64>(0)?.cast_unsigned();
                let data = row.get_ref(1)?.as_blob()?;
                let opened = match (Sealed::parse(data), &key) {
                    (Some(sealed), Some((vault, _))) => {
                        keys::open(vault, conn, &sealed, &about_chunk(&run, last))
                    }
                    _ => Ok(data.to_vec()),
                };
                let decoded =
                    opened.and_then(|chunk| codec::decode(&chunk, last, 1, usize::MAX, &mut records));
                if let Err(error) = decoded {
                    return Ok(Err(error));
                }
                chunks += 1;
            }
            // All that can fail for another reason than the disk comes before the first change.
            let packed = change.apply(records, chunks).and_then(|changed| {
                let Some(records) = changed else { return Ok(None) };
                let packed = pack(&records, |last, count, chunk| match &key {
                    Some((_, key)) => seal_chunk(key, &run, last, count, &chunk),
                    None => Ok(chunk),
                })?;
                Ok(Some(packed))
            });
            let packed = match packed {
                Ok(Some(packed)) => packed,
                Ok(None) => return Ok(Ok(false)),
                Err(error) => return Ok(Err(error)),
            };
            conn.execute("DELETE FROM chunks WHERE run_id = ?1", [id])?;
            for (last, chunk) in packed {
                conn.prepare_cached("INSERT INTO chunks (run_id, last_seq, data) VALUES (?1, ?2, ?3)")?
                    .execute(params![id, last.cast_signed(), chunk])?;
            }
            if edits {
                conn.execute("DELETE FROM snapshots WHERE run_id = ?1", [id])?;
                super::index::forget_run(conn, &run)?;
            }
            Ok(Ok(true))
        })
        .await?
    }
}

/// Makes a new file durable, and its name in the directory.
pub(crate) fn sync(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()?;
    match path.parent().filter(|_| cfg!(unix)) {
        Some(empty) if empty.as_os_str().is_empty() => std::fs::File::open(".")?.sync_all(),
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[async_trait]
impl Upkeep for SqliteStore {
    type Blobs = SqliteBlobs;

    fn upkept(&self) -> impl Journal {
        self.journal()
    }

    fn blobs_in(&self, project: &str) -> SqliteBlobs {
        self.blobs_of(project)
    }

    async fn projects_with_blobs(&self) -> Result<Vec<String>, Error> {
        self.read("list blobs", |conn| {
            conn.prepare_cached("SELECT DISTINCT scope FROM blobs ORDER BY scope")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
        .await
    }

    async fn remove(&self, run: &str) -> Result<bool, Error> {
        self.remove_run(run).await
    }

    async fn rewrite(&self, run: &str, change: Change) -> Result<bool, Error> {
        self.rewritten(run, change).await
    }

    #[cfg(feature = "privacy")]
    async fn empty_cache(&self) -> Result<usize, Error> {
        self.write("empty the cache", |conn| conn.execute("DELETE FROM cache", [])).await
    }

    #[cfg(feature = "privacy")]
    async fn scrubbed(&self) -> Result<(), Error> {
        self.aside("write the store anew", |conn| {
            conn.execute("INSERT INTO run_text (run_text) VALUES ('optimize')", [])?;
            conn.execute_batch("VACUUM")
        })
        .await?;
        self.scrub().await
    }
}
