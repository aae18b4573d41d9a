//! What went wrong elsewhere, one test each, named after the thread that tells of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_core::{
    AgentContext, AgentError, AgentSpec, ApprovalAnswer, Brief, CallContext, Caller, ChatModel, ChatRequest,
    ChatResponse, Delta, EffectClass, Error, ErrorKind, Event, GraphData, Join, MemoryJournal, Program,
    RetryPolicy, Run, RunStatus, Runner, StartOptions, StepData, StepKind, Team, ToolCall, ToolDef,
    ToolOutput, Toolbox,
};
use serde_json::{Value, json};

use crate::support::{Act, Actor, Play, agent, cast, records, step, story};

/// What happened outside, how often.
#[derive(Clone, Default)]
struct Outside(Arc<Mutex<BTreeMap<String, u32>>>);

impl Outside {
    fn happens(&self, what: &str) -> u32 {
        let mut all = self.0.lock().unwrap();
        let times = all.entry(what.to_owned()).or_default();
        *times += 1;
        *times
    }

    fn times(&self, what: &str) -> u32 {
        self.0.lock().unwrap().get(what).copied().unwrap_or_default()
    }
}

#[async_trait]
impl Toolbox for Outside {
    async fn list(&self, _: &Caller) -> Result<Vec<ToolDef>, Error> {
        let effect = EffectClass::Irreversible;
        let input_schema = json!({"type": "object"});
        Ok(vec![ToolDef { name: "send".into(), description: "sends".into(), input_schema, effect }])
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        if call.arguments.get("approve").is_some() && cx.approval().is_none() {
            let (tool, reason) = (call.name.clone(), "ask".to_owned());
            return Err(Error::new(ErrorKind::NeedsApproval { tool, reason }));
        }
        let times = self.happens(&format!("send {}", call.arguments));
        Ok(ToolOutput::text(format!("sent {times}")))
    }
}

fn send(arguments: Value) -> ToolCall {
    ToolCall { id: "1".into(), name: "send".into(), arguments }
}

/// A journal, the world outside, and the programs that work between them.
struct Stage {
    journal: Arc<MemoryJournal>,
    outside: Outside,
    actors: BTreeMap<&'static str, Play>,
}

impl Stage {
    fn new() -> Self {
        Stage { journal: Arc::default(), outside: Outside::default(), actors: BTreeMap::new() }
    }

    /// An agent that does as `play` says.
    fn actor<F>(mut self, id: &'static str, play: F) -> Self
    where
        F: for<'a> Fn(Outside, Value, &'a mut AgentContext) -> Act<'a> + Send + Sync + 'static,
    {
        let outside = self.outside.clone();
        self.actors.insert(id, Arc::new(move |input, cx| play(outside.clone(), input, cx)));
        self
    }

    /// An agent that charges once, and gives how often that happened.
    fn charger(self, id: &'static str) -> Self {
        self.actor(id, move |outside, _, cx| {
            Box::pin(async move {
                let what = cx.path().to_string();
                let request = what.clone();
                let charge = cx.effect("charge", EffectClass::Idempotent, &request, |_| async move {
                    Ok(outside.happens(&what))
                });
                Ok(json!(charge.await?))
            })
        })
    }

    /// An agent that asks a person once, and gives the answer.
    fn asker(self, id: &'static str) -> Self {
        self.actor(id, |_, _, cx| {
            Box::pin(async move { Ok(json!(cx.ask::<String, bool>("ok", &"?".into()).await?)) })
        })
    }

    fn program(&self, steps: Vec<StepData>) -> Program<Brief, Value> {
        cast(steps, self.actors.iter().map(|(id, play)| (*id, play.clone())).collect())
    }

    fn runner(&self) -> Runner {
        Runner::builder().journal(self.journal.clone()).tools(self.outside.clone()).build()
    }

    async fn start(&self, steps: Vec<StepData>) -> (Program<Brief, Value>, Runner, Run<Value>) {
        let (program, runner) = (self.program(steps), self.runner());
        let run = runner.start_with(&program, Brief::default(), StartOptions::new().id("run")).await.unwrap();
        (program, runner, run)
    }

