//! Counts the tokens of a request by asking its provider.

use async_trait::async_trait;
use bytes::Bytes;
use coral_core::{ChatRequest, Error};
use http::Method;
use serde_json::{Map, Value, json};

use super::{MAX_LIST, Provider};
use crate::answer_tool::{AnswerTool, unforced};
use crate::failure::Failure;
use crate::transport::read_whole;
use crate::wire::Protocol;

/// Counts the input tokens of a request where that takes a question to somebody else. It costs nothing but time.
#[async_trait]
pub trait CountTokens: Send + Sync {
    /// The input tokens of `request`; `None` if there is nobody to ask.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](coral_core::ErrorKind::Model) for all that the provider or the wire did.
    async fn count_tokens(&self, request: &ChatRequest) -> Result<Option<u64>, Error>;
}

/// Anthropic, Gemini and OpenAI's Responses count; of chat completions and of Ollama nobody can be asked.
#[async_trait]
impl CountTokens for Provider {
    async fn count_tokens(&self, request: &ChatRequest) -> Result<Option<u64>, Error> {
        let dialect = &*self.dialect_of(request);
        let (asked, _) = AnswerTool::of(request, dialect);
        let asked = unforced(asked, dialect);
        let model = self.model_of(request);
        let wire = self.protocol.encode(&asked, model, false, dialect)?;
        let body = self.with_extra_fields(wire.body)?;
        let Some(question) = Question::of(self.protocol, model, &body)? else { return Ok(None) };
        let exchange = async {
            let mut body = self.question(Method::POST, &question.path, question.body).await?;
            let answer = read_whole(&mut body, MAX_LIST).await?;
            let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
            let count = answer.get(question.field).and_then(Value::as_u64);
            count.ok_or_else(|| {
                Failure::malformed(format!("expected a count of tokens in `{}`", question.field))
            })
        };
        self.within_time(exchange).await.map(Some)
    }
}

/// A question for a number of tokens.
struct Question {
    path: String,
    body: Bytes,
    /// Where the answer says it.
    field: &'static str,
}

impl Question {
    /// The question about the call whose body is `call`, where the protocol has one.
    fn of(protocol: Protocol, model: &str, call: &Bytes) -> Result<Option<Self>, Error> {
        let invalid = |error: serde_json::Error| Error::invalid("chat request", error.to_string());
        let mut fields: Map<String, Value> = serde_json::from_slice(call).map_err(invalid)?;
        // What is not of the input is refused there.
        let (path, field) = match protocol {
            Protocol::Anthropic => {
                let counted = [
                    "cache_control",
                    "messages",
                    "model",
                    "output_config",
                    "system",
                    "thinking",
                    "tool_choice",
                    "tools",
                ];
                fields.retain(|name, _| counted.contains(&name.as_str()));
                ("/v1/messages/count_tokens".to_owned(), "input_tokens")
            }
            Protocol::OpenAiResponses => {
                let counted = ["input", "instructions", "model", "reasoning", "text", "tool_choice", "tools"];
                fields.retain(|name, _| counted.contains(&name.as_str()));
                ("/responses/input_tokens".to_owned(), "input_tokens")
            }
            Protocol::Gemini => {
                fields.insert("model".into(), format!("models/{model}").into());
                fields = Map::from_iter([("generateContentRequest".to_owned(), Value::Object(fields))]);
                (format!("/models/{model}:countTokens"), "totalTokens")
            }
            Protocol::OpenAiChat | Protocol::Ollama => return Ok(None),
        };
        let body = json!(fields).to_string().into();
        Ok(Some(Question { path, body, field }))
    }
}
