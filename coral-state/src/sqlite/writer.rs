//! The one thread that writes, and its group commit.
//!
//! Everything that waits when a commit ends goes into the next one: with many runs at work the
//! price of a sync is shared by all of them, with one run it is paid at once. Each request is
//! checked and answered by itself; only a failure of the commit fails them all.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coral_core::{Error, Record, RunHead, Seq, check_append, check_begin};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

use super::fault::{leaves_doubt, storage};
use super::keys;
use super::queue::Queue;
use crate::bell::Bell;
use crate::crypto::Sealed;
use crate::status::{status_name, status_of};

/// What one commit takes in at the most, so that nobody waits long for a stranger's megabytes.
const GROUP_BYTES: usize = 16 << 20;
/// Heads kept in memory between commits.
const HEADS: usize = 16_384;
/// How long a commit may be held for those whom the last one answered.
const PATIENCE: Duration = Duration::from_millis(1);

pub(super) enum Request {
    Append(Append),
    Acquire {
        run: Box<str>,
        answer: oneshot::Sender<Result<u64, Error>>,
    },
    Job(Box<dyn Job>),
    /// What can't be within a transaction: done after the commit of what came before.
    Aside(Box<dyn FnOnce(&Connection) + Send>),
}

/// The epoch under which an append was made, with its records, so that whoever asked drops them.
pub(super) type Appended = (Result<u64, Error>, Arc<[Record]>);

/// A batch on its way. The records come back with the answer, so that freeing them costs the
/// caller's time and not the writer's.
pub(super) struct Append {
    pub(super) run: Box<str>,
    /// `None` where a run begins with it.
    pub(super) epoch: Option<u64>,
    pub(super) expected: Seq,
    pub(super) records: Arc<[Record]>,
    pub(super) chunk: Vec<u8>,
    pub(super) answer: oneshot::Sender<Appended>,
}

/// Any other change: what it does is undone if it fails, and answered once it is durable.
pub(super) trait Job: Send {
    fn run(&mut self, conn: &Connection) -> Result<(), Error>;
    fn answer(self: Box<Self>, outcome: Result<(), Error>);
    /// Whether it changes the table of runs, which the writer remembers.
    fn changes_runs(&self) -> bool;
}

/// Serves `requests` until the queue is closed and empty.
pub(super) fn serve(conn: &Connection, requests: &Queue<Request>, bell: &Bell) {
    let mut writer = Writer::new(conn);
    let mut waiting = VecDeque::new();
    let mut group = Vec::new();
    // Writers that were answered a moment ago are on their way back. Waiting for them as long as
    // half a commit takes costs less than a commit of their own; a lone writer never waits.
    let (mut usual, mut patience) = (1, Duration::ZERO);
    while !waiting.is_empty() || requests.take(usual, patience, &mut waiting) {
        let mut bytes = 0;
        let mut aside = None;
        while let Some(request) = waiting.pop_front_if(|_| bytes < GROUP_BYTES) {
            if let Request::Aside(act) = request {
                aside = Some(act);
                break;
            }
            bytes += size(&request);
            group.push(request);
        }
        usual = group.len();
        let begun = Instant::now();
        if !group.is_empty() {
            writer.commit(&mut group, bell);
        }
        if let Some(act) = aside {
            act(conn);
        }
        patience = (begun.elapsed() / 2).min(PATIENCE);
    }
}

fn size(request: &Request) -> usize {
    match request {
        Request::Append(append) => append.chunk.len(),
        Request::Acquire { .. } | Request::Job(_) | Request::Aside(_) => 0,
    }
}

struct Writer<'c> {
    conn: &'c Connection,
    heads: Heads,
    /// Changes when another connection wrote: then nothing remembered holds.
    data_version: Option<i64>,
    /// Why this transaction is already undone: SQLite does so by itself when the disk is full.
    lost: Option<Error>,
    /// Why nothing can be written any more.
    dead: Option<Error>,
}

/// What is known of runs, and which of it the table does not say yet.
#[derive(Default)]
struct Heads {
    places: HashMap<Box<str>, usize>,
    known: Vec<Known>,
    changed: Vec<usize>,
    /// Data keys that were not destroyed when they were last looked at.
    alive: HashSet<u32>,
}

