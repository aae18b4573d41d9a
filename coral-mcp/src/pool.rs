//! Servers that were configured: connected when they are first needed, kept while they are used and
//! well, and connected again when they went away.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{CallContext, Clock, Error, ErrorKind, ToolFault, ToolOutput};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, Semaphore};

use crate::catalog::Catalog;
use crate::client::Abilities;
use crate::config::{ConnectionRules, Generation};
use crate::extras::Extra;
use crate::path::ProjectPath;
use crate::permissions::ServerRules;
use crate::pins::Pins;
use crate::profile::Profile;
use crate::server::{Connection, Limits, Opening, fault};

/// The longest wait between two tries to connect.
const MAX_BACKOFF_MS: u64 = 60_000;
/// A connection that was not used for as long must show that it still answers.
const PROBE_AFTER: Duration = Duration::from_secs(60);
/// How often a server may make us look at its tools again.
const BETWEEN_LISTS_MS: u64 = 250;

/// The terms on which a server is connected.
pub(crate) struct Terms {
    pub(crate) limits: Limits,
    pub(crate) abilities: Abilities,
    pub(crate) generation: Generation,
}

impl Terms {
    /// What a connection is made with.
    pub(crate) fn opening(&self, secrets: &[String]) -> Opening {
        Opening {
            limits: self.limits.clone(),
            health: Arc::default(),
            process: None,
            secrets: secrets.to_vec(),
            abilities: self.abilities.clone(),
            generation: self.generation,
        }
    }
}

/// Makes connections to one server.
#[async_trait]
pub(crate) trait Connector: Send + Sync {
    async fn connect(&self, name: &str, terms: &Terms) -> Result<Connection, Error>;

    /// How the server spells a place in the project.
    ///
    /// # Errors
    /// Why the place can't be named to it.
    fn spell(&self, path: &ProjectPath) -> Result<String, String>;
}

/// A server that was configured.
pub(crate) struct Server {
    pub(crate) connector: Box<dyn Connector>,
    pub(crate) profile: Profile,
    pub(crate) terms: Terms,
    pub(crate) rules: ServerRules,
    /// Whether it is another's program: its tools are pinned, its words are not the project's.
    pub(crate) foreign: bool,
    pub(crate) permits: Semaphore,
    pub(crate) state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(crate) struct State {
    live: Vec<Arc<Live>>,
    /// How often in a row it could not be connected, why, and when it may be tried again.
    failures: u32,
    problem: Option<String>,
    retry_at_ms: u64,
    listed_at_ms: u64,
}

/// A connected server and its tools.
pub(crate) struct Live {
    connection: Arc<Connection>,
    pub(crate) catalog: Catalog,
    /// The turn to call, where the server may ask back: whom it asks must be beyond doubt.
    turn: Arc<Semaphore>,
}

/// How a server is doing: see [`Sandbox::status`](crate::Sandbox::status).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// How many connections to it are open.
    pub connections: usize,
    /// The revision of the protocol that it speaks, once it was connected.
    pub protocol: Option<String>,
    /// How often in a row it could not be connected.
    pub failures: u32,
    /// Why it could not be connected the last time.
    pub problem: Option<String>,
}

impl Server {
    fn connection_rules(&self) -> &ConnectionRules {
        &self.rules.connection
    }

    /// A connection to look at the server's tools by.
    pub(crate) async fn live(&self, name: &str, clock: &dyn Clock, pins: &Pins) -> Result<Arc<Live>, Error> {
        let mut state = self.state.lock().await;
        state.live.retain(|live| !live.connection.is_closed());
        if let Some(live) = state.live.first().cloned() {
            let now_ms = clock.now_ms();
            if live.connection.idle() > PROBE_AFTER && !live.connection.answers().await {
                state.live.clear();
            } else if !live.connection.health().take_changed() {
                return Ok(live);
            } else if let Ok(catalog) =
                self.list_again(name, &live.connection, pins, state.listed_at_ms, now_ms).await
            {
                // The tools are said to be others now, so they are looked at again.
                let again =
                    Live { connection: Arc::clone(&live.connection), catalog, turn: Arc::clone(&live.turn) };
                let again = Arc::new(again);
                state.listed_at_ms = now_ms;
                // Other connections are of the same server and have the same to say.
                state.live = vec![Arc::clone(&again)];
                return Ok(again);
            } else {
                state.live.clear();
            }
        }
        self.connect(name, &mut state, clock, pins).await
    }

    /// Lists the tools of a server that said that they are others now: not too soon after the last time,
    /// however often it says so, and before any other call is let through.
    async fn list_again(
        &self,
        name: &str,
        connection: &Connection,
        pins: &Pins,
        listed_at_ms: u64,
        now_ms: u64,
    ) -> Result<Catalog, Error> {
        let early_ms = BETWEEN_LISTS_MS.saturating_sub(now_ms.saturating_sub(listed_at_ms));
        if early_ms > 0 {
            tokio::time::sleep(Duration::from_millis(early_ms)).await;
        }
        self.list(name, connection, pins).await
    }

