//! Budgets: what a run may use, reserved before each call and settled after.
//!
//! # Why reserve, and not count
//!
//! A limit that is checked after spending is no limit: sixty-four agents that each look at the same
//! remaining dollar all see it, and all spend it. So before a call its **worst case** is reserved
//! against the budget of its step, of every step around that, and of the run; a call that does not fit
//! is not made. When the call is over, what it really used is settled and the rest given back. The sum
//! of what is settled and what is reserved never exceeds a limit, so what is settled never does.
//!
//! The worst case of a model call is the bytes of its request as input tokens (a token stands for at
//! least one byte of text) and the output tokens that it may give at the most, at the model's highest price for
//! each. A model whose price or output limit is not known is refused by a budget that counts what it would have
//! used: set the request's `max_output_tokens`, or give the model a price.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
use crate::event::Spent;
use crate::model::{ChatRequest, ModelInfo, Usage};
use crate::money::Usd;

/// What may be used at the most; `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Money.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd: Option<Usd>,
    /// Input and output tokens together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Model and tool calls together; one that is tried again counts once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// Attempts of agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agents: Option<u64>,
    /// How deep steps may nest: 1 for the steps of the workflow itself, one more for each sub-workflow, map,
    /// loop or route around.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u64>,
    /// Milliseconds from the run's beginning, time between processes included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
}

impl Budget {
    /// No limits.
    pub fn new() -> Self {
        Budget::default()
    }

    /// Limits the money, in dollars.
    #[must_use]
    pub fn usd(mut self, dollars: f64) -> Self {
        self.usd = Some(Usd::from_dollars(dollars));
        self
    }

    /// Limits the tokens.
    #[must_use]
    pub fn tokens(mut self, tokens: u64) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Limits the calls.
    #[must_use]
    pub fn calls(mut self, calls: u64) -> Self {
        self.calls = Some(calls);
        self
    }

    /// Limits the attempts of agents.
    #[must_use]
    pub fn agents(mut self, agents: u64) -> Self {
        self.agents = Some(agents);
        self
    }

    /// Limits how deep steps may nest.
    #[must_use]
    pub fn depth(mut self, depth: u64) -> Self {
        self.depth = Some(depth);
        self
    }

    /// Limits the time, in milliseconds.
    #[must_use]
    pub fn wall_ms(mut self, wall_ms: u64) -> Self {
        self.wall_ms = Some(wall_ms);
        self
    }

    pub(crate) fn is_unlimited(&self) -> bool {
        *self == Budget::default()
    }

    /// Raises each limit by that of `more`.
    fn raise(&mut self, more: &Budget) {
        let add = |limit: &mut Option<u64>, more: Option<u64>| {
            if let (Some(limit), Some(more)) = (limit, more) {
                *limit = limit.saturating_add(more);
            }
        };
        if let (Some(limit), Some(more)) = (&mut self.usd, more.usd) {
            *limit += more;
        }
        add(&mut self.tokens, more.tokens);
        add(&mut self.calls, more.calls);
        add(&mut self.agents, more.agents);
        add(&mut self.wall_ms, more.wall_ms);
        add(&mut self.depth, more.depth);
    }
}

/// An amount of each thing that is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Money.
    pub usd: Usd,
    /// Tokens.
    pub tokens: u64,
    /// Calls.
    pub calls: u64,
    /// Attempts of agents.
    pub agents: u64,
}

impl Used {
    fn plus(self, other: Used) -> Used {
        Used {
            usd: self.usd + other.usd,
            tokens: self.tokens.saturating_add(other.tokens),
            calls: self.calls.saturating_add(other.calls),
            agents: self.agents.saturating_add(other.agents),
        }
    }

    fn minus(self, other: Used) -> Used {
        Used {
            usd: self.usd.saturating_sub(other.usd),
            tokens: self.tokens.saturating_sub(other.tokens),
            calls: self.calls.saturating_sub(other.calls),
            agents: self.agents.saturating_sub(other.agents),
        }
    }

