//! Addresses in arguments: which host is meant, and whether it may be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// Longer addresses are refused.
const MAX: usize = 8 * 1_024;

/// Names that lead into the own machine or network.
const PRIVATE: [&str; 7] = ["localhost", "local", "internal", "intranet", "lan", "home", "corp"];

/// The host of an address, in lower case and without a dot at its end.
///
/// What name a resolver leads where is not visible here: the network of the server's sandbox sees
/// to that.
///
/// # Errors
/// Why the address is refused: what is not HTTP, carries a password, is spelled in a way that
/// readers take differently, or leads into the own machine or network unless `private` allows that.
pub(crate) fn host(text: &str, private: bool) -> Result<String, String> {
    if text.len() > MAX {
        return Err(format!("an address of {} bytes is longer than {MAX}", text.len()));
    }
    if text.chars().any(|c| c.is_whitespace() || c == '\\' || crate::path::is_unseen(c)) {
        return Err("the address holds spaces, backslashes or characters that are not seen".to_owned());
    }
    let url = Url::parse(text).map_err(|error| format!("`{text}` is not an address: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("`{}:` is not an address of the web", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() || authority(text).contains('@') {
        return Err("the address holds a user's name or password".to_owned());
    }
    let host = url.host().ok_or_else(|| format!("`{text}` names no host"))?;
    let (shown, is_private) = match host {
        Host::Domain(name) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let last = name.rsplit('.').next().unwrap_or_default();
            let bare = !name.contains('.');
            let is_private = bare || PRIVATE.contains(&last);
            (name, is_private)
        }
        Host::Ipv4(ip) => (ip.to_string(), is_private(IpAddr::V4(ip))),
        Host::Ipv6(ip) => (ip.to_string(), is_private(IpAddr::V6(ip))),
    };
    if shown.is_empty() {
        return Err(format!("`{text}` names no host"));
    }
    if is_private && !private {
        return Err(format!("`{shown}` is not a host of the public network"));
    }
    Ok(shown)
}

fn authority(text: &str) -> &str {
    let rest = text.split_once("//").map_or(text, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

/// Whether an address is not one of the public network: IANA's special-purpose registries.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_private_v4(ip),
        IpAddr::V6(ip) => is_private_v6(ip),
    }
}

fn is_private_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    matches!(
        (a, b, c),
        (0 | 10 | 127, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18..=19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224..=255, _, _)
    )
}

fn is_private_v6(ip: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let inner = |g: u16, h: u16| {
        let ([a, b], [c, d]) = (g.to_be_bytes(), h.to_be_bytes());
        is_private_v4(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b, c, d, e, f) {
        // Mapped, compatible and translated addresses of the older protocol; `::` and `::1`.
        (0, 0, 0, 0, 0, 0xffff) => inner(g, h),
        (0, 0, 0, 0, 0, 0) => true,
        (0x64, 0xff9b, 0, 0, 0, 0) => inner(g, h),
        (0x64, 0xff9b, ..) | (0x100, ..) => true,
        (0x2002, ..) => inner(b, c),
        (0x2001, 0..=0x1ff | 0xdb8, ..) => true,
        // Only 2000::/3 is given out.
        _ => a & 0xe000 != 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn public_hosts_pass() {
        for (text, expected) in [
            ("https://docs.rs/serde", "docs.rs"),
            ("http://Example.COM./a?b#c", "example.com"),
            ("https://8.8.8.8:443/", "8.8.8.8"),
            ("https://[2606:4700::1]/", "2606:4700::1"),
            ("https://bücher.de/", "xn--bcher-kva.de"),
            ("https://example.com/a@b", "example.com"),
        ] {
            assert_eq!(host(text, false).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn ways_into_the_own_network_are_refused() {
        for text in [
            "http://127.0.0.1/",
            "http://localhost/",
            "http://LOCALHOST./",
            "http://a.localhost",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://017700000001/",
            "http://127.1/",
            "http://0/",
            "http://0.0.0.0:80/",
            "http://[::1]/",
            "http://[::]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[2002:7f00:1::]/",
            "http://[fe80::1]/",
            "http://[fc00::1]/",
            "http://169.254.169.254/latest",
            "http://10.0.0.1/",
            "http://192.168.1.1",
            "http://172.31.0.1",
            "http://100.64.0.1",
            "http://metadata.google.internal/",
            "http://printer.local",
            "http://db/",
            "http://①②⑦.0.0.1/",
            "http://user@example.com/",
            "http://a:b@example.com",
            "http://@example.com/",
            "http://example.com\\@127.0.0.1/",
            "http://exa mple.com",
            "http://example.com/\r\nHost: x",
            "ftp://example.com/",
            "file:///etc/passwd",
            "gopher://x.com/",
            "javascript:alert(1)",
            "data:text/html,x",
            "//example.com/",
            "example.com",
            "",
            "http://",
            "http:///x",
            "http://ex\u{200b}ample.com/",
        ] {
            assert!(host(text, false).is_err(), "{text}: {:?}", host(text, false));
        }
        assert_eq!(host("http://127.0.0.1:8080/", true).as_deref(), Ok("127.0.0.1"));
        assert!(host("file:///etc/passwd", true).is_err());
    }

    proptest! {
        #[test]
        fn no_spelling_of_an_address_gets_around(ip in any::<u32>(), form in 0..4_u8) {
            let [a, b, c, d] = ip.to_be_bytes();
            let text = match form {
                0 => format!("http://{a}.{b}.{c}.{d}/"),
                1 => format!("http://{ip}/"),
                2 => format!("http://0x{ip:x}/"),
                _ => format!("http://[::ffff:{a}.{b}.{c}.{d}]/"),
            };
            let expected = is_private(IpAddr::V4(Ipv4Addr::from(ip)));
            prop_assert_eq!(host(&text, false).is_err(), expected, "{}", text);
        }

        #[test]
        fn nothing_breaks_the_guard(text in "\\PC{0,80}", bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = host(&text, false);
            let _ = host(&format!("http://{text}"), true);
            let _ = host(&String::from_utf8_lossy(&bytes), false);
        }
    }
}
