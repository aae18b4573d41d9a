//! Who calls a port, and under which terms.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::budget::Budget;
use crate::context::InCall;
use crate::error::Error;
use crate::model::{ChatRequest, ChatResponse, Delta};
use crate::spec::{Category, ModelNeeds};
use crate::tool::Approval;

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
    terms: Option<Arc<Terms>>,
    run: Option<Arc<InCall>>,
}

/// What few calls come with.
#[derive(Clone, Debug, Default)]
struct Terms {
    needs: Option<ModelNeeds>,
    budget: Budget,
    approval: Option<Approval>,
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

    /// Sets what the agent needs of a model.
    #[must_use]
    pub fn with_needs(self, needs: ModelNeeds) -> Self {
        self.with_terms(|terms| terms.needs = Some(needs))
    }

    /// Sets what the call may use at the most.
    #[must_use]
    pub fn with_budget(self, budget: Budget) -> Self {
        self.with_terms(|terms| terms.budget = budget)
    }

    /// Brings a person's approval.
    #[must_use]
    pub fn with_approval(self, approval: Approval) -> Self {
        self.with_terms(|terms| terms.approval = Some(approval))
    }

    fn with_terms(mut self, set: impl FnOnce(&mut Terms)) -> Self {
        set(Arc::make_mut(self.terms.get_or_insert_default()));
        self
    }

    pub(crate) fn within(mut self, run: Arc<InCall>) -> Self {
        self.run = Some(run);
        self
    }

    /// What the agent needs of a model, as it stands in this phase; `None` where no agent calls.
    pub fn needs(&self) -> Option<&ModelNeeds> {
        self.terms.as_ref()?.needs.as_ref()
    }

    /// What the call may use at the most, where budgets limit it: what is left of them before the call,
    /// and, while it is made, what was reserved for it.
    pub fn budget(&self) -> &Budget {
        const UNLIMITED: &Budget =
            &Budget { usd: None, tokens: None, calls: None, agents: None, wall_ms: None, depth: None };
        self.terms.as_ref().map_or(UNLIMITED, |terms| &terms.budget)
    }

    /// A person's approval, which may be of another call: see [`Approval::covers`].
    pub fn approval(&self) -> Option<&Approval> {
        self.terms.as_ref()?.approval.as_ref()
    }

    /// Notes something about the call for people, metrics and audits, such as why a model was chosen. It is
    /// recorded with the call as [`Event::CallNoted`](crate::Event::CallNoted); outside of a run it is
    /// dropped.
    pub fn note(&self, topic: &str, note: Value) {
        if let Some(run) = &self.run {
            run.note(topic, note);
        }
    }

    /// Asks a person in the midst of the call, durably, and waits for the answer, which fits
    /// `answer_schema`. When the call is made again after a crash, the same question has the same
    /// answer.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) outside of a run, where nobody can be asked.
    pub async fn ask(&self, label: &str, question: Value, answer_schema: Value) -> Result<Value, Error> {
        match &self.run {
            Some(run) => run.ask(label, question, answer_schema).await,
            None => Err(outside_of_a_run("question")),
        }
    }

    /// Calls the run's model on behalf of the tool that is called, paid from the run's budgets as part of the
    /// call.
    ///
    /// # Errors
    /// [`Budget`](crate::ErrorKind::Budget) if it does not fit, [`Model`](crate::ErrorKind::Model) if it
    /// fails, and [`Invalid`](crate::ErrorKind::Invalid) outside of a run.
    pub async fn chat(&self, request: &ChatRequest) -> Result<ChatResponse, Error> {
        match &self.run {
            Some(run) => run.chat(request, self.key()).await,
            None => Err(outside_of_a_run("model call")),
        }
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

fn outside_of_a_run(what: &str) -> Error {
    Error::invalid(format!("{what} within a call"), "the call is not part of a run")
        .with_help("make the call through an agent's context")
}

impl fmt::Debug for CallContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallContext")
            .field("caller", &self.caller)
            .field("key", &self.key)
            .field("timeout_ms", &self.timeout_ms)
            .field("streams", &self.streams())
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}
