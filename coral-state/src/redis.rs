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
/// Connections are not encrypted: use a local socket, a private network or a tunnel.
pub struct RedisCache {
    client: Client,
    prefix: String,
    connection: Mutex<Option<MultiplexedConnection>>,
    timeout: Duration,
}

impl RedisCache {
    /// A cache on the server at `url`, such as `redis://localhost:6379/0`; all its keys begin with
    /// `prefix`.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the URL is not one. It is not repeated in the error, as
    /// it may hold a password.
    pub fn new(url: &str, prefix: impl Into<String>) -> Result<Self, Error> {
        let client = Client::open(url).map_err(|e| {
            Error::invalid("Redis URL", e.category()).with_help("write `redis://host:port/db`")
        })?;
        Ok(RedisCache {
            client,
            prefix: prefix.into(),
            connection: Mutex::default(),
            timeout: Duration::from_secs(2),
        })
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
