//! Projects, sessions and the views of runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use coral_core::{Event, Journal, ManualClock, MemoryJournal, Record, RunFilter, RunStatus, Usd};
use coral_state::{
    AgentState, ProjectDraft, ProjectFilter, ProjectStatus, Projects, Sessions, SqliteJournal, StepStatus,
    WorkflowState,
};
use serde_json::{Value, json};

use crate::support::{keep, team_run};

fn names<'a>(names: impl IntoIterator<Item = &'a Arc<str>>) -> Vec<&'a str> {
    names.into_iter().map(|name| &**name).collect()
}

#[test]
fn a_workflow_folds_to_its_state_at_every_record() {
    let records = team_run("reef", "a reef", json!({"needs_mobile": true, "tags": ["pilot"], "x": false}));
    let mut state = WorkflowState::new("run");
    let mut seen = Vec::new();
    for record in &records {
        state.apply(record);
        let phase = state.current_phase().map_or("", |phase| phase).to_owned();
        seen.push((phase, names(state.completed_agents()).len(), names(state.next_actions()).join(" ")));
    }
    let expect = [
        ("design", 0, "design"),
        ("design", 0, ""),
        ("design", 0, ""),
        ("build", 1, "api ui"),
        ("build", 1, "api ui"),
        ("build", 1, "ui"),
        ("build", 1, ""),
        ("build", 1, ""),
        ("build", 1, ""),
        ("build", 1, ""),
        ("build", 2, ""),
        ("check", 3, "test"),
        ("check", 3, ""),
        ("check", 3, ""),
        ("check", 4, ""),
        ("check", 4, ""),
    ];
    assert_eq!(seen, expect.map(|(phase, done, next)| (phase.to_owned(), done, next.to_owned())));
    assert_eq!(state.status, RunStatus::Succeeded);
    assert_eq!(state.spent.cost, Usd::from_dollars(1.0));
    assert_eq!((state.spent.calls, state.spent.input_tokens), (3, 300));
    assert_eq!(state.tags(), ["needs_mobile", "pilot"].into());
    assert_eq!(state.deliverables.len(), 1);
    let api = &state.steps[1];
    assert_eq!((api.status, api.attempts, &api.error), (StepStatus::Succeeded, 2, &None));
}

#[test]
fn progress_follows_the_longest_way_left() {
    let records = team_run("reef", "", json!({}));
    let remaining = |count: usize, typical: fn(&str) -> Option<u64>| {
        let mut state = WorkflowState::new("run");
        records.iter().take(count).for_each(|record| state.apply(record));
        let progress = state.progress_by(typical);
        (progress.done, progress.total, progress.remaining_ms)
    };
    assert_eq!(remaining(2, |_| None), (0, 4, None), "nothing is known yet");
    assert_eq!(remaining(2, |_| Some(5_000)), (0, 4, Some(15_000)), "design, api or ui, test");
    // `design` took 2 s: so will each of the two levels left.
    assert_eq!(remaining(4, |_| None), (1, 4, Some(4_000)));
    assert_eq!(remaining(4, |agent| (agent == "qa_testing").then_some(60_000)), (1, 4, Some(62_000)));
    assert_eq!(remaining(16, |_| None), (4, 4, Some(0)));
}

#[test]
fn an_agent_folds_across_runs() {
    let mut agent = AgentState::new("backend_developer");
    for run in ["run-1", "run-2"] {
        let run: Arc<str> = run.into();
        for record in &team_run("reef", "", json!({}))[..11] {
            agent.apply(&run, record);
            if record.seq == 8 {
                assert_eq!((agent.failed_in_a_row, agent.running.len()), (1, 1));
            }
        }
    }
    assert_eq!((agent.succeeded, agent.failed, agent.failed_in_a_row), (2, 2, 0));
    assert_eq!(agent.outputs.len(), 2);
    assert_eq!(agent.outputs[1].output.json().unwrap(), &json!({"summary": "api"}));
    assert_eq!(&*agent.last_failure.unwrap().path, "api");
    assert_eq!(agent.spent.cost, Usd::from_dollars(0.5));
    assert_eq!(agent.took_ms, 10_000);
    assert!(agent.running.is_empty());
}

