//! Google's Gemini.

use std::fmt;

use coral_core::{Effort, Error, Message, ModelFault, Part, Role, StopReason, Usage};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::assembly::Assembly;
use super::call::{Call, Fields, arguments_object, turn};
use super::read::{Text, count, details, null_is_empty, parse, parse_slice};
use super::{Reader, WireRequest, schema};
use crate::dialect::Structured;
use crate::failure::{self, Failure};

const PROVIDER: &str = "gemini";

/// The signature of the part that follows it must come back with that part.
const SIGNATURE: &str = "thoughtSignature";

/// What stands in the place of a signature where another model made a call: the first one of an answer must have one.
const UNSIGNED: &str = "skip_thought_signature_validator";

/// The models before signatures were demanded.
const WITHOUT_SIGNATURES: [&str; 2] = ["gemini-1", "gemini-2"];

pub(super) fn encode(call: &Call<'_>) -> Result<WireRequest, Error> {
    let Call { request, model, dialect, .. } = *call;
    let mut system: Vec<Value> = Vec::new();
    let mut contents: Vec<Value> = Vec::new();
    for message in &request.messages {
        match message.role {
            Role::System => system.push(json!({"text": message.text()})),
            Role::User | Role::Tool => turn(&mut contents, "user", "parts", parts(message)),
            Role::Assistant => {
                let mut parts = parts(message);
                if !WITHOUT_SIGNATURES.iter().any(|old| model.starts_with(old)) {
                    sign(&mut parts);
                }
                turn(&mut contents, "model", "parts", parts);
            }
        }
    }

    let mut config = Fields::default();
    if request.output.is_some() && dialect.structured != Structured::Instructions {
        config.set("responseMimeType", "application/json");
    }
    let schema = call.schema().map(|output| (schema::closed(&output.schema), output));
    let told = match schema {
        Some((Some(schema), _)) => {
            config.set("responseJsonSchema", schema);
            None
        }
        Some((None, open)) => Some(schema::instruction(open)),
        None => call.told_schema(),
    };
    system.extend(told.map(|text| json!({"text": text})));
    config.set_some("maxOutputTokens", request.max_output_tokens);
    config.set_some("temperature", call.temperature());
    config.set_filled("stopSequences", json!(request.stop));
    let thinking = |effort| json!({"thinkingLevel": effort_name(effort), "includeThoughts": true});
    config.set_some("thinkingConfig", call.effort().map(thinking));

    let tools = call.tools(|tool| {
        json!({"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.input_schema})
    });
    let choice = call.tool_choice(
        json!({"mode": "NONE"}),
        json!({"mode": "ANY"}),
        |name| json!({"mode": "ANY", "allowedFunctionNames": [name]}),
    );
    let mut body = Fields::default();
    body.set("contents", contents);
    body.set_some("systemInstruction", (!system.is_empty()).then(|| json!({"parts": system})));
    body.set_filled("generationConfig", config);
    body.set_some("tools", (!tools.is_empty()).then(|| json!([{"functionDeclarations": tools}])));
    body.set_some("toolConfig", choice.map(|choice| json!({"functionCallingConfig": choice})));
    let method = if call.stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
    body.into_request(format!("/models/{model}:{method}"))
}

/// Gives the first call the mark of one without signature, unless the answer has signatures.
fn sign(parts: &mut [Value]) {
    if parts.iter().any(|part| part.get(SIGNATURE).is_some()) {
        return;
    }
    let first = parts.iter_mut().find(|part| part.get("functionCall").is_some());
    if let Some(fields) = first.and_then(Value::as_object_mut) {
        fields.insert(SIGNATURE.into(), UNSIGNED.into());
    }
}

fn parts(message: &Message) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    let mut signature: Option<Value> = None;
    for part in &message.parts {
        let mut value = match part {
            Part::Text { text } if text.is_empty() && signature.is_none() => continue,
            Part::Text { text } => json!({"text": text}),
            Part::Image { media_type, data } => json!({"inlineData": {"mimeType": media_type, "data": data}}),
            Part::Opaque { provider, item } if provider == PROVIDER => {
                if let Some(found) = item.get(SIGNATURE) {
                    signature = Some(found.clone());
                    continue;
                }
                item.clone()
            }
            Part::ToolCall(call) => {
                let args = arguments_object(&call.arguments);
                json!({"functionCall": {"id": call.id, "name": call.name, "args": args}})
            }
            Part::ToolResult { call_id, name, content, is_error } => {
                let key = if *is_error { "error" } else { "output" };
                json!({"functionResponse": {"id": call_id, "name": name, "response": {key: content}}})
            }
            // Thoughts are shown, never sent back: their signature is what the provider wants.
            _ => continue,
        };
        if let (Some(signature), Some(fields)) = (signature.take(), value.as_object_mut()) {
            fields.insert(SIGNATURE.into(), signature);
        }
        out.push(value);
    }
    // The signature of an answer without more comes with an empty text.
    out.extend(signature.map(|signature| json!({"text": "", SIGNATURE: signature})));
    out
}

fn effort_name(effort: Effort) -> &'static str {
    match effort {
        Effort::Minimal => "MINIMAL",
        Effort::Low => "LOW",
        Effort::High | Effort::ExtraHigh | Effort::Max => "HIGH",
        _ => "MEDIUM",
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Chunk<'a> {
    #[serde(borrow, default, deserialize_with = "null_is_empty")]
    candidates: Vec<Candidate<'a>>,
    #[serde(default, deserialize_with = "details")]
    usage_metadata: Option<Counted>,
    #[serde(borrow)]
    model_version: Option<Text<'a>>,
    #[serde(borrow)]
    response_id: Option<Text<'a>>,
    prompt_feedback: Option<Value>,
    error: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate<'a> {
    #[serde(default)]
    index: u64,
    #[serde(borrow)]
    content: Option<Content<'a>>,
    finish_reason: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow, default, deserialize_with = "null_is_empty")]
    parts: Vec<Piece<'a>>,
}

