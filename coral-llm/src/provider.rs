//! A provider's model as a [`ChatModel`]: a codec over a transport.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use coral_core::{
    CallContext, ChatModel, ChatRequest, ChatResponse, Delta, Error, ModelFault, ModelInfo, OutputFormat,
    Part,
};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::answer_tool::AnswerTool;
use crate::dialect::Dialect;
use crate::failure::{self, Failure};
use crate::pool::Probe;
use crate::relay::tell_whole;
use crate::transport::net::HttpTransport;
use crate::transport::{Body, Transport};
use crate::vendor::Vendor;
use crate::wire::{Framing, Protocol, schema};

/// How long a provider may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From sending the request to the head of the response. A model that thinks before it answers whole needs
    /// minutes.
    pub first_byte: Duration,
    /// Between two pieces of a response. Any byte counts, comments included.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { first_byte: Duration::from_secs(600), idle: Duration::from_secs(300) }
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
    vendor: String,
    protocol: Protocol,
    base_url: String,
    model: String,
    /// The key, and what the user's own headers say.
    secrets: Vec<SecretString>,
    headers: Vec<(HeaderName, HeaderValue)>,
    idempotency_header: Option<HeaderName>,
    extra_body: Map<String, Value>,
    dialect: Dialect,
    info: ModelInfo,
    timeouts: Timeouts,
    transport: Arc<dyn Transport>,
}

/// Sets up a [`Provider`].
pub struct ProviderBuilder {
    vendor: String,
    protocol: Protocol,
    base_url: String,
    model: Option<String>,
    key: Option<SecretString>,
    headers: Vec<(String, SecretString)>,
    extra_body: Map<String, Value>,
    dialect: Dialect,
    info: ModelInfo,
    timeouts: Timeouts,
    transport: Option<Arc<dyn Transport>>,
}

/// Longest error body that is read, in bytes.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// How long the end of a connection is waited for after the end of an answer, so that it can be used again.
const DRAIN: Duration = Duration::from_millis(100);

/// What is shorter can't be a secret, and would be found in any text.
const MIN_SECRET: usize = 4;

/// From so many output tokens on an answer of Anthropic must be streamed: whole, it might take longer than ten minutes
/// at the 128,000 tokens an hour that the official clients reckon with, and connections are cut that are silent so long.
const MAX_WHOLE_ANSWER: u32 = 21_333;

impl Provider {
    /// A provider that is known by name, see [`Vendor`].
    ///
    /// # Errors
    /// [`NotFound`](coral_core::ErrorKind::NotFound) if the name is not known.
    pub fn vendor(id: &str) -> Result<ProviderBuilder, Error> {
        Ok(Self::of(Vendor::named(id)?))
    }

    /// A provider described by the user's own data.
    pub fn of(vendor: &Vendor) -> ProviderBuilder {
        ProviderBuilder {
            vendor: vendor.id.clone(),
            protocol: vendor.protocol,
            base_url: vendor.base_url.clone(),
            model: vendor.default_model.clone(),
            key: None,
            headers: Vec::new(),
            extra_body: Map::new(),
            dialect: vendor.dialect.clone(),
            info: ModelInfo::default(),
            timeouts: Timeouts::default(),
            transport: None,
        }
    }

    /// Any server that speaks OpenAI's chat completions.
    pub fn openai_compatible(base_url: impl Into<String>) -> ProviderBuilder {
        Self::of(&Vendor {
            id: "openai_compatible".to_owned(),
            protocol: Protocol::OpenAiChat,
            base_url: base_url.into(),
            base_url_env: None,
            key_env: Vec::new(),
            key_optional: true,
            default_model: None,
            dialect: Dialect {
                max_tokens_field: crate::dialect::MaxTokensField::MaxTokens,
                ..Dialect::default()
            },
        })
    }
}

