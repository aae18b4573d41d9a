//! Nothing is done twice, and nothing is paid twice: also where a budget stops a step, where an attempt is cut off in
//! the midst of what can't be repeated, and where nobody knows what was used.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{
    AgentContext, AgentError, Brief, Budget, CallContext, Caller, ChatModel, ChatRequest, ChatResponse,
    Decision, EffectClass, Error, ErrorKind, Event, ManualClock, MemoryJournal, Migration, ModelFault,
    ModelInfo, Price, Reconciled, Reconciliation, ResumeOptions, RetryPolicy, Run, RunStatus, Runner,
    StartOptions, StepData, ToolCall, ToolDef, ToolFault, ToolOutput, Toolbox, Usage,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::{Act, FnModel, Play, agent, asked, cast, play, records, tool_def, until};

const PRICE: Price = Price { input: 1.0, output: 1.0, cache_read: 1.0, cache_write: 1.0 };

/// A priced model of at most 100 output tokens that answers as a function says.
struct Priced<F>(FnModel<F>);

#[async_trait]
impl<F: Fn(usize, &ChatRequest) -> Result<ChatResponse, Error> + Send + Sync> ChatModel for Priced<F> {
    fn name(&self) -> &str {
        "priced"
    }

    fn info(&self) -> ModelInfo {
        let mut info = ModelInfo::default();
        info.max_output_tokens = Some(100);
        info.price = Some(PRICE);
        info
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        if request.messages[0].text() == "hang" {
            self.0.requests.lock().unwrap().push(request.clone());
            return std::future::pending().await;
        }
        self.0.chat(request, cx).await
    }
}

fn answer(text: &str) -> ChatResponse {
    let usage = Usage { input_tokens: 10, output_tokens: 5, ..Usage::default() };
    ChatResponse { usage, cost: Some(PRICE.cost(&usage)), ..ChatResponse::text("priced", text) }
}

fn fails(fault: ModelFault) -> Error {
    Error::new(ErrorKind::Model { fault, model: "priced".into(), problem: "so it goes".into() })
}

/// A model that answers `hello`, or fails as the request's first word says.
fn model() -> Priced<impl Fn(usize, &ChatRequest) -> Result<ChatResponse, Error> + Send + Sync> {
    Priced(FnModel::new(|_, request: &ChatRequest| match &*request.messages[0].text() {
        "cut" => Err(fails(ModelFault::Truncated)),
        "late" => Err(fails(ModelFault::Timeout)),
        "rate" => Err(fails(ModelFault::RateLimited)),
        "form" => Err(fails(ModelFault::InvalidRequest)),
        _ => Ok(answer("hello")),
    }))
}

/// What was done outside: the keys, in order.
#[derive(Clone, Default)]
struct Outside {
    keys: Arc<Mutex<Vec<String>>>,
    begun: Arc<Notify>,
}

impl Outside {
    fn begins(&self, key: &str) -> usize {
        let mut keys = self.keys.lock().unwrap();
        keys.push(key.to_owned());
        self.begun.notify_one();
        keys.len()
    }

    fn keys(&self) -> Vec<String> {
        self.keys.lock().unwrap().clone()
    }
}

/// The tool `launch` can't be taken back and gets no answer the first time; `find` can be looked for; `sum` calls the
/// model, and `wait` asks a person.
#[async_trait]
impl Toolbox for Outside {
    async fn list(&self, _: &Caller) -> Result<Vec<ToolDef>, Error> {
        Ok(vec![
            tool_def("launch", EffectClass::Irreversible),
            tool_def("find", EffectClass::Reconcile),
            tool_def("sum", EffectClass::Idempotent),
            tool_def("wait", EffectClass::Idempotent),
        ])
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        match &*call.name {
            "sum" => {
                let text = call.arguments["text"].as_str().unwrap_or("sum").to_owned();
                Ok(ToolOutput::text(cx.chat(&ChatRequest::user(text)).await?.message.text()))
            }
            "wait" => {
                let yes = cx.ask("go on", json!(call.arguments), json!({"type": "boolean"})).await?;
                Ok(ToolOutput::text(yes.to_string()))
            }
            name => {
                if self.begins(cx.key()) == 1 {
                    let (fault, problem) = (ToolFault::Timeout, "no answer".to_owned());
                    return Err(Error::new(ErrorKind::Tool { fault, tool: name.into(), problem }));
                }
                Ok(ToolOutput::text("launched"))
            }
        }
    }

