//! What agents that are data take and give, and the message that passes between them.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::handoff::Finding;

/// What a run of a team begins with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Brief {
    /// The project's name.
    pub project: String,
    /// What is wanted, in Markdown.
    pub text: Arc<str>,
    /// Facts that conditions ask for, such as `needs_mobile: true`.
    #[serde(default)]
    pub facts: BTreeMap<String, Value>,
}

/// What a data agent is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// The brief of the whole project.
    pub brief: Brief,
    /// The phase of the workflow.
    #[serde(default)]
    pub phase: String,
    /// What earlier agents handed over, in the order of the graph.
    #[serde(default)]
    pub inputs: Vec<TaskInput>,
    /// All that the steps before have delivered, theirs before them included.
    #[serde(default)]
    pub available: Vec<Deliverable>,
    /// What this agent is asked to do beyond its definition.
    #[serde(default)]
    pub instructions: Vec<String>,
    /// What was sent back to this agent, and by it, in the rounds before; empty in the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reviews: Vec<HandoffMessage>,
    /// What this agent reported in the round before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Box<Report>>,
}

/// What one earlier agent handed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskInput {
    /// The message of the protocol.
    pub message: HandoffMessage,
    /// What the earlier agent wants to be known, as its definition's `preserve` says.
    #[serde(default)]
    pub preserved: BTreeMap<String, Value>,
}

/// What a data agent gives.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// What was done, in a few sentences.
    pub summary: String,
    /// What was delivered.
    #[serde(default)]
    pub deliverables: Vec<Deliverable>,
    /// Decisions made, each with its reason.
    #[serde(default)]
    pub decisions: Vec<String>,
    /// What the next agents should do.
    #[serde(default)]
    pub next_tasks: Vec<String>,
    /// The agent to hand off to, where the model routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_agent: Option<String>,
    /// What the agents before are to mend first, where the graph lets this one send work back. With
    /// any, the report is not passed on: the work goes back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub send_back: Vec<Finding>,
    /// What the agent's own output schema asks for.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

/// Something delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deliverable {
    /// The type, such as `api_specification`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it is, relative to the project's root.
    pub path: String,
    /// What it holds.
    pub description: String,
}

/// The message of the agent communication protocol, in its exact JSON shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HandoffMessage {
    /// A UUID, derived from the run, the sender's path and the receiver's: the same on replay.
    pub message_id: String,
    /// When it was sent, RFC 3339 in UTC.
    pub timestamp: String,
    /// The agent that hands over.
    pub from_agent: String,
    /// The agent that takes over.
    pub to_agent: String,
    /// What kind of message it is.
    pub message_type: MessageType,
    /// What is handed over.
    pub context: MessageContext,
    /// What the receiver should do.
    pub next_tasks: Vec<String>,
}

/// What kind of message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MessageType {
    /// Work goes on to the next agent.
    Handoff,
    /// Work goes back with a reason.
    Review,
}

/// What is handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MessageContext {
    /// The project.
    pub project: String,
    /// The phase of the workflow.
    pub phase: String,
    /// What was delivered.
    pub deliverables: Vec<Deliverable>,
}
