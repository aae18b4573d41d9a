//! The data keys of a store on a server.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use coral_core::{Clock, Error, Record, SystemClock};
use tokio_postgres::{Client, Row};

use super::connection::storage;
use super::{PostgresStore, get};
use crate::crypto::{DataKey, Sealed};
use crate::vault::{KeyRow, Stone, Tombstone, Vault, erased, missing, no_project, not_encrypted};

/// Keys that were fetched, by their ids.
#[derive(Default)]
pub(super) struct Keys(HashMap<u32, Arc<DataKey>>);

impl Keys {
    /// What was sealed as `about`.
    pub(super) fn open(&self, sealed: &Sealed<'_>, about: &[u8]) -> Result<Vec<u8>, Error> {
        self.0.get(&sealed.key).ok_or_else(|| missing(sealed.key))?.open(sealed, about)
    }
}

fn read(row: &Row) -> Result<KeyRow, Error> {
    let id = get::<i64>(row, 0)?;
    let id = u32::try_from(id).map_err(|_| missing(u32::MAX))?;
    Ok(KeyRow { id, scope: get(row, 1)?, master: get(row, 2)?, wrapped: get(row, 3)? })
}

impl PostgresStore {
    fn vault(&self) -> Result<&Vault, Error> {
        self.0.vault.as_ref().ok_or_else(|| not_encrypted("PostgresOptions::keys"))
    }

    /// Refuses an encrypted store without keys, before something readable comes into it, and keys for a
    /// store that holds something readable.
    pub(super) async fn check_keys(&self) -> Result<(), Error> {
        let select = "SELECT EXISTS (SELECT 1 FROM data_keys),
                      EXISTS (SELECT 1 FROM chunks) OR EXISTS (SELECT 1 FROM blobs)";
        let rows = self.0.pool.query("open the store", select, &[]).await?;
        let Some(row) = rows.first() else { return Ok(()) };
        let (sealed, filled): (bool, bool) = (get(row, 0)?, get(row, 1)?);
        match self.0.vault {
            None if sealed => Err(Error::invalid("store", "it is encrypted and no key was given")
                .with_help("open it with `PostgresOptions::keys`")),
            Some(_) if filled && !sealed => Err(Error::invalid(
                "store",
                "what it holds is readable, and keys would only seal what is new",
            )
            .with_help(
                "`backup` it, make an `encrypted_copy` of that file, and `restore` it into a new schema",
            )),
            _ => Ok(()),
        }
    }

    /// The key that seals what is new in `scope`, made if there is none yet.
    pub(super) async fn key_of_scope(&self, scope: &str) -> Result<Arc<DataKey>, Error> {
        const MAKE: &str = "make a data key";
        let vault = self.vault()?;
        if let Some(key) = vault.current(scope) {
            return Ok(key);
        }
        let (pool, since) = (&self.0.pool, vault.since());
        let select =
            "SELECT id, scope, master, wrapped FROM data_keys WHERE scope = $1 ORDER BY id DESC LIMIT 1";
        let mut rows = pool.query(MAKE, select, &[&scope]).await?;
        if rows.is_empty() {
            let (fresh, master) = (vault.ring().draw(scope)?, vault.ring().current().id());
            // Should two make one at once, both are good, and the later one seals.
            let insert = "INSERT INTO data_keys (scope, master, wrapped) SELECT $1, $2, $3
                          WHERE NOT EXISTS (SELECT 1 FROM data_keys WHERE scope = $1)
                          AND NOT EXISTS (SELECT 1 FROM tombstones WHERE scope = $1)";
            pool.query(MAKE, insert, &[&scope, &master, &fresh]).await?;
            rows = pool.query(MAKE, select, &[&scope]).await?;
        }
        match rows.first().map(read).transpose()?.filter(|row| row.wrapped.is_some()) {
            Some(row) => since.add_current(&row),
            None => Err(self.erased(scope).await?),
        }
    }

    async fn erased(&self, scope: &str) -> Result<Error, Error> {
        let select = "SELECT erased_at_ms FROM tombstones WHERE scope = $1";
        let rows = self.0.pool.query("read a data key", select, &[&scope]).await?;
        let at = rows.first().map(|row| get::<i64>(row, 0)).transpose()?;
        Ok(erased(scope, at.map(i64::cast_unsigned)))
    }

    /// The key that seals what `run` appends; its first batch says which project it belongs to.
    pub(super) async fn key_of_run(&self, run: &str, records: &[Record]) -> Result<Arc<DataKey>, Error> {
        let vault = self.vault()?;
        if let Some(scope) = vault.scope_of(run, records) {
            return self.key_of_scope(&scope).await;
        }
        let select = "SELECT project FROM runs WHERE run = $1 AND last_seq > 0";
        let rows = self.0.pool.query("read the journal", select, &[&run]).await?;
        // A run that has not begun refuses the batch, whatever it is sealed by.
        let Some(row) = rows.first() else { return self.key_of_scope("").await };
        let project: String = get(row, 0)?;
        vault.learn_scope(run, &project);
        self.key_of_scope(&project).await
    }

