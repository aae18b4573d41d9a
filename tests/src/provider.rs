//! A model provider on loopback that counts what it is asked, and can be cut off.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use coral_core::{CallContext, ChatModel, sha256_hex};
use coral_llm::OfflineModel;
use futures_util::stream::{self, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::wire::Wire;

/// One call as the provider saw it.
#[derive(Clone, Debug)]
pub struct Call {
    /// From 1, in the order in which calls came.
    pub number: usize,
    pub wire: Wire,
    /// SHA-256 of the request's body: the same for the same question.
    pub digest: String,
    /// The id of the answer, which the client records.
    pub id: String,
    pub streamed: bool,
    /// Whether all of the answer was handed to the connection.
    pub answered: bool,
}

/// After which call the provider goes silent; from then on it answers nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// When this call was received, before any answer.
    Received(usize),
    /// When half of this call's answer was sent.
    Midway(usize),
    /// When this call was answered.
    Answered(usize),
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    cut: Option<Cut>,
}

struct Shared {
    state: Mutex<State>,
    /// Whether the cut was reached. Held calls hang until the next cut is set.
    reached: watch::Sender<bool>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes silent here if the cut says so: never comes back.
    async fn pass(&self, holds: impl Fn(Cut) -> bool, reaches: impl Fn(Cut) -> bool) {
        let cut = self.state().cut;
        let Some(cut) = cut else { return };
        if reaches(cut) {
            self.reached.send_replace(true);
        }
        if holds(cut) {
            std::future::pending::<()>().await;
        }
    }
}

/// The provider. It speaks both formats at once, and its model is a program: the same question
/// gets the same answer.
#[derive(Clone)]
pub struct Provider {
    address: SocketAddr,
    shared: Arc<Shared>,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl Provider {
    /// Listens on a free port of loopback.
    pub async fn start() -> std::io::Result<Provider> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { state: Mutex::default(), reached: watch::Sender::new(false) });
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let shared = serving.clone();
                let service = service_fn(move |request| answer(shared.clone(), request));
                tokio::spawn(async move {
                    // A client that is killed breaks its connections off.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Ok(Provider { address, shared })
    }

    /// The environment in which a process calls this provider.
    pub fn env(&self, wire: Wire) -> [(&'static str, String); 3] {
        let host = format!("http://{}", self.address);
        match wire {
            Wire::Anthropic => [
                ("ANTHROPIC_API_KEY", "key".to_owned()),
                ("ANTHROPIC_BASE_URL", host),
                ("CORAL_MODEL", "anthropic/model-1".to_owned()),
            ],
            Wire::OpenAi => [
                ("OPENAI_API_KEY", "key".to_owned()),
                ("OPENAI_BASE_URL", format!("{host}/v1")),
                ("CORAL_MODEL", "openai/model-1".to_owned()),
            ],
        }
    }

    /// Goes silent at `cut`, counted from now on; `None` answers everything.
    pub fn cut(&self, cut: Option<Cut>) {
        let mut state = self.shared.state();
        let before = state.calls.len();
        state.cut = cut.map(|cut| match cut {
            Cut::Received(n) => Cut::Received(n + before),
            Cut::Midway(n) => Cut::Midway(n + before),
            Cut::Answered(n) => Cut::Answered(n + before),
        });
        self.shared.reached.send_replace(false);
    }

    /// Waits until the cut is reached.
    pub async fn reached(&self) {
        let mut reached = self.shared.reached.subscribe();
        // The sender lives in `self`, so the wait can't fail.
        let _ = reached.wait_for(|reached| *reached).await;
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.state().calls.clone()
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let wire = [Wire::Anthropic, Wire::OpenAi].into_iter().find(|wire| wire.path() == request.uri().path());
    let Some(wire) = wire else {
        return Ok(refusal(StatusCode::NOT_FOUND, "there is nothing at this path"));
    };
    if request.headers().get("authorization").is_none() && request.headers().get("x-api-key").is_none() {
        return Ok(refusal(StatusCode::UNAUTHORIZED, "no key"));
    }
    let Ok(body) = request.into_body().collect().await else {
        return Ok(refusal(StatusCode::BAD_REQUEST, "half a request"));
    };
    let body = body.to_bytes();
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    let question = match wire.read(&value) {
        Ok(question) => question,
        Err(problem) => return Ok(refusal(StatusCode::BAD_REQUEST, &problem)),
    };
    let digest = sha256_hex(&body);
    let streamed = value["stream"].as_bool().unwrap_or_default();
    // The same question gets the same calls, so that the next question is the same too.
    let calls = format!("call_{}", digest.get(..12).unwrap_or_default());
    let (number, id) = {
        let mut state = shared.state();
        let number = state.calls.len() + 1;
        let id = format!("answer_{number}");
        state.calls.push(Call { number, wire, digest, id: id.clone(), streamed, answered: false });
        (number, id)
    };
    shared
        .pass(
            |cut| match cut {
                Cut::Received(n) => number >= n,
                Cut::Midway(n) | Cut::Answered(n) => number > n,
            },
            |cut| cut == Cut::Received(number),
        )
        .await;
    if !streamed {
        return Ok(refusal(StatusCode::BAD_REQUEST, "this provider only streams"));
    }
    let model = value["model"].as_str().unwrap_or_default();
    match OfflineModel::new().chat(&question, &CallContext::default()).await {
        Ok(response) => Ok(streaming(shared, number, wire.stream(&response, &id, &calls, model))),
        Err(error) => Ok(refusal(StatusCode::BAD_REQUEST, &error.to_string())),
    }
}

/// An answer that comes piece by piece, and may stop midway.
fn streaming(shared: Arc<Shared>, number: usize, events: Vec<String>) -> Answer {
    let half = events.len() / 2;
    let pieces = stream::iter(events).enumerate().then({
        let shared = shared.clone();
        move |(i, event)| {
            let shared = shared.clone();
            async move {
                if i == half {
                    shared.pass(|cut| cut == Cut::Midway(number), |cut| cut == Cut::Midway(number)).await;
                }
                Ok(Frame::data(Bytes::from(event)))
            }
        }
    });
    let end = stream::once(async move {
        if let Some(call) = shared.state().calls.iter_mut().find(|call| call.number == number) {
            call.answered = true;
        }
        shared.pass(|_| false, |cut| cut == Cut::Answered(number)).await;
        Ok(Frame::data(Bytes::new()))
    });
    let mut response = Response::new(StreamBody::new(pieces.chain(end)).boxed_unsync());
    response
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("text/event-stream"));
    response
}

fn refusal(status: StatusCode, problem: &str) -> Answer {
    let body =
        json!({"type": "error", "error": {"type": "invalid_request_error", "message": problem}}).to_string();
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}
