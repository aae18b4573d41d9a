//! The port to language models: one request type, one response type, one method.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::call::CallContext;
use crate::error::Error;
use crate::money::Usd;
use crate::tool::{ToolCall, ToolDef};

/// A model that answers chat requests.
///
/// Streaming is a property of the call, not another method: when the [`CallContext`] has a
/// listener for [`Delta`]s, an implementation that can stream reports each piece as it comes;
/// the returned response is whole either way.
///
/// # Duties of an implementation
/// - Return [`ModelFault::Truncated`](crate::ModelFault::Truncated) when the provider did not end its answer: half an
///   answer must never look like a whole one.
/// - Class each error at its source, and pass on the provider's `Retry-After` as
///   [`Error::with_retry_after_ms`]. Repeat nothing: the engine repeats, within the run's policy
///   and budget, so that each attempt is counted.
/// - Stop the provider's work when the future is dropped: dropping is how a run cancels.
/// - Count `usage.input_tokens` with cached tokens included.
///
/// # Errors
/// [`ErrorKind::Model`](crate::ErrorKind::Model) for all that the provider or the wire did.
#[async_trait]
pub trait ChatModel: Send + Sync {
    /// The name in journals, errors and bills, such as `anthropic/claude-sonnet-5`.
    fn name(&self) -> &str;

    /// The model that this one is a layer around. What a layer does not say itself is what that says.
    fn inner(&self) -> Option<&dyn ChatModel> {
        None
    }

    /// What the model can do and what it costs, for routing and for reserving budget. A layer that says so itself says
    /// [`info_for`](ChatModel::info_for) too.
    fn info(&self) -> ModelInfo {
        self.inner().map(ChatModel::info).unwrap_or_default()
    }

    /// What the model that would answer `request` under the terms of `cx` can do and costs, where one name
    /// stands for several models. What it says is reserved from the budgets, and the call must stay within
    /// it.
    fn info_for(&self, request: &ChatRequest, cx: &CallContext) -> ModelInfo {
        self.inner().map_or_else(|| self.info(), |inner| inner.info_for(request, cx))
    }

    /// What answers may be kept under, beside the request: models of one identity answer alike under the terms of `cx`.
    /// The name, unless settings shape the answers too, or the terms decide which model answers.
    fn identity(&self, cx: &CallContext) -> Cow<'_, str> {
        self.inner().map_or_else(|| Cow::Borrowed(self.name()), |inner| inner.identity(cx))
    }

    /// Answers one request.
    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error>;
}

impl<M: ChatModel + ?Sized> ChatModel for Arc<M> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn inner(&self) -> Option<&dyn ChatModel> {
        (**self).inner()
    }

    fn info(&self) -> ModelInfo {
        (**self).info()
    }

    fn info_for(&self, request: &ChatRequest, cx: &CallContext) -> ModelInfo {
        (**self).info_for(request, cx)
    }

    fn identity(&self, cx: &CallContext) -> Cow<'_, str> {
        (**self).identity(cx)
    }

    /// What `async_trait` makes of the method, by hand: nearly all models stand in an `Arc`, and another future around
    /// that of the model would be one more allocation for each call, and one more place to look at for each piece.
    fn chat<'life0, 'life1, 'life2, 'async_trait>(
        &'life0 self,
        request: &'life1 ChatRequest,
        cx: &'life2 CallContext,
    ) -> Pin<Box<dyn Future<Output = Result<ChatResponse, Error>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        'life2: 'async_trait,
        Self: 'async_trait,
    {
        (**self).chat(request, cx)
    }
}

/// What a model can do and what it costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ModelInfo {
    /// Tokens of input and output together that fit, where known.
    pub context_tokens: Option<u64>,
    /// Output tokens at the most, where known.
    pub max_output_tokens: Option<u64>,
    /// Prices, where known. A model without a price is refused by a run that has a USD budget.
    pub price: Option<Price>,
    /// The prices of calls with a long input, where they are others.
    pub long_input: Option<LongInput>,
    /// The price of input that the provider's cache keeps for long, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_cache: Option<LongCache>,
    /// Whether the answer is made by a program that stands in for a model.
    pub offline: bool,
}

