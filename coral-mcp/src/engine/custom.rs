//! Cedar policies of the embedder's own.

use std::collections::BTreeSet;
use std::str::FromStr;

use cedar_policy::{ActionConstraint, Effect, Policy as CedarRule, PolicyId, PolicySet, PrincipalConstraint};
use coral_core::{Caller, Error, nearest};
use serde_json::Value;

use super::compile::Looks;
use crate::access::Access;
use crate::path::ProjectPath;
use crate::permissions::AfterUntrusted;

const TYPES: [&str; 7] = ["Agent", "Category", "Action", "Path", "Dir", "Tool", "Server"];
const ANNOTATIONS: [&str; 4] = ["ask", "after_untrusted", "id", "note"];

/// What a policy looks at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Uses {
    /// The attributes of the context.
    pub(super) looks: Looks,
    /// Whether it looks at arguments, paths, or anything else that is not known before the call.
    of_calls: bool,
    /// Whether it may look at the server or the tool that the resource is in.
    pub(super) surroundings: bool,
    /// Whether it may look at the caller's category.
    pub(super) category: bool,
}

impl Uses {
    /// Until when a decision by the clock holds that is made now.
    pub(super) fn next_change(&self, now_ms: u64) -> u64 {
        match (self.looks.has("now"), self.looks.has("minute")) {
            (true, _) => now_ms.saturating_add(1),
            (false, true) => (now_ms / 60_000 + 1).saturating_mul(60_000),
            (false, false) => u64::MAX,
        }
    }

    /// Whether what it says of a tool holds for every call of it, now.
    pub(super) fn is_of_tools_alone(&self) -> bool {
        !self.of_calls
    }
}

/// A policy and what it is known by.
pub(super) struct Custom {
    pub(super) policy: CedarRule,
    /// Why a person is asked, if one is.
    pub(super) ask: Option<String>,
    pub(super) after_untrusted: Option<AfterUntrusted>,
    pub(super) uses: Uses,
    /// The directories that it names, below the root.
    pub(super) dirs: BTreeSet<String>,
    place: String,
}

impl Custom {
    /// Whether its scope can hold for the caller.
    pub(super) fn concerns(&self, caller: &Caller) -> bool {
        let is = |uid: &cedar_policy::EntityUid| {
            let id: &str = uid.id().as_ref();
            match uid.type_name().basename() {
                "Agent" => id == caller.agent.as_ref(),
                "Category" => id == caller.category.as_str(),
                _ => false,
            }
        };
        match self.policy.principal_constraint() {
            PrincipalConstraint::Any | PrincipalConstraint::Is(_) => true,
            PrincipalConstraint::In(uid) | PrincipalConstraint::Eq(uid) => is(&uid),
            PrincipalConstraint::IsIn(_, uid) => is(&uid),
        }
    }

    /// Whether its scope can hold for what the tool does.
    pub(super) fn admits(&self, access: &Access<'_>) -> bool {
        let is = |uid: &cedar_policy::EntityUid| {
            let id: &str = uid.id().as_ref();
            id == access.operation.as_str() || access.named == Some(id)
        };
        match self.policy.action_constraint() {
            ActionConstraint::Any => true,
            ActionConstraint::In(of) => of.iter().any(is),
            ActionConstraint::Eq(uid) => is(&uid),
        }
    }

    /// Its place, and what it says of itself.
    pub(super) fn title(&self) -> String {
        let note =
            self.ask.as_deref().filter(|ask| !ask.is_empty()).or_else(|| self.policy.annotation("note"));
        match note {
            Some(note) => format!("{}: {note}", self.place),
            None => self.place.clone(),
        }
    }
}

/// Checks policies without using them.
///
/// # Errors
/// [`Invalid`](coral_core::ErrorKind::Invalid) for what can't be read, or speaks of what there is
/// not.
pub(crate) fn check(text: &str, name: &str) -> Result<(), Error> {
    parse(text, name).map(drop)
}

