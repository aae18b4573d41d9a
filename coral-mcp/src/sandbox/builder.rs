//! How a sandbox is put together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{Clock, Error, SystemClock};
use ed25519_compact::Seed;
use rmcp::ServerHandler;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::Sandbox;
use super::delegation::Delegations;
use super::leases::Leases;
use super::taint::Taint;
use crate::access::Policy;
use crate::audit::{Audit, AuditEntry, MemoryAudit};
use crate::client::Abilities;
use crate::commands::{self, Commands};
use crate::config::{Servers, TransportSpec};
use crate::counterpart::{ByRun, Counterpart};
use crate::filesystem::{self, Filesystem};
#[cfg(feature = "http")]
use crate::http::{Consent, TokenStore};
#[cfg(target_os = "linux")]
use crate::jail;
use crate::launch::{Launch, Setting};
use crate::path::ProjectPath;
use crate::permissions::{Permissions, SecurityPolicy, ServerRules};
use crate::pins::Pins;
use crate::pool::{Connector, Server, States, Terms};
use crate::profile::{Place, Profile, holds_git};
use crate::quota::Quota;
use crate::secret::Secrets;
use crate::server::{self, Connection, Limits};
use crate::stdio::Stdio;
use crate::token::Tokens;

/// Twelve hours: a working day.
const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// How many calls a server takes at once.
const CONCURRENCY: usize = 16;

/// Puts a [`Sandbox`] together.
#[derive(Default)]
pub struct SandboxBuilder {
    permissions: Permissions,
    policies: Vec<Arc<dyn Policy>>,
    root: Option<PathBuf>,
    filesystem: bool,
    commands: Option<Commands>,
    configured: Servers,
    pins: Option<PathBuf>,
    helper: Option<PathBuf>,
    cgroup: Option<PathBuf>,
    audit: Option<Arc<dyn Audit>>,
    clock: Option<Arc<dyn Clock>>,
    counterpart: Option<Arc<dyn Counterpart>>,
    #[cfg(feature = "http")]
    consent: Option<Arc<dyn Consent>>,
    #[cfg(feature = "http")]
    token_store: Option<Arc<dyn TokenStore>>,
    tokens: Option<Arc<dyn Tokens>>,
    tokens_required: bool,
    lifetime: Option<Duration>,
    profiles: BTreeMap<String, Profile>,
    streams: BTreeMap<String, Arc<dyn Connector>>,
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

    /// Adds the built-in server that runs programs, under the name `commands`. They are isolated
    /// like the processes of servers, by the rules of `servers` in the permission file.
    #[must_use]
    pub fn commands(mut self, commands: Commands) -> Self {
        self.commands = Some(commands);
        self
    }

