//! A cache whose values only those who hold a key can read.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use coral_core::{Cache, Error, hex};
use hmac_sha256::HMAC;

use crate::crypto::{CacheKeys, KeyRing, about_entry};

/// A [`Cache`] around another, such as one on a Redis server, that encrypts what goes in. Keys are
/// kept as keyed hashes, so nothing of either is to be read there.
///
/// What older master keys of the ring sealed is still read. What can't be opened, be it of a key
/// that the ring has lost or tampered with, counts as missing: it is made again.
///
/// ```
/// use coral_core::{Cache, MemoryCache};
/// use coral_state::{KeyRing, MasterKey, SealedCache};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let cache = SealedCache::new(MemoryCache::new(100), &KeyRing::new(MasterKey::generate()?));
/// cache.put("answer", (*b"42").into(), None).await?;
/// assert_eq!(cache.get("answer").await?.as_deref(), Some(&b"42"[..]));
/// # Ok::<(), coral_core::Error>(())
/// # }).unwrap();
/// ```
pub struct SealedCache<C> {
    cache: C,
    keys: Vec<CacheKeys>,
}

impl<C: Cache> SealedCache<C> {
    /// Seals what goes into `cache` by the current key of `ring`.
    pub fn new(cache: C, ring: &KeyRing) -> Self {
        SealedCache { cache, keys: ring.cache_keys() }
    }
}

fn hashed(keys: &CacheKeys, key: &str) -> String {
    hex(&HMAC::mac(key, &keys.names[..]))
}

#[async_trait]
impl<C: Cache> Cache for SealedCache<C> {
    async fn get(&self, key: &str) -> Result<Option<Arc<[u8]>>, Error> {
        for keys in &self.keys {
            let found = self.cache.get(&hashed(keys, key)).await?;
            if let Some(plain) = found.and_then(|sealed| keys.values.unseal(&sealed, &about_entry(key))) {
                return Ok(Some(plain.into()));
            }
        }
        Ok(None)
    }

    async fn put(&self, key: &str, value: Arc<[u8]>, ttl_ms: Option<u64>) -> Result<(), Error> {
        let Some((current, older)) = self.keys.split_first() else { return Ok(()) };
        for keys in older {
            self.cache.remove(&hashed(keys, key)).await?;
        }
        let sealed = current.values.seal(0, &about_entry(key), &value)?;
        self.cache.put(&hashed(current, key), sealed.into(), ttl_ms).await
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        for keys in &self.keys {
            self.cache.remove(&hashed(keys, key)).await?;
        }
        Ok(())
    }
}

impl<C> fmt::Debug for SealedCache<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedCache").finish_non_exhaustive()
    }
}
