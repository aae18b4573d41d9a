//! What the tests share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_core::{
    CallContext, Caller, ChatModel, ChatRequest, ChatResponse, EffectClass, Error, Event, Journal, Record,
    Run, ToolCall, ToolDef, ToolOutput, Toolbox,
};
use serde_json::json;

/// A model that answers by a function of the request, and counts.
pub(crate) struct FnModel<F> {
    answer: F,
    pub(crate) requests: Arc<Mutex<Vec<ChatRequest>>>,
}

impl<F: Fn(usize, &ChatRequest) -> Result<ChatResponse, Error> + Send + Sync> FnModel<F> {
    pub(crate) fn new(answer: F) -> Self {
        FnModel { answer, requests: Arc::default() }
    }
}

#[async_trait]
impl<F: Fn(usize, &ChatRequest) -> Result<ChatResponse, Error> + Send + Sync> ChatModel for FnModel<F> {
    fn name(&self) -> &str {
        "test"
    }

    async fn chat(&self, request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        let count = {
            let mut requests = self.requests.lock().unwrap();
            requests.push(request.clone());
            requests.len()
        };
        (self.answer)(count, request)
    }
}

/// Tools that write what they are called with into a shared list, by key.
#[derive(Clone, Default)]
pub(crate) struct Sink(pub(crate) Arc<Mutex<BTreeMap<String, Vec<String>>>>);

#[async_trait]
impl Toolbox for Sink {
    async fn list(&self, _caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        Ok(vec![ToolDef {
            name: "write".into(),
            description: "writes".into(),
            input_schema: json!({"type": "object", "properties": {"path": {"type": "string"}}}),
            effect: EffectClass::Idempotent,
        }])
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        self.0.lock().unwrap().entry(cx.key().to_owned()).or_default().push(call.arguments.to_string());
        Ok(ToolOutput::text("written"))
    }
}

/// All records of a run.
pub(crate) async fn records(journal: &dyn Journal, run: &str) -> Vec<Record> {
    journal.read(run, 1, usize::MAX).await.unwrap()
}

/// The run's events as short texts: `event path`.
pub(crate) async fn story<O>(run: &Run<O>) -> Vec<String> {
    let mut events = run.events(1);
    let mut story = Vec::new();
    while let Some(record) = events.next().await {
        story.push(line(&record.unwrap().event));
    }
    story
}

pub(crate) fn line(event: &Event) -> String {
    let name = match serde_json::to_value(event).unwrap() {
        serde_json::Value::Object(map) => map.keys().next().unwrap().clone(),
        other => other.to_string(),
    };
    let detail = match event {
        Event::StageEntered { stage, .. } => format!(" {}", json!(stage).as_str().unwrap()),
        Event::RunFinished { status, .. } => format!(" {}", json!(status).as_str().unwrap()),
        Event::HandedOff { to, .. } => format!(" to {to}"),
        Event::StepSkipped { reason, .. } => format!(" because {reason}"),
        _ => String::new(),
    };
    match event.path() {
        Some(path) => format!("{name} {path}{detail}"),
        None => format!("{name}{detail}"),
    }
}
