//! Journals of every release load and go on.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use coral_core::{
    AgentContext, AgentSpec, Brief, Budget, CallContext, Caller, ChatRequest, ChatResponse, EffectClass,
    Error, ErrorKind, Event, GraphData, Journal, MemoryJournal, Migration, ModelFault, Program, Record,
    ResumeOptions, RunStatus, Runner, StartOptions, StepData, StepKind, Team, ToolCall, ToolDef, ToolOutput,
    Toolbox,
};
use serde_json::{Value, json};

use super::{World, agent, each, key, reviewer, samples};
use crate::support::{Act, Actor, CrashJournal, FnModel, line, play, records, step, tool_def, until};

/// Where the journals of releases are kept: they load and go on forever.
fn fixture(release: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/journal-{release}.json"))
}

fn of_release(release: &str) -> Vec<Record> {
    serde_json::from_str(&std::fs::read_to_string(fixture(release)).unwrap()).unwrap()
}

async fn write(journal: &MemoryJournal, release: &str) {
    let text = serde_json::to_string_pretty(&records(journal, "run").await).unwrap();
    std::fs::write(fixture(release), text + "\n").unwrap();
}

/// The kinds of events that there are.
fn kinds(recorded: &[Record]) -> BTreeSet<String> {
    let kind = |record: &Record| line(&record.event).split(' ').next().map(str::to_owned);
    recorded.iter().filter_map(kind).collect()
}

/// A run of the last sample, cut off in its middle, as each release wrote it. A new release adds its own:
/// `CORAL_WRITE_FIXTURE=1.2.3 cargo test -p coral-core --test it journals_of_every_release`.
#[tokio::test(start_paused = true)]
async fn journals_of_every_release_load_and_go_on() {
    let six = samples().pop().unwrap();
    let calm = World::new(&six);
    let expected = calm.live(None).await.unwrap();
    if let Ok(release) = std::env::var("CORAL_WRITE_FIXTURE") {
        let cut = World::new(&six);
        cut.live(Some((24, true))).await.unwrap_err();
        let text = serde_json::to_string_pretty(&records(&*cut.journal, "run").await).unwrap();
        std::fs::write(fixture(&release), text + "\n").unwrap();
    }
    for release in ["0.1.0"] {
        let recorded = of_release(release);
        let open =
            recorded.iter().filter(|record| matches!(record.event, Event::QuestionAsked { .. })).count();
        assert!(open > 0 && recorded.len() > 60, "{release}: a fixture that shows something");
        let world = World::new(&six);
        let epoch = world.journal.acquire("run").await.unwrap();
        world.journal.append("run", epoch, 0, recorded.clone().into()).await.unwrap();
        assert_eq!(world.live(None).await.unwrap(), expected, "{release}");
        let after = records(&*world.journal, "run").await;
        assert_eq!(after[..recorded.len()], recorded[..], "{release}: what was recorded stays");
        world.check().await;
    }
}

/// Stopped by a budget, topped up, cut off by a crash: with failures, retries, a skipped step, a round of review, a
/// signal, timers, and calls of models and tools of each class.
#[tokio::test(start_paused = true)]
async fn journals_with_every_turn_of_a_run_load_and_go_on() {
    let mut all = (*samples().into_iter().find(|graph| graph.name == "shop").unwrap()).clone();
    let never = StepData { when: Some("input.nothing == 1".into()), ..agent("never", "buyer", &["list"]) };
    all.steps.extend([
        never,
        agent("end", "buyer", &["m"]),
        agent("work", "buyer", &["list"]),
        reviewer("critic", "critic2", &["work"]),
    ]);
    let calm = World::new(&all);
    let expected = calm.live(None).await.unwrap();
    if let Ok(release) = std::env::var("CORAL_WRITE_FIXTURE") {
        let cut = World::new(&all);
        let options = StartOptions::new().id("run").budget(Budget::new().calls(6));
        let runner = cut.runner(cut.journal.clone());
        let run = runner.start_with(&cut.program, Brief::default(), options).await.unwrap();
        let answers = tokio::spawn(cut.answering(&run));
        assert_eq!(run.wait().await.unwrap(), RunStatus::Stopped);
        answers.abort();
        let more = ResumeOptions::new().top_up(Budget::new().calls(1_000));
        let dying = cut.runner(CrashJournal::new(cut.journal.clone(), 20, true));
        let run = dying.resume_with(&cut.program, "run", more).await.unwrap();
        let answers = tokio::spawn(cut.answering(&run));
        run.output().await.unwrap_err();
        answers.abort();
        write(&cut.journal, &format!("{release}-turns")).await;
    }
    for release in ["0.1.0-turns"] {
        let recorded = of_release(release);
        let there = kinds(&recorded);
        for kind in [
            "budget_topped_up",
            "effect_done",
            "effect_intended",
            "handed_off",
            "retry_due",
            "run_finished",
            "run_resumed",
            "scope_opened",
            "sent_back",
            "signal_received",
            "stage_entered",
            "step_failed",
            "step_skipped",
            "step_started",
            "step_succeeded",
        ] {
            assert!(there.contains(kind), "{release}: no `{kind}` in {there:?}");
        }
        let world = World::new(&all);
        let epoch = world.journal.acquire("run").await.unwrap();
        world.journal.append("run", epoch, 0, recorded.clone().into()).await.unwrap();
        // What was done before has arrived: whoever is asked about it knows that.
        for record in &recorded {
            if let Event::EffectIntended { path, attempt, index, class, .. } = &record.event
                && !class.is_repeatable()
            {
                let done = |other: &Record| matches!(&other.event, Event::EffectDone { path: p, attempt: a, index: i, .. } if (p, a, i) == (path, attempt, index));
                if !recorded.iter().any(done) {
                    let seqs = vec![record.seq];
                    world.shop.arrivals.lock().unwrap().insert(key(path, *attempt, *index), seqs);
                }
            }
        }
        assert_eq!(world.live(None).await.unwrap(), expected, "{release}");
        let after = records(&*world.journal, "run").await;
        assert_eq!(after[..recorded.len()], recorded[..], "{release}: what was recorded stays");
        world.check().await;
    }
}

