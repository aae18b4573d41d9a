//! What a step did before, or may have done, that must not be done twice.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::ErrorKind;
use crate::event::{EffectKind, EffectPlace, Event, Outcome};

/// What an effect is: its kind, its label and the digest of its request.
pub(crate) type What = (EffectKind, Arc<str>, String);

/// What is known of an effect before that can't be repeated.
#[derive(Clone, Debug)]
pub(crate) enum Before {
    /// It took place, and gave this.
    Happened(Outcome),
    /// Nobody knows whether the effect took place that was intended there.
    Doubt(EffectPlace),
}

/// The effects that can't be repeated and took place or may have, by step: a fold over the events, of replay
/// and of the running process alike.
///
/// An attempt that fails after it has charged a card is followed by another, under other keys. What the
/// other asks for in the same words is given the outcome of the first. Where the first was stopped while it charged
/// the card, or got no answer, the other goes on with that very effect, as after a crash.
#[derive(Debug, Default)]
pub(super) struct Kept(HashMap<Arc<str>, Vec<Effect>>);

#[derive(Clone, Debug)]
struct Effect {
    place: EffectPlace,
    what: What,
    /// Where it was intended first, if that was before.
    follows: Option<EffectPlace>,
    /// `None` while it is not known whether it took place.
    outcome: Option<Outcome>,
}

impl Kept {
    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::EffectIntended { path, attempt, index, effect, label, digest, class, follows, .. }
                if !class.is_repeatable() =>
            {
                let place = EffectPlace { attempt: *attempt, index: *index };
                let what = (*effect, label.clone(), digest.clone());
                let effects = self.0.entry(path.clone()).or_default();
                if effects.iter().any(|effect| effect.place == place) {
                    return;
                }
                // It stands for that of before: with its outcome, or to go on with it. Journals in which
                // it was done anew, whatever had become of the other, say no more of the other either.
                let of_before = effects.iter().position(|effect| match follows {
                    Some(_) => effect.origin() == follows.unwrap_or(place),
                    None => effect.what == what && effect.place.attempt < place.attempt,
                });
                if let Some(of_before) = of_before {
                    effects.remove(of_before);
                }
                effects.push(Effect { place, what, follows: *follows, outcome: None });
            }
            Event::EffectDone { path, attempt, index, outcome, spent } => {
                let place = EffectPlace { attempt: *attempt, index: *index };
                let Some(effects) = self.0.get_mut(path) else { return };
                let Some(at) = effects.iter().position(|effect| effect.place == place) else { return };
                let Some(effect) = effects.get_mut(at) else { return };
                match outcome {
                    Outcome::Ok(_) => effect.outcome = Some(outcome.clone()),
                    // Nothing was done of it now, and what was before is as unknown as it was.
                    Outcome::Err(error) if matches!(error.kind(), ErrorKind::Budget { .. }) => {
                        if spent.tries == 0 && effect.follows.is_none() {
                            effects.remove(at);
                        }
                    }
                    Outcome::Err(error) if error.leaves_doubt() => {}
                    Outcome::Err(_) => drop(effects.remove(at)),
                }
            }
            // Another round of review is other work.
            Event::StepSucceeded { path, .. } | Event::SentBack { path, .. } => {
                self.0.remove(path);
            }
            _ => {}
        }
    }

    /// What of the step at `path` need not be brought about again, or not without a question, oldest first.
    pub(super) fn of_step(&self, path: &str) -> impl Iterator<Item = (EffectPlace, What, Before)> {
        self.0.get(path).into_iter().flatten().map(|effect| {
            let before = match &effect.outcome {
                Some(outcome) => Before::Happened(outcome.clone()),
                None => Before::Doubt(effect.origin()),
            };
            (effect.place, effect.what.clone(), before)
        })
    }
}

impl Effect {
    /// Where it was intended first: its key is made of that.
    fn origin(&self) -> EffectPlace {
        self.follows.unwrap_or(self.place)
    }
}