    /// Starts, waits for so many questions, ends the process, and takes the run up in another.
    async fn interrupted(&self, questions: usize, steps: Vec<StepData>) -> (Runner, Run<Value>) {
        let (program, first, run) = self.start(steps).await;
        let ids = open(&run, questions).await;
        first.shutdown().await;
        let second = self.runner();
        let run = second.resume(&program, "run").await.unwrap();
        assert_eq!(open(&run, questions).await, ids, "the questions are the same");
        (second, run)
    }
}

/// The ids of the open questions, once there are so many.
async fn open<O>(run: &Run<O>, count: usize) -> Vec<String> {
    let mut events = run.events(1);
    loop {
        let open: Vec<String> =
            run.questions().await.iter().map(|question| question.id.to_string()).collect();
        if open.len() >= count {
            return open;
        }
        events.next().await.unwrap().unwrap();
    }
}

async fn answer_all(run: &Run<Value>) {
    for question in run.questions().await {
        run.answer(&question.id, true, "ann").await.unwrap();
    }
}

fn sub(name: &str, steps: Vec<StepData>, inputs: &[&str]) -> StepData {
    let body = GraphData { name: "inside".into(), steps, ..GraphData::default() };
    step(name, StepKind::Workflow(Arc::new(body)), inputs)
}

/// An agent that is interrupted by a question begins again from its top, and does all before it again.
#[tokio::test]
async fn langgraph_6208_what_comes_before_a_question_is_not_done_again() {
    let stage = Stage::new().actor("both", |outside, _, cx| {
        Box::pin(async move {
            let before = cx.effect("charge", EffectClass::Idempotent, "1", |_| async move {
                Ok(outside.happens("charge"))
            });
            let before = before.await?;
            let ok: bool = cx.ask("ok", &"?".to_owned()).await?;
            Ok(json!([before, ok]))
        })
    });
    let (_runner, run) = stage.interrupted(1, vec![agent("both", &[])]).await;
    answer_all(&run).await;
    assert_eq!(run.output().await.unwrap(), json!({"both": [1, true]}));
    assert_eq!(stage.outside.times("charge"), 1);
}

/// A person's answer starts the workflow from its beginning.
#[tokio::test]
async fn maf_2276_an_answer_goes_on_where_it_was_asked_for() {
    let stage = Stage::new().charger("first").charger("last").asker("ask");
    let steps = vec![agent("first", &[]), agent("ask", &["first"]), agent("last", &["ask"])];
    let (_runner, run) = stage.interrupted(1, steps).await;
    answer_all(&run).await;
    run.output().await.unwrap();
    let starts: Vec<String> =
        story(&run).await.into_iter().filter(|line| line.starts_with("step_started")).collect();
    assert_eq!(starts, ["step_started first", "step_started ask", "step_started last"]);
}

/// Agents get random ids, so that a restarted process is another workflow.
#[tokio::test]
async fn maf_4793_a_restarted_process_is_the_same_workflow() {
    let make = || {
        Stage::new()
            .charger("a")
            .asker("b")
            .program(vec![agent("a", &[]), sub("s", vec![agent("b", &[])], &["a"])])
    };
    assert_eq!(make().pins(), make().pins());
    assert_eq!(make().pins().digest(), make().pins().digest());
}

/// Tool effects are replayed after a crash.
#[tokio::test]
async fn maf_3938_tool_calls_are_not_made_again_after_a_crash() {
    let stage = Stage::new().actor("sender", |_, _, cx| {
        Box::pin(async move {
            for n in 0..20 {
                cx.call_tool(&send(json!({"n": n}))).await?;
            }
            cx.ask::<String, bool>("ok", &"?".into()).await?;
            Ok(json!("sent"))
        })
    });
    let (_runner, run) = stage.interrupted(1, vec![agent("sender", &[])]).await;
    answer_all(&run).await;
    run.output().await.unwrap();
    for n in 0..20 {
        assert_eq!(stage.outside.times(&format!("send {{\"n\":{n}}}")), 1);
    }
}

