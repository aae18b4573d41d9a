use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::resilience::{BreakerPolicy, CircuitBreaker, Fallback, FallbackAgent};
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, CallContext, ChatModel, ChatRequest, ChatResponse, Error,
    ErrorKind, Event, Flow, Handle, MemoryJournal, ModelFault, ModelInfo, Price, Runner, Workflow,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Asks, Count, ask, fault, fault_of, since};
use crate::support::{FnModel, records};

/// Answers with its name, or fails as planned; counts.
struct Named {
    name: &'static str,
    plan: Option<Error>,
    calls: Count,
}

fn named(name: &'static str, plan: Option<Error>) -> (Named, Count) {
    let calls = Arc::new(AtomicUsize::new(0));
    (Named { name, plan, calls: calls.clone() }, calls)
}

#[async_trait]
impl ChatModel for Named {
    fn name(&self) -> &str {
        self.name
    }

    async fn chat(&self, _request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.plan.clone().map_or_else(|| Ok(ChatResponse::text(self.name, self.name)), Err)
    }
}

fn calls(count: &Count) -> usize {
    count.load(Ordering::SeqCst)
}

/// What was decided on the way of one call of `model`, as the journal tells it.
async fn decisions(model: impl ChatModel + 'static) -> Vec<(String, Value)> {
    let journal = Arc::new(MemoryJournal::new());
    let runner = Runner::builder().journal(journal.clone()).model(model).build();
    let run = runner.start(&Asks, "hello".to_owned()).await.unwrap();
    let _ = run.output().await;
    let notes = records(&*journal, run.id()).await.into_iter().filter_map(|record| match record.event {
        Event::CallNoted { topic, note, .. } => Some((topic.to_string(), note)),
        _ => None,
    });
    notes.collect()
}

#[tokio::test(start_paused = true)]
async fn the_journal_tells_what_the_layers_decided() {
    let policy = BreakerPolicy { failures: NonZeroU32::MIN, ..BreakerPolicy::default() };
    let breaker = CircuitBreaker::new("large", policy);
    let (large, _) = named("large", Some(fault(ModelFault::QuotaExhausted)));
    let (small, _) = named("small", Some(fault(ModelFault::Connect)));
    let notes = decisions(Fallback::first(large).then(breaker.wrap(small)).or_answer("nobody")).await;
    let topics: Vec<&str> = notes.iter().map(|(topic, _)| topic.as_str()).collect();
    assert_eq!(topics, ["model_passed_over", "circuit", "model_passed_over", "default_answer"]);
    assert_eq!(notes[1].1, json!({"endpoint": "large", "state": "open"}));
    assert_eq!(notes[2].1["model"], "small");

    tokio::time::sleep(Duration::from_secs(11)).await;
    let notes = decisions(breaker.wrap(named("small", None).0)).await;
    assert_eq!(notes, [("circuit".to_owned(), json!({"endpoint": "large", "state": "closed"}))]);
}

/// Runs one agent that asks `model` once; gives the answer and the milliseconds it took.
async fn run(model: impl ChatModel + 'static) -> (Result<String, Error>, u64) {
    let runner = Runner::builder().journal(MemoryJournal::new()).model(model).build();
    let begin = Instant::now();
    let run = runner.start(&Asks, "hello".to_owned()).await.unwrap();
    (run.output().await, since(begin))
}