    async fn reconcile(&self, _: &ToolCall, cx: &CallContext) -> Result<Reconciled, Error> {
        let known = self.keys().iter().any(|key| key == cx.key());
        Ok(if known { Reconciled::Happened(ToolOutput::text("found")) } else { Reconciled::DidNotHappen })
    }
}

fn tool(name: &str, arguments: Value) -> ToolCall {
    ToolCall { id: "1".into(), name: name.into(), arguments }
}

fn runner(journal: &Arc<MemoryJournal>, outside: &Outside) -> Runner {
    let clock = ManualClock::at_ms(1_000);
    Runner::builder().journal(journal.clone()).tools(outside.clone()).clock(clock).model(model()).build()
}

async fn start(runner: &Runner, program: &coral_core::Program<Brief, Value>, budget: Budget) -> Run<Value> {
    let options = StartOptions::new().id("run").budget(budget);
    runner.start_with(program, Brief::default(), options).await.unwrap()
}

fn more(budget: Budget) -> ResumeOptions {
    ResumeOptions::new().top_up(budget)
}

fn is_budget(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Budget { .. })
}

/// An effect of the agent's own that can't be taken back: it stays without an end the first time.
async fn launch(outside: &Outside, cx: &mut AgentContext) -> Result<String, Error> {
    let outside = outside.clone();
    cx.effect("launch", EffectClass::Irreversible, "now", |key| async move {
        if outside.begins(&key) == 1 {
            std::future::pending::<()>().await;
        }
        Ok("launched".to_owned())
    })
    .await
}

#[tokio::test]
async fn what_a_refused_call_is_followed_by_is_not_done_again() {
    let (journal, outside) = (Arc::new(MemoryJournal::new()), Outside::default());
    let posts = Arc::new(AtomicUsize::new(0));
    let count = posts.clone();
    let thrifty = play(move |_, cx: &mut AgentContext| -> Act<'_> {
        let posts = count.clone();
        Box::pin(async move {
            cx.chat(&ChatRequest::user("one")).await?;
            let refused = cx.chat(&ChatRequest::user("two")).await.is_err_and(|error| is_budget(&error));
            let posted = cx.effect("post", EffectClass::Irreversible, "it", |_| async move {
                Ok(posts.fetch_add(1, Ordering::SeqCst) + 1)
            });
            let posted = posted.await?;
            let tools = cx.call_tools(&[tool("sum", json!({})), tool("sum", json!({}))]).await;
            let unused = tools.is_err_and(|error| is_budget(&error));
            let ok: bool = cx.ask("go on", &1_u32).await?;
            Ok(json!([refused, posted, unused, ok]))
        })
    });
    let program = cast(vec![agent("thrifty", &[])], vec![("thrifty", thrifty)]);
    let first = runner(&journal, &outside);
    let run = start(&first, &program, Budget::new().calls(1)).await;
    asked(&run, 1).await;
    first.shutdown().await;
    // There would be enough now: the path that was taken stays.
    let second = runner(&journal, &outside);
    let run = second.resume_with(&program, "run", more(Budget::new().calls(9))).await.unwrap();
    let open = asked(&run, 1).await;
    run.answer(&open[0].id, true, "ann").await.unwrap();
    assert_eq!(run.output().await.unwrap(), json!({"thrifty": [true, 1, true, true]}));
    assert_eq!(posts.load(Ordering::SeqCst), 1);
    assert_eq!(run.used().calls, 1);
}

#[tokio::test]
async fn a_step_that_a_budget_stopped_goes_on_at_the_call_it_was_stopped_at() {
    let (journal, outside) = (Arc::new(MemoryJournal::new()), Outside::default());
    let tidy = play(|_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move {
            let mut said = Vec::new();
            for n in 0..4 {
                said.push(cx.chat(&ChatRequest::user(format!("question {n}"))).await?.message.text());
                let sums = cx.call_tools(&[tool("sum", json!({})), tool("sum", json!({"n": n}))]).await?;
                for sum in sums {
                    said.push(sum?.content);
                }
            }
            cx.note("done", json!(said.len())).await;
            Ok(json!([said.len(), cx.attempt()]))
        })
    });
    let program = cast(vec![agent("tidy", &[])], vec![("tidy", tidy)]);
    let runner = runner(&journal, &outside);
    let mut run = start(&runner, &program, Budget::new().calls(1)).await;
    let mut stops = 0;
    // Each round is a chat, two tools, and a chat within each: five calls.
    while run.wait().await.unwrap() == RunStatus::Stopped {
        stops += 1;
        run = runner.resume_with(&program, "run", more(Budget::new().calls(1))).await.unwrap();
    }
    assert_eq!(run.output().await.unwrap(), json!({"tidy": [12, 1]}));
    assert!(stops > 10, "only {stops} stops");
    let again = runner.resume(&program, "run").await.unwrap();
    assert_eq!(again.used(), run.used());
    assert_eq!((run.used().calls, run.used().agents), (4 * 5, 1), "a call that goes on counts once");
    // What a tool did before its own call of the model was refused is done again, and counted.
    let chats = records(&*journal, "run")
        .await
        .into_iter()
        .filter(|record| matches!(&record.event, Event::EffectDone { spent, .. } if spent.model.is_some()));
    assert_eq!(chats.count(), 4, "no chat was made twice");
}

