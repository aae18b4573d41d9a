//! What servers do beyond, and short of, what their protocols say.

use std::sync::Arc;

use coral_core::{
    CallContext, ChatModel, ChatRequest, ChatResponse, Message, ModelFault, Part, Role, StopReason, ToolCall,
    ToolDef,
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
    decoder.finish(&mut |_| {})
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
        [false, false, false, false, true, true],
        "four at the most, with that at the top: the first and the last ones"
    );
    let marks = |request: &ChatRequest, dialect: &Dialect| {
        body(Protocol::Anthropic, request, dialect).to_string().matches("cache_control").count()
    };
    assert_eq!((marks(&request, &dialect), marks(&request, &Dialect::default())), (4, 4));
    let thought = Part::Thinking { text: "Hm.".into(), signature: Some("sealed".into()) };
    let opaque = Part::Opaque {
        provider: "anthropic".into(),
        item: json!({"type": "redacted_thinking", "data": "x"}),
    };
    let parts = vec![Part::Text { text: "x".into() }, thought.clone(), opaque];
    let messages = vec![Message { role: Role::Assistant, parts, cache: true }];
    let sent =
        body(Protocol::Anthropic, &ChatRequest { messages, ..Default::default() }, &Dialect::default());
    let content = &sent["messages"][0]["content"];
    assert!(content[0].get("cache_control").is_some(), "what stands before thinking has the mark: {content}");
    assert!(content[1].get("cache_control").is_none() && content[2].get("cache_control").is_none());
    let messages = vec![Message { role: Role::Assistant, parts: vec![thought], cache: true }];
    assert_eq!(marks(&ChatRequest { messages, ..Default::default() }, &Dialect::default()), 0);

    let tool = |cache: bool| {
        let tool = ToolDef {
            name: "find".into(),
            description: "finds".into(),
            input_schema: json!({"type": "object"}),
            effect: Default::default(),
        };
        let system = Message { cache, ..Message::system("Be brief.") };
        let messages = vec![system, Message::user("Who?")];
        let request = ChatRequest { messages, tools: vec![tool.clone(), tool].into(), ..Default::default() };
        body(Protocol::Anthropic, &request, &Dialect::default())["tools"].clone()
    };
    let marked = json!({"type": "ephemeral"});
    assert_eq!((&tool(true)[0]["cache_control"], &tool(true)[1]["cache_control"]), (&Value::Null, &marked));
    assert!(!tool(false).to_string().contains("cache_control"), "where nothing is to be cached, no tool is");

    for protocol in [Protocol::OpenAiChat, Protocol::OpenAiResponses] {
        let kept = |ttl: &str| {
            let dialect = Dialect { cache_ttl: Some(ttl.into()), ..Default::default() };
            let sent = body(protocol, &request, &dialect);
            (sent["prompt_cache_options"].clone(), sent["prompt_cache_retention"].clone())
        };
        assert_eq!(kept("30m"), (json!({"ttl": "30m"}), Value::Null), "{protocol:?}");
        assert_eq!(kept("24h"), (Value::Null, json!("24h")), "{protocol:?}");
    }

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
async fn openai_is_shown_where_cached_messages_end() {
    const MARK: &str = "prompt_cache_breakpoint";
    let cached = |message: Message| Message { cache: true, ..message };
    let call = Part::ToolCall(ToolCall { id: "1".into(), name: "t".into(), arguments: json!({}) });
    let result =
        Part::ToolResult { call_id: "1".into(), name: "t".into(), content: "done".into(), is_error: false };
    let image = Part::Image { media_type: "image/png".into(), data: "aGk=".into() };
    let of = |role, parts| Message { role, parts, cache: true };
    let request = ChatRequest {
        messages: vec![
            cached(Message::system("Be brief.")),
            cached(Message::user("first")),
            of(Role::Assistant, vec![Part::Text { text: "I look.".into() }, call]),
            of(Role::Tool, vec![result]),
            of(Role::User, vec![Part::Text { text: "and this".into() }, image]),
            Message::user("?"),
        ],
        ..Default::default()
    };
    let dialect = Dialect { cache_marks: true, ..Default::default() };
    let mark = json!({"mode": "explicit"});

    let sent = body(Protocol::OpenAiChat, &request, &dialect);
    let text = |text: &str| json!([{"type": "text", "text": text, MARK: mark}]);
    let content = |at: usize| sent["messages"][at]["content"].clone();
    assert_eq!((content(0), content(1)), (text("Be brief."), json!("first")), "four marks are the most");
    assert_eq!((content(2), content(3)), (text("I look."), text("done")));
    assert_eq!((&content(4)[0].get(MARK), &content(4)[1][MARK]), (&None, &mark));
    assert_eq!(content(5), json!("?"));
    assert_eq!(sent["messages"][2]["tool_calls"][0]["id"], "1");

    let sent = body(Protocol::OpenAiResponses, &request, &dialect);
    let input = sent["input"].as_array().unwrap();
    let marks: Vec<usize> = input.iter().map(|item| item.to_string().matches(MARK).count()).collect();
    // The user's, the answer's, its call, the result, the user's again: instructions and answers take none.
    assert_eq!(marks, [0, 0, 0, 1, 1], "{sent:#}");
    assert_eq!(input[3]["output"], json!([{"type": "input_text", "text": "done", MARK: mark}]));
    assert_eq!(input[4]["content"][1][MARK], mark);

    let plain = body(Protocol::OpenAiChat, &request, &Dialect::default()).to_string();
    assert!(!plain.contains(MARK), "older models and other servers do not know marks");
    let answer = json!({"choices": [{"finish_reason": "stop", "message": {"content": "x"}}]});
    for (model, marks) in [("gpt-6.1-sol", 4), ("gpt-5.4-mini", 0)] {
        let server = Server::start([Answer::json(&answer)]).await;
        let provider = Provider::vendor("openai").unwrap().base_url(&server.url).key("k").model(model);
        provider.build().unwrap().chat(&request, &CallContext::default()).await.unwrap();
        assert_eq!(server.seen()[0].body.to_string().matches(MARK).count(), marks, "{model}");
    }
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

/// The streams of a short answer, with what comes before its end.
fn short(protocol: Protocol, before: &str) -> String {
    let (said, end) = match protocol {
        Protocol::Anthropic => (
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}}),
            json!({"type": "message_stop"}),
        ),
        Protocol::OpenAiChat => (delta(json!({"content": "hello"})), stop()),
        Protocol::OpenAiResponses => (
            json!({"type": "response.output_text.delta", "delta": "hello"}),
            json!({"type": "response.completed", "response": {}}),
        ),
        _ => (
            json!({"candidates": [{"content": {"parts": [{"text": "hello"}]}}]}),
            json!({"candidates": [{"finishReason": "STOP"}]}),
        ),
    };
    let done = if protocol == Protocol::OpenAiChat { "data: [DONE]\n\n" } else { "" };
    format!("{before}data: {said}\n\n{before}data: {end}\n\n{done}")
}

