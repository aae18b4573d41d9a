//! What a model or a tool may do in the midst of a call: note, ask a person, call the model.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::budget::Used;
use crate::call::{CallContext, Caller};
use crate::driver::{RunShared, ToDriver};
use crate::error::Error;
use crate::event::{EffectPlace, Event, Question, Spent};
use crate::hash::digest;
use crate::model::{ChatRequest, ChatResponse};
use crate::payload::Payload;
use crate::spec::AgentSpec;

use super::effect::{Intent, Reserved};
use super::{AgentContext, Presence};

/// One call of a run, as the adapter that carries it out sees it.
pub(crate) struct InCall {
    run: Arc<RunShared>,
    caller: Arc<Caller>,
    spec: Arc<AgentSpec>,
    presence: Arc<Presence>,
    attempt: u32,
    index: u32,
    intent: Intent,
    follows: Option<EffectPlace>,
    done: Mutex<Done>,
    /// One model call at a time is reserved and intended, so that each counts those before it.
    intending: tokio::sync::Mutex<()>,
}

/// What was done so far.
#[derive(Default)]
struct Done {
    notes: Vec<Event>,
    /// How often each question was asked.
    asked: HashMap<String, u32>,
    chats: u32,
    spent: Spent,
    /// What may have been used for the call before, what the model calls in it used, and what those may use that are
    /// not over.
    before: Used,
    used: Used,
    open: Used,
}

impl InCall {
    pub(super) fn new(cx: &AgentContext, index: u32, intent: Intent) -> Self {
        InCall {
            run: cx.run.clone(),
            caller: cx.caller.clone(),
            spec: cx.spec.clone(),
            presence: cx.presence.clone(),
            attempt: cx.attempt,
            index,
            intent,
            follows: cx.follows(index),
            done: Mutex::default(),
            intending: tokio::sync::Mutex::default(),
        }
    }

    /// The call begins; before it, so much may have been used for it.
    pub(super) fn begin(&self, before: Used) {
        self.done(|done| done.before = before);
    }

    pub(super) fn before(&self) -> Used {
        self.done(|done| done.before)
    }

    fn done<T>(&self, with: impl FnOnce(&mut Done) -> T) -> T {
        with(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn note(&self, topic: &str, note: Value) {
        let event = Event::CallNoted {
            path: self.caller.path.clone(),
            attempt: self.attempt,
            index: self.index,
            topic: topic.into(),
            note,
        };
        self.done(|done| done.notes.push(event));
    }

    pub(crate) async fn ask(&self, label: &str, question: Value, schema: Value) -> Result<Value, Error> {
        let digest = digest(&json!([label, question]))?;
        let time = self.done(|done| {
            let time = done.asked.entry(digest.clone()).or_default();
            *time += 1;
            *time
        });
        let (path, attempt, index) = (&self.caller.path, self.attempt, self.index);
        let digest = digest.get(..16).unwrap_or(&digest);
        let question = Question {
            id: format!("{path}#{attempt}:{index}.{time}@{digest}").into(),
            label: label.into(),
            question: Payload::from_json(question),
            answer_schema: schema,
            deadline_ms: None,
        };
        let answer = self.presence.wait(self.run.ask(path.clone(), Arc::new(question))).await?;
        answer.json().cloned()
    }

    pub(crate) async fn chat(&self, request: &ChatRequest, key: &str) -> Result<ChatResponse, Error> {
        let number = self.done(|done| {
            done.chats += 1;
            done.chats
        });
        let cx = CallContext::new(self.caller.clone()).with_key(format!("{key}.{number}"));
        let cx = cx.with_needs(self.spec.model.clone());
        let (path, index) = (&self.caller.path, self.index);
        let intending = self.intending.lock().await;
        let before = self.done(|done| done.before.plus(done.used).plus(done.open));
        let (reserved, cx, worst) = Reserved::for_chat(&self.run, path, index, (before, true), request, cx)?;
        self.done(|done| done.open = done.open.plus(worst));
        let place = EffectPlace { attempt: self.attempt, index };
        let intended = self.intent.event_with(path, place, reserved.total, self.follows);
        self.run.append(vec![intended], || reserved.hold()).await?;
        drop(intending);
        let result = self.run.ports.model.chat(request, &cx).await;
        let used = Used { calls: 1, ..used_by(&result, worst) };
        self.done(|done| {
            done.open = done.open.minus(worst);
            done.used = done.used.plus(used);
            if let Ok(response) = &result {
                done.spent.usage += response.usage;
                let cost = done.spent.cost.into_iter().chain(response.cost);
                done.spent.cost = cost.reduce(|sum, cost| sum + cost);
            }
        });
        result
    }

    /// Sends the notes on their way, and gives what the model calls within the call used: as they told, and as it is
    /// settled.
    pub(super) async fn finish(&self) -> (Spent, Used) {
        let (notes, spent, used) = self.done(|done| {
            let used = done.used.plus(std::mem::take(&mut done.open));
            (std::mem::take(&mut done.notes), std::mem::take(&mut done.spent), used)
        });
        for note in notes {
            self.run.send(ToDriver::Record(Box::new(note))).await;
        }
        (spent, used)
    }
}

/// What a model call used, of which this was the worst case; it counts as no call.
pub(crate) fn used_by(result: &Result<ChatResponse, Error>, worst: Used) -> Used {
    let used = match result {
        Ok(response) => Used {
            usd: response.cost.unwrap_or_default(),
            tokens: response.usage.total_tokens(),
            ..Used::default()
        },
        Err(error) if error.leaves_doubt() => worst,
        Err(_) => Used::default(),
    };
    Used { calls: 0, ..used }
}

impl fmt::Debug for InCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InCall")
            .field("caller", &self.caller)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}
