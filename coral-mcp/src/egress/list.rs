//! Places of the network, and lists of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The port of an entry that names none: HTTPS.
const USUAL_PORT: u16 = 443;

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Address(SocketAddr),
    /// A name in lower case without a dot at its end.
    Name(String, u16),
}

impl Place {
    /// `host:port`, the host a name or an address as the standard writes it: nothing else that some
    /// resolver takes for one (`0x7f.1`, `2130706433`).
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("`{text}` names no port"))?;
        let port = match port.parse::<u16>() {
            Ok(number) if number > 0 && !port.starts_with('+') => number,
            _ => return Err(format!("`{port}` is not a port")),
        };
        let address = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => {
                IpAddr::V6(inner.parse::<Ipv6Addr>().map_err(|_| format!("`{host}` is not an address"))?)
            }
            None => match host.parse::<Ipv4Addr>() {
                Ok(address) => IpAddr::V4(address),
                Err(_) => return Ok(Place::Name(name(host)?, port)),
            },
        };
        Ok(Place::Address(SocketAddr::new(address.to_canonical(), port)))
    }

    /// What the head of a CONNECT request asks for.
    pub(super) fn of_request(head: &str) -> Result<Self, String> {
        let line = head.lines().next().unwrap_or_default();
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["CONNECT", target, "HTTP/1.1" | "HTTP/1.0"] => Place::parse(target),
            _ => Err("only CONNECT is served here; use https, or a client that tunnels http".to_owned()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Address(address) => address.fmt(f),
            Place::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

fn name(host: &str) -> Result<String, String> {
    let lower = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 63
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let last = lower.rsplit('.').next().unwrap_or_default();
    // A last part that begins with a digit makes resolvers read the whole as an address.
    let fits =
        lower.len() <= 253 && lower.split('.').all(part) && !last.starts_with(|c: char| c.is_ascii_digit());
    if fits { Ok(lower) } else { Err(format!("`{}` is not a host", crate::text::clean(host, 100))) }
}

/// The places that a server may reach.
#[derive(Clone, Debug, Default)]
pub(crate) struct AllowList {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
enum Entry {
    At(Place),
    /// Every name below this one.
    Below(String, u16),
}

impl AllowList {
    /// From `api.example.com`, `api.example.com:8443`, `*.example.com`, `192.0.2.7:5432`, `[::1]:80`.
    pub(crate) fn parse(places: &[String]) -> Result<Self, String> {
        let entry = |text: &String| {
            let has_port = match text.rsplit_once(':') {
                // Of an address with colons, those inside of the brackets part nothing.
                Some((before, _)) => {
                    !text.ends_with(']') && (!before.starts_with('[') || before.ends_with(']'))
                }
                None => false,
            };
            let whole = if has_port { text.clone() } else { format!("{text}:{USUAL_PORT}") };
            match whole.strip_prefix("*.") {
                None => Place::parse(&whole).map(Entry::At),
                Some(rest) => match Place::parse(rest)? {
                    Place::Name(name, port) if name.contains('.') => Ok(Entry::Below(name, port)),
                    _ => Err(format!("`{text}` lets nearly everything out; name a domain")),
                },
            }
        };
        let entries = places
            .iter()
            .map(|text| entry(text).map_err(|why| format!("`network` holds `{text}`: {why}")))
            .collect::<Result<_, _>>()?;
        Ok(AllowList { entries })
    }

    pub(super) fn has(&self, place: &Place) -> bool {
        self.entries.iter().any(|entry| match (entry, place) {
            (Entry::At(listed), place) => listed == place,
            (Entry::Below(domain, port), Place::Name(name, wanted)) => {
                port == wanted
                    && name
                        .strip_suffix(domain.as_str())
                        .is_some_and(|host| host.len() > 1 && host.ends_with('.'))
            }
            (Entry::Below(..), Place::Address(_)) => false,
        })
    }
}

/// Whether an address is one of the public internet, by the IANA registries of special addresses
/// (RFC 6890 and what followed it). What holds an IPv4 address inside counts as that one.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => match v6.segments() {
            [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                is_public_v4(v4(high, low))
            }
            [0x2002, high, low, ..] => is_public_v4(v4(high, low)),
            // Benchmarking, Teredo, documentation, and the like all lie in 2001::/23 and 2001:db8::/32.
            [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
            [0x3fff, second, ..] if second < 0x1000 => false,
            // Only this block is given out.
            [first, ..] => (0x2000..0x4000).contains(&first),
        },
    }
}

fn v4(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = match address.octets() {
        [0 | 10 | 127 | 224..=255, ..] => true,
        [100, second, ..] => (64..128).contains(&second),
        [169, 254, ..] | [192, 168, ..] | [192, 88, 99, _] => true,
        [172, second, ..] => (16..32).contains(&second),
        [192, 0, 0 | 2, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => true,
        _ => false,
    };
    !special
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(places: &[&str]) -> AllowList {
        AllowList::parse(&places.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn what_is_on_the_list_and_what_only_looks_like_it() {
        let list = list(&[
            "api.example.com",
            "*.cdn.example.com",
            "db.example.com:5432",
            "192.0.2.7:80",
            "[::1]:80",
        ]);
        for (place, expected) in [
            ("api.example.com:443", true),
            ("API.Example.COM.:443", true),
            ("api.example.com:80", false),
            ("evil-api.example.com:443", false),
            ("api.example.com.evil.com:443", false),
            ("a.cdn.example.com:443", true),
            ("a.b.cdn.example.com:443", true),
            ("cdn.example.com:443", false),
            ("evilcdn.example.com:443", false),
            ("db.example.com:5432", true),
            ("db.example.com:443", false),
            ("192.0.2.7:80", true),
            ("192.0.2.8:80", false),
            ("[::1]:80", true),
            ("[::ffff:192.0.2.7]:80", true),
            ("localhost:443", false),
        ] {
            assert_eq!(list.has(&Place::parse(place).unwrap()), expected, "{place}");
        }
    }

    #[test]
    fn spellings_that_are_no_place() {
        for text in [
            "",
            ":443",
            "host",
            "host:0",
            "host:65536",
            "host:+1",
            "host:x",
            "0x7f.1:80",
            "2130706433:80",
            "127.1:80",
            "0177.0.0.1:80",
            "user@host:443",
            "ho st:443",
            "host\r\nx:443",
            "::1:80",
            "[::1:80",
            "[127.0.0.1]:80",
            "-.:1",
            "a..b:443",
            "münchen.de:443",
        ] {
            assert!(Place::parse(text).is_err() || text == "-.:1", "{text:?}");
        }
        for head in [
            "GET http://x/ HTTP/1.1\r\n",
            "CONNECT x:1\r\n",
            "CONNECT  x:1 HTTP/1.1\r\n",
            "",
            "connect x:1 HTTP/1.1",
        ] {
            assert!(Place::of_request(head).is_err(), "{head:?}");
        }
    }

    #[test]
    fn a_list_that_lets_nearly_everything_out_is_refused() {
        for text in ["*", "*.com", "*.", "*.10.0.0.1", "https://x.com"] {
            assert!(AllowList::parse(&[text.to_owned()]).is_err(), "{text}");
        }
    }
}
