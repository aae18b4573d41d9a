//! Health checks of the parts that a runner stands on.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{BreakerState, CircuitBreaker, millis};
use crate::call::{CallContext, Caller};
use crate::error::{Error, ErrorKind};
use crate::journal::Journal;
use crate::model::{ChatModel, ChatRequest};
use crate::tool::Toolbox;

/// How well a part is. The order is from well to not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It works.
    Up,
    /// It works, or will soon, and not as it should.
    Degraded,
    /// It does not work.
    Down,
}

/// What a check found of one part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkup {
    /// The part, such as `journal`.
    pub part: String,
    /// How well it is.
    pub health: Health,
    /// What to know about it, where there is something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Why it is not well, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// How long the check took, in milliseconds.
    #[serde(default)]
    pub took_ms: u64,
}

impl Checkup {
    /// A part that is as well as `health` says.
    pub fn new(part: impl Into<String>, health: Health) -> Self {
        Checkup { part: part.into(), health, detail: None, error: None, took_ms: 0 }
    }

    /// A part that works if `result` is one.
    pub fn of<T>(part: impl Into<String>, result: Result<T, Error>) -> Self {
        match result {
            Ok(_) => Checkup::new(part, Health::Up),
            Err(error) => {
                let health = if error.is_transient() { Health::Degraded } else { Health::Down };
                Checkup { error: Some(error), ..Checkup::new(part, health) }
            }
        }
    }

    /// Says what there is to know.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

/// Something that can be asked whether it is well.
///
/// # Duties of an implementation
/// [`check`](Check::check) changes nothing, costs next to nothing, and may be dropped at any time:
/// a check that takes too long is given up, and its part counts as down.
#[async_trait]
pub trait Check: Send + Sync {
    /// The part's name in reports.
    fn part(&self) -> &str;

    /// Asks the part.
    async fn check(&self) -> Checkup;
}

/// Checks that a journal answers: reads the head of a run that need not exist. It appends
/// nothing, so it does not find a disk that is full.
#[derive(Debug)]
pub struct JournalCheck<J>(pub J);

#[async_trait]
impl<J: Journal> Check for JournalCheck<J> {
    fn part(&self) -> &str {
        "journal"
    }

    async fn check(&self) -> Checkup {
        Checkup::of(self.part(), self.0.head("health-check").await)
    }
}

/// Checks that a toolbox lists its tools for a caller. A toolbox without any is degraded.
#[derive(Debug)]
pub struct ToolsCheck<T> {
    /// The toolbox.
    pub tools: T,
    /// Whose tools are listed.
    pub caller: Caller,
}

#[async_trait]
impl<T: Toolbox> Check for ToolsCheck<T> {
    fn part(&self) -> &str {
        "tools"
    }

    async fn check(&self) -> Checkup {
        let listed = self.tools.list(&self.caller).await;
        let count = listed.as_ref().map_or(0, Vec::len);
        let found = Checkup::of(self.part(), listed);
        match (found.health, count) {
            (Health::Up, 0) => Checkup::new(self.part(), Health::Degraded).with_detail("no tool is offered"),
            (Health::Up, count) => found.with_detail(format!("{count} tools")),
            _ => found,
        }
    }
}

/// Checks that a model answers, by a request for a single token. **Each check is a paid call**:
/// where a [`CircuitBreaker`] guards the model, check the breaker instead.
#[derive(Debug)]
pub struct ModelCheck<M>(pub M);

#[async_trait]
impl<M: ChatModel> Check for ModelCheck<M> {
    fn part(&self) -> &str {
        self.0.name()
    }

    async fn check(&self) -> Checkup {
        let request = ChatRequest { max_output_tokens: Some(1), ..ChatRequest::user("ping") };
        let cx = CallContext::new(Caller::agent("health_check"));
        Checkup::of(self.part(), self.0.chat(&request, &cx).await)
    }
}

/// What the calls of late said about an endpoint: closed is up, half open is degraded, open is
/// down. Costs nothing.
#[async_trait]
impl Check for CircuitBreaker {
    fn part(&self) -> &str {
        self.endpoint()
    }

    async fn check(&self) -> Checkup {
        let health = match self.state() {
            BreakerState::Closed => Health::Up,
            BreakerState::HalfOpen => Health::Degraded,
            BreakerState::Open => Health::Down,
        };
        Checkup::new(self.part(), health)
    }
}

/// Checks of several parts, asked together.
///
/// # Example
/// ```
/// use coral_core::MemoryJournal;
/// use coral_core::resilience::{Health, HealthReport, JournalCheck};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let health = HealthReport::of(&[Box::new(JournalCheck(MemoryJournal::new()))], 1_000).await;
/// assert_eq!(health.health, Health::Up);
/// # }
/// ```
///
/// # Why checks are no layers
/// A layer learns from the calls that are made. A service that is asked whether it is well must
/// be able to say so before the first call, and without a bill. So a check asks each part
/// something cheap that changes nothing, and an embedder polls it as often as it likes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthReport {
    /// The health of the worst part; up if there is none.
    pub health: Health,
    /// What was found, in the order of the checks.
    pub parts: Vec<Checkup>,
}

impl HealthReport {
    /// Asks all parts at once. One that has not answered after `limit_ms` is down.
    pub async fn of(checks: &[Box<dyn Check>], limit_ms: u64) -> HealthReport {
        let parts = join_all(checks.iter().map(|check| timed(&**check, limit_ms))).await;
        let health = parts.iter().map(|part| part.health).max().unwrap_or(Health::Up);
        HealthReport { health, parts }
    }
}

async fn timed(check: &dyn Check, limit_ms: u64) -> Checkup {
    let begin = Instant::now();
    let limit = Duration::from_millis(limit_ms);
    let found = tokio::time::timeout(limit, check.check()).await.unwrap_or_else(|_| {
        let what = format!("the check of {}", check.part());
        Checkup {
            error: Some(Error::new(ErrorKind::TimedOut { what, limit_ms })),
            ..Checkup::new(check.part(), Health::Down)
        }
    });
    Checkup { took_ms: millis(begin.elapsed()), ..found }
}

#[async_trait]
impl<C: Check + ?Sized> Check for Arc<C> {
    fn part(&self) -> &str {
        (**self).part()
    }

    async fn check(&self) -> Checkup {
        (**self).check().await
    }
}

impl fmt::Display for Checkup {
    /// One line: `journal: up`, `tools: down (no connection)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let health = match self.health {
            Health::Up => "up",
            Health::Degraded => "degraded",
            Health::Down => "down",
        };
        write!(f, "{}: {health}", self.part)?;
        match (&self.error, &self.detail) {
            (Some(error), _) => write!(f, " ({error})"),
            (None, Some(detail)) => write!(f, " ({detail})"),
            (None, None) => Ok(()),
        }
    }
}
