//! What a router decided, and what came of it.

use std::collections::BTreeMap;

use coral_core::{Tier, Usage, Usd};
use serde::Serialize;
use serde_json::{Value, json};

use super::Strategy;

/// Why a [`Router`](super::Router) chose a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Choice {
    /// The model that is asked first.
    pub model: String,
    /// The models that are asked after it, should it fail, in this order.
    pub next: Vec<String>,
    /// What was preferred among the models that fit.
    pub strategy: Strategy,
    /// Why, in one sentence.
    pub reason: String,
    /// The tier that the work needs at the least.
    pub tier: Tier,
    /// Tokens expected: input as an upper estimate, output as asked for or assumed.
    pub expected: Usage,
    /// What the call is expected to cost, where the price is known.
    pub cost: Option<Usd>,
    /// How long it is expected to take, in milliseconds.
    pub expected_ms: u64,
    /// The limit of output tokens that the budget sets, where it sets one.
    pub output_limit: Option<u32>,
    /// The most expensive model that fits, and what the call would cost there.
    pub dearest: Option<(String, Usd)>,
    /// The models that do not fit, each with the reason.
    pub refused: Vec<(String, String)>,
}

impl Choice {
    /// The choice as it is noted: the refused models by reason, since many share one.
    pub(super) fn as_note(&self) -> Value {
        let mut refused: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (model, reason) in &self.refused {
            refused.entry(reason).or_default().push(model);
        }
        let dearest = self.dearest.as_ref().map(|(model, cost)| json!({"model": model, "cost": cost}));
        json!({
            "model": self.model,
            "next": self.next,
            "strategy": self.strategy,
            "reason": self.reason,
            "tier": self.tier,
            "expected": {
                "input_tokens": self.expected.input_tokens,
                "output_tokens": self.expected.output_tokens,
                "cost": self.cost,
                "ms": self.expected_ms,
            },
            "output_limit": self.output_limit,
            "dearest": dearest,
            "refused": refused,
        })
    }
}

/// What a [`Router`](super::Router) spent, and what the most expensive model that fits would have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Savings {
    /// Calls that were answered.
    pub calls: u64,
    /// What they cost, tries that were no good included.
    pub spent: Usd,
    /// What the same tokens would have cost at the most expensive model that fits.
    pub dearest: Usd,
}

impl Savings {
    /// The difference.
    pub fn saved(&self) -> Usd {
        self.dearest.saturating_sub(self.spent)
    }
}
