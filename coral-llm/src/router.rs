//! Chooses a model per call, says why, and goes to the next one when an answer is no good.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use coral_core::{
    CallContext, Caller, ChatModel, ChatRequest, ChatResponse, Effort, Error, ErrorKind, ModelFault,
    ModelInfo, ModelNeeds, Part, StopReason, Tier, Usage, Usd,
};
use serde::Serialize;

use crate::catalogue::CatalogueEntry;
use crate::relay::Relay;
use crate::tokens::estimate_tokens;

/// What a [`Router`] prefers among the models that fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Strategy {
    /// The least that the call is expected to cost.
    #[default]
    Cheapest,
    /// The highest tier that the limit per call allows, the cheaper one among equals.
    Best,
    /// The fastest, the cheaper one among equals.
    Fastest,
}

/// Why a [`Router`] chose a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Choice {
    /// The model that is asked first.
    pub model: String,
    /// The models that are asked after it, should it fail, in this order.
    pub next: Vec<String>,
    /// Why, in one sentence.
    pub reason: String,
    /// The tier that the work needs at the least.
    pub tier: Tier,
    /// Tokens expected: input as an upper estimate, output as asked for or assumed.
    pub expected: Usage,
    /// What the call is expected to cost, where the price is known.
    pub cost: Option<Usd>,
    /// The most expensive model that fits, and what the call would cost there.
    pub dearest: Option<(String, Usd)>,
    /// The models that do not fit, each with the reason.
    pub refused: Vec<(String, String)>,
}

/// What a [`Router`] spent, and what the most expensive model that fits would have cost.
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

type Validator = Arc<dyn Fn(&ChatRequest, &ChatResponse) -> Result<(), String> + Send + Sync>;
type Listener = Arc<dyn Fn(&Caller, &Choice) + Send + Sync>;

struct Route {
    name: String,
    entry: CatalogueEntry,
    model: Arc<dyn ChatModel>,
}

/// Chooses a model per call, says why, and goes to the next one when an answer is no good.
///
/// What a call needs is read from the request (tools, images, a schema, its size) and from the agent's
/// [`ModelNeeds`], if they were given with [`for_agent`](Router::for_agent); without a tier from there, the effort asked
/// for and the size of the request decide. A request that names a model gets that model.
///
/// A choice is final once something was heard of its answer. Until then the next model is asked when the endpoint
/// fails, when the request does not fit, or when the answer is no good: it was refused, or, where JSON is asked for, it is
/// not an object with the required fields (or fails the [`validator`](Router::validator)); then models of a lower tier
/// are passed over. What all tries used and cost is counted in the response.
///
/// ```
/// use coral_core::{Caller, ChatRequest, ModelNeeds, Tier};
/// use coral_llm::{Catalogue, Router, ScriptedModel};
///
/// # fn main() -> Result<(), coral_core::Error> {
/// let mut router = Router::new();
/// for entry in &Catalogue::builtin().models {
///     router = router.route(entry.clone(), ScriptedModel::new().otherwise(|_| "ok"));
/// }
/// let needs = ModelNeeds { tier: Tier::Strong, ..Default::default() };
/// let router = router.for_agent("project_architect", needs);
///
/// let request = ChatRequest::user("Design it.");
/// let strong = router.choose(&request, &Caller::agent("project_architect"))?;
/// let cheap = router.choose(&request, &Caller::agent("formatter"))?;
/// assert_eq!(strong.tier, Tier::Strong);
/// assert!(cheap.cost < strong.cost, "{} {}", cheap.reason, strong.reason);
/// # Ok(()) }
/// ```
#[derive(Default)]
pub struct Router {
    routes: Vec<Route>,
    strategy: Strategy,
    agents: BTreeMap<String, ModelNeeds>,
    max_cost: Option<Usd>,
    allow_unpriced: bool,
    validator: Option<Validator>,
    listener: Option<Listener>,
    savings: Mutex<Savings>,
}

/// Output tokens that are assumed where the request sets no limit.
const ASSUMED_OUTPUT: u64 = 2_000;

impl Router {
    /// A router without models.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a model with what is known of it.
    #[must_use]
    pub fn route(mut self, entry: CatalogueEntry, model: impl ChatModel + 'static) -> Self {
        self.routes.push(Route { name: entry.name(), entry, model: Arc::new(model) });
        self
    }

    /// Sets what to prefer.
    #[must_use]
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Says what an agent needs of a model, such as [`AgentSpec::model`](coral_core::AgentSpec::model).
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
    pub fn choose(&self, request: &ChatRequest, caller: &Caller) -> Result<Choice, Error> {
        self.ranked(request, caller).map(|(choice, _)| choice)
    }

