//! When a grant or rule is in force.

/// A span of time, and the hours of the day within it. Times are UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) from_ms: Option<u64>,
    pub(crate) until_ms: Option<u64>,
    /// Minutes since midnight; the end may lie before the beginning, over midnight.
    pub(crate) hours: Option<(u32, u32)>,
}

impl Window {
    pub(crate) fn is_open(&self, now_ms: u64) -> bool {
        let minute = u32::try_from(now_ms / 60_000 % 1_440).unwrap_or(0);
        self.from_ms.is_none_or(|from| now_ms >= from)
            && self.until_ms.is_none_or(|until| now_ms < until)
            && self.hours.is_none_or(|(from, until)| match from < until {
                true => (from..until).contains(&minute),
                false => minute >= from || minute < until,
            })
    }

    pub(super) fn check(&self, now_ms: u64) -> Result<(), String> {
        if let Some(from) = self.from_ms.filter(|from| now_ms < *from) {
            return Err(format!("begins at {}", coral_core::rfc3339(from)));
        }
        if let Some(until) = self.until_ms.filter(|until| now_ms >= *until) {
            return Err(format!("ended at {}", coral_core::rfc3339(until)));
        }
        match self.hours {
            Some((from, until)) if !self.is_open(now_ms) => Err(format!(
                "holds from {:02}:{:02} to {:02}:{:02} UTC only",
                from / 60,
                from % 60,
                until / 60,
                until % 60
            )),
            _ => Ok(()),
        }
    }
}

/// A minute and a day in milliseconds.
#[cfg(feature = "cedar")]
const MINUTE_MS: u64 = 60_000;
#[cfg(feature = "cedar")]
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

#[cfg(feature = "cedar")]
impl Window {
    /// When the window next opens or closes after `now_ms`; the end of time if never.
    pub(crate) fn next_change(&self, now_ms: u64) -> u64 {
        let ends = [self.from_ms, self.until_ms].into_iter().flatten();
        let midnight = now_ms - now_ms % DAY_MS;
        let (from, until) = self.hours.unzip();
        let hours = [from, until].into_iter().flatten().map(|minute| {
            let today = midnight.saturating_add(u64::from(minute) * MINUTE_MS);
            if today > now_ms { today } else { today.saturating_add(DAY_MS) }
        });
        ends.chain(hours).filter(|at| *at > now_ms).min().unwrap_or(u64::MAX)
    }
}

/// `08:00-18:00` in minutes since midnight.
pub(super) fn parse_hours(text: &str) -> Option<(u32, u32)> {
    let minute = |part: &str| {
        let (h, m) = part.trim().split_once(':')?;
        let (h, m) = (digits(h, 2)?, digits(m, 2)?);
        (h < 24 && m < 60).then_some(h * 60 + m)
    };
    let (from, until) = text.split_once('-')?;
    let (from, until) = (minute(from)?, minute(until)?);
    (from != until).then_some((from, until))
}

fn digits(text: &str, width: usize) -> Option<u32> {
    (text.len() == width && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// An RFC 3339 time in milliseconds since the Unix epoch; `None` before it.
pub(super) fn parse_rfc3339(text: &str) -> Option<u64> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-');
    let (year, month, day) = (digits(date.next()?, 4)?, digits(date.next()?, 2)?, digits(date.next()?, 2)?);
    let zone = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = (time.get(..zone)?, time.get(zone..)?);
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let (h, m) = zone.get(1..)?.split_once(':')?;
            let minutes = i64::from(digits(h, 2)? * 60 + digits(m, 2)?);
            if zone.starts_with('-') { -minutes } else { minutes }
        }
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':');
    let (h, m, s) = (digits(clock.next()?, 2)?, digits(clock.next()?, 2)?, digits(clock.next()?, 2)?);
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days_in_month = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if day == 0 || day > days_in_month || h > 23 || m > 59 || s > 59 {
        return None;
    }
    let millis: String = fraction.chars().chain("000".chars()).take(3).collect();
    let millis = digits(&millis, 3)?;
    // Howard Hinnant's `days_from_civil`, https://howardhinnant.github.io/date_algorithms.html
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let yoe = year.rem_euclid(400);
    let doy = (153 * (i64::from(month) + if month > 2 { -3 } else { 9 }) + 2) / 5 + i64::from(day) - 1;
    let days = era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468;
    let minutes = days * 1_440 + i64::from(h * 60 + m) - offset;
    u64::try_from(minutes * 60_000 + i64::from(s) * 1_000 + i64::from(millis)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_back_as_they_are_written() {
        for ms in [0, 951_782_399_999, 951_782_400_000, 1_738_922_400_123, 4_102_444_800_000] {
            assert_eq!(parse_rfc3339(&coral_core::rfc3339(ms)), Some(ms));
        }
        assert_eq!(parse_rfc3339("1970-01-01T02:00:00+02:00"), Some(0));
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00.5-00:01"), Some(60_500));
        for bad in [
            "",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01",
            "2026-01-01T24:00:00Z",
            "2026-1-1T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.xZ",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn hours_may_pass_midnight() {
        let at = |h: u64, m: u64| (h * 60 + m) * 60_000;
        let day = Window { hours: parse_hours("08:00-18:00"), ..Default::default() };
        assert!(day.check(at(8, 0)).is_ok() && day.check(at(17, 59)).is_ok());
        assert!(day.check(at(7, 59)).is_err() && day.check(at(18, 0)).is_err());
        let night = Window { hours: parse_hours("22:00-06:00"), ..Default::default() };
        assert!(night.check(at(23, 0)).is_ok() && night.check(at(5, 59)).is_ok());
        assert!(night.check(at(6, 0)).is_err() && night.check(at(12, 0)).is_err());
        for bad in ["", "8-18", "08:00", "25:00-26:00", "08:00-08:00", "08:60-09:00"] {
            assert_eq!(parse_hours(bad), None, "{bad}");
        }
    }
}
