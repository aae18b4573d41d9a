//! Finding runs.

use std::sync::Arc;

use coral_core::{Journal, MemoryJournal, RunStatus, Usd};
use coral_state::{Projects, RunIndex, RunQuery, SortBy};
use serde_json::json;

use crate::support::{keep, team_run};

fn ids(index: &RunIndex, set: impl FnOnce(&mut RunQuery)) -> Vec<String> {
    let mut query = RunQuery::default();
    set(&mut query);
    index.query(&query).runs.iter().map(|run| run.head.run.clone()).collect()
}

async fn filled() -> (Arc<MemoryJournal>, RunIndex) {
    let journal = Arc::new(MemoryJournal::new());
    // A longer history, a later time and a higher cost go with a higher number.
    for (run, project, count, brief, facts) in [
        ("a", "reef", 3, "Task MANAGER with lists", json!({"tags": ["web"]})),
        ("b", "kelp", 16, "a weather station", json!({"needs_mobile": true})),
        ("c", "reef", 11, "task board", json!({"tags": ["web", "pilot"]})),
        ("d", "reef", 2, "nothing", json!({})),
    ] {
        let mut records = team_run(project, brief, facts);
        records.truncate(count);
        records.iter_mut().for_each(|record| record.at_ms += count as u64 * 1_000_000);
        keep(&journal, run, &records).await;
    }
    Projects::new(journal.clone()).create("reef", Default::default()).await.unwrap();
    let index = RunIndex::new(journal.clone());
    assert_eq!(index.refresh().await.unwrap().changed, 4, "a project is not a run");
    (journal, index)
}

#[tokio::test]
async fn every_condition_filters() {
    let (_, index) = filled().await;
    let some = |text: &str| Some(text.to_owned());
    type Case = (&'static str, fn(&mut RunQuery), &'static [&'static str]);
    let cases: [Case; 11] = [
        ("all", |_| {}, &["d", "a", "c", "b"]),
        ("project", |q| q.project = Some("reef".into()), &["d", "a", "c"]),
        ("status", |q| q.status = Some(RunStatus::Succeeded), &["b"]),
        ("phase", |q| q.phase = Some("build".into()), &["c"]),
        ("agent", |q| q.agent = Some("qa_testing".into()), &["d", "a", "c", "b"]),
        ("no such agent", |q| q.agent = Some("qa".into()), &[]),
        ("tag", |q| q.tag = Some("web".into()), &["a", "c"]),
        ("fact as tag", |q| q.tag = Some("needs_mobile".into()), &["b"]),
        ("time", |q| q.started_ms = Some(4_000_000..12_100_000), &["a", "c"]),
        (
            "cost",
            |q| (q.min_cost, q.max_cost) = (Some(Usd::from_dollars(0.5)), Some(Usd::from_dollars(0.75))),
            &["a", "c"],
        ),
        ("text", |q| q.text = Some("LISTS task".into()), &["a"]),
    ];
    for (what, set, expected) in cases {
        assert_eq!(ids(&index, set), expected, "{what}");
    }
    let both = ids(&index, |query| {
        query.tag = some("web");
        query.text = some("board");
        query.workflow = some("delivery");
    });
    assert_eq!(both, ["c"]);
}

#[tokio::test]
async fn every_order_sorts_and_pages_join_up() {
    let (_, index) = filled().await;
    let cases = [
        (SortBy::Started, ["d", "a", "c", "b"]),
        (SortBy::Updated, ["d", "a", "c", "b"]),
        (SortBy::Cost, ["d", "a", "c", "b"]),
        (SortBy::Run, ["a", "b", "c", "d"]),
    ];
    for (sort, mut expected) in cases {
        for descending in [false, true] {
            for limit in 1..6 {
                let mut query = RunQuery::default();
                (query.sort, query.descending, query.limit) = (sort, descending, limit);
                let mut seen = Vec::new();
                loop {
                    let page = index.query(&query);
                    assert_eq!(page.total, 4);
                    assert!(page.runs.len() <= limit);
                    seen.extend(page.runs.iter().map(|run| run.head.run.clone()));
                    query.after = page.next;
                    if query.after.is_none() {
                        break;
                    }
                }
                assert_eq!(seen, expected, "{sort:?}, descending {descending}, by {limit}");
            }
            expected.reverse();
        }
    }
}

#[tokio::test]
async fn refreshing_folds_in_only_what_is_new() {
    let (journal, index) = filled().await;
    assert_eq!(index.refresh().await.unwrap().changed, 0);
    let epoch = journal.acquire("c").await.unwrap();
    let mut rest = team_run("reef", "", json!({}));
    journal.append("c", epoch, 11, rest.split_off(11).into()).await.unwrap();
    assert_eq!(ids(&index, |query| query.status = Some(RunStatus::Succeeded)), ["b"], "until refreshed");
    assert_eq!(index.refresh().await.unwrap().changed, 1);
    assert_eq!(ids(&index, |query| query.status = Some(RunStatus::Succeeded)).len(), 2);
    assert_eq!(ids(&index, |query| query.status = Some(RunStatus::Running)).len(), 2);
    let page = index.query(&RunQuery::default());
    let c = page.runs.iter().find(|run| run.head.run == "c").unwrap();
    assert_eq!((c.done, c.total, c.spent.cost), (4, 4, Usd::from_dollars(1.0)));
}
