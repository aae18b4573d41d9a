//! The tools of one connected server, as agents may know them.

use std::collections::BTreeMap;

use coral_core::{Error, ToolDef, ToolFault, digest};
use rmcp::model::Tool;
use serde_json::{Map, Value};

use crate::extras::Extra;
use crate::pins::{Block, Pins, Seen};
use crate::profile::{Profile, ToolProfile};
use crate::screen;
use crate::server::fault;
use crate::shape::Shape;

/// The longest name that every provider takes.
const MAX_NAME: usize = 64;
const MAX_DESCRIPTION: usize = 4_096;

/// A tool and what is known of it.
pub(crate) struct KnownTool {
    pub(crate) def: ToolDef,
    pub(crate) profile: ToolProfile,
    /// The hash of everything that its server says of it.
    pub(crate) hash: String,
    /// All that, as canonical JSON, where it is pinned.
    pub(crate) definition: String,
    suspicion: Option<String>,
    /// Why it must not be called until a person agrees, if so.
    pub(crate) blocked: Option<Block>,
    /// The arguments that it takes; `None` if its schema leaves that open.
    arguments: Option<Vec<String>>,
    /// What its data must fit, where it promises data.
    pub(crate) shape: Option<Shape>,
    /// What it is, if it is not a tool of the server's but something else that the server has.
    pub(crate) extra: Option<Extra>,
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
        extras: &[Extra],
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
        for extra in extras {
            // A tool of the server's own by that name stays what it is.
            if !known.contains_key(extra.name()) {
                known.insert(extra.name().to_owned(), describe_extra(server, *extra, profile)?);
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
            .map(|(name, tool)| Seen {
                tool: name,
                hash: &tool.hash,
                definition: &tool.definition,
                suspicion: tool.suspicion.clone(),
            })
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

    /// Whether a tool is here what it is in `other`.
    pub(crate) fn is_same(&self, tool: &str, other: &Catalog) -> bool {
        match (self.get(tool), other.get(tool)) {
            (Some(here), Some(there)) => here.hash == there.hash,
            _ => false,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &KnownTool)> {
        self.tools.iter().map(|(name, tool)| (name.as_str(), tool))
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
    let definition = whole.to_string();
    let shape = tool.output_schema.as_ref().and_then(|schema| {
        let shape = Shape::new(&Value::Object(schema.as_ref().clone()));
        shape
            .inspect_err(|problem| tracing::warn!(tool = %def.name, problem, "its output schema is none"))
            .ok()
    });
    Ok(KnownTool { def, profile, hash, definition, suspicion, blocked: None, arguments, shape, extra: None })
}

fn describe_extra(server: &str, extra: Extra, profile: &Profile) -> Result<KnownTool, Error> {
    let mut def = extra.def(format!("{server}__{}", extra.name()));
    let profile = profile.tools.get(extra.name()).cloned().unwrap_or_else(Extra::profile);
    def.effect = profile.effect;
    let definition = serde_json::json!([&def.name, &def.description, &def.input_schema]).to_string();
    let hash = digest(&(&def.name, &def.description, &def.input_schema))?;
    let arguments = def.input_schema.get("properties").and_then(Value::as_object);
    let arguments = arguments.map(|properties| properties.keys().cloned().collect());
    let extra = Some(extra);
    Ok(KnownTool {
        def,
        profile,
        hash,
        definition,
        suspicion: None,
        blocked: None,
        arguments,
        shape: None,
        extra,
    })
}
