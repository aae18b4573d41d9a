//! The permission file as it is written.

use std::collections::BTreeMap;

use coral_core::{Category, Error, nearest};
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::rule::{AfterUntrusted, Arguments, Grant, Names, Operations, Rule, Subject};
use super::servers::ServerRules;
use super::window::{Window, parse_hours, parse_rfc3339};
use super::{Permissions, Quotas, SecurityPolicy};
use crate::access::Operation;
use crate::path::ProjectPath;
use crate::profile::Profile;
use crate::yaml::{self, Findings};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    permission_model: Model,
    #[serde(default)]
    servers: BTreeMap<String, Spanned<ServerRules>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    #[serde(default)]
    agents: BTreeMap<String, Spanned<SubjectDoc>>,
    #[serde(default)]
    categories: BTreeMap<String, Spanned<SubjectDoc>>,
    #[serde(default)]
    deny: Vec<Spanned<RuleDoc>>,
    #[serde(default)]
    ask: Vec<Spanned<RuleDoc>>,
    #[serde(default)]
    after_untrusted: AfterUntrusted,
    #[serde(default)]
    security_policies: Vec<Spanned<String>>,
    cedar: Option<Spanned<String>>,
    quotas: Option<Spanned<Quotas>>,
}

const NOTHING: &str = "a limit of 0 lets nothing through; take the grants out instead";

type Strings = Vec<Spanned<String>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectDoc {
    #[serde(default)]
    mcp_servers: Strings,
    #[serde(default)]
    operations: Strings,
    #[serde(default)]
    paths: Strings,
    tools: Option<Strings>,
    programs: Option<Strings>,
    hosts: Option<Strings>,
    projects: Option<Strings>,
    phases: Option<Strings>,
    #[serde(default)]
    arguments: BTreeMap<String, Strings>,
    valid_from: Option<Spanned<String>>,
    valid_until: Option<Spanned<String>>,
    hours: Option<Spanned<String>>,
    after_untrusted: Option<AfterUntrusted>,
    calls_per_minute: Option<Spanned<u32>>,
    #[serde(default)]
    deny: Vec<Spanned<RuleDoc>>,
    #[serde(default)]
    ask: Vec<Spanned<RuleDoc>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleDoc {
    mcp_servers: Option<Strings>,
    operations: Option<Strings>,
    paths: Option<Strings>,
    tools: Option<Strings>,
    programs: Option<Strings>,
    hosts: Option<Strings>,
    projects: Option<Strings>,
    phases: Option<Strings>,
    #[serde(default)]
    arguments: BTreeMap<String, Strings>,
    valid_from: Option<Spanned<String>>,
    valid_until: Option<Spanned<String>>,
    hours: Option<Spanned<String>>,
}

pub(super) fn parse(text: &str, name: &str, profiles: &[Profile]) -> Result<Permissions, Error> {
    let file: File = yaml::parse(text, "permission file", name)?;
    let model = file.permission_model;
    let mut found = Findings::new(name);
    let mut permissions = Permissions {
        source: name.to_owned(),
        digest: crate::text::sha256_hex(text.as_bytes()),
        ..Default::default()
    };
    permissions.after_untrusted = model.after_untrusted;
    for operation in profiles.iter().flat_map(Profile::operations) {
        found.define_operation(operation);
    }
    for (server, rules) in file.servers {
        if let Err(problem) = crate::server::check_name(&server).and_then(|()| rules.value.check()) {
            found.add(&rules, problem);
        }
        for name in rules.value.tools.values().filter_map(|tool| tool.named.as_deref()) {
            found.define_operation(name);
        }
        permissions.servers.insert(server, rules.value);
    }
    for (agent, doc) in &model.agents {
        if agent.is_empty() || !agent.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) {
            found.add(doc, format!("`{agent}` is not an agent's id"));
        }
        permissions.agents.insert(agent.clone(), subject(doc, &mut found));
    }
    for (category, doc) in &model.categories {
        let known = [Category::Core, Category::Specialist];
        match known.into_iter().find(|c| c.as_str() == category) {
            Some(known) => {
                permissions.categories.insert(known, subject(doc, &mut found));
            }
            None => {
                found.add(doc, format!("no category is called `{category}`; there are `core`, `specialist`"));
            }
        }
    }
    permissions.everyone = Subject {
        calls_per_minute: None,
        grants: Vec::new(),
        deny: rules(&model.deny, &mut found),
        ask: rules(&model.ask, &mut found),
    };
    for name in &model.security_policies {
        match SecurityPolicy::ALL.into_iter().find(|p| p.as_str() == name.value) {
            Some(policy) => {
                permissions.security.insert(policy);
            }
            None => {
                let known = SecurityPolicy::ALL.map(SecurityPolicy::as_str);
                found.add(name, unknown("security policy", &name.value, &known));
            }
        }
    }
    if let Some(quotas) = &model.quotas {
        if [quotas.value.calls_per_run, quotas.value.calls_per_project].contains(&Some(0)) {
            found.add(quotas, NOTHING);
        }
        permissions.quotas = quotas.value;
    }
    if let Some(cedar) = &model.cedar {
        match check_cedar(&cedar.value, &found.place(cedar)) {
            Ok(()) => permissions.cedar.push((cedar.value.clone(), found.place(cedar))),
            Err(error) => found.add(cedar, error.to_string()),
        }
    }
    found.finish("permission file")?;
    Ok(permissions)
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let hint = match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            format!("there are {}", known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", "))
        }
    };
    format!("no {what} is called `{name}`; {hint}")
}

