//! A circuit breaker: an endpoint that is down is left alone until it may be up again.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::{Refusal, millis};
use crate::call::{CallContext, Caller};
use crate::error::{Error, ErrorKind, ModelFault, ToolFault};
use crate::model::{ChatModel, ChatRequest, ChatResponse};
use crate::tool::{ToolCall, ToolDef, ToolOutput, Toolbox};

/// When a [`CircuitBreaker`] opens, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerPolicy {
    /// Failures in a row after which it opens.
    pub failures: NonZeroU32,
    /// Milliseconds for which it stays open the first time; doubled each time that a trial fails.
    pub open_ms: u64,
    /// Milliseconds for which it stays open at the most.
    pub max_open_ms: u64,
    /// Trials that may run at once when it is half open, and that must succeed before it closes.
    pub trials: NonZeroU32,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        BreakerPolicy {
            failures: NonZeroU32::MIN.saturating_add(4),
            open_ms: 10_000,
            max_open_ms: 300_000,
            trials: NonZeroU32::MIN,
        }
    }
}

/// How a [`CircuitBreaker`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls go through, to see whether the endpoint is back.
    HalfOpen,
}

#[derive(Debug)]
enum Phase {
    Closed { failures: u32 },
    Open { until: Instant, times: u32 },
    HalfOpen { running: u32, succeeded: u32, times: u32 },
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Raised with each change of the phase, so that a call that began before one has no say
    /// after it.
    generation: u64,
}

/// A circuit breaker for one endpoint, shared by its clones.
///
/// # Example
/// ```
/// use coral_core::resilience::{BreakerPolicy, BreakerState, CircuitBreaker};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), coral_core::resilience::Refusal> {
/// let breaker = CircuitBreaker::new("api.example.com", BreakerPolicy::default());
/// for _ in 0..5 {
///     breaker.admit()?.failure();
/// }
/// assert_eq!(breaker.state(), BreakerState::Open);
/// assert_eq!(breaker.admit().unwrap_err().retry_after_ms(), Some(10_000));
/// # Ok(()) }
/// ```
///
/// # Why, when calls are retried anyway
/// A retry is for a call that had bad luck. Against an endpoint that is down it is harm: each of a
/// hundred steps waits out each of its tries, and the endpoint gets all of them the moment it
/// comes back. The breaker remembers across calls what a retry can't know: that the last few all
/// failed. While it is open a call fails at once, so a fallback gets its turn without a wait.
///
/// # Why failures in a row
/// An endpoint that answers every second call is worth its retries. One that answered none of the
/// last five is down, whatever the share of failures over some window was. So the rule counts
/// failures in a row; it needs no window, no minimum of calls, and is the same at any load.
///
/// # What counts
/// A failure is one of the endpoint: overload, an error of its own, no connection, no answer in
/// time, half an answer. A 429 comes from an endpoint that is up and says when to ask again, and
/// an error of the caller (a bad key, a bad request) says nothing about the endpoint. Neither
/// counts, and neither does a call that was dropped.
#[derive(Clone, Debug)]
pub struct CircuitBreaker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Box<str>,
    policy: BreakerPolicy,
    state: Mutex<State>,
}

