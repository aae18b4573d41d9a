//! Limits of time: of a budget, which stops what works under it, and of a step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coral_core::{
    AgentContext, AgentError, Brief, Budget, ErrorKind, Flow, GraphData, Handle, MemoryJournal, Program,
    ResumeOptions, RetryPolicy, Run, RunStatus, Runner, StartOptions, StepData, StepKind, Workflow,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Act, Play, TokioClock, agent, asked, cast, play, records, step};

struct Stage {
    journal: Arc<MemoryJournal>,
    begun: Instant,
}

impl Stage {
    fn new() -> Self {
        Stage { journal: Arc::default(), begun: Instant::now() }
    }

    fn runner(&self) -> Runner {
        Runner::builder().journal(self.journal.clone()).clock(TokioClock(self.begun)).build()
    }

    fn elapsed_ms(&self) -> u128 {
        self.begun.elapsed().as_millis()
    }
}

async fn start(runner: &Runner, program: &Program<Brief, Value>, budget: Budget) -> Run<Value> {
    let options = StartOptions::new().id("run").budget(budget);
    runner.start_with(program, Brief::default(), options).await.unwrap()
}

fn more_time(wall_ms: u64) -> ResumeOptions {
    ResumeOptions::new().top_up(Budget::new().wall_ms(wall_ms))
}

/// An agent that works so long, once.
fn works(ms: u64) -> Play {
    play(move |_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move {
            let work = cx.effect("work", coral_core::EffectClass::Pure, "", |_| async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(ms)
            });
            work.await?;
            Ok(json!(cx.attempt()))
        })
    })
}

fn ask(name: &str, inputs: &[&str]) -> StepData {
    let kind = StepKind::Ask { answer: json!({"type": "boolean"}), deadline_ms: None, default: None };
    step(name, kind, inputs)
}

#[tokio::test(start_paused = true)]
async fn a_run_that_only_waits_is_stopped_when_its_time_is_up() {
    let stage = Stage::new();
    let program = cast(vec![agent("before", &[]), ask("sure", &["before"])], vec![("before", works(100))]);
    let runner = stage.runner();
    let run = start(&runner, &program, Budget::new().wall_ms(60_000)).await;
    assert_eq!(run.wait().await.unwrap(), RunStatus::Stopped);
    let stopped_ms = stage.elapsed_ms();
    assert!((60_001..60_010).contains(&stopped_ms), "{stopped_ms}");
    let error = run.output().await.unwrap_err();
    assert!(error.to_string().starts_with("budget `run` is used up: wall_ms"), "{error}");
    assert_eq!(run.partial().await.unwrap().unwrap(), json!({"before": 1}));
    // Without more time it stops at once; with more it goes on, and the question is the same.
    let again = runner.resume(&program, "run").await.unwrap();
    assert_eq!(again.wait().await.unwrap(), RunStatus::Stopped);
    assert!(stage.elapsed_ms() < stopped_ms + 10);
    let again = runner.resume_with(&program, "run", more_time(60_000)).await.unwrap();
    let open = asked(&again, 1).await;
    again.answer(&open[0].id, true, "ann").await.unwrap();
    assert_eq!(again.output().await.unwrap(), json!({"sure": true}));
}

struct Turns;

impl Workflow for Turns {
    type Input = u32;
    type Output = u32;

    fn name(&self) -> &str {
        "turns"
    }

