//! What servers ask back in the midst of a call, and who answers.

use async_trait::async_trait;
use coral_core::{CallContext, ChatRequest, ChatResponse, Error};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A server's question to a person, in the midst of a call.
///
/// Its words are the server's: show them as such.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Elicitation {
    /// The server.
    pub server: String,
    /// The tool that is called, by its name at the server.
    pub tool: String,
    /// What the server says.
    pub message: String,
    /// What the answer must fit: a flat object, as JSON Schema.
    pub schema: Value,
    /// A page that the person is to open, in the place of an answer here. It is an `https` address, or
    /// one on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// What a person says to an [`Elicitation`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", content = "content", rename_all = "snake_case")]
pub enum Reply {
    /// The values asked for. Those left out take the schema's defaults.
    Accept(Value),
    /// No.
    Decline,
    /// The person turned away.
    Cancel,
}

/// Answers what servers ask back in the midst of a call, where their rules let them
/// (`connection: {elicitation: true, sampling: true}` in the permission file).
///
/// A server is told of either ability only if its rules allow it, and each call may ask back 16 times
/// at the most. While a question is open, the call's own deadline stands still.
#[async_trait]
pub trait Counterpart: Send + Sync {
    /// Asks a person.
    ///
    /// # Errors
    /// Any reason why nobody could be asked: the server is told that the question was cancelled.
    async fn elicit(&self, question: &Elicitation, cx: &CallContext) -> Result<Reply, Error>;

    /// Calls a model on behalf of the server.
    ///
    /// # Errors
    /// Any reason why it was not called: the server is told that it was refused.
    async fn sample(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error>;
}

/// The run that the call is part of: a person is asked by a durable question under the label
/// `mcp_elicitation`, and the run's model is called, paid from its budgets. Outside of a run nobody is
/// asked and no model is called.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByRun;

#[async_trait]
impl Counterpart for ByRun {
    async fn elicit(&self, question: &Elicitation, cx: &CallContext) -> Result<Reply, Error> {
        let failed = |error: serde_json::Error| Error::invalid("a server's question", error.to_string());
        let asked = serde_json::to_value(question).map_err(failed)?;
        // What is left out takes its default, so it is not asked for.
        let mut content = question.schema.clone();
        if let Some(content) = content.as_object_mut() {
            content.remove("required");
        }
        let answer = json!({
            "type": "object",
            "properties": {"action": {"enum": ["accept", "decline", "cancel"]}, "content": content},
            "required": ["action"],
        });
        let mut answer = cx.ask("mcp_elicitation", asked, answer).await?;
        if answer.get("action").and_then(Value::as_str) == Some("accept") && answer.get("content").is_none() {
            answer = json!({"action": "accept", "content": {}});
        }
        serde_json::from_value(answer).map_err(failed)
    }

    async fn sample(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        cx.chat(request).await
    }
}
