//! The journal in a SQLite file.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use coral_core::{Error, Journal, Record, RunFilter, RunHead, Seq};
use rusqlite::{OptionalExtension, params, params_from_iter};
use tokio::sync::oneshot;

use super::keys;
use super::writer::{Append, Request, head_of};
use super::{SqliteOptions, SqliteStore, gone};
use crate::codec;
use crate::crypto::Sealed;
use crate::follow::Follow;
use crate::status::status_name;
use crate::vault::{Vault, Verifier, about_chunk, seal_chunk};

const HEAD: &str =
    "SELECT workflow, project, status, last_seq, started_at_ms, updated_at_ms, run, revision FROM runs";

/// A [`Journal`] in a SQLite file: durable, atomic, and fast with many runs at once.
///
/// See [`SqliteStore`] for what else the file may hold. Clones share the file.
#[derive(Clone, Debug)]
pub struct SqliteJournal(SqliteStore);

impl SqliteJournal {
    pub(super) fn new(store: SqliteStore) -> Self {
        SqliteJournal(store)
    }

    /// Opens the journal in the file at `path`, or makes it.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Ok(SqliteStore::open(path)?.journal())
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open_with(options: SqliteOptions) -> Result<Self, Error> {
        Ok(SqliteStore::open_with(options)?.journal())
    }

    /// Checks, without any key, that the journal of a run is whole: every record from the first to
    /// the head is accounted for, none twice. Says how many records there are.
    ///
    /// What lies within sealed records is checked when they are read.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if a record is missing or the head says otherwise.
    pub async fn verify(&self, run: &str) -> Result<u64, Error> {
        let run: Box<str> = run.into();
        self.0
            .read("verify the journal", move |conn| {
                let head: Option<i64> = conn
                    .prepare_cached("SELECT last_seq FROM runs WHERE run = ?1")?
                    .query_row([&run], |row| row.get(0))
                    .optional()?;
                let mut select = conn.prepare_cached(
                    "SELECT last_seq, data FROM chunks
                     WHERE run_id = (SELECT id FROM runs WHERE run = ?1) ORDER BY last_seq",
                )?;
                let mut rows = select.query([&run])?;
                let mut verifier = Verifier::default();
                while let Some(row) = rows.next()? {
                    let last = row.get::<_, i64>(0)?.cast_unsigned();
                    if let Err(damage) = verifier.next(&run, last, row.get_ref(1)?.as_blob()?) {
                        return Ok(Err(damage));
                    }
                }
                Ok(verifier.end(&run, head.unwrap_or(0).cast_unsigned()))
            })
            .await?
    }

    /// Appends `records`, or begins a run with them where no epoch is held; gives the epoch.
    async fn write_records(
        &self,
        run: &str,
        epoch: Option<u64>,
        expected: Seq,
        records: Arc<[Record]>,
    ) -> Result<u64, Error> {
        // Made here, so that many runs serialise at once and the writer only writes.
        let mut chunk = codec::encode(&records)?;
        if let (Some(vault), Some(last)) = (&self.0.0.keys, records.last()) {
            let key = keys::of_run(&self.0, vault, run, &records).await?;
            chunk = seal_chunk(&key, run, last.seq, records.len(), &chunk)?;
        }
        let (answer, answered) = oneshot::channel();
        let append = Append { run: run.into(), epoch, expected, records, chunk, answer };
        self.0.send(Request::Append(append)).await?;
        let (result, _records) = answered.await.map_err(|_| gone())?;
        match &self.0.0.keys {
            Some(vault) => vault.heed(result),
            None => result,
        }
    }

    /// The store that this journal is in.
    pub fn store(&self) -> &SqliteStore {
        &self.0
    }
}

#[async_trait]
impl Journal for SqliteJournal {
    async fn acquire(&self, run: &str) -> Result<u64, Error> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Request::Acquire { run: run.into(), answer }).await?;
        answered.await.map_err(|_| gone())?
    }

    async fn append(
        &self,
        run: &str,
        epoch: u64,
        expected: Seq,
        records: Arc<[Record]>,
    ) -> Result<(), Error> {
        self.write_records(run, Some(epoch), expected, records).await.map(drop)
    }

    async fn begin(&self, run: &str, records: Arc<[Record]>) -> Result<u64, Error> {
        self.write_records(run, None, 0, records).await
    }

    async fn read(&self, run: &str, from: Seq, limit: usize) -> Result<Vec<Record>, Error> {
        let run: Box<str> = run.into();
        let from = from.max(1);
        if limit == 0 || i64::try_from(from).is_err() {
            return Ok(Vec::new());
        }
        let vault = self.0.0.keys.clone();
        self.0
            .read("read the journal", move |conn| {
                let vault = vault.as_deref().map(Vault::since);
                let mut select = conn.prepare_cached(
                    "SELECT last_seq, data FROM chunks
                     WHERE run_id = (SELECT id FROM runs WHERE run = ?1) AND last_seq >= ?2
                     ORDER BY last_seq",
                )?;
                let mut rows = select.query(params![run, from.cast_signed()])?;
                let mut records = Vec::new();
                while records.len() < limit {
                    let Some(row) = rows.next()? else { break };
                    let last = row.get::<_, i64>(0)?.cast_unsigned();
                    let chunk = row.get_ref(1)?.as_blob()?;
                    let opened = match (Sealed::parse(chunk), vault) {
                        (Some(sealed), Some(vault)) => {
                            keys::open(vault, conn, &sealed, &about_chunk(&run, last)).map(Cow::Owned)
                        }
                        _ => Ok(Cow::Borrowed(chunk)),
                    };
                    let decoded =
                        opened.and_then(|chunk| codec::decode(&chunk, last, from, limit, &mut records));
                    if let Err(damage) = decoded {
                        return Ok(Err(damage.at(format!("run `{run}`"))));
                    }
                }
                Ok(Ok(records))
            })
            .await?
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, Error> {
        let run: Box<str> = run.into();
        self.0
            .read("read the journal", move |conn| {
                conn.prepare_cached(&format!("{HEAD} WHERE run = ?1 AND last_seq > 0"))?
                    .query_row([run], head_of)
                    .optional()
            })
            .await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunHead>, Error> {
        let mut sql = format!("{HEAD} WHERE last_seq > 0");
        let mut values = Vec::new();
        let status = filter.status.map(status_name);
        for (column, value) in
            [("workflow", &filter.workflow), ("project", &filter.project), ("status", &status)]
        {
            if let Some(value) = value {
                values.push(value.clone());
                sql.push_str(&format!(" AND {column} = ?{}", values.len()));
            }
        }
        sql.push_str(" ORDER BY run");
        self.0
            .read("list the runs", move |conn| {
                conn.prepare_cached(&sql)?.query_map(params_from_iter(values), head_of)?.collect()
            })
            .await
    }
}

#[async_trait]
impl Follow for SqliteJournal {
    async fn grown(&self, run: &str, from: Seq) -> Result<(), Error> {
        // First listen, then look: what is appended in between is heard.
        let mut bell = self.0.0.bell.listen(run);
        while self.head(run).await?.is_none_or(|head| head.last_seq < from) {
            let heard = tokio::time::timeout(self.0.0.poll, bell.wait_for(|last| *last >= from)).await;
            if matches!(heard, Ok(Ok(_))) {
                return Ok(());
            }
        }
        Ok(())
    }
}
