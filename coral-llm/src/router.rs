//! Chooses a model per call, says why, and goes to the next one when an answer is no good.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{
    CallContext, Caller, ChatModel, ChatRequest, ChatResponse, Error, ErrorKind, ModelFault, ModelInfo,
    ModelNeeds, StopReason, Tier, TokenCounter, UpperEstimate, Usage, Usd,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::catalogue::CatalogueEntry;
use crate::note;
use crate::purse::Purse;
use crate::relay::{Relay, added, tell_whole};
use crate::repaired::{Fit, fit};

mod choice;
mod demands;
mod pace;

pub use choice::{Choice, Savings};
use demands::{Demands, next_tier};
use pace::Pace;

/// What a [`Router`] prefers among the models that fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Strategy {
    /// The least that the call is expected to cost.
    #[default]
    Cheapest,
    /// The highest tier of which a call surely stays within what the run's budget leaves and the limit per call allows,
    /// the cheaper one among equals.
    Best,
    /// The one that is expected to answer first, by how long its last calls took, or by the catalogue before there were
    /// any; the cheaper one among equals.
    Fastest,
}

type Validator = Arc<dyn Fn(&ChatRequest, &ChatResponse) -> Result<(), String> + Send + Sync>;
type Listener = Arc<dyn Fn(&Caller, &Choice) + Send + Sync>;

struct Route {
    name: String,
    entry: CatalogueEntry,
    info: ModelInfo,
    model: Arc<dyn ChatModel>,
    pace: Pace,
    /// Until when its rate is used up, as it said itself.
    rests_until: Mutex<Option<Instant>>,
}

/// How long a model rests whose rate is used up, where it does not say.
const REST: Duration = Duration::from_secs(10);

impl Route {
    fn rests(&self) -> bool {
        let until = *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| until > Instant::now())
    }

    /// Notes how a call ended: a model whose rate is used up is asked after all others until it is not.
    fn settle(&self, outcome: &Result<ChatResponse, Error>) {
        let limited =
            |error: &&Error| matches!(error.kind(), ErrorKind::Model { fault: ModelFault::RateLimited, .. });
        let rest = outcome
            .as_ref()
            .err()
            .filter(limited)
            .map(|error| Instant::now() + error.retry_after_ms().map_or(REST, Duration::from_millis));
        if rest.is_some() || outcome.is_ok() {
            *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = rest;
        }
    }
}

/// A model that may answer a call.
struct Candidate<'a> {
    route: &'a Route,
    /// The place of the route among all.
    place: usize,
    /// What the call is expected to cost.
    cost: Option<Usd>,
    expected_ms: u64,
    rests: bool,
    /// The limit of output that keeps the call within the budget.
    output_limit: Option<u32>,
}

