//! Several endpoints or keys for one model.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
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
/// - Beside what calls show, members may be looked at [regularly](Pool::checked_member), so that one that is down is ejected
///   before a call meets it, and comes back as soon as it is up.
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
    members: Vec<Arc<Member>>,
    sticky: bool,
    check_every: Duration,
    checks: OnceLock<Checks>,
}

struct Member {
    model: Arc<dyn ChatModel>,
    probe: Option<Arc<dyn Probe>>,
    under_way: AtomicUsize,
    served: AtomicU64,
    health: Mutex<Health>,
}

#[derive(Default)]
struct Health {
    failures: u32,
    ejections: u32,
    until: Option<Instant>,
    /// Whether it rests for a reason that no look at it can tell to be over: its key, its credit, its rate.
    rests: bool,
    /// Checks that failed in a row.
    failed_checks: u32,
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
    /// Whether the last checks found it down: it gets no calls until one finds it up.
    pub down: bool,
}

const FAILURES_TO_EJECT: u32 = 3;
const FIRST_EJECTION: Duration = Duration::from_secs(10);
const LONGEST_EJECTION: Duration = Duration::from_secs(300);
const CHECKS_TO_EJECT: u32 = 2;
const CHECK_EVERY: Duration = Duration::from_secs(10);
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

impl Pool {
    /// A pool without members.
    pub fn new(name: impl Into<String>) -> Self {
        Pool {
            name: name.into(),
            members: Vec::new(),
            sticky: false,
            check_every: CHECK_EVERY,
            checks: OnceLock::new(),
        }
    }

    /// Adds a member.
    #[must_use]
    pub fn member(self, model: impl ChatModel + 'static) -> Self {
        self.with(Arc::new(model), None)
    }

    /// Adds a member that is looked at every ten seconds, from the first call of the pool on. One that is found down
    /// twice in a row gets no calls until it is found up.
    #[must_use]
    pub fn checked_member(self, model: impl ChatModel + Probe + 'static) -> Self {
        let model = Arc::new(model);
        self.with(model.clone(), Some(model))
    }

    /// Sets how often members are looked at.
    #[must_use]
    pub fn check_every(mut self, period: Duration) -> Self {
        self.check_every = period;
        self
    }

    fn with(mut self, model: Arc<dyn ChatModel>, probe: Option<Arc<dyn Probe>>) -> Self {
        self.members.push(Arc::new(Member {
            model,
            probe,
            under_way: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            health: Mutex::default(),
        }));
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
                    down: health.is_down(),
                }
            })
            .collect()
    }

    /// The member for the next try, none of `tried`.
    fn pick(&self, cx: &CallContext, tried: &[usize]) -> Option<(usize, &Arc<Member>)> {
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
            None if tried.is_empty() => untried().min_by_key(|(_, member)| {
                let health = member.health();
                (health.is_down(), health.until)
            }),
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
        let health = self.health();
        !health.is_down() && health.until.is_none_or(|until| until <= now)
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
        health.rests = at_once;
    }

    /// Notes what a look at the member showed.
    fn checked(&self, found: Result<(), Error>) {
        let mut health = self.health();
        match found {
            Ok(()) if health.rests => health.failed_checks = 0,
            Ok(()) => *health = Health::default(),
            Err(error) => {
                health.failed_checks = health.failed_checks.saturating_add(1);
                if health.failed_checks == CHECKS_TO_EJECT {
                    tracing::warn!(member = self.model.name(), %error, "the member is down");
                }
            }
        }
    }
}

impl Health {
    fn is_down(&self) -> bool {
        self.failed_checks >= CHECKS_TO_EJECT
    }
}

/// Says whether an endpoint is up, at no cost.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Looks at the endpoint. It has five seconds.
    ///
    /// # Errors
    /// Why calls would fail.
    async fn probe(&self) -> Result<(), Error>;
}

#[async_trait]
impl<P: Probe + ?Sized> Probe for Arc<P> {
    async fn probe(&self) -> Result<(), Error> {
        (**self).probe().await
    }
}

