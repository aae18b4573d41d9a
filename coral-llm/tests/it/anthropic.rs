use std::sync::Arc;

use coral_core::{
    CallContext, ChatModel, ChatRequest, Effort, Message, OutputFormat, Part, Role, StopReason, ToolCall,
    ToolChoice, ToolDef, Usage,
};
use coral_llm::Provider;
use serde_json::json;

use crate::server::{Answer, Server};
use crate::wire_faults::listening;

fn provider(server: &Server) -> Provider {
    Provider::vendor("anthropic")
        .unwrap()
        .base_url(format!("{}/v1/", server.url))
        .key("sk-ant")
        .model("claude-x")
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_whole_answer_with_all_that_a_request_can_say() {
    let server = Server::start([Answer::json(&json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x-1", "stop_reason": "tool_use",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
            {"type": "redacted_thinking", "data": "xyz"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t2", "name": "find", "input": {"q": "y"}}
        ],
        "usage": {"input_tokens": 10, "output_tokens": 20, "cache_read_input_tokens": 600, "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
                  "output_tokens_details": {"thinking_tokens": 4}, "service_tier": "standard"}
    }))])
    .await;
    let mut request = ChatRequest::new("Be brief.", "Who?");
    request.messages[0].cache = true;
    request.messages.push(Message {
        role: Role::Assistant,
        parts: vec![
            Part::Thinking { text: "old".into(), signature: Some("s".into()) },
            Part::Thinking { text: "from elsewhere".into(), signature: None },
            Part::Opaque {
                provider: "anthropic".into(),
                item: json!({"type": "redacted_thinking", "data": "d"}),
            },
            Part::Opaque { provider: "other".into(), item: json!({"x": 1}) },
            Part::ToolCall(ToolCall { id: "t1".into(), name: "find".into(), arguments: json!({"q": "x"}) }),
        ],
        cache: false,
    });
    request.messages.push(Message::tool_results([Part::ToolResult {
        call_id: "t1".into(),
        name: "find".into(),
        content: "nothing".into(),
        is_error: true,
    }]));
    request.messages.push(Message::user("Go on."));
    request.tools = Arc::from([ToolDef {
        name: "find".into(),
        description: "finds".into(),
        input_schema: json!({"type": "object"}),
        effect: Default::default(),
    }]);
    request.tool_choice = ToolChoice::Required;
    request.max_output_tokens = Some(50);
    request.temperature = Some(0.5);
    request.effort = Some(Effort::Max);
    request.stop = vec!["END".into()];
    let schema =
        json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 1}}});
    request.output = Some(OutputFormat { name: "answer".into(), schema: Arc::new(schema) });

    let response = provider(&server).chat(&request, &CallContext::default()).await.unwrap();
    let expected = vec![
        Part::Thinking { text: "Hm.".into(), signature: Some("sig".into()) },
        Part::Opaque {
            provider: "anthropic".into(),
            item: json!({"type": "redacted_thinking", "data": "xyz"}),
        },
        Part::Text { text: "I look.".into() },
        Part::ToolCall(ToolCall { id: "t2".into(), name: "find".into(), arguments: json!({"q": "y"}) }),
    ];
    assert_eq!(response.message.parts, expected);
    assert_eq!((response.stop, response.model.as_str()), (StopReason::ToolCalls, "claude-x-1"));
    let usage = Usage {
        input_tokens: 640,
        output_tokens: 20,
        cache_read_tokens: 600,
        cache_write_tokens: 30,
        long_cache_write_tokens: 20,
        reasoning_tokens: 4,
    };
    assert_eq!(response.usage, usage, "cached tokens count as input");

    let seen = server.seen().remove(0);
    assert!(seen.head.starts_with("post /v1/messages "), "{}", seen.head);
    assert!(seen.head.contains("anthropic-version: 2026-10-21"), "{}", seen.head);
    assert!(seen.head.contains("authorization: bearer sk-ant"), "{}", seen.head);
    assert_eq!(
        seen.body,
        json!({
            "model": "claude-x", "max_tokens": 50,
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Who?"}]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "old", "signature": "s"},
                    {"type": "redacted_thinking", "data": "d"},
                    {"type": "tool_use", "id": "t1", "name": "find", "input": {"q": "x"}}
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "nothing", "is_error": true},
                    {"type": "text", "text": "Go on."}
                ]}
            ],
            "tools": [{"name": "find", "description": "finds", "input_schema": {"type": "object"},
                "cache_control": {"type": "ephemeral"}}],
            "tool_choice": {"type": "any"},
            "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": {
                "type": "object", "required": ["a"], "additionalProperties": false, "properties": {"a": {"type": "integer"}}
            }}},
            "stop_sequences": ["END"]
        }),
        "no sampling parameter goes to this version"
    );
}

