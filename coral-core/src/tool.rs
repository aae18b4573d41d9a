//! The port to tools.

use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::call::{CallContext, Caller};
use crate::error::Error;

/// A set of tools that agents may call.
///
/// # Duties of an implementation
/// - [`list`](Toolbox::list) shows a caller only what it may call, in a stable order.
/// - [`call`](Toolbox::call) checks the permission of `cx.caller()` before anything else, and
///   journals or audits what it decided. A denied call is an [`Err`] of kind
///   [`Denied`](crate::ErrorKind::Denied): the model is told, the step goes on.
/// - A call that a person must approve is an [`Err`] of kind
///   [`NeedsApproval`](crate::ErrorKind::NeedsApproval), unless `cx.approval()`
///   [covers](Approval::covers) it. The engine asks, durably, and calls again.
/// - A tool that ran and failed is an `Ok` with [`ToolOutput::is_error`].
/// - `cx.key()` is the same for each try of the same effect: pass it on as the idempotency key
///   where the tool takes one.
/// - Stop the tool when the future is dropped, where the tool can be stopped.
#[async_trait]
pub trait Toolbox: Send + Sync {
    /// The tools that `caller` may call.
    async fn list(&self, caller: &Caller) -> Result<Vec<ToolDef>, Error>;

    /// Calls one tool.
    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error>;

    /// Finds out whether the call under `cx.key()` took place, after a crash left that unknown. Asked
    /// for tools of class [`Reconcile`](EffectClass::Reconcile) only; where nobody can tell, a person
    /// is asked.
    async fn reconcile(&self, call: &ToolCall, cx: &CallContext) -> Result<Reconciled, Error> {
        match self.beneath() {
            Some(toolbox) => toolbox.reconcile(call, cx).await,
            None => Ok(Reconciled::Unknown),
        }
    }

    /// From now on `to` acts for `from`, whose agent chose it: `to` must not be allowed more than `from`
    /// is. Called before the first call of `to`, and again whenever its run is taken up.
    fn delegate(&self, from: &Caller, to: &Caller) -> Result<(), Error> {
        self.beneath().map_or(Ok(()), |toolbox| toolbox.delegate(from, to))
    }

    /// A run is over, or stands still: what was kept for it may go.
    fn forget(&self, run: &str) {
        if let Some(toolbox) = self.beneath() {
            toolbox.forget(run);
        }
    }

    /// The toolbox that this one is a layer over, which gets what the layer does not change.
    fn beneath(&self) -> Option<&dyn Toolbox> {
        None
    }
}

#[async_trait]
impl<T: Toolbox + ?Sized> Toolbox for std::sync::Arc<T> {
    async fn list(&self, caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        (**self).list(caller).await
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        (**self).call(call, cx).await
    }

    async fn reconcile(&self, call: &ToolCall, cx: &CallContext) -> Result<Reconciled, Error> {
        (**self).reconcile(call, cx).await
    }

    fn delegate(&self, from: &Caller, to: &Caller) -> Result<(), Error> {
        (**self).delegate(from, to)
    }

    fn forget(&self, run: &str) {
        (**self).forget(run);
    }

    fn beneath(&self) -> Option<&dyn Toolbox> {
        (**self).beneath()
    }
}

/// A toolbox without tools.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTools;

#[async_trait]
impl Toolbox for NoTools {
    async fn list(&self, _caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        Ok(Vec::new())
    }

    async fn call(&self, call: &ToolCall, _cx: &CallContext) -> Result<ToolOutput, Error> {
        Err(Error::not_found("tool", &call.name, []).with_help("give the runner a toolbox"))
    }
}

/// What may be done when a crash leaves it unknown whether an effect took place.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EffectClass {
    /// It changes nothing: do it again.
    Pure,
    /// Doing it twice is doing it once: do it again.
    Idempotent,
    /// The other side can be asked whether it happened. As what is irreversible, it is not done again
    /// by a later attempt.
    Reconcile,
    /// It can't be taken back: a person decides. When a step is tried again, what an earlier attempt
    /// did is not done again for the same request: the later attempt is given the outcome. So declare a tool
    /// whose answer changes, such as one that runs tests, `Pure` or `Idempotent`.
    #[default]
    Irreversible,
}

