//! OpenAI's chat completions, and the many who speak them.

use std::borrow::Cow;
use std::fmt;

use coral_core::{Effort, Error, Message, Part, Role, StopReason, Usage};
use serde::Deserialize;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Deserializer, Value, json};

use super::alike::Alike;
use super::assembly::Assembly;
use super::call::{Call, Fields, Turn, arguments_text, function, text_of, thinking_of};
use super::read::{ByField, Fill, FillIfThere, Text, count, details, fill, skip};
use super::{Reader, WireRequest};
use crate::dialect::{Dialect, MaxTokensField};
use crate::failure::{self, Failure};

/// Whose parts those are that come in no field of their own.
const PROVIDER: &str = "openai_chat";

/// Reasoning in a form that some servers want back as it was.
const REASONING_DETAILS: &str = "reasoning_details";

pub(super) fn encode(call: &Call<'_>) -> Result<WireRequest, Error> {
    let Call { request, dialect, .. } = *call;
    let mut messages = Vec::with_capacity(request.messages.len() + 1);
    let told = call.told_schema();
    messages.extend(told.map(|text| Turn::Text { role: "system", content: text.into() }));
    let marked = call.marked();
    for (place, message) in request.messages.iter().enumerate() {
        let turns = messages.len();
        encode_message(message, dialect, &mut messages);
        if marked.contains(&place)
            && let Some(last) = messages.get_mut(turns..).and_then(<[_]>::last_mut)
        {
            last.mark();
        }
    }
    let format = match call.openai_schema() {
        Some(schema) => Some(json!({"type": "json_schema", "json_schema": schema})),
        None => call.wants_json().then(|| json!({"type": "json_object"})),
    };
    let max_tokens = match dialect.max_tokens_field {
        MaxTokensField::MaxCompletionTokens => "max_completion_tokens",
        MaxTokensField::MaxTokens => "max_tokens",
    };
    let counts = call.stream && dialect.stream_usage;
    let mut body = Fields::default();
    body.set("model", call.model);
    body.set_turns("messages", messages);
    body.set_some("response_format", format);
    body.set_some("stream", call.stream.then_some(true));
    body.set_some("stream_options", counts.then(|| json!({"include_usage": true})));
    body.set_filled("tools", call.tools(function));
    body.set_some(
        "tool_choice",
        call.tool_choice(
            json!("none"),
            json!("required"),
            |name| json!({"type": "function", "function": {"name": name}}),
        ),
    );
    body.set_some(max_tokens, request.max_output_tokens);
    body.set_some("temperature", call.temperature());
    body.set_some("reasoning_effort", call.effort().map(effort_name));
    call.set_cache(&mut body);
    body.set_filled("stop", json!(request.stop));
    body.into_request("/chat/completions")
}

fn encode_message<'a>(message: &'a Message, dialect: &Dialect, out: &mut Vec<Turn<'a>>) {
    match message.role {
        Role::System => out.push(Turn::Text { role: "system", content: text_of(message) }),
        Role::Assistant => out.push(Turn::Other(assistant(message, dialect))),
        // Plain text is known to every server; a list of parts is not.
        Role::User | Role::Tool if message.parts.iter().all(|part| part.as_text().is_some()) => {
            if !message.parts.is_empty() {
                out.push(Turn::Text { role: "user", content: text_of(message) });
            }
        }
        Role::User | Role::Tool => {
            let mut content = Vec::new();
            for part in &message.parts {
                match part {
                    Part::Text { text } => content.push(json!({"type": "text", "text": text})),
                    Part::Image { media_type, data } => content.push(json!({
                        "type": "image_url", "image_url": {"url": format!("data:{media_type};base64,{data}")},
                    })),
                    Part::ToolResult { call_id, content, .. } => {
                        let result = json!({"role": "tool", "tool_call_id": call_id, "content": content});
                        out.push(Turn::Other(result));
                    }
                    _ => {}
                }
            }
            if content.is_empty() {
                return;
            }
            let all_text = message.parts.iter().all(|part| !matches!(part, Part::Image { .. }));
            let content = if all_text { message.text().into() } else { Value::Array(content) };
            out.push(Turn::Other(json!({"role": "user", "content": content})));
        }
    }
}

