//! What storing costs, beside the bare driver on the same disk in the same run.
//!
//! `cargo bench -p coral-state --bench state` prints a table and writes
//! `target/bench/state.json`.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench fails by panicking and prints")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coral_core::{
    Event, GraphData, Journal, MemoryJournal, Payload, Record, RunFilter, RunStatus, Seq, StepData, StepKind,
};
use coral_state::{Durability, KeyRing, MasterKey, RunIndex, RunQuery, SortBy, SqliteJournal, SqliteOptions};
use rusqlite::{Connection, params};
use tokio::task::JoinSet;

fn main() {
    let only = std::env::args().nth(1).filter(|arg| !arg.starts_with('-')).unwrap_or_default();
    let mut table = Table::default();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let benches = [("journal", journal as Bench), ("encryption", encryption), ("query", query)];
    for (name, bench) in benches {
        if name.contains(&only) {
            bench(&runtime, dir.path(), &mut table);
        }
    }
    table.write();
}

type Runtime = tokio::runtime::Runtime;
type Bench = fn(&Runtime, &Path, &mut Table);

#[derive(Default)]
struct Table(Vec<serde_json::Value>);

impl Table {
    fn row(&mut self, case: &str, unit: &str, ours: f64, peer: &str, peer_value: f64) {
        let ratio = if peer_value > 0.0 { ours / peer_value } else { 0.0 };
        println!("{case:<44} {ours:>12.1} {unit:<12} {peer:<40} {peer_value:>12.1}  ×{ratio:.2}");
        self.0.push(serde_json::json!({
            "case": case, "unit": unit, "ours": ours, "peer": peer, "peer_value": peer_value, "ratio": ratio,
        }));
    }

    fn write(&self) {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("bench");
        fs::create_dir_all(&target).unwrap();
        fs::write(target.join("state.json"), serde_json::to_string_pretty(&self.0).unwrap()).unwrap();
    }
}

/// A record of about three hundred bytes, like most of a run's.
fn record(seq: Seq) -> Record {
    let event = if seq == 1 {
        Event::RunStarted {
            format: 1,
            project: "reef".into(),
            graph: GraphData::default().into(),
            pins: Default::default(),
            input: Payload::null(),
            facts: Default::default(),
            budget: Box::default(),
            forked_from: None,
        }
    } else {
        let text = format!(
            "turn {seq}: the endpoint lists tasks by owner and due date, answers 404 for a task of \
             another tenant, and pages by cursor; a test covers the empty page and the last one"
        );
        Event::Noted { path: "build/api".into(), topic: "decision".into(), note: text.into() }
    };
    Record { seq, at_ms: 1_738_922_400_000 + seq * 7, event }
}

/// Appends one event at a time from each of `writers` runs, for about `time`; events a second.
async fn appended(journal: &SqliteJournal, writers: usize, time: Duration) -> f64 {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for n in 0..writers {
        let journal = journal.clone();
        tasks.spawn(async move {
            let run = format!("run-{writers}-{n}");
            let epoch = journal.acquire(&run).await.unwrap();
            let mut at = 0;
            while start.elapsed() < time {
                journal.append(&run, epoch, at, vec![record(at + 1)].into()).await.unwrap();
                at += 1;
            }
            at
        });
    }
    let events: Seq = tasks.join_all().await.into_iter().sum();
    events as f64 / start.elapsed().as_secs_f64()
}

fn bare(path: &Path, synchronous: &str) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.pragma_update(None, "journal_mode", "WAL").unwrap();
    conn.pragma_update(None, "synchronous", synchronous).unwrap();
    conn.execute_batch("CREATE TABLE events (run INTEGER, seq INTEGER, event BLOB, PRIMARY KEY (run, seq))")
        .unwrap();
    conn
}

/// Events a second of the driver alone: `batch` inserts in each transaction, serialised beforehand.
fn bare_appended(path: &Path, batch: i64, time: Duration) -> f64 {
    let conn = bare(path, "FULL");
    let event = serde_json::to_vec(&record(2).event).unwrap();
    let start = Instant::now();
    let mut seq = 0;
    while start.elapsed() < time {
        seq += 1;
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        for run in 0..batch {
            conn.prepare_cached("INSERT INTO events VALUES (?1, ?2, ?3)")
                .unwrap()
                .execute(params![run, seq, event])
                .unwrap();
        }
        conn.execute_batch("COMMIT").unwrap();
    }
    (seq * batch) as f64 / start.elapsed().as_secs_f64()
}

