//! The search for the most that fits.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::shorten::{Sizes, cut, shorten_value_of};
use super::{Fit, FitPolicy, LeftOut};
use crate::error::Error;
use crate::prompt::draft::{PromptDraft, Section, SectionPart};
use crate::task::Task;

/// How often a prompt is made to find out how much of one part fits. Guesses follow the line through the last two,
/// so three do for most.
const TRIES: u32 = 10;

/// What a line of the section that tells what was left out takes at the most, about.
const LINE: u64 = 64;

/// How much of each part there may be. A template may say a value more than once, or a part of it, or escaped; so what a
/// value takes is seen only in the whole prompt, and it is made anew for each guess.
pub(super) struct Search<A> {
    /// Lowest priority first.
    parts: Vec<Part>,
    plan: Vec<Section>,
    task: Arc<Task>,
    context: Arc<BTreeMap<String, Value>>,
    assemble: A,
    limit: u64,
    /// Those of the prompt as it was made last.
    tokens: u64,
}

/// Something that may become shorter.
struct Part {
    name: String,
    /// Of a value; a section has one text.
    sizes: Option<Sizes>,
    /// It goes as a whole or not at all.
    whole: bool,
    least: u64,
    before: u64,
    target: u64,
}

/// A guess, and the tokens of the whole prompt that it led to.
#[derive(Clone, Copy)]
struct Tried {
    target: u64,
    tokens: u64,
}

impl<A: Fn(&mut PromptDraft) -> Result<(), Error>> Search<A> {
    /// For a draft that is assembled of `plan` and has so many tokens.
    pub(super) fn new(
        draft: &mut PromptDraft,
        plan: Vec<Section>,
        policy: &FitPolicy,
        limit: u64,
        tokens: u64,
        assemble: A,
    ) -> Self {
        Search {
            parts: parts(draft, policy),
            plan,
            task: draft.task.clone(),
            context: draft.context.clone(),
            assemble,
            limit,
            tokens,
        }
    }

    /// Cuts until it fits, and gives the tokens of the whole: more than the limit, if all is as short as it may be.
    pub(super) fn run(mut self, draft: &mut PromptDraft) -> Result<u64, Error> {
        let mut next = 0;
        while self.tokens > self.limit && next < self.parts.len() {
            self.cut(draft, next)?;
            next += 1;
        }
        // The last one has what there is of room; those before it may have been cut in vain.
        for i in (0..next.saturating_sub(1)).rev() {
            if self.tokens <= self.limit {
                self.give_back(draft, i)?;
            }
        }
        Ok(self.tokens)
    }

    /// Cuts a part by as little as does, or as far as it may be.
    fn cut(&mut self, draft: &mut PromptDraft, i: usize) -> Result<(), Error> {
        let Some((least, before, whole)) = self.part(i) else { return Ok(()) };
        if before <= least {
            return Ok(());
        }
        if whole {
            return self.make(draft, i, 0);
        }
        let all = Tried { target: before, tokens: self.tokens };
        self.most(draft, i, None, all)
    }

    /// Gives a part back what there is room for.
    fn give_back(&mut self, draft: &mut PromptDraft, i: usize) -> Result<(), Error> {
        let Some((_, before, whole)) = self.part(i) else { return Ok(()) };
        let now = Tried { target: self.target(i), tokens: self.tokens };
        let room = self.limit - now.tokens;
        let missing = before.saturating_sub(now.target);
        if missing == 0 {
            return Ok(());
        }
        if missing <= room + LINE {
            self.make(draft, i, before)?;
            if self.tokens <= self.limit {
                return Ok(());
            }
            self.make(draft, i, now.target)?;
        }
        if whole || room <= self.slack() {
            return Ok(());
        }
        let all = Tried { target: before, tokens: now.tokens + missing };
        self.most(draft, i, Some(now), all)
    }

