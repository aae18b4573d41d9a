//! A snapshot and what came after it are the whole.

use coral_core::{Event, Input, Journal, Outcome, Payload, Record, Returned, Spent, Usd};
use coral_state::{Durability, Snapshots, SqliteOptions, SqliteStore, WorkflowState};
use proptest::prelude::*;
use serde_json::json;

use crate::support::team_run;

fn store(dir: &std::path::Path) -> SqliteStore {
    let mut options = SqliteOptions::at(dir.join("coral.db"));
    options.durability = Durability::Normal;
    SqliteStore::open_with(options).unwrap()
}

/// Any event that changes how a run stands.
fn event(kind: u8, step: u8) -> Event {
    let path: std::sync::Arc<str> = ["design", "api", "ui", "test", "api/item[2]"][step as usize % 5].into();
    match kind % 7 {
        0 => Event::StepStarted { path, attempt: 1 },
        1 => Event::StepSucceeded { path, attempt: 1, output: Payload::from_json(json!(step)) },
        2 => Event::EffectDone {
            path,
            attempt: 1,
            index: 0,
            outcome: Outcome::Ok(Payload::null()),
            spent: Box::new(Spent { cost: Some(Usd::from_dollars(0.01)), ..Default::default() }),
        },
        3 => team_run("reef", "", json!({}))[4].event.clone(),
        4 => Event::RunResumed { epoch: 1 },
        5 => {
            let Event::HandedOff { message, .. } = team_run("reef", "", json!({}))[4].event.clone() else {
                unreachable!("the fifth event is a handoff");
            };
            let returned = vec![Returned { to: path.clone(), message }];
            Event::SentBack { path, attempt: 1, round: 1, returned }
        }
        _ => team_run("reef", "", json!({}))[7].event.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_snapshot_and_the_tail_are_the_whole(
        kinds in prop::collection::vec((any::<u8>(), any::<u8>()), 1..40),
        lengths in prop::collection::vec(1u64..900, 1..5),
    ) {
        let dir = tempfile::tempdir().unwrap();
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let store = store(dir.path());
            let journal = store.journal();
            let epoch = journal.acquire("run").await.unwrap();
            journal.append("run", epoch, 0, team_run("reef", "a", json!({}))[..1].into()).await.unwrap();
            let mut last = 1;
            for length in lengths {
                let records = (last + 1..=last + length).map(|seq| {
                    let (kind, step) = kinds[seq as usize % kinds.len()];
                    Record { seq, at_ms: 1_000 * seq, event: event(kind, step) }
                });
                journal.append("run", epoch, last, records.collect()).await.unwrap();
                last += length;
                let whole = WorkflowState::of(&journal, "run").await.unwrap();
                for _ in 0..2 {
                    let opened = WorkflowState::open(&journal, &store, "run").await.unwrap();
                    assert_eq!(opened, whole);
                }
            }
            // It is used: without the records before it, it still says how the run stands.
            if last > 600 {
                assert!(store.load("run").await.unwrap().is_some());
            }
        });
    }
}

#[tokio::test]
async fn a_run_that_began_anew_and_a_snapshot_of_another_release_are_folded_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let journal = store.journal();
    let long = |brief: &str| {
        let mut records = team_run("reef", brief, json!({}));
        let end = records.pop().unwrap();
        records.extend((16..700).map(|seq| Record { seq, at_ms: seq, event: event(2, 0) }));
        records.push(Record { seq: 700, ..end });
        records
    };
    crate::support::keep(&journal, "run", &long("first")).await;
    let first = WorkflowState::open(&journal, &store, "run").await.unwrap().unwrap();
    assert!(store.load("run").await.unwrap().is_some());
    assert!(store.remove_run("run").await.unwrap());
    assert_eq!(store.load("run").await.unwrap(), None, "it goes with its run");
    assert_eq!(WorkflowState::open(&journal, &store, "run").await.unwrap(), None);
    crate::support::keep(&journal, "run", &long("second")).await;
    store
        .save(
            "run",
            700,
            journal.head("run").await.unwrap().unwrap().revision,
            b"{\"format\": 9999}".to_vec(),
        )
        .await
        .unwrap();
    let second = WorkflowState::open(&journal, &store, "run").await.unwrap().unwrap();
    assert_eq!(second.last_seq, 700);
    assert_ne!(first.input, second.input);
}

#[test]
fn a_migrated_run_keeps_what_both_definitions_have() {
    let mut records = team_run("reef", "a reef", json!({}));
    records.truncate(8);
    let Event::RunStarted { graph, pins, .. } = &records[0].event else { unreachable!("it begins a run") };
    let mut graph = (**graph).clone();
    graph.steps.retain(|step| &*step.name != "ui");
    let build = graph.steps.iter_mut().find(|step| &*step.name == "api").unwrap();
    build.name = "backend".into();
    build.phase = "service".into();
    graph.steps.last_mut().unwrap().inputs = vec![Input::required("backend")];
    let migrated = |restarted: &[&str]| Event::Migrated {
        graph: graph.clone().into(),
        pins: pins.clone(),
        renamed: std::sync::Arc::new([("api".into(), "backend".into())].into_iter().collect()),
        restarted: restarted.iter().map(|name| (*name).into()).collect(),
        reason: "the front end moved out".into(),
    };
    let fold = |restarted: &[&str]| {
        let mut state = WorkflowState::new("run");
        records.iter().for_each(|record| state.apply(record));
        state.apply(&Record { seq: 9, at_ms: 2_000_000, event: migrated(restarted) });
        state
    };
    let state = fold(&[]);
    let names: Vec<_> = state.steps.iter().map(|step| &*step.name).collect();
    assert_eq!(names, ["design", "backend", "test"]);
    let (design, backend) = (&state.steps[0], &state.steps[1]);
    assert!(design.status.is_over());
    assert_eq!((backend.attempts, &*backend.phase), (1, "service"), "its past, and what it is now");
    assert!(backend.error.is_some());
    assert_eq!(state.spent.cost, Usd::from_dollars(0.5));

    let restarted = fold(&["design", "backend"]);
    assert!(!restarted.steps[0].status.is_over());
    assert_eq!(restarted.steps[1].error, None, "nothing of the attempt that was given up is left");
    let next: Vec<&str> = restarted.next_actions().into_iter().map(|name| &**name).collect();
    assert_eq!(next, ["design"]);
}
