//! How things are written for people.

/// Milliseconds, such as `840 ms`, `12.3 s` or `4 min 05 s`.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1_000.0),
        _ => format!("{} min {:02} s", ms / 60_000, ms / 1_000 % 60),
    }
}

/// A number with commas: `12,345`.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Dollars, with as many digits as a small sum needs; a dash where the price is not known.
pub fn dollars(usd: Option<f64>) -> String {
    match usd {
        None => "–".to_owned(),
        Some(usd) if usd > 0.0 && usd < 0.01 => format!("${usd:.5}"),
        Some(usd) => format!("${usd:.2}"),
    }
}

/// Bytes, such as `812 B` or `4.1 kB`.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        _ => format!("{:.1} MB", n as f64 / 1e6),
    }
}

/// `1 file`, `2 files`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// The text in `max` characters at the most.
pub fn shortened(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// The text for HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A link to a file beside the page. Whatever a model calls a file, it is a path and not a scheme.
pub fn href(path: &str) -> String {
    let mut out = String::from("./");
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                out.push(char::from(byte))
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([7, 1_250, 245_000].map(duration), ["7 ms", "1.2 s", "4 min 05 s"]);
        assert_eq!([812, 4_096, 2_500_000].map(bytes), ["812 B", "4.1 kB", "2.5 MB"]);
        assert_eq!(
            [None, Some(0.0), Some(0.0012), Some(1.5)].map(dollars),
            ["–", "$0.00", "$0.00120", "$1.50"]
        );
        assert_eq!(shortened("abcdef", 4), "abc…");
        assert_eq!(href("docs/a b.md"), "./docs/a%20b.md");
        assert_eq!(href("javascript:x"), "./javascript%3Ax");
    }
}
