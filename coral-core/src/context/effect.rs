//! How effects stand when a step asks for them, and how they are recorded.

use std::sync::Arc;

use super::AgentContext;
use crate::budget::Used;
use crate::call::CallContext;
use crate::driver::{Before, RecordedEffect, RunShared, ToDriver, What};
use crate::error::{Error, ErrorKind};
use crate::event::{EffectKind, EffectPlace, Event, Outcome, Spent};
use crate::model::ChatRequest;
use crate::payload::Payload;
use crate::tool::EffectClass;

/// What is compared with the journal when a step runs again.
#[derive(Clone)]
pub(crate) struct Intent {
    pub(crate) effect: EffectKind,
    pub(crate) label: Arc<str>,
    pub(crate) digest: String,
    pub(crate) class: EffectClass,
}

/// How an effect stands when a step asks for it.
pub(crate) enum Stand {
    /// Its outcome is recorded.
    Done(Outcome),
    /// A budget did not allow it, and the step went on without it.
    Refused(Error),
    /// Its intent is durable now, or was before a crash; it may be carried out.
    Go,
    /// It is not known whether it was carried out, after so many intents.
    Doubt { intents: u32 },
}

impl Intent {
    /// What is recorded before the effect.
    pub(crate) fn event(&self, path: &Arc<str>, attempt: u32, index: u32) -> Event {
        self.event_with(path, EffectPlace { attempt, index }, Used::of_intent(self.effect, None), None)
    }

    /// [`event`](Self::event) of an effect that may have used `total` if nothing more is heard of it.
    pub(super) fn event_with(
        &self,
        path: &Arc<str>,
        place: EffectPlace,
        total: Used,
        follows: Option<EffectPlace>,
    ) -> Event {
        Event::EffectIntended {
            path: path.clone(),
            attempt: place.attempt,
            index: place.index,
            effect: self.effect,
            label: self.label.clone(),
            digest: self.digest.clone(),
            class: self.class,
            reserved: (total != Used::of_intent(self.effect, None)).then(|| Box::new(total)),
            follows,
        }
    }

    pub(super) fn what(&self) -> What {
        (self.effect, self.label.clone(), self.digest.clone())
    }

    /// How the effect stands that is recorded in this one's place.
    ///
    /// # Errors
    /// [`Divergence`](ErrorKind::Divergence) if that is another one.
    pub(crate) fn stand(&self, recorded: &RecordedEffect, path: &str) -> Result<Stand, Error> {
        if recorded.effect != self.effect || recorded.digest != self.digest {
            let shown = |effect: EffectKind, label: &str, digest: &str| {
                format!("{effect:?} `{label}` {}", digest.get(..12).unwrap_or(digest))
            };
            return Err(Error::new(ErrorKind::Divergence {
                path: path.to_owned(),
                index: recorded.index,
                seq: recorded.seq,
                expected: shown(recorded.effect, &recorded.label, &recorded.digest),
                found: shown(self.effect, &self.label, &self.digest),
            })
            .with_help("an agent must ask for the same effects in the same order when it runs again"));
        }
        if let Some(error) = recorded.refusal() {
            return Ok(Stand::Refused(error.clone()));
        }
        match recorded.outcome.clone() {
            Some(outcome) => Ok(Stand::Done(outcome)),
            None if recorded.class.is_repeatable() => Ok(Stand::Go),
            None => Ok(Stand::Doubt { intents: recorded.intents }),
        }
    }
}

/// What is reserved for an effect until its intent is on its way to the journal; given back if it is not sent.
pub(super) struct Reserved {
    run: Arc<RunShared>,
    path: Arc<str>,
    index: u32,
    amount: Used,
    /// What the effect may have used in all, with what was held for it before.
    pub(super) total: Used,
}

impl Reserved {
    /// Reserves what an effect may use in all, from the budgets of its step. What is held for it already is not
    /// asked for again, nor held against limits that were reached since.
    pub(super) fn new(run: &Arc<RunShared>, path: &Arc<str>, index: u32, total: Used) -> Result<Self, Error> {
        let now_ms = run.ports.clock.now_ms();
        let mut ledger = run.ledger();
        let amount = total.minus(ledger.held(path, index));
        if amount != Used::default() {
            ledger.reserve(path, amount, now_ms)?;
        }
        drop(ledger);
        Ok(Reserved { run: run.clone(), path: path.clone(), index, amount, total })
    }

