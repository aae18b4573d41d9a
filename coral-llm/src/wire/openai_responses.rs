//! OpenAI's Responses.

use coral_core::{Error, Message, Part, Role, StopReason, Usage};
use serde::Deserialize;
use serde_json::{Value, json};

use super::assembly::Assembly;
use super::call::{Call, Fields, arguments_text, mark};
use super::openai_chat::effort_name;
use super::read::{Text, number, parse_event, parse_slice};
use super::{Reader, WireRequest};
use crate::failure::{self, Failure};

const PROVIDER: &str = "openai";

pub(super) fn encode(call: &Call<'_>) -> Result<WireRequest, Error> {
    let request = call.request;
    let mut instructions = String::new();
    let mut input: Vec<Value> = Vec::new();
    let marked = call.marked();
    for (place, message) in request.messages.iter().enumerate() {
        if message.role == Role::System {
            join(&mut instructions, &message.text());
            continue;
        }
        items(message, &mut input);
        // Neither instructions nor answers have a place for a mark.
        if message.role != Role::Assistant
            && marked.contains(&place)
            && let Some(last) = input.last_mut()
        {
            mark(last, "content", "input_text");
            mark(last, "output", "input_text");
        }
    }
    if let Some(text) = call.told_schema() {
        join(&mut instructions, &text);
    }
    let format = match call.openai_schema() {
        Some(mut schema) => {
            schema.insert("type".into(), "json_schema".into());
            Some(Value::Object(schema))
        }
        None => call.wants_json().then(|| json!({"type": "json_object"})),
    };
    let mut body = Fields::default();
    body.set("model", call.model);
    body.set("input", input);
    // The journal keeps the conversation; the provider need not.
    body.set("store", false);
    body.set_filled("instructions", instructions);
    body.set_some("text", format.map(|format| json!({"format": format})));
    body.set_some("stream", call.stream.then_some(true));
    body.set_filled(
        "tools",
        call.tools(|tool| {
            json!({"type": "function", "name": tool.name, "description": tool.description,
                "parameters": tool.input_schema, "strict": false})
        }),
    );
    body.set_some(
        "tool_choice",
        call.tool_choice(json!("none"), json!("required"), |name| json!({"type": "function", "name": name})),
    );
    body.set_some("max_output_tokens", request.max_output_tokens);
    body.set_some("temperature", call.temperature());
    call.set_cache(&mut body);
    if let Some(effort) = call.effort() {
        body.set("reasoning", json!({"effort": effort_name(effort), "summary": "auto"}));
    }
    // What is not stored must be carried by the caller, sealed. A model that is known to reason does so unasked.
    let reasons = call.effort().is_some() || !call.dialect.efforts.is_empty();
    body.set_some("include", reasons.then(|| json!(["reasoning.encrypted_content"])));
    body.into_request("/responses")
}

fn join(text: &mut String, more: &str) {
    if !text.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(more);
}

fn items(message: &Message, out: &mut Vec<Value>) {
    let (role, text_type) = match message.role {
        Role::Assistant => ("assistant", "output_text"),
        _ => ("user", "input_text"),
    };
    for part in &message.parts {
        let content = match part {
            Part::Text { text } if text.is_empty() => continue,
            Part::Text { text } => json!({"type": text_type, "text": text}),
            Part::Image { media_type, data } => {
                json!({"type": "input_image", "image_url": format!("data:{media_type};base64,{data}")})
            }
            Part::ToolCall(call) => {
                let arguments = arguments_text(&call.arguments);
                out.push(json!({"type": "function_call", "call_id": call.id, "name": call.name, "arguments": arguments}));
                continue;
            }
            Part::ToolResult { call_id, content, .. } => {
                out.push(json!({"type": "function_call_output", "call_id": call_id, "output": content}));
                continue;
            }
            Part::Opaque { provider, item } if provider == PROVIDER => {
                // Reasoning that is not sealed is only a name for what the provider did not store.
                let is_lost = text_of(item, "type") == "reasoning"
                    && item.get("encrypted_content").is_none_or(Value::is_null);
                if !is_lost {
                    out.push(item.clone());
                }
                continue;
            }
            _ => continue,
        };
        let open = out.last_mut().filter(|item| {
            item.get("type").is_some_and(|kind| kind == "message")
                && item.get("role").is_some_and(|known| known == role)
        });
        match open.and_then(|item| item.get_mut("content")).and_then(Value::as_array_mut) {
            Some(known) => known.push(content),
            None => out.push(json!({"type": "message", "role": role, "content": [content]})),
        }
    }
}

