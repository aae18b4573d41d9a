//! Encryption at rest: nothing readable without keys, rotation under load, erasure for good.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coral_core::{Blobs, Cache, Journal, Record, RunFilter};
use coral_state::{KeyRing, MasterKey, ProjectDraft, ProjectStatus, Projects, SqliteOptions, SqliteStore};
use rusqlite::Connection;
use serde_json::json;

use crate::support::{holds, keep, team_run};

const MARKER: &str = "a-marker-that-nothing-else-contains";

fn open(path: &Path, ring: KeyRing) -> SqliteStore {
    let mut options = SqliteOptions::at(path);
    options.keys = Some(ring);
    SqliteStore::open_with(options).unwrap()
}

fn marked(project: &str) -> Vec<Record> {
    team_run(project, MARKER, json!({ "tags": [MARKER] }))
}

#[tokio::test]
async fn nothing_that_was_kept_can_be_read_in_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coral.db");
    let ring = KeyRing::new(MasterKey::generate().unwrap());
    let store = open(&path, ring.clone());
    let projects = Projects::new(store.journal());
    let draft = ProjectDraft { description: Some(MARKER.into()), ..Default::default() };
    projects.create("reef", draft).await.unwrap();
    keep(&store.journal(), "run", &marked("reef")).await;
    let blob = store.blobs_of("reef").put(MARKER.as_bytes()).await.unwrap();
    store.cache(9).put("key", Arc::from(MARKER.as_bytes()), None).await.unwrap();
    assert!(!holds(dir.path(), MARKER.as_bytes()), "while it is open, the log included");
    assert!(holds(dir.path(), b"delivery"), "the search finds what is not encrypted");
    drop((projects, store));
    assert!(!holds(dir.path(), MARKER.as_bytes()));

    let store = open(&path, ring);
    assert_eq!(store.journal().read("run", 1, 99).await.unwrap(), marked("reef"));
    assert_eq!(store.blobs_of("reef").get(&blob).await.unwrap().as_deref(), Some(MARKER.as_bytes()));
    assert_eq!(store.blobs().get(&blob).await.unwrap(), None, "another scope");
    assert_eq!(store.cache(9).get("key").await.unwrap().as_deref(), Some(MARKER.as_bytes()));
    drop(store);

    let error = SqliteStore::open(&path).unwrap_err();
    assert!(error.to_string().contains("encrypted"), "{error}");
    let other = open(&path, KeyRing::new(MasterKey::generate().unwrap()));
    let error = other.journal().read("run", 1, 99).await.unwrap_err();
    assert!(error.to_string().contains("older"), "{error}");
}

#[tokio::test]
async fn sealed_records_can_not_change_places() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coral.db");
    let store = open(&path, KeyRing::new(MasterKey::generate().unwrap()));
    let journal = store.journal();
    for run in ["one", "two"] {
        keep(&journal, run, &marked("reef")).await;
    }
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch(
        "UPDATE chunks SET data = (SELECT data FROM chunks WHERE run_id = 1) WHERE run_id = 2",
    )
    .unwrap();
    assert!(journal.read("one", 1, 99).await.is_ok());
    let error = journal.read("two", 1, 99).await.unwrap_err();
    assert!(error.to_string().contains("another's place"), "{error}");
}

#[tokio::test]
async fn the_master_key_rotates_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coral.db");
    let (old, new) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
    let first = open(&path, KeyRing::new(old.clone()));
    for n in 0..3 {
        keep(&first.journal(), &format!("before-{n}"), &marked(&format!("p{n}"))).await;
    }
    drop(first);
    let store = open(&path, KeyRing::new(new.clone()).and_older(old.clone()));
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let mut runs = 0;
            while !stop.load(Ordering::Relaxed) || runs < 3 {
                keep(&store.journal(), &format!("during-{runs}"), &marked(&format!("p{}", runs % 5))).await;
                runs += 1;
            }
            runs
        }
    });
    assert_eq!(store.rotate_master_key().await.unwrap(), 3);
    assert_eq!(store.rotate_master_key().await.unwrap(), 0);
    store.rotate_data_key("p0").await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let runs = load.await.unwrap();
    keep(&store.journal(), "after", &marked("p0")).await;
    drop(store);

    let store = open(&path, KeyRing::new(new));
    let heads = store.journal().runs(&RunFilter::default()).await.unwrap();
    assert_eq!(heads.len(), 3 + runs + 1);
    for head in heads {
        assert_eq!(store.journal().read(&head.run, 1, 99).await.unwrap(), marked(&head.project));
    }
    let conn = Connection::open(&path).unwrap();
    let count: u32 =
        conn.query_row("SELECT count(*) FROM data_keys WHERE scope = 'p0'", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 2, "an old data key stays for what it sealed");
}