impl ModelInfo {
    /// The prices of a call with `input_tokens` of input, where known.
    pub fn price_at(&self, input_tokens: u64) -> Option<Price> {
        let long = self.long_input.filter(|long| input_tokens > long.above_tokens);
        long.map(|long| long.price).or(self.price)
    }

    /// What one call that used `usage` costs, where the price is known.
    pub fn cost(&self, usage: &Usage) -> Option<Usd> {
        let price = self.price_at(usage.input_tokens)?;
        let Some(kept) = self.long_cache else { return Some(price.cost(usage)) };
        let is_long = self.long_input.is_some_and(|long| usage.input_tokens > long.above_tokens);
        let write = kept.long_input_cache_write.filter(|_| is_long).unwrap_or(kept.cache_write);
        let long_tokens = usage.long_cache_write_tokens.min(usage.cache_write_tokens);
        let rest = Usage {
            input_tokens: usage.input_tokens.saturating_sub(long_tokens),
            cache_write_tokens: usage.cache_write_tokens - long_tokens,
            ..*usage
        };
        Some(price.cost(&rest) + Usd::per_million(write, long_tokens))
    }

    /// This model with the highest prices and the longest answers of both, for reserving where either may answer.
    /// Unknown where one of them is.
    #[must_use]
    pub fn at_worst(mut self, other: &ModelInfo) -> ModelInfo {
        let long = |info: &ModelInfo| info.long_input.map(|long| long.price).or(info.price);
        let both = |a: Option<Price>, b: Option<Price>| a.zip(b).map(|(a, b)| a.max(b));
        let above = [self.long_input, other.long_input].iter().flatten().map(|long| long.above_tokens).min();
        self.long_input = above
            .zip(both(long(&self), long(other)))
            .map(|(above_tokens, price)| LongInput { above_tokens, price });
        self.price = both(self.price, other.price);
        self.long_cache = match (self.long_cache, other.long_cache) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        self.max_output_tokens = self.max_output_tokens.zip(other.max_output_tokens).map(|(a, b)| a.max(b));
        self
    }
}

/// The prices of calls whose input is longer than a bound. They are those of the whole call, of its output too.
///
/// ```
/// use coral_core::{LongInput, ModelInfo, Price, Usage, Usd};
///
/// let price = |dollars| Price { input: dollars, output: dollars, cache_read: dollars, cache_write: dollars };
/// let mut info = ModelInfo::default();
/// info.price = Some(price(1.0));
/// info.long_input = Some(LongInput { above_tokens: 200_000, price: price(2.0) });
/// let cost = |input_tokens| info.cost(&Usage { input_tokens, ..Usage::default() });
/// assert_eq!(cost(200_000), Some(Usd::from_dollars(0.2)));
/// assert_eq!(cost(400_000), Some(Usd::from_dollars(0.8)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongInput {
    /// Input tokens, cached ones included, above which these prices hold.
    pub above_tokens: u64,
    /// The prices.
    pub price: Price,
}

/// The price of input that the provider's cache is to keep for an hour or longer, in USD per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongCache {
    /// In place of [`Price::cache_write`].
    pub cache_write: f64,
    /// The same for [long input](ModelInfo::long_input).
    #[serde(default)]
    pub long_input_cache_write: Option<f64>,
}

impl LongCache {
    /// The higher one of each kind.
    fn max(self, other: LongCache) -> LongCache {
        let (a, b) = (self.long_input_cache_write, other.long_input_cache_write);
        LongCache {
            cache_write: self.cache_write.max(other.cache_write),
            long_input_cache_write: a.into_iter().chain(b).reduce(f64::max),
        }
    }
}

/// Prices in USD per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Price {
    /// Input that the provider's cache did not hold.
    pub input: f64,
    /// Output, reasoning included.
    pub output: f64,
    /// Input read from the provider's cache.
    pub cache_read: f64,
    /// Input written to the provider's cache.
    pub cache_write: f64,
}

