//! The bytes of streamable HTTP, with a token on each request that needs one.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::BoxStream;
use http::{HeaderName, HeaderValue};
use rmcp::model::ClientJsonRpcMessage;
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
    StreamableHttpResponseLimits,
};
use secrecy::{ExposeSecret, SecretString};
use sse_stream::Sse;
use tokio::sync::Notify;

use super::oauth::Authority;

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
        let posted = self
            .authorized(|token| {
                let (uri, message, session, headers) =
                    (uri.clone(), message.clone(), session.clone(), headers.clone());
                self.client.post_message_with_response_limits(uri, message, session, token, headers, limits)
            })
            .await?;
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
        stream
    }
}