impl EffectClass {
    /// Whether it may be done again when its outcome is unknown.
    pub fn is_repeatable(self) -> bool {
        matches!(self, EffectClass::Pure | EffectClass::Idempotent)
    }
}

/// A tool as a model sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolDef {
    /// The name to call it by: letters, digits, `_` and `-`, at most 64; namespaced by its server
    /// (`filesystem__write_file`).
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON Schema of its arguments, an object.
    pub input_schema: Value,
    /// What may be done when its outcome is unknown.
    #[serde(default)]
    pub effect: EffectClass,
}

/// A call that a model asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolCall {
    /// The model's id for the call, unique in its message.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments, an object. Text that was not JSON stands here as a string, so that the
    /// tool's refusal can quote it.
    pub arguments: Value,
}

/// What a toolbox found out about a call that a crash cut off.
#[derive(Clone, Debug, PartialEq)]
pub enum Reconciled {
    /// It took place, and gave this.
    Happened(ToolOutput),
    /// It did not take place, and may be made now.
    DidNotHappen,
    /// Nobody can tell but a person.
    Unknown,
}

/// A person's approval of one tool call.
#[derive(Clone, Debug, PartialEq)]
pub struct Approval {
    call: ToolCall,
    question: Arc<str>,
}

impl Approval {
    /// The approval of `call`, given as the answer to `question`.
    pub fn new(call: ToolCall, question: impl Into<Arc<str>>) -> Self {
        Approval { call, question: question.into() }
    }

    /// Whether this very call was approved: the same tool with the same arguments.
    pub fn covers(&self, call: &ToolCall) -> bool {
        self.call.name == call.name && self.call.arguments == call.arguments
    }

    /// The id of the question that was answered: the journal says by whom.
    pub fn question(&self) -> &Arc<str> {
        &self.question
    }
}

/// What a person is asked under the label `approve_tool_call`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalRequest {
    /// The agent that wants to call.
    pub agent: String,
    /// The tool.
    pub tool: String,
    /// The exact arguments: an approval holds for these alone.
    pub arguments: Value,
    /// Why somebody must look at it.
    pub reason: String,
}

/// The answer to an [`ApprovalRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalAnswer {
    /// Whether the call may be made.
    pub approved: bool,
    /// Why not: the model is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a person is asked under the label `needs_reconciliation`, when a crash left it unknown whether
/// something took place that can't be taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InDoubtEffect {
    /// What it is: a tool's name, or an effect's label.
    pub effect: String,
    /// The idempotency key that went with it: where to look it up.
    pub key: String,
    /// The arguments, for a tool call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Value>,
}

/// The answer to an [`InDoubtEffect`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reconciliation {
    /// What is known of it.
    pub decision: Decision,
    /// What it gave, if it happened: text or an object for a tool call, the effect's own type else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

/// What a person knows of an effect in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It took place: go on with its result.
    Happened,
    /// It did not take place: do it now.
    DidNotHappen,
    /// Nobody can tell: the step fails with [`InDoubt`](crate::ErrorKind::InDoubt).
    GiveUp,
}

/// What a tool answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolOutput {
    /// What the model gets to see.
    pub content: String,
    /// The same as data, where the tool gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structured: Option<Value>,
    /// Whether the tool failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_error: bool,
}

impl ToolOutput {
    /// An answer of text.
    pub fn text(content: impl Into<String>) -> Self {
        ToolOutput { content: content.into(), structured: None, is_error: false }
    }

    /// A failure that the model should see.
    pub fn error(content: impl Into<String>) -> Self {
        ToolOutput { content: content.into(), structured: None, is_error: true }
    }
}
