//! What goes wrong on the wire, for every protocol alike.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use coral_core::{
    AgentSpec, Brief, CallContext, ChatModel, ChatRequest, Delta, Error, ErrorClass, ErrorKind, GraphData,
    ModelFault, Program, PromptAgent, PromptTemplate, Runner, StepData, StepKind, Team,
};
use coral_llm::{Provider, Timeouts};
use serde_json::json;

use crate::server::{Answer, Server};

/// What a listener heard.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<Delta>>>);

impl Heard {
    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap().iter().map(ToString::to_string).collect()
    }

    pub(crate) fn arguments(&self, wanted: usize) -> String {
        let deltas = self.0.lock().unwrap();
        let fragments = deltas.iter().filter_map(|delta| match delta {
            Delta::ToolArguments { index, fragment } if *index == wanted => Some(fragment.as_str()),
            _ => None,
        });
        fragments.collect()
    }
}

/// A context that listens, and what it hears.
pub(crate) fn listening() -> (CallContext, Heard) {
    let heard = Heard::default();
    let sink = heard.clone();
    (CallContext::default().on_delta(move |delta| sink.0.lock().unwrap().push(delta.clone())), heard)
}

pub(crate) const VENDORS: [&str; 5] = ["anthropic", "openai", "openai_responses", "gemini", "ollama"];

/// The beginning of a stream, and an error in the middle of it.
fn stream(vendor: &str) -> (&'static str, &'static str) {
    match vendor {
        "anthropic" => (
            "data: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"usage\":{\"input_tokens\":1}}}\n\n\
             data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"half\"}}\n\n",
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n",
        ),
        "openai" => (
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"}}]}\n\n",
            "data: {\"error\":{\"code\":503,\"type\":\"overloaded\",\"message\":\"Overloaded\"}}\n\n",
        ),
        "openai_responses" => (
            "data: {\"type\":\"response.output_text.delta\",\"delta\":\"half\"}\n\n",
            "data: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\"error\":{\"code\":\"server_is_overloaded\",\"message\":\"Overloaded\"}}}\n\n",
        ),
        "gemini" => (
            "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"half\"}]}}]}\n\n",
            "data: {\"error\":{\"code\":503,\"status\":\"UNAVAILABLE\",\"message\":\"Overloaded\"}}\n\n",
        ),
        _ => (
            "{\"message\":{\"content\":\"half\"},\"done\":false}\n",
            "{\"error\":\"Overloaded: server busy, maximum pending requests exceeded\"}\n",
        ),
    }
}

/// The streams of a vendor in its framing.
fn streamed(vendor: &str, text: &str) -> Answer {
    if vendor == "ollama" { Answer::lines(text) } else { Answer::sse(text) }
}

/// `data` as one event of a vendor's stream.
fn event(vendor: &str, data: &str) -> Answer {
    match vendor {
        "ollama" => Answer::lines(&format!("{data}\n")),
        _ => Answer::sse(&format!("data: {data}\n\n")),
    }
}

fn provider(vendor: &str, url: &str) -> Provider {
    Provider::vendor(vendor)
        .unwrap()
        .base_url(url)
        .key("sk-secret")
        .model("m")
        .timeouts(Timeouts {
            first_byte: Duration::from_secs(20),
            idle: Duration::from_millis(200),
            ..Timeouts::default()
        })
        .build()
        .unwrap()
}

#[track_caller]
fn check(error: &Error, expected: ModelFault) {
    assert!(matches!(error.kind(), ErrorKind::Model { fault, .. } if *fault == expected), "{error:?}");
}

async fn fails(vendor: &str, answer: Answer) -> Error {
    let server = Server::start([answer]).await;
    let error =
        provider(vendor, &server.url).chat(&ChatRequest::user("?"), &listening().0).await.unwrap_err();
    assert_eq!(server.seen().len(), 1, "nothing is repeated here");
    error
}