pub(super) fn parse(text: &str, name: &str) -> Result<Vec<Custom>, Error> {
    let invalid = |place: &str, problem: String| Error::invalid("Cedar policy", problem).at(place.to_owned());
    let set = PolicySet::from_str(text).map_err(|errors| {
        let first = errors.iter().next();
        let offset = first.and_then(miette_offset);
        let problem = first.map_or_else(|| errors.to_string(), ToString::to_string);
        invalid(&offset.map_or_else(|| name.to_owned(), |at| place(name, text, at)), problem)
    })?;
    if set.templates().next().is_some() {
        return Err(invalid(name, "templates are not linked here; write the policy out".to_owned()));
    }
    let mut customs = Vec::new();
    for (at, policy) in starts(text).into_iter().zip(ordered(&set)) {
        let place = place(name, text, at);
        let json = policy.to_json().map_err(|error| invalid(&place, error.to_string()))?;
        let mut seen = Seen::default();
        walk(&json, &mut seen);
        seen.scope(&json);
        if let Some(problem) = seen.problem {
            return Err(invalid(&place, problem));
        }
        for (key, _) in policy.annotations() {
            if !ANNOTATIONS.contains(&key) {
                return Err(invalid(&place, unknown("annotation", key, &ANNOTATIONS)));
            }
        }
        let ask = policy.annotation("ask").map(str::to_owned);
        if ask.is_some() && policy.effect() == Effect::Permit {
            return Err(invalid(
                &place,
                "`@ask` stands on a `forbid`: what is forbidden unless a person agrees".to_owned(),
            ));
        }
        let after_untrusted = match policy.annotation("after_untrusted") {
            None => None,
            Some("allow") => Some(AfterUntrusted::Allow),
            Some("ask") => Some(AfterUntrusted::Ask),
            Some("deny") => Some(AfterUntrusted::Deny),
            Some(other) => {
                return Err(invalid(&place, unknown("`after_untrusted`", other, &["allow", "ask", "deny"])));
            }
        };
        // The place makes the id the same in each process, and distinct between texts.
        let policy = policy.new_id(PolicyId::new(format!("custom {place} {at}")));
        customs.push(Custom { policy, ask, after_untrusted, uses: seen.uses, dirs: seen.dirs, place });
    }
    Ok(customs)
}

fn miette_offset(error: &cedar_policy::ParseError) -> Option<usize> {
    use miette::Diagnostic;
    error.labels()?.next().map(|label| label.offset())
}

/// The policies in the order of the text: Cedar numbers them so.
fn ordered(set: &PolicySet) -> Vec<CedarRule> {
    let mut policies: Vec<CedarRule> = set.policies().cloned().collect();
    policies.sort_by_key(|policy| {
        let id: &str = policy.id().as_ref();
        id.strip_prefix("policy").and_then(|n| n.parse::<usize>().ok()).unwrap_or(usize::MAX)
    });
    policies
}

/// Where each policy's effect stands in a text that was parsed.
fn starts(text: &str) -> Vec<usize> {
    let mut starts = Vec::new();
    let (mut at, mut fresh) = (0, true);
    let bytes = text.as_bytes();
    while let Some(byte) = bytes.get(at) {
        let rest = text.get(at..).unwrap_or_default();
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        }
        if *byte == b'"' {
            at += 1;
            while let Some(inner) = bytes.get(at).filter(|inner| **inner != b'"') {
                at += if *inner == b'\\' { 2 } else { 1 };
            }
        } else if *byte == b';' {
            fresh = true;
        } else if fresh && (rest.starts_with("permit") || rest.starts_with("forbid")) {
            let before = at.checked_sub(1).and_then(|at| bytes.get(at));
            if before.is_none_or(|b| !b.is_ascii_alphanumeric() && !matches!(b, b'_' | b'@')) {
                starts.push(at);
                fresh = false;
            }
        }
        at += 1;
    }
    starts
}

/// The line of an offset, such as `qa.cedar:4`. A name that has a line already is where the text
/// begins.
fn place(name: &str, text: &str, at: usize) -> String {
    let lines = text.bytes().take(at).filter(|b| *b == b'\n').count();
    match name.rsplit_once(':').and_then(|(file, line)| Some((file, line.parse::<usize>().ok()?))) {
        Some((file, line)) => format!("{file}:{}", line + lines + 1),
        None => format!("{name}:{}", lines + 1),
    }
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("no {what} is called `{name}`; did you mean `{near}`?"),
        None => format!("no {what} is called `{name}`; there are {}", known.join(", ")),
    }
}

