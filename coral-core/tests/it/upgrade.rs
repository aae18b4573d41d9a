//! Runs that go on under another definition, by a declared migration.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_core::resilience::FallbackAgent;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, Brief, EffectClass, ErrorKind, Event, GraphData, Journal,
    MemoryJournal, Migration, Program, Run, Runner, StartOptions, StepData, StepKind, Team,
};
use serde_json::{Value, json};

use crate::support::{records, story};

/// Charges once, then waits for a signal.
struct Cashier(AgentSpec, Arc<AtomicU32>);

#[async_trait]
impl Agent for Cashier {
    type Input = Value;
    type Output = Value;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, input: Value, cx: &mut AgentContext) -> Result<Value, AgentError> {
        let count = self.1.clone();
        let receipt: u32 = cx
            .effect("charge", EffectClass::Irreversible, "order 7", |_| async move {
                Ok(count.fetch_add(1, Ordering::SeqCst) + 1)
            })
            .await?;
        let word: String = cx.signal("go").await?;
        Ok(json!({"receipt": receipt, "word": word, "from": input}))
    }
}

fn step(name: &str, kind: StepKind, inputs: &[&str]) -> StepData {
    StepData { inputs: inputs.iter().map(|input| (*input).into()).collect(), ..StepData::new(name, kind) }
}

fn function(name: &str, inputs: &[&str]) -> StepData {
    step(name, StepKind::Function("pass".into()), inputs)
}

struct World {
    journal: Arc<MemoryJournal>,
    charges: Arc<AtomicU32>,
    passed: Arc<Mutex<u32>>,
}

impl World {
    fn new() -> Self {
        World { journal: Arc::default(), charges: Arc::default(), passed: Arc::default() }
    }

    fn program(&self, role: &str, steps: Vec<StepData>) -> Program<Brief, Value> {
        let passed = self.passed.clone();
        let spec = AgentSpec { role_description: role.into(), ..AgentSpec::new("cashier", "Cashier") };
        let team = Team::new().with_agent(Cashier(spec, self.charges.clone())).with_function(
            "pass",
            move |v: Value| {
                *passed.lock().unwrap() += 1;
                async move { Ok(v) }
            },
        );
        Program::from_graph(GraphData { name: "order".into(), steps, ..GraphData::default() }, &team).unwrap()
    }

    fn runner(&self) -> Runner {
        Runner::builder().journal(self.journal.clone()).build()
    }

    /// A run that waits in the midst of its cashier, after a finished first step.
    async fn waiting(&self, program: &Program<Brief, Value>) -> String {
        let runner = self.runner();
        let run =
            runner.start_with(program, Brief::default(), StartOptions::new().id("order-7")).await.unwrap();
        until_charged(&run).await;
        runner.shutdown().await;
        run.id().to_owned()
    }
}

async fn until_charged(run: &Run<Value>) {
    let mut events = run.events(1);
    while let Some(record) = events.next().await {
        if matches!(&record.unwrap().event, Event::EffectIntended { label, .. } if &**label == "go") {
            return;
        }
    }
    panic!("the cashier does not get to its signal");
}

fn cashier(input: &str) -> StepData {
    step("pay", StepKind::Agent("cashier".into()), &[input])
}

