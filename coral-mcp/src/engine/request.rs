//! A call as a Cedar request.

use std::collections::HashSet;

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Policy as CedarRule, PolicyId, Request,
    RestrictedExpression,
};
use coral_core::Error;
use serde_json::{Map, Value};

use super::{Found, PolicyEngine, compile};
use crate::access::Access;
use crate::path::ProjectPath;

/// Deeper values than this are not shown to policies.
const MAX_DEPTH: usize = 8;

/// The types of entities, read once.
pub(super) struct Names {
    agent: EntityTypeName,
    category: EntityTypeName,
    action: EntityTypeName,
    path: EntityTypeName,
    dir: EntityTypeName,
    reach: EntityTypeName,
    tool: EntityTypeName,
    server: EntityTypeName,
    pub(super) baseline: CedarRule,
}

impl Names {
    pub(super) fn new() -> Result<Self, Error> {
        let name = |text: &str| {
            text.parse::<EntityTypeName>().map_err(|error| Error::invalid("entity type", error.to_string()))
        };
        let baseline = CedarRule::from_json(Some(PolicyId::new("baseline")), compile::baseline())
            .map_err(|error| Error::invalid("permissions", error.to_string()))?;
        Ok(Names {
            agent: name("Agent")?,
            category: name("Category")?,
            action: name("Action")?,
            path: name("Path")?,
            dir: name("Dir")?,
            reach: name("Reach")?,
            tool: name("Tool")?,
            server: name("Server")?,
            baseline,
        })
    }
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

/// What the requests of one call share.
pub(super) struct Requests<'a> {
    engine: &'a PolicyEngine,
    access: &'a Access<'a>,
    tool: String,
}

impl<'a> Requests<'a> {
    pub(super) fn new(engine: &'a PolicyEngine, access: &'a Access<'a>) -> Self {
        Requests { engine, access, tool: format!("{}__{}", access.server, access.tool) }
    }

    /// The request for one path of the call, or for its tool if it has none.
    pub(super) fn at(
        &self,
        path: Option<&ProjectPath>,
        found: &Found,
    ) -> Result<(Request, Entities), String> {
        let (names, access) = (&self.engine.names, self.access);
        let class = uid(&names.action, access.operation.as_str());
        let action = access.named.map_or_else(|| class.clone(), |name| uid(&names.action, name));
        let principal = uid(&names.agent, &access.caller.agent);
        let tool = || uid(&names.tool, &self.tool);
        let mut above = HashSet::new();
        if found.surroundings {
            above.insert(uid(&names.server, access.server));
        }
        let resource = match path {
            None => tool(),
            Some(path) => {
                if found.surroundings {
                    above.insert(tool());
                }
                above.extend(found.dirs.iter().map(|dir| uid(&names.dir, &shown(dir))));
                above.extend(found.reached.iter().map(|place| uid(&names.reach, place)));
                uid(&names.path, &path.to_string())
            }
        };
        // Of what is in nothing Cedar need not be told: it is itself.
        let mut entities = Vec::new();
        if found.category {
            let category = uid(&names.category, access.caller.category.as_str());
            entities.push(Entity::new_no_attrs(principal.clone(), HashSet::from([category])));
        }
        if !above.is_empty() {
            entities.push(Entity::new_no_attrs(resource.clone(), above));
        }
        if access.named.is_some() {
            entities.push(Entity::new_no_attrs(action.clone(), HashSet::from([class])));
        }
        let entities = Entities::from_entities(entities, None).map_err(|error| error.to_string())?;
        let context = Context::from_pairs(self.context(found)).map_err(|error| error.to_string())?;
        let request = Request::new(principal, action, resource, context, None).map_err(|e| e.to_string())?;
        Ok((request, entities))
    }

    fn context(&self, found: &Found) -> Vec<(String, RestrictedExpression)> {
        let access = self.access;
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let number = |n: u64| RestrictedExpression::new_long(i64::try_from(n).unwrap_or(i64::MAX));
        let truth = RestrictedExpression::new_bool;
        // A program is what it is called, wherever it lies.
        let name = |program: &String| program.rsplit_once('/').map(|(_, name)| name.to_owned());
        let programs = || {
            let names = access.programs.iter().filter_map(name);
            texts(access.programs.iter().cloned().chain(names))
        };
        let value = |attr: &str| match attr {
            "server" => Some(text(access.server)),
            "tool" => Some(text(access.tool)),
            "project" => Some(text(&access.caller.project)),
            "phase" => Some(text(&access.caller.phase)),
            "now" => Some(number(access.now_ms)),
            "minute" => Some(number(access.now_ms / 60_000 % 1_440)),
            "recursive" => Some(truth(access.recursive)),
            "raised" => Some(truth(access.raised)),
            "untrusted" => Some(truth(access.untrusted.is_some())),
            "programs" => Some(programs()),
            "hosts" => Some(texts(access.hosts.iter().cloned())),
            "arguments" => record(access.arguments.unwrap_or(&Map::new()), MAX_DEPTH),
            _ => Some(texts(found.facts.iter().cloned())),
        };
        found.looks.names().filter_map(|attr| Some((attr.to_owned(), value(attr)?))).collect()
    }
}

fn texts(texts: impl Iterator<Item = String>) -> RestrictedExpression {
    RestrictedExpression::new_set(texts.map(RestrictedExpression::new_string))
}

fn shown(relative: &str) -> String {
    if relative.is_empty() {
        crate::path::VIRTUAL_ROOT.to_owned()
    } else {
        format!("{}/{relative}", crate::path::VIRTUAL_ROOT)
    }
}

fn record(map: &Map<String, Value>, depth: usize) -> Option<RestrictedExpression> {
    let pairs = map.iter().filter_map(|(key, value)| Some((key.clone(), expression(value, depth)?)));
    RestrictedExpression::new_record(pairs).ok()
}

/// A value as policies see it; what Cedar has no type for is text, and what is null is not there.
fn expression(value: &Value, depth: usize) -> Option<RestrictedExpression> {
    let depth = depth.checked_sub(1)?;
    match value {
        Value::Null => None,
        Value::Bool(truth) => Some(RestrictedExpression::new_bool(*truth)),
        Value::Number(number) => Some(match number.as_i64() {
            Some(whole) => RestrictedExpression::new_long(whole),
            None => RestrictedExpression::new_string(number.to_string()),
        }),
        Value::String(text) => Some(RestrictedExpression::new_string(text.clone())),
        Value::Array(items) => {
            Some(RestrictedExpression::new_set(items.iter().filter_map(|item| expression(item, depth))))
        }
        Value::Object(map) => record(map, depth),
    }
}
