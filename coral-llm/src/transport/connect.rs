//! How connections are made: to the server, or by way of the proxy that the environment names.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::USER_AGENT;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::tls;

/// How long a connection may be silent until it is asked whether it still stands, how long each such question may go
/// unanswered, and after how many of these it does not stand any more.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(15), 3);

/// How long what was sent may go unacknowledged.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

type Failed = Box<dyn std::error::Error + Send + Sync>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, Failed>> + Send>>;

/// What proxies and servers are told of who asks.
pub(super) const AGENT: &str = concat!("coral-llm/", env!("CARGO_PKG_VERSION"));

/// Makes connections, each within one limit of time. It is cloned for each request.
#[derive(Clone)]
pub(super) struct Connector(Arc<Ways>);

struct Ways {
    limit: Duration,
    route: Route,
    settings: tls::Settings,
}

/// The way of the bytes, of which TLS knows nothing.
#[derive(Clone)]
struct Route {
    tcp: HttpConnector,
    /// Reaches proxies, which may want TLS for themselves.
    to_proxy: tls::Over<HttpConnector>,
    /// Those that the environment names, if it names any.
    proxies: Option<Arc<Matcher>>,
}

/// The proxies that the environment names, as curl reads it: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`.
fn proxies() -> Option<Arc<Matcher>> {
    const NAMES: [&str; 6] =
        ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    NAMES.iter().any(|name| std::env::var_os(name).is_some()).then(|| Arc::new(Matcher::from_env()))
}

fn is_secure(uri: &Uri) -> bool {
    uri.scheme() == Some(&Scheme::HTTPS)
}

impl Connector {
    /// One that can reach `url`, and takes no longer than `limit` for a connection, TLS and proxies included.
    ///
    /// # Errors
    /// What is wrong with the system's certificates.
    pub(super) fn new(url: &Uri, limit: Duration) -> Result<Self, Failed> {
        let mut tcp = HttpConnector::new();
        let (idle, interval, retries) = KEEPALIVE;
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(idle));
        tcp.set_keepalive_interval(Some(interval));
        tcp.set_keepalive_retries(Some(retries));
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        // It is shared out among the addresses of a name, so that one that is silent leaves time for the next.
        tcp.set_connect_timeout(Some(limit));
        // What is `https` is TLS's business.
        tcp.enforce_http(!cfg!(feature = "tls"));
        let proxies = proxies();
        let proxy = proxies.as_ref().and_then(|proxies| proxies.intercept(url));
        let by_secure_proxy = || proxy.is_some_and(|proxy| is_secure(proxy.uri()));
        let settings = tls::settings(is_secure(url) || by_secure_proxy())?;
        let to_proxy = tls::over(tcp.clone(), &settings);
        Ok(Connector(Arc::new(Ways { limit, route: Route { tcp, to_proxy, proxies }, settings })))
    }

    /// What the proxy wants to be told with each request to `to`, if that goes by way of one that reads requests.
    pub(super) fn proxy_authorization(&self, to: &Uri) -> Option<HeaderValue> {
        if is_secure(to) {
            return None;
        }
        self.0.route.proxy(to)?.basic_auth().cloned()
    }
}

impl Ways {
    async fn connect(&self, to: Uri) -> Result<tls::Stream<Hop>, Failed> {
        let connecting = tls::over(self.route.clone(), &self.settings).call(to);
        match tokio::time::timeout(self.limit, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(format!("none was made within {} s", self.limit.as_secs_f32()).into()),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = tls::Stream<Hop>;
    type Error = Failed;
    type Future = Connecting<tls::Stream<Hop>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let ways = Arc::clone(&self.0);
        Box::pin(async move { ways.connect(to).await })
    }
}

impl Service<Uri> for Route {
    type Response = Hop;
    type Error = Failed;
    type Future = Connecting<Hop>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let mut route = self.clone();
        Box::pin(async move {
            match route.proxy(&to) {
                None => Ok(Hop::new(tls::plain(route.tcp.call(to).await?))),
                Some(proxy) => route.by(&proxy, to).await,
            }
        })
    }
}

impl Route {
    fn proxy(&self, to: &Uri) -> Option<Intercept> {
        self.proxies.as_ref()?.intercept(to)
    }

    async fn by(&mut self, proxy: &Intercept, to: Uri) -> Result<Hop, Failed> {
        let address = proxy.uri().clone();
        if !is_secure(&to) {
            return Ok(Hop { reads_requests: true, ..Hop::new(self.to_proxy.call(address).await?) });
        }
        let told = HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static(AGENT))]);
        let mut tunnel = Tunnel::new(address, self.to_proxy.clone()).with_headers(told);
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        Ok(Hop::new(tunnel.call(to).await?))
    }
}

type Leg = tls::Stream<TokioIo<TcpStream>>;

/// A connection to the server or to a proxy.
pub(super) struct Hop {
    leg: Leg,
    /// Whether it leads to a proxy that is told with each request where that is to go.
    reads_requests: bool,
    answered: Answered,
}

/// Whether a connection brought an answer before: then it was kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Answered(pub(super) Arc<AtomicBool>);

impl Hop {
    fn new(leg: Leg) -> Self {
        Hop { leg, reads_requests: false, answered: Answered::default() }
    }

    fn leg(self: Pin<&mut Self>) -> Pin<&mut Leg> {
        Pin::new(&mut self.get_mut().leg)
    }
}

impl Connection for Hop {
    fn connected(&self) -> Connected {
        self.leg.connected().proxy(self.reads_requests).extra(self.answered.clone())
    }
}

impl Read for Hop {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.leg().poll_read(cx, buffer)
    }
}

impl Write for Hop {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.leg().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.leg().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.leg().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.leg.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.leg().poll_write_vectored(cx, slices)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("limit", &self.0.limit).finish_non_exhaustive()
    }
}
