//! What only a file can suffer.

use std::fs;
use std::path::Path;

use coral_core::{ErrorClass, Event, GraphData, Journal, Record, Seq};
use coral_state::{SqliteJournal, SqliteOptions, SqliteStore};
use rusqlite::Connection;
use tempfile::TempDir;

fn record(seq: Seq) -> Record {
    let event = if seq == 1 {
        Event::RunStarted {
            format: 1,
            project: "reef".into(),
            graph: GraphData::default().into(),
            pins: Default::default(),
            input: coral_core::Payload::null(),
            facts: Default::default(),
            budget: Box::default(),
            forked_from: None,
        }
    } else {
        Event::CancelRequested { reason: format!("reason {seq}").into() }
    };
    Record { seq, at_ms: seq, event }
}

fn place() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coral.db");
    (dir, path)
}

async fn append(journal: &SqliteJournal, run: &str, records: std::ops::RangeInclusive<Seq>) {
    let epoch = journal.acquire(run).await.unwrap();
    journal.append(run, epoch, records.start() - 1, records.map(record).collect()).await.unwrap();
}

/// Copies a store as a power cut would leave it: whatever is in the files now.
fn snapshot(from: &Path, to: &Path) {
    for ending in ["", "-wal"] {
        let name = |path: &Path| format!("{}{ending}", path.display());
        fs::copy(name(from), name(to)).unwrap();
    }
}

#[tokio::test]
async fn a_log_cut_at_any_byte_gives_whole_batches() {
    let (dir, path) = place();
    let journal = SqliteJournal::open(&path).unwrap();
    append(&journal, "run", 1..=4).await;
    let epoch = journal.acquire("run").await.unwrap();
    let wal = format!("{}-wal", path.display());
    let before = fs::metadata(&wal).unwrap().len();
    journal.append("run", epoch, 4, (5..=9).map(record).collect()).await.unwrap();
    let after = fs::metadata(&wal).unwrap().len();
    let torn = dir.path().join("torn.db");
    snapshot(&path, &torn);
    let torn_wal = format!("{}-wal", torn.display());
    let whole = fs::read(&torn_wal).unwrap();
    // Every byte of the last page, and the borders of all pages of the last commit.
    let page = 4_096 + 24;
    let cuts = (before..after).filter(|cut| *cut + page > after || (after - cut) % page < 2);
    for cut in cuts {
        fs::write(&torn_wal, &whole[..usize::try_from(cut).unwrap()]).unwrap();
        let kept = rusqlite_records(&torn);
        assert_eq!(kept, 4, "cut at {cut} of {after}");
        let _ = fs::remove_file(format!("{}-shm", torn.display()));
    }
    // And through the journal itself, which goes on from there.
    fs::write(&torn_wal, &whole[..usize::try_from(after - 1).unwrap()]).unwrap();
    let survivor = SqliteJournal::open(&torn).unwrap();
    assert_eq!(survivor.read("run", 1, 99).await.unwrap(), (1..=4).map(record).collect::<Vec<_>>());
    survivor.append("run", epoch, 4, vec![record(5)].into()).await.unwrap();
}

/// The last seq by the head and by the chunks, which must agree.
fn rusqlite_records(path: &Path) -> Seq {
    let conn = Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let one = |sql| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let head = one("SELECT last_seq FROM runs");
    assert_eq!(head, one("SELECT max(last_seq) FROM chunks"));
    head.cast_unsigned()
}

