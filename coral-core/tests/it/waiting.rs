//! Questions to people, timers and signals, across restarts.

use std::sync::Arc;

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, Brief, Clock, ErrorKind, Event, Flow, GraphData, Handle,
    ManualClock, MemoryJournal, Program, RetryPolicy, Run, Runner, StepData, StepKind, Team, Workflow,
};
use serde_json::{Value, json};

use crate::support::records;

/// Asks five people the same, through a sub-workflow in a map.
struct Poll;

impl Workflow for Poll {
    type Input = Vec<String>;
    type Output = Vec<bool>;

    fn name(&self) -> &str {
        "poll"
    }

    fn build(&self, flow: &mut Flow<Vec<String>>) -> Handle<Vec<bool>> {
        flow.map("each", 8, flow.input(), |flow: &mut Flow<String>| {
            let question =
                flow.function("word", flow.input(), |who: String| async move { Ok(format!("{who}?")) });
            flow.ask::<String, bool, _>("ask", &question)
        })
    }
}

fn names() -> Vec<String> {
    (0..5).map(|n| format!("p{n}")).collect()
}

async fn open(run: &Run<Vec<bool>>, count: usize) -> Vec<Arc<str>> {
    let mut events = run.events(1);
    let mut ids = Vec::new();
    while ids.len() < count {
        if let Event::QuestionAsked { question, .. } = events.next().await.unwrap().unwrap().event {
            ids.push(question.id.clone());
        }
    }
    assert_eq!(run.questions().await.len(), count);
    ids.sort();
    ids
}

/// All orders of answering five open questions give the same; the process exits in between.
#[tokio::test(start_paused = true)]
async fn questions_may_be_answered_in_any_order() {
    let mut orders = vec![vec![]];
    for n in 0..5usize {
        orders = orders
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                (0..=order.len()).map(move |at| {
                    let mut order = order.clone();
                    order.insert(at, n);
                    order
                })
            })
            .collect();
    }
    assert_eq!(orders.len(), 120);
    for (k, order) in orders.into_iter().enumerate() {
        let journal = Arc::new(MemoryJournal::new());
        let mut runner = Runner::builder().journal(journal.clone()).build();
        let mut run = runner.start(&Poll, names()).await.unwrap();
        let ids = open(&run, 5).await;
        for (n, who) in order.into_iter().enumerate() {
            if n == k % 5 {
                runner.shutdown().await;
                runner = Runner::builder().journal(journal.clone()).build();
                run = runner.resume(&Poll, run.id()).await.unwrap();
            }
            assert!(run.answer(&ids[who], who % 2 == 0, "tester").await.unwrap());
            assert!(
                !run.answer(&ids[who], who % 2 == 1, "late").await.unwrap(),
                "a second answer changes nothing"
            );
        }
        assert_eq!(run.output().await.unwrap(), [true, false, true, false, true]);
        let asked = records(&*journal, run.id()).await;
        assert_eq!(asked.iter().filter(|r| matches!(r.event, Event::QuestionAsked { .. })).count(), 5);
    }
}

#[tokio::test]
async fn an_answer_must_fit_and_find_its_question() {
    let runner = Runner::builder().build();
    let run = runner.start(&Poll, names()).await.unwrap();
    let ids = open(&run, 5).await;
    let error = run.answer(&ids[0], "yes".to_owned(), "tester").await.unwrap_err();
    assert!(error.to_string().contains("\"yes\" is not of type boolean"), "{error}");
    let error = run.answer("each/item[0]/ask#1:0@ffff", true, "tester").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotFound { .. }), "{error}");
    run.cancel("enough").await;
    run.wait().await.unwrap();
    assert!(!run.answer(&ids[0], true, "late").await.unwrap(), "the run is over");
}

/// A clock that goes with tokio's paused one.
struct TokioClock(tokio::time::Instant, ManualClock);

impl Clock for TokioClock {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap()
    }

    fn random(&self) -> u64 {
        self.1.random()
    }
}

struct Waiter(AgentSpec);

#[async_trait]
impl Agent for Waiter {
    type Input = u32;
    type Output = (u64, bool, String);

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, _: u32, cx: &mut AgentContext) -> Result<(u64, bool, String), AgentError> {
        cx.sleep_ms(60_000).await?;
        let at = cx.now_ms().await?;
        let approved = cx.ask_within("approve", &"deploy?".to_owned(), 10_000, false).await?;
        let signal: String = cx.signal("go").await?;
        Ok((at, approved, signal))
    }
}

struct WaitFlow;

impl Workflow for WaitFlow {
    type Input = u32;
    type Output = (u64, bool, String);

    fn name(&self) -> &str {
        "wait"
    }

    fn build(&self, flow: &mut Flow<u32>) -> Handle<(u64, bool, String)> {
        let later = flow.timer("later", 1_000, flow.input());
        let go = flow.signal::<u32>("start");
        let start = flow.function("start_at", (&later, &go), |(a, b): (u32, u32)| async move { Ok(a + b) });
        flow.step(Waiter(AgentSpec::new("waiter", "Waiter")), &start)
    }
}