#[tokio::test]
async fn a_run_goes_on_under_another_graph_by_a_declared_migration() {
    let world = World::new();
    let old = world.program("old", vec![function("check", &[]), cashier("check")]);
    let run = world.waiting(&old).await;

    // A step was renamed, one is new before what is done, one is new behind.
    let steps =
        vec![function("vet", &["scan"]), function("scan", &[]), cashier("vet"), function("ship", &["pay"])];
    let new = world.program("old", steps);
    let refused = world.runner().resume(&new, &run).await.unwrap_err();
    assert!(
        matches!(refused.kind(), ErrorKind::DefinitionChanged { diff, .. } if diff.contains("`check` is gone"))
    );
    let digest = old.pins().digest();
    assert!(refused.to_string().contains(&digest), "the error says what to declare: {refused}");

    let new = new.with_migration(Migration::of(digest, "`check` is called `vet`").rename("check", "vet"));
    let before = records(&*world.journal, &run).await;
    let runner = world.runner();
    let resumed = runner.resume(&new, &run).await.unwrap();
    resumed.signal("go", "now".to_owned()).await.unwrap();
    let output = resumed.output().await.unwrap();
    assert_eq!(output["ship"]["receipt"], 1);
    assert_eq!(world.charges.load(Ordering::SeqCst), 1, "what is done stays done");
    let after = records(&*world.journal, &run).await;
    assert_eq!(after[..before.len()], before[..], "what is recorded stays as it is");
    let story = story(&resumed).await;
    assert_eq!(story.iter().filter(|line| line.starts_with("step_started vet")).count(), 0);
    assert_eq!(story.iter().filter(|line| line.starts_with("step_succeeded scan")).count(), 1);

    // Later processes know the new definition alone; so does an inspection of any moment.
    assert_eq!(world.runner().resume(&new, &run).await.unwrap().output().await.unwrap(), output);
    let error = world.runner().resume(&old, &run).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::DefinitionChanged { .. }), "{error}");
    let early = world.runner().inspect(&run, Some(before.len() as u64)).await.unwrap();
    assert!(early.step("check").is_some() && early.step("vet").is_none());
    let late = world.runner().inspect(&run, None).await.unwrap();
    assert!(late.state(late.step("vet").unwrap()).unwrap().is_settled());
}

#[tokio::test]
async fn what_is_at_work_goes_on_under_another_agent_only_when_restarted() {
    let world = World::new();
    let steps = || vec![function("check", &[]), cashier("check")];
    let old = world.program("old", steps());
    let run = world.waiting(&old).await;
    let of = |reason: &str| Migration::of(old.pins().digest(), reason);

    let error =
        world.runner().resume(&world.program("new", steps()).with_migration(of("a new role")), &run).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("`pay` is at work and its agent has another definition"), "{error}");
    let wrong = world.program("new", steps()).with_migration(of("?").restart("play"));
    let error = world.runner().resume(&wrong, &run).await.unwrap_err().to_string();
    assert!(error.contains("there is no step `play`"), "{error}");

    let new = world.program("new", steps()).with_migration(of("a new role").restart("pay"));
    let runner = world.runner();
    let resumed = runner.resume(&new, &run).await.unwrap();
    until_charged_again(&resumed).await;
    runner.shutdown().await;
    // The restart is recorded: another process does not restart it again.
    let resumed = world.runner().resume(&new, &run).await.unwrap();
    resumed.signal("go", "now".to_owned()).await.unwrap();
    assert_eq!(resumed.output().await.unwrap()["pay"]["receipt"], 1);
    assert_eq!(world.charges.load(Ordering::SeqCst), 1, "the card is not charged again by the new attempt");
    let starts = story(&resumed).await.iter().filter(|line| *line == "step_started pay").count();
    assert_eq!(starts, 2);
}

async fn until_charged_again(run: &Run<Value>) {
    let mut events = run.events(1);
    while let Some(record) = events.next().await {
        let event = record.unwrap().event;
        if matches!(&event, Event::EffectIntended { label, attempt: 2, .. } if &**label == "go") {
            return;
        }
    }
    panic!("the second attempt does not get to its signal");
}

