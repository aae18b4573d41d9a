//! What a step lets go of while it only waits: its permit, its time limit, and its place among those that a drain waits
//! for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coral_core::resources::{Pool, Resources, ResourcesConfig};
use coral_core::{
    AgentContext, ApprovalAnswer, Brief, CallContext, Caller, Category, Decision, EffectClass, Error,
    ErrorKind, Event, MemoryJournal, Program, Reconciliation, Run, Runner, StartOptions, StepData, ToolCall,
    ToolDef, ToolOutput, Toolbox,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::{Act, Play, agent, asked, cast, play, records, tool_def, until};

/// Tools that ask before they do anything: `person` in the midst of its call, `guarded` for an approval.
struct Polite;

#[async_trait]
impl Toolbox for Polite {
    async fn list(&self, _: &Caller) -> Result<Vec<ToolDef>, Error> {
        let names = ["person", "guarded", "slow"];
        Ok(names.map(|name| tool_def(name, EffectClass::Idempotent)).into())
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        match &*call.name {
            "guarded" if cx.approval().is_none() => {
                Err(Error::new(ErrorKind::NeedsApproval { tool: call.name.clone(), reason: "ask".into() }))
            }
            "person" => {
                let said = cx.ask("go on", json!(call.arguments), json!({"type": "boolean"})).await?;
                Ok(ToolOutput::text(said.to_string()))
            }
            "slow" => {
                tokio::time::sleep(Duration::from_millis(60)).await;
                Ok(ToolOutput::text("at last"))
            }
            _ => Ok(ToolOutput::text("done")),
        }
    }
}

fn calls(tools: &[&str]) -> Vec<ToolCall> {
    let call = |(n, tool): (usize, &&str)| ToolCall {
        id: n.to_string(),
        name: (*tool).to_owned(),
        arguments: json!({ "n": n }),
    };
    tools.iter().enumerate().map(call).collect()
}

/// An agent that calls these tools at once, and gives what they say.
fn caller(tools: &'static [&'static str]) -> Play {
    play(move |_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move {
            let outcomes = cx.call_tools(&calls(tools)).await?;
            let said = outcomes.into_iter().map(|outcome| Ok(outcome?.content));
            Ok(json!(said.collect::<Result<Vec<String>, Error>>()?))
        })
    })
}

/// An agent that begins something that can't be taken back, and is cut off in it the first time.
fn launcher() -> Play {
    play(|_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move {
            let launch = cx.effect("launch", EffectClass::Irreversible, "", |_| std::future::pending());
            let launched: String = launch.await?;
            Ok(json!(launched))
        })
    })
}

fn runner(journal: &Arc<MemoryJournal>, permits: usize) -> Runner {
    let pools = BTreeMap::from([(Category::Specialist, Pool { min: permits, max: permits, threshold: 80 })]);
    let resources = Resources::new(ResourcesConfig { pools, ..Default::default() }).unwrap();
    Runner::builder().journal(journal.clone()).tools(Polite).resources(resources).build()
}

async fn start(runner: &Runner, program: &Program<Brief, Value>) -> Run<Value> {
    runner.start_with(program, Brief::default(), StartOptions::new().id("run")).await.unwrap()
}