/// Of three calls at once one can't be repeated, and was made by the attempt before.
#[tokio::test(start_paused = true)]
async fn of_calls_that_were_refused_together_those_are_made_that_are_missing() {
    let (journal, outside) = (Arc::new(MemoryJournal::new()), Outside::default());
    // The first launch gets no answer: that is somebody else's.
    outside.begins("other");
    let twice = play(|_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move {
            let calls = [tool("sum", json!({})), tool("launch", json!({})), tool("sum", json!({"n": 2}))];
            let said = cx.call_tools(&calls).await?.into_iter().map(|outcome| Ok(outcome?.content));
            let said = said.collect::<Result<Vec<String>, Error>>()?;
            if cx.attempt() == 1 { Err(AgentError::transient("once more")) } else { Ok(json!(said)) }
        })
    });
    let steps = vec![StepData { retry: RetryPolicy::attempts(2), ..agent("twice", &[]) }];
    let program = cast(steps, vec![("twice", twice)]);
    let runner = runner(&journal, &outside);
    let run = start(&runner, &program, Budget::new().calls(6)).await;
    assert_eq!(run.wait().await.unwrap(), RunStatus::Stopped);
    let run = runner.resume_with(&program, "run", more(Budget::new().calls(9))).await.unwrap();
    assert_eq!(run.output().await.unwrap(), json!({"twice": ["hello", "launched", "hello"]}));
    assert_eq!(outside.keys().len(), 2);
    assert_eq!(runner.resume(&program, "run").await.unwrap().used(), run.used());
}

#[tokio::test]
async fn a_stopped_step_begins_anew_where_it_gets_another_input() {
    let (journal, outside) = (Arc::new(MemoryJournal::new()), Outside::default());
    let weak = play(|_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move {
            if cx.attempt() == 1 { Err(AgentError::user("not yet")) } else { Ok(json!("strong")) }
        })
    });
    let joiner = play(|input, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move {
            cx.chat(&ChatRequest::user(input.to_string())).await?;
            cx.chat(&ChatRequest::user("more")).await?;
            Ok(json!([input, cx.attempt()]))
        })
    });
    let steps =
        vec![agent("weak", &[]), StepData { join: coral_core::Join::Settle, ..agent("joiner", &["weak"]) }];
    let program = cast(steps, vec![("weak", weak), ("joiner", joiner)]);
    let runner = runner(&journal, &outside);
    let run = start(&runner, &program, Budget::new().calls(1)).await;
    assert_ne!(run.wait().await.unwrap(), RunStatus::Succeeded);
    let run = runner.resume_with(&program, "run", more(Budget::new().calls(9))).await.unwrap();
    assert_eq!(run.output().await.unwrap(), json!({"joiner": ["strong", 2]}));
}

/// How an attempt can end in the midst of an effect.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cause {
    TimeLimit,
    Panic,
    OwnTimeout,
    TriedAgain,
    AskedAgain,
    Restart,
    Failed,
    NoAnswer,
    Budget,
}