/// A task that is tried again repeats the tool calls of the try before.
#[tokio::test(start_paused = true)]
async fn crewai_5802_another_attempt_does_not_repeat_what_can_not_be_repeated() {
    let stage = Stage::new().actor("sender", |outside, _, cx| {
        Box::pin(async move {
            // The second is asked for twice by each attempt, and so sent twice in all.
            for n in [1, 2, 2] {
                cx.call_tool(&send(json!({"to": n}))).await?;
            }
            let pure = outside.clone();
            cx.effect("look", EffectClass::Pure, "1", |_| async move { Ok(pure.happens("look")) }).await?;
            if cx.attempt() < 3 {
                return Err(AgentError::transient("not today"));
            }
            Ok(json!("sent"))
        })
    });
    let steps = vec![StepData { retry: RetryPolicy::attempts(3), ..agent("sender", &[]) }];
    let (program, first, run) = stage.start(steps).await;
    run.output().await.unwrap();
    assert_eq!(stage.outside.times("send {\"to\":1}"), 1);
    assert_eq!(stage.outside.times("send {\"to\":2}"), 2);
    assert_eq!(stage.outside.times("look"), 3, "what changes nothing is done anew");
    let again = first.resume(&program, "run").await.unwrap();
    assert_eq!(again.output().await.unwrap(), json!({"sender": "sent"}));
}

/// Parallel agents do not resume.
#[tokio::test]
async fn adk_3966_parallel_agents_resume() {
    let stage = Stage::new().asker("a").asker("b").asker("c").charger("pay");
    let steps = vec![agent("a", &[]), agent("b", &[]), agent("c", &[]), agent("pay", &["a", "b", "c"])];
    let (_runner, run) = stage.interrupted(3, steps).await;
    answer_all(&run).await;
    assert_eq!(run.output().await.unwrap(), json!({"pay": 1}));
}

/// The second long wait of one agent is lost.
#[tokio::test]
async fn adk_5349_a_second_wait_of_one_agent_outlives_the_process_too() {
    let stage = Stage::new().actor("twice", |_, _, cx| {
        Box::pin(async move {
            let one: bool = cx.ask("one", &1_u32).await?;
            let two: bool = cx.ask("two", &2_u32).await?;
            Ok(json!([one, two]))
        })
    });
    let steps = vec![agent("twice", &[])];
    let (first, run) = stage.interrupted(1, steps.clone()).await;
    answer_all(&run).await;
    let mut events = run.events(1);
    while run.questions().await.first().is_none_or(|question| &*question.label != "two") {
        events.next().await.unwrap().unwrap();
    }
    first.shutdown().await;
    let second = stage.runner();
    let run = second.resume(&stage.program(steps), "run").await.unwrap();
    open(&run, 1).await;
    answer_all(&run).await;
    assert_eq!(run.output().await.unwrap(), json!({"twice": [true, true]}));
}

/// A model that answers in pieces.
struct Streams(Outside);

#[async_trait]
impl ChatModel for Streams {
    fn name(&self) -> &str {
        "streams"
    }

    async fn chat(&self, _: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        self.0.happens(&format!("asked by {}", cx.caller().path));
        for piece in ["good", "day"] {
            cx.emit(&Delta::Text(piece.into()));
            tokio::task::yield_now().await;
        }
        Ok(ChatResponse::text("streams", "good day"))
    }
}

