//! Which agent may do what, where: the permission document.

mod document;
mod reach;
mod rule;
mod servers;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use coral_core::{Caller, Category, Error};
use serde::Deserialize;

use crate::access::{Access, Decision, Operation, Policy, Verdict};
use crate::path::ProjectPath;
use crate::profile::Profile;
use crate::quota::{self, Limit};
use crate::token::TokenRight;

pub(crate) use self::reach::Reach;
pub use self::rule::Grant;
pub(crate) use self::rule::{AfterUntrusted, Subject};
#[cfg(feature = "cedar")]
pub(crate) use self::rule::{Names, Rule, all_match, any_matches, any_program, argument, tools};
pub(crate) use self::servers::{Isolation, NetworkRule, ServerRules};
#[cfg(feature = "cedar")]
pub(crate) use self::window::Window;

/// A promise that the sandbox keeps whatever the grants say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SecurityPolicy {
    /// Nothing outside of the project: server processes must run in the OS sandbox.
    NoSystemAccess,
    /// A call that can't be recorded is not made.
    AuditAllOperations,
    /// What looks like a secret is not written in the clear.
    EncryptSensitiveData,
    /// Rights end: the sandbox's grants run out and must be renewed.
    TimeBoundTokens,
}

impl SecurityPolicy {
    /// Every policy.
    pub const ALL: [SecurityPolicy; 4] = [
        SecurityPolicy::NoSystemAccess,
        SecurityPolicy::AuditAllOperations,
        SecurityPolicy::EncryptSensitiveData,
        SecurityPolicy::TimeBoundTokens,
    ];

    /// The name in permission files.
    pub fn as_str(self) -> &'static str {
        match self {
            SecurityPolicy::NoSystemAccess => "no_system_access",
            SecurityPolicy::AuditAllOperations => "audit_all_operations",
            SecurityPolicy::EncryptSensitiveData => "encrypt_sensitive_data",
            SecurityPolicy::TimeBoundTokens => "time_bound_tokens",
        }
    }
}

/// How many calls there may be in all.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Quotas {
    calls_per_run: Option<u64>,
    calls_per_project: Option<u64>,
}