    /// Finds the most of a part that fits, between one that does, if one is known, and one that does not.
    fn most(
        &mut self,
        draft: &mut PromptDraft,
        i: usize,
        mut fits: Option<Tried>,
        mut above: Tried,
    ) -> Result<(), Error> {
        let Some((least, ..)) = self.part(i) else { return Ok(()) };
        let aim = self.limit - self.slack() / 2;
        // What a token of the part takes in the prompt: at first it is taken to be one.
        let (mut run, mut rise) = (1, 1);
        for n in 0..TRIES {
            let guess = match fits {
                None if n + 1 == TRIES => least,
                None => {
                    above.target.saturating_sub(scaled(above.tokens.saturating_sub(aim), run, rise).max(1))
                }
                // Halves where the line has misled.
                Some(fits) if n % 3 == 2 => u64::midpoint(fits.target, above.target),
                Some(fits) => {
                    let share = scaled(
                        above.target - fits.target,
                        aim.saturating_sub(fits.tokens),
                        above.tokens.saturating_sub(fits.tokens).max(1),
                    );
                    (fits.target + share).clamp(fits.target + 1, above.target - 1)
                }
            };
            let guess = guess.max(least);
            self.make(draft, i, guess)?;
            let tried = Tried { target: guess, tokens: self.tokens };
            if tried.tokens <= self.limit {
                fits = Some(tried);
            } else {
                if guess == least {
                    break;
                }
                (run, rise) = match above.tokens.saturating_sub(tried.tokens) {
                    0 => (run * 2, rise),
                    rise => (above.target - tried.target, rise),
                };
                above = tried;
            }
            if fits.is_some_and(|fits| {
                self.limit - fits.tokens <= self.slack() || above.target <= fits.target + 1
            }) {
                break;
            }
        }
        match fits {
            Some(fits) if fits.target != self.target(i) => self.make(draft, i, fits.target),
            _ => Ok(()),
        }
    }

    /// Makes the prompt with so much of a part, and the others as they are.
    fn make(&mut self, draft: &mut PromptDraft, i: usize, target: u64) -> Result<(), Error> {
        if let Some(part) = self.parts.get_mut(i) {
            part.target = target;
        }
        draft.task.clone_from(&self.task);
        draft.context.clone_from(&self.context);
        draft.sections.clone_from(&self.plan);
        let shorter: Vec<&Part> = self.parts.iter().filter(|part| part.target < part.before).collect();
        let mut left_out = Vec::with_capacity(shorter.len());
        for part in &shorter {
            let tokens_after = match &part.sizes {
                Some(sizes) => shorten_value_of(draft, &part.name, sizes, part.target),
                None => 0,
            };
            left_out.push(LeftOut { part: part.name.clone(), tokens_before: part.before, tokens_after });
        }
        (self.assemble)(draft)?;
        let counter = draft.counter.clone();
        for (part, left) in shorter.iter().zip(&mut left_out).filter(|(part, _)| part.sizes.is_none()) {
            if let Some(section) = draft.section(&part.name) {
                section.text = cut(&section.text, part.target, &*counter).into();
                left.tokens_after = counter.text(&section.text);
            }
        }
        draft.left_out = left_out;
        if !draft.left_out.is_empty() {
            tell(draft);
        }
        self.tokens = draft.tokens();
        Ok(())
    }

    /// Room that may be left: to use it up would cost more guesses than it is worth.
    fn slack(&self) -> u64 {
        (self.limit / 200).max(16)
    }

    fn part(&self, i: usize) -> Option<(u64, u64, bool)> {
        self.parts.get(i).map(|part| (part.least, part.before, part.whole))
    }

    fn target(&self, i: usize) -> u64 {
        self.parts.get(i).map_or(0, |part| part.target)
    }
}

/// `amount * of / whole`.
fn scaled(amount: u64, of: u64, whole: u64) -> u64 {
    let scaled = u128::from(amount) * u128::from(of) / u128::from(whole.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// What may become shorter, lowest priority first.
fn parts(draft: &mut PromptDraft, policy: &FitPolicy) -> Vec<Part> {
    let values = ["available", "inputs", "brief"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), false, policy.rule(name)?)));
    let sources = draft.context.keys().map(|name| (name.clone(), false, policy.rule_of_source(name)));
    let sections = draft.sections.iter().map(|section| {
        (section.name.clone(), true, policy.rules.get(&section.name).copied().unwrap_or(section.fit))
    });
    let mut all: Vec<_> =
        values.chain(sources).chain(sections).filter(|(.., fit)| fit.priority().is_some()).collect();
    all.sort_by_key(|(.., fit)| fit.priority());
    let counter = draft.counter.clone();
    let part = |(name, is_section, fit): (String, bool, Fit)| {
        let sizes = (!is_section).then(|| Sizes::of(draft, &name));
        let before = match &sizes {
            Some(sizes) => sizes.total(),
            None => draft.section(&name).map_or(0, |section| counter.text(&section.text)),
        };
        let (whole, least) = match fit {
            Fit::Shorten { min_tokens, .. } => (false, min_tokens),
            _ => (true, 0),
        };
        Part { name, sizes, whole, least, before, target: before }
    };
    all.into_iter().map(part).collect()
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
