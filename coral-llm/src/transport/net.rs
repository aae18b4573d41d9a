//! The transport over sockets, by reqwest.

use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use coral_core::{Error, ModelFault};

use super::{Body, Transport};
use crate::failure::Failure;

/// HTTP over sockets, with a pool of kept-alive connections. Cheap to clone; clones share the pool.
#[derive(Clone, Debug)]
pub struct HttpTransport {
    client: reqwest::Client,
    /// The address of the last request: nearly all go to the same one, and parsing it again costs as much as
    /// reading a short answer.
    last: Arc<Mutex<Option<(http::Uri, reqwest::Url)>>>,
}

/// The official client libraries give a connection this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl HttpTransport {
    /// A transport that can reach `base_url`.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the URL needs HTTPS and this build has none, or if the
    /// system's certificates can't be loaded.
    pub fn for_url(base_url: &str) -> Result<Self, Error> {
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("coral-llm/", env!("CARGO_PKG_VERSION")))
            // A provider that redirects a POST with a key in it is not to be followed.
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true);
        let builder = tls(builder, base_url)?;
        let client = builder.build().map_err(|error| {
            Error::invalid("HTTP client", cause_of(&error)).with_help("install the system's CA certificates")
        })?;
        Ok(HttpTransport { client, last: Arc::default() })
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

#[cfg(feature = "tls")]
fn tls(builder: reqwest::ClientBuilder, base_url: &str) -> Result<reqwest::ClientBuilder, Error> {
    // The embedder's choice stays: an error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if is_plain(base_url) {
        // No certificate will be looked at, so none is loaded from disk.
        return Ok(builder.tls_certs_only(std::iter::empty()));
    }
    Ok(builder)
}

#[cfg(not(feature = "tls"))]
fn tls(builder: reqwest::ClientBuilder, base_url: &str) -> Result<reqwest::ClientBuilder, Error> {
    if is_plain(base_url) {
        return Ok(builder);
    }
    Err(Error::invalid("base URL", format!("`{base_url}` needs HTTPS, and this build has none"))
        .with_help("build coral-llm with its feature `tls`"))
}

fn is_plain(base_url: &str) -> bool {
    base_url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"))
}

#[async_trait]
impl Transport for HttpTransport {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Failure> {
        let (parts, body) = request.into_parts();
        let authority = parts.uri.authority().cloned();
        let mut request = reqwest::Request::new(parts.method, self.url(parts.uri)?);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(body.into());
        let response = self.client.execute(request).await.map_err(|error| {
            of_send(&error, authority.as_ref().map_or("the server", http::uri::Authority::as_str))
        })?;
        let response: http::Response<reqwest::Body> = response.into();
        Ok(response.map(Body::net))
    }
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
