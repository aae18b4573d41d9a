//! The bytes of streamable HTTP, with a token on each request that needs one.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http::{HeaderName, HeaderValue, header};
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, JsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::common::http_header::{EVENT_STREAM_MIME_TYPE, HEADER_SESSION_ID, JSON_MIME_TYPE};
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
    StreamableHttpResponseLimits,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sse_stream::Sse;
use tokio::sync::Notify;

use super::oauth::Authority;
use crate::health::{Health, is_mere_answer};
use crate::pipe::{answered, is_new};

/// How long the stream beside the calls is waited for.
const STREAM_TIME: Duration = Duration::from_secs(2);
/// How often one request is repeated with another token.
const MAX_RENEWALS: usize = 2;

type Failure = StreamableHttpError<reqwest::Error>;

/// Speaks HTTP for one connection.
#[derive(Clone)]
pub(super) struct Wire {
    pub(super) client: reqwest::Client,
    /// A token that was configured as it is.
    pub(super) bearer: Option<SecretString>,
    /// Where tokens are had from.
    pub(super) authority: Option<Arc<Authority>>,
    pub(super) streams: Arc<Streams>,
    pub(super) health: Arc<Health>,
}

/// What there is of the older generation's sessions: in these the server asks back on a stream that is
/// opened beside the calls.
#[derive(Default)]
pub(super) struct Streams {
    session: AtomicBool,
    opened: Notify,
}

impl Streams {
    /// Waits until the stream beside the calls was asked for, if there is to be one: a server that
    /// asks back before loses its question.
    pub(super) async fn ready(&self) {
        if self.session.load(Ordering::Relaxed) {
            let _ = tokio::time::timeout(STREAM_TIME, self.opened.notified()).await;
        }
    }
}

impl Wire {
    /// Makes a request, and again if the server wants another token: it did not take the first one on.
    async fn authorized<T, F, Fut>(&self, call: F) -> Result<T, Failure>
    where
        F: Fn(Option<String>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let bearer = || self.bearer.as_ref().map(|token| token.expose_secret().to_owned());
        let Some(authority) = &self.authority else { return call(bearer()).await };
        let mut token = authority.token().await?;
        for _ in 0..MAX_RENEWALS {
            token = match call(token.clone()).await {
                Err(StreamableHttpError::AuthRequired(error)) => {
                    Some(authority.renew(token.as_deref(), &error.www_authenticate_header).await?)
                }
                Err(StreamableHttpError::InsufficientScope(error)) => {
                    let scope = error.get_required_scope();
                    match authority.widen(token.as_deref(), scope, &error.www_authenticate_header).await? {
                        Some(token) => Some(token),
                        None => return Err(StreamableHttpError::InsufficientScope(error)),
                    }
                }
                result => return result,
            };
        }
        call(token).await
    }

