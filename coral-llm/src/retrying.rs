//! Repeats what may be repeated, for callers outside of a run.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{CallContext, ChatModel, ChatRequest, ChatResponse, Clock, Error, SystemClock};

use crate::pool::Probe;
use crate::relay::Relay;

/// How a [`Retrying`] model repeats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Tries of one call at the most, the first included.
    pub max_tries: u32,
    /// The wait before the second try; it doubles with each further one.
    pub first_delay: Duration,
    /// The longest wait of that kind.
    pub max_delay: Duration,
    /// A provider that asks for a longer wait than this gets no further try: the error says how long it is.
    pub max_retry_after: Duration,
    /// The part of all calls that may be repeated in the long run, so that many callers do not make an outage worse.
    pub budget: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            max_tries: 3,
            first_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(8),
            max_retry_after: Duration::from_secs(60),
            budget: 0.1,
        }
    }
}

/// A model that repeats a call whose error is [`Transient`](coral_core::ErrorClass::Transient).
///
/// In a run the engine repeats, within the run's policy and journaled: do not put this layer under it, or tries
/// multiply. It is for calls outside of any run.
///
/// A call is not repeated once something was heard of its answer, when the wait would be longer than the time that is
/// left or than the policy allows, or when the budget for repeats is used up. A provider's `Retry-After` counts before
/// the policy's own wait.
///
/// ```
/// use coral_core::{CallContext, ChatModel, ChatRequest, Error, ErrorKind, ModelFault};
/// use coral_llm::{RetryPolicy, Retrying, ScriptedModel};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Error> {
/// let busy = ErrorKind::Model { fault: ModelFault::Overloaded, model: "m".into(), problem: "busy".into() };
/// let model = Retrying::new(ScriptedModel::new().reply(Error::new(busy)).reply("done"), RetryPolicy::default());
/// let answer = model.chat(&ChatRequest::user("?"), &CallContext::default()).await?;
/// assert_eq!(answer.message.text(), "done");
/// # Ok(()) }
/// ```
pub struct Retrying<M> {
    model: M,
    policy: RetryPolicy,
    clock: Arc<dyn Clock>,
    /// Repeats that may be made now.
    credit: Mutex<f64>,
}

/// Repeats that a model may save up while all goes well.
const MAX_CREDIT: f64 = 10.0;

impl<M: ChatModel> Retrying<M> {
    /// Repeats calls of `model` by `policy`.
    pub fn new(model: M, policy: RetryPolicy) -> Self {
        Self::with_clock(model, policy, Arc::new(SystemClock))
    }

    /// The same with chance from elsewhere.
    pub fn with_clock(model: M, policy: RetryPolicy, clock: Arc<dyn Clock>) -> Self {
        Retrying { model, policy, clock, credit: Mutex::new(MAX_CREDIT) }
    }

    /// The wait before the try after `tries`, if there is to be one.
    fn delay(&self, error: &Error, tries: u32, relay: &Relay<'_>) -> Option<Duration> {
        if !error.is_transient() || tries >= self.policy.max_tries || relay.was_heard() {
            return None;
        }
        let delay = match error.retry_after_ms().map(Duration::from_millis) {
            Some(asked) if asked > self.policy.max_retry_after => return None,
            Some(asked) => asked,
            None => {
                let doubled = self.policy.first_delay.saturating_mul(2u32.saturating_pow(tries - 1));
                let chance = (self.clock.random() >> 11) as f64 / (1u64 << 53) as f64;
                doubled.min(self.policy.max_delay).mul_f64(1.0 - 0.25 * chance)
            }
        };
        if relay.left_ms().is_some_and(|left| Duration::from_millis(left) <= delay) {
            return None;
        }
        let mut credit = self.credit.lock().unwrap_or_else(PoisonError::into_inner);
        (*credit >= 1.0).then(|| {
            *credit -= 1.0;
            delay
        })
    }
}

