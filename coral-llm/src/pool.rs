//! Several endpoints or keys for one model.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{
    CallContext, ChatModel, ChatRequest, ChatResponse, Error, ErrorKind, ModelFault, ModelInfo,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::relay::Relay;

/// Several endpoints or keys for one model, as one model.
///
/// - A call goes to the healthy member with the fewest calls under way; among equals, to the one that served least.
/// - A member is ejected when it fails three times in a row, at once when its key is refused or its credit is used up,
///   and while its rate limit says so. The time doubles with each ejection, from ten seconds up to five minutes. After
///   it one call tries the member again.
/// - A call that fails at one member goes to the next, unless something of its answer was heard, or the fault lies in
///   the request, or it is unknown whether the call was done and paid.
/// - If no member is healthy, the one that is to come back first is asked.
///
/// ```
/// use coral_core::{CallContext, ChatModel, ChatRequest};
/// use coral_llm::{Pool, ScriptedModel};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), coral_core::Error> {
/// let pool = Pool::new("our-model")
///     .member(ScriptedModel::new().named("one").otherwise(|_| "ok"))
///     .member(ScriptedModel::new().named("two").otherwise(|_| "ok"));
/// for _ in 0..10 {
///     pool.chat(&ChatRequest::user("?"), &CallContext::default()).await?;
/// }
/// assert!(pool.health().iter().all(|member| member.served == 5));
/// # Ok(()) }
/// ```
pub struct Pool {
    name: String,
    members: Vec<Member>,
    sticky: bool,
}

struct Member {
    model: Arc<dyn ChatModel>,
    under_way: AtomicUsize,
    served: AtomicU64,
    health: Mutex<Health>,
}

#[derive(Default)]
struct Health {
    failures: u32,
    ejections: u32,
    until: Option<Instant>,
}

/// How a member of a [`Pool`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberHealth {
    /// The member's name.
    pub name: String,
    /// Calls under way.
    pub under_way: usize,
    /// Calls that it was given so far.
    pub served: u64,
    /// Failures since the last success.
    pub failures: u32,
    /// Milliseconds for which it gets no calls.
    pub ejected_for_ms: Option<u64>,
}

const FAILURES_TO_EJECT: u32 = 3;
const FIRST_EJECTION: Duration = Duration::from_secs(10);
const LONGEST_EJECTION: Duration = Duration::from_secs(300);

impl Pool {
    /// A pool without members.
    pub fn new(name: impl Into<String>) -> Self {
        Pool { name: name.into(), members: Vec::new(), sticky: false }
    }

    /// Adds a member.
    #[must_use]
    pub fn member(mut self, model: impl ChatModel + 'static) -> Self {
        self.members.push(Member {
            model: Arc::new(model),
            under_way: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            health: Mutex::default(),
        });
        self
    }

    /// Keeps the calls of a run at one member while that is healthy, for the sake of its prompt cache.
    #[must_use]
    pub fn sticky(mut self) -> Self {
        self.sticky = true;
        self
    }

    /// How each member is.
    pub fn health(&self) -> Vec<MemberHealth> {
        let now = Instant::now();
        self.members
            .iter()
            .map(|member| {
                let health = member.health();
                MemberHealth {
                    name: member.model.name().to_owned(),
                    under_way: member.under_way.load(Ordering::Relaxed),
                    served: member.served.load(Ordering::Relaxed),
                    failures: health.failures,
                    ejected_for_ms: health
                        .until
                        .and_then(|until| until.checked_duration_since(now))
                        .filter(|left| !left.is_zero())
                        .map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
                }
            })
            .collect()
    }

