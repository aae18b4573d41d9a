//! Snapshots in a SQLite file.

use async_trait::async_trait;
use coral_core::{Error, Journal, Seq};
use rusqlite::{OptionalExtension, params};

use super::{SqliteStore, unsealed};
use crate::snapshots::Snapshots;
use crate::vault::{Vault, about_snapshot};

#[async_trait]
impl Snapshots for SqliteStore {
    async fn load(&self, run: &str) -> Result<Option<Vec<u8>>, Error> {
        let run: Box<str> = run.into();
        let vault = self.0.keys.clone();
        let found = self
            .read("read a snapshot", move |conn| {
                let vault = vault.as_deref().map(Vault::since);
                conn.prepare_cached(
                    "SELECT data FROM snapshots WHERE run_id = (SELECT id FROM runs WHERE run = ?1)",
                )?
                .query_row([&run], |row| {
                    Ok(unsealed(vault, conn, row.get_ref(0)?.as_blob()?, &about_snapshot(&run)))
                })
                .optional()
            })
            .await?;
        Ok(found.transpose()?.map(|bytes| bytes.to_vec()))
    }

    async fn save(&self, run: &str, last: Seq, revision: u64, bytes: Vec<u8>) -> Result<(), Error> {
        let Some(head) = self.journal().head(run).await? else { return Ok(()) };
        let data = self.sealed(&head.project, &about_snapshot(run), bytes.into()).await?;
        let run: Box<str> = run.into();
        self.write("keep a snapshot", move |conn| {
            conn.prepare_cached(
                "INSERT INTO snapshots (run_id, last_seq, data)
                 SELECT id, ?2, ?3 FROM runs WHERE run = ?1 AND last_seq >= ?2 AND revision = ?4
                 ON CONFLICT DO UPDATE SET last_seq = excluded.last_seq, data = excluded.data
                 WHERE excluded.last_seq > last_seq",
            )?
            .execute(params![run, last.cast_signed(), &data[..], revision.cast_signed()])?;
            Ok(())
        })
        .await
    }
}