impl Price {
    /// The higher one of each kind.
    #[must_use]
    pub fn max(self, other: Price) -> Price {
        Price {
            input: self.input.max(other.input),
            output: self.output.max(other.output),
            cache_read: self.cache_read.max(other.cache_read),
            cache_write: self.cache_write.max(other.cache_write),
        }
    }

    /// What `usage` costs, each kind of token rounded up to the picodollar.
    pub fn cost(&self, usage: &Usage) -> Usd {
        let fresh = usage
            .input_tokens
            .saturating_sub(usage.cache_read_tokens)
            .saturating_sub(usage.cache_write_tokens);
        Usd::per_million(self.input, fresh)
            + Usd::per_million(self.cache_read, usage.cache_read_tokens)
            + Usd::per_million(self.cache_write, usage.cache_write_tokens)
            + Usd::per_million(self.output, usage.output_tokens)
    }
}

/// One request to a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// The model asked for; `None` leaves the choice to the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The conversation, oldest first. System messages come first.
    pub messages: Vec<Message>,
    /// The tools that the model may call.
    #[serde(default, skip_serializing_if = "<[ToolDef]>::is_empty")]
    pub tools: Arc<[ToolDef]>,
    /// Whether the model must, may or must not call a tool.
    #[serde(default, skip_serializing_if = "ToolChoice::is_auto")]
    pub tool_choice: ToolChoice,
    /// The JSON schema that the final text must fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputFormat>,
    /// Output tokens at the most; `None` is the model's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
    /// Sampling temperature; dropped where the model refuses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// How hard the model should think, where it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// Texts at which the model stops.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

impl ChatRequest {
    /// A request with one user message.
    pub fn user(text: impl Into<String>) -> Self {
        ChatRequest { messages: vec![Message::user(text)], ..Default::default() }
    }

    /// A request with a system and a user message.
    pub fn new(system: impl Into<String>, user: impl Into<String>) -> Self {
        ChatRequest { messages: vec![Message::system(system), Message::user(user)], ..Default::default() }
    }
}

/// How hard a model should think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Effort {
    /// As little as the model allows.
    Minimal,
    /// Little.
    Low,
    /// The usual.
    Medium,
    /// Much.
    High,
    /// More than much.
    #[serde(rename = "xhigh")]
    ExtraHigh,
    /// All that the model can.
    Max,
}

/// Whether the model must, may or must not call a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No tool.
    None,
    /// Some tool.
    Required,
    /// This tool.
    Tool(String),
}

impl ToolChoice {
    fn is_auto(&self) -> bool {
        *self == ToolChoice::Auto
    }
}

/// The JSON schema that the final text must fit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputFormat {
    /// A name for the schema: letters, digits, `_` and `-`.
    pub name: String,
    /// JSON Schema, draft 2020-12.
    pub schema: Arc<Value>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The embedder's instructions.
    System,
    /// The person or program that asks.
    User,
    /// The model.
    Assistant,
    /// The answers of tools.
    Tool,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub parts: Vec<Part>,
    /// Whether the provider should cache the conversation up to and with this message.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cache: bool,
}

impl Message {
    fn text_of(role: Role, text: impl Into<String>) -> Self {
        Message { role, parts: vec![Part::Text { text: text.into() }], cache: false }
    }

    /// A system message.
    pub fn system(text: impl Into<String>) -> Self {
        Self::text_of(Role::System, text)
    }

    /// A user message.
    pub fn user(text: impl Into<String>) -> Self {
        Self::text_of(Role::User, text)
    }

