//! Two wire formats as a provider sees them: requests are read, answers are streamed.
//!
//! Written from the providers' documents and not from `coral_llm`, so that a mistake there is not
//! a mistake here.

use std::sync::Arc;

use coral_core::{
    ChatRequest, ChatResponse, Message, OutputFormat, Part, Role, ToolCall, ToolChoice, ToolDef,
};
use serde_json::{Value, json};

/// A wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Anthropic,
    OpenAi,
}

impl Wire {
    pub fn path(self) -> &'static str {
        match self {
            Wire::Anthropic => "/v1/messages",
            Wire::OpenAi => "/v1/chat/completions",
        }
    }

    /// What a request asks for.
    pub fn read(self, body: &Value) -> Result<ChatRequest, String> {
        let messages = body["messages"].as_array().ok_or("expected `messages`")?;
        let mut request = ChatRequest::default();
        match self {
            Wire::Anthropic => {
                if body["max_tokens"].as_u64().is_none() {
                    return Err("expected `max_tokens`".to_owned());
                }
                let system: String = list(&body["system"]).iter().map(|block| text(&block["text"])).collect();
                request.messages.push(Message::system(system));
                for message in messages {
                    request.messages.push(anthropic_message(message)?);
                }
                request.output = format(&body["output_config"]["format"]["schema"]);
                request.tools =
                    list(&body["tools"]).iter().map(|tool| tool_def(tool, "input_schema")).collect();
                request.tool_choice = choice(body["tool_choice"]["type"].as_str());
            }
            Wire::OpenAi => {
                for message in messages {
                    request.messages.push(openai_message(message)?);
                }
                request.output = format(&body["response_format"]["json_schema"]["schema"]);
                request.tools = list(&body["tools"])
                    .iter()
                    .map(|tool| tool_def(&tool["function"], "parameters"))
                    .collect();
                request.tool_choice = choice(body["tool_choice"].as_str());
            }
        }
        if request.output.is_none() {
            request.output = instructed(&request.messages);
        }
        Ok(request)
    }

    /// An answer as the events of a stream, split finely. The ids of its tool calls begin with
    /// `ids`.
    pub fn stream(self, response: &ChatResponse, id: &str, ids: &str, model: &str) -> Vec<String> {
        match self {
            Wire::Anthropic => anthropic_events(response, id, ids, model),
            Wire::OpenAi => openai_events(response, id, ids, model),
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn tool_def(tool: &Value, schema: &str) -> ToolDef {
    ToolDef {
        name: text(&tool["name"]),
        description: text(&tool["description"]),
        input_schema: tool[schema].clone(),
        effect: Default::default(),
    }
}

fn choice(name: Option<&str>) -> ToolChoice {
    if name == Some("none") { ToolChoice::None } else { ToolChoice::Auto }
}

fn format(schema: &Value) -> Option<OutputFormat> {
    let mut schema = schema.clone();
    fill(&mut schema);
    schema.is_object().then(|| OutputFormat { name: "answer".to_owned(), schema: Arc::new(schema) })
}

/// Asks for an item in each list, and for numbers above zero. Providers take no such bounds, so a
/// client leaves them out; a model knows from its instructions that nothing is no answer.
fn fill(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let kind = fields.get("type").and_then(Value::as_str).unwrap_or_default();
            let bound = match kind {
                "array" => Some("minItems"),
                "integer" => Some("minimum"),
                _ => None,
            };
            if let Some(bound) = bound {
                fields.entry(bound).or_insert_with(|| 1.into());
            }
            fields.values_mut().for_each(fill);
        }
        Value::Array(items) => items.iter_mut().for_each(fill),
        _ => {}
    }
}

/// A schema that stands in the instructions, where a client does not send it as a field.
fn instructed(messages: &[Message]) -> Option<OutputFormat> {
    let system: String = messages.iter().filter(|m| m.role == Role::System).map(Message::text).collect();
    let at = system.find("JSON schema")?;
    let (_, rest) = system.split_at(at);
    let json = rest.get(rest.find('{')?..)?;
    let schema = serde_json::Deserializer::from_str(json).into_iter::<Value>().next()?.ok()?;
    format(&schema)
}

fn anthropic_message(message: &Value) -> Result<Message, String> {
    let role = match message["role"].as_str() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        other => return Err(format!("unexpected role {other:?}")),
    };
    let mut parts = Vec::new();
    for block in list(&message["content"]) {
        parts.push(match block["type"].as_str() {
            Some("text") => Part::Text { text: text(&block["text"]) },
            Some("tool_use") => Part::ToolCall(ToolCall {
                id: text(&block["id"]),
                name: text(&block["name"]),
                arguments: block["input"].clone(),
            }),
            Some("tool_result") => Part::ToolResult {
                call_id: text(&block["tool_use_id"]),
                name: String::new(),
                content: text(&block["content"]),
                is_error: block["is_error"].as_bool().unwrap_or_default(),
            },
            other => return Err(format!("unexpected block {other:?}")),
        });
    }
    let role =
        if parts.iter().any(|part| matches!(part, Part::ToolResult { .. })) { Role::Tool } else { role };
    Ok(Message { role, parts, cache: false })
}

