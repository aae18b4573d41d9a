//! What a seed draws.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Faults;

/// An occasion for a fault: its name, and the how manieth of that name it is.
pub(crate) type Site = (&'static str, u64);

/// A fault that was injected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    pub(super) site: Site,
}

impl Injected {
    /// What happened.
    pub fn fault(&self) -> &'static str {
        self.site.0
    }
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (occasion {})", self.site.0, self.site.1)
    }
}

/// The draws of one seed. Each is a function of the seed, its occasion's name and number, and of nothing
/// drawn before: leaving a fault out does not change the others.
pub(crate) struct Chance {
    seed: u64,
    faults: Faults,
    /// Faults that do not happen.
    spared: BTreeSet<Site>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    injected: Mutex<Vec<Injected>>,
}

impl Chance {
    pub(super) fn new(seed: u64, faults: Faults, spared: BTreeSet<Site>) -> Arc<Self> {
        Arc::new(Chance { seed, faults, spared, counts: Mutex::default(), injected: Mutex::default() })
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(super) fn injected(&self) -> Vec<Injected> {
        self.injected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The next number for `name`, with its place in the sequence.
    pub(super) fn draw(&self, name: &'static str) -> (u64, u64) {
        let count = {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(name).or_default();
            *count += 1;
            *count
        };
        let named = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        (count, mix(self.seed ^ named ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    pub(super) fn below(&self, name: &'static str, bound: u64) -> u64 {
        self.draw(name).1 % bound.max(1)
    }

    /// Whether the fault of this name happens now.
    pub(super) fn strikes(&self, name: &'static str, thousandths: u16) -> bool {
        if thousandths == 0 {
            return false;
        }
        let (count, drawn) = self.draw(name);
        let strikes = drawn % 1_000 < u64::from(thousandths) && !self.spared.contains(&(name, count));
        if strikes {
            let mut injected = self.injected.lock().unwrap_or_else(PoisonError::into_inner);
            injected.push(Injected { site: (name, count) });
        }
        strikes
    }

    pub(super) async fn delay(&self, name: &'static str) {
        let max = self.faults.max_delay_ms;
        if max > 0 {
            tokio::time::sleep(Duration::from_millis(self.below(name, max + 1))).await;
        }
    }
}

/// The finaliser of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