#[tokio::test]
async fn a_full_disk_fails_the_batch_and_nothing_else() {
    let (_dir, path) = place();
    let mut options = SqliteOptions::at(&path);
    options.max_bytes = Some(200 << 10);
    let journal = SqliteJournal::open_with(options).unwrap();
    append(&journal, "run", 1..=3).await;
    append(&journal, "small", 1..=3).await;
    let epoch = journal.acquire("run").await.unwrap();
    let noise: Vec<u64> = (0..40_000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let note = serde_json::to_value(noise).unwrap();
    let event = Event::Noted { path: "a".into(), topic: "large".into(), note };
    let large = Record { seq: 4, at_ms: 4, event };
    let small_epoch = journal.acquire("small").await.unwrap();
    let (error, small) = tokio::join!(
        journal.append("run", epoch, 3, vec![large.clone()].into()),
        journal.append("small", small_epoch, 3, vec![record(4)].into()),
    );
    let error = error.unwrap_err();
    assert_eq!(error.class(), ErrorClass::System, "{error:?}");
    assert!(error.help().unwrap().contains("free some space"), "{error:?}");
    assert_eq!(journal.head("run").await.unwrap().unwrap().last_seq, 3);
    let kept = journal.head("small").await.unwrap().unwrap().last_seq;
    assert_eq!(kept, if small.is_ok() { 4 } else { 3 });
    append(&journal, "small", kept + 1..=kept + 1).await;
    drop(journal);
    let journal = SqliteJournal::open(&path).unwrap();
    journal.append("run", epoch, 3, vec![large.clone()].into()).await.unwrap();
    assert_eq!(journal.read("run", 4, 9).await.unwrap(), [large]);
    assert_eq!(journal.head("small").await.unwrap().unwrap().last_seq, kept + 1);
}

#[tokio::test]
async fn an_append_whose_head_finds_no_room_is_not_acknowledged() {
    let (_dir, path) = place();
    let mut options = SqliteOptions::at(&path);
    options.max_bytes = Some(400 << 10);
    let store = SqliteStore::open_with(options).unwrap();
    let journal = store.journal();
    append(&journal, "old", 1..=2).await;
    let epoch = journal.acquire("old").await.unwrap();
    let over = Event::RunFinished { status: coral_core::RunStatus::Succeeded, output: None, error: None };
    journal.append("old", epoch, 2, vec![Record { seq: 3, at_ms: 3, event: over }].into()).await.unwrap();
    let epoch = journal.acquire("new").await.unwrap();
    // Its records pack well, and its head does not.
    let mut first = record(1);
    if let Event::RunStarted { project, .. } = &mut first.event {
        *project = "p".repeat(150 << 10).into();
    }
    let holder = Connection::open(&path).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (waits, appended, removed, ()) = tokio::join!(
        journal.acquire("waits"),
        async {
            tokio::task::yield_now().await;
            journal.append("new", epoch, 0, vec![first].into()).await
        },
        async {
            tokio::task::yield_now().await;
            store.remove_run("old").await
        },
        async {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            // All of them wait now.
            holder.execute_batch("COMMIT").unwrap();
        }
    );
    waits.unwrap();
    let error = appended.unwrap_err();
    assert_eq!(error.class(), ErrorClass::System, "{error:?}");
    assert!(removed.is_err(), "it was of the same group");
    assert_eq!(journal.verify("new").await.unwrap(), 0);
    assert_eq!(journal.verify("old").await.unwrap(), 3);
}

#[tokio::test]
async fn a_held_lock_is_told_as_transient() {
    let (_dir, path) = place();
    let mut options = SqliteOptions::at(&path);
    options.busy_timeout = std::time::Duration::from_millis(20);
    let journal = SqliteJournal::open_with(options).unwrap();
    append(&journal, "run", 1..=2).await;
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = journal.acquire("run").await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert_eq!(journal.read("run", 1, 9).await.unwrap().len(), 2, "reading waits for nobody");
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(journal.acquire("run").await.unwrap(), 2);
}

#[test]
fn files_of_others_are_refused_and_left_alone() {
    let (dir, path) = place();
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("CREATE TABLE recipes (name TEXT)").unwrap();
    drop(conn);
    let text = dir.path().join("notes.txt");
    fs::write(&text, "not a database, but long enough to be read as one ".repeat(99)).unwrap();
    for (file, code, says) in [
        (&path, "CORAL0001", "another program"),
        (&text, "CORAL0016", "not a SQLite database"),
        (&dir.path().join("none/coral.db"), "CORAL0016", "directory exists"),
    ] {
        let before = fs::read(file).ok();
        let error = SqliteStore::open(file).unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.place(), Some(&*file.display().to_string()));
        assert_eq!(fs::read(file).ok(), before);
    }
}

#[test]
fn a_newer_format_is_refused() {
    let (_dir, path) = place();
    drop(SqliteStore::open(&path).unwrap());
    let conn = Connection::open(&path).unwrap();
    conn.pragma_update(None, "user_version", 9_999).unwrap();
    drop(conn);
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(error.to_string().contains("version 9999"), "{error}");
}

#[tokio::test]
async fn damaged_chunks_are_errors_with_a_place() {
    let (_dir, path) = place();
    let journal = SqliteJournal::open(&path).unwrap();
    append(&journal, "run", 1..=3).await;
    let epoch = journal.acquire("run").await.unwrap();
    for at in 3..6 {
        journal.append("run", epoch, at, vec![record(at + 1)].into()).await.unwrap();
    }
    let conn = Connection::open(&path).unwrap();
    for (damage, says) in [
        ("UPDATE chunks SET data = x'07' WHERE last_seq = 5", "newer release"),
        ("UPDATE chunks SET data = x'' WHERE last_seq = 5", "empty"),
        ("UPDATE chunks SET data = x'5b31' WHERE last_seq = 5", "EOF"),
        ("DELETE FROM chunks WHERE last_seq = 5", "records 5 to 5 are missing"),
    ] {
        conn.execute_batch(damage).unwrap();
        let error = journal.read("run", 1, usize::MAX).await.unwrap_err();
        assert_eq!(error.code(), "CORAL0016");
        assert_eq!(error.place(), Some("run `run`"));
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(journal.read("run", 1, 4).await.unwrap().len(), 4, "what is whole can be read");
}

#[tokio::test]
async fn dropping_the_journal_waits_for_its_queue() {
    let (_dir, path) = place();
    let journal = SqliteJournal::open(&path).unwrap();
    append(&journal, "run", 1..=1).await;
    let epoch = journal.acquire("run").await.unwrap();
    for at in 1..50 {
        // Polled once, so that it is in the queue, and then given up.
        let mut append = journal.append("run", epoch, at, vec![record(at + 1)].into());
        let sent = std::future::poll_fn(|cx| std::task::Poll::Ready(append.as_mut().poll(cx))).await;
        assert!(sent.is_pending());
    }
    drop(journal);
    let journal = SqliteJournal::open(&path).unwrap();
    assert_eq!(journal.head("run").await.unwrap().unwrap().last_seq, 50);
}
