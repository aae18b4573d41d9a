//! What the layers note about a call: events of the run's journal, read again by reports.

use coral_core::{CallContext, Usage, Usd};
use serde_json::{Value, json};

use crate::fitted::LeftOut;

/// A call was answered from the cache.
pub(crate) const CACHE_HIT: &str = "cache_hit";

pub(crate) fn cache_hit(cx: &CallContext, model: &str, cosine: Option<f32>, tokens: u64, saved: Usd) {
    let note = json!({
        "kind": if cosine.is_some() { "similar" } else { "equal" },
        "cosine": cosine,
        "model": model,
        "saved_tokens": tokens,
        "saved": saved,
    });
    cx.note(CACHE_HIT, note);
}

/// A router chose a model.
pub(crate) const MODEL_CHOSEN: &str = "model_chosen";

pub(crate) fn model_chosen(cx: &CallContext, choice: Value) {
    cx.note(MODEL_CHOSEN, choice);
}

/// A router went on to another model.
pub(crate) const MODEL_ESCALATED: &str = "model_escalated";

pub(crate) fn model_escalated(cx: &CallContext, from: &str, to: &str, problem: &str) {
    cx.note(MODEL_ESCALATED, json!({"from": from, "to": to, "problem": problem}));
}

/// What a routed call cost, and what it would have cost at the most expensive model that fits.
pub(crate) const MODEL_PAID: &str = "model_paid";

pub(crate) fn model_paid(cx: &CallContext, model: &str, cost: Usd, dearest: &str, dearest_cost: Usd) {
    let note = json!({
        "model": model,
        "cost": cost,
        "dearest": {"model": dearest, "cost": dearest_cost},
        "saved": dearest_cost.saturating_sub(cost),
    });
    cx.note(MODEL_PAID, note);
}

/// A call was paid for on behalf of one that then failed, and whose outcome can't say so.
pub(crate) const PAID_IN_VAIN: &str = "paid_in_vain";

pub(crate) fn paid_in_vain(cx: &CallContext, model: &str, usage: Usage, cost: Option<Usd>) {
    cx.note(PAID_IN_VAIN, json!({"model": model, "usage": usage, "cost": cost}));
}

/// An answer did not fit its schema, and the model was asked to mend it.
pub(crate) const ANSWER_REPAIRED: &str = "answer_repaired";

pub(crate) fn answer_repaired(cx: &CallContext, model: &str, problem: &str) {
    cx.note(ANSWER_REPAIRED, json!({"model": model, "problem": problem}));
}

/// Old turns of a conversation were left out.
pub(crate) const TURNS_LEFT_OUT: &str = "turns_left_out";

pub(crate) fn turns_left_out(cx: &CallContext, left: &LeftOut) {
    cx.note(TURNS_LEFT_OUT, json!(left));
}