    /// Adds a profile of one's own, under its name: for the servers whose rules name it, and for one that
    /// is called like it. It goes before a built-in one of that name. Read the permission file by
    /// [`Permissions::from_yaml_with`] if that speaks of its operations.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profiles.insert(profile.name.clone(), profile);
        self
    }

    /// Adds a server of the embedder's own that runs in this process: `connect` starts it and gives the
    /// client's end of its connection, such as one half of [`tokio::io::duplex`]. It is under the
    /// permissions, the audit and the limits of every server, and under nothing else: it is in this
    /// process. `trusted` in its rules says that its words are the project's.
    #[must_use]
    pub fn in_process<S, F>(mut self, name: impl Into<String>, connect: F) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        F: Fn() -> S + Send + Sync + 'static,
    {
        self.streams.insert(name.into(), Arc::new(InProcess { connect }));
        self
    }

    /// Adds servers.
    #[must_use]
    pub fn servers(mut self, servers: Servers) -> Self {
        self.configured.0.extend(servers.0);
        self
    }

    /// Names the program that starts servers in the OS sandbox, in the place of this one: see
    /// [`sandbox_hook`](crate::sandbox_hook).
    #[must_use]
    pub fn helper(mut self, helper: impl Into<PathBuf>) -> Self {
        self.helper = Some(helper.into());
        self
    }

    /// Names a control group (version 2) in which one is made for each server in the OS sandbox, so
    /// that its limits hold for all of the server's processes together. Without it this process's
    /// own is taken, if it hands on the controllers `memory` and `pids`; if it does not, limits
    /// hold for each process. Which of the two is in the audit.
    #[must_use]
    pub fn cgroup(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(dir.into());
        self
    }

    /// Keeps the hashes of the servers' tools in a file, so that a tool that changes between two
    /// runs of the program is noticed too.
    #[must_use]
    pub fn pins(mut self, path: impl Into<PathBuf>) -> Self {
        self.pins = Some(path.into());
        self
    }

    /// Sets where decisions and calls are recorded; in memory if it is not set, which the security policy
    /// `audit_all_operations` does not take for granted.
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

    /// Sets what makes and checks the agents' tokens. Without it there are tokens under the security
    /// policy `time_bound_tokens` only, and they end with this process.
    #[must_use]
    pub fn tokens(mut self, tokens: impl Tokens + 'static) -> Self {
        self.tokens = Some(Arc::new(tokens));
        self
    }

    /// Lets nobody act without a token that was handed in by [`present`](Sandbox::present), or made from
    /// one at a handoff. Without this an agent that has none is given one with all of its rights, also
    /// when its narrower one was lost with an earlier process.
    #[must_use]
    pub fn require_tokens(mut self) -> Self {
        self.tokens_required = true;
        self
    }

    /// Sets who answers what servers ask back in the midst of a call, where their rules let them; the run
    /// that the call is part of, if it is not set: see [`ByRun`].
    #[must_use]
    pub fn counterpart(mut self, counterpart: impl Counterpart + 'static) -> Self {
        self.counterpart = Some(Arc::new(counterpart));
        self
    }

    /// Sets who leads a person to the page at which they agree to a token. Without it, servers that
    /// want one by OAuth are out of reach, but for those that a program reaches for itself.
    #[cfg(feature = "http")]
    #[must_use]
    pub fn consent(mut self, consent: impl Consent + 'static) -> Self {
        self.consent = Some(Arc::new(consent));
        self
    }

    /// Sets where the tokens that servers want are kept; in memory if it is not set.
    #[cfg(feature = "http")]
    #[must_use]
    pub fn token_store(mut self, store: impl TokenStore + 'static) -> Self {
        self.token_store = Some(Arc::new(store));
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
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if a server needs a root and none is set, or
    /// if settings contradict one another;
    /// [`Storage`](coral_core::ErrorKind::Storage) if the root can't be opened or the audit
    /// can't be written.
    pub async fn build(self) -> Result<Sandbox, Error> {
        if self.audit.is_none() && self.permissions.enforces(SecurityPolicy::AuditAllOperations) {
            return Err(Error::invalid(
                "sandbox",
                "the security policy `audit_all_operations` is on, and there is no audit",
            )
            .with_help("call `audit` with a `FileAudit`, or say by a `MemoryAudit` that memory will do"));
        }
        let mut servers = BTreeMap::new();
        let mut levels = Vec::new();
        let root = match &self.root {
            Some(root) => Some(root.canonicalize().map_err(|error| {
                Error::storage("opening the project's root directory", error)
                    .at(root.display().to_string())
                    .with_help("create the directory first")
            })?),
            None => None,
        };
        let clock = self.clock.unwrap_or_else(|| Arc::new(SystemClock));
        let audit = self.audit.unwrap_or_else(|| Arc::new(MemoryAudit::new()));
        let setting = Setting {
            permissions: &self.permissions,
            helper: self.helper.as_ref(),
            cgroup: cgroup(self.cgroup.as_ref())?,
            audit: Arc::clone(&audit),
            clock: Arc::clone(&clock),
        };
        let need_root = |server: &str| {
            root.clone().ok_or_else(|| {
                Error::invalid("sandbox", format!("server `{server}` has no root directory"))
                    .with_help("call `root` with the project's directory")
            })
        };
        let own = Profiles(self.profiles);
        if self.filesystem {
            let root = need_root(filesystem::NAME)?;
            let handler = Filesystem::open(&root)?;
            let mut rules = self.permissions.server(filesystem::NAME);
            rules.profile = Some(filesystem::NAME.to_owned());
            servers.insert(
                filesystem::NAME.to_owned(),
                own.server(
                    filesystem::NAME,
                    Arc::new(BuiltIn { handler, root }),
                    rules,
                    Abilities::default(),
                )?,
            );
        }
        if let Some(commands) = self.commands {
            let name = commands::NAME;
            let (root, mut rules) = (need_root(name)?, self.permissions.server(name));
            rules.profile = Some(name.to_owned());
            let mut launch = Launch::of(name, &rules, &root, &setting)?;
            levels.push(launch.check().await?);
            let open = launch.reaches_network();
            let handler = commands::runner(commands, &root, launch);
            let connector = Arc::new(BuiltIn { handler, root });
            let server = own.server(name, connector, rules, Abilities::default())?;
            servers.insert(name.to_owned(), Server { open, starts_programs: true, ..server });
        }
        #[cfg(feature = "http")]
        let shared = crate::http::Shared {
            consent: self.consent,
            tokens: self.token_store.unwrap_or_else(|| Arc::new(crate::http::MemoryTokenStore::default())),
            clock: Arc::clone(&clock),
        };
        let mut secrets = Vec::new();
        let counterpart = self.counterpart.unwrap_or_else(|| Arc::new(ByRun));
        for (name, spec) in self.configured.0 {
            if servers.contains_key(&name) {
                return Err(Error::invalid("sandbox", format!("there are two servers called `{name}`")));
            }
            let rules = self.permissions.server(&name);
            let abilities = Abilities {
                elicitation: rules.connection.elicitation,
                sampling: rules.connection.sampling,
                roots: match &rules.connection.roots {
                    Some(_) => rules.connection.roots_in(&need_root(&name)?)?,
                    None => None,
                },
                counterpart: Arc::clone(&counterpart),
            };
            secrets.extend(spec.secrets.iter().cloned());
            let connector: Arc<dyn Connector> = match spec.transport.clone() {
                TransportSpec::Stdio { .. } => {
                    let root = need_root(&name)?;
                    let mut launch = Launch::of(&name, &rules, &root, &setting)?;
                    levels.push(launch.check().await?);
                    Arc::new(Stdio { spec, root, launch })
                }
                #[cfg(feature = "http")]
                TransportSpec::Http(http) => {
                    crate::http::connector(&name, &spec, http, rules.connection.private_addresses, &shared)?
                }
                #[cfg(not(feature = "http"))]
                TransportSpec::Http(http) => {
                    let host = http.url.split(['?', '#', '@']).next().unwrap_or_default();
                    let _ = (&http.headers, &http.oauth, rules.connection.private_addresses);
                    return Err(Error::invalid(
                        format!("server `{name}`"),
                        format!(
                            "it is behind an address (`{host}`), and this build speaks to processes alone"
                        ),
                    )
                    .with_help("build coral-mcp with its feature `tls`, or `http` for plain HTTP"));
                }
            };
            let server = own.server(&name, connector, rules, abilities)?;
            servers.insert(name, Server { foreign: true, ..server });
        }
        for (name, connector) in self.streams {
            server::check_name(&name).map_err(|problem| Error::invalid("sandbox", problem))?;
            if servers.contains_key(&name) {
                return Err(Error::invalid("sandbox", format!("there are two servers called `{name}`")));
            }
            let rules = self.permissions.server(&name);
            let server = own.server(&name, connector, rules, Abilities::default())?;
            servers.insert(name, Server { foreign: true, ..server });
        }
        if let Some(name) = self.permissions.ruled_servers().find(|name| !servers.contains_key(*name)) {
            return Err(Error::not_found("server", name, servers.keys().map(String::as_str))
                .at(self.permissions.source().to_owned())
                .with_help("`servers` in the permission file has rules for it"));
        }
        let pins = Pins::open(self.pins.as_deref(), Arc::clone(&audit), Arc::clone(&clock))?;
        let permissions = Arc::new(self.permissions);
        let policy = permissions.digest();
        let mut began = format!("sandbox started with permissions {policy} from {}", permissions.source());
        if !levels.is_empty() {
            began = format!("{began}; isolation of {}", levels.join("; "));
        }
        audit.append(AuditEntry::note(clock.now_ms(), began))?;
        let past = audit.past();
        let hash_key = audit.key().unwrap_or_else(|| *Seed::generate());
        let tokens = self.tokens.or_else(|| own_tokens(&permissions));
        if self.tokens_required && tokens.is_none() {
            return Err(Error::invalid(
                "sandbox",
                "tokens are required, and there is nothing to check them with",
            )
            .with_help("call `tokens` with the key that they are signed by"));
        }
        let mut policies = vec![engine(&permissions)?];
        policies.extend(self.policies);
        let sandbox = Sandbox {
            servers,
            permissions,
            policy,
            policies,
            audit,
            clock,
            pins,
            quota: Quota::after(&past),
            taint: Taint::of(past.untrusted),
            delegations: Delegations::default(),
            leases: tokens.map(|tokens| Leases::new(tokens, self.tokens_required)),
            lifetime_ms: u64::try_from(self.lifetime.unwrap_or(LIFETIME).as_millis()).unwrap_or(u64::MAX),
            valid_until_ms: 0.into(),
            secrets: Secrets::of(secrets),
            hash_key,
        };
        sandbox.renew();
        Ok(sandbox)
    }
}

