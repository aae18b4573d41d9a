//! Connections to the server, made anew when they break.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coral_core::{Error, ErrorKind};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::TlsStream;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Row, Socket, Statement};

use super::PostgresOptions;

/// Between two tries to reach a server that is away.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Connection {
    pub(super) client: Client,
    statements: Mutex<HashMap<Box<str>, Statement>>,
}

impl Connection {
    /// The statement, prepared once on this connection.
    pub(super) async fn prepare(&self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        let known = self.statements.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.client.prepare(sql).await?;
        let mut statements = self.statements.lock().unwrap_or_else(PoisonError::into_inner);
        statements.insert(sql.into(), statement.clone());
        Ok(statement)
    }
}

/// How an append failed, by what is known of its effect.
pub(super) enum Lost {
    /// It was never sent.
    Before(Error),
    /// The server refused it.
    Refused(Error),
    /// The connection broke while it was under way: it may have taken effect.
    Within(Error),
}

impl Lost {
    pub(super) fn of(connection: &Connection, error: tokio_postgres::Error, sent: bool) -> Self {
        let told = storage("append to the journal", &error);
        match (is_away(connection, &error), sent) {
            (true, true) => Lost::Within(told),
            (true, false) => Lost::Before(told),
            (false, _) => Lost::Refused(told),
        }
    }
}

/// Whether the server went away, rather than refusing.
fn is_away(connection: &Connection, error: &tokio_postgres::Error) -> bool {
    let shutting_down = error.code().is_some_and(|code| {
        [&SqlState::ADMIN_SHUTDOWN, &SqlState::CRASH_SHUTDOWN, &SqlState::CANNOT_CONNECT_NOW].contains(&code)
    });
    shutting_down || error.code().is_none() && (error.is_closed() || connection.client.is_closed())
}

/// `error` of `operation`, classed and with what to do about it.
pub(super) fn storage(operation: &'static str, error: &tokio_postgres::Error) -> Error {
    let code = error.code();
    let is = |states: &[&SqlState]| code.is_some_and(|code| states.contains(&code));
    let (transient, help) = if is(&[&SqlState::DISK_FULL]) {
        (false, "the server's disk is full: nothing of this was written; free some space and resume")
    } else if is(&[&SqlState::INVALID_PASSWORD, &SqlState::INVALID_AUTHORIZATION_SPECIFICATION]) {
        (false, "check the user and the password")
    } else if is(&[&SqlState::INSUFFICIENT_PRIVILEGE]) {
        (false, "give the user the right to create and use the schema")
    } else if is(&[&SqlState::UNTRANSLATABLE_CHARACTER, &SqlState::CHARACTER_NOT_IN_REPERTOIRE]) {
        (false, "ids and names must not hold the character NUL")
    } else if is(&[&SqlState::T_R_SERIALIZATION_FAILURE, &SqlState::T_R_DEADLOCK_DETECTED]) {
        (true, "try again")
    } else if code.is_none() || is(&[&SqlState::ADMIN_SHUTDOWN, &SqlState::CANNOT_CONNECT_NOW]) {
        (true, "check that the server runs and can be reached")
    } else {
        (false, "see the server's log")
    };
    let mut problem = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !problem.contains(&cause_text) {
            problem = format!("{problem}: {cause_text}");
        }
        source = cause.source();
    }
    Error::new(ErrorKind::Storage { operation: operation.to_owned(), problem, transient }).with_help(help)
}

/// Makes connections, plain or encrypted.
pub(super) struct Dialer {
    config: Config,
    #[cfg(feature = "postgres-tls")]
    tls: Option<tokio_postgres_rustls::MakeRustlsConnect>,
}

impl Dialer {
    #[cfg_attr(not(feature = "postgres-tls"), expect(unused_variables, reason = "they hold only TLS"))]
    pub(super) fn new(config: Config, options: &PostgresOptions) -> Self {
        Dialer {
            config,
            #[cfg(feature = "postgres-tls")]
            tls: options.tls.clone().map(tokio_postgres_rustls::MakeRustlsConnect::new),
        }
    }

    /// A new connection, and what it is notified of.
    pub(super) async fn dial(&self) -> Result<(Client, UnboundedReceiver<String>), tokio_postgres::Error> {
        #[cfg(feature = "postgres-tls")]
        if let Some(tls) = &self.tls {
            return Ok(pump(self.config.connect(tls.clone()).await?));
        }
        Ok(pump(self.config.connect(NoTls).await?))
    }
}

/// Moves the connection's bytes until the client is dropped or the server goes.
fn pump<S>(
    (client, mut connection): (Client, tokio_postgres::Connection<Socket, S>),
) -> (Client, UnboundedReceiver<String>)
where
    S: TlsStream + Unpin + Send + 'static,
{
    let (sender, payloads) = unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message {
                // Most connections listen to nothing, and nobody to them.
                let _ = sender.send(notification.payload().to_owned());
            }
        }
    });
    (client, payloads)
}

pub(super) struct Pool {
    dialer: Dialer,
    slots: Vec<tokio::sync::Mutex<Option<Arc<Connection>>>>,
    next: AtomicUsize,
    patience: Duration,
}

impl Pool {
    pub(super) fn new(dialer: Dialer, size: usize, patience: Duration) -> Self {
        let slots = (0..size.max(1)).map(|_| tokio::sync::Mutex::default()).collect();
        Pool { dialer, slots, next: AtomicUsize::new(0), patience }
    }

    /// A connection, each in turn; statements on one follow one another.
    pub(super) async fn get(&self) -> Result<Arc<Connection>, Error> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len().max(1);
        let Some(slot) = self.slots.get(turn) else {
            return Err(Error::storage("connect", "no connections"));
        };
        let mut slot = slot.lock().await;
        if let Some(connection) = &*slot
            && !connection.client.is_closed()
        {
            return Ok(connection.clone());
        }
        let client = self.own().await?;
        let connection = Arc::new(Connection { client, statements: Mutex::default() });
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// A connection that nobody else uses: for what takes several statements.
    pub(super) async fn own(&self) -> Result<Client, Error> {
        let deadline = Instant::now() + self.patience;
        loop {
            match self.dialer.dial().await {
                Ok((client, _)) => return Ok(client),
                Err(error) => {
                    let told = storage("connect to PostgreSQL", &error);
                    if !told.is_transient() || Instant::now() >= deadline {
                        return Err(told);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// The rows of a statement that may be run twice: it is run again if the connection breaks.
    pub(super) async fn query(
        &self,
        operation: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let deadline = Instant::now() + self.patience;
        loop {
            let connection = self.get().await?;
            let result = match connection.prepare(sql).await {
                Ok(statement) => connection.client.query(&statement, parameters).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(rows) => return Ok(rows),
                Err(error) if is_away(&connection, &error) && Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(storage(operation, &error)),
            }
        }
    }

    /// A connection of its own that hears what is announced.
    pub(super) async fn listen(&self) -> Result<Heard, tokio_postgres::Error> {
        let (client, payloads) = self.dialer.dial().await?;
        let row = client.query_one("SELECT quote_ident('coral_' || current_schema())", &[]).await?;
        client.batch_execute(&format!("LISTEN {}", row.try_get::<_, String>(0)?)).await?;
        Ok(Heard { _client: client, payloads })
    }
}

pub(super) struct Heard {
    /// The connection ends with it.
    _client: Client,
    payloads: UnboundedReceiver<String>,
}

impl Heard {
    /// The next announcement; `None` once the connection is gone.
    pub(super) async fn next(&mut self) -> Option<String> {
        self.payloads.recv().await
    }
}
