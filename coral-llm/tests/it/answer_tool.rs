//! JSON answers by a tool, and looks at endpoints, over every wire.

use std::sync::Arc;

use coral_core::{CallContext, ChatModel, ChatRequest, ErrorKind, ModelFault, OutputFormat, StopReason};
use coral_llm::{Probe, Provider, ProviderBuilder, Structured};
use serde_json::{Value, json};

use crate::server::{Answer, Server};

/// Each wire, with a call of the tool `report` in its words, and where its models are listed.
fn wires() -> [(&'static str, Value, &'static str); 5] {
    let arguments = r#"{"a":1}"#;
    [
        (
            "anthropic",
            json!({"id": "x", "type": "message", "role": "assistant", "model": "m", "stop_reason": "tool_use",
                "content": [{"type": "tool_use", "id": "t", "name": "report", "input": {"a": 1}}],
                "usage": {"input_tokens": 1, "output_tokens": 1}}),
            "/v1/models",
        ),
        (
            "openai",
            json!({"id": "x", "model": "m", "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
                "role": "assistant", "content": null,
                "tool_calls": [{"id": "t", "type": "function", "function": {"name": "report", "arguments": arguments}}]}}]}),
            "/models",
        ),
        (
            "openai_responses",
            json!({"id": "x", "model": "m", "status": "completed", "output": [{"type": "function_call", "id": "f",
                "call_id": "t", "name": "report", "arguments": arguments, "status": "completed"}]}),
            "/models",
        ),
        (
            "gemini",
            json!({"candidates": [{"finishReason": "STOP", "content": {"role": "model",
                "parts": [{"functionCall": {"name": "report", "args": {"a": 1}}}]}}]}),
            "/models",
        ),
        (
            "ollama",
            json!({"model": "m", "done": true, "done_reason": "stop", "message": {"role": "assistant", "content": "",
                "tool_calls": [{"function": {"name": "report", "arguments": {"a": 1}}}]}}),
            "/api/tags",
        ),
    ]
}

fn provider(vendor: &str, url: &str) -> ProviderBuilder {
    Provider::vendor(vendor).unwrap().base_url(url).key("key-1").model("m")
}

#[tokio::test]
async fn the_answer_comes_by_a_tool_over_every_wire() {
    let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}});
    let output = OutputFormat { name: "report".into(), schema: Arc::new(schema) };
    let request = ChatRequest { output: Some(output), ..ChatRequest::user("?") };
    for (vendor, answer, _) in wires() {
        let server = Server::start([Answer::json(&answer)]).await;
        let model =
            provider(vendor, &server.url).dialect(|d| d.structured = Structured::Tool).build().unwrap();
        let response = model.chat(&request, &CallContext::default()).await.unwrap();
        assert_eq!(
            (response.message.text().as_str(), response.stop),
            (r#"{"a":1}"#, StopReason::End),
            "{vendor}"
        );
        let body = server.seen()[0].body.to_string();
        assert!(body.contains(r#""name":"report""#), "{vendor}: {body}");
        for native in
            ["response_format", "output_config", "responseJsonSchema", "responseSchema", "\"format\""]
        {
            assert!(!body.contains(native), "{vendor}: {body}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_is_looked_at_without_a_call() {
    for (vendor, _, path) in wires() {
        let refused = json!({"error": {"type": "authentication_error", "message": "key-1 is no key"}});
        let server = Server::start([
            Answer::json(&json!({})),
            Answer::error("404 Not Found", &json!({})),
            Answer::error("401 Unauthorized", &refused),
        ])
        .await;
        let model = provider(vendor, &server.url).build().unwrap();
        model.probe().await.unwrap();
        model.probe().await.unwrap();
        let error = model.probe().await.unwrap_err();
        let ErrorKind::Model { fault, .. } = error.kind() else { panic!("{error}") };
        assert!(
            *fault == ModelFault::Authentication && !error.to_string().contains("key-1"),
            "{vendor}: {error}"
        );
        let seen = server.seen();
        assert!(
            seen[0].head.starts_with(&format!("get {path} ")) && seen[0].head.contains("key-1"),
            "{}",
            seen[0].head
        );
    }
}