#[derive(Default)]
struct Seen {
    uses: Uses,
    dirs: BTreeSet<String>,
    problem: Option<String>,
}

impl Seen {
    /// It looks at the context as a whole, or in a way that is not known here.
    fn everything(&mut self) {
        self.uses.looks = Looks::EVERYTHING;
        self.uses.of_calls = true;
    }

    fn attribute(&mut self, name: &str) {
        self.uses.looks.add(Looks::at(name));
        match name {
            "server" | "tool" | "project" | "phase" | "now" | "minute" => {}
            "recursive" | "raised" | "untrusted" | "programs" | "hosts" | "arguments" => {
                self.uses.of_calls = true;
            }
            _ => {
                // The facts are for what is compiled here.
                let known = Looks::NAMES.into_iter().filter(|known| *known != Looks::FACTS);
                let known: Vec<&str> = known.collect();
                self.problem = Some(unknown("attribute of `context`", name, &known));
            }
        }
    }

    fn entity(&mut self, kind: &str, id: &str) {
        if !TYPES.contains(&kind) {
            self.problem = Some(unknown("type", kind, &TYPES));
        }
        self.uses.surroundings |= matches!(kind, "Server" | "Tool");
        self.uses.category |= kind == "Category";
        if kind == "Dir" || kind == "Path" {
            self.uses.of_calls = true;
            match ProjectPath::parse(id) {
                Ok(path) if path.to_string() == id => {
                    self.dirs.insert(path.relative().to_owned());
                }
                Ok(path) => self.problem = Some(format!("`{id}` can never match; write `{path}`")),
                Err(problem) => self.problem = Some(problem),
            }
        }
    }

    /// What stands in the scope, before the conditions.
    fn scope(&mut self, policy: &Value) {
        for part in ["principal", "action", "resource"] {
            let Some(part) = policy.get(part) else { continue };
            let one = part.get("entity").into_iter();
            let many = part.get("entities").and_then(Value::as_array).into_iter().flatten();
            let within = part.get("in").and_then(|of| of.get("entity")).into_iter();
            for entity in one.chain(many).chain(within) {
                self.reference(entity);
            }
            if let Some(kind) = part.get("entity_type").and_then(Value::as_str) {
                self.kind(kind);
            }
        }
    }

    fn reference(&mut self, entity: &Value) {
        let entity = entity.get("__entity").unwrap_or(entity);
        let text = |key: &str| entity.get(key).and_then(Value::as_str);
        if let (Some(kind), Some(id)) = (text("type"), text("id")) {
            self.entity(kind, id);
        }
    }

    fn kind(&mut self, kind: &str) {
        if !TYPES.contains(&kind) {
            self.problem = Some(unknown("type", kind, &TYPES));
        }
        self.uses.of_calls |= matches!(kind, "Path" | "Tool");
    }
}

/// Looks through a policy in Cedar's JSON form.
fn walk(value: &Value, seen: &mut Seen) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, seen)),
        Value::Object(map) => {
            for (key, value) in map {
                let of_context = || value.pointer("/left/Var").and_then(Value::as_str) == Some("context");
                match (key.as_str(), value) {
                    ("." | "has", _) if of_context() => {
                        // `has` takes a path too, which is a list.
                        let attr = value.get("attr");
                        match attr.and_then(|attr| attr.as_str().or_else(|| attr.get(0)?.as_str())) {
                            Some(name) => seen.attribute(name),
                            None => seen.everything(),
                        }
                    }
                    ("Var", Value::String(name)) if name == "context" => {
                        seen.everything();
                    }
                    ("is", of) => {
                        if let Some(kind) = of.get("entity_type").and_then(Value::as_str) {
                            seen.kind(kind);
                        }
                        walk(of, seen);
                    }
                    ("__entity", _) => {
                        seen.reference(value);
                        walk(value, seen);
                    }
                    _ => walk(value, seen),
                }
            }
        }
        _ => {}
    }
}
