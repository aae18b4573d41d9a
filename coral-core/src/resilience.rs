//! Layers around the ports to models and tools: rate limit, circuit breaker, bulkhead, fallback;
//! and health checks.
//!
//! # Why layers
//! What a call needs by way of defence depends on the endpoint, not on the agent that makes it:
//! ten agents share one provider's rate limit, and a provider that is down is down for all of
//! them. So each defence is a value of its own, shared by [`Clone`], and wraps whatever
//! implements the port. The engine knows nothing of it.
//!
//! # The order
//! A call is defended in this order: budget → rate limit → circuit breaker → retry → fallback →
//! fail. Budget and retry belong to the engine, which records each try in the run's journal; a
//! layer therefore never repeats a call. The text of a stack of layers reads in the same order,
//! from the outside in:
//!
//! ```
//! use std::num::NonZeroU64;
//!
//! use coral_core::resilience::{BreakerPolicy, CircuitBreaker, Fallback, RateLimit, RatePolicy};
//! use coral_core::{ChatModel, Runner};
//!
//! fn defended(large: impl ChatModel + 'static, small: impl ChatModel + 'static) -> Runner {
//!     let limit = RateLimit::new(RatePolicy {
//!         requests_per_minute: NonZeroU64::new(60),
//!         tokens_per_minute: NonZeroU64::new(100_000),
//!         ..Default::default()
//!     });
//!     let breaker = CircuitBreaker::new("large", BreakerPolicy::default());
//!     let model = Fallback::first(limit.wrap(breaker.wrap(large)))
//!         .then(small)
//!         .or_answer("No model can be reached.");
//!     Runner::builder().model(model).build()
//! }
//! ```
//!
//! # Why the rate limit comes first
//! A call that waits for its turn has not failed, and must not look like one to the circuit
//! breaker; and a breaker that opens while calls wait must stop those that come to their turn.
//! For the same reasons a [`Bulkhead`] goes outside of both.
//!
//! # Time
//! All waits are on tokio's clock. Under `tokio::time::pause` every layer here is deterministic.

mod breaker;
mod bulkhead;
mod fallback;
mod fallback_agent;
mod health;
mod rate;
mod retry_budget;
mod timers;

pub use self::breaker::{
    BreakerPolicy, BreakerState, CircuitBreaker, Guarded, GuardedTools, ToolBreakers, Trial,
};
pub use self::bulkhead::{Bounded, Bulkhead, Lane, Slot};
pub use self::fallback::Fallback;
pub use self::fallback_agent::FallbackAgent;
pub use self::health::{Check, Checkup, Health, HealthReport, JournalCheck, ModelCheck, ToolsCheck};
pub use self::rate::{RateLimit, RateLimited, RatePolicy, Reservation, estimate_tokens};
pub use self::retry_budget::{Budgeted, RetryBudget, RetryBudgetPolicy};
pub use self::timers::{Timer, Timers};

use crate::error::{Error, ErrorKind, ModelFault, ToolFault};

/// Why a layer did not let a call through. Nothing was sent, so the same call may be made again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Refusal {
    problem: String,
    fault: ModelFault,
    retry_after_ms: Option<u64>,
}

impl Refusal {
    fn new(fault: ModelFault, problem: String, retry_after_ms: Option<u64>) -> Self {
        Refusal { problem, fault, retry_after_ms }
    }

    /// Milliseconds after which the call has a chance, where that is known.
    pub fn retry_after_ms(&self) -> Option<u64> {
        self.retry_after_ms
    }

    /// The refusal as the error of a call to `model`: transient, so that the engine waits and
    /// makes the call again.
    pub fn of_model(self, model: impl Into<String>) -> Error {
        let kind = ErrorKind::Model { fault: self.fault, model: model.into(), problem: self.problem };
        hinted(Error::new(kind), self.retry_after_ms)
    }

    /// The refusal as the error of a call to `tool`: transient as well.
    pub fn of_tool(self, tool: impl Into<String>) -> Error {
        let kind =
            ErrorKind::Tool { fault: ToolFault::Unavailable, tool: tool.into(), problem: self.problem };
        hinted(Error::new(kind), self.retry_after_ms)
    }
}

fn hinted(error: Error, retry_after_ms: Option<u64>) -> Error {
    match retry_after_ms {
        Some(ms) => error.with_retry_after_ms(ms),
        None => error,
    }
}

/// Whole milliseconds, rounded up, so that a wait is never too short.
fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