impl ProviderBuilder {
    /// Chooses the model, by the provider's own name for it.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Sets the key. No `Debug`, error or log shows it.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(SecretString::from(key.into()));
        self
    }

    /// Says where the provider is.
    #[must_use]
    pub fn base_url(mut self, base_url: impl Into<String>) -> Self {
        self.base_url = base_url.into();
        self
    }

    /// Sends a header along. Its value is treated as a secret.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), SecretString::from(value.into())));
        self
    }

    /// Sends a field along in each request's body, in place of what Coral would have sent under its name: for
    /// what a provider takes and [`ChatRequest`] does not know.
    #[must_use]
    pub fn body_field(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.extra_body.insert(name.into(), value.into());
        self
    }

    /// Speaks another wire format to the same provider.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Changes the provider's quirks.
    #[must_use]
    pub fn dialect(mut self, change: impl FnOnce(&mut Dialect)) -> Self {
        change(&mut self.dialect);
        self
    }

    /// Says what the model can do and what it costs.
    #[must_use]
    pub fn info(mut self, info: ModelInfo) -> Self {
        self.info = info;
        self
    }

    /// Says how long the provider may be silent.
    #[must_use]
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Carries requests by another transport than sockets of its own.
    #[must_use]
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = Some(transport);
        self
    }

    /// Checks the settings and makes the model.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if no model is named, or the base URL, the key or a header
    /// can't be used.
    pub fn build(self) -> Result<Provider, Error> {
        let what = || format!("model provider `{}`", self.vendor);
        let Some(model) = self.model.filter(|model| !model.trim().is_empty()) else {
            return Err(Error::invalid(what(), "no model is named")
                .with_help(format!("set CORAL_MODEL to `{}/` and a model's name", self.vendor)));
        };
        let base_url = checked_base_url(&self.base_url, self.protocol).map_err(|problem| {
            Error::invalid(what(), problem).with_help("give a URL such as `https://host/v1`")
        })?;
        let idempotency_header = match &self.dialect.idempotency_header {
            None => None,
            Some(name) => Some(HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
                Error::invalid(what(), format!("`idempotency_header`: `{name}` is no name of a header"))
            })?),
        };
        let mut headers = Vec::new();
        if let Some(key) = &self.key {
            headers.push(auth_header(self.protocol, &self.dialect, key).ok_or_else(|| {
                Error::invalid(what(), "the key has characters that can't stand in a header")
            })?);
        }
        for (name, value) in &self.headers {
            let header =
                HeaderName::from_bytes(name.as_bytes()).ok().zip(secret_header(value.expose_secret()));
            headers.push(
                header.ok_or_else(|| Error::invalid(what(), format!("header `{name}` can't be sent")))?,
            );
        }
        let transport = match self.transport {
            Some(transport) => transport,
            None => Arc::new(HttpTransport::for_url(&base_url)?),
        };
        Ok(Provider {
            name: format!("{}/{model}", self.vendor),
            vendor: self.vendor,
            protocol: self.protocol,
            base_url,
            model,
            secrets: self.key.into_iter().chain(self.headers.into_iter().map(|(_, value)| value)).collect(),
            headers,
            idempotency_header,
            extra_body: self.extra_body,
            dialect: self.dialect,
            info: self.info,
            timeouts: self.timeouts,
            transport,
        })
    }
}

fn checked_base_url(base_url: &str, protocol: Protocol) -> Result<String, String> {
    let url = checked_url(base_url)?;
    // The path of Messages begins with the version, and people write it at the end of the base too.
    let tail = match protocol {
        Protocol::Anthropic => "/v1",
        Protocol::Ollama => "/api",
        _ => return Ok(url),
    };
    Ok(url.strip_suffix(tail).map(str::to_owned).unwrap_or(url))
}