    fn ranked(&self, request: &ChatRequest, caller: &Caller) -> Result<(Choice, Vec<&Route>), Error> {
        let needs = self.agents.get(&*caller.agent);
        let demands = Demands::of(request, needs);
        let named = request.model.as_deref().or(needs.and_then(|needs| needs.name.as_deref()));
        let mut refused = Vec::new();
        let mut fit: Vec<(&Route, Option<Usd>)> = Vec::new();
        for route in &self.routes {
            let cost = route.entry.info().cost(&demands.expected);
            match named {
                Some(name) if name == route.name || name == route.entry.id => fit.push((route, cost)),
                Some(_) => {}
                None => match self.refusal(route, &demands, cost) {
                    Some(reason) => refused.push((route.name.clone(), reason)),
                    None => fit.push((route, cost)),
                },
            }
        }
        if let (Some(name), true) = (named, fit.is_empty()) {
            return Err(Error::not_found(
                "routed model",
                name,
                self.routes.iter().map(|route| route.name.as_str()),
            ));
        }
        // An unknown price comes after every known one.
        let price = |cost: Option<Usd>| (cost.is_none(), cost);
        fit.sort_by(|(a, a_cost), (b, b_cost)| {
            let by_price = price(*a_cost).cmp(&price(*b_cost));
            match self.strategy {
                Strategy::Cheapest => by_price.then(b.entry.tier.cmp(&a.entry.tier)),
                Strategy::Best => b.entry.tier.cmp(&a.entry.tier).then(by_price),
                Strategy::Fastest => b.entry.speed.cmp(&a.entry.speed).then(by_price),
            }
            .then_with(|| a.name.cmp(&b.name))
        });
        let Some((first, cost)) = fit.first().copied() else {
            let reasons: Vec<String> =
                refused.iter().map(|(name, reason)| format!("{name} {reason}")).collect();
            return Err(Error::invalid("model choice", format!("no model fits: {}", reasons.join("; ")))
                .with_help("route to a model that does, or raise the limit per call"));
        };
        let preferred = match (named, self.strategy) {
            (Some(name), _) => format!("`{name}` was asked for by name"),
            (None, Strategy::Cheapest) => "the cheapest that fits".to_owned(),
            (None, Strategy::Best) => "the best that fits the limit per call".to_owned(),
            (None, Strategy::Fastest) => "the fastest that fits".to_owned(),
        };
        let choice = Choice {
            model: first.name.clone(),
            next: fit.iter().skip(1).map(|(route, _)| route.name.clone()).collect(),
            reason: format!(
                "{preferred}, of {} that do and {} that do not; the work needs {demands}",
                fit.len(),
                refused.len()
            ),
            tier: demands.tier,
            expected: demands.expected,
            cost,
            dearest: fit
                .iter()
                .filter_map(|(route, cost)| Some((route.name.clone(), (*cost)?)))
                .max_by_key(|(_, cost)| *cost),
            refused,
        };
        Ok((choice, fit.into_iter().map(|(route, _)| route).collect()))
    }

    /// Why a model does not fit, if it does not.
    fn refusal(&self, route: &Route, demands: &Demands<'_>, cost: Option<Usd>) -> Option<String> {
        let entry = &route.entry;
        if entry.tier < demands.tier {
            return Some(format!("is {}", word(entry.tier)));
        }
        if let Some(missing) =
            demands.capabilities.iter().find(|wanted| !entry.capabilities.contains(**wanted))
        {
            return Some(format!("has no `{missing}`"));
        }
        if entry.context_tokens < demands.expected.total_tokens() {
            return Some(format!("takes {} tokens", entry.context_tokens));
        }
        match (cost, self.max_cost) {
            (None, _) if !self.allow_unpriced => Some("has no known price".to_owned()),
            (Some(cost), Some(max)) if cost > max => Some(format!("would cost {cost}")),
            _ => None,
        }
    }

    fn judge(&self, request: &ChatRequest, response: &ChatResponse) -> Result<(), String> {
        if response.stop == StopReason::Refusal {
            return Err("the model refused".to_owned());
        }
        match &self.validator {
            Some(validator) => validator(request, response),
            None => is_as_asked(request, response),
        }
    }

    fn settle(&self, response: &ChatResponse, dearest: &[&Route]) {
        let costs = dearest.iter().filter_map(|route| route.entry.info().cost(&response.usage));
        let most = costs.max().unwrap_or_default();
        let mut savings = self.savings.lock().unwrap_or_else(PoisonError::into_inner);
        savings.calls += 1;
        savings.spent += response.cost.unwrap_or_default();
        savings.dearest += most;
    }
}

/// What a call needs.
struct Demands<'a> {
    tier: Tier,
    capabilities: Vec<&'a str>,
    expected: Usage,
}

