//! The store on a PostgreSQL server: for several machines at once.

#[cfg(feature = "sqlite")]
mod backup;
mod blobs;
mod cache;
mod connection;
mod index;
mod journal;
mod keys;
mod schema;
mod upkeep;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coral_core::{Error, Seq};
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;
use tokio_postgres::types::FromSql;
use tokio_postgres::{Config, Row};

pub use self::blobs::PostgresBlobs;
pub use self::cache::PostgresCache;
pub use self::index::PostgresIndex;
pub use self::journal::PostgresJournal;

use self::connection::{Dialer, Pool};
use crate::bell::Bell;
use crate::codec;
use crate::crypto::KeyRing;
use crate::vault::Vault;

/// How a [`PostgresStore`] is opened.
#[derive(Clone)]
#[non_exhaustive]
pub struct PostgresOptions {
    /// The server, user and database, such as `host=localhost user=coral dbname=coral`. With
    /// `sslmode=require` only an encrypted connection will do.
    pub config: String,
    /// The schema that the tables are in; made if it does not exist.
    pub schema: String,
    /// Connections at the most. Appends of different runs go side by side on them, and the server
    /// syncs what comes together once.
    pub connections: usize,
    /// How long a call tries to reach a server that is away.
    pub patience: Duration,
    /// How often who follows a run looks without having been told.
    pub poll: Duration,
    /// The keys that protect what is kept; `None` keeps it readable. A schema that holds something readable
    /// is not opened with keys. What stays readable either way
    /// is what does in a SQLite file.
    pub keys: Option<KeyRing>,
    /// How connections are encrypted; `None` leaves them plain. Simpler is
    /// [`trusting`](PostgresOptions::trusting).
    #[cfg(feature = "postgres-tls")]
    pub tls: Option<rustls::ClientConfig>,
}

impl PostgresOptions {
    /// The usual settings for a server.
    pub fn at(config: impl Into<String>) -> Self {
        PostgresOptions {
            config: config.into(),
            schema: "coral".into(),
            connections: 8,
            patience: Duration::from_secs(15),
            poll: Duration::from_secs(2),
            keys: None,
            #[cfg(feature = "postgres-tls")]
            tls: None,
        }
    }

    /// Encrypts connections, and trusts servers whose certificate, or that of its authority, is in
    /// `pem`. Say `sslmode=require` in `config`, or a server without TLS is spoken to in plain.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if `pem` holds no certificate.
    #[cfg(feature = "postgres-tls")]
    pub fn trusting(mut self, pem: &[u8]) -> Result<Self, Error> {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;

        let bad = |problem: String| Error::invalid("certificate", problem);
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|e| bad(e.to_string()))?;
            roots.add(certificate).map_err(|e| bad(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(bad("there is none".into()).with_help("give the authority's certificate as PEM"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        self.tls = Some(tls);
        Ok(self)
    }
}

impl fmt::Debug for PostgresOptions {
    /// Without `config`, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("schema", &self.schema)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

/// A schema on a PostgreSQL server with a journal, blobs, a cache, snapshots and an index in it, for
/// workers on several machines.
///
/// Clones share the connections. Connections are plain unless the feature `postgres-tls` is on and
/// [`PostgresOptions`] says how they are encrypted: use a local socket or a private network.
#[derive(Clone)]
pub struct PostgresStore(Arc<Inner>);

struct Inner {
    pool: Pool,
    poll: Duration,
    bell: Arc<Bell>,
    vault: Option<Vault>,
    grown: mpsc::UnboundedSender<(Box<str>, Seq)>,
    /// Started with the first follower.
    listening: Mutex<Option<Listening>>,
}

/// A task that listens to the server. It and its connection end with the store.
struct Listening(AbortHandle);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl PostgresStore {
    /// Connects to the server that `config` names, and makes the tables if they are not there.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if `config` can't be understood, the tables are
    /// of a newer release, or they are encrypted and no key was given;
    /// [`Storage`](coral_core::ErrorKind::Storage) if the server can't be reached.
    pub async fn connect(config: &str) -> Result<Self, Error> {
        Self::connect_with(PostgresOptions::at(config)).await
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_with(options: PostgresOptions) -> Result<Self, Error> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let name = &options.schema;
        if name.is_empty() || name.len() > 48 || !name.chars().all(fits) {
            return Err(Error::invalid(
                "schema",
                format!("`{name}` is not 1 to 48 lower-case letters, digits and `_`"),
            ));
        }
        let mut config: Config =
            options.config.parse().map_err(|e| Error::invalid("server", format!("{e}")))?;
        config.options(format!("-c search_path={name}"));
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(5));
        }
        let dialer = Dialer::new(config, &options);
        let pool = Pool::new(dialer, options.connections, options.patience);
        schema::migrate(&pool, name).await?;
        let (grown, growth) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            pool,
            poll: options.poll,
            bell: Arc::default(),
            vault: options.keys.map(Vault::new),
            grown,
            listening: Mutex::default(),
        });
        let store = PostgresStore(inner);
        store.check_keys().await?;
        tokio::spawn(journal::announce(Arc::downgrade(&store.0), growth));
        Ok(store)
    }

    /// The journal in this schema.
    pub fn journal(&self) -> PostgresJournal {
        PostgresJournal::new(self.clone())
    }

    /// The blob store in this schema, for what belongs to no project.
    pub fn blobs(&self) -> PostgresBlobs {
        self.blobs_of("")
    }

    /// The blob store of one project: in an encrypted store its blobs are erased with it.
    pub fn blobs_of(&self, project: &str) -> PostgresBlobs {
        PostgresBlobs::new(self.clone(), project)
    }

    /// The cache in this schema, of at most `max_entries`.
    pub fn cache(&self, max_entries: usize) -> PostgresCache {
        PostgresCache::new(self.clone(), max_entries)
    }

    /// The index of the runs in this schema.
    pub fn index(&self) -> PostgresIndex {
        PostgresIndex::new(self.clone())
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").finish_non_exhaustive()
    }
}

/// A column of a row.
fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, Error> {
    row.try_get(column).map_err(codec::corrupt)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
