//! How a sandbox is put together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{Clock, Error, SystemClock};
use tokio::sync::Mutex;

use super::{Approver, Connector, Sandbox, Server};
use crate::access::Policy;
use crate::audit::{Audit, AuditEntry, MemoryAudit};
use crate::filesystem::{self, Filesystem};
use crate::path::ProjectPath;
use crate::permissions::Permissions;
use crate::profile::Profile;
use crate::server::{self, Connection, Limits};

/// Twelve hours: a working day.
const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// Puts a [`Sandbox`] together.
#[derive(Default)]
pub struct SandboxBuilder {
    permissions: Permissions,
    policies: Vec<Arc<dyn Policy>>,
    root: Option<PathBuf>,
    filesystem: bool,
    audit: Option<Arc<dyn Audit>>,
    clock: Option<Arc<dyn Clock>>,
    approver: Option<Arc<dyn Approver>>,
    lifetime: Option<Duration>,
}

impl SandboxBuilder {
    /// Sets who may do what. Without it nobody may do anything.
    #[must_use]
    pub fn permissions(mut self, permissions: Permissions) -> Self {
        self.permissions = permissions;
        self
    }

    /// Adds a policy that must allow a call too: it can narrow what the permissions grant, never
    /// widen it.
    #[must_use]
    pub fn policy(mut self, policy: impl Policy + 'static) -> Self {
        self.policies.push(Arc::new(policy));
        self
    }

    /// Sets the directory that agents and permissions know as `/project`. It must exist.
    #[must_use]
    pub fn root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = Some(root.into());
        self
    }

    /// Adds the built-in file system server, under the name `filesystem`.
    #[must_use]
    pub fn filesystem(mut self) -> Self {
        self.filesystem = true;
        self
    }

    /// Sets where decisions and calls are recorded; in memory if it is not set.
    #[must_use]
    pub fn audit(mut self, audit: impl Audit + 'static) -> Self {
        self.audit = Some(Arc::new(audit));
        self
    }

    /// Sets the clock.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Sets who asks a person where a rule wants that.
    #[must_use]
    pub fn approver(mut self, approver: impl Approver + 'static) -> Self {
        self.approver = Some(Arc::new(approver));
        self
    }

    /// Sets how long the grants hold under the security policy `time_bound_tokens`; twelve hours
    /// if it is not set.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    /// Builds the sandbox. Servers start when they are first needed.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if a server needs a root and none is set;
    /// [`Storage`](coral_core::ErrorKind::Storage) if the root can't be opened or the audit
    /// can't be written.
    pub async fn build(self) -> Result<Sandbox, Error> {
        let mut servers = BTreeMap::new();
        if self.filesystem {
            let root = self.root.as_ref().ok_or_else(|| {
                Error::invalid("sandbox", "the file system server has no root directory")
                    .with_help("call `root` with the project's directory")
            })?;
            let server = Server {
                connector: Box::new(BuiltIn { handler: Filesystem::open(root)? }),
                profile: Profile::filesystem()?,
                limits: Limits::default(),
                live: Mutex::default(),
            };
            servers.insert(filesystem::NAME.to_owned(), server);
        }
        let clock = self.clock.unwrap_or_else(|| Arc::new(SystemClock));
        let audit = self.audit.unwrap_or_else(|| Arc::new(MemoryAudit::new()));
        let permissions = Arc::new(self.permissions);
        let policy = permissions.digest();
        let began = format!("sandbox started with permissions {policy} from {}", permissions.source());
        audit.append(AuditEntry::note(clock.now_ms(), began))?;
        let mut policies: Vec<Arc<dyn Policy>> = vec![permissions.clone()];
        policies.extend(self.policies);
        let sandbox = Sandbox {
            servers,
            permissions,
            policy,
            policies,
            audit,
            clock,
            approver: self.approver,
            lifetime_ms: u64::try_from(self.lifetime.unwrap_or(LIFETIME).as_millis()).unwrap_or(u64::MAX),
            valid_until_ms: 0.into(),
        };
        sandbox.renew();
        Ok(sandbox)
    }
}

/// The file system server in this process.
struct BuiltIn {
    handler: Filesystem,
}

#[async_trait]
impl Connector for BuiltIn {
    async fn connect(&self, name: &str, limits: &Limits) -> Result<Connection, Error> {
        server::in_process(name, self.handler.clone(), limits.clone()).await
    }

    fn spell(&self, path: &ProjectPath) -> String {
        if path.relative().is_empty() { ".".to_owned() } else { path.relative().to_owned() }
    }
}
