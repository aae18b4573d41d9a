//! Rules of the document as Cedar policies.
//!
//! They are built as values of Cedar's JSON form, so that nothing in a document can be taken for
//! syntax.

use cedar_policy::{Policy as CedarRule, PolicyId};
use coral_core::{Category, Error};
use serde_json::{Value, json};

use crate::access::{Access, Operation};
use crate::path::ProjectPath;
use crate::permissions::{
    AfterUntrusted, Grant, Names, Rule, Window, all_match, any_matches, any_program, argument, tools,
};

/// A rule and what it does.
pub(super) enum Source {
    Grant(Grant),
    Deny(Rule),
    Ask(Rule),
}

impl Source {
    fn rule(&self) -> Option<&Rule> {
        match self {
            Source::Grant(_) => None,
            Source::Deny(rule) | Source::Ask(rule) => Some(rule),
        }
    }

    pub(super) fn places(&self) -> Option<&[ProjectPath]> {
        match self {
            Source::Grant(grant) => Some(&grant.paths),
            Source::Deny(rule) | Source::Ask(rule) => rule.paths.as_deref(),
        }
    }

    pub(super) fn window(&self) -> Window {
        match self {
            Source::Grant(grant) => grant.window,
            Source::Deny(rule) | Source::Ask(rule) => rule.window,
        }
    }

    pub(super) fn place(&self) -> &str {
        match self {
            Source::Grant(grant) => &grant.place,
            Source::Deny(rule) | Source::Ask(rule) => &rule.place,
        }
    }

    pub(super) fn after_untrusted(&self) -> Option<AfterUntrusted> {
        match self {
            Source::Grant(grant) => grant.after_untrusted,
            Source::Deny(_) | Source::Ask(_) => None,
        }
    }

    fn names(&self) -> [&Names; 3] {
        match self {
            Source::Grant(grant) => [&grant.tools, &grant.projects, &grant.phases],
            Source::Deny(rule) | Source::Ask(rule) => [&rule.tools, &rule.projects, &rule.phases],
        }
    }

    pub(super) fn looks_at_arguments(&self) -> bool {
        match self {
            Source::Grant(grant) => !grant.arguments.is_empty(),
            Source::Deny(rule) | Source::Ask(rule) => !rule.arguments.is_empty(),
        }
    }

    /// Whether the rule looks at programs or hosts.
    fn looks_at_targets(&self) -> bool {
        match self {
            Source::Grant(grant) => grant.programs.is_some() || grant.hosts.is_some(),
            Source::Deny(rule) | Source::Ask(rule) => rule.programs.is_some() || rule.hosts.is_some(),
        }
    }

    fn targets_match(&self, access: &Access<'_>) -> bool {
        match self {
            Source::Grant(of) => {
                all_match(&of.programs, access.programs) && all_match(&of.hosts, access.hosts)
            }
            Source::Deny(of) | Source::Ask(of) => {
                any_program(&of.programs, access.programs) && any_matches(&of.hosts, access.hosts)
            }
        }
    }

    fn arguments_match(&self, access: &Access<'_>) -> bool {
        match self {
            Source::Grant(grant) => {
                access.arguments.is_none()
                    || grant.arguments.iter().all(|(n, p)| argument(access, n, p, true))
            }
            Source::Deny(rule) | Source::Ask(rule) => {
                rule.arguments.iter().all(|(n, p)| argument(access, n, p, false))
            }
        }
    }

    /// Whether the rule belongs to the slice of a call: what is left out here could not match.
    pub(super) fn can_concern(&self, access: &Access<'_>) -> bool {
        let server = |list: &[String]| list.iter().any(|s| s == access.server || s == "*");
        let (servers, operations) = match self {
            Source::Grant(grant) => (server(&grant.servers), grant.operations.grant(access)),
            Source::Deny(rule) | Source::Ask(rule) => (
                rule.servers.as_deref().is_none_or(server),
                rule.operations.as_ref().is_none_or(|operations| operations.concern(access)),
            ),
        };
        servers
            && operations
            && tools(self.names()[0], access)
            && self.window().is_open(access.now_ms)
            && self.targets_match(access)
            && self.arguments_match(access)
    }
}

/// Attributes of the context that policies look at, as a set: telling Cedar a thing costs as much as asking for it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Looks(u16);

impl Looks {
    pub(super) const EVERYTHING: Looks = Looks(u16::MAX);

    /// What the patterns of compiled rules found.
    pub(super) const FACTS: &str = "facts";