impl CircuitBreaker {
    /// A closed breaker for `endpoint`.
    pub fn new(endpoint: impl Into<String>, policy: BreakerPolicy) -> Self {
        let state = Mutex::new(State { phase: Phase::Closed { failures: 0 }, generation: 0 });
        CircuitBreaker(Arc::new(Inner { endpoint: endpoint.into().into(), policy, state }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The endpoint's name.
    pub fn endpoint(&self) -> &str {
        &self.0.endpoint
    }

    /// How it stands. Open turns to half open by time alone.
    pub fn state(&self) -> BreakerState {
        match self.lock().phase {
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Open { until, .. } if Instant::now() < until => BreakerState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Asks whether a call may be made. Tell the [`Trial`] how the call ended.
    ///
    /// # Errors
    /// A [`Refusal`] while it is open, and while as many trials run as may.
    pub fn admit(&self) -> Result<Trial, Refusal> {
        let now = Instant::now();
        let mut state = self.lock();
        match &mut state.phase {
            Phase::Closed { .. } => {}
            Phase::Open { until, .. } if now < *until => {
                let wait = millis(until.saturating_duration_since(now));
                return Err(self.refuse("does not answer and is left alone", Some(wait)));
            }
            Phase::Open { times, .. } => {
                let times = *times;
                state.turn(Phase::HalfOpen { running: 1, succeeded: 0, times });
            }
            Phase::HalfOpen { running, .. } if *running < self.0.policy.trials.get() => *running += 1,
            Phase::HalfOpen { .. } => {
                return Err(self.refuse("is being tried out", None));
            }
        }
        Ok(Trial { breaker: self.clone(), generation: state.generation, told: false })
    }

    fn refuse(&self, problem: &str, retry_after_ms: Option<u64>) -> Refusal {
        let problem = format!("endpoint `{}` {problem}", self.0.endpoint);
        Refusal::new(ModelFault::Overloaded, problem, retry_after_ms)
    }

    fn open(&self, state: &mut State, times: u32, at_least_ms: u64) {
        let policy = &self.0.policy;
        let doubled = policy.open_ms.saturating_mul(1_u64.checked_shl(times).unwrap_or(u64::MAX));
        let ms = doubled.max(at_least_ms).min(policy.max_open_ms);
        let until = Instant::now() + Duration::from_millis(ms);
        state.turn(Phase::Open { until, times: times.saturating_add(1) });
    }

    /// Wraps a model, so that its calls go through the breaker.
    pub fn wrap<M>(&self, inner: M) -> Guarded<M> {
        Guarded { breaker: self.clone(), inner }
    }
}

impl State {
    fn turn(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation += 1;
    }
}

/// One call that a [`CircuitBreaker`] let through. Dropped without a word, the call does not
/// count: it was cancelled, or its outcome says nothing about the endpoint.
#[derive(Debug)]
#[must_use = "the breaker learns from how the call ended"]
pub struct Trial {
    breaker: CircuitBreaker,
    generation: u64,
    told: bool,
}

impl Trial {
    /// The endpoint answered.
    pub fn success(self) {
        self.ended(None);
    }

    /// The endpoint failed.
    pub fn failure(self) {
        self.ended(Some(0));
    }

    /// The endpoint failed and asks to be left alone for so many milliseconds.
    pub fn failure_until(self, retry_after_ms: u64) {
        self.ended(Some(retry_after_ms));
    }

    /// Counts the call; gives the breaker's state if this changed it.
    fn ended(mut self, failed: Option<u64>) -> Option<BreakerState> {
        self.told = true;
        let mut state = self.breaker.lock();
        if state.generation != self.generation {
            return None;
        }
        let policy = &self.breaker.0.policy;
        match (&mut state.phase, failed) {
            (Phase::Closed { failures }, None) => *failures = 0,
            (Phase::HalfOpen { running, succeeded, .. }, None) => {
                *running = running.saturating_sub(1);
                *succeeded += 1;
                if *succeeded >= policy.trials.get() {
                    state.turn(Phase::Closed { failures: 0 });
                    return Some(BreakerState::Closed);
                }
            }
            (Phase::Closed { failures }, Some(retry_after_ms)) => {
                *failures += 1;
                if *failures >= policy.failures.get() {
                    self.breaker.open(&mut state, 0, retry_after_ms);
                    return Some(BreakerState::Open);
                }
            }
            (Phase::HalfOpen { times, .. }, Some(retry_after_ms)) => {
                let times = *times;
                self.breaker.open(&mut state, times, retry_after_ms);
                return Some(BreakerState::Open);
            }
            (Phase::Open { .. }, _) => {}
        }
        None
    }

    /// Tells the breaker how a call ended, by its error's kind. A change of its state is noted with the call.
    fn tell<T>(self, result: &Result<T, Error>, cx: &CallContext) {
        let failed = match result {
            Ok(_) => None,
            Err(error) if is_of_endpoint(error) => Some(error.retry_after_ms().unwrap_or(0)),
            Err(_) => return,
        };
        let breaker = self.breaker.clone();
        if let Some(state) = self.ended(failed) {
            cx.note("circuit", json!({"endpoint": breaker.endpoint(), "state": state}));
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let mut state = self.breaker.lock();
        if let (true, Phase::HalfOpen { running, .. }) =
            (state.generation == self.generation, &mut state.phase)
        {
            *running = running.saturating_sub(1);
        }
    }
}

/// Whether `error` says that the endpoint is not well.
fn is_of_endpoint(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Model { fault, .. } => matches!(
            fault,
            ModelFault::Overloaded
                | ModelFault::Provider
                | ModelFault::Connect
                | ModelFault::Timeout
                | ModelFault::Truncated
                | ModelFault::Malformed
        ),
        ErrorKind::Tool { fault, .. } => {
            matches!(fault, ToolFault::Unavailable | ToolFault::Timeout | ToolFault::Protocol)
        }
        _ => false,
    }
}

/// A model behind a [`CircuitBreaker`]. A call that changes the breaker's state notes it as `circuit`.
#[derive(Clone, Debug)]
pub struct Guarded<M> {
    breaker: CircuitBreaker,
    inner: M,
}

#[async_trait]
impl<M: ChatModel> ChatModel for Guarded<M> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn inner(&self) -> Option<&dyn ChatModel> {
        Some(&self.inner)
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let trial = self.breaker.admit().map_err(|refusal| refusal.of_model(self.name()))?;
        let result = self.inner.chat(request, cx).await;
        trial.tell(&result, cx);
        result
    }
}

/// A circuit breaker for each server of a toolbox, by the part of a tool's name before `__`.
#[derive(Clone, Debug, Default)]
pub struct ToolBreakers {
    policy: BreakerPolicy,
    servers: Arc<Mutex<BTreeMap<Box<str>, CircuitBreaker>>>,
}

impl ToolBreakers {
    /// Breakers under `policy`, all closed.
    pub fn new(policy: BreakerPolicy) -> Self {
        ToolBreakers { policy, servers: Arc::default() }
    }

    /// The breakers of the servers that have failed at least once, in the order of their names.
    pub fn servers(&self) -> Vec<CircuitBreaker> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Box<str>, CircuitBreaker>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The breaker of `server`, made on its first failure: a name that a model made up never
    /// fails at an endpoint, and so takes no room here.
    fn of(&self, server: &str, make: bool) -> Option<CircuitBreaker> {
        let mut servers = self.lock();
        if let Some(known) = servers.get(server) {
            return Some(known.clone());
        }
        make.then(|| {
            let breaker = CircuitBreaker::new(server, self.policy.clone());
            servers.insert(server.into(), breaker.clone());
            breaker
        })
    }

    /// Wraps a toolbox, so that its calls go through the breakers.
    pub fn wrap<T>(&self, inner: T) -> GuardedTools<T> {
        GuardedTools { breakers: self.clone(), inner }
    }
}

/// A toolbox behind a [`CircuitBreaker`] for each of its servers.
#[derive(Clone, Debug)]
pub struct GuardedTools<T> {
    breakers: ToolBreakers,
    inner: T,
}

#[async_trait]
impl<T: Toolbox> Toolbox for GuardedTools<T> {
    async fn list(&self, caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        self.inner.list(caller).await
    }

    fn beneath(&self) -> Option<&dyn Toolbox> {
        Some(&self.inner)
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        let server = call.name.split_once("__").map_or(&*call.name, |(server, _)| server);
        let trial = match self.breakers.of(server, false) {
            Some(breaker) => Some(breaker.admit().map_err(|refusal| refusal.of_tool(&call.name))?),
            None => None,
        };
        let result = self.inner.call(call, cx).await;
        match trial {
            Some(trial) => trial.tell(&result, cx),
            None if result.as_ref().is_err_and(is_of_endpoint) => {
                let first = self.breakers.of(server, true).and_then(|breaker| breaker.admit().ok());
                if let Some(trial) = first {
                    trial.tell(&result, cx);
                }
            }
            None => {}
        }
        result
    }
}
