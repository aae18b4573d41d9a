//! How often a caller may call.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Full buckets are forgotten when there are more than this.
const SWEEP: usize = 4_096;

#[derive(Clone, Copy)]
struct Bucket {
    /// Thousandths of a call that are left.
    left: u64,
    at_ms: u64,
}

/// A token bucket for each pair of agent and server.
#[derive(Default)]
pub(crate) struct Quota {
    buckets: Mutex<HashMap<(String, String), Bucket>>,
}

impl Quota {
    /// Takes one of `per_minute` calls.
    ///
    /// # Errors
    /// The milliseconds until there is one.
    pub(crate) fn take(&self, agent: &str, server: &str, per_minute: u32, now_ms: u64) -> Result<(), u64> {
        let full = u64::from(per_minute).max(1) * 1_000;
        let refilled = |bucket: Bucket| {
            // A clock that goes back gives nothing.
            let passed = now_ms.saturating_sub(bucket.at_ms);
            bucket.left.saturating_add(passed.saturating_mul(full) / 60_000).min(full)
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() > SWEEP {
            buckets.retain(|_, bucket| refilled(*bucket) < full);
        }
        let key = (agent.to_owned(), server.to_owned());
        let bucket = buckets.entry(key).or_insert(Bucket { left: full, at_ms: now_ms });
        let left = refilled(*bucket);
        if left < 1_000 {
            return Err(((1_000 - left).saturating_mul(60_000)).div_ceil(full));
        }
        *bucket = Bucket { left: left - 1_000, at_ms: now_ms.max(bucket.at_ms) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_bounded_and_comes_back() {
        let quota = Quota::default();
        let take = |now| quota.take("a", "s", 3, now);
        assert_eq!([take(0), take(0), take(0), take(0)], [Ok(()), Ok(()), Ok(()), Err(20_000)]);
        assert_eq!(quota.take("b", "s", 3, 0), Ok(()), "each agent has its own");
        assert!(take(19_999).is_err_and(|wait| wait <= 20));
        assert_eq!(take(20_000), Ok(()));
        assert!(take(20_000).is_err());
        assert!(take(1).is_err(), "a clock that goes back gives nothing");
        assert_eq!([take(100_000), take(100_000), take(100_000)], [Ok(()); 3]);
        assert!(take(100_000).is_err(), "no more than a full bucket is kept");
    }

    #[test]
    fn refused_calls_do_not_push_the_refill_away() {
        let quota = Quota::default();
        assert!(quota.take("a", "s", 1, 0).is_ok());
        for now in 1..60_000 {
            assert!(quota.take("a", "s", 1, now).is_err(), "{now}");
        }
        assert!(quota.take("a", "s", 1, 60_000).is_ok());
    }
}