#[tokio::test]
async fn projects_live_from_creation_to_tombstone() {
    let clock = Arc::new(ManualClock::at_ms(1_000));
    let journal = Arc::new(MemoryJournal::new());
    let projects = Projects::with_clock(journal.clone(), clock.clone());
    let draft = ProjectDraft {
        name: Some("Task manager".into()),
        config: Some(json!({"model": "small"})),
        metadata: [("owner".to_owned(), json!("Ada"))].into(),
        tags: Some(["web".to_owned()].into()),
        dependencies: Some(["auth".to_owned()].into()),
        ..Default::default()
    };
    let made = projects.create("tasks", draft).await.unwrap();
    assert_eq!((made.created_at_ms, made.status), (1_000, ProjectStatus::Active));
    clock.advance_ms(5);
    let draft = ProjectDraft {
        description: Some("lists".into()),
        metadata: [("owner".to_owned(), Value::Null), ("team".to_owned(), json!(3))].into(),
        ..Default::default()
    };
    let changed = projects.update("tasks", &draft).await.unwrap();
    assert_eq!(changed.updated_at_ms, 1_005);
    assert_eq!(changed.metadata, [("team".to_owned(), json!(3))].into());
    assert_eq!(changed.config, json!({"model": "small"}), "what is not named stays");
    assert_eq!(projects.get("tasks").await.unwrap().unwrap(), changed, "what is told is what is kept");

    let copy = projects.clone_as("tasks", "tasks-2").await.unwrap();
    assert_eq!(copy.cloned_from.as_deref(), Some("tasks"));
    assert_eq!(
        (&copy.config, &copy.tags, &copy.metadata),
        (&changed.config, &changed.tags, &changed.metadata)
    );

    projects.archive("tasks").await.unwrap();
    let error = projects.update("tasks", &draft).await.unwrap_err();
    assert!(error.to_string().contains("archived"), "{error}");
    projects.restore("tasks").await.unwrap();

    keep(&journal, "run-1", &team_run("tasks", "", json!({}))[..5]).await;
    let error = projects.delete("tasks").await.unwrap_err();
    assert!(error.to_string().contains("`run-1`"), "{error}");
    keep(&journal, "run-2", &team_run("tasks-2", "", json!({}))).await;
    let gone = projects.delete("tasks-2").await.unwrap();
    assert_eq!((gone.status, gone.config), (ProjectStatus::Deleted, Value::Null));
    let error = projects.update("tasks-2", &draft).await.unwrap_err();
    assert!(error.to_string().contains("did you mean `tasks`?"), "{error}");
    assert_eq!(
        projects.create("tasks-2", draft).await.unwrap_err().code(),
        "CORAL0001",
        "an id means one thing"
    );

    let ids = |filter: ProjectFilter| {
        let projects = &projects;
        async move {
            projects.list(&filter).await.unwrap().into_iter().map(|project| project.id).collect::<Vec<_>>()
        }
    };
    assert_eq!(ids(ProjectFilter::default()).await, ["tasks"]);
    assert_eq!(
        ids(ProjectFilter { status: Some(ProjectStatus::Deleted), ..Default::default() }).await,
        ["tasks-2"]
    );
    assert_eq!(ids(ProjectFilter { text: Some("MANAGER".into()), ..Default::default() }).await, ["tasks"]);
    assert_eq!(ids(ProjectFilter { tag: Some("mobile".into()), ..Default::default() }).await, [""; 0]);
    for id in ["", "../x", "a b", &"x".repeat(65)] {
        assert_eq!(
            projects.create(id, ProjectDraft::default()).await.unwrap_err().code(),
            "CORAL0001",
            "{id}"
        );
    }
    assert_eq!(
        journal.runs(&RunFilter::unfinished()).await.unwrap().len(),
        1,
        "no project looks like a run to resume"
    );
}

#[tokio::test]
async fn shared_state_needs_a_grant() {
    let projects = Projects::new(MemoryJournal::new());
    for id in ["owner", "reader"] {
        projects.create(id, ProjectDraft::default()).await.unwrap();
    }
    projects.share("owner", "schema", json!({"v": 1})).await.unwrap();
    projects.share("owner", "secret", json!("s")).await.unwrap();
    let read = |key| projects.shared("reader", "owner", key);
    let denied = read("schema").await.unwrap_err();
    assert_eq!(denied.code(), "CORAL0005");
    let absent = projects.shared("reader", "nobody", "schema").await.unwrap_err();
    assert_eq!(
        absent.to_string(),
        denied.to_string().replace("owner;", "nobody;").replace("project owner", "project nobody")
    );
    projects.grant("owner", "reader", &["schema", "later"]).await.unwrap();
    assert_eq!(read("schema").await.unwrap(), Some(json!({"v": 1})));
    assert_eq!(read("later").await.unwrap(), None);
    assert_eq!(read("secret").await.unwrap_err().code(), "CORAL0005");
    projects.grant("owner", "reader", &["*"]).await.unwrap();
    assert_eq!(read("secret").await.unwrap(), Some(json!("s")));
    projects.revoke("owner", "reader").await.unwrap();
    assert_eq!(read("schema").await.unwrap_err().code(), "CORAL0005");
    assert_eq!(projects.shared("owner", "owner", "secret").await.unwrap(), Some(json!("s")));
}

