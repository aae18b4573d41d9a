//! What all encoders ask of a call, and how they write their bodies.

use std::borrow::Cow;
use std::ops::Range;

use coral_core::{ChatRequest, Effort, Error, Message, OutputFormat, Part, ToolChoice, ToolDef};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::{WireRequest, schema};
use crate::dialect::{Dialect, Structured};

/// One call, as an encoder gets it.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) request: &'a ChatRequest,
    pub(super) model: &'a str,
    pub(super) stream: bool,
    pub(super) dialect: &'a Dialect,
}

impl<'a> Call<'a> {
    /// The sampling temperature, where the endpoint takes one.
    pub(super) fn temperature(&self) -> Option<f32> {
        let with_effort = self.dialect.sampling_with_effort || self.effort().is_none();
        self.request.temperature.filter(|_| self.dialect.sampling && with_effort)
    }

    /// The reasoning effort, where the endpoint takes one: the next lower one that the model knows, or its least.
    pub(super) fn effort(&self) -> Option<Effort> {
        let asked = self.request.effort.filter(|_| self.dialect.effort)?;
        let known = &self.dialect.efforts;
        let lower = known.iter().filter(|effort| **effort <= asked).max();
        Some(lower.or(known.iter().min()).copied().unwrap_or(asked))
    }

    /// The tools in the words of a wire.
    pub(super) fn tools(&self, word: impl FnMut(&ToolDef) -> Value) -> Vec<Value> {
        self.request.tools.iter().map(word).collect()
    }

    /// What is said of the choice of tools, if there are any and the choice is not the model's.
    pub(super) fn tool_choice(
        &self,
        none: Value,
        required: Value,
        named: impl Fn(&str) -> Value,
    ) -> Option<Value> {
        match &self.request.tool_choice {
            _ if self.request.tools.is_empty() => None,
            ToolChoice::None => Some(none),
            ToolChoice::Required => Some(required),
            ToolChoice::Tool(name) => Some(named(name)),
            _ => None,
        }
    }

    /// The format of the answer, if the provider can hold the model to it.
    pub(super) fn schema(&self) -> Option<&'a OutputFormat> {
        self.request.output.as_ref().filter(|_| self.dialect.structured == Structured::Schema)
    }

    /// The format of the answer, if the model must be told of it: nobody else holds the model to it.
    pub(super) fn told_schema(&self) -> Option<String> {
        let output =
            self.request.output.as_ref().filter(|_| self.dialect.structured != Structured::Schema)?;
        Some(schema::instruction(output))
    }

    /// Whether the provider is to hold the model to JSON, whatever its schema.
    pub(super) fn wants_json(&self) -> bool {
        self.request.output.is_some() && self.dialect.structured == Structured::Json
    }

    /// OpenAI's form of the output schema: strict where it has a strict form.
    pub(super) fn openai_schema(&self) -> Option<Map<String, Value>> {
        let output = self.schema()?;
        let strict = schema::strict(&output.schema);
        let mut fields = Map::new();
        fields.insert("name".into(), output.name.as_str().into());
        fields.insert("strict".into(), strict.is_some().into());
        fields.insert("schema".into(), strict.unwrap_or_else(|| (*output.schema).clone()));
        Some(fields)
    }

    /// What OpenAI is told of its cache: which calls begin alike, and how long to keep that.
    pub(super) fn set_cache(&self, body: &mut Fields<'_>) {
        body.set_some("prompt_cache_key", self.prompt_cache_key());
        match self.dialect.cache_ttl.as_deref() {
            None => {}
            // The field of the models before lifetimes were named.
            Some(kept @ ("in_memory" | "24h")) => body.set("prompt_cache_retention", kept),
            Some(ttl) => body.set("prompt_cache_options", json!({"ttl": ttl})),
        }
    }

    /// The places of the messages whose ends OpenAI is shown.
    pub(super) fn marked(&self) -> Vec<usize> {
        if !self.dialect.cache_marks {
            return Vec::new();
        }
        let cached = self.request.messages.iter().enumerate().filter(|(_, message)| message.cache);
        let mut places: Vec<usize> = cached.map(|(place, _)| place).collect();
        places.drain(too_many(places.len(), MAX_MARKS));
        places
    }

    /// A name for the beginning that this call shares with others, so that the provider routes them to one cache:
    /// what stands before and in the first message that is to be cached.
    fn prompt_cache_key(&self) -> Option<String> {
        if !self.dialect.prompt_cache_key {
            return None;
        }
        let marked = self.request.messages.iter().position(|message| message.cache)?;
        let shared = (self.model, &*self.request.tools, self.request.messages.get(..=marked)?);
        let digest = coral_core::digest(&shared).ok()?;
        Some(format!("coral-{}", digest.get(..32)?))
    }
}

