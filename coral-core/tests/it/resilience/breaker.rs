use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use coral_core::resilience::{BreakerPolicy, BreakerState, CircuitBreaker, ToolBreakers};
use coral_core::{
    CallContext, Caller, Category, ChatResponse, Error, ModelFault, ToolCall, ToolDef, ToolFault, ToolOutput,
    Toolbox,
};

use super::{Count, ask, caller, fault, fault_of, ms, tool_fault};
use crate::support::FnModel;

fn breaker(failures: u32) -> CircuitBreaker {
    CircuitBreaker::new(
        "api",
        BreakerPolicy { failures: NonZeroU32::new(failures).unwrap(), ..Default::default() },
    )
}

async fn wait(millis: u64) {
    tokio::time::advance(ms(millis)).await;
}

#[tokio::test(start_paused = true)]
async fn it_opens_after_failures_in_a_row() {
    let breaker = breaker(3);
    for _ in 0..2 {
        breaker.admit().unwrap().failure();
    }
    breaker.admit().unwrap().success();
    for _ in 0..2 {
        breaker.admit().unwrap().failure();
    }
    assert_eq!(breaker.state(), BreakerState::Closed, "a success in between begins the count anew");
    breaker.admit().unwrap().failure();
    assert_eq!(breaker.state(), BreakerState::Open);
    wait(4_000).await;
    let refusal = breaker.admit().unwrap_err();
    assert_eq!(refusal.retry_after_ms(), Some(6_000));
    assert_eq!(refusal.to_string(), "endpoint `api` does not answer and is left alone");
}

#[tokio::test(start_paused = true)]
async fn half_open_lets_one_trial_through_and_closes_on_its_success() {
    let breaker = breaker(1);
    breaker.admit().unwrap().failure();
    wait(9_999).await;
    assert_eq!(breaker.state(), BreakerState::Open);
    wait(1).await;
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    let trial = breaker.admit().unwrap();
    assert_eq!(breaker.admit().unwrap_err().to_string(), "endpoint `api` is being tried out");
    trial.success();
    assert_eq!(breaker.state(), BreakerState::Closed);
    let (a, b) = (breaker.admit().unwrap(), breaker.admit().unwrap());
    a.success();
    b.success();
}

#[tokio::test(start_paused = true)]
async fn each_failed_trial_doubles_the_wait_up_to_its_bound() {
    let policy = BreakerPolicy { failures: NonZeroU32::MIN, max_open_ms: 35_000, ..Default::default() };
    let breaker = CircuitBreaker::new("api", policy);
    for open_ms in [10_000, 20_000, 35_000, 35_000] {
        breaker.admit().unwrap().failure();
        assert_eq!(breaker.admit().unwrap_err().retry_after_ms(), Some(open_ms));
        wait(open_ms).await;
    }
    breaker.admit().unwrap().success();
    breaker.admit().unwrap().failure();
    assert_eq!(breaker.admit().unwrap_err().retry_after_ms(), Some(10_000), "once closed it begins anew");
}

