//! One lower layer: whether it is there, and whether what it holds is to be trusted.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coral_core::Cache;

/// Keys remembered one by one before it is all the others that are.
const REMEMBERED: usize = 10_000;

pub(super) struct Layer {
    pub(super) cache: Arc<dyn Cache>,
    pub(super) resting_until_ms: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) failures: AtomicU64,
    /// For the last layer.
    doubt: Mutex<Doubt>,
    /// For the others: how often a change did not reach the layer.
    missed: AtomicU64,
    epoch: Mutex<Epoch>,
    /// Held while the epoch is asked for or replaced, so that a later answer is never taken for an
    /// earlier one.
    pub(super) asking: tokio::sync::Mutex<()>,
}

/// What every key of a layer above the last begins with. A layer that missed a change is given
/// another, so that nobody meets what it holds of before.
#[derive(Default)]
struct Epoch {
    name: Option<Arc<str>>,
    /// When it is asked for again.
    until_ms: u64,
    /// What was missed before it was given.
    missed: u64,
}

/// The keys whose last change did not reach the last layer.
enum Doubt {
    These(HashSet<Box<str>>),
    /// After too many of them: all but those that were changed since.
    AllBut(HashSet<Box<str>>),
}

impl Layer {
    pub(super) fn new(cache: Arc<dyn Cache>) -> Self {
        Layer {
            cache,
            resting_until_ms: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            doubt: Mutex::new(Doubt::These(HashSet::new())),
            missed: AtomicU64::new(0),
            epoch: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    fn doubt(&self) -> MutexGuard<'_, Doubt> {
        self.doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn epoch(&self) -> MutexGuard<'_, Epoch> {
        self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the layer may hold an old value of `key`.
    pub(super) fn doubts(&self, key: &str) -> bool {
        match &*self.doubt() {
            Doubt::These(keys) => keys.contains(key),
            Doubt::AllBut(keys) => !keys.contains(key),
        }
    }

    pub(super) fn distrust(&self, key: &str) {
        let mut doubt = self.doubt();
        match &mut *doubt {
            Doubt::AllBut(keys) => drop(keys.remove(key)),
            Doubt::These(keys) if keys.len() < REMEMBERED => drop(keys.insert(key.into())),
            Doubt::These(_) => {
                tracing::warn!("the last layer of a cache missed many changes: what it holds is made anew");
                *doubt = Doubt::AllBut(HashSet::new());
            }
        }
    }

    pub(super) fn trust(&self, key: &str) {
        match &mut *self.doubt() {
            Doubt::These(keys) => drop(keys.remove(key)),
            Doubt::AllBut(keys) => {
                if keys.len() >= REMEMBERED {
                    // Doubting what is good costs time and no more.
                    keys.clear();
                }
                keys.insert(key.into());
            }
        }
    }

    /// The epoch, unless it is to be asked for or replaced first.
    pub(super) fn known_epoch(&self, now_ms: u64) -> Option<Arc<str>> {
        let epoch = self.epoch();
        let good = now_ms < epoch.until_ms && epoch.missed == self.missed.load(Ordering::Acquire);
        epoch.name.clone().filter(|_| good)
    }

    /// The last epoch known, however old.
    pub(super) fn last_epoch(&self) -> Option<Arc<str>> {
        self.epoch().name.clone()
    }

    /// What was missed since the epoch was given, as a count to settle; `None` if nothing.
    pub(super) fn unsettled(&self) -> Option<u64> {
        let missed = self.missed.load(Ordering::Acquire);
        (self.epoch().missed != missed).then_some(missed)
    }

    /// Goes on under `name`; `settles` is what it settles of [`unsettled`](Self::unsettled).
    pub(super) fn learn(&self, name: Arc<str>, until_ms: u64, settles: Option<u64>) {
        let mut epoch = self.epoch();
        epoch.name = Some(name);
        epoch.until_ms = until_ms;
        if let Some(missed) = settles {
            epoch.missed = missed;
        }
    }

    /// A change on its way to the layer: missed, unless [`reached`](Reaching::reached) is said of it.
    pub(super) fn reaching(&self) -> Reaching<'_> {
        Reaching(Some(self))
    }
}

pub(super) struct Reaching<'a>(Option<&'a Layer>);

impl Reaching<'_> {
    pub(super) fn reached(mut self) {
        self.0 = None;
    }
}

impl Drop for Reaching<'_> {
    fn drop(&mut self) {
        if let Some(layer) = self.0 {
            layer.missed.fetch_add(1, Ordering::AcqRel);
        }
    }
}
