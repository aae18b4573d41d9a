//! Where this process may be sent by an address in a configuration, or by a server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use coral_core::Error;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;
use url::{Host, Url};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: usize = 5;

/// What may be connected to on behalf of one server.
///
/// Public addresses may be; private ones only if the server's rules say so, loopback also if the server
/// itself was configured to be there, and the services that hand out a machine's credentials never.
/// Names are judged by what they resolve to at the moment of the connection, so that a name can't
/// change its address in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Guard {
    private: bool,
    loopback: bool,
}

impl Guard {
    /// For a server's configured address, which is checked.
    ///
    /// # Errors
    /// Why the address can't be a server's.
    pub(crate) fn of(address: &str, private: bool) -> Result<(Url, Self), String> {
        let url = Url::parse(address)
            .map_err(|error| format!("`{}` is not an address: {error}", shown(address)))?;
        let loopback = url.host().is_some_and(|host| is_loopback(&host));
        let guard = Guard { private, loopback };
        guard.check(&url)?;
        Ok((url, guard))
    }

    /// Judges an address by what it says.
    ///
    /// # Errors
    /// Why nothing is sent there.
    pub(crate) fn check(&self, url: &Url) -> Result<(), String> {
        let said = shown(url.as_str());
        if !url.username().is_empty() || url.password().is_some() {
            return Err("an address with a user or a password in it is not used".to_owned());
        }
        let Some(host) = url.host() else { return Err(format!("`{said}` names no host")) };
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&host) => {}
            "http" => {
                return Err(format!(
                    "`{said}` must be reached by `https`: only this machine may be by `http`"
                ));
            }
            scheme => return Err(format!("`{scheme}` is not a way to reach a server: use `https`")),
        }
        let address = match host {
            Host::Ipv4(address) => IpAddr::V4(address),
            Host::Ipv6(address) => IpAddr::V6(address),
            Host::Domain(_) if is_loopback(&host) && !self.loopback && !self.private => {
                return Err(format!("`{said}` is on this machine, and the server is not"));
            }
            Host::Domain(_) => return Ok(()),
        };
        self.check_address(address)
    }

    fn check_address(&self, address: IpAddr) -> Result<(), String> {
        match Class::of(address) {
            Class::Public => Ok(()),
            Class::Loopback if self.loopback || self.private => Ok(()),
            Class::Private if self.private => Ok(()),
            Class::Never => Err(format!("{address} is not an address of servers")),
            Class::Loopback | Class::Private => Err(format!(
                "{address} is in a private network: `connection: {{private_addresses: true}}` in the server's rules allows that"
            )),
        }
    }

    /// A client that goes nowhere else. It follows redirects within the origin that keep the method.
    pub(crate) fn client(self, url: &Url) -> Result<reqwest::Client, Error> {
        let same_origin = redirect::Policy::custom(|attempt| {
            let keeps_method = matches!(attempt.status().as_u16(), 307 | 308);
            let stays =
                attempt.previous().first().is_some_and(|first| first.origin() == attempt.url().origin());
            if keeps_method && stays && attempt.previous().len() <= MAX_REDIRECTS {
                attempt.follow()
            } else {
                attempt.stop()
            }
        });
        self.build(url.scheme() == "https", same_origin)
    }

    /// A client for what precedes a token: `hops` is how many redirects it follows, each of which is
    /// judged.
    pub(crate) fn plain_client(self, hops: usize) -> Result<reqwest::Client, Error> {
        let judged = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > hops {
                return attempt.stop();
            }
            match self.check(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(problem) => attempt.error(problem),
            }
        });
        // Tokens may be had by HTTPS for a server that is not reached by it.
        self.build(cfg!(feature = "tls"), judged)
    }

    fn build(self, https: bool, redirects: redirect::Policy) -> Result<reqwest::Client, Error> {
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("coral-mcp/", env!("CARGO_PKG_VERSION")))
            // A proxy would resolve names by itself.
            .no_proxy()
            .redirect(redirects)
            // A small answer must not become a large one, whichever features other crates switch on.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .dns_resolver(Arc::new(self))
            .tcp_nodelay(true);
        let builder = tls(builder, https)?;
        builder.build().map_err(|error| {
            Error::invalid("HTTP client", error.to_string()).with_help("install the system's CA certificates")
        })
    }
}

#[cfg(feature = "tls")]
fn tls(builder: reqwest::ClientBuilder, https: bool) -> Result<reqwest::ClientBuilder, Error> {
    // The embedder's choice stays: an error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Where no certificate will be looked at, none is loaded from disk.
    Ok(if https { builder } else { builder.tls_certs_only(std::iter::empty()) })
}