#[test]
fn a_block_without_data_is_no_event() {
    for protocol in [Protocol::Anthropic, Protocol::OpenAiChat, Protocol::OpenAiResponses, Protocol::Gemini] {
        for block in ["event: ping\n\n", "id: 7\n\n", "retry: 100\n\n", "data:\n\n", "data: \n\n", ": hm\n\n"]
        {
            let mut decoder = protocol.decoder(Framing::Sse, &Dialect::default());
            decoder.feed(short(protocol, block).into(), &mut |_| {}).unwrap();
            let answer = decoder.finish(&mut |_| {}).unwrap();
            assert_eq!(answer.message.text(), "hello", "{protocol:?} {block:?}");
        }
    }
}

#[test]
fn a_response_that_is_told_by_events_is_not_told_again_at_its_end() {
    let reasoning = json!({"type": "reasoning", "id": "rs_1", "encrypted_content": "sealed",
        "summary": [{"type": "summary_text", "text": "Hm."}]});
    let message =
        json!({"type": "message", "id": "msg_1", "content": [{"type": "output_text", "text": "Yes."}]});
    let call = json!({"type": "function_call", "id": "fc_1", "call_id": "call_x", "name": "find", "arguments": "{}"});
    let completed = |output: Value| json!({"type": "response.completed", "response": {"status": "completed", "output": output}});
    let thought = Part::Thinking { text: "Hm.".into(), signature: None };
    let sealed = Part::Opaque { provider: "openai".into(), item: reasoning.clone() };
    let told = [
        json!({"type": "response.reasoning_summary_text.delta", "item_id": "rs_1", "delta": "Hm."}),
        json!({"type": "response.output_item.done", "item": reasoning}),
        completed(json!([reasoning])),
    ];
    let response = streamed(Protocol::OpenAiResponses, &told).unwrap();
    assert_eq!(response.message.parts, [thought.clone(), sealed.clone()], "reasoning alone");
    // What no event told is still read at the end.
    let response = streamed(
        Protocol::OpenAiResponses,
        &[told[0].clone(), told[1].clone(), completed(json!([reasoning, message, call]))],
    )
    .unwrap();
    assert_eq!(response.message.parts.get(..2), Some(&[thought, sealed][..]));
    assert_eq!((response.message.text().as_str(), calls(&response).len()), ("Yes.", 1));
}

