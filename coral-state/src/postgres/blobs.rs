//! Blobs and snapshots on a server.

use std::sync::Arc;

use async_trait::async_trait;
use coral_core::{BlobRef, Blobs, Clock, Error, Journal, Seq, SystemClock};
use tokio_postgres::types::ToSql;

use super::{PostgresStore, get, signed};
use crate::blob_name::{self, verified};
use crate::crypto::{OVERHEAD, Sealed};
use crate::garbage::BlobSweep;
use crate::snapshots::Snapshots;
use crate::vault::{about_blob, about_snapshot};

/// [`Blobs`] of one project on a PostgreSQL server, each kept once.
#[derive(Clone, Debug)]
pub struct PostgresBlobs {
    store: PostgresStore,
    scope: Box<str>,
}

impl PostgresBlobs {
    pub(super) fn new(store: PostgresStore, scope: &str) -> Self {
        PostgresBlobs { store, scope: scope.into() }
    }
}

#[async_trait]
impl Blobs for PostgresBlobs {
    async fn put(&self, bytes: &[u8]) -> Result<BlobRef, Error> {
        let blob = BlobRef::of(bytes);
        let key = blob_name::key(&blob)?;
        let data = self.store.seal(&self.scope, &about_blob(&key), bytes.to_vec()).await?;
        let insert = "INSERT INTO blobs (scope, sha256, data, kept_at_ms) SELECT $1, $2, $3, $4
                      WHERE $5::bigint IS NULL
                      OR EXISTS (SELECT 1 FROM data_keys WHERE id = $5 AND wrapped IS NOT NULL)
                      ON CONFLICT (scope, sha256) DO UPDATE SET kept_at_ms = excluded.kept_at_ms RETURNING 1";
        let now = signed(SystemClock.now_ms());
        let key_id = Sealed::parse(&data).filter(|_| self.store.0.vault.is_some());
        let key_id = key_id.map(|sealed| i64::from(sealed.key));
        let values: [&(dyn ToSql + Sync); 5] = [&&*self.scope, &&key[..], &data, &now, &key_id];
        if self.store.0.pool.query("keep a blob", insert, &values).await?.is_empty() {
            self.store.check_key(&data).await?;
        }
        Ok(blob)
    }

    async fn get(&self, blob: &BlobRef) -> Result<Option<Arc<[u8]>>, Error> {
        let key = blob_name::key(blob)?;
        let select = "SELECT data FROM blobs WHERE scope = $1 AND sha256 = $2";
        let rows = self.store.0.pool.query("read a blob", select, &[&&*self.scope, &&key[..]]).await?;
        let Some(row) = rows.first() else {
            self.store.check_scope(&self.scope).await?;
            return Ok(None);
        };
        let bytes = self.store.unseal(get(row, 0)?, &about_blob(&key)).await?;
        verified(blob, bytes.into()).map(Some)
    }
}

#[async_trait]
impl BlobSweep for PostgresBlobs {
    fn project(&self) -> &str {
        &self.scope
    }

    async fn older_than(&self, cutoff_ms: u64) -> Result<Vec<BlobRef>, Error> {
        let added = if self.store.0.vault.is_some() { OVERHEAD } else { 0 };
        let select = "SELECT encode(sha256, 'hex'), length(data) - CASE WHEN $3::bigint > 0
                      AND substr(data, 1, 1) = '\\x02' THEN $3::bigint ELSE 0 END
                      FROM blobs WHERE scope = $1 AND kept_at_ms < $2";
        let rows = self
            .store
            .0
            .pool
            .query("list blobs", select, &[&&*self.scope, &signed(cutoff_ms), &added])
            .await?;
        rows.iter()
            .map(|row| Ok(BlobRef { sha256: get(row, 0)?, bytes: get::<i64>(row, 1)?.cast_unsigned() }))
            .collect()
    }

    async fn sweep(&self, blob: &BlobRef, cutoff_ms: u64) -> Result<bool, Error> {
        let key = blob_name::key(blob)?;
        // A row that is put at this moment is looked at again once that is done.
        let delete = "DELETE FROM blobs WHERE scope = $1 AND sha256 = $2 AND kept_at_ms < $3 RETURNING 1";
        let values: [&(dyn ToSql + Sync); 3] = [&&*self.scope, &&key[..], &signed(cutoff_ms)];
        Ok(!self.store.0.pool.query("remove a blob", delete, &values).await?.is_empty())
    }
}

#[async_trait]
impl Snapshots for PostgresStore {
    async fn load(&self, run: &str) -> Result<Option<Vec<u8>>, Error> {
        let select = "SELECT data FROM snapshots WHERE run_id = (SELECT id FROM runs WHERE run = $1)";
        let rows = self.0.pool.query("read a snapshot", select, &[&run]).await?;
        match rows.first() {
            Some(row) => self.unseal(get(row, 0)?, &about_snapshot(run)).await.map(Some),
            None => Ok(None),
        }
    }

    async fn save(&self, run: &str, last: Seq, revision: u64, bytes: Vec<u8>) -> Result<(), Error> {
        let Some(head) = self.journal().head(run).await? else { return Ok(()) };
        let data = self.seal(&head.project, &about_snapshot(run), bytes).await?;
        let insert = "INSERT INTO snapshots (run_id, last_seq, data)
                      SELECT id, $2, $3 FROM runs WHERE run = $1 AND last_seq >= $2 AND revision = $4 FOR SHARE
                      ON CONFLICT (run_id) DO UPDATE SET last_seq = excluded.last_seq, data = excluded.data
                      WHERE excluded.last_seq > snapshots.last_seq";
        self.0
            .pool
            .query("keep a snapshot", insert, &[&run, &signed(last), &data, &revision.cast_signed()])
            .await?;
        Ok(())
    }
}
