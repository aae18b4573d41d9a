//! Killing a run at every append, and what replay does and refuses.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, ChatRequest, ChatResponse, EffectClass, ErrorKind, Event,
    Flow, Handle, Journal, MemoryJournal, Outcome, Runner, StartOptions, ToolCall, Workflow,
};
use serde_json::{Value, json};

use crate::support::{CrashJournal, FnModel, Sink, records, until};

/// A service outside: it remembers each key once, as a sink that honours keys does.
type Ledger = Arc<Mutex<BTreeMap<String, usize>>>;

/// Uses every kind of effect.
struct Worker {
    spec: AgentSpec,
    ledger: Ledger,
}

#[async_trait]
impl Agent for Worker {
    type Input = String;
    type Output = Value;

    fn spec(&self) -> &AgentSpec {
        &self.spec
    }

    async fn run(&self, text: String, cx: &mut AgentContext) -> Result<Value, AgentError> {
        let now = cx.now_ms().await?;
        let dice = cx.random().await?;
        let answer = cx.chat(&ChatRequest::user(format!("{text} {dice}"))).await?;
        let calls: Vec<ToolCall> = (0..3)
            .map(|i| ToolCall {
                id: i.to_string(),
                name: "write".into(),
                arguments: json!({"path": format!("{text}{i}")}),
            })
            .collect();
        let outputs = cx.call_tools(&calls).await?;
        let ledger = self.ledger.clone();
        let receipt: String = cx
            .effect("charge", EffectClass::Idempotent, &text, |key| async move {
                *ledger.lock().unwrap().entry(key.to_string()).or_default() += 1;
                Ok(format!("receipt {key}"))
            })
            .await?;
        cx.note("done", json!(text)).await;
        Ok(
            json!({"now": now, "dice": dice, "answer": answer.message.text(), "tools": outputs.len(), "receipt": receipt}),
        )
    }
}

struct Team(Ledger);

impl Team {
    fn worker(&self, id: &str) -> Worker {
        Worker { spec: AgentSpec::new(id, id), ledger: self.0.clone() }
    }
}

impl Workflow for Team {
    type Input = String;
    type Output = Value;

    fn name(&self) -> &str {
        "team"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<Value> {
        let plan = flow.step(self.worker("plan"), flow.input());
        let text = |name: &'static str| move |_: Value| async move { Ok::<_, AgentError>(name.to_owned()) };
        let left = flow.function("to_left", &plan, text("left"));
        let right = flow.function("to_right", &plan, text("right"));
        let left = flow.step(self.worker("left"), &left);
        let right = flow.step(self.worker("right"), &right).when("steps.to_right == 'right'");
        flow.function(
            "sum",
            (&left, &right),
            |(l, r): (Value, Option<Value>)| async move { Ok(json!([l, r])) },
        )
        .after(&plan)
    }
}

fn model(requests: Arc<AtomicUsize>) -> impl coral_core::ChatModel {
    FnModel::new(move |_, request: &ChatRequest| {
        requests.fetch_add(1, Ordering::SeqCst);
        Ok(ChatResponse::text("test", format!("re: {}", request.messages[0].text())))
    })
}

struct World {
    journal: Arc<MemoryJournal>,
    sink: Sink,
    ledger: Ledger,
    requests: Arc<AtomicUsize>,
}

impl World {
    fn new() -> Self {
        World {
            journal: Arc::default(),
            sink: Sink::default(),
            ledger: Arc::default(),
            requests: Arc::default(),
        }
    }

    fn runner(&self, journal: impl Journal + 'static) -> Runner {
        Runner::builder()
            .journal(journal)
            .model(model(self.requests.clone()))
            .tools(self.sink.clone())
            .clock(coral_core::ManualClock::at_ms(1_000))
            .build()
    }