/// Tokens that end with this process, where the permissions want some.
#[cfg(feature = "tokens")]
fn own_tokens(permissions: &Permissions) -> Option<Arc<dyn Tokens>> {
    let wanted = permissions.enforces(crate::permissions::SecurityPolicy::TimeBoundTokens);
    wanted.then(|| Arc::new(crate::token::BiscuitTokens::generate()) as Arc<dyn Tokens>)
}

/// The end of the grants as a whole is kept without them too.
#[cfg(not(feature = "tokens"))]
fn own_tokens(_permissions: &Permissions) -> Option<Arc<dyn Tokens>> {
    None
}

/// What decides by the permissions.
#[cfg(feature = "cedar")]
fn engine(permissions: &Arc<Permissions>) -> Result<Arc<dyn Policy>, Error> {
    Ok(Arc::new(crate::engine::PolicyEngine::shared(Arc::clone(permissions))?))
}

#[cfg(not(feature = "cedar"))]
fn engine(permissions: &Arc<Permissions>) -> Result<Arc<dyn Policy>, Error> {
    Ok(Arc::clone(permissions) as Arc<dyn Policy>)
}

/// The profiles of the embedder's own.
struct Profiles(BTreeMap<String, Profile>);

impl Profiles {
    fn of(&self, name: &str, rules: &ServerRules) -> Result<Profile, Error> {
        // A profile of the same name is what the name says.
        let wanted = rules.profile.as_deref().unwrap_or(name);
        match (self.0.get(wanted), &rules.profile) {
            (Some(own), _) => Ok(own.clone()),
            (None, Some(named)) => Profile::built_in(named),
            (None, None) => Ok(Profile::built_in(name).unwrap_or_default()),
        }
    }

