//! A token bucket for requests and one for the tokens of language, shared by all who call one
//! endpoint under one key.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Refusal, millis};
use crate::call::{CallContext, Caller};
use crate::error::{Error, ErrorKind, ModelFault};
use crate::model::{ChatModel, ChatRequest, ChatResponse, ModelInfo};
use crate::prompt::{TokenCounter, UpperEstimate};
use crate::tool::{ToolCall, ToolDef, ToolOutput, Toolbox};

/// How much may be asked in a minute, and how long a call may wait for its turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RatePolicy {
    /// Calls a minute; `None` does not limit them. A minute's worth may be made at once after a pause.
    pub requests_per_minute: Option<NonZeroU64>,
    /// Tokens a minute, input and output together; `None` does not limit them.
    pub tokens_per_minute: Option<NonZeroU64>,
    /// Milliseconds that a call may wait for its turn before it is refused.
    pub max_wait_ms: u64,
    /// Calls that may wait at once; one more is refused.
    pub max_waiting: usize,
}

impl Default for RatePolicy {
    fn default() -> Self {
        RatePolicy {
            requests_per_minute: None,
            tokens_per_minute: None,
            max_wait_ms: 60_000,
            max_waiting: 1_000,
        }
    }
}

/// Shares of a token in a bucket: as many as a minute has milliseconds, so that what flows in
/// during one millisecond is a whole number of them.
const SHARES: i64 = 60_000;

/// A token bucket that counts in whole shares of a token: no rounding, so no drift.
#[derive(Debug)]
struct Bucket {
    /// Tokens a minute; what flows in during a millisecond, in shares.
    rate: i64,
    /// Shares in the bucket. Below zero when a call used more than it had reserved.
    level: i64,
    /// The time up to which the inflow is counted.
    at: Instant,
}

impl Bucket {
    fn full(rate: NonZeroU64, now: Instant) -> Self {
        let rate = i64::try_from(rate.get()).unwrap_or(i64::MAX);
        Bucket { rate, level: rate.saturating_mul(SHARES), at: now }
    }

    fn capacity(&self) -> i64 {
        self.rate.saturating_mul(SHARES)
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        let whole = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        self.at += Duration::from_millis(whole);
        let inflow = self.rate.saturating_mul(i64::try_from(whole).unwrap_or(i64::MAX));
        self.level = self.level.saturating_add(inflow).min(self.capacity());
    }

    /// How long until `tokens` can be taken. A call larger than the bucket waits until it is full.
    fn wait(&self, tokens: u64) -> Duration {
        let missing = shares(tokens).min(self.capacity()).saturating_sub(self.level).max(0);
        let ms = missing / self.rate + i64::from(missing % self.rate != 0);
        Duration::from_millis(u64::try_from(ms).unwrap_or(0))
    }

    fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(shares(tokens));
    }

    fn put_back(&mut self, tokens: u64) {
        self.level = self.level.saturating_add(shares(tokens)).min(self.capacity());
    }
}

fn shares(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX).saturating_mul(SHARES)
}

#[derive(Debug)]
struct State {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    paused_until: Option<Instant>,
    waiting: usize,
}

impl State {
    /// Takes one request and `tokens` out, or says how long to wait.
    fn take(&mut self, tokens: u64, now: Instant) -> Result<(), Duration> {
        let wait = self.wait(tokens, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        if let Some(bucket) = &mut self.requests {
            bucket.take(1);
        }
        if let Some(bucket) = &mut self.tokens {
            bucket.take(tokens);
        }
        Ok(())
    }

    fn wait(&mut self, tokens: u64, now: Instant) -> Duration {
        let mut wait = self.paused_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        for (bucket, count) in [(&mut self.requests, 1), (&mut self.tokens, tokens)] {
            if let Some(bucket) = bucket {
                bucket.refill(now);
                wait = wait.max(bucket.wait(count));
            }
        }
        wait
    }
}

/// A rate limit, shared by its clones. See [`resilience`](super) for where it stands.
///
/// Calls get their turn in the order in which they came. A call that is larger than a whole
/// minute's tokens waits for a full bucket and leaves a debt, which later calls wait for.
///
/// # Example
/// ```
/// use std::num::NonZeroU64;
///
/// use coral_core::resilience::{RateLimit, RatePolicy};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), coral_core::resilience::Refusal> {
/// let limit = RateLimit::new(RatePolicy { tokens_per_minute: NonZeroU64::new(1_000), ..Default::default() });
/// let reserved = limit.reserve(900).await?; // the worst case
/// reserved.settle(120); // what it was
/// # Ok(()) }
/// ```
///
/// # Why wait, and not fail
/// A provider that is asked too fast answers 429, and each such answer costs a round trip and a
/// try. The client knows its own rate better than the provider can tell it, so it waits before
/// the call, in the order in which the callers came.
///
/// # Why reserve and settle
/// What a call uses is known only when it is over. If the bucket were charged then, a hundred
/// calls could start at once on the tokens of one. So the worst case is taken out before the
/// call, and what was not used is put back after it.
#[derive(Clone, Debug)]
pub struct RateLimit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    policy: RatePolicy,
    state: Mutex<State>,
    /// Held by the one whose turn it is. Tokio's mutex is fair: it goes round in order.
    turn: tokio::sync::Mutex<()>,
    /// Tells the one whose turn it is to look again.
    changed: Notify,
}

