//! The one way out for a server that may reach some places of the network: a CONNECT proxy in this
//! process (RFC 9110, section 9.3.6), in front of a list.
//!
//! The server is in a network namespace of its own in which nothing exists but the loopback. The
//! helper opens a listener there and hands it out, so that what connects to it in there is accepted
//! here. A name is resolved here, once, and what is connected to is one of the addresses that were
//! checked: a name that leads inwards the second time it is asked for gains nothing.

mod list;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use coral_core::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::access::Verdict;
use crate::audit::{Audit, AuditEntry, AuditEvent};

pub(crate) use self::list::AllowList;
use self::list::{Place, is_public};

/// How many connections a server may have open.
const CONNECTIONS: usize = 128;
/// The longest request for a connection, in bytes.
const MAX_REQUEST: usize = 8 * 1_024;
/// How long a request, a name's resolution and a connection may take, each.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a connection may be silent on both ways.
const IDLE: Duration = Duration::from_secs(300);

/// Lets one server out to the places of its list, and records each of its tries.
pub(crate) struct Egress {
    pub(crate) server: String,
    pub(crate) allowed: AllowList,
    pub(crate) audit: Arc<dyn Audit>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// A refusal: what the server is answered, and why.
struct Refusal(&'static str, String);

fn refuse<T>(status: &'static str, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(status, why.into()))
}

const BAD_REQUEST: &str = "400 Bad Request";
const FORBIDDEN: &str = "403 Forbidden";
const BAD_GATEWAY: &str = "502 Bad Gateway";

impl Egress {
    /// Accepts until the listener is dropped, which is when the server's connection ends.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            // Taken first: what is over the bound waits in the listener's queue.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else { return };
            while connections.try_join_next().is_some() {}
            let egress = Arc::clone(&self);
            connections.spawn(async move {
                let _permit = permit;
                if let Err(error) = egress.handle(stream).await {
                    tracing::debug!(%error, server = egress.server, "a connection through the proxy ended");
                }
            });
        }
    }

    async fn handle(&self, mut inside: TcpStream) -> io::Result<()> {
        let (mut outside, early) = match self.open(&mut inside).await {
            Ok(opened) => opened,
            Err(Refusal(status, why)) => {
                let body = format!("{why}\n");
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                return inside.write_all(answer.as_bytes()).await;
            }
        };
        inside.write_all(b"HTTP/1.1 200 Connection Established\r\n\r\n").await?;
        outside.write_all(&early).await?;
        relay(inside, outside).await
    }

    /// The connection that is asked for, and what was sent along with the request.
    async fn open(&self, inside: &mut TcpStream) -> Result<(TcpStream, Vec<u8>), Refusal> {
        let (head, early) = match tokio::time::timeout(PATIENCE, read_head(inside)).await {
            Ok(Ok(head)) => head,
            Ok(Err(error)) => return refuse(BAD_REQUEST, error.to_string()),
            Err(_) => return refuse("408 Request Timeout", "the request did not come to its end"),
        };
        let place = match Place::of_request(&head) {
            Ok(place) => place,
            Err(why) => {
                let asked: String = head.lines().next().unwrap_or_default().chars().take(200).collect();
                self.record(&crate::text::clean(&asked, 200), Verdict::Deny, &why)
                    .map_err(|why| Refusal(FORBIDDEN, why))?;
                return refuse(BAD_REQUEST, why);
            }
        };
        let shown = place.to_string();
        let addresses = match self.addresses(&place).await {
            Ok(addresses) => addresses,
            Err(Refusal(status, why)) => {
                self.record(&shown, Verdict::Deny, &why).map_err(|why| Refusal(FORBIDDEN, why))?;
                return refuse(status, why);
            }
        };
        // No connection is made unrecorded.
        self.record(&shown, Verdict::Allow, "on the server's list")
            .map_err(|why| Refusal(BAD_GATEWAY, why))?;
        match tokio::time::timeout(PATIENCE, TcpStream::connect(&*addresses)).await {
            Ok(Ok(outside)) => Ok((outside, early)),
            Ok(Err(error)) => refuse(BAD_GATEWAY, format!("connecting to `{shown}` failed: {error}")),
            Err(_) => refuse("504 Gateway Timeout", format!("`{shown}` did not answer")),
        }
    }

