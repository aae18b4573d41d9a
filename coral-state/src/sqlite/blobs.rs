//! The blob store in a SQLite file.

use std::sync::Arc;

use async_trait::async_trait;
use coral_core::{BlobRef, Blobs, Error};
use rusqlite::OptionalExtension;

use super::SqliteStore;
use crate::blob_name::{self, verified};

/// [`Blobs`] in a SQLite file, each kept once whatever its name is asked for by.
#[derive(Clone, Debug)]
pub struct SqliteBlobs(SqliteStore);

impl SqliteBlobs {
    pub(super) fn new(store: SqliteStore) -> Self {
        SqliteBlobs(store)
    }
}

#[async_trait]
impl Blobs for SqliteBlobs {
    async fn put(&self, bytes: &[u8]) -> Result<BlobRef, Error> {
        let blob = BlobRef::of(bytes);
        let key = blob_name::key(&blob)?;
        let data: Box<[u8]> = bytes.into();
        self.0
            .write("keep a blob", move |conn| {
                conn.prepare_cached(
                    "INSERT INTO blobs (sha256, data) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                )?
                .execute((key, data))
            })
            .await?;
        Ok(blob)
    }

    async fn get(&self, blob: &BlobRef) -> Result<Option<Arc<[u8]>>, Error> {
        let key = blob_name::key(blob)?;
        let found = self
            .0
            .read("read a blob", move |conn| {
                conn.prepare_cached("SELECT data FROM blobs WHERE sha256 = ?1")?
                    .query_row([key], |row| Ok(Arc::<[u8]>::from(row.get_ref(0)?.as_blob()?)))
                    .optional()
            })
            .await?;
        found.map(|bytes| verified(blob, bytes)).transpose()
    }
}
