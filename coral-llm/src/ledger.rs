//! What calls used and cost, by who made them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use coral_core::{CallContext, ChatModel, ChatRequest, ChatResponse, Error, Usage, Usd};
use serde::Serialize;

use crate::pool::Probe;

/// Who made a call, and to which model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Account {
    /// The project.
    pub project: Arc<str>,
    /// The run.
    pub run: Arc<str>,
    /// The step's path in the run.
    pub path: Arc<str>,
    /// The agent.
    pub agent: Arc<str>,
    /// The model that was asked.
    pub model: Arc<str>,
}

/// What calls used and cost together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// Calls that were answered.
    pub calls: u64,
    /// Calls that failed. What they used, if anything, is known to the provider alone.
    pub failures: u64,
    /// Calls that were answered and whose price is not known: `cost` leaves them out.
    pub unpriced: u64,
    /// Tokens.
    pub usage: Usage,
    /// Money.
    pub cost: Usd,
}

impl std::ops::AddAssign for Total {
    fn add_assign(&mut self, other: Total) {
        self.calls += other.calls;
        self.failures += other.failures;
        self.unpriced += other.unpriced;
        self.usage += other.usage;
        self.cost += other.cost;
    }
}

/// A book of calls across runs and models. Cheap to clone; clones share the book.
///
/// ```
/// use coral_core::{CallContext, Caller, ChatModel, ChatRequest, Usd};
/// use coral_llm::{Ledger, Reply, ScriptedModel};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), coral_core::Error> {
/// let ledger = Ledger::default();
/// let model = ledger.meter(ScriptedModel::new().otherwise(|_| Reply::text("ok").cost(Usd::from_dollars(0.5))));
/// for agent in ["writer", "tester", "writer"] {
///     model.chat(&ChatRequest::user("?"), &CallContext::new(Caller::agent(agent))).await?;
/// }
/// let by_agent = ledger.by(|account| account.agent.to_string());
/// assert_eq!(by_agent["writer"].cost, Usd::from_dollars(1.0));
/// assert_eq!(ledger.total().calls, 3);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<BTreeMap<Account, Total>>>);

impl Ledger {
    /// Writes the calls of `model` into this book.
    pub fn meter<M: ChatModel>(&self, model: M) -> Metered<M> {
        Metered { name: model.name().into(), model, ledger: self.clone() }
    }

    /// Every account with its total.
    pub fn accounts(&self) -> BTreeMap<Account, Total> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The totals of accounts that have the same `key`, such as their project or their agent.
    pub fn by<K: Ord>(&self, key: impl Fn(&Account) -> K) -> BTreeMap<K, Total> {
        let mut totals: BTreeMap<K, Total> = BTreeMap::new();
        for (account, total) in self.accounts() {
            *totals.entry(key(&account)).or_default() += total;
        }
        totals
    }

    /// The total of everything.
    pub fn total(&self) -> Total {
        self.by(|_| ()).into_values().next().unwrap_or_default()
    }

    fn book(&self, account: Account, total: Total) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(account).or_default() += total;
    }
}

/// A model whose calls stand in a [`Ledger`].
pub struct Metered<M> {
    name: Arc<str>,
    model: M,
    ledger: Ledger,
}

#[async_trait]
impl<M: ChatModel> ChatModel for Metered<M> {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn inner(&self) -> Option<&dyn ChatModel> {
        Some(&self.model)
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let outcome = self.model.chat(request, cx).await;
        let caller = cx.caller();
        let account = Account {
            project: caller.project.clone(),
            run: caller.run.clone(),
            path: caller.path.clone(),
            agent: caller.agent.clone(),
            model: self.name.clone(),
        };
        let total = match &outcome {
            Ok(response) => Total {
                calls: 1,
                failures: 0,
                unpriced: u64::from(response.cost.is_none()),
                usage: response.usage,
                cost: response.cost.unwrap_or_default(),
            },
            Err(_) => Total { failures: 1, ..Default::default() },
        };
        self.ledger.book(account, total);
        outcome
    }
}

#[async_trait]
impl<M: Probe> Probe for Metered<M> {
    async fn probe(&self) -> Result<(), Error> {
        self.model.probe().await
    }
}

impl<M: ChatModel> fmt::Debug for Metered<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metered").field("model", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use coral_core::Caller;

    use super::*;
    use crate::scripted::{Reply, ScriptedModel};

    #[tokio::test]
    async fn failures_and_unknown_prices_are_told_apart() {
        let ledger = Ledger::default();
        let model = ledger.meter(
            ScriptedModel::new()
                .named("m")
                .reply(Reply::text("a").usage(10, 2).cost(Usd::from_pico(5)))
                .reply(Reply::text("b").usage(1, 1))
                .reply(Error::invalid("request", "no")),
        );
        let cx = CallContext::new(Caller { project: "p".into(), run: "r".into(), ..Caller::agent("a") });
        for _ in 0..3 {
            let _ = model.chat(&ChatRequest::user("?"), &cx).await;
        }
        let usage = Usage { input_tokens: 11, output_tokens: 3, ..Default::default() };
        let expected = Total { calls: 2, failures: 1, unpriced: 1, usage, cost: Usd::from_pico(5) };
        assert_eq!(ledger.total(), expected);
        let account = ledger.accounts().into_keys().next().unwrap();
        assert_eq!(
            (&*account.project, &*account.run, &*account.agent, &*account.model),
            ("p", "r", "a", "m")
        );
        assert_eq!(Ledger::default().total(), Total::default());
    }
}
