//! Recorded HTTP exchanges, to be played again without a network.

use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use coral_core::{Error, ModelFault};
use futures_core::Stream;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Body, Transport};
use crate::failure::Failure;
use crate::secrets;

/// Recorded HTTP exchanges, to be played again without a network; also exchanges written by hand.
///
/// As a [`Transport`] it answers each request with the first exchange that was not played yet and whose request is the
/// same: method, path and body, but not the host. One without a request answers any. Bodies come in the pieces in which
/// they were recorded.
///
/// ```
/// use std::sync::Arc;
/// use coral_core::{CallContext, ChatModel, ChatRequest};
/// use coral_llm::{Cassette, Provider};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), coral_core::Error> {
/// let cassette = Cassette::new().answer(200, "application/json",
///     r#"{"choices": [{"finish_reason": "stop", "message": {"content": "hello"}}]}"#);
/// let model = Provider::vendor("openai")?.model("gpt-x").key("k").transport(Arc::new(cassette)).build()?;
/// let answer = model.chat(&ChatRequest::user("?"), &CallContext::default()).await?;
/// assert_eq!(answer.message.text(), "hello");
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct Cassette {
    exchanges: Mutex<Vec<(Exchange, bool)>>,
}

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    exchanges: Vec<Exchange>,
}

/// One exchange of a [`Cassette`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<Asked>,
    response: Answered,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    method: String,
    path: String,
    /// JSON where it is JSON, else text.
    body: Value,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answered {
    status: u16,
    #[serde(default)]
    headers: Vec<(String, String)>,
    body: Text,
    /// The lengths in bytes of the pieces in which the body came; none is one piece.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pieces: Vec<usize>,
    /// How the body broke off, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    broke_off: Option<String>,
}

/// Bytes that are nearly always text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Text(String),
    Bytes(Vec<u8>),
}

impl Text {
    fn of(bytes: Vec<u8>) -> Text {
        match String::from_utf8(bytes) {
            Ok(text) => Text::Text(text),
            Err(error) => Text::Bytes(error.into_bytes()),
        }
    }

    fn bytes(&self) -> Bytes {
        match self {
            Text::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Text::Bytes(bytes) => Bytes::copy_from_slice(bytes),
        }
    }
}

const FORMAT: u32 = 1;

/// The headers of a response that mean something to a codec or to a reader; all others are left out.
const KEPT_HEADERS: [&str; 7] =
    ["content-type", "date", "request-id", "retry-after", "retry-after-ms", "x-request-id", "x-should-retry"];

/// What the names of headers begin with that say how much of a limit is left, and when it is reset.
const KEPT_LIMITS: [&str; 2] = ["anthropic-ratelimit-", "x-ratelimit-"];

fn is_kept(name: &str) -> bool {
    KEPT_HEADERS.contains(&name) || KEPT_LIMITS.iter().any(|limit| name.starts_with(limit))
}

/// What stands in a cassette in place of a key.
const SCRUBBED: &str = "[scrubbed]";

impl Asked {
    fn of(request: &http::Request<Bytes>, secrets: &[String]) -> Asked {
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let body = scrub(&String::from_utf8_lossy(request.body()), secrets);
        Asked {
            method: request.method().to_string(),
            path: scrub(&path, secrets),
            body: serde_json::from_str(&body).unwrap_or(Value::String(body)),
        }
    }
}

fn scrub(text: &str, secrets: &[String]) -> String {
    secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, SCRUBBED))
}

impl Cassette {
    /// A cassette without exchanges.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an answer to any request.
    #[must_use]
    pub fn answer(self, status: u16, content_type: &str, body: impl Into<String>) -> Self {
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        let body = Text::Text(body.into());
        let response = Answered { status, headers, body, pieces: Vec::new(), broke_off: None };
        self.push(Exchange { request: None, response });
        self
    }

    /// Reads a cassette from a file.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the file can't be read,
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if it is no cassette.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::storage("reading a cassette", error).at(path.display().to_string()))?;
        let file: File = serde_json::from_str(&text)
            .map_err(|error| Error::invalid("cassette", error.to_string()).at(path.display().to_string()))?;
        if file.format != FORMAT {
            return Err(Error::invalid(
                "cassette",
                format!("`format` is {}, expected {FORMAT}", file.format),
            )
            .at(path.display().to_string()));
        }
        let cassette = Cassette::new();
        file.exchanges.into_iter().for_each(|exchange| cassette.push(exchange));
        Ok(cassette)
    }

    /// Writes the cassette to a file.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the file can't be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let exchanges = self.exchanges().iter().map(|(exchange, _)| exchange.clone()).collect();
        let failed =
            |problem: String| Error::storage("writing a cassette", problem).at(path.display().to_string());
        let text = serde_json::to_string_pretty(&File { format: FORMAT, exchanges })
            .map_err(|e| failed(e.to_string()))?;
        std::fs::write(path, text + "\n").map_err(|e| failed(e.to_string()))
    }

    /// How many exchanges were not played yet.
    pub fn left(&self) -> usize {
        self.exchanges().iter().filter(|(_, played)| !played).count()
    }

    fn push(&self, exchange: Exchange) {
        self.exchanges().push((exchange, false));
    }

    fn exchanges(&self) -> MutexGuard<'_, Vec<(Exchange, bool)>> {
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn play(&self, asked: &Asked) -> Option<Answered> {
        let mut exchanges = self.exchanges();
        let (exchange, played) = exchanges.iter_mut().find(|(exchange, played)| {
            !played && exchange.request.as_ref().is_none_or(|request| request == asked)
        })?;
        *played = true;
        Some(exchange.response.clone())
    }
}

