//! Fitting a prompt to its model: what has the lowest priority goes first, and all that goes is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::draft::{Fit, LeftOut, PromptDraft, Section, SectionPart};
use super::tokens::TokenCounter;
use crate::error::{Error, ErrorKind, ModelFault};

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

/// Something that may become shorter.
enum Part {
    Value(String),
    Section(String),
}

/// Makes `draft` fit its limit. `assemble` makes the sections of its values.
pub(super) fn fit(
    draft: &mut PromptDraft,
    policy: &FitPolicy,
    assemble: impl Fn(&mut PromptDraft) -> Result<(), Error>,
) -> Result<Option<Fitted>, Error> {
    let plan = draft.sections.clone();
    assemble(draft)?;
    let tokens_before = draft.tokens();
    let Some(limit) = draft.limit.filter(|limit| tokens_before > *limit) else { return Ok(None) };
    let mut cuts: BTreeMap<String, u64> = BTreeMap::new();
    let again = |draft: &mut PromptDraft, cuts: &BTreeMap<String, u64>| {
        draft.sections.clone_from(&plan);
        assemble(draft)?;
        cut_sections(draft, cuts);
        tell(draft);
        Ok::<u64, Error>(draft.tokens())
    };
    let mut tokens = tokens_before;
    for (part, fit) in parts(draft, policy) {
        if tokens <= limit {
            break;
        }
        let (name, before) = match &part {
            Part::Value(name) => (name, size_of(draft, name)),
            Part::Section(name) => {
                let counter = draft.counter.clone();
                (name, draft.section(name).map_or(0, |section| counter.text(&section.text)))
            }
        };
        let least = match fit {
            Fit::Shorten { min_tokens, .. } => min_tokens,
            _ => 0,
        };
        if before <= least {
            continue;
        }
        draft.left_out.push(LeftOut { part: name.clone(), tokens_before: before, tokens_after: before });
        let mut target = before;
        let (task, context) = (draft.task.clone(), draft.context.clone());
        // A template may say a value more than once, or a part of it; so what it takes is seen only in the result.
        while tokens > limit && target > least {
            let over = tokens - limit;
            target = match fit {
                Fit::Drop { .. } => 0,
                _ => target.saturating_sub(over + over / 16 + 32).max(least),
            };
            match &part {
                Part::Value(name) => {
                    draft.task.clone_from(&task);
                    draft.context.clone_from(&context);
                    shorten_value_of(draft, name, target);
                }
                Part::Section(name) => {
                    cuts.insert(name.clone(), target);
                }
            }
            let after = match &part {
                Part::Value(name) => size_of(draft, name),
                Part::Section(_) => target,
            };
            if let Some(left) = draft.left_out.last_mut() {
                left.tokens_after = after;
            }
            tokens = again(draft, &cuts)?;
        }
    }
    if tokens > limit {
        return Err(does_not_fit(draft, tokens, limit));
    }
    Ok(Some(Fitted { tokens_before, tokens_after: tokens, limit, left_out: draft.left_out.clone() }))
}

/// What may become shorter, lowest priority first.
fn parts(draft: &PromptDraft, policy: &FitPolicy) -> Vec<(Part, Fit)> {
    let values = ["available", "inputs", "brief"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), policy.rule(name)?)));
    let sources = draft.context.keys().filter(|name| *name != "config");
    let sources = sources.map(|name| (name.clone(), policy.rule_of_source(name)));
    let values = values.chain(sources).map(|(name, fit)| (Part::Value(name), fit));
    let of_sections = draft.sections.iter().map(|section| {
        (Part::Section(section.name.clone()), policy.rules.get(&section.name).copied().unwrap_or(section.fit))
    });
    let mut parts: Vec<(Part, Fit)> =
        values.chain(of_sections).filter(|(_, fit)| fit.priority().is_some()).collect();
    parts.sort_by_key(|(_, fit)| fit.priority());
    parts
}

fn cut_sections(draft: &mut PromptDraft, cuts: &BTreeMap<String, u64>) {
    let counter = draft.counter.clone();
    for section in &mut draft.sections {
        if let Some(target) = cuts.get(&section.name) {
            section.text = cut(&section.text, *target, &*counter);
        }
    }
}

