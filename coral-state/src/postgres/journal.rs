//! The journal on a PostgreSQL server.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{Error, ErrorKind, Journal, Record, RunFilter, RunHead, RunStatus, Seq, check_append};
use tokio::sync::mpsc;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::connection::Lost;
use super::{Inner, Listening, PostgresOptions, PostgresStore, get};
use crate::codec;
use crate::crypto::Sealed;
use crate::follow::Follow;
use crate::status::{status_name, status_of};
use crate::vault::{Verifier, about_chunk, seal_chunk};

/// Chunks read at once.
const BATCH: i64 = 1_024;

/// A [`Journal`] on a PostgreSQL server, for workers on several machines.
///
/// An append is one statement that checks the epoch and the seq and writes the batch, so it is
/// atomic without a transaction held open over the network. When a connection breaks while an
/// append is under way, the journal finds out whether it took effect before it answers.
///
/// Followers are told by `NOTIFY` of what other processes append. See [`PostgresStore`] for what
/// else the schema holds. Clones share the connections.
#[derive(Clone)]
pub struct PostgresJournal(PostgresStore);

pub(super) const HEAD: &str = "SELECT workflow, project, status, last_seq, started_at_ms, updated_at_ms, run, epoch, revision FROM runs";

impl PostgresJournal {
    pub(super) fn new(store: PostgresStore) -> Self {
        PostgresJournal(store)
    }