#[tokio::test]
async fn an_erased_project_is_gone_and_the_journal_still_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coral.db");
    let ring = KeyRing::new(MasterKey::generate().unwrap());
    let store = open(&path, ring.clone());
    let projects = Projects::new(store.journal());
    for id in ["reef", "kelp"] {
        projects.create(id, ProjectDraft::default()).await.unwrap();
        keep(&store.journal(), &format!("run-{id}"), &marked(id)).await;
    }
    let blob = store.blobs_of("reef").put(MARKER.as_bytes()).await.unwrap();
    let conn = Connection::open(&path).unwrap();
    let wrapped: Vec<u8> =
        conn.query_row("SELECT wrapped FROM data_keys WHERE scope = 'reef'", [], |row| row.get(0)).unwrap();
    drop(conn);
    assert!(holds(dir.path(), &wrapped));

    let tombstone = store.erase_project("reef").await.unwrap();
    assert_eq!((tombstone.keys, tombstone.signature), (1, Some(true)));
    assert_eq!(store.erase_project("reef").await.unwrap(), tombstone);
    assert!(!holds(dir.path(), &wrapped), "not even in a free page or the log");

    for store in [store, open(&path, ring)] {
        let journal = store.journal();
        for error in [
            journal.read("run-reef", 1, 99).await.unwrap_err(),
            store.blobs_of("reef").get(&blob).await.unwrap_err(),
            store.blobs_of("reef").put(b"more").await.unwrap_err(),
        ] {
            assert_eq!(error.code(), "CORAL0003");
            assert!(error.to_string().contains("destroyed"), "{error}");
        }
        let epoch = journal.acquire("run-reef").await.unwrap();
        assert!(journal.append("run-reef", epoch, 16, Vec::new().into()).await.is_ok(), "nothing to seal");
        let more = Record { seq: 17, ..marked("reef")[1].clone() };
        assert_eq!(
            journal.append("run-reef", epoch, 16, vec![more].into()).await.unwrap_err().code(),
            "CORAL0003"
        );
        assert_eq!(journal.verify("run-reef").await.unwrap(), 16);
        assert_eq!(journal.read("run-kelp", 1, 99).await.unwrap(), marked("kelp"));
        let projects = Projects::new(journal.clone());
        assert_eq!(projects.get("reef").await.unwrap().unwrap().status, ProjectStatus::Deleted);
        assert_eq!(projects.list(&Default::default()).await.unwrap().len(), 1);
    }

    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("UPDATE tombstones SET keys = 0").unwrap();
    let store = open(&path, KeyRing::new(MasterKey::generate().unwrap()));
    assert_eq!(store.tombstones().await.unwrap()[0].signature, None, "another ring can't tell");
}

#[tokio::test]
async fn a_forged_tombstone_and_a_cut_journal_show() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coral.db");
    let store = open(&path, KeyRing::new(MasterKey::generate().unwrap()));
    let journal = store.journal();
    keep(&journal, "run", &marked("reef")[..4]).await;
    let epoch = journal.acquire("run").await.unwrap();
    for record in &marked("reef")[4..8] {
        journal.append("run", epoch, record.seq - 1, vec![record.clone()].into()).await.unwrap();
    }
    assert_eq!(journal.verify("run").await.unwrap(), 8);
    assert_eq!(journal.verify("none").await.unwrap(), 0);
    store.erase_project("reef").await.unwrap();
    let conn = Connection::open(&path).unwrap();
    for (damage, repair) in [
        (
            "UPDATE chunks SET last_seq = 99 WHERE last_seq = 8",
            "UPDATE chunks SET last_seq = 8 WHERE last_seq = 99",
        ),
        ("UPDATE runs SET last_seq = 9", "UPDATE runs SET last_seq = 8"),
        (
            "UPDATE chunks SET last_seq = 60 WHERE last_seq = 6",
            "UPDATE chunks SET last_seq = 6 WHERE last_seq = 60",
        ),
    ] {
        conn.execute_batch(damage).unwrap();
        assert_eq!(journal.verify("run").await.unwrap_err().code(), "CORAL0016", "{damage}");
        conn.execute_batch(repair).unwrap();
        assert_eq!(journal.verify("run").await.unwrap(), 8);
    }
    conn.execute_batch("UPDATE tombstones SET erased_at_ms = erased_at_ms - 1").unwrap();
    assert_eq!(store.tombstones().await.unwrap()[0].signature, Some(false));
}