fn subject(doc: &Spanned<SubjectDoc>, found: &mut Findings<'_>) -> Subject {
    let value = &doc.value;
    let place = found.place(doc);
    let servers = servers(&value.mcp_servers, found);
    if let Some(tools) = &value.tools {
        for tool in tools {
            let full = tool.value.strip_prefix("mcp__").unwrap_or(&tool.value);
            if let Some((server, _)) = full.split_once("__")
                && !servers.iter().any(|s| s == "*" || fast_glob::glob_match(server, s))
            {
                found.add(
                    tool,
                    format!("`{}` can never match: `{server}` is not in `mcp_servers`", tool.value),
                );
            }
        }
    }
    let grant = Grant {
        servers,
        operations: operations(&value.operations, found),
        paths: paths(&value.paths, found),
        tools: value.tools.as_ref().map(|list| texts(list, found)),
        programs: names(&value.programs, found),
        hosts: names(&value.hosts, found),
        projects: value.projects.as_ref().map(|list| texts(list, found)),
        phases: value.phases.as_ref().map(|list| texts(list, found)),
        arguments: arguments(&value.arguments, found),
        after_untrusted: value.after_untrusted,
        window: window(&value.valid_from, &value.valid_until, &value.hours, found),
        place,
    };
    // An entry of refusals alone grants nothing, and says so by granting no server.
    let grants = if grant.servers.is_empty() && grant.operations.is_empty() && grant.paths.is_empty() {
        Vec::new()
    } else {
        vec![grant]
    };
    if let Some(limit) = value.calls_per_minute.as_ref().filter(|limit| limit.value == 0) {
        found.add(limit, NOTHING);
    }
    Subject {
        grants,
        deny: rules(&value.deny, found),
        ask: rules(&value.ask, found),
        calls_per_minute: value.calls_per_minute.as_ref().map(|limit| limit.value),
    }
}

fn rules(docs: &[Spanned<RuleDoc>], found: &mut Findings<'_>) -> Vec<Rule> {
    docs.iter()
        .map(|doc| {
            let value = &doc.value;
            let lists = [
                &value.mcp_servers,
                &value.operations,
                &value.paths,
                &value.tools,
                &value.programs,
                &value.hosts,
                &value.projects,
                &value.phases,
            ];
            if lists.iter().any(|list| list.as_ref().is_some_and(Vec::is_empty)) {
                found.add(doc, "a rule with an empty list can never match; leave the key out to mean all");
            }
            let window = window(&value.valid_from, &value.valid_until, &value.hours, found);
            if lists.iter().all(|list| list.is_none())
                && value.arguments.is_empty()
                && window == Window::default()
            {
                found.add(
                    doc,
                    "a rule needs at least one key; write `mcp_servers: [\"*\"]` to mean every call",
                );
            }
            Rule {
                servers: value.mcp_servers.as_ref().map(|list| servers(list, found)),
                operations: value.operations.as_ref().map(|list| operations(list, found)),
                paths: value.paths.as_ref().map(|list| paths(list, found)),
                tools: names(&value.tools, found),
                programs: names(&value.programs, found),
                hosts: names(&value.hosts, found),
                projects: names(&value.projects, found),
                phases: names(&value.phases, found),
                arguments: arguments(&value.arguments, found),
                window,
                place: found.place(doc),
            }
        })
        .collect()
}

