//! Steps that do nothing but wait: for a person, a time or a signal.
//!
//! The driver waits for all of them itself, without a task for each, so that a run that only waits can be
//! [let go of](super::park).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Driver;
use super::log::StepLog;
use crate::context::{Intent, Stand, replayed};
use crate::error::Error;
use crate::event::{EffectKind, Event, Outcome, Question};
use crate::graph::StepKind;
use crate::hash::digest;
use crate::outside::{Reply, Told, Woken};
use crate::payload::Payload;
use crate::tool::EffectClass;

/// Stands for a time that never comes, as tokio has it.
const NEVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// The steps that wait, and when their time comes.
#[derive(Default)]
pub(super) struct Waits {
    steps: BTreeMap<usize, Wait>,
    dues: BTreeSet<(Instant, usize)>,
    /// Times that were known before the run was parked.
    known: BTreeMap<usize, Instant>,
}

/// When the time of each step comes, by number.
pub(super) type Dues = Box<[(Instant, usize)]>;

struct Wait {
    attempt: u32,
    due: Option<Instant>,
    what: What,
}

enum What {
    /// A time; then the step gives what it was given.
    Timer(Payload),
    Signal,
    /// The answer to this question, or the default when its time comes.
    Answer(Arc<str>, Payload),
}

impl Waits {
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// All times, for a run that is parked: they go on by the clock that they were set by.
    pub(super) fn dues(&self) -> Dues {
        self.dues.iter().copied().collect()
    }

    /// Sets the times that were known before the run was parked.
    pub(super) fn know(&mut self, dues: Dues) {
        self.known = dues.into_iter().map(|(due, step)| (step, due)).collect();
    }

    /// When the first time comes.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.dues.first().map(|(due, _)| *due)
    }

    /// The steps that wait.
    pub(super) fn steps(&self) -> impl Iterator<Item = usize> {
        self.steps.keys().copied()
    }

    fn insert(&mut self, step: usize, wait: Wait) {
        self.dues.extend(wait.due.map(|due| (due, step)));
        self.steps.insert(step, wait);
    }

    fn remove(&mut self, step: usize) -> Option<Wait> {
        let wait = self.steps.remove(&step)?;
        if let Some(due) = wait.due {
            self.dues.remove(&(due, step));
        }
        Some(wait)
    }

    /// A step whose time has come, once.
    fn take_due(&mut self, now: Instant) -> Option<usize> {
        let first = *self.dues.first()?;
        (first.0 <= now && self.dues.remove(&first)).then_some(first.1)
    }
}

impl Driver {
    /// Lets a step wait, or go on waiting after a restart.
    pub(super) fn begin_wait(
        &mut self,
        step: usize,
        attempt: u32,
        log: &StepLog,
        input: Result<Payload, Error>,
    ) {
        if let Err(error) = input.and_then(|input| self.wait(step, attempt, log, input)) {
            self.settle(step, attempt, Err(error));
        }
    }

