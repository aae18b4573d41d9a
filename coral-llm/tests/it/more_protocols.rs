//! Requests and whole answers of Gemini, Ollama and Responses.

use std::sync::Arc;

use coral_core::{
    ChatRequest, ChatResponse, Effort, Message, ModelFault, OutputFormat, Part, StopReason, ToolCall,
    ToolChoice, ToolDef, Usage,
};
use coral_llm::{Dialect, Failure, Framing, Protocol};
use serde_json::{Value, json};

/// A request that says all that can be said.
fn request() -> ChatRequest {
    let mut request = ChatRequest::new("Be brief.", "Who?");
    request.messages[1].parts.push(Part::Image { media_type: "image/png".into(), data: "AAAA".into() });
    request.messages.push(Message {
        parts: vec![Part::ToolCall(ToolCall {
            id: "t1".into(),
            name: "find".into(),
            arguments: json!({"q": "x"}),
        })],
        ..Message::assistant("")
    });
    request.messages.push(Message::tool_results([Part::ToolResult {
        call_id: "t1".into(),
        name: "find".into(),
        content: "found".into(),
        is_error: false,
    }]));
    request.tools = Arc::from([ToolDef {
        name: "find".into(),
        description: "finds".into(),
        input_schema: json!({"type": "object"}),
        effect: Default::default(),
    }]);
    request.tool_choice = ToolChoice::Tool("find".into());
    request.max_output_tokens = Some(50);
    request.temperature = Some(0.5);
    request.effort = Some(Effort::High);
    request.stop = vec!["END".into()];
    let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}, "b": {"type": "string"}}});
    request.output = Some(OutputFormat { name: "answer".into(), schema: Arc::new(schema) });
    request
}

#[track_caller]
fn encoded(protocol: Protocol, stream: bool, path: &str, expected: &Value) {
    let wire = protocol.encode(&request(), "m", stream, &Dialect::default()).unwrap();
    assert_eq!(wire.path, path);
    let found: Value = serde_json::from_slice(&wire.body).unwrap();
    assert_eq!(&found, expected, "found {found:#}");
}

fn decoded(protocol: Protocol, body: &Value) -> Result<ChatResponse, Failure> {
    let mut decoder = protocol.decoder(Framing::Whole, &Dialect::default());
    decoder.feed(body.to_string().into(), &mut |_| {})?;
    decoder.finish(&mut |_| {})
}

#[test]
fn gemini_requests() {
    let expected = json!({
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Who?"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
            {"role": "model", "parts": [{"functionCall": {"id": "t1", "name": "find", "args": {"q": "x"}}, "thoughtSignature": "skip_thought_signature_validator"}]},
            {"role": "user", "parts": [{"functionResponse": {"id": "t1", "name": "find", "response": {"output": "found"}}}]}
        ],
        "tools": [{"functionDeclarations": [{"name": "find", "description": "finds", "parametersJsonSchema": {"type": "object"}}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["find"]}},
        "generationConfig": {
            "maxOutputTokens": 50, "temperature": 0.5, "stopSequences": ["END"],
            "thinkingConfig": {"thinkingLevel": "HIGH", "includeThoughts": true},
            "responseMimeType": "application/json",
            "responseJsonSchema": {"type": "object", "required": ["a"], "additionalProperties": false,
                "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}
        }
    });
    encoded(Protocol::Gemini, false, "/models/m:generateContent", &expected);
    encoded(Protocol::Gemini, true, "/models/m:streamGenerateContent?alt=sse", &expected);
}

#[test]
fn gemini_answers() {
    let body = json!({
        "candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "MAX_TOKENS", "safetyRatings": []}],
        "usageMetadata": {"promptTokenCount": 10, "cachedContentTokenCount": 4, "candidatesTokenCount": 5, "thoughtsTokenCount": 6}
    });
    let response = decoded(Protocol::Gemini, &body).unwrap();
    let usage = Usage {
        input_tokens: 10,
        output_tokens: 11,
        cache_read_tokens: 4,
        reasoning_tokens: 6,
        ..Default::default()
    };
    assert_eq!((response.stop, response.usage), (StopReason::MaxTokens, usage));
    let filtered = decoded(Protocol::Gemini, &json!({"candidates": [{"finishReason": "SAFETY"}]})).unwrap();
    assert_eq!(filtered.stop, StopReason::ContentFilter);
    let blocked =
        decoded(Protocol::Gemini, &json!({"promptFeedback": {"blockReason": "SAFETY"}})).unwrap_err();
    assert_eq!(blocked.fault, ModelFault::ContentFiltered);
    let error = json!({"error": {"code": 503, "status": "UNAVAILABLE", "message": "try later"}});
    assert_eq!(decoded(Protocol::Gemini, &error).unwrap_err().fault, ModelFault::Overloaded);
    assert_eq!(decoded(Protocol::Gemini, &json!({})).unwrap_err().fault, ModelFault::Malformed);
}

#[test]
fn ollama_requests() {
    let expected = json!({
        "model": "m", "stream": false, "truncate": false, "shift": false,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who?", "images": ["AAAA"]},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "find", "arguments": {"q": "x"}}}]},
            {"role": "tool", "tool_name": "find", "content": "found"}
        ],
        "tools": [{"type": "function", "function": {"name": "find", "description": "finds", "parameters": {"type": "object"}}}],
        "options": {"temperature": 0.5, "num_predict": 50, "stop": ["END"]},
        "think": "high",
        "format": {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}
    });
    encoded(Protocol::Ollama, false, "/api/chat", &expected);
}

