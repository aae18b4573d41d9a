//! The ports to caches and blob stores, with implementations in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, SystemClock};
use crate::error::Error;
use crate::hash::sha256_hex;

/// A store that may forget. Losing a value costs time, never correctness.
#[async_trait]
pub trait Cache: Send + Sync {
    /// The value under `key`, if it is there and has not expired.
    async fn get(&self, key: &str) -> Result<Option<Arc<[u8]>>, Error>;

    /// Keeps `value` for `ttl_ms` milliseconds, or as long as there is room.
    async fn put(&self, key: &str, value: Arc<[u8]>, ttl_ms: Option<u64>) -> Result<(), Error>;

    /// Forgets `key`.
    async fn remove(&self, key: &str) -> Result<(), Error>;
}

#[async_trait]
impl<C: Cache + ?Sized> Cache for Arc<C> {
    async fn get(&self, key: &str) -> Result<Option<Arc<[u8]>>, Error> {
        (**self).get(key).await
    }

    async fn put(&self, key: &str, value: Arc<[u8]>, ttl_ms: Option<u64>) -> Result<(), Error> {
        (**self).put(key, value, ttl_ms).await
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        (**self).remove(key).await
    }
}

/// A [`Cache`] in memory that holds a bounded number of entries and drops the oldest first.
pub struct MemoryCache {
    max_entries: usize,
    clock: Arc<dyn Clock>,
    state: Mutex<CacheState>,
}

#[derive(Default)]
struct CacheState {
    entries: HashMap<Box<str>, (Arc<[u8]>, u64)>,
    order: VecDeque<Box<str>>,
}

impl MemoryCache {
    /// A cache of at most `max_entries`.
    pub fn new(max_entries: usize) -> Self {
        Self::with_clock(max_entries, Arc::new(SystemClock))
    }

    /// The same on another clock.
    pub fn with_clock(max_entries: usize, clock: Arc<dyn Clock>) -> Self {
        MemoryCache { max_entries, clock, state: Mutex::default() }
    }
}

#[async_trait]
impl Cache for MemoryCache {
    async fn get(&self, key: &str) -> Result<Option<Arc<[u8]>>, Error> {
        let now = self.clock.now_ms();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(state.entries.get(key).filter(|(_, until)| now < *until).map(|(value, _)| value.clone()))
    }

    async fn put(&self, key: &str, value: Arc<[u8]>, ttl_ms: Option<u64>) -> Result<(), Error> {
        let until = ttl_ms.map_or(u64::MAX, |ttl| self.clock.now_ms().saturating_add(ttl));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.entries.insert(key.into(), (value, until)).is_none() {
            state.order.push_back(key.into());
        }
        while state.entries.len() > self.max_entries {
            let Some(oldest) = state.order.pop_front() else { break };
            state.entries.remove(&oldest);
        }
        Ok(())
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.entries.remove(key).is_some() {
            state.order.retain(|known| &**known != key);
        }
        Ok(())
    }
}

/// The name of a blob: the SHA-256 of its bytes, and how many they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// Length in bytes.
    pub bytes: u64,
}

impl BlobRef {
    /// The name of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        BlobRef { sha256: sha256_hex(bytes), bytes: bytes.len() as u64 }
    }
}

/// A content-addressed store for what is too large for a journal.
#[async_trait]
pub trait Blobs: Send + Sync {
    /// Keeps `bytes`; durable when it returns. Keeping the same bytes twice is keeping them once.
    async fn put(&self, bytes: &[u8]) -> Result<BlobRef, Error>;

    /// The bytes of `blob`, if they are there.
    async fn get(&self, blob: &BlobRef) -> Result<Option<Arc<[u8]>>, Error>;
}

#[async_trait]
impl<B: Blobs + ?Sized> Blobs for Arc<B> {
    async fn put(&self, bytes: &[u8]) -> Result<BlobRef, Error> {
        (**self).put(bytes).await
    }

    async fn get(&self, blob: &BlobRef) -> Result<Option<Arc<[u8]>>, Error> {
        (**self).get(blob).await
    }
}

/// [`Blobs`] in memory.
#[derive(Debug, Default)]
pub struct MemoryBlobs(Mutex<HashMap<String, Arc<[u8]>>>);

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn put(&self, bytes: &[u8]) -> Result<BlobRef, Error> {
        let blob = BlobRef::of(bytes);
        let mut blobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.entry(blob.sha256.clone()).or_insert_with(|| bytes.into());
        Ok(blob)
    }

    async fn get(&self, blob: &BlobRef) -> Result<Option<Arc<[u8]>>, Error> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&blob.sha256).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[tokio::test]
    async fn memory_cache_expires_and_stays_bounded() {
        let clock = Arc::new(ManualClock::at_ms(0));
        let cache = MemoryCache::with_clock(2, clock.clone());
        cache.put("a", Arc::from(*b"1"), Some(10)).await.unwrap();
        assert_eq!(cache.get("a").await.unwrap().as_deref(), Some(&b"1"[..]));
        clock.advance_ms(10);
        assert_eq!(cache.get("a").await.unwrap(), None);
        for key in ["b", "c"] {
            cache.put(key, Arc::from(*b"2"), None).await.unwrap();
        }
        assert!(cache.get("b").await.unwrap().is_some());
        cache.remove("b").await.unwrap();
        assert_eq!(cache.get("b").await.unwrap(), None);
        assert!(cache.get("c").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn memory_blobs_are_content_addressed() {
        let blobs = MemoryBlobs::default();
        let name = blobs.put(b"coral").await.unwrap();
        assert_eq!(name, blobs.put(b"coral").await.unwrap());
        assert_eq!(blobs.get(&name).await.unwrap().as_deref(), Some(&b"coral"[..]));
        assert_eq!(blobs.get(&BlobRef::of(b"other")).await.unwrap(), None);
    }
}
