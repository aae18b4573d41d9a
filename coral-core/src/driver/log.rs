//! What is recorded of the attempts that have begun and not ended.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use crate::driver::kept::What;
use crate::event::{EffectKind, Event, Outcome, Record, Seq, Stage};
use crate::tool::EffectClass;

/// What is recorded of an attempt that did not end.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepLog {
    attempt: u32,
    effects: Vec<RecordedEffect>,
    stage: Option<Stage>,
    handed_off: Vec<Arc<str>>,
    notes: VecDeque<(Arc<str>, Value)>,
    /// What earlier attempts did that must not be done twice.
    kept: Vec<(What, Outcome)>,
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
    /// How often it was intended: again, once a person has found that it did not take place.
    pub(crate) intents: u32,
}

impl StepLog {
    pub(crate) fn effect(&self, index: u32) -> Option<&RecordedEffect> {
        self.effects.get(usize::try_from(index).ok()?).filter(|effect| effect.index == index)
    }

    /// Sets what earlier attempts did. What this attempt has been given of it already is in its own effects.
    pub(super) fn keep(&mut self, mut kept: Vec<(What, Outcome)>) {
        for effect in self.effects.iter().filter(|effect| !effect.class.is_repeatable()) {
            let what = (effect.effect, effect.label.clone(), effect.digest.clone());
            if let Some(at) = kept.iter().position(|(kept, _)| *kept == what) {
                kept.remove(at);
            }
        }
        self.kept = kept;
    }

    /// What came of the same effect in an earlier attempt, once.
    pub(crate) fn take_kept(&mut self, what: &What) -> Option<Outcome> {
        let at = self.kept.iter().position(|(kept, _)| kept == what)?;
        Some(self.kept.remove(at).1)
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
                    log.stage = Some(*stage);
                }
            }
            Event::EffectIntended { path, index, effect, label, digest, class, .. } => {
                let Some(log) = self.0.get_mut(path) else { return };
                let known = usize::try_from(*index).ok().and_then(|index| log.effects.get_mut(index));
                if let Some(again) = known {
                    again.intents += 1;
                } else {
                    log.effects.push(RecordedEffect {
                        seq: record.seq,
                        at_ms: record.at_ms,
                        index: *index,
                        effect: *effect,
                        label: label.clone(),
                        digest: digest.clone(),
                        class: *class,
                        outcome: None,
                        intents: 1,
                    });
                }
            }
            Event::EffectDone { path, index, outcome, .. } => {
                let effect =
                    self.0.get_mut(path).and_then(|log| log.effects.get_mut(usize::try_from(*index).ok()?));
                if let Some(effect) = effect {
                    effect.outcome = Some(outcome.clone());
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
        self.0.remove(path).filter(|log| log.attempt == attempt).unwrap_or_default()
    }
}