/// The events that are read.
const KNOWN: [&str; 11] = [
    "response.output_text.delta",
    "response.refusal.delta",
    "response.reasoning_summary_text.delta",
    "response.reasoning_text.delta",
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.output_item.done",
    "response.completed",
    "response.incomplete",
    "response.failed",
    "error",
];

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    #[serde(borrow)]
    delta: Option<Text<'a>>,
    #[serde(borrow)]
    item_id: Option<Text<'a>>,
    output_index: Option<u64>,
    item: Option<Value>,
    response: Option<Value>,
    error: Option<Value>,
    code: Option<Value>,
    message: Option<Value>,
}

/// Reads the events of Responses.
#[derive(Default)]
pub(super) struct Responses {
    /// The calls that began: the item's id, its place in the output, and whether arguments came.
    calls: Vec<(String, Option<u64>, bool)>,
    /// Whether words came by events, so that the messages of the whole response at the end are no news.
    told: bool,
    /// The same of the text of reasoning.
    thought: bool,
    /// The names of the items that ended, see [`name_of`].
    ended: Vec<String>,
    refused: bool,
}

impl Reader for Responses {
    fn event(&mut self, _name: Option<&str>, data: &str, out: &mut Assembly) -> Result<(), Failure> {
        if data.trim() == "[DONE]" {
            return Ok(());
        }
        let Some(event) = parse_event::<Event<'_>>(data, "an event of Responses", &KNOWN)? else {
            return Ok(());
        };
        let delta = event.delta.as_deref().unwrap_or_default();
        match &*event.kind {
            "response.output_text.delta" => self.text(delta, out),
            "response.refusal.delta" => {
                self.refused = true;
                self.text(delta, out);
            }
            "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => {
                self.thought = true;
                out.thinking(delta);
            }
            "response.output_item.added" => {
                if let Some(item) = event.item {
                    self.begin(&item, event.output_index, out)?;
                }
            }
            "response.function_call_arguments.delta" => {
                let key = self.key(event.item_id.as_deref(), event.output_index);
                self.arguments(key, delta, out)?;
            }
            "response.output_item.done" => {
                if let Some(item) = event.item {
                    self.end(item, event.output_index, out)?;
                }
            }
            "response.completed" | "response.incomplete" => {
                self.finish(event.response.unwrap_or_default(), out)?;
            }
            "response.failed" => {
                let error =
                    event.response.and_then(|mut response| response.get_mut("error").map(Value::take));
                return Err(failure::in_stream(&json!({"error": error})));
            }
            "error" => {
                let error =
                    event.error.unwrap_or_else(|| json!({"code": event.code, "message": event.message}));
                return Err(failure::in_stream(&json!({"error": error})));
            }
            // Events that say nothing new, and what is newer than this release.
            _ => {}
        }
        Ok(())
    }

    fn whole(&mut self, body: &[u8], out: &mut Assembly) -> Result<(), Failure> {
        let mut response: Value = parse_slice(body, "a response as JSON")?;
        match response.get("status").and_then(Value::as_str) {
            Some("completed" | "incomplete") => self.finish(response, out),
            Some("failed") => {
                Err(failure::in_stream(&json!({"error": response.get_mut("error").map(Value::take)})))
            }
            found => {
                Err(Failure::malformed(format!("expected a response that is completed, found {found:?}")))
            }
        }
    }
}

fn text_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The status of a response that was cut, for a reason that may stand beside it.
const INCOMPLETE: &str = "incomplete";

/// What an item is told by from others: its id, or its type where a server gives none.
fn name_of(item: &Value) -> &str {
    Some(text_of(item, "id")).filter(|id| !id.is_empty()).unwrap_or_else(|| text_of(item, "type"))
}

impl Responses {
    fn text(&mut self, text: &str, out: &mut Assembly) {
        self.told = true;
        out.text(text);
    }

    /// The call that an event speaks of: by its item's id, else by its place, else the last one.
    fn key(&self, item_id: Option<&str>, place: Option<u64>) -> Option<usize> {
        let by_id =
            item_id.and_then(|id| self.calls.iter().position(|(known, ..)| !id.is_empty() && known == id));
        let by_place =
            || place.and_then(|place| self.calls.iter().position(|(_, known, _)| *known == Some(place)));
        by_id.or_else(by_place).or_else(|| self.calls.len().checked_sub(1))
    }

