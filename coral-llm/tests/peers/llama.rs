//! Three protocols against the real llama-server on a tiny model whose answers are known.

use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use coral_core::{
    CallContext, ChatModel, ChatRequest, ErrorKind, ModelFault, OutputFormat, StopReason, ToolChoice, ToolDef,
};
use coral_llm::{CountTokens, Protocol, Provider};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peer::{INSTALLED, Peer, here};

static MODEL: LazyLock<String> = LazyLock::new(|| {
    let file = INSTALLED.join("bigram.gguf");
    let made = Command::new("python3").arg(here().join("bigram.py")).arg(&file).status().unwrap();
    assert!(made.success());
    file.to_str().unwrap().to_owned()
});

/// A server of its own for each test: its one slot's cache is part of what is tested.
pub(crate) fn llama() -> Peer {
    let python = INSTALLED.join("xllamacpp/bin/python");
    Peer::start(Command::new(python).arg(here().join("serve.py")).arg(&*MODEL))
}

fn provider(peer: &Peer, protocol: Protocol) -> Provider {
    let base = if protocol == Protocol::Anthropic { peer.url.clone() } else { format!("{}/v1", peer.url) };
    Provider::vendor("llamacpp")
        .unwrap()
        .protocol(protocol)
        .base_url(base)
        .body_field("temperature", 0)
        .build()
        .unwrap()
}

const PROTOCOLS: [Protocol; 3] = [Protocol::OpenAiChat, Protocol::OpenAiResponses, Protocol::Anthropic];

fn streaming() -> CallContext {
    CallContext::default().on_delta(|_| {})
}

#[tokio::test]
async fn the_known_answer_streamed_and_whole() {
    let peer = llama();
    for protocol in PROTOCOLS {
        for cx in [CallContext::default(), streaming()] {
            let request = ChatRequest::new("Be brief.", "Hello?");
            let response = provider(&peer, protocol).chat(&request, &cx).await.unwrap();
            assert_eq!(response.message.text(), "Hi.", "{protocol:?}");
            assert_eq!(response.stop, StopReason::End, "{protocol:?}");
            assert_eq!(response.usage.output_tokens, 4, "{protocol:?}");
        }
    }
}

#[tokio::test]
async fn cached_tokens_count_alike_on_every_route() {
    let prompt = ChatRequest::user("Corals are animals. ".repeat(40));
    let mut totals = Vec::new();
    for protocol in PROTOCOLS {
        let peer = llama();
        // The server closes a kept connection now and then: that costs no answer.
        let model = provider(&peer, protocol);
        let chat = async |cx: &CallContext| model.chat(&prompt, cx).await;
        for cx in [CallContext::default(), streaming()] {
            let first = chat(&cx).await.unwrap().usage;
            let second = chat(&cx).await.unwrap().usage;
            assert_eq!(first.input_tokens, second.input_tokens, "{protocol:?}");
            assert_eq!(second.cache_read_tokens, second.input_tokens - 1, "{protocol:?}");
            totals.push(second.input_tokens);
        }
    }
    assert!(totals[0] > 800 && totals.iter().all(|total| *total == totals[0]), "{totals:?}");
}

#[tokio::test]
async fn the_server_counts_before_as_it_counts_after() {
    let peer = llama();
    let request = ChatRequest::new("Be brief.", "How many corals are there?");
    let model = provider(&peer, Protocol::Anthropic);
    let before = model.count_tokens(&request).await.unwrap();
    let after = model.chat(&request, &CallContext::default()).await.unwrap().usage.input_tokens;
    assert_eq!(before, Some(after));
}

#[tokio::test]
async fn the_server_says_which_model_it_has() {
    let peer = llama();
    let builder = Provider::vendor("llamacpp").unwrap().base_url(format!("{}/v1", peer.url));
    let found = builder.discover().await.unwrap();
    let [model] = &found.models[..] else { panic!("{found:?}") };
    let called = Provider::vendor("llamacpp").unwrap().base_url(format!("{}/v1", peer.url));
    let called = called.model(&model.id).body_field("temperature", 0);
    let answer = called.build().unwrap().chat(&ChatRequest::user("Hello?"), &CallContext::default()).await;
    assert_eq!(answer.unwrap().message.text(), "Hi.");
    assert!(model.context_tokens >= 4_096, "{model:?}");
}

#[tokio::test]
async fn a_schema_holds_the_model() {
    let peer = llama();
    let schema = json!({"type": "object", "required": ["name", "tags"], "properties": {
        "name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}, "age": {"type": "integer"}}});
    let mut request = ChatRequest::user("Give me a coral as data.");
    request.output = Some(OutputFormat { name: "coral".into(), schema: Arc::new(schema) });
    for cx in [CallContext::default(), streaming()] {
        let response = provider(&peer, Protocol::OpenAiChat).chat(&request, &cx).await.unwrap();
        let value: Value = serde_json::from_str(&response.message.text()).unwrap();
        assert!(value["name"].is_string() && value["tags"].is_array(), "{value}");
    }
}

#[tokio::test]
async fn a_tool_is_called_with_arguments_that_fit() {
    let peer = llama();
    let mut request = ChatRequest::user("Find it.");
    request.tools = Arc::from([ToolDef {
        name: "find".into(),
        description: "finds".into(),
        input_schema: json!({"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}),
        effect: Default::default(),
    }]);
    request.tool_choice = ToolChoice::Required;
    request.max_output_tokens = Some(200);
    for cx in [CallContext::default(), streaming()] {
        let response = provider(&peer, Protocol::OpenAiChat).chat(&request, &cx).await.unwrap();
        let call = response.message.tool_calls().next().unwrap();
        assert_eq!(call.name, "find");
        assert!(call.arguments["q"].is_string(), "{call:?}");
    }
}

#[tokio::test]
async fn what_does_not_fit_is_refused_as_too_long() {
    let peer = llama();
    for protocol in PROTOCOLS {
        let request = ChatRequest::user("x".repeat(20_000));
        let error = provider(&peer, protocol).chat(&request, &streaming()).await.unwrap_err();
        let fault = matches!(error.kind(), ErrorKind::Model { fault: ModelFault::ContextTooLong, .. });
        assert!(fault, "{protocol:?}: {error:?}");
    }
}

#[tokio::test]
async fn dropping_a_call_stops_the_generation() {
    let peer = llama();
    let provider = Provider::vendor("llamacpp")
        .unwrap()
        .base_url(format!("{}/v1", peer.url))
        .body_field("ignore_eos", true)
        .build()
        .unwrap();
    let mut request = ChatRequest::user("Go on for long.");
    request.max_output_tokens = Some(3_900);
    let began = Arc::new(tokio::sync::Notify::new());
    let sink = began.clone();
    let cx = CallContext::default().on_delta(move |_| sink.notify_one());
    let mut call = provider.chat(&request, &cx);
    tokio::select! {
        outcome = &mut call => panic!("{outcome:?}"),
        () = began.notified() => drop(call),
    }
    // The server looks at its clients between two tokens, so that it is done at once or never.
    let decoded = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let slot = slots(&peer.url).await[0].clone();
            if slot["is_processing"] == false {
                break slot["next_token"][0]["n_decoded"].as_u64().unwrap();
            }
        }
    })
    .await
    .unwrap();
    assert!(decoded < 3_900, "the server went on to its limit");
}

/// What the server says of its slots.
async fn slots(url: &str) -> Value {
    let address = url.trim_start_matches("http://");
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET /slots HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}
