//! The port to tools.

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
}

#[async_trait]
impl<T: Toolbox + ?Sized> Toolbox for std::sync::Arc<T> {
    async fn list(&self, caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        (**self).list(caller).await
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        (**self).call(call, cx).await
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
    /// The other side can be asked whether it happened.
    Reconcile,
    /// It can't be taken back: a person decides.
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The model's id for the call, unique in its message.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments, an object. Text that was not JSON stands here as a string, so that the
    /// tool's refusal can quote it.
    pub arguments: Value,
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