/// Which agent may use which server, for which operation, on which paths.
///
/// A refusal beats a question, a question beats a grant, and what nothing speaks of is refused.
/// An agent that the document does not name may do nothing.
///
/// Beside the four keys of a grant (`mcp_servers`, `operations`, `paths`, `tools`) an agent may
/// have `valid_from`, `valid_until` (RFC 3339) and `hours` (`08:00-18:00`, UTC), `projects` and
/// `phases`, `arguments` (patterns that named arguments must match), `programs` (that commands in
/// arguments run), `hosts` (of addresses in arguments; `*.example.com`), and the lists `deny` and
/// `ask` of rules with the same keys. `categories` grants to `core` and `specialist` agents;
/// `deny` and `ask` beside `agents` bind everyone.
///
/// Once a run took in content from an untrusted server, a call that writes or executes needs a
/// person's agreement: `after_untrusted` (`ask`, `allow`, `deny`), beside `agents` or of one agent,
/// says otherwise. `servers`, beside `permission_model`, holds the rules of each server: `profile`,
/// `tools`, `timeout_s`, `max_result_kib`, `calls_per_minute`, `concurrency`, `trusted`,
/// and, for its process, the following.
///
/// # Isolation of processes
/// `isolation` is `none`, `kernel` (namespaces, limits, Landlock, seccomp), `strict` (the same in a
/// file system of bubblewrap's making) or `container` (with the `image`, and the `engine` if it is
/// not the first of `docker` and `podman`). Without it, it is `kernel`; only where that can't be had,
/// nothing below is written and `no_system_access` is off, it is `none`, and the audit says why. Of the
/// project a process reads what those may read who may use the server, and `project_read`; a program of
/// the built-in `commands` reads what its caller may, and writes where its caller may and `write` lists.
/// `read` lists what the process may read outside of the project, `write` the directories of the
/// project that it may change. `network` is `false`, `true`, or a list of
/// `host`, `host:port`, `*.domain` and addresses that it reaches through a proxy. `memory_mib` and
/// `processes` bound what it takes. `docs/security.md` says what each level stops.
///
/// # Connections
/// `connection` of a server: `per` is `sandbox` (one for everyone), `run` or `agent` (one for each, which
/// ends with the run, so that nothing that the server keeps reaches another); `connections` is how many
/// there may be at once for each of these, `idle_s` when an unused one is closed, `start_s` how long it
/// may take to begin, `protocol` which generation is spoken (`any`, `with_handshake`,
/// `without_handshake`). `elicitation`, `sampling`, `roots`, `resources` and `prompts` say what the server
/// may ask back and offer beside tools; `private_addresses`, whether it may be in a private network.
///
/// `operations` are `read`, `write` and `execute`, or names that [profiles](crate::Profile) give to
/// what tools do, such as `create_pull_request`. `cedar`, beside `agents`, holds Cedar policies of
/// one's own: see [`PolicyEngine`](crate::PolicyEngine).
///
/// # Limits
/// `calls_per_minute` of an agent or category is over all servers, that of a server for each agent
/// there, that of a tool (under the server's `tools`) for each agent that calls it;
/// `total_calls_per_minute` of a server is for all agents together. `quotas`, beside `agents`, are
/// `calls_per_run` and `calls_per_project`. What the audit tells of a run and of a project before this
/// process counts too, so with an audit in a file they hold over restarts.
///
/// ```
/// use coral_core::Caller;
/// use coral_mcp::{Access, Operation, Permissions, Policy};
///
/// let permissions = Permissions::from_yaml(
///     r#"
/// permission_model:
///   agents:
///     technical_writer:
///       mcp_servers: ["filesystem"]
///       operations: ["read", "write"]
///       paths: ["/project/docs"]
///       deny:
///         - paths: ["/project/docs/signed"]
///           operations: ["write"]
///   security_policies: [no_system_access, audit_all_operations]
/// "#,
///     "permissions.yaml",
/// )?;
/// let writer = Caller::agent("technical_writer");
/// let decide = |operation, path: &str| {
///     let paths = [path.parse().unwrap()];
///     permissions.decide(&Access::new(&writer, "filesystem", "write_file", operation).on(&paths))
/// };
/// assert!(decide(Operation::Write, "docs/api.md").is_allowed());
/// assert!(!decide(Operation::Write, "docs/signed/nda.md").is_allowed());
/// let refused = decide(Operation::Write, "src/main.rs");
/// assert_eq!(
///     refused.rule,
///     "`/project/src/main.rs` is not among the paths granted at permissions.yaml:5",
/// );
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Permissions {
    pub(crate) agents: BTreeMap<String, Subject>,
    pub(crate) categories: BTreeMap<Category, Subject>,
    pub(crate) everyone: Subject,
    after_untrusted: AfterUntrusted,
    servers: BTreeMap<String, ServerRules>,
    /// Cedar policies of the embedder's own, each with its place.
    pub(crate) cedar: Vec<(String, String)>,
    quotas: Quotas,
    security: BTreeSet<SecurityPolicy>,
    source: String,
    digest: String,
}

impl Permissions {
    /// A document that grants nothing.
    pub fn new() -> Self {
        Permissions { source: "code".to_owned(), ..Default::default() }
    }

    /// Reads a permission file; `name` stands in messages and in the rules named by decisions.
    ///
    /// # Errors
    /// [`Problems`](coral_core::ErrorKind::Problems) with every problem and its line.
    pub fn from_yaml(text: &str, name: &str) -> Result<Self, Error> {
        document::parse(text, name, &[])
    }

    /// As [`from_yaml`](Self::from_yaml), for a file that speaks of operations of profiles of one's own.
    ///
    /// # Errors
    /// As those of [`from_yaml`](Self::from_yaml).
    pub fn from_yaml_with(text: &str, name: &str, profiles: &[Profile]) -> Result<Self, Error> {
        document::parse(text, name, profiles)
    }

    /// Grants `grant` to an agent, on top of what it has.
    #[must_use]
    pub fn grant(mut self, agent: impl Into<String>, grant: Grant) -> Self {
        self.agents.entry(agent.into()).or_default().grants.push(grant);
        self.digest.clear();
        self
    }

    /// Adds Cedar policies of one's own beside the document's rules: see
    /// [`PolicyEngine`](crate::PolicyEngine) for what they can speak of. `name` stands in messages.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) for policies that can't be read or that speak of
    /// what there is not.
    #[cfg(feature = "cedar")]
    pub fn with_cedar(mut self, policies: &str, name: &str) -> Result<Self, Error> {
        crate::engine::check(policies, name)?;
        self.cedar.push((policies.to_owned(), name.to_owned()));
        self.digest.clear();
        Ok(self)
    }

