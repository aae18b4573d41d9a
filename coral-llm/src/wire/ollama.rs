//! Ollama's own chat.

use std::borrow::Cow;

use coral_core::{ChatRequest, Effort, Error, Message, Part, Role, StopReason, Usage};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::assembly::Assembly;
use super::{Reader, WireRequest, schema};
use crate::dialect::{Dialect, Structured};
use crate::failure::{self, Failure};

pub(super) fn encode(
    request: &ChatRequest,
    model: &str,
    stream: bool,
    dialect: &Dialect,
) -> Result<WireRequest, Error> {
    let mut messages: Vec<Value> = Vec::new();
    for message in &request.messages {
        encode_message(message, &mut messages);
    }
    let mut body = Map::new();
    if let Some(output) = &request.output {
        match dialect.structured {
            Structured::Schema => {
                body.insert("format".into(), (*output.schema).clone());
            }
            Structured::Json => {
                body.insert("format".into(), "json".into());
                messages.insert(0, json!({"role": "system", "content": schema::instruction(output)}));
            }
            Structured::Tool | Structured::Instructions => {
                messages.insert(0, json!({"role": "system", "content": schema::instruction(output)}));
            }
        }
    }
    body.insert("model".into(), model.into());
    body.insert("messages".into(), messages.into());
    body.insert("stream".into(), stream.into());
    // There is no way to ask for a certain tool, or for none, but by what is offered.
    let offered: Vec<Value> = request
        .tools
        .iter()
        .filter(|tool| match &request.tool_choice {
            coral_core::ToolChoice::None => false,
            coral_core::ToolChoice::Tool(name) => tool.name == *name,
            _ => true,
        })
        .map(|tool| {
            json!({"type": "function", "function": {
                "name": tool.name, "description": tool.description, "parameters": tool.input_schema,
            }})
        })
        .collect();
    if !offered.is_empty() {
        body.insert("tools".into(), offered.into());
    }
    let mut options = Map::new();
    if let Some(temperature) = request.temperature.filter(|_| dialect.sampling) {
        options.insert("temperature".into(), temperature.into());
    }
    if let Some(max) = request.max_output_tokens {
        options.insert("num_predict".into(), max.into());
    }
    if !request.stop.is_empty() {
        options.insert("stop".into(), json!(request.stop));
    }
    if !options.is_empty() {
        body.insert("options".into(), options.into());
    }
    if let Some(effort) = request.effort.filter(|_| dialect.effort) {
        body.insert("think".into(), think(effort));
    }
    Ok(WireRequest { path: "/api/chat".to_owned(), headers: Vec::new(), body: super::to_bytes(&body)? })
}

fn think(effort: Effort) -> Value {
    match effort {
        Effort::Minimal => Value::Bool(false),
        Effort::Low => "low".into(),
        Effort::High | Effort::Max => "high".into(),
        _ => "medium".into(),
    }
}

fn encode_message(message: &Message, out: &mut Vec<Value>) {
    let role = match message.role {
        Role::System => "system",
        Role::User | Role::Tool => "user",
        Role::Assistant => "assistant",
    };
    let mut fields = Map::new();
    let mut images = Vec::new();
    let mut thinking = String::new();
    for part in &message.parts {
        match part {
            Part::ToolResult { name, content, .. } => {
                out.push(json!({"role": "tool", "tool_name": name, "content": content}));
            }
            Part::Image { data, .. } => images.push(Value::String(data.clone())),
            Part::Thinking { text, .. } => thinking.push_str(text),
            _ => {}
        }
    }
    let text = message.text();
    let calls: Vec<Value> = message
        .tool_calls()
        .map(|call| json!({"function": {"name": call.name, "arguments": call.arguments}}))
        .collect();
    if text.is_empty() && images.is_empty() && calls.is_empty() {
        return;
    }
    fields.insert("role".into(), role.into());
    fields.insert("content".into(), text.into());
    for (key, values) in [("images", images), ("tool_calls", calls)] {
        if !values.is_empty() {
            fields.insert(key.into(), values.into());
        }
    }
    if !thinking.is_empty() {
        fields.insert("thinking".into(), thinking.into());
    }
    out.push(fields.into());
}

#[derive(Deserialize)]
struct Chunk<'a> {
    model: Option<String>,
    #[serde(borrow)]
    message: Option<Said<'a>>,
    #[serde(default)]
    done: bool,
    #[serde(borrow)]
    done_reason: Option<Cow<'a, str>>,
    prompt_eval_count: Option<u64>,
    eval_count: Option<u64>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    thinking: Option<Cow<'a, str>>,
    tool_calls: Option<Vec<Call>>,
}

#[derive(Deserialize)]
struct Call {
    #[serde(default)]
    id: String,
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    arguments: Option<Value>,
}

/// Reads the lines of a chat.
#[derive(Default)]
pub(super) struct Lines {
    calls: u64,
}

impl Reader for Lines {
    fn event(&mut self, _name: Option<&str>, data: &str, out: &mut Assembly) -> Result<(), Failure> {
        let chunk: Chunk<'_> = serde_json::from_str(data)
            .map_err(|error| Failure::malformed(format!("expected a line of a chat: {error}")))?;
        if let Some(error) = chunk.error {
            return Err(failure::in_stream(&json!({"error": error})));
        }
        out.model = chunk.model.or(out.model.take());
        if let Some(said) = chunk.message {
            out.thinking(said.thinking.as_deref().unwrap_or_default());
            out.text(said.content.as_deref().unwrap_or_default());
            for call in said.tool_calls.into_iter().flatten() {
                out.call(self.calls, &call.id, &call.function.name);
                let arguments = call.function.arguments.unwrap_or_else(|| json!({}));
                out.arguments(self.calls, &arguments.to_string())?;
                self.calls += 1;
            }
        }
        if chunk.done {
            out.usage = Usage {
                input_tokens: chunk.prompt_eval_count.unwrap_or(0),
                output_tokens: chunk.eval_count.unwrap_or(0),
                ..Default::default()
            };
            out.stop = Some(match chunk.done_reason.as_deref() {
                None | Some("stop") => StopReason::End,
                Some("length") => StopReason::MaxTokens,
                Some(other) => StopReason::Other(other.to_owned()),
            });
            out.ended = true;
        }
        Ok(())
    }

    fn whole(&mut self, body: &[u8], out: &mut Assembly) -> Result<(), Failure> {
        let text = std::str::from_utf8(body)
            .map_err(|error| Failure::malformed(format!("expected a chat in UTF-8: {error}")))?;
        self.event(None, text, out)?;
        if out.ended { Ok(()) } else { Err(Failure::malformed("expected a chat that is done")) }
    }
}