fn assistant(message: &Message, dialect: &Dialect) -> Value {
    let text = message.text();
    let calls: Vec<Value> = message
        .tool_calls()
        .map(|call| {
            let arguments = arguments_text(&call.arguments);
            json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
        })
        .collect();
    let mut fields = Fields::default();
    fields.set("role", "assistant");
    fields.set("content", if text.is_empty() && !calls.is_empty() { Value::Null } else { text.into() });
    fields.set_filled("tool_calls", calls);
    if dialect.send_reasoning {
        fields.set_filled("reasoning_content", thinking_of(message));
    }
    if dialect.reasoning_details {
        let details = message.parts.iter().filter_map(|part| match part {
            Part::Opaque { provider, item } if provider == PROVIDER => {
                item.get(REASONING_DETAILS)?.as_array()
            }
            _ => None,
        });
        fields.set_filled(REASONING_DETAILS, details.flatten().cloned().collect::<Vec<Value>>());
    }
    fields.into()
}

pub(super) fn effort_name(effort: Effort) -> &'static str {
    match effort {
        Effort::Minimal => "minimal",
        Effort::Low => "low",
        Effort::High => "high",
        Effort::ExtraHigh => "xhigh",
        Effort::Max => "max",
        _ => "medium",
    }
}

#[derive(Default)]
struct Chunk<'a> {
    id: Option<Text<'a>>,
    model: Option<Text<'a>>,
    choice: Option<Choice<'a>>,
    usage: Option<Box<Counted>>,
    error: Option<Box<Value>>,
}

impl<'de> ByField<'de> for Chunk<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, value: &mut A) -> Result<(), A::Error> {
        match name {
            "id" => self.id = value.next_value()?,
            "model" => self.model = value.next_value()?,
            "choices" => value.next_value_seed(FirstChoice(&mut self.choice))?,
            "usage" => self.usage = value.next_value::<CountedOrNot>()?.0,
            "error" => self.error = value.next_value()?,
            _ => skip(value)?,
        }
        Ok(())
    }
}

impl Chunk<'_> {
    /// The text that it adds to the answer, if that is all that it says beside what all chunks say.
    fn mere_text(&self) -> Option<&str> {
        let choice = self.choice.as_ref()?;
        let Said { content, refusal, reasoning_content, reasoning, tool_calls, reasoning_details } =
            &choice.said;
        let says_more = self.error.is_some()
            || self.usage.is_some()
            || choice.error.is_some()
            || choice.finish_reason.is_some()
            || refusal.is_some()
            || reasoning_content.is_some()
            || reasoning.is_some()
            || tool_calls.is_some()
            || reasoning_details.is_some();
        match content {
            Some(Content::Text(Cow::Borrowed(text))) if !says_more => Some(text),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Choice<'a> {
    index: u64,
    said: Said<'a>,
    /// Whether that is what is new, or all so far.
    is_new: bool,
    is_whole: bool,
    finish_reason: Option<Text<'a>>,
    error: Option<Box<Value>>,
}

impl<'de> ByField<'de> for Choice<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, value: &mut A) -> Result<(), A::Error> {
        match name {
            "index" => self.index = value.next_value()?,
            "delta" if self.is_whole || self.is_new => {
                let mut said = Said::default();
                if value.next_value_seed(FillIfThere(&mut said))? {
                    (self.said, self.is_new) = (said, true);
                }
            }
            "delta" => self.is_new = value.next_value_seed(FillIfThere(&mut self.said))?,
            // Some servers tell both, and what is new was not told yet.
            "message" if self.is_new || self.is_whole => skip(value)?,
            "message" => self.is_whole = value.next_value_seed(FillIfThere(&mut self.said))?,
            "finish_reason" => self.finish_reason = value.next_value()?,
            "error" => self.error = value.next_value()?,
            _ => skip(value)?,
        }
        Ok(())
    }
}

#[derive(Default)]
struct Said<'a> {
    content: Option<Content<'a>>,
    refusal: Option<Text<'a>>,
    reasoning_content: Option<Text<'a>>,
    reasoning: Option<Text<'a>>,
    tool_calls: Option<Vec<CallPiece<'a>>>,
    reasoning_details: Option<Vec<Value>>,
}

impl<'de> ByField<'de> for Said<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, value: &mut A) -> Result<(), A::Error> {
        match name {
            "content" => self.content = value.next_value()?,
            "refusal" => self.refusal = value.next_value()?,
            "reasoning_content" => self.reasoning_content = value.next_value()?,
            "reasoning" => self.reasoning = value.next_value()?,
            "tool_calls" => self.tool_calls = value.next_value()?,
            REASONING_DETAILS => self.reasoning_details = value.next_value()?,
            _ => skip(value)?,
        }
        Ok(())
    }
}

