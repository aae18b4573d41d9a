//! The cache in a SQLite file.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use coral_core::{Cache, Clock, Error, SystemClock};
use rusqlite::{OptionalExtension, params};

use super::{SqliteStore, unsealed};
use crate::crypto::about_entry;
use crate::vault::Vault;

/// Puts between two looks at what is too much.
const TRIM_EVERY: usize = 64;

/// A [`Cache`] in a SQLite file: outlives the process, holds a bounded number of entries, drops
/// what has expired and then what was kept longest.
#[derive(Clone)]
pub struct SqliteCache {
    store: SqliteStore,
    max_entries: usize,
    clock: Arc<dyn Clock>,
    puts: Arc<AtomicUsize>,
}

impl SqliteCache {
    pub(super) fn new(store: SqliteStore, max_entries: usize) -> Self {
        SqliteCache { store, max_entries, clock: Arc::new(SystemClock), puts: Arc::default() }
    }

    /// The same cache by another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
}

impl std::fmt::Debug for SqliteCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteCache").field("store", &self.store).finish_non_exhaustive()
    }
}

fn column(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[async_trait]
impl Cache for SqliteCache {
    async fn get(&self, key: &str) -> Result<Option<Arc<[u8]>>, Error> {
        let key: Box<str> = key.into();
        let now = column(self.clock.now_ms());
        let keys = self.store.0.keys.clone();
        self.store
            .read("read the cache", move |conn| {
                let keys = keys.as_deref().map(Vault::since);
                conn.prepare_cached("SELECT value FROM cache WHERE key = ?1 AND until_ms > ?2")?
                    .query_row(params![key, now], |row| {
                        Ok(unsealed(keys, conn, row.get_ref(0)?.as_blob()?, &about_entry(&key)))
                    })
                    .optional()
            })
            .await?
            .transpose()
    }

    async fn put(&self, key: &str, value: Arc<[u8]>, ttl_ms: Option<u64>) -> Result<(), Error> {
        let value = self.store.sealed("", &about_entry(key), value).await?;
        let key: Box<str> = key.into();
        let now = self.clock.now_ms();
        let until = ttl_ms.map_or(i64::MAX, |ttl| column(now.saturating_add(ttl)));
        let trim = self.puts.fetch_add(1, Ordering::Relaxed).is_multiple_of(TRIM_EVERY);
        let max_entries = i64::try_from(self.max_entries).unwrap_or(i64::MAX);
        self.store
            .write("write the cache", move |conn| {
                // REPLACE gives a new id: what is written anew counts as young.
                conn.prepare_cached("REPLACE INTO cache (key, value, until_ms) VALUES (?1, ?2, ?3)")?
                    .execute(params![key, &value[..], until])?;
                if trim {
                    conn.prepare_cached("DELETE FROM cache WHERE until_ms <= ?1")?.execute([column(now)])?;
                    conn.prepare_cached(
                        "DELETE FROM cache WHERE id <= (SELECT id FROM cache ORDER BY id DESC LIMIT 1 OFFSET ?1)",
                    )?
                    .execute([max_entries])?;
                }
                Ok(())
            })
            .await
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        let key: Box<str> = key.into();
        self.store
            .write("write the cache", move |conn| {
                conn.prepare_cached("DELETE FROM cache WHERE key = ?1")?.execute([key])?;
                Ok(())
            })
            .await
    }
}
