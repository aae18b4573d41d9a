//! A cache of several layers: memory in front of what is shared and what lasts.

mod layer;
mod turns;

use std::fmt;
use std::future::Ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{Cache, Clock, Error, SystemClock};

use self::layer::Layer;
use self::turns::{Busy, Found, Turns};

/// How a [`LayeredCache`] is made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerOptions {
    /// Bytes that the memory layer may take, keys included.
    pub memory_bytes: u64,
    /// How long the memory layer keeps a value before it looks below again. A value that another
    /// process replaced is served that long at the most, and a little longer where a layer missed the
    /// change; see [`look`](Self::look).
    pub memory_ttl: Duration,
    /// How long a process goes on without asking the last layer whether another process found a layer
    /// between to have missed a change.
    pub look: Duration,
    /// How long a lower layer may take for one operation.
    pub timeout: Duration,
    /// How long a lower layer that failed is left alone.
    pub rest: Duration,
}

impl Default for LayerOptions {
    fn default() -> Self {
        LayerOptions {
            memory_bytes: 64 << 20,
            memory_ttl: Duration::from_secs(60),
            look: Duration::from_secs(1),
            timeout: Duration::from_millis(250),
            rest: Duration::from_secs(1),
        }
    }
}

/// What a [`LayeredCache`] answered from where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Values found in memory, those that another caller was already fetching included.
    pub memory_hits: u64,
    /// Values found in each lower layer, upper first.
    pub layer_hits: Vec<u64>,
    /// Failures and timeouts of each lower layer.
    pub layer_failures: Vec<u64>,
    /// Values found nowhere.
    pub misses: u64,
}

/// A [`Cache`] in layers: memory first, then, say, a Redis server, then a database.
///
/// - Reading goes down until a layer has the value, and fills the layers above it. Many callers
///   that miss one key at once ask below once.
/// - Writing and removing go through all layers before they return.
/// - A layer that fails or is slow is left alone for a while: everything works without it, only
///   slower. If it missed a change meanwhile, all that it holds is forgotten once it is back, by every
///   process: its keys begin with an epoch that the last layer keeps, and it is given another. So the
///   layers between lose what they hold when they were away, and never serve what is old.
/// - The last layer is what all processes believe. Changes that it missed itself are remembered by this
///   process alone: let it be a database rather than a cache where that matters.
/// - Layers between keep a value for a week at the most, so that what was forgotten goes.
/// - Each value carries its own end, so no layer serves it longer than it was put for.
///
/// ```
/// use std::sync::Arc;
///
/// use coral_core::{Cache, MemoryCache};
/// use coral_state::{LayerOptions, LayeredCache};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let shared = Arc::new(MemoryCache::new(100));
/// let cache = LayeredCache::new(LayerOptions::default()).over(shared);
/// cache.put("key", Arc::from(*b"value"), Some(60_000)).await?;
/// assert_eq!(cache.get("key").await?.as_deref(), Some(&b"value"[..]));
///
/// let made = cache.get_or_make("other", None, async { Ok(Arc::from(*b"made once")) }).await?;
/// assert_eq!(&*made, b"made once");
/// # Ok::<(), coral_core::Error>(())
/// # }).unwrap();
/// ```
pub struct LayeredCache {
    memory: moka::future::Cache<String, Entry>,
    layers: Vec<Layer>,
    options: LayerOptions,
    clock: Arc<dyn Clock>,
    turns: Turns,
    memory_hits: AtomicU64,
    misses: AtomicU64,
}

/// Milliseconds that a layer above the last keeps a value at the most.
const WEEK_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

#[derive(Clone)]
struct Entry {
    value: Arc<[u8]>,
    until_ms: u64,
}

impl Entry {
    fn write(&self) -> Arc<[u8]> {
        [&self.until_ms.to_le_bytes()[..], &self.value].concat().into()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (until, value) = bytes.split_first_chunk()?;
        Some(Entry { until_ms: u64::from_le_bytes(*until), value: value.into() })
    }
}