#[tokio::test(start_paused = true)]
async fn the_next_model_gets_its_turn_after_the_retries_of_the_first() {
    let (large, large_calls) = named("large", Some(fault(ModelFault::Overloaded)));
    let (small, small_calls) = named("small", None);
    let (answer, took) = run(Fallback::first(large).then(small)).await;
    assert_eq!(answer.unwrap(), "small");
    assert_eq!((calls(&large_calls), calls(&small_calls)), (3, 1));
    // Two waits of the engine: between half and the whole of 0.5 s, then of 1 s.
    assert!((750..=1_600).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_first_model_that_recovers_is_kept() {
    let large = FnModel::new(|count, _| match count {
        1 | 2 => Err(fault(ModelFault::Provider)),
        _ => Ok(ChatResponse::text("large", "large")),
    });
    let (small, small_calls) = named("small", None);
    let (answer, _) = run(Fallback::first(large).then(small)).await;
    assert_eq!(answer.unwrap(), "large");
    assert_eq!(calls(&small_calls), 0);
}

#[tokio::test(start_paused = true)]
async fn what_no_repeat_mends_goes_to_the_next_model_at_once() {
    let plans = [
        fault(ModelFault::Authentication),
        fault(ModelFault::QuotaExhausted),
        fault(ModelFault::UnknownModel),
        fault(ModelFault::ContextTooLong),
        fault(ModelFault::Timeout),
        fault(ModelFault::RateLimited).with_retry_after_ms(5_001),
    ];
    for plan in plans {
        let (large, large_calls) = named("large", Some(plan.clone()));
        let (small, _) = named("small", None);
        let (answer, took) = run(Fallback::first(large).then(small)).await;
        assert_eq!(answer.unwrap(), "small", "{plan}");
        assert_eq!(calls(&large_calls), 1, "{plan}");
        assert!(took < 10, "{plan}: {took} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_within_its_patience_is_waited_for() {
    let large = FnModel::new(|count, _| match count {
        1 => Err(fault(ModelFault::RateLimited).with_retry_after_ms(5_000)),
        _ => Ok(ChatResponse::text("large", "large")),
    });
    let (small, _) = named("small", None);
    let (answer, took) = run(Fallback::first(large).then(small)).await;
    assert_eq!(answer.unwrap(), "large");
    assert!((5_000..5_010).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_costs_no_wait() {
    let breaker = CircuitBreaker::new("large", BreakerPolicy::default());
    let (large, large_calls) = named("large", Some(fault(ModelFault::Connect)));
    let (small, _) = named("small", None);
    let model: Arc<dyn ChatModel> = Arc::new(Fallback::first(breaker.wrap(large)).then(small));
    for _ in 0..2 {
        let (answer, _) = run(model.clone()).await;
        assert_eq!(answer.unwrap(), "small");
    }
    assert_eq!(calls(&large_calls), 5, "the fifth failure opened the circuit");
    for _ in 0..20 {
        let (answer, took) = run(model.clone()).await;
        assert_eq!(answer.unwrap(), "small");
        assert!(took < 10, "{took} ms");
    }
    assert_eq!(calls(&large_calls), 5);
}

#[tokio::test(start_paused = true)]
async fn what_every_model_would_refuse_is_not_asked_again() {
    for planned in [ModelFault::InvalidRequest, ModelFault::ContentFiltered] {
        let (large, _) = named("large", Some(fault(planned)));
        let (small, small_calls) = named("small", None);
        let (answer, _) = run(Fallback::first(large).then(small).or_answer("none")).await;
        assert_eq!(fault_of(answer), planned);
        assert_eq!(calls(&small_calls), 0);
    }
    let (large, _) = named("large", Some(fault(ModelFault::ContentFiltered)));
    let (small, _) = named("small", None);
    let chain =
        Fallback::first(large).then(small).when(|error| matches!(error.kind(), ErrorKind::Model { .. }));
    assert_eq!(ask(&chain).await.unwrap().model, "small", "the embedder may say otherwise");
    let denied =
        Error::new(ErrorKind::Denied { agent: "a".into(), action: "chat".into(), reason: "r".into() });
    let (large, _) = named("large", Some(denied));
    let (small, small_calls) = named("small", None);
    assert!(ask(&Fallback::first(large).then(small)).await.is_err());
    assert_eq!(calls(&small_calls), 0);
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_the_chain_stands_an_answer_or_the_last_error() {
    let down = |name| named(name, Some(fault(ModelFault::Overloaded))).0;
    let (answer, _) = run(Fallback::first(down("a")).then(down("b")).or_answer("sorry")).await;
    assert_eq!(answer.unwrap(), "sorry");
    let chain = Fallback::first(down("a")).or_else(|request, error| {
        let text = format!("{} {error}", request.messages.len());
        error.is_transient().then(|| ChatResponse::text("own", text))
    });
    let answer = ask(&chain).await.unwrap();
    assert_eq!(answer.message.text(), "1 model `test` failed (overloaded): planned");
    assert_eq!(answer.model, "own");
    assert_eq!(fault_of(ask(&Fallback::first(down("a")).then(down("b"))).await), ModelFault::Overloaded);
    assert_eq!(fault_of(ask(&Fallback::first(down("a")).or_else(|_, _| None)).await), ModelFault::Overloaded);
}

#[tokio::test(start_paused = true)]
async fn outside_of_a_run_nobody_repeats_so_the_chain_goes_on_at_once() {
    let (large, large_calls) = named("large", Some(fault(ModelFault::Overloaded)));
    let (small, _) = named("small", None);
    assert_eq!(ask(&Fallback::first(large).then(small)).await.unwrap().model, "small");
    assert_eq!(calls(&large_calls), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_over_is_forgotten() {
    let large = FnModel::new(|count, _| match count {
        3 => Ok(ChatResponse::text("large", "large")),
        _ => Err(fault(ModelFault::Overloaded)),
    });
    let (small, _) = named("small", None);
    let chain = Fallback::first(large).then(small);
    let cx = CallContext::default().with_key("call-1");
    let mut answers = Vec::new();
    for _ in 0..6 {
        let answer = chain.chat(&ChatRequest::user("?"), &cx).await;
        answers.push(answer.map_or_else(|_| "again".to_owned(), |answer| answer.model));
    }
    assert_eq!(answers, ["again", "again", "large", "again", "again", "small"]);
}

#[tokio::test(start_paused = true)]
async fn the_name_of_a_model_is_for_the_first_alone() {
    let large = FnModel::new(|_, request| {
        assert_eq!(request.model.as_deref(), Some("large-2"));
        Err(fault(ModelFault::UnknownModel))
    });
    let small = FnModel::new(|_, request| {
        assert_eq!(request.model, None);
        Ok(ChatResponse::text("small", "small"))
    });
    let request = ChatRequest { model: Some("large-2".into()), ..ChatRequest::user("?") };
    let answer = Fallback::first(large).then(small).chat(&request, &CallContext::default()).await;
    assert_eq!(answer.unwrap().model, "small");
}

/// A model that costs something.
struct Priced(Option<f64>, Option<u64>);

#[async_trait]
impl ChatModel for Priced {
    fn name(&self) -> &str {
        "priced"
    }

    fn info(&self) -> ModelInfo {
        let mut info = ModelInfo::default();
        info.price = self.0.map(|p| Price { input: p, output: 10.0 - p, cache_read: p, cache_write: p });
        info.max_output_tokens = self.1;
        info
    }

    async fn chat(&self, _request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        Err(fault(ModelFault::Provider))
    }
}

#[test]
fn a_budget_sees_the_worst_case_of_the_chain() {
    let info = Fallback::first(Priced(Some(1.0), Some(10))).then(Priced(Some(4.0), Some(30))).info();
    assert_eq!(info.price, Some(Price { input: 4.0, output: 9.0, cache_read: 4.0, cache_write: 4.0 }));
    assert_eq!(info.max_output_tokens, Some(30));
    let info = Fallback::first(Priced(Some(1.0), Some(10))).then(Priced(None, None)).info();
    assert_eq!(info.price, None, "one price that is not known makes the worst case unknown");
    assert_eq!(info.max_output_tokens, None);
}

/// Marks what it gives in its output stage, or fails there.
struct Marks(AgentSpec, Option<&'static str>);

#[async_trait]
impl Agent for Marks {
    type Input = String;
    type Output = String;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, input: String, _cx: &mut AgentContext) -> Result<String, AgentError> {
        Ok(input)
    }

    async fn process_output(&self, output: String, _cx: &mut AgentContext) -> Result<String, AgentError> {
        let mark = self.1.ok_or_else(|| AgentError::user("not in shape"))?;
        Ok(format!("{output}{mark}"))
    }
}

struct Marked(Option<&'static str>);

impl Workflow for Marked {
    type Input = String;
    type Output = String;

    fn name(&self) -> &str {
        "marked"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
        let first = Marks(AgentSpec::new("first", "First"), self.0);
        let then = Marks(AgentSpec::new("then", "Then"), Some("?"));
        flow.step(FallbackAgent::new(first, then), flow.input())
    }
}

#[tokio::test]
async fn each_agent_brings_into_shape_what_it_gave_itself() {
    let runner = Runner::builder().build();
    for (first, expected) in [(Some("!"), "hello!"), (None, "hello?")] {
        let run = runner.start(&Marked(first), "hello".to_owned()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), expected);
    }
}
