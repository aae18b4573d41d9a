//! The toolbox: servers behind permissions and an audit.

mod builder;
mod gate;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{CallContext, Caller, Clock, Error, ToolCall, ToolDef, ToolOutput, Toolbox};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::access::Policy;
use crate::audit::Audit;
use crate::catalog::Catalog;
use crate::path::ProjectPath;
use crate::permissions::{Permissions, SecurityPolicy};
use crate::profile::Profile;
use crate::server::{Connection, Limits};

pub use self::builder::SandboxBuilder;
use self::gate::Gate;

/// Makes connections to one server.
#[async_trait]
pub(crate) trait Connector: Send + Sync {
    async fn connect(&self, name: &str, limits: &Limits) -> Result<Connection, Error>;

    /// How the server spells a place in the project.
    fn spell(&self, path: &ProjectPath) -> String;
}

/// A server that was configured; connected when it is first needed.
struct Server {
    connector: Box<dyn Connector>,
    profile: Profile,
    limits: Limits,
    live: Mutex<Option<Arc<Live>>>,
}

/// A connected server and its tools.
struct Live {
    connection: Connection,
    catalog: Catalog,
}

impl Server {
    async fn live(&self, name: &str) -> Result<Arc<Live>, Error> {
        let mut slot = self.live.lock().await;
        if let Some(live) = slot.as_ref().filter(|live| !live.connection.is_closed()) {
            return Ok(Arc::clone(live));
        }
        let connection = self.connector.connect(name, &self.limits).await?;
        let catalog = Catalog::new(name, connection.tools().await?, &self.profile)?;
        let live = Arc::new(Live { connection, catalog });
        *slot = Some(Arc::clone(&live));
        Ok(live)
    }
}

/// A question to a person: may this very call be made?
#[derive(Clone, Debug)]
pub struct Approval {
    /// Who wants to call.
    pub caller: Caller,
    /// The tool's full name.
    pub tool: String,
    /// The exact arguments.
    pub arguments: Value,
    /// The hash of tool and arguments that an agreement is bound to.
    pub digest: String,
    /// The rule that wants a person to agree.
    pub rule: String,
}

/// Asks a person. Without one, a call that needs an agreement is refused.
#[async_trait]
pub trait Approver: Send + Sync {
    /// Whether the call may be made. An error refuses it.
    ///
    /// # Errors
    /// Any reason why nobody could be asked.
    async fn approve(&self, question: &Approval) -> Result<bool, Error>;
}

/// MCP servers as a [`Toolbox`], with a permission check and an audit in front of every call.
///
/// Assume that the model is captured: whatever it asks for, a call passes only if
/// 1. the server, the operation and every path that the arguments name are granted to the agent,
///    and no rule refuses it;
/// 2. the security policies allow it;
/// 3. a person agreed, where a rule wants that;
/// 4. the decision is in the audit.
///
/// What the server then gets is what was checked: paths in canonical form, and no argument that
/// its schema does not name. See the [crate's page](crate) for an example.
pub struct Sandbox {
    servers: BTreeMap<String, Server>,
    permissions: Arc<Permissions>,
    /// The hash of the permissions.
    policy: String,
    policies: Vec<Arc<dyn Policy>>,
    audit: Arc<dyn Audit>,
    clock: Arc<dyn Clock>,
    approver: Option<Arc<dyn Approver>>,
    lifetime_ms: u64,
    valid_until_ms: AtomicU64,
}

impl Sandbox {
    /// Begins a sandbox.
    pub fn builder() -> SandboxBuilder {
        SandboxBuilder::default()
    }

    /// Lets the grants hold for another lifetime from now, under
    /// [`TimeBoundTokens`](SecurityPolicy::TimeBoundTokens).
    pub fn renew(&self) {
        self.valid_until_ms.store(self.clock.now_ms().saturating_add(self.lifetime_ms), Ordering::Relaxed);
    }

    /// The permissions that it enforces.
    pub fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    fn is_expired(&self, now_ms: u64) -> bool {
        self.permissions.enforces(SecurityPolicy::TimeBoundTokens)
            && now_ms >= self.valid_until_ms.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Toolbox for Sandbox {
    async fn list(&self, caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        let now_ms = self.clock.now_ms();
        if self.is_expired(now_ms) {
            return Ok(Vec::new());
        }
        let mut shown = Vec::new();
        for (name, server) in &self.servers {
            if !self.policies.iter().all(|policy| policy.may_reach(caller, name, now_ms)) {
                continue;
            }
            let live = server.live(name).await?;
            shown.extend(
                live.catalog
                    .iter()
                    .filter(|(tool, known)| {
                        let operation = known.profile.operation;
                        self.policies.iter().all(|p| p.may_see(caller, name, tool, operation, now_ms))
                    })
                    .map(|(_, known)| known.def.clone()),
            );
        }
        Ok(shown)
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        let gate = Gate::new(self, call, cx);
        let Some((name, tool)) = call.name.split_once("__") else {
            return Err(gate.unknown().await);
        };
        let reachable =
            self.policies.iter().all(|policy| policy.may_reach(cx.caller(), name, self.clock.now_ms()));
        let server = match self.servers.get(name) {
            Some(server) if reachable => server,
            // Which servers there are is not told to those who may not use them.
            _ => return Err(gate.deny(None, format!("no grant names server `{name}`")).await),
        };
        let live = server.live(name).await?;
        let Some(known) = live.catalog.get(tool) else {
            return Err(gate.unknown().await);
        };
        let operation = known.profile.operation;
        let Value::Object(arguments) = &call.arguments else {
            return Err(gate.unfit(operation, "the arguments are not a JSON object".to_owned()).await);
        };
        if let Err(problem) = known.check_names(arguments) {
            return Err(gate.unfit(operation, problem).await);
        }
        let reading = match known.profile.read(arguments, &|path| server.connector.spell(path)) {
            Ok(reading) => reading,
            Err(problem) => return Err(gate.deny(Some(operation), problem).await),
        };
        let passed = gate.pass(name, tool, known, &reading).await?;
        let timeout = cx.timeout_ms().map(Duration::from_millis);
        let result = live.connection.call(tool, reading.arguments, timeout).await;
        passed.end(&result);
        result
    }
}