#[derive(Default)]
struct Piece<'a> {
    text: Option<Text<'a>>,
    thought: bool,
    function_call: Option<FunctionCall>,
    thought_signature: Option<String>,
    /// What else stands in it: the part itself where it is of another kind, else what is said about it.
    rest: Map<String, Value>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Piece<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Piece<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a part of a content")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut piece = Piece::default();
                while let Some(Text::<'de>(name)) = map.next_key()? {
                    match &*name {
                        "text" => piece.text = map.next_value()?,
                        "thought" => piece.thought = map.next_value::<Option<bool>>()?.unwrap_or_default(),
                        "functionCall" => piece.function_call = map.next_value()?,
                        "thoughtSignature" => piece.thought_signature = map.next_value()?,
                        _ => {
                            piece.rest.insert(name.into_owned(), map.next_value()?);
                        }
                    }
                }
                Ok(piece)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

#[derive(Deserialize)]
struct FunctionCall {
    #[serde(default)]
    id: String,
    name: String,
    args: Option<Value>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counted {
    #[serde(default, deserialize_with = "count")]
    prompt_token_count: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    candidates_token_count: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    thoughts_token_count: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    cached_content_token_count: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    tool_use_prompt_token_count: Option<u64>,
}

/// Reads the chunks of generated content.
#[derive(Default)]
pub(super) struct Contents {
    calls: u64,
}

impl Reader for Contents {
    fn event(&mut self, _name: Option<&str>, data: &str, out: &mut Assembly) -> Result<(), Failure> {
        self.take(parse(data, "a chunk of generated content")?, out)
    }

    fn whole(&mut self, body: &[u8], out: &mut Assembly) -> Result<(), Failure> {
        self.take(parse_slice(body, "generated content")?, out)?;
        if !out.complete {
            return Err(Failure::malformed("expected generated content with a `finishReason`"));
        }
        Ok(())
    }
}

impl Contents {
    fn take(&mut self, chunk: Chunk<'_>, out: &mut Assembly) -> Result<(), Failure> {
        if let Some(error) = chunk.error {
            return Err(failure::in_stream(&json!({"error": error})));
        }
        if let Some(reason) = chunk.prompt_feedback.as_ref().and_then(|f| f.get("blockReason")?.as_str()) {
            let problem = format!("the provider's filter stopped the request: {reason}");
            return Err(Failure::new(ModelFault::ContentFiltered, problem));
        }
        if out.id.is_none() {
            out.id = chunk.response_id.map(String::from);
        }
        if out.model.is_none() {
            out.model = chunk.model_version.map(String::from);
        }
        if let Some(counted) = chunk.usage_metadata {
            out.usage = usage(counted);
        }
        for candidate in chunk.candidates.into_iter().filter(|candidate| candidate.index == 0) {
            for piece in candidate.content.into_iter().flat_map(|content| content.parts) {
                self.piece(piece, out)?;
            }
            if let Some(reason) = candidate.finish_reason {
                out.stop = Some(stop_reason(&reason));
                // There is no end mark beyond this, and counts may still follow.
                out.complete = true;
            }
        }
        Ok(())
    }

    fn piece(&mut self, piece: Piece<'_>, out: &mut Assembly) -> Result<(), Failure> {
        if let Some(signature) = piece.thought_signature {
            out.opaque(PROVIDER, json!({SIGNATURE: signature}));
        }
        // What the provider's own tools did, and what is newer than this release, goes back as it came.
        if piece.text.is_none() && piece.function_call.is_none() && !piece.rest.is_empty() {
            out.opaque(PROVIDER, Value::Object(piece.rest));
        }
        if let Some(call) = piece.function_call {
            // A call comes whole, and its place is its key.
            out.call(self.calls, &call.id, &call.name);
            out.arguments(self.calls, &call.args.unwrap_or_else(|| json!({})).to_string())?;
            self.calls += 1;
        } else if let Some(text) = piece.text {
            if piece.thought { out.thinking(&text) } else { out.text(&text) }
        }
        Ok(())
    }
}

fn usage(counted: Counted) -> Usage {
    let all = |counts: &[Option<u64>]| counts.iter().flatten().fold(0, |sum: u64, n| sum.saturating_add(*n));
    Usage {
        input_tokens: all(&[counted.prompt_token_count, counted.tool_use_prompt_token_count]),
        output_tokens: all(&[counted.candidates_token_count, counted.thoughts_token_count]),
        cache_read_tokens: counted.cached_content_token_count.unwrap_or(0),
        reasoning_tokens: counted.thoughts_token_count.unwrap_or(0),
        ..Default::default()
    }
}

fn stop_reason(reason: &str) -> StopReason {
    match reason {
        "STOP" => StopReason::End,
        "MAX_TOKENS" => StopReason::MaxTokens,
        "SAFETY"
        | "RECITATION"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION" => StopReason::ContentFilter,
        // Some servers that stand in for Gemini say this of an answer with calls.
        "FUNCTION_CALL" => StopReason::ToolCalls,
        other => StopReason::Other(other.to_owned()),
    }
}