    /// Reserves the worst case of a model call, and says so in its terms. `before` is what the effect that it is
    /// part of may have used before it, with whether the call counts as another. Gives the worst case too.
    pub(super) fn for_chat(
        run: &Arc<RunShared>,
        path: &Arc<str>,
        index: u32,
        (before, counts): (Used, bool),
        request: &ChatRequest,
        mut cx: CallContext,
    ) -> Result<(Self, CallContext, Used), Error> {
        let now_ms = run.ports.clock.now_ms();
        // Held while the model is chosen: what is left can't go to another call meanwhile.
        let mut ledger = run.ledger();
        let mut budget = ledger.left(path, now_ms);
        let limited = !budget.is_unlimited();
        if limited {
            cx = cx.with_budget(budget.clone());
        }
        let worst = ledger.worst_case(path, request, &run.ports.model.info_for(request, &cx))?;
        let total = before.plus(Used { calls: u64::from(counts), ..worst });
        let amount = total.minus(ledger.held(path, index));
        ledger.reserve(path, amount, now_ms)?;
        drop(ledger);
        if limited {
            budget.usd = budget.usd.map(|_| worst.usd);
            budget.tokens = budget.tokens.map(|_| worst.tokens);
            budget.calls = budget.calls.map(|_| worst.calls);
            cx = cx.with_budget(budget);
        }
        let reserved = Reserved { run: run.clone(), path: path.clone(), index, amount, total };
        Ok((reserved, cx, worst))
    }

    /// The intent is on its way: the total is held until there is an outcome.
    pub(super) fn hold(mut self) {
        let amount = std::mem::take(&mut self.amount);
        self.run.ledger().hold(&self.path, self.index, amount, self.total);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.amount != Used::default() {
            self.run.ledger().settle(&self.path, self.amount, Used::default());
        }
    }
}

impl AgentContext {
    pub(super) fn place(&self, index: u32) -> EffectPlace {
        EffectPlace { attempt: self.attempt, index }
    }

    /// The effect before it that the one of this index goes on with.
    pub(super) fn follows(&self, index: u32) -> Option<EffectPlace> {
        let now = self.followed.iter().find(|(followed, _)| *followed == index);
        now.map(|(_, place)| *place).or_else(|| self.log.follows(index))
    }

    /// An effect is under way. If it can't be repeated, and is dropped or gets no answer, the same asked for once more
    /// goes on with it; gives where it was intended first.
    pub(super) fn set_out(&mut self, index: u32, intent: &Intent) -> Option<EffectPlace> {
        if intent.class.is_repeatable() {
            return None;
        }
        let origin = self.follows(index).unwrap_or(self.place(index));
        self.log.doubt(intent.what(), origin);
        Some(origin)
    }

    /// An effect that was [under way](Self::set_out) is over.
    pub(super) fn arrive<T>(&mut self, origin: Option<EffectPlace>, result: &Result<T, Error>) {
        let is_unknown =
            |error: &Error| error.leaves_doubt() || matches!(error.kind(), ErrorKind::Budget { .. });
        if let Some(origin) = origin
            && !result.as_ref().is_err_and(is_unknown)
        {
            self.log.settle(origin);
        }
    }

    /// What is held against the budgets for an effect.
    pub(super) fn held(&self, index: u32) -> Used {
        self.run.ledger().held(&self.step.path, index)
    }

    /// How the effects from `first` on stand, and what is to be recorded of those that are new.
    pub(super) fn stands(
        &mut self,
        first: u32,
        intents: &[Intent],
    ) -> Result<(Vec<Stand>, Vec<Event>), Error> {
        let path = self.step.path.clone();
        let mut stands = Vec::with_capacity(intents.len());
        let mut fresh = Vec::new();
        for (intent, index) in intents.iter().zip(first..) {
            if let Some(recorded) = self.log.effect(index) {
                stands.push(intent.stand(recorded, &path)?);
                if let Some(origin) = self.log.follows(index) {
                    self.log.settle(origin);
                }
                continue;
            }
            let place = self.place(index);
            if matches!(intent.effect, EffectKind::Chat | EffectKind::Tool) && self.log.went_on_without(index)
            {
                let problem = "it did not allow this call, and the step went on without it".to_owned();
                stands.push(Stand::Refused(Error::new(ErrorKind::Budget { budget: "run".into(), problem })));
                continue;
            }
            // Only what can't be repeated is kept.
            stands.push(match self.log.take_kept(&intent.what()) {
                Some(Before::Happened(outcome)) => {
                    fresh.push(intent.event(&path, self.attempt, index));
                    let (path, attempt, spent) = (path.clone(), self.attempt, Box::default());
                    fresh.push(Event::EffectDone { path, attempt, index, outcome: outcome.clone(), spent });
                    Stand::Done(outcome)
                }
                Some(Before::Doubt(before)) => {
                    self.followed.push((index, before));
                    fresh.push(intent.event_with(&path, place, Used::default(), Some(before)));
                    Stand::Doubt { intents: 1 }
                }
                None => {
                    fresh.push(intent.event(&path, self.attempt, index));
                    Stand::Go
                }
            });
        }
        Ok((stands, fresh))
    }

