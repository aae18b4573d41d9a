//! JSON schemas in the dialects that providers accept.

use std::collections::BTreeSet;

use coral_core::OutputFormat;
use serde_json::{Map, Value};

/// The schema in the strict form, where it has one: every object closed, every property required, and those
/// that were optional made nullable. `None` if the schema allows what the strict form can't say.
pub(super) fn strict(schema: &Value) -> Option<Value> {
    // Its root is one object, written out.
    let is_object =
        |root: &Value| root.get("type").is_some_and(|kind| kind == "object") && root.get("anyOf").is_none();
    close(schema, true).filter(is_object)
}

/// The schema with every object closed. `None` if it allows objects of any shape.
pub(super) fn closed(schema: &Value) -> Option<Value> {
    close(schema, false)
}

/// Keywords that ask for less than is written without them, or only say something about it. No provider's grammar knows
/// them all, and some refuse them; what they ask for is checked after the answer.
const DROPPED: [&str; 27] = [
    "$comment",
    "$schema",
    "contains",
    "contentEncoding",
    "contentMediaType",
    "default",
    "deprecated",
    "examples",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "pattern",
    "readOnly",
    "title",
    "uniqueItems",
    "writeOnly",
];

/// Whether a keyword may be left out.
fn is_dropped(key: &str) -> bool {
    DROPPED.contains(&key) || key.starts_with("x-")
}

fn close(schema: &Value, all_required: bool) -> Option<Value> {
    let Value::Object(fields) = schema else { return None };
    let mut out = Map::new();
    let required: Vec<&str> = fields
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (key, value) in fields {
        let value = match key.as_str() {
            dropped if is_dropped(dropped) => continue,
            "additionalProperties" if matches!(value, Value::Object(_) | Value::Bool(true)) => return None,
            "additionalProperties" => continue,
            "properties" => {
                let mut properties = Map::new();
                for (name, property) in value.as_object()? {
                    let mut closed = close(property, all_required)?;
                    if all_required && !required.contains(&name.as_str()) {
                        closed = nullable(closed);
                    }
                    properties.insert(name.clone(), closed);
                }
                Value::Object(properties)
            }
            "$defs" | "definitions" => {
                let defs = value.as_object()?.iter();
                Value::Object(
                    defs.map(|(name, def)| Some((name.clone(), close(def, all_required)?)))
                        .collect::<Option<_>>()?,
                )
            }
            "items" => close(value, all_required)?,
            // A union of constants is an enumeration, and all providers know `anyOf`.
            "anyOf" | "oneOf" if !out.contains_key("anyOf") => {
                let branches: Option<Vec<Value>> =
                    value.as_array()?.iter().map(|branch| close(branch, all_required)).collect();
                out.insert("anyOf".to_owned(), Value::Array(branches?));
                continue;
            }
            "$ref" | "const" | "description" | "enum" | "required" | "type" => value.clone(),
            // What is not known to be understood may be refused, or mean something else.
            _ => return None,
        };
        out.insert(key.clone(), value);
    }
    // Beside a reference nothing else is taken.
    if let Some(target) = out.remove("$ref") {
        let is_more = |key: &String| !matches!(key.as_str(), "$defs" | "definitions" | "description");
        return (!out.keys().any(is_more)).then(|| {
            out.remove("description");
            out.insert("$ref".to_owned(), target);
            Value::Object(out)
        });
    }
    let is_object = match fields.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
        kind => kind.is_some_and(|kind| kind == "object"),
    };
    let properties = fields.get("properties").and_then(Value::as_object);
    if required.iter().any(|name| !properties.is_some_and(|known| known.contains_key(*name))) {
        return None;
    }
    if let Some(Value::Object(properties)) = out.get("properties") {
        // In one order, whatever `serde_json` keeps: a request must have the same bytes everywhere.
        let names: BTreeSet<&String> = properties.keys().collect();
        let names: Vec<Value> = names.into_iter().cloned().map(Value::String).collect();
        if all_required {
            out.insert("required".to_owned(), Value::Array(names));
        }
        out.insert("additionalProperties".to_owned(), Value::Bool(false));
    } else if is_object {
        return None;
    }
    let says_something = ["type", "anyOf", "$ref", "enum", "const"].iter().any(|key| out.contains_key(*key));
    (says_something).then_some(Value::Object(out))
}

