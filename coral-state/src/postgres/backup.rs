//! Backups of a schema, as SQLite files.

use std::path::{Path, PathBuf};

use coral_core::Error;
use rusqlite::params_from_iter;
use rusqlite::types::Value;
use tokio::sync::mpsc;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Transaction};

use super::connection::storage;
use super::{PostgresStore, get};
use crate::sqlite::{blank, check, storage as file_storage, sync};

const BACKUP: &str = "write a backup";
const RESTORE: &str = "restore a backup";
/// Rows on their way at once; some of them may be large.
const BATCH: i32 = 64;

/// What a column holds.
#[derive(Clone, Copy)]
enum Kind {
    Number,
    Text,
    Bytes,
    MaybeBytes,
}

struct Table {
    name: &'static str,
    columns: &'static [(&'static str, Kind)],
}

/// What a backup holds: all but what is folded from it again.
const TABLES: &[Table] = &[
    Table {
        name: "runs",
        columns: &[
            ("id", Kind::Number),
            ("run", Kind::Text),
            ("epoch", Kind::Number),
            ("workflow", Kind::Text),
            ("project", Kind::Text),
            ("status", Kind::Text),
            ("last_seq", Kind::Number),
            ("started_at_ms", Kind::Number),
            ("updated_at_ms", Kind::Number),
            ("revision", Kind::Number),
        ],
    },
    Table {
        name: "chunks",
        columns: &[("run_id", Kind::Number), ("last_seq", Kind::Number), ("data", Kind::Bytes)],
    },
    Table {
        name: "blobs",
        columns: &[
            ("scope", Kind::Text),
            ("sha256", Kind::Bytes),
            ("data", Kind::Bytes),
            ("kept_at_ms", Kind::Number),
        ],
    },
    Table {
        name: "data_keys",
        columns: &[
            ("id", Kind::Number),
            ("scope", Kind::Text),
            ("master", Kind::Text),
            ("wrapped", Kind::MaybeBytes),
        ],
    },
    Table {
        name: "tombstones",
        columns: &[
            ("scope", Kind::Text),
            ("erased_at_ms", Kind::Number),
            ("keys", Kind::Number),
            ("master", Kind::Text),
            ("signature", Kind::Bytes),
        ],
    },
];

impl Table {
    fn names(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    fn places(&self, mark: char) -> String {
        (1..=self.columns.len()).map(|place| format!("{mark}{place}")).collect::<Vec<_>>().join(", ")
    }
}

fn value(row: &Row, column: usize, kind: Kind) -> Result<Value, Error> {
    Ok(match kind {
        Kind::Number => Value::Integer(get(row, column)?),
        Kind::Text => Value::Text(get(row, column)?),
        Kind::Bytes => Value::Blob(get(row, column)?),
        Kind::MaybeBytes => get::<Option<Vec<u8>>>(row, column)?.map_or(Value::Null, Value::Blob),
    })
}

impl PostgresStore {
    /// Writes a copy of the whole schema to a new file, as it is at one moment, while work goes on.
    /// The copy is a [`SqliteStore`](crate::SqliteStore); an encrypted one stays so.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the file is there already or can't be
    /// written; those of the server.
    pub async fn backup(&self, to: impl AsRef<Path>) -> Result<(), Error> {
        let to = to.as_ref().to_owned();
        let place = to.display().to_string();
        self.write_backup(to).await.map_err(|e| e.at(place))
    }

