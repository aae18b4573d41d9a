//! What servers offer beside tools, offered as tools: so that it passes the same gate.

use coral_core::{CallContext, EffectClass, Error, ToolDef, ToolFault, ToolOutput};
use rmcp::model::{Resource, ResourceTemplate};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::access::Operation;
use crate::config::ConnectionRules;
use crate::profile::ToolProfile;
use crate::server::{Connection, fault};
use crate::text::clean;

/// The longest address, name or description that is shown in a list.
const MAX_TEXT: usize = 500;

/// What one of these tools does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extra {
    ListResources,
    ReadResource,
    ListPrompts,
    GetPrompt,
}

impl Extra {
    /// Those that a server has and its rules let be offered.
    pub(crate) fn of(connection: &Connection, rules: &ConnectionRules) -> Vec<Extra> {
        let about = connection.about();
        let mut extras = Vec::new();
        if about.resources && rules.resources {
            extras.extend([Extra::ListResources, Extra::ReadResource]);
        }
        if about.prompts && rules.prompts {
            extras.extend([Extra::ListPrompts, Extra::GetPrompt]);
        }
        extras
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Extra::ListResources => "list_resources",
            Extra::ReadResource => "read_resource",
            Extra::ListPrompts => "list_prompts",
            Extra::GetPrompt => "get_prompt",
        }
    }

    pub(crate) fn def(self, full: String) -> ToolDef {
        let (description, properties, required) = match self {
            Extra::ListResources => ("Lists what the server lets be read, by address.", json!({}), json!([])),
            Extra::ReadResource => (
                "Reads one of the server's resources.",
                json!({"uri": {"type": "string", "description": "Its address, as it is listed."}}),
                json!(["uri"]),
            ),
            Extra::ListPrompts => {
                ("Lists the prompts that the server has, with their arguments.", json!({}), json!([]))
            }
            Extra::GetPrompt => (
                "Gets one of the server's prompts, filled in.",
                json!({
                    "name": {"type": "string", "description": "Its name, as it is listed."},
                    "arguments": {"type": "object", "additionalProperties": {"type": "string"}},
                }),
                json!(["name"]),
            ),
        };
        ToolDef {
            name: full,
            description: description.to_owned(),
            input_schema: json!({
                "type": "object", "properties": properties, "required": required, "additionalProperties": false,
            }),
            effect: EffectClass::Pure,
        }
    }

    /// By the protocol they only read.
    pub(crate) fn profile() -> ToolProfile {
        let mut profile = ToolProfile::strictest();
        (profile.operation, profile.effect) = (Operation::Read, EffectClass::Pure);
        profile
    }

    pub(crate) async fn call(
        self,
        full: &str,
        connection: &Connection,
        arguments: Map<String, Value>,
        cx: &CallContext,
        deadline: Instant,
    ) -> Result<ToolOutput, Error> {
        let invalid = |problem: String| fault(full, ToolFault::InvalidArguments, problem);
        let text = |name: &str| {
            let value = arguments.get(name).and_then(Value::as_str);
            value.ok_or_else(|| invalid(format!("`{name}` must be a text")))
        };
        match self {
            Extra::ListResources => {
                let (resources, templates) = connection.resources().await?;
                Ok(listed(resources.iter().map(resource).chain(templates.iter().map(template))))
            }
            Extra::ReadResource => {
                let uri = text("uri")?;
                let (resources, templates) = connection.resources().await?;
                if !is_offered(uri, &resources, &templates) {
                    return Err(invalid(format!(
                        "`{}` is not among the resources that the server lists",
                        clean(uri, MAX_TEXT)
                    )));
                }
                connection.read(self.name(), uri, cx, deadline).await
            }
            Extra::ListPrompts => {
                let prompts = connection.prompts().await?;
                Ok(listed(prompts.iter().map(|prompt| {
                    let arguments: Vec<Value> = prompt
                        .arguments
                        .iter()
                        .flatten()
                        .map(|a| json!({"name": clean(&a.name, MAX_TEXT), "required": a.required == Some(true)}))
                        .collect();
                    json!({
                        "name": clean(&prompt.name, MAX_TEXT),
                        "description": short(prompt.description.as_deref()),
                        "arguments": arguments,
                    })
                })))
            }
            Extra::GetPrompt => {
                let name = text("name")?;
                let given = match arguments.get("arguments") {
                    None | Some(Value::Null) => None,
                    Some(Value::Object(map)) if map.values().all(Value::is_string) => Some(map.clone()),
                    Some(_) => return Err(invalid("`arguments` must be an object of texts".to_owned())),
                };
                connection.prompt(self.name(), name, given, cx, deadline).await
            }
        }
    }
}

