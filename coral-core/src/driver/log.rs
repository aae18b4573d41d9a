//! What is recorded of the attempts that have begun and not ended.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use crate::driver::{Before, What};
use crate::error::{Error, ErrorKind};
use crate::event::{EffectKind, EffectPlace, Event, Outcome, Record, Seq, Stage};
use crate::tool::EffectClass;

/// What is recorded of an attempt that did not end, or that a budget stopped.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepLog {
    attempt: u32,
    /// By index, in order.
    effects: Vec<RecordedEffect>,
    stage: Option<Stage>,
    handed_off: Vec<Arc<str>>,
    notes: VecDeque<(Arc<str>, Value)>,
    /// What was done before, or may have been, that must not be done twice.
    kept: Vec<(What, Before)>,
    clean_up: Option<CleanUp>,
    /// The calls that a budget refused and that are made once there is more, by index.
    refused: Vec<u32>,
}

/// Where an attempt began to clean up, and what it had noted and entered before.
#[derive(Clone, Copy, Debug)]
struct CleanUp {
    seq: Seq,
    notes: usize,
    stage: Option<Stage>,
}

#[derive(Clone, Debug)]
pub(crate) struct RecordedEffect {
    pub(crate) seq: Seq,
    pub(crate) at_ms: u64,
    pub(crate) index: u32,
    pub(crate) effect: EffectKind,
    pub(crate) label: Arc<str>,
    pub(crate) digest: String,
    pub(crate) class: EffectClass,
    pub(crate) outcome: Option<Outcome>,
    /// How often it was intended: again, where it was cut off and is done anew.
    pub(crate) intents: u32,
    /// The effect before it that it goes on with.
    follows: Option<EffectPlace>,
    /// Where its outcome is recorded, and how often it was tried before that.
    done: Seq,
    tries: u32,
}

impl RecordedEffect {
    /// Whether a budget did not let it be done.
    fn is_stopped(&self) -> bool {
        matches!(&self.outcome, Some(Outcome::Err(error)) if matches!(error.kind(), ErrorKind::Budget { .. }))
    }

    /// Why it was not even tried, if it was not: a budget did not allow it.
    pub(crate) fn refusal(&self) -> Option<&Error> {
        match &self.outcome {
            Some(Outcome::Err(error)) if self.tries == 0 && self.is_stopped() => Some(error),
            _ => None,
        }
    }
}

impl StepLog {
    pub(crate) fn effect(&self, index: u32) -> Option<&RecordedEffect> {
        self.effects.get(self.find(index).ok()?)
    }

    fn find(&self, index: u32) -> Result<usize, usize> {
        // Few journals leave an index out.
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        if self.effects.get(at).is_some_and(|effect| effect.index == index) {
            return Ok(at);
        }
        self.effects.binary_search_by_key(&index, |effect| effect.index)
    }

    /// Whether the step went on without the effect of this index: releases before this one recorded nothing of a
    /// call that a budget refused.
    pub(crate) fn went_on_without(&self, index: u32) -> bool {
        let is_passed = self.effects.last().is_some_and(|last| last.index > index);
        is_passed && self.effect(index).is_none() && !self.refused.contains(&index)
    }

    /// Sets what is known of the step's effects. Those that this attempt has itself are in its own.
    pub(super) fn keep(&mut self, kept: impl Iterator<Item = (EffectPlace, What, Before)>) {
        let attempt = self.attempt;
        let kept = kept.filter(|(place, ..)| place.attempt != attempt || self.effect(place.index).is_none());
        self.kept = kept.map(|(_, what, before)| (what, before)).collect();
    }

    /// What is known of the same effect before, once.
    pub(crate) fn take_kept(&mut self, what: &What) -> Option<Before> {
        let at = self.kept.iter().position(|(kept, _)| kept == what)?;
        Some(self.kept.remove(at).1)
    }

    /// From now on it is not known whether the effect takes place that was intended first at `origin`.
    pub(crate) fn doubt(&mut self, what: What, origin: EffectPlace) {
        self.kept.push((what, Before::Doubt(origin)));
    }

    /// It is known what became of the effect that was intended first at `origin`, or another goes on with it.
    pub(crate) fn settle(&mut self, origin: EffectPlace) {
        self.kept.retain(|(_, before)| !matches!(before, Before::Doubt(place) if *place == origin));
    }

    /// The effect before it that the one of this index goes on with.
    pub(crate) fn follows(&self, index: u32) -> Option<EffectPlace> {
        self.effect(index)?.follows
    }

    pub(crate) fn entered(&self, stage: Stage) -> bool {
        self.stage.is_some_and(|last| stage <= last)
    }

    pub(crate) fn has_handed_off(&self, to: &Arc<str>) -> bool {
        self.handed_off.contains(to)
    }