impl Heads {
    fn clear(&mut self) {
        self.places.clear();
        self.known.clear();
        self.changed.clear();
        self.alive.clear();
    }

    fn add(&mut self, run: &str, known: Known) -> usize {
        let place = self.known.len();
        self.known.push(known);
        self.places.insert(run.into(), place);
        place
    }

    /// The head at `place`, about to be changed.
    fn change(&mut self, place: usize) -> Option<&mut Known> {
        let known = self.known.get_mut(place)?;
        if !known.changed {
            known.changed = true;
            self.changed.push(place);
        }
        Some(known)
    }
}

struct Known {
    id: i64,
    epoch: u64,
    head: RunHead,
    changed: bool,
    /// Whether what runs are listed by changed too.
    relisted: bool,
}

/// An answer that waits for the commit.
enum Answer {
    Append(Append, Result<u64, Error>),
    Acquire(oneshot::Sender<Result<u64, Error>>, Result<u64, Error>),
    Job(Box<dyn Job>, Result<(), Error>),
    Nobody,
}

impl Answer {
    /// The run that has grown, and to where.
    fn grown(&self) -> Option<(&str, Seq)> {
        match self {
            Answer::Append(append, Ok(_)) => append.records.last().map(|last| (&*append.run, last.seq)),
            _ => None,
        }
    }

    fn send(self, commit: Result<(), &Error>) {
        // Whoever asked may have gone: the change stays.
        match self {
            Answer::Append(append, result) => {
                let Append { records, answer, chunk, .. } = append;
                drop(chunk);
                let result = result.and_then(|epoch| commit.map(|()| epoch).map_err(Clone::clone));
                let _ = answer.send((result, records));
            }
            Answer::Acquire(answer, result) => {
                let _ = answer.send(result.and_then(|epoch| commit.map(|()| epoch).map_err(Clone::clone)));
            }
            Answer::Job(job, result) => job.answer(result.and(commit.map_err(Clone::clone))),
            Answer::Nobody => {}
        }
    }
}

impl<'c> Writer<'c> {
    fn new(conn: &'c Connection) -> Self {
        Writer { conn, heads: Heads::default(), data_version: None, lost: None, dead: None }
    }

    fn commit(&mut self, group: &mut Vec<Request>, bell: &Bell) {
        let begun = match &self.dead {
            Some(error) => Err(error.clone()),
            None => self.begin(),
        };
        if let Err(error) = begun {
            for request in group.drain(..) {
                unserved(request).send(Err(&error));
            }
            return;
        }
        let answers: Vec<Answer> = group.drain(..).map(|request| self.serve(request)).collect();
        let committed = self.end();
        if committed.is_ok() {
            bell.ring(answers.iter().filter_map(Answer::grown));
        }
        for answer in answers {
            answer.send(committed.as_ref().copied());
        }
    }

    fn begin(&mut self) -> Result<(), Error> {
        let begin = || -> rusqlite::Result<i64> {
            self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            self.conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
        };
        match begin() {
            Ok(version) => {
                if self.data_version.replace(version) != Some(version) || self.heads.known.len() > HEADS {
                    self.heads.clear();
                }
                Ok(())
            }
            Err(error) => {
                self.roll_back();
                Err(storage("write to the store", &error))
            }
        }
    }

