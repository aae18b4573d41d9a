//! What providers are asked beside calls: how long a request is, and which models there are.

use std::sync::Arc;

use coral_core::{
    CallContext, ChatModel, ChatRequest, ErrorKind, Message, ModelFault, ModelInfo, Price, Tier, ToolDef,
    Usage, Usd,
};
use coral_llm::{CountTokens, Dialect, Fitted, Overflow, Protocol, Provider, ScriptedModel};
use serde_json::json;

use crate::server::{Answer, Server};

fn request() -> ChatRequest {
    let mut request = ChatRequest::new("Be brief.", "Who?");
    request.max_output_tokens = Some(50);
    request.stop = vec!["END".into()];
    let input_schema = json!({"type": "object"});
    let tool = ToolDef {
        name: "find".into(),
        description: "finds".into(),
        input_schema,
        effect: Default::default(),
    };
    request.tools = Arc::from([tool]);
    request
}

fn provider(protocol: Protocol, url: &str) -> Provider {
    Provider::openai_compatible(url).protocol(protocol).key("secret-key").model("m").build().unwrap()
}

#[tokio::test]
async fn providers_count_tokens_of_all_that_is_input() {
    for (protocol, path, answer) in [
        (Protocol::Anthropic, "post /v1/messages/count_tokens ", json!({"input_tokens": 42})),
        (
            Protocol::OpenAiResponses,
            "post /responses/input_tokens ",
            json!({"object": "response.input_tokens", "input_tokens": 42}),
        ),
        (Protocol::Gemini, "post /models/m:counttokens ", json!({"totalTokens": 42})),
    ] {
        let server = Server::start([Answer::json(&answer)]).await;
        let model = provider(protocol, &server.url);
        assert_eq!(model.count_tokens(&request()).await.unwrap(), Some(42), "{protocol:?}");
        let seen = server.seen().remove(0);
        assert!(seen.head.starts_with(path) && seen.head.contains("secret-key"), "{}", seen.head);
        let called = protocol.encode(&request(), "m", false, &Dialect::default()).unwrap();
        let called: serde_json::Value = serde_json::from_slice(&called.body).unwrap();
        let counted = seen.body.get("generateContentRequest").unwrap_or(&seen.body);
        for field in ["messages", "system", "tools", "input", "instructions", "contents", "systemInstruction"]
        {
            assert_eq!(counted.get(field), called.get(field), "{protocol:?}: {field}");
        }
        let output = ["max_tokens", "max_output_tokens", "stop_sequences", "store", "stream"];
        assert!(output.iter().all(|field| seen.body.get(field).is_none()), "{protocol:?}: {}", seen.body);
    }
}

#[tokio::test]
async fn who_does_not_count_says_so_and_failures_are_errors() {
    for protocol in [Protocol::OpenAiChat, Protocol::Ollama] {
        assert_eq!(provider(protocol, "http://127.0.0.1:9").count_tokens(&request()).await.unwrap(), None);
    }
    let answers = [
        Answer::error("404 Not Found", &json!({"error": {"message": "no such path for secret-key"}})),
        Answer::json(&json!({"tokens": 1})),
    ];
    let server = Server::start(answers).await;
    let model = provider(Protocol::Anthropic, &server.url);
    let refused = model.count_tokens(&request()).await.unwrap_err();
    assert!(refused.to_string().contains("no such path") && !refused.to_string().contains("secret-key"));
    assert!(model.count_tokens(&request()).await.unwrap_err().to_string().contains("input_tokens"));
}

#[tokio::test]
async fn what_fits_as_its_provider_counts_stays_whole() {
    let server = Server::start([50, 2_000].map(|count| Answer::json(&json!({"input_tokens": count})))).await;
    let counter = Arc::new(provider(Protocol::Anthropic, &server.url));
    let mut info = ModelInfo::default();
    info.context_tokens = Some(5_000);
    let scripted = Arc::new(ScriptedModel::new().info(info).otherwise(|_| "x".to_owned()));
    let model = Fitted::new(scripted.clone(), Overflow::Drop).asking(counter);
    let mut long = ChatRequest::new("Be brief.", "Who?");
    long.messages.extend([Message::assistant("0123456789".repeat(300)), Message::user("Go on.")]);
    for kept in [4, 4] {
        model.chat(&long, &CallContext::default()).await.unwrap();
        let asked = scripted.requests().pop().unwrap();
        let whole = asked.messages == long.messages;
        assert_eq!((asked.messages.len(), whole), (kept, server.seen().len() == 1));
    }
}

