//! Anthropic's Messages.

use std::borrow::Cow;

use coral_core::{ChatRequest, Effort, Error, Message, Part, Role, StopReason, ToolChoice, Usage};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::assembly::Assembly;
use super::{Reader, WireRequest, schema};
use crate::dialect::{Dialect, Structured};
use crate::failure::{self, Failure};

const PROVIDER: &str = "anthropic";

/// The first version that refuses sampling parameters.
const WITHOUT_SAMPLING: &str = "2026-10-21";

pub(super) fn encode(
    request: &ChatRequest,
    model: &str,
    stream: bool,
    dialect: &Dialect,
) -> Result<WireRequest, Error> {
    let mut system = Vec::new();
    let mut messages: Vec<Value> = Vec::new();
    for message in &request.messages {
        let role = match message.role {
            Role::System => {
                system.extend(blocks(message));
                continue;
            }
            Role::User | Role::Tool => "user",
            Role::Assistant => "assistant",
        };
        let blocks = blocks(message);
        if blocks.is_empty() {
            continue;
        }
        // Turns must alternate, and the answers of tools are turns of the user.
        let same = messages.last_mut().filter(|last| last.get("role").is_some_and(|known| known == role));
        match same.and_then(|last| last.get_mut("content")).and_then(Value::as_array_mut) {
            Some(content) => content.extend(blocks),
            None => messages.push(json!({"role": role, "content": blocks})),
        }
    }

    let mut output_config = Map::new();
    if let Some(output) = &request.output {
        match schema::closed(&output.schema).filter(|_| dialect.structured == Structured::Schema) {
            Some(schema) => {
                output_config.insert("format".into(), json!({"type": "json_schema", "schema": schema}));
            }
            None => system.push(json!({"type": "text", "text": schema::instruction(output)})),
        }
    }
    if let Some(effort) = request.effort.filter(|_| dialect.effort) {
        output_config.insert("effort".into(), effort_name(effort).into());
    }

    let mut body = Map::new();
    body.insert("model".into(), model.into());
    body.insert("max_tokens".into(), request.max_output_tokens.unwrap_or(dialect.default_max_tokens).into());
    body.insert("messages".into(), messages.into());
    if !system.is_empty() {
        body.insert("system".into(), system.into());
    }
    if stream {
        body.insert("stream".into(), true.into());
    }
    if !output_config.is_empty() {
        body.insert("output_config".into(), output_config.into());
    }
    if !request.tools.is_empty() {
        let tools: Vec<Value> = request
            .tools
            .iter()
            .map(|tool| json!({"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}))
            .collect();
        body.insert("tools".into(), tools.into());
        let choice = match &request.tool_choice {
            ToolChoice::None => Some(json!({"type": "none"})),
            ToolChoice::Required => Some(json!({"type": "any"})),
            ToolChoice::Tool(name) => Some(json!({"type": "tool", "name": name})),
            _ => None,
        };
        if let Some(choice) = choice {
            body.insert("tool_choice".into(), choice);
        }
    }
    if !request.stop.is_empty() {
        body.insert("stop_sequences".into(), json!(request.stop));
    }
    let takes_sampling = dialect.sampling && dialect.anthropic_version.as_str() < WITHOUT_SAMPLING;
    if let Some(temperature) = request.temperature.filter(|_| takes_sampling) {
        body.insert("temperature".into(), temperature.into());
    }
    Ok(WireRequest {
        path: "/v1/messages".to_owned(),
        headers: vec![("anthropic-version", dialect.anthropic_version.clone())],
        body: super::to_bytes(&body)?,
    })
}

fn blocks(message: &Message) -> Vec<Value> {
    let mut blocks: Vec<Value> = message.parts.iter().filter_map(block).collect();
    if message.cache
        && let Some(Value::Object(last)) = blocks.last_mut()
    {
        last.insert("cache_control".into(), json!({"type": "ephemeral"}));
    }
    blocks
}

fn block(part: &Part) -> Option<Value> {
    Some(match part {
        // An empty text block is refused.
        Part::Text { text } if text.is_empty() => return None,
        Part::Text { text } => json!({"type": "text", "text": text}),
        Part::Image { media_type, data } => {
            json!({"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}})
        }
        // Thinking without a signature came from another provider and would be refused.
        Part::Thinking { text, signature: Some(signature) } => {
            json!({"type": "thinking", "thinking": text, "signature": signature})
        }
        Part::Opaque { provider, item } if provider == PROVIDER => item.clone(),
        Part::ToolCall(call) => {
            let input = if call.arguments.is_object() { call.arguments.clone() } else { json!({}) };
            json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input})
        }
        Part::ToolResult { call_id, content, is_error, .. } => {
            let mut result = json!({"type": "tool_result", "tool_use_id": call_id, "content": content});
            if *is_error && let Some(fields) = result.as_object_mut() {
                fields.insert("is_error".into(), true.into());
            }
            result
        }
        _ => return None,
    })
}

fn effort_name(effort: Effort) -> &'static str {
    match effort {
        Effort::Minimal | Effort::Low => "low",
        Effort::High => "high",
        Effort::Max => "max",
        _ => "medium",
    }
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default)]
    index: u64,
    #[serde(borrow)]
    delta: Option<Change<'a>>,
    content_block: Option<Value>,
    message: Option<Head>,
    usage: Option<Counted>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Change<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    thinking: Option<Cow<'a, str>>,
    #[serde(borrow)]
    signature: Option<Cow<'a, str>>,
    #[serde(borrow)]
    partial_json: Option<Cow<'a, str>>,
    #[serde(borrow)]
    stop_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Head {
    id: Option<String>,
    model: Option<String>,
    usage: Option<Counted>,
    #[serde(default)]
    content: Vec<Value>,
    stop_reason: Option<String>,
}

/// Usage as counted by the provider: `input_tokens` leaves out what the cache held or took in.
#[derive(Clone, Copy, Default, Deserialize)]
struct Counted {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Clone, Copy, Deserialize)]
struct OutputDetails {
    thinking_tokens: Option<u64>,
}