#[cfg(not(feature = "tls"))]
fn tls(builder: reqwest::ClientBuilder, https: bool) -> Result<reqwest::ClientBuilder, Error> {
    if !https {
        return Ok(builder);
    }
    Err(Error::invalid("server address", "it needs HTTPS, and this build has none")
        .with_help("build coral-mcp with its feature `tls`"))
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = *self;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut refused = None;
            let mut allowed: Vec<SocketAddr> = Vec::new();
            for address in found {
                match guard.check_address(address.ip()) {
                    Ok(()) => allowed.push(address),
                    Err(problem) => refused = Some(problem),
                }
            }
            match (allowed.is_empty(), refused) {
                (true, Some(problem)) => Err(problem.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

/// An address as it may be shown: without its query, which may hold secrets.
fn shown(address: &str) -> String {
    let without_query = address.split(['?', '#']).next().unwrap_or_default();
    let without_user = match without_query.split_once("://") {
        Some((scheme, rest)) => match rest.split_once('@') {
            Some((_, after)) => format!("{scheme}://{after}"),
            None => without_query.to_owned(),
        },
        None => without_query.to_owned(),
    };
    crate::text::clean(&without_user, 300)
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => name.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Public,
    Private,
    Loopback,
    /// Nothing that serves tools: no address at all, a group, or a service that hands out the
    /// machine's credentials.
    Never,
}

impl Class {
    fn of(address: IpAddr) -> Class {
        match address {
            IpAddr::V4(address) => Class::of_v4(address),
            IpAddr::V6(address) => Class::of_v6(address),
        }
    }

    /// By the registry of special-purpose addresses (RFC 6890), and the addresses by which clouds hand
    /// out credentials.
    fn of_v4(address: Ipv4Addr) -> Class {
        let [a, b, c, d] = address.octets();
        match (a, b, c, d) {
            (127, ..) => Class::Loopback,
            (0, ..) | (169, 254, ..) | (100, 100, 100, 200) | (168, 63, 129, 16) | (224.., ..) => {
                Class::Never
            }
            (10, ..) | (172, 16..=31, ..) | (192, 168, ..) | (100, 64..=127, ..) => Class::Private,
            (192, 0, 0 | 2, _) | (198, 18 | 19, ..) | (198, 51, 100, _) | (203, 0, 113, _) => Class::Private,
            _ => Class::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Class {
        if address.is_loopback() {
            return Class::Loopback;
        }
        let [a, b, c, d, e, f, g, h] = address.segments();
        let inner = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Class::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match (a, b, c, d, e, f) {
            // An older address within: mapped, compatible, translated, tunnelled.
            (0, 0, 0, 0, 0, 0xffff | 0) | (0, 0, 0, 0, 0xffff, 0) | (0x64, 0xff9b, ..) => inner(g, h),
            (0x2002, ..) => inner(b, c),
            (0xfd00, 0x0ec2, ..) | (0xfe80..=0xfebf, ..) | (0xff00.., ..) => Class::Never,
            (0xfc00..=0xfdff, ..) | (0xfec0..=0xfeff, ..) | (0x2001, 0x0db8 | 0, ..) | (0x100, ..) => {
                Class::Private
            }
            _ => Class::Public,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn servers_are_on_public_addresses_or_where_they_were_said_to_be() {
        for (address, private, fits) in [
            ("https://mcp.example.com/mcp", false, true),
            ("http://mcp.example.com/mcp", false, false),
            ("http://127.0.0.1:3000/mcp", false, true),
            ("http://localhost:3000/mcp", false, true),
            ("http://[::1]:3000/mcp", false, true),
            ("https://10.0.0.1/mcp", false, false),
            ("https://10.0.0.1/mcp", true, true),
            ("http://10.0.0.1/mcp", true, false),
            ("https://169.254.169.254/latest", true, false),
            ("https://[fd00:ec2::254]/latest", true, false),
            ("https://[::ffff:169.254.169.254]/", true, false),
            ("https://[::ffff:10.0.0.1]/", false, false),
            ("https://[64:ff9b::a00:1]/", false, false),
            ("https://[2002:a00:1::]/", false, false),
            // Other spellings of 127.0.0.1 are that address.
            ("https://2130706433/", false, true),
            ("https://0x7f.1/", false, true),
            ("https://0.0.0.0/", true, false),
            ("https://user@example.com/", false, false),
            ("ftp://example.com/", false, false),
            ("file:///etc/passwd", false, false),
            ("javascript:alert(1)", false, false),
            ("not an address", false, false),
        ] {
            assert_eq!(Guard::of(address, private).is_ok(), fits, "{address}");
        }
    }

    #[test]
    fn a_public_server_sends_nobody_to_this_machine() {
        let (_, guard) = Guard::of("https://mcp.example.com/", false).unwrap();
        for address in
            ["http://127.0.0.1/token", "https://localhost/token", "https://LOCALHOST./", "https://[::1]/"]
        {
            assert!(guard.check(&Url::parse(address).unwrap()).is_err(), "{address}");
        }
        let (_, here) = Guard::of("http://127.0.0.1:1/", false).unwrap();
        assert!(here.check(&Url::parse("http://localhost:2/token").unwrap()).is_ok());
    }

    #[tokio::test]
    async fn names_are_judged_by_what_they_resolve_to() {
        use std::str::FromStr;
        let guard = |loopback| Guard { private: false, loopback };
        let name = || Name::from_str("localhost").unwrap();
        assert!(guard(false).resolve(name()).await.is_err());
        assert!(guard(true).resolve(name()).await.unwrap().next().is_some());
    }

    #[test]
    fn secrets_in_addresses_are_not_shown() {
        let error = Guard::of("http://me:hunter2@example.com/?key=hunter2", false).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(!shown("ftp://me:hunter2@x/?hunter2").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn any_address_is_judged_and_none_reaches_what_must_not_be(text in ".{0,60}", a: u32, b: u128) {
            let _ = Guard::of(&text, true);
            let _ = Guard::of(&format!("https://{text}"), false);
            for address in [IpAddr::V4(a.into()), IpAddr::V6(b.into()), IpAddr::V6(Ipv4Addr::from(a).to_ipv6_mapped())] {
                let strict = Guard { private: false, loopback: false };
                let lax = Guard { private: true, loopback: true };
                prop_assert!(strict.check_address(address).is_err() || lax.check_address(address).is_ok());
            }
            let mapped = IpAddr::V6(Ipv4Addr::from(a).to_ipv6_mapped());
            prop_assert_eq!(Class::of(IpAddr::V4(a.into())), Class::of(mapped));
        }
    }
}
