//! What earlier attempts of a step did that must not be done twice.

use std::collections::HashMap;
use std::sync::Arc;

use crate::event::{EffectKind, Event, Outcome};

/// What an effect is: its kind, its label and the digest of its request.
pub(crate) type What = (EffectKind, Arc<str>, String);

/// The effects that can't be repeated and took place, by step: a fold over the events, of replay and of
/// the running process alike.
///
/// An attempt that fails after it has charged a card is followed by another, under other keys. What the
/// other asks for in the same words is given the outcome of the first.
#[derive(Debug, Default)]
pub(super) struct Kept(HashMap<Arc<str>, Vec<Effect>>);

#[derive(Clone, Debug)]
struct Effect {
    attempt: u32,
    index: u32,
    what: What,
    /// `None` while it is not known that it took place.
    outcome: Option<Outcome>,
}

impl Kept {
    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::EffectIntended { path, attempt, index, effect, label, digest, class }
                if !class.is_repeatable() =>
            {
                let effects = self.0.entry(path.clone()).or_default();
                if !effects.iter().any(|effect| (effect.attempt, effect.index) == (*attempt, *index)) {
                    let (attempt, index, what) = (*attempt, *index, (*effect, label.clone(), digest.clone()));
                    effects.push(Effect { attempt, index, what, outcome: None });
                }
            }
            Event::EffectDone { path, attempt, index, outcome: outcome @ Outcome::Ok(_), .. } => {
                let of_step = self.0.get_mut(path);
                let effect = of_step.and_then(|effects| {
                    effects.iter_mut().find(|effect| (effect.attempt, effect.index) == (*attempt, *index))
                });
                if let Some(effect) = effect {
                    effect.outcome = Some(outcome.clone());
                }
            }
            // Another round of review is other work.
            Event::StepSucceeded { path, .. } | Event::SentBack { path, .. } => {
                self.0.remove(path);
            }
            _ => {}
        }
    }

    /// The outcomes that `attempt` of the step at `path` need not bring about again, oldest first. Of
    /// those that are the same, as many as the attempt had that had the most: each attempt was given those of
    /// the one before.
    pub(super) fn before(&self, path: &str, attempt: u32) -> Vec<(What, Outcome)> {
        let effects = self.0.get(path).map(Vec::as_slice).unwrap_or_default();
        let done = |effect: &&Effect| effect.attempt < attempt && effect.outcome.is_some();
        let count = |what: &What, attempt: u32| {
            let same = |effect: &&Effect| effect.what == *what && effect.attempt == attempt;
            effects.iter().filter(done).filter(same).count()
        };
        let most = |what: &What| {
            let attempts = effects.iter().filter(done).filter(|effect| effect.what == *what);
            attempts.map(|effect| effect.attempt).max_by_key(|attempt| count(what, *attempt))
        };
        let kept = effects.iter().filter(done).filter(|effect| most(&effect.what) == Some(effect.attempt));
        kept.filter_map(|effect| Some((effect.what.clone(), effect.outcome.clone()?))).collect()
    }
}
