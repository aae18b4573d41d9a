//! A provider's model as a [`ChatModel`]: a codec over a transport.

use std::borrow::Cow;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use coral_core::resilience::Timers;
use coral_core::{
    CallContext, ChatModel, ChatRequest, ChatResponse, Delta, Error, Message, ModelFault, ModelInfo,
    OutputFormat, Part, Role,
};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Uri};
use serde_json::{Map, Value};

use crate::answer_tool::{AnswerTool, unforced};
use crate::catalogue::{Catalogue, CatalogueEntry};
use crate::dialect::Dialect;
use crate::failure::{self, Failure};
use crate::pool::Probe;
use crate::relay::tell_whole;
use crate::secrets::Secrets;
use crate::transport::{Body, Transport};
use crate::wire::{Framing, Protocol, schema};

mod builder;
mod count;
mod discover;

pub use builder::ProviderBuilder;
pub(crate) use builder::{bearer, checked_url};
pub use count::CountTokens;

/// How long a provider may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For making a connection. A [`transport`](ProviderBuilder::transport) of one's own has its own.
    pub connect: Duration,
    /// From sending the request to the head of the response. A model that thinks before it answers whole needs
    /// minutes.
    pub first_byte: Duration,
    /// Between two pieces of a response. Any byte counts, comments included.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        // The official client libraries give a connection and an answer this long.
        Timeouts {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(600),
            idle: Duration::from_secs(300),
        }
    }
}

/// One model of one provider.
///
/// ```no_run
/// use coral_core::{CallContext, ChatModel, ChatRequest};
/// use coral_llm::Provider;
///
/// # async fn f() -> Result<(), coral_core::Error> {
/// let model = Provider::vendor("groq")?.key("gsk_…").model("llama-4-scout").build()?;
/// let cx = CallContext::default().on_delta(|delta| print!("{delta}"));
/// let answer = model.chat(&ChatRequest::user("Name three corals."), &cx).await?;
/// println!("\n{} tokens", answer.usage.total_tokens());
/// # Ok(())
/// # }
/// ```
pub struct Provider {
    name: String,
    /// A digest of all settings that shape answers.
    identity: String,
    vendor: String,
    protocol: Protocol,
    base_url: String,
    model: String,
    /// The key, and what the user's own headers say.
    secrets: Secrets,
    headers: Vec<(HeaderName, HeaderValue)>,
    idempotency_header: Option<HeaderName>,
    extra_body: Map<String, Value>,
    dialect: Dialect,
    /// The vendor's quirks, whatever the model.
    general: Dialect,
    /// Whether it was said that temperatures are not sent.
    unsampled: AtomicBool,
    info: ModelInfo,
    timeouts: Timeouts,
    timers: Timers,
    last_uri: Mutex<Option<(String, Uri)>>,
    transport: Arc<dyn Transport>,
}

/// Longest error body that is read, in bytes.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// Longest answer that is read to a question which is no call, in bytes.
const MAX_LIST: usize = 4 * 1024 * 1024;

/// How long the end of a connection is waited for after the end of an answer, so that it can be used again.
const DRAIN: Duration = Duration::from_millis(100);

/// From so many output tokens on an answer of Anthropic must be streamed: whole, it might take longer than ten minutes
/// at the 128,000 tokens an hour that the official clients reckon with, and connections are cut that are silent so long.
const MAX_WHOLE_ANSWER: u32 = 21_333;

/// The words of one call: a protocol with its quirks.
#[derive(Clone, Copy)]
struct Spoken<'a> {
    protocol: Protocol,
    dialect: &'a Dialect,
}

impl<'a> Spoken<'a> {
    /// Some models of OpenAI take tools over Responses alone, which stand beside the chat completions.
    fn of(protocol: Protocol, dialect: &'a Dialect, request: &ChatRequest) -> Self {
        let elsewhere = protocol == Protocol::OpenAiChat && !dialect.chat_tools && !request.tools.is_empty();
        Spoken { protocol: if elsewhere { Protocol::OpenAiResponses } else { protocol }, dialect }
    }
}

