//! The blob store in a SQLite file.

use std::sync::Arc;

use async_trait::async_trait;
use coral_core::{BlobRef, Blobs, Clock, Error, SystemClock};
use rusqlite::{OptionalExtension, params};

use super::{SqliteStore, keys, unsealed};
use crate::blob_name::{self, verified};
use crate::crypto::{OVERHEAD, Sealed};
use crate::garbage::BlobSweep;
use crate::vault::{Vault, about_blob, erased};

/// [`Blobs`] of one project in a SQLite file, each kept once.
#[derive(Clone, Debug)]
pub struct SqliteBlobs {
    store: SqliteStore,
    scope: Box<str>,
}

impl SqliteBlobs {
    pub(super) fn new(store: SqliteStore, scope: &str) -> Self {
        SqliteBlobs { store, scope: scope.into() }
    }
}

#[async_trait]
impl Blobs for SqliteBlobs {
    async fn put(&self, bytes: &[u8]) -> Result<BlobRef, Error> {
        let blob = BlobRef::of(bytes);
        let key = blob_name::key(&blob)?;
        let data = self.store.sealed(&self.scope, &about_blob(&key), bytes.into()).await?;
        let (scope, encrypted) = (self.scope.clone(), self.store.0.keys.is_some());
        self.store
            .write("keep a blob", move |conn| {
                if let Some(sealed) = Sealed::parse(&data).filter(|_| encrypted)
                    && let Err(error) = keys::check(conn, &sealed)?
                {
                    return Ok(Err(error));
                }
                conn.prepare_cached(
                    "INSERT INTO blobs (scope, sha256, data, kept_at_ms) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO UPDATE SET kept_at_ms = excluded.kept_at_ms",
                )?
                .execute(params![
                    scope,
                    key,
                    &data[..],
                    SystemClock.now_ms().cast_signed()
                ])?;
                Ok(Ok(blob))
            })
            .await?
    }

    async fn get(&self, blob: &BlobRef) -> Result<Option<Arc<[u8]>>, Error> {
        let key = blob_name::key(blob)?;
        let (scope, vault) = (self.scope.clone(), self.store.0.keys.clone());
        let found = self
            .store
            .read("read a blob", move |conn| {
                let vault = vault.as_deref().map(Vault::since);
                let found = conn
                    .prepare_cached("SELECT data FROM blobs WHERE scope = ?1 AND sha256 = ?2")?
                    .query_row(params![scope, key], |row| {
                        Ok(unsealed(vault, conn, row.get_ref(0)?.as_blob()?, &about_blob(&key)))
                    })
                    .optional()?;
                match keys::erased_at(conn, &scope)?.filter(|_| found.is_none()) {
                    Some(at) => Ok(Some(Err(erased(&scope, Some(at))))),
                    None => Ok(found),
                }
            })
            .await?;
        found.transpose()?.map(|bytes| verified(blob, bytes)).transpose()
    }
}

#[async_trait]
impl BlobSweep for SqliteBlobs {
    fn project(&self) -> &str {
        &self.scope
    }

    async fn older_than(&self, cutoff_ms: u64) -> Result<Vec<BlobRef>, Error> {
        let scope = self.scope.clone();
        let cutoff = i64::try_from(cutoff_ms).unwrap_or(i64::MAX);
        let added = if self.store.0.keys.is_some() { OVERHEAD } else { 0 };
        self.store
            .read("list blobs", move |conn| {
                conn.prepare_cached(
                    "SELECT lower(hex(sha256)),
                     length(data) - CASE WHEN ?3 > 0 AND substr(data, 1, 1) = x'02' THEN ?3 ELSE 0 END
                     FROM blobs WHERE scope = ?1 AND kept_at_ms < ?2",
                )?
                .query_map(params![scope, cutoff, added], |row| {
                    Ok(BlobRef { sha256: row.get(0)?, bytes: row.get::<_, i64>(1)?.cast_unsigned() })
                })?
                .collect()
            })
            .await
    }

    async fn sweep(&self, blob: &BlobRef, cutoff_ms: u64) -> Result<bool, Error> {
        let key = blob_name::key(blob)?;
        let scope = self.scope.clone();
        let cutoff = i64::try_from(cutoff_ms).unwrap_or(i64::MAX);
        self.store
            .write("remove a blob", move |conn| {
                conn.prepare_cached("DELETE FROM blobs WHERE scope = ?1 AND sha256 = ?2 AND kept_at_ms < ?3")?
                    .execute(params![scope, key, cutoff])
                    .map(|removed| removed > 0)
            })
            .await
    }
}
