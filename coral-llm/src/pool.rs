//! Several endpoints or keys for one model.

use std::borrow::Cow;
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
    /// Whether a call tries a member whose time is over: until it ends no other does.
    on_trial: bool,
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

    /// The member for the next try, none of `tried`, with the call at it begun.
    fn pick(&self, cx: &CallContext, tried: &[usize]) -> Option<(usize, UnderWay<'_>)> {
        let now = Instant::now();
        let untried = || self.members.iter().enumerate().filter(|(index, _)| !tried.contains(index));
        let healthy = || untried().filter(|(_, member)| member.health().takes_calls(now));
        let run = &cx.caller().run;
        loop {
            let found = if self.sticky && !run.is_empty() {
                healthy().max_by_key(|(index, _)| weight(run, *index))
            } else {
                healthy().min_by_key(|(_, member)| {
                    (member.under_way.load(Ordering::Relaxed), member.served.load(Ordering::Relaxed))
                })
            };
            let Some((index, member)) = found else { break };
            // Another call may have got the trial of this member meanwhile.
            if let Some(begun) = member.begin(now) {
                return Some((index, begun));
            }
        }
        // Only the first try goes to a member that is ejected.
        let soonest = || {
            untried().min_by_key(|(_, member)| {
                let health = member.health();
                (health.is_down(), health.until)
            })
        };
        let (index, member) = tried.is_empty().then(soonest).flatten()?;
        Some((index, UnderWay::new(member, false)))
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

    /// Begins a call, if the member takes it: the first one after its time is over is a trial.
    fn begin(&self, now: Instant) -> Option<UnderWay<'_>> {
        let mut health = self.health();
        if !health.takes_calls(now) {
            return None;
        }
        health.on_trial = health.until.is_some();
        Some(UnderWay::new(self, health.on_trial))
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

    fn takes_calls(&self, now: Instant) -> bool {
        !self.is_down() && !self.on_trial && self.until.is_none_or(|until| until <= now)
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
struct UnderWay<'a> {
    member: &'a Member,
    on_trial: bool,
}

impl<'a> UnderWay<'a> {
    fn new(member: &'a Member, on_trial: bool) -> Self {
        member.under_way.fetch_add(1, Ordering::Relaxed);
        member.served.fetch_add(1, Ordering::Relaxed);
        UnderWay { member, on_trial }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.member.under_way.fetch_sub(1, Ordering::Relaxed);
        if self.on_trial {
            self.member.health().on_trial = false;
        }
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

    /// That of the first member: they are one model.
    fn identity(&self, cx: &CallContext) -> Cow<'_, str> {
        self.members.first().map_or(Cow::Borrowed(&self.name), |member| member.model.identity(cx))
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        self.checks.get_or_init(|| Checks::begin(&self.members, self.check_every));
        let relay = Relay::new(cx);
        let mut tried = Vec::new();
        let mut last = None;
        while let Some((index, under_way)) = self.pick(cx, &tried) {
            tried.push(index);
            let member = under_way.member;
            let outcome = member.model.chat(request, &relay.next_as("member", index)).await;
            member.settle(outcome.as_ref().err());
            drop(under_way);
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
mod tests;