    /// A page of the server's tools, with all that it says of them kept; `None` if the answer is anything
    /// else than a page as JSON. It is then asked for once more, in the way of all other requests:
    /// reading it has no effect.
    async fn tools(
        &self,
        message: &ClientJsonRpcMessage,
        (uri, session, token, headers): (&str, Option<&str>, Option<&str>, &HashMap<HeaderName, HeaderValue>),
        most: usize,
    ) -> Result<Option<StreamableHttpPostResponse>, Failure> {
        let accepted = format!("{EVENT_STREAM_MIME_TYPE}, {JSON_MIME_TYPE}");
        let mut request = self
            .client
            .post(uri)
            .header(header::ACCEPT, accepted)
            .header(header::CONTENT_TYPE, JSON_MIME_TYPE);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(session) = session {
            request = request.header(HEADER_SESSION_ID, session);
        }
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let mut response = request.body(serde_json::to_vec(message)?).send().await?;
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let is_json = kind.is_some_and(|kind| {
            kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(JSON_MIME_TYPE)
        });
        if !response.status().is_success() || !is_json {
            return Ok(None);
        }
        let session = response.headers().get(HEADER_SESSION_ID).and_then(|id| id.to_str().ok());
        let session = session.map(str::to_owned);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len().saturating_add(chunk.len()) > most {
                return Err(StreamableHttpError::ResponseBodyTooLarge { max_size: most });
            }
            body.extend_from_slice(&chunk);
        }
        let Ok(value) = serde_json::from_slice::<Value>(&body) else { return Ok(None) };
        self.health.saw_tools(&value);
        let message = serde_json::from_value::<ServerJsonRpcMessage>(value);
        Ok(message.ok().map(|message| StreamableHttpPostResponse::Json(message, session)))
    }

    /// A stream of which is seen what the transport tells of its server: tools as they are sent, and how
    /// much it asks at once.
    fn watched(
        &self,
        stream: BoxStream<'static, Result<Sse, SseError>>,
    ) -> BoxStream<'static, Result<Sse, SseError>> {
        let health = Arc::clone(&self.health);
        let seen = stream.filter_map(move |event| {
            let health = Arc::clone(&health);
            async move {
                let Ok(mut event) = event else { return Some(event) };
                let Some(data) = event.data.take_if(|data| !is_mere_answer(data)) else {
                    return Some(Ok(event));
                };
                health.asked().room().await;
                let Ok(value) = serde_json::from_str::<Value>(&data) else {
                    return Some(Ok(Sse { data: Some(data), ..event }));
                };
                health.saw_tools(&value);
                // What goes on is what was seen, whatever stood twice in it.
                event.data = Some(value.to_string());
                let message = serde_json::from_value::<ServerJsonRpcMessage>(value);
                message.map_or(true, |message| is_new(&message, &health)).then_some(Ok(event))
            }
        });
        seen.boxed()
    }
}

impl StreamableHttpClient for Wire {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        token: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let limits = StreamableHttpResponseLimits::default();
        self.post_message_with_response_limits(uri, message, session, token, headers, limits).await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        _token: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let lists_tools = matches!(&message,
            JsonRpcMessage::Request(request) if matches!(request.request, ClientRequest::ListToolsRequest(_)));
        let posted = self
            .authorized(|token| {
                let (uri, message, session, headers) =
                    (uri.clone(), message.clone(), session.clone(), headers.clone());
                async move {
                    if lists_tools {
                        let most = limits.max_json_response_size;
                        let addressed = (uri.as_ref(), session.as_deref(), token.as_deref(), &headers);
                        if let Some(page) = self.tools(&message, addressed, most).await? {
                            return Ok(page);
                        }
                    }
                    self.client
                        .post_message_with_response_limits(uri, message, session, token, headers, limits)
                        .await
                }
            })
            .await;
        if let Some(id) = answered(&message) {
            self.health.asked().end(&id);
        }
        let posted = match posted? {
            StreamableHttpPostResponse::Sse(stream, session) => {
                StreamableHttpPostResponse::Sse(self.watched(stream), session)
            }
            posted => posted,
        };
        if let StreamableHttpPostResponse::Json(_, Some(_)) | StreamableHttpPostResponse::Sse(_, Some(_)) =
            &posted
        {
            self.streams.session.store(true, Ordering::Relaxed);
        }
        Ok(posted)
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        _token: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Failure> {
        self.authorized(|token| {
            self.client.delete_session(uri.clone(), session.clone(), token, headers.clone())
        })
        .await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        token: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failure> {
        let most = StreamableHttpResponseLimits::default().max_sse_event_size;
        self.get_stream_with_max_sse_event_size(uri, session, last_event, token, headers, most).await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        _token: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
        most: usize,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failure> {
        let stream = self
            .authorized(|token| {
                let (uri, session, headers) = (uri.clone(), session.clone(), headers.clone());
                self.client.get_stream_with_max_sse_event_size(
                    uri,
                    session,
                    last_event.clone(),
                    token,
                    headers,
                    most,
                )
            })
            .await;
        self.streams.opened.notify_one();
        Ok(self.watched(stream?))
    }
}
