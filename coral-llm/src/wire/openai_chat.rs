//! OpenAI's chat completions, and the many who speak them.

use std::borrow::Cow;

use coral_core::{ChatRequest, Effort, Error, Message, Part, Role, StopReason, ToolChoice, Usage};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::assembly::Assembly;
use super::{Reader, WireRequest, schema};
use crate::dialect::{Dialect, MaxTokensField, Structured};
use crate::failure::{self, Failure};

pub(super) fn encode(
    request: &ChatRequest,
    model: &str,
    stream: bool,
    dialect: &Dialect,
) -> Result<WireRequest, Error> {
    let mut messages: Vec<Value> = Vec::new();
    for message in &request.messages {
        encode_message(message, dialect, &mut messages);
    }
    let mut body = Map::new();
    if let Some(output) = &request.output {
        match dialect.structured {
            Structured::Schema => {
                let strict = schema::strict(&output.schema);
                let is_strict = strict.is_some();
                let schema = strict.unwrap_or_else(|| (*output.schema).clone());
                let format = json!({"name": output.name, "strict": is_strict, "schema": schema});
                body.insert("response_format".into(), json!({"type": "json_schema", "json_schema": format}));
            }
            Structured::Json => {
                body.insert("response_format".into(), json!({"type": "json_object"}));
                messages.insert(0, json!({"role": "system", "content": schema::instruction(output)}));
            }
            Structured::Tool | Structured::Instructions => {
                messages.insert(0, json!({"role": "system", "content": schema::instruction(output)}));
            }
        }
    }
    body.insert("model".into(), model.into());
    body.insert("messages".into(), messages.into());
    if stream {
        body.insert("stream".into(), true.into());
        if dialect.stream_usage {
            body.insert("stream_options".into(), json!({"include_usage": true}));
        }
    }
    if !request.tools.is_empty() {
        let tools: Vec<Value> = request
            .tools
            .iter()
            .map(|tool| {
                json!({"type": "function", "function": {
                    "name": tool.name, "description": tool.description, "parameters": tool.input_schema,
                }})
            })
            .collect();
        body.insert("tools".into(), tools.into());
        let choice = match &request.tool_choice {
            ToolChoice::None => Some(json!("none")),
            ToolChoice::Required => Some(json!("required")),
            ToolChoice::Tool(name) => Some(json!({"type": "function", "function": {"name": name}})),
            _ => None,
        };
        if let Some(choice) = choice {
            body.insert("tool_choice".into(), choice);
        }
    }
    if let Some(max) = request.max_output_tokens {
        let field = match dialect.max_tokens_field {
            MaxTokensField::MaxCompletionTokens => "max_completion_tokens",
            MaxTokensField::MaxTokens => "max_tokens",
        };
        body.insert(field.into(), max.into());
    }
    if let Some(temperature) = request.temperature.filter(|_| dialect.sampling) {
        body.insert("temperature".into(), temperature.into());
    }
    if let Some(effort) = request.effort.filter(|_| dialect.effort) {
        body.insert("reasoning_effort".into(), effort_name(effort).into());
    }
    if !request.stop.is_empty() {
        body.insert("stop".into(), json!(request.stop));
    }
    Ok(WireRequest {
        path: "/chat/completions".to_owned(),
        headers: Vec::new(),
        body: super::to_bytes(&body)?,
    })
}

fn encode_message(message: &Message, dialect: &Dialect, out: &mut Vec<Value>) {
    match message.role {
        Role::System => out.push(json!({"role": "system", "content": message.text()})),
        Role::Assistant => out.push(assistant(message, dialect)),
        Role::User | Role::Tool => {
            let mut content = Vec::new();
            for part in &message.parts {
                match part {
                    Part::Text { text } => content.push(json!({"type": "text", "text": text})),
                    Part::Image { media_type, data } => content.push(json!({
                        "type": "image_url", "image_url": {"url": format!("data:{media_type};base64,{data}")},
                    })),
                    Part::ToolResult { call_id, content, .. } => {
                        out.push(json!({"role": "tool", "tool_call_id": call_id, "content": content}));
                    }
                    _ => {}
                }
            }
            if content.is_empty() {
                return;
            }
            // Plain text is known to every server; a list of parts is not.
            let all_text = message.parts.iter().all(|part| !matches!(part, Part::Image { .. }));
            let content = if all_text { message.text().into() } else { Value::Array(content) };
            out.push(json!({"role": "user", "content": content}));
        }
    }
}

fn assistant(message: &Message, dialect: &Dialect) -> Value {
    let mut fields = Map::new();
    fields.insert("role".into(), "assistant".into());
    let text = message.text();
    let calls: Vec<Value> = message
        .tool_calls()
        .map(|call| {
            let arguments = match &call.arguments {
                Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
        })
        .collect();
    let content = if text.is_empty() && !calls.is_empty() { Value::Null } else { text.into() };
    fields.insert("content".into(), content);
    if !calls.is_empty() {
        fields.insert("tool_calls".into(), calls.into());
    }
    if dialect.send_reasoning {
        let reasoning: String = message
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::Thinking { text, .. } => Some(text.as_str()),
                _ => None,
            })
            .collect();
        if !reasoning.is_empty() {
            fields.insert("reasoning_content".into(), reasoning.into());
        }
    }
    Value::Object(fields)
}

pub(super) fn effort_name(effort: Effort) -> &'static str {
    match effort {
        Effort::Minimal => "minimal",
        Effort::Low => "low",
        Effort::High => "high",
        Effort::Max => "max",
        _ => "medium",
    }
}

