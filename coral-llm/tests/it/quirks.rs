//! What servers do beyond, and short of, what their protocols say.

use std::sync::Arc;

use coral_core::{
    CallContext, ChatModel, ChatRequest, ChatResponse, Message, ModelFault, Part, Role, StopReason,
};
use coral_llm::{Dialect, Failure, Framing, Protocol, Provider};
use serde_json::{Value, json};

use crate::server::{Answer, Server};

fn streamed(protocol: Protocol, events: &[Value]) -> Result<ChatResponse, Failure> {
    let mut decoder = protocol.decoder(Framing::Sse, &Dialect::default());
    for event in events {
        decoder.feed(format!("data: {event}\n\n").into(), &mut |_| {})?;
    }
    if protocol == Protocol::OpenAiChat {
        decoder.feed("data: [DONE]\n\n".into(), &mut |_| {})?;
    }
    decoder.finish()
}

fn delta(delta: Value) -> Value {
    json!({"choices": [{"index": 0, "delta": delta}]})
}

fn stop() -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
}

/// The calls in an answer: id, name, arguments.
fn calls(response: &ChatResponse) -> Vec<(String, String, Value)> {
    let calls = response.message.tool_calls();
    calls.map(|call| (call.id.clone(), call.name.clone(), call.arguments.clone())).collect()
}

#[test]
fn calls_are_told_apart_however_they_are_numbered() {
    let piece = |index: Option<u64>, id: &str, name: &str, arguments: &str| {
        let mut call = json!({"function": {"arguments": arguments}});
        if let Some(index) = index {
            call["index"] = index.into();
        }
        if !id.is_empty() {
            call["id"] = id.into();
        }
        if !name.is_empty() {
            call["function"]["name"] = name.into();
        }
        delta(json!({"tool_calls": [call]}))
    };
    let expected = [
        ("a".to_owned(), "find".to_owned(), json!({"q": 1})),
        ("b".to_owned(), "find".to_owned(), json!({"q": 2})),
    ];
    for (what, pieces) in [
        (
            "no index",
            [(None, "a", "find", "{\"q\":1}"), (None, "b", "find", "{\"q\""), (None, "", "", ":2}")],
        ),
        (
            "one index for all",
            [(Some(0), "a", "find", "{\"q\":1}"), (Some(0), "b", "find", "{\"q\""), (Some(0), "", "", ":2}")],
        ),
        (
            "all is repeated",
            [
                (Some(0), "a", "find", "{\"q\":1}"),
                (Some(1), "b", "find", "{\"q\""),
                (Some(1), "b", "find", ":2}"),
            ],
        ),
    ] {
        let mut events: Vec<Value> =
            pieces.iter().map(|(i, id, name, args)| piece(*i, id, name, args)).collect();
        events.push(stop());
        assert_eq!(calls(&streamed(Protocol::OpenAiChat, &events).unwrap()), expected, "{what}");
    }
    let nameless = streamed(Protocol::OpenAiChat, &[piece(Some(0), "a", "", "{}"), stop()]).unwrap_err();
    assert_eq!(nameless.fault, ModelFault::Malformed);
}

#[test]
fn content_in_pieces_is_text_and_thinking() {
    let events = [
        delta(json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]})),
        delta(json!({"content": [{"type": "text", "text": "Yes."}, {"type": "brand_new"}]})),
        stop(),
    ];
    let response = streamed(Protocol::OpenAiChat, &events).unwrap();
    let expected =
        vec![Part::Thinking { text: "Hm.".into(), signature: None }, Part::Text { text: "Yes.".into() }];
    assert_eq!(response.message.parts, expected);
}

#[test]
fn events_of_unknown_types_may_look_as_they_like() {
    let anthropic = [
        json!({"type": "brand_new", "delta": 7, "message": "text", "usage": [1], "index": "x"}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "brand_new_delta", "more": {}}}),
        json!({"type": "message_delta", "delta": {"stop_reason": "brand_new_reason"}, "usage": {"output_tokens": 3.0, "input_tokens": null}}),
        json!({"type": "message_stop"}),
    ];
    let response = streamed(Protocol::Anthropic, &anthropic).unwrap();
    assert_eq!(
        (response.stop, response.usage.output_tokens),
        (StopReason::Other("brand_new_reason".into()), 3)
    );

    let responses = [
        json!({"type": "response.brand_new.delta", "delta": {"x": 1}, "item_id": 7, "output_index": "y"}),
        json!({"type": "response.output_text.delta", "delta": "x"}),
        json!({"type": "response.completed", "response": {"status": "completed", "usage": {"input_tokens": "many"}}}),
    ];
    let response = streamed(Protocol::OpenAiResponses, &responses).unwrap();
    assert_eq!((response.message.text().as_str(), response.usage.input_tokens), ("x", 0));
    // A known event that can't be read is no whole answer.
    let broken = streamed(Protocol::Anthropic, &[json!({"type": "message_delta", "delta": 7})]).unwrap_err();
    assert_eq!(broken.fault, ModelFault::Malformed);
}