    /// What one effect used in the end. One that is no call, such as a clock reading, was never
    /// tried.
    pub(crate) fn of_call(spent: &Spent) -> Used {
        Used {
            usd: spent.cost.unwrap_or_default(),
            tokens: spent.usage.total_tokens(),
            calls: u64::from(spent.tries > 0),
            agents: 0,
        }
    }
}

/// One budget of the tree.
#[derive(Debug)]
struct Account {
    /// The step that it belongs to; empty for the run's own.
    path: Arc<str>,
    /// How deep that step is nested; 0 for the run's own.
    depth: u64,
    limits: Budget,
    used: Used,
    reserved: Used,
}

impl Account {
    fn covers(&self, path: &str) -> bool {
        match path.strip_prefix(&*self.path) {
            Some(rest) => self.path.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }

    fn name(&self) -> &str {
        if self.path.is_empty() { "run" } else { &self.path }
    }

    fn check(&self, amount: Used, elapsed_ms: u64) -> Result<(), Error> {
        let name = self.name();
        let over = |what: &str, wanted: String, left: String| {
            Error::new(ErrorKind::Budget {
                budget: name.to_owned(),
                problem: format!("{what}: the next call may take {wanted}, left are {left}"),
            })
            .with_help("resume the run with a top-up")
        };
        let taken = self.used.plus(self.reserved);
        if let Some(limit) = self.limits.usd
            && taken.usd + amount.usd > limit
        {
            return Err(over("usd", amount.usd.to_string(), limit.saturating_sub(taken.usd).to_string()));
        }
        let counts = [
            ("tokens", self.limits.tokens, taken.tokens, amount.tokens),
            ("calls", self.limits.calls, taken.calls, amount.calls),
            ("agents", self.limits.agents, taken.agents, amount.agents),
            ("wall_ms", self.limits.wall_ms, elapsed_ms, 0),
        ];
        for (what, limit, taken, amount) in counts {
            if let Some(limit) = limit
                && taken.saturating_add(amount) > limit
            {
                return Err(over(what, amount.to_string(), limit.saturating_sub(taken).to_string()));
            }
        }
        Ok(())
    }
}

/// The budgets of one run, and what they have left.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accounts: Vec<Account>,
    began_ms: u64,
}

impl Ledger {
    /// Opens the budget of the run.
    pub(crate) fn open(&mut self, budget: Budget, began_ms: u64) {
        self.began_ms = began_ms;
        self.open_step("".into(), 0, budget);
    }

    /// Opens the budget of a step; one that is open stays as it is.
    pub(crate) fn open_step(&mut self, path: Arc<str>, depth: u64, limits: Budget) {
        let known = self.accounts.iter().any(|account| account.path == path);
        if !known && (!limits.is_unlimited() || path.is_empty()) {
            let (used, reserved) = (Used::default(), Used::default());
            self.accounts.push(Account { path, depth, limits, used, reserved });
        }
    }

    /// Raises the limits of the run and of every step.
    pub(crate) fn top_up(&mut self, more: &Budget) {
        for account in &mut self.accounts {
            account.limits.raise(more);
        }
    }

    /// Reserves `amount` for a call of the step at `path`.
    pub(crate) fn reserve(&mut self, path: &str, amount: Used, now_ms: u64) -> Result<(), Error> {
        let elapsed_ms = now_ms.saturating_sub(self.began_ms);
        for account in self.accounts.iter().filter(|account| account.covers(path)) {
            account.check(amount, elapsed_ms)?;
        }
        for account in self.accounts.iter_mut().filter(|account| account.covers(path)) {
            account.reserved = account.reserved.plus(amount);
        }
        Ok(())
    }

