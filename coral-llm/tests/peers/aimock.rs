//! How `aimock` fails, on every protocol. What it answers is recorded, see `recordings`.

use std::sync::LazyLock;

use coral_core::{CallContext, ChatModel, ChatRequest, Error, ErrorKind, ModelFault};
use coral_llm::Provider;

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
async fn its_models_are_found() {
    // It has no list in Gemini's words.
    for (vendor, path) in VENDORS.into_iter().filter(|(vendor, _)| *vendor != "gemini") {
        let builder = Provider::vendor(vendor).unwrap().base_url(format!("{}{path}", AIMOCK.url)).key("k");
        let found = builder.discover().await.unwrap();
        assert!(!found.models.is_empty(), "{vendor}");
        assert!(
            found.models.iter().all(|model| model.provider == vendor && !model.id.is_empty()),
            "{vendor}"
        );
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