/// Chooses a model per call, says why, and goes to the next one when an answer is no good.
///
/// What a call needs is read from the request (tools, images, a schema, its size) and from the [`ModelNeeds`] of the
/// agent that calls, which the engine brings along; [`for_agent`](Router::for_agent) puts others in their place. The
/// capability `low_latency` asks for the fastest model that fits. The tier that an agent declares holds, raised by one
/// for work that looks very hard: long input, many tools, a long conversation. Where none is declared, the effort asked
/// for and these signs decide. A request that names a model gets that model, whatever its tier, or an error that says
/// why it can't do the work.
///
/// Only models are chosen of which the call surely stays within what the run's budget leaves; where their own limit of
/// output is too much for that, the call has a smaller one.
///
/// A choice is final once something was heard of its answer. Until then the next model is asked when the endpoint
/// fails (one whose rate is used up comes after all others until it says it is not), when the request does not fit, or
/// when the answer is no good: it was refused, or it does not fit the schema
/// that was asked for (or fails the [`validator`](Router::validator)); then models of a lower tier are passed over.
/// What all tries used and cost is counted in the response.
///
/// In a run every choice is an event, noted as `model_chosen` with the candidates and why others were refused; so is
/// each step to the next model, as `model_escalated`, and what the call cost and saved, as `model_paid`.
///
/// ```
/// use coral_core::{CallContext, ChatRequest, ModelNeeds, Tier};
/// use coral_llm::{Catalogue, Router, ScriptedModel};
///
/// # fn main() -> Result<(), coral_core::Error> {
/// let mut router = Router::new();
/// for entry in &Catalogue::builtin().models {
///     router = router.route(entry.clone(), ScriptedModel::new().otherwise(|_| "ok"));
/// }
/// // In a run the engine says what the agent that calls needs.
/// let of = |tier| CallContext::default().with_needs(ModelNeeds { tier, ..Default::default() });
///
/// let request = ChatRequest::user("Design it.");
/// let strong = router.choose(&request, &of(Tier::Strong))?;
/// let cheap = router.choose(&request, &of(Tier::Basic))?;
/// assert_eq!(strong.tier, Tier::Strong);
/// assert!(cheap.cost < strong.cost, "{} {}", cheap.reason, strong.reason);
/// # Ok(()) }
/// ```
#[derive(Default)]
pub struct Router {
    routes: Vec<Route>,
    strategy: Strategy,
    agents: BTreeMap<String, ModelNeeds>,
    strategies: BTreeMap<String, Strategy>,
    max_cost: Option<Usd>,
    allow_unpriced: bool,
    hold_back: bool,
    validator: Option<Validator>,
    listener: Option<Listener>,
    counter: Option<Arc<dyn TokenCounter>>,
    savings: Mutex<Savings>,
}

impl Router {
    /// A router without models.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a model with what is known of it.
    #[must_use]
    pub fn route(mut self, entry: CatalogueEntry, model: impl ChatModel + 'static) -> Self {
        let (name, mut info) = (entry.name(), entry.info());
        info.offline = model.info().offline;
        self.routes.push(Route {
            name,
            info,
            entry,
            model: Arc::new(model),
            pace: Pace::default(),
            rests_until: Mutex::default(),
        });
        self
    }

    /// Sets what to prefer.
    #[must_use]
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Says what to prefer for one agent.
    #[must_use]
    pub fn strategy_for(mut self, agent: impl Into<String>, strategy: Strategy) -> Self {
        self.strategies.insert(agent.into(), strategy);
        self
    }

    /// Says what an agent needs of a model, in place of what its own definition says: a tier, capabilities, or one
    /// model by name.
    #[must_use]
    pub fn for_agent(mut self, agent: impl Into<String>, needs: ModelNeeds) -> Self {
        self.agents.insert(agent.into(), needs);
        self
    }

    /// Refuses models at which one call is expected to cost more.
    #[must_use]
    pub fn max_cost_per_call(mut self, max: Usd) -> Self {
        self.max_cost = Some(max);
        self
    }

    /// Lets models without a known price be chosen, after all others.
    #[must_use]
    pub fn allow_unknown_prices(mut self) -> Self {
        self.allow_unpriced = true;
        self
    }

    /// Keeps answers that are to fit a schema from the listener until they were judged, so that the next tier may
    /// answer in their place although somebody listens.
    #[must_use]
    pub fn hold_back(mut self) -> Self {
        self.hold_back = true;
        self
    }

    /// Counts the tokens of requests by `counter`, such as the tokenizer of the models, in place of [`UpperEstimate`].
    #[must_use]
    pub fn counter(mut self, counter: impl TokenCounter + 'static) -> Self {
        self.counter = Some(Arc::new(counter));
        self
    }

    /// Judges answers; one that is no good goes to the next tier.
    #[must_use]
    pub fn validator(
        mut self,
        validator: impl Fn(&ChatRequest, &ChatResponse) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.validator = Some(Arc::new(validator));
        self
    }

