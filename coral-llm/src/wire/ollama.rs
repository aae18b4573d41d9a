//! Ollama's own chat.

use coral_core::{Effort, Error, Message, Part, Role, StopReason, ToolChoice, Usage};
use serde::Deserialize;
use serde_json::{Value, json};

use super::assembly::Assembly;
use super::call::{Call, Fields, arguments_object, function, thinking_of};
use super::read::{Text, count, parse};
use super::{Reader, WireRequest};
use crate::failure::{self, Failure};

pub(super) fn encode(call: &Call<'_>) -> Result<WireRequest, Error> {
    let request = call.request;
    let mut messages: Vec<Value> = Vec::new();
    messages.extend(call.told_schema().map(|text| json!({"role": "system", "content": text})));
    for message in &request.messages {
        encode_message(message, &mut messages);
    }
    let format = match call.schema() {
        Some(output) => Some((*output.schema).clone()),
        None => call.wants_json().then(|| "json".into()),
    };
    // There is no way to ask for a certain tool, or for none, but by what is offered.
    let offered = request.tools.iter().filter(|tool| match &request.tool_choice {
        ToolChoice::None => false,
        ToolChoice::Tool(name) => tool.name == *name,
        _ => true,
    });
    let mut options = Fields::default();
    options.set_some("temperature", call.temperature());
    options.set_some("num_predict", request.max_output_tokens);
    options.set_filled("stop", json!(request.stop));
    let mut body = Fields::default();
    body.set("model", call.model);
    body.set("messages", messages);
    body.set("stream", call.stream);
    body.set_some("format", format);
    body.set_filled("tools", offered.map(function).collect::<Vec<Value>>());
    body.set_filled("options", options);
    body.set_some("think", call.effort().map(think));
    // Where the server's window is smaller than the conversation, it would leave out what is oldest and say nothing.
    body.set("truncate", false);
    body.set("shift", false);
    body.into_request("/api/chat")
}

fn think(effort: Effort) -> Value {
    match effort {
        Effort::Minimal => Value::Bool(false),
        Effort::Low => "low".into(),
        Effort::High | Effort::ExtraHigh | Effort::Max => "high".into(),
        _ => "medium".into(),
    }
}

fn encode_message(message: &Message, out: &mut Vec<Value>) {
    let role = match message.role {
        Role::System => "system",
        Role::User | Role::Tool => "user",
        Role::Assistant => "assistant",
    };
    let mut images = Vec::new();
    for part in &message.parts {
        match part {
            Part::ToolResult { name, content, .. } => {
                out.push(json!({"role": "tool", "tool_name": name, "content": content}));
            }
            Part::Image { data, .. } => images.push(Value::String(data.clone())),
            _ => {}
        }
    }
    let text = message.text();
    let calls: Vec<Value> = message
        .tool_calls()
        .map(|call| json!({"function": {"name": call.name, "arguments": arguments_object(&call.arguments)}}))
        .collect();
    if text.is_empty() && images.is_empty() && calls.is_empty() {
        return;
    }
    let mut fields = Fields::default();
    fields.set("role", role);
    fields.set("content", text);
    fields.set_filled("images", images);
    fields.set_filled("tool_calls", calls);
    fields.set_filled("thinking", thinking_of(message));
    out.push(fields.into());
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    message: Option<Said<'a>>,
    #[serde(default)]
    done: bool,
    #[serde(borrow)]
    done_reason: Option<Text<'a>>,
    #[serde(default, deserialize_with = "count")]
    prompt_eval_count: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    eval_count: Option<u64>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    content: Option<Text<'a>>,
    #[serde(borrow)]
    thinking: Option<Text<'a>>,
    tool_calls: Option<Vec<FunctionCall>>,
}

#[derive(Deserialize)]
struct FunctionCall {
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
        let chunk: Chunk<'_> = parse(data, "a line of a chat")?;
        if let Some(error) = chunk.error {
            return Err(failure::in_stream(&json!({"error": error})));
        }
        if out.model.is_none() {
            out.model = chunk.model.map(String::from);
        }
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