impl RateLimit {
    /// A limit under `policy`, its buckets full.
    pub fn new(policy: RatePolicy) -> Self {
        let now = Instant::now();
        let state = State {
            requests: policy.requests_per_minute.map(|rate| Bucket::full(rate, now)),
            tokens: policy.tokens_per_minute.map(|rate| Bucket::full(rate, now)),
            paused_until: None,
            waiting: 0,
        };
        RateLimit(Arc::new(Inner {
            policy,
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of one call that uses at most `tokens`, and takes them out.
    ///
    /// May be dropped at any time; then nothing was taken.
    ///
    /// # Errors
    /// A [`Refusal`] if too many wait already, or if the turn does not come in time.
    pub async fn reserve(&self, tokens: u64) -> Result<Reservation, Refusal> {
        let waits = self.line_up()?;
        let deadline = Instant::now() + Duration::from_millis(self.0.policy.max_wait_ms);
        let result = tokio::time::timeout_at(deadline, self.wait_for_turn(tokens, deadline)).await;
        drop(waits);
        match result {
            Ok(Ok(())) => Ok(Reservation { limit: self.clone(), tokens }),
            Ok(Err(wait)) => Err(self.too_long(wait)),
            Err(_) => {
                let wait = self.state().wait(tokens, Instant::now());
                Err(self.too_long(wait))
            }
        }
    }

    async fn wait_for_turn(&self, tokens: u64, deadline: Instant) -> Result<(), Duration> {
        let _turn = self.0.turn.lock().await;
        loop {
            let now = Instant::now();
            let Err(wait) = self.state().take(tokens, now) else { return Ok(()) };
            if now + wait > deadline {
                return Err(wait);
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.0.changed.notified() => {}
            }
        }
    }

    fn too_long(&self, wait: Duration) -> Refusal {
        Refusal::new(
            ModelFault::RateLimited,
            format!("its turn does not come within {} ms", self.0.policy.max_wait_ms),
            Some(millis(wait).max(1)),
        )
    }

    fn line_up(&self) -> Result<Waits<'_>, Refusal> {
        let mut state = self.state();
        if state.waiting >= self.0.policy.max_waiting {
            let problem = format!("{} calls wait for their turn already", state.waiting);
            return Err(Refusal::new(ModelFault::RateLimited, problem, None));
        }
        state.waiting += 1;
        Ok(Waits(self))
    }

    /// Lets nobody through for `ms` milliseconds: what a provider's `Retry-After` asks for. A
    /// shorter pause does not end a longer one.
    pub fn pause_ms(&self, ms: u64) {
        let until = Instant::now() + Duration::from_millis(ms);
        let mut state = self.state();
        state.paused_until = Some(state.paused_until.map_or(until, |known| known.max(until)));
    }

    /// Wraps a model or a toolbox, so that its calls keep to the limit.
    pub fn wrap<T>(&self, inner: T) -> RateLimited<T> {
        RateLimited { limit: self.clone(), inner }
    }
}

/// Counts one that waits, as long as it does.
struct Waits<'a>(&'a RateLimit);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting = state.waiting.saturating_sub(1);
    }
}

/// Tokens taken out for one call. Dropped without being settled, they count as used: that is
/// right for a call that was cut off, which the provider counts too.
#[derive(Debug)]
#[must_use = "settle it, so that what was not used goes back"]
pub struct Reservation {
    limit: RateLimit,
    tokens: u64,
}

impl Reservation {
    /// Puts back what was not used, or takes out what was used beyond the reservation.
    pub fn settle(self, used: u64) {
        if let Some(bucket) = &mut self.limit.state().tokens {
            bucket.put_back(self.tokens);
            bucket.take(used);
        }
        self.limit.0.changed.notify_one();
    }
}

/// Tokens that `request` may use: its input by [`UpperEstimate`], and its limit of output.
/// [`Reservation::settle`] puts back what was not used.
pub fn estimate_tokens(request: &ChatRequest, info: &ModelInfo) -> u64 {
    const OUTPUT: u64 = 1_024;
    let output = request.max_output_tokens.map(u64::from).or(info.max_output_tokens).unwrap_or(OUTPUT);
    UpperEstimate.request(request).saturating_add(output)
}

/// A model or a toolbox whose calls keep to a [`RateLimit`].
#[derive(Clone, Debug)]
pub struct RateLimited<T> {
    limit: RateLimit,
    inner: T,
}

#[async_trait]
impl<M: ChatModel> ChatModel for RateLimited<M> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn inner(&self) -> Option<&dyn ChatModel> {
        Some(&self.inner)
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let tokens = estimate_tokens(request, &self.inner.info());
        let reserved = self.limit.reserve(tokens).await.map_err(|refusal| refusal.of_model(self.name()))?;
        let result = self.inner.chat(request, cx).await;
        match &result {
            // A provider that does not count leaves the guess as it is.
            Ok(response) if response.usage.total_tokens() > 0 => {
                reserved.settle(response.usage.total_tokens());
            }
            Ok(_) => {}
            Err(error) => {
                if let (ErrorKind::Model { fault: ModelFault::RateLimited, .. }, Some(ms)) =
                    (error.kind(), error.retry_after_ms())
                {
                    // One is told, all of them wait: else each would have to be told.
                    self.limit.pause_ms(ms);
                }
                if error.is_transient() {
                    reserved.settle(0);
                }
            }
        }
        result
    }
}

#[async_trait]
impl<T: Toolbox> Toolbox for RateLimited<T> {
    async fn list(&self, caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        self.inner.list(caller).await
    }

    fn beneath(&self) -> Option<&dyn Toolbox> {
        Some(&self.inner)
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        let _reserved = self.limit.reserve(0).await.map_err(|refusal| refusal.of_tool(&call.name))?;
        self.inner.call(call, cx).await
    }
}
