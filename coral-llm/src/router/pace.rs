//! How fast models answer, as measured.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use coral_core::Usage;
use tokio::time::Instant;

/// The pace of one model: a moving average of its calls, which forgets.
///
/// It is reckoned per output token, since those take the time, with a start that every call has. A model that was not
/// called for a while is judged by its catalogue entry again, so that one slow hour does not shut it out for good.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Option<Measured>>);

#[derive(Clone, Copy, Debug)]
struct Measured {
    ms_per_token: f64,
    at: Instant,
}

/// What a call takes before its first token, in output tokens.
const START: u64 = 50;

/// How much the newest call counts.
const NEWEST: f64 = 0.3;

/// How long a measurement counts.
const LIFETIME: Duration = Duration::from_secs(600);

impl Pace {
    /// Notes a call that took `took`, whether it was answered or not.
    pub(super) fn note(&self, usage: Usage, took: Duration) {
        let tokens = usage.output_tokens.saturating_add(START);
        let newest = took.as_secs_f64() * 1_000.0 / tokens as f64;
        let mut measured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ms_per_token = match *measured {
            Some(old) if old.at.elapsed() < LIFETIME => {
                old.ms_per_token + NEWEST * (newest - old.ms_per_token)
            }
            _ => newest,
        };
        *measured = Some(Measured { ms_per_token, at: Instant::now() });
    }

    /// Milliseconds that a call with `output_tokens` is expected to take, and whether that was measured. Without
    /// measurements the catalogue's speed decides, from 1 (slow) to 3 (fast).
    pub(super) fn expect_ms(&self, output_tokens: u64, speed: u8) -> (u64, bool) {
        let measured = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = measured.filter(|measured| measured.at.elapsed() < LIFETIME);
        // Some 30, 80 and 200 tokens a second.
        let guess = match speed {
            0 | 1 => 33.0,
            2 => 12.5,
            _ => 5.0,
        };
        let ms_per_token = fresh.map_or(guess, |measured| measured.ms_per_token);
        let tokens = output_tokens.saturating_add(START) as f64;
        ((ms_per_token * tokens) as u64, fresh.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(output_tokens: u64) -> Usage {
        Usage { output_tokens, ..Usage::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_measured_counts_until_it_is_old() {
        let pace = Pace::default();
        assert_eq!(pace.expect_ms(950, 3), (5_000, false));
        pace.note(answered(950), Duration::from_secs(20));
        assert_eq!(pace.expect_ms(950, 3), (20_000, true));
        pace.note(answered(950), Duration::from_secs(10));
        assert_eq!(pace.expect_ms(950, 3), (17_000, true), "the newest call counts for three tenths");
        tokio::time::advance(LIFETIME).await;
        assert_eq!(pace.expect_ms(950, 3), (5_000, false));
        pace.note(answered(950), Duration::from_secs(1));
        assert_eq!(pace.expect_ms(950, 3), (1_000, true), "what is old has no part in the average");
    }
}