    /// Switches on a security policy.
    #[must_use]
    pub fn enforce(mut self, policy: SecurityPolicy) -> Self {
        self.security.insert(policy);
        self.digest.clear();
        self
    }

    /// Whether a security policy is on.
    pub fn enforces(&self, policy: SecurityPolicy) -> bool {
        self.security.contains(&policy)
    }

    /// The agents that the document names.
    pub fn agents(&self) -> impl Iterator<Item = &str> {
        self.agents.keys().map(String::as_str)
    }

    /// Where the document came from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The hash of the document: audit records name it.
    pub fn digest(&self) -> String {
        if self.digest.is_empty() {
            crate::text::sha256_hex(
                format!(
                    "{:?}",
                    (
                        (&self.agents, &self.categories, &self.everyone, &self.servers, &self.cedar),
                        (&self.security, &self.quotas, self.after_untrusted),
                    )
                )
                .as_bytes(),
            )
        } else {
            self.digest.clone()
        }
    }

    pub(crate) fn server(&self, name: &str) -> ServerRules {
        self.servers.get(name).cloned().unwrap_or_default()
    }

    /// The servers that the document has rules for.
    pub(crate) fn ruled_servers(&self) -> impl Iterator<Item = &str> {
        self.servers.keys().map(String::as_str)
    }

    /// Everything that speaks of `caller`, its own rules first.
    fn subjects<'a>(&'a self, caller: &Caller) -> impl Iterator<Item = &'a Subject> + use<'a> {
        self.agents
            .get(caller.agent.as_ref())
            .into_iter()
            .chain(self.categories.get(&caller.category))
            .chain([&self.everyone])
    }
}

impl Permissions {
    /// The limits that a call falls under.
    pub(crate) fn limits(
        &self,
        caller: &Caller,
        server: &str,
        tool: &str,
        of_tool: Option<u32>,
    ) -> Vec<Limit> {
        let (agent, rules) = (&caller.agent, self.servers.get(server));
        // Most calls have few of them, and names are made for those alone.
        let rate = |per_minute: Option<u32>, of: &dyn Fn() -> (String, String)| {
            per_minute.map(|per_minute| {
                let (key, what) = of();
                Limit::Rate { key, per_minute, what }
            })
        };
        let count = |max: Option<u64>, of: &dyn Fn() -> (String, String)| {
            max.map(|max| {
                let (key, what) = of();
                Limit::Count { key, max, what }
            })
        };
        let of_agent = self.subjects(caller).find_map(|subject| subject.calls_per_minute);
        let limits = [
            count(self.quotas.calls_per_run, &|| {
                (quota::run_key(&caller.run), "the run may make".to_owned())
            }),
            count(self.quotas.calls_per_project, &|| {
                (quota::project_key(&caller.project), format!("project `{}` may make", caller.project))
            }),
            rate(of_agent, &|| (format!("agent {agent}"), format!("agent `{agent}` may make"))),
            rate(rules.and_then(|rules| rules.total_calls_per_minute), &|| {
                (format!("server {server}"), format!("server `{server}` takes"))
            }),
            rate(rules.and_then(|rules| rules.calls_per_minute), &|| {
                (format!("agent {agent} at {server}"), format!("server `{server}` takes from an agent"))
            }),
            rate(of_tool, &|| {
                let what = format!("tool `{server}__{tool}` takes from an agent");
                (format!("agent {agent} at {server}__{tool}"), what)
            }),
        ];
        limits.into_iter().flatten().collect()
    }

    /// What the grants of an agent give as a token holds it; more where Cedar policies may grant.
    pub(crate) fn token_rights(&self, caller: &Caller) -> Vec<TokenRight> {
        if !self.cedar.is_empty() {
            return vec![TokenRight::everything()];
        }
        let grants = self.subjects(caller).flat_map(|subject| &subject.grants);
        let right = |grant: &Grant| TokenRight {
            servers: grant.servers.clone(),
            operations: grant.operations.classes.clone(),
            named: grant.operations.named.clone(),
            paths: grant.paths.clone(),
        };
        grants.map(right).collect()
    }