#[test]
fn a_response_that_is_incomplete_is_no_end() {
    let cut = json!({"type": "response.incomplete", "response": {"status": "incomplete"}});
    let response = streamed(Protocol::OpenAiResponses, &[cut]).unwrap();
    assert_eq!(response.stop, StopReason::Other("incomplete".into()));
}

#[test]
fn parts_of_kinds_that_gemini_has_since_got_go_back_as_they_came() {
    let part = json!({"brandNew": {"x": 1}, "about": "it"});
    let answer = json!({"candidates": [{"content": {"parts": [
        {"text": "x", "partMetadata": {"y": 2}}, part, {"text": null, "thought": null}]}, "finishReason": "STOP"}]});
    let message = streamed(Protocol::Gemini, &[answer]).unwrap().message;
    let request = ChatRequest { messages: vec![message], ..Default::default() };
    let sent = body(Protocol::Gemini, &request, &Dialect::default())["contents"][0]["parts"].clone();
    assert_eq!(sent, json!([{"text": "x"}, part]));
}

#[tokio::test]
async fn calls_without_ids_are_numbered_over_the_whole_conversation() {
    let answer = json!({"candidates": [{"content": {"parts": [
        {"functionCall": {"name": "find"}}, {"functionCall": {"name": "find"}}]}, "finishReason": "STOP"}]});
    let server = Server::start([Answer::json(&answer), Answer::json(&answer)]).await;
    let model = Provider::vendor("gemini").unwrap().base_url(&server.url).model("m").build().unwrap();
    let mut request = ChatRequest::user("?");
    let mut ids = Vec::new();
    for _ in 0..2 {
        let response = model.chat(&request, &CallContext::default()).await.unwrap();
        ids.extend(response.message.tool_calls().map(|call| call.id.clone()));
        request.messages.push(response.message);
    }
    assert_eq!(ids, ["call_0", "call_1", "call_2", "call_3"]);
}

#[test]
fn text_of_blanks_alone_is_not_sent_where_it_is_refused() {
    let parts = vec![Part::Text { text: " \n".into() }, Part::Text { text: "x".into() }];
    let request = ChatRequest {
        messages: vec![Message::user("?"), Message { role: Role::Assistant, parts, cache: false }],
        ..Default::default()
    };
    let sent = body(Protocol::Anthropic, &request, &Dialect::default());
    assert_eq!(sent["messages"][1]["content"], json!([{"type": "text", "text": "x"}]));
}

#[test]
fn ollama_is_asked_to_leave_nothing_out() {
    let mut request = ChatRequest::user("?");
    let broken = coral_core::ToolCall { id: "c".into(), name: "find".into(), arguments: json!("{not json") };
    request.messages.push(Message { parts: vec![Part::ToolCall(broken)], ..Message::assistant("") });
    let sent = body(Protocol::Ollama, &request, &Dialect::default());
    assert_eq!((&sent["truncate"], &sent["shift"]), (&json!(false), &json!(false)));
    assert_eq!(sent["messages"][1]["tool_calls"][0]["function"]["arguments"], json!({}));
}

#[tokio::test]
async fn a_field_of_the_users_own_is_merged_into_an_object() {
    let answer = json!({"message": {"content": "x"}, "done": true});
    let too_long = json!({"error": "the input length exceeds the context length"});
    let server =
        Server::start([Answer::json(&answer), Answer::error("500 Internal Server Error", &too_long)]).await;
    let builder = Provider::vendor("ollama").unwrap().base_url(&server.url).model("m");
    let model = builder
        .body_field("options", json!({"num_ctx": 32_768}))
        .body_field("keep_alive", 60)
        .build()
        .unwrap();
    let request = ChatRequest { temperature: Some(0.5), ..ChatRequest::user("?") };
    model.chat(&request, &CallContext::default()).await.unwrap();
    let sent = &server.seen()[0].body;
    assert_eq!(
        (&sent["options"], &sent["keep_alive"]),
        (&json!({"num_ctx": 32_768, "temperature": 0.5}), &json!(60))
    );
    let error = model.chat(&request, &CallContext::default()).await.unwrap_err();
    assert!(error.to_string().contains("exceeds the context length"), "{error}");
    let fault =
        matches!(error.kind(), coral_core::ErrorKind::Model { fault: ModelFault::ContextTooLong, .. });
    assert!(fault, "{error:?}");
}

