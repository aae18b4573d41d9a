//! The contract of agents, and the sequence of their lifecycle.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;

use crate::context::AgentContext;
use crate::error::{AgentError, Error, ErrorKind};
use crate::event::Stage;
use crate::payload::{Data, Payload};
use crate::spec::AgentSpec;
use crate::task::{MessageContext, MessageType};

/// How long an agent may clean up: a run that is cancelled comes to its end.
const CLEAN_UP: Duration = Duration::from_secs(30);

/// One specialist.
///
/// An agent is stateless: one value serves all runs at once, and what must survive lives in the
/// journal. All that it does to the world outside goes through its [`AgentContext`]: a model call,
/// a tool call, a clock reading, a drawn number, an effect of its own. The context records each
/// once. When a run is resumed, `run` is called again from its top and gets the recorded outcomes,
/// so between its effects it must be a pure function of its input and their outcomes.
///
/// ```
/// use async_trait::async_trait;
/// use coral_core::{Agent, AgentContext, AgentError, AgentSpec, ChatRequest};
///
/// struct Translator(AgentSpec);
///
/// #[async_trait]
/// impl Agent for Translator {
///     type Input = String;
///     type Output = String;
///
///     fn spec(&self) -> &AgentSpec {
///         &self.0
///     }
///
///     async fn run(&self, text: String, cx: &mut AgentContext) -> Result<String, AgentError> {
///         let answer = cx.chat(&ChatRequest::new("Translate to French.", text)).await?;
///         Ok(answer.message.text())
///     }
/// }
/// ```
///
/// # Lifecycle
/// The engine takes an agent through the nine [`Stage`]s in order and records each. Override the
/// methods of those in which the agent has something to do. [`clean_up`](Agent::clean_up) runs
/// however the others ended, also after a failure, a panic, a timeout or a cancellation.
///
/// # Cancellation
/// Any stage but clean-up may be dropped at any await point.
#[async_trait]
pub trait Agent: Send + Sync + 'static {
    /// What it takes.
    type Input: Data;
    /// What it gives.
    type Output: Data;

    /// Who it is.
    fn spec(&self) -> &AgentSpec;

    /// The agents that may work in its place: a run is pinned to their definitions too.
    fn stand_ins(&self) -> Vec<&AgentSpec> {
        Vec::new()
    }

    /// Stage 5, *execute*: does the work.
    ///
    /// # Errors
    /// Those of its effects, and its own. Only a transient one lets the step be tried again.
    async fn run(&self, input: Self::Input, cx: &mut AgentContext) -> Result<Self::Output, AgentError>;

    /// Stage 1: sets up what the agent needs.
    async fn initialize(&self, _cx: &mut AgentContext) -> Result<(), AgentError> {
        Ok(())
    }

    /// Stage 2: fits the agent to the phase and the run.
    async fn load_configuration(&self, _cx: &mut AgentContext) -> Result<(), AgentError> {
        Ok(())
    }

    /// Stage 3: checks that what the agent depends on is there.
    async fn validate_dependencies(
        &self,
        _input: &Self::Input,
        _cx: &mut AgentContext,
    ) -> Result<(), AgentError> {
        Ok(())
    }

    /// Stage 4: brings the input into shape.
    async fn prepare_context(
        &self,
        input: Self::Input,
        _cx: &mut AgentContext,
    ) -> Result<Self::Input, AgentError> {
        Ok(input)
    }

    /// Stage 6: brings the output into shape.
    async fn process_output(
        &self,
        output: Self::Output,
        _cx: &mut AgentContext,
    ) -> Result<Self::Output, AgentError> {
        Ok(output)
    }

    /// Stage 8: says what goes along to `to`, the agent of a step that follows.
    ///
    /// The default hands over the deliverables that the spec promises.
    fn handoff(
        &self,
        _output: &Self::Output,
        to: &str,
        cx: &AgentContext,
    ) -> Result<HandoffDraft, AgentError> {
        let _ = to;
        Ok(HandoffDraft::of_spec(cx.spec()))
    }

    /// Stage 9: lets go of what the agent held. It is cut off after half a minute.
    async fn clean_up(&self, _cx: &mut AgentContext) {}
}

/// What an agent says when it hands over; the engine adds ids, time, project and phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoffDraft {
    /// What kind of message it is.
    pub message_type: MessageType,
    /// What was delivered.
    pub deliverables: Vec<crate::task::Deliverable>,
    /// What the receiver should do.
    pub next_tasks: Vec<String>,
}

impl HandoffDraft {
    /// The deliverables that `spec` promises, without tasks.
    pub fn of_spec(spec: &AgentSpec) -> Self {
        let deliverables = spec
            .outputs
            .iter()
            .filter(|output| !output.optional)
            .map(|output| crate::task::Deliverable {
                kind: output.kind.clone(),
                path: output.path.clone(),
                description: output.description.clone(),
            })
            .collect();
        HandoffDraft { message_type: MessageType::Handoff, deliverables, next_tasks: Vec::new() }
    }

    /// Nothing to hand over but the turn.
    pub(crate) fn empty() -> Self {
        HandoffDraft { message_type: MessageType::Handoff, deliverables: Vec::new(), next_tasks: Vec::new() }
    }