    fn server(
        &self,
        name: &str,
        connector: Arc<dyn Connector>,
        rules: ServerRules,
        abilities: Abilities,
    ) -> Result<Server, Error> {
        let profile = self.of(name, &rules)?;
        server_of(connector, profile, rules, abilities)
    }
}

fn server_of(
    connector: Arc<dyn Connector>,
    mut profile: Profile,
    rules: ServerRules,
    abilities: Abilities,
) -> Result<Server, Error> {
    profile.tools.extend(rules.tools.clone());
    for tool in profile.tools.values_mut() {
        tool.private_hosts = rules.private_hosts;
    }
    let usual = Limits::default();
    let limits = Limits {
        call: rules.timeout_s.map_or(usual.call, Duration::from_secs),
        max_result_bytes: rules
            .max_result_kib
            .map_or(usual.max_result_bytes, |kib| kib.saturating_mul(1_024)),
        connect: rules.connection.start_s.map_or(usual.connect, Duration::from_secs),
        ..usual
    };
    let permits = Semaphore::new(rules.concurrency.unwrap_or(CONCURRENCY).min(Semaphore::MAX_PERMITS));
    let terms = Terms { limits, abilities, generation: rules.connection.protocol };
    let (foreign, open, starts_programs) = (false, false, false);
    let states = States::default();
    Ok(Server { connector, profile, terms, rules, foreign, open, starts_programs, permits, states })
}

/// The control group to make others in: the one that is named, or this process's own where it can
/// be had.
#[cfg(target_os = "linux")]
fn cgroup(named: Option<&PathBuf>) -> Result<Option<PathBuf>, Error> {
    match named {
        Some(dir) if jail::hands_on(dir) => Ok(Some(dir.clone())),
        Some(dir) => Err(Error::invalid(
            "sandbox",
            format!("`{}` is not a control group that hands on `memory` and `pids`", dir.display()),
        )
        .with_help("see `Delegate=` of systemd, and write `+memory +pids` to its `cgroup.subtree_control`")),
        None => Ok(jail::delegated()),
    }
}

#[cfg(not(target_os = "linux"))]
fn cgroup(_named: Option<&PathBuf>) -> Result<Option<PathBuf>, Error> {
    Ok(None)
}

/// A server of the embedder's own in this process.
struct InProcess<F> {
    connect: F,
}

#[async_trait]
impl<S, F> Connector for InProcess<F>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn() -> S + Send + Sync + 'static,
{
    async fn connect(&self, name: &str, terms: &Terms) -> Result<Connection, Error> {
        Connection::open(name, (self.connect)(), terms.opening(&[])).await
    }

    fn source(&self) -> Result<Option<String>, String> {
        Ok(None)
    }
}

impl<F> Place for InProcess<F> {
    fn spell(&self, path: &ProjectPath) -> Result<String, String> {
        Ok(path.to_string())
    }

    fn holds_git(&self, _path: &ProjectPath) -> bool {
        false
    }
}

/// A server in this process.
struct BuiltIn<H> {
    handler: H,
    root: PathBuf,
}

#[async_trait]
impl<H: ServerHandler + Clone> Connector for BuiltIn<H> {
    async fn connect(&self, name: &str, terms: &Terms) -> Result<Connection, Error> {
        server::in_process(name, self.handler.clone(), terms.opening(&[])).await
    }

    fn source(&self) -> Result<Option<String>, String> {
        Ok(None)
    }
}

impl<H: Send + Sync> Place for BuiltIn<H> {
    fn holds_git(&self, path: &ProjectPath) -> bool {
        holds_git(&self.root.join(path.relative()))
    }

    fn spell(&self, path: &ProjectPath) -> Result<String, String> {
        Ok(if path.relative().is_empty() { ".".to_owned() } else { path.relative().to_owned() })
    }
}