/// Finished nodes are replayed, and with streaming each node runs twice.
#[tokio::test]
async fn adk_rust_467_who_listens_changes_nothing() {
    let talker = |stage: Stage, id| {
        stage.actor(id, |outside, _, cx| {
            Box::pin(async move {
                outside.happens(cx.path());
                Ok(json!(cx.chat(&ChatRequest::user("hello")).await?.message.text()))
            })
        })
    };
    let stage = talker(talker(Stage::new(), "a"), "b");
    let heard = stage.outside.clone();
    let listen = move |path: &Arc<str>, delta: &Delta| {
        heard.happens(&format!("{path} hears {delta}"));
    };
    let builder = Runner::builder().journal(stage.journal.clone()).on_delta(listen);
    let runner = builder.model(Streams(stage.outside.clone())).build();
    let program = stage.program(vec![agent("a", &[]), agent("b", &["a"])]);
    let run = runner.start_with(&program, Brief::default(), StartOptions::new().id("run")).await.unwrap();
    let listeners: Vec<_> = (0..3).map(|_| story(&run)).collect();
    let stories = futures_util::future::join_all(listeners).await;
    assert!(stories.iter().all(|story| *story == stories[0]));
    for step in ["a", "b"] {
        assert_eq!(stage.outside.times(step), 1);
        assert_eq!(stage.outside.times(&format!("asked by {step}")), 1);
        for piece in ["good", "day"] {
            assert_eq!(stage.outside.times(&format!("{step} hears {piece}")), 1);
        }
    }
}

/// Resuming at a pause replays the siblings of what is paused.
#[tokio::test]
async fn adk_rust_628_siblings_of_a_paused_step_are_not_replayed() {
    let stage = Stage::new().charger("x").charger("y").asker("ask").charger("end");
    let steps = vec![agent("x", &[]), agent("ask", &[]), agent("y", &["x"]), agent("end", &["ask", "y"])];
    let (_runner, run) = stage.interrupted(1, steps).await;
    answer_all(&run).await;
    run.output().await.unwrap();
    assert_eq!(["x", "y", "end"].map(|what| stage.outside.times(what)), [1, 1, 1]);
}

/// Suspending within nested and parallel workflows loses steps, or does not resume.
#[tokio::test]
async fn mastra_9288_15552_20225_nested_parallel_suspensions_resume() {
    let stage = Stage::new().asker("ask").charger("pay");
    let inner = || sub("inner", vec![agent("pay", &[]), agent("ask", &["pay"])], &[]);
    let outer = |name| sub(name, vec![inner(), agent("pay", &["inner"])], &[]);
    let steps = vec![outer("left"), outer("right")];
    let (second, run) = stage.interrupted(2, steps.clone()).await;
    // One is answered, and the process ends again.
    let first = run.questions().await[0].id.clone();
    run.answer(&first, true, "ann").await.unwrap();
    second.shutdown().await;
    let third = stage.runner();
    let run = third.resume(&stage.program(steps), "run").await.unwrap();
    let left = open(&run, 1).await;
    assert!(left.len() == 1 && *left[0] != *first, "what is answered stays answered");
    answer_all(&run).await;
    run.output().await.unwrap();
    for place in ["left/inner/pay", "right/inner/pay", "left/pay", "right/pay"] {
        assert_eq!(stage.outside.times(place), 1, "{place}");
    }
}

/// An approval is lost when the run is resumed.
#[tokio::test]
async fn openai_agents_4244_2487_an_approval_outlives_the_process() {
    let stage = Stage::new().actor("sender", |_, _, cx| {
        Box::pin(async move {
            let sent = cx.call_tool(&send(json!({"approve": true}))).await?;
            let ok: bool = cx.ask("ok", &"?".to_owned()).await?;
            Ok(json!([sent.content, ok]))
        })
    });
    let steps = vec![agent("sender", &[])];
    let (first, run) = stage.interrupted(1, steps.clone()).await;
    let id = run.questions().await[0].id.clone();
    run.answer(&id, ApprovalAnswer { approved: true, reason: None }, "ann").await.unwrap();
    let mut events = run.events(1);
    while run.questions().await.first().is_none_or(|question| &*question.label != "ok") {
        events.next().await.unwrap().unwrap();
    }
    first.shutdown().await;
    let second = stage.runner();
    let run = second.resume(&stage.program(steps), "run").await.unwrap();
    assert_eq!(open(&run, 1).await.len(), 1, "it is not asked for approval again");
    answer_all(&run).await;
    assert_eq!(run.output().await.unwrap(), json!({"sender": ["sent 1", true]}));
}

