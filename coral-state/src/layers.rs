//! A cache of several layers: memory in front of what is shared and what lasts.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{Cache, Clock, Error, SystemClock};

/// Keys that a layer may hold an old value for, before the layer is given up.
const MAX_DOUBTFUL: usize = 10_000;

/// How a [`LayeredCache`] is made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerOptions {
    /// Bytes that the memory layer may take, keys included.
    pub memory_bytes: u64,
    /// How long the memory layer keeps a value before it looks below again: the longest that a
    /// value which another process replaced is still served.
    pub memory_ttl: Duration,
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
///   slower. What could not be written to or removed from it meanwhile is not read from it later,
///   so that its old values do not come back.
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
    /// Changes with each write or removal: what was fetched before it is not kept after it.
    changes: AtomicU64,
    memory_hits: AtomicU64,
    misses: AtomicU64,
}

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

struct Layer {
    cache: Arc<dyn Cache>,
    resting_until_ms: AtomicU64,
    /// Keys whose last change did not reach the layer.
    doubtful: Mutex<HashSet<Box<str>>>,
    given_up: AtomicBool,
    hits: AtomicU64,
    failures: AtomicU64,
}

impl Layer {
    fn doubtful(&self) -> MutexGuard<'_, HashSet<Box<str>>> {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doubt(&self, key: &str) {
        let mut doubtful = self.doubtful();
        if doubtful.len() >= MAX_DOUBTFUL && !self.given_up.swap(true, Ordering::Relaxed) {
            tracing::warn!("a cache layer missed too many changes and is not used any more");
        }
        if doubtful.len() < MAX_DOUBTFUL {
            doubtful.insert(key.into());
        }
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
            changes: AtomicU64::new(0),
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
        self.layers.push(Layer {
            cache: layer,
            resting_until_ms: AtomicU64::new(0),
            doubtful: Mutex::default(),
            given_up: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        });
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
    /// # Errors
    /// Those of `make`, told to all who wait for it; nothing is kept then.
    pub async fn get_or_make(
        &self,
        key: &str,
        ttl_ms: Option<u64>,
        make: impl Future<Output = Result<Arc<[u8]>, Error>> + Send,
    ) -> Result<Arc<[u8]>, Error> {
        if let Some(entry) = self.in_memory(key).await {
            return Ok(entry.value);
        }
        let before = self.changes.load(Ordering::Acquire);
        let entry = self
            .memory
            .try_get_with_by_ref(key, async {
                if let Some(entry) = self.below(key).await {
                    return Ok(entry);
                }
                self.misses.fetch_add(1, Ordering::Relaxed);
                let entry = Entry { value: make.await?, until_ms: self.end(ttl_ms) };
                self.write_below(key, &entry, ttl_ms).await;
                Ok::<_, Error>(entry)
            })
            .await
            .map_err(|error| Error::clone(&error))?;
        self.forget_if_changed(key, before).await;
        Ok(entry.value)
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

    /// A change while a value was fetched may have been overtaken by it.
    async fn forget_if_changed(&self, key: &str, before: u64) {
        if self.changes.load(Ordering::Acquire) != before {
            self.memory.invalidate(key).await;
        }
    }

    /// The value in the first lower layer that has it; the layers between are filled.
    async fn below(&self, key: &str) -> Option<Entry> {
        for (depth, layer) in self.layers.iter().enumerate() {
            let Some(bytes) = self.read(layer, key).await else { continue };
            let now = self.clock.now_ms();
            let Some(entry) = Entry::read(&bytes).filter(|entry| now < entry.until_ms) else { continue };
            layer.hits.fetch_add(1, Ordering::Relaxed);
            let left = (entry.until_ms != u64::MAX).then(|| entry.until_ms - now);
            for above in self.layers.iter().take(depth) {
                self.write(above, key, &entry, left).await;
            }
            return Some(entry);
        }
        None
    }

    async fn write_below(&self, key: &str, entry: &Entry, ttl_ms: Option<u64>) {
        // The lasting layer first: what an upper one loses, it still has.
        for layer in self.layers.iter().rev() {
            self.write(layer, key, entry, ttl_ms).await;
        }
    }

    async fn read(&self, layer: &Layer, key: &str) -> Option<Arc<[u8]>> {
        if layer.doubtful().contains(key) {
            // First it must learn that what it has is old.
            self.remove_from(layer, key).await;
            return None;
        }
        self.ask(layer, layer.cache.get(key)).await.flatten()
    }

    async fn write(&self, layer: &Layer, key: &str, entry: &Entry, ttl_ms: Option<u64>) {
        // Doubtful while it is under way: whoever drops this future does not leave an old value.
        layer.doubt(key);
        match self.ask(layer, layer.cache.put(key, entry.write(), ttl_ms)).await {
            Some(()) => drop(layer.doubtful().remove(key)),
            // Another change of the key may have succeeded meanwhile, and trusted it again.
            None => layer.doubt(key),
        }
    }

    async fn remove_from(&self, layer: &Layer, key: &str) {
        layer.doubt(key);
        match self.ask(layer, layer.cache.remove(key)).await {
            Some(()) => drop(layer.doubtful().remove(key)),
            None => layer.doubt(key),
        }
    }

    /// The answer of a lower layer, unless it rests or fails; then it rests.
    async fn ask<T>(&self, layer: &Layer, asked: impl Future<Output = Result<T, Error>>) -> Option<T> {
        let resting = self.clock.now_ms() < layer.resting_until_ms.load(Ordering::Relaxed);
        if resting || layer.given_up.load(Ordering::Relaxed) {
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
        if let Some(entry) = self.in_memory(key).await {
            return Ok(Some(entry.value));
        }
        let before = self.changes.load(Ordering::Acquire);
        let entry = self.memory.optionally_get_with_by_ref(key, self.below(key)).await;
        self.forget_if_changed(key, before).await;
        if entry.is_none() {
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
        Ok(entry.map(|entry| entry.value))
    }

    async fn put(&self, key: &str, value: Arc<[u8]>, ttl_ms: Option<u64>) -> Result<(), Error> {
        let entry = Entry { value, until_ms: self.end(ttl_ms) };
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.memory.invalidate(key).await;
        self.write_below(key, &entry, ttl_ms).await;
        self.memory.insert(key.to_owned(), entry).await;
        self.changes.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        self.changes.fetch_add(1, Ordering::AcqRel);
        for layer in &self.layers {
            self.remove_from(layer, key).await;
        }
        self.memory.invalidate(key).await;
        self.changes.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

impl fmt::Debug for LayeredCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayeredCache")
            .field("layers", &self.layers.len())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