    /// A message of the model.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::text_of(Role::Assistant, text)
    }

    /// The answers of tools, in the order of the calls.
    pub fn tool_results(results: impl IntoIterator<Item = Part>) -> Self {
        Message { role: Role::Tool, parts: results.into_iter().collect(), cache: false }
    }

    /// All text parts, joined.
    pub fn text(&self) -> String {
        self.parts.iter().filter_map(Part::as_text).collect()
    }

    /// The tool calls in it, in order.
    pub fn tool_calls(&self) -> impl Iterator<Item = &ToolCall> {
        self.parts.iter().filter_map(|part| match part {
            Part::ToolCall(call) => Some(call),
            _ => None,
        })
    }
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// An image.
    Image {
        /// Such as `image/png`.
        media_type: String,
        /// The image's bytes, base64.
        data: String,
    },
    /// The model's thinking, to be sent back as it came.
    Thinking {
        /// What may be shown of it.
        text: String,
        /// The provider's signature over it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<String>,
    },
    /// An item that only its provider understands, to be sent back as it came.
    Opaque {
        /// The provider, such as `anthropic`.
        provider: String,
        /// The item.
        item: Value,
    },
    /// A call that the model asks for.
    ToolCall(ToolCall),
    /// What a tool answered.
    ToolResult {
        /// The id of the call.
        call_id: String,
        /// The tool's name, as the model called it.
        name: String,
        /// What the model gets to see.
        content: String,
        /// Whether the tool failed.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
    },
}

impl Part {
    /// The text of a text part.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Part::Text { text } => Some(text),
            _ => None,
        }
    }
}

/// A model's whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatResponse {
    /// The answer, of role [`Role::Assistant`].
    pub message: Message,
    /// Why the model stopped.
    pub stop: StopReason,
    /// Tokens counted by the provider.
    pub usage: Usage,
    /// The model that answered, in the provider's words.
    pub model: String,
    /// What the call cost, where the price is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Usd>,
    /// The provider's id of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl ChatResponse {
    /// An answer of text that costs nothing, for tests and simple models.
    pub fn text(model: impl Into<String>, text: impl Into<String>) -> Self {
        ChatResponse {
            message: Message::assistant(text),
            stop: StopReason::End,
            usage: Usage::default(),
            model: model.into(),
            cost: None,
            id: None,
        }
    }
}

/// Why a model stopped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// It had said all.
    End,
    /// It waits for tools.
    ToolCalls,
    /// The limit of output tokens.
    MaxTokens,
    /// One of the request's stop texts.
    StopText,
    /// The model refuses to answer.
    Refusal,
    /// The provider's filter cut the answer.
    ContentFilter,
    /// The provider paused a long turn: send the conversation back to go on.
    Pause,
    /// A reason newer than this release, in the provider's words.
    Other(String),
}

/// Tokens of one call, or of many added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Input tokens, cached ones included.
    pub input_tokens: u64,
    /// Output tokens, reasoning included.
    pub output_tokens: u64,
    /// The part of the input that the provider's cache held.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cache_read_tokens: u64,
    /// The part of the input that was written to the provider's cache.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cache_write_tokens: u64,
    /// The part of that which the cache keeps for an hour or longer, where the provider tells them apart.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub long_cache_write_tokens: u64,
    /// The part of the output that was reasoning.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reasoning_tokens: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Usage {
    /// Input and output together.
    pub fn total_tokens(&self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens)
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.cache_read_tokens = self.cache_read_tokens.saturating_add(other.cache_read_tokens);
        self.cache_write_tokens = self.cache_write_tokens.saturating_add(other.cache_write_tokens);
        self.long_cache_write_tokens =
            self.long_cache_write_tokens.saturating_add(other.long_cache_write_tokens);
        self.reasoning_tokens = self.reasoning_tokens.saturating_add(other.reasoning_tokens);
    }
}

/// A piece of an answer while it streams. Deltas are for display: they are never journaled, and
/// tool arguments must not be acted on before the whole response is there.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Delta {
    /// More text.
    Text(String),
    /// More thinking.
    Thinking(String),
    /// A tool call begins.
    ToolCall {
        /// Its place among the answer's tool calls.
        index: usize,
        /// The tool's name.
        name: String,
    },
    /// More of a tool call's arguments, as JSON text.
    ToolArguments {
        /// Its place among the answer's tool calls.
        index: usize,
        /// The fragment.
        fragment: String,
    },
}

impl fmt::Display for Delta {
    /// The text of a [`Delta::Text`], nothing of the others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Delta::Text(text) => f.write_str(text),
            _ => Ok(()),
        }
    }
}
