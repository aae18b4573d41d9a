//! Google's Gemini.

use std::borrow::Cow;

use coral_core::{
    ChatRequest, Effort, Error, Message, ModelFault, Part, Role, StopReason, ToolChoice, Usage,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::assembly::Assembly;
use super::{Reader, WireRequest, schema};
use crate::dialect::{Dialect, Structured};
use crate::failure::{self, Failure};

const PROVIDER: &str = "gemini";

/// The signature of the part that follows it must come back with that part.
const SIGNATURE: &str = "thoughtSignature";

pub(super) fn encode(
    request: &ChatRequest,
    model: &str,
    stream: bool,
    dialect: &Dialect,
) -> Result<WireRequest, Error> {
    let mut system: Vec<Value> = Vec::new();
    let mut contents: Vec<Value> = Vec::new();
    for message in &request.messages {
        let role = match message.role {
            Role::System => {
                system.push(json!({"text": message.text()}));
                continue;
            }
            Role::User | Role::Tool => "user",
            Role::Assistant => "model",
        };
        let parts = parts(message);
        if parts.is_empty() {
            continue;
        }
        let same = contents.last_mut().filter(|last| last.get("role").is_some_and(|known| known == role));
        match same.and_then(|last| last.get_mut("parts")).and_then(Value::as_array_mut) {
            Some(known) => known.extend(parts),
            None => contents.push(json!({"role": role, "parts": parts})),
        }
    }

    let mut config = Map::new();
    if let Some(output) = &request.output {
        if dialect.structured == Structured::Instructions {
            system.push(json!({"text": schema::instruction(output)}));
        } else {
            config.insert("responseMimeType".into(), "application/json".into());
            match schema::closed(&output.schema).filter(|_| dialect.structured == Structured::Schema) {
                Some(schema) => {
                    config.insert("responseJsonSchema".into(), schema);
                }
                None => system.push(json!({"text": schema::instruction(output)})),
            }
        }
    }
    if let Some(max) = request.max_output_tokens {
        config.insert("maxOutputTokens".into(), max.into());
    }
    if let Some(temperature) = request.temperature.filter(|_| dialect.sampling) {
        config.insert("temperature".into(), temperature.into());
    }
    if !request.stop.is_empty() {
        config.insert("stopSequences".into(), json!(request.stop));
    }
    if let Some(effort) = request.effort.filter(|_| dialect.effort) {
        config.insert(
            "thinkingConfig".into(),
            json!({"thinkingLevel": effort_name(effort), "includeThoughts": true}),
        );
    }

    let mut body = Map::new();
    body.insert("contents".into(), contents.into());
    if !system.is_empty() {
        body.insert("systemInstruction".into(), json!({"parts": system}));
    }
    if !config.is_empty() {
        body.insert("generationConfig".into(), config.into());
    }
    if !request.tools.is_empty() {
        let tools: Vec<Value> = request
            .tools
            .iter()
            .map(|tool| {
                json!({"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.input_schema})
            })
            .collect();
        body.insert("tools".into(), json!([{"functionDeclarations": tools}]));
        let choice = match &request.tool_choice {
            ToolChoice::None => Some(json!({"mode": "NONE"})),
            ToolChoice::Required => Some(json!({"mode": "ANY"})),
            ToolChoice::Tool(name) => Some(json!({"mode": "ANY", "allowedFunctionNames": [name]})),
            _ => None,
        };
        if let Some(choice) = choice {
            body.insert("toolConfig".into(), json!({"functionCallingConfig": choice}));
        }
    }
    let method = if stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
    Ok(WireRequest {
        path: format!("/models/{model}:{method}"),
        headers: Vec::new(),
        body: super::to_bytes(&body)?,
    })
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
                match item.get(SIGNATURE) {
                    Some(found) => signature = Some(found.clone()),
                    None => out.push(item.clone()),
                }
                continue;
            }
            Part::ToolCall(call) => {
                let args = if call.arguments.is_object() { call.arguments.clone() } else { json!({}) };
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
    out
}

fn effort_name(effort: Effort) -> &'static str {
    match effort {
        Effort::Minimal => "MINIMAL",
        Effort::Low => "LOW",
        Effort::High | Effort::Max => "HIGH",
        _ => "MEDIUM",
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Chunk<'a> {
    #[serde(borrow, default)]
    candidates: Vec<Candidate<'a>>,
    usage_metadata: Option<Counted>,
    model_version: Option<String>,
    response_id: Option<String>,
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
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow, default)]
    parts: Vec<Piece<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Piece<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(default)]
    thought: bool,
    function_call: Option<Call>,
    thought_signature: Option<String>,
}

#[derive(Deserialize)]
struct Call {
    #[serde(default)]
    id: String,
    name: String,
    args: Option<Value>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Counted {
    prompt_token_count: u64,
    candidates_token_count: u64,
    thoughts_token_count: u64,
    cached_content_token_count: u64,
    tool_use_prompt_token_count: u64,
}

/// Reads the chunks of generated content.
#[derive(Default)]
pub(super) struct Contents {
    calls: u64,
}

impl Reader for Contents {
    fn event(&mut self, _name: Option<&str>, data: &str, out: &mut Assembly) -> Result<(), Failure> {
        let chunk: Chunk<'_> = serde_json::from_str(data)
            .map_err(|error| Failure::malformed(format!("expected a chunk of generated content: {error}")))?;
        self.take(chunk, out)
    }

    fn whole(&mut self, body: &[u8], out: &mut Assembly) -> Result<(), Failure> {
        let chunk: Chunk<'_> = serde_json::from_slice(body)
            .map_err(|error| Failure::malformed(format!("expected generated content: {error}")))?;
        self.take(chunk, out)?;
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
        out.id = chunk.response_id.or(out.id.take());
        out.model = chunk.model_version.or(out.model.take());
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
    Usage {
        input_tokens: counted.prompt_token_count.saturating_add(counted.tool_use_prompt_token_count),
        output_tokens: counted.candidates_token_count.saturating_add(counted.thoughts_token_count),
        cache_read_tokens: counted.cached_content_token_count,
        cache_write_tokens: 0,
        reasoning_tokens: counted.thoughts_token_count,
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
