//! Places for stores: a file, and a schema on the server that the tests share.

#[cfg(feature = "postgres")]
use std::sync::atomic::{AtomicUsize, Ordering};

use coral_core::Error;
use coral_state::{KeyRing, SqliteOptions, SqliteStore};
#[cfg(feature = "postgres")]
use coral_state::{PostgresOptions, PostgresStore};

#[cfg(feature = "postgres")]
use crate::servers::{shared_postgres, shared_postgres_dir};

pub(crate) struct SqlitePlace(pub(crate) tempfile::TempDir);

impl SqlitePlace {
    /// Does something to the tables that no store would.
    pub(crate) async fn execute(&self, sql: &str) {
        let conn = rusqlite::Connection::open(self.0.path().join("coral.db")).unwrap();
        conn.execute_batch(&sql.replace("= ''", "= x''")).unwrap();
    }

    pub(crate) async fn new() -> Self {
        SqlitePlace(tempfile::tempdir().unwrap())
    }

    /// One that nobody else's transactions can touch.
    pub(crate) async fn alone() -> Self {
        Self::new().await
    }

    pub(crate) async fn open(&self, keys: Option<KeyRing>) -> Result<SqliteStore, Error> {
        let mut options = SqliteOptions::at(self.0.path().join("coral.db"));
        options.keys = keys;
        SqliteStore::open_with(options)
    }

    pub(crate) async fn holds(&self, needle: &str) -> bool {
        crate::support::holds(self.0.path(), needle.as_bytes())
    }

    /// In the tables as they are now.
    pub(crate) async fn holds_now(&self, needle: &str) -> bool {
        self.holds(needle).await
    }
}

#[cfg(feature = "postgres")]
pub(crate) struct PostgresPlace {
    pub(crate) config: String,
    pub(crate) schema: String,
}

#[cfg(feature = "postgres")]
impl PostgresPlace {
    /// A connection of the test's own, to the same schema.
    pub(crate) async fn client(&self) -> tokio_postgres::Client {
        let (client, connection) =
            tokio_postgres::connect(&self.config, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&format!("SET search_path = {}", self.schema)).await.unwrap();
        client
    }

    /// Does something to the tables that no store would.
    pub(crate) async fn execute(&self, sql: &str) {
        self.client().await.batch_execute(sql).await.unwrap();
    }

    pub(crate) async fn new() -> Self {
        static PLACES: AtomicUsize = AtomicUsize::new(0);
        let config = tokio::task::spawn_blocking(shared_postgres).await.unwrap();
        PostgresPlace { config, schema: format!("p{}", PLACES.fetch_add(1, Ordering::Relaxed)) }
    }

    /// One in a database of its own: what is deleted lies in the tables as long as a transaction in the
    /// same database might still look at it.
    pub(crate) async fn alone() -> Self {
        let place = Self::new().await;
        let database = format!("alone_{}", place.schema);
        let (client, connection) =
            tokio_postgres::connect(&place.config, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&format!("CREATE DATABASE {database} TEMPLATE template0")).await.unwrap();
        PostgresPlace { config: format!("{} dbname={database}", place.config), ..place }
    }

    pub(crate) async fn open(&self, keys: Option<KeyRing>) -> Result<PostgresStore, Error> {
        let mut options = PostgresOptions::at(&self.config);
        options.schema.clone_from(&self.schema);
        options.connections = 2;
        options.keys = keys;
        PostgresStore::connect_with(options).await
    }

    /// In any file of the server, its log included.
    pub(crate) async fn holds(&self, needle: &str) -> bool {
        let client = self.client().await;
        client.batch_execute("CHECKPOINT").await.unwrap();
        crate::support::holds(&shared_postgres_dir(), needle.as_bytes())
    }

    /// In the tables as they are now; the server recycles its log in its own time.
    pub(crate) async fn holds_now(&self, needle: &str) -> bool {
        let client = self.client().await;
        client.batch_execute("CHECKPOINT").await.unwrap();
        let select = format!(
            "SELECT pg_relation_filepath(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
             WHERE nspname = '{}' AND relkind = 'r'",
            self.schema
        );
        for row in client.query(&select, &[]).await.unwrap() {
            let bytes = std::fs::read(shared_postgres_dir().join(row.get::<_, String>(0))).unwrap();
            if bytes.windows(needle.len()).any(|window| window == needle.as_bytes()) {
                return true;
            }
        }
        false
    }
}