    /// The outcome of every effect that was recorded, by its place; panics if one was recorded twice.
    async fn effects(&self) -> BTreeMap<(String, u32, u32), Value> {
        let mut effects = BTreeMap::new();
        for record in records(&*self.journal, "run").await {
            if let Event::EffectDone { path, attempt, index, outcome: Outcome::Ok(value), .. } = record.event
            {
                let value = value.json().unwrap().clone();
                assert!(
                    effects.insert((path.to_string(), attempt, index), value).is_none(),
                    "{path} {index} twice"
                );
            }
        }
        effects
    }
}

/// What a run gives must not depend on where it was killed, and nothing recorded is done again.
#[tokio::test(start_paused = true)]
async fn a_run_killed_at_any_append_ends_as_if_it_had_not_been() {
    let calm = World::new();
    let run = calm
        .runner(calm.journal.clone())
        .start_with(&Team(calm.ledger.clone()), "go".to_owned(), StartOptions::new().id("run"))
        .await
        .unwrap();
    let expected = run.output().await.unwrap();
    let calm_effects = calm.effects().await;
    let mut kills = 0;
    for lands in [false, true] {
        for after in 1.. {
            let world = World::new();
            let workflow = Team(world.ledger.clone());
            let crash = CrashJournal::new(world.journal.clone(), after, lands);
            let runner = world.runner(crash);
            let started = runner.start_with(&workflow, "go".to_owned(), StartOptions::new().id("run")).await;
            let output = match started {
                Ok(run) => match run.output().await {
                    Ok(_) => break,
                    Err(error) => {
                        assert!(error.to_string().contains("killed"), "{error}");
                        Some(world.runner(world.journal.clone()).resume(&workflow, "run").await.unwrap())
                    }
                },
                Err(_) if lands => {
                    Some(world.runner(world.journal.clone()).resume(&workflow, "run").await.unwrap())
                }
                Err(_) => None,
            };
            let Some(run) = output else { continue };
            kills += 1;
            let mut output = run.output().await.unwrap();
            let mut wanted = expected.clone();
            for value in [&mut output, &mut wanted] {
                // Drawn numbers come in the order in which steps ask.
                for worker in value.as_array_mut().unwrap() {
                    worker["dice"].take();
                    worker["answer"].take();
                }
            }
            assert_eq!(output, wanted, "killed at append {after}, lands {lands}");
            let effects = world.effects().await;
            assert_eq!(effects.keys().collect::<Vec<_>>(), calm_effects.keys().collect::<Vec<_>>());
            // At the sinks, a key is one effect, however often it arrives; and one that was
            // recorded never arrives again.
            assert_eq!(world.ledger.lock().unwrap().keys().count(), 3);
            assert_eq!(world.sink.0.lock().unwrap().len(), 9);
            let in_doubt = world.requests.load(Ordering::SeqCst) - 3;
            assert!(in_doubt <= 2, "{in_doubt} calls were made again, more than were in flight");
        }
    }
    assert!(kills > 20, "only {kills} places to be killed at");
}

/// An agent that asks for something else when it runs again.
struct Fickle(AgentSpec, Arc<AtomicBool>);

#[async_trait]
impl Agent for Fickle {
    type Input = String;
    type Output = String;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, _: String, cx: &mut AgentContext) -> Result<String, AgentError> {
        let question = if self.1.swap(true, Ordering::SeqCst) { "second" } else { "first" };
        cx.chat(&ChatRequest::user(question)).await?;
        let forever = async { std::future::pending().await };
        cx.effect::<(), _>("wait", EffectClass::Pure, "", |_| forever).await?;
        Ok(String::new())
    }
}

struct FickleFlow(Arc<AtomicBool>);

impl Workflow for FickleFlow {
    type Input = String;
    type Output = String;

    fn name(&self) -> &str {
        "fickle"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
        flow.step(Fickle(AgentSpec::new("fickle", "Fickle"), self.0.clone()), flow.input())
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_asks_for_something_else_diverges() {
    let journal = Arc::new(MemoryJournal::new());
    let runner = || Runner::builder().journal(journal.clone()).model(model(Arc::default())).build();
    let flow = FickleFlow(Arc::default());
    let first = runner();
    let run = first.start(&flow, String::new()).await.unwrap();
    until(&run, |event| matches!(event, Event::EffectIntended { label, .. } if &**label == "wait")).await;
    first.shutdown().await;
    let error = runner().resume(&flow, run.id()).await.unwrap().output().await.unwrap_err();
    match error.kind() {
        ErrorKind::Divergence { path, index, expected, found, .. } => {
            assert_eq!((path.as_str(), *index), ("fickle", 0));
            assert_ne!(expected, found);
        }
        other => panic!("{other:?}"),
    }
}

/// An agent with an effect that can't be taken back, cut off in its middle.
struct Launch(AgentSpec, Arc<AtomicUsize>);

#[async_trait]
impl Agent for Launch {
    type Input = String;
    type Output = String;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, _: String, cx: &mut AgentContext) -> Result<String, AgentError> {
        let count = self.1.clone();
        let effect = cx.effect("launch", EffectClass::Irreversible, "now", |_| async move {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                std::future::pending::<()>().await;
            }
            Ok("launched".to_owned())
        });
        Ok(effect.await?)
    }
}

struct LaunchFlow(Arc<AtomicUsize>);

impl Workflow for LaunchFlow {
    type Input = String;
    type Output = String;

    fn name(&self) -> &str {
        "launch"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
        flow.step(Launch(AgentSpec::new("launch", "Launch"), self.0.clone()), flow.input())
    }
}

#[tokio::test]
async fn a_changed_definition_is_refused_with_what_differs() {
    let journal = Arc::new(MemoryJournal::new());
    let runner = Runner::builder().journal(journal.clone()).build();
    let run = runner.start(&LaunchFlow(Arc::new(AtomicUsize::new(1))), String::new()).await.unwrap();
    run.output().await.unwrap();
    struct Renamed;
    impl Workflow for Renamed {
        type Input = String;
        type Output = String;
        fn name(&self) -> &str {
            "launch"
        }
        fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
            flow.function("lunch", flow.input(), |s: String| async move { Ok(s) })
        }
    }
    let error = runner.resume(&Renamed, run.id()).await.unwrap_err();
    let ErrorKind::DefinitionChanged { diff, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(
        diff,
        "step `launch` is gone; step `lunch` is new; the output step differs; agent `launch` is gone"
    );
}
