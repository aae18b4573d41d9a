//! Resources that steps share: pools of agents by category, and the machine they run on.
//!
//! # Why steps wait here
//! A graph says what may run at once, and a wide one says: everything. What can run at once is a
//! fact of the machine and of the money, and is the same for all runs of a process. So a step
//! takes a [`Permit`] before it begins, and gives it back when it ends, however it ends.
//!
//! # Fair between runs
//! Steps wait in one line for each run, and the lines take turns. A run with a thousand ready
//! steps gets every second permit when a second run comes, not the next thousand. A step that
//! needs much is not passed by smaller ones for ever: when its turn has come and the machine has
//! no room for it, nobody gets any until there is.
//!
//! # Pools grow and shrink
//! A pool begins with `min` permits. While it is used to at least `threshold` percent it grows by
//! one permit each `scale_ms`, up to `max`; while one permit fewer would do it shrinks again. A
//! short peak thus waits a little, and a long one gets its agents.
//!
//! # What must not hold a permit
//! A step that only waits for others (a sub-workflow, a loop, a question to a person) must hold
//! none while it waits, or two of them can wait for each other's for ever.

mod ledger;
mod quantity;

pub use self::quantity::{Cpu, Memory};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::ledger::{Entry, Ledger};
use crate::call::Caller;
use crate::error::{Error, ErrorKind};
use crate::resilience::{Check, Checkup, Health};
use crate::spec::Category;

/// How many agents of a category may work at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Permits that are always there, at least 1.
    pub min: usize,
    /// Permits at the most.
    pub max: usize,
    /// Percent of the permits in use, 1 to 100, from which on the pool grows.
    #[serde(alias = "cpu_threshold")]
    pub threshold: u8,
}

/// What one agent needs while it works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// Processor time.
    pub cpu: Cpu,
    /// Main memory.
    pub memory: Memory,
    /// Graphics processors.
    pub gpu: u32,
}

/// What there is in all; what is left out is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capacity {
    /// Processor time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Main memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Graphics processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<u32>,
}

impl Capacity {
    /// Whether `profile` still has room beside `used`.
    fn has_room(&self, used: &Profile, profile: &Profile) -> bool {
        let fits = |most: Option<u64>, used: u64, more: u64| {
            more == 0 || most.is_none_or(|most| used.saturating_add(more) <= most)
        };
        fits(self.cpu.map(Cpu::as_milli), used.cpu.as_milli(), profile.cpu.as_milli())
            && fits(self.memory.map(Memory::as_bytes), used.memory.as_bytes(), profile.memory.as_bytes())
            && fits(self.gpu.map(u64::from), used.gpu.into(), profile.gpu.into())
    }
}

/// The resources of a process, as data.
///
/// ```
/// use coral_core::resources::{Memory, Resources, ResourcesConfig};
///
/// let config: ResourcesConfig = serde_json::from_value(serde_json::json!({
///     "pools": {
///         "core": {"min": 1, "max": 3, "threshold": 70},
///         "specialist": {"min": 2, "max": 10, "threshold": 80},
///     },
///     "profiles": {
///         "project_architect": {"cpu": "2", "memory": "4Gi"},
///         "ai_ml_specialist": {"cpu": 4, "memory": "8Gi", "gpu": 1},
///     },
///     "capacity": {"cpu": "8", "memory": "16Gi", "gpu": 1},
/// }))?;
/// assert_eq!(config.profiles["project_architect"].memory, Memory::bytes(4 << 30));
/// Resources::new(config).expect("every profile fits into the capacity");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResourcesConfig {
    /// A pool for each category. One without a pool may have any number of agents at work.
    #[serde(alias = "agent_pools")]
    pub pools: BTreeMap<Category, Pool>,
    /// What each agent needs, by its id.
    #[serde(alias = "resource_profiles")]
    pub profiles: BTreeMap<String, Profile>,
    /// What an agent without a profile of its own needs.
    pub default_profile: Profile,
    /// What there is in all.
    pub capacity: Capacity,
    /// Milliseconds between two changes of a pool's size.
    pub scale_ms: u64,
    /// Steps that may wait at once; one more is refused.
    pub max_waiting: usize,
}

impl Default for ResourcesConfig {
    fn default() -> Self {
        ResourcesConfig {
            pools: BTreeMap::new(),
            profiles: BTreeMap::new(),
            default_profile: Profile::default(),
            capacity: Capacity::default(),
            scale_ms: 1_000,
            max_waiting: 100_000,
        }
    }
}

impl ResourcesConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (category, pool) in &self.pools {
            let mut problem = |text: String| problems.push(format!("pool `{}`: {text}", category.as_str()));
            if pool.min == 0 {
                problem("`min` must be at least 1".to_owned());
            }
            if pool.min > pool.max {
                problem(format!("`min` is {}, more than `max`, which is {}", pool.min, pool.max));
            }
            if !(1..=100).contains(&pool.threshold) {
                problem(format!("`threshold` is {}, and must be 1 to 100 percent", pool.threshold));
            }
        }
        let profiles = self.profiles.iter().map(|(id, profile)| (format!("profile `{id}`"), profile));
        for (name, profile) in profiles.chain([("`default_profile`".to_owned(), &self.default_profile)]) {
            if !self.capacity.has_room(&Profile::default(), profile) {
                problems.push(format!("{name} needs {profile}, more than there is in all"));
            }
        }
        problems
    }
}

