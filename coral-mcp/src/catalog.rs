//! The tools of one connected server, as agents may know them.

use std::collections::BTreeMap;

use coral_core::{Error, ToolDef, ToolFault, digest};
use rmcp::model::Tool;
use serde_json::{Map, Value};

use crate::pins::{Pins, Seen};
use crate::profile::{Profile, ToolProfile};
use crate::screen;
use crate::server::fault;

/// The longest name that every provider takes.
const MAX_NAME: usize = 64;
const MAX_DESCRIPTION: usize = 4_096;

/// A tool and what is known of it.
pub(crate) struct KnownTool {
    pub(crate) def: ToolDef,
    pub(crate) profile: ToolProfile,
    /// The hash of everything that its server says of it.
    hash: String,
    suspicion: Option<String>,
    /// Why it must not be called until a person agrees, if so.
    pub(crate) blocked: Option<String>,
    /// The arguments that it takes; `None` if its schema leaves that open.
    arguments: Option<Vec<String>>,
}

impl KnownTool {
    /// Refuses arguments that the schema does not name: a server might act on one that was
    /// never checked.
    pub(crate) fn check_names(&self, arguments: &Map<String, Value>) -> Result<(), String> {
        let Some(known) = &self.arguments else { return Ok(()) };
        match arguments.keys().find(|name| !known.contains(name)) {
            None => Ok(()),
            Some(name) => {
                let hint = match coral_core::nearest(name, known.iter().map(String::as_str)) {
                    Some(near) => format!("; did you mean `{near}`?"),
                    None => format!("; it takes {}", known.join(", ")),
                };
                Err(format!("there is no argument called `{name}`{hint}"))
            }
        }
    }
}

/// The tools of one server, by their names at the server.
#[derive(Default)]
pub(crate) struct Catalog {
    tools: BTreeMap<String, KnownTool>,
}

impl Catalog {
    /// `raw` holds the tools as they came over the wire, where the transport shows that; with
    /// `pins`, tools that are not what they were are blocked.
    pub(crate) fn new(
        server: &str,
        tools: Vec<Tool>,
        raw: &BTreeMap<String, Value>,
        profile: &Profile,
        trusted: bool,
        pins: Option<&Pins>,
    ) -> Result<Self, Error> {
        let mut known: BTreeMap<String, KnownTool> = BTreeMap::new();
        for tool in tools {
            let name = tool.name.to_string();
            let full = format!("{server}__{name}");
            let fits = !name.is_empty()
                && full.len() <= MAX_NAME
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
            if !fits {
                tracing::warn!(server, tool = ?name, "a tool is left out: its name does not fit");
                continue;
            }
            let whole = match raw.get(&name) {
                Some(raw) => raw.clone(),
                None => serde_json::to_value(&tool).unwrap_or_default(),
            };
            let tool = describe(full.clone(), &tool, &whole, profile, trusted)?;
            if known.insert(name, tool).is_some() {
                return Err(fault(&full, ToolFault::Protocol, "the server lists two tools of this name"));
            }
        }
        let mut catalog = Catalog { tools: known };
        if let Some(pins) = pins {
            catalog.block(server, pins)?;
        }
        Ok(catalog)
    }

    fn block(&mut self, server: &str, pins: &Pins) -> Result<(), Error> {
        let seen: Vec<Seen<'_>> = self
            .tools
            .iter()
            .map(|(name, tool)| Seen { tool: name, hash: &tool.hash, suspicion: tool.suspicion.clone() })
            .collect();
        let blocked = pins.check(server, &seen)?;
        for (tool, why) in self.tools.values_mut().zip(blocked) {
            tool.blocked = why;
        }
        Ok(())
    }

    pub(crate) fn get(&self, tool: &str) -> Option<&KnownTool> {
        self.tools.get(tool)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &KnownTool)> {
        self.tools.iter().map(|(name, tool)| (name.as_str(), tool))
    }

    /// The hash of each tool as it is now.
    pub(crate) fn hashes(&self) -> BTreeMap<String, String> {
        self.tools.iter().map(|(name, tool)| (name.clone(), tool.hash.clone())).collect()
    }
}

fn describe(
    full: String,
    tool: &Tool,
    whole: &Value,
    profile: &Profile,
    trusted: bool,
) -> Result<KnownTool, Error> {
    let schema = tool.input_schema.as_ref();
    let properties = schema.get("properties").and_then(Value::as_object);
    let open = schema.get("additionalProperties").is_some_and(|more| more != &Value::Bool(false))
        || schema.contains_key("patternProperties");
    let arguments = match properties {
        Some(properties) if !open => Some(properties.keys().cloned().collect()),
        _ => None,
    };
    // What an untrusted server says of its tools widens nothing.
    let unknown = || ToolProfile::annotated(tool.annotations.as_ref().filter(|_| trusted));
    let profile = profile.tools.get(tool.name.as_ref()).cloned().unwrap_or_else(unknown);
    let def = ToolDef {
        name: full,
        description: crate::text::clean(tool.description.as_deref().unwrap_or_default(), MAX_DESCRIPTION),
        input_schema: Value::Object(schema.clone()),
        effect: profile.effect,
    };
    let (hash, suspicion) = (digest(whole)?, screen::suspicion(whole));
    Ok(KnownTool { def, profile, hash, suspicion, blocked: None, arguments })
}