impl Provider {
    /// The provider's id, such as `anthropic`.
    pub fn vendor_id(&self) -> &str {
        &self.vendor
    }

    /// The provider's own name for the model.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What is said to the provider.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The model that a request asks for, in the provider's words.
    fn model_of<'a>(&'a self, request: &'a ChatRequest) -> &'a str {
        let Some(asked) = request.model.as_deref() else { return &self.model };
        asked.strip_prefix(&*self.vendor).and_then(|rest| rest.strip_prefix('/')).unwrap_or(asked)
    }

    /// What is known of the model that a request asks for. Another one than this is in the catalogue, or unknown: it has
    /// its own price.
    fn info_of(&self, request: &ChatRequest) -> ModelInfo {
        match self.model_of(request) {
            own if own == self.model => self.info.clone(),
            other => Catalogue::known(&self.vendor, other)
                .map(|known| known.info_with(&self.dialect))
                .unwrap_or_default(),
        }
    }

    /// Whether the answer is to be streamed, heard or not.
    fn streams(&self, request: &ChatRequest, cx: &CallContext) -> bool {
        let is_long =
            || request.max_output_tokens.unwrap_or(self.dialect.default_max_tokens) > MAX_WHOLE_ANSWER;
        cx.streams() || (self.protocol == Protocol::Anthropic && is_long())
    }

    /// The quirks for a request: those of another model than this are what is known of it.
    fn dialect_of(&self, request: &ChatRequest) -> Cow<'_, Dialect> {
        match self.model_of(request) {
            own if own == self.model => Cow::Borrowed(&self.dialect),
            other => {
                let known = Catalogue::known(&self.vendor, other);
                Cow::Owned(CatalogueEntry::reshaped(known, &self.dialect, &self.general))
            }
        }
    }

    /// What the model refuses in a request, said before the provider does: an error where nothing else can be asked.
    fn checked(&self, request: &ChatRequest, dialect: &Dialect) -> Result<(), Error> {
        let last = request.messages.last().filter(|last| last.role == Role::Assistant);
        // What a provider's own tools began is gone on with by every model.
        let prefills = |last: &Message| !last.parts.iter().any(|part| matches!(part, Part::Opaque { .. }));
        if !dialect.prefill && last.is_some_and(prefills) {
            let problem = format!("`{}` does not go on from an answer that was begun for it", self.name);
            return Err(Error::invalid("chat request", problem)
                .with_help("end the conversation with a message of the user"));
        }
        let sampled = dialect.sampling && (dialect.sampling_with_effort || request.effort.is_none());
        if request.temperature.is_some() && !sampled && !self.unsampled.swap(true, Ordering::Relaxed) {
            tracing::warn!(model = %self.name, "the model takes no temperature, so none is sent");
        }
        Ok(())
    }

    fn http_request(
        &self,
        request: &ChatRequest,
        spoken: Spoken<'_>,
        cx: &CallContext,
    ) -> Result<http::Request<Bytes>, Error> {
        let stream = self.streams(request, cx);
        let wire = spoken.protocol.encode(request, self.model_of(request), stream, spoken.dialect)?;
        let body = self.with_extra_fields(wire.body)?;
        let mut http = http::Request::post(self.uri(&wire.path)?)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(
                ACCEPT,
                HeaderValue::from_static(if stream { "text/event-stream" } else { "application/json" }),
            );
        for (name, value) in wire.headers {
            http = http.header(name, value);
        }
        for (name, value) in &self.headers {
            http = http.header(name.clone(), value.clone());
        }
        if let Some(name) = self.idempotency_header.as_ref().filter(|_| !cx.key().is_empty()) {
            http = http.header(name, cx.key());
        }
        http.body(body).map_err(|error| Error::invalid("chat request", error.to_string()))
    }

    /// The address of a path. Nearly all calls are of one, which need not be put together and read again.
    fn uri(&self, path: &str) -> Result<Uri, Error> {
        let mut last = self.last_uri.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, uri)) = last.as_ref().filter(|(known, _)| known == path) {
            return Ok(uri.clone());
        }
        let uri = Uri::try_from(format!("{}{path}", self.base_url))
            .map_err(|error| Error::invalid("chat request", error.to_string()))?;
        *last = Some((path.to_owned(), uri.clone()));
        Ok(uri)
    }

    fn with_extra_fields(&self, body: Bytes) -> Result<Bytes, Error> {
        if self.extra_body.is_empty() {
            return Ok(body);
        }
        let invalid = |error: serde_json::Error| Error::invalid("chat request", error.to_string());
        let mut fields: Map<String, Value> = serde_json::from_slice(&body).map_err(invalid)?;
        merge(&mut fields, &self.extra_body);
        serde_json::to_vec(&fields).map(Bytes::from).map_err(invalid)
    }

    async fn exchange(
        &self,
        http: http::Request<Bytes>,
        request: &ChatRequest,
        spoken: Spoken<'_>,
        cx: &CallContext,
    ) -> Result<ChatResponse, Failure> {
        let mut timer = self.timers.timer();
        let Timeouts { first_byte, idle, .. } = self.timeouts;
        let response = timer
            .within(first_byte, self.transport.send(http))
            .await
            .ok_or_else(|| silent("no answer", first_byte))??;
        let (head, mut body) = response.into_parts();
        if !head.status.is_success() {
            let said = timer.within(idle, read_error(&mut body)).await.unwrap_or_default();
            return Err(failure::of_http(head.status, &head.headers, &said));
        }
        let content_type =
            head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut next = timer.within(idle, body.next()).await;
        let framing = match &next {
            Some(Some(Ok(first))) if self.streams(request, cx) => {
                Framing::of_stream(content_type, first, spoken.protocol)
            }
            _ => Framing::of_content_type(content_type),
        };
        let mut decoder = spoken.protocol.decoder(framing, spoken.dialect).after(request);
        let mut listener = |delta: &Delta| cx.emit(delta);
        while let Some(piece) = next.ok_or_else(|| silent("no more of the answer", idle))? {
            decoder.feed(piece.map_err(|failure| decoder.placed(failure))?, &mut listener)?;
            if decoder.is_done() {
                break;
            }
            next = timer.within(idle, body.next()).await;
        }
        let response = decoder.finish(&mut listener)?;
        if framing == Framing::Whole {
            tell_whole(&response, cx);
        } else {
            // A connection is used again only if its answer was read to the end.
            let drained = async { while let Some(Ok(_)) = body.next().await {} };
            timer.within(DRAIN, drained).await;
        }
        Ok(response)
    }
}

