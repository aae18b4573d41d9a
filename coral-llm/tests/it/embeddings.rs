//! Embeddings over the wires of OpenAI and Ollama.

use coral_core::{ErrorKind, ModelFault, Usd};
use coral_llm::{Embedder, HttpEmbedder};
use serde_json::json;

use crate::server::{Answer, Server};

#[tokio::test]
async fn openai_and_ollama_are_asked_in_their_own_words() {
    let openai = json!({
        "object": "list", "model": "m", "usage": {"prompt_tokens": 4, "total_tokens": 4},
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
    });
    let ollama = json!({"model": "m", "embeddings": [[1.0, 0.0, 2.0]], "prompt_eval_count": 7});
    let server = Server::start([Answer::json(&openai), Answer::json(&ollama)]).await;

    let embedder = HttpEmbedder::openai(&format!("{}/v1/", server.url), "m").unwrap();
    let found = embedder.key("k-1").unwrap().price(0.5).embed("reef").await.unwrap();
    assert_eq!(
        (found.vector, found.tokens, found.cost),
        (vec![0.5, -0.25], 4, Some(Usd::from_dollars(2e-6)))
    );
    let found = HttpEmbedder::ollama(&server.url, "m").unwrap().embed("reef").await.unwrap();
    assert_eq!((found.vector, found.tokens, found.cost), (vec![1.0, 0.0, 2.0], 7, None));

    let seen = server.seen();
    assert!(
        seen[0].head.starts_with("post /v1/embeddings ")
            && seen[0].head.contains("authorization: bearer k-1")
    );
    assert_eq!(seen[0].body, json!({"model": "m", "input": "reef", "encoding_format": "float"}));
    assert!(seen[1].head.starts_with("post /api/embed ") && !seen[1].head.contains("authorization"));
    assert_eq!(seen[1].body, json!({"model": "m", "input": "reef"}));
}

#[tokio::test]
async fn no_error_shows_the_key() {
    let told = json!({"error": {"message": "the key sk-of-the-test is wrong"}});
    let server = Server::start([Answer::error("401 Unauthorized", &told)]).await;
    let embedder = HttpEmbedder::openai(&server.url, "m").unwrap().key("sk-of-the-test").unwrap();
    let error = embedder.embed("reef").await.unwrap_err();
    assert!(error.to_string().contains("the key [secret] is wrong"), "{error}");
    assert!(!format!("{error:?}").contains("sk-of-the-test"), "{error:?}");
}

#[tokio::test]
async fn bad_answers_are_typed_errors() {
    let server = Server::start([
        Answer::error("429 Too Many Requests", &json!({"error": {"message": "slow down"}}))
            .header("retry-after", "7"),
        Answer::json(&json!({"data": []})),
        Answer::json(&json!({"data": [{"embedding": [0.0, 0.0]}]})),
        Answer::json(&json!({"data": "none"})),
    ])
    .await;
    let embedder = HttpEmbedder::openai(&server.url, "m").unwrap().key("secret").unwrap();
    for expected in
        [ModelFault::RateLimited, ModelFault::Malformed, ModelFault::Malformed, ModelFault::Malformed]
    {
        let error = embedder.embed("reef").await.unwrap_err();
        let ErrorKind::Model { fault, .. } = error.kind() else { panic!("{error}") };
        assert_eq!(*fault, expected, "{error}");
        assert_eq!(error.retry_after_ms(), (expected == ModelFault::RateLimited).then_some(7_000));
    }
    assert!(!format!("{embedder:?}").contains("secret"));
    assert!(HttpEmbedder::openai("localhost", "m").is_err());
}