fn short(text: Option<&str>) -> String {
    clean(text.unwrap_or_default(), MAX_TEXT)
}

fn resource(resource: &Resource) -> Value {
    json!({
        "uri": clean(&resource.uri, MAX_TEXT),
        "name": clean(&resource.name, MAX_TEXT),
        "description": short(resource.description.as_deref()),
    })
}

fn template(template: &ResourceTemplate) -> Value {
    json!({
        "uri_template": clean(&template.uri_template, MAX_TEXT),
        "name": clean(&template.name, MAX_TEXT),
        "description": short(template.description.as_deref()),
    })
}

fn listed(items: impl Iterator<Item = Value>) -> ToolOutput {
    let lines: Vec<String> = items.map(|item| item.to_string()).collect();
    ToolOutput::text(if lines.is_empty() { "nothing".to_owned() } else { lines.join("\n") })
}

/// Whether an address is one that the server lists, or fits a pattern that it lists. Files are left
/// out: whether they were granted can't be told from an address.
fn is_offered(uri: &str, resources: &[Resource], templates: &[ResourceTemplate]) -> bool {
    let is_file = uri.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file:"));
    if is_file || uri.len() > 2_000 || uri.chars().any(char::is_control) {
        return false;
    }
    resources.iter().any(|resource| resource.uri == uri)
        || templates.iter().any(|template| fits(uri, &template.uri_template))
}

/// Whether an address has the fixed parts of a pattern, in their order. The parts between may be
/// anything but the way up.
fn fits(uri: &str, pattern: &str) -> bool {
    let Some((start, mut rest)) = pattern.split_once('{') else { return uri == pattern };
    let Some(mut left) = uri.strip_prefix(start).filter(|_| start.contains(':')) else { return false };
    if uri.split('/').any(|part| matches!(part, "." | "..")) || uri.to_ascii_lowercase().contains("%2e") {
        return false;
    }
    loop {
        let Some((_, after)) = rest.split_once('}') else { return false };
        match after.split_once('{') {
            None => return left.ends_with(after),
            Some((fixed, next)) => match left.split_once(fixed) {
                Some((_, tail)) => (left, rest) = (tail, next),
                None => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_read_is_what_is_offered() {
        for (uri, pattern, expected) in [
            ("demo://text/1", "demo://text/{id}", true),
            ("demo://text/1/raw", "demo://text/{id}/raw", true),
            ("demo://a/1/b/2", "demo://a/{x}/b/{y}", true),
            ("demo://a/1/c/2", "demo://a/{x}/b/{y}", false),
            ("demo://text/../secret", "demo://text/{id}", false),
            ("demo://text/%2e%2e/secret", "demo://text/{id}", false),
            ("other://text/1", "demo://text/{id}", false),
            ("anything", "{+uri}", false),
            ("demo://x", "demo://x", true),
            ("demo://text/1", "demo://text/{id", false),
        ] {
            assert_eq!(fits(uri, pattern), expected, "{uri} {pattern}");
        }
        let listed: Resource =
            serde_json::from_value(json!({"uri": "file:///etc/passwd", "name": "x"})).unwrap();
        assert!(!is_offered("file:///etc/passwd", &[listed], &[]));
    }

    proptest! {
        #[test]
        fn any_pattern_is_put_up_with(uri in ".{0,30}", pattern in "[a-z:/{}+]{0,20}") {
            let _ = fits(&uri, &pattern);
        }
    }
}
