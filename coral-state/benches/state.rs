//! What storing costs, beside the bare driver on the same disk in the same run.
//!
//! `cargo bench -p coral-state --all-features --bench state [-- PART]` prints a table and writes
//! `target/bench/state.json`. What needs a server starts one of its own, if it is installed.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench fails by panicking and prints")]

#[cfg(feature = "layers")]
#[path = "parts/layers.rs"]
mod layers;
#[cfg(feature = "postgres")]
#[path = "parts/postgres.rs"]
mod postgres;
#[cfg(feature = "postgres")]
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/servers.rs"]
mod servers;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coral_core::{
    EffectClass, EffectKind, Event, GraphData, Journal, MemoryJournal, Outcome, Payload, Record, RunFilter,
    RunStatus, Seq, Spent, StepData, StepKind, Usage,
};
use coral_state::{
    Durability, KeyRing, MasterKey, RunIndex, RunPage, RunQuery, SortBy, SqliteJournal, SqliteOptions,
    SqliteStore,
};
use rusqlite::{Connection, params};
use tokio::task::JoinSet;

fn main() {
    let only = std::env::args().nth(1).filter(|arg| !arg.starts_with('-')).unwrap_or_default();
    let mut table = Table::default();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let benches = [
        ("journal", journal as Bench),
        ("reading", reading),
        ("turns", turns),
        ("encryption", encryption),
        ("query", query),
        #[cfg(feature = "layers")]
        ("layers", layers::hits),
        #[cfg(feature = "postgres")]
        ("postgres", postgres::journal),
    ];
    for (name, bench) in benches {
        if name.contains(&only) {
            bench(&runtime, dir.path(), &mut table);
        }
    }
    table.write();
}

/// Whether only to show that it runs: `--quick`, `CORAL_BENCH_QUICK=1`, or a build that is not optimised.
fn is_quick() -> bool {
    cfg!(debug_assertions)
        || std::env::args().any(|argument| argument == "--quick" || argument == "--test")
        || std::env::var("CORAL_BENCH_QUICK").is_ok_and(|value| value == "1")
}

