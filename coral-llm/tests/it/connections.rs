//! How connections are made, kept and let go.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coral_core::{CallContext, ChatModel, ChatRequest, Error, ErrorKind, ModelFault};
use coral_llm::{Provider, Timeouts};
use serde_json::json;

use crate::server::read_request;

fn provider(url: &str, timeouts: Timeouts) -> Provider {
    Provider::openai_compatible(url).model("m").timeouts(timeouts).build().unwrap()
}

#[track_caller]
fn check(error: &Error, expected: ModelFault) {
    assert!(matches!(error.kind(), ErrorKind::Model { fault, .. } if *fault == expected), "{error:?}");
}

/// A server that says it keeps its connections, answers `answers` requests on each, and lets go of it when the next one
/// comes. It gives its address, and the connection of each request that it read.
async fn forgetful(answers: usize) -> (String, Arc<Mutex<Vec<usize>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    tokio::spawn(async move {
        let body = json!({"choices": [{"finish_reason": "stop", "message": {"content": "ok"}}]}).to_string();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        for connection in 0.. {
            let Ok((mut socket, _)) = listener.accept().await else { return };
            let (log, answer) = (log.clone(), answer.clone());
            tokio::spawn(async move {
                let mut buffer = Vec::new();
                for turn in 0.. {
                    if read_request(&mut socket, &mut buffer).await.is_none() {
                        return;
                    }
                    log.lock().unwrap().push(connection);
                    if turn == answers {
                        return;
                    }
                    tokio::io::AsyncWriteExt::write_all(&mut socket, answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (url, seen)
}

#[tokio::test]
async fn a_request_on_a_kept_connection_that_ends_is_sent_once_more_on_a_new_one() {
    let (url, seen) = forgetful(1).await;
    let model = provider(&url, Timeouts::default());
    for _ in 0..4 {
        let answer = model.chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap();
        assert_eq!(answer.message.text(), "ok");
    }
    // The second call meets the end of the first one's connection, and so on: no request is sent a third time.
    let seen = seen.lock().unwrap().clone();
    let most = (0..8).map(|connection| seen.iter().filter(|at| **at == connection).count()).max();
    assert!(seen.len() > 4 && seen.len() <= 7 && most == Some(2), "{seen:?}");
}

#[tokio::test]
async fn a_request_on_a_new_connection_that_ends_is_not_sent_again() {
    let (url, seen) = forgetful(0).await;
    let model = provider(&url, Timeouts::default());
    let error = model.chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap_err();
    check(&error, ModelFault::Truncated);
    assert_eq!(*seen.lock().unwrap(), [0], "what the server did with it is unknown");
}

#[tokio::test]
async fn a_kept_connection_says_nothing_of_a_new_one_beside_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let model =
        Arc::new(provider(&format!("http://{}", listener.local_addr().unwrap()), Timeouts::default()));
    let asks = || {
        let model = model.clone();
        tokio::spawn(async move { model.chat(&ChatRequest::user("?"), &CallContext::default()).await })
    };
    let body = json!({"choices": [{"finish_reason": "stop", "message": {"content": "ok"}}]}).to_string();
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let (first, (mut kept, _)) = (asks(), listener.accept().await.unwrap());
    let mut buffer = Vec::new();
    read_request(&mut kept, &mut buffer).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut kept, answer.as_bytes()).await.unwrap();
    first.await.unwrap().unwrap();
    // The kept connection is in use, so the third call makes one of its own, and that ends without an answer.
    let second = asks();
    read_request(&mut kept, &mut buffer).await.unwrap();
    let (third, (mut new, _)) = (asks(), listener.accept().await.unwrap());
    read_request(&mut new, &mut Vec::new()).await.unwrap();
    drop((new, listener));
    let error = third.await.unwrap().unwrap_err();
    check(&error, ModelFault::Truncated);
    assert!(error.to_string().contains("went away before it answered"), "{error}");
    tokio::io::AsyncWriteExt::write_all(&mut kept, answer.as_bytes()).await.unwrap();
    second.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_that_is_not_made_in_time_is_one_clear_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Nobody accepts, and the queue of those who wait holds one: the next one gets no answer.
    rustix::net::listen(&listener, 0).unwrap();
    let _waits = TcpStream::connect(address).unwrap();
    let timeouts = Timeouts { connect: Duration::from_millis(200), ..Timeouts::default() };
    let model = provider(&format!("http://{address}"), timeouts);
    let error = model.chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap_err();
    check(&error, ModelFault::Connect);
    assert!(error.is_transient() && error.to_string().contains("no connection to"), "{error}");
}

#[tokio::test]
async fn an_answer_that_does_not_begin_in_time_is_one_clear_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let timeouts = Timeouts { first_byte: Duration::from_millis(200), ..Timeouts::default() };
    let model = provider(&url, timeouts);
    let error = model.chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap_err();
    check(&error, ModelFault::Timeout);
    assert!(!error.is_transient() && error.to_string().contains("no answer came within 0.2 s"), "{error}");
    let (mut socket, _) = listener.accept().unwrap();
    assert!(socket.flush().is_ok(), "the request was sent");
}