/// Two processes that write one session corrupt it for good.
#[tokio::test]
async fn adk_4751_of_two_writers_one_wins_and_nothing_is_lost() {
    let stage = Stage::new().asker("ask").charger("pay");
    let steps = vec![agent("ask", &[]), agent("pay", &["ask"])];
    let (program, _first, slow) = stage.start(steps).await;
    let ids = open(&slow, 1).await;
    let second = stage.runner();
    let fast = second.resume(&program, "run").await.unwrap();
    open(&fast, 1).await;
    let error = slow.answer(&ids[0], true, "slow").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Fenced { .. }), "{error}");
    fast.answer(&ids[0], true, "fast").await.unwrap();
    assert_eq!(fast.output().await.unwrap(), json!({"pay": 1}));
    let error = slow.output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Fenced { .. }), "{error}");
    let seqs: Vec<u64> = records(&*stage.journal, "run").await.iter().map(|record| record.seq).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
}

/// Each step writes the whole state anew.
#[tokio::test]
async fn langgraph_7714_7843_what_is_stored_grows_with_what_is_new() {
    let size = |steps: usize| async move {
        let stage = Stage::new()
            .actor("size", |_, input, _| Box::pin(async move { Ok(json!(input.to_string().len())) }));
        let chain = (0..steps).map(|n| {
            let before: Vec<String> = (0..n).rev().take(1).map(|before| format!("s{before}")).collect();
            let inputs: Vec<&str> = before.iter().map(String::as_str).collect();
            step(&format!("s{n}"), StepKind::Agent("size".into()), &inputs)
        });
        // A state of its own size, that each step has before it.
        let (program, runner) = (stage.program(chain.collect()), stage.runner());
        let brief = Brief { text: "state ".repeat(4_000).into(), ..Brief::default() };
        let run = runner.start_with(&program, brief, StartOptions::new().id("run")).await.unwrap();
        run.output().await.unwrap();
        let records = records(&*stage.journal, "run").await;
        records.iter().skip(1).map(|record| serde_json::to_string(record).unwrap().len()).sum::<usize>()
    };
    let (short, long) = (size(50).await, size(100).await);
    assert!(long < short * 21 / 10, "{short} bytes for 50 steps, {long} for 100");
    assert!(long < 24_000 * 20, "{long} bytes for 100 steps over a state of 24,000");
}

/// Tools run before the guard that would have refused the input trips.
#[tokio::test]
async fn openai_agents_624_no_tool_runs_before_the_input_is_checked() {
    let stage = Stage::new().actor("sender", |_, _, cx| {
        Box::pin(async move { Ok(json!(cx.call_tool(&send(json!({}))).await?.content)) })
    });
    let guard = StepData { when: Some("input.allowed == true".into()), ..agent("sender", &["check"]) };
    let (_, _runner, run) =
        stage.start(vec![step("check", StepKind::Function("pass".into()), &[]), guard]).await;
    let _ = run.wait().await.unwrap();
    assert_eq!(stage.outside.times("send {}"), 0);
    assert!(!story(&run).await.iter().any(|line| line.contains("effect_intended sender")));
}

/// Keys that no schema declares vanish from the state.
#[tokio::test]
async fn langgraph_8320_keys_that_nobody_declared_stay() {
    let stage = Stage::new()
        .actor("odd", |_, _, _| Box::pin(async { Ok(json!({"declared": 1, "odd": {"deep": [2]}})) }));
    let (program, first, run) =
        stage.start(vec![agent("odd", &[]), step("pass", StepKind::Function("pass".into()), &["odd"])]).await;
    let output = run.output().await.unwrap();
    assert_eq!(output["pass"], json!({"declared": 1, "odd": {"deep": [2]}}));
    assert_eq!(first.resume(&program, "run").await.unwrap().output().await.unwrap(), output);
}

