//! What people decide: approvals of tool calls, effects in doubt, and questions of tools.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, ApprovalAnswer, Budget, CallContext, Caller, ChatRequest,
    ChatResponse, Decision, EffectClass, Error, ErrorKind, Event, Flow, Handle, MemoryJournal, Reconciled,
    Reconciliation, Run, RunStatus, Runner, StartOptions, ToolCall, ToolDef, ToolOutput, Toolbox, Usage, Usd,
    Workflow,
};
use serde_json::{Value, json};

use crate::support::{FnModel, asked, records, tool_def};

/// Tools that do as they are told by their names, and write down that they did.
#[derive(Clone, Default)]
struct Desk {
    done: Arc<Mutex<Vec<String>>>,
    /// Whether a call stops in its midst.
    hangs: Arc<Mutex<bool>>,
    /// What the desk can say of a call that was cut off.
    found: Arc<Mutex<Option<ToolOutput>>>,
    told: Arc<Mutex<Vec<String>>>,
}

impl Desk {
    fn done(&self) -> Vec<String> {
        self.done.lock().unwrap().clone()
    }
}

#[async_trait]
impl Toolbox for Desk {
    async fn list(&self, _: &Caller) -> Result<Vec<ToolDef>, Error> {
        Ok(vec![
            tool_def("push", EffectClass::Irreversible),
            tool_def("mail", EffectClass::Reconcile),
            tool_def("elicit", EffectClass::Idempotent),
            tool_def("sample", EffectClass::Idempotent),
        ])
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        if call.arguments.get("approve").is_some() && !cx.approval().is_some_and(|yes| yes.covers(call)) {
            let (tool, reason) = (call.name.clone(), "line 12 says ask".to_owned());
            return Err(Error::new(ErrorKind::NeedsApproval { tool, reason }));
        }
        self.done.lock().unwrap().push(format!("{} {}", call.name, call.arguments));
        if std::mem::take(&mut *self.hangs.lock().unwrap()) {
            std::future::pending::<()>().await;
        }
        match &*call.name {
            "elicit" => {
                let name = cx.ask("who", json!("your name?"), json!({"type": "string"})).await?;
                cx.note("asked", json!({"for": "name"}));
                Ok(ToolOutput::text(format!("hello {}", name.as_str().unwrap())))
            }
            "sample" => {
                let answer = cx.chat(&ChatRequest::user("sum up")).await?;
                Ok(ToolOutput::text(answer.message.text()))
            }
            _ => Ok(ToolOutput::text("done")),
        }
    }

    async fn reconcile(&self, _: &ToolCall, cx: &CallContext) -> Result<Reconciled, Error> {
        self.told.lock().unwrap().push(format!("reconcile {}", cx.key().len()));
        Ok(self.found.lock().unwrap().take().map_or(Reconciled::DidNotHappen, Reconciled::Happened))
    }
}

/// Makes the calls of its input in one batch, and gives what came of each.
struct Clerk(AgentSpec);

#[async_trait]
impl Agent for Clerk {
    type Input = Vec<ToolCall>;
    type Output = Vec<String>;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, calls: Vec<ToolCall>, cx: &mut AgentContext) -> Result<Vec<String>, AgentError> {
        let outcomes = cx.call_tools(&calls).await?;
        if let Some(Err(error)) = outcomes
            .iter()
            .find(|o| matches!(o, Err(error) if !matches!(error.kind(), ErrorKind::Denied { .. })))
        {
            return Err(error.clone().into());
        }
        let said = |outcome: Result<ToolOutput, Error>| match outcome {
            Ok(output) => output.content,
            Err(error) => error.to_string(),
        };
        Ok(outcomes.into_iter().map(said).collect())
    }
}

struct Office;

impl Workflow for Office {
    type Input = Vec<ToolCall>;
    type Output = Vec<String>;

    fn name(&self) -> &str {
        "office"
    }

    fn build(&self, flow: &mut Flow<Vec<ToolCall>>) -> Handle<Vec<String>> {
        flow.step(Clerk(AgentSpec::new("clerk", "Clerk")), flow.input())
    }
}

fn call(name: &str, arguments: Value) -> ToolCall {
    ToolCall { id: name.into(), name: name.into(), arguments }
}

fn runner(journal: &Arc<MemoryJournal>, desk: &Desk) -> Runner {
    let model = FnModel::new(|_, _| {
        let usage = Usage { input_tokens: 10, output_tokens: 5, ..Usage::default() };
        let cost = Some(Usd::from_dollars(0.25));
        Ok(ChatResponse { usage, cost, ..ChatResponse::text("test", "a summary") })
    });
    Runner::builder().journal(journal.clone()).tools(desk.clone()).model(model).build()
}