    pub(crate) fn into_context(self, project: &str, phase: &str) -> (MessageContext, Vec<String>) {
        let context = MessageContext {
            project: project.to_owned(),
            phase: phase.to_owned(),
            deliverables: self.deliverables,
        };
        (context, self.next_tasks)
    }
}

/// An agent whose types are erased: what registries and data graphs hold. Every [`Agent`] is one.
#[async_trait]
pub trait ErasedAgent: Send + Sync {
    /// Who it is.
    fn spec(&self) -> &AgentSpec;

    /// The agents that may work in its place.
    fn stand_ins(&self) -> Vec<&AgentSpec>;

    /// Whether it takes a [`Task`](crate::Task): what data graphs make of a brief and of handoffs.
    fn takes_task(&self) -> bool;

    /// JSON Schema of what it takes.
    fn input_schema(&self) -> serde_json::Value;

    /// JSON Schema of what it gives.
    fn output_schema(&self) -> serde_json::Value;

    /// Takes the agent through its whole lifecycle.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if `input` is not what the agent takes; else the agent's.
    async fn run_erased(&self, input: Payload, cx: &mut AgentContext) -> Result<Payload, Error>;
}

#[async_trait]
impl<A: Agent> ErasedAgent for A {
    fn spec(&self) -> &AgentSpec {
        Agent::spec(self)
    }

    fn stand_ins(&self) -> Vec<&AgentSpec> {
        Agent::stand_ins(self)
    }

    fn takes_task(&self) -> bool {
        crate::program::is_task::<A::Input>()
    }

    fn input_schema(&self) -> serde_json::Value {
        schemars::schema_for!(A::Input).to_value()
    }

    fn output_schema(&self) -> serde_json::Value {
        schemars::schema_for!(A::Output).to_value()
    }

    async fn run_erased(&self, input: Payload, cx: &mut AgentContext) -> Result<Payload, Error> {
        let timeout_ms = cx.timeout_ms().or(Agent::spec(self).limits.timeout_ms);
        let cancelled = cx.cancelled();
        tokio::pin!(cancelled);
        let name = cx.path().clone();
        let presence = cx.presence();
        // Waiting for a permit is not working: the time limit begins after it.
        tokio::select! {
            biased;
            permitted = cx.begin_work() => permitted?,
            error = &mut cancelled => return Err(error),
        }
        let result = {
            let stages = AssertUnwindSafe(stages(self, input, cx)).catch_unwind();
            let limit = async {
                match timeout_ms {
                    Some(ms) => presence.worked_ms(ms).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                result = stages => result.unwrap_or_else(|panic| Err(panicked(&name, &*panic))),
                error = &mut cancelled => Err(error),
                () = limit => Err(Error::new(ErrorKind::TimedOut {
                    what: name.to_string(),
                    limit_ms: timeout_ms.unwrap_or_default(),
                })),
            }
        };
        cx.enter(Stage::CleanUp).await;
        let clean_up = AssertUnwindSafe(self.clean_up(cx)).catch_unwind();
        match tokio::time::timeout(CLEAN_UP, clean_up).await {
            Ok(Ok(())) => {}
            Ok(Err(panic)) => {
                tracing::error!(step = %name, error = %panicked(&name, &*panic), "clean-up failed");
            }
            Err(_) => tracing::error!(step = %name, limit = ?CLEAN_UP, "clean-up did not end in time"),
        }
        result
    }
}

/// The stages up to clean-up, in their order.
async fn stages<A: Agent>(agent: &A, input: Payload, cx: &mut AgentContext) -> Result<Payload, Error> {
    let input: A::Input = input.get().map_err(|error| {
        error.with_help(format!("the step before gives another type than agent `{}` takes", agent.spec().id))
    })?;
    let own = AgentError::into_error;

    cx.enter(Stage::Initialize).await;
    agent.initialize(cx).await.map_err(own)?;

    cx.enter(Stage::LoadConfiguration).await;
    agent.load_configuration(cx).await.map_err(own)?;

    cx.enter(Stage::ValidateDependencies).await;
    agent.validate_dependencies(&input, cx).await.map_err(own)?;

    cx.enter(Stage::PrepareContext).await;
    let input = agent.prepare_context(input, cx).await.map_err(own)?;

    cx.enter(Stage::Execute).await;
    let output = agent.run(input, cx).await.map_err(own)?;

    cx.enter(Stage::ProcessOutput).await;
    let output = agent.process_output(output, cx).await.map_err(own)?;

    // The record of the step's success carries the output; what can't be recorded fails here.
    cx.enter(Stage::StoreResults).await;
    let payload = Payload::new(output.clone());
    cx.check_next_agent(&payload)?;

    cx.enter(Stage::GenerateHandoff).await;
    for successor in cx.successors(&payload) {
        let draft = agent.handoff(&output, &successor.agent, cx).map_err(own)?;
        cx.hand_off(&successor, draft).await;
    }
    Ok(payload)
}

pub(crate) fn panicked(what: &Arc<str>, panic: &(dyn std::any::Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Error::new(ErrorKind::Panicked { what: what.to_string(), message })
}