    /// The next note of this topic that is recorded already.
    pub(crate) fn take_note(&mut self, topic: &str) -> Option<Value> {
        let next = self.notes.iter().position(|(recorded, _)| **recorded == *topic)?;
        self.notes.remove(next).map(|(_, note)| note)
    }

    fn intended(&mut self, record: &Record) {
        let Event::EffectIntended { index, effect, label, digest, class, follows, .. } = &record.event else {
            return;
        };
        let at = match self.find(*index) {
            Ok(at) => {
                if let Some(again) = self.effects.get_mut(at) {
                    again.intents += 1;
                }
                return;
            }
            Err(at) => at,
        };
        let recorded = RecordedEffect {
            seq: record.seq,
            at_ms: record.at_ms,
            index: *index,
            effect: *effect,
            label: label.clone(),
            digest: digest.clone(),
            class: *class,
            outcome: None,
            intents: 1,
            follows: *follows,
            done: 0,
            tries: 0,
        };
        self.effects.insert(at, recorded);
    }

    /// The attempt was stopped by a budget, and goes on once there is more: at the call that it was stopped at. A
    /// call that was refused before, and that the agent went on without, stays refused.
    fn stop(&mut self) {
        // What it did to clean up is over; it cleans up again when it ends.
        if let Some(begun) = self.clean_up.take() {
            self.effects.retain(|effect| effect.seq < begun.seq);
            self.notes.truncate(begun.notes);
            self.stage = begun.stage;
        }
        let last = self.effects.iter().map(|effect| effect.seq).max().unwrap_or_default();
        let is_refused = |effect: &RecordedEffect| effect.refusal().is_some() && effect.done > last;
        self.refused =
            self.effects.iter().filter(|effect| is_refused(effect)).map(|effect| effect.index).collect();
        self.effects.retain(|effect| !is_refused(effect));
        for effect in self.effects.iter_mut().filter(|effect| effect.is_stopped() && effect.done > last) {
            effect.outcome = None;
        }
    }
}

/// The logs of the attempts that have begun and not ended: a fold over the journal.
#[derive(Debug, Default)]
pub(crate) struct StepLogs(HashMap<Arc<str>, StepLog>);

impl StepLogs {
    pub(crate) fn apply(&mut self, record: &Record) {
        match &record.event {
            Event::StepStarted { path, attempt } => {
                self.0.insert(path.clone(), StepLog { attempt: *attempt, ..Default::default() });
            }
            Event::Migrated { restarted, .. } => {
                for path in restarted {
                    self.0.remove(path);
                }
            }
            Event::StageEntered { path, stage, .. } => {
                if let Some(log) = self.0.get_mut(path) {
                    if *stage == Stage::CleanUp {
                        let (seq, notes, stage) = (record.seq, log.notes.len(), log.stage);
                        log.clean_up = Some(CleanUp { seq, notes, stage });
                    }
                    log.stage = Some(*stage);
                }
            }
            Event::EffectIntended { path, .. } => {
                if let Some(log) = self.0.get_mut(path) {
                    log.intended(record);
                }
            }
            Event::EffectDone { path, index, outcome, spent, .. } => {
                let Some(log) = self.0.get_mut(path) else { return };
                let at = log.find(*index);
                if let Some(effect) = at.ok().and_then(|at| log.effects.get_mut(at)) {
                    effect.outcome = Some(outcome.clone());
                    effect.done = record.seq;
                    effect.tries = spent.tries;
                }
            }
            Event::HandedOff { from, to, .. } => {
                if let Some(log) = self.0.get_mut(from) {
                    log.handed_off.push(to.clone());
                }
            }
            Event::Noted { path, topic, note } => {
                if let Some(log) = self.0.get_mut(path) {
                    log.notes.push_back((topic.clone(), note.clone()));
                }
            }
            Event::StepFailed { path, attempt, error, retry_in_ms: None }
                if matches!(error.kind(), ErrorKind::Budget { .. }) =>
            {
                match self.0.get_mut(path).filter(|log| log.attempt == *attempt) {
                    Some(log) => log.stop(),
                    None => drop(self.0.remove(path)),
                }
            }
            Event::StepSucceeded { path, .. }
            | Event::StepFailed { path, .. }
            | Event::SentBack { path, .. }
            | Event::StepSkipped { path, .. } => {
                self.0.remove(path);
            }
            _ => {}
        }
    }

    /// The steps that have begun and not ended.
    pub(super) fn open(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.keys()
    }

    pub(super) fn take(&mut self, path: &Arc<str>, attempt: u32) -> StepLog {
        let log = self.0.remove(path).filter(|log| log.attempt == attempt);
        log.unwrap_or_else(|| StepLog { attempt, ..StepLog::default() })
    }
}
