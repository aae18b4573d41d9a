//! What a call needs of a model.

use std::fmt;

use coral_core::{CallContext, ChatRequest, Effort, ModelInfo, ModelNeeds, Part, Tier, TokenCounter, Usage};

use super::{Route, Strategy};
use crate::purse::Purse;

/// Output tokens that are expected where the request sets no limit.
const ASSUMED_OUTPUT: u64 = 2_000;

/// The word for work that somebody waits for, among the capabilities that are needed.
const LOW_LATENCY: &str = "low_latency";

/// What a call needs.
pub(super) struct Demands<'a> {
    pub(super) tier: Tier,
    pub(super) capabilities: Vec<&'a str>,
    pub(super) expected: Usage,
    pub(super) complexity: Complexity,
    /// Whether the agent asks for a fast answer.
    pub(super) hurry: bool,
    /// The model that is asked for by name.
    pub(super) named: Option<&'a str>,
    purse: Purse,
    request: &'a ChatRequest,
}

impl<'a> Demands<'a> {
    pub(super) fn of(
        request: &'a ChatRequest,
        needs: Option<&'a ModelNeeds>,
        counter: &dyn TokenCounter,
        cx: &CallContext,
    ) -> Self {
        let mut capabilities: Vec<&str> =
            needs.into_iter().flat_map(|needs| &needs.capabilities).map(String::as_str).collect();
        let hurry = capabilities.contains(&LOW_LATENCY);
        capabilities.retain(|word| *word != LOW_LATENCY);
        for (capability, needed) in [
            ("tools", !request.tools.is_empty()),
            ("vision", has_image(request)),
            ("structured", request.output.is_some()),
        ] {
            if needed && !capabilities.contains(&capability) {
                capabilities.push(capability);
            }
        }
        let expected = Usage {
            input_tokens: counter.request(request),
            output_tokens: request.max_output_tokens.map_or(ASSUMED_OUTPUT, u64::from),
            ..Default::default()
        };
        let complexity = Complexity::of(request, expected.input_tokens);
        Demands {
            tier: complexity.tier(needs.map(|needs| needs.tier)),
            capabilities,
            expected,
            complexity,
            hurry,
            named: request.model.as_deref().or(needs.and_then(|needs| needs.name.as_deref())),
            purse: Purse::of(cx),
            request,
        }
    }

    /// Why a model does not fit, if it does not, whatever it costs. Who names a model chooses its tier and forgoes what
    /// is good to have, but nothing makes it do what it can't.
    pub(super) fn refusal(&self, route: &Route) -> Option<String> {
        let entry = &route.entry;
        let is_named = self.named.is_some();
        if entry.tier < self.tier && !is_named {
            return Some(format!("is {}", word(entry.tier)));
        }
        let lacks = |wanted: &&&str| !entry.capabilities.contains(**wanted);
        let matters = |wanted: &&&str| match **wanted {
            "tools" => !self.request.tools.is_empty() || !is_named,
            "vision" => has_image(self.request) || !is_named,
            _ => !is_named,
        };
        if let Some(missing) = self.capabilities.iter().filter(matters).find(lacks) {
            return Some(format!("has no `{missing}`"));
        }
        if entry.context_tokens < self.expected.total_tokens() {
            return Some(format!("takes {} tokens", entry.context_tokens));
        }
        None
    }

    /// The limit of output with which a call of a model stays within the budget, see [`Purse::output_limit`]; else
    /// why it does not.
    pub(super) fn within_budget(&self, info: &ModelInfo) -> Result<Option<u32>, String> {
        self.purse.output_limit(info, self.request).ok_or_else(|| {
            match (self.purse.usd(), self.purse.tokens()) {
                (Some(usd), _) => format!("might cost more than {usd}, which the budget leaves"),
                (None, Some(tokens)) => {
                    format!("might use more than {tokens} tokens, which the budget leaves")
                }
                (None, None) => "does not fit the budget".to_owned(),
            }
        })
    }

    /// The strategy for this call.
    pub(super) fn strategy(&self, own: Option<Strategy>, general: Strategy) -> Strategy {
        own.unwrap_or(if self.hurry { Strategy::Fastest } else { general })
    }
}

fn has_image(request: &ChatRequest) -> bool {
    request.messages.iter().flat_map(|m| &m.parts).any(|part| matches!(part, Part::Image { .. }))
}

impl fmt::Display for Demands<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} or better", word(self.tier))?;
        if !self.complexity.signs.is_empty() {
            write!(f, " ({})", self.complexity.signs.join(", "))?;
        }
        write!(f, ", about {} tokens", self.expected.total_tokens())?;
        if !self.capabilities.is_empty() {
            write!(f, ", {}", self.capabilities.join(", "))?;
        }
        Ok(())
    }
}

pub(super) fn word(tier: Tier) -> &'static str {
    match tier {
        Tier::Basic => "basic",
        Tier::Standard => "standard",
        Tier::Strong => "strong",
    }
}

pub(super) fn next_tier(tier: Tier) -> Tier {
    match tier {
        Tier::Basic => Tier::Standard,
        Tier::Standard | Tier::Strong => Tier::Strong,
    }
}

/// How hard a request looks, from the outside: an estimate by signs that cost nothing to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Complexity {
    /// Signs of hard work, weighed.
    points: u32,
    /// What the effort that is asked for adds.
    effort: Option<Effort>,
    /// The signs.
    pub(super) signs: Vec<&'static str>,
}

impl Complexity {
    fn of(request: &ChatRequest, input_tokens: u64) -> Self {
        let mut found = Complexity { effort: request.effort, ..Complexity::default() };
        let schema = request.output.as_ref().map_or(0, |output| output.schema.to_string().len());
        for (is_so, points, sign) in [
            (input_tokens > 4_000, 1, "long input"),
            (input_tokens > 50_000, 1, "very long input"),
            (request.tools.len() > 4, 1, "many tools"),
            (request.tools.len() > 16, 1, "very many tools"),
            (schema > 4_096, 1, "large schema"),
            (request.messages.len() > 24, 1, "long conversation"),
        ] {
            if is_so {
                found.points += points;
                found.signs.push(sign);
            }
        }
        found
    }

    /// The tier that the work needs. What an agent declares holds, and only work that looks very hard is raised by one
    /// tier; without it, the effort that is asked for and the signs decide.
    fn tier(&self, declared: Option<Tier>) -> Tier {
        const VERY_HARD: u32 = 4;
        match (declared, self.effort) {
            (Some(tier), _) if self.points >= VERY_HARD => next_tier(tier),
            (Some(tier), _) => tier,
            (None, Some(Effort::High | Effort::ExtraHigh | Effort::Max)) => Tier::Strong,
            (None, Some(Effort::Medium)) => Tier::Standard,
            (None, Some(_)) => Tier::Basic,
            (None, None) => match self.points {
                0 => Tier::Basic,
                1..VERY_HARD => Tier::Standard,
                _ => Tier::Strong,
            },
        }
    }
}