fn nullable(schema: Value) -> Value {
    let null = serde_json::json!({"type": "null"});
    match schema {
        Value::Object(mut fields) => {
            if let Some(Value::Array(branches)) = fields.get_mut("anyOf") {
                if !branches.contains(&null) {
                    branches.push(null);
                }
                return Value::Object(fields);
            }
            let is_enum = fields.contains_key("enum");
            match fields.get_mut("type") {
                Some(Value::String(kind)) if !is_enum => {
                    let kinds = serde_json::json!([kind, "null"]);
                    fields.insert("type".to_owned(), kinds);
                    Value::Object(fields)
                }
                Some(Value::Array(kinds)) => {
                    if !kinds.iter().any(|kind| kind == "null") {
                        kinds.push(Value::String("null".to_owned()));
                    }
                    Value::Object(fields)
                }
                _ => serde_json::json!({"anyOf": [Value::Object(fields), null]}),
            }
        }
        other => other,
    }
}

/// Takes the nulls out of `answer` that stand for properties which `schema` lets be absent.
pub(crate) fn drop_nulls(answer: &mut Value, schema: &Value) {
    drop_nulls_in(answer, schema, schema, 0);
}

/// Deeper answers than this are left as they are.
const MAX_DEPTH: usize = 64;

fn drop_nulls_in(answer: &mut Value, schema: &Value, root: &Value, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    let schema = resolve(schema, root);
    for branch in ["anyOf", "oneOf"].iter().filter_map(|key| schema.get(*key)?.as_array()).flatten() {
        drop_nulls_in(answer, branch, root, depth + 1);
    }
    match answer {
        Value::Object(fields) => {
            let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
            let required = schema.get("required").and_then(Value::as_array);
            fields.retain(|name, value| {
                let may_be_absent = properties.contains_key(name)
                    && !required.is_some_and(|names| names.iter().any(|known| known == name));
                !(value.is_null() && may_be_absent)
            });
            for (name, value) in fields {
                if let Some(property) = properties.get(name) {
                    drop_nulls_in(value, property, root, depth + 1);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for item in items {
                    drop_nulls_in(item, schema, root, depth + 1);
                }
            }
        }
        _ => {}
    }
}

/// What a `$ref` within the same document points to; the schema itself if it is none.
pub(crate) fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|pointer| root.pointer(pointer.strip_prefix('#')?))
        .unwrap_or(schema)
}

/// The instruction that stands in for a provider's own schema support.
pub(super) fn instruction(output: &OutputFormat) -> String {
    format!(
        "Give your final answer as one JSON value and nothing else: no explanation, no code fence. \
         It must fit this JSON schema, `{}`:\n{}",
        output.name, output.schema
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strict_form_closes_requires_and_makes_nullable() {
        let schema = json!({
            "type": "object", "required": ["name"],
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "age": {"type": "integer", "format": "uint32"},
                "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}}
            },
            "$defs": {"Tag": {"type": "object", "properties": {"k": {"type": "string"}}, "required": ["k"]}}
        });
        let expected = json!({
            "type": "object", "required": ["age", "name", "tags"], "additionalProperties": false,
            "properties": {
                "name": {"type": "string"},
                "age": {"type": ["integer", "null"]},
                "tags": {"type": ["array", "null"], "items": {"$ref": "#/$defs/Tag"}}
            },
            "$defs": {"Tag": {"type": "object", "properties": {"k": {"type": "string"}}, "required": ["k"], "additionalProperties": false}}
        });
        let mut strict = strict(&schema).unwrap();
        if let Some(names) = strict["required"].as_array_mut() {
            names.sort_by_key(Value::to_string);
        }
        assert_eq!(strict, expected);
    }

    #[test]
    fn schemas_that_allow_anything_have_no_strict_form() {
        for open in [
            json!(true),
            json!({}),
            json!({"type": "object"}),
            json!({"type": "object", "properties": {"data": true}}),
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            json!({"type": ["object", "null"]}),
            json!({"type": "object", "properties": {}, "required": ["a"]}),
        ] {
            assert_eq!(strict(&open), None, "{open}");
            assert_eq!(closed(&open), None, "{open}");
        }
    }

    #[test]
    fn nulls_of_optional_properties_are_taken_out() {
        let schema = json!({
            "type": "object", "required": ["a"],
            "properties": {"a": {"type": ["string", "null"]}, "b": {"type": "string"}, "c": {"$ref": "#/$defs/C"}},
            "$defs": {"C": {"type": "array", "items": {"type": "object", "properties": {"d": {"type": "string"}}}}}
        });
        let mut answer = json!({"a": null, "b": null, "c": [{"d": null}, {"d": "x"}], "e": null});
        drop_nulls(&mut answer, &schema);
        assert_eq!(answer, json!({"a": null, "c": [{}, {"d": "x"}], "e": null}));
    }
}