#[test]
fn reasoning_beside_the_completion_is_counted_as_output() {
    let usage = |total: u64| {
        let counted = json!({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": total,
            "completion_tokens_details": {"reasoning_tokens": 7}}});
        streamed(Protocol::OpenAiChat, &[stop(), counted]).unwrap().usage
    };
    assert_eq!((usage(22).output_tokens, usage(22).reasoning_tokens), (12, 7), "beside");
    assert_eq!(usage(15).output_tokens, 5, "within");
}

#[test]
fn an_error_in_a_choice_is_an_error() {
    let failed = json!({"choices": [{"index": 0, "finish_reason": "error", "error": {"code": 529, "message": "Overloaded"}}]});
    assert_eq!(streamed(Protocol::OpenAiChat, &[failed]).unwrap_err().fault, ModelFault::Overloaded);
}

fn body(protocol: Protocol, request: &ChatRequest, dialect: &Dialect) -> Value {
    serde_json::from_slice(&protocol.encode(request, "m", false, dialect).unwrap().body).unwrap()
}

#[test]
fn reasoning_goes_back_where_it_is_wanted() {
    let details = json!([{"type": "reasoning.encrypted", "data": "sealed"}]);
    let events = [delta(json!({"reasoning_details": details, "content": "x"})), stop()];
    let message = streamed(Protocol::OpenAiChat, &events).unwrap().message;
    let request = ChatRequest { messages: vec![message], ..Default::default() };
    let wants = Dialect { reasoning_details: true, ..Default::default() };
    assert_eq!(body(Protocol::OpenAiChat, &request, &wants)["messages"][0]["reasoning_details"], details);
    let plain = body(Protocol::OpenAiChat, &request, &Dialect::default());
    assert!(plain["messages"][0].get("reasoning_details").is_none(), "{plain}");

    // What the provider did not store and did not seal is only a name that it does not know any more.
    let item = |sealed: Value| Part::Opaque {
        provider: "openai".into(),
        item: json!({"type": "reasoning", "id": "rs", "encrypted_content": sealed}),
    };
    let parts = vec![item(Value::Null), item("sealed".into()), Part::Text { text: "x".into() }];
    let request = ChatRequest {
        messages: vec![Message { role: Role::Assistant, parts, cache: false }],
        ..Default::default()
    };
    let input = body(Protocol::OpenAiResponses, &request, &Dialect::default())["input"].clone();
    assert_eq!((input.as_array().unwrap().len(), &input[0]["encrypted_content"]), (2, &json!("sealed")));

    let last = json!({"candidates": [{"content": {"parts": [{"text": "x"}, {"text": "", "thoughtSignature": "sealed"}]}, "finishReason": "STOP"}]});
    let message = streamed(Protocol::Gemini, &[last]).unwrap().message;
    let request = ChatRequest { messages: vec![message], ..Default::default() };
    let parts = body(Protocol::Gemini, &request, &Dialect::default())["contents"][0]["parts"].clone();
    assert_eq!(parts, json!([{"text": "x"}, {"text": "", "thoughtSignature": "sealed"}]));
}

#[test]
fn what_gemini_ran_itself_goes_back_as_it_came() {
    let ran = json!([{"executableCode": {"language": "PYTHON", "code": "1+1"}}, {"codeExecutionResult": {"output": "2"}}]);
    let answer = json!({"candidates": [{"content": {"parts": ran}, "finishReason": "STOP"}]});
    let message = streamed(Protocol::Gemini, &[answer]).unwrap().message;
    let request = ChatRequest { messages: vec![message], ..Default::default() };
    assert_eq!(body(Protocol::Gemini, &request, &Dialect::default())["contents"][0]["parts"], ran);
}

