//! Every protocol against `aimock`.

use std::sync::{Arc, LazyLock, Mutex};

use coral_core::{
    CallContext, ChatModel, ChatRequest, ChatResponse, Error, ErrorKind, Message, ModelFault, OutputFormat,
    Part, StopReason, ToolDef,
};
use coral_llm::Provider;
use serde_json::json;

use crate::peer::{Peer, aimock};

static AIMOCK: LazyLock<Peer> = LazyLock::new(aimock);

/// Every protocol, with the path under which `aimock` serves it.
const VENDORS: [(&str, &str); 5] = [
    ("anthropic", ""),
    ("openai", "/v1"),
    ("openai_responses", "/v1"),
    ("gemini", "/v1beta"),
    ("ollama", ""),
];

fn provider(vendor: &str, path: &str, headers: &[(&str, &str)]) -> Provider {
    let mut builder = Provider::vendor(vendor)
        .unwrap()
        .base_url(format!("{}{path}", AIMOCK.url))
        .key("k")
        .model("some-model");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.build().unwrap()
}

fn tools(mut request: ChatRequest) -> ChatRequest {
    request.tools = Arc::from([ToolDef {
        name: "reef_depth".into(),
        description: "the depth of a reef".into(),
        input_schema: json!({"type": "object", "properties": {"reef": {"type": "string"}}, "required": ["reef"]}),
        effect: Default::default(),
    }]);
    request
}

/// Asks streamed and whole; both must say the same, and what was heard must be what was said.
async fn ask(vendor: &str, path: &str, request: &ChatRequest) -> ChatResponse {
    let provider = provider(vendor, path, &[]);
    let heard = Arc::new(Mutex::new(String::new()));
    let sink = heard.clone();
    let cx = CallContext::default().on_delta(move |delta| sink.lock().unwrap().push_str(&delta.to_string()));
    let streamed =
        provider.chat(request, &cx).await.unwrap_or_else(|error| panic!("{vendor} streamed: {error}"));
    let whole = provider
        .chat(request, &CallContext::default())
        .await
        .unwrap_or_else(|error| panic!("{vendor} whole: {error}"));
    assert_eq!(streamed.message.text(), whole.message.text(), "{vendor}");
    assert_eq!(streamed.stop, whole.stop, "{vendor}");
    assert_eq!(*heard.lock().unwrap(), streamed.message.text(), "{vendor}");
    streamed
}

async fn refused(vendor: &str, path: &str, text: &str, headers: &[(&str, &str)], streams: bool) -> Error {
    let cx = if streams { CallContext::default().on_delta(|_| {}) } else { CallContext::default() };
    match provider(vendor, path, headers).chat(&ChatRequest::user(text), &cx).await {
        Err(error) => error,
        Ok(response) => panic!("{vendor} took this for an answer: {response:?}"),
    }
}

#[track_caller]
fn check(vendor: &str, error: &Error, expected: ModelFault) {
    assert!(
        matches!(error.kind(), ErrorKind::Model { fault, .. } if *fault == expected),
        "{vendor}: expected {expected:?}, found {error:?}"
    );
}

#[tokio::test]
async fn an_answer() {
    for (vendor, path) in VENDORS {
        let response = ask(vendor, path, &ChatRequest::new("Be brief.", "Hello?")).await;
        assert_eq!(response.message.text(), "Hello from a server that speaks as many.", "{vendor}");
        assert_eq!(response.stop, StopReason::End, "{vendor}");
    }
}

#[tokio::test]
async fn parallel_tools_there_and_back() {
    for (vendor, path) in VENDORS {
        let mut request = tools(ChatRequest::user("Tell me the depth of two reefs."));
        let first = ask(vendor, path, &request).await;
        assert_eq!(first.stop, StopReason::ToolCalls, "{vendor}");
        let calls: Vec<_> = first.message.tool_calls().cloned().collect();
        let arguments: Vec<_> = calls.iter().map(|call| call.arguments.clone()).collect();
        assert_eq!(arguments, [json!({"reef": "Apo"}), json!({"reef": "Tubbataha"})], "{vendor}");
        request.messages.push(first.message);
        request.messages.push(Message::tool_results(calls.iter().map(|call| Part::ToolResult {
            call_id: call.id.clone(),
            name: call.name.clone(),
            content: "34 m".into(),
            is_error: false,
        })));
        let last = ask(vendor, path, &request).await;
        assert_eq!(last.message.text(), "Apo 34 m, Tubbataha 60 m.", "{vendor}");
    }
}

#[tokio::test]
async fn an_answer_as_data() {
    for (vendor, path) in VENDORS {
        let mut request = ChatRequest::user("Give me a coral as data.");
        let schema = json!({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}});
        request.output = Some(OutputFormat { name: "coral".into(), schema: Arc::new(schema) });
        let response = ask(vendor, path, &request).await;
        assert_eq!(response.message.text(), r#"{"name":"Acropora","age":31}"#, "{vendor}");
    }
}

#[tokio::test]
async fn rate_limits_and_overload() {
    for (vendor, path) in VENDORS {
        for streams in [false, true] {
            let error = refused(vendor, path, "too fast", &[], streams).await;
            check(vendor, &error, ModelFault::RateLimited);
            assert_eq!(error.retry_after_ms(), Some(7_000), "{vendor}");
            check(vendor, &refused(vendor, path, "too many", &[], streams).await, ModelFault::Overloaded);
        }
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off() {
    for (vendor, path) in VENDORS {
        check(vendor, &refused(vendor, path, "break off", &[], true).await, ModelFault::Truncated);
    }
}

#[tokio::test]
async fn chaos() {
    for (vendor, path) in VENDORS {
        let drop = refused(vendor, path, "hello", &[("x-aimock-chaos-drop", "1")], false).await;
        check(vendor, &drop, ModelFault::Provider);
        let malformed = refused(vendor, path, "hello", &[("x-aimock-chaos-malformed", "1")], false).await;
        check(vendor, &malformed, ModelFault::Malformed);
        let gone = refused(vendor, path, "hello", &[("x-aimock-chaos-disconnect", "1")], false).await;
        check(vendor, &gone, ModelFault::Truncated);
    }
}
