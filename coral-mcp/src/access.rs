//! What is asked of a policy, and what it answers.

use std::fmt;

use coral_core::Caller;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::path::ProjectPath;

/// What a call does to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// It looks.
    Read,
    /// It changes data.
    Write,
    /// It runs something, or starts something that runs.
    Execute,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Operation; 3] = [Operation::Read, Operation::Write, Operation::Execute];

    /// `read`, `write` or `execute`.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Execute => "execute",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One call as a policy sees it, its arguments already understood.
///
/// ```
/// use coral_core::Caller;
/// use coral_mcp::{Access, Operation};
///
/// let caller = Caller::agent("qa_testing");
/// let access = Access::new(&caller, "filesystem", "read_file", Operation::Read);
/// assert!(access.paths.is_empty());
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Access<'a> {
    /// Who calls.
    pub caller: &'a Caller,
    /// The server's name.
    pub server: &'a str,
    /// The tool's name at its server.
    pub tool: &'a str,
    /// What the call does.
    pub operation: Operation,
    /// The profile's name for that, such as `create_pull_request`, if it has one.
    pub named: Option<&'a str>,
    /// Whether the arguments make the call stricter than its tool is: such a call is not granted
    /// by the name of its operation.
    pub raised: bool,
    /// Every place that the arguments name.
    pub paths: &'a [ProjectPath],
    /// The programs that its commands run.
    pub programs: &'a [String],
    /// The hosts of the addresses that it names.
    pub hosts: &'a [String],
    /// Whether the call reaches everything under its paths.
    pub recursive: bool,
    /// The arguments, as the server would get them.
    pub arguments: Option<&'a Map<String, Value>>,
    /// The tool that brought content from outside into the run, if one did.
    pub untrusted: Option<&'a str>,
    /// Milliseconds since the Unix epoch.
    pub now_ms: u64,
}

impl<'a> Access<'a> {
    /// A call without arguments, at the beginning of time.
    pub fn new(caller: &'a Caller, server: &'a str, tool: &'a str, operation: Operation) -> Self {
        Access {
            caller,
            server,
            tool,
            operation,
            named: None,
            raised: false,
            paths: &[],
            programs: &[],
            hosts: &[],
            recursive: false,
            arguments: None,
            untrusted: None,
            now_ms: 0,
        }
    }

    /// Sets the places that the arguments name.
    #[must_use]
    pub fn on(mut self, paths: &'a [ProjectPath]) -> Self {
        self.paths = paths;
        self
    }

    /// Sets the profile's name for what the call does.
    #[must_use]
    pub fn named(mut self, name: &'a str) -> Self {
        self.named = Some(name);
        self
    }

    /// Sets the time.
    #[must_use]
    pub fn at_ms(mut self, now_ms: u64) -> Self {
        self.now_ms = now_ms;
        self
    }
}

/// How a policy decides; the stricter is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The call may be made.
    Allow,
    /// A person must agree first.
    Ask,
    /// The call may not be made.
    Deny,
}

impl Verdict {
    /// `allow`, `ask` or `deny`.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Allow => "allow",
            Verdict::Ask => "ask",
            Verdict::Deny => "deny",
        }
    }
}

/// A verdict and the rule behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The verdict.
    pub verdict: Verdict,
    /// The rule that decided, readable, with its place where it has one.
    pub rule: String,
}

impl Decision {
    /// The call may be made.
    pub fn allow(rule: impl Into<String>) -> Self {
        Decision { verdict: Verdict::Allow, rule: rule.into() }
    }

    /// A person must agree first.
    pub fn ask(rule: impl Into<String>) -> Self {
        Decision { verdict: Verdict::Ask, rule: rule.into() }
    }

    /// The call may not be made.
    pub fn deny(rule: impl Into<String>) -> Self {
        Decision { verdict: Verdict::Deny, rule: rule.into() }
    }

    /// Whether the call may be made at once.
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }
}

/// Decides which calls may be made.
///
/// # Duties of an implementation
/// - An explicit refusal beats a question, a question beats an allowance, and what no rule
///   speaks of is refused.
/// - Every path of the call must be allowed, not one of them.
/// - The same question gets the same answer until the policy itself changes.
pub trait Policy: Send + Sync {
    /// Decides one call.
    fn decide(&self, access: &Access<'_>) -> Decision;

    /// Whether some call of some tool of the server could be allowed to `caller`: a server is not
    /// even started for one who may not use it.
    fn may_reach(&self, caller: &Caller, server: &str, now_ms: u64) -> bool;

    /// Whether some call of the tool could be allowed, whatever its paths and arguments: which tools
    /// an agent is shown. `access` holds neither.
    fn may_see(&self, access: &Access<'_>) -> bool;
}
