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
//! # What is settled
//!
//! What the answer says that it used. A call that was refused before anything was done, for its rate, its form, its
//! key or a lost connection, counts as a call and costs nothing. Where nobody knows what was used, since the answer
//! broke off, no answer came in time, the step was stopped in the midst of it, or the process died, the **worst case**
//! is settled: a limit holds for what may have been spent, too. A call that is made again after that is reserved
//! and settled besides, but counts as one call.
//!
//! An intent records what is reserved, and an outcome what is settled, so that a run that is taken up has used
//! what it had used before.
//!
//! # Topping up
//!
//! A top-up raises every limit of the run by as much: its own, that of each step, and that of each step that begins
//! later. What is raised is the room, not a budget by name.
//!
//! # Time
//!
//! The time of a run's budget begins with the run, that of a step with the step's first attempt. Time between
//! processes counts. Of a fork, the time between the record that it was forked at and its own beginning does not.
//! When the time is up, what works under that budget is stopped, and nothing more begins under it.
//!
//! The worst case of a model call is the bytes of its request as input tokens (a token stands for at
//! least one byte of text) and the output tokens that it may give at the most, at the model's highest price for
//! each. A model whose price or output limit is not known is refused by a budget that counts what it would have
//! used: set the request's `max_output_tokens`, or give the model a price.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
use crate::event::{EffectKind, Event, Record, Seq, Spent};
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
    /// Milliseconds from the beginning of the run or the step, time between processes included.
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
    pub(crate) const ONE_CALL: Used = Used { usd: Usd::ZERO, tokens: 0, calls: 1, agents: 0 };

    /// What an effect may have used that was intended so and of which no outcome is recorded.
    pub(crate) fn of_intent(effect: EffectKind, reserved: Option<&Used>) -> Used {
        match (reserved, effect) {
            (Some(reserved), _) => *reserved,
            (None, EffectKind::Chat | EffectKind::Tool) => Used::ONE_CALL,
            (None, _) => Used::default(),
        }
    }

    pub(crate) fn plus(self, other: Used) -> Used {
        Used {
            usd: self.usd + other.usd,
            tokens: self.tokens.saturating_add(other.tokens),
            calls: self.calls.saturating_add(other.calls),
            agents: self.agents.saturating_add(other.agents),
        }
    }

    pub(crate) fn minus(self, other: Used) -> Used {
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
        spent.settled.as_deref().copied().unwrap_or_else(|| Used {
            usd: spent.cost.unwrap_or_default(),
            tokens: spent.usage.total_tokens(),
            calls: u64::from(spent.tries > 0),
            agents: 0,
        })
    }
}

impl Spent {
    /// Says that `used` is held against the budgets.
    pub(crate) fn settling(mut self, used: Used) -> Spent {
        self.settled = None;
        if Used::of_call(&self) != used {
            self.settled = Some(Box::new(used));
        }
        self
    }
}

/// One budget of the tree.
#[derive(Debug)]
struct Account {
    /// The step that it belongs to; empty for the run's own.
    path: Arc<str>,
    /// How deep that step is nested; 0 for the run's own.
    depth: u64,
    /// `None` is no limits: of most runs, and many may wait.
    limits: Option<Box<Budget>>,
    used: Used,
    reserved: Used,
    /// When its time began; `None` before that.
    began_ms: Option<u64>,
    /// Whether the driver has found its time to be up.
    is_late: bool,
}

/// No limits.
static UNLIMITED: Budget =
    Budget { usd: None, tokens: None, calls: None, agents: None, depth: None, wall_ms: None };

impl Account {
    fn limits(&self) -> &Budget {
        self.limits.as_deref().unwrap_or(&UNLIMITED)
    }

    /// The milliseconds of its time that have passed.
    fn elapsed_ms(&self, now_ms: u64) -> u64 {
        let elapsed_ms = self.began_ms.map_or(0, |began_ms| now_ms.saturating_sub(began_ms));
        let late_ms =
            self.limits().wall_ms.filter(|_| self.is_late).map_or(0, |limit| limit.saturating_add(1));
        elapsed_ms.max(late_ms)
    }

    fn covers(&self, path: &str) -> bool {
        covers(&self.path, path)
    }

    fn name(&self) -> &str {
        if self.path.is_empty() { "run" } else { &self.path }
    }