#[async_trait]
impl<M: ChatModel> ChatModel for Retrying<M> {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn inner(&self) -> Option<&dyn ChatModel> {
        Some(&self.model)
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        {
            let mut credit = self.credit.lock().unwrap_or_else(PoisonError::into_inner);
            *credit = (*credit + self.policy.budget).min(MAX_CREDIT);
        }
        let relay = Relay::new(cx);
        let mut tries = 0;
        loop {
            let outcome = self.model.chat(request, &relay.next()).await;
            tries += 1;
            let Err(error) = outcome else { return outcome };
            let Some(delay) = self.delay(&error, tries, &relay) else { return Err(error) };
            tracing::warn!(%error, tries, delay_ms = delay.as_millis(), "the call is made again");
            tokio::time::sleep(delay).await;
        }
    }
}

#[async_trait]
impl<M: Probe> Probe for Retrying<M> {
    async fn probe(&self) -> Result<(), Error> {
        self.model.probe().await
    }
}

impl<M: ChatModel> fmt::Debug for Retrying<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retrying")
            .field("model", &self.model.name())
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use coral_core::{ErrorKind, ManualClock, ModelFault};
    use tokio::time::Instant;

    use super::*;
    use crate::scripted::{Reply, ScriptedModel};

    fn fault(fault: ModelFault) -> Error {
        Error::new(ErrorKind::Model { fault, model: "m".into(), problem: "x".into() })
    }

    /// Tries, and milliseconds that they took.
    async fn run(replies: Vec<Reply>, cx: CallContext) -> (usize, u128, Result<String, Error>) {
        let model = ScriptedModel::new().replies(replies);
        let clock = Arc::new(ManualClock::default());
        let model = Retrying::with_clock(model, RetryPolicy::default(), clock);
        let began = Instant::now();
        let outcome = model.chat(&ChatRequest::user("?"), &cx).await.map(|response| response.message.text());
        (model.model.calls(), began.elapsed().as_millis(), outcome)
    }

    #[tokio::test(start_paused = true)]
    async fn transient_errors_are_repeated_with_growing_waits() {
        let busy = || Reply::from(fault(ModelFault::Overloaded));
        let (tries, ms, outcome) = run(vec![busy(), busy(), "ok".into()], CallContext::default()).await;
        assert_eq!((tries, outcome), (3, Ok("ok".to_owned())));
        assert!((375 + 750..=500 + 1_000).contains(&ms), "{ms}");
        let (tries, _, outcome) =
            run(vec![busy(), busy(), busy(), "ok".into()], CallContext::default()).await;
        assert!(tries == 3 && outcome.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_paid_for_or_is_wrong_is_not_repeated() {
        for kind in [
            ModelFault::InvalidRequest,
            ModelFault::Timeout,
            ModelFault::Truncated,
            ModelFault::QuotaExhausted,
        ] {
            let (tries, _, outcome) =
                run(vec![fault(kind).into(), "ok".into()], CallContext::default()).await;
            assert!(tries == 1 && outcome.is_err(), "{kind:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_provider_says_how_long_to_wait() {
        let limited = |ms| Reply::from(fault(ModelFault::RateLimited).with_retry_after_ms(ms));
        let (tries, ms, _) = run(vec![limited(7_000), "ok".into()], CallContext::default()).await;
        assert!(tries == 2 && (7_000..7_010).contains(&ms), "{ms}");
        let (tries, ms, outcome) = run(vec![limited(61_000), "ok".into()], CallContext::default()).await;
        assert_eq!((tries, ms, outcome.unwrap_err().retry_after_ms()), (1, 0, Some(61_000)));
        let cx = CallContext::default().with_timeout_ms(5_000);
        let (tries, ms, _) = run(vec![limited(7_000), "ok".into()], cx).await;
        assert_eq!((tries, ms), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_bounds_all_repeats() {
        let model = ScriptedModel::new().otherwise(|_| fault(ModelFault::Overloaded));
        let model = Retrying::new(model, RetryPolicy::default());
        for _ in 0..100 {
            let _ = model.chat(&ChatRequest::user("?"), &CallContext::default()).await;
        }
        let repeats = model.model.calls() - 100;
        assert!((10..=20).contains(&repeats), "{repeats}");
    }
}