fn journal(runtime: &Runtime, dir: &Path, table: &mut Table) {
    let time = Duration::from_secs(3);
    // Each side twice in turn and the better one, since the disk is shared.
    let mut best = [0f64; 5];
    for round in 0..2 {
        let path = |name: &str| dir.join(format!("{name}-{round}.db"));
        let one = SqliteJournal::open(path("one")).unwrap();
        let many = SqliteJournal::open(path("many")).unwrap();
        let rates = [
            bare_appended(&path("bare-1"), 1, time),
            bare_appended(&path("bare-64"), 64, time),
            bare_appended(&path("bare-4096"), 4_096, time),
            runtime.block_on(appended(&one, 1, time)),
            runtime.block_on(appended(&many, 64, time)),
        ];
        for (best, rate) in best.iter_mut().zip(rates) {
            *best = best.max(rate);
        }
    }
    let [single, batch, bulk, one, many] = best;
    table.row("append, 1 writer, synced", "events/s", one, "rusqlite, a transaction an event", single);
    table.row("append, 64 writers, synced", "events/s", many, "rusqlite, a transaction an event", single);
    table.row("append, 64 writers, synced", "events/s", many, "rusqlite, 64 events a transaction", batch);
    table.row("append, 64 writers, synced", "events/s", many, "rusqlite, 4096 events a transaction", bulk);
    let mut options = SqliteOptions::at(dir.join("normal.db"));
    options.durability = Durability::Normal;
    let normal = SqliteJournal::open_with(options).unwrap();
    let rate = runtime.block_on(appended(&normal, 64, time));
    table.row("append, 64 writers, not synced", "events/s", rate, "the same, synced", many);

    // One run of ten thousand events, two to an append as the engine makes them.
    let path = dir.join("long.db");
    let journal = Arc::new(SqliteJournal::open(&path).unwrap());
    let bytes = |conn: &Connection| {
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        fs::metadata(&path).unwrap().len() as f64
    };
    runtime.block_on(async {
        let epoch = journal.acquire("run").await.unwrap();
        let side = Connection::open(&path).unwrap();
        let empty = bytes(&side);
        for at in (0..10_000).step_by(2) {
            journal.append("run", epoch, at, vec![record(at + 1), record(at + 2)].into()).await.unwrap();
        }
        let payload: usize =
            (1..=10_000).map(|seq| serde_json::to_vec(&record(seq).event).unwrap().len()).sum();
        let used = (bytes(&side) - empty) / 10_000.0;
        table.row("size of an event on disk", "bytes", used, "its JSON", payload as f64 / 10_000.0);
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            assert_eq!(journal.read("run", 1, usize::MAX).await.unwrap().len(), 10_000);
            fastest = fastest.min(start.elapsed());
        }
        let text = serde_json::to_vec(&(1..=10_000).map(record).collect::<Vec<_>>()).unwrap();
        let start = Instant::now();
        let parsed: Vec<Record> = serde_json::from_slice(&text).unwrap();
        let parse = start.elapsed().as_secs_f64() * 1e3;
        assert_eq!(parsed.len(), 10_000);
        table.row(
            "read and decode 10,000 events",
            "ms",
            fastest.as_secs_f64() * 1e3,
            "serde_json from memory",
            parse,
        );
        assert_eq!(journal.runs(&RunFilter::default()).await.unwrap().len(), 1);
    });
}

/// The price of encryption, on a journal that does not wait for the disk, which would hide it.
fn encryption(runtime: &Runtime, dir: &Path, table: &mut Table) {
    let (mut plain, mut sealed) = (0f64, 0f64);
    for round in 0..3 {
        let ring = KeyRing::new(MasterKey::generate().unwrap());
        for (slot, best, keys) in [("plain", &mut plain, None), ("sealed", &mut sealed, Some(ring))] {
            let mut options = SqliteOptions::at(dir.join(format!("{slot}-{round}.db")));
            options.durability = Durability::Normal;
            options.keys = keys;
            let journal = SqliteJournal::open_with(options).unwrap();
            let rate = runtime.block_on(appended(&journal, 64, Duration::from_secs(2)));
            *best = best.max(rate);
        }
    }
    table.row("append, 64 writers, encrypted, not synced", "events/s", sealed, "not encrypted", plain);
}

/// Pages of queries over many runs.
fn query(runtime: &Runtime, _: &Path, table: &mut Table) {
    const RUNS: u64 = 100_000;
    let journal = Arc::new(MemoryJournal::new());
    let index = RunIndex::new(journal.clone());
    runtime.block_on(async {
        for n in 0..RUNS {
            let mut graph = GraphData { name: format!("workflow-{}", n % 7), ..Default::default() };
            graph.steps = vec![StepData::new("design", StepKind::Agent(format!("agent-{}", n % 20).into()))];
            let started = Event::RunStarted {
                format: 1,
                project: format!("project-{}", n % 100).into(),
                graph: graph.into(),
                pins: Default::default(),
                input: Payload::from_json(serde_json::json!({"text": format!("brief number {n} of a reef")})),
                facts: Default::default(),
                budget: Default::default(),
                forked_from: None,
            };
            let status = if n % 3 == 0 { RunStatus::Failed } else { RunStatus::Succeeded };
            let finished = Event::RunFinished { status, output: None, error: None };
            let at_ms = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1_000_000_000;
            let records = vec![
                Record { seq: 1, at_ms, event: started },
                Record { seq: 2, at_ms, event: Event::StepStarted { path: "design".into(), attempt: 1 } },
                Record { seq: 3, at_ms: at_ms + 1, event: finished },
            ];
            let run = format!("run-{n:06}");
            let epoch = journal.acquire(&run).await.unwrap();
            journal.append(&run, epoch, 0, records.into()).await.unwrap();
        }
        index.refresh().await.unwrap();
    });
    type Case = (&'static str, fn(&mut RunQuery));
    let queries: [Case; 5] = [
        ("all, by time", |_| {}),
        ("by project", |q| q.project = Some("project-42".into())),
        ("by status and agent", |q| {
            q.status = Some(RunStatus::Failed);
            q.agent = Some("agent-3".into());
        }),
        ("by text", |q| q.text = Some("number 7".into())),
        ("by phase, cost order", |q| {
            q.min_cost = Some(coral_core::Usd::ZERO);
            (q.sort, q.descending) = (SortBy::Cost, true);
        }),
    ];
    for (name, set) in queries {
        let mut query = RunQuery::default();
        set(&mut query);
        let mut slowest = Duration::ZERO;
        for _ in 0..10 {
            let start = Instant::now();
            let page = index.query(&query);
            slowest = slowest.max(start.elapsed());
            assert!(page.total > 0);
            query.after = page.next;
        }
        let ms = slowest.as_secs_f64() * 1e3;
        table.row(&format!("page of 100,000 runs, {name}"), "ms, worst", ms, "target", 20.0);
    }
}