/// One answer is asked for; a server that sends more is read for its first.
struct FirstChoice<'t, 'a>(&'t mut Option<Choice<'a>>);

impl<'de> DeserializeSeed<'de> for FirstChoice<'_, 'de> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FirstChoice<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of choices")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while self.0.is_none() {
            if list.next_element_seed(Fill(self.0.insert(Choice::default())))?.is_none() {
                *self.0 = None;
                return Ok(());
            }
            self.0.take_if(|choice| choice.index != 0);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Text, or pieces of which some are thinking, as Mistral's models write them.
enum Content<'a> {
    Text(Cow<'a, str>),
    Pieces(Vec<Value>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Content<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, or a list of pieces")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Content<'de>, E> {
                Ok(Content::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Content<'de>, E> {
                Ok(Content::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Content<'de>, A::Error> {
                let mut pieces = Vec::new();
                while let Some(piece) = list.next_element()? {
                    pieces.push(piece);
                }
                Ok(Content::Pieces(pieces))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[derive(Deserialize)]
struct CallPiece<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    function: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
    arguments: Option<Value>,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct CountedOrNot(#[serde(deserialize_with = "details")] Option<Box<Counted>>);

#[derive(Clone, Copy, Default, Deserialize)]
struct Counted {
    #[serde(default, deserialize_with = "count")]
    prompt_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    completion_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    total_tokens: Option<u64>,
    #[serde(default, deserialize_with = "details")]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(default, deserialize_with = "details")]
    completion_tokens_details: Option<CompletionDetails>,
    /// DeepSeek's name for what the cache held.
    #[serde(default, deserialize_with = "count")]
    prompt_cache_hit_tokens: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
struct PromptDetails {
    #[serde(default, deserialize_with = "count")]
    cached_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    cache_write_tokens: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
struct CompletionDetails {
    #[serde(default, deserialize_with = "count")]
    reasoning_tokens: Option<u64>,
}

/// Reads the chunks of chat completions.
#[derive(Default)]
pub(super) struct Completions {
    done_marker: bool,
    refused: bool,
    /// The calls that began: the index and the id that the server gave them.
    calls: Vec<(Option<u64>, String)>,
    /// Reasoning that the server wants back as it was.
    details: Vec<Value>,
    last: Alike,
}

impl Completions {
    pub(super) fn new(dialect: &Dialect) -> Self {
        let done_marker = dialect.done_marker;
        Completions { done_marker, ..Completions::default() }
    }
}

impl Reader for Completions {
    fn event(&mut self, name: Option<&str>, data: &str, out: &mut Assembly) -> Result<(), Failure> {
        if let Some(text) = self.last.text(data).filter(|_| name != Some("error")) {
            out.text(text);
            return Ok(());
        }
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
        let mut chunk: Chunk<'_> = fill(Deserializer::from_str(data), "a chunk of a chat completion")?;
        if let Some(text) = chunk.mere_text() {
            self.last.keep(data, text);
        }
        self.take(&mut chunk, out)?;
        // Counts may follow the finish reason.
        out.complete = !self.done_marker && out.stop.is_some();
        Ok(())
    }

    fn whole(&mut self, body: &[u8], out: &mut Assembly) -> Result<(), Failure> {
        let mut chunk: Chunk<'_> = fill(Deserializer::from_slice(body), "a chat completion")?;
        if chunk.error.is_none() && chunk.choice.is_none() {
            return Err(Failure::malformed("expected a chat completion with a choice"));
        }
        self.take(&mut chunk, out)?;
        out.ended = true;
        Ok(())
    }
}

impl Completions {
    fn take(&mut self, chunk: &mut Chunk<'_>, out: &mut Assembly) -> Result<(), Failure> {
        if let Some(error) = chunk.error.take().filter(|error| !error.is_null()) {
            return Err(failure::in_stream(&json!({"error": error})));
        }
        if out.id.is_none() {
            out.id = chunk.id.take().map(String::from);
        }
        if out.model.as_deref().is_none_or(str::is_empty) {
            out.model = chunk.model.take().map(String::from);
        }
        if let Some(counted) = chunk.usage.take() {
            out.usage = usage(*counted);
        }
        let Some(choice) = &mut chunk.choice else { return Ok(()) };
        if let Some(error) = choice.error.take().filter(|error| !error.is_null()) {
            return Err(failure::in_stream(&json!({"error": error})));
        }
        self.say(&mut choice.said, out)?;
        if let Some(reason) = choice.finish_reason.take().filter(|reason| !reason.is_empty()) {
            out.stop = Some(if self.refused { StopReason::Refusal } else { stop_reason(&reason) });
            let details = std::mem::take(&mut self.details);
            if !details.is_empty() {
                out.opaque(PROVIDER, json!({REASONING_DETAILS: details}));
            }
        }
        Ok(())
    }

    fn say(&mut self, said: &mut Said<'_>, out: &mut Assembly) -> Result<(), Failure> {
        if let Some(reasoning) = said.reasoning_content.take().or_else(|| said.reasoning.take()) {
            out.thinking(&reasoning);
        }
        self.details.extend(said.reasoning_details.take().into_iter().flatten());
        match &said.content {
            Some(Content::Text(text)) => out.text(text),
            Some(Content::Pieces(pieces)) => pieces.iter().for_each(|piece| say_piece(piece, out)),
            None => {}
        }
        if let Some(refusal) = &said.refusal {
            self.refused = self.refused || !refusal.is_empty();
            out.text(refusal);
        }
        said.tool_calls.take().into_iter().flatten().try_for_each(|piece| self.call(piece, out))
    }

    fn call(&mut self, piece: CallPiece<'_>, out: &mut Assembly) -> Result<(), Failure> {
        let Some(function) = piece.function else { return Ok(()) };
        let id = piece.id.as_deref().unwrap_or_default();
        let name = function.name.as_deref().unwrap_or_default();
        let key = match self.known(piece.index, id, name) {
            Some(key) => key,
            None if name.is_empty() => {
                return Err(Failure::malformed("expected the name of the tool with a call's first fragment"));
            }
            None => {
                out.call(self.calls.len() as u64, id, name);
                self.calls.push((piece.index, id.to_owned()));
                self.calls.len() - 1
            }
        };
        match function.arguments {
            Some(Value::String(fragment)) => out.arguments(key as u64, &fragment),
            Some(Value::Null) | None => Ok(()),
            // Some servers send the arguments as an object.
            Some(value) => out.arguments(key as u64, &value.to_string()),
        }
    }

    /// The call that a fragment goes on with. Some servers repeat id and name with every fragment, some give no index,
    /// and some give every call the same one: what has a name and another id is another call.
    fn known(&self, index: Option<u64>, id: &str, name: &str) -> Option<usize> {
        let mut calls = self.calls.iter();
        let found = match index {
            Some(_) => calls.rposition(|(known, _)| *known == index),
            None if !id.is_empty() => calls.rposition(|(_, known)| known == id),
            None if name.is_empty() => self.calls.len().checked_sub(1),
            None => None,
        }?;
        let (_, known) = self.calls.get(found)?;
        let is_other = !name.is_empty() && !id.is_empty() && !known.is_empty() && known != id;
        (!is_other).then_some(found)
    }
}

/// One piece of a content that comes in pieces.
fn say_piece(piece: &Value, out: &mut Assembly) {
    if let Some(text) = piece.get("text").and_then(Value::as_str) {
        out.text(text);
    }
    match piece.get("thinking") {
        Some(Value::String(text)) => out.thinking(text),
        Some(Value::Array(texts)) => {
            for text in texts.iter().filter_map(|text| text.get("text")?.as_str()) {
                out.thinking(text);
            }
        }
        _ => {}
    }
}

fn usage(counted: Counted) -> Usage {
    let details = counted.prompt_tokens_details;
    let input_tokens = counted.prompt_tokens.unwrap_or(0);
    let mut output_tokens = counted.completion_tokens.unwrap_or(0);
    let reasoning_tokens = counted.completion_tokens_details.and_then(|d| d.reasoning_tokens).unwrap_or(0);
    // Some count reasoning beside the completion, as only their total shows.
    let beside = input_tokens.saturating_add(output_tokens).saturating_add(reasoning_tokens);
    if reasoning_tokens > 0 && counted.total_tokens == Some(beside) {
        output_tokens = output_tokens.saturating_add(reasoning_tokens);
    }
    Usage {
        input_tokens,
        output_tokens,
        cache_read_tokens: details
            .and_then(|d| d.cached_tokens)
            .or(counted.prompt_cache_hit_tokens)
            .unwrap_or(0),
        cache_write_tokens: details.and_then(|d| d.cache_write_tokens).unwrap_or(0),
        long_cache_write_tokens: 0,
        reasoning_tokens,
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