/// A tool that says something of its call.
struct Looks;

#[async_trait]
impl Toolbox for Looks {
    async fn list(&self, _: &Caller) -> Result<Vec<ToolDef>, Error> {
        Ok(vec![tool_def("look", EffectClass::Pure)])
    }

    async fn call(&self, _: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        cx.note("where", json!("in the cache"));
        Ok(ToolOutput::text("found"))
    }
}

/// Writes down what it will do, calls a model and a tool, and waits for a word.
fn scout(name: &str) -> Program<Brief, Value> {
    let act = play(|_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move {
            let plan = cx.note("plan", json!("look, then wait")).await;
            let said = cx.chat(&ChatRequest::user("hello")).await?.message.text();
            let call = ToolCall { id: "1".into(), name: "look".into(), arguments: json!({}) };
            let found = cx.call_tool(&call).await?.content;
            let word: Value = cx.signal("go").await?;
            Ok(json!([plan, said, found, word]))
        })
    });
    let function = |name: &str, function: &str| step(name, StepKind::Function(function.into()), &[]);
    let steps = vec![
        function(name, "list"),
        each("m", vec![function("same", "pass")], &[name]),
        agent("scout", "scout", &["m"]),
    ];
    let team = Team::new()
        .with_function("list", |_: Value| async move { Ok(json!([1, 2, 3])) })
        .with_function("pass", |value: Value| async move { Ok(value) })
        .with_agent(Actor(AgentSpec::new("scout", "Scout"), act));
    Program::from_graph(GraphData { name: "scouting".into(), steps, ..GraphData::default() }, &team).unwrap()
}

fn scouts(journal: &Arc<MemoryJournal>) -> Runner {
    let model = FnModel::new(|count, _: &ChatRequest| match count {
        1 => Err(Error::new(ErrorKind::Model {
            fault: ModelFault::RateLimited,
            model: "test".into(),
            problem: "too many".into(),
        })),
        _ => Ok(ChatResponse::text("test", "hello")),
    });
    Runner::builder().journal(journal.clone()).model(model).tools(Looks).build()
}

/// Noted, retried, migrated, and then cancelled by a person: with a map in it.
#[tokio::test(start_paused = true)]
async fn journals_of_runs_that_were_migrated_and_cancelled_load_and_stay_so() {
    let (old, new) = (scout("list"), scout("items"));
    let new = new.with_migration(Migration::of(old.pins().digest(), "another name").rename("list", "items"));
    if let Ok(release) = std::env::var("CORAL_WRITE_FIXTURE") {
        let journal = Arc::new(MemoryJournal::new());
        let first = scouts(&journal);
        let run = first.start_with(&old, Brief::default(), StartOptions::new().id("run")).await.unwrap();
        until(&run, |event| matches!(event, Event::EffectIntended { label, .. } if &**label == "go")).await;
        first.shutdown().await;
        let second = scouts(&journal);
        let run = second.resume(&new, "run").await.unwrap();
        run.cancel("nobody needs it").await;
        assert_eq!(run.wait().await.unwrap(), RunStatus::Cancelled);
        write(&journal, &format!("{release}-changed")).await;
    }
    for release in ["0.1.0-changed"] {
        let recorded = of_release(release);
        let there = kinds(&recorded);
        for kind in ["call_noted", "call_retried", "cancel_requested", "migrated", "noted", "scope_opened"] {
            assert!(there.contains(kind), "{release}: no `{kind}` in {there:?}");
        }
        let journal = Arc::new(MemoryJournal::new());
        let epoch = journal.acquire("run").await.unwrap();
        journal.append("run", epoch, 0, recorded.clone().into()).await.unwrap();
        let runner = scouts(&journal);
        let run = runner.resume(&new, "run").await.unwrap();
        assert_eq!(run.wait().await.unwrap(), RunStatus::Cancelled, "{release}");
        assert_eq!(records(&*journal, "run").await, recorded, "{release}: what was recorded stays");
        let machine = runner.inspect("run", None).await.unwrap();
        let items = machine.step("m").and_then(|step| machine.state(step)?.output().cloned());
        assert_eq!(
            items.unwrap().json().unwrap(),
            &json!([{"same": 1}, {"same": 2}, {"same": 3}]),
            "{release}"
        );
        // Its past can be gone back to: a fork goes on to the end that the run did not get to.
        let at = recorded.iter().find(|record| matches!(record.event, Event::Migrated { .. })).unwrap().seq;
        let fork = runner.fork(&new, "run", at, Some("fork".into())).await.unwrap();
        fork.signal("go", "now".to_owned()).await.unwrap();
        let output = fork.output().await.unwrap();
        assert_eq!(output, json!({"scout": ["look, then wait", "hello", "found", "now"]}), "{release}");
    }
}