#[tokio::test]
async fn a_stream_without_its_end_mark_is_truncated() {
    for vendor in VENDORS {
        let error = fails(vendor, streamed(vendor, stream(vendor).0)).await;
        check(&error, ModelFault::Truncated);
        assert_eq!(error.class(), ErrorClass::System, "what was paid for is not repeated blindly");
        let nothing = fails(vendor, streamed(vendor, "")).await;
        check(&nothing, ModelFault::Provider);
        assert_eq!(nothing.class(), ErrorClass::Transient, "of this nothing was heard or paid for");
        let half = if vendor == "ollama" { "{\"mes" } else { "data: {\"typ" };
        let cut = streamed(vendor, &format!("{}{half}", stream(vendor).0));
        check(&fails(vendor, cut).await, ModelFault::Truncated);
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_is_truncated() {
    for vendor in VENDORS {
        check(&fails(vendor, streamed(vendor, stream(vendor).0).cut()).await, ModelFault::Truncated);
    }
}

#[tokio::test]
async fn an_error_inside_a_stream_is_the_error_of_its_status_until_something_was_heard() {
    for vendor in VENDORS {
        let (begin, error) = stream(vendor);
        let before = fails(vendor, streamed(vendor, error)).await;
        check(&before, ModelFault::Overloaded);
        assert_eq!(before.class(), ErrorClass::Transient, "{vendor}");
        let after = fails(vendor, streamed(vendor, &format!("{begin}{error}"))).await;
        check(&after, ModelFault::Truncated);
        assert_eq!(after.class(), ErrorClass::System, "{vendor}: what was heard is not bought again");
        assert!(
            before.to_string().contains("Overloaded") && after.to_string().contains("Overloaded"),
            "{after}"
        );
    }
}

/// A model that is tried again by the engine's policy says so to no listener twice.
#[tokio::test]
async fn a_run_never_hears_an_answer_begin_twice() {
    for vendor in VENDORS {
        let (begin, error) = stream(vendor);
        let broken = streamed(vendor, &format!("{begin}{error}"));
        let server = Server::start([broken.clone(), broken]).await;
        let prompt = PromptTemplate { task_template: "Go.".into(), ..Default::default() };
        let agent = PromptAgent::new(AgentSpec { prompt, ..AgentSpec::new("writer", "Writer") }).unwrap();
        let graph = GraphData {
            name: "once".into(),
            steps: vec![StepData::new("write", StepKind::Agent("writer".into()))],
            ..Default::default()
        };
        let program = Program::from_graph(graph, &Team::new().with_agent(agent)).unwrap();
        let heard = Arc::new(Mutex::new(String::new()));
        let sink = heard.clone();
        let runner = Runner::builder()
            .model(provider(vendor, &server.url))
            .on_delta(move |_, delta| sink.lock().unwrap().push_str(&delta.to_string()))
            .build();
        let run = runner.start(&program, Brief { text: "write".into(), ..Default::default() }).await.unwrap();
        run.output().await.unwrap_err();
        assert_eq!((server.seen().len(), heard.lock().unwrap().as_str()), (1, "half"), "{vendor}");
    }
}

#[tokio::test]
async fn a_stream_is_read_whatever_its_type_is_said_to_be() {
    let stream = |vendor: &str| match vendor {
        "anthropic" => {
            "data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"text\":\"hello\"}}\n\ndata: {\"type\":\"message_stop\"}\n\n"
        }
        "openai" => "data: {\"choices\":[{\"delta\":{\"content\":\"hello\"}}]}\n\ndata: [DONE]\n\n",
        "openai_responses" => {
            "data: {\"type\":\"response.output_text.delta\",\"delta\":\"hello\"}\n\ndata: {\"type\":\"response.completed\",\"response\":{}}\n\n"
        }
        "gemini" => {
            "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"hello\"}]},\"finishReason\":\"STOP\"}]}\n\n"
        }
        _ => "{\"message\":{\"content\":\"hello\"}}\n{\"done\":true}\n",
    };
    for vendor in VENDORS {
        for content_type in ["", "text/plain; charset=utf-8", "application/octet-stream"] {
            let server = Server::start([streamed(vendor, stream(vendor)).of_type(content_type)]).await;
            let (cx, heard) = listening();
            provider(vendor, &server.url).chat(&ChatRequest::user("?"), &cx).await.unwrap();
            assert_eq!(heard.text(), "hello", "{vendor} `{content_type}`");
        }
    }
    // An answer that comes whole says so itself.
    let body = json!({"choices": [{"finish_reason": "stop", "message": {"content": "hello"}}]});
    let server = Server::start([Answer::json(&body).of_type("text/plain")]).await;
    let answer = provider("openai", &server.url).chat(&ChatRequest::user("?"), &listening().0).await.unwrap();
    assert_eq!(answer.message.text(), "hello");
}

#[tokio::test]
async fn the_last_event_is_heard_without_a_blank_line_behind_it() {
    let last =
        "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"hello\"}]},\"finishReason\":\"STOP\"}]}";
    let server = Server::start([Answer::sse(last)]).await;
    let (cx, heard) = listening();
    provider("gemini", &server.url).chat(&ChatRequest::user("?"), &cx).await.unwrap();
    assert_eq!(heard.text(), "hello");
}

#[tokio::test]
async fn what_is_not_the_protocol_is_malformed() {
    for vendor in VENDORS {
        let mistyped = r#"{"choices":3,"type":7,"candidates":3,"message":3}"#;
        check(&fails(vendor, event(vendor, mistyped)).await, ModelFault::Malformed);
        check(&fails(vendor, event(vendor, "\u{fffd}not json")).await, ModelFault::Malformed);
        check(&fails(vendor, Answer::json(&json!([1]))).await, ModelFault::Malformed);
        check(&fails(vendor, Answer::json(&json!({}))).await, ModelFault::Malformed);
    }
}

#[tokio::test]
async fn a_silent_stream_times_out_and_its_connection_is_let_go() {
    for vendor in VENDORS {
        let server = Server::start([streamed(vendor, stream(vendor).0).silent()]).await;
        let error =
            provider(vendor, &server.url).chat(&ChatRequest::user("?"), &listening().0).await.unwrap_err();
        check(&error, ModelFault::Timeout);
        server.client_gone().await;
    }
}

#[tokio::test]
async fn dropping_the_call_stops_it() {
    for vendor in VENDORS {
        let server = Server::start([streamed(vendor, stream(vendor).0).silent()]).await;
        let provider = Provider::vendor(vendor).unwrap().base_url(&server.url).model("m").build().unwrap();
        let heard = Arc::new(tokio::sync::Notify::new());
        let sink = heard.clone();
        let cx = CallContext::default().on_delta(move |_| sink.notify_one());
        let request = ChatRequest::user("?");
        let mut call = provider.chat(&request, &cx);
        tokio::select! {
            outcome = &mut call => panic!("{outcome:?}"),
            () = heard.notified() => drop(call),
        }
        server.client_gone().await;
    }
}

#[tokio::test]
async fn the_whole_call_keeps_to_its_time() {
    let server = Server::start([Answer::sse(stream("openai").0).silent()]).await;
    let provider = Provider::vendor("openai").unwrap().base_url(&server.url).model("m").build().unwrap();
    let cx = CallContext::default().with_timeout_ms(100);
    let error = provider.chat(&ChatRequest::user("?"), &cx).await.unwrap_err();
    check(&error, ModelFault::Timeout);
}

#[tokio::test]
async fn statuses_become_faults_with_their_hints() {
    for vendor in VENDORS {
        let body = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "slow down, sk-secret"}});
        let error =
            fails(vendor, Answer::error("429 Too Many Requests", &body).header("retry-after", "7")).await;
        check(&error, ModelFault::RateLimited);
        assert_eq!((error.class(), error.retry_after_ms()), (ErrorClass::Transient, Some(7_000)));
        assert!(!format!("{error:?}").contains("sk-secret"), "{error:?}");
        check(&fails(vendor, Answer::error("529 Overloaded", &json!({}))).await, ModelFault::Overloaded);
        check(
            &fails(vendor, Answer::error("401 Unauthorized", &json!({}))).await,
            ModelFault::Authentication,
        );
        let redirect =
            Answer::error("307 Temporary Redirect", &json!({})).header("location", "http://127.0.0.1:9/");
        check(&fails(vendor, redirect).await, ModelFault::InvalidRequest);
    }
}