#[tokio::test]
async fn a_run_migrates_there_and_back() {
    let world = World::new();
    let a = world.program("old", vec![function("check", &[]), cashier("check")]);
    let run = world.waiting(&a).await;
    let b = world.program("old", vec![function("vet", &[]), cashier("vet")]);
    let there = Migration::of(a.pins().digest(), "there").rename("check", "vet");
    let back = Migration::of(b.pins().digest(), "back").rename("vet", "check");
    let runner = world.runner();
    runner.resume(&b.clone().with_migration(there), &run).await.unwrap();
    runner.shutdown().await;
    let resumed = world.runner().resume(&a.with_migration(back), &run).await.unwrap();
    resumed.signal("go", "now".to_owned()).await.unwrap();
    assert_eq!(resumed.output().await.unwrap()["pay"]["word"], "now");
    assert_eq!(*world.passed.lock().unwrap(), 1);
    let head = world.journal.head(&run).await.unwrap().unwrap();
    assert_eq!(head.workflow, "order");
}

/// A new release that is rolled out must not take runs from the old one that it then can't drive.
#[tokio::test]
async fn a_resume_that_is_refused_leaves_the_run_to_whoever_has_it() {
    let world = World::new();
    let old = world.program("old", vec![function("check", &[]), cashier("check")]);
    let other = world.program("new", vec![function("vet", &[]), cashier("vet")]);
    let runner = world.runner();
    let run = runner.start_with(&old, Brief::default(), StartOptions::new().id("order-7")).await.unwrap();
    until_charged(&run).await;
    let refused = world.runner().resume(&other, "order-7").await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::DefinitionChanged { .. }), "{refused}");
    for (_, resumed) in world.runner().recover(&other).await.unwrap() {
        assert!(matches!(resumed.unwrap_err().kind(), ErrorKind::DefinitionChanged { .. }));
    }
    run.signal("go", "now".to_owned()).await.unwrap();
    assert_eq!(run.output().await.unwrap()["pay"]["receipt"], 1);
}

/// The keys of its effects and the ids of its questions hold a step's name.
#[tokio::test]
async fn a_step_at_work_keeps_its_name() {
    let world = World::new();
    let old = world.program("old", vec![function("check", &[]), cashier("check")]);
    let run = world.waiting(&old).await;
    let renamed = StepData { name: "charge".into(), ..cashier("check") };
    let new = world.program("old", vec![function("check", &[]), renamed]);
    let migration = || Migration::of(old.pins().digest(), "`pay` is called `charge`").rename("pay", "charge");
    let error = world.runner().resume(&new.clone().with_migration(migration()), &run).await.unwrap_err();
    assert!(error.to_string().contains("`charge` is at work and had another name"), "{error}");
    let new = new.with_migration(migration().restart("charge"));
    let runner = world.runner();
    let resumed = runner.resume(&new, &run).await.unwrap();
    resumed.signal("go", "now".to_owned()).await.unwrap();
    assert_eq!(resumed.output().await.unwrap()["charge"]["receipt"], 1);
}

#[tokio::test]
async fn a_run_is_pinned_to_those_who_may_stand_in_for_its_agents() {
    let world = World::new();
    let program = |role: &str, id: &str| {
        let cashier = |id: &str, role: &str| {
            let spec = AgentSpec { role_description: role.into(), ..AgentSpec::new(id, "Cashier") };
            Cashier(spec, world.charges.clone())
        };
        let both = FallbackAgent::new(cashier("cashier", "careful"), cashier(id, role));
        let team = Team::new().with_agent(both);
        let steps = vec![step("pay", StepKind::Agent("cashier".into()), &[])];
        Program::from_graph(GraphData { name: "order".into(), steps, ..GraphData::default() }, &team)
    };
    let old = program("plain", "substitute").unwrap();
    let run = world.waiting(&old).await;
    let refused = world.runner().resume(&program("quick", "substitute").unwrap(), &run).await.unwrap_err();
    let ErrorKind::DefinitionChanged { diff, .. } = refused.kind() else { panic!("{refused}") };
    assert_eq!(diff, "the definition of agent `substitute` differs");
    world.runner().resume(&old, &run).await.unwrap();

    // One id for two definitions would pin the run to one of them.
    let error = program("plain", "cashier").unwrap_err();
    assert!(error.to_string().contains("agent `cashier` has another definition here"), "{error}");
}