/// Reads the events of Messages.
#[derive(Default)]
pub(super) struct Messages {
    counted: Counted,
    /// The block of a kind that only the provider understands which is open, with its input so far.
    open: Option<(u64, Value, String)>,
}

impl Reader for Messages {
    fn event(&mut self, _name: Option<&str>, data: &str, out: &mut Assembly) -> Result<(), Failure> {
        let event: Event<'_> = serde_json::from_str(data)
            .map_err(|error| Failure::malformed(format!("expected an event of Messages: {error}")))?;
        match &*event.kind {
            "message_start" => {
                if let Some(head) = event.message {
                    out.id = head.id;
                    out.model = head.model;
                    self.count(head.usage, out);
                }
            }
            "content_block_start" => self.start(event.index, event.content_block.unwrap_or_default(), out)?,
            "content_block_delta" => {
                if let Some(delta) = event.delta {
                    self.change(event.index, &delta, out)?;
                }
            }
            "content_block_stop" => self.close(event.index, out),
            "message_delta" => {
                if let Some(reason) = event.delta.and_then(|delta| delta.stop_reason) {
                    out.stop = Some(stop_reason(&reason));
                }
                self.count(event.usage, out);
            }
            "message_stop" => out.ended = true,
            "error" => return Err(failure::in_stream(&json!({"error": event.error}))),
            // `ping`, and what is newer than this release.
            _ => {}
        }
        Ok(())
    }

    fn whole(&mut self, body: &[u8], out: &mut Assembly) -> Result<(), Failure> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| Failure::malformed(format!("expected a message as JSON: {error}")))?;
        if value.get("type").is_some_and(|kind| kind == "error") {
            return Err(failure::in_stream(&value));
        }
        let head: Head = serde_json::from_value(value)
            .map_err(|error| Failure::malformed(format!("expected a message: {error}")))?;
        let Some(reason) = head.stop_reason else {
            return Err(Failure::malformed("expected a message with a `stop_reason`"));
        };
        out.id = head.id;
        out.model = head.model;
        out.stop = Some(stop_reason(&reason));
        self.count(head.usage, out);
        for (index, block) in (0..).zip(head.content) {
            let input = block.get("input").filter(|_| kind_of(&block) == "tool_use").map(Value::to_string);
            self.start(index, block, out)?;
            if let Some(input) = input {
                out.arguments(index, &input)?;
            }
            self.close(index, out);
        }
        out.ended = true;
        Ok(())
    }
}

