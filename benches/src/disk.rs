//! SQLite on a real disk: Coral's journal, and what a program without Coral would do by hand.

use std::path::Path;

use coral_core::{EVENT_FORMAT, Event, Journal, Record};
use coral_state::SqliteJournal;
use rusqlite::{Connection, Transaction, params};
use serde::Serialize;
use tempfile::TempDir;

use crate::measure::Outcome;
use crate::report::target_dir;
use crate::shapes::Bytes;

/// Bytes of an event's content, about.
const EVENT_BYTES: usize = 300;

/// A directory that goes with the value, on the disk that is built on: what is measured is that disk's sync.
///
/// # Errors
/// If it can't be made.
pub fn scratch_dir() -> Outcome<TempDir> {
    let parent = target_dir().join("bench");
    std::fs::create_dir_all(&parent)?;
    Ok(tempfile::Builder::new().prefix("scratch-").tempdir_in(parent)?)
}

/// Runs that are written at once, each by a task that waits for its event to be durable before the next.
#[derive(Debug)]
pub struct Writers {
    journal: SqliteJournal,
    heads: Vec<(String, u64, u64)>,
}

impl Writers {
    /// So many runs in a new journal under `dir`.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn new(dir: &Path, count: usize) -> Outcome<Self> {
        let journal = SqliteJournal::open(dir.join(format!("coral-{count}.db")))?;
        let mut heads = Vec::with_capacity(count);
        for n in 0..count {
            let run = format!("run-{n}");
            let epoch = journal.acquire(&run).await?;
            let event = serde_json::from_value(serde_json::json!({ "run_started": {
                "format": EVENT_FORMAT,
                "project": "bench",
                "graph": { "name": "bench", "steps": [] },
                "pins": { "graph": "", "agents": {} },
                "input": null,
                "facts": {},
            } }))?;
            journal.append(&run, epoch, 0, vec![Record { seq: 1, at_ms: 0, event }].into()).await?;
            heads.push((run, epoch, 1));
        }
        Ok(Writers { journal, heads })
    }

    /// Each writes so many events.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn write(&mut self, times: u64) -> Outcome {
        let tasks: Vec<_> = self
            .heads
            .drain(..)
            .map(|(run, epoch, mut last)| {
                let journal = self.journal.clone();
                tokio::spawn(async move {
                    for _ in 0..times {
                        let event = Event::Noted {
                            path: "step".into(),
                            topic: "bench".into(),
                            note: "x".repeat(EVENT_BYTES).into(),
                        };
                        let record = Record { seq: last + 1, at_ms: 0, event };
                        journal.append(&run, epoch, last, vec![record].into()).await?;
                        last += 1;
                    }
                    Outcome::Ok((run, epoch, last))
                })
            })
            .collect();
        for task in tasks {
            self.heads.push(task.await??);
        }
        Ok(())
    }
}

/// A step's name, as long as those of the shapes.
const STEP: &str = "branch-42";

/// An event as one would write it by hand.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum ByHand {
    Started { at_ms: u64, step: &'static str, attempt: u32 },
    Succeeded { at_ms: u64, step: &'static str, attempt: u32, output: Bytes },
}

fn insert(commit: &Transaction<'_>, run: u64, data: &[u8]) -> Outcome {
    let mut insert = commit.prepare_cached("INSERT INTO events (run, data) VALUES (?1, ?2)")?;
    insert.execute(params![run.cast_signed(), data])?;
    Ok(())
}

/// A table of events in SQLite (WAL, synchronous FULL) without anything above it.
#[derive(Debug)]
pub struct BareSqlite {
    conn: Connection,
    rows: u64,
}

impl BareSqlite {
    /// In a new file.
    ///
    /// # Errors
    /// Those of SQLite.
    pub fn new(file: &Path) -> Outcome<Self> {
        let conn = Connection::open(file)?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.execute_batch(
            "CREATE TABLE events (id INTEGER PRIMARY KEY, run INTEGER NOT NULL, data BLOB NOT NULL)",
        )?;
        Ok(BareSqlite { conn, rows: 0 })
    }

    /// Commits so many times, each time `rows` rows of `bytes` bytes.
    ///
    /// # Errors
    /// Those of SQLite.
    pub fn commit(&mut self, times: u64, rows: u64, bytes: usize) -> Outcome {
        let data = vec![b'x'; bytes];
        for _ in 0..times {
            let commit = self.conn.transaction()?;
            for run in 0..rows {
                insert(&commit, run, &data)?;
            }
            commit.commit()?;
            self.rows += rows;
        }
        Ok(())
    }

    /// Commits once: of each of `runs` runs so many events, each a row, as a program would keep them that wants to find
    /// them again.
    ///
    /// # Errors
    /// Those of SQLite.
    pub fn commit_events(&mut self, runs: u64, events: usize) -> Outcome {
        let commit = self.conn.transaction()?;
        for run in 0..runs {
            for n in 0..events {
                let (at_ms, step, attempt) = (1_738_922_400_123, STEP, 1);
                let event = if n % 2 == 0 {
                    ByHand::Started { at_ms, step, attempt }
                } else {
                    ByHand::Succeeded { at_ms, step, attempt, output: Bytes::default() }
                };
                insert(&commit, run, &serde_json::to_vec(&event)?)?;
            }
        }
        commit.commit()?;
        self.rows += runs * events as u64;
        Ok(())
    }

    /// One transaction for each event.
    ///
    /// # Errors
    /// Those of SQLite.
    pub fn write_each(&mut self, times: u64) -> Outcome {
        self.commit(times, 1, EVENT_BYTES)
    }

    /// Reads all rows, and says how many there are.
    ///
    /// # Errors
    /// Those of SQLite.
    pub fn read_all(&self) -> Outcome<u64> {
        let mut select = self.conn.prepare_cached("SELECT data FROM events ORDER BY id")?;
        let mut rows = select.query([])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let data: Vec<u8> = row.get(0)?;
            count += u64::from(!data.is_empty());
        }
        Ok(count)
    }
}