fn openai_message(message: &Value) -> Result<Message, String> {
    let content = text(&message["content"]);
    Ok(match message["role"].as_str() {
        Some("system") => Message::system(content),
        Some("user") => Message::user(content),
        Some("tool") => Message::tool_results([Part::ToolResult {
            call_id: text(&message["tool_call_id"]),
            name: String::new(),
            content,
            is_error: false,
        }]),
        Some("assistant") => {
            let mut answer = Message::assistant(content);
            for call in list(&message["tool_calls"]) {
                let arguments = serde_json::from_str(&text(&call["function"]["arguments"]))
                    .map_err(|error| format!("arguments that are not JSON: {error}"))?;
                answer.parts.push(Part::ToolCall(ToolCall {
                    id: text(&call["id"]),
                    name: text(&call["function"]["name"]),
                    arguments,
                }));
            }
            answer
        }
        other => return Err(format!("unexpected role {other:?}")),
    })
}

/// `text` in pieces of some bytes, at the borders of characters.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.ceil_char_boundary(257.min(rest.len())));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

fn anthropic_events(response: &ChatResponse, id: &str, ids: &str, model: &str) -> Vec<String> {
    let event = |kind: &str, mut data: Value| {
        data["type"] = kind.into();
        format!("event: {kind}\ndata: {data}\n\n")
    };
    let usage = response.usage;
    let mut events = vec![event(
        "message_start",
        json!({"message": {
            "id": id, "type": "message", "role": "assistant", "model": model, "content": [], "stop_reason": null,
            "usage": {"input_tokens": usage.input_tokens, "output_tokens": 1},
        }}),
    )];
    for (index, part) in response.message.parts.iter().enumerate() {
        let (block, deltas): (Value, Vec<Value>) = match part {
            Part::ToolCall(call) => (
                json!({"type": "tool_use", "id": format!("{ids}_{index}"), "name": call.name, "input": {}}),
                pieces(&call.arguments.to_string())
                    .into_iter()
                    .map(|piece| json!({"type": "input_json_delta", "partial_json": piece}))
                    .collect(),
            ),
            part => (
                json!({"type": "text", "text": ""}),
                pieces(part.as_text().unwrap_or_default())
                    .into_iter()
                    .map(|piece| json!({"type": "text_delta", "text": piece}))
                    .collect(),
            ),
        };
        events.push(event("content_block_start", json!({"index": index, "content_block": block})));
        events.extend(
            deltas.into_iter().map(|d| event("content_block_delta", json!({"index": index, "delta": d}))),
        );
        events.push(event("content_block_stop", json!({"index": index})));
        events.push(event("ping", json!({})));
    }
    let calls = response.message.tool_calls().next().is_some();
    let reason = if calls { "tool_use" } else { "end_turn" };
    events.push(event(
        "message_delta",
        json!({"delta": {"stop_reason": reason}, "usage": {"output_tokens": usage.output_tokens}}),
    ));
    events.push(event("message_stop", json!({})));
    events
}

fn openai_events(response: &ChatResponse, id: &str, ids: &str, model: &str) -> Vec<String> {
    let chunk = |delta: Value, finish: Value| {
        let data = json!({
            "id": id, "object": "chat.completion.chunk", "created": 0, "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        });
        format!("data: {data}\n\n")
    };
    let mut events = vec![chunk(json!({"role": "assistant", "content": ""}), Value::Null)];
    let mut calls = 0;
    for part in &response.message.parts {
        match part {
            Part::ToolCall(call) => {
                let head = json!({
                    "index": calls, "id": format!("{ids}_{calls}"), "type": "function",
                    "function": {"name": call.name, "arguments": ""},
                });
                events.push(chunk(json!({"tool_calls": [head]}), Value::Null));
                for piece in pieces(&call.arguments.to_string()) {
                    let more = json!({"index": calls, "function": {"arguments": piece}});
                    events.push(chunk(json!({"tool_calls": [more]}), Value::Null));
                }
                calls += 1;
            }
            part => {
                for piece in pieces(part.as_text().unwrap_or_default()) {
                    events.push(chunk(json!({"content": piece}), Value::Null));
                }
            }
        }
    }
    events.push(chunk(json!({}), if calls > 0 { "tool_calls" } else { "stop" }.into()));
    let usage = response.usage;
    let data = json!({
        "id": id, "object": "chat.completion.chunk", "created": 0, "model": model, "choices": [],
        "usage": {
            "prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens(),
        },
    });
    events.push(format!("data: {data}\n\n"));
    events.push("data: [DONE]\n\n".to_owned());
    events
}