    /// Compares the intents from `first` on with the journal, and makes those durable that are
    /// not recorded yet, in one append. For effects that no budget counts.
    pub(super) async fn begin(&mut self, first: u32, intents: &[Intent]) -> Result<Vec<Stand>, Error> {
        let (stands, fresh) = self.stands(first, intents)?;
        self.intend(fresh, Vec::new()).await?;
        Ok(stands)
    }

    /// Makes intents durable; what was reserved for them is held from then on.
    pub(super) async fn intend(&self, events: Vec<Event>, reserved: Vec<Reserved>) -> Result<(), Error> {
        // An agent that dropped a wait of its own may have lost its permit with that.
        self.presence.begin_work().await?;
        let hold = || reserved.into_iter().for_each(Reserved::hold);
        if events.is_empty() {
            hold();
            return Ok(());
        }
        self.run.append(events, hold).await
    }

    /// What is recorded before an effect that may have used `total` if nothing more is heard of it.
    pub(super) fn intended(&self, index: u32, intent: &Intent, total: Used) -> Event {
        intent.event_with(&self.step.path, self.place(index), total, self.follows(index))
    }

    /// Intends an effect once more that was recorded as intended: it is done now.
    pub(super) async fn intend_again(&self, index: u32, intent: &Intent) -> Result<(), Error> {
        let (path, total) = (&self.step.path, self.once_more(index, intent));
        let reserved = Reserved::new(&self.run, path, index, total)?;
        let event = self.intended(index, intent, total);
        self.intend(vec![event], vec![reserved]).await
    }

    /// What an effect may have used in all once it is made, which counts as one call however often that is.
    pub(super) fn once_more(&self, index: u32, intent: &Intent) -> Used {
        let (held, call) = (self.held(index), Used::of_intent(intent.effect, None));
        if self.is_counted(index) { held } else { Used { calls: held.calls.max(call.calls), ..held } }
    }

    /// Whether the call of an effect was counted when it was made before.
    pub(super) fn is_counted(&self, index: u32) -> bool {
        self.log.effect(index).is_some()
    }

    /// The event that intends an effect which a crash cut off and that is done again, if what it may have used is
    /// more than is recorded.
    pub(super) fn intended_again(&self, index: u32, intent: &Intent, total: Used) -> Option<Event> {
        let is_more = self.is_counted(index) && total != self.held(index);
        is_more.then(|| self.intended(index, intent, total))
    }

    /// Records that a budget did not allow the calls of these indexes, so that a step that goes on without
    /// them does the same when it runs again.
    pub(super) async fn refuse(
        &self,
        intended: Vec<Event>,
        indexes: impl IntoIterator<Item = u32>,
        error: &Error,
    ) {
        for event in intended {
            self.send(event).await;
        }
        for index in indexes {
            let spent = Spent::default().settling(self.held(index));
            self.end::<()>(index, &Err(error.clone()), spent).await;
        }
    }

    /// Records the outcome of an effect, and settles what it used.
    pub(super) async fn end<T>(&self, index: u32, result: &Result<T, Error>, spent: Spent)
    where
        T: serde::Serialize + Clone + Send + Sync + 'static,
    {
        let outcome = match result {
            Ok(value) => Outcome::Ok(Payload::new(value.clone())),
            Err(error) => Outcome::Err(error.clone()),
        };
        let (path, used) = (self.step.path.clone(), Used::of_call(&spent));
        self.send(Event::EffectDone { path, attempt: self.attempt, index, outcome, spent: Box::new(spent) })
            .await;
        self.run.ledger().done(&self.step.path, index, used);
    }

    /// Sends an event that the step need not wait for. It is durable before any later one.
    pub(super) async fn send(&self, event: Event) {
        self.run.send(ToDriver::Record(Box::new(event))).await;
    }
}
