//! Compiled grants and rules.

use std::collections::BTreeMap;

use coral_core::{Caller, Error};
use serde::Deserialize;
use serde_json::Value;

use super::window::Window;
use crate::access::{Access, Operation};
use crate::path::ProjectPath;

/// What one agent or category is given and refused.
#[derive(Clone, Debug, Default)]
pub(super) struct Subject {
    pub(super) grants: Vec<Grant>,
    pub(super) deny: Vec<Rule>,
    pub(super) ask: Vec<Rule>,
}

/// Names that a grant or rule speaks of; `None` speaks of all.
pub(super) type Names = Option<Vec<String>>;

/// What becomes of a call that changes something after untrusted content came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AfterUntrusted {
    #[default]
    Ask,
    Allow,
    Deny,
}

/// Patterns that arguments must match, by the arguments' names.
pub(super) type Arguments = BTreeMap<String, Vec<String>>;

/// Whether an argument is text, or a list of texts, of which every one (or any one) matches.
fn argument(access: &Access<'_>, name: &str, patterns: &[String], every: bool) -> bool {
    let fits = |value: &Value| match value {
        Value::String(text) => patterns.iter().any(|p| fast_glob::glob_match(p, text)),
        Value::Number(_) | Value::Bool(_) => patterns.contains(&value.to_string()),
        _ => !every,
    };
    match access.arguments.and_then(|arguments| arguments.get(name)) {
        None | Some(Value::Null) => false,
        Some(Value::Array(items)) if every => !items.is_empty() && items.iter().all(fits),
        Some(Value::Array(items)) => items.iter().any(fits),
        Some(value) => fits(value),
    }
}

fn names(list: &Names, name: &str) -> bool {
    list.as_ref().is_none_or(|names| names.iter().any(|n| n == name || n == "*"))
}

/// A tool pattern: of a server's tool where it holds `__`, else of a tool of any server.
fn tool_matches(pattern: &str, server: &str, tool: &str) -> bool {
    let pattern = pattern.strip_prefix("mcp__").unwrap_or(pattern);
    match pattern.split_once("__") {
        Some((of, name)) => fast_glob::glob_match(of, server) && fast_glob::glob_match(name, tool),
        None => fast_glob::glob_match(pattern, tool),
    }
}

fn tools(list: &Names, access: &Access<'_>) -> bool {
    list.as_ref().is_none_or(|patterns| patterns.iter().any(|p| tool_matches(p, access.server, access.tool)))
}

/// Rights: servers × operations × paths, in a window of time.
///
/// Without paths only tools that name no path may be called.
///
/// ```
/// use coral_mcp::{Grant, Operation, Permissions};
///
/// let permissions = Permissions::new().grant(
///     "qa_testing",
///     Grant::new(["filesystem"], [Operation::Read], ["/project"])?,
/// );
/// assert_eq!(permissions.agents().collect::<Vec<_>>(), ["qa_testing"]);
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Grant {
    pub(super) servers: Vec<String>,
    pub(super) operations: Vec<Operation>,
    pub(super) paths: Vec<ProjectPath>,
    pub(super) tools: Names,
    pub(super) projects: Names,
    pub(super) phases: Names,
    pub(super) arguments: Arguments,
    pub(super) window: Window,
    pub(super) after_untrusted: Option<AfterUntrusted>,
    pub(super) place: String,
}

impl Grant {
    /// A grant without end.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) for a path that is not one of the project.
    pub fn new<S: Into<String>, P: AsRef<str>>(
        servers: impl IntoIterator<Item = S>,
        operations: impl IntoIterator<Item = Operation>,
        paths: impl IntoIterator<Item = P>,
    ) -> Result<Self, Error> {
        Ok(Grant {
            servers: servers.into_iter().map(Into::into).collect(),
            operations: operations.into_iter().collect(),
            paths: paths.into_iter().map(|p| p.as_ref().parse()).collect::<Result<_, _>>()?,
            place: "a grant in code".to_owned(),
            ..Default::default()
        })
    }