fn names(list: &Option<Strings>, found: &mut Findings<'_>) -> Names {
    list.as_ref().map(|list| texts(list, found))
}

fn arguments(patterns: &BTreeMap<String, Strings>, found: &mut Findings<'_>) -> Arguments {
    patterns.iter().map(|(name, list)| (name.clone(), texts(list, found))).collect()
}

fn texts(list: &Strings, found: &mut Findings<'_>) -> Vec<String> {
    for text in list.iter().filter(|text| text.value.trim().is_empty()) {
        found.add(text, "an empty name can never match");
    }
    list.iter().map(|text| text.value.clone()).collect()
}

fn servers(list: &Strings, found: &mut Findings<'_>) -> Vec<String> {
    for server in list.iter().filter(|server| server.value != "*") {
        if let Err(problem) = crate::server::check_name(&server.value) {
            found.add(server, problem);
        }
    }
    list.iter().map(|server| server.value.clone()).collect()
}

fn operations(list: &Strings, found: &mut Findings<'_>) -> Operations {
    let mut operations = Operations::default();
    for text in list {
        let name = text.value.as_str();
        if let Some(class) = Operation::ALL.into_iter().find(|o| o.as_str() == name) {
            operations.classes.push(class);
        } else if found.defines_operation(name) || Profile::operation_names().any(|known| known == name) {
            operations.named.push(name.to_owned());
        } else {
            let known = Operation::ALL.map(Operation::as_str);
            let known: Vec<&str> = known.into_iter().chain(Profile::operation_names()).collect();
            found.add(text, unknown("operation", name, &known));
        }
    }
    operations
}

fn paths(list: &Strings, found: &mut Findings<'_>) -> Vec<ProjectPath> {
    list.iter()
        .filter_map(|text| {
            if !text.value.starts_with('/') {
                found.add(
                    text,
                    format!("`{}` must begin with `/project`, the project's root directory", text.value),
                );
                return None;
            }
            ProjectPath::parse(&text.value).map_err(|problem| found.add(text, problem)).ok()
        })
        .collect()
}

fn window(
    from: &Option<Spanned<String>>,
    until: &Option<Spanned<String>>,
    hours: &Option<Spanned<String>>,
    found: &mut Findings<'_>,
) -> Window {
    let mut time = |text: &Option<Spanned<String>>| {
        let text = text.as_ref()?;
        let ms = parse_rfc3339(&text.value);
        if ms.is_none() {
            found.add(text, format!("`{}` is not a time such as `2026-12-31T18:00:00Z`", text.value));
        }
        ms
    };
    let (from_ms, until_ms) = (time(from), time(until));
    if let (Some(from_ms), Some(until_ms), Some(until)) = (from_ms, until_ms, until)
        && until_ms <= from_ms
    {
        found.add(until, "`valid_until` does not lie after `valid_from`");
    }
    let hours = hours.as_ref().and_then(|text| {
        let hours = parse_hours(&text.value);
        if hours.is_none() {
            found.add(text, format!("`{}` is not a span of hours such as `08:00-18:00`", text.value));
        }
        hours
    });
    Window { from_ms, until_ms, hours }
}

#[cfg(feature = "cedar")]
fn check_cedar(text: &str, place: &str) -> Result<(), Error> {
    crate::engine::check(text, place)
}

#[cfg(not(feature = "cedar"))]
fn check_cedar(_text: &str, _place: &str) -> Result<(), Error> {
    Err(Error::invalid("permission file", "Cedar policies need the feature `cedar` of coral-mcp"))
}
