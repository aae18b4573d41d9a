//! How often, and how many times, a caller may call.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use crate::audit::AuditPast;

/// Full buckets are forgotten when there are more than this.
const SWEEP: usize = 4_096;
/// More counters than any process needs; above that those of runs that rest go, the first first, and
/// where none rests nothing more is begun.
const MAX_COUNTS: usize = 1_000_000;

#[derive(Clone, Copy)]
struct Bucket {
    /// Thousandths of a call that are left.
    left: u64,
    full: u64,
    at_ms: u64,
}

impl Bucket {
    fn refilled(self, now_ms: u64) -> u64 {
        // A clock that goes back gives nothing.
        let passed = now_ms.saturating_sub(self.at_ms);
        self.left.saturating_add(passed.saturating_mul(self.full) / 60_000).min(self.full)
    }
}

/// One limit that a call falls under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// So many a minute, for everything of one key.
    Rate { key: String, per_minute: u32, what: String },
    /// So many in all, for everything of one key, until that is forgotten.
    Count { key: String, max: u64, what: String },
}

/// Why a call is over a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    pub(crate) why: String,
    /// The milliseconds until there is room, if waiting helps.
    pub(crate) wait_ms: Option<u64>,
}

/// What was called so far: token buckets for rates, counters for quotas.
#[derive(Default)]
pub(crate) struct Quota {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    buckets: HashMap<String, Bucket>,
    counts: HashMap<String, u64>,
    /// The keys of runs that are over or wait, by when they came to rest.
    resting: BTreeMap<u64, String>,
    rested: u64,
}

/// The key of a run's counter.
pub(crate) fn run_key(run: &str) -> String {
    format!("run {run}")
}

/// The key of a project's counter.
pub(crate) fn project_key(project: &str) -> String {
    format!("project {project}")
}

impl Quota {
    /// With what was used before this process.
    pub(crate) fn after(past: &AuditPast) -> Self {
        let runs = past.calls_of_runs.iter().map(|(run, calls)| (run_key(run), *calls));
        let projects = past.calls_of_projects.iter().map(|(project, calls)| (project_key(project), *calls));
        let resting = past.calls_of_runs.keys().map(|run| run_key(run));
        let state = State {
            resting: (0..).zip(resting).collect(),
            rested: u64::try_from(past.calls_of_runs.len()).unwrap_or(u64::MAX),
            counts: runs.chain(projects).collect(),
            buckets: HashMap::new(),
        };
        Quota { state: Mutex::new(state) }
    }

    /// Whether each of `limits` has room for one call.
    ///
    /// # Errors
    /// The first limit that has no room.
    pub(crate) fn check(&self, limits: &[Limit], now_ms: u64) -> Result<(), Over> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        limits.iter().try_for_each(|limit| state.check(limit, now_ms))
    }

    /// Takes one call from each of `limits`, or from none.
    ///
    /// # Errors
    /// The first limit that has no room.
    pub(crate) fn take(&self, limits: &[Limit], now_ms: u64) -> Result<(), Over> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.buckets.len() > SWEEP {
            state.buckets.retain(|_, bucket| bucket.refilled(now_ms) < bucket.full);
        }
        for limit in limits {
            state.check(limit, now_ms)?;
        }
        for limit in limits {
            state.take(limit, now_ms);
        }
        Ok(())
    }

    /// A run is over or waits: what it used stays used, as long as there is room.
    pub(crate) fn rest(&self, run: &str) {
        let key = run_key(run);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.counts.contains_key(&key) {
            state.rested = state.rested.saturating_add(1);
            let at = state.rested;
            state.resting.insert(at, key);
            // A run that rests again and again stands there as often, and no more often than this.
            while state.resting.len() > MAX_COUNTS {
                state.resting.pop_first();
            }
        }
    }
}

impl State {
    /// Makes room by forgetting the run that has rested longest; `false` if none rests.
    fn evict(&mut self) -> bool {
        while let Some((_, key)) = self.resting.pop_first() {
            if self.counts.remove(&key).is_some() {
                return true;
            }
        }
        false
    }

    fn bucket(&self, key: &str, per_minute: u32, now_ms: u64) -> Bucket {
        let full = u64::from(per_minute).max(1) * 1_000;
        let new = Bucket { left: full, full, at_ms: now_ms };
        let mut bucket = self.buckets.get(key).copied().unwrap_or(new);
        bucket.full = full;
        bucket
    }