impl LayeredCache {
    /// A cache of memory alone.
    pub fn new(options: LayerOptions) -> Self {
        let memory = moka::future::Cache::builder()
            .max_capacity(options.memory_bytes)
            .weigher(|key: &String, entry: &Entry| {
                u32::try_from(key.len() + entry.value.len() + 64).unwrap_or(u32::MAX)
            })
            .time_to_live(options.memory_ttl)
            .build();
        LayeredCache {
            memory,
            layers: Vec::new(),
            options,
            clock: Arc::new(SystemClock),
            turns: Turns::default(),
            memory_hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The same by another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Puts `layer` below the layers that there are.
    #[must_use]
    pub fn over(mut self, layer: Arc<dyn Cache>) -> Self {
        self.layers.push(Layer::new(layer));
        self
    }

    /// What was answered from where, since the cache was made.
    pub fn stats(&self) -> CacheStats {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CacheStats {
            memory_hits: load(&self.memory_hits),
            layer_hits: self.layers.iter().map(|layer| load(&layer.hits)).collect(),
            layer_failures: self.layers.iter().map(|layer| load(&layer.failures)).collect(),
            misses: load(&self.misses),
        }
    }

    /// The value under `key`, made and kept if no layer has it; many callers at once make it once.
    ///
    /// What is made while another caller changes the key is given back and not kept.
    ///
    /// # Errors
    /// Those of `make`, told to all who wait for it; nothing is kept then.
    pub async fn get_or_make(
        &self,
        key: &str,
        ttl_ms: Option<u64>,
        make: impl Future<Output = Result<Arc<[u8]>, Error>> + Send,
    ) -> Result<Arc<[u8]>, Error> {
        let made = self.look(key, Some((ttl_ms, make))).await?;
        made.map(|entry| entry.value).ok_or_else(|| Error::storage("make a value", "there is none"))
    }

    fn end(&self, ttl_ms: Option<u64>) -> u64 {
        ttl_ms.map_or(u64::MAX, |ttl| self.clock.now_ms().saturating_add(ttl))
    }

    async fn in_memory(&self, key: &str) -> Option<Entry> {
        let entry = self.memory.get(key).await?;
        if self.clock.now_ms() < entry.until_ms {
            self.memory_hits.fetch_add(1, Ordering::Relaxed);
            return Some(entry);
        }
        self.memory.invalidate(key).await;
        None
    }

    /// What is under `key`, by whoever is the first to ask for it.
    async fn look<M>(&self, key: &str, make: Option<(Option<u64>, M)>) -> Result<Option<Entry>, Error>
    where
        M: Future<Output = Result<Arc<[u8]>, Error>> + Send,
    {
        if let Some(entry) = self.in_memory(key).await {
            return Ok(Some(entry));
        }
        let turn = self.turns.at(key);
        let (mut asking, waited) = match turn.asking.try_lock() {
            Ok(asking) => (asking, false),
            Err(_) => (turn.asking.lock().await, true),
        };
        if waited {
            if let Some(entry) = self.in_memory(key).await {
                return Ok(Some(entry));
            }
            let found = asking.as_ref().filter(|found| found.before == turn.changes());
            match (found.map(|found| &found.result), &make) {
                (Some(Ok(Some(entry))), _) if self.clock.now_ms() < entry.until_ms => {
                    self.memory_hits.fetch_add(1, Ordering::Relaxed);
                    return Ok(Some(entry.clone()));
                }
                (Some(Ok(None)), None) => return Ok(None),
                (Some(Err(error)), Some(_)) => return Err(error.clone()),
                _ => {}
            }
        }
        // Should this be given up, whoever comes next asks anew.
        *asking = None;
        let before = turn.changes();
        let result = self.ask_below(key, &turn, before, make).await;
        *asking = Some(Found { before, result: result.clone() });
        result
    }

    /// What the lower layers have under `key`, or what is made. It is kept above, unless somebody
    /// changed the key since `before`.
    async fn ask_below<M>(
        &self,
        key: &str,
        turn: &Busy<'_>,
        before: u64,
        make: Option<(Option<u64>, M)>,
    ) -> Result<Option<Entry>, Error>
    where
        M: Future<Output = Result<Arc<[u8]>, Error>> + Send,
    {
        for (depth, layer) in self.layers.iter().enumerate() {
            let Some(bytes) = self.read(depth, layer, key).await else { continue };
            let now = self.clock.now_ms();
            let Some(entry) = Entry::read(&bytes).filter(|entry| now < entry.until_ms) else { continue };
            layer.hits.fetch_add(1, Ordering::Relaxed);
            let _changing = turn.changing.lock().await;
            if turn.changes() == before {
                self.fill(key, depth, &entry, &bytes).await;
                self.memory.insert(key.to_owned(), entry.clone()).await;
            }
            return Ok(Some(entry));
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let made = match make {
            Some((ttl_ms, make)) => Some((Entry { value: make.await?, until_ms: self.end(ttl_ms) }, ttl_ms)),
            None => None,
        };
        let _changing = turn.changing.lock().await;
        if turn.changes() != before {
            return Ok(made.map(|(entry, _)| entry));
        }
        match made {
            Some((entry, ttl_ms)) => {
                self.change(key, Some(&entry), ttl_ms).await;
                self.memory.insert(key.to_owned(), entry.clone()).await;
                Ok(Some(entry))
            }
            None => {
                if let Some(last) = self.layers.last().filter(|last| last.doubts(key)) {
                    // It must learn that what it has is old.
                    self.change_last(last, key, None, None).await;
                }
                Ok(None)
            }
        }
    }

    async fn read(&self, depth: usize, layer: &Layer, key: &str) -> Option<Arc<[u8]>> {
        if self.is_last(depth) {
            let trusted = !layer.doubts(key);
            return if trusted { self.ask(layer, layer.cache.get(key)).await.flatten() } else { None };
        }
        let epoch = self.epoch(depth, layer, false).await?;
        self.ask(layer, layer.cache.get(&named(&epoch, key))).await.flatten()
    }

    fn is_last(&self, depth: usize) -> bool {
        depth + 1 == self.layers.len()
    }

    /// Gives the layers above `depth` what was found there as `bytes`. Another process may have changed
    /// it between: so it is looked at once more.
    async fn fill(&self, key: &str, depth: usize, entry: &Entry, bytes: &Arc<[u8]>) {
        if depth == 0 {
            return;
        }
        let left = (entry.until_ms != u64::MAX).then(|| entry.until_ms.saturating_sub(self.clock.now_ms()));
        for (above, layer) in self.layers.iter().enumerate().take(depth) {
            self.change_above(above, layer, key, Some(entry), left, false).await;
        }
        let Some(layer) = self.layers.get(depth) else { return };
        if self.read(depth, layer, key).await.as_ref() != Some(bytes) {
            for (above, layer) in self.layers.iter().enumerate().take(depth) {
                self.change_above(above, layer, key, None, None, false).await;
            }
        }
    }

    /// Puts an entry into all lower layers, or takes the key out of them. The last layer first: what an
    /// upper one loses, it still has, and epochs that are asked for after it hold for the change.
    async fn change(&self, key: &str, entry: Option<&Entry>, ttl_ms: Option<u64>) {
        for (depth, layer) in self.layers.iter().enumerate().rev() {
            match self.is_last(depth) {
                true => self.change_last(layer, key, entry, ttl_ms).await,
                false => self.change_above(depth, layer, key, entry, ttl_ms, true).await,
            }
        }
    }

    async fn change_last(&self, layer: &Layer, key: &str, entry: Option<&Entry>, ttl_ms: Option<u64>) {
        // In doubt while it is under way: whoever drops this future does not leave an old value.
        layer.distrust(key);
        let changed = match entry {
            Some(entry) => self.ask(layer, layer.cache.put(key, entry.write(), ttl_ms)).await,
            None => self.ask(layer, layer.cache.remove(key)).await,
        };
        if changed.is_some() {
            layer.trust(key);
        }
    }

    async fn change_above(
        &self,
        depth: usize,
        layer: &Layer,
        key: &str,
        entry: Option<&Entry>,
        ttl_ms: Option<u64>,
        anew: bool,
    ) {
        let reaching = layer.reaching();
        let changed = match (self.epoch(depth, layer, anew).await, entry) {
            (Some(epoch), Some(entry)) => {
                let ttl_ms = Some(ttl_ms.unwrap_or(WEEK_MS).min(WEEK_MS));
                self.ask(layer, layer.cache.put(&named(&epoch, key), entry.write(), ttl_ms)).await
            }
            (Some(epoch), None) => self.ask(layer, layer.cache.remove(&named(&epoch, key))).await,
            (None, _) => None,
        };
        if changed.is_some() {
            reaching.reached();
            return;
        }
        drop(reaching);
        // Others must hear of it, before anyone relies on the change.
        self.epoch(depth, layer, false).await;
    }

    /// What the keys of a layer above the last begin with; `None` as long as that can't be told. `anew`
    /// asks for it even if it was asked for a moment ago.
    async fn epoch(&self, depth: usize, layer: &Layer, anew: bool) -> Option<Arc<str>> {
        if let Some(epoch) = layer.known_epoch(self.clock.now_ms()).filter(|_| !anew) {
            return Some(epoch);
        }
        let last = self.layers.last()?;
        let key = format!("\u{1}coral epoch {depth}");
        let _asking = layer.asking.lock().await;
        if let Some(epoch) = layer.known_epoch(self.clock.now_ms()).filter(|_| !anew) {
            return Some(epoch);
        }
        let unsettled = layer.unsettled();
        let look = u64::try_from(self.options.look.as_millis()).unwrap_or(u64::MAX);
        let until_ms = self.clock.now_ms().saturating_add(look);
        if unsettled.is_none() {
            match self.ask(last, last.cache.get(&key)).await {
                Some(Some(name)) => {
                    let name: Arc<str> = String::from_utf8_lossy(&name).into();
                    layer.learn(name.clone(), until_ms, None);
                    return Some(name);
                }
                // The last layer may have lost it, and an epoch is never used again.
                Some(None) => {}
                // Nobody can be told of another meanwhile.
                None => return layer.last_epoch(),
            }
        }
        let name: Arc<str> = format!("{:016x}{:016x}", self.clock.now_ms(), self.clock.random()).into();
        self.ask(last, last.cache.put(&key, name.as_bytes().into(), None)).await?;
        layer.learn(name.clone(), until_ms, unsettled);
        Some(name)
    }

    /// The answer of a lower layer, unless it rests or fails; then it rests.
    async fn ask<T>(&self, layer: &Layer, asked: impl Future<Output = Result<T, Error>>) -> Option<T> {
        if self.clock.now_ms() < layer.resting_until_ms.load(Ordering::Relaxed) {
            return None;
        }
        let problem = match tokio::time::timeout(self.options.timeout, asked).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.options.timeout),
        };
        tracing::warn!(%problem, "a cache layer failed and is left alone for a while");
        layer.failures.fetch_add(1, Ordering::Relaxed);
        let rest = u64::try_from(self.options.rest.as_millis()).unwrap_or(u64::MAX);
        layer.resting_until_ms.store(self.clock.now_ms().saturating_add(rest), Ordering::Relaxed);
        None
    }
}

#[async_trait]
impl Cache for LayeredCache {
    async fn get(&self, key: &str) -> Result<Option<Arc<[u8]>>, Error> {
        let nothing: Option<(Option<u64>, Ready<Result<Arc<[u8]>, Error>>)> = None;
        Ok(self.look(key, nothing).await?.map(|entry| entry.value))
    }

    async fn put(&self, key: &str, value: Arc<[u8]>, ttl_ms: Option<u64>) -> Result<(), Error> {
        let entry = Entry { value, until_ms: self.end(ttl_ms) };
        let turn = self.turns.at(key);
        let _changing = turn.changing.lock().await;
        let _change = turn.change();
        self.memory.invalidate(key).await;
        self.change(key, Some(&entry), ttl_ms).await;
        self.memory.insert(key.to_owned(), entry).await;
        Ok(())
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        let turn = self.turns.at(key);
        let _changing = turn.changing.lock().await;
        let _change = turn.change();
        self.memory.invalidate(key).await;
        self.change(key, None, None).await;
        Ok(())
    }
}

/// The name of a key in a layer above the last.
fn named(epoch: &str, key: &str) -> String {
    format!("{epoch} {key}")
}

impl fmt::Debug for LayeredCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayeredCache")
            .field("layers", &self.layers.len())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
