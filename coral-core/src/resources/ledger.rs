//! Who holds what, and who waits: the plain state behind [`Resources`](super::Resources).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::{Capacity, Cpu, Memory, Pool, PoolUsage, Profile, ResourcesUsage};
use crate::spec::Category;

/// Stands where a category has no pool.
const UNLIMITED: Pool = Pool { min: usize::MAX, max: usize::MAX, threshold: 100 };

/// One that holds a permit or waits for one.
#[derive(Debug)]
pub(super) struct Entry {
    id: u64,
    category: Category,
    profile: Profile,
}

/// One that waits.
struct Waiter {
    run: Arc<str>,
    profile: Profile,
    granted: oneshot::Sender<()>,
}

/// Which way a pool's size should go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Grow,
    Shrink,
}

struct PoolState {
    pool: Pool,
    size: usize,
    in_use: usize,
    /// The wish, and since when it has been standing.
    wish: Option<(Wish, Instant)>,
    /// When the pool grows next if nothing changes. Those who wait look at it.
    tick: watch::Sender<Option<Instant>>,
    waiters: BTreeMap<u64, Waiter>,
    /// The runs that have waiters, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    lines: BTreeMap<Arc<str>, VecDeque<u64>>,
}

impl PoolState {
    fn new(pool: Pool) -> Self {
        PoolState {
            pool,
            size: pool.min,
            in_use: 0,
            wish: None,
            tick: watch::Sender::new(None),
            waiters: BTreeMap::new(),
            turns: VecDeque::new(),
            lines: BTreeMap::new(),
        }
    }

    fn wish(&self) -> Option<Wish> {
        let used = |size: usize| {
            let (in_use, size) =
                (self.in_use.saturating_mul(100), size.saturating_mul(usize::from(self.pool.threshold)));
            in_use >= size
        };
        if self.size < self.pool.max && used(self.size) {
            Some(Wish::Grow)
        } else if self.size > self.pool.min && !used(self.size - 1) {
            Some(Wish::Shrink)
        } else {
            None
        }
    }

    /// Makes the changes of size that are due by `now`. Call it before and after each change.
    fn scale(&mut self, now: Instant, every: Duration) {
        loop {
            let wish = self.wish();
            let since = match (wish, self.wish) {
                (None, _) => {
                    self.wish = None;
                    break;
                }
                (Some(wish), Some((known, since))) if wish == known => since,
                (Some(wish), _) => {
                    self.wish = Some((wish, now));
                    now
                }
            };
            let due = since + every;
            if now < due {
                break;
            }
            match wish {
                Some(Wish::Grow) => self.size += 1,
                Some(Wish::Shrink) => self.size -= 1,
                None => {}
            }
            self.wish = self.wish().map(|wish| (wish, due));
        }
        let tick = self.wish.filter(|(wish, _)| *wish == Wish::Grow).map(|(_, since)| since + every);
        self.tick.send_if_modified(|known| std::mem::replace(known, tick) != tick);
    }

    fn has_room(&self) -> bool {
        self.in_use < self.size
    }

    /// The one whose turn it is.
    fn head(&self) -> Option<u64> {
        self.lines.get(self.turns.front()?)?.front().copied()
    }

    fn line_up(&mut self, id: u64, waiter: Waiter) {
        let line = self.lines.entry(waiter.run.clone()).or_default();
        if line.is_empty() {
            self.turns.push_back(waiter.run.clone());
        }
        line.push_back(id);
        self.waiters.insert(id, waiter);
    }

    /// Takes the one out whose turn it is; its run goes to the end.
    fn take_head(&mut self) -> Option<Waiter> {
        let run = self.turns.pop_front()?;
        let line = self.lines.get_mut(&run)?;
        let id = line.pop_front()?;
        if line.is_empty() {
            self.lines.remove(&run);
        } else {
            self.turns.push_back(run);
        }
        self.waiters.remove(&id)
    }

    /// Takes one out that does not want to wait any more; says whether it waited.
    fn give_up(&mut self, id: u64) -> bool {
        let Some(waiter) = self.waiters.remove(&id) else { return false };
        if let Some(line) = self.lines.get_mut(&waiter.run) {
            line.retain(|known| *known != id);
            if line.is_empty() {
                self.lines.remove(&waiter.run);
                self.turns.retain(|run| *run != waiter.run);
            }
        }
        true
    }
}