    /// Connects to the server that `config` names, and makes the tables if they are not there.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`].
    pub async fn connect(config: &str) -> Result<Self, Error> {
        Ok(PostgresStore::connect(config).await?.journal())
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`].
    pub async fn connect_with(options: PostgresOptions) -> Result<Self, Error> {
        Ok(PostgresStore::connect_with(options).await?.journal())
    }

    /// The store that this journal is in.
    pub fn store(&self) -> &PostgresStore {
        &self.0
    }

    /// Checks, without any key, that the journal of a run is whole: every record from the first to
    /// the head is accounted for, none twice. Says how many records there are.
    ///
    /// What lies within sealed records is checked when they are read.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage) if a record is missing or the head says otherwise.
    pub async fn verify(&self, run: &str) -> Result<u64, Error> {
        let pool = &self.0.0.pool;
        let mut verifier = Verifier::default();
        let mut next = 1i64;
        loop {
            let select = "SELECT last_seq, data FROM chunks
                          WHERE run_id = (SELECT id FROM runs WHERE run = $1) AND last_seq >= $2
                          ORDER BY last_seq LIMIT $3";
            let rows = pool.query("verify the journal", select, &[&run, &next, &BATCH]).await?;
            for row in &rows {
                let last: i64 = get(row, 0)?;
                verifier.next(run, last.cast_unsigned(), get(row, 1)?)?;
                next = last + 1;
            }
            if rows.is_empty() {
                break;
            }
        }
        // Appends may have come meanwhile: the head is looked at as of what was read.
        let select = "SELECT least(last_seq, $2) FROM runs WHERE run = $1";
        let rows = pool.query("verify the journal", select, &[&run, &(next - 1)]).await?;
        let head: i64 = rows.first().map_or(Ok(0), |row| get(row, 0))?;
        let missing = "SELECT 1 FROM runs WHERE run = $1 AND last_seq > $2
                       AND NOT EXISTS (SELECT 1 FROM chunks WHERE run_id = runs.id AND chunks.last_seq > $2)";
        let rows = pool.query("verify the journal", missing, &[&run, &(next - 1)]).await?;
        verifier.end(run, if rows.is_empty() { head.cast_unsigned() } else { Seq::MAX })
    }
}

impl fmt::Debug for PostgresJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresJournal").finish_non_exhaustive()
    }
}

/// Tells other processes what has grown: apart from the appends, since PostgreSQL lets only one
/// notifying transaction commit at a time, and together where much has grown.
pub(super) async fn announce(journal: Weak<Inner>, mut growth: mpsc::UnboundedReceiver<(Box<str>, Seq)>) {
    let mut grown = Vec::new();
    while growth.recv_many(&mut grown, 4_096).await > 0 {
        let Some(journal) = journal.upgrade() else { return };
        let last: HashMap<Box<str>, Seq> = grown.drain(..).collect();
        // A payload has less than 8,000 bytes. Followers of longer ids look for themselves.
        let payloads: Vec<String> = last
            .iter()
            .filter(|(run, _)| run.len() < 4_000)
            .map(|(run, seq)| format!("{seq} {run}"))
            .collect();
        let Ok(connection) = journal.pool.get().await else { continue };
        let told = connection
            .client
            .execute(
                "SELECT pg_notify('coral_' || current_schema(), payload) FROM unnest($1::text[]) AS payload",
                &[&payloads],
            )
            .await;
        if let Err(error) = told {
            // Followers look for themselves before long.
            tracing::debug!(%error, "could not announce what has grown");
        }
    }
}

/// Rings this process's bell for what others announce, until it is aborted.
pub(super) async fn listen(journal: Weak<Inner>) {
    loop {
        let Some((bell, heard)) = ({
            let Some(journal) = journal.upgrade() else { return };
            let heard = journal.pool.listen().await;
            heard.ok().map(|heard| (Arc::clone(&journal.bell), heard))
        }) else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let mut heard = heard;
        while let Some(payload) = heard.next().await {
            if let Some((seq, run)) = payload.split_once(' ')
                && let Ok(seq) = seq.parse()
            {
                bell.ring([(run, seq)]);
            }
        }
    }
}

pub(super) fn head_of(row: &Row) -> Result<(RunHead, u64), Error> {
    let text = |column: usize| get::<String>(row, column);
    let number = |column: usize| get::<i64>(row, column).map(i64::cast_unsigned);
    let status = text(2)?;
    let head = RunHead {
        workflow: text(0)?,
        project: text(1)?,
        status: status_of(&status).ok_or_else(|| {
            Error::storage("read the journal", format!("unknown status `{status}`"))
                .with_help("it was written by a newer release; read it with that")
        })?,
        last_seq: number(3)?,
        started_at_ms: number(4)?,
        updated_at_ms: number(5)?,
        run: text(6)?,
        revision: number(8)?,
    };
    Ok((head, number(7)?))
}

/// What a batch changes of a head, seen by folding it into two heads that differ in everything.
struct HeadChange {
    workflow: Option<String>,
    project: Option<String>,
    status: Option<String>,
    started_at_ms: Option<i64>,
    updated_at_ms: i64,
}

impl HeadChange {
    fn of(records: &[Record]) -> Self {
        let odd = "\u{1}".to_owned();
        let mut one = RunHead::new("");
        let mut two = RunHead {
            workflow: odd.clone(),
            project: odd,
            status: RunStatus::Cancelled,
            started_at_ms: 1,
            ..RunHead::new("")
        };
        for record in records {
            one.apply(record);
            two.apply(record);
        }
        HeadChange {
            status: (one.status == two.status).then(|| status_name(one.status)),
            workflow: (one.workflow == two.workflow).then_some(one.workflow),
            project: (one.project == two.project).then_some(one.project),
            started_at_ms: (one.started_at_ms == two.started_at_ms).then(|| one.started_at_ms.cast_signed()),
            updated_at_ms: one.updated_at_ms.cast_signed(),
        }
    }
}

impl Inner {
    /// The head and the epoch, once no append of another is under way.
    async fn settled(&self, run: &str) -> Result<Option<(RunHead, u64)>, Error> {
        let select = format!("{HEAD} WHERE run = $1 FOR UPDATE");
        let rows = self.pool.query("read the journal", &select, &[&run]).await?;
        rows.first().map(head_of).transpose()
    }

    /// Tries the append once; whether it was made.
    async fn try_append(
        &self,
        run: &str,
        epoch: u64,
        expected: Seq,
        last: Seq,
        chunk: &[u8],
        change: &HeadChange,
    ) -> Result<bool, Lost> {
        let connection = self.pool.get().await.map_err(Lost::Before)?;
        let insert = connection
            .prepare(
                "WITH head AS (
                     UPDATE runs SET last_seq = $4, updated_at_ms = $6,
                         workflow = coalesce($7, workflow), project = coalesce($8, project),
                         status = coalesce($9, status), started_at_ms = coalesce($10, started_at_ms)
                     WHERE run = $1 AND epoch = $2 AND last_seq = $3 AND ($11::bigint IS NULL
                         OR EXISTS (SELECT 1 FROM data_keys WHERE id = $11 AND wrapped IS NOT NULL))
                     RETURNING id
                 )
                 INSERT INTO chunks (run_id, last_seq, data) SELECT id, $4, $5 FROM head",
            )
            .await
            .map_err(|e| Lost::of(&connection, e, false))?;
        let key = Sealed::parse(chunk).map(|sealed| i64::from(sealed.key));
        let parameters: [&(dyn ToSql + Sync); 11] = [
            &run,
            &epoch.cast_signed(),
            &expected.cast_signed(),
            &last.cast_signed(),
            &chunk,
            &change.updated_at_ms,
            &change.workflow,
            &change.project,
            &change.status,
            &change.started_at_ms,
            &key,
        ];
        match connection.client.execute(&insert, &parameters).await {
            Ok(rows) => Ok(rows == 1),
            Err(error) => Err(Lost::of(&connection, error, true)),
        }
    }
}

#[async_trait]
impl Journal for PostgresJournal {
    async fn acquire(&self, run: &str) -> Result<u64, Error> {
        // Should the connection break, trying again raises the epoch once more: that does no harm.
        let insert =
            "INSERT INTO runs (run, epoch, workflow, project, status, last_seq, started_at_ms, updated_at_ms, revision)
             VALUES ($1, 1, '', '', $2, 0, 0, 0, (SELECT last_value FROM revisions))
             ON CONFLICT (run) DO UPDATE SET epoch = runs.epoch + 1 RETURNING epoch";
        let status = status_name(RunStatus::default());
        let rows = self.0.0.pool.query("take over the run", insert, &[&run, &status]).await?;
        let row = rows.first().ok_or_else(|| codec::corrupt("the server gives no epoch"))?;
        row.try_get::<_, i64>(0).map(i64::cast_unsigned).map_err(codec::corrupt)
    }

    async fn append(
        &self,
        run: &str,
        epoch: u64,
        expected: Seq,
        records: Arc<[Record]>,
    ) -> Result<(), Error> {
        // What can be told without asking the server; where it stands is checked there.
        let assumed = RunHead { last_seq: expected, ..RunHead::new(run) };
        let numbered = check_append(&assumed, epoch, epoch, expected, &records);
        if let (Ok(()), Some(last)) = (&numbered, records.last()) {
            let mut chunk = codec::encode(&records)?;
            if self.0.0.vault.is_some() {
                let key = self.0.key_of_run(run, &records).await?;
                chunk = seal_chunk(&key, run, last.seq, records.len(), &chunk)?;
            }
            let change = HeadChange::of(&records);
            let mut tries = 0;
            loop {
                let lost = match self.0.0.try_append(run, epoch, expected, last.seq, &chunk, &change).await {
                    Ok(true) => break,
                    Ok(false) => {
                        let (head, current) =
                            self.0.0.settled(run).await?.unwrap_or_else(|| (RunHead::new(run), 0));
                        check_append(&head, current, epoch, expected, &records)?;
                        self.0.check_key(&chunk).await?;
                        None
                    }
                    Err(Lost::Before(error)) => return Err(error),
                    Err(Lost::Refused(error)) => return Err(error),
                    Err(Lost::Within(error)) => {
                        let (head, current) =
                            self.0.0.settled(run).await?.unwrap_or_else(|| (RunHead::new(run), 0));
                        // Whoever else wrote since then: if these records lie there, they were kept.
                        if head.last_seq >= last.seq
                            && self.read(run, expected + 1, records.len()).await? == records[..]
                        {
                            break;
                        }
                        check_append(&head, current, epoch, expected, &records)?;
                        Some(error)
                    }
                };
                tries += 1;
                if tries == 8 {
                    return Err(lost.unwrap_or_else(|| {
                        Error::new(ErrorKind::Storage {
                            operation: "append to the journal".into(),
                            problem: "the server says neither that it did nor why not".into(),
                            transient: true,
                        })
                    }));
                }
            }
            self.0.0.bell.ring([(run, last.seq)]);
            // The receiver lives as long as the runtime that this journal was opened on.
            let _ = self.0.0.grown.send((run.into(), last.seq));
            return Ok(());
        }
        let (head, current) = self.0.0.settled(run).await?.unwrap_or_else(|| (RunHead::new(run), 0));
        check_append(&head, current, epoch, expected, &records)?;
        numbered
    }

    async fn read(&self, run: &str, from: Seq, limit: usize) -> Result<Vec<Record>, Error> {
        let mut next = from.max(1);
        let mut records = Vec::new();
        while records.len() < limit && i64::try_from(next).is_ok() {
            let room = i64::try_from(limit - records.len()).unwrap_or(BATCH).min(BATCH);
            let select = "SELECT last_seq, data FROM chunks
                          WHERE run_id = (SELECT id FROM runs WHERE run = $1) AND last_seq >= $2
                          ORDER BY last_seq LIMIT $3";
            let rows =
                self.0.0.pool.query("read the journal", select, &[&run, &next.cast_signed(), &room]).await?;
            let keys = self.0.learn_keys(rows.iter().map(|row| get(row, 1))).await?;
            for row in &rows {
                let last = get::<i64>(row, 0)?.cast_unsigned();
                let chunk: &[u8] = get(row, 1)?;
                let opened = match Sealed::parse(chunk) {
                    Some(sealed) if self.0.0.vault.is_some() => {
                        Cow::Owned(keys.open(&sealed, &about_chunk(run, last))?)
                    }
                    _ => Cow::Borrowed(chunk),
                };
                codec::decode(&opened, last, next, limit, &mut records)
                    .map_err(|damage| damage.at(format!("run `{run}`")))?;
                if records.len() >= limit {
                    break;
                }
            }
            if rows.len() < usize::try_from(room).unwrap_or(usize::MAX) {
                break;
            }
            next = records.last().map_or(next, |record| record.seq + 1);
        }
        Ok(records)
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, Error> {
        let select = format!("{HEAD} WHERE run = $1 AND last_seq > 0");
        let rows = self.0.0.pool.query("read the journal", &select, &[&run]).await?;
        Ok(rows.first().map(head_of).transpose()?.map(|(head, _)| head))
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunHead>, Error> {
        let status = filter.status.map(status_name);
        let select = format!(
            "{HEAD} WHERE last_seq > 0 AND ($1::text IS NULL OR workflow = $1)
             AND ($2::text IS NULL OR project = $2) AND ($3::text IS NULL OR status = $3)
             ORDER BY run"
        );
        let rows = self
            .0
            .0
            .pool
            .query("list the runs", &select, &[&filter.workflow, &filter.project, &status])
            .await?;
        rows.iter().map(|row| head_of(row).map(|(head, _)| head)).collect()
    }
}

#[async_trait]
impl Follow for PostgresJournal {
    async fn grown(&self, run: &str, from: Seq) -> Result<(), Error> {
        {
            let mut listening = self.0.0.listening.lock().await;
            if listening.is_none() {
                *listening = Some(Listening(tokio::spawn(listen(Arc::downgrade(&self.0.0))).abort_handle()));
            }
        }
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