#[tokio::test]
async fn nobody_there_is_one_clear_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for vendor in VENDORS {
        let error = provider(vendor, &url).chat(&ChatRequest::user("?"), &listening().0).await.unwrap_err();
        check(&error, ModelFault::Connect);
        assert_eq!(error.class(), ErrorClass::Transient);
        let text = error.to_string();
        assert!(text.contains(url.trim_start_matches("http://")) && text.contains("refused"), "{text}");
    }
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn a_server_without_tls_behind_https_is_one_clear_error() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = provider("openai", &url).chat(&ChatRequest::user("?"), &listening().0).await.unwrap_err();
    check(&error, ModelFault::Connect);
    assert!(error.to_string().contains("no connection to `127.0.0.1:"), "{error}");
}

#[cfg(not(feature = "tls"))]
#[tokio::test]
async fn https_without_tls_is_refused_when_it_is_set_up() {
    let error = Provider::vendor("openai").unwrap().key("k").build().unwrap_err().to_string();
    assert!(error.contains("needs HTTPS") && error.contains("feature `tls`"), "{error}");
}

#[tokio::test]
async fn an_answer_that_comes_whole_is_still_heard() {
    let body = json!({"choices": [{"finish_reason": "stop", "message": {"content": "hello"}}]});
    let server = Server::start([Answer::json(&body)]).await;
    let (cx, heard) = listening();
    provider("openai", &server.url).chat(&ChatRequest::user("?"), &cx).await.unwrap();
    assert_eq!(heard.text(), "hello");
}
