//! What a model or a tool may do in the midst of a call: note, ask a person, call the model.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::budget::Used;
use crate::call::{CallContext, Caller};
use crate::driver::{RunShared, ToDriver};
use crate::error::Error;
use crate::event::{Event, Question, Spent};
use crate::hash::digest;
use crate::model::{ChatRequest, ChatResponse};
use crate::payload::Payload;
use crate::spec::AgentSpec;

use super::Reserved;

/// One call of a run, as the adapter that carries it out sees it.
pub(crate) struct InCall {
    pub(super) run: Arc<RunShared>,
    pub(super) caller: Arc<Caller>,
    pub(super) spec: Arc<AgentSpec>,
    pub(super) attempt: u32,
    pub(super) index: u32,
    done: Mutex<Done>,
}

/// What was done so far.
#[derive(Default)]
struct Done {
    notes: Vec<Event>,
    /// How often each question was asked.
    asked: HashMap<String, u32>,
    chats: u32,
    spent: Spent,
}

impl InCall {
    pub(super) fn new(
        run: Arc<RunShared>,
        caller: Arc<Caller>,
        spec: Arc<AgentSpec>,
        attempt: u32,
        index: u32,
    ) -> Self {
        InCall { run, caller, spec, attempt, index, done: Mutex::default() }
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
        let answer = self.run.ask(path.clone(), Arc::new(question)).await;
        answer.json().cloned()
    }

    pub(crate) async fn chat(&self, request: &ChatRequest, key: &str) -> Result<ChatResponse, Error> {
        let number = self.done(|done| {
            done.chats += 1;
            done.chats
        });
        let cx = CallContext::new(self.caller.clone()).with_key(format!("{key}.{number}"));
        let cx = cx.with_needs(self.spec.model.clone());
        let (reserved, cx) = Reserved::for_chat(&self.run, &self.caller.path, request, cx)?;
        let response = self.run.ports.model.chat(request, &cx).await?;
        let spent = Spent { model: None, usage: response.usage, cost: response.cost, tries: 1 };
        reserved.settle(Used::of_call(&spent));
        self.done(|done| {
            done.spent.usage += spent.usage;
            done.spent.cost = done.spent.cost.into_iter().chain(spent.cost).reduce(|sum, cost| sum + cost);
        });
        Ok(response)
    }

    /// Takes the notes, and what the call used besides itself.
    pub(super) async fn finish(&self) -> Spent {
        let (notes, spent) =
            self.done(|done| (std::mem::take(&mut done.notes), std::mem::take(&mut done.spent)));
        for note in notes {
            self.run.send(ToDriver::Record(Box::new(note))).await;
        }
        spent
    }
}

impl fmt::Debug for InCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InCall")
            .field("caller", &self.caller)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}
