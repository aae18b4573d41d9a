//! When a provider says that the same call may be made again.

use std::time::{Duration, SystemTime};

use coral_core::{Clock, SystemClock};
use http::HeaderMap;

/// Reads `retry-after-ms`, then `retry-after` as seconds or as an HTTP date. What lies in the past is no hint.
pub(crate) fn from_headers(headers: &HeaderMap) -> Option<u64> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|t| t.parse::<f64>().ok()) {
        return positive(ms);
    }
    let after = text("retry-after")?;
    if let Ok(seconds) = after.parse::<f64>() {
        return positive(seconds * 1_000.0);
    }
    let until = httpdate::parse_http_date(after).ok()?;
    // The sender's own clock is the better one to measure its date against.
    let now = text("date")
        .and_then(|date| httpdate::parse_http_date(date).ok())
        .unwrap_or_else(|| SystemTime::UNIX_EPOCH + Duration::from_millis(SystemClock.now_ms()));
    positive(until.duration_since(now).ok()?.as_secs_f64() * 1_000.0)
}

/// A duration such as `7s`, `7.5s`, `120ms` or `1m30s`, in milliseconds.
pub(crate) fn duration_ms(text: &str) -> Option<u64> {
    let mut total = 0.0;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let factor = match unit {
            "ms" => 1.0,
            "s" => 1_000.0,
            "m" => 60_000.0,
            "h" => 3_600_000.0,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * factor;
        rest = tail;
    }
    positive(total)
}

fn positive(ms: f64) -> Option<u64> {
    (ms.is_finite() && ms > 0.0).then_some(ms.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[track_caller]
    fn check(headers: &[(&'static str, &'static str)], expected: Option<u64>) {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        assert_eq!(from_headers(&headers), expected, "{headers:?}");
    }

    #[test]
    fn headers_are_read_in_the_order_of_the_official_clients() {
        check(&[("retry-after", "7")], Some(7_000));
        check(&[("retry-after", "0.25")], Some(250));
        check(&[("retry-after", "7"), ("retry-after-ms", "1500")], Some(1_500));
        check(
            &[("retry-after", "Wed, 21 Oct 2026 07:28:10 GMT"), ("date", "Wed, 21 Oct 2026 07:28:00 GMT")],
            Some(10_000),
        );
        check(
            &[("retry-after", "Wed, 21 Oct 2026 07:27:10 GMT"), ("date", "Wed, 21 Oct 2026 07:28:00 GMT")],
            None,
        );
        for nothing in ["0", "-3", "soon", "NaN", "inf"] {
            check(&[("retry-after", nothing)], None);
        }
        check(&[], None);
    }

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, expected) in [
            ("7s", Some(7_000)),
            ("7.5s", Some(7_500)),
            ("120ms", Some(120)),
            ("1m30s", Some(90_000)),
            ("7", None),
            ("s", None),
            ("5d", None),
        ] {
            assert_eq!(duration_ms(text), expected, "{text}");
        }
    }
}