    fn wait(&mut self, step: usize, attempt: u32, log: &StepLog, input: Payload) -> Result<(), Error> {
        let (Some(path), Some(data)) = (self.machine.path(step).cloned(), self.machine.data(step)) else {
            return Ok(());
        };
        let kind = data.kind.clone();
        let input = match &kind {
            StepKind::Ask { .. } if !data.instructions.is_empty() => Payload::from_json(json!({
                "question": data.instructions.join("\n"),
                "about": input.json()?,
            })),
            _ => input,
        };
        let (effect, label, digest) = match &kind {
            StepKind::Ask { .. } => (EffectKind::Ask, path.clone(), digest(&input)?),
            StepKind::Timer(ms) => (EffectKind::Timer, "wait".into(), ms.to_string()),
            StepKind::Signal(name) => (EffectKind::Signal, name.clone(), String::new()),
            _ => return Err(Error::invalid(format!("step `{path}`"), "it is not one that waits")),
        };
        let intent = Intent { effect, label, digest, class: EffectClass::Pure };
        let now_ms = self.shared.ports.clock.now_ms();
        let mut began_ms = now_ms;
        if let Some(recorded) = log.effect(0) {
            if let Stand::Done(outcome) = intent.stand(recorded, &path)? {
                let output = match kind {
                    StepKind::Timer(_) => replayed::<()>(outcome).map(|()| input),
                    _ => replayed(outcome),
                };
                self.settle(step, attempt, output);
                return Ok(());
            }
            began_ms = recorded.at_ms;
        } else {
            self.batch.push((intent.event(&path, attempt, 0), Some(step)));
        }
        let mut woken = Vec::new();
        let mut due_ms = None;
        let what = match kind {
            StepKind::Ask { answer, deadline_ms, default } => {
                let id = Question::id_of(&path, attempt, 0, &intent.digest);
                due_ms = deadline_ms.map(|ms| began_ms.saturating_add(ms));
                let question = Question {
                    id: id.clone(),
                    label: intent.label,
                    question: input,
                    answer_schema: answer,
                    deadline_ms: due_ms,
                };
                let reply = Reply::Step(step);
                if let Some(question) = self.outside.ask(&path, Arc::new(question), reply, &mut woken) {
                    self.batch.push((Event::QuestionAsked { path, question }, Some(step)));
                }
                What::Answer(id, Payload::from_json(default.unwrap_or_default()))
            }
            StepKind::Timer(ms) => {
                due_ms = Some(began_ms.saturating_add(ms));
                What::Timer(input)
            }
            _ => {
                self.outside.await_signal(intent.label, Reply::Step(step), &mut woken);
                What::Signal
            }
        };
        let known = self.waits.known.remove(&step);
        let due = due_ms.map(|due_ms| {
            let left = Duration::from_millis(due_ms.saturating_sub(now_ms));
            let now = Instant::now();
            known.unwrap_or_else(|| now.checked_add(left).unwrap_or(now + NEVER))
        });
        self.waits.insert(step, Wait { attempt, due, what });
        self.wake(woken);
        Ok(())
    }

    /// Ends the waits of those for whom something came.
    pub(super) fn wake(&mut self, woken: Vec<Woken>) {
        for (step, came) in woken {
            self.end_wait(step, came);
        }
    }

    /// Ends the waits whose time has come.
    pub(super) fn end_due(&mut self, now: Instant) {
        while let Some(step) = self.waits.take_due(now) {
            let Some(wait) = self.waits.steps.get(&step) else { continue };
            let What::Answer(id, default) = &wait.what else {
                self.end_wait(step, Payload::new(()));
                continue;
            };
            let (id, default) = (id.clone(), default.clone());
            // Recorded like any other answer, so that one that comes at the same time is either before it
            // or too late.
            match self.outside.answer(&id, &default) {
                Ok(true) => {
                    let answered =
                        Event::QuestionAnswered { id: id.clone(), answer: default, by: "deadline".into() };
                    self.push(answered, true);
                    self.told.push(Told::Answered(id, oneshot::channel().0));
                }
                Ok(false) => {}
                Err(error) => self.give_up(step, error),
            }
        }
    }

    fn end_wait(&mut self, step: usize, came: Payload) {
        let Some(Wait { attempt, what, .. }) = self.waits.remove(step) else { return };
        let Some(path) = self.machine.path(step).cloned() else { return };
        let (outcome, spent) = (Outcome::Ok(came.clone()), Box::default());
        self.batch.push((Event::EffectDone { path, attempt, index: 0, outcome, spent }, Some(step)));
        let output = match what {
            What::Timer(input) => input,
            What::Signal | What::Answer(..) => came,
        };
        self.settle(step, attempt, Ok(output));
    }

    /// Stops waiting for a step that is not to go on; says whether it waited.
    pub(super) fn abort_wait(&mut self, step: usize, error: &Error) -> bool {
        let waits = self.waits.steps.contains_key(&step);
        if waits {
            self.give_up(step, error.clone());
        }
        waits
    }

    fn give_up(&mut self, step: usize, error: Error) {
        if let Some(wait) = self.waits.remove(step) {
            self.outside.forget(step);
            self.settle(step, wait.attempt, Err(error));
        }
    }
}