#[test]
fn caches_get_their_marks_and_keys() {
    let mut request = ChatRequest::new("System.", "one");
    request.messages.extend(["two", "three", "four", "five", "six"].map(Message::user));
    for message in &mut request.messages {
        message.cache = true;
    }
    let dialect = Dialect { cache_ttl: Some("1h".into()), auto_cache: true, ..Default::default() };
    let sent = body(Protocol::Anthropic, &request, &dialect);
    let mark = json!({"type": "ephemeral", "ttl": "1h"});
    assert_eq!((&sent["cache_control"], &sent["system"][0]["cache_control"]), (&mark, &mark));
    let marked: Vec<bool> = sent["messages"][0]["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|block| block.get("cache_control") == Some(&mark))
        .collect();
    assert_eq!(
        marked,
        [false, false, false, true, true, true],
        "four at the most: the first and the last ones"
    );

    let keyed = Dialect { prompt_cache_key: true, ..Default::default() };
    let key = |request: &ChatRequest, dialect: &Dialect| {
        body(Protocol::OpenAiChat, request, dialect)["prompt_cache_key"].clone()
    };
    let mut longer = request.clone();
    longer.messages.push(Message::user("more"));
    assert!(key(&request, &keyed).is_string());
    assert_eq!(key(&request, &keyed), key(&longer, &keyed), "what is shared decides");
    let mut other = request.clone();
    other.messages[0] = Message { cache: true, ..Message::system("Another.") };
    assert_ne!(key(&request, &keyed), key(&other, &keyed));
    assert_eq!(key(&request, &Dialect::default()), Value::Null);
}

#[tokio::test]
async fn the_idempotency_key_goes_where_it_is_taken() {
    let answer = json!({"choices": [{"finish_reason": "stop", "message": {"content": "x"}}]});
    let server = Server::start(std::iter::repeat_n(Answer::json(&answer), 3)).await;
    let provider = |header: Option<&str>| {
        let header = header.map(str::to_owned);
        let builder = Provider::openai_compatible(&server.url).model("m");
        builder.dialect(|dialect| dialect.idempotency_header = header).build().unwrap()
    };
    let cx = CallContext::default().with_key("run/step/0");
    let request = ChatRequest::user("?");
    provider(Some("Idempotency-Key")).chat(&request, &cx).await.unwrap();
    provider(None).chat(&request, &cx).await.unwrap();
    provider(Some("Idempotency-Key")).chat(&request, &CallContext::default()).await.unwrap();
    let sent: Vec<bool> =
        server.seen().iter().map(|seen| seen.head.contains("idempotency-key: run/step/0")).collect();
    assert_eq!(sent, [true, false, false]);
}

#[tokio::test]
async fn long_answers_of_anthropic_are_streamed_even_unheard() {
    let stream = "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\ndata: {\"type\":\"message_stop\"}\n\n";
    let server = Server::start([Answer::sse(stream)]).await;
    let provider =
        Provider::vendor("anthropic").unwrap().base_url(&server.url).key("sk-ant").build().unwrap();
    let request = ChatRequest { max_output_tokens: Some(64_000), ..ChatRequest::user("?") };
    provider.chat(&request, &CallContext::default()).await.unwrap();
    assert_eq!(server.seen()[0].body["stream"], true);
}

#[test]
fn a_request_without_schema_support_is_told_the_schema() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]});
    let mut request = ChatRequest::user("?");
    request.output = Some(coral_core::OutputFormat { name: "x".into(), schema: Arc::new(schema) });
    for (structured, is_json) in
        [(coral_llm::Structured::Json, true), (coral_llm::Structured::Instructions, false)]
    {
        let dialect = Dialect { structured, ..Default::default() };
        for protocol in [
            Protocol::Anthropic,
            Protocol::OpenAiChat,
            Protocol::OpenAiResponses,
            Protocol::Gemini,
            Protocol::Ollama,
        ] {
            let text = body(protocol, &request, &dialect).to_string();
            assert!(text.contains("Give your final answer as one JSON value"), "{protocol:?}: {text}");
            let says_json = ["json_object", "application/json", "\"format\":\"json\""]
                .iter()
                .any(|sign| text.contains(sign));
            assert_eq!(says_json, is_json && protocol != Protocol::Anthropic, "{protocol:?}: {text}");
        }
    }
}