#[tokio::test]
async fn changes_from_many_sides_are_all_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coral.db");
    let sides: Vec<_> =
        (0..3).map(|_| Arc::new(Projects::new(SqliteJournal::open(&path).unwrap()))).collect();
    sides[0].create("reef", ProjectDraft::default()).await.unwrap();
    let mut changes = tokio::task::JoinSet::new();
    for n in 0..15 {
        let side = sides[n % 3].clone();
        changes.spawn(async move { side.share("reef", &format!("k{n}"), json!(n)).await.unwrap() });
    }
    changes.join_all().await;
    let keys: BTreeSet<_> = sides[0].get("reef").await.unwrap().unwrap().shared.into_keys().collect();
    assert_eq!(keys, (0..15).map(|n| format!("k{n}")).collect());
}

#[tokio::test]
async fn progress_of_a_project_sums_its_runs() {
    let journal = Arc::new(MemoryJournal::new());
    let projects = Projects::new(journal.clone());
    projects.create("reef", ProjectDraft::default()).await.unwrap();
    keep(&journal, "run-1", &team_run("reef", "", json!({}))).await;
    keep(&journal, "run-2", &team_run("reef", "", json!({}))[..2]).await;
    keep(&journal, "other", &team_run("kelp", "", json!({}))).await;
    let progress = projects.progress("reef").await.unwrap();
    assert_eq!(progress.runs, [("running".to_owned(), 1), ("succeeded".to_owned(), 1)].into());
    assert_eq!((progress.done, progress.total), (4, 8));
    assert_eq!(progress.spent.cost, Usd::from_dollars(1.0));
    // By the first run: design 2 s, api 5 s, test 2 s.
    assert_eq!(progress.remaining_ms, Some(9_000));
}

#[tokio::test]
async fn sessions_remember_users_and_what_they_watch() {
    let sessions = Sessions::new(MemoryJournal::new());
    sessions.begin("s-1", "reef", json!({"name": "Ada"})).await.unwrap();
    assert_eq!(sessions.begin("s-1", "reef", json!({})).await.unwrap_err().code(), "CORAL0001");
    sessions.prefer("s-1", "theme", json!("dark")).await.unwrap();
    sessions.attach("s-1", "run-1").await.unwrap();
    sessions.attach("s-1", "run-2").await.unwrap();
    let session = sessions.detach("s-1", "run-1").await.unwrap();
    assert_eq!(session.workflows, ["run-2".to_owned()].into());
    assert_eq!(sessions.open().await.unwrap(), [session]);
    sessions.end("s-1").await.unwrap();
    assert_eq!(sessions.attach("s-1", "run-3").await.unwrap_err().code(), "CORAL0003");
    assert_eq!(sessions.open().await.unwrap(), []);
    let again = sessions.begin("s-1", "kelp", json!({"name": "Ada"})).await.unwrap();
    assert_eq!((again.project.as_str(), &again.preferences["theme"]), ("kelp", &json!("dark")));
}

#[test]
fn work_that_is_sent_back_waits_again_with_all_behind_it() {
    let records = team_run("reef", "", json!({}));
    let Event::HandedOff { message, .. } = records[4].event.clone() else {
        unreachable!("the fifth event is a handoff");
    };
    let mut state = WorkflowState::new("run");
    // Up to the start of `test`, which sends `api` back.
    records[..13].iter().for_each(|record| state.apply(record));
    let returned = vec![coral_core::Returned { to: "api".into(), message }];
    let event = Event::SentBack { path: "test".into(), attempt: 1, round: 1, returned };
    state.apply(&Record { seq: 14, at_ms: 2_000_000, event });
    let stands: Vec<_> = state.steps.iter().map(|step| (&*step.name, step.status)).collect();
    assert_eq!(
        stands,
        [
            ("design", StepStatus::Succeeded),
            ("api", StepStatus::Waiting),
            ("ui", StepStatus::Succeeded),
            ("test", StepStatus::Waiting),
        ]
    );
    assert_eq!(state.next_actions(), [&std::sync::Arc::<str>::from("api")]);
}