    fn check(&mut self, limit: &Limit, now_ms: u64) -> Result<(), Over> {
        match limit {
            Limit::Rate { key, per_minute, what } => {
                let bucket = self.bucket(key, *per_minute, now_ms);
                let left = bucket.refilled(now_ms);
                if left < 1_000 {
                    let wait_ms = Some(((1_000 - left).saturating_mul(60_000)).div_ceil(bucket.full));
                    return Err(Over { why: format!("{what} {per_minute} calls a minute"), wait_ms });
                }
            }
            Limit::Count { key, max, what } => {
                let used = self.counts.get(key).copied();
                if used.unwrap_or(0) >= *max {
                    return Err(Over { why: format!("{what} {max} calls in all"), wait_ms: None });
                }
                if used.is_none() && self.counts.len() >= MAX_COUNTS && !self.evict() {
                    return Err(Over {
                        why: "too many runs and projects are counted".to_owned(),
                        wait_ms: None,
                    });
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, limit: &Limit, now_ms: u64) {
        match limit {
            Limit::Rate { key, per_minute, .. } => {
                let bucket = self.bucket(key, *per_minute, now_ms);
                let left = bucket.refilled(now_ms).saturating_sub(1_000);
                let at_ms = now_ms.max(bucket.at_ms);
                self.buckets.insert(key.clone(), Bucket { left, at_ms, ..bucket });
            }
            Limit::Count { key, .. } => *self.counts.entry(key.clone()).or_default() += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(key: &str, per_minute: u32) -> Limit {
        Limit::Rate { key: key.to_owned(), per_minute, what: "it takes".to_owned() }
    }

    fn count(key: String, max: u64) -> Limit {
        Limit::Count { key, max, what: "the run may make".to_owned() }
    }

    #[test]
    fn a_burst_is_bounded_and_comes_back() {
        let quota = Quota::default();
        let take = |now| quota.take(&[rate("a", 3)], now).map_err(|over| over.wait_ms);
        assert_eq!([take(0), take(0), take(0), take(0)], [Ok(()), Ok(()), Ok(()), Err(Some(20_000))]);
        assert_eq!(quota.take(&[rate("b", 3)], 0), Ok(()), "each key has its own");
        assert!(take(19_999).is_err_and(|wait| wait <= Some(20)));
        assert_eq!(take(20_000), Ok(()));
        assert!(take(20_000).is_err());
        assert!(take(1).is_err(), "a clock that goes back gives nothing");
        assert_eq!([take(100_000), take(100_000), take(100_000)], [Ok(()); 3]);
        assert!(take(100_000).is_err(), "no more than a full bucket is kept");
    }

    #[test]
    fn refused_calls_do_not_push_the_refill_away() {
        let quota = Quota::default();
        let take = |now| quota.take(&[rate("a", 1)], now);
        assert!(take(0).is_ok());
        for now in 1..60_000 {
            assert!(take(now).is_err(), "{now}");
        }
        assert!(take(60_000).is_ok());
    }

    #[test]
    fn a_call_takes_from_all_limits_or_from_none() {
        let quota = Quota::default();
        let limits = |run: &str| [rate("a", 2), count(run_key(run), 1)];
        assert!(quota.take(&limits("1"), 0).is_ok());
        for _ in 0..5 {
            let over = quota.take(&limits("1"), 0).unwrap_err();
            assert_eq!(over, Over { why: "the run may make 1 calls in all".to_owned(), wait_ms: None });
        }
        assert!(quota.take(&limits("2"), 0).is_ok(), "what was refused took nothing from the rate");
        assert!(quota.take(&limits("3"), 0).unwrap_err().wait_ms.is_some());
        quota.rest("1");
        assert!(quota.take(&[count(run_key("1"), 1)], 0).is_err(), "a run that waits has used what it used");
    }

    proptest! {
        /// Whatever the clock does, a minute of its time gives no more than a full bucket and a
        /// minute's refill.
        #[test]
        fn no_clock_gives_more(per_minute in 1..20_u32, steps in prop::collection::vec(0..30_000_i64, 1..60), back in any::<bool>()) {
            let quota = Quota::default();
            let (mut now, mut highest, mut taken) = (0_i64, 0_i64, 0_u64);
            for (i, step) in steps.iter().enumerate() {
                now = if back && i % 3 == 2 { (now - step).max(0) } else { now + step };
                highest = highest.max(now);
                taken += u64::from(quota.take(&[rate("a", per_minute)], u64::try_from(now).unwrap()).is_ok());
            }
            let most = u64::from(per_minute) + u64::try_from(highest).unwrap() * u64::from(per_minute) / 60_000 + 1;
            prop_assert!(taken <= most, "{} of {}", taken, most);
        }
    }
}