    /// The first key that `scope` ever had, which rotation leaves alone.
    pub(super) async fn first_key_of(&self, scope: &str) -> Result<Arc<DataKey>, Error> {
        self.key_of_scope(scope).await?;
        let since = self.vault()?.since();
        let select = "SELECT id, scope, master, wrapped FROM data_keys WHERE scope = $1 ORDER BY id LIMIT 1";
        let rows = self.0.pool.query("read a data key", select, &[&scope]).await?;
        match rows.first() {
            Some(row) => since.add(&read(row)?),
            None => Err(self.erased(scope).await?),
        }
    }

    /// The keys of all that is sealed among `values`.
    pub(super) async fn learn_keys<'a>(
        &self,
        values: impl Iterator<Item = Result<&'a [u8], Error>>,
    ) -> Result<Keys, Error> {
        let mut keys = Keys::default();
        let Some(vault) = &self.0.vault else { return Ok(keys) };
        let since = vault.since();
        let mut unknown = BTreeSet::new();
        for value in values {
            let Some(sealed) = Sealed::parse(value?) else { continue };
            match since.get(sealed.key) {
                Some(key) => drop(keys.0.insert(sealed.key, key)),
                None => drop(unknown.insert(i64::from(sealed.key))),
            }
        }
        if unknown.is_empty() {
            return Ok(keys);
        }
        let ids: Vec<i64> = unknown.into_iter().collect();
        let select = "SELECT id, scope, master, wrapped FROM data_keys WHERE id = ANY($1)";
        for row in self.0.pool.query("read a data key", select, &[&ids]).await? {
            let row = read(&row)?;
            if row.wrapped.is_none() {
                return Err(self.erased(&row.scope).await?);
            }
            keys.0.insert(row.id, since.add(&row)?);
        }
        Ok(keys)
    }

    /// Refuses what is sealed by a key that was destroyed since, be it by another process.
    pub(super) async fn check_key(&self, bytes: &[u8]) -> Result<(), Error> {
        let Some((vault, sealed)) = self.0.vault.as_ref().zip(Sealed::parse(bytes)) else { return Ok(()) };
        let select = "SELECT scope FROM data_keys WHERE id = $1 AND wrapped IS NULL";
        let rows = self.0.pool.query("read a data key", select, &[&i64::from(sealed.key)]).await?;
        match rows.first() {
            Some(row) => vault.heed(Err(self.erased(get(row, 0)?).await?)),
            None => Ok(()),
        }
    }

    /// Refuses what belongs to an erased project.
    pub(super) async fn check_scope(&self, scope: &str) -> Result<(), Error> {
        let select = "SELECT erased_at_ms FROM tombstones WHERE scope = $1";
        match self.0.pool.query("read a data key", select, &[&scope]).await?.first() {
            Some(row) => Err(erased(scope, Some(get::<i64>(row, 0)?.cast_unsigned()))),
            None => Ok(()),
        }
    }

    /// `plain` as it lies in the schema.
    pub(super) async fn seal(&self, scope: &str, about: &[u8], plain: Vec<u8>) -> Result<Vec<u8>, Error> {
        match &self.0.vault {
            Some(_) => self.key_of_scope(scope).await?.seal(0, about, &plain),
            None => Ok(plain),
        }
    }

    /// What [`seal`](Self::seal) made, as it was before.
    pub(super) async fn unseal(&self, bytes: Vec<u8>, about: &[u8]) -> Result<Vec<u8>, Error> {
        let keys = self.learn_keys(std::iter::once(Ok(&bytes[..]))).await?;
        match Sealed::parse(&bytes).filter(|_| self.0.vault.is_some()) {
            Some(sealed) => keys.open(&sealed, about),
            None => Ok(bytes),
        }
    }

    /// Wraps all data keys by the ring's current master key, so that older ones are needed no more;
    /// says how many. What the data keys sealed is not touched, and nobody has to wait.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the store is not encrypted, or the ring lacks
    /// a key.
    pub async fn rotate_master_key(&self) -> Result<usize, Error> {
        let vault = self.vault()?;
        let failed = |e: tokio_postgres::Error| storage("rotate the master key", &e);
        let current = vault.ring().current().id();
        let mut client = self.0.pool.own().await?;
        let transaction = client.transaction().await.map_err(failed)?;
        let select = "SELECT id, scope, master, wrapped FROM data_keys
                      WHERE master <> $1 AND wrapped IS NOT NULL ORDER BY id FOR UPDATE";
        let rows = transaction.query(select, &[&current]).await.map_err(failed)?;
        for row in &rows {
            let row = read(row)?;
            let wrapped = vault.rewrap(&row)?;
            let update = "UPDATE data_keys SET master = $2, wrapped = $3 WHERE id = $1";
            transaction.execute(update, &[&i64::from(row.id), &current, &wrapped]).await.map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)?;
        scrub(&client).await?;
        Ok(rows.len())
    }

    /// Gives a project a new data key for what comes; what is there stays readable by its old one.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the store is not encrypted,
    /// [`NotFound`](coral_core::ErrorKind::NotFound) if the project was erased.
    pub async fn rotate_data_key(&self, project: &str) -> Result<(), Error> {
        let vault = self.vault()?;
        let (fresh, master) = (vault.ring().draw(project)?, vault.ring().current().id());
        let insert = "INSERT INTO data_keys (scope, master, wrapped) SELECT $1, $2, $3
                      WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE scope = $1) RETURNING id";
        let rows = self.0.pool.query("rotate a data key", insert, &[&project, &master, &fresh]).await?;
        if rows.is_empty() {
            return Err(self.erased(project).await?);
        }
        vault.forget(project);
        Ok(())
    }

    /// Destroys a project's data keys, and with them all that they sealed: runs, blobs, whatever
    /// copies of them there are. A signed tombstone stays, and the journal can still be verified.
    /// Erasing what is erased gives the first tombstone again.
    ///
    /// Other processes are refused from then on when they append. A key that one of them already
    /// holds in memory is gone when that process ends. The wrapped key lies on in the server's log and backups until these are recycled: change the
    /// master key and destroy the old one, and it is worth nothing there either.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the store is not encrypted, or `project` is empty:
    /// what belongs to no project shares the store's own keys.
    pub async fn erase_project(&self, project: &str) -> Result<Tombstone, Error> {
        let vault = self.vault()?;
        if project.is_empty() {
            return Err(no_project());
        }
        let failed = |e: tokio_postgres::Error| storage("erase a project", &e);
        let mut client = self.0.pool.own().await?;
        let transaction = client.transaction().await.map_err(failed)?;
        // Nobody makes a key for it meanwhile.
        transaction
            .batch_execute("LOCK TABLE data_keys, tombstones IN SHARE ROW EXCLUSIVE MODE")
            .await
            .map_err(failed)?;
        let count = "SELECT count(*) FROM data_keys WHERE scope = $1";
        let count = get::<i64>(&transaction.query_one(count, &[&project]).await.map_err(failed)?, 0)?;
        let stone = Stone::carve(vault.ring(), project, SystemClock.now_ms().cast_signed(), count);
        let insert = "INSERT INTO tombstones (scope, erased_at_ms, keys, master, signature)
                      VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
        transaction
            .execute(insert, &[&stone.scope, &stone.at_ms, &stone.keys, &stone.master, &stone.signature])
            .await
            .map_err(failed)?;
        for erase in [
            "UPDATE data_keys SET wrapped = NULL WHERE scope = $1",
            "UPDATE runs SET revision = nextval('revisions') WHERE project = $1",
            "DELETE FROM run_index WHERE project = $1",
            // Their names are hashes of what they held.
            "DELETE FROM blobs WHERE scope = $1",
            "DELETE FROM snapshots WHERE run_id IN (SELECT id FROM runs WHERE project = $1)",
        ] {
            transaction.execute(erase, &[&project]).await.map_err(failed)?;
        }
        // Its entries belong to no project, so any may hold something of this one.
        transaction.execute("DELETE FROM cache", &[]).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        vault.forget(project);
        scrub(&client).await?;
        let tombstone = self.tombstones().await?.into_iter().find(|tombstone| tombstone.project == project);
        tombstone.ok_or_else(|| Error::storage("erase a project", "its tombstone is missing"))
    }

    /// What remains of erased projects, in the order of their ids.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the store is not encrypted.
    pub async fn tombstones(&self) -> Result<Vec<Tombstone>, Error> {
        let ring = self.vault()?.ring();
        let select = "SELECT scope, erased_at_ms, keys, master, signature FROM tombstones ORDER BY scope";
        let rows = self.0.pool.query("read the tombstones", select, &[]).await?;
        rows.iter()
            .map(|row| {
                let stone = Stone {
                    scope: get(row, 0)?,
                    at_ms: get(row, 1)?,
                    keys: get(row, 2)?,
                    master: get(row, 3)?,
                    signature: get(row, 4)?,
                };
                Ok(stone.read(ring))
            })
            .collect()
    }
}

/// Writes the table of keys anew, without the rows as they were before.
async fn scrub(client: &Client) -> Result<(), Error> {
    client.batch_execute("VACUUM FULL data_keys").await.map_err(|e| storage("write the keys anew", &e))
}