#[tokio::test]
async fn approvals_hold_for_one_call_and_outlive_the_process() {
    let (journal, desk) = (Arc::new(MemoryJournal::new()), Desk::default());
    let first = runner(&journal, &desk);
    let calls = vec![
        call("push", json!({"approve": 1})),
        call("push", json!({"approve": 2})),
        call("push", json!({"free": 3})),
    ];
    let run = first.start(&Office, calls).await.unwrap();
    let open = asked(&run, 2).await;
    assert_eq!(desk.done(), ["push {\"free\":3}"], "what nobody need approve does not wait");
    let by = |value: u64| {
        let open = open.iter().find(|q| q.question.json().unwrap()["arguments"]["approve"] == value);
        open.unwrap().clone()
    };
    assert_eq!(
        *by(1).question.json().unwrap(),
        json!({"agent": "clerk", "tool": "push", "arguments": {"approve": 1}, "reason": "line 12 says ask"})
    );
    let yes = ApprovalAnswer { approved: true, reason: None };
    let no = ApprovalAnswer { approved: false, reason: Some("not on a Friday".into()) };
    run.answer(&by(2).id, yes, "ann").await.unwrap();
    first.shutdown().await;

    let second = runner(&journal, &desk);
    let run = second.resume(&Office, run.id()).await.unwrap();
    let open = asked(&run, 1).await;
    assert_eq!(open.len(), 1, "the approval that was given is not asked for again");
    assert_eq!(open[0].id, by(1).id);
    run.answer(&by(1).id, no, "ann").await.unwrap();
    let said = run.output().await.unwrap();
    assert!(said[0].contains("not on a Friday"), "{said:?}");
    assert_eq!(said[1..], ["done", "done"]);
    assert_eq!(desk.done(), ["push {\"free\":3}", "push {\"approve\":2}"]);
}

/// A run of one call that was cut off in its midst by a crash.
async fn cut_off(desk: &Desk, tool: &str) -> (Arc<MemoryJournal>, Runner, Run<Vec<String>>) {
    let journal = Arc::new(MemoryJournal::new());
    *desk.hangs.lock().unwrap() = true;
    let first = runner(&journal, desk);
    let run = first.start(&Office, vec![call(tool, json!({"to": "ann"}))]).await.unwrap();
    let mut events = run.events(1);
    while desk.done().is_empty() {
        events.next().await.unwrap().unwrap();
    }
    first.shutdown().await;
    let second = runner(&journal, desk);
    let run = second.resume(&Office, run.id()).await.unwrap();
    (journal, second, run)
}

#[tokio::test]
async fn an_irreversible_effect_in_doubt_is_put_before_a_person() {
    let desk = Desk::default();
    let (journal, _second, run) = cut_off(&desk, "push").await;
    let open = asked(&run, 1).await;
    assert_eq!(&*open[0].label, "needs_reconciliation");
    let question = open[0].question.json().unwrap();
    assert_eq!((&question["effect"], &question["arguments"]), (&json!("push"), &json!({"to": "ann"})));
    assert_eq!(question["key"].as_str().unwrap().len(), 64);
    let happened = Reconciliation { decision: Decision::Happened, result: Some(json!("pushed as 7f3a")) };
    run.answer(&open[0].id, happened, "ann").await.unwrap();
    assert_eq!(run.output().await.unwrap(), ["pushed as 7f3a"]);
    assert_eq!(desk.done().len(), 1, "it was not done again");
    // The journal replays without asking.
    let again = runner(&journal, &desk).resume(&Office, run.id()).await.unwrap();
    assert_eq!(again.output().await.unwrap(), ["pushed as 7f3a"]);
}

#[tokio::test]
async fn each_doubt_is_asked_anew_and_an_effect_that_did_not_happen_is_done() {
    let desk = Desk::default();
    let (journal, second, run) = cut_off(&desk, "push").await;
    let first = asked(&run, 1).await;
    // It did not happen, is done, and is cut off again.
    *desk.hangs.lock().unwrap() = true;
    let not = Reconciliation { decision: Decision::DidNotHappen, result: None };
    run.answer(&first[0].id, not.clone(), "ann").await.unwrap();
    let mut events = run.events(1);
    while desk.done().len() < 2 {
        events.next().await.unwrap().unwrap();
    }
    second.shutdown().await;
    let run = runner(&journal, &desk).resume(&Office, run.id()).await.unwrap();
    let second = asked(&run, 1).await;
    assert_ne!(first[0].id, second[0].id, "an answer to one doubt is none to the next");
    run.answer(&second[0].id, not, "ann").await.unwrap();
    assert_eq!(run.output().await.unwrap(), ["done"]);
    assert_eq!(desk.done().len(), 3);
}

#[tokio::test]
async fn a_person_who_can_not_tell_either_gives_up() {
    let desk = Desk::default();
    let (_, _second, run) = cut_off(&desk, "push").await;
    let open = asked(&run, 1).await;
    let give_up = Reconciliation { decision: Decision::GiveUp, result: None };
    run.answer(&open[0].id, give_up, "ann").await.unwrap();
    let error = run.output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InDoubt { label, .. } if label == "push"), "{error}");
    assert_eq!(run.wait().await.unwrap(), RunStatus::Failed);
    assert_eq!(desk.done().len(), 1);
}