    /// Narrows the grant to tools whose names match one of `patterns` (`read_*`,
    /// `github__get_*`).
    #[must_use]
    pub fn only_tools<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.tools = Some(patterns.into_iter().map(Into::into).collect());
        self
    }

    /// Ends the grant at `until_ms` since the Unix epoch.
    #[must_use]
    pub fn until_ms(mut self, until_ms: u64) -> Self {
        self.window.until_ms = Some(self.window.until_ms.map_or(until_ms, |old| old.min(until_ms)));
        self
    }

    /// Whether the grant holds now for any tool of the server.
    pub(super) fn reaches(&self, caller: &Caller, server: &str, now_ms: u64) -> bool {
        self.servers.iter().any(|s| s == server || s == "*")
            && names(&self.projects, &caller.project)
            && names(&self.phases, &caller.phase)
            && self.window.check(now_ms).is_ok()
    }

    /// Whether the grant covers the call; else how far it came and what it lacks.
    pub(super) fn covers(&self, access: &Access<'_>) -> Result<(), (u8, String)> {
        let place = &self.place;
        if !self.servers.iter().any(|s| s == access.server || s == "*") {
            return Err((1, format!("server `{}` is not among those granted at {place}", access.server)));
        }
        if !self.operations.contains(&access.operation) {
            return Err((
                2,
                format!("operation `{}` is not among those granted at {place}", access.operation),
            ));
        }
        if !tools(&self.tools, access) {
            return Err((3, format!("tool `{}` is not among those granted at {place}", access.tool)));
        }
        if let Some(path) =
            access.paths.iter().find(|path| !self.paths.iter().any(|granted| path.is_within(granted)))
        {
            return Err((4, format!("`{path}` is not among the paths granted at {place}")));
        }
        if access.arguments.is_some()
            && let Some((name, _)) = self.arguments.iter().find(|(n, p)| !argument(access, n, p, true))
        {
            return Err((5, format!("argument `{name}` is not within what is granted at {place}")));
        }
        if !names(&self.projects, &access.caller.project) {
            return Err((
                5,
                format!("project `{}` is not among those granted at {place}", access.caller.project),
            ));
        }
        if !names(&self.phases, &access.caller.phase) {
            return Err((
                6,
                format!("phase `{}` is not among those granted at {place}", access.caller.phase),
            ));
        }
        self.window.check(access.now_ms).map_err(|why| (7, format!("the grant at {place} {why}")))
    }
}

/// What must be refused or asked: every key that is given must match.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    pub(super) servers: Names,
    pub(super) operations: Option<Vec<Operation>>,
    pub(super) paths: Option<Vec<ProjectPath>>,
    pub(super) tools: Names,
    pub(super) projects: Names,
    pub(super) phases: Names,
    pub(super) arguments: Arguments,
    pub(super) window: Window,
    pub(super) place: String,
}

impl Rule {
    pub(super) fn matches(&self, access: &Access<'_>) -> bool {
        names(&self.servers, access.server)
            && self.operations.as_ref().is_none_or(|ops| ops.contains(&access.operation))
            && tools(&self.tools, access)
            && names(&self.projects, &access.caller.project)
            && names(&self.phases, &access.caller.phase)
            && self.window.check(access.now_ms).is_ok()
            && self.arguments.iter().all(|(name, patterns)| argument(access, name, patterns, false))
            && self.paths.as_ref().is_none_or(|ruled| {
                access.paths.iter().any(|path| {
                    ruled.iter().any(|rule| {
                        path.is_within_any_case(rule) || (access.recursive && rule.is_within_any_case(path))
                    })
                })
            })
    }

    /// Whether the rule speaks of some arguments only.
    pub(super) fn has_conditions(&self) -> bool {
        self.paths.is_some() || !self.arguments.is_empty()
    }
}
