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
macro_rules! postgres {
    ($keys:expr) => {
        use std::sync::Arc;

        use coral_core::{Blobs, Error, Seq};
        use coral_state::conformance::Backend;
        use coral_state::{Follower, PostgresJournal};

        use crate::places::PostgresPlace;

        struct Postgres(PostgresPlace);

        #[async_trait::async_trait]
        impl Backend for Postgres {
            type Journal = PostgresJournal;

            async fn create() -> Self {
                Postgres(PostgresPlace::new().await)
            }

            async fn open(&self) -> Result<Self::Journal, Error> {
                Ok(self.0.open($keys).await?.journal())
            }

            fn place(&self) -> Option<String> {
                Some(format!("{}|{}", self.0.config, self.0.schema))
            }

            fn at(place: &str) -> Option<Self> {
                let (config, schema) = place.split_once('|')?;
                Some(Postgres(PostgresPlace { config: config.to_owned(), schema: schema.to_owned() }))
            }

            async fn blobs(&self) -> Option<Arc<dyn Blobs>> {
                let keys = || -> Result<_, Error> { Ok($keys) };
                let store = self.0.open(keys().unwrap()).await.unwrap();
                Some(Arc::new(store.blobs_of("reef")))
            }

            fn follow(journal: Arc<PostgresJournal>, run: &str, from: Seq) -> Follower {
                Follower::new(journal, run, from)
            }

            async fn bytes(&self) -> Option<u64> {
                let select = "SELECT pg_total_relation_size('chunks')";
                let row = self.0.client().await.query_one(select, &[]).await.unwrap();
                Some(row.get::<_, i64>(0).cast_unsigned())
            }
        }

        coral_state::journal_conformance!(Postgres);
    };
}

#[cfg(feature = "postgres")]
mod postgres {
    postgres!(None);
}

#[cfg(feature = "postgres")]
mod postgres_encrypted {
    use coral_state::{KeyRing, MasterKey};

    postgres!(Some(KeyRing::new(MasterKey::from_hex(&"5e".repeat(32))?)));
}
