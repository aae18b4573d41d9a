use std::sync::Arc;

use coral_core::{
    CallContext, ChatModel, ChatRequest, Effort, Message, OutputFormat, Part, StopReason, ToolCall,
    ToolChoice, ToolDef, Usage,
};
use coral_llm::Provider;
use serde_json::json;

use crate::server::{Answer, Server};
use crate::wire_faults::listening;

fn provider(server: &Server) -> Provider {
    Provider::vendor("openai")
        .unwrap()
        .base_url(format!("{}/v1", server.url))
        .key("sk-secret")
        .model("gpt-x")
        .build()
        .unwrap()
}

fn tool(name: &str) -> ToolDef {
    ToolDef {
        name: name.into(),
        description: format!("does {name}"),
        input_schema: json!({"type": "object", "properties": {"q": {"type": "string"}}}),
        effect: Default::default(),
    }
}

#[tokio::test]
async fn a_whole_answer_with_all_that_a_request_can_say() {
    let server = Server::start([Answer::json(&json!({
        "id": "c1", "model": "gpt-x-2026", "new_field": {},
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "{\"name\":\"Bob\",\"age\":null}", "refusal": null, "tool_calls": null}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
                  "completion_tokens_details": {"reasoning_tokens": 5}}
    }))])
    .await;
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
    request.tools = Arc::from([tool("find")]);
    request.tool_choice = ToolChoice::Tool("find".into());
    request.max_output_tokens = Some(50);
    request.temperature = Some(0.5);
    request.effort = Some(Effort::High);
    request.stop = vec!["END".into()];
    let schema = json!({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}});
    request.output = Some(OutputFormat { name: "person".into(), schema: Arc::new(schema) });

    let response = provider(&server).chat(&request, &CallContext::default()).await.unwrap();
    assert_eq!(response.message.text(), r#"{"name":"Bob"}"#, "a null that strict form made is taken out");
    assert_eq!(
        (response.stop, response.model.as_str(), response.id.as_deref()),
        (StopReason::End, "gpt-x-2026", Some("c1"))
    );
    let usage = Usage {
        input_tokens: 100,
        output_tokens: 20,
        cache_read_tokens: 60,
        cache_write_tokens: 30,
        long_cache_write_tokens: 0,
        reasoning_tokens: 5,
    };
    assert_eq!(response.usage, usage);

    let seen = server.seen().remove(0);
    assert!(seen.head.starts_with("post /v1/chat/completions "), "{}", seen.head);
    assert!(seen.head.contains("authorization: bearer sk-secret"), "{}", seen.head);
    assert_eq!(
        seen.body,
        json!({
            "model": "gpt-x",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [
                    {"type": "text", "text": "Who?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
                ]},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "find", "arguments": "{\"q\":\"x\"}"}}
                ]},
                {"role": "tool", "tool_call_id": "t1", "content": "found"}
            ],
            "tools": [{"type": "function", "function": {"name": "find", "description": "does find",
                "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}}],
            "tool_choice": {"type": "function", "function": {"name": "find"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "person", "strict": true, "schema": {
                "type": "object", "additionalProperties": false, "required": ["age", "name"],
                "properties": {"name": {"type": "string"}, "age": {"type": ["integer", "null"]}}
            }}},
            "max_completion_tokens": 50, "temperature": 0.5, "reasoning_effort": "high", "stop": ["END"]
        })
    );
}

#[tokio::test]
async fn a_stream_with_reasoning_parallel_tools_and_usage() {
    let server = Server::start([Answer::sse(
        ": keep-alive\n\n\
         data: {\"id\":\"c1\",\"model\":\"gpt-x\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"reasoning_content\":\"Hm é\"}}]}\n\n\
         data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"I look \"}}]}\n\n\
         data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"it up.\"}}]}\n\n\
         data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"type\":\"function\",\"function\":{\"name\":\"find\",\"arguments\":\"\"}}]}}]}\n\n\
         data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":1,\"id\":\"b\",\"function\":{\"name\":\"list\",\"arguments\":\"{}\"}}]}}]}\n\n\
         data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"find\",\"arguments\":\"{\\\"q\\\":\"}}]}}]}\n\n\
         data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"\\\"ü\\\"}\"}}]}}]}\n\n\
         data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\n\
         data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":9}}\n\n\
         data: [DONE]\n\n",
    )])
    .await;
    let (cx, heard) = listening();
    let mut request = ChatRequest::user("Look.");
    request.model = Some("openai/gpt-other".into());
    let response = provider(&server).chat(&request, &cx).await.unwrap();
    let call = |id: &str, name: &str, arguments| {
        Part::ToolCall(ToolCall { id: id.into(), name: name.into(), arguments })
    };
    let expected = vec![
        Part::Thinking { text: "Hm é".into(), signature: None },
        Part::Text { text: "I look it up.".into() },
        call("a", "find", json!({"q": "ü"})),
        call("b", "list", json!({})),
    ];
    assert_eq!(response.message.parts, expected);
    assert_eq!(response.stop, StopReason::ToolCalls);
    assert_eq!(response.usage, Usage { input_tokens: 7, output_tokens: 9, ..Default::default() });
    assert_eq!(heard.text(), "I look it up.");
    assert_eq!(heard.arguments(0), r#"{"q":"ü"}"#);
    let body = server.seen().remove(0).body;
    assert_eq!((&body["model"], &body["stream"]), (&json!("gpt-other"), &json!(true)));
    assert_eq!(body["stream_options"], json!({"include_usage": true}));
}

#[tokio::test]
async fn endings_are_told_apart() {
    for (reason, expected) in [
        ("length", StopReason::MaxTokens),
        ("content_filter", StopReason::ContentFilter),
        ("brand_new", StopReason::Other("brand_new".into())),
    ] {
        let body = json!({"choices": [{"finish_reason": reason, "message": {"content": "x"}}]});
        let server = Server::start([Answer::json(&body)]).await;
        let response =
            provider(&server).chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap();
        assert_eq!(response.stop, expected);
    }
    let body =
        json!({"choices": [{"finish_reason": "stop", "message": {"content": null, "refusal": "I won't."}}]});
    let server = Server::start([Answer::json(&body)]).await;
    let response = provider(&server).chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap();
    assert_eq!((response.stop, response.message.text()), (StopReason::Refusal, "I won't.".to_owned()));
}

#[tokio::test]
async fn connections_are_used_again() {
    let answer = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let server = Server::start(std::iter::repeat_n(Answer::sse(answer), 20)).await;
    let provider = provider(&server);
    for _ in 0..20 {
        provider.chat(&ChatRequest::user("?"), &listening().0).await.unwrap();
    }
    assert_eq!((server.seen().len(), server.connections()), (20, 1));
}
