//! Upkeep of a file: retention, compaction, removal.

use std::path::Path;

use async_trait::async_trait;
use coral_core::{Error, Journal};
use rusqlite::{Connection, params};

use super::{SqliteBlobs, SqliteStore, keys};
use crate::codec;
use crate::crypto::Sealed;
#[cfg(feature = "privacy")]
use crate::privacy::{Subject, SubjectErasure, SubjectExport};
use crate::projects::Projects;
use crate::retention::{
    Change, ProjectRemoval, RetentionReport, RetentionRule, Upkeep, pack, remove_project, retain,
};
use crate::vault::{about_chunk, seal_chunk};

impl SqliteStore {
    /// Applies `rules` to what is here, to each by the first rule that fits it, as of `now_ms`.
    ///
    /// # Errors
    /// Those of the store; what was done before stays done, and doing it again goes on.
    pub async fn retain(&self, rules: &[RetentionRule], now_ms: u64) -> Result<RetentionReport, Error> {
        retain(self, rules, now_ms).await
    }

    /// All that is held on a person here: records, and what blobs hold.
    ///
    /// # Errors
    /// Those of the store.
    #[cfg(feature = "privacy")]
    pub async fn export_subject(&self, subject: &Subject) -> Result<SubjectExport, Error> {
        subject.export_of(self).await
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

    /// Removes all that is held of a project: its runs, sessions, blobs and its own journal, and what is
    /// cached. That there was one is all that stays, so that its id never means another. Doing it again
    /// after a failure goes on.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) while a run of it is at work; those of the store.
    pub async fn remove_project(&self, project: &str) -> Result<ProjectRemoval, Error> {
        remove_project(self, &Projects::new(self.journal()), project).await
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
                // Who begins a run of that name anew begins another.
                revise(conn, "run = ?1", &run)?;
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
            let since = key.as_ref().map(|(vault, _)| vault.since());
            let mut records = Vec::new();
            let mut chunks = 0;
            let mut select =
                conn.prepare_cached("SELECT last_seq, data FROM chunks WHERE run_id = ?1 ORDER BY last_seq")?;
            let mut rows = select.query([id])?;
            while let Some(row) = rows.next()? {
                let last = row.get::<_, i64>(0)?.cast_unsigned();
                let data = row.get_ref(1)?.as_blob()?;
                let opened = match (Sealed::parse(data), since) {
                    (Some(sealed), Some(vault)) => keys::open(vault, conn, &sealed, &about_chunk(&run, last)),
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
                revise(conn, "run = ?1", &run)?;
                conn.execute("DELETE FROM snapshots WHERE run_id = ?1", [id])?;
                super::index::forget_run(conn, &run)?;
            }
            Ok(Ok(true))
        })
        .await?
    }
}

/// Gives the runs that `which` says of `value` a revision that none has had, so that nothing that was
/// folded from them before is kept.
pub(super) fn revise(conn: &Connection, which: &str, value: &str) -> rusqlite::Result<()> {
    conn.execute("UPDATE revisions SET last = last + 1", [])?;
    let revise = format!("UPDATE runs SET revision = (SELECT last FROM revisions) WHERE {which}");
    conn.execute(&revise, [value])?;
    Ok(())
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

    async fn empty_cache(&self) -> Result<usize, Error> {
        self.write("empty the cache", |conn| conn.execute("DELETE FROM cache", [])).await
    }

    async fn scrubbed(&self) -> Result<(), Error> {
        self.aside("write the store anew", |conn| {
            conn.execute("INSERT INTO run_text (run_text) VALUES ('optimize')", [])?;
            conn.execute_batch("VACUUM")
        })
        .await?;
        self.scrub().await
    }

    async fn swept(&self) -> Result<(), Error> {
        match self.scrub().await {
            // What is freed is overwritten in the file; the log follows when nobody reads.
            Err(error) if error.is_transient() => Ok(()),
            result => result,
        }
    }
}