#[tokio::test]
async fn the_context_is_that_of_the_model_that_is_asked_for() {
    let model = Provider::vendor("groq").unwrap().base_url("http://127.0.0.1:9").key("k").model("new");
    let model = Fitted::new(model.build().unwrap(), Overflow::Refuse);
    let mut long = ChatRequest::user("0123456789".repeat(60_000));
    long.model = Some("groq/openai/gpt-oss-20b".into());
    let error = model.chat(&long, &CallContext::default()).await.unwrap_err();
    let refused = matches!(error.kind(), ErrorKind::Model { fault: ModelFault::ContextTooLong, .. });
    assert!(refused, "{error}");
}

#[tokio::test]
async fn local_servers_say_which_models_they_have() {
    let list = json!({"object": "list", "data": [
        {"id": "coral-7b", "max_model_len": 32_768}, {"id": "reef", "meta": {"n_ctx": 8_192, "n_ctx_train": 99_999}},
        {"id": "plain"}, {"id": "plain"}, {"other": 1}
    ]});
    let server = Server::start([Answer::json(&list)]).await;
    let found = Provider::openai_compatible(&server.url).key("k").discover().await.unwrap();
    assert!(server.seen()[0].head.starts_with("get /models "));
    let contexts: Vec<_> = found.models.iter().map(|model| (model.name(), model.context_tokens)).collect();
    let expected = [("coral-7b", 32_768), ("reef", 8_192), ("plain", 4_096)];
    assert_eq!(contexts, expected.map(|(id, tokens)| (format!("openai_compatible/{id}"), tokens)));
    let free = Price { input: 0.0, output: 0.0, cache_read: 0.0, cache_write: 0.0 };
    assert!(found.models.iter().all(|model| model.price == Some(free) && model.tier == Tier::Basic));

    let tags =
        json!({"models": [{"name": "llama:8b", "model": "llama:8b"}, {"name": "gone", "model": "gone"}]});
    let shown = json!({"capabilities": ["completion", "tools", "thinking", "new"]});
    let gone = Answer::error("404 Not Found", &json!({"error": "model not found"}));
    let server = Server::start([Answer::json(&tags), Answer::json(&shown), gone]).await;
    let found = Provider::vendor("ollama").unwrap().base_url(&server.url).discover().await.unwrap();
    let seen = server.seen();
    assert!(seen[0].head.starts_with("get /api/tags ") && seen[1].head.starts_with("post /api/show "));
    assert_eq!(seen[1].body, json!({"model": "llama:8b"}));
    let can = |name: &str| found.find(name).unwrap().capabilities.iter().cloned().collect::<Vec<_>>();
    assert_eq!(can("ollama/llama:8b"), ["reasoning", "structured", "tools"]);
    assert_eq!(can("ollama/gone"), ["structured"]);

    let server = Server::start([Answer::json(&json!({"hello": 1}))]).await;
    let error = Provider::openai_compatible(&server.url).discover().await.unwrap_err();
    assert!(error.to_string().contains("expected a list of models"), "{error}");
}

#[tokio::test]
async fn what_is_kept_for_long_is_paid_for_as_that() {
    let answer = json!({"id": "m", "model": "claude-haiku-5-5", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "x"}],
        "usage": {"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 30_000,
            "cache_creation": {"ephemeral_5m_input_tokens": 10_000, "ephemeral_1h_input_tokens": 20_000}}});
    let server = Server::start([Answer::json(&answer)]).await;
    let builder = Provider::vendor("anthropic").unwrap().base_url(&server.url).key("k");
    let model = builder.model("claude-haiku-5-5").build().unwrap();
    let answer = model.chat(&ChatRequest::user("hi"), &CallContext::default()).await.unwrap();
    let Usage { cache_write_tokens, long_cache_write_tokens, .. } = answer.usage;
    assert_eq!((cache_write_tokens, long_cache_write_tokens), (30_000, 20_000));
    // 0.125 and 0.2 dollars for a million.
    assert_eq!(answer.cost, Some(Usd::from_dollars(0.00125 + 0.004)));
}

#[tokio::test]
async fn usage_in_another_form_makes_no_answer_unreadable() {
    let odd = json!({"choices": [{"finish_reason": "stop", "message": {"content": "x"}}],
        "usage": {"prompt_tokens": 3, "prompt_tokens_details": 7, "completion_tokens_details": "none"}});
    let odder = json!({"choices": [{"finish_reason": "stop", "message": {"content": "x"}}], "usage": "none"});
    let server = Server::start([Answer::json(&odd), Answer::json(&odder)]).await;
    let model = provider(Protocol::OpenAiChat, &server.url);
    for input_tokens in [3, 0] {
        let answer = model.chat(&ChatRequest::user("hi"), &CallContext::default()).await.unwrap();
        assert_eq!(answer.usage, Usage { input_tokens, ..Usage::default() });
    }
}