    /// Why nothing grants the call as far as it concerns `path`: what the grant that comes closest
    /// lacks.
    pub(crate) fn missing(&self, access: &Access<'_>, path: Option<&ProjectPath>) -> String {
        let mut closest: Option<(u8, String)> = None;
        for grant in self.subjects(access.caller).flat_map(|subject| &subject.grants) {
            if let Err(miss) = grant.covers(access, path)
                && closest.as_ref().is_none_or(|(depth, _)| miss.0 > *depth)
            {
                closest = Some(miss);
            }
        }
        match closest {
            Some((_, why)) => why,
            None => format!("no grant names agent `{}` in {}", access.caller.agent, self.source),
        }
    }

    /// Whether no refusal concerns every call of the tool.
    pub(crate) fn may_not_be_refused(&self, access: &Access<'_>) -> bool {
        let mut deny = self.subjects(access.caller).flat_map(|subject| &subject.deny);
        deny.all(|rule| rule.has_conditions() || !rule.matches(access))
    }

    /// Whether some call of the tool could be granted.
    pub(crate) fn may_be_granted(&self, access: &Access<'_>) -> bool {
        let mut grants = self.subjects(access.caller).flat_map(|subject| &subject.grants);
        grants.any(|grant| grant.covers(access, None).is_ok())
    }

    /// What becomes of a call that changes something after untrusted content came in, where
    /// grants that say `said` cover it: the strictest of them, or what the document says.
    pub(crate) fn after_untrusted(
        &self,
        access: &Access<'_>,
        said: impl Iterator<Item = Option<AfterUntrusted>>,
    ) -> Option<Decision> {
        let source = access.untrusted.filter(|_| access.operation != Operation::Read)?;
        let why = format!("content from outside came into the run through `{source}`");
        match said.flatten().max().unwrap_or(self.after_untrusted) {
            AfterUntrusted::Allow => None,
            AfterUntrusted::Ask => Some(Decision::ask(format!("a person must agree: {why}"))),
            AfterUntrusted::Deny => Some(Decision::deny(format!("refused by `after_untrusted`: {why}"))),
        }
    }
}

/// The paths of a call, or one `None` if it has none: each must be granted.
pub(crate) fn places<'a>(access: &Access<'a>) -> impl Iterator<Item = Option<&'a ProjectPath>> + use<'a> {
    let none = access.paths.is_empty().then_some(None);
    access.paths.iter().map(Some).chain(none)
}

/// The document by itself, without the Cedar policies that were added to it. The sandbox decides
/// by [`PolicyEngine`](crate::PolicyEngine) where the feature `cedar` is on.
impl Policy for Permissions {
    fn decide(&self, access: &Access<'_>) -> Decision {
        if access.caller.agent.is_empty() {
            return Decision::deny("a caller without an agent's id has no rights");
        }
        for subject in self.subjects(access.caller) {
            if let Some(rule) = subject.deny.iter().find(|rule| rule.matches(access)) {
                return Decision::deny(format!("refused by the `deny` rule at {}", rule.place));
            }
        }
        let mut granted: Vec<&Grant> = Vec::new();
        for path in places(access) {
            let grants = self.subjects(access.caller).flat_map(|subject| &subject.grants);
            let before = granted.len();
            granted.extend(grants.filter(|grant| grant.covers(access, path).is_ok()));
            if granted.len() == before {
                return Decision::deny(self.missing(access, path));
            }
        }
        let after = self.after_untrusted(access, granted.iter().map(|grant| grant.after_untrusted));
        if let Some(refused) = after.as_ref().filter(|decision| decision.verdict == Verdict::Deny) {
            return refused.clone();
        }
        for subject in self.subjects(access.caller) {
            if let Some(rule) = subject.ask.iter().find(|rule| rule.matches(access)) {
                return Decision::ask(format!("a person must agree, by the `ask` rule at {}", rule.place));
            }
        }
        let place = granted.first().map(|grant| grant.place.as_str()).unwrap_or_default();
        after.unwrap_or_else(|| Decision::allow(format!("granted at {place}")))
    }

    fn may_reach(&self, caller: &Caller, server: &str, now_ms: u64) -> bool {
        !caller.agent.is_empty()
            && self
                .subjects(caller)
                .flat_map(|s| &s.grants)
                .any(|grant| grant.reaches(caller, server, now_ms))
    }

    fn may_see(&self, access: &Access<'_>) -> bool {
        !access.caller.agent.is_empty() && self.may_not_be_refused(access) && self.may_be_granted(access)
    }
}
