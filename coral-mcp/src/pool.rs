//! Servers that were configured: connected when they are first needed, and again when they went
//! away.

use std::sync::Arc;

use async_trait::async_trait;
use coral_core::{Clock, Error, ToolFault};
use tokio::sync::{Mutex, Semaphore};

use crate::catalog::Catalog;
use crate::path::ProjectPath;
use crate::permissions::ServerRules;
use crate::pins::Pins;
use crate::profile::Profile;
use crate::server::{Connection, Limits, fault};

/// Makes connections to one server.
#[async_trait]
pub(crate) trait Connector: Send + Sync {
    async fn connect(&self, name: &str, limits: &Limits) -> Result<Connection, Error>;

    /// How the server spells a place in the project.
    ///
    /// # Errors
    /// Why the place can't be named to it.
    fn spell(&self, path: &ProjectPath) -> Result<String, String>;
}

/// A server that was configured; connected when it is first needed.
pub(crate) struct Server {
    pub(crate) connector: Box<dyn Connector>,
    pub(crate) profile: Profile,
    pub(crate) limits: Limits,
    pub(crate) rules: ServerRules,
    /// Whether it is another's program: its tools are pinned, its words are not the project's.
    pub(crate) foreign: bool,
    pub(crate) permits: Semaphore,
    pub(crate) state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    live: Option<Arc<Live>>,
    /// How often in a row it could not be connected, and when it may be tried again.
    failures: u32,
    retry_at_ms: u64,
}

/// A connected server and its tools.
pub(crate) struct Live {
    pub(crate) connection: Connection,
    pub(crate) catalog: Catalog,
}

/// The longest wait between two tries to connect.
const MAX_BACKOFF_MS: u64 = 60_000;

impl Server {
    pub(crate) async fn live(&self, name: &str, clock: &dyn Clock, pins: &Pins) -> Result<Arc<Live>, Error> {
        let mut state = self.state.lock().await;
        let pins = self.foreign.then_some(pins);
        if let Some(live) = state.live.clone().filter(|live| !live.connection.is_closed()) {
            if !live.connection.health().take_changed() {
                return Ok(live);
            }
            // The tools are said to be others now, so they are looked at again; a connection
            // can't be moved out of its `Arc`, so another is made.
            state.live = None;
        }
        let now_ms = clock.now_ms();
        if now_ms < state.retry_at_ms {
            let wait = state.retry_at_ms - now_ms;
            let problem =
                format!("it failed to start {} times, the next try is in {wait} ms", state.failures);
            return Err(fault(name, ToolFault::Unavailable, problem).with_retry_after_ms(wait));
        }
        match self.connect(name, pins).await {
            Ok(live) => {
                let live = Arc::new(live);
                *state = State { live: Some(Arc::clone(&live)), ..State::default() };
                Ok(live)
            }
            Err(error) => {
                state.failures = state.failures.saturating_add(1);
                let backoff = 500_u64.saturating_mul(1 << state.failures.min(7));
                state.retry_at_ms = now_ms.saturating_add(backoff.min(MAX_BACKOFF_MS));
                Err(error)
            }
        }
    }

    /// Lets the next call look at the server anew.
    pub(crate) async fn forget(&self) {
        self.state.lock().await.live = None;
    }

    async fn connect(&self, name: &str, pins: Option<&Pins>) -> Result<Live, Error> {
        let connection = self.connector.connect(name, &self.limits).await?;
        let tools = connection.tools().await?;
        let raw = connection.health().take_tools();
        let catalog =
            Catalog::new(name, tools, &raw, &self.profile, self.rules.trusted || !self.foreign, pins)?;
        Ok(Live { connection, catalog })
    }
}
