//! The lines of an index on disk, alike for every backend.

use std::collections::BTreeSet;
use std::sync::Arc;

use coral_core::{Error, Journal, RunHead, sha256_hex};

use crate::crypto::{DataKey, Tokens};
use crate::index::{RunSummary, is_beginning, words};
use crate::ledger::is_erased;
use crate::snapshots::Snapshots;
use crate::views::WorkflowState;

/// A run as its index keeps it.
pub(crate) struct Line {
    pub(crate) head: RunHead,
    pub(crate) phase: String,
    pub(crate) cost: i64,
    pub(crate) terms: BTreeSet<String>,
    pub(crate) words: String,
    /// The summary as JSON; empty if nothing is left but the head.
    pub(crate) summary: Arc<[u8]>,
}

impl Line {
    /// The line of the run that `head` is of.
    pub(crate) async fn of(
        journal: &impl Journal,
        snapshots: &impl Snapshots,
        head: &RunHead,
        writing: &Writing,
    ) -> Result<Self, Error> {
        let (state, readable) = match WorkflowState::open(journal, snapshots, &head.run).await {
            Ok(state) => (state.unwrap_or_else(|| WorkflowState::new(&*head.run)), true),
            // Its head is all that is left of it.
            Err(error) if is_erased(&error) => (WorkflowState::new(&*head.run), false),
            Err(error) => return Err(error),
        };
        let summary = RunSummary::of(head, &state);
        let json = match readable {
            true => serde_json::to_vec(&summary)
                .map_err(|e| Error::invalid("run", format!("it can't be written as JSON: {e}")))?,
            false => Vec::new(),
        };
        let agents = summary.agents.iter().map(|agent| writing.term("agent", agent));
        let tags = summary.tags.iter().map(|tag| writing.term("tag", tag));
        Ok(Line {
            phase: writing.phase(&summary.phase),
            cost: i64::try_from(summary.spent.cost.as_pico()).unwrap_or(i64::MAX),
            terms: agents.chain(tags).collect(),
            words: writing.words(summary.words()),
            summary: json.into(),
            head: head.clone(),
        })
    }
}

/// How phases, agents, tags and words are written.
#[derive(Clone)]
pub(crate) enum Writing {
    Plain,
    Hashed(Tokens),
}

impl Writing {
    /// By the first key of the store itself: hashes must not change when keys do.
    pub(crate) fn hashed(first: &DataKey) -> Result<Self, Error> {
        first.tokens().map(Writing::Hashed)
    }

    pub(crate) fn phase(&self, phase: &str) -> String {
        match self {
            Writing::Hashed(tokens) if !phase.is_empty() => tokens.of("phase", phase),
            _ => fitting(phase),
        }
    }

    pub(crate) fn term(&self, field: &str, value: &str) -> String {
        match self {
            Writing::Plain => fitting(&format!("{field}:{value}")),
            Writing::Hashed(tokens) => tokens.of(field, value),
        }
    }

    /// Words as they are kept, between spaces.
    pub(crate) fn words<'a>(&self, words: impl Iterator<Item = &'a str>) -> String {
        match self {
            Writing::Plain => words.collect::<Vec<_>>().join(" "),
            Writing::Hashed(tokens) => {
                // In an order that tells nothing of the words.
                let hashed: BTreeSet<String> = words.map(|word| tokens.of("word", word)).collect();
                hashed.into_iter().collect::<Vec<_>>().join(" ")
            }
        }
    }

    /// The words that are asked for; the flag says whether those that begin so will do.
    pub(crate) fn search(&self, text: &str) -> Vec<(String, bool)> {
        let kept = |word: String| match self {
            Writing::Plain => {
                let begins = is_beginning(&word);
                (word, begins)
            }
            Writing::Hashed(tokens) => (tokens.of("word", &word), false),
        };
        words(text).into_iter().map(kept).collect()
    }
}

/// Bytes of a term that an index of every backend can hold.
const TERM: usize = 512;

/// A term as an index can hold it: one that is too long, or holds what a backend's text can't, is
/// kept as its hash, under which it is found as well.
fn fitting(term: &str) -> String {
    if term.len() <= TERM && !term.contains('\0') {
        return term.to_owned();
    }
    format!("#{}", sha256_hex(term.as_bytes()))
}

/// The summary of a run from its line: `plain` is what was kept of it, unsealed.
pub(crate) fn summary_of(head: RunHead, plain: Result<Arc<[u8]>, Error>) -> Result<RunSummary, Error> {
    let nothing = |head: &RunHead| RunSummary::of(head, &WorkflowState::new(&*head.run));
    match plain {
        Ok(plain) if plain.is_empty() => Ok(nothing(&head)),
        Ok(plain) => serde_json::from_slice(&plain).map_err(|e| {
            Error::storage("query the index", format!("a line can't be read: {e}")).with_help("`rebuild` it")
        }),
        Err(error) if is_erased(&error) => Ok(nothing(&head)),
        Err(error) => Err(error),
    }
}