#[async_trait]
impl Transport for Cassette {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Failure> {
        let asked = Asked::of(&request, &secrets::in_headers(request.headers()));
        let Some(answered) = self.play(&asked) else {
            let problem = format!("no exchange is left on the cassette for {} {}", asked.method, asked.path);
            return Err(
                Failure::new(ModelFault::InvalidRequest, problem).with_help("record the cassette again")
            );
        };
        let mut response = http::Response::new(Body::stream(Pieces::of(&answered)));
        *response.status_mut() = StatusCode::from_u16(answered.status)
            .map_err(|_| Failure::malformed(format!("status {} on the cassette", answered.status)))?;
        for (name, value) in &answered.headers {
            let header = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(value).ok());
            if let Some((name, value)) = header {
                response.headers_mut().append(name, value);
            }
        }
        Ok(response)
    }
}

/// A recorded body in its pieces.
struct Pieces(std::vec::IntoIter<Result<Bytes, Failure>>);

impl Pieces {
    fn of(answered: &Answered) -> Pieces {
        let mut rest = answered.body.bytes();
        let mut pieces = Vec::new();
        for length in &answered.pieces {
            pieces.push(Ok(rest.split_to((*length).min(rest.len()))));
        }
        if !rest.is_empty() {
            pieces.push(Ok(rest));
        }
        if let Some(problem) = &answered.broke_off {
            pieces.push(Err(Failure::truncated(problem.clone())));
        }
        Pieces(pieces.into_iter())
    }
}

impl Stream for Pieces {
    type Item = Result<Bytes, Failure>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.get_mut().0.next())
    }
}

/// A transport that records what passes through it. Cheap to clone; clones share the cassette.
///
/// Request headers are not recorded at all; the keys in them are replaced wherever they stand in a path or a body.
/// An exchange is on the cassette once its body was read to the end, broke off, or was let go.
#[derive(Clone)]
pub struct Recorder {
    inner: Arc<dyn Transport>,
    cassette: Arc<Cassette>,
}

impl Recorder {
    /// Records what passes through `inner`.
    pub fn new(inner: Arc<dyn Transport>) -> Self {
        Recorder { inner, cassette: Arc::default() }
    }

    /// What was recorded so far.
    pub fn cassette(&self) -> &Cassette {
        &self.cassette
    }
}

#[async_trait]
impl Transport for Recorder {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Failure> {
        let secrets = secrets::in_headers(request.headers());
        let asked = Asked::of(&request, &secrets);
        let response = self.inner.send(request).await?;
        let headers = response
            .headers()
            .iter()
            .filter(|(name, _)| is_kept(name.as_str()))
            .filter_map(|(name, value)| Some((name.to_string(), scrub(value.to_str().ok()?, &secrets))))
            .collect();
        let status = response.status().as_u16();
        let (parts, body) = response.into_parts();
        let taped = Taped {
            body,
            tape: Some(Tape {
                cassette: self.cassette.clone(),
                secrets,
                asked,
                status,
                headers,
                body: Vec::new(),
                pieces: Vec::new(),
            }),
        };
        Ok(http::Response::from_parts(parts, Body::stream(taped)))
    }
}

/// A body that is recorded while it is read.
struct Taped {
    body: Body,
    tape: Option<Tape>,
}

impl Drop for Taped {
    fn drop(&mut self) {
        if let Some(tape) = self.tape.take() {
            tape.finish(None);
        }
    }
}

struct Tape {
    cassette: Arc<Cassette>,
    secrets: Vec<String>,
    asked: Asked,
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    pieces: Vec<usize>,
}

impl Tape {
    fn finish(self, broke_off: Option<String>) {
        let (mut body, mut pieces) = (self.body, self.pieces);
        let text = String::from_utf8_lossy(&body);
        let scrubbed = scrub(&text, &self.secrets);
        if scrubbed != *text {
            // The lengths of the pieces are those of what was there before.
            body = scrubbed.into_bytes();
            pieces.clear();
        }
        let response =
            Answered { status: self.status, headers: self.headers, body: Text::of(body), pieces, broke_off };
        self.cassette.push(Exchange { request: Some(self.asked), response });
    }
}

impl Stream for Taped {
    type Item = Result<Bytes, Failure>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let taped = self.get_mut();
        let polled = Pin::new(&mut taped.body).poll_next(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(piece))) => {
                if let Some(tape) = &mut taped.tape {
                    tape.body.extend_from_slice(piece);
                    tape.pieces.push(piece.len());
                }
            }
            Poll::Ready(Some(Err(failure))) => {
                if let Some(tape) = taped.tape.take() {
                    tape.finish(Some(failure.problem.clone()));
                }
            }
            Poll::Ready(None) => {
                if let Some(tape) = taped.tape.take() {
                    tape.finish(None);
                }
            }
        }
        polled
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("cassette", &self.cassette).finish_non_exhaustive()
    }
}