    fn end(&mut self) -> Result<(), Error> {
        if let Some(lost) = self.lost.take() {
            self.roll_back();
            return Err(lost);
        }
        let result = self
            .write_heads()
            .and_then(|()| self.conn.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([])));
        match result {
            Ok(_) => Ok(()),
            Err(error) => {
                self.roll_back();
                let told = storage("write to the store", &error);
                if leaves_doubt(&error) {
                    // What a failed sync left behind can't be known, and a later sync that
                    // succeeds would not mean that it is there. Opening anew finds out.
                    self.dead = Some(told.clone());
                }
                Err(told)
            }
        }
    }

    fn roll_back(&mut self) {
        self.heads.clear();
        if !self.conn.is_autocommit()
            && let Err(error) = self.conn.execute_batch("ROLLBACK")
        {
            self.dead = Some(storage("undo a write to the store", &error));
        }
    }

    fn serve(&mut self, request: Request) -> Answer {
        match request {
            Request::Append(append) => {
                let result = self.attempt(|writer| writer.append(&append));
                Answer::Append(append, result)
            }
            Request::Acquire { run, answer } => {
                let result = self.attempt(|writer| writer.acquire(&run));
                Answer::Acquire(answer, result)
            }
            Request::Job(mut job) => {
                let result = self.attempt(|writer| writer.job(&mut *job));
                Answer::Job(job, result)
            }
            Request::Aside(_) => Answer::Nobody,
        }
    }

    /// Does `change` unless the transaction is gone: outside of it, it would take effect at once.
    fn attempt<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        let result = change(self);
        if let Err(error) = &result
            && self.conn.is_autocommit()
        {
            self.lost = Some(error.clone());
        }
        result
    }

    fn append(&mut self, append: &Append) -> Result<u64, Error> {
        let failed = |e: rusqlite::Error| storage("append to the journal", &e);
        let epoch = match append.epoch {
            Some(epoch) => epoch,
            None => self.begin_run(&append.run)?,
        };
        let place = self.find(&append.run).map_err(failed)?;
        let Some(known) = place.and_then(|place| self.heads.known.get(place)) else {
            let absent = RunHead::new(&*append.run);
            check_append(&absent, 0, epoch, append.expected, &append.records)?;
            return Ok(epoch);
        };
        check_append(&known.head, known.epoch, epoch, append.expected, &append.records)?;
        let (Some(place), Some(last)) = (place, append.records.last()) else { return Ok(epoch) };
        let (id, chunk) = (known.id, &append.chunk);
        self.check_key(chunk)?;
        // One statement for the whole batch, and SQLite undoes a statement that fails: a batch
        // needs no savepoint to be all or nothing among the others.
        self.conn
            .prepare_cached("INSERT INTO chunks (run_id, last_seq, data) VALUES (?1, ?2, ?3)")
            .and_then(|mut insert| insert.execute(params![id, last.seq.cast_signed(), chunk]))
            .map_err(failed)?;
        if let Some(known) = self.heads.change(place) {
            for record in append.records.iter() {
                let status = known.head.status;
                known.head.apply(record);
                known.relisted |= record.seq == 1 || known.head.status != status;
            }
        }
        Ok(epoch)
    }

    /// Takes a run over that has not begun.
    fn begin_run(&mut self, run: &str) -> Result<u64, Error> {
        let place = self.find(run).map_err(|e| storage("begin the run", &e))?;
        if let Some(known) = place.and_then(|place| self.heads.known.get(place)) {
            check_begin(&known.head)?;
        }
        self.acquire(run)
    }

    /// Refuses what is sealed by a destroyed key, which another process may still hold in memory.
    fn check_key(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let Some(sealed) = Sealed::parse(chunk).filter(|sealed| !self.heads.alive.contains(&sealed.key))
        else {
            return Ok(());
        };
        keys::check(self.conn, &sealed).map_err(|e| storage("append to the journal", &e))??;
        self.heads.alive.insert(sealed.key);
        Ok(())
    }

    fn acquire(&mut self, run: &str) -> Result<u64, Error> {
        let failed = |e: rusqlite::Error| storage("take over the run", &e);
        if let Some(place) = self.find(run).map_err(failed)?
            && let Some(known) = self.heads.change(place)
        {
            known.epoch += 1;
            return Ok(known.epoch);
        }
        let head = RunHead::new(run);
        self.conn
            .prepare_cached(
                "INSERT INTO runs (run, epoch, workflow, project, status, last_seq, started_at_ms, updated_at_ms,
                 revision) VALUES (?1, 1, '', '', ?2, 0, 0, 0, (SELECT last FROM revisions))",
            )
            .and_then(|mut insert| insert.execute(params![run, status_name(head.status)]))
            .map_err(failed)?;
        self.heads.add(
            run,
            Known { id: self.conn.last_insert_rowid(), epoch: 1, head, changed: false, relisted: false },
        );
        Ok(1)
    }

    fn job(&mut self, job: &mut dyn Job) -> Result<(), Error> {
        if job.changes_runs() {
            // The heads are those of others' appends: without them nothing of the group may stay.
            let written = self.write_heads();
            self.must(written)?;
            self.heads.clear();
        }
        let conn = self.conn;
        let command = |sql| conn.prepare_cached(sql).and_then(|mut command| command.execute([]));
        self.must(command("SAVEPOINT job"))?;
        let result = job.run(conn);
        if result.is_err() && conn.is_autocommit() {
            return result;
        }
        if result.is_err() {
            self.must(command("ROLLBACK TO job"))?;
        }
        self.must(command("RELEASE job"))?;
        result
    }

    /// The outcome of what the whole group depends on: if it failed, the group does.
    fn must<T>(&mut self, outcome: rusqlite::Result<T>) -> Result<T, Error> {
        outcome.map_err(|error| {
            let told = storage("write to the store", &error);
            self.lost = Some(told.clone());
            told
        })
    }

    /// Where the run is in `heads`, as it stands within this transaction.
    fn find(&mut self, run: &str) -> rusqlite::Result<Option<usize>> {
        if let Some(place) = self.heads.places.get(run) {
            return Ok(Some(*place));
        }
        let known = self
            .conn
            .prepare_cached(
                "SELECT workflow, project, status, last_seq, started_at_ms, updated_at_ms, run, revision, id,
                 epoch FROM runs WHERE run = ?1",
            )?
            .query_row([run], |row| {
                let epoch: i64 = row.get(9)?;
                Ok(Known {
                    id: row.get(8)?,
                    epoch: epoch.cast_unsigned(),
                    head: head_of(row)?,
                    changed: false,
                    relisted: false,
                })
            })
            .optional()?;
        Ok(known.map(|known| self.heads.add(run, known)))
    }

    fn write_heads(&mut self) -> rusqlite::Result<()> {
        // Most appends leave alone what runs are listed by, and with it the indexes.
        let mut update = self
            .conn
            .prepare_cached("UPDATE runs SET epoch = ?2, last_seq = ?3, updated_at_ms = ?4 WHERE id = ?1")?;
        let mut relist = self.conn.prepare_cached(
            "UPDATE runs SET workflow = ?2, project = ?3, status = ?4, started_at_ms = ?5 WHERE id = ?1",
        )?;
        for place in self.heads.changed.drain(..) {
            let Some(known) = self.heads.known.get_mut(place) else { continue };
            let head = &known.head;
            update.execute(params![
                known.id,
                known.epoch.cast_signed(),
                head.last_seq.cast_signed(),
                head.updated_at_ms.cast_signed(),
            ])?;
            if known.relisted {
                relist.execute(params![
                    known.id,
                    head.workflow,
                    head.project,
                    status_name(head.status),
                    head.started_at_ms.cast_signed(),
                ])?;
            }
            known.changed = false;
            known.relisted = false;
        }
        Ok(())
    }
}

fn unserved(request: Request) -> Answer {
    match request {
        Request::Append(append) => Answer::Append(append, Ok(0)),
        Request::Acquire { answer, .. } => Answer::Acquire(answer, Ok(0)),
        Request::Job(job) => Answer::Job(job, Ok(())),
        Request::Aside(_) => Answer::Nobody,
    }
}

/// The head in the columns `workflow, project, status, last_seq, started_at_ms, updated_at_ms, run,
/// revision`.
pub(super) fn head_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<RunHead> {
    let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
    let status: String = row.get(2)?;
    Ok(RunHead {
        workflow: row.get(0)?,
        project: row.get(1)?,
        status: status_of(&status).ok_or_else(|| {
            rusqlite::Error::FromSqlConversionFailure(
                2,
                rusqlite::types::Type::Text,
                format!("unknown status `{status}`: written by a newer release").into(),
            )
        })?,
        last_seq: number(3)?,
        started_at_ms: number(4)?,
        updated_at_ms: number(5)?,
        run: row.get(6)?,
        revision: number(7)?,
    })
}
