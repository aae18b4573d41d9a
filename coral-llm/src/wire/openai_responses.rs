//! OpenAI's Responses.

use std::borrow::Cow;

use coral_core::{ChatRequest, Error, Message, Part, Role, StopReason, ToolChoice, Usage};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::assembly::Assembly;
use super::openai_chat::effort_name;
use super::{Reader, WireRequest, schema};
use crate::dialect::{Dialect, Structured};
use crate::failure::{self, Failure};

const PROVIDER: &str = "openai";

pub(super) fn encode(
    request: &ChatRequest,
    model: &str,
    stream: bool,
    dialect: &Dialect,
) -> Result<WireRequest, Error> {
    let mut instructions = String::new();
    let mut input: Vec<Value> = Vec::new();
    for message in &request.messages {
        if message.role == Role::System {
            join(&mut instructions, &message.text());
        } else {
            items(message, &mut input);
        }
    }
    let mut body = Map::new();
    if let Some(output) = &request.output {
        let format = match dialect.structured {
            Structured::Schema => {
                let strict = schema::strict(&output.schema);
                let is_strict = strict.is_some();
                let schema = strict.unwrap_or_else(|| (*output.schema).clone());
                Some(
                    json!({"type": "json_schema", "name": output.name, "strict": is_strict, "schema": schema}),
                )
            }
            Structured::Json => Some(json!({"type": "json_object"})),
            Structured::Tool | Structured::Instructions => None,
        };
        if dialect.structured != Structured::Schema {
            join(&mut instructions, &schema::instruction(output));
        }
        if let Some(format) = format {
            body.insert("text".into(), json!({"format": format}));
        }
    }
    body.insert("model".into(), model.into());
    body.insert("input".into(), input.into());
    // The journal keeps the conversation; the provider need not.
    body.insert("store".into(), false.into());
    if !instructions.is_empty() {
        body.insert("instructions".into(), instructions.into());
    }
    if stream {
        body.insert("stream".into(), true.into());
    }
    if !request.tools.is_empty() {
        let tools: Vec<Value> = request
            .tools
            .iter()
            .map(|tool| {
                json!({"type": "function", "name": tool.name, "description": tool.description,
                    "parameters": tool.input_schema, "strict": false})
            })
            .collect();
        body.insert("tools".into(), tools.into());
        let choice = match &request.tool_choice {
            ToolChoice::None => Some(json!("none")),
            ToolChoice::Required => Some(json!("required")),
            ToolChoice::Tool(name) => Some(json!({"type": "function", "name": name})),
            _ => None,
        };
        if let Some(choice) = choice {
            body.insert("tool_choice".into(), choice);
        }
    }
    if let Some(max) = request.max_output_tokens {
        body.insert("max_output_tokens".into(), max.into());
    }
    if let Some(temperature) = request.temperature.filter(|_| dialect.sampling) {
        body.insert("temperature".into(), temperature.into());
    }
    if let Some(effort) = request.effort.filter(|_| dialect.effort) {
        body.insert("reasoning".into(), json!({"effort": effort_name(effort), "summary": "auto"}));
        // What is not stored must be carried by the caller, sealed.
        body.insert("include".into(), json!(["reasoning.encrypted_content"]));
    }
    Ok(WireRequest { path: "/responses".to_owned(), headers: Vec::new(), body: super::to_bytes(&body)? })
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
                let arguments = match &call.arguments {
                    Value::String(text) => text.clone(),
                    value => value.to_string(),
                };
                out.push(json!({"type": "function_call", "call_id": call.id, "name": call.name, "arguments": arguments}));
                continue;
            }
            Part::ToolResult { call_id, content, .. } => {
                out.push(json!({"type": "function_call_output", "call_id": call_id, "output": content}));
                continue;
            }
            Part::Opaque { provider, item } if provider == PROVIDER => {
                out.push(item.clone());
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

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    delta: Option<Cow<'a, str>>,
    #[serde(borrow)]
    item_id: Option<Cow<'a, str>>,
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
    /// Whether anything was said by events, so that the whole response at the end is no news.
    said: bool,
    refused: bool,
}

impl Reader for Responses {
    fn event(&mut self, _name: Option<&str>, data: &str, out: &mut Assembly) -> Result<(), Failure> {
        if data.trim() == "[DONE]" {
            return Ok(());
        }
        let event: Event<'_> = serde_json::from_str(data)
            .map_err(|error| Failure::malformed(format!("expected an event of Responses: {error}")))?;
        let delta = event.delta.as_deref().unwrap_or_default();
        match &*event.kind {
            "response.output_text.delta" => self.text(delta, out),
            "response.refusal.delta" => {
                self.refused = true;
                self.text(delta, out);
            }
            "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => out.thinking(delta),
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
        let mut response: Value = serde_json::from_slice(body)
            .map_err(|error| Failure::malformed(format!("expected a response as JSON: {error}")))?;
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

impl Responses {
    fn text(&mut self, text: &str, out: &mut Assembly) {
        self.said = true;
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
        self.said = true;
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
            _ => out.opaque(PROVIDER, item),
        }
        Ok(())
    }

    fn finish(&mut self, mut response: Value, out: &mut Assembly) -> Result<(), Failure> {
        out.id = Some(text_of(&response, "id").to_owned());
        out.model = Some(text_of(&response, "model").to_owned());
        out.usage = usage(response.get("usage").unwrap_or(&Value::Null));
        if !self.said {
            let items = response.get_mut("output").map(Value::take);
            for item in items.as_ref().and_then(Value::as_array).into_iter().flatten() {
                self.output(item, out)?;
            }
        }
        out.stop = Some(match response.pointer("/incomplete_details/reason").and_then(Value::as_str) {
            _ if self.refused => StopReason::Refusal,
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
                for summary in item.get("summary").and_then(Value::as_array).into_iter().flatten() {
                    out.thinking(text_of(summary, "text"));
                }
                self.end(item.clone(), None, out)
            }
            _ => self.end(item.clone(), None, out),
        }
    }
}

fn usage(counted: &Value) -> Usage {
    let count = |pointer: &str| counted.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    Usage {
        input_tokens: count("/input_tokens"),
        output_tokens: count("/output_tokens"),
        cache_read_tokens: count("/input_tokens_details/cached_tokens"),
        cache_write_tokens: count("/input_tokens_details/cache_write_tokens"),
        reasoning_tokens: count("/output_tokens_details/reasoning_tokens"),
    }
}