    /// Hears of every choice before the call. `tracing` hears of it too, at `coral_llm::router`.
    #[must_use]
    pub fn on_choice(mut self, listener: impl Fn(&Caller, &Choice) + Send + Sync + 'static) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    /// What was spent and saved so far.
    pub fn savings(&self) -> Savings {
        *self.savings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses a model for a call, and explains it. Asks nobody.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if the request names a model that is not routed to;
    /// [`Invalid`](ErrorKind::Invalid) if no model fits, with the reason for each.
    pub fn choose(&self, request: &ChatRequest, cx: &CallContext) -> Result<Choice, Error> {
        self.ranked(request, cx).map(|(choice, _)| choice)
    }

    fn ranked(&self, request: &ChatRequest, cx: &CallContext) -> Result<(Choice, Vec<Candidate<'_>>), Error> {
        let agent = &*cx.caller().agent;
        let counter = self.counter.as_deref().unwrap_or(&UpperEstimate);
        let demands = Demands::of(request, self.agents.get(agent).or(cx.needs()), counter, cx);
        let strategy = demands.strategy(self.strategies.get(agent).copied(), self.strategy);
        let mut refused = Vec::new();
        let mut fitting = Vec::new();
        // What could do the work, were there money enough: what savings are reckoned against.
        let mut dearest: Option<(&Route, Usd)> = None;
        for (place, route) in self.named(demands.named)? {
            let candidate = self.candidate(place, route, &demands).and_then(|mut candidate| {
                if let Some(cost) =
                    candidate.cost.filter(|cost| dearest.is_none_or(|(_, most)| *cost >= most))
                {
                    dearest = Some((route, cost));
                }
                candidate.output_limit = demands.within_budget(&route.info)?;
                Ok(candidate)
            });
            match candidate {
                Ok(candidate) => fitting.push(candidate),
                Err(reason) => refused.push((route.name.clone(), reason)),
            }
        }
        // An unknown price comes after every known one.
        let price = |candidate: &Candidate<'_>| (candidate.cost.is_none(), candidate.cost);
        fitting.sort_by(|a, b| {
            let by_price = price(a).cmp(&price(b));
            let by_tier = b.route.entry.tier.cmp(&a.route.entry.tier);
            let preferred = match strategy {
                Strategy::Cheapest => by_price.then(by_tier),
                Strategy::Best => by_tier.then(by_price),
                Strategy::Fastest => a.expected_ms.cmp(&b.expected_ms).then(by_price),
            };
            a.rests.cmp(&b.rests).then(preferred).then_with(|| a.route.name.cmp(&b.route.name))
        });
        let Some(first) = fitting.first() else {
            let reasons: Vec<String> =
                refused.iter().map(|(name, reason)| format!("{name} {reason}")).collect();
            return Err(Error::invalid("model choice", format!("no model fits: {}", reasons.join("; ")))
                .with_help("route to a model that does, or raise the budget or the limit per call"));
        };
        let preferred = match (demands.named, strategy) {
            (Some(name), _) => format!("`{name}` was asked for by name"),
            (None, Strategy::Cheapest) => "the cheapest that fits".to_owned(),
            (None, Strategy::Best) => "the best that the budget and the limit per call allow".to_owned(),
            (None, Strategy::Fastest) => "the fastest that fits".to_owned(),
        };
        let resting: Vec<&str> = fitting.iter().filter(|c| c.rests).map(|c| c.route.name.as_str()).collect();
        let rest = if resting.is_empty() { String::new() } else { format!("; {} rests", resting.join(", ")) };
        let choice = Choice {
            model: first.route.name.clone(),
            next: fitting.iter().skip(1).map(|next| next.route.name.clone()).collect(),
            strategy,
            reason: format!(
                "{preferred}, of {} that do and {} that do not; the work needs {demands}{rest}",
                fitting.len(),
                refused.len()
            ),
            tier: demands.tier,
            expected: demands.expected,
            cost: first.cost,
            expected_ms: first.expected_ms,
            output_limit: first.output_limit,
            dearest: dearest.map(|(route, cost)| (route.name.clone(), cost)),
            refused,
        };
        Ok((choice, fitting))
    }

    /// The routes to look at: those of the name that is asked for, or all.
    fn named(&self, name: Option<&str>) -> Result<Vec<(usize, &Route)>, Error> {
        let asked = |route: &Route| name.is_none_or(|name| name == route.name || name == route.entry.id);
        let routes: Vec<(usize, &Route)> =
            self.routes.iter().enumerate().filter(|(_, route)| asked(route)).collect();
        match name {
            Some(name) if routes.is_empty() => Err(Error::not_found(
                "routed model",
                name,
                self.routes.iter().map(|route| route.name.as_str()),
            )),
            _ => Ok(routes),
        }
    }

    /// What a call of a model is expected to cost and take, or why the model does not fit.
    fn candidate<'a>(
        &self,
        place: usize,
        route: &'a Route,
        demands: &Demands<'_>,
    ) -> Result<Candidate<'a>, String> {
        let cost = route.info.cost(&demands.expected);
        if let Some(reason) = demands.refusal(route) {
            return Err(reason);
        }
        match (cost, self.max_cost) {
            (None, _) if !self.allow_unpriced => return Err("has no known price".to_owned()),
            (Some(cost), Some(max)) if cost > max => return Err(format!("would cost {cost}")),
            _ => {}
        }
        let (expected_ms, _) = route.pace.expect_ms(demands.expected.output_tokens, route.entry.speed);
        Ok(Candidate { route, place, cost, expected_ms, rests: route.rests(), output_limit: None })
    }