/// A schema with one property that may be absent.
fn output() -> coral_core::OutputFormat {
    let schema = json!({"type": "object", "required": ["a"], "properties": {
        "a": {"type": ["string", "null"]}, "b": {"type": "string"}}});
    coral_core::OutputFormat { name: "x".into(), schema: Arc::new(schema) }
}

#[tokio::test]
async fn nulls_of_the_strict_form_go_whatever_stands_beside_the_answer() {
    let reasoning = json!({"type": "reasoning", "id": "rs", "encrypted_content": "sealed", "summary": []});
    let content = json!([{"type": "output_text", "text": r#"{"a":null,"#}, {"type": "output_text", "text": r#""b":null}"#}]);
    let answer = json!({"status": "completed", "output": [reasoning, {"type": "message", "id": "m", "content": content}]});
    let server = Server::start([Answer::json(&answer)]).await;
    let model =
        Provider::vendor("openai_responses").unwrap().base_url(&server.url).model("m").build().unwrap();
    let request = ChatRequest { output: Some(output()), ..ChatRequest::user("?") };
    let response = model.chat(&request, &CallContext::default()).await.unwrap();
    assert_eq!((response.message.text().as_str(), response.message.parts.len()), (r#"{"a":null}"#, 2));
}

#[test]
fn only_schemas_of_known_keywords_are_sent_as_strict() {
    let strict = |schema: Value| {
        let output = coral_core::OutputFormat { name: "x".into(), schema: Arc::new(schema) };
        let request = ChatRequest { output: Some(output), ..ChatRequest::user("?") };
        let sent = body(Protocol::OpenAiChat, &request, &Dialect::default());
        (sent["response_format"]["json_schema"]["strict"] == true)
            .then(|| sent["response_format"]["json_schema"]["schema"].clone())
    };
    let object =
        |property: Value| json!({"type": "object", "required": ["a"], "properties": {"a": property}});
    let closed = |property: Value| json!({"type": "object", "required": ["a"], "properties": {"a": property}, "additionalProperties": false});
    for (given, sent) in [
        (
            json!({"type": "string", "minLength": 1, "x-order": 3, "deprecated": true}),
            json!({"type": "string"}),
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "contains": {"const": "x"}}),
            json!({"type": "array", "items": {"type": "string"}}),
        ),
    ] {
        assert_eq!(strict(object(given.clone())), Some(closed(sent)), "{given}");
    }
    let with_reference = json!({"type": "object", "required": ["a"], "$defs": {"A": {"type": "string"}},
        "properties": {"a": {"$ref": "#/$defs/A", "description": "an a"}}});
    assert_eq!(strict(with_reference).unwrap()["properties"]["a"], json!({"$ref": "#/$defs/A"}));
    for unknown in [
        json!({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "string"}}),
        json!({"type": "object", "properties": {}, "dependentSchemas": {"a": {"type": "object", "properties": {}}}}),
        json!({"type": "object", "properties": {}, "unevaluatedProperties": {"type": "string"}}),
        json!({"type": "string", "brandNew": true}),
        json!({"type": ["object", "null"]}),
        json!({"$ref": "#/$defs/A", "$defs": {"A": {"type": "string"}}, "properties": {}}),
    ] {
        assert_eq!(strict(object(unknown.clone())), None, "{unknown}");
    }
    assert_eq!(strict(json!({"type": "array", "items": {"type": "string"}})), None, "the root is an object");
}

#[test]
fn calls_of_other_models_are_marked_as_unsigned() {
    let call = |id: &str| {
        let call = coral_core::ToolCall { id: id.into(), name: "find".into(), arguments: json!({}) };
        Part::ToolCall(call)
    };
    let signature = Part::Opaque { provider: "gemini".into(), item: json!({"thoughtSignature": "sealed"}) };
    let signatures = |model: &str, parts: Vec<Part>| -> Vec<Value> {
        let messages = vec![Message { role: Role::Assistant, parts, cache: false }];
        let request = ChatRequest { messages, ..Default::default() };
        let wire = Protocol::Gemini.encode(&request, model, false, &Dialect::default()).unwrap();
        let sent: Value = serde_json::from_slice(&wire.body).unwrap();
        let parts = sent["contents"][0]["parts"].as_array().unwrap();
        parts.iter().map(|part| part["thoughtSignature"].clone()).collect()
    };
    let unsigned = json!("skip_thought_signature_validator");
    assert_eq!(signatures("gemini-3.5-flash", vec![call("a"), call("b")]), [unsigned, Value::Null]);
    assert_eq!(
        signatures("gemini-3.5-flash", vec![signature, call("a"), call("b")]),
        [json!("sealed"), Value::Null]
    );
    assert_eq!(signatures("gemini-2.5-flash", vec![call("a")]), [Value::Null]);
}

#[test]
fn stop_reasons_are_those_of_the_port_on_every_wire() {
    let refusal_of_chat = [delta(json!({"refusal": "I can't "})), delta(json!({"refusal": "say."})), stop()];
    let response = streamed(Protocol::OpenAiChat, &refusal_of_chat).unwrap();
    assert_eq!((response.stop, response.message.text().as_str()), (StopReason::Refusal, "I can't say."));
    let refusal_of_responses = [
        json!({"type": "response.refusal.delta", "delta": "I can't say."}),
        json!({"type": "response.completed", "response": {"status": "completed"}}),
    ];
    let response = streamed(Protocol::OpenAiResponses, &refusal_of_responses).unwrap();
    assert_eq!((response.stop, response.message.text().as_str()), (StopReason::Refusal, "I can't say."));
    for (reason, expected) in [
        ("end_turn", StopReason::End),
        ("tool_use", StopReason::ToolCalls),
        ("max_tokens", StopReason::MaxTokens),
        ("model_context_window_exceeded", StopReason::MaxTokens),
        ("stop_sequence", StopReason::StopText),
        ("refusal", StopReason::Refusal),
        ("pause_turn", StopReason::Pause),
    ] {
        let events = [
            json!({"type": "message_delta", "delta": {"stop_reason": reason}}),
            json!({"type": "message_stop"}),
        ];
        assert_eq!(streamed(Protocol::Anthropic, &events).unwrap().stop, expected, "{reason}");
    }
    for (reason, expected) in [
        ("STOP", StopReason::End),
        ("MAX_TOKENS", StopReason::MaxTokens),
        ("SAFETY", StopReason::ContentFilter),
        ("PROHIBITED_CONTENT", StopReason::ContentFilter),
        ("BRAND_NEW", StopReason::Other("BRAND_NEW".into())),
    ] {
        let events = [json!({"candidates": [{"finishReason": reason}]})];
        assert_eq!(streamed(Protocol::Gemini, &events).unwrap().stop, expected, "{reason}");
    }
    for (reason, expected) in
        [("max_output_tokens", StopReason::MaxTokens), ("content_filter", StopReason::ContentFilter)]
    {
        let events =
            [json!({"type": "response.incomplete", "response": {"incomplete_details": {"reason": reason}}})];
        assert_eq!(streamed(Protocol::OpenAiResponses, &events).unwrap().stop, expected, "{reason}");
    }
    for (reason, expected) in [
        ("length", StopReason::MaxTokens),
        ("content_filter", StopReason::ContentFilter),
        ("function_call", StopReason::ToolCalls),
    ] {
        let event = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]});
        assert_eq!(streamed(Protocol::OpenAiChat, &[event]).unwrap().stop, expected, "{reason}");
    }
}