#[tokio::test(start_paused = true)]
async fn several_trials_must_all_succeed_where_the_policy_says_so() {
    let policy = BreakerPolicy {
        failures: NonZeroU32::MIN,
        trials: NonZeroU32::new(2).unwrap(),
        ..Default::default()
    };
    let breaker = CircuitBreaker::new("api", policy);
    breaker.admit().unwrap().failure();
    wait(10_000).await;
    let (a, b) = (breaker.admit().unwrap(), breaker.admit().unwrap());
    a.success();
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    b.success();
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_is_dropped_does_not_count_and_frees_its_place() {
    let breaker = breaker(1);
    drop(breaker.admit().unwrap());
    assert_eq!(breaker.state(), BreakerState::Closed);
    breaker.admit().unwrap().failure();
    wait(10_000).await;
    drop(breaker.admit().unwrap());
    breaker.admit().unwrap().success();
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_call_from_before_has_no_say_after() {
    let breaker = breaker(1);
    let (slow_success, slow_failure) = (breaker.admit().unwrap(), breaker.admit().unwrap());
    let (dropped, later_success) = (breaker.admit().unwrap(), breaker.admit().unwrap());
    breaker.admit().unwrap().failure();
    slow_success.success();
    assert_eq!(breaker.state(), BreakerState::Open, "it began before the endpoint went down");
    wait(10_000).await;
    let trial = breaker.admit().unwrap();
    slow_failure.failure();
    later_success.success();
    drop(dropped);
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    assert!(breaker.admit().is_err(), "one dropped late frees no place of a trial");
    trial.success();
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_names_its_time_gets_it() {
    let model = FnModel::new(|_, _| Err(fault(ModelFault::Overloaded).with_retry_after_ms(45_000)));
    let breaker = breaker(1);
    ask(&breaker.wrap(model)).await.unwrap_err();
    assert_eq!(breaker.admit().unwrap_err().retry_after_ms(), Some(45_000));
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_caller_and_429_do_not_trip_it() {
    use ModelFault::*;
    for (planned, trips) in [
        (Overloaded, true),
        (Provider, true),
        (Connect, true),
        (Timeout, true),
        (Truncated, true),
        (Malformed, true),
        (RateLimited, false),
        (Authentication, false),
        (QuotaExhausted, false),
        (ContextTooLong, false),
        (InvalidRequest, false),
        (ContentFiltered, false),
        (UnknownModel, false),
    ] {
        let breaker = breaker(1);
        let model = breaker.wrap(FnModel::new(move |_, _| Err(fault(planned))));
        assert_eq!(fault_of(ask(&model).await), planned);
        let expected = if trips { BreakerState::Open } else { BreakerState::Closed };
        assert_eq!(breaker.state(), expected, "{planned:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_it_is_open_the_model_is_not_asked() {
    let model = FnModel::new(|count, _| {
        if count <= 2 { Err(fault(ModelFault::Connect)) } else { Ok(ChatResponse::text("test", "back")) }
    });
    let requests = model.requests.clone();
    let breaker = breaker(2);
    let model = breaker.wrap(model);
    for _ in 0..20 {
        ask(&model).await.unwrap_err();
    }
    assert_eq!(requests.lock().unwrap().len(), 2);
    let refused = ask(&model).await.unwrap_err();
    assert!(refused.is_transient(), "{refused}");
    wait(10_000).await;
    assert_eq!(ask(&model).await.unwrap().message.text(), "back");
    assert_eq!(breaker.state(), BreakerState::Closed);
}

/// Tools of two servers, of which `bad` is down.
#[derive(Clone, Default)]
struct TwoServers(Count);

#[async_trait]
impl Toolbox for TwoServers {
    async fn list(&self, _caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        Ok(Vec::new())
    }

    async fn call(&self, call: &ToolCall, _cx: &CallContext) -> Result<ToolOutput, Error> {
        self.0.fetch_add(1, Ordering::SeqCst);
        match &*call.name {
            "bad__read" | "bad__write" => Err(tool_fault(ToolFault::Unavailable)),
            "good__read" => Ok(ToolOutput::error("no such file")),
            _ => Err(tool_fault(ToolFault::UnknownTool)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_tool_server_has_its_own() {
    let calls = Arc::new(AtomicUsize::new(0));
    let breakers =
        ToolBreakers::new(BreakerPolicy { failures: NonZeroU32::new(2).unwrap(), ..Default::default() });
    let tools = breakers.wrap(TwoServers(calls.clone()));
    let cx = caller(Category::Specialist);
    let call = |name: &str| ToolCall { id: "1".into(), name: name.into(), arguments: serde_json::json!({}) };
    for _ in 0..5 {
        assert!(tools.call(&call("made_up__tool"), &cx).await.is_err());
        assert!(tools.call(&call("good__read"), &cx).await.unwrap().is_error);
    }
    assert!(breakers.servers().is_empty(), "an unknown tool and a tool's own error are no failures");
    for name in ["bad__read", "bad__write"] {
        tools.call(&call(name), &cx).await.unwrap_err();
    }
    assert_eq!(calls.load(Ordering::SeqCst), 12);
    let error = tools.call(&call("bad__read"), &cx).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "tool `bad__read` failed (unavailable): endpoint `bad` does not answer and is left alone"
    );
    assert_eq!(calls.load(Ordering::SeqCst), 12, "the server is left alone");
    assert!(tools.call(&call("good__read"), &cx).await.is_ok(), "the other server is not");
    let states: Vec<_> = breakers.servers().iter().map(|b| (b.endpoint().to_owned(), b.state())).collect();
    assert_eq!(states, [("bad".to_owned(), BreakerState::Open)]);
}