    fn judge(&self, request: &ChatRequest, response: &ChatResponse) -> Result<(), String> {
        if response.stop == StopReason::Refusal {
            return Err("the model refused".to_owned());
        }
        match &self.validator {
            Some(validator) => validator(request, response),
            None => match fit(request, response) {
                Fit::No(problem) => Err(format!("the answer does not fit: {problem}")),
                Fit::Yes | Fit::Part(_) => Ok(()),
            },
        }
    }

    /// Counts and notes what a call cost, and what the most expensive model that fits would have cost for the one answer
    /// that came of it, which used `last`.
    fn settle(&self, response: &ChatResponse, last: Usage, choice: &Choice, cx: &CallContext) {
        let dearest = choice.dearest.as_ref().map_or("", |(name, _)| name);
        let route = self.routes.iter().find(|route| route.name == dearest);
        let most = route.and_then(|route| route.info.cost(&last)).unwrap_or_default();
        let spent = response.cost.unwrap_or_default();
        note::model_paid(cx, &response.model, spent, dearest, most);
        let mut savings = self.savings.lock().unwrap_or_else(PoisonError::into_inner);
        savings.calls += 1;
        savings.spent += spent;
        savings.dearest += most;
    }
}

/// Whether another model may answer what this one could not.
fn is_worth_another(error: &Error) -> bool {
    let ErrorKind::Model { fault, .. } = error.kind() else { return false };
    // What may have been done and paid is not bought again unasked.
    !matches!(
        fault,
        ModelFault::InvalidRequest | ModelFault::Timeout | ModelFault::Truncated | ModelFault::Malformed
    )
}

#[async_trait]
impl ChatModel for Router {
    fn name(&self) -> &str {
        "router"
    }

    /// The bounds that hold for whichever model is chosen: the largest context, the highest prices.
    fn info(&self) -> ModelInfo {
        let infos = self.routes.iter().map(|route| &route.info);
        let mut info = self.routes.first().map(|route| route.info.clone()).unwrap_or_default();
        info = infos.fold(info, |worst, other| worst.at_worst(other));
        info.context_tokens = self.routes.iter().map(|route| route.entry.context_tokens).max();
        info.offline = !self.routes.is_empty() && self.routes.iter().all(|route| route.info.offline);
        info
    }

    /// The model that would be chosen, at the price of its call and, where the budget leaves enough, of one of the next
    /// tier. Further ones have what these leave of the reservation.
    fn info_for(&self, request: &ChatRequest, cx: &CallContext) -> ModelInfo {
        let Ok((_, candidates)) = self.ranked(request, cx) else { return self.info() };
        let Some(first) = candidates.first() else { return self.info() };
        let mut info = first.route.info.clone();
        if let Some(limit) = first.output_limit {
            info.max_output_tokens = Some(limit.into());
        }
        // Where there is money for it, the answer of the next tier is reserved, too.
        let least = next_tier(first.route.entry.tier);
        let next = candidates.iter().skip(1).find(|next| next.route.entry.tier >= least);
        match next.and_then(|next| Purse::of(cx).with_second(&info, &next.route.info, request)) {
            Some(both) => both,
            None => info,
        }
    }