    /// Another connection, unless it is too early for another try.
    async fn connect(
        &self,
        name: &str,
        state: &mut State,
        clock: &dyn Clock,
        pins: &Pins,
    ) -> Result<Arc<Live>, Error> {
        let now_ms = clock.now_ms();
        if now_ms < state.retry_at_ms {
            let wait = state.retry_at_ms - now_ms;
            let problem =
                format!("it failed to start {} times, the next try is in {wait} ms", state.failures);
            return Err(fault(name, ToolFault::Unavailable, problem).with_retry_after_ms(wait));
        }
        let connected = async {
            let connection = Arc::new(self.connector.connect(name, &self.terms).await?);
            let catalog = self.list(name, &connection, pins).await?;
            Ok(Arc::new(Live { connection, catalog, turn: Arc::new(Semaphore::new(1)) }))
        };
        match connected.await {
            Ok(live) => {
                (state.failures, state.problem, state.retry_at_ms) = (0, None, 0);
                state.listed_at_ms = now_ms;
                state.live.push(Arc::clone(&live));
                self.close_when_idle(&live);
                Ok(live)
            }
            Err(error) => {
                state.failures = state.failures.saturating_add(1);
                state.problem = Some(Error::to_string(&error));
                let backoff = 500_u64.saturating_mul(1 << state.failures.min(7));
                state.retry_at_ms = now_ms.saturating_add(backoff.min(MAX_BACKOFF_MS));
                Err(error)
            }
        }
    }

    async fn list(&self, name: &str, connection: &Connection, pins: &Pins) -> Result<Catalog, Error> {
        let tools = connection.tools().await?;
        let raw = connection.health().take_tools();
        let extras = Extra::of(connection, self.connection_rules());
        let trusted = self.rules.trusted || !self.foreign;
        let pins = self.foreign.then_some(pins);
        Catalog::new(name, tools, &raw, &self.profile, trusted, &extras, pins)
    }

    /// Lets the next call look at the server anew.
    pub(crate) async fn forget(&self) {
        self.state.lock().await.live.clear();
    }

    pub(crate) async fn status(&self, name: &str) -> ServerStatus {
        let state = self.state.lock().await;
        let live: Vec<_> = state.live.iter().filter(|live| !live.connection.is_closed()).collect();
        ServerStatus {
            name: name.to_owned(),
            connections: live.len(),
            protocol: live.first().map(|live| live.connection.about().revision),
            failures: state.failures,
            problem: state.problem.clone(),
        }
    }

    /// Calls a tool that was found on `live` and may be called.
    pub(crate) async fn call(
        &self,
        name: &str,
        live: &Arc<Live>,
        tool: &str,
        arguments: Map<String, Value>,
        cx: &CallContext,
        (clock, pins): (&dyn Clock, &Pins),
    ) -> Result<ToolOutput, Error> {
        let _permit = self.permits.acquire().await;
        let full = format!("{name}__{tool}");
        let alone = self.terms.abilities.asks();
        let live = self.least_busy(name, live, tool, alone, (clock, pins)).await?;
        let _turn = if alone { Some(live.turn.acquire().await) } else { None };
        let Some(known) = live.catalog.get(tool) else {
            return Err(fault(&full, ToolFault::UnknownTool, "the server does not offer it any more"));
        };
        let result = match known.extra {
            Some(extra) => extra.call(&full, &live.connection, arguments, cx).await,
            None => live.connection.call(tool, arguments, known.shape.as_ref(), cx).await,
        };
        if result.as_ref().is_err_and(is_timeout) {
            let connection = Arc::clone(&live.connection);
            tokio::spawn(async move { connection.kill_if_stuck().await });
        }
        result
    }

    /// A connection with room: `live`, or another of as many as there may be. The tool is the same on
    /// each, or it is not called.
    async fn least_busy(
        &self,
        name: &str,
        live: &Arc<Live>,
        tool: &str,
        alone: bool,
        (clock, pins): (&dyn Clock, &Pins),
    ) -> Result<Arc<Live>, Error> {
        let most = self.connection_rules().connections.unwrap_or(1);
        if most == 1 {
            return Ok(Arc::clone(live));
        }
        let load = |live: &Arc<Live>| {
            if alone {
                1 - live.turn.available_permits().min(1)
            } else {
                live.connection.health().calls().count()
            }
        };
        let mut state = self.state.lock().await;
        state.live.retain(|live| !live.connection.is_closed());
        let best = state.live.iter().min_by_key(|live| load(live)).cloned();
        let chosen = match best {
            Some(best) if load(&best) == 0 || state.live.len() >= most => best,
            // Another connection is a convenience: without it this one has to do.
            Some(best) => self.connect(name, &mut state, clock, pins).await.unwrap_or(best),
            None => self.connect(name, &mut state, clock, pins).await?,
        };
        if chosen.catalog.is_same(tool, &live.catalog) {
            return Ok(chosen);
        }
        let differs = "it is not the same on each connection to its server";
        Err(fault(&format!("{name}__{tool}"), ToolFault::Protocol, differs))
    }

    /// Closes a connection when it was not used for as long as its rules say.
    fn close_when_idle(&self, live: &Arc<Live>) {
        let Some(idle) = self.connection_rules().idle() else { return };
        let (state, connection) = (Arc::downgrade(&self.state), Arc::downgrade(&live.connection));
        tokio::spawn(async move {
            loop {
                let left = match connection.upgrade() {
                    Some(connection) => idle.saturating_sub(connection.idle()),
                    None => return,
                };
                if !left.is_zero() {
                    tokio::time::sleep(left).await;
                    continue;
                }
                let (Some(state), Some(connection)) = (state.upgrade(), connection.upgrade()) else { return };
                let mut state = state.lock().await;
                if connection.idle() >= idle {
                    state.live.retain(|live| !Arc::ptr_eq(&live.connection, &connection));
                    return;
                }
            }
        });
    }
}

fn is_timeout(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Tool { fault: ToolFault::Timeout, .. })
}