#[derive(Deserialize)]
struct Chunk<'a> {
    id: Option<String>,
    model: Option<String>,
    #[serde(borrow, default, deserialize_with = "null_is_empty")]
    choices: Vec<Choice<'a>>,
    usage: Option<Counted>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: u64,
    #[serde(borrow, alias = "message")]
    delta: Option<Said<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    refusal: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "null_is_empty")]
    tool_calls: Vec<Call<'a>>,
}

#[derive(Deserialize)]
struct Call<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    function: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    arguments: Option<Value>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Counted {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
    /// DeepSeek's name for what the cache held.
    prompt_cache_hit_tokens: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
struct CompletionDetails {
    reasoning_tokens: Option<u64>,
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads the chunks of chat completions.
pub(super) struct Completions {
    done_marker: bool,
    refused: bool,
}

impl Completions {
    pub(super) fn new(dialect: &Dialect) -> Self {
        Completions { done_marker: dialect.done_marker, refused: false }
    }
}

impl Reader for Completions {
    fn event(&mut self, name: Option<&str>, data: &str, out: &mut Assembly) -> Result<(), Failure> {
        if data.trim() == "[DONE]" {
            out.ended = true;
            return Ok(());
        }
        if name == Some("error") {
            let body = serde_json::from_str(data).unwrap_or_else(|_| Value::String(data.to_owned()));
            return Err(failure::in_stream(&body));
        }
        if data.is_empty() {
            return Ok(());
        }
        let chunk: Chunk<'_> = serde_json::from_str(data)
            .map_err(|error| Failure::malformed(format!("expected a chunk of a chat completion: {error}")))?;
        self.take(chunk, out)?;
        // Counts may follow the finish reason.
        out.complete = !self.done_marker && out.stop.is_some();
        Ok(())
    }

    fn whole(&mut self, body: &[u8], out: &mut Assembly) -> Result<(), Failure> {
        let chunk: Chunk<'_> = serde_json::from_slice(body)
            .map_err(|error| Failure::malformed(format!("expected a chat completion: {error}")))?;
        if chunk.error.is_none() && chunk.choices.is_empty() {
            return Err(Failure::malformed("expected a chat completion with a choice"));
        }
        self.take(chunk, out)?;
        out.ended = true;
        Ok(())
    }
}

impl Completions {
    fn take(&mut self, chunk: Chunk<'_>, out: &mut Assembly) -> Result<(), Failure> {
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(failure::in_stream(&json!({"error": error})));
        }
        if out.id.is_none() {
            out.id = chunk.id;
        }
        if out.model.as_deref().is_none_or(str::is_empty) {
            out.model = chunk.model;
        }
        if let Some(counted) = chunk.usage {
            out.usage = usage(counted);
        }
        // One answer is asked for; a server that sends more is read for its first.
        for choice in chunk.choices.into_iter().filter(|choice| choice.index == 0) {
            if let Some(said) = choice.delta {
                self.say(said, out)?;
            }
            if let Some(reason) = choice.finish_reason.filter(|reason| !reason.is_empty()) {
                out.stop = Some(if self.refused { StopReason::Refusal } else { stop_reason(&reason) });
            }
        }
        Ok(())
    }

    fn say(&mut self, said: Said<'_>, out: &mut Assembly) -> Result<(), Failure> {
        if let Some(reasoning) = said.reasoning_content.or(said.reasoning) {
            out.thinking(&reasoning);
        }
        if let Some(text) = said.content {
            out.text(&text);
        }
        if let Some(refusal) = said.refusal {
            self.refused = self.refused || !refusal.is_empty();
            out.text(&refusal);
        }
        for (place, call) in (0..).zip(said.tool_calls) {
            let key = call.index.unwrap_or(place);
            let Some(function) = call.function else { continue };
            // Some servers repeat id and name with every fragment.
            if !out.has_call(key) {
                let Some(name) = function.name.filter(|name| !name.is_empty()) else {
                    return Err(Failure::malformed(
                        "expected the name of the tool with a call's first fragment",
                    ));
                };
                out.call(key, call.id.as_deref().unwrap_or_default(), &name);
            }
            match function.arguments {
                Some(Value::String(fragment)) => out.arguments(key, &fragment)?,
                Some(Value::Null) | None => {}
                // Some servers send the arguments as an object.
                Some(value) => out.arguments(key, &value.to_string())?,
            }
        }
        Ok(())
    }
}

fn usage(counted: Counted) -> Usage {
    let details = counted.prompt_tokens_details;
    Usage {
        input_tokens: counted.prompt_tokens.unwrap_or(0),
        output_tokens: counted.completion_tokens.unwrap_or(0),
        cache_read_tokens: details
            .and_then(|d| d.cached_tokens)
            .or(counted.prompt_cache_hit_tokens)
            .unwrap_or(0),
        cache_write_tokens: details.and_then(|d| d.cache_write_tokens).unwrap_or(0),
        reasoning_tokens: counted.completion_tokens_details.and_then(|d| d.reasoning_tokens).unwrap_or(0),
    }
}

fn stop_reason(reason: &str) -> StopReason {
    match reason {
        "stop" => StopReason::End,
        "tool_calls" | "function_call" => StopReason::ToolCalls,
        "length" => StopReason::MaxTokens,
        "content_filter" => StopReason::ContentFilter,
        "refusal" => StopReason::Refusal,
        other => StopReason::Other(other.to_owned()),
    }
}