fn launcher(cause: Cause, outside: &Outside) -> Play {
    let outside = outside.clone();
    play(move |_, cx: &mut AgentContext| -> Act<'_> {
        let outside = outside.clone();
        Box::pin(async move {
            let begun = outside.begun.clone();
            let said = match cause {
                Cause::NoAnswer => cx.call_tool(&tool("launch", json!({}))).await?.content,
                Cause::Failed => {
                    let act = |key: Arc<str>| async move {
                        if outside.begins(&key) == 1 {
                            Err(AgentError::system("lost"))
                        } else {
                            Ok("launched".to_owned())
                        }
                    };
                    cx.effect("launch", EffectClass::Irreversible, "now", act).await?
                }
                Cause::OwnTimeout => {
                    let limit = Duration::from_millis(50);
                    tokio::time::timeout(limit, launch(&outside, cx))
                        .await
                        .map_err(|_| AgentError::transient("too slow"))??
                }
                // One that the agent goes on without.
                Cause::TriedAgain => {
                    let limit = Duration::from_millis(50);
                    match tokio::time::timeout(limit, launch(&outside, cx)).await {
                        Ok(said) => said?,
                        Err(_) => launch(&outside, cx).await?,
                    }
                }
                Cause::AskedAgain => match cx.call_tool(&tool("launch", json!({}))).await {
                    Ok(output) => output.content,
                    Err(_) => cx.call_tool(&tool("launch", json!({}))).await?.content,
                },
                Cause::Panic if cx.attempt() == 1 => {
                    tokio::select! {
                        said = launch(&outside, cx) => said?,
                        () = begun.notified() => panic!("in the midst of it"),
                    }
                }
                _ => launch(&outside, cx).await?,
            };
            Ok(json!(said))
        })
    })
}

/// Runs to the question that is asked by the attempt that was cut off, where it goes on, or by the one after; gives also how that one ended.
async fn doubt(cause: Cause, outside: &Outside, journal: &Arc<MemoryJournal>) -> (Runner, Run<Value>) {
    let limits = |mut step: StepData| {
        match cause {
            Cause::TimeLimit => step.timeout_ms = Some(100),
            Cause::OwnTimeout => step.retry = RetryPolicy::attempts(2),
            Cause::Budget => step.budget = Budget::new().wall_ms(100),
            _ => {}
        }
        step
    };
    let make = |version: &str| {
        let (actor, id) = (launcher(cause, outside), "launcher");
        let mut spec = coral_core::AgentSpec::new(id, id);
        spec.summary = version.to_owned();
        let team = coral_core::Team::new().with_agent(crate::support::Actor(spec, actor));
        let steps = vec![limits(agent(id, &[]))];
        let graph = coral_core::GraphData { name: "play".into(), steps, ..Default::default() };
        coral_core::Program::from_graph(graph, &team).unwrap()
    };
    let (runner, mut program) = (runner(journal, outside), make("first"));
    let run = start(&runner, &program, Budget::new()).await;
    if matches!(cause, Cause::OwnTimeout | Cause::TriedAgain | Cause::AskedAgain) {
        return (runner, run);
    }
    let second = if cause == Cause::Restart {
        until(&run, |event| matches!(event, Event::EffectIntended { .. })).await;
        outside.begun.notified().await;
        runner.shutdown().await;
        let old = program.pins().digest();
        program = make("second").with_migration(Migration::of(old, "another launcher").restart("launcher"));
        self::runner(journal, outside)
    } else {
        assert_ne!(run.wait().await.unwrap(), RunStatus::Succeeded, "{cause:?}");
        runner
    };
    let run = second.resume_with(&program, "run", more(Budget::new().wall_ms(100_000))).await.unwrap();
    (second, run)
}

