//! When a provider says that the same call may be made again.

use std::time::{Duration, SystemTime};

use coral_core::{Clock, SystemClock};
use http::HeaderMap;

/// Reads `retry-after-ms`, then `retry-after` as seconds or as an HTTP date, then the resets of limits that are used up.
/// What lies in the past is no hint.
pub(crate) fn from_headers(headers: &HeaderMap) -> Option<u64> {
    if let Some(ms) = text(headers, "retry-after-ms").and_then(|t| t.parse::<f64>().ok()) {
        return positive(ms);
    }
    let Some(after) = text(headers, "retry-after") else { return from_resets(headers) };
    if let Ok(seconds) = after.parse::<f64>() {
        return positive(seconds * 1_000.0);
    }
    until(httpdate::parse_http_date(after).ok()?, headers)
}

/// What limits are called, with a place for `remaining` or `reset`.
const LIMITS: [&str; 6] = [
    "x-ratelimit-{}-requests",
    "x-ratelimit-{}-tokens",
    "anthropic-ratelimit-requests-{}",
    "anthropic-ratelimit-tokens-{}",
    "anthropic-ratelimit-input-tokens-{}",
    "anthropic-ratelimit-output-tokens-{}",
];

/// The latest reset of all limits of which nothing remains: a duration, or a time by RFC 3339.
fn from_resets(headers: &HeaderMap) -> Option<u64> {
    LIMITS
        .iter()
        .filter(|name| text(headers, &name.replace("{}", "remaining")) == Some("0"))
        .filter_map(|name| {
            let reset = text(headers, &name.replace("{}", "reset"))?;
            duration_ms(reset).or_else(|| until(rfc3339(reset)?, headers))
        })
        .max()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Milliseconds until `then`, by the sender's own clock where it says its time.
fn until(then: SystemTime, headers: &HeaderMap) -> Option<u64> {
    let now = text(headers, "date")
        .and_then(|date| httpdate::parse_http_date(date).ok())
        .unwrap_or_else(|| SystemTime::UNIX_EPOCH + Duration::from_millis(SystemClock.now_ms()));
    positive(then.duration_since(now).ok()?.as_secs_f64() * 1_000.0)
}

/// A time such as `2026-10-21T07:28:00Z`, to the second and in UTC, as providers write it.
fn rfc3339(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers =
        |text: &str, by: char| text.split(by).map(|n| n.parse::<u64>().ok()).collect::<Option<Vec<u64>>>();
    let whole = time.split('.').next().unwrap_or(time);
    let ([year, month, day], [hour, minute, second]) =
        (numbers(date, '-')?.try_into().ok()?, numbers(whole, ':')?.try_into().ok()?);
    if !(1970..=9999).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    // The year is made to begin in March, so that the leap day is its last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let seconds = days.checked_sub(719_468)? * 86_400 + hour * 3_600 + minute * 60 + second;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// What a sentence says, such as `Please try again in 1.2s.` or `Try again in 7 seconds`.
pub(crate) fn from_text(text: &str) -> Option<u64> {
    const PHRASES: [&str; 3] = ["try again in ", "retry in ", "retry after "];
    let text = text.to_ascii_lowercase();
    let rest = PHRASES.iter().find_map(|phrase| Some(text.split_once(phrase)?.1))?;
    let mut words = rest.split_whitespace();
    let first = words.next()?.trim_end_matches(['.', ',', ')']);
    if let Some(ms) = duration_ms(first) {
        return Some(ms);
    }
    let factor = match words.next()?.trim_end_matches(['.', ',', ')']) {
        "ms" | "milliseconds" => 1.0,
        "s" | "sec" | "second" | "seconds" => 1_000.0,
        "minute" | "minutes" => 60_000.0,
        _ => return None,
    };
    positive(first.parse::<f64>().ok()? * factor)
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
    fn limits_that_are_used_up_say_when_they_are_reset() {
        check(
            &[("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "6m0s")],
            Some(360_000),
        );
        check(&[("x-ratelimit-remaining-requests", "3"), ("x-ratelimit-reset-requests", "6m0s")], None);
        check(
            &[
                ("date", "Wed, 21 Oct 2026 07:28:00 GMT"),
                ("anthropic-ratelimit-requests-remaining", "0"),
                ("anthropic-ratelimit-requests-reset", "2026-10-21T07:28:10Z"),
                ("anthropic-ratelimit-input-tokens-remaining", "0"),
                ("anthropic-ratelimit-input-tokens-reset", "2026-10-21T07:29:00Z"),
                ("anthropic-ratelimit-output-tokens-remaining", "9"),
                ("anthropic-ratelimit-output-tokens-reset", "2026-10-21T09:29:00Z"),
            ],
            Some(60_000),
        );
        for wrong in ["soon", "2026-10-21", "2026-13-21T07:28:10Z", "2026-10-21T07:28Z", "-1-1-1T1:1:1Z"] {
            assert_eq!(rfc3339(wrong), None, "{wrong}");
        }
        for (text, ms) in [("1970-01-01T00:00:00Z", 0), ("2024-02-29T12:00:00.5Z", 1_709_208_000_000)] {
            assert_eq!(rfc3339(text), Some(SystemTime::UNIX_EPOCH + Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn sentences_are_read() {
        for (text, expected) in [
            ("Rate limit reached. Please try again in 1.2s. Visit the page.", Some(1_200)),
            ("please TRY AGAIN in 6m0s", Some(360_000)),
            ("Try again in 7 seconds.", Some(7_000)),
            ("retry after 120ms", Some(120)),
            ("try again in a while", None),
            ("slow down", None),
        ] {
            assert_eq!(from_text(text), expected, "{text}");
        }
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
