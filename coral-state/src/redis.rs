//! The cache on a Redis server.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{Cache, Error, ErrorKind};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};
use tokio::sync::Mutex;

/// A [`Cache`] on a Redis server, shared by processes on several machines. Best as a layer of a
/// [`LayeredCache`](crate::LayeredCache), which does without it while the server is away.
///
/// The server is reached when it is first needed, and again whenever the connection broke.
/// Connections are plain, so use a local socket or a private network, unless the feature `redis-tls`
/// is on and the URL begins with `rediss://`. Values are kept as they are; a
/// [`SealedCache`](crate::SealedCache) around this one encrypts them.
pub struct RedisCache {
    client: Client,
    prefix: String,
    connection: Mutex<Option<MultiplexedConnection>>,
    timeout: Duration,
}

fn bad_url(error: &redis::RedisError) -> Error {
    let help = match cfg!(feature = "redis-tls") {
        true => "write `redis://host:port/db`, or `rediss://` for an encrypted connection",
        false => "write `redis://host:port/db`; `rediss://` needs the feature `redis-tls`",
    };
    Error::invalid("Redis URL", error.category()).with_help(help)
}

/// The client asks the process for its cryptography, and a process with several to choose from
/// must have chosen.
#[cfg(feature = "redis-tls")]
fn provide_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Should another thread be quicker, its choice is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

impl RedisCache {
    /// A cache on the server at `url`, such as `redis://localhost:6379/0`; all its keys begin with
    /// `prefix`.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the URL is not one. It is not repeated in the error, as
    /// it may hold a password.
    pub fn new(url: &str, prefix: impl Into<String>) -> Result<Self, Error> {
        #[cfg(feature = "redis-tls")]
        provide_crypto();
        Ok(Self::with(Client::open(url).map_err(|e| bad_url(&e))?, prefix))
    }

    /// The same over an encrypted connection, `rediss://host:port/db`, to a server whose certificate,
    /// or that of its authority, is in `pem`. [`new`](Self::new) trusts those that the system does.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the URL is not such a one, or `pem` holds no certificate.
    #[cfg(feature = "redis-tls")]
    pub fn trusting(url: &str, prefix: impl Into<String>, pem: &[u8]) -> Result<Self, Error> {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;

        // The client takes a text without any certificate for one that trusts nobody.
        if !CertificateDer::pem_slice_iter(pem).any(|certificate| certificate.is_ok()) {
            return Err(Error::invalid("certificate", "there is none")
                .with_help("give the authority's certificate as PEM"));
        }
        if !url.starts_with("rediss://") {
            return Err(Error::invalid("Redis URL", "its connection is not encrypted")
                .with_help("write `rediss://host:port/db`"));
        }
        provide_crypto();
        let certificates = redis::TlsCertificates { client_tls: None, root_cert: Some(pem.to_vec()) };
        Ok(Self::with(Client::build_with_tls(url, certificates).map_err(|e| bad_url(&e))?, prefix))
    }

    fn with(client: Client, prefix: impl Into<String>) -> Self {
        RedisCache {
            client,
            prefix: prefix.into(),
            connection: Mutex::default(),
            timeout: Duration::from_secs(2),
        }
    }

    /// Sends one command. A connection that fails is not used again.
    async fn ask<T: redis::FromRedisValue>(
        &self,
        operation: &'static str,
        command: &redis::Cmd,
    ) -> Result<T, Error> {
        let failed = |error: redis::RedisError| {
            Error::new(ErrorKind::Storage {
                operation: operation.to_owned(),
                problem: error.to_string(),
                transient: !error.is_unrecoverable_error() || error.is_io_error() || error.is_timeout(),
            })
            .with_help("check that the server runs and can be reached")
        };
        let mut slot = self.connection.lock().await;
        let mut connection = match &*slot {
            Some(connection) => connection.clone(),
            None => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(self.timeout))
                    .set_response_timeout(Some(self.timeout));
                let made = self.client.get_multiplexed_async_connection_with_config(&config);
                slot.insert(made.await.map_err(failed)?).clone()
            }
        };
        drop(slot);
        match command.query_async(&mut connection).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                *self.connection.lock().await = None;
                Err(failed(error))
            }
        }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

#[async_trait]
impl Cache for RedisCache {
    async fn get(&self, key: &str) -> Result<Option<Arc<[u8]>>, Error> {
        let value: Option<Vec<u8>> = self.ask("read the cache", redis::cmd("GET").arg(self.key(key))).await?;
        Ok(value.map(Into::into))
    }

    async fn put(&self, key: &str, value: Arc<[u8]>, ttl_ms: Option<u64>) -> Result<(), Error> {
        if ttl_ms == Some(0) {
            return self.remove(key).await;
        }
        let mut command = redis::cmd("SET");
        command.arg(self.key(key)).arg(&value[..]);
        // Redis counts in signed milliseconds since the epoch; what lasts longer lasts forever.
        if let Some(ttl) = ttl_ms.filter(|ttl| *ttl < 1 << 50) {
            command.arg("PX").arg(ttl);
        }
        self.ask("write the cache", &command).await
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        self.ask("write the cache", redis::cmd("DEL").arg(self.key(key))).await
    }
}

impl fmt::Debug for RedisCache {
    /// Without the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCache").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
