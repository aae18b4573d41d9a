//! How an endpoint departs from its protocol: data, not code.

use coral_core::Effort;
use serde::{Deserialize, Serialize};

/// The quirks of an endpoint. The defaults are those of the protocol's own vendor.
///
/// ```
/// let dialect = coral_llm::Dialect { sampling: false, ..Default::default() };
/// assert!(dialect.done_marker);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dialect {
    /// The `anthropic-version` to speak. From `2026-10-21` on, sampling parameters are refused there, so none
    /// is sent.
    pub anthropic_version: String,
    /// Whether the endpoint takes a sampling temperature.
    pub sampling: bool,
    /// Whether it takes one together with a reasoning effort.
    pub sampling_with_effort: bool,
    /// Whether the endpoint takes a reasoning effort.
    pub effort: bool,
    /// The efforts that the model knows; none is all. Another one is taken for the next lower one.
    pub efforts: Vec<Effort>,
    /// Whether the model goes on from an answer that was begun for it.
    pub prefill: bool,
    /// Whether the model takes tools over chat completions. Where it does not, calls with tools go over Responses.
    pub chat_tools: bool,
    /// The name of the limit of output tokens in chat completions.
    pub max_tokens_field: MaxTokensField,
    /// How an answer is made to fit a JSON schema.
    pub structured: Structured,
    /// Whether the model can be made to call a tool. Some that always think refuse that: then it is asked to.
    pub forced_tools: bool,
    /// Whether to ask for usage at the end of a stream.
    pub stream_usage: bool,
    /// Whether a stream of chat completions ends with `[DONE]`. Without it, a finish reason makes it
    /// whole.
    pub done_marker: bool,
    /// Whether reasoning text is sent back in later turns.
    pub send_reasoning: bool,
    /// Whether the `reasoning_details` of chat completions are sent back in later turns.
    pub reasoning_details: bool,
    /// How long the provider's cache is to keep its input; its own default if none. Anthropic knows `5m` and `1h`, OpenAI
    /// `30m`, and its older models `in_memory` and `24h`.
    pub cache_ttl: Option<String>,
    /// Whether Anthropic marks the end of each conversation for its cache by itself.
    pub auto_cache: bool,
    /// Whether OpenAI is told which calls begin alike, by a key that is a hash of all up to the first message that
    /// is to be cached.
    pub prompt_cache_key: bool,
    /// Whether OpenAI is shown where messages end that are to be cached, beside the end that it chooses itself. Its models
    /// take that from gpt-5.6 on.
    pub cache_marks: bool,
    /// The header that takes the call's idempotency key. The providers themselves know none; gateways do.
    pub idempotency_header: Option<String>,
    /// Output tokens at the most where the protocol demands a limit and the request has none.
    pub default_max_tokens: u32,
    /// Bytes of one event of a stream, or of a whole answer, at the most.
    pub max_event_bytes: usize,
}

impl Default for Dialect {
    fn default() -> Self {
        Dialect {
            anthropic_version: "2026-10-21".to_owned(),
            sampling: true,
            sampling_with_effort: true,
            effort: true,
            efforts: Vec::new(),
            prefill: true,
            chat_tools: true,
            max_tokens_field: MaxTokensField::MaxCompletionTokens,
            structured: Structured::Schema,
            forced_tools: true,
            stream_usage: true,
            done_marker: true,
            send_reasoning: false,
            reasoning_details: false,
            cache_ttl: None,
            auto_cache: false,
            prompt_cache_key: false,
            cache_marks: false,
            idempotency_header: None,
            default_max_tokens: 16_000,
            max_event_bytes: 16 * 1024 * 1024,
        }
    }
}

/// The name of the limit of output tokens in chat completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxTokensField {
    /// OpenAI's present name.
    MaxCompletionTokens,
    /// The name that most others know.
    MaxTokens,
}

/// How an answer is made to fit a JSON schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Structured {
    /// The provider holds the model to the schema.
    Schema,
    /// The provider holds the model to JSON; the schema stands in the instructions.
    Json,
    /// The answer is the arguments of a tool that the model is made to call.
    Tool,
    /// The schema stands in the instructions.
    Instructions,
}