    fn check(&self, amount: Used, now_ms: u64) -> Result<(), Error> {
        self.check_time(now_ms)?;
        let name = self.name();
        let over = |what: &str, wanted: String, left: String| {
            Error::new(ErrorKind::Budget {
                budget: name.to_owned(),
                problem: format!("{what}: the next call may take {wanted}, left are {left}"),
            })
            .with_help("resume the run with a top-up")
        };
        let taken = self.used.plus(self.reserved);
        if let Some(limit) = self.limits().usd
            && taken.usd + amount.usd > limit
        {
            return Err(over("usd", amount.usd.to_string(), limit.saturating_sub(taken.usd).to_string()));
        }
        let counts = [
            ("tokens", self.limits().tokens, taken.tokens, amount.tokens),
            ("calls", self.limits().calls, taken.calls, amount.calls),
            ("agents", self.limits().agents, taken.agents, amount.agents),
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

    fn check_time(&self, now_ms: u64) -> Result<(), Error> {
        match self.limits().wall_ms {
            Some(limit) if self.elapsed_ms(now_ms) > limit => Err(self.out_of_time(limit)),
            _ => Ok(()),
        }
    }

    fn out_of_time(&self, limit: u64) -> Error {
        Error::new(ErrorKind::Budget {
            budget: self.name().to_owned(),
            problem: format!("wall_ms: its {limit} milliseconds are over"),
        })
        .with_help("resume the run with a top-up")
    }
}

/// Whether the budget of the step at `over` is one of the step at `path`; the empty path is the run's.
pub(crate) fn covers(over: &str, path: &str) -> bool {
    match path.strip_prefix(over) {
        Some(rest) => over.is_empty() || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

/// The gap of time in a fork: between the record that it was forked at and its own first one.
#[derive(Debug, Default)]
struct Fork {
    seq: Option<Seq>,
    at_ms: u64,
}

impl Fork {
    /// Takes note of a record, and leaves the gap out of all accounts.
    fn pass(&mut self, record: &Record, accounts: &mut [Account]) {
        let Some(seq) = self.seq.filter(|seq| record.seq >= *seq) else { return };
        if record.seq == seq {
            self.at_ms = record.at_ms;
            return;
        }
        self.seq = None;
        let gap = record.at_ms.saturating_sub(self.at_ms);
        for began_ms in accounts.iter_mut().filter_map(|account| account.began_ms.as_mut()) {
            *began_ms = began_ms.saturating_add(gap);
        }
    }
}

/// The budgets of one run, and what they have left.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accounts: Vec<Account>,
    /// What may be used by the effects that have no outcome yet, by their step and index.
    held: BTreeMap<(Arc<str>, u32), Used>,
    topped_up: Vec<Budget>,
    /// The accounts with a limit of time, by number, in the order in which their times began.
    timed: Vec<usize>,
    fork: Fork,
}

impl Ledger {
    /// Opens the budget of the run, which may have been forked off at a record of another.
    pub(crate) fn open(&mut self, budget: Budget, began_ms: u64, forked_at: Option<Seq>) {
        self.fork.seq = forked_at;
        let path: Arc<str> = "".into();
        self.open_step(path.clone(), 0, budget);
        self.begin_step(&path, began_ms);
    }

    /// Opens the budget of a step; one that is open stays as it is.
    pub(crate) fn open_step(&mut self, path: Arc<str>, depth: u64, mut limits: Budget) {
        let known = self.accounts.iter().any(|account| account.path == path);
        if !known && (!limits.is_unlimited() || path.is_empty()) {
            self.topped_up.iter().for_each(|more| limits.raise(more));
            let limits = (!limits.is_unlimited()).then(|| Box::new(limits));
            let (used, reserved) = (Used::default(), Used::default());
            let (began_ms, is_late) = (None, false);
            // Most runs have one budget, and many runs may wait.
            if self.accounts.is_empty() {
                self.accounts.reserve_exact(1);
            }
            self.accounts.push(Account { path, depth, limits, used, reserved, began_ms, is_late });
        }
    }

    /// Raises the limits of the run and of every step, of those too that begin later.
    fn top_up(&mut self, more: &Budget) {
        self.topped_up.push(more.clone());
        for account in &mut self.accounts {
            account.limits.iter_mut().for_each(|limits| limits.raise(more));
        }
    }

    fn begin_step(&mut self, path: &Arc<str>, at_ms: u64) {
        let mut accounts = self.accounts.iter_mut().enumerate();
        if let Some((at, account)) = accounts.find(|(_, account)| account.path == *path)
            && account.began_ms.is_none()
        {
            account.began_ms = Some(at_ms);
            self.timed.extend(account.limits().wall_ms.map(|_| at));
        }
    }

    /// Reserves `amount` for a call of the step at `path`.
    pub(crate) fn reserve(&mut self, path: &str, amount: Used, now_ms: u64) -> Result<(), Error> {
        for account in self.accounts.iter().filter(|account| account.covers(path)) {
            account.check(amount, now_ms)?;
        }
        for account in self.accounts.iter_mut().filter(|account| account.covers(path)) {
            account.reserved = account.reserved.plus(amount);
        }
        Ok(())
    }

    /// Checks that the time of the step at `path` is not up. Most steps have no limit, and need not know what time it is.
    pub(crate) fn check_time(&self, path: &str, now_ms: impl Fn() -> u64) -> Result<(), Error> {
        let accounts = self.accounts.iter().filter(|account| account.limits().wall_ms.is_some());
        accounts.filter(|account| account.covers(path)).try_for_each(|account| account.check_time(now_ms()))
    }

    /// How many budgets have a time that has begun.
    pub(crate) fn timed(&self) -> usize {
        self.timed.len()
    }

    /// Those of them after the first `known` whose time is not found to be up yet: the path of each, and when it is
    /// up, in milliseconds since the Unix epoch.
    pub(crate) fn deadlines(&self, known: usize) -> impl Iterator<Item = (&Arc<str>, u64)> {
        let accounts = self.timed.iter().skip(known).filter_map(|at| self.accounts.get(*at));
        accounts.filter(|account| !account.is_late).filter_map(|account| {
            let due_ms = account.began_ms?.saturating_add(account.limits().wall_ms?);
            Some((&account.path, due_ms))
        })
    }

    /// The time of the budget of `path` is up: nothing more begins under it. Gives what to fail with.
    pub(crate) fn end_time(&mut self, path: &str) -> Option<Error> {
        let account = self.accounts.iter_mut().find(|account| *account.path == *path)?;
        account.is_late = true;
        account.limits().wall_ms.map(|limit| account.out_of_time(limit))
    }

    /// Checks that steps may nest as deep as those inside of the step at `path`: the run's own are at
    /// depth 1.
    pub(crate) fn check_depth(&self, path: &str, depth: u64) -> Result<(), Error> {
        for account in self.accounts.iter().filter(|account| account.covers(path)) {
            if let Some(limit) = account.limits().depth
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

    /// What is held for an effect that has no outcome yet.
    pub(crate) fn held(&self, path: &Arc<str>, index: u32) -> Used {
        self.held.get(&(path.clone(), index)).copied().unwrap_or_default()
    }

    /// Holds `total` for an effect until its outcome is settled, in place of what was held for it and of what was
    /// `reserved` now.
    pub(crate) fn hold(&mut self, path: &Arc<str>, index: u32, reserved: Used, total: Used) {
        let place = (path.clone(), index);
        let before =
            if total == Used::default() { self.held.remove(&place) } else { self.held.insert(place, total) };
        let before = before.unwrap_or_default().plus(reserved);
        if before == total {
            return;
        }
        for account in self.accounts.iter_mut().filter(|account| account.covers(path)) {
            account.reserved = account.reserved.plus(total).minus(before);
        }
    }

    /// An effect is over and used so much in all.
    pub(crate) fn done(&mut self, path: &Arc<str>, index: u32, used: Used) {
        let held = self.held.remove(&(path.clone(), index)).unwrap_or_default();
        self.settle(path, held, used);
    }

    /// An attempt is over: what it left without an outcome may have been used.
    fn close(&mut self, path: &Arc<str>) {
        let places = (path.clone(), 0)..=(path.clone(), u32::MAX);
        let open: Vec<u32> = self.held.range(places).map(|((_, index), _)| *index).collect();
        for index in open {
            let held = self.held(path, index);
            self.done(path, index, held);
        }
    }

    /// Folds in what a record says of the budgets, but for what a step that runs says itself as it runs.
    pub(crate) fn apply(&mut self, record: &Record) {
        match &record.event {
            Event::BudgetToppedUp { more } => self.top_up(more),
            Event::StepStarted { path, .. } => self.begin_step(path, record.at_ms),
            Event::StepSucceeded { path, .. }
            | Event::StepFailed { path, .. }
            | Event::SentBack { path, .. } => self.close(path),
            Event::Migrated { restarted, .. } => restarted.iter().for_each(|path| self.close(path)),
            _ => {}
        }
        self.fork.pass(record, &mut self.accounts);
    }

    /// [`apply`](Self::apply) for a record of a process before, with what the step said.
    pub(crate) fn replay(&mut self, record: &Record) {
        match &record.event {
            Event::EffectIntended { path, index, effect, reserved, .. } => {
                let total = Used::of_intent(*effect, reserved.as_deref());
                self.hold(path, *index, Used::default(), total);
            }
            Event::EffectDone { path, index, spent, .. } => self.done(path, *index, Used::of_call(spent)),
            _ => {}
        }
        self.apply(record);
    }

    /// What the budgets of the step at `path` leave: the least of each limit.
    pub(crate) fn left(&self, path: &str, now_ms: u64) -> Budget {
        let mut left = Budget::default();
        for account in self.accounts.iter().filter(|account| account.covers(path)) {
            let (limits, taken) = (account.limits(), account.used.plus(account.reserved));
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
            least(&mut left.wall_ms, limits.wall_ms, account.elapsed_ms(now_ms));
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
            self.accounts.iter().any(|account| account.covers(path) && limit(account.limits()))
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
