use std::sync::Arc;

use coral_core::{CallContext, ChatModel, ChatRequest, ErrorKind, ModelFault};
use coral_llm::{Cassette, HttpTransport, Provider, Recorder, Transport};
use serde_json::json;

use crate::server::{Answer, Server};
use crate::wire_faults::listening;

fn provider(url: &str, transport: Arc<dyn Transport>) -> Provider {
    Provider::vendor("openai")
        .unwrap()
        .base_url(url)
        .key("sk-secret")
        .model("m")
        .transport(transport)
        .build()
        .unwrap()
}

fn file(name: &str) -> std::path::PathBuf {
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    directory.join(name)
}

#[tokio::test]
async fn what_was_recorded_is_played_again_without_its_keys() {
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"Grüße sk-secret\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let begun = "data: {\"choices\":[{\"delta\":{\"content\":\"Gr\"}}]}\n\ndata: {";
    let limited = Answer::error("429 Too Many Requests", &json!({"error": {"message": "slow down"}}))
        .header("retry-after", "7");
    let server = Server::start([Answer::sse(stream), limited, Answer::sse(begun).cut()]).await;
    let recorder = Recorder::new(Arc::new(HttpTransport::for_url(&server.url).unwrap()));
    let live = provider(&server.url, Arc::new(recorder.clone()));
    let mut outcomes = Vec::new();
    for question in ["one with sk-secret", "two", "three"] {
        outcomes.push(live.chat(&ChatRequest::user(question), &listening().0).await);
    }
    let path = file("recorded.json");
    recorder.cassette().save(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("sk-secret") && text.contains("[scrubbed]"), "{text}");

    let cassette = Arc::new(Cassette::load(&path).unwrap());
    let played = provider("http://other.invalid", cassette.clone());
    // The order of different requests does not matter.
    let two = played.chat(&ChatRequest::user("two"), &listening().0).await.unwrap_err();
    assert_eq!(two.retry_after_ms(), outcomes[1].as_ref().unwrap_err().retry_after_ms());
    assert_eq!(two.retry_after_ms(), Some(7_000));
    let three = played.chat(&ChatRequest::user("three"), &listening().0).await.unwrap_err();
    assert!(matches!(three.kind(), ErrorKind::Model { fault: ModelFault::Truncated, .. }), "{three:?}");
    let (cx, heard) = listening();
    let one = played.chat(&ChatRequest::user("one with sk-secret"), &cx).await.unwrap();
    assert_eq!(
        (one.message.text().as_str(), heard.text().as_str()),
        ("Grüße [scrubbed]", "Grüße [scrubbed]")
    );
    assert_eq!(cassette.left(), 0);

    let again = played.chat(&ChatRequest::user("two"), &CallContext::default()).await.unwrap_err();
    assert!(
        again.to_string().contains("no exchange is left on the cassette for POST /chat/completions"),
        "{again}"
    );
}

#[tokio::test]
async fn an_answer_that_was_not_read_to_its_end_is_recorded_as_far_as_it_was_read() {
    let server = Server::start([Answer::sse("data: not json\n\n").silent()]).await;
    let recorder = Recorder::new(Arc::new(HttpTransport::for_url(&server.url).unwrap()));
    provider(&server.url, Arc::new(recorder.clone()))
        .chat(&ChatRequest::user("?"), &listening().0)
        .await
        .unwrap_err();
    let path = file("dropped.json");
    recorder.cassette().save(&path).unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().contains("data: not json"));
}

#[tokio::test]
async fn only_what_can_be_a_secret_is_taken_out_and_limits_are_kept() {
    let limited = Answer::error("429 Too Many Requests", &json!({"error": {"message": "1 true sk-s"}}))
        .header("x-ratelimit-remaining-requests", "0")
        .header("x-ratelimit-reset-requests", "11s");
    let server = Server::start([limited]).await;
    let recorder = Recorder::new(Arc::new(HttpTransport::for_url(&server.url).unwrap()));
    let builder = Provider::vendor("openai").unwrap().base_url(&server.url).key("sk-s").model("m");
    let flags = builder.header("x-flag", "1").header("x-other", "true");
    let live = flags.transport(Arc::new(recorder.clone())).build().unwrap();
    live.chat(&ChatRequest::user("1 or 11?"), &CallContext::default()).await.unwrap_err();
    let path = file("flags.json");
    recorder.cassette().save(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("1 or 11?") && text.contains("1 true [scrubbed]"), "{text}");
    let played = provider("http://other.invalid", Arc::new(Cassette::load(&path).unwrap()));
    let error = played.chat(&ChatRequest::user("1 or 11?"), &CallContext::default()).await.unwrap_err();
    assert_eq!(error.retry_after_ms(), Some(11_000));
}

#[tokio::test]
async fn a_file_that_is_no_cassette_is_refused() {
    let path = file("not_a_cassette.json");
    for text in ["", "{}", r#"{"format": 2, "exchanges": []}"#] {
        std::fs::write(&path, text).unwrap();
        let error = Cassette::load(&path).unwrap_err().to_string();
        assert!(error.contains("not_a_cassette.json: cassette is not valid"), "{error}");
    }
    assert!(matches!(Cassette::load(file("missing.json")).unwrap_err().kind(), ErrorKind::Storage { .. }));
}