    /// Checks that steps may nest as deep as those inside of the step at `path`: the run's own are at
    /// depth 1.
    pub(crate) fn check_depth(&self, path: &str, depth: u64) -> Result<(), Error> {
        for account in self.accounts.iter().filter(|account| account.covers(path)) {
            if let Some(limit) = account.limits.depth
                && depth.saturating_sub(account.depth) > limit
            {
                return Err(Error::new(ErrorKind::Budget {
                    budget: account.name().to_owned(),
                    problem: format!("depth: steps inside of `{path}` would nest deeper than {limit}"),
                })
                .with_help("resume the run with a top-up"));
            }
        }
        Ok(())
    }

    /// Gives back what was reserved, and takes what was used.
    pub(crate) fn settle(&mut self, path: &str, reserved: Used, used: Used) {
        for account in self.accounts.iter_mut().filter(|account| account.covers(path)) {
            account.reserved = account.reserved.minus(reserved);
            account.used = account.used.plus(used);
        }
    }

    /// What the budgets of the step at `path` leave: the least of each limit.
    pub(crate) fn left(&self, path: &str, now_ms: u64) -> Budget {
        let elapsed_ms = now_ms.saturating_sub(self.began_ms);
        let mut left = Budget::default();
        for account in self.accounts.iter().filter(|account| account.covers(path)) {
            let (limits, taken) = (&account.limits, account.used.plus(account.reserved));
            if let Some(limit) = limits.usd {
                let rest = limit.saturating_sub(taken.usd);
                left.usd = Some(left.usd.map_or(rest, |least| least.min(rest)));
            }
            let least = |least: &mut Option<u64>, limit: Option<u64>, taken: u64| {
                let rest = limit.map(|limit| limit.saturating_sub(taken));
                *least = (*least).into_iter().chain(rest).min();
            };
            least(&mut left.tokens, limits.tokens, taken.tokens);
            least(&mut left.calls, limits.calls, taken.calls);
            least(&mut left.agents, limits.agents, taken.agents);
            least(&mut left.wall_ms, limits.wall_ms, elapsed_ms);
        }
        left
    }

    /// What the run has used so far, as settled.
    pub(crate) fn used(&self) -> Used {
        self.accounts.first().map(|run| run.used).unwrap_or_default()
    }

    /// The worst case of a model call, in what the budgets of `path` limit.
    pub(crate) fn worst_case(
        &self,
        path: &str,
        request: &ChatRequest,
        info: &ModelInfo,
    ) -> Result<Used, Error> {
        let mut worst = Used { calls: 1, ..Used::default() };
        let limited = |limit: fn(&Budget) -> bool| {
            self.accounts.iter().any(|account| account.covers(path) && limit(&account.limits))
        };
        let (usd, tokens) =
            (limited(|limits| limits.usd.is_some()), limited(|limits| limits.tokens.is_some()));
        if info.offline || !(usd || tokens) {
            return Ok(worst);
        }
        let unknown = |problem: &str, help: &str| {
            Error::new(ErrorKind::Budget { budget: "run".to_owned(), problem: problem.to_owned() })
                .with_help(help)
        };
        let output_tokens = request
            .max_output_tokens
            .map(u64::from)
            .into_iter()
            .chain(info.max_output_tokens)
            .min()
            .ok_or_else(|| {
                unknown(
                    "how much the model may answer is not known",
                    "set `max_output_tokens` of the request",
                )
            })?;
        let input_tokens = serde_json::to_vec(request).map_or(u64::MAX, |bytes| bytes.len() as u64);
        worst.tokens = input_tokens.saturating_add(output_tokens);
        if usd {
            let mut price = info.price_at(input_tokens).ok_or_else(|| {
                unknown(
                    "the model's price is not known",
                    "give the model a price, or limit tokens instead of money",
                )
            })?;
            price.input = price.input.max(price.cache_write);
            worst.usd = price.cost(&Usage { input_tokens, output_tokens, ..Usage::default() });
        }
        Ok(worst)
    }
}