#[tokio::test]
async fn a_stream_with_thinking_parallel_tools_and_usage() {
    let events = [
        (
            "message_start",
            json!({"type": "message_start", "message": {"id": "msg_1", "model": "claude-x-1", "content": [], "stop_reason": null,
            "usage": {"input_tokens": 5, "cache_read_input_tokens": 100, "output_tokens": 1}}}),
        ),
        ("ping", json!({"type": "ping"})),
        (
            "content_block_start",
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}}),
        ),
        (
            "content_block_delta",
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm é."}}),
        ),
        (
            "content_block_delta",
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "sig"}}),
        ),
        ("content_block_stop", json!({"type": "content_block_stop", "index": 0})),
        (
            "content_block_start",
            json!({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}),
        ),
        (
            "content_block_delta",
            json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "I look"}}),
        ),
        (
            "content_block_delta",
            json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": " it up."}}),
        ),
        ("content_block_stop", json!({"type": "content_block_stop", "index": 1})),
        ("brand_new_event", json!({"type": "brand_new_event", "anything": [1]})),
        (
            "content_block_start",
            json!({"type": "content_block_start", "index": 2, "content_block": {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}}),
        ),
        (
            "content_block_delta",
            json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "{\"query\":\"x\"}"}}),
        ),
        ("content_block_stop", json!({"type": "content_block_stop", "index": 2})),
        (
            "content_block_start",
            json!({"type": "content_block_start", "index": 3, "content_block": {"type": "tool_use", "id": "a", "name": "find", "input": {}}}),
        ),
        (
            "content_block_delta",
            json!({"type": "content_block_delta", "index": 3, "delta": {"type": "input_json_delta", "partial_json": "{\"q\":"}}),
        ),
        (
            "content_block_delta",
            json!({"type": "content_block_delta", "index": 3, "delta": {"type": "input_json_delta", "partial_json": "\"ü\"}"}}),
        ),
        ("content_block_stop", json!({"type": "content_block_stop", "index": 3})),
        (
            "content_block_start",
            json!({"type": "content_block_start", "index": 4, "content_block": {"type": "tool_use", "id": "b", "name": "list", "input": {}}}),
        ),
        ("content_block_stop", json!({"type": "content_block_stop", "index": 4})),
        (
            "message_delta",
            json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 42}}),
        ),
        ("message_stop", json!({"type": "message_stop"})),
    ];
    let text: String = events.iter().map(|(name, data)| format!("event: {name}\ndata: {data}\n\n")).collect();
    let server = Server::start([Answer::sse(&text)]).await;
    let (cx, heard) = listening();
    let response = provider(&server).chat(&ChatRequest::user("Look."), &cx).await.unwrap();
    let call = |id: &str, name: &str, arguments| {
        Part::ToolCall(ToolCall { id: id.into(), name: name.into(), arguments })
    };
    let expected = vec![
        Part::Thinking { text: "Hm é.".into(), signature: Some("sig".into()) },
        Part::Text { text: "I look it up.".into() },
        Part::Opaque {
            provider: "anthropic".into(),
            item: json!({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}}),
        },
        call("a", "find", json!({"q": "ü"})),
        call("b", "list", json!({})),
    ];
    assert_eq!(response.message.parts, expected);
    assert_eq!(
        response.usage,
        Usage { input_tokens: 105, output_tokens: 42, cache_read_tokens: 100, ..Default::default() }
    );
    assert_eq!(heard.text(), "I look it up.");
    assert_eq!(heard.arguments(0), r#"{"q":"ü"}"#);
    assert_eq!(server.seen().remove(0).body["stream"], true);
}

#[tokio::test]
async fn the_older_version_takes_sampling_and_its_own_key_header() {
    let body = json!({"content": [], "stop_reason": "refusal", "usage": {}});
    let server = Server::start([Answer::json(&body)]).await;
    let provider = Provider::vendor("anthropic")
        .unwrap()
        .base_url(&server.url)
        .key("sk-ant")
        .model("claude-haiku-4-5")
        .dialect(|dialect| dialect.anthropic_version = "2023-06-01".into())
        .body_field("service_tier", "standard_only")
        .build()
        .unwrap();
    let request = ChatRequest { temperature: Some(0.5), ..ChatRequest::user("?") };
    let response = provider.chat(&request, &CallContext::default()).await.unwrap();
    assert_eq!(response.stop, StopReason::Refusal);
    let seen = server.seen().remove(0);
    assert!(seen.head.contains("x-api-key: sk-ant") && !seen.head.contains("authorization"), "{}", seen.head);
    assert_eq!(
        (&seen.body["temperature"], &seen.body["service_tier"]),
        (&json!(0.5), &json!("standard_only"))
    );
}

#[tokio::test]
async fn a_schema_without_closed_form_goes_into_the_instructions() {
    let body = json!({"content": [{"type": "text", "text": "{}"}], "stop_reason": "end_turn"});
    let server = Server::start([Answer::json(&body)]).await;
    let schema = json!({"type": "object", "properties": {"data": true}});
    let mut request = ChatRequest::user("?");
    request.output = Some(OutputFormat { name: "open".into(), schema: Arc::new(schema) });
    provider(&server).chat(&request, &CallContext::default()).await.unwrap();
    let seen = server.seen().remove(0).body;
    assert!(seen.get("output_config").is_none(), "{seen}");
    assert!(seen["system"][0]["text"].as_str().unwrap().contains(r#""properties":{"data":true}"#), "{seen}");
}