fn kind_of(block: &Value) -> &str {
    block.get("type").and_then(Value::as_str).unwrap_or_default()
}

impl Messages {
    fn start(&mut self, index: u64, block: Value, out: &mut Assembly) -> Result<(), Failure> {
        let text = |key: &str| block.get(key).and_then(Value::as_str).unwrap_or_default();
        match kind_of(&block) {
            "text" => out.text(text("text")),
            "thinking" => {
                out.thinking_block();
                out.thinking(text("thinking"));
                if !text("signature").is_empty() {
                    out.signature(text("signature"));
                }
            }
            "tool_use" => {
                if text("name").is_empty() {
                    return Err(Failure::malformed("expected a `tool_use` block with a `name`"));
                }
                out.call(index, text("id"), text("name"));
            }
            _ => self.open = Some((index, block, String::new())),
        }
        Ok(())
    }

    fn change(&mut self, index: u64, delta: &Change<'_>, out: &mut Assembly) -> Result<(), Failure> {
        if let Some((open, _, input)) = &mut self.open
            && *open == index
        {
            input.push_str(delta.partial_json.as_deref().unwrap_or_default());
            return Ok(());
        }
        if let Some(text) = &delta.text {
            out.text(text);
        }
        if let Some(thinking) = &delta.thinking {
            out.thinking(thinking);
        }
        if let Some(signature) = &delta.signature {
            out.signature(signature);
        }
        if let Some(fragment) = &delta.partial_json {
            out.arguments(index, fragment)?;
        }
        Ok(())
    }

    fn close(&mut self, index: u64, out: &mut Assembly) {
        let Some((_, mut block, input)) = self.open.take_if(|(open, ..)| *open == index) else { return };
        if let (Some(fields), Ok(input)) = (block.as_object_mut(), serde_json::from_str::<Value>(&input)) {
            fields.insert("input".into(), input);
        }
        out.opaque(PROVIDER, block);
    }

    /// The later count replaces the earlier one, number by number: counts of a stream are running totals.
    fn count(&mut self, counted: Option<Counted>, out: &mut Assembly) {
        let Some(new) = counted else { return };
        let old = self.counted;
        self.counted = Counted {
            input_tokens: new.input_tokens.or(old.input_tokens),
            output_tokens: new.output_tokens.or(old.output_tokens),
            cache_read_input_tokens: new.cache_read_input_tokens.or(old.cache_read_input_tokens),
            cache_creation_input_tokens: new.cache_creation_input_tokens.or(old.cache_creation_input_tokens),
            output_tokens_details: new.output_tokens_details.or(old.output_tokens_details),
        };
        let all = self.counted;
        let read = all.cache_read_input_tokens.unwrap_or(0);
        let write = all.cache_creation_input_tokens.unwrap_or(0);
        out.usage = Usage {
            input_tokens: all.input_tokens.unwrap_or(0).saturating_add(read).saturating_add(write),
            output_tokens: all.output_tokens.unwrap_or(0),
            cache_read_tokens: read,
            cache_write_tokens: write,
            reasoning_tokens: all.output_tokens_details.and_then(|d| d.thinking_tokens).unwrap_or(0),
        };
    }
}

fn stop_reason(reason: &str) -> StopReason {
    match reason {
        "end_turn" => StopReason::End,
        "tool_use" => StopReason::ToolCalls,
        "max_tokens" | "model_context_window_exceeded" => StopReason::MaxTokens,
        "stop_sequence" => StopReason::StopText,
        "refusal" => StopReason::Refusal,
        "pause_turn" => StopReason::Pause,
        other => StopReason::Other(other.to_owned()),
    }
}