/// A base URL without the slash at its end, or what is wrong with it.
pub(crate) fn checked_url(base_url: &str) -> Result<String, String> {
    let trimmed = base_url.trim().trim_end_matches('/');
    // What follows is shown in errors and in `Debug`, so no secret may stand in it.
    if trimmed.contains(['@', '?']) {
        return Err(
            "the base URL holds a user, a password or a query; give secrets as a key or a header".to_owned()
        );
    }
    let uri: http::Uri =
        trimmed.parse().map_err(|error| format!("base URL `{base_url}` is not a URL: {error}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.authority().is_none() {
        return Err(format!("base URL `{base_url}` must begin with `http://` or `https://`"));
    }
    Ok(trimmed.to_owned())
}

fn auth_header(
    protocol: Protocol,
    dialect: &Dialect,
    secret: &SecretString,
) -> Option<(HeaderName, HeaderValue)> {
    let key = secret.expose_secret();
    // Since the version of 2026-10-21 Anthropic takes the key as every other provider does.
    if protocol == Protocol::Anthropic && dialect.anthropic_version.as_str() < "2026-10-21" {
        return Some((HeaderName::from_static("x-api-key"), secret_header(key)?));
    }
    if protocol == Protocol::Gemini {
        return Some((HeaderName::from_static("x-goog-api-key"), secret_header(key)?));
    }
    Some((AUTHORIZATION, bearer(secret)?))
}

/// A key as most providers take it. `None` if it can't stand in a header.
pub(crate) fn bearer(key: &SecretString) -> Option<HeaderValue> {
    secret_header(&format!("Bearer {}", key.expose_secret()))
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
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

    pub(crate) fn with_info(mut self, info: ModelInfo) -> Self {
        self.info = info;
        self
    }

    /// The model that a request asks for, in the provider's words.
    fn model_of<'a>(&'a self, request: &'a ChatRequest) -> &'a str {
        let Some(asked) = request.model.as_deref() else { return &self.model };
        asked.strip_prefix(&*self.vendor).and_then(|rest| rest.strip_prefix('/')).unwrap_or(asked)
    }

    /// Whether the answer is to be streamed, heard or not.
    fn streams(&self, request: &ChatRequest, cx: &CallContext) -> bool {
        let is_long =
            || request.max_output_tokens.unwrap_or(self.dialect.default_max_tokens) > MAX_WHOLE_ANSWER;
        cx.streams() || (self.protocol == Protocol::Anthropic && is_long())
    }

    fn http_request(&self, request: &ChatRequest, cx: &CallContext) -> Result<http::Request<Bytes>, Error> {
        let stream = self.streams(request, cx);
        let wire = self.protocol.encode(request, self.model_of(request), stream, &self.dialect)?;
        let body = self.with_extra_fields(wire.body)?;
        let mut http = http::Request::post(format!("{}{}", self.base_url, wire.path))
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

    fn with_extra_fields(&self, body: Bytes) -> Result<Bytes, Error> {
        if self.extra_body.is_empty() {
            return Ok(body);
        }
        let invalid = |error: serde_json::Error| Error::invalid("chat request", error.to_string());
        let mut fields: Map<String, Value> = serde_json::from_slice(&body).map_err(invalid)?;
        fields.extend(self.extra_body.clone());
        serde_json::to_vec(&fields).map(Bytes::from).map_err(invalid)
    }

    async fn exchange(
        &self,
        request: http::Request<Bytes>,
        cx: &CallContext,
    ) -> Result<ChatResponse, Failure> {
        let mut timer = pin!(None);
        let Timeouts { first_byte, idle } = self.timeouts;
        let response = within(timer.as_mut(), first_byte, self.transport.send(request))
            .await
            .ok_or_else(|| silent("no answer", first_byte))??;
        let (head, mut body) = response.into_parts();
        if !head.status.is_success() {
            let said = within(timer.as_mut(), idle, read_error(&mut body)).await.unwrap_or_default();
            return Err(failure::of_http(head.status, &head.headers, &said));
        }
        let content_type =
            head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let framing = Framing::of_content_type(content_type);
        let mut decoder = self.protocol.decoder(framing, &self.dialect);
        let mut listener = |delta: &Delta| cx.emit(delta);
        while !decoder.is_done() {
            let piece = within(timer.as_mut(), idle, body.next()).await;
            let Some(piece) = piece.ok_or_else(|| silent("no more of the answer", idle))? else { break };
            decoder.feed(piece?, &mut listener)?;
        }
        let response = decoder.finish()?;
        if framing == Framing::Whole {
            tell_whole(&response, cx);
        } else {
            // A connection is used again only if its answer was read to the end.
            let drained = async { while let Some(Ok(_)) = body.next().await {} };
            within(timer, DRAIN, drained).await;
        }
        Ok(response)
    }

    /// Providers repeat keys in what they say of them.
    fn without_secrets(&self, mut failure: Failure) -> Failure {
        let secrets = self.secrets.iter().map(ExposeSecret::expose_secret);
        for secret in secrets.filter(|secret| secret.len() >= MIN_SECRET) {
            if failure.problem.contains(secret) {
                failure.problem = failure.problem.replace(secret, "[secret]");
            }
        }
        failure
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

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let (asked, answer_tool) = AnswerTool::of(request, &self.dialect);
        let listening = answer_tool.as_ref().map(|tool| tool.listen(cx));
        let terms = listening.as_ref().unwrap_or(cx);
        let http = self.http_request(&asked, cx)?;
        let span = tracing::Span::current();
        if let Some(host) = http.uri().host() {
            span.record("server.address", host);
        }
        if let Some(port) = http.uri().port_u16() {
            span.record("server.port", port);
        }
        let outcome = match cx.timeout_ms().map(Duration::from_millis) {
            None => self.exchange(http, terms).await,
            Some(limit) => timeout(limit, self.exchange(http, terms)).await.unwrap_or_else(|_| {
                let problem = format!("no whole answer came within {} s", limit.as_secs_f32());
                Err(Failure::new(ModelFault::Timeout, problem))
            }),
        };
        let mut response = outcome.map_err(|failure| self.without_secrets(failure).into_error(&self.name))?;
        if response.model.is_empty() {
            self.model_of(request).clone_into(&mut response.model);
        }
        if let Some(tool) = &answer_tool {
            tool.read(&mut response, cx);
        }
        if let Some(output) = &request.output {
            relax(&mut response, output);
        }
        response.cost = self.info.cost(&response.usage);
        Ok(response)
    }
}

/// Asks for the list of models, which costs nothing, with the same key and over the same transport as calls.
#[async_trait]
impl Probe for Provider {
    async fn probe(&self) -> Result<(), Error> {
        let path = match self.protocol {
            Protocol::Anthropic => "/v1/models",
            Protocol::Ollama => "/api/tags",
            Protocol::OpenAiChat | Protocol::OpenAiResponses | Protocol::Gemini => "/models",
        };
        let mut http = http::Request::get(format!("{}{path}", self.base_url));
        if self.protocol == Protocol::Anthropic {
            http = http.header("anthropic-version", &self.dialect.anthropic_version);
        }
        for (name, value) in &self.headers {
            http = http.header(name.clone(), value.clone());
        }
        let http =
            http.body(Bytes::new()).map_err(|error| Error::invalid("model probe", error.to_string()))?;
        let fail = |failure: Failure| self.without_secrets(failure).into_error(&self.name);
        let (head, mut body) = self.transport.send(http).await.map_err(fail)?.into_parts();
        // A server without such a list is up, and so is one that is asked too often.
        if head.status.is_success() || matches!(head.status.as_u16(), 404 | 405 | 429) {
            return Ok(());
        }
        Err(fail(failure::of_http(head.status, &head.headers, &read_error(&mut body).await)))
    }
}

fn silent(what: &str, limit: Duration) -> Failure {
    Failure::new(ModelFault::Timeout, format!("{what} came within {} s", limit.as_secs_f32()))
}

/// What `future` gives, or `None` if it takes longer than `limit`.
///
/// All the waits of a call share one timer. It is set only where there is something to wait for, and not again with each
/// wait: where it goes off too early it is set to what is left.
async fn within<F: Future>(
    mut timer: Pin<&mut Option<Sleep>>,
    limit: Duration,
    future: F,
) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut deadline = None;
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        let deadline = *deadline.get_or_insert_with(|| {
            let now = Instant::now();
            now.checked_add(limit).unwrap_or(now + FOREVER)
        });
        if timer.is_none() {
            timer.set(Some(sleep_until(deadline)));
        }
        let Some(mut timer) = timer.as_mut().as_pin_mut() else { return Poll::Pending };
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() == deadline {
                return Poll::Ready(None);
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    })
    .await
}

/// Some thirty years.
const FOREVER: Duration = Duration::from_secs(1_000_000_000);

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

/// Undoes in the answer what the strict form of the schema added: nulls for what may be absent.
fn relax(response: &mut ChatResponse, output: &OutputFormat) {
    let [Part::Text { text }] = response.message.parts.as_mut_slice() else { return };
    if !text.contains("null") {
        return;
    }
    let Ok(mut answer) = serde_json::from_str::<Value>(text) else { return };
    schema::drop_nulls(&mut answer, &output.schema);
    *text = answer.to_string();
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

impl fmt::Debug for ProviderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderBuilder")
            .field("vendor", &self.vendor)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}
