//! Who calls a port, and under which terms.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::Delta;
use crate::spec::Category;

/// Who makes a call: what permission rules, quotas and bills go by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Caller {
    /// The run.
    pub run: Arc<str>,
    /// The step's path in the run.
    pub path: Arc<str>,
    /// The agent's id; empty for a function step.
    pub agent: Arc<str>,
    /// The agent's category.
    pub category: Category,
    /// The project that the run belongs to.
    pub project: Arc<str>,
    /// The phase of the workflow.
    pub phase: Arc<str>,
}

impl Caller {
    /// A caller outside of any run, for trying a port by hand.
    pub fn agent(id: impl Into<Arc<str>>) -> Self {
        Caller { agent: id.into(), ..Default::default() }
    }
}

type DeltaSink = Arc<dyn Fn(&Delta) + Send + Sync>;

/// The terms of one call to a model or a tool.
///
/// ```
/// use coral_core::{CallContext, Caller};
///
/// let cx = CallContext::new(Caller::agent("qa_testing")).on_delta(|delta| print!("{delta}"));
/// assert!(cx.streams());
/// ```
#[derive(Clone, Default)]
pub struct CallContext {
    caller: Arc<Caller>,
    key: Arc<str>,
    timeout_ms: Option<u64>,
    deltas: Option<DeltaSink>,
}

impl CallContext {
    /// Terms for a call by `caller`.
    pub fn new(caller: impl Into<Arc<Caller>>) -> Self {
        CallContext { caller: caller.into(), ..Default::default() }
    }

    /// Sets the idempotency key: the same for each try of the same effect.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.key = key.into();
        self
    }

    /// Sets the time that the call may take in all, in milliseconds.
    #[must_use]
    pub fn with_timeout_ms(mut self, timeout_ms: u64) -> Self {
        self.timeout_ms = Some(timeout_ms);
        self
    }

    /// Listens to the answer while it streams. The listener must not block.
    #[must_use]
    pub fn on_delta(mut self, listener: impl Fn(&Delta) + Send + Sync + 'static) -> Self {
        self.deltas = Some(Arc::new(listener));
        self
    }

    /// Who calls.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The idempotency key; empty outside of a run.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The time that the call may take in all, in milliseconds.
    pub fn timeout_ms(&self) -> Option<u64> {
        self.timeout_ms
    }

    /// Whether somebody listens to deltas.
    pub fn streams(&self) -> bool {
        self.deltas.is_some()
    }

    /// Reports a piece of the answer.
    pub fn emit(&self, delta: &Delta) {
        if let Some(sink) = &self.deltas {
            sink(delta);
        }
    }
}

impl fmt::Debug for CallContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallContext")
            .field("caller", &self.caller)
            .field("key", &self.key)
            .field("timeout_ms", &self.timeout_ms)
            .field("streams", &self.streams())
            .finish()
    }
}
