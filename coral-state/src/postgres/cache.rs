//! The cache on a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use coral_core::{Cache, Clock, Error, SystemClock};
use hmac_sha256::Hash;

use super::{PostgresStore, get, signed};
use crate::crypto::about_entry;

/// Puts between two looks at what is too much.
const TRIM_EVERY: usize = 64;

/// A [`Cache`] on a PostgreSQL server, shared by processes on several machines: holds a bounded
/// number of entries, drops what has expired and then what was kept longest.
///
/// Keys are kept as their SHA-256. The server empties it when it starts after a crash; it has no
/// part in backups.
#[derive(Clone)]
pub struct PostgresCache {
    store: PostgresStore,
    max_entries: usize,
    clock: Arc<dyn Clock>,
    puts: Arc<AtomicUsize>,
}

impl PostgresCache {
    pub(super) fn new(store: PostgresStore, max_entries: usize) -> Self {
        PostgresCache { store, max_entries, clock: Arc::new(SystemClock), puts: Arc::default() }
    }

    /// The same cache by another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    async fn trim(&self) -> Result<(), Error> {
        let max_entries = i64::try_from(self.max_entries).unwrap_or(i64::MAX);
        let now = signed(self.clock.now_ms());
        let delete = "DELETE FROM cache WHERE until_ms <= $1
                      OR id <= (SELECT id FROM cache ORDER BY id DESC LIMIT 1 OFFSET $2)";
        self.store.0.pool.query("write the cache", delete, &[&now, &max_entries]).await?;
        Ok(())
    }
}

impl std::fmt::Debug for PostgresCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresCache").field("store", &self.store).finish_non_exhaustive()
    }
}

#[async_trait]
impl Cache for PostgresCache {
    async fn get(&self, key: &str) -> Result<Option<Arc<[u8]>>, Error> {
        let now = signed(self.clock.now_ms());
        let select = "SELECT value FROM cache WHERE key = $1 AND until_ms > $2";
        let hash = Hash::hash(key.as_bytes());
        let rows = self.store.0.pool.query("read the cache", select, &[&&hash[..], &now]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(self.store.unseal(get(row, 0)?, &about_entry(key)).await?.into()))
    }

    async fn put(&self, key: &str, value: Arc<[u8]>, ttl_ms: Option<u64>) -> Result<(), Error> {
        let value = self.store.seal("", &about_entry(key), value.to_vec()).await?;
        let until = ttl_ms.map_or(i64::MAX, |ttl| signed(self.clock.now_ms().saturating_add(ttl)));
        // A new id: what is written anew counts as young.
        let insert = "INSERT INTO cache (key, value, until_ms) VALUES ($1, $2, $3)
                      ON CONFLICT (key) DO UPDATE
                      SET id = DEFAULT, value = excluded.value, until_ms = excluded.until_ms";
        let hash = Hash::hash(key.as_bytes());
        self.store.0.pool.query("write the cache", insert, &[&&hash[..], &value, &until]).await?;
        match self.puts.fetch_add(1, Ordering::Relaxed).is_multiple_of(TRIM_EVERY) {
            true => self.trim().await,
            false => Ok(()),
        }
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        let hash = Hash::hash(key.as_bytes());
        let delete = "DELETE FROM cache WHERE key = $1";
        self.store.0.pool.query("write the cache", delete, &[&&hash[..]]).await?;
        Ok(())
    }
}