/// `long`, or a moment where it is only to be shown that it runs.
fn time(long: Duration) -> Duration {
    if is_quick() { Duration::from_millis(100) } else { long }
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Ours and theirs, measured in turn so that a loaded machine is as hard on both: the middle of
/// theirs, and ours by the middle of the ratios of the pairs.
fn paired(
    rounds: usize,
    mut ours: impl FnMut(usize) -> f64,
    mut theirs: impl FnMut(usize) -> f64,
) -> (f64, f64) {
    let rounds = if is_quick() { 1 } else { rounds };
    let pairs: Vec<(f64, f64)> = (0..rounds)
        .map(|round| match round % 2 {
            0 => {
                let our = ours(round);
                (our, theirs(round))
            }
            _ => {
                let their = theirs(round);
                (ours(round), their)
            }
        })
        .collect();
    let their = median(pairs.iter().map(|pair| pair.1).collect());
    (their * median(pairs.iter().map(|pair| pair.0 / pair.1).collect()), their)
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
async fn appended<J: Journal + Clone + 'static>(
    journal: &J,
    writers: usize,
    round: usize,
    time: Duration,
) -> f64 {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for n in 0..writers {
        let journal = journal.clone();
        tasks.spawn(async move {
            let run = format!("run-{round}-{writers}-{n}");
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
    let time = time(Duration::from_secs(3));
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
            runtime.block_on(appended(&one, 1, round, time)),
            runtime.block_on(appended(&many, 64, round, time)),
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
    let rate = runtime.block_on(appended(&normal, 64, 0, time));
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

/// The price of encryption, on a journal that does not wait for the disk, which would hide it, and
/// on one that does.
fn encryption(runtime: &Runtime, dir: &Path, table: &mut Table) {
    for (name, durability) in [("not synced", Durability::Normal), ("synced", Durability::Full)] {
        let rate = |round: usize, slot: &str, keys: Option<KeyRing>| {
            let mut options = SqliteOptions::at(dir.join(format!("{slot}-{name}-{round}.db")));
            options.durability = durability;
            options.keys = keys;
            let journal = SqliteJournal::open_with(options).unwrap();
            runtime.block_on(appended(&journal, 64, round, time(Duration::from_millis(1_500))))
        };
        let (sealed, plain) = paired(
            7,
            |round| rate(round, "sealed", Some(KeyRing::new(MasterKey::generate().unwrap()))),
            |round| rate(round, "plain", None),
        );
        table.row(
            &format!("append, 64 writers, encrypted, {name}"),
            "events/s",
            sealed,
            "not encrypted",
            plain,
        );
    }
}

/// Reads a run of `EVENTS` events again and again, from `readers` at once; events a second.
async fn read<J: Journal + Clone + 'static>(journal: &J, readers: usize, time: Duration) -> f64 {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..readers {
        let journal = journal.clone();
        tasks.spawn(async move {
            let mut events = 0;
            while start.elapsed() < time {
                events += journal.read("run", 1, usize::MAX).await.unwrap().len();
            }
            events
        });
    }
    let events: usize = tasks.join_all().await.into_iter().sum();
    events as f64 / start.elapsed().as_secs_f64()
}

const EVENTS: Seq = 1_000;

/// Keeps the run that is read, two events to an append as the engine makes them.
async fn keep_run(journal: &impl Journal) {
    let epoch = journal.acquire("run").await.unwrap();
    for at in (0..EVENTS).step_by(2) {
        journal.append("run", epoch, at, vec![record(at + 1), record(at + 2)].into()).await.unwrap();
    }
}

/// Reading, beside rows of the bare driver that are parsed as well.
fn reading(runtime: &Runtime, dir: &Path, table: &mut Table) {
    let path = dir.join("read.db");
    let journal = SqliteJournal::open(&path).unwrap();
    runtime.block_on(keep_run(&journal));
    let conn = bare(&dir.join("read-bare.db"), "OFF");
    conn.execute_batch("BEGIN").unwrap();
    for seq in 1..=EVENTS {
        let event = serde_json::to_vec(&record(seq).event).unwrap();
        conn.execute("INSERT INTO events VALUES (1, ?1, ?2)", params![seq.cast_signed(), event]).unwrap();
    }
    conn.execute_batch("COMMIT").unwrap();
    let bare_read = || {
        let (start, mut events) = (Instant::now(), 0);
        while start.elapsed() < time(Duration::from_millis(400)) {
            let mut select =
                conn.prepare_cached("SELECT event FROM events WHERE run = 1 ORDER BY seq").unwrap();
            let parsed: Vec<Event> = select
                .query_map([], |row| Ok(serde_json::from_slice(row.get_ref(0)?.as_blob()?).unwrap()))
                .unwrap()
                .collect::<Result<_, _>>()
                .unwrap();
            events += parsed.len();
        }
        events as f64 / start.elapsed().as_secs_f64()
    };
    for readers in [1, 64] {
        let (ours, theirs) = paired(
            7,
            |_| runtime.block_on(read(&journal, readers, time(Duration::from_millis(400)))),
            |_| bare_read(),
        );
        table.row(
            &format!("read, {readers} at once"),
            "events/s",
            ours,
            "rusqlite, 1 at once, parsed",
            theirs,
        );
    }
}

/// What a turn of an agent takes on disk: a model call with its answer, a tool call with its result.
fn turns(runtime: &Runtime, dir: &Path, table: &mut Table) {
    const TURNS: u64 = 500;
    let path = dir.join("turns.db");
    let journal = SqliteJournal::open(&path).unwrap();
    let words =
        "the endpoint lists tasks by owner and due date and answers 404 for a task of another tenant ";
    let effect = |index: u32, kind: EffectKind, label: &str, text: String| {
        let path: Arc<str> = "build/api".into();
        let intent = Event::EffectIntended {
            path: path.clone(),
            attempt: 1,
            index,
            effect: kind,
            label: label.into(),
            digest: format!("{:064x}", u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            class: EffectClass::Idempotent,
            reserved: None,
            follows: None,
        };
        let outcome =
            Outcome::Ok(Payload::from_json(serde_json::json!({ "role": "assistant", "text": text })));
        let usage =
            Usage { input_tokens: 1_200 + u64::from(index), output_tokens: 300, ..Default::default() };
        let spent =
            Box::new(Spent { model: Some("small-1".into()), usage, cost: None, tries: 1, settled: None });
        [intent, Event::EffectDone { path, attempt: 1, index, outcome, spent }]
    };
    let (mut payload, mut used) = (0, 0.0);
    runtime.block_on(async {
        let side = Connection::open(&path).unwrap();
        let bytes = || {
            side.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
            fs::metadata(&path).unwrap().len() as f64
        };
        let epoch = journal.acquire("run").await.unwrap();
        journal.append("run", epoch, 0, vec![record(1)].into()).await.unwrap();
        let empty = bytes();
        let mut last = 1;
        for turn in 0..TURNS {
            let index = u32::try_from(2 * turn).unwrap();
            // Words in another order each time, so that a turn is not its neighbour's copy.
            let said: String = (0..6)
                .map(|n| {
                    words
                        .split(' ')
                        .skip(usize::try_from((turn * 7 + n) % 11).unwrap())
                        .collect::<Vec<_>>()
                        .join(" ")
                })
                .collect();
            let chat = effect(index, EffectKind::Chat, "small", format!("turn {turn}: {said}"));
            let tool =
                effect(index + 1, EffectKind::Tool, "filesystem.write_file", format!("{turn} bytes written"));
            for pair in [chat, tool] {
                payload += pair.iter().map(|event| serde_json::to_vec(event).unwrap().len()).sum::<usize>();
                let records = pair.into_iter().zip(last + 1..).map(|(event, seq)| Record {
                    seq,
                    at_ms: 1_000 * seq,
                    event,
                });
                journal.append("run", epoch, last, records.collect()).await.unwrap();
                last += 2;
            }
        }
        used = (bytes() - empty) / TURNS as f64;
    });
    table.row("a turn on disk", "bytes", used, "its events as JSON", payload as f64 / TURNS as f64);
}

/// A run of three records that queries can find.
fn small_run(n: u64) -> Vec<Record> {
    let mut graph = GraphData { name: format!("workflow-{}", n % 7), ..Default::default() };
    let mut step = StepData::new("design", StepKind::Agent(format!("agent-{}", n % 20).into()));
    step.phase = format!("phase-{}", n % 5).into();
    graph.steps = vec![step];
    let started = Event::RunStarted {
        format: 1,
        project: format!("project-{}", n % 100).into(),
        graph: graph.into(),
        pins: Default::default(),
        input: Payload::from_json(serde_json::json!({"text": format!("brief number {n} of a reef")})),
        facts: Arc::new([("tags".to_owned(), serde_json::json!([format!("tag-{}", n % 50)]))].into()),
        budget: Default::default(),
        forked_from: None,
    };
    let status = if n.is_multiple_of(3) { RunStatus::Failed } else { RunStatus::Succeeded };
    let finished = Event::RunFinished { status, output: None, error: None };
    let at_ms = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1_000_000_000;
    vec![
        Record { seq: 1, at_ms, event: started },
        Record { seq: 2, at_ms, event: Event::StepStarted { path: "design".into(), attempt: 1 } },
        Record { seq: 3, at_ms: at_ms + 1, event: finished },
    ]
}

/// Pages of queries over many runs, from the index on disk and from the one in memory.
fn query(runtime: &Runtime, dir: &Path, table: &mut Table) {
    let runs = if is_quick() { 2_000 } else { 100_000 };
    let memory = Arc::new(MemoryJournal::new());
    let mut options = SqliteOptions::at(dir.join("index.db"));
    options.durability = Durability::Normal;
    let store = SqliteStore::open_with(options).unwrap();
    let (index, disk) = (RunIndex::new(memory.clone()), store.index());
    runtime.block_on(async {
        let journal = store.journal();
        let mut tasks = JoinSet::new();
        for n in 0..runs {
            let run = format!("run-{n:06}");
            let epoch = memory.acquire(&run).await.unwrap();
            memory.append(&run, epoch, 0, small_run(n).into()).await.unwrap();
            let journal = journal.clone();
            tasks.spawn(async move {
                let epoch = journal.acquire(&run).await.unwrap();
                journal.append(&run, epoch, 0, small_run(n).into()).await.unwrap();
            });
            if tasks.len() > 2_000 {
                tasks.join_next().await.unwrap().unwrap();
            }
        }
        tasks.join_all().await;
        index.refresh().await.unwrap();
        let start = Instant::now();
        disk.refresh().await.unwrap();
        let each = start.elapsed().as_secs_f64() * 1e6 / runs as f64;
        table.row("index on disk, a run folded in", "µs", each, "", 0.0);
    });
    type Case = (&'static str, fn(&mut RunQuery));
    let queries: [Case; 11] = [
        ("all, by time", |_| {}),
        ("by project", |q| q.project = Some("project-42".into())),
        ("by status and agent", |q| {
            q.status = Some(RunStatus::Failed);
            q.agent = Some("agent-3".into());
        }),
        ("by tag, newest first", |q| (q.tag, q.descending) = (Some("tag-7".into()), true)),
        ("by phase, cost order", |q| {
            q.phase = Some("phase-2".into());
            (q.sort, q.descending) = (SortBy::Cost, true);
        }),
        ("by a rare word", |q| q.text = Some("777".into())),
        ("by a word in all", |q| q.text = Some("reef".into())),
        ("by a word in all and an agent", |q| {
            (q.text, q.agent) = (Some("reef".into()), Some("agent-3".into()));
        }),
        ("by time, workflow and status", |q| {
            q.started_ms = Some(900_000_000..1_000_000_000);
            (q.workflow, q.status) = (Some("workflow-3".into()), Some(RunStatus::Failed));
        }),
        ("by what never meets", |q| {
            (q.workflow, q.project, q.phase) =
                (Some("workflow-3".into()), Some("project-42".into()), Some("phase-3".into()));
        }),
        ("by id, last first", |q| (q.sort, q.descending) = (SortBy::Run, true)),
    ];
    for (name, set) in queries {
        let mut query = RunQuery::default();
        set(&mut query);
        let (mut slowest, mut in_memory) = (Duration::ZERO, Duration::ZERO);
        // The machine may be busy elsewhere: each page three times, the best counts; the worst page is told.
        for _ in 0..5 {
            let (mut best, mut page) = (Duration::MAX, RunPage::default());
            for _ in 0..3 {
                let start = Instant::now();
                page = runtime.block_on(disk.query(&query)).unwrap();
                best = best.min(start.elapsed());
            }
            let start = Instant::now();
            let same = index.query(&query);
            in_memory = in_memory.max(start.elapsed());
            assert_eq!(page.runs.len(), same.runs.len(), "{name}");
            slowest = slowest.max(best);
            query.after = page.next;
            if query.after.is_none() {
                break;
            }
        }
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        table.row(
            &format!("page of 100,000 runs, {name}"),
            "ms, worst",
            ms(slowest),
            "index in memory",
            ms(in_memory),
        );
    }
}
