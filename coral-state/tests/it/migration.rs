//! Files of earlier releases, opened by this one.

use std::path::{Path, PathBuf};

use coral_core::{BlobRef, Blobs, Cache, Journal};
use coral_state::{KeyRing, MasterKey, Projects, RunQuery, SqliteOptions, SqliteStore, collect_garbage};
use serde_json::json;

use crate::support::team_run;

/// A copy of a fixture, which the test may change.
fn fixture(dir: &Path, name: &str) -> PathBuf {
    let to = dir.join(name);
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name), &to).unwrap();
    to
}

#[tokio::test]
async fn a_file_of_version_1_is_brought_up_to_date() {
    for (name, keys) in [
        ("v1.db", None),
        ("v1-encrypted.db", Some(KeyRing::new(MasterKey::from_hex(&"5e".repeat(32)).unwrap()))),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = fixture(dir.path(), name);
        let version = |path: &Path| {
            let conn = rusqlite::Connection::open(path).unwrap();
            conn.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0)).unwrap()
        };
        assert_eq!(version(&path), 1);
        let mut options = SqliteOptions::at(&path);
        options.keys.clone_from(&keys);
        let store = SqliteStore::open_with(options).unwrap();
        assert!(version(&path) > 1);
        let journal = store.journal();
        let finished = team_run("reef", "a reef", json!({"tags": ["blue"]}));
        assert_eq!(journal.read("finished", 1, 99).await.unwrap(), finished);
        assert_eq!(journal.head("open").await.unwrap().unwrap().last_seq, 9);
        assert_eq!(journal.verify("kelp").await.unwrap(), 16);
        assert_eq!(journal.read("kelp", 1, 99).await.is_err(), keys.is_some(), "its project was erased");
        assert!(Projects::new(journal.clone()).get("reef").await.unwrap().is_some());
        let blob = BlobRef::of(b"a large deliverable");
        assert!(store.blobs_of("reef").get(&blob).await.unwrap().is_some());
        assert_eq!(store.cache(9).get("key").await.unwrap().as_deref(), Some(&b"value"[..]));

        // What is new since then works on what is old.
        let epoch = journal.acquire("open").await.unwrap();
        let rest = &team_run("reef", "an open reef", json!({}))[9..];
        journal.append("open", epoch, 9, rest.to_vec().into()).await.unwrap();
        let index = store.index();
        assert_eq!(index.refresh().await.unwrap(), 3);
        let mut query = RunQuery::default();
        query.tag = Some("blue".into());
        assert_eq!(index.query(&query).await.unwrap().runs[0].head.run, "finished");
        let report = collect_garbage(&journal, &store.blobs_of("reef"), 1_000, u64::MAX).await.unwrap();
        assert_eq!(report.removed, 1, "what no run names and is of old");
    }
}