    /// The addresses of a place that may be connected to.
    async fn addresses(&self, place: &Place) -> Result<Vec<SocketAddr>, Refusal> {
        if !self.allowed.has(place) {
            return refuse(FORBIDDEN, format!("`{place}` is not on the list of server `{}`", self.server));
        }
        let (name, port) = match place {
            Place::Address(address) => return Ok(vec![*address]),
            Place::Name(name, port) => (name.as_str(), *port),
        };
        let found = match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((name, port))).await {
            Ok(Ok(found)) => found.collect::<Vec<_>>(),
            Ok(Err(error)) => return refuse(BAD_GATEWAY, format!("`{name}` could not be resolved: {error}")),
            Err(_) => return refuse(BAD_GATEWAY, format!("`{name}` could not be resolved in time")),
        };
        self.checked(name, found)
    }

    /// `found`, if all of it may be connected to: a name on the list must not lead into the network
    /// that this machine is in, unless that address is on the list too.
    fn checked(&self, name: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refusal> {
        let within = |address: &&SocketAddr| {
            !is_public(address.ip()) && !self.allowed.has(&Place::Address(unmapped(**address)))
        };
        if let Some(address) = found.iter().find(within) {
            return refuse(
                FORBIDDEN,
                format!(
                    "`{name}` leads to {}, which is not a public address and not on the list",
                    address.ip()
                ),
            );
        }
        if found.is_empty() {
            return refuse(BAD_GATEWAY, format!("`{name}` has no address"));
        }
        Ok(found)
    }

    fn record(&self, to: &str, verdict: Verdict, rule: &str) -> Result<(), String> {
        let event = AuditEvent::Connected { to: to.to_owned(), verdict, rule: rule.to_owned() };
        let entry =
            AuditEntry { server: self.server.clone(), event, ..AuditEntry::note(self.clock.now_ms(), "") };
        self.audit.append(entry).map_err(|error| format!("the connection could not be recorded: {error}"))
    }
}

/// An IPv4 address that is written as an IPv6 one, as the former.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The request's head, as text, and what came after it.
async fn read_head(stream: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 1_024];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the request is not whole"));
        }
        bytes.extend(buffer.iter().take(n));
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let early = bytes.split_off(end + 4);
            let head = String::from_utf8(bytes)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the request is not text"))?;
            return Ok((head, early));
        }
        if bytes.len() > MAX_REQUEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the request is too long"));
        }
    }
}

/// Passes bytes both ways until both ends are done, or nothing came for long.
async fn relay(inside: TcpStream, outside: TcpStream) -> io::Result<()> {
    let (mut from_inside, mut to_inside) = inside.into_split();
    let (mut from_outside, mut to_outside) = outside.into_split();
    let last = std::sync::Mutex::new(tokio::time::Instant::now());
    let touch =
        || *last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = tokio::time::Instant::now();
    let copy = async |from: &mut tokio::net::tcp::OwnedReadHalf, to: &mut tokio::net::tcp::OwnedWriteHalf| {
        let mut buffer = vec![0; 16 * 1_024];
        loop {
            let n = from.read(&mut buffer).await?;
            touch();
            let Some(read) = buffer.get(..n).filter(|read| !read.is_empty()) else {
                return to.shutdown().await;
            };
            to.write_all(read).await?;
        }
    };
    let silent = async {
        loop {
            let since = *last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if since.elapsed() >= IDLE {
                return;
            }
            tokio::time::sleep_until(since + IDLE).await;
        }
    };
    tokio::select! {
        both = async { tokio::try_join!(copy(&mut from_inside, &mut to_outside), copy(&mut from_outside, &mut to_inside)) } => both.map(drop),
        () = silent => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was sent for long")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::MemoryAudit;

    fn egress(allowed: &[&str]) -> Egress {
        let allowed: Vec<String> = allowed.iter().map(|s| (*s).to_owned()).collect();
        Egress {
            server: "s".into(),
            allowed: AllowList::parse(&allowed).unwrap(),
            audit: Arc::new(MemoryAudit::new()),
            clock: Arc::new(coral_core::SystemClock),
        }
    }

    #[test]
    fn a_name_that_leads_inwards_is_refused_whatever_else_it_leads_to() {
        let plain = egress(&["api.example.com"]);
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 443);
        assert!(plain.checked("api.example.com", vec![at("93.184.215.14"), at("2606:2800:21f::1")]).is_ok());
        for ip in [
            "127.0.0.1",
            "10.0.0.8",
            "172.16.3.4",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "198.18.0.1",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            let refused = plain.checked("api.example.com", vec![at("93.184.215.14"), at(ip)]);
            assert!(refused.is_err(), "{ip}");
        }
        assert!(plain.checked("api.example.com", Vec::new()).is_err());
        let inward = egress(&["db.internal", "10.0.0.8:443"]);
        assert!(inward.checked("db.internal", vec![at("10.0.0.8")]).is_ok());
        assert!(inward.checked("db.internal", vec![at("10.0.0.9")]).is_err());
    }
}
