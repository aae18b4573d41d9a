//! Files and schemas of earlier releases, opened by this one.

use std::path::{Path, PathBuf};

use coral_core::{BlobRef, Blobs, Cache, Journal};
use coral_state::{
    KeyRing, MasterKey, Projects, RunQuery, SqliteOptions, SqliteStore, WorkflowState, collect_garbage,
};
use serde_json::json;

use crate::support::team_run;

/// What a store brought up to date has, and can do.
macro_rules! check {
    ($store:expr, $journal:expr, $blobs:expr, $erased:expr) => {
        let (store, journal, blobs) = (&$store, $journal, $blobs);
        let finished = team_run("reef", "a reef", json!({"tags": ["blue"]}));
        assert_eq!(journal.read("finished", 1, 99).await.unwrap(), finished);
        assert_eq!(journal.head("open").await.unwrap().unwrap().last_seq, 9);
        assert_eq!(journal.verify("kelp").await.unwrap(), 16);
        assert_eq!(journal.read("kelp", 1, 99).await.is_err(), $erased, "its project was erased");
        assert!(Projects::new(journal.clone()).get("reef").await.unwrap().is_some());
        let blob = BlobRef::of(b"a large deliverable");
        assert!(blobs.get(&blob).await.unwrap().is_some());
        let opened = WorkflowState::open(&journal, store, "finished").await.unwrap();
        assert_eq!(opened.unwrap().last_seq, 16);

        // What is new since then works on what is old.
        let epoch = journal.acquire("open").await.unwrap();
        let rest = &team_run("reef", "an open reef", json!({}))[9..];
        journal.append("open", epoch, 9, rest.to_vec().into()).await.unwrap();
        let index = store.index();
        assert_eq!(index.refresh().await.unwrap().changed, 3);
        for (tag, runs) in [("blue", 1), ("grey", 0)] {
            let mut query = RunQuery::default();
            query.tag = Some(tag.into());
            assert_eq!(index.query(&query).await.unwrap().runs.len(), runs, "{tag}");
        }
        let report = collect_garbage(&journal, &blobs, 1_000, u64::MAX).await.unwrap();
        assert_eq!(report.removed, 1, "what no run names and is of old");
        assert!(store.remove_run("open").await.unwrap());
        let epoch = journal.acquire("open").await.unwrap();
        journal.append("open", epoch, 0, finished[..1].to_vec().into()).await.unwrap();
        assert!(journal.head("open").await.unwrap().unwrap().revision > 0, "it is another run");
    };
}

/// A copy of a fixture, which the test may change.
fn fixture(dir: &Path, name: &str) -> PathBuf {
    let to = dir.join(name);
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name), &to).unwrap();
    to
}

fn text(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

#[tokio::test]
async fn a_file_of_any_version_is_brought_up_to_date() {
    for (name, keys) in [
        ("v1.db", None),
        ("v1-encrypted.db", Some(KeyRing::new(MasterKey::from_hex(&"5e".repeat(32)).unwrap()))),
    ] {
        for from in 1..=3 {
            let dir = tempfile::tempdir().unwrap();
            let path = fixture(dir.path(), name);
            let conn = rusqlite::Connection::open(&path).unwrap();
            for step in ["v1-to-v2.sql", "v2-to-v3.sql"].iter().take(from - 1) {
                conn.execute_batch(&text(step)).unwrap();
            }
            let version =
                || conn.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0)).unwrap();
            assert_eq!(version() as usize, from);
            let mut options = SqliteOptions::at(&path);
            options.keys.clone_from(&keys);
            let store = SqliteStore::open_with(options).unwrap();
            assert!(version() > 3);
            let cached = store.cache(9).get("key").await.unwrap();
            assert_eq!(cached.as_deref(), Some(&b"value"[..]));
            let blobs = store.blobs_of("reef");
            check!(store, store.journal(), blobs, keys.is_some());
        }
    }
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_any_version_is_brought_up_to_date() {
    use crate::places::PostgresPlace;

    let steps = ["postgres-v1.sql", "postgres-v1-to-v2.sql", "postgres-v2-to-v3.sql"];
    for from in 1..=steps.len() {
        let place = PostgresPlace::new().await;
        place.execute(&format!("CREATE SCHEMA {0}; SET search_path = {0}", place.schema)).await;
        for step in &steps[..from] {
            place.execute(&text(step)).await;
        }
        let store = place.open(None).await.unwrap();
        let blobs = store.blobs_of("reef");
        if from == 1 {
            // The first version kept journals alone.
            blobs.put(b"a large deliverable").await.unwrap();
            place.execute("UPDATE blobs SET kept_at_ms = 0").await;
        }
        check!(store, store.journal(), blobs, false);
    }
}