#[tokio::test(start_paused = true)]
async fn an_effect_that_was_cut_off_is_not_repeated_by_the_same_or_the_next_attempt() {
    let causes = [
        Cause::TimeLimit,
        Cause::Panic,
        Cause::OwnTimeout,
        Cause::TriedAgain,
        Cause::AskedAgain,
        Cause::Restart,
        Cause::Failed,
        Cause::NoAnswer,
        Cause::Budget,
    ];
    for cause in causes {
        for decision in [Decision::Happened, Decision::DidNotHappen] {
            let (journal, outside) = (Arc::new(MemoryJournal::new()), Outside::default());
            let (_runner, run) = doubt(cause, &outside, &journal).await;
            let open = tokio::time::timeout(Duration::from_secs(9), asked(&run, 1)).await;
            let open = open.unwrap_or_else(|_| panic!("{cause:?}: nobody is asked"));
            assert_eq!(&*open[0].label, "needs_reconciliation", "{cause:?}");
            assert_eq!(outside.keys().len(), 1, "{cause:?}");
            let key = open[0].question.json().unwrap()["key"].clone();
            assert_eq!(key, outside.keys()[0], "{cause:?}: the key under which it was sent");
            let result = (decision == Decision::Happened).then(|| json!("in orbit"));
            run.answer(&open[0].id, Reconciliation { decision, result }, "ann").await.unwrap();
            let output = run.output().await.unwrap();
            match decision {
                Decision::Happened => {
                    assert_eq!(output, json!({"launcher": "in orbit"}), "{cause:?}");
                    assert_eq!(outside.keys().len(), 1, "{cause:?}");
                }
                _ => {
                    assert_eq!(output, json!({"launcher": "launched"}), "{cause:?}");
                    assert_eq!(
                        outside.keys(),
                        [key.clone(), key].map(|key| key.as_str().unwrap().to_owned())
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn after_giving_up_the_next_attempt_asks_again() {
    let (journal, outside) = (Arc::new(MemoryJournal::new()), Outside::default());
    let program = cast(vec![agent("launcher", &[])], vec![("launcher", launcher(Cause::Failed, &outside))]);
    let runner = runner(&journal, &outside);
    let run = start(&runner, &program, Budget::new()).await;
    assert_eq!(run.wait().await.unwrap(), RunStatus::Failed);
    for _ in 0..2 {
        let run = runner.resume(&program, "run").await.unwrap();
        let open = asked(&run, 1).await;
        let give_up = Reconciliation { decision: Decision::GiveUp, result: None };
        run.answer(&open[0].id, give_up, "ann").await.unwrap();
        let error = run.output().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InDoubt { .. }), "{error}");
    }
    assert_eq!(outside.keys().len(), 1);
}

#[tokio::test]
async fn the_next_attempt_looks_for_a_call_that_got_no_answer_under_its_key() {
    let (journal, outside) = (Arc::new(MemoryJournal::new()), Outside::default());
    let finder = play(|_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move { Ok(json!(cx.call_tool(&tool("find", json!({}))).await?.content)) })
    });
    let program = cast(vec![agent("finder", &[])], vec![("finder", finder)]);
    let runner = runner(&journal, &outside);
    let run = start(&runner, &program, Budget::new()).await;
    assert_eq!(run.wait().await.unwrap(), RunStatus::Failed);
    let run = runner.resume(&program, "run").await.unwrap();
    assert_eq!(run.output().await.unwrap(), json!({"finder": "found"}));
    assert_eq!(outside.keys().len(), 1);
}

/// An agent that does what the numbers of `script` say, and takes no failure for an end.
fn scripted(script: Vec<u64>, fails_first: bool) -> Play {
    play(move |_, cx: &mut AgentContext| -> Act<'_> {
        let script = script.clone();
        Box::pin(async move {
            let mut outcomes = Vec::new();
            for n in script {
                let text = ["a", "cut", "late", "rate", "form", "hang"][(n % 6) as usize];
                let limit = Duration::from_millis(20);
                let went_well = match n / 6 % 4 {
                    0 | 1 => {
                        let request = ChatRequest::user(text);
                        let chat = cx.chat(&request);
                        tokio::time::timeout(limit, chat).await.is_ok_and(|answer| answer.is_ok())
                    }
                    2 => {
                        let calls = [tool("sum", json!({"text": text})), tool("sum", json!({"text": "b"}))];
                        let calls = cx.call_tools(&calls);
                        tokio::time::timeout(limit, calls).await.is_ok_and(|outcomes| outcomes.is_ok())
                    }
                    _ => {
                        let find = tool("find", json!({"n": n}));
                        tokio::time::timeout(limit, cx.call_tool(&find))
                            .await
                            .is_ok_and(|found| found.is_ok())
                    }
                };
                outcomes.push(went_well);
            }
            if fails_first && cx.attempt() == 1 {
                return Err(AgentError::transient("not today"));
            }
            Ok(json!(outcomes))
        })
    })
}

#[tokio::test(start_paused = true)]
async fn what_is_settled_live_is_what_a_replay_settles() {
    let chance = ManualClock::default();
    let mut stopped = 0;
    for seed in 0..150 {
        let (journal, outside) = (Arc::new(MemoryJournal::new()), Outside::default());
        let draw = || {
            use coral_core::Clock;
            chance.random()
        };
        let script: Vec<u64> = (0..8).map(|_| draw()).collect();
        let (dies, limit) = (draw() % 3 == 0, draw() % 2_000);
        let steps = vec![StepData {
            retry: RetryPolicy::attempts(2),
            budget: Budget::new().calls(30),
            ..agent("scripted", &[])
        }];
        let program = cast(steps, vec![("scripted", scripted(script, draw() % 2 == 0))]);
        let first = runner(&journal, &outside);
        let budget = Budget::new().tokens(limit).usd(0.002);
        let mut run = start(&first, &program, budget).await;
        if dies {
            tokio::time::sleep(Duration::from_millis(draw() % 100)).await;
            first.shutdown().await;
            run = first.resume(&program, "run").await.unwrap();
        }
        run.wait().await.unwrap();
        let used = run.used();
        assert!(used.tokens <= limit && used.usd.as_dollars() <= 0.002, "seed {seed}: {used:?} of {limit}");
        // Another process folds the same journal, and a fork of all of it does too.
        let other = runner(&journal, &outside);
        let last = records(&*journal, "run").await.len() as u64;
        assert_eq!(other.resume(&program, "run").await.unwrap().used(), used, "seed {seed}");
        let fork = other.fork(&program, "run", last, None).await.unwrap();
        assert_eq!(fork.used(), used, "seed {seed}");
        let refused = |record: &coral_core::Record| match &record.event {
            Event::EffectDone { outcome: coral_core::Outcome::Err(error), .. } => is_budget(error),
            _ => false,
        };
        stopped += usize::from(records(&*journal, "run").await.iter().any(refused));
    }
    assert!(stopped > 20, "only {stopped} runs came to their limits");
}

/// An agent that makes the same call until it is refused for its budget, and gives how often it failed.
fn stubborn(text: &'static str) -> Play {
    play(move |_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move {
            for n in 0..1_000 {
                let limit = Duration::from_millis(20);
                match tokio::time::timeout(limit, cx.chat(&ChatRequest::user(text))).await {
                    Ok(Err(error)) if is_budget(&error) => return Ok(json!(n)),
                    Ok(Err(_)) if n == 5 && text != "cut" && text != "late" => return Ok(json!("free")),
                    _ => {}
                }
            }
            Ok(json!("for ever"))
        })
    })
}

