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

    use coral_core::{Error, Seq};
    use coral_state::conformance::Backend;
    use coral_state::{Follower, SqliteJournal};
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

    use coral_core::{Error, Seq};
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
