//! Fitting a prompt to its model: what has the lowest priority goes first, and all that goes is told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::search::Search;
pub(super) use self::shorten::cut;
use super::draft::{Fit, LeftOut, PromptDraft};
use crate::error::{Error, ErrorKind, ModelFault};

mod search;
mod shorten;

/// How prompts and conversations are fitted to the context of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct FitPolicy {
    /// Tokens of the context that are used at the most, even if the model has more; a model whose context is not
    /// known is taken to have as many. Default: what the model has, and no limit where that is not known.
    pub context_tokens: Option<u64>,
    /// Tokens that are kept free for an answer whose length the agent does not limit.
    pub reserved_output: u64,
    /// The percentage of the room for messages that the first prompt may take; the rest is for what follows.
    pub prompt_percent: u8,
    /// A conversation that takes more than this percentage of the room is compacted.
    pub compact_above_percent: u8,
    /// What compacting leaves, in percent of the room. Far below the limit, so that it is seldom done: each time the
    /// provider's cache of the conversation is lost.
    pub compact_to_percent: u8,
    /// How a conversation is compacted.
    pub compaction: Compaction,
    /// What may be done with the values of a task and with sections, by their names, in place of
    /// [`FitPolicy::rule`]'s defaults.
    pub rules: BTreeMap<String, Fit>,
}

/// How a conversation is compacted that outgrows its model. The system message, the task and the latest turn always
/// stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Compaction {
    /// It is not: the step fails.
    Refuse,
    /// The answers of tools are left out, oldest first; then whole turns.
    #[default]
    LeaveOut,
    /// As `LeaveOut`, but in place of whole turns stands a summary by the model. It is a call like
    /// any other: recorded, and paid from the run's budget.
    Summarise,
}

impl Default for FitPolicy {
    fn default() -> Self {
        FitPolicy {
            context_tokens: None,
            reserved_output: 4_096,
            prompt_percent: 75,
            compact_above_percent: 85,
            compact_to_percent: 45,
            compaction: Compaction::default(),
            rules: BTreeMap::new(),
        }
    }
}

impl FitPolicy {
    /// The default.
    pub fn new() -> Self {
        FitPolicy::default()
    }

    /// Limits the tokens of the context that are used.
    #[must_use]
    pub fn context_tokens(mut self, tokens: u64) -> Self {
        self.context_tokens = Some(tokens);
        self
    }

    /// Sets how a conversation is compacted.
    #[must_use]
    pub fn compaction(mut self, compaction: Compaction) -> Self {
        self.compaction = compaction;
        self
    }

    /// Says what may be done with a value or a section.
    #[must_use]
    pub fn with_rule(mut self, name: impl Into<String>, fit: Fit) -> Self {
        self.rules.insert(name.into(), fit);
        self
    }

    /// What may be done with the value or section of this name.
    ///
    /// By default what is known of all that was delivered (`available`) goes first, then the values of sources, then
    /// what earlier agents preserved (`inputs`), and at last the text of the brief; sections are pinned, but for those
    /// that say otherwise themselves.
    pub fn rule(&self, name: &str) -> Option<Fit> {
        let fit = match name {
            "available" => Fit::Shorten { priority: 10, min_tokens: 200 },
            "inputs" => Fit::Shorten { priority: 30, min_tokens: 400 },
            "brief" => Fit::Shorten { priority: 80, min_tokens: 2_000 },
            _ => return self.rules.get(name).copied(),
        };
        Some(self.rules.get(name).copied().unwrap_or(fit))
    }

    /// What may be done with the value of a source.
    fn rule_of_source(&self, name: &str) -> Fit {
        self.rule(name).unwrap_or(Fit::Shorten { priority: 20, min_tokens: 200 })
    }

    pub(super) fn percent(tokens: u64, percent: u8) -> u64 {
        tokens.saturating_mul(u64::from(percent.min(100))) / 100
    }
}

/// How a prompt was made to fit: the note of topic `context_fitted`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Fitted {
    /// The tokens of the messages before.
    pub tokens_before: u64,
    /// The tokens of the messages after.
    pub tokens_after: u64,
    /// The tokens that they may have.
    pub limit: u64,
    /// What was left out.
    pub left_out: Vec<LeftOut>,
}

impl Fitted {
    /// The topic of its notes.
    pub const TOPIC: &'static str = "context_fitted";
}

/// Makes `draft` fit its limit. `assemble` makes the sections of its values.
///
/// As much is kept as fits: what has the lowest priority is cut first, and only so far as needed; what a later cut made
/// room for comes back.
pub(super) fn fit(
    draft: &mut PromptDraft,
    policy: &FitPolicy,
    assemble: impl Fn(&mut PromptDraft) -> Result<(), Error>,
) -> Result<Option<Fitted>, Error> {
    let Some(limit) = draft.limit else {
        assemble(draft)?;
        return Ok(None);
    };
    let plan = draft.sections.clone();
    assemble(draft)?;
    let tokens_before = draft.tokens();
    if tokens_before <= limit {
        return Ok(None);
    }
    let tokens_after = Search::new(draft, plan, policy, limit, tokens_before, assemble).run(draft)?;
    if tokens_after > limit {
        return Err(does_not_fit(draft, tokens_after, limit));
    }
    Ok(Some(Fitted { tokens_before, tokens_after, limit, left_out: draft.left_out.clone() }))
}

fn does_not_fit(draft: &PromptDraft, tokens: u64, limit: u64) -> Error {
    let mut sizes: Vec<(u64, &str)> = draft
        .sections
        .iter()
        .map(|section| (draft.tokens_of(&section.text), section.name.as_str()))
        .collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let largest: Vec<String> =
        sizes.iter().take(3).map(|(tokens, name)| format!("`{name}` with {tokens}")).collect();
    let left = if draft.left_out.is_empty() {
        "all of it is pinned".to_owned()
    } else {
        let parts: Vec<String> = draft.left_out.iter().map(|left| format!("`{}`", left.part)).collect();
        format!("{} are as short as they may be", parts.join(", "))
    };
    Error::new(ErrorKind::Model {
        fault: ModelFault::ContextTooLong,
        model: draft.agent.model.name.clone().unwrap_or_else(|| "any".to_owned()),
        problem: format!(
            "the prompt has {tokens} tokens, {limit} fit, and {left}; the largest sections are {}",
            largest.join(", ")
        ),
    })
    .at(format!("agent `{}`", draft.agent.id))
    .with_help(
        "choose a model with a larger context, shorten the brief or the definition, or let more be left out: \
         the rules of the fit policy, or `Fit` of the section",
    )
}