/// The tasks that look at members. They end with the pool.
struct Checks(Vec<tokio::task::JoinHandle<()>>);

impl Checks {
    fn begin(members: &[Arc<Member>], period: Duration) -> Self {
        let checked = members.iter().filter_map(|member| Some((member.clone(), member.probe.clone()?)));
        let tasks = checked.map(|(member, probe)| {
            tokio::spawn(async move {
                loop {
                    let found =
                        tokio::time::timeout(CHECK_TIMEOUT, probe.probe()).await.unwrap_or_else(|_| {
                            let what = member.model.name().to_owned();
                            let limit_ms = u64::try_from(CHECK_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
                            Err(Error::new(ErrorKind::TimedOut { what, limit_ms }))
                        });
                    member.checked(found);
                    tokio::time::sleep(period).await;
                }
            })
        });
        Checks(tasks.collect())
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
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
        self.checks.get_or_init(|| Checks::begin(&self.members, self.check_every));
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

    /// An endpoint that is up or down, as a test says.
    #[derive(Default)]
    struct Endpoint {
        down: std::sync::atomic::AtomicBool,
        looks: AtomicU64,
        calls: AtomicU64,
    }

    impl Endpoint {
        fn set_down(&self, down: bool) {
            self.down.store(down, Ordering::Relaxed);
        }
    }

    #[async_trait]
    impl ChatModel for Endpoint {
        fn name(&self) -> &str {
            "endpoint"
        }
        async fn chat(&self, _: &ChatRequest, _: &CallContext) -> Result<ChatResponse, Error> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            Ok(ChatResponse::text("endpoint", "ok"))
        }
    }

    #[async_trait]
    impl Probe for Endpoint {
        async fn probe(&self) -> Result<(), Error> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            if self.down.load(Ordering::Relaxed) { Err(fault(ModelFault::Connect)) } else { Ok(()) }
        }
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_is_down_is_found_before_a_call_meets_it() {
        let endpoint = Arc::new(Endpoint::default());
        let pool = Pool::new("p").checked_member(endpoint.clone()).member(good());
        for _ in 0..2 {
            ask(&pool).await.unwrap();
        }
        pass(1).await;
        endpoint.set_down(true);
        pass(10).await;
        assert!(!pool.health()[0].down, "one failed look is not enough");
        pass(10).await;
        assert!(pool.health()[0].down);
        for _ in 0..4 {
            ask(&pool).await.unwrap();
        }
        assert_eq!(endpoint.calls.load(Ordering::Relaxed), 1, "no call has met it");
        endpoint.set_down(false);
        pass(10).await;
        assert!(!pool.health()[0].down);
        ask(&pool).await.unwrap();
        assert_eq!(endpoint.calls.load(Ordering::Relaxed), 2);
        drop(pool);
        tokio::task::yield_now().await;
        let looks = endpoint.looks.load(Ordering::Relaxed);
        pass(60).await;
        assert_eq!(endpoint.looks.load(Ordering::Relaxed), looks, "the looking ends with the pool");
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_is_back_as_soon_as_it_is_found_up_unless_its_key_rests() {
        for (kind, back) in [(ModelFault::Overloaded, true), (ModelFault::RateLimited, false)] {
            struct Failing(ModelFault);
            #[async_trait]
            impl ChatModel for Failing {
                fn name(&self) -> &str {
                    "failing"
                }
                async fn chat(&self, _: &ChatRequest, _: &CallContext) -> Result<ChatResponse, Error> {
                    Err(fault(self.0))
                }
            }
            #[async_trait]
            impl Probe for Failing {
                async fn probe(&self) -> Result<(), Error> {
                    Ok(())
                }
            }
            let pool = Pool::new("p")
                .checked_member(Failing(kind))
                .member(good())
                .check_every(Duration::from_secs(3));
            for _ in 0..8 {
                ask(&pool).await.unwrap();
            }
            assert!(pool.health()[0].ejected_for_ms.is_some());
            pass(4).await;
            assert_eq!(pool.health()[0].ejected_for_ms.is_none(), back, "{kind:?}");
        }
    }
}