    async fn write_backup(&self, to: PathBuf) -> Result<(), Error> {
        let failed = |e: tokio_postgres::Error| storage(BACKUP, &e);
        if to.exists() {
            return Err(Error::storage(BACKUP, "there is a file already").with_help("choose another name"));
        }
        let mut client = self.0.pool.own().await?;
        let transaction = client
            .build_transaction()
            .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await
            .map_err(failed)?;
        let (rows, mut coming) = mpsc::channel::<(&'static Table, Vec<Vec<Value>>)>(2);
        let file = to.clone();
        let writer = tokio::task::spawn_blocking(move || -> Result<(), Error> {
            let failed = |e: rusqlite::Error| file_storage(BACKUP, &e);
            let mut conn = blank(&file)?;
            let transaction = conn.transaction().map_err(failed)?;
            while let Some((table, rows)) = coming.blocking_recv() {
                let sql =
                    format!("INSERT INTO {} ({}) VALUES ({})", table.name, table.names(), table.places('?'));
                let mut insert = transaction.prepare_cached(&sql).map_err(failed)?;
                for row in rows {
                    insert.execute(params_from_iter(row)).map_err(failed)?;
                }
            }
            transaction
                .execute("UPDATE revisions SET last = (SELECT coalesce(max(revision), 0) FROM runs)", [])
                .map_err(failed)?;
            transaction.commit().map_err(failed)?;
            conn.close().map_err(|(_, e)| failed(e))?;
            sync(&file).map_err(|e| Error::storage(BACKUP, e))
        });
        let mut sent = Ok(());
        for table in TABLES {
            sent = send(&transaction, table, &rows).await;
            if sent.is_err() {
                break;
            }
        }
        drop(rows);
        let written = writer.await.map_err(|e| Error::storage(BACKUP, e))?;
        // What went wrong with the file is told first: it is what ended the sending.
        let result = written.and(sent);
        if result.is_err() {
            // Half a backup must not be taken for one.
            let _ = std::fs::remove_file(&to);
        }
        result
    }

    /// Puts a backup into this schema, which must be empty: one of [`backup`](Self::backup), or
    /// any [`SqliteStore`](crate::SqliteStore) that nobody has open. All of it or nothing.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the schema holds anything or the file is no
    /// store; [`Storage`](coral_core::ErrorKind::Storage) if the file can't be read; those of the
    /// server.
    pub async fn restore(&self, from: impl AsRef<Path>) -> Result<(), Error> {
        let from = from.as_ref().to_owned();
        let place = from.display().to_string();
        self.read_backup(from).await.map_err(|e| e.at(place))
    }

    async fn read_backup(&self, from: PathBuf) -> Result<(), Error> {
        let failed = |e: tokio_postgres::Error| storage(RESTORE, &e);
        let mut client = self.0.pool.own().await?;
        let transaction = client.transaction().await.map_err(failed)?;
        // Nobody writes meanwhile; half a restore must not be seen.
        transaction
            .batch_execute("LOCK TABLE runs, chunks, blobs, data_keys, tombstones IN EXCLUSIVE MODE")
            .await
            .map_err(failed)?;
        for table in TABLES {
            let look = format!("SELECT 1 FROM {} LIMIT 1", table.name);
            if transaction.query_opt(&look, &[]).await.map_err(failed)?.is_some() {
                return Err(Error::invalid("schema", format!("its table `{}` is not empty", table.name))
                    .with_help("restore into a schema that does not exist yet"));
            }
        }
        let (rows, mut coming) = mpsc::channel::<(&'static Table, Vec<Vec<Value>>)>(2);
        let reader = tokio::task::spawn_blocking(move || read_file(&from, &rows));
        while let Some((table, rows)) = coming.recv().await {
            let sql = format!(
                "INSERT INTO {} ({}) {} VALUES ({})",
                table.name,
                table.names(),
                // Ids are what other rows refer to.
                if table.name == "runs" { "OVERRIDING SYSTEM VALUE" } else { "" },
                table.places('$')
            );
            let insert = transaction.prepare(&sql).await.map_err(failed)?;
            for row in rows {
                let values: Vec<Box<dyn ToSql + Sync + Send>> = row.into_iter().map(parameter).collect();
                let values: Vec<&(dyn ToSql + Sync)> =
                    values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
                transaction.execute(&insert, &values).await.map_err(failed)?;
            }
        }
        reader.await.map_err(|e| Error::storage(RESTORE, e))??;
        for table in ["runs", "data_keys"] {
            let sql = format!(
                "SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table} HAVING count(*) > 0"
            );
            transaction.query_opt(&sql, &[]).await.map_err(failed)?;
        }
        let last = "SELECT setval('revisions', coalesce(max(revision), 0)) FROM runs";
        transaction.query_opt(last, &[]).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }
}

async fn send(
    transaction: &Transaction<'_>,
    table: &'static Table,
    rows: &mpsc::Sender<(&'static Table, Vec<Vec<Value>>)>,
) -> Result<(), Error> {
    let failed = |e: tokio_postgres::Error| storage(BACKUP, &e);
    let select = format!("SELECT {} FROM {}", table.names(), table.name);
    let portal = transaction.bind(&select, &[]).await.map_err(failed)?;
    loop {
        let found = transaction.query_portal(&portal, BATCH).await.map_err(failed)?;
        if found.is_empty() {
            return Ok(());
        }
        let mut batch = Vec::with_capacity(found.len());
        for row in &found {
            let columns = table.columns.iter().enumerate();
            let values = columns.map(|(place, (_, kind))| value(row, place, *kind));
            batch.push(values.collect::<Result<Vec<_>, Error>>()?);
        }
        if rows.send((table, batch)).await.is_err() {
            return Err(Error::storage(BACKUP, "the file is no longer written"));
        }
    }
}

fn read_file(from: &Path, rows: &mpsc::Sender<(&'static Table, Vec<Vec<Value>>)>) -> Result<(), Error> {
    let failed = |e: rusqlite::Error| file_storage(RESTORE, &e);
    let conn = check(from)?;
    conn.execute_batch("BEGIN").map_err(failed)?;
    for table in TABLES {
        let sql = format!("SELECT {} FROM {}", table.names(), table.name);
        let mut select = conn.prepare(&sql).map_err(failed)?;
        let mut found = select.query([]).map_err(failed)?;
        let mut batch = Vec::new();
        while let Some(row) = found.next().map_err(failed)? {
            let values = (0..table.columns.len()).map(|place| row.get(place));
            batch.push(values.collect::<rusqlite::Result<Vec<Value>>>().map_err(failed)?);
            if batch.len() == usize::try_from(BATCH).unwrap_or(1)
                && rows.blocking_send((table, std::mem::take(&mut batch))).is_err()
            {
                // The server's error is the one to tell.
                return Ok(());
            }
        }
        if !batch.is_empty() && rows.blocking_send((table, batch)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn parameter(value: Value) -> Box<dyn ToSql + Sync + Send> {
    match value {
        Value::Integer(number) => Box::new(number),
        Value::Text(text) => Box::new(text),
        Value::Blob(bytes) => Box::new(bytes),
        Value::Null => Box::new(None::<Vec<u8>>),
        Value::Real(number) => Box::new(number),
    }
}