    fn arguments(&mut self, key: Option<usize>, fragment: &str, out: &mut Assembly) -> Result<(), Failure> {
        let Some((key, call)) = key.and_then(|key| Some((key, self.calls.get_mut(key)?))) else {
            return Err(Failure::malformed("arguments came for a tool call that did not begin"));
        };
        call.2 = call.2 || !fragment.is_empty();
        out.arguments(key as u64, fragment)
    }

    fn begin(&mut self, item: &Value, place: Option<u64>, out: &mut Assembly) -> Result<(), Failure> {
        if text_of(item, "type") != "function_call" {
            return Ok(());
        }
        let name = text_of(item, "name");
        if name.is_empty() {
            return Err(Failure::malformed("expected a `function_call` with a `name`"));
        }
        let call_id =
            Some(text_of(item, "call_id")).filter(|id| !id.is_empty()).unwrap_or(text_of(item, "id"));
        out.call(self.calls.len() as u64, call_id, name);
        self.calls.push((text_of(item, "id").to_owned(), place, false));
        Ok(())
    }

    fn end(&mut self, item: Value, place: Option<u64>, out: &mut Assembly) -> Result<(), Failure> {
        match text_of(&item, "type") {
            "function_call" => {
                let key = self.key(Some(text_of(&item, "id")), place);
                let came = key.and_then(|key| self.calls.get(key)).is_some_and(|(_, _, came)| *came);
                if !came {
                    self.arguments(key, text_of(&item, "arguments"), out)?;
                }
            }
            "message" => {}
            // Reasoning, and the calls of tools that the provider runs itself.
            _ => {
                self.ended.push(name_of(&item).to_owned());
                out.opaque(PROVIDER, item);
            }
        }
        Ok(())
    }

    fn finish(&mut self, mut response: Value, out: &mut Assembly) -> Result<(), Failure> {
        out.id = Some(text_of(&response, "id").to_owned());
        out.model = Some(text_of(&response, "model").to_owned());
        out.usage = usage(response.get("usage").unwrap_or(&Value::Null));
        if let Some(Value::Array(items)) = response.get_mut("output").map(Value::take) {
            let (told, called) = (self.told, !self.calls.is_empty());
            for item in items {
                let is_known = match text_of(&item, "type") {
                    "message" => told,
                    "function_call" => called,
                    _ => self.ended.iter().any(|known| known == name_of(&item)),
                };
                if !is_known {
                    self.output(&item, out)?;
                }
            }
        }
        let is_incomplete = text_of(&response, "status") == INCOMPLETE;
        out.stop = Some(match response.pointer("/incomplete_details/reason").and_then(Value::as_str) {
            _ if self.refused => StopReason::Refusal,
            None if is_incomplete => StopReason::Other(INCOMPLETE.to_owned()),
            None => StopReason::End,
            Some("max_output_tokens") => StopReason::MaxTokens,
            Some("content_filter") => StopReason::ContentFilter,
            Some(other) => StopReason::Other(other.to_owned()),
        });
        out.ended = true;
        Ok(())
    }

    fn output(&mut self, item: &Value, out: &mut Assembly) -> Result<(), Failure> {
        match text_of(item, "type") {
            "message" => {
                for content in item.get("content").and_then(Value::as_array).into_iter().flatten() {
                    let refusal = text_of(content, "refusal");
                    self.refused = self.refused || !refusal.is_empty();
                    out.text(text_of(content, "text"));
                    out.text(refusal);
                }
                Ok(())
            }
            "function_call" => {
                self.begin(item, None, out)?;
                self.end(item.clone(), None, out)
            }
            "reasoning" => {
                let summaries = item.get("summary").and_then(Value::as_array).into_iter().flatten();
                for summary in summaries.filter(|_| !self.thought) {
                    out.thinking(text_of(summary, "text"));
                }
                self.end(item.clone(), None, out)
            }
            _ => self.end(item.clone(), None, out),
        }
    }
}

fn usage(counted: &Value) -> Usage {
    let count = |pointer: &str| counted.pointer(pointer).and_then(number).unwrap_or(0);
    Usage {
        input_tokens: count("/input_tokens"),
        output_tokens: count("/output_tokens"),
        cache_read_tokens: count("/input_tokens_details/cached_tokens"),
        cache_write_tokens: count("/input_tokens_details/cache_write_tokens"),
        long_cache_write_tokens: count("/input_tokens_details/cache_write_tokens_details/ttl_12h_tokens"),
        reasoning_tokens: count("/output_tokens_details/reasoning_tokens"),
    }
}