    /// The member for the next try, none of `tried`.
    fn pick(&self, cx: &CallContext, tried: &[usize]) -> Option<(usize, &Member)> {
        let now = Instant::now();
        let untried = || self.members.iter().enumerate().filter(|(index, _)| !tried.contains(index));
        let healthy = || untried().filter(|(_, member)| member.is_healthy(now));
        let run = &cx.caller().run;
        if self.sticky
            && !run.is_empty()
            && let Some(found) = healthy().max_by_key(|(index, _)| weight(run, *index))
        {
            return Some(found);
        }
        let least = healthy().min_by_key(|(_, member)| {
            (member.under_way.load(Ordering::Relaxed), member.served.load(Ordering::Relaxed))
        });
        match least {
            Some(found) => Some(found),
            // Only the first try goes to a member that is ejected.
            None if tried.is_empty() => untried().min_by_key(|(_, member)| member.health().until),
            None => None,
        }
    }
}

/// Rendezvous hashing: the other runs stay where they are when a member comes or goes.
fn weight(run: &str, member: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    (run, member).hash(&mut hasher);
    hasher.finish()
}

impl Member {
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_healthy(&self, now: Instant) -> bool {
        self.health().until.is_none_or(|until| until <= now)
    }

    /// Notes how a call ended.
    fn settle(&self, error: Option<&Error>) {
        let mut health = self.health();
        let Some(error) = error else {
            *health = Health::default();
            return;
        };
        let ErrorKind::Model { fault, .. } = error.kind() else { return };
        let at_once = match fault {
            ModelFault::RateLimited | ModelFault::Authentication | ModelFault::QuotaExhausted => true,
            ModelFault::Overloaded
            | ModelFault::Provider
            | ModelFault::Connect
            | ModelFault::Timeout
            | ModelFault::Truncated
            | ModelFault::Malformed => false,
            // The request's own fault.
            _ => return,
        };
        health.failures += 1;
        if !at_once && health.failures < FAILURES_TO_EJECT {
            return;
        }
        let own = FIRST_EJECTION.saturating_mul(2u32.saturating_pow(health.ejections)).min(LONGEST_EJECTION);
        let asked = error.retry_after_ms().map(Duration::from_millis);
        health.ejections += 1;
        health.until = Some(Instant::now() + asked.unwrap_or(own));
    }
}

/// A call under way; it is counted until it ends or is dropped.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        UnderWay(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether another member may succeed, and nothing was paid yet.
fn is_the_members(error: &Error) -> bool {
    let ErrorKind::Model { fault, .. } = error.kind() else { return false };
    error.is_transient() || matches!(fault, ModelFault::Authentication | ModelFault::QuotaExhausted)
}

#[async_trait]
impl ChatModel for Pool {
    fn name(&self) -> &str {
        &self.name
    }

    fn info(&self) -> ModelInfo {
        self.members.first().map(|member| member.model.info()).unwrap_or_default()
    }

    fn info_for(&self, request: &ChatRequest, cx: &CallContext) -> ModelInfo {
        self.members.first().map(|member| member.model.info_for(request, cx)).unwrap_or_default()
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let relay = Relay::new(cx);
        let mut tried = Vec::new();
        let mut last = None;
        while let Some((index, member)) = self.pick(cx, &tried) {
            tried.push(index);
            member.served.fetch_add(1, Ordering::Relaxed);
            let outcome = {
                let _count = UnderWay::begin(&member.under_way);
                member.model.chat(request, &relay.next()).await
            };
            member.settle(outcome.as_ref().err());
            let Err(error) = outcome else { return outcome };
            if relay.was_heard() || !is_the_members(&error) {
                return Err(error);
            }
            tracing::warn!(pool = %self.name, member = member.model.name(), %error, "the next member is asked");
            last = Some(error);
        }
        Err(last
            .unwrap_or_else(|| Error::invalid(format!("model pool `{}`", self.name), "it has no members")))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name)
            .field("members", &self.health())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use coral_core::Caller;

    use super::*;
    use crate::scripted::{Reply, ScriptedModel};

    fn fault(fault: ModelFault) -> Error {
        Error::new(ErrorKind::Model { fault, model: "m".into(), problem: "x".into() })
    }

    fn pool(members: [ScriptedModel; 2]) -> (Pool, [Arc<ScriptedModel>; 2]) {
        let members = members.map(Arc::new);
        let pool = members.iter().fold(Pool::new("p"), |pool, member| pool.member(member.clone()));
        (pool, members)
    }

