//! Anthropic's Messages.

use coral_core::{Effort, Error, Message, Part, Role, StopReason, ToolChoice, Usage};
use serde::Deserialize;
use serde_json::{Value, json};

use super::assembly::Assembly;
use super::call::{Call, Fields, arguments_object, too_many, turn};
use super::read::{Text, count, details, parse_event, parse_slice};
use super::{Reader, WireRequest, schema};
use crate::dialect::Dialect;
use crate::failure::{self, Failure};

const PROVIDER: &str = "anthropic";

/// The first version that refuses sampling parameters.
const WITHOUT_SAMPLING: &str = "2026-10-21";

/// Marks for the cache that one request may have, the one at its top included.
const MAX_MARKS: usize = 4;

pub(super) fn encode(call: &Call<'_>) -> Result<WireRequest, Error> {
    let Call { request, dialect, .. } = *call;
    let mut system = Vec::new();
    let mut messages: Vec<Value> = Vec::new();
    for message in &request.messages {
        let blocks = blocks(message, dialect);
        match message.role {
            Role::System => system.extend(blocks),
            Role::User | Role::Tool => turn(&mut messages, "user", "content", blocks),
            Role::Assistant => turn(&mut messages, "assistant", "content", blocks),
        }
    }
    let most = MAX_MARKS - usize::from(dialect.auto_cache);
    let marks = limit_marks(&mut system, &mut messages, most);
    let mut tools = call.tools(
        |tool| json!({"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}),
    );
    // Tools stand before all else, so that calls which share nothing but these share them.
    let caches = marks > 0 || dialect.auto_cache;
    if let Some(Value::Object(last)) = tools.last_mut().filter(|_| caches && marks < most) {
        last.insert(MARK.into(), cache_control(dialect));
    }

    let mut output = Fields::default();
    let schema = call.schema().map(|output| (schema::closed(&output.schema), output));
    let told = match schema {
        Some((Some(schema), _)) => {
            output.set("format", json!({"type": "json_schema", "schema": schema}));
            None
        }
        Some((None, open)) => Some(schema::instruction(open)),
        None => call.told_schema(),
    };
    system.extend(told.map(|text| json!({"type": "text", "text": text})));
    output.set_some("effort", call.effort().map(effort_name));
    // What a model thinks is shown only if that is asked for, and none may think that is made to call a tool.
    let is_forced = !request.tools.is_empty()
        && matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Tool(_));
    let thinks = call.effort().is_some() && !is_forced;

    let takes_sampling = dialect.anthropic_version.as_str() < WITHOUT_SAMPLING;
    let mut body = Fields::default();
    body.set("model", call.model);
    body.set("max_tokens", request.max_output_tokens.unwrap_or(dialect.default_max_tokens));
    body.set("messages", messages);
    body.set_filled("system", system);
    body.set_some("stream", call.stream.then_some(true));
    body.set_some("cache_control", dialect.auto_cache.then(|| cache_control(dialect)));
    body.set_filled("output_config", output);
    body.set_some("thinking", thinks.then(|| json!({"type": "adaptive", "display": "summarized"})));
    body.set_filled("tools", tools);
    body.set_some(
        "tool_choice",
        call.tool_choice(
            json!({"type": "none"}),
            json!({"type": "any"}),
            |name| json!({"type": "tool", "name": name}),
        ),
    );
    body.set_filled("stop_sequences", json!(request.stop));
    body.set_some("temperature", call.temperature().filter(|_| takes_sampling && !thinks));
    let mut wire = body.into_request("/v1/messages")?;
    wire.headers.push(("anthropic-version", dialect.anthropic_version.clone()));
    Ok(wire)
}

fn cache_control(dialect: &Dialect) -> Value {
    match &dialect.cache_ttl {
        None => json!({"type": "ephemeral"}),
        Some(ttl) => json!({"type": "ephemeral", "ttl": ttl}),
    }
}

fn blocks(message: &Message, dialect: &Dialect) -> Vec<Value> {
    let mut blocks: Vec<Value> = message.parts.iter().filter_map(block).collect();
    // Thinking can't be marked; what stands before it can.
    let markable = |block: &&mut Value| !matches!(kind_of(block), "thinking" | "redacted_thinking");
    if message.cache
        && let Some(Value::Object(last)) = blocks.iter_mut().rev().find(markable)
    {
        last.insert(MARK.into(), cache_control(dialect));
    }
    blocks
}

const MARK: &str = "cache_control";

/// Takes out the marks that are too many. Returns how many are left.
fn limit_marks(system: &mut [Value], messages: &mut [Value], most: usize) -> usize {
    let content = messages.iter_mut().filter_map(|turn| turn.get_mut("content")?.as_array_mut()).flatten();
    let mut marked: Vec<_> = system
        .iter_mut()
        .chain(content)
        .filter_map(Value::as_object_mut)
        .filter(|block| block.contains_key(MARK))
        .collect();
    for block in marked.drain(too_many(marked.len(), most)) {
        block.remove(MARK);
    }
    marked.len()
}

fn block(part: &Part) -> Option<Value> {
    Some(match part {
        // A text block that is empty, or of blanks alone, is refused.
        Part::Text { text } if text.trim().is_empty() => return None,
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
            json!({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments_object(&call.arguments)})
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
        Effort::ExtraHigh => "xhigh",
        Effort::Max => "max",
        _ => "medium",
    }
}

/// The events that are read.
const KNOWN: [&str; 7] = [
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
    "error",
];

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    #[serde(default)]
    index: u64,
    #[serde(borrow)]
    delta: Option<Change<'a>>,
    content_block: Option<Value>,
    message: Option<Head>,
    #[serde(default, deserialize_with = "details")]
    usage: Option<Counted>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Change<'a> {
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(borrow)]
    thinking: Option<Text<'a>>,
    #[serde(borrow)]
    signature: Option<Text<'a>>,
    #[serde(borrow)]
    partial_json: Option<Text<'a>>,
    #[serde(borrow)]
    stop_reason: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Head {
    id: Option<String>,
    model: Option<String>,
    #[serde(default, deserialize_with = "details")]
    usage: Option<Counted>,
    #[serde(default)]
    content: Vec<Value>,
    stop_reason: Option<String>,
}

/// Usage as counted by the provider: `input_tokens` leaves out what the cache held or took in.
#[derive(Clone, Copy, Default, Deserialize)]
struct Counted {
    #[serde(default, deserialize_with = "count")]
    input_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    output_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    cache_read_input_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default, deserialize_with = "details")]
    cache_creation: Option<Written>,
    #[serde(default, deserialize_with = "details")]
    output_tokens_details: Option<OutputDetails>,
}

/// What the cache took in, by how long it keeps it.
#[derive(Clone, Copy, Deserialize)]
struct Written {
    #[serde(default, deserialize_with = "count")]
    ephemeral_1h_input_tokens: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
struct OutputDetails {
    #[serde(default, deserialize_with = "count")]
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
        let Some(event) = parse_event::<Event<'_>>(data, "an event of Messages", &KNOWN)? else {
            return Ok(());
        };
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
        let value: Value = parse_slice(body, "a message as JSON")?;
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
            cache_creation: new.cache_creation.or(old.cache_creation),
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
            long_cache_write_tokens: all
                .cache_creation
                .and_then(|written| written.ephemeral_1h_input_tokens)
                .unwrap_or(0),
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