pub(super) struct Ledger {
    capacity: Capacity,
    every: Duration,
    pools: BTreeMap<Category, PoolState>,
    used: Profile,
    next: u64,
    /// The pool whose turn came when the machine had no room for it: it is served first.
    short: Option<Category>,
}

impl Ledger {
    pub(super) fn new(pools: &BTreeMap<Category, Pool>, capacity: Capacity, every: Duration) -> Self {
        let pools = pools.iter().map(|(category, pool)| (*category, PoolState::new(*pool))).collect();
        Ledger { capacity, every, pools, used: Profile::default(), next: 0, short: None }
    }

    pub(super) fn waiting(&self) -> usize {
        self.pools.values().map(|pool| pool.waiters.len()).sum()
    }

    /// Whether one that came now would not have to wait.
    pub(super) fn is_free(&self, category: Category, profile: &Profile) -> bool {
        self.short.is_none()
            && self.pools.get(&category).is_none_or(|pool| pool.waiters.is_empty() && pool.has_room())
            && self.capacity.has_room(&self.used, profile)
    }

    /// Lets one line up, and grants what can be granted.
    pub(super) fn enter(
        &mut self,
        category: Category,
        run: Arc<str>,
        profile: Profile,
        now: Instant,
    ) -> (Entry, oneshot::Receiver<()>, watch::Receiver<Option<Instant>>) {
        self.scale(now);
        let id = self.next;
        self.next += 1;
        let (granted, receiver) = oneshot::channel();
        let pool = self.pools.entry(category).or_insert_with(|| PoolState::new(UNLIMITED));
        pool.line_up(id, Waiter { run, profile, granted });
        let ticks = pool.tick.subscribe();
        self.grant();
        self.scale(now);
        (Entry { id, category, profile }, receiver, ticks)
    }

    /// Takes one out, whether it waits or holds a permit.
    pub(super) fn leave(&mut self, entry: &Entry, now: Instant) {
        self.scale(now);
        let Some(pool) = self.pools.get_mut(&entry.category) else { return };
        if !pool.give_up(entry.id) {
            pool.in_use = pool.in_use.saturating_sub(1);
            self.used = minus(&self.used, &entry.profile);
        }
        self.grant();
        self.scale(now);
    }

    /// Makes the changes that are due by `now`.
    pub(super) fn advance(&mut self, now: Instant) {
        self.scale(now);
        self.grant();
        self.scale(now);
    }

    fn scale(&mut self, now: Instant) {
        for pool in self.pools.values_mut() {
            pool.scale(now, self.every);
        }
    }

    /// Grants in the order of the turns, as far as there is room.
    fn grant(&mut self) {
        let order: Vec<Category> = self.short.take().into_iter().chain(self.pools.keys().copied()).collect();
        for category in order {
            let Some(pool) = self.pools.get_mut(&category) else { continue };
            while pool.has_room() {
                let Some(waiter) = pool.head().and_then(|id| pool.waiters.get(&id)) else { break };
                if !self.capacity.has_room(&self.used, &waiter.profile) {
                    // Whoever is smaller waits too, or this one might wait for ever.
                    self.short = Some(category);
                    return;
                }
                let Some(waiter) = pool.take_head() else { break };
                pool.in_use += 1;
                self.used = plus(&self.used, &waiter.profile);
                // One that was dropped meanwhile gives back what it got.
                let _ = waiter.granted.send(());
            }
        }
    }

    pub(super) fn usage(&self) -> ResourcesUsage {
        let pools = self.pools.iter().map(|(category, pool)| {
            let usage = PoolUsage { size: pool.size, in_use: pool.in_use, waiting: pool.waiters.len() };
            (*category, usage)
        });
        ResourcesUsage { pools: pools.collect(), used: self.used }
    }
}

fn plus(a: &Profile, b: &Profile) -> Profile {
    Profile {
        cpu: Cpu::milli(a.cpu.as_milli().saturating_add(b.cpu.as_milli())),
        memory: Memory::bytes(a.memory.as_bytes().saturating_add(b.memory.as_bytes())),
        gpu: a.gpu.saturating_add(b.gpu),
    }
}

fn minus(a: &Profile, b: &Profile) -> Profile {
    Profile {
        cpu: Cpu::milli(a.cpu.as_milli().saturating_sub(b.cpu.as_milli())),
        memory: Memory::bytes(a.memory.as_bytes().saturating_sub(b.memory.as_bytes())),
        gpu: a.gpu.saturating_sub(b.gpu),
    }
}
