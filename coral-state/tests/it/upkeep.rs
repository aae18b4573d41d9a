//! Backups, retention and compaction.

use coral_core::{Journal, RunFilter, RunStatus};
use coral_state::{
    DataClass, KeyRing, MasterKey, Projects, RetentionAction, RetentionRule, SqliteOptions, SqliteStore,
};
use serde_json::json;

use crate::support::{keep, team_run};

fn rule(keep_ms: u64, action: RetentionAction, change: impl FnOnce(&mut RetentionRule)) -> RetentionRule {
    let mut rule = RetentionRule::after(keep_ms, action);
    change(&mut rule);
    rule
}

/// A run appended one record at a time, as engines do.
async fn one_by_one(store: &SqliteStore, run: &str, count: usize) {
    let journal = store.journal();
    let epoch = journal.acquire(run).await.unwrap();
    for record in &team_run("reef", "a reef", json!({}))[..count] {
        journal.append(run, epoch, record.seq - 1, vec![record.clone()].into()).await.unwrap();
    }
}

#[tokio::test]
async fn compaction_takes_room_and_nothing_else() {
    for keys in [None, Some(KeyRing::new(MasterKey::generate().unwrap()))] {
        let dir = tempfile::tempdir().unwrap();
        let mut options = SqliteOptions::at(dir.path().join("coral.db"));
        options.keys = keys;
        let store = SqliteStore::open_with(options).unwrap();
        one_by_one(&store, "over", 16).await;
        one_by_one(&store, "at-work", 9).await;
        let head = store.journal().head("over").await.unwrap();
        assert!(store.compact("over").await.unwrap());
        assert!(!store.compact("over").await.unwrap(), "there is nothing left to gain");
        assert!(!store.compact("at-work").await.unwrap(), "it is still written to");
        assert!(!store.compact("none").await.unwrap());
        let journal = store.journal();
        let records = team_run("reef", "a reef", json!({}));
        assert_eq!(journal.read("over", 1, 99).await.unwrap(), records);
        assert_eq!(journal.read("over", 5, 3).await.unwrap(), records[4..7]);
        assert_eq!(journal.head("over").await.unwrap(), head);
        assert_eq!(journal.verify("over").await.unwrap(), 16);
        let epoch = journal.acquire("over").await.unwrap();
        let more = coral_core::Record { seq: 17, ..records[1].clone() };
        journal.append("over", epoch, 16, vec![more].into()).await.unwrap();
        let conn = rusqlite::Connection::open(store.path()).unwrap();
        let chunks: u32 = conn.query_row("SELECT count(*) FROM chunks", [], |row| row.get(0)).unwrap();
        assert_eq!(chunks, 1 + 1 + 9);
    }
}

#[tokio::test]
async fn retention_goes_by_the_first_rule_that_fits() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("coral.db")).unwrap();
    let journal = store.journal();
    Projects::new(journal.clone()).create("reef", Default::default()).await.unwrap();
    one_by_one(&store, "old-reef", 16).await;
    one_by_one(&store, "at-work", 5).await;
    keep(&journal, "old-kelp", &team_run("kelp", "", json!({}))).await;
    let rules = [
        rule(1_000, RetentionAction::Compact, |rule| rule.project = Some("reef".into())),
        rule(0, RetentionAction::Remove, |rule| rule.status = Some(RunStatus::Failed)),
        rule(10_000, RetentionAction::Remove, |_| {}),
    ];
    let end = 1_016_000;
    let blobs = rule(0, RetentionAction::Compact, |rule| rule.class = DataClass::Blobs);
    let error = store.retain(&[blobs], end).await.unwrap_err();
    assert!(error.to_string().contains("blobs can't be compacted"), "{error}");
    let report = store.retain(&rules, end + 999).await.unwrap();
    assert_eq!((report.compacted.len(), report.removed.len()), (0, 0), "too early");
    let report = store.retain(&rules, end + 10_000).await.unwrap();
    assert_eq!(
        (report.compacted, report.removed),
        (vec!["old-reef".to_owned()], vec!["old-kelp".to_owned()])
    );
    let left: Vec<_> =
        journal.runs(&RunFilter::default()).await.unwrap().into_iter().map(|head| head.run).collect();
    assert_eq!(left, ["at-work", "old-reef", "project:reef"]);
    assert_eq!(journal.read("old-kelp", 1, 9).await.unwrap(), []);
    keep(&journal, "old-kelp", &team_run("kelp", "again", json!({}))).await;
    assert!(!store.remove_run("at-work").await.unwrap());
}

#[tokio::test]
async fn a_backup_under_load_is_one_moment_and_opens_as_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("coral.db")).unwrap();
    let to = dir.path().join("backup.db");
    one_by_one(&store, "before", 16).await;
    let (done, ()) = tokio::join!(store.backup(&to), async {
        for n in 0..20 {
            keep(&store.journal(), &format!("during-{n}"), &team_run("reef", "", json!({}))).await;
        }
    });
    done.unwrap();
    let error = store.backup(&to).await.unwrap_err();
    assert!(error.to_string().contains("already"), "{error}");
    let copy = SqliteStore::open(&to).unwrap().journal();
    assert_eq!(copy.read("before", 1, 99).await.unwrap().len(), 16);
    for head in copy.runs(&RunFilter::default()).await.unwrap() {
        assert_eq!(copy.verify(&head.run).await.unwrap(), head.last_seq);
    }
    one_by_one(copy.store(), "after", 16).await;
    assert!(store.backup(dir.path().join("none/backup.db")).await.is_err());
    // What fails on its way leaves nothing that could be taken for a backup.
    let damaged = dir.path().join("damaged.db");
    let bytes = std::fs::read(&to).unwrap();
    std::fs::write(&damaged, &bytes[..bytes.len() - 3 * 4_096]).unwrap();
    let damaged = SqliteStore::open(&damaged);
    let before = std::fs::read_dir(dir.path()).unwrap().count();
    if let Ok(damaged) = damaged {
        assert!(damaged.backup(dir.path().join("half.db")).await.is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before);
    }
}