/// The model is told what it does not see.
fn tell(draft: &mut PromptDraft) {
    let mut text =
        "## Left out\n\nThis prompt did not fit your context, so parts of it are shorter than they were:\n"
            .to_owned();
    for left in &draft.left_out {
        text.push_str(&format!(
            "\n- `{}`: {} of {} tokens are here",
            left.part, left.tokens_after, left.tokens_before
        ));
    }
    text.push_str("\n\nWhere what is missing matters, read it from the project's files if you can, and say so if you can't.");
    draft.sections.push(Section::new("left_out", SectionPart::Task, text));
}

fn does_not_fit(draft: &PromptDraft, tokens: u64, limit: u64) -> Error {
    let counter = &draft.counter;
    let mut sizes: Vec<(u64, &str)> =
        draft.sections.iter().map(|section| (counter.text(&section.text), section.name.as_str())).collect();
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

/// The tokens of a value of the task or of a source.
fn size_of(draft: &PromptDraft, name: &str) -> u64 {
    let counter = &*draft.counter;
    match name {
        "brief" => counter.text(&draft.task.brief.text),
        "inputs" => draft
            .task
            .inputs
            .iter()
            .flat_map(|input| input.preserved.values())
            .map(|v| tokens_of(v, counter))
            .sum(),
        "available" => draft
            .task
            .available
            .iter()
            .map(|item| counter.text(&item.kind) + counter.text(&item.path) + counter.text(&item.description))
            .sum(),
        name => draft.context.get(name).map_or(0, |value| tokens_of(value, counter)),
    }
}

fn shorten_value_of(draft: &mut PromptDraft, name: &str, target: u64) {
    let counter = draft.counter.clone();
    match name {
        "brief" => {
            let task = Arc::make_mut(&mut draft.task);
            task.brief.text = cut(&task.brief.text, target, &*counter).into();
        }
        "inputs" => {
            let task = Arc::make_mut(&mut draft.task);
            let mut values: Vec<&mut Value> =
                task.inputs.iter_mut().flat_map(|input| input.preserved.values_mut()).collect();
            shorten(&mut values, target, &*counter);
        }
        "available" => {
            let task = Arc::make_mut(&mut draft.task);
            let mut left = target;
            // What was delivered last matters most.
            let kept = task.available.iter().rev().take_while(|item| {
                let tokens =
                    counter.text(&item.kind) + counter.text(&item.path) + counter.text(&item.description);
                let fits = tokens <= left;
                left = left.saturating_sub(tokens);
                fits
            });
            let gone = task.available.len() - kept.count();
            task.available.drain(..gone);
        }
        name => {
            if let Some(value) = draft.context.get_mut(name) {
                shorten(&mut [value], target, &*counter);
            }
        }
    }
}

fn tokens_of(value: &Value, counter: &dyn TokenCounter) -> u64 {
    match value {
        Value::String(text) => counter.text(text),
        Value::Array(items) => items.iter().map(|item| tokens_of(item, counter) + 1).sum(),
        Value::Object(map) => {
            map.iter().map(|(name, v)| counter.text(name) + tokens_of(v, counter) + 1).sum()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
    }
}

/// Shortens the texts in `values`, the longest first, and then their lists, until all together have `target` tokens,
/// if they can.
fn shorten(values: &mut [&mut Value], target: u64, counter: &dyn TokenCounter) {
    let total = |values: &[&mut Value]| values.iter().map(|value| tokens_of(value, counter)).sum::<u64>();
    let all = total(values);
    if all <= target {
        return;
    }
    let mut sizes = Vec::new();
    values.iter().for_each(|value| sizes_of_texts(value, counter, &mut sizes));
    let texts: u64 = sizes.iter().sum();
    let room = target.saturating_sub(all - texts);
    let cap = cap_for(&mut sizes, room);
    values.iter_mut().for_each(|value| cap_texts(value, cap, counter));
    let mut excess = total(values).saturating_sub(target);
    // Lists lose their oldest items.
    for value in values.iter_mut() {
        if excess == 0 {
            break;
        }
        if let Value::Array(items) = &mut **value {
            let mut gone = 0;
            for item in items.iter() {
                if excess == 0 || gone + 1 == items.len() {
                    break;
                }
                excess = excess.saturating_sub(tokens_of(item, counter) + 1);
                gone += 1;
            }
            items.drain(..gone);
        }
    }
}

fn sizes_of_texts(value: &Value, counter: &dyn TokenCounter, sizes: &mut Vec<u64>) {
    match value {
        Value::String(text) => sizes.push(counter.text(text)),
        Value::Array(items) => items.iter().for_each(|item| sizes_of_texts(item, counter, sizes)),
        Value::Object(map) => map.values().for_each(|value| sizes_of_texts(value, counter, sizes)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The most that each text may have so that all together have no more than `room`.
fn cap_for(sizes: &mut [u64], room: u64) -> u64 {
    sizes.sort_unstable();
    let mut left = room;
    for (i, size) in sizes.iter().enumerate() {
        let others = (sizes.len() - i) as u64;
        if size.saturating_mul(others) > left {
            return left / others;
        }
        left -= size;
    }
    u64::MAX
}

fn cap_texts(value: &mut Value, cap: u64, counter: &dyn TokenCounter) {
    match value {
        Value::String(text) => {
            if counter.text(text) > cap {
                *text = cut(text, cap, counter);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| cap_texts(item, cap, counter)),
        Value::Object(map) => map.values_mut().for_each(|value| cap_texts(value, cap, counter)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// `text` with its middle left out, so that it has no more than `target` tokens, the mark that says so included. The
/// beginning is kept, and a third of what is kept is from the end: texts begin with what they are about, and end with what
/// came out.
pub(super) fn cut(text: &str, target: u64, counter: &dyn TokenCounter) -> String {
    let tokens = counter.text(text);
    if tokens <= target {
        return text.to_owned();
    }
    let mark = format!("\n[… about {} tokens left out …]\n", tokens - target);
    let mut room = target.saturating_sub(counter.text(&mark) + 1);
    while room > 0 {
        let keep = (text.len() as u128 * u128::from(room) / u128::from(tokens.max(1))) as usize;
        let head = floor(text, keep - keep / 3);
        let tail = ceil(text, text.len() - keep / 3);
        let kept =
            format!("{}{mark}{}", text.get(..head).unwrap_or_default(), text.get(tail..).unwrap_or_default());
        if counter.text(&kept) <= target {
            return kept;
        }
        room = room * 9 / 10;
    }
    if counter.text(&mark) <= target { mark } else { String::new() }
}

/// The place at or before `at` where a line ends, if one does not far from there; else where a character does.
fn floor(text: &str, at: usize) -> usize {
    let at = text.floor_char_boundary(at);
    let line = text.get(..at).and_then(|before| before.rfind('\n')).filter(|line| at - line < at / 8);
    line.unwrap_or(at)
}

/// The same at or behind `at`.
fn ceil(text: &str, at: usize) -> usize {
    let at = text.ceil_char_boundary(at);
    let behind = text.get(at..).unwrap_or_default();
    let line = behind.find('\n').filter(|line| *line < behind.len() / 8);
    line.map_or(at, |line| at + line + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::prompt::tokens::UpperEstimate;

    #[test]
    fn the_longest_texts_give_way_first() {
        let mut a = json!({"summary": "short", "log": "line of a log\n".repeat(2_000)});
        let mut b = json!(["keep me"]);
        shorten(&mut [&mut a, &mut b], 1_000, &UpperEstimate);
        assert_eq!(a["summary"], "short");
        assert_eq!(b, json!(["keep me"]));
        let log = a["log"].as_str().unwrap();
        assert!(log.contains("tokens left out") && log.starts_with("line of a log\nline"), "{log}");
        let tokens = tokens_of(&a, &UpperEstimate) + tokens_of(&b, &UpperEstimate);
        assert!(tokens <= 1_000 && tokens > 800, "{tokens}");
    }

    #[test]
    fn lists_of_small_things_lose_the_oldest() {
        let mut list: Value = (0..1_000).map(|i| json!({"decision": i})).collect();
        shorten(&mut [&mut list], 500, &UpperEstimate);
        let items = list.as_array().unwrap();
        assert!(tokens_of(&list, &UpperEstimate) <= 500 && items.len() > 50, "{}", items.len());
        assert_eq!(items.last().unwrap()["decision"], 999);
    }

    proptest! {
        #[test]
        fn a_cut_text_fits_and_is_made_of_its_ends(text in "(?s).{0,400}", target in 0u64..200) {
            let kept = cut(&text, target, &UpperEstimate);
            prop_assert!(UpperEstimate.text(&kept) <= target.max(UpperEstimate.text(&text).min(target)));
            if let Some((head, tail)) = kept.split_once("\n[… about ") {
                let (_, tail) = tail.split_once(" tokens left out …]\n").unwrap();
                prop_assert!(text.starts_with(head) && text.ends_with(tail));
            } else {
                prop_assert!(kept.is_empty() || kept == text);
            }
        }
    }
}
