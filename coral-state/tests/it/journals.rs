//! Every journal sits the exam.

mod memory {
    use std::sync::Arc;

    use coral_core::{Error, MemoryJournal};
    use coral_state::conformance::Backend;

    struct Memory(Arc<MemoryJournal>);

    #[async_trait::async_trait]
    impl Backend for Memory {
        type Journal = Arc<MemoryJournal>;

        async fn create() -> Self {
            Memory(Arc::new(MemoryJournal::new()))
        }

        async fn open(&self) -> Result<Self::Journal, Error> {
            Ok(self.0.clone())
        }
    }

    coral_state::journal_conformance!(Memory);
}

mod sqlite {
    use std::path::PathBuf;
    use std::sync::Arc;

    use coral_core::{Blobs, Error, Seq};
    use coral_state::conformance::Backend;
    use coral_state::{Follower, SqliteJournal, SqliteStore};
    use tempfile::TempDir;

    struct Sqlite {
        path: PathBuf,
        _dir: Option<TempDir>,
    }

    #[async_trait::async_trait]
    impl Backend for Sqlite {
        type Journal = SqliteJournal;

        async fn create() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Sqlite { path: dir.path().join("coral.db"), _dir: Some(dir) }
        }

        async fn open(&self) -> Result<Self::Journal, Error> {
            SqliteJournal::open(&self.path)
        }

        fn place(&self) -> Option<String> {
            Some(self.path.to_str().unwrap().to_owned())
        }

        fn at(place: &str) -> Option<Self> {
            Some(Sqlite { path: place.into(), _dir: None })
        }

        async fn blobs(&self) -> Option<Arc<dyn Blobs>> {
            Some(Arc::new(SqliteStore::open(&self.path).unwrap().blobs()))
        }

        async fn torn(&self, bytes: u64) -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("torn.db");
            crate::support::tear(&self.path, &path, bytes);
            Some(Sqlite { path, _dir: Some(dir) })
        }

        fn follow(journal: Arc<SqliteJournal>, run: &str, from: Seq) -> Follower {
            Follower::new(journal, run, from)
        }

        async fn bytes(&self) -> Option<u64> {
            let conn = rusqlite::Connection::open(&self.path).unwrap();
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
            Some(std::fs::metadata(&self.path).unwrap().len())
        }
    }

    coral_state::journal_conformance!(Sqlite);
}

mod sqlite_encrypted {
    use std::path::PathBuf;
    use std::sync::Arc;

    use coral_core::{Blobs, Error, Seq};
    use coral_state::conformance::Backend;
    use coral_state::{Follower, KeyRing, MasterKey, SqliteJournal, SqliteOptions};
    use tempfile::TempDir;

    struct Encrypted {
        path: PathBuf,
        _dir: Option<TempDir>,
    }

    #[async_trait::async_trait]
    impl Backend for Encrypted {
        type Journal = SqliteJournal;

        async fn create() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Encrypted { path: dir.path().join("coral.db"), _dir: Some(dir) }
        }

        async fn open(&self) -> Result<Self::Journal, Error> {
            let mut options = SqliteOptions::at(&self.path);
            options.keys = Some(KeyRing::new(MasterKey::from_hex(&"5e".repeat(32))?));
            SqliteJournal::open_with(options)
        }

        fn place(&self) -> Option<String> {
            Some(self.path.to_str().unwrap().to_owned())
        }

        fn at(place: &str) -> Option<Self> {
            Some(Encrypted { path: place.into(), _dir: None })
        }

        async fn blobs(&self) -> Option<Arc<dyn Blobs>> {
            Some(Arc::new(self.open().await.unwrap().store().blobs_of("reef")))
        }

        async fn torn(&self, bytes: u64) -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("torn.db");
            crate::support::tear(&self.path, &path, bytes);
            Some(Encrypted { path, _dir: Some(dir) })
        }

        fn follow(journal: Arc<SqliteJournal>, run: &str, from: Seq) -> Follower {
            Follower::new(journal, run, from)
        }

        async fn bytes(&self) -> Option<u64> {
            let conn = rusqlite::Connection::open(&self.path).unwrap();
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
            Some(std::fs::metadata(&self.path).unwrap().len())
        }
    }

    coral_state::journal_conformance!(Encrypted);
}

#[cfg(feature = "postgres")]
mod postgres {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use coral_core::{Error, Seq};
    use coral_state::conformance::Backend;
    use coral_state::{Follower, PostgresJournal, PostgresOptions};

    use crate::servers::shared_postgres;

    struct Postgres {
        config: String,
        schema: String,
    }

    #[async_trait::async_trait]
    impl Backend for Postgres {
        type Journal = PostgresJournal;

        async fn create() -> Self {
            static PLACES: AtomicUsize = AtomicUsize::new(0);
            let config = tokio::task::spawn_blocking(shared_postgres).await.unwrap();
            Postgres { config, schema: format!("t{}", PLACES.fetch_add(1, Ordering::Relaxed)) }
        }

        async fn open(&self) -> Result<Self::Journal, Error> {
            let mut options = PostgresOptions::at(&self.config);
            options.schema.clone_from(&self.schema);
            PostgresJournal::connect_with(options).await
        }

        fn place(&self) -> Option<String> {
            Some(format!("{}|{}", self.config, self.schema))
        }

        fn at(place: &str) -> Option<Self> {
            let (config, schema) = place.split_once('|')?;
            Some(Postgres { config: config.to_owned(), schema: schema.to_owned() })
        }

        fn follow(journal: Arc<PostgresJournal>, run: &str, from: Seq) -> Follower {
            Follower::new(journal, run, from)
        }

        async fn bytes(&self) -> Option<u64> {
            let (client, connection) =
                tokio_postgres::connect(&self.config, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            let sql = format!("SELECT pg_total_relation_size('{}.chunks')", self.schema);
            Some(client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0).cast_unsigned())
        }
    }

    coral_state::journal_conformance!(Postgres);
}
