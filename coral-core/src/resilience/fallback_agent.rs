//! Another agent, where one fails.

use async_trait::async_trait;
use serde_json::json;

use crate::agent::{Agent, HandoffDraft};
use crate::context::AgentContext;
use crate::error::{AgentError, Error, ErrorKind};
use crate::spec::AgentSpec;

/// An agent with another behind it, which does the work where the first fails.
///
/// It counts as the first: its spec, its permissions and its handoffs are the first's, so nothing is gained
/// by failing. Both work within one attempt of one step, on the same journal: what the first did is recorded and
/// paid, and a resumed step falls back as it did. The change is a note, `agent_fell_back`.
///
/// ```
/// use coral_core::resilience::FallbackAgent;
/// use coral_core::{Agent, AgentContext, AgentError, AgentSpec};
///
/// struct Translator(AgentSpec);
///
/// #[async_trait::async_trait]
/// impl Agent for Translator {
///     type Input = String;
///     type Output = String;
///     fn spec(&self) -> &AgentSpec {
///         &self.0
///     }
///     async fn run(&self, text: String, _: &mut AgentContext) -> Result<String, AgentError> {
///         Ok(text)
///     }
/// }
///
/// let careful = Translator(AgentSpec::new("careful", "Careful translator"));
/// let plain = Translator(AgentSpec::new("plain", "Plain translator"));
/// let agent = FallbackAgent::new(careful, plain);
/// assert_eq!(agent.spec().id, "careful");
/// ```
#[derive(Clone, Debug)]
pub struct FallbackAgent<A, B> {
    first: A,
    then: B,
}

impl<A, B> FallbackAgent<A, B>
where
    A: Agent,
    B: Agent<Input = A::Input, Output = A::Output>,
{
    /// `first`, and `then` where that fails. `then` may have a fallback of its own.
    pub fn new(first: A, then: B) -> Self {
        FallbackAgent { first, then }
    }
}

/// Whether another agent could do better. What ends a run, or can't be gone around, ends the step.
fn may_help(error: &Error) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::Budget { .. }
            | ErrorKind::Cancelled { .. }
            | ErrorKind::Suspended { .. }
            | ErrorKind::Divergence { .. }
            | ErrorKind::InDoubt { .. }
            | ErrorKind::Fenced { .. }
            | ErrorKind::Conflict { .. }
            | ErrorKind::Storage { .. }
    )
}

/// The work of one agent with its own output stage: each brings into shape what it gave itself, and one
/// that can't has failed.
async fn work<A: Agent>(agent: &A, input: A::Input, cx: &mut AgentContext) -> Result<A::Output, AgentError> {
    let output = agent.run(input, cx).await?;
    agent.process_output(output, cx).await
}

#[async_trait]
impl<A, B> Agent for FallbackAgent<A, B>
where
    A: Agent,
    B: Agent<Input = A::Input, Output = A::Output>,
{
    type Input = A::Input;
    type Output = A::Output;

    fn spec(&self) -> &AgentSpec {
        self.first.spec()
    }

    fn stand_ins(&self) -> Vec<&AgentSpec> {
        let mut specs = self.first.stand_ins();
        specs.push(self.then.spec());
        specs.extend(self.then.stand_ins());
        specs
    }

    async fn run(&self, input: A::Input, cx: &mut AgentContext) -> Result<A::Output, AgentError> {
        let error = match work(&self.first, input.clone(), cx).await {
            Ok(output) => return Ok(output),
            Err(error) => error.into_error(),
        };
        if !may_help(&error) {
            return Err(error.into());
        }
        let note = json!({"to": self.then.spec().id, "error": error.to_string()});
        cx.note("agent_fell_back", note).await;
        work(&self.then, input, cx).await
    }

    async fn initialize(&self, cx: &mut AgentContext) -> Result<(), AgentError> {
        self.first.initialize(cx).await?;
        self.then.initialize(cx).await
    }

    async fn load_configuration(&self, cx: &mut AgentContext) -> Result<(), AgentError> {
        self.first.load_configuration(cx).await?;
        self.then.load_configuration(cx).await
    }

    async fn validate_dependencies(&self, input: &A::Input, cx: &mut AgentContext) -> Result<(), AgentError> {
        self.first.validate_dependencies(input, cx).await
    }

    async fn prepare_context(&self, input: A::Input, cx: &mut AgentContext) -> Result<A::Input, AgentError> {
        self.first.prepare_context(input, cx).await
    }

    fn handoff(&self, output: &A::Output, to: &str, cx: &AgentContext) -> Result<HandoffDraft, AgentError> {
        self.first.handoff(output, to, cx)
    }

    async fn clean_up(&self, cx: &mut AgentContext) {
        self.first.clean_up(cx).await;
        self.then.clean_up(cx).await;
    }
}
