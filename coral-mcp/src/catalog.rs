//! The tools of one connected server, as agents may know them.

use std::collections::BTreeMap;

use coral_core::{Error, ToolDef, ToolFault};
use rmcp::model::Tool;
use serde_json::{Map, Value};

use crate::profile::{Profile, ToolProfile};
use crate::server::fault;

/// The longest name that every provider takes.
const MAX_NAME: usize = 64;
const MAX_DESCRIPTION: usize = 4_096;

/// A tool and what is known of it.
pub(crate) struct KnownTool {
    pub(crate) def: ToolDef,
    pub(crate) profile: ToolProfile,
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
    pub(crate) fn new(server: &str, tools: Vec<Tool>, profile: &Profile) -> Result<Self, Error> {
        let mut catalog = Catalog::default();
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
            let known = describe(full.clone(), &tool, profile);
            if catalog.tools.insert(name, known).is_some() {
                return Err(fault(&full, ToolFault::Protocol, "the server lists two tools of this name"));
            }
        }
        Ok(catalog)
    }

    pub(crate) fn get(&self, tool: &str) -> Option<&KnownTool> {
        self.tools.get(tool)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &KnownTool)> {
        self.tools.iter().map(|(name, tool)| (name.as_str(), tool))
    }
}

fn describe(full: String, tool: &Tool, profile: &Profile) -> KnownTool {
    let schema = tool.input_schema.as_ref();
    let properties = schema.get("properties").and_then(Value::as_object);
    let open = schema.get("additionalProperties").is_some_and(|more| more != &Value::Bool(false))
        || schema.contains_key("patternProperties");
    let arguments = match properties {
        Some(properties) if !open => Some(properties.keys().cloned().collect()),
        _ => None,
    };
    let profile = profile.tools.get(tool.name.as_ref()).cloned().unwrap_or_else(ToolProfile::strictest);
    let def = ToolDef {
        name: full,
        description: crate::text::clean(tool.description.as_deref().unwrap_or_default(), MAX_DESCRIPTION),
        input_schema: Value::Object(schema.clone()),
        effect: profile.effect,
    };
    KnownTool { def, profile, arguments }
}
