//! Upkeep of a file: backups, retention, compaction.

use std::path::Path;

use coral_core::{Error, Journal, RunFilter, RunStatus};
use rusqlite::{Connection, params};

use super::SqliteStore;
use super::fault::storage;
use super::keys::about_chunk;
use crate::codec;
use crate::crypto::Sealed;
use crate::ledger::is_ledger;

/// Records of one chunk after compaction.
const CHUNK: usize = 256;

/// What becomes of runs that are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetentionAction {
    /// Their records are packed into less room.
    Compact,
    /// They are removed, head and all.
    Remove,
}

/// One rule of retention. What is left out fits every run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionRule {
    /// Only runs of this project.
    pub project: Option<String>,
    /// Only runs of this workflow.
    pub workflow: Option<String>,
    /// Only runs that stand like this. Runs at work are never touched.
    pub status: Option<RunStatus>,
    /// How long after its last record a run is left alone, in milliseconds.
    pub keep_ms: u64,
    /// What becomes of it then.
    pub action: RetentionAction,
}

/// What retention did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionReport {
    /// Runs that now take less room.
    pub compacted: Vec<String>,
    /// Runs that were removed.
    pub removed: Vec<String>,
}

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
            // Durable when told: the file, and its name in the directory.
            std::fs::File::open(&to)
                .and_then(|file| file.sync_all())
                .map_err(|e| Error::storage(BACKUP, e))?;
            let directory = to.parent().filter(|_| cfg!(unix)).map(|path| match path {
                empty if empty.as_os_str().is_empty() => Path::new("."),
                path => path,
            });
            directory
                .map_or(Ok(()), |path| std::fs::File::open(path).and_then(|directory| directory.sync_all()))
                .map_err(|e| Error::storage(BACKUP, e))
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| Error::storage(BACKUP, e))?
            .map_err(|e| e.at(place))
    }

    /// Applies `rules` to all runs that are over, each run by the first rule that fits it, as of
    /// `now_ms`.
    ///
    /// # Errors
    /// Those of the store; what was done before stays done, and doing it again goes on.
    pub async fn retain(&self, rules: &[RetentionRule], now_ms: u64) -> Result<RetentionReport, Error> {
        let mut report = RetentionReport::default();
        for head in self.journal().runs(&RunFilter::default()).await? {
            if head.status == RunStatus::Running || is_ledger(&head) {
                continue;
            }
            let fits = |rule: &&RetentionRule| {
                rule.project.as_ref().is_none_or(|project| *project == head.project)
                    && rule.workflow.as_ref().is_none_or(|workflow| *workflow == head.workflow)
                    && rule.status.is_none_or(|status| status == head.status)
            };
            let Some(rule) = rules.iter().find(fits) else { continue };
            if now_ms.saturating_sub(head.updated_at_ms) < rule.keep_ms {
                continue;
            }
            match rule.action {
                RetentionAction::Remove => {
                    if self.remove_run(&head.run).await? {
                        report.removed.push(head.run);
                    }
                }
                RetentionAction::Compact => {
                    if self.compact(&head.run).await? {
                        report.compacted.push(head.run);
                    }
                }
            }
        }
        Ok(report)
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
            Ok(conn.execute("DELETE FROM runs WHERE run = ?1 AND status <> 'running'", [&run])? > 0)
        })
        .await
    }

    /// Packs the records of a run that is over into less room; they read as before. Says whether
    /// anything changed.
    ///
    /// # Errors
    /// Those of the store and of reading the run.
    pub async fn compact(&self, run: &str) -> Result<bool, Error> {
        let Some(head) = self.journal().head(run).await? else { return Ok(false) };
        let key = match &self.0.keys {
            Some(keys) => Some((keys.clone(), keys.of_scope(self, &head.project).await?)),
            None => None,
        };
        let run: Box<str> = run.into();
        self.write_runs("compact a run", move |conn| {
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
                    (Some(sealed), Some((keys, _))) => keys.open(conn, &sealed, &about_chunk(&run, last)),
                    _ => Ok(data.to_vec()),
                };
                let decoded =
                    opened.and_then(|chunk| codec::decode(&chunk, last, 1, usize::MAX, &mut records));
                if let Err(error) = decoded {
                    return Ok(Err(error));
                }
                chunks += 1;
            }
            if chunks <= records.len().div_ceil(CHUNK) {
                return Ok(Ok(false));
            }
            // All that can fail for another reason than the disk comes before the first change.
            let mut packed = Vec::new();
            for batch in records.chunks(CHUNK) {
                let Some(last) = batch.last().map(|record| record.seq) else { continue };
                let chunk = codec::encode(batch).and_then(|chunk| match &key {
                    Some((_, key)) => {
                        let count = u32::try_from(batch.len()).unwrap_or(u32::MAX);
                        key.seal(count, &about_chunk(&run, last), &chunk)
                    }
                    None => Ok(chunk),
                });
                match chunk {
                    Ok(chunk) => packed.push((last, chunk)),
                    Err(error) => return Ok(Err(error)),
                }
            }
            conn.execute("DELETE FROM chunks WHERE run_id = ?1", [id])?;
            for (last, chunk) in packed {
                conn.prepare_cached("INSERT INTO chunks (run_id, last_seq, data) VALUES (?1, ?2, ?3)")?
                    .execute(params![id, last.cast_signed(), chunk])?;
            }
            Ok(Ok(true))
        })
        .await?
    }
}
