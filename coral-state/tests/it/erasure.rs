//! What was erased, removed or rewritten stays so, whatever else was under way.

use coral_core::{Record, Seq};

use crate::support::team_run;

/// A run of so many records, whose brief names somebody.
fn long_run(project: &str, brief: &str, records: Seq) -> Vec<Record> {
    let mut run = team_run(project, brief, serde_json::json!({}));
    let (template, end) = (run[2].clone(), run.pop().unwrap());
    run.extend((16..records).map(|seq| Record { seq, at_ms: 2_000_000, ..template.clone() }));
    run.push(Record { seq: records, at_ms: 2_000_001, ..end });
    run
}

macro_rules! erasure {
    ($place:ty) => {
        use std::sync::atomic::{AtomicBool, Ordering};
        use std::sync::Arc;
        use std::time::Duration;

        use coral_core::{Blobs, Journal, MemoryCache, Record};
        use coral_state::{CachedSnapshots, KeyRing, MasterKey, RunIndex, RunQuery, Snapshots, WorkflowState};
        use serde_json::json;
        use tokio::sync::Semaphore;

        use super::long_run;
        use crate::meddled::{Action, Meddled, Moment};
        use crate::support::{keep, team_run};

        const PERSON: &str = "zanzibarperson";

        fn asked() -> RunQuery {
            let mut query = RunQuery::default();
            query.text = Some(PERSON.into());
            query
        }

        fn holds(state: &WorkflowState) -> bool {
            serde_json::to_string(state).unwrap().contains(PERSON)
        }

        #[cfg(feature = "privacy")]
        #[tokio::test(flavor = "multi_thread")]
        async fn what_was_folded_before_a_person_was_erased_is_never_used_again() {
            let place = <$place>::new().await;
            let store = place.open(None).await.unwrap();
            let journal = store.journal();
            keep(&journal, "run", &long_run("reef", PERSON, 700)).await;
            let snapshots = CachedSnapshots::new(MemoryCache::new(9), Duration::from_secs(60));
            let index = RunIndex::new(journal.clone());
            index.refresh().await.unwrap();
            assert_eq!(index.query(&asked()).total, 1);
            let before = WorkflowState::open(&journal, &snapshots, "run").await.unwrap().unwrap();
            assert!(holds(&before));
            assert!(snapshots.load("run").await.unwrap().is_some(), "it is at hand");

            let subject = coral_state::Subject::known_by([PERSON]).unwrap();
            store.erase_subject(&subject).await.unwrap();
            assert_eq!(index.refresh().await.unwrap().changed, 1, "an equal length is not an equal run");
            assert_eq!(index.query(&asked()).total, 0);
            let after = WorkflowState::open(&journal, &snapshots, "run").await.unwrap().unwrap();
            assert!(!holds(&after));
            assert_eq!(after.last_seq, before.last_seq);
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn a_snapshot_that_was_under_way_does_not_outlive_its_run() {
            let place = <$place>::new().await;
            let store = place.open(None).await.unwrap();
            let journal = store.journal();
            keep(&journal, "run", &long_run("reef", PERSON, 700)).await;
            let (remover, again) = (store.clone(), journal.clone());
            let action: Action = Box::new(move || {
                Box::pin(async move {
                    assert!(remover.remove_run("run").await.unwrap());
                    keep(&again, "run", &long_run("reef", "somebody else", 700)).await;
                })
            });
            let meddled = Meddled::new(journal.clone(), Moment::Read, action);
            let folded = WorkflowState::open(&meddled, &store, "run").await.unwrap().unwrap();
            assert!(holds(&folded), "it was read before");
            assert_eq!(store.load("run").await.unwrap(), None, "and is not kept");
            assert!(!holds(&WorkflowState::open(&journal, &store, "run").await.unwrap().unwrap()));
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn a_run_removed_while_the_index_folds_leaves_no_line() {
            const RUNS: usize = 120;
            let place = <$place>::new().await;
            let store = place.open(None).await.unwrap();
            let journal = store.journal();
            let records = long_run("reef", PERSON, 400);
            for n in 0..RUNS {
                keep(&journal, &format!("run-{n:03}"), &records).await;
            }
            let index = store.index();
            let (refreshed, ()) = tokio::join!(index.refresh(), async {
                for n in 0..RUNS / 4 {
                    assert!(store.remove_run(&format!("run-{n:03}")).await.unwrap());
                }
            });
            refreshed.unwrap();
            let mut query = asked();
            query.limit = RUNS;
            let page = index.query(&query).await.unwrap();
            let left = page.runs.iter().filter(|run| *run.head.run < *format!("run-{:03}", RUNS / 4)).count();
            assert_eq!(left, 0, "of {}", page.runs.len());
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn other_processes_are_refused_once_a_project_is_erased() {
            let place = <$place>::new().await;
            let keys = KeyRing::new(MasterKey::generate().unwrap());
            // Two stores at one place share nothing in memory, as two processes do.
            let (one, other) = (place.open(Some(keys.clone())).await.unwrap(), place.open(Some(keys)).await.unwrap());
            let records = team_run("reef", PERSON, json!({}));
            let journal = one.journal();
            let epoch = journal.acquire("run").await.unwrap();
            journal.append("run", epoch, 0, records[..4].to_vec().into()).await.unwrap();
            let blob = one.blobs_of("reef").put(b"kept").await.unwrap();
            let stone = other.erase_project("reef").await.unwrap();
            assert_eq!(stone.keys, 1);
            for error in [
                journal.append("run", epoch, 4, records[4..5].to_vec().into()).await.unwrap_err(),
                one.blobs_of("reef").put(b"more").await.unwrap_err(),
                one.blobs_of("reef").get(&blob).await.unwrap_err(),
                journal.read("run", 1, 9).await.unwrap_err(),
            ] {
                assert_eq!(error.code(), "CORAL0003", "{error}");
            }
            assert_eq!(journal.head("run").await.unwrap().unwrap().last_seq, 4);
            // Who belongs to no project shares the store's own keys.
            keep(&journal, "free", &team_run("", "", json!({}))).await;
            let error = other.erase_project("").await.unwrap_err();
            assert_eq!(error.code(), "CORAL0001", "{error}");
            assert_eq!(journal.read("free", 1, 99).await.unwrap().len(), 16);
            one.index().refresh().await.unwrap();
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn a_read_under_way_brings_no_destroyed_key_back() {
            let place = <$place>::new().await;
            let store = place.open(Some(KeyRing::new(MasterKey::generate().unwrap()))).await.unwrap();
            let journal = store.journal();
            let epoch = journal.acquire("run").await.unwrap();
            let records = long_run("reef", PERSON, 1_500);
            let mut last = 0;
            // Many small chunks: reading them takes longer than erasing.
            for batch in records.chunks(2) {
                journal.append("run", epoch, last, batch.to_vec().into()).await.unwrap();
                last += batch.len() as u64;
            }
            let (erased, read) = (Arc::new(AtomicBool::new(false)), Arc::new(Semaphore::new(0)));
            let readers: Vec<_> = (0..4)
                .map(|_| {
                    let (journal, erased, read) = (journal.clone(), erased.clone(), read.clone());
                    tokio::spawn(async move {
                        // Whatever comes of it: some reads begin before the erasure and end after it.
                        while !erased.load(Ordering::SeqCst) {
                            let _: Result<Vec<Record>, _> = journal.read("run", 1, usize::MAX).await;
                            read.add_permits(1);
                        }
                    })
                })
                .collect();
            drop(read.acquire_many(4).await.unwrap());
            store.erase_project("reef").await.unwrap();
            erased.store(true, Ordering::SeqCst);
            for reader in readers {
                reader.await.unwrap();
            }
            assert_eq!(journal.read("run", 1, 9).await.unwrap_err().code(), "CORAL0003");
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn one_odd_run_does_not_stop_the_index() {
            let place = <$place>::new().await;
            let store = place.open(None).await.unwrap();
            let journal = store.journal();
            keep(&journal, "a", &team_run("reef", PERSON, json!({}))).await;
            let long = "tag".repeat(4_000);
            keep(&journal, "b", &team_run("reef", PERSON, json!({ "tags": ["with\u{0}nul", long] }))).await;
            keep(&journal, "c-damaged", &team_run("reef", PERSON, json!({}))).await;
            keep(&journal, "d", &team_run("reef", PERSON, json!({}))).await;
            place.execute("UPDATE chunks SET data = '' WHERE run_id = (SELECT id FROM runs WHERE run = 'c-damaged')").await;
            let index = store.index();
            let memory = RunIndex::new(journal.clone());
            for refreshed in [index.refresh().await.unwrap(), memory.refresh().await.unwrap()] {
                assert_eq!(refreshed.changed, 3);
                let [(run, error)] = &refreshed.skipped[..] else { panic!("{refreshed:?}") };
                assert_eq!((&**run, error.code()), ("c-damaged", "CORAL0016"));
            }
            for tag in ["with\u{0}nul", &long] {
                let mut query = RunQuery::default();
                query.tag = Some(tag.to_owned());
                for page in [index.query(&query).await.unwrap(), memory.query(&query)] {
                    assert_eq!(page.runs.len(), 1);
                    assert_eq!(page.runs[0].head.run, "b");
                }
            }
            let mut all = RunQuery::default();
            all.limit = usize::MAX;
            assert_eq!(index.query(&all).await.unwrap().runs.len(), 3, "a page may be as long as it likes");
            all.after = index.query(&RunQuery::default()).await.unwrap().next;
            assert_eq!(index.query(&all).await.unwrap().runs.len(), 3);
        }
    };
}

mod sqlite {
    use crate::places::SqlitePlace;

    erasure!(SqlitePlace);
}

#[cfg(feature = "postgres")]
mod postgres {
    use crate::places::PostgresPlace;

    erasure!(PostgresPlace);
}