#[tokio::test]
async fn a_toolbox_that_can_tell_is_asked_before_a_person() {
    let desk = Desk::default();
    *desk.found.lock().unwrap() = Some(ToolOutput::text("sent at noon"));
    let (_, _second, run) = cut_off(&desk, "mail").await;
    assert_eq!(run.output().await.unwrap(), ["sent at noon"]);
    assert_eq!(desk.done().len(), 1);

    let desk = Desk::default();
    let (_, _second, run) = cut_off(&desk, "mail").await;
    assert_eq!(run.output().await.unwrap(), ["done"]);
    assert_eq!(desk.done().len(), 2, "it did not happen, and is done");
    assert_eq!(desk.told.lock().unwrap().iter().filter(|told| told.starts_with("reconcile 64")).count(), 1);
}

#[tokio::test]
async fn a_tool_asks_a_person_in_the_midst_of_its_call() {
    let (journal, desk) = (Arc::new(MemoryJournal::new()), Desk::default());
    let first = runner(&journal, &desk);
    let run = first.start(&Office, vec![call("elicit", json!({}))]).await.unwrap();
    let open = asked(&run, 1).await;
    first.shutdown().await;
    let run = runner(&journal, &desk).resume(&Office, run.id()).await.unwrap();
    run.answer(&open[0].id, "Ann".to_owned(), "ann").await.unwrap();
    assert_eq!(run.output().await.unwrap(), ["hello Ann"]);
    let records = records(&*journal, run.id()).await;
    let asked = records.iter().filter(|r| matches!(r.event, Event::QuestionAsked { .. })).count();
    assert_eq!(asked, 1, "the same question of the call that is made again is the same question");
    assert!(
        records.iter().any(|r| matches!(&r.event, Event::CallNoted { topic, .. } if &**topic == "asked"))
    );
}

#[tokio::test]
async fn a_tool_that_calls_the_model_pays_from_the_budget() {
    let (journal, desk) = (Arc::new(MemoryJournal::new()), Desk::default());
    let start = |calls| StartOptions::new().budget(Budget::new().calls(calls));
    let run = runner(&journal, &desk);
    let run = run.start_with(&Office, vec![call("sample", json!({}))], start(2)).await.unwrap();
    assert_eq!(run.output().await.unwrap(), ["a summary"]);
    let records = records(&*journal, run.id()).await;
    let spent = records.iter().find_map(|r| match &r.event {
        Event::EffectDone { spent, .. } if spent.cost.is_some() => Some(spent.clone()),
        _ => None,
    });
    let spent = spent.unwrap();
    assert_eq!((spent.usage.total_tokens(), spent.cost), (15, Some(Usd::from_dollars(0.25))));

    let run = runner(&journal, &desk);
    let run = run.start_with(&Office, vec![call("sample", json!({}))], start(1)).await.unwrap();
    let error = run.output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Budget { .. }), "{error}");
}

#[tokio::test]
async fn nobody_can_be_asked_outside_of_a_run() {
    let cx = CallContext::new(Caller::agent("clerk"));
    let error = cx.ask("who", json!("?"), json!({})).await.unwrap_err();
    assert!(error.to_string().contains("not part of a run"), "{error}");
    assert!(cx.chat(&ChatRequest::user("?")).await.is_err());
}

/// Does one thing that can't be taken back, at most once.
struct Launcher(AgentSpec, Arc<Mutex<u32>>);

#[async_trait]
impl Agent for Launcher {
    type Input = u32;
    type Output = String;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, _: u32, cx: &mut AgentContext) -> Result<String, AgentError> {
        let count = self.1.clone();
        let launch = cx.effect("launch", EffectClass::Irreversible, "now", |_| async move {
            *count.lock().unwrap() += 1;
            std::future::pending().await
        });
        Ok(launch.await?)
    }
}

struct LaunchFlow(Arc<Mutex<u32>>);

impl Workflow for LaunchFlow {
    type Input = u32;
    type Output = String;

    fn name(&self) -> &str {
        "launch"
    }

    fn build(&self, flow: &mut Flow<u32>) -> Handle<String> {
        flow.step(Launcher(AgentSpec::new("launch", "Launch"), self.0.clone()), flow.input())
    }
}

#[tokio::test]
async fn an_effect_of_an_agents_own_in_doubt_is_put_before_a_person() {
    let (journal, launched) = (Arc::new(MemoryJournal::new()), Arc::default());
    let flow = LaunchFlow(launched);
    let first = runner(&journal, &Desk::default());
    let run = first.start(&flow, 1).await.unwrap();
    let mut events = run.events(1);
    while *flow.0.lock().unwrap() == 0 {
        events.next().await.unwrap().unwrap();
    }
    first.shutdown().await;
    let second = runner(&journal, &Desk::default());
    let run = second.resume(&flow, run.id()).await.unwrap();
    let open = asked(&run, 1).await;
    let happened = Reconciliation { decision: Decision::Happened, result: Some(json!("in orbit")) };
    run.answer(&open[0].id, happened, "ann").await.unwrap();
    assert_eq!(run.output().await.unwrap(), "in orbit");
    assert_eq!(*flow.0.lock().unwrap(), 1);
}