/// Which of so many marks for a provider's cache are to be left out, where it takes `most`: the first stays, which most
/// calls share, and the last ones.
pub(super) fn too_many(marks: usize, most: usize) -> Range<usize> {
    let excess = marks.saturating_sub(most);
    let begin = excess.min(1);
    begin..(begin + excess).min(marks)
}

/// The ends of messages that OpenAI may be shown in one request.
const MAX_MARKS: usize = 4;

/// Marks the end of what `holder` has under `field`, text or a list of parts, for OpenAI's cache. Text becomes a part of
/// the type `text_type` by that.
pub(super) fn mark(holder: &mut Value, field: &str, text_type: &str) {
    let Some(content) = holder.get_mut(field) else { return };
    if let Value::String(text) = content
        && !text.is_empty()
    {
        *content = json!([{"type": text_type, "text": std::mem::take(text)}]);
    }
    if let Some(Value::Object(last)) = content.as_array_mut().and_then(|parts| parts.last_mut()) {
        last.insert("prompt_cache_breakpoint".into(), json!({"mode": "explicit"}));
    }
}

/// A function as chat completions and Ollama offer it.
pub(super) fn function(tool: &ToolDef) -> Value {
    json!({"type": "function", "function": {
        "name": tool.name, "description": tool.description, "parameters": tool.input_schema,
    }})
}

/// Arguments as text, the way OpenAI writes them.
pub(super) fn arguments_text(arguments: &Value) -> String {
    match arguments {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// Arguments as an object, for wires that know no other.
pub(super) fn arguments_object(arguments: &Value) -> Value {
    if arguments.is_object() { arguments.clone() } else { json!({}) }
}

/// Adds to the last turn if the same role has it, else begins one: turns must alternate, and the answers of tools
/// are turns of the user.
pub(super) fn turn(turns: &mut Vec<Value>, role: &str, list: &str, content: Vec<Value>) {
    if content.is_empty() {
        return;
    }
    let same = turns.last_mut().filter(|last| last.get("role").is_some_and(|known| known == role));
    match same.and_then(|last| last.get_mut(list)).and_then(Value::as_array_mut) {
        Some(known) => known.extend(content),
        None => turns.push(json!({"role": role, list: content})),
    }
}

/// The thinking in a message, joined.
pub(super) fn thinking_of(message: &Message) -> String {
    let texts = message.parts.iter().filter_map(|part| match part {
        Part::Thinking { text, .. } => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

/// Bytes that are set aside for a body, enough for most.
const USUAL_BODY: usize = 4_096;

/// A JSON object on its way out: what has nothing to say is left out.
#[derive(Default)]
pub(super) struct Fields<'a>(Vec<(&'static str, Field<'a>)>);

#[derive(Serialize)]
#[serde(untagged)]
enum Field<'a> {
    Value(Value),
    Turns(Vec<Turn<'a>>),
}

/// A message on its way out. The usual one, of text alone, is written from where it is.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Turn<'a> {
    Text { role: &'static str, content: Cow<'a, str> },
    Other(Value),
}

impl Turn<'_> {
    /// Marks its end for OpenAI's cache.
    pub(super) fn mark(&mut self) {
        let mut turn = match self {
            Turn::Text { role, content } => json!({"role": role, "content": content}),
            Turn::Other(turn) => turn.take(),
        };
        mark(&mut turn, "content", "text");
        *self = Turn::Other(turn);
    }
}

/// The text of a message, copied only where it comes in several parts.
pub(super) fn text_of(message: &Message) -> Cow<'_, str> {
    match message.parts.as_slice() {
        [Part::Text { text }] => Cow::Borrowed(text),
        _ => Cow::Owned(message.text()),
    }
}

impl<'a> Fields<'a> {
    pub(super) fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push((name, Field::Value(value.into())));
    }

    pub(super) fn set_turns(&mut self, name: &'static str, turns: Vec<Turn<'a>>) {
        self.0.push((name, Field::Turns(turns)));
    }

    pub(super) fn set_some(&mut self, name: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    /// Sets a list or an object, unless it is empty.
    pub(super) fn set_filled(&mut self, name: &'static str, value: impl Into<Value>) {
        let value = value.into();
        let is_empty = match &value {
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        if !is_empty {
            self.set(name, value);
        }
    }

    pub(super) fn into_request(self, path: impl Into<String>) -> Result<WireRequest, Error> {
        let mut body = Vec::with_capacity(USUAL_BODY);
        serde_json::to_writer(&mut body, &self)
            .map_err(|error| Error::invalid("chat request", error.to_string()))?;
        Ok(WireRequest { path: path.into(), headers: Vec::new(), body: body.into() })
    }
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl From<Fields<'_>> for Value {
    fn from(fields: Fields<'_>) -> Value {
        // What is made of strings, lists and numbers is a value.
        serde_json::to_value(&fields).unwrap_or_default()
    }
}