/// The resources of a process, shared by its clones.
///
/// ```
/// use coral_core::Caller;
/// use coral_core::resources::{Resources, ResourcesConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), coral_core::Error> {
/// let resources = Resources::new(ResourcesConfig::default())?;
/// let permit = resources.acquire(&Caller::agent("backend_developer")).await?;
/// assert_eq!(resources.usage().in_use(), 1);
/// drop(permit);
/// assert_eq!(resources.usage().in_use(), 0);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Resources(Arc<Inner>);

struct Inner {
    config: ResourcesConfig,
    ledger: Mutex<Ledger>,
}

impl Resources {
    /// Resources under `config`, all free.
    ///
    /// # Errors
    /// [`Problems`](ErrorKind::Problems) with every pool that can't be and every profile that
    /// never has room.
    pub fn new(config: ResourcesConfig) -> Result<Self, Error> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(Error::new(ErrorKind::Problems { what: "the resources".to_owned(), problems }));
        }
        let every = Duration::from_millis(config.scale_ms);
        let ledger = Mutex::new(Ledger::new(&config.pools, config.capacity, every));
        Ok(Resources(Arc::new(Inner { config, ledger })))
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the agent of `caller` may work. Dropping the permit gives back what it holds.
    ///
    /// May be dropped at any time; then it leaves the line.
    ///
    /// # Errors
    /// [`Limit`](ErrorKind::Limit) if as many wait as may.
    pub async fn acquire(&self, caller: &Caller) -> Result<Permit, Error> {
        let config = &self.0.config;
        let profile = *config.profiles.get(&*caller.agent).unwrap_or(&config.default_profile);
        let (entry, granted, mut ticks) = {
            let mut ledger = self.ledger();
            if ledger.waiting() >= config.max_waiting && !ledger.is_free(caller.category, &profile) {
                return Err(self.full());
            }
            ledger.enter(caller.category, caller.run.clone(), profile, Instant::now())
        };
        // From here on the permit's drop leaves the line, or gives back what was granted.
        let permit = Permit { resources: self.clone(), entry };
        tokio::pin!(granted);
        loop {
            let tick = *ticks.borrow_and_update();
            let grows = async {
                match tick {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // The ledger keeps the sender until it grants, so this is never an error.
                _ = &mut granted => return Ok(permit),
                () = grows => self.ledger().advance(Instant::now()),
                Ok(()) = ticks.changed() => {}
            }
        }
    }

    fn full(&self) -> Error {
        let max = u64::try_from(self.0.config.max_waiting).unwrap_or(u64::MAX);
        Error::new(ErrorKind::Limit { limit: "max_waiting of the resources".to_owned(), max })
            .with_help("start fewer runs at once, or raise `max_waiting`")
    }

    /// Whether a new run should be let in: refused while as many steps wait as may.
    ///
    /// # Errors
    /// [`Limit`](ErrorKind::Limit), as [`acquire`](Self::acquire) gives it.
    pub fn admit(&self) -> Result<(), Error> {
        if self.ledger().waiting() >= self.0.config.max_waiting { Err(self.full()) } else { Ok(()) }
    }

    /// What is used now.
    pub fn usage(&self) -> ResourcesUsage {
        let mut ledger = self.ledger();
        ledger.advance(Instant::now());
        ledger.usage()
    }
}

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resources").field("usage", &self.ledger().usage()).finish_non_exhaustive()
    }
}

/// The right of one agent to work; dropping it gives back what it holds.
#[must_use = "dropping it gives back what it holds"]
pub struct Permit {
    resources: Resources,
    entry: Entry,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.resources.ledger().leave(&self.entry, Instant::now());
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("entry", &self.entry).finish_non_exhaustive()
    }
}

/// How a pool is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolUsage {
    /// Permits that there are now.
    pub size: usize,
    /// Permits that agents hold.
    pub in_use: usize,
    /// Steps that wait for a permit.
    pub waiting: usize,
}

/// What is used at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcesUsage {
    /// Each category's pool. One that is not limited has the size [`usize::MAX`].
    pub pools: BTreeMap<Category, PoolUsage>,
    /// What the agents at work need together.
    pub used: Profile,
}

impl ResourcesUsage {
    /// Permits that agents hold, of all pools.
    pub fn in_use(&self) -> usize {
        self.pools.values().map(|pool| pool.in_use).sum()
    }

    /// Steps that wait, for all pools.
    pub fn waiting(&self) -> usize {
        self.pools.values().map(|pool| pool.waiting).sum()
    }
}

/// Degraded while no further step may wait.
#[async_trait]
impl Check for Resources {
    fn part(&self) -> &str {
        "resources"
    }

    async fn check(&self) -> Checkup {
        let usage = self.usage();
        let health = if self.admit().is_ok() { Health::Up } else { Health::Degraded };
        Checkup::new(self.part(), health).with_detail(format!(
            "{} at work, {} waiting",
            usage.in_use(),
            usage.waiting()
        ))
    }
}

impl fmt::Display for Profile {
    /// `cpu 2, memory 4Gi, gpu 1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu {}, memory {}, gpu {}", self.cpu, self.memory, self.gpu)
    }
}
