//! The transport over sockets, by reqwest.

use std::error::Error as _;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use coral_core::{Error, ModelFault};

use super::{Body, Transport};
use crate::failure::Failure;
use crate::provider::Timeouts;

/// HTTP over sockets, with a pool of kept-alive connections. Cheap to clone; clones share the pool.
///
/// A server may close a connection that it kept at the moment at which the next request goes out on it. So where a kept
/// connection ends before a byte of the answer came, the request is sent once more, on a new one. On a connection that
/// was not kept that is an error: what the server did with the request is unknown.
#[derive(Clone, Debug)]
pub struct HttpTransport {
    client: reqwest::Client,
    /// Makes a new connection for each request, once one was needed.
    fresh: Arc<OnceLock<Option<reqwest::Client>>>,
    connect: Duration,
    /// Whether HTTPS is spoken.
    secure: bool,
    /// Whether there may be kept connections: one was answered on before.
    keeps: Arc<AtomicBool>,
    /// The address of the last request: nearly all go to the same one, and parsing it again costs as much as
    /// reading a short answer.
    last: Arc<Mutex<Option<(http::Uri, reqwest::Url)>>>,
}

impl HttpTransport {
    /// A transport that can reach `base_url`.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the URL needs HTTPS and this build has none, or if the
    /// system's certificates can't be loaded.
    pub fn for_url(base_url: &str) -> Result<Self, Error> {
        Self::connecting_within(base_url, Timeouts::default().connect)
    }

    /// The same with another time for making a connection.
    ///
    /// # Errors
    /// See [`for_url`](HttpTransport::for_url).
    pub fn connecting_within(base_url: &str, connect: Duration) -> Result<Self, Error> {
        let secure = !is_plain(base_url);
        if secure && !cfg!(feature = "tls") {
            return Err(Error::invalid(
                "base URL",
                format!("`{base_url}` needs HTTPS, and this build has none"),
            )
            .with_help("build coral-llm with its feature `tls`"));
        }
        let client = client(connect, secure).build().map_err(|error| {
            Error::invalid("HTTP client", cause_of(&error)).with_help("install the system's CA certificates")
        })?;
        Ok(HttpTransport {
            client,
            fresh: Arc::default(),
            connect,
            secure,
            keeps: Arc::default(),
            last: Arc::default(),
        })
    }

    /// A client that keeps no connections.
    fn fresh(&self) -> Option<&reqwest::Client> {
        let make = || client(self.connect, self.secure).pool_max_idle_per_host(0).build().ok();
        self.fresh.get_or_init(make).as_ref()
    }

    /// The request for reqwest, and a copy to be sent where a kept connection turns out to have ended.
    fn prepared(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<(reqwest::Request, Option<Box<reqwest::Request>>), Failure> {
        let (parts, body) = request.into_parts();
        let mut request = reqwest::Request::new(parts.method, self.url(parts.uri)?);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(body.into());
        let again = if self.keeps.load(Ordering::Relaxed) { request.try_clone() } else { None };
        Ok((request, again.map(Box::new)))
    }

    async fn send_again(
        &self,
        again: reqwest::Request,
        error: reqwest::Error,
    ) -> Result<reqwest::Response, reqwest::Error> {
        match self.fresh() {
            Some(fresh) => fresh.execute(again).await,
            None => Err(error),
        }
    }

    fn url(&self, uri: http::Uri) -> Result<reqwest::Url, Failure> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, url)) = last.as_ref().filter(|(known, _)| *known == uri) {
            return Ok(url.clone());
        }
        let url = reqwest::Url::parse(&uri.to_string())
            .map_err(|error| Failure::new(ModelFault::InvalidRequest, error.to_string()))?;
        *last = Some((uri, url.clone()));
        Ok(url)
    }
}

/// The settings that all clients share.
fn client(connect: Duration, secure: bool) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder()
        .connect_timeout(connect)
        .user_agent(concat!("coral-llm/", env!("CARGO_PKG_VERSION")))
        // A provider that redirects a POST with a key in it is not to be followed.
        .redirect(reqwest::redirect::Policy::none())
        // What is sent again is decided here, and reqwest would make its own copy of each request besides.
        .retry(reqwest::retry::never())
        .tcp_nodelay(true);
    tls(builder, secure)
}

#[cfg(feature = "tls")]
fn tls(builder: reqwest::ClientBuilder, secure: bool) -> reqwest::ClientBuilder {
    // The embedder's choice stays: an error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Where no certificate will be looked at, none is loaded from disk.
    if secure { builder } else { builder.tls_certs_only(std::iter::empty()) }
}

#[cfg(not(feature = "tls"))]
fn tls(builder: reqwest::ClientBuilder, _secure: bool) -> reqwest::ClientBuilder {
    builder
}

fn is_plain(base_url: &str) -> bool {
    base_url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"))
}

#[async_trait]
impl Transport for HttpTransport {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Failure> {
        let host = request.uri().authority().cloned();
        let (request, again) = self.prepared(request)?;
        let outcome = match (self.client.execute(request).await, again) {
            (Err(error), Some(again)) if went_away(&error) => {
                // It is seldom needed, and would take room in the future of each call.
                Box::pin(self.send_again(*again, error)).await
            }
            (outcome, _) => outcome,
        };
        let response = outcome.map_err(|error| {
            of_send(&error, host.as_ref().map_or("the server", http::uri::Authority::as_str))
        })?;
        self.keeps.store(true, Ordering::Relaxed);
        let response: http::Response<reqwest::Body> = response.into();
        Ok(response.map(Body::net))
    }
}

/// Whether a connection ended before a byte of the answer came.
fn went_away(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(found) = cause {
        let ended = found.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message);
        let broke = found.downcast_ref::<std::io::Error>().is_some_and(|error| {
            matches!(
                error.kind(),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
            )
        });
        if ended || broke {
            return !error.is_connect() && !error.is_timeout();
        }
        cause = found.source();
    }
    false
}

fn of_send(error: &reqwest::Error, host: &str) -> Failure {
    let cause = cause_of(error);
    if error.is_connect() {
        Failure::new(ModelFault::Connect, format!("no connection to `{host}`: {cause}"))
            .with_help("check that the address is right and the server runs")
    } else if error.is_timeout() {
        Failure::new(ModelFault::Timeout, format!("`{host}` did not answer in time"))
    } else {
        Failure::new(ModelFault::Truncated, format!("`{host}` went away before it answered: {cause}"))
    }
}

/// The innermost cause of a reqwest error: its own text names only the URL, which may hold secrets, and those between
/// say which layer passed the cause on.
pub(crate) fn cause_of(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| "unknown cause".to_owned(), ToString::to_string)
}