    fn build(&self, flow: &mut Flow<u32>) -> Handle<u32> {
        flow.repeat("round", "output > 1000", 2_000, flow.input(), |flow: &mut Flow<u32>| {
            flow.function("turn", flow.input(), |n: u32| async move {
                tokio::time::sleep(Duration::from_millis(400)).await;
                Ok(n + 1)
            })
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_loop_of_functions_is_stopped_in_the_midst_of_a_turn() {
    let stage = Stage::new();
    let options = StartOptions::new().budget(Budget::new().wall_ms(1_000));
    let run = stage.runner().start_with(&Turns, 0, options).await.unwrap();
    assert_eq!(run.wait().await.unwrap(), RunStatus::Stopped);
    assert_eq!(stage.elapsed_ms(), 1_001);
    assert_eq!(run.partial().await.unwrap().unwrap()["round/turn[2]/turn"], 2);
}

#[tokio::test(start_paused = true)]
async fn one_long_call_and_a_long_backoff_are_stopped_too() {
    let fails = play(|_, _: &mut AgentContext| -> Act<'_> {
        Box::pin(async move { Err(AgentError::transient("not today")) })
    });
    for (name, actor) in [("call", works(3_600_000)), ("backoff", fails)] {
        let stage = Stage::new();
        let retry =
            RetryPolicy { backoff_ms: 3_600_000, max_backoff_ms: 3_600_000, ..RetryPolicy::attempts(9) };
        let program = cast(vec![StepData { retry, ..agent("slow", &[]) }], vec![("slow", actor)]);
        let run = start(&stage.runner(), &program, Budget::new().wall_ms(5_000)).await;
        assert_eq!(run.wait().await.unwrap(), RunStatus::Stopped, "{name}");
        assert_eq!(stage.elapsed_ms(), 5_001, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_step_begins_with_the_step_and_counts_for_its_attempts_together() {
    let stage = Stage::new();
    let limited =
        |name: &str, inputs: &[&str]| StepData { budget: Budget::new().wall_ms(500), ..agent(name, inputs) };
    let steps = vec![agent("long", &[]), limited("in_time", &["long"]), limited("late", &["in_time"])];
    let program = cast(steps, vec![("long", works(900)), ("in_time", works(400)), ("late", works(600))]);
    let runner = stage.runner();
    let run = start(&runner, &program, Budget::new()).await;
    let error = run.output().await.unwrap_err();
    assert!(error.to_string().starts_with("budget `late` is used up"), "{error}");
    assert_eq!(stage.elapsed_ms(), 900 + 400 + 501);
    // The same attempt goes on, and its time goes on from where it began.
    let run = runner.resume_with(&program, "run", more_time(200)).await.unwrap();
    assert_eq!(run.wait().await.unwrap(), RunStatus::Stopped);
    assert_eq!(stage.elapsed_ms(), 900 + 400 + 701);
    let run = runner.resume_with(&program, "run", more_time(1_000)).await.unwrap();
    assert_eq!(run.output().await.unwrap(), json!({"late": 1}));
}

#[tokio::test(start_paused = true)]
async fn the_time_before_a_fork_began_is_none_of_its_own() {
    let stage = Stage::new();
    let steps = vec![agent("first", &[]), agent("then", &["first"])];
    let program = cast(steps, vec![("first", works(600)), ("then", works(600))]);
    let runner = stage.runner();
    let run = start(&runner, &program, Budget::new().wall_ms(1_500)).await;
    run.output().await.unwrap();
    let parent = records(&*stage.journal, "run").await;
    let at = parent.iter().position(
        |record| matches!(&record.event, coral_core::Event::StepSucceeded { path, .. } if &**path == "first"),
    );
    let at = at.unwrap() as u64 + 1;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let fork = runner.fork(&program, "run", at, Some("fork".into())).await.unwrap();
    assert_eq!(fork.output().await.unwrap(), json!({"then": 1}));
    // Its own time counts, and goes on counting from there.
    let slow = runner.fork(&program, "run", at - 2, Some("slow".into())).await.unwrap();
    runner.shutdown().await;
    drop(slow);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let slow = stage.runner().resume(&program, "slow").await.unwrap();
    assert_eq!(slow.wait().await.unwrap(), RunStatus::Stopped);
}

#[tokio::test]
async fn a_top_up_raises_every_step_alike_also_one_that_begins_later() {
    let stage = Stage::new();
    let twice = play(|_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move {
            for n in 0..2 {
                // The runner has no model: that the call is refused is all that it costs.
                let refused = cx.chat(&coral_core::ChatRequest::user(n.to_string())).await.unwrap_err();
                if matches!(refused.kind(), ErrorKind::Budget { .. }) {
                    return Err(refused.into());
                }
            }
            Ok(json!("both"))
        })
    });
    let one =
        |name: &str, inputs: &[&str]| StepData { budget: Budget::new().calls(1), ..agent(name, inputs) };
    let program = cast(
        vec![one("early", &[]), one("later", &["early"])],
        vec![("early", twice.clone()), ("later", twice)],
    );
    let runner = stage.runner();
    let run = start(&runner, &program, Budget::new()).await;
    assert_eq!(run.wait().await.unwrap(), RunStatus::Stopped);
    let more = ResumeOptions::new().top_up(Budget::new().calls(1));
    let run = runner.resume_with(&program, "run", more).await.unwrap();
    assert_eq!(run.output().await.unwrap(), json!({"later": "both"}));
    assert_eq!(run.used().calls, 4);
}

#[tokio::test(start_paused = true)]
async fn a_function_ends_within_its_time_limit() {
    let calls = Arc::new(AtomicU32::new(0));
    let count = calls.clone();
    let team = coral_core::Team::new().with_function("slow", move |v: Value| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(v)
        }
    });
    let slow = StepData { timeout_ms: Some(250), ..step("slow", StepKind::Function("slow".into()), &[]) };
    let graph = GraphData { name: "slow".into(), steps: vec![slow], ..GraphData::default() };
    let stage = Stage::new();
    let run =
        stage.runner().start(&Program::from_graph(graph, &team).unwrap(), Brief::default()).await.unwrap();
    let error = run.output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TimedOut { limit_ms: 250, .. }), "{error}");
    assert_eq!((stage.elapsed_ms(), calls.load(Ordering::SeqCst)), (250, 1));
}

#[test]
fn a_time_limit_that_would_not_hold_is_a_problem_of_the_graph() {
    let body =
        Arc::new(GraphData { name: "body".into(), steps: vec![agent("a", &[])], ..GraphData::default() });
    let kinds = [
        StepKind::Ask { answer: json!({}), deadline_ms: None, default: None },
        StepKind::Timer(5),
        StepKind::Signal("go".into()),
        StepKind::Workflow(body.clone()),
        StepKind::Map { body, over: None, concurrency: 1 },
        StepKind::Route { agents: vec!["a".into()], max_hops: 2 },
    ];
    for kind in kinds {
        let limited = StepData { timeout_ms: Some(5), ..step("limited", kind, &[]) };
        let graph = GraphData { name: "g".into(), steps: vec![limited], ..GraphData::default() };
        let problems: Vec<String> = graph.problems().iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("step `limited`: `timeout_ms` holds for"), "{problems:?}");
        // Within another graph it is found too.
        let around = step("around", StepKind::Workflow(Arc::new(graph)), &[]);
        let graph = GraphData { name: "g".into(), steps: vec![around], ..GraphData::default() };
        assert_eq!(graph.problems().len(), 1);
    }
}