#[test]
fn what_is_new_is_told_once_beside_all_so_far() {
    let decoded = |framing: Framing, texts: &[&str]| {
        let mut decoder = Protocol::OpenAiChat.decoder(framing, &Dialect::default());
        for text in texts {
            decoder.feed((*text).to_owned().into(), &mut |_| {})?;
        }
        decoder.finish(&mut |_| {})
    };
    let response = decoded(
        Framing::Sse,
        &[
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"message\":{\"content\":\"a\"}}]}\n\n",
            "data: {\"choices\":[{\"index\":0,\"message\":{\"content\":\"ab\"},\"delta\":{\"content\":\"b\"}}]}\n\n",
            "data: {\"choices\":[{\"message\":{\"content\":\"ab\"},\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"prompt_tokens\":2}}\n\n",
            "data: [DONE]\n\n",
        ],
    )
    .unwrap();
    assert_eq!((response.message.text().as_str(), response.usage.input_tokens), ("ab", 2));
    let whole = "{\"choices\":[{\"delta\":null,\"message\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}]}";
    assert_eq!(decoded(Framing::Whole, &[whole]).unwrap().message.text(), "x");
    let nothing = decoded(Framing::Whole, &["{\"id\":\"x\",\"choices\":[null]}"]).unwrap_err();
    assert_eq!(nothing.fault, ModelFault::Malformed);
}