#[tokio::test(start_paused = true)]
async fn what_nobody_knows_is_settled_at_its_worst_and_a_refusal_costs_nothing() {
    for (text, calls) in
        [("cut", Some(4)), ("late", Some(4)), ("hang", Some(4)), ("rate", None), ("form", None)]
    {
        let (journal, outside) = (Arc::new(MemoryJournal::new()), Outside::default());
        let program = cast(vec![agent("stubborn", &[])], vec![("stubborn", stubborn(text))]);
        let once = Runner::builder().retry(RetryPolicy::attempts(1));
        let runner = once.journal(journal).tools(outside).model(model()).build();
        let bytes = serde_json::to_vec(&ChatRequest::user(text)).unwrap().len() as u64;
        let run = start(&runner, &program, Budget::new().tokens(4 * (bytes + 100))).await;
        let output = run.output().await.unwrap();
        match calls {
            Some(calls) => {
                assert_eq!(output, json!({"stubborn": calls}), "{text}");
                assert_eq!(run.used().tokens, 4 * (bytes + 100), "{text}");
            }
            None => {
                assert_eq!(output, json!({"stubborn": "free"}), "{text}");
                assert_eq!(run.used().tokens, 0, "{text}");
            }
        }
    }
}

#[tokio::test]
async fn a_call_that_a_crash_cut_off_is_paid_and_counts_once() {
    let (journal, outside) = (Arc::new(MemoryJournal::new()), Outside::default());
    let hanging = play(|_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move { Ok(json!(cx.chat(&ChatRequest::user("hang")).await?.message.text())) })
    });
    let program = cast(vec![agent("hanging", &[])], vec![("hanging", hanging)]);
    let bytes = serde_json::to_vec(&ChatRequest::user("hang")).unwrap().len() as u64;
    let limit = Budget::new().tokens(3 * (bytes + 100)).calls(1);
    for life in 0..3 {
        let runner = runner(&journal, &outside);
        let run = match life {
            0 => start(&runner, &program, limit.clone()).await,
            _ => runner.resume(&program, "run").await.unwrap(),
        };
        let intended = |event: &Event| match event {
            Event::EffectIntended { reserved, .. } => {
                reserved.as_ref().is_some_and(|reserved| reserved.tokens == (life + 1) * (bytes + 100))
            }
            _ => false,
        };
        until(&run, intended).await;
        runner.shutdown().await;
    }
    let run = runner(&journal, &outside).resume(&program, "run").await.unwrap();
    assert_eq!(run.wait().await.unwrap(), RunStatus::Stopped, "a fourth call might pass the limit");
    assert_eq!((run.used().tokens, run.used().calls), (3 * (bytes + 100), 1));
}