    /// Those of all models, and what decides between them for this caller.
    fn identity(&self, cx: &CallContext) -> Cow<'_, str> {
        let agent = &*cx.caller().agent;
        let models: Vec<Cow<'_, str>> = self.routes.iter().map(|route| route.model.identity(cx)).collect();
        let needs = self.agents.get(agent).or(cx.needs());
        let strategy = self.strategies.get(agent).unwrap_or(&self.strategy);
        let decides = (needs, strategy, self.max_cost, self.allow_unpriced);
        format!("router {} {}", models.join(" or "), serde_json::json!(decides)).into()
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let (choice, candidates) = self.ranked(request, cx)?;
        tracing::info!(
            agent = %cx.caller().agent, model = %choice.model, reason = %choice.reason,
            cost = choice.cost.map(Usd::as_dollars), "model chosen"
        );
        note::model_chosen(cx, choice.as_note());
        if let Some(listener) = &self.listener {
            listener(cx.caller(), &choice);
        }
        let held_back = self.hold_back && request.output.is_some();
        let relay = if held_back { Relay::new(cx).unheard() } else { Relay::new(cx) };
        let mut purse = Purse::of(cx);
        let mut spent = (Usage::default(), None);
        let mut least = Tier::Basic;
        let mut answer: Option<ChatResponse> = None;
        let mut failure: Option<Error> = None;
        let mut before: Option<(&str, String)> = None;
        for Candidate { route, place, .. } in &candidates {
            if route.entry.tier < least {
                continue;
            }
            // The first was chosen within the budget; what it did not use is there for the next.
            let Some(limit) = purse.output_limit(&route.info, request) else { continue };
            if let Some((from, problem)) = before.take() {
                tracing::warn!(model = %from, next = %route.name, %problem, "the next model is asked");
                note::model_escalated(cx, from, &route.name, &problem);
            }
            let mut asked = ChatRequest { model: None, ..request.clone() };
            asked.max_output_tokens = limit.or(request.max_output_tokens);
            let began = Instant::now();
            let terms = purse.within(relay.next_as("model", *place));
            let outcome = route.model.chat(&asked, &terms).await;
            route.settle(&outcome);
            route
                .pace
                .note(outcome.as_ref().map(|response| response.usage).unwrap_or_default(), began.elapsed());
            let problem = match outcome {
                Ok(mut response) => {
                    // What is known of the route is its price, where the model itself was told of none.
                    response.cost = response.cost.or_else(|| route.info.cost(&response.usage));
                    purse.spend(&response);
                    spent.0 += response.usage;
                    spent.1 = added(spent.1, response.cost);
                    let verdict = self.judge(request, &response);
                    answer = Some(response);
                    match verdict {
                        Ok(()) => break,
                        // What a model of this tier got wrong is work for a higher one.
                        Err(problem) => {
                            least = next_tier(route.entry.tier);
                            problem
                        }
                    }
                }
                Err(error) => {
                    let problem = is_worth_another(&error).then(|| error.to_string());
                    failure = Some(error);
                    let Some(problem) = problem else { break };
                    problem
                }
            };
            if relay.was_heard() {
                break;
            }
            before = Some((&route.name, problem));
        }
        // An answer that is no good can still be repaired by who asked for it; an error can't.
        let Some(mut response) = answer else {
            return Err(failure.unwrap_or_else(|| Error::invalid("model choice", "no model fits")));
        };
        let last = std::mem::replace(&mut response.usage, spent.0);
        response.cost = spent.1;
        if held_back {
            tell_whole(&response, cx);
        }
        self.settle(&response, last, &choice, cx);
        Ok(response)
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.routes.iter().map(|route| route.name.as_str()).collect();
        f.debug_struct("Router")
            .field("routes", &names)
            .field("strategy", &self.strategy)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