#[async_trait]
impl ChatModel for Provider {
    fn name(&self) -> &str {
        &self.name
    }

    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    fn info_for(&self, request: &ChatRequest, _cx: &CallContext) -> ModelInfo {
        self.info_of(request)
    }

    fn identity(&self, _cx: &CallContext) -> Cow<'_, str> {
        Cow::Borrowed(&self.identity)
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let dialect = &*self.dialect_of(request);
        self.checked(request, dialect)?;
        let (asked, answer_tool) = AnswerTool::of(request, dialect);
        let asked = unforced(asked, dialect);
        let spoken = Spoken::of(self.protocol, dialect, &asked);
        let listening = answer_tool.as_ref().map(|tool| tool.listen(cx));
        let terms = listening.as_ref().unwrap_or(cx);
        let http = self.http_request(&asked, spoken, cx)?;
        let span = tracing::Span::current();
        if !span.is_disabled() {
            http.uri().host().map(|host| span.record("server.address", host));
            http.uri().port_u16().map(|port| span.record("server.port", port));
        }
        // In one place, wherever it is waited for.
        let exchange = pin!(self.exchange(http, &asked, spoken, terms));
        let outcome = match cx.timeout_ms().map(Duration::from_millis) {
            None => exchange.await,
            Some(limit) => self.timers.timer().within(limit, exchange).await.unwrap_or_else(|| {
                let problem = format!("no whole answer came within {} s", limit.as_secs_f32());
                Err(Failure::new(ModelFault::Timeout, problem))
            }),
        };
        let mut response = outcome.map_err(|failure| self.secrets.scrub(failure).into_error(&self.name))?;
        if response.model.is_empty() {
            self.model_of(request).clone_into(&mut response.model);
        }
        if let Some(tool) = &answer_tool {
            tool.read(&mut response, cx);
        }
        if let Some(output) = &request.output {
            relax(&mut response, output);
        }
        response.cost = self.info_of(request).cost(&response.usage);
        Ok(response)
    }
}