#[test]
fn ollama_answers() {
    let body = json!({"model": "m", "message": {"role": "assistant", "content": "x"}, "done": true, "done_reason": "length",
        "prompt_eval_count": 3, "eval_count": 4, "total_duration": 9});
    let response = decoded(Protocol::Ollama, &body).unwrap();
    let usage = Usage { input_tokens: 3, output_tokens: 4, ..Default::default() };
    assert_eq!((response.stop, response.usage), (StopReason::MaxTokens, usage));
    let unfinished =
        decoded(Protocol::Ollama, &json!({"message": {"content": "x"}, "done": false})).unwrap_err();
    assert_eq!(unfinished.fault, ModelFault::Malformed);
    let error = decoded(Protocol::Ollama, &json!({"error": "model runner has stopped"})).unwrap_err();
    assert_eq!(error.fault, ModelFault::Provider);
}

#[test]
fn responses_requests() {
    let expected = json!({
        "model": "m", "stream": true, "store": false, "instructions": "Be brief.",
        "input": [
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "Who?"}, {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]},
            {"type": "function_call", "call_id": "t1", "name": "find", "arguments": "{\"q\":\"x\"}"},
            {"type": "function_call_output", "call_id": "t1", "output": "found"}
        ],
        "tools": [{"type": "function", "name": "find", "description": "finds", "parameters": {"type": "object"}, "strict": false}],
        "tool_choice": {"type": "function", "name": "find"},
        "text": {"format": {"type": "json_schema", "name": "answer", "strict": true, "schema": {
            "type": "object", "required": ["a", "b"], "additionalProperties": false,
            "properties": {"a": {"type": "string"}, "b": {"type": ["string", "null"]}}}}},
        "max_output_tokens": 50, "temperature": 0.5,
        "reasoning": {"effort": "high", "summary": "auto"}, "include": ["reasoning.encrypted_content"]
    });
    encoded(Protocol::OpenAiResponses, true, "/responses", &expected);
}

#[test]
fn responses_answers() {
    let body = json!({
        "id": "r", "model": "m", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"},
        "output": [
            {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "s"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "half"}]},
            {"type": "function_call", "id": "f", "call_id": "a", "name": "find", "arguments": "{\"q\":1}"}
        ],
        "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 2, "cache_write_tokens_details": {"ttl_30m_tokens": 1, "ttl_12h_tokens": 1}},
            "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 3}}
    });
    let response = decoded(Protocol::OpenAiResponses, &body).unwrap();
    let usage = Usage {
        input_tokens: 9,
        output_tokens: 7,
        cache_read_tokens: 5,
        cache_write_tokens: 2,
        long_cache_write_tokens: 1,
        reasoning_tokens: 3,
    };
    assert_eq!((response.stop, response.usage), (StopReason::MaxTokens, usage));
    assert_eq!(response.message.text(), "half");
    let call = response.message.tool_calls().next().unwrap();
    assert_eq!((call.id.as_str(), &call.arguments), ("a", &json!({"q": 1})));

    let refused = json!({"status": "completed", "output": [{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}]});
    assert_eq!(decoded(Protocol::OpenAiResponses, &refused).unwrap().stop, StopReason::Refusal);
    let failed =
        json!({"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "slow down"}});
    assert_eq!(decoded(Protocol::OpenAiResponses, &failed).unwrap_err().fault, ModelFault::RateLimited);
    assert_eq!(decoded(Protocol::OpenAiResponses, &json!({})).unwrap_err().fault, ModelFault::Malformed);
}