#[tokio::test(start_paused = true)]
async fn timers_deadlines_and_signals_survive_a_restart() {
    let began = tokio::time::Instant::now();
    let journal = Arc::new(MemoryJournal::new());
    let runner = || {
        Runner::builder().journal(journal.clone()).clock(TokioClock(began, ManualClock::default())).build()
    };
    let first = runner();
    let run = first.start(&WaitFlow, 1).await.unwrap();
    run.signal("go", "early".to_owned()).await.unwrap();
    run.signal("start", 1u32).await.unwrap();
    let mut events = run.events(1);
    while let Some(record) = events.next().await {
        if matches!(&record.unwrap().event, Event::EffectIntended { path, .. } if &**path == "waiter") {
            break;
        }
    }
    // 30 of the 60 seconds pass here, the rest in the next process.
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    first.shutdown().await;
    let run = runner().resume(&WaitFlow, run.id()).await.unwrap();
    let (at, approved, signal) = run.output().await.unwrap();
    assert!((61_000..61_100).contains(&at), "{at}");
    assert!(!approved, "the default after the deadline");
    assert_eq!(signal, "early");
    assert!((71_000..71_200).contains(&(began.elapsed().as_millis())));
}

struct Vote;

impl Workflow for Vote {
    type Input = String;
    type Output = bool;

    fn name(&self) -> &str {
        "vote"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<bool> {
        flow.ask_within::<String, _, _>("ship", flow.input(), 5_000, true)
    }
}

#[tokio::test(start_paused = true)]
async fn a_typed_question_takes_its_default_when_nobody_answered_in_time() {
    let began = tokio::time::Instant::now();
    let runner = Runner::builder().clock(TokioClock(began, ManualClock::default())).build();
    let run = runner.start(&Vote, "ship it?".into()).await.unwrap();
    assert!(run.output().await.unwrap());
    assert!((5_000..5_100).contains(&began.elapsed().as_millis()));

    let run = runner.start(&Vote, "ship it?".into()).await.unwrap();
    let mut questions = run.events(1);
    let id = loop {
        let record = questions.next().await.unwrap().unwrap();
        if let Event::QuestionAsked { question, .. } = &record.event {
            break question.id.clone();
        }
    };
    run.answer(&id, false, "ada").await.unwrap();
    assert!(!run.output().await.unwrap());
}

/// Asks with a default.
struct Choice<A>(A);

impl<A: coral_core::Data> Workflow for Choice<A> {
    type Input = String;
    type Output = A;

    fn name(&self) -> &str {
        "choice"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<A> {
        flow.ask_within("which", flow.input(), 1_000, self.0.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_may_be_the_default_and_one_that_does_not_fit_is_refused_before_the_run() {
    let runner = Runner::builder().build();
    let run = runner.start(&Choice(None::<u32>), "which?".to_owned()).await.unwrap();
    assert_eq!(run.output().await.unwrap(), None);

    let kind = StepKind::Ask {
        answer: json!({ "type": "boolean" }),
        deadline_ms: Some(1_000),
        default: Some(json!("maybe")),
    };
    let graph =
        GraphData { name: "ask".into(), steps: vec![StepData::new("which", kind)], ..GraphData::default() };
    let error = Program::<Brief, Value>::from_graph(graph, &Team::new()).unwrap_err();
    assert!(error.to_string().contains("the default answer does not fit"), "{error}");
}

/// Fails once, and waits between half a minute and a minute before it tries again.
struct Stubborn;

impl Workflow for Stubborn {
    type Input = u32;
    type Output = u32;

    fn name(&self) -> &str {
        "stubborn"
    }

    fn build(&self, flow: &mut Flow<u32>) -> Handle<u32> {
        let done = flow.function("done", flow.input(), |n: u32| async move { Ok(n + 1) });
        let tries = std::sync::atomic::AtomicU32::new(0);
        let retry = RetryPolicy { max_attempts: 2, backoff_ms: 60_000, max_backoff_ms: 60_000 };
        let second = flow.function("second", &done, move |n: u32| {
            let fails = tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            async move { if fails { Err(AgentError::transient("busy")) } else { Ok(n + 1) } }
        });
        second.retry(retry)
    }
}

/// What has passed of the wait before another attempt counts in the next process.
#[tokio::test(start_paused = true)]
async fn the_wait_between_attempts_does_not_begin_anew_with_a_restart() {
    let (journal, clock) = (Arc::new(MemoryJournal::new()), Arc::new(ManualClock::at_ms(1_000)));
    let program = Program::new(&Stubborn).unwrap();
    let runner = || Runner::builder().journal(journal.clone()).clock(clock.clone()).build();
    let first = runner();
    let run = first.start(&program, 0).await.unwrap();
    let mut events = run.events(1);
    while !matches!(events.next().await.unwrap().unwrap().event, Event::StepFailed { .. }) {}
    first.shutdown().await;
    clock.advance_ms(29_000);
    let began = tokio::time::Instant::now();
    let run = runner().resume(&program, run.id()).await.unwrap();
    assert_eq!(run.output().await.unwrap(), 2);
    assert!(began.elapsed() <= std::time::Duration::from_millis(31_100), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_run_tells_what_was_done_until_then() {
    let runner = Runner::builder().build();
    let run = runner.start(&Stubborn, 0).await.unwrap();
    let mut events = run.events(1);
    while !matches!(events.next().await.unwrap().unwrap().event, Event::StepFailed { .. }) {}
    run.cancel("enough").await;
    assert_eq!(run.partial().await.unwrap(), Some(json!({ "done": 1 })));
}
