//! What a call may still use, where one call of a layer is several of a model.

use coral_core::{Budget, CallContext, ChatRequest, ChatResponse, ModelInfo, Price, Usage, Usd};

/// What is left of the budget of a call.
///
/// The engine reserves the worst case of one call, in the terms in which it is reckoned here too: the bytes of the
/// request as its tokens, and the limit of output. What the first try did not use of it is there for the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purse {
    usd: Option<Usd>,
    tokens: Option<u64>,
}

/// Output tokens that suffice where neither the request sets a limit nor the budget allows the model's own.
pub(crate) const ROOM: u64 = 8_000;

impl Purse {
    pub(crate) fn of(cx: &CallContext) -> Self {
        let budget = cx.budget();
        Purse { usd: budget.usd, tokens: budget.tokens }
    }

    /// What is left, where money is limited.
    pub(crate) fn usd(&self) -> Option<Usd> {
        self.usd
    }

    /// What is left, where tokens are limited.
    pub(crate) fn tokens(&self) -> Option<u64> {
        self.tokens
    }

    /// The terms of a call that has what is left: a layer further inside may make several calls of it, too.
    pub(crate) fn within(&self, cx: CallContext) -> CallContext {
        if self.usd.is_none() && self.tokens.is_none() {
            return cx;
        }
        let budget = Budget { usd: self.usd, tokens: self.tokens, ..cx.budget().clone() };
        cx.with_budget(budget)
    }

    /// Takes out the worst case of a call of `request`. `None` if it does not fit, or is not known.
    pub(crate) fn without(mut self, info: &ModelInfo, request: &ChatRequest) -> Option<Self> {
        if info.offline {
            return Some(self);
        }
        let input_tokens = bytes_of(request);
        let output_tokens = match self.output_limit(info, request)? {
            Some(limit) => Some(u64::from(limit)),
            None => limit_of(info, request),
        };
        let Some(output_tokens) = output_tokens else {
            return (self.usd.is_none() && self.tokens.is_none()).then_some(self);
        };
        let (tokens, usd) = worst(info, input_tokens, output_tokens);
        self.tokens = self.tokens.map(|left| left.saturating_sub(tokens));
        self.usd = self.usd.map(|left| left.saturating_sub(usd.unwrap_or_default()));
        Some(self)
    }

    /// Takes out what a call used.
    pub(crate) fn spend(&mut self, response: &ChatResponse) {
        self.usd = self.usd.map(|left| left.saturating_sub(response.cost.unwrap_or_default()));
        self.tokens = self.tokens.map(|left| left.saturating_sub(response.usage.total_tokens()));
    }

    /// The limit of output with which a call of `request` stays within the budget: `Some(None)` if it needs none of
    /// its own, `None` if it does not fit. A smaller limit than the model's is set only where the request has none.
    #[expect(clippy::option_option, reason = "three answers: as it is, with a limit, not at all")]
    pub(crate) fn output_limit(&self, info: &ModelInfo, request: &ChatRequest) -> Option<Option<u32>> {
        // What answers offline is reserved nothing, and uses nothing.
        if info.offline || (self.usd.is_none() && self.tokens.is_none()) {
            return Some(None);
        }
        let input_tokens = bytes_of(request);
        let own = limit_of(info, request);
        if own.is_some_and(|output| self.holds(info, input_tokens, output)) {
            return Some(None);
        }
        let smaller = ROOM.min(own.unwrap_or(ROOM));
        let may_be_less = request.max_output_tokens.is_none() && self.holds(info, input_tokens, smaller);
        may_be_less.then(|| u32::try_from(smaller).ok())
    }

    /// The first model at a price that pays for a call of the second one, too, with at most [`ROOM`] output tokens.
    /// `None` if the budget does not limit money, or does not hold both.
    pub(crate) fn with_second(
        &self,
        first: &ModelInfo,
        second: &ModelInfo,
        request: &ChatRequest,
    ) -> Option<ModelInfo> {
        let usd = self.usd?;
        let input_tokens = bytes_of(request);
        let (output, room) = (limit_of(first, request)?.max(1), limit_of(second, request)?.min(ROOM));
        let (one, two) = (first.price_at(input_tokens)?, second.price_at(input_tokens)?);
        let both = Price {
            input: one.input.max(one.cache_write) + two.input.max(two.cache_write),
            // A price has six decimals; the next one above the exact share is enough.
            output: one.output + (two.output * room as f64 / output as f64 * 1e6).ceil() / 1e6,
            cache_read: one.cache_read + two.cache_read,
            cache_write: 0.0,
        };
        let worst = Usage { input_tokens, output_tokens: output, ..Usage::default() };
        let mut info = first.clone();
        (info.price, info.long_input) = (Some(both), None);
        (both.cost(&worst) <= usd).then_some(info)
    }

    fn holds(&self, info: &ModelInfo, input_tokens: u64, output_tokens: u64) -> bool {
        let (tokens, usd) = worst(info, input_tokens, output_tokens);
        self.tokens.is_none_or(|left| tokens <= left)
            && self.usd.is_none_or(|left| usd.is_some_and(|usd| usd <= left))
    }
}

fn bytes_of(request: &ChatRequest) -> u64 {
    serde_json::to_vec(request).map_or(u64::MAX, |bytes| bytes.len() as u64)
}

/// The limit of output, where there is one.
fn limit_of(info: &ModelInfo, request: &ChatRequest) -> Option<u64> {
    request.max_output_tokens.map(u64::from).into_iter().chain(info.max_output_tokens).min()
}

/// What a call uses at the most, and what that costs where the price is known.
fn worst(info: &ModelInfo, input_tokens: u64, output_tokens: u64) -> (u64, Option<Usd>) {
    let usd = info.price_at(input_tokens).map(|mut price| {
        price.input = price.input.max(price.cache_write);
        price.cost(&Usage { input_tokens, output_tokens, ..Usage::default() })
    });
    (input_tokens.saturating_add(output_tokens), usd)
}