    /// All that there are.
    pub(super) const NAMES: [&str; 13] = [
        "server",
        "tool",
        "project",
        "phase",
        "now",
        "minute",
        "recursive",
        "raised",
        "untrusted",
        "programs",
        "hosts",
        "arguments",
        Looks::FACTS,
    ];

    /// One that looks at the attribute of this name.
    pub(super) fn at(name: &str) -> Self {
        Looks::NAMES.iter().position(|known| *known == name).map(|at| Looks(1 << at)).unwrap_or_default()
    }

    /// What a policy looks at that is JSON.
    fn of(policy: &Value) -> Self {
        let mut looks = Looks::default();
        match policy {
            Value::Object(fields) => {
                looks.add(fields.get("attr").and_then(Value::as_str).map(Looks::at).unwrap_or_default());
                fields.values().for_each(|value| looks.add(Looks::of(value)));
            }
            Value::Array(items) => items.iter().for_each(|item| looks.add(Looks::of(item))),
            _ => {}
        }
        looks
    }

    pub(super) fn add(&mut self, more: Looks) {
        self.0 |= more.0;
    }

    /// Whether the attribute of this name is one of them.
    pub(super) fn has(self, name: &str) -> bool {
        self.0 & Looks::at(name).0 != 0
    }

    /// Their names.
    pub(super) fn names(self) -> impl Iterator<Item = &'static str> {
        Looks::NAMES
            .into_iter()
            .enumerate()
            .filter(move |(at, _)| self.0 >> at & 1 == 1)
            .map(|(_, name)| name)
    }
}

/// A compiled rule.
pub(super) struct Slot {
    pub(super) source: Source,
    pub(super) policy: CedarRule,
    pub(super) looks: Looks,
    at: usize,
}

impl Slot {
    pub(super) fn compile(at: usize, source: Source, principal: &Value) -> Result<Self, Error> {
        let condition = condition(at, &source);
        let looks = Looks::of(&condition);
        let policy = json!({
            "effect": if source.rule().is_some() { "forbid" } else { "permit" },
            "principal": principal,
            "action": {"op": "All"},
            "resource": {"op": "All"},
            "conditions": [{"kind": "when", "body": condition}],
        });
        let policy =
            CedarRule::from_json(Some(PolicyId::new(format!("{at:06}"))), policy).map_err(|error| {
                Error::invalid("permissions", error.to_string()).at(source.place().to_owned())
            })?;
        Ok(Slot { source, policy, looks, at })
    }

    /// Adds what the rule's patterns found in a call that it can concern.
    pub(super) fn facts(&self, facts: &mut Vec<String>) {
        if self.source.looks_at_arguments() {
            facts.push(fact(self.at, "arguments"));
        }
        if self.source.looks_at_targets() {
            facts.push(fact(self.at, "targets"));
        }
        if self.source.names()[0].as_ref().is_some_and(|names| !names.iter().all(|n| is_simple(n))) {
            facts.push(fact(self.at, "tools"));
        }
    }
}

fn fact(at: usize, what: &str) -> String {
    format!("{at}.{what}")
}

fn entity(kind: &str, id: &str) -> Value {
    json!({"type": kind, "id": id})
}

pub(super) fn agent(id: &str) -> Value {
    json!({"op": "==", "entity": entity("Agent", id)})
}

pub(super) fn category(category: Category) -> Value {
    json!({"op": "in", "entity": entity("Category", category.as_str())})
}

pub(super) fn anyone() -> Value {
    json!({"op": "All"})
}

/// The policy that everything else in a set of questions is an exception from.
pub(super) fn baseline() -> Value {
    json!({"effect": "permit", "principal": anyone(), "action": anyone(), "resource": anyone(), "conditions": []})
}

fn context(attr: &str) -> Value {
    json!({".": {"left": {"Var": "context"}, "attr": attr}})
}

fn any(terms: impl IntoIterator<Item = Value>) -> Value {
    let joined = terms.into_iter().reduce(|left, right| json!({"||": {"left": left, "right": right}}));
    joined.unwrap_or_else(|| json!({"Value": false}))
}

fn all(terms: impl IntoIterator<Item = Value>) -> Value {
    let joined = terms.into_iter().reduce(|left, right| json!({"&&": {"left": left, "right": right}}));
    joined.unwrap_or_else(|| json!({"Value": true}))
}

fn not(term: Value) -> Value {
    json!({"!": {"arg": term}})
}

