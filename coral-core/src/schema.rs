//! A check of JSON against the part of JSON Schema that model providers take for structured output.

use std::cmp::Ordering;

use serde_json::{Map, Number, Value};

use crate::error::Error;

/// A JSON schema (draft 2020-12) of the keywords that the structured outputs of model providers
/// share: `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`, `items`,
/// `minItems`, `maxItems`, `minLength`, `maxLength`, `minimum`, `maximum`, `exclusiveMinimum`,
/// `exclusiveMaximum`, `anyOf`, `allOf`, and `$ref` to a place in the same document. Annotations
/// (`title`, `description`, `default`, `examples`, `format`, …) do not constrain.
///
/// A schema with any other keyword is refused when it is compiled, so that nothing is silently
/// left unchecked.
///
/// ```
/// use coral_core::Schema;
/// use serde_json::json;
///
/// let schema = Schema::new(json!({
///     "type": "object",
///     "properties": {"score": {"type": "integer", "minimum": 0}},
///     "required": ["score"],
///     "additionalProperties": false,
/// }))?;
/// assert!(schema.problems(&json!({"score": 3})).is_empty());
/// assert_eq!(schema.problems(&json!({"score": -1})), ["/score: -1 is less than 0"]);
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Schema(Value);

const CHECKED: [&str; 17] = [
    "type",
    "enum",
    "const",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "anyOf",
    "allOf",
];

const ANNOTATIONS: [&str; 12] = [
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "examples",
    "format",
    "deprecated",
    "readOnly",
];

/// References that may follow each other before the schema counts as circular.
const MAX_DEPTH: usize = 64;

impl Schema {
    /// Compiles a schema.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), which names the place and the keyword that is not known or not
    /// well-formed.
    pub fn new(schema: Value) -> Result<Self, Error> {
        let mut problems = Vec::new();
        check_schema(&schema, &schema, "", 0, &mut problems);
        match problems.into_iter().next() {
            None => Ok(Schema(schema)),
            Some(problem) => Err(Error::invalid("output schema", problem)),
        }
    }

    /// The schema as JSON.
    pub fn as_json(&self) -> &Value {
        &self.0
    }

    /// Everything in `value` that does not fit, each with its JSON pointer; empty if it fits.
    pub fn problems(&self, value: &Value) -> Vec<String> {
        let mut problems = Vec::new();
        check(&self.0, &self.0, value, "", 0, &mut problems);
        problems
    }
}

fn check_schema(root: &Value, schema: &Value, at: &str, depth: usize, problems: &mut Vec<String>) {
    let place = if at.is_empty() { "/" } else { at };
    let map = match schema {
        Value::Bool(_) => return,
        Value::Object(map) => map,
        _ => return problems.push(format!("{place}: a schema is an object or a boolean")),
    };
    if depth > MAX_DEPTH {
        return problems.push(format!("{place}: nested too deeply"));
    }
    for (keyword, value) in map {
        let inner = format!("{at}/{keyword}");
        let mut well_formed = true;
        match keyword.as_str() {
            "properties" | "$defs" | "definitions" => match value.as_object() {
                Some(schemas) => {
                    for (name, schema) in schemas {
                        check_schema(root, schema, &format!("{inner}/{name}"), depth + 1, problems);
                    }
                }
                None => well_formed = false,
            },
            "items" | "additionalProperties" => check_schema(root, value, &inner, depth + 1, problems),
            "anyOf" | "allOf" => match value.as_array() {
                Some(schemas) => {
                    for (i, schema) in schemas.iter().enumerate() {
                        check_schema(root, schema, &format!("{inner}/{i}"), depth + 1, problems);
                    }
                }
                None => well_formed = false,
            },
            "$ref" => {
                let target = value.as_str().and_then(|pointer| resolve(root, pointer));
                if target.is_none() {
                    problems.push(format!("{inner}: {value} is not a place in this schema"));
                }
            }
            "type" => {
                let known = |name: &Value| {
                    name.as_str().is_some_and(|name| type_matches(name, &Value::Null).is_some())
                };
                well_formed = match value {
                    Value::Array(names) => names.iter().all(known),
                    name => known(name),
                };
            }
            "enum" => well_formed = value.is_array(),
            "required" => {
                well_formed = value.as_array().is_some_and(|names| names.iter().all(Value::is_string));
            }
            "minItems" | "maxItems" | "minLength" | "maxLength" => well_formed = value.is_u64(),
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                well_formed = value.is_number();
            }
            other if CHECKED.contains(&other) || ANNOTATIONS.contains(&other) => {}
            other => problems.push(format!(
                "{place}: keyword `{other}` is not supported; supported are {} and `$ref`",
                CHECKED.map(|name| format!("`{name}`")).join(", ")
            )),
        }
        if !well_formed {
            problems.push(format!("{inner}: {value} can't stand here"));
        }
    }
}

fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// Whether `value` is of the JSON type `name`; `None` if there is no such type.
fn type_matches(name: &str, value: &Value) -> Option<bool> {
    Some(match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        _ => return None,
    })
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, depth: usize, problems: &mut Vec<String>) {
    let place = if at.is_empty() { "/" } else { at };
    let map = match schema {
        Value::Bool(true) => return,
        Value::Object(map) => map,
        _ => return problems.push(format!("{place}: nothing may stand here")),
    };
    if depth > MAX_DEPTH {
        return problems.push(format!("{place}: the schema refers to itself without end"));
    }
    if let Some(target) = map.get("$ref").and_then(Value::as_str).and_then(|pointer| resolve(root, pointer)) {
        check(root, target, value, at, depth + 1, problems);
    }
    if let Some(wanted) = map.get("type") {
        let names: Vec<&str> = match wanted {
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            name => name.as_str().into_iter().collect(),
        };
        if !names.iter().any(|name| type_matches(name, value) == Some(true)) {
            return problems.push(format!("{place}: {} is not of type {}", short(value), names.join(" or ")));
        }
    }
    if let Some(options) = map.get("enum").and_then(Value::as_array)
        && !options.iter().any(|option| is_same(option, value))
    {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        problems.push(format!("{place}: {} is none of {}", short(value), options.join(", ")));
    }
    if let Some(only) = map.get("const")
        && !is_same(only, value)
    {
        problems.push(format!("{place}: {} is not {only}", short(value)));
    }
    for schema in map.get("allOf").and_then(Value::as_array).into_iter().flatten() {
        check(root, schema, value, at, depth + 1, problems);
    }
    if let Some(options) = map.get("anyOf").and_then(Value::as_array) {
        let fits = |schema: &Value| {
            let mut problems = Vec::new();
            check(root, schema, value, at, depth + 1, &mut problems);
            problems.is_empty()
        };
        if !options.iter().any(fits) {
            problems.push(format!(
                "{place}: {} fits none of the {} alternatives",
                short(value),
                options.len()
            ));
        }
    }
    match value {
        Value::Object(object) => check_object(root, map, object, at, depth, problems),
        Value::Array(items) => {
            let count = items.len() as u64;
            bound(map, "minItems", place, count, "items", problems);
            bound(map, "maxItems", place, count, "items", problems);
            if let Some(schema) = map.get("items") {
                for (i, item) in items.iter().enumerate() {
                    check(root, schema, item, &format!("{at}/{i}"), depth + 1, problems);
                }
            }
        }
        Value::String(text) => {
            let count = text.chars().count() as u64;
            bound(map, "minLength", place, count, "characters", problems);
            bound(map, "maxLength", place, count, "characters", problems);
        }
        Value::Number(number) => {
            let is = |keyword: &str, broken: fn(Ordering) -> bool| {
                let limit = map.get(keyword).and_then(Value::as_number);
                limit.is_some_and(|limit| compare(number, limit).is_some_and(broken))
            };
            let words = [
                ("minimum", is("minimum", Ordering::is_lt), "less than"),
                ("maximum", is("maximum", Ordering::is_gt), "more than"),
                ("exclusiveMinimum", is("exclusiveMinimum", Ordering::is_le), "not more than"),
                ("exclusiveMaximum", is("exclusiveMaximum", Ordering::is_ge), "not less than"),
            ];
            for (keyword, _, word) in words.iter().filter(|(_, broken, _)| *broken) {
                let limit = map.get(*keyword).unwrap_or(&Value::Null);
                problems.push(format!("{place}: {number} is {word} {limit}"));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

/// Whole numbers are compared as such, since a float has no room for the large ones.
fn compare(a: &Number, b: &Number) -> Option<Ordering> {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}

/// Whether two values are equal to JSON Schema, to which 1 and 1.0 are the same number.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare(a, b) == Some(Ordering::Equal),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let in_b = |(name, value)| b.get(name).is_some_and(|other| is_same(value, other));
            a.len() == b.len() && a.iter().all(in_b)
        }
        _ => a == b,
    }
}

fn check_object(
    root: &Value,
    schema: &Map<String, Value>,
    object: &Map<String, Value>,
    at: &str,
    depth: usize,
    problems: &mut Vec<String>,
) {
    let place = if at.is_empty() { "/" } else { at };
    for name in
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    {
        if !object.contains_key(name) {
            problems.push(format!("{place}: `{name}` is missing"));
        }
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, value) in object {
        let inner = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        match (properties.and_then(|properties| properties.get(name)), schema.get("additionalProperties")) {
            (Some(schema), _) => check(root, schema, value, &inner, depth + 1, problems),
            (None, Some(Value::Bool(false))) => problems.push(format!("{place}: `{name}` is not known here")),
            (None, Some(schema)) => check(root, schema, value, &inner, depth + 1, problems),
            (None, None) => {}
        }
    }
}

fn bound(
    schema: &Map<String, Value>,
    keyword: &str,
    at: &str,
    count: u64,
    what: &str,
    problems: &mut Vec<String>,
) {
    let Some(limit) = schema.get(keyword).and_then(Value::as_u64) else { return };
    if keyword.starts_with("min") && count < limit {
        problems.push(format!("{at}: {count} {what} are fewer than {limit}"));
    }
    if keyword.starts_with("max") && count > limit {
        problems.push(format!("{at}: {count} {what} are more than {limit}"));
    }
}

/// A value in an error message, cut where it is long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}