/// Steps that end at the same time write over each other.
#[tokio::test]
async fn langgraph_2336_what_parallel_steps_give_is_all_there() {
    let stage =
        (0..8).fold(Stage::new(), |stage, n| stage.charger(["a", "b", "c", "d", "e", "f", "g", "h"][n]));
    let mut steps: Vec<StepData> = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|id| agent(id, &[])).into();
    steps.push(step("all", StepKind::Function("pass".into()), &["a", "b", "c", "d", "e", "f", "g", "h"]));
    let (_, _runner, run) = stage.start(steps).await;
    let all = json!({"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1, "h": 1});
    assert_eq!(run.output().await.unwrap(), json!({"all": all}));
}

/// The winner of a race is there, and the losers work on, with all that is inside of them.
#[tokio::test(start_paused = true)]
async fn losers_that_hold_steps_are_stopped_with_all_that_is_inside() {
    let stage = Stage::new().charger("fast").charger("late").actor("slow", |outside, _, cx| {
        Box::pin(async move {
            outside.happens("slow");
            cx.sleep_ms(3_600_000).await?;
            Ok(json!("slow"))
        })
    });
    let inside = || sub("inner", vec![agent("slow", &[]), agent("late", &["slow"])], &[]);
    let first = StepData {
        join: Join::FirstOk,
        ..step("first", StepKind::Function("pass".into()), &["fast", "loser"])
    };
    // The fast one waits until the slow one is at work.
    let fast = StepData {
        inputs: Vec::new(),
        ..step(
            "fast",
            StepKind::Workflow(Arc::new(GraphData {
                name: "inside".into(),
                steps: vec![step("wait", StepKind::Timer(50), &[]), agent("fast", &["wait"])],
                ..GraphData::default()
            })),
            &[],
        )
    };
    let (_, _runner, run) = stage.start(vec![fast, sub("loser", vec![inside()], &[]), first]).await;
    assert_eq!(run.wait().await.unwrap(), RunStatus::Succeeded);
    assert_eq!((stage.outside.times("slow"), stage.outside.times("loser/inner/late")), (1, 0));
    let times = records(&*stage.journal, "run").await;
    assert!(times.iter().any(|record| matches!(&record.event,
        Event::StepFailed { path, error, .. } if &**path == "loser" && error.to_string().contains("went on without it"))));
}

/// What would only have fed a loser is stopped too, at any distance.
#[tokio::test(start_paused = true)]
async fn what_works_for_losers_alone_is_stopped_and_what_others_wait_for_is_not() {
    let stage = Stage::new()
        .charger("fast")
        .charger("late")
        .charger("later")
        .charger("other")
        .actor("source", |outside, _, cx| {
            Box::pin(async move {
                outside.happens("source");
                cx.sleep_ms(3_600_000).await?;
                Ok(json!("source"))
            })
        })
        .actor("shared", |outside, _, cx| {
            Box::pin(async move {
                outside.happens("shared");
                cx.sleep_ms(10_000).await?;
                Ok(json!("shared"))
            })
        });
    let first = StepData {
        join: Join::FirstOk,
        ..step("first", StepKind::Function("pass".into()), &["fast", "later"])
    };
    let steps = vec![
        step("pause", StepKind::Timer(50), &[]),
        agent("fast", &["pause"]),
        agent("source", &[]),
        agent("shared", &[]),
        agent("late", &["source", "shared"]),
        agent("later", &["late"]),
        agent("other", &["shared"]),
        first,
    ];
    let began = tokio::time::Instant::now();
    let (_, _runner, run) = stage.start(steps).await;
    assert_eq!(run.wait().await.unwrap(), RunStatus::Succeeded);
    assert!(began.elapsed() < std::time::Duration::from_secs(60), "nobody waits for `source`");
    assert_eq!((stage.outside.times("source"), stage.outside.times("shared")), (1, 1));
    assert_eq!((stage.outside.times("late"), stage.outside.times("later")), (0, 0));
    assert_eq!(stage.outside.times("other"), 1, "what another step waits for goes on");
}

/// Draining lets what works end, begins nothing more, and cuts nothing off.
#[tokio::test(start_paused = true)]
async fn a_drained_runner_lets_steps_end_and_begins_none() {
    let stage = Stage::new().asker("ask").charger("next").actor("work", |outside, _, cx| {
        Box::pin(async move {
            let worked = cx.effect("work", EffectClass::Irreversible, "1", |_| async move {
                tokio::time::sleep(std::time::Duration::from_secs(5)).await;
                Ok(outside.happens("work"))
            });
            Ok(json!(worked.await?))
        })
    });
    let steps = || vec![agent("ask", &[]), agent("work", &[]), agent("next", &["work"])];
    let (program, first, run) = stage.start(steps()).await;
    open(&run, 1).await;
    assert!(first.drain(std::time::Duration::from_secs(60)).await, "nothing was cut off");
    assert_eq!((stage.outside.times("work"), stage.outside.times("next")), (1, 0));
    assert!(matches!(run.output().await.unwrap_err().kind(), ErrorKind::Suspended { .. }));
    let refused = first.resume(&program, "run").await.unwrap_err();
    assert!(refused.to_string().contains("shutting down"), "{refused}");
    let second = stage.runner();
    let run = second.resume(&program, "run").await.unwrap();
    answer_all(&run).await;
    run.output().await.unwrap();
    assert_eq!((stage.outside.times("work"), stage.outside.times("next")), (1, 1));

    // One that takes longer than there is patience for is cut off.
    let stage = Stage::new().actor("work", |_, _, _| Box::pin(std::future::pending()));
    let (_, runner, _run) = stage.start(vec![agent("work", &[])]).await;
    assert!(!runner.drain(std::time::Duration::from_secs(1)).await);
}

/// A budget says how deep steps may nest.
#[tokio::test]
async fn steps_nest_no_deeper_than_the_budget_says() {
    let stage = Stage::new().charger("pay");
    let program = stage.program(vec![sub("a", vec![sub("b", vec![agent("pay", &[])], &[])], &[])]);
    let depth = |depth| StartOptions::new().budget(coral_core::Budget::new().depth(depth));
    let runner = stage.runner();
    let run = runner.start_with(&program, Brief::default(), depth(2)).await.unwrap();
    let error = run.output().await.unwrap_err();
    assert!(error.to_string().contains("inside of `a/b` would nest deeper than 2"), "{error}");
    assert_eq!(stage.outside.times("a/b/pay"), 0);
    let run = runner.start_with(&program, Brief::default(), depth(3)).await.unwrap();
    run.output().await.unwrap();
}

/// Another agent does the work where one fails, in the same attempt, and a resumed step falls back as it did.
#[tokio::test]
async fn another_agent_takes_over_where_one_fails() {
    let stage = Stage::new();
    let outside = stage.outside.clone();
    let first: Play =
        Arc::new(move |_, cx| {
            let outside = outside.clone();
            Box::pin(async move {
                let charge = cx.effect("look", EffectClass::Idempotent, "1", |_| async move {
                    Ok(outside.happens("first"))
                });
                charge.await?;
                Err(AgentError::user("I can't"))
            })
        });
    let then: Play = Arc::new(|_, cx| {
        Box::pin(async move { Ok(json!(cx.ask::<String, bool>("ok", &"?".into()).await?)) })
    });
    let program = || {
        let both = coral_core::resilience::FallbackAgent::new(
            Actor(AgentSpec::new("first", "First"), first.clone()),
            Actor(AgentSpec::new("then", "Then"), then.clone()),
        );
        let steps = vec![agent("first", &[])];
        let graph = GraphData { name: "play".into(), steps, ..GraphData::default() };
        Program::from_graph(graph, &Team::new().with_agent(both)).unwrap()
    };
    let runner = stage.runner();
    let run = runner.start_with(&program(), Brief::default(), StartOptions::new().id("run")).await.unwrap();
    let ids = open(&run, 1).await;
    runner.shutdown().await;
    let second = stage.runner();
    let run = second.resume(&program(), "run").await.unwrap();
    assert_eq!(open(&run, 1).await, ids);
    answer_all(&run).await;
    assert_eq!(run.output().await.unwrap(), json!({"first": true}));
    assert_eq!(stage.outside.times("first"), 1);
    let notes = records(&*stage.journal, "run").await;
    let notes = notes
        .iter()
        .filter(|r| matches!(&r.event, Event::Noted { topic, .. } if &**topic == "agent_fell_back"));
    assert_eq!(notes.count(), 1);
}
