//! A budget for retries: however many steps there are, repeats stay a small share of the calls.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::call::CallContext;
use crate::error::{Error, ErrorKind};
use crate::model::{ChatModel, ChatRequest, ChatResponse};

/// How large a share of the calls may be repeats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryBudgetPolicy {
    /// Repeats that each hundred successful calls pay for.
    pub percent: u32,
    /// Repeats that are there at the start, and at the most.
    pub most: u32,
}

impl Default for RetryBudgetPolicy {
    fn default() -> Self {
        RetryBudgetPolicy { percent: 20, most: 50 }
    }
}

/// A budget for retries, shared by its clones.
///
/// # Why, when each call limits its own tries
/// A limit of four tries a call means that a provider in trouble gets four times the load from
/// everyone at once: the trouble feeds itself. What must be bounded is the share of repeats among
/// all calls. So each call that succeeds pays a little in, each failure that would be repeated
/// takes one out, and when nothing is left failures are final until calls succeed again.
#[derive(Clone, Debug)]
pub struct RetryBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    policy: RetryBudgetPolicy,
    /// In hundredths of a repeat.
    left: Mutex<u64>,
}

const REPEAT: u64 = 100;

impl RetryBudget {
    /// A budget under `policy`, full.
    pub fn new(policy: RetryBudgetPolicy) -> Self {
        let left = Mutex::new(u64::from(policy.most) * REPEAT);
        RetryBudget(Arc::new(Inner { policy, left }))
    }

    fn left(&self) -> MutexGuard<'_, u64> {
        self.0.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Repeats that are left, in whole.
    pub fn repeats_left(&self) -> u64 {
        *self.left() / REPEAT
    }

    fn pay_in(&self) {
        let mut left = self.left();
        *left = (*left + u64::from(self.0.policy.percent)).min(u64::from(self.0.policy.most) * REPEAT);
    }

    fn take(&self) -> bool {
        let mut left = self.left();
        match left.checked_sub(REPEAT) {
            Some(rest) => {
                *left = rest;
                true
            }
            None => false,
        }
    }

    /// Wraps a model, so that a failure which finds the budget empty is final. It goes outside of
    /// every other layer, next to the engine, which makes the repeats.
    pub fn wrap<M>(&self, inner: M) -> Budgeted<M> {
        Budgeted { budget: self.clone(), inner }
    }
}

/// A model whose transient failures draw on a [`RetryBudget`].
#[derive(Clone, Debug)]
pub struct Budgeted<M> {
    budget: RetryBudget,
    inner: M,
}

#[async_trait]
impl<M: ChatModel> ChatModel for Budgeted<M> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn inner(&self) -> Option<&dyn ChatModel> {
        Some(&self.inner)
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let result = self.inner.chat(request, cx).await;
        match &result {
            Ok(_) => self.budget.pay_in(),
            Err(error) if error.is_transient() && !self.budget.take() => {
                let problem =
                    format!("too many calls fail, and this one is not made again: {}", error.kind());
                return Err(Error::new(ErrorKind::Budget { budget: "retries".to_owned(), problem })
                    .with_help("resume the run when the model answers again"));
            }
            Err(_) => {}
        }
        result
    }
}
