//! The transport over sockets, by hyper.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use coral_core::{Error, ModelFault};
use http::header::{ACCEPT, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use http::uri::{Scheme, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::connect::{AGENT, Answered, Connector};
use super::{Body, Transport};
use crate::failure::Failure;
use crate::provider::Timeouts;

/// HTTP over sockets, with a pool of kept-alive connections. Cheap to clone; clones share the pool.
///
/// It goes by way of the proxies that the environment names, as curl reads it: `HTTPS_PROXY`, `HTTP_PROXY` and
/// `ALL_PROXY` (over HTTP or HTTPS, with a name and a password where they want one), and `NO_PROXY` for what goes past
/// them.
///
/// A server may close a connection that it kept at the moment at which the next request goes out on it. So where a kept
/// connection ends before the head of an answer came, the request is sent once more, on a new one. On a connection that
/// was not kept that is an error: what the server did with the request is unknown.
#[derive(Clone, Debug)]
pub struct HttpTransport {
    connector: Connector,
    client: Client,
    /// Makes a new connection for each request, once one was needed.
    fresh: Arc<OnceLock<Client>>,
}

type Client = hyper_util::client::legacy::Client<Connector, Full<Bytes>>;
type ClientError = hyper_util::client::legacy::Error;

/// How long a connection is kept that nothing is sent on.
const KEPT: Duration = Duration::from_secs(90);

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
        let url: Uri = base_url
            .parse()
            .map_err(|error| Error::invalid("base URL", format!("`{base_url}` is not a URL: {error}")))?;
        if url.scheme() != Some(&Scheme::HTTP) && cfg!(not(feature = "tls")) {
            return Err(Error::invalid(
                "base URL",
                format!("`{base_url}` needs HTTPS, and this build has none"),
            )
            .with_help("build coral-llm with its feature `tls`"));
        }
        let connector = Connector::new(&url, connect).map_err(|error| {
            Error::invalid("HTTP client", cause_of(&*error)).with_help("install the system's CA certificates")
        })?;
        let client = client(connector.clone(), usize::MAX);
        Ok(HttpTransport { connector, client, fresh: Arc::default() })
    }

    /// The request with what the transport adds to it.
    fn prepared(&self, request: http::Request<Bytes>) -> http::Request<Full<Bytes>> {
        let mut request = request.map(Full::new);
        let proxy = self.connector.proxy_authorization(request.uri());
        let headers = request.headers_mut();
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        if let Some(proxy) = proxy {
            headers.entry(PROXY_AUTHORIZATION).or_insert(proxy);
        }
        request
    }

    async fn send_again(
        &self,
        again: http::Request<Full<Bytes>>,
    ) -> Result<http::Response<Incoming>, ClientError> {
        self.fresh.get_or_init(|| client(self.connector.clone(), 0)).request(again).await
    }
}

fn client(connector: Connector, most_kept: usize) -> Client {
    hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(KEPT)
        .pool_max_idle_per_host(most_kept)
        .build(connector)
}

#[async_trait]
impl Transport for HttpTransport {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Failure> {
        let host = request.uri().authority().cloned();
        let request = self.prepared(request);
        // To be sent where a kept connection turns out to have ended.
        let again = Box::new(request.clone());
        let outcome = match self.client.request(request).await {
            // It is seldom needed, and would take room in the future of each call.
            Err(error) if went_away(&error) => Box::pin(self.send_again(*again)).await,
            outcome => outcome,
        };
        let response = outcome.map_err(|error| {
            of_send(&error, host.as_ref().map_or("the server", http::uri::Authority::as_str))
        })?;
        if let Some(Answered(answered)) = response.extensions().get() {
            answered.store(true, Ordering::Relaxed);
        }
        Ok(response.map(Body::net))
    }
}

/// The causes of an error, the nearest first.
fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |cause| cause.source())
}

/// What an operating system said of an error.
fn kind_of(error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    error.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
}

/// Whether a connection that was kept ended before the head of an answer came.
fn went_away(error: &ClientError) -> bool {
    let was_kept = error.connect_info().is_some_and(|connected| {
        let mut extras = http::Extensions::new();
        connected.get_extras(&mut extras);
        extras.get().is_some_and(|Answered(answered)| answered.load(Ordering::Relaxed))
    });
    was_kept
        && causes(error).any(|cause| {
            cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message)
                || matches!(
                    kind_of(cause),
                    Some(ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset)
                )
        })
}

fn of_send(error: &ClientError, host: &str) -> Failure {
    let cause = cause_of(error);
    if error.is_connect() {
        Failure::new(ModelFault::Connect, format!("no connection to `{host}`: {cause}"))
            .with_help("check that the address is right and the server runs")
    } else if timed_out(error) {
        Failure::new(ModelFault::Timeout, format!("`{host}` did not answer in time"))
    } else {
        Failure::new(ModelFault::Truncated, format!("`{host}` went away before it answered: {cause}"))
    }
}

/// Whether the operating system gave a connection up, as nothing came any more.
pub(crate) fn timed_out(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).any(|cause| kind_of(cause) == Some(ErrorKind::TimedOut))
}

/// The innermost cause of an error: those around it say which layer passed it on.
pub(crate) fn cause_of(error: &(dyn std::error::Error + 'static)) -> String {
    causes(error).last().unwrap_or(error).to_string()
}