impl<'a> Demands<'a> {
    fn of(request: &ChatRequest, needs: Option<&'a ModelNeeds>) -> Self {
        let mut capabilities: Vec<&str> =
            needs.into_iter().flat_map(|needs| &needs.capabilities).map(String::as_str).collect();
        let images =
            request.messages.iter().flat_map(|m| &m.parts).any(|part| matches!(part, Part::Image { .. }));
        for (capability, needed) in [
            ("tools", !request.tools.is_empty()),
            ("vision", images),
            ("structured", request.output.is_some()),
        ] {
            if needed && !capabilities.contains(&capability) {
                capabilities.push(capability);
            }
        }
        let expected = Usage {
            input_tokens: estimate_tokens(request),
            output_tokens: request.max_output_tokens.map_or(ASSUMED_OUTPUT, u64::from),
            ..Default::default()
        };
        let tier = needs.map_or_else(|| complexity(request, expected.input_tokens), |needs| needs.tier);
        Demands { tier, capabilities, expected }
    }
}

impl fmt::Display for Demands<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} or better, about {} tokens", word(self.tier), self.expected.total_tokens())?;
        if !self.capabilities.is_empty() {
            write!(f, ", {}", self.capabilities.join(", "))?;
        }
        Ok(())
    }
}

fn word(tier: Tier) -> &'static str {
    match tier {
        Tier::Basic => "basic",
        Tier::Standard => "standard",
        Tier::Strong => "strong",
    }
}

/// The tier that a request needs, where its agent says nothing: by the effort asked for, then by its size.
fn complexity(request: &ChatRequest, input_tokens: u64) -> Tier {
    match request.effort {
        Some(Effort::High | Effort::Max) => Tier::Strong,
        Some(Effort::Medium) => Tier::Standard,
        Some(_) => Tier::Basic,
        None if input_tokens > 4_000 || request.tools.len() > 4 => Tier::Standard,
        None => Tier::Basic,
    }
}

/// Whether an answer that should be JSON is an object with the fields that the schema requires.
fn is_as_asked(request: &ChatRequest, response: &ChatResponse) -> Result<(), String> {
    let Some(output) = &request.output else { return Ok(()) };
    if response.message.tool_calls().next().is_some() {
        return Ok(());
    }
    let value: serde_json::Value = serde_json::from_str(response.message.text().trim())
        .map_err(|error| format!("the answer is not JSON: {error}"))?;
    let required = output.schema.get("required").and_then(serde_json::Value::as_array);
    let missing = required
        .into_iter()
        .flatten()
        .filter_map(serde_json::Value::as_str)
        .find(|name| value.get(name).is_none());
    missing.map_or(Ok(()), |name| Err(format!("the answer lacks `{name}`")))
}

/// Whether another model may answer what this one could not.
fn is_worth_another(error: &Error) -> bool {
    let ErrorKind::Model { fault, .. } = error.kind() else { return false };
    !matches!(fault, ModelFault::InvalidRequest | ModelFault::Timeout)
}

#[async_trait]
impl ChatModel for Router {
    fn name(&self) -> &str {
        "router"
    }

    /// The bounds that hold for whichever model is chosen: the largest context, the highest prices.
    fn info(&self) -> ModelInfo {
        let infos = self.routes.iter().map(|route| route.entry.info());
        let mut info = infos.reduce(|worst, other| worst.at_worst(&other)).unwrap_or_default();
        info.context_tokens = self.routes.iter().map(|route| route.entry.context_tokens).max();
        info.offline = !self.routes.is_empty() && self.routes.iter().all(|route| route.model.info().offline);
        info
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let (choice, routes) = self.ranked(request, cx.caller())?;
        tracing::info!(
            agent = %cx.caller().agent, model = %choice.model, reason = %choice.reason,
            cost = choice.cost.map(Usd::as_dollars), "model chosen"
        );
        if let Some(listener) = &self.listener {
            listener(cx.caller(), &choice);
        }
        let relay = Relay::new(cx);
        let mut spent = (Usage::default(), None);
        let mut least = Tier::Basic;
        let mut answer: Option<ChatResponse> = None;
        let mut failure: Option<Error> = None;
        for route in &routes {
            if route.entry.tier < least {
                continue;
            }
            let asked = ChatRequest { model: None, ..request.clone() };
            let problem = match route.model.chat(&asked, &relay.next()).await {
                Ok(response) => {
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
            tracing::warn!(model = %route.name, %problem, "the next model is asked");
        }
        // An answer that is no good can still be repaired by who asked for it; an error can't.
        let Some(mut response) = answer else {
            return Err(failure.unwrap_or_else(|| Error::invalid("model choice", "no model fits")));
        };
        (response.usage, response.cost) = spent;
        self.settle(&response, &routes);
        Ok(response)
    }
}

/// What two calls cost together, as far as it is known.
fn added(a: Option<Usd>, b: Option<Usd>) -> Option<Usd> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

fn next_tier(tier: Tier) -> Tier {
    match tier {
        Tier::Basic => Tier::Standard,
        Tier::Standard | Tier::Strong => Tier::Strong,
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