fn quick() -> Play {
    play(|_, _: &mut AgentContext| -> Act<'_> { Box::pin(async { Ok(json!("quick")) }) })
}

async fn succeeds(run: &Run<Value>, step: &str) {
    let done = until(run, |event| matches!(event, Event::StepSucceeded { path, .. } if &**path == step));
    let done = tokio::time::timeout(Duration::from_secs(60), done).await;
    assert!(done.is_ok(), "`{step}` never got the permit of the step that waits");
}

#[tokio::test(start_paused = true)]
async fn as_many_doubts_as_there_are_permits_do_not_fill_the_pool() {
    let journal = Arc::new(MemoryJournal::new());
    let program = cast(
        vec![agent("launcher", &[]), agent("quick", &[])],
        vec![("launcher", launcher()), ("quick", quick())],
    );
    let first = runner(&journal, 2);
    let run = start(&first, &program).await;
    until(&run, |event| matches!(event, Event::EffectIntended { .. })).await;
    first.shutdown().await;
    // Of the second process all permits are held by what is in doubt, if that holds any.
    let second = runner(&journal, 1);
    let run = second.resume(&program, "run").await.unwrap();
    let open = asked(&run, 1).await;
    succeeds(&run, "quick").await;
    let happened = Reconciliation { decision: Decision::Happened, result: Some(json!("in orbit")) };
    run.answer(&open[0].id, happened, "ann").await.unwrap();
    assert_eq!(run.output().await.unwrap(), json!({"launcher": "in orbit", "quick": "quick"}));
}

#[tokio::test(start_paused = true)]
async fn a_tool_that_asks_lets_others_work_once_all_calls_beside_it_are_over() {
    let journal = Arc::new(MemoryJournal::new());
    let steps = vec![agent("caller", &[]), agent("quick", &[])];
    let program = cast(steps, vec![("caller", caller(&["person", "slow", "person"])), ("quick", quick())]);
    let runner = runner(&journal, 1);
    let run = start(&runner, &program).await;
    let open = asked(&run, 2).await;
    succeeds(&run, "quick").await;
    for question in open {
        run.answer(&question.id, true, "ann").await.unwrap();
    }
    let output = run.output().await.unwrap();
    assert_eq!(output["caller"], json!(["true", "at last", "true"]));
    let at = |wanted: &dyn Fn(&Event) -> bool, records: &[coral_core::Record]| {
        records.iter().position(|record| wanted(&record.event)).unwrap()
    };
    let recorded = records(&*journal, "run").await;
    let slow = at(&|event| matches!(event, Event::EffectDone { index: 2, .. }), &recorded);
    let begun =
        at(&|event| matches!(event, Event::StepStarted { path, .. } if &**path == "quick"), &recorded);
    let done =
        at(&|event| matches!(event, Event::StepSucceeded { path, .. } if &**path == "quick"), &recorded);
    assert!(begun < slow && slow < done, "it works on as long as a call of its does");
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_counts_no_time_that_a_person_takes() {
    for tools in [&["person"] as &'static [&'static str], &["guarded"]] {
        let journal = Arc::new(MemoryJournal::new());
        let step = StepData { timeout_ms: Some(100), ..agent("caller", &[]) };
        let program = cast(vec![step], vec![("caller", caller(tools))]);
        let runner = runner(&journal, 1);
        let run = start(&runner, &program).await;
        let open = asked(&run, 1).await;
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        let answer = match tools[0] {
            "person" => json!(true),
            _ => json!(ApprovalAnswer { approved: true, reason: None }),
        };
        run.answer(&open[0].id, answer, "ann").await.unwrap();
        run.output().await.unwrap();
    }
    // What it works does count, before and after.
    let journal = Arc::new(MemoryJournal::new());
    let step = StepData { timeout_ms: Some(100), ..agent("worker", &[]) };
    let worker = play(|_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move {
            cx.call_tools(&calls(&["slow"])).await?;
            cx.ask::<String, bool>("ok", &"?".into()).await?;
            cx.call_tools(&calls(&["slow"])).await?;
            Ok(json!("too long"))
        })
    });
    let program = cast(vec![step], vec![("worker", worker)]);
    let runner = runner(&journal, 1);
    let run = start(&runner, &program).await;
    let open = asked(&run, 1).await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    run.answer(&open[0].id, true, "ann").await.unwrap();
    let error = run.output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TimedOut { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn two_questions_of_one_step_do_not_stand_for_another_that_works() {
    let journal = Arc::new(MemoryJournal::new());
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (begun.clone(), go.clone());
    let busy = play(move |_, cx: &mut AgentContext| -> Act<'_> {
        let (tell, wait) = (tell.clone(), wait.clone());
        Box::pin(async move {
            let work = cx.effect("work", EffectClass::Pure, "", |_| async move {
                tell.notify_one();
                wait.notified().await;
                Ok("worked".to_owned())
            });
            Ok(json!(work.await?))
        })
    });
    let steps = vec![agent("caller", &[]), agent("busy", &[])];
    let program = cast(steps, vec![("caller", caller(&["guarded", "guarded"])), ("busy", busy)]);
    let runner = runner(&journal, 2);
    let run = start(&runner, &program).await;
    asked(&run, 2).await;
    begun.notified().await;
    let draining = tokio::spawn({
        let runner = runner.clone();
        async move { runner.drain(Duration::from_secs(3_600)).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!draining.is_finished(), "a step works");
    go.notify_one();
    assert!(draining.await.unwrap());
    let recorded = records(&*journal, "run").await;
    let worked = recorded
        .iter()
        .any(|record| matches!(&record.event, Event::StepSucceeded { path, .. } if &**path == "busy"));
    assert!(worked, "what worked was not cut off");
}