/// Whether `value` is one of `names`; nothing if they are all names.
fn among(names: Option<&[String]>, value: Value) -> Option<Value> {
    let names = names.filter(|names| !names.iter().any(|name| name == "*"))?;
    let set: Vec<Value> = names.iter().map(|name| json!({"Value": name})).collect();
    Some(json!({"contains": {"left": {"Set": set}, "right": value}}))
}

/// `variable in kind::id`.
fn within(variable: &str, kind: &str, id: &str) -> Value {
    json!({"in": {"left": {"Var": variable}, "right": {"Value": {"__entity": entity(kind, id)}}}})
}

fn actions<'a>(names: impl Iterator<Item = &'a str>) -> Value {
    any(names.map(|name| within("action", "Action", name)))
}

fn known(at: usize, what: &str) -> Value {
    json!({"contains": {"left": context(Looks::FACTS), "right": {"Value": fact(at, what)}}})
}

fn condition(at: usize, source: &Source) -> Value {
    let classes = |list: &[Operation]| actions(list.iter().map(|o| o.as_str()));
    let [tool_names, projects, phases] = source.names();
    let mut terms = Vec::new();
    match source {
        Source::Grant(grant) => {
            terms.extend(among(Some(&grant.servers), context("server")));
            let named = actions(grant.operations.named.iter().map(String::as_str));
            terms.push(any([classes(&grant.operations.classes), all([not(context("raised")), named])]));
            let tool = json!({"is": {"left": {"Var": "resource"}, "entity_type": "Tool"}});
            let dirs = grant.paths.iter().map(|path| within("resource", "Dir", &path.to_string()));
            terms.push(any([tool].into_iter().chain(dirs)));
        }
        Source::Deny(rule) | Source::Ask(rule) => {
            terms.extend(among(rule.servers.as_deref(), context("server")));
            terms.extend(rule.operations.as_ref().map(|operations| {
                any([classes(&operations.classes), actions(operations.named.iter().map(String::as_str))])
            }));
            terms.extend(rule.paths.as_ref().map(|paths| {
                any(paths.iter().map(|path| within("resource", "Reach", &path.relative().to_lowercase())))
            }));
        }
    }
    terms.extend(tool_names.as_ref().map(|names| {
        if names.iter().all(|name| is_simple(name)) {
            any(names.iter().map(|n| tool(n)))
        } else {
            known(at, "tools")
        }
    }));
    terms.extend(among(projects.as_deref(), context("project")));
    terms.extend(among(phases.as_deref(), context("phase")));
    if source.looks_at_arguments() {
        terms.push(known(at, "arguments"));
    }
    if source.looks_at_targets() {
        terms.push(known(at, "targets"));
    }
    terms.extend(window(source.window()));
    all(terms)
}

/// Whether a pattern of names holds nothing but letters and stars, which Cedar understands as it
/// is.
fn is_simple(pattern: &str) -> bool {
    pattern.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '*'))
}

fn like(value: Value, pattern: &str) -> Value {
    if !pattern.contains('*') {
        return json!({"==": {"left": value, "right": {"Value": pattern}}});
    }
    let mut elements = Vec::new();
    for (i, literal) in pattern.split('*').enumerate() {
        if i > 0 {
            elements.push(json!("Wildcard"));
        }
        if !literal.is_empty() {
            elements.push(json!({"Literal": literal}));
        }
    }
    json!({"like": {"left": value, "pattern": elements}})
}

fn tool(pattern: &str) -> Value {
    let pattern = pattern.strip_prefix("mcp__").unwrap_or(pattern);
    match pattern.split_once("__") {
        Some((server, tool)) => all([like(context("server"), server), like(context("tool"), tool)]),
        None => like(context("tool"), pattern),
    }
}

fn window(window: Window) -> Vec<Value> {
    let number = |value: u64| json!({"Value": i64::try_from(value).unwrap_or(i64::MAX)});
    let mut terms = Vec::new();
    if let Some(from) = window.from_ms {
        terms.push(json!({">=": {"left": context("now"), "right": number(from)}}));
    }
    if let Some(until) = window.until_ms {
        terms.push(json!({"<": {"left": context("now"), "right": number(until)}}));
    }
    if let Some((from, until)) = window.hours {
        let after = json!({">=": {"left": context("minute"), "right": number(from.into())}});
        let before = json!({"<": {"left": context("minute"), "right": number(until.into())}});
        terms.push(if from < until { all([after, before]) } else { any([after, before]) });
    }
    terms
}

/// Whether a place is `above` or lies under it.
pub(super) fn lies_within(place: &str, above: &str) -> bool {
    above.is_empty() || place.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
