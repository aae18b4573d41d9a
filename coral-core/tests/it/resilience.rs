//! The layers around the ports, on a paused clock: every wait is exact.

mod breaker;
mod bulkhead;
mod fallback;
mod health;
mod rate;
mod retry_budget;
mod timers;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, CallContext, Caller, Category, ChatModel, ChatRequest,
    ChatResponse, Error, ErrorKind, Flow, Handle, ModelFault, ToolFault, Workflow,
};
use tokio::time::Instant;

/// An error of a model.
pub(crate) fn fault(fault: ModelFault) -> Error {
    Error::new(ErrorKind::Model { fault, model: "test".into(), problem: "planned".into() })
}

/// An error of a tool.
pub(crate) fn tool_fault(fault: ToolFault) -> Error {
    Error::new(ErrorKind::Tool { fault, tool: "test".into(), problem: "planned".into() })
}

/// The fault of a model call that failed.
pub(crate) fn fault_of<T: std::fmt::Debug>(result: Result<T, Error>) -> ModelFault {
    match result.unwrap_err().kind() {
        ErrorKind::Model { fault, .. } => *fault,
        other => panic!("{other}"),
    }
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Milliseconds since `begin`.
pub(crate) fn since(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_millis()).unwrap()
}

/// Terms of a call by an agent of `category`, outside of a run.
pub(crate) fn caller(category: Category) -> CallContext {
    CallContext::new(Caller { category, ..Caller::agent("tester") })
}

/// Asks `model` something.
pub(crate) async fn ask(model: &dyn ChatModel) -> Result<ChatResponse, Error> {
    model.chat(&ChatRequest::user("?"), &caller(Category::Core)).await
}

/// Lets all tasks go on until each waits for something.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// A model that takes `0` milliseconds to answer.
pub(crate) struct Slow(pub(crate) u64);

#[async_trait]
impl ChatModel for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    async fn chat(&self, _request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        tokio::time::sleep(ms(self.0)).await;
        Ok(ChatResponse::text("slow", "done"))
    }
}

/// A workflow of one agent that asks its model once.
pub(crate) struct Asks;

struct Asker(AgentSpec);

#[async_trait]
impl Agent for Asker {
    type Input = String;
    type Output = String;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, input: String, cx: &mut AgentContext) -> Result<String, AgentError> {
        Ok(cx.chat(&ChatRequest::user(input)).await?.message.text())
    }
}

impl Workflow for Asks {
    type Input = String;
    type Output = String;

    fn name(&self) -> &str {
        "asks"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
        flow.step(Asker(AgentSpec::new("asker", "Asker")), flow.input())
    }
}

/// Counts, shared.
pub(crate) type Count = Arc<std::sync::atomic::AtomicUsize>;
