//! What a run waits for from outside: answers and signals.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::error::Error;
use crate::event::{EffectKind, Event, Question};
use crate::payload::Payload;
use crate::schema::Schema;

/// The questions and signals of one run: a fold over its events, and the steps that wait.
#[derive(Default)]
pub(crate) struct Outside {
    open: BTreeMap<Arc<str>, Open>,
    answers: HashMap<Arc<str>, Payload>,
    signals: HashMap<Arc<str>, VecDeque<Payload>>,
    waiting: BTreeMap<Arc<str>, VecDeque<Reply>>,
    /// Steps that a replay has seen waiting for a signal, and which one.
    awaited: HashMap<(Arc<str>, u32, u32), Arc<str>>,
}

struct Open {
    path: Arc<str>,
    question: Arc<Question>,
    reply: Option<Reply>,
}

/// Who waits for what comes from outside.
pub(crate) enum Reply {
    /// An agent, in its task.
    Agent(oneshot::Sender<Payload>),
    /// A step that does nothing but wait, by number.
    Step(usize),
}

/// What came for a step that does nothing but wait.
pub(crate) type Woken = (usize, Payload);

impl Reply {
    /// Hands `payload` over: to the agent, or to the driver for its step. Gives it back if the agent was
    /// dropped meanwhile.
    fn give(self, payload: Payload, woken: &mut Vec<Woken>) -> Result<(), Payload> {
        match self {
            Reply::Agent(agent) => agent.send(payload),
            Reply::Step(step) => {
                woken.push((step, payload));
                Ok(())
            }
        }
    }
}

/// What came from outside and is being made durable.
pub(crate) enum Told {
    Answered(Arc<str>, oneshot::Sender<Result<bool, Error>>),
    Signalled(Arc<str>, Payload, oneshot::Sender<Result<(), Error>>),
}

impl Outside {
    /// Folds one durable event in.
    pub(crate) fn replay(&mut self, event: &Event) {
        match event {
            Event::QuestionAsked { path, question } => {
                let open = Open { path: path.clone(), question: question.clone(), reply: None };
                self.open.insert(question.id.clone(), open);
            }
            Event::QuestionAnswered { id, answer, .. } => {
                self.open.remove(id);
                self.answers.insert(id.clone(), answer.clone());
            }
            Event::SignalReceived { name, payload } => {
                self.signals.entry(name.clone()).or_default().push_back(payload.clone());
            }
            Event::EffectIntended { path, attempt, index, effect: EffectKind::Signal, label, .. } => {
                self.awaited.insert((path.clone(), *attempt, *index), label.clone());
            }
            Event::EffectDone { path, attempt, index, .. } => {
                // A signal that a step has taken is not there for another.
                if let Some(name) = self.awaited.remove(&(path.clone(), *attempt, *index)) {
                    self.signals.get_mut(&name).and_then(VecDeque::pop_front);
                }
            }
            _ => {}
        }
        self.close(event);
    }

    /// Closes the questions of an attempt that is over: nobody waits for their answers.
    pub(crate) fn close(&mut self, event: &Event) {
        match event {
            Event::StepSucceeded { path, .. }
            | Event::StepFailed { path, .. }
            | Event::StepSkipped { path, .. }
            | Event::SentBack { path, .. }
                if !self.open.is_empty() =>
            {
                self.open.retain(|_, open| open.path != *path);
            }
            Event::Migrated { restarted, .. } => self.open.retain(|_, open| !restarted.contains(&open.path)),
            _ => {}
        }
    }

    /// A step asks, or asks again after a restart; gives the question if it is to be recorded.
    pub(crate) fn ask(
        &mut self,
        path: &Arc<str>,
        question: Arc<Question>,
        reply: Reply,
        woken: &mut Vec<Woken>,
    ) -> Option<Arc<Question>> {
        if let Some(answer) = self.answers.get(&question.id) {
            // A step that was dropped meanwhile does not wait for its answer.
            let _ = reply.give(answer.clone(), woken);
            return None;
        }
        let known = self.open.contains_key(&question.id);
        let open = Open { path: path.clone(), question: question.clone(), reply: Some(reply) };
        self.open.insert(question.id.clone(), open);
        (!known).then_some(question)
    }

    /// Whether an answer to `id` is the one that counts, so that it is to be recorded.
    pub(crate) fn answer(&mut self, id: &Arc<str>, answer: &Payload) -> Result<bool, Error> {
        if self.answers.contains_key(id) {
            return Ok(false);
        }
        let Some(open) = self.open.get(id) else {
            return Err(Error::not_found("open question", &**id, self.open.keys().map(|id| &**id)));
        };
        // A schema of keywords that are not known here is left to the step's own type.
        if let Ok(schema) = Schema::new(open.question.answer_schema.clone()) {
            let problems = schema.problems(answer.json()?);
            if !problems.is_empty() {
                return Err(Error::invalid(format!("answer to `{id}`"), problems.join("; ")));
            }
        }
        self.answers.insert(id.clone(), answer.clone());
        Ok(true)
    }

    pub(crate) fn await_signal(&mut self, name: Arc<str>, reply: Reply, woken: &mut Vec<Woken>) {
        match self.signals.get_mut(&name).and_then(VecDeque::pop_front) {
            Some(payload) => {
                if let Err(back) = reply.give(payload, woken) {
                    self.signals.entry(name).or_default().push_front(back);
                }
            }
            None => self.waiting.entry(name).or_default().push_back(reply),
        }
    }

    /// Forgets that a step waits for a signal: what comes is for another.
    pub(crate) fn forget(&mut self, step: usize) {
        for waiting in self.waiting.values_mut() {
            waiting.retain(|reply| !matches!(reply, Reply::Step(other) if *other == step));
        }
    }

    /// Tells those who wait, once it is known whether what came is durable.
    pub(crate) fn pass_on(&mut self, told: Told, appended: &Result<(), Error>, woken: &mut Vec<Woken>) {
        match told {
            Told::Answered(id, taken) => {
                if appended.is_ok()
                    && let Some(reply) = self.open.remove(&id).and_then(|open| open.reply)
                    && let Some(answer) = self.answers.get(&id)
                {
                    let _ = reply.give(answer.clone(), woken);
                }
                let _ = taken.send(appended.clone().map(|()| true));
            }
            Told::Signalled(name, payload, taken) => {
                if appended.is_ok() {
                    let mut payload = Some(payload);
                    while let Some(reply) = self.waiting.get_mut(&name).and_then(VecDeque::pop_front) {
                        match payload.take().map(|payload| reply.give(payload, woken)) {
                            Some(Err(back)) => payload = Some(back),
                            _ => break,
                        }
                    }
                    if let Some(payload) = payload {
                        self.signals.entry(name).or_default().push_back(payload);
                    }
                }
                let _ = taken.send(appended.clone());
            }
        }
    }

    pub(crate) fn questions(&self) -> Vec<Arc<Question>> {
        self.open.values().map(|open| open.question.clone()).collect()
    }
}