/// Asks for the list of models, which costs nothing, with the same key and over the same transport as calls.
#[async_trait]
impl Probe for Provider {
    async fn probe(&self) -> Result<(), Error> {
        let asked = async {
            let path = discover::models_path(self.protocol);
            let (head, mut body) = self.put(Method::GET, path, Bytes::new()).await?.into_parts();
            // A server without such a list is up, and so is one that is asked too often.
            if head.status.is_success() || matches!(head.status.as_u16(), 404 | 405 | 429) {
                return Ok(());
            }
            Err(failure::of_http(head.status, &head.headers, &read_error(&mut body).await))
        };
        self.within_time(asked).await
    }
}

/// Questions that are no calls of the model.
impl Provider {
    async fn put(&self, method: Method, path: &str, body: Bytes) -> Result<http::Response<Body>, Failure> {
        let mut http = http::Request::builder().method(method).uri(format!("{}{path}", self.base_url));
        if !body.is_empty() {
            http = http.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if self.protocol == Protocol::Anthropic {
            http = http.header("anthropic-version", &self.dialect.anthropic_version);
        }
        for (name, value) in &self.headers {
            http = http.header(name.clone(), value.clone());
        }
        let http =
            http.body(body).map_err(|error| Failure::new(ModelFault::InvalidRequest, error.to_string()))?;
        self.transport.send(http).await
    }

    /// The body of the answer, unless that is an error.
    async fn question(&self, method: Method, path: &str, body: Bytes) -> Result<Body, Failure> {
        let (head, mut body) = self.put(method, path, body).await?.into_parts();
        if head.status.is_success() {
            return Ok(body);
        }
        Err(failure::of_http(head.status, &head.headers, &read_error(&mut body).await))
    }

    async fn within_time<T>(&self, asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Error> {
        let limit = self.timeouts.first_byte;
        let outcome =
            self.timers.timer().within(limit, asked).await.unwrap_or_else(|| Err(silent("no answer", limit)));
        outcome.map_err(|failure| self.secrets.scrub(failure).into_error(&self.name))
    }
}

fn silent(what: &str, limit: Duration) -> Failure {
    Failure::new(ModelFault::Timeout, format!("{what} came within {} s", limit.as_secs_f32()))
}

pub(crate) async fn read_error(body: &mut Body) -> Bytes {
    let mut said = BytesMut::new();
    while let Some(Ok(piece)) = body.next().await {
        said.extend_from_slice(&piece);
        if said.len() > MAX_ERROR_BODY {
            said.truncate(MAX_ERROR_BODY);
            break;
        }
    }
    said.freeze()
}

/// Undoes in the answer what the strict form of the schema added: nulls for what may be absent. The answer is all of the
/// text, in however many parts it came.
fn relax(response: &mut ChatResponse, output: &OutputFormat) {
    let parts = &mut response.message.parts;
    if !parts.iter().filter_map(Part::as_text).any(|text| text.contains("null")) {
        return;
    }
    let text: String = parts.iter().filter_map(Part::as_text).collect();
    let Ok(mut answer) = serde_json::from_str::<Value>(&text) else { return };
    schema::drop_nulls(&mut answer, &output.schema);
    let mut relaxed = Some(answer.to_string());
    parts.retain_mut(|part| match part {
        Part::Text { text } => relaxed.take().map(|relaxed| *text = relaxed).is_some(),
        _ => true,
    });
}

/// Puts `more` into `fields`: objects into objects, all else in the place of what was there.
fn merge(fields: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (name, value) in more {
        match (fields.get_mut(name), value) {
            (Some(Value::Object(known)), Value::Object(more)) => merge(known, more),
            _ => drop(fields.insert(name.clone(), value.clone())),
        }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("name", &self.name)
            .field("protocol", &self.protocol)
            .field("base_url", &self.base_url)
            .finish_non_exhaustive()
    }
}
