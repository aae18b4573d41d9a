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
pub(crate) struct Subject {
    pub(crate) grants: Vec<Grant>,
    pub(crate) deny: Vec<Rule>,
    pub(crate) ask: Vec<Rule>,
    /// How often it may call anything in a minute.
    pub(crate) calls_per_minute: Option<u32>,
}

/// Names that a grant or rule speaks of; `None` speaks of all.
pub(crate) type Names = Option<Vec<String>>;

/// What becomes of a call that changes something after untrusted content came in; the stricter is
/// the greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AfterUntrusted {
    Allow,
    #[default]
    Ask,
    Deny,
}

/// Operations by class, and by the names that profiles give them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operations {
    pub(crate) classes: Vec<Operation>,
    pub(crate) named: Vec<String>,
}

impl Operations {
    pub(super) fn is_empty(&self) -> bool {
        self.classes.is_empty() && self.named.is_empty()
    }

    fn names(&self, access: &Access<'_>) -> bool {
        access.named.is_some_and(|name| self.named.iter().any(|n| n == name))
    }

    /// Whether a grant of these covers the call: a name covers what its tool does by itself, not
    /// what arguments make of it.
    pub(crate) fn grant(&self, access: &Access<'_>) -> bool {
        self.classes.contains(&access.operation) || (!access.raised && self.names(access))
    }

    /// Whether a refusal of these concerns the call.
    pub(crate) fn concern(&self, access: &Access<'_>) -> bool {
        self.classes.contains(&access.operation) || self.names(access)
    }
}

/// Patterns that arguments must match, by the arguments' names.
pub(crate) type Arguments = BTreeMap<String, Vec<String>>;

/// Whether an argument is text, or a list of texts, of which every one (or any one) matches.
pub(crate) fn argument(access: &Access<'_>, name: &str, patterns: &[String], every: bool) -> bool {
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

/// Whether all values are among the patterns, as a grant wants it.
pub(crate) fn all_match(list: &Names, values: &[String]) -> bool {
    let Some(patterns) = list else { return true };
    values.iter().all(|value| patterns.iter().any(|p| fast_glob::glob_match(p, value)))
}

/// Whether one of the programs is among the patterns, as a refusal wants it: wherever it lies, it is
/// what it is called.
pub(crate) fn any_program(list: &Names, programs: &[String]) -> bool {
    let name = |program: &str| program.rsplit('/').next().unwrap_or_default().to_owned();
    any_matches(list, programs) || any_matches(list, &programs.iter().map(|p| name(p)).collect::<Vec<_>>())
}

/// Whether one of the values is among the patterns, as a refusal wants it.
pub(crate) fn any_matches(list: &Names, values: &[String]) -> bool {
    let Some(patterns) = list else { return true };
    values.iter().any(|value| patterns.iter().any(|p| fast_glob::glob_match(p, value)))
}

pub(crate) fn tools(list: &Names, access: &Access<'_>) -> bool {
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
    pub(crate) servers: Vec<String>,
    pub(crate) operations: Operations,
    pub(crate) paths: Vec<ProjectPath>,
    pub(crate) tools: Names,
    /// Programs that commands run, and hosts of addresses.
    pub(crate) programs: Names,
    pub(crate) hosts: Names,
    pub(crate) projects: Names,
    pub(crate) phases: Names,
    pub(crate) arguments: Arguments,
    pub(crate) window: Window,
    pub(crate) after_untrusted: Option<AfterUntrusted>,
    pub(crate) place: String,
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
            operations: Operations { classes: operations.into_iter().collect(), named: Vec::new() },
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

    /// Adds operations by the names that profiles give them (`create_pull_request`). A name covers
    /// what its tools do by themselves: a `DELETE` in an `execute_query` needs `write`.
    #[must_use]
    pub fn and_named<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.operations.named.extend(names.into_iter().map(Into::into));
        self
    }

    /// Ends the grant at `until_ms` since the Unix epoch.
    #[must_use]
    pub fn until_ms(mut self, until_ms: u64) -> Self {
        self.window.until_ms = Some(self.window.until_ms.map_or(until_ms, |old| old.min(until_ms)));
        self
    }

    /// Whether the grant speaks of the server.
    pub(super) fn names_server(&self, server: &str) -> bool {
        self.servers.iter().any(|s| s == server || s == "*")
    }

    /// Whether the grant holds now for any tool of the server.
    pub(super) fn reaches(&self, caller: &Caller, server: &str, now_ms: u64) -> bool {
        self.names_server(server) && self.holds(caller, now_ms)
    }

    /// Whether the grant holds now for some call.
    pub(super) fn holds(&self, caller: &Caller, now_ms: u64) -> bool {
        names(&self.projects, &caller.project)
            && names(&self.phases, &caller.phase)
            && self.window.check(now_ms).is_ok()
    }

    /// Whether the grant covers the call as far as it concerns `path`; else how far it came and
    /// what it lacks.
    pub(super) fn covers(&self, access: &Access<'_>, path: Option<&ProjectPath>) -> Result<(), (u8, String)> {
        let place = &self.place;
        if !self.servers.iter().any(|s| s == access.server || s == "*") {
            return Err((1, format!("server `{}` is not among those granted at {place}", access.server)));
        }
        if !self.operations.grant(access) {
            return Err((
                2,
                format!("operation `{}` is not among those granted at {place}", access.operation),
            ));
        }
        if !tools(&self.tools, access) {
            return Err((3, format!("tool `{}` is not among those granted at {place}", access.tool)));
        }
        if let Some(path) = path.filter(|path| !self.paths.iter().any(|granted| path.is_within(granted))) {
            return Err((4, format!("`{path}` is not among the paths granted at {place}")));
        }
        for (what, names, values) in
            [("program", &self.programs, access.programs), ("host", &self.hosts, access.hosts)]
        {
            if !all_match(names, values) {
                return Err((5, format!("a {what} of the call is not among those granted at {place}")));
            }
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
pub(crate) struct Rule {
    pub(crate) servers: Names,
    pub(crate) operations: Option<Operations>,
    pub(crate) paths: Option<Vec<ProjectPath>>,
    pub(crate) tools: Names,
    /// Programs that commands run, and hosts of addresses.
    pub(crate) programs: Names,
    pub(crate) hosts: Names,
    pub(crate) projects: Names,
    pub(crate) phases: Names,
    pub(crate) arguments: Arguments,
    pub(crate) window: Window,
    pub(crate) place: String,
}

impl Rule {
    pub(super) fn matches(&self, access: &Access<'_>) -> bool {
        names(&self.servers, access.server)
            && self.operations.as_ref().is_none_or(|operations| operations.concern(access))
            && tools(&self.tools, access)
            && any_program(&self.programs, access.programs)
            && any_matches(&self.hosts, access.hosts)
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

    /// Whether the rule holds for every call at `server` that concerns its places, whoever makes it and
    /// when.
    pub(super) fn is_of_places(&self, server: &str) -> bool {
        names(&self.servers, server)
            && self.tools.is_none()
            && self.programs.is_none()
            && self.hosts.is_none()
            && self.projects.is_none()
            && self.phases.is_none()
            && self.arguments.is_empty()
            && self.window == Window::default()
    }

    /// Whether the rule speaks of some arguments only.
    pub(super) fn has_conditions(&self) -> bool {
        self.paths.is_some() || !self.arguments.is_empty() || self.programs.is_some() || self.hosts.is_some()
    }
}
