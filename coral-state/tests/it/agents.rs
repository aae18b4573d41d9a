//! Agents at work within other steps.

use std::sync::Arc;

use coral_core::{
    Event, GraphData, MemoryJournal, Payload, Record, RunFilter, RunStatus, Seq, StepData, StepKind,
};
use coral_state::{AgentState, Projects, RunIndex, RunQuery, WorkflowState};
use serde_json::json;

use crate::support::keep;

fn agent(name: &str, id: &str) -> StepData {
    StepData::new(name, StepKind::Agent(id.into()))
}

fn graph(name: &str, steps: Vec<StepData>) -> GraphData {
    GraphData { name: name.into(), steps, ..Default::default() }
}

/// A run in which no agent has a step at the top, up to its record `last`.
fn nested(last: Seq, at_ms: u64) -> Vec<Record> {
    let review = StepKind::Workflow(Arc::new(graph("review", vec![agent("look", "reviewer")])));
    let each = graph("each", vec![agent("build", "developer"), StepData::new("review", review)]);
    let turns = graph("turns", vec![agent("test", "tester")]);
    let team = vec!["writer".into(), "editor".into()];
    let steps = vec![
        StepData::new("parts", StepKind::Map { body: Arc::new(each), over: None, concurrency: 2 }),
        StepData::new("check", StepKind::Loop { body: Arc::new(turns), until: "true".into(), max_turns: 3 }),
        StepData::new("docs", StepKind::Route { agents: team, max_hops: 3 }),
    ];
    let started = |path: &str| Event::StepStarted { path: path.into(), attempt: 1 };
    let done = |path: &str| Event::StepSucceeded {
        path: path.into(),
        attempt: 1,
        output: Payload::from_json(json!(path)),
    };
    let mut events = vec![Event::RunStarted {
        format: 1,
        project: "reef".into(),
        graph: graph("nested", steps).into(),
        pins: Arc::default(),
        input: Payload::null(),
        facts: Arc::default(),
        budget: Box::default(),
        forked_from: None,
    }];
    let agents = [
        "parts/item[0]/build",
        "parts/item[0]/review/look",
        "parts/item[1]/build",
        "check/turn[1]/test",
        "docs/hop[1]/writer",
    ];
    let mut top = "";
    for path in agents {
        let name = path.split('/').next().unwrap();
        if name != top {
            events.extend((!top.is_empty()).then(|| done(top)));
            events.push(started(name));
            top = name;
        }
        events.extend([started(path), done(path)]);
    }
    events.push(done(top));
    events.push(Event::RunFinished { status: RunStatus::Succeeded, output: None, error: None });
    let record = |(seq, event)| Record { seq, at_ms: at_ms + seq * 1_000, event };
    (1..=last).zip(events).map(record).collect()
}

#[tokio::test]
async fn an_agent_is_seen_at_any_depth() {
    let journal = Arc::new(MemoryJournal::new());
    keep(&journal, "over", &nested(99, 0)).await;
    keep(&journal, "open", &nested(3, 1_000_000)).await;
    let index = RunIndex::new(journal.clone());
    index.refresh().await.unwrap();
    for id in ["developer", "reviewer", "tester", "writer", "editor"] {
        let mut query = RunQuery::default();
        query.agent = Some(id.into());
        assert_eq!(index.query(&query).total, 2, "{id}");
    }
    let over = WorkflowState::of(&journal, "over").await.unwrap().unwrap();
    let done: Vec<&str> = over.completed_agents().into_iter().map(|agent| &**agent).collect();
    assert_eq!(done, ["developer", "reviewer", "tester", "writer"], "the editor was never chosen");
    assert_eq!((over.worked["developer"].steps, over.worked["developer"].took_ms), (2, 2_000));

    // What is known of the agents from the first run says how long the second takes: two steps of agents
    // in `parts`, one in `check` and the only known one in `docs`.
    let progress = Projects::new(journal.clone()).progress("reef").await.unwrap();
    assert_eq!(progress.remaining_ms, Some(2_000 - 1_000));
    assert!(WorkflowState::of(&journal, "open").await.unwrap().unwrap().progress().remaining_ms.is_none());

    let state = AgentState::of(&journal, "developer", &RunFilter::default()).await.unwrap();
    assert_eq!((state.succeeded, state.took_ms), (2, 2_000));
    let paths: Vec<&str> = state.outputs.iter().map(|output| &*output.path).collect();
    assert_eq!(paths, ["parts/item[0]/build", "parts/item[1]/build"]);
    assert_eq!(state.running.len(), 1, "in the run that is open");
    let state = AgentState::of(&journal, "editor", &RunFilter::default()).await.unwrap();
    assert_eq!((state.succeeded, state.running.len()), (0, 0));
}

#[test]
fn an_agent_goes_on_under_another_definition() {
    let records = nested(3, 0);
    let Event::RunStarted { graph, pins, .. } = &records[0].event else { unreachable!("it begins a run") };
    let mut after = (**graph).clone();
    after.steps[0].name = "pieces".into();
    after.steps.push(agent("last", "closer"));
    let migrated = |restarted: &[&str]| Event::Migrated {
        graph: after.clone().into(),
        pins: pins.clone(),
        renamed: Arc::new([("parts".into(), "pieces".into())].into_iter().collect()),
        restarted: restarted.iter().map(|name| (*name).into()).collect(),
        reason: "another name".into(),
    };
    let fold = |agent: &str, restarted: &[&str], more: Vec<Event>| {
        let mut state = AgentState::new(agent);
        let run = Arc::from("run");
        records.iter().for_each(|record| state.apply(&run, record));
        for (seq, event) in (4..).zip([migrated(restarted)].into_iter().chain(more)) {
            state.apply(&run, &Record { seq, at_ms: seq * 1_000, event });
        }
        state
    };
    let done = |path: &str| Event::StepSucceeded { path: path.into(), attempt: 1, output: Payload::null() };
    let state = fold("developer", &[], vec![done("pieces/item[0]/build")]);
    assert_eq!((state.succeeded, state.took_ms, state.running.len()), (1, 2_000, 0));
    let state = fold("developer", &["pieces"], Vec::new());
    assert_eq!(state.running.len(), 0, "its attempt was given up");
    assert_eq!(fold("closer", &[], vec![done("last")]).succeeded, 1, "a step that came with it");
}