    async fn ask(pool: &Pool) -> Result<ChatResponse, Error> {
        pool.chat(&ChatRequest::user("?"), &CallContext::default()).await
    }

    fn good() -> ScriptedModel {
        ScriptedModel::new().otherwise(|_| "ok")
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_keeps_failing_is_ejected_and_comes_back() {
        let bad = ScriptedModel::new().replies([
            fault(ModelFault::Overloaded),
            fault(ModelFault::Connect),
            fault(ModelFault::Provider),
        ]);
        let (pool, members) = pool([bad.otherwise(|_| "back"), good()]);
        for _ in 0..20 {
            assert_eq!(ask(&pool).await.unwrap().message.text(), "ok", "the other member answers");
        }
        assert_eq!(members[0].calls(), 3);
        assert_eq!(pool.health()[0].ejected_for_ms, Some(10_000));
        tokio::time::advance(Duration::from_millis(10_001)).await;
        assert_eq!(ask(&pool).await.unwrap().message.text(), "back");
        assert_eq!((pool.health()[0].failures, pool.health()[0].ejected_for_ms), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limited_key_rests_as_long_as_it_says() {
        let limited = fault(ModelFault::RateLimited).with_retry_after_ms(30_000);
        let (pool, members) = pool([ScriptedModel::new().reply(limited).otherwise(|_| "back"), good()]);
        for _ in 0..4 {
            assert_eq!(ask(&pool).await.unwrap().message.text(), "ok");
        }
        assert_eq!((members[0].calls(), pool.health()[0].ejected_for_ms), (1, Some(30_000)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_fault_of_a_request_goes_nowhere_else() {
        let (pool, members) = pool([ScriptedModel::new().reply(fault(ModelFault::InvalidRequest)), good()]);
        assert!(ask(&pool).await.is_err());
        assert_eq!((members[1].calls(), pool.health()[0].failures), (0, 0));
        let (pool, members) = self::pool([ScriptedModel::new().reply(fault(ModelFault::Truncated)), good()]);
        assert!(ask(&pool).await.is_err(), "what was paid for is not bought again unasked");
        assert_eq!((members[1].calls(), pool.health()[0].failures), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_are_ejected_the_first_to_return_is_asked() {
        let limited = |ms| Reply::from(fault(ModelFault::RateLimited).with_retry_after_ms(ms));
        let model = |ms| ScriptedModel::new().reply(limited(ms)).otherwise(|_| "late");
        let (pool, members) = pool([model(60_000), model(30_000)]);
        assert_eq!(ask(&pool).await.unwrap_err().retry_after_ms(), Some(30_000));
        assert_eq!(ask(&pool).await.unwrap().message.text(), "late");
        assert_eq!((members[0].calls(), members[1].calls()), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sticky_pool_keeps_a_run_where_it_is() {
        let (pool, members) = pool([good(), good()]);
        let pool = pool.sticky();
        let cx = CallContext::new(Caller { run: "run-1".into(), ..Default::default() });
        for _ in 0..6 {
            pool.chat(&ChatRequest::user("?"), &cx).await.unwrap();
        }
        let calls = [members[0].calls(), members[1].calls()];
        assert!(calls == [6, 0] || calls == [0, 6], "{calls:?}");
    }

    #[tokio::test]
    async fn a_dropped_call_is_no_longer_under_way() {
        struct Never;
        #[async_trait]
        impl ChatModel for Never {
            fn name(&self) -> &str {
                "never"
            }
            async fn chat(&self, _: &ChatRequest, _: &CallContext) -> Result<ChatResponse, Error> {
                std::future::pending().await
            }
        }
        let pool = Pool::new("p").member(Never);
        {
            let (request, cx) = (ChatRequest::user("?"), CallContext::default());
            let mut call = pool.chat(&request, &cx);
            assert!(
                std::future::poll_fn(|c| std::task::Poll::Ready(call.as_mut().poll(c).is_pending())).await
            );
            assert_eq!(pool.health()[0].under_way, 1);
        }
        assert_eq!(pool.health()[0].under_way, 0);
    }
}
