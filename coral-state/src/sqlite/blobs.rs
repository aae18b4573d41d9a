//! The blob store in a SQLite file.

use std::sync::Arc;

use async_trait::async_trait;
use coral_core::{BlobRef, Blobs, Error};
use rusqlite::{OptionalExtension, params};

use super::{SqliteStore, unsealed};
use crate::blob_name::{self, verified};

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

fn about(key: &[u8; 32]) -> Vec<u8> {
    [b"blob\0", &key[..]].concat()
}

#[async_trait]
impl Blobs for SqliteBlobs {
    async fn put(&self, bytes: &[u8]) -> Result<BlobRef, Error> {
        let blob = BlobRef::of(bytes);
        let key = blob_name::key(&blob)?;
        let data = self.store.sealed(&self.scope, &about(&key), bytes.into()).await?;
        let scope = self.scope.clone();
        self.store
            .write("keep a blob", move |conn| {
                conn.prepare_cached(
                    "INSERT INTO blobs (scope, sha256, data) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                )?
                .execute(params![scope, key, &data[..]])
            })
            .await?;
        Ok(blob)
    }

    async fn get(&self, blob: &BlobRef) -> Result<Option<Arc<[u8]>>, Error> {
        let key = blob_name::key(blob)?;
        let (scope, keys) = (self.scope.clone(), self.store.0.keys.clone());
        let found = self
            .store
            .read("read a blob", move |conn| {
                conn.prepare_cached("SELECT data FROM blobs WHERE scope = ?1 AND sha256 = ?2")?
                    .query_row(params![scope, key], |row| {
                        Ok(unsealed(keys.as_deref(), conn, row.get_ref(0)?.as_blob()?, &about(&key)))
                    })
                    .optional()
            })
            .await?;
        found.transpose()?.map(|bytes| verified(blob, bytes)).transpose()
    }
}
