//! Upkeep of a schema: retention and compaction.

use async_trait::async_trait;
use coral_core::{Error, Journal};

use super::connection::storage;
use super::{PostgresBlobs, PostgresStore, get};
use crate::codec;
use crate::crypto::Sealed;
#[cfg(feature = "privacy")]
use crate::privacy::{Subject, SubjectErasure, SubjectExport};
use crate::projects::Projects;
use crate::retention::{
    Change, ProjectRemoval, RetentionReport, RetentionRule, Upkeep, pack, remove_project, retain,
};
use crate::vault::{about_chunk, seal_chunk};

impl PostgresStore {
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
        let remove = "WITH gone AS (DELETE FROM runs WHERE run = $1 AND status <> 'running' RETURNING id),
                      c AS (DELETE FROM chunks WHERE run_id IN (SELECT id FROM gone)),
                      s AS (DELETE FROM snapshots WHERE run_id IN (SELECT id FROM gone)),
                      i AS (DELETE FROM run_index WHERE id IN (SELECT id FROM gone))
                      SELECT nextval('revisions') FROM gone";
        Ok(!self.0.pool.query("remove a run", remove, &[&run]).await?.is_empty())
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
        let failed = |e: tokio_postgres::Error| storage("rewrite a run", &e);
        let Some(head) = self.journal().head(run).await? else { return Ok(false) };
        let edits = change.edits();
        let key = match &self.0.vault {
            Some(_) => Some(self.key_of_scope(&head.project).await?),
            None => None,
        };
        let mut client = self.0.pool.own().await?;
        let transaction = client.transaction().await.map_err(failed)?;
        // An append must wait for it.
        let select = "SELECT id FROM runs WHERE run = $1 AND status <> 'running' FOR UPDATE";
        let Some(row) = transaction.query_opt(select, &[&run]).await.map_err(failed)? else {
            return Ok(false);
        };
        let id: i64 = get(&row, 0)?;
        let select = "SELECT last_seq, data FROM chunks WHERE run_id = $1 ORDER BY last_seq";
        let rows = transaction.query(select, &[&id]).await.map_err(failed)?;
        let keys = self.learn_keys(rows.iter().map(|row| get(row, 1))).await?;
        let mut records = Vec::new();
        for row in &rows {
            let last = get::<i64>(row, 0)?.cast_unsigned();
            let data: &[u8] = get(row, 1)?;
            match Sealed::parse(data).filter(|_| key.is_some()) {
                Some(sealed) => {
                    let chunk = keys.open(&sealed, &about_chunk(run, last))?;
                    codec::decode(&chunk, last, 1, usize::MAX, &mut records)?;
                }
                None => codec::decode(data, last, 1, usize::MAX, &mut records)?,
            }
        }
        let Some(records) = change.apply(records, rows.len())? else { return Ok(false) };
        let packed = pack(&records, |last, count, chunk| match &key {
            Some(key) => seal_chunk(key, run, last, count, &chunk),
            None => Ok(chunk),
        })?;
        transaction.execute("DELETE FROM chunks WHERE run_id = $1", &[&id]).await.map_err(failed)?;
        for (last, chunk) in packed {
            let insert = "INSERT INTO chunks (run_id, last_seq, data) VALUES ($1, $2, $3)";
            transaction.execute(insert, &[&id, &last.cast_signed(), &chunk]).await.map_err(failed)?;
        }
        if edits {
            let revise = "UPDATE runs SET revision = nextval('revisions') WHERE id = $1";
            transaction.execute(revise, &[&id]).await.map_err(failed)?;
        }
        let folded: &[&str] = if edits { &["snapshots WHERE run_id", "run_index WHERE id"] } else { &[] };
        for table in folded {
            let delete = format!("DELETE FROM {table} = $1");
            transaction.execute(&delete, &[&id]).await.map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)?;
        Ok(true)
    }
}

#[async_trait]
impl Upkeep for PostgresStore {
    type Blobs = PostgresBlobs;

    fn upkept(&self) -> impl Journal {
        self.journal()
    }

    fn blobs_in(&self, project: &str) -> PostgresBlobs {
        self.blobs_of(project)
    }

    async fn projects_with_blobs(&self) -> Result<Vec<String>, Error> {
        let select = "SELECT DISTINCT scope FROM blobs ORDER BY scope";
        let rows = self.0.pool.query("list blobs", select, &[]).await?;
        rows.iter().map(|row| get(row, 0)).collect()
    }

    async fn remove(&self, run: &str) -> Result<bool, Error> {
        self.remove_run(run).await
    }

    async fn rewrite(&self, run: &str, change: Change) -> Result<bool, Error> {
        self.rewritten(run, change).await
    }

    async fn empty_cache(&self) -> Result<usize, Error> {
        let rows = self.0.pool.query("empty the cache", "DELETE FROM cache RETURNING 1", &[]).await?;
        Ok(rows.len())
    }

    async fn scrubbed(&self) -> Result<(), Error> {
        let client = self.0.pool.own().await?;
        for table in ["chunks", "blobs", "snapshots", "run_index", "cache"] {
            let vacuum = format!("VACUUM FULL {table}");
            client.batch_execute(&vacuum).await.map_err(|e| storage("write the tables anew", &e))?;
        }
        Ok(())
    }

    async fn swept(&self) -> Result<(), Error> {
        // The server's own upkeep clears away what was removed.
        Ok(())
    }
}
