//! A value that fits a JSON schema.

use std::cell::Cell;

use serde_json::{Map, Value, json};

use crate::wire::schema::resolve;

/// Deeper than this a schema gets the smallest value that its type allows.
const MAX_DEPTH: usize = 24;

/// So many values at the most, however a schema nests its lists.
const MAX_VALUES: usize = 10_000;

/// The smallest value that fits `schema`, with `text` where text is asked for.
pub(super) fn of(schema: &Value, text: &str) -> Value {
    Maker { root: schema, text, left: Cell::new(MAX_VALUES) }.make(schema, 0)
}

struct Maker<'a> {
    root: &'a Value,
    text: &'a str,
    left: Cell<usize>,
}

impl Maker<'_> {
    fn make(&self, schema: &Value, depth: usize) -> Value {
        let Some(left) = self.left.get().checked_sub(1) else { return Value::Null };
        self.left.set(left);
        let schema = resolve(schema, self.root);
        if let Some(value) = schema.get("const").or_else(|| schema.get("default")) {
            return value.clone();
        }
        if let Some(first) = schema.get("enum").and_then(|values| values.get(0)) {
            return first.clone();
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            let branches = schema.get(key).and_then(Value::as_array);
            if let Some(branch) = branches.and_then(|all| all.iter().find(|b| !is_null(b)).or(all.first())) {
                return if depth < MAX_DEPTH { self.make(branch, depth + 1) } else { Value::Null };
            }
        }
        match kind(schema) {
            "object" => self.object(schema, depth),
            "array" => self.array(schema, depth),
            "string" => self.string(schema),
            "integer" => json!(lower_bound(schema).ceil() as i64),
            "number" => json!(lower_bound(schema)),
            "boolean" => Value::Bool(false),
            _ => Value::Null,
        }
    }

    fn object(&self, schema: &Value, depth: usize) -> Value {
        let mut fields = Map::new();
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            // What may be left out is left out below the top: an offline model has nothing to say there.
            let wanted = required.contains(&name.as_str()) || depth == 0;
            if wanted && depth < MAX_DEPTH {
                fields.insert(name.clone(), self.make(property, depth + 1));
            }
        }
        Value::Object(fields)
    }

    fn array(&self, schema: &Value, depth: usize) -> Value {
        let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0).min(16);
        let item = schema.get("items").unwrap_or(&Value::Null);
        if depth >= MAX_DEPTH {
            return json!([]);
        }
        (0..least).map(|_| self.make(item, depth + 1)).collect()
    }

    fn string(&self, schema: &Value) -> Value {
        let text = match schema.get("format").and_then(Value::as_str) {
            Some("date") => "1970-01-01",
            Some("date-time") => "1970-01-01T00:00:00Z",
            Some("uri" | "url") => "https://example.invalid/",
            Some("email") => "offline@example.invalid",
            Some("uuid") => "00000000-0000-0000-0000-000000000000",
            _ => self.text,
        };
        let most = schema.get("maxLength").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let least = schema.get("minLength").and_then(Value::as_u64).unwrap_or(0).min(4_096) as usize;
        let mut text: String = text.chars().take(most.unwrap_or(usize::MAX)).collect();
        while text.chars().count() < least {
            text.push('-');
        }
        Value::String(text)
    }
}

fn is_null(schema: &Value) -> bool {
    schema.get("type").is_some_and(|kind| kind == "null")
}

fn kind(schema: &Value) -> &str {
    match schema.get("type") {
        Some(Value::String(kind)) => kind,
        Some(Value::Array(kinds)) => {
            kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or("null")
        }
        _ if schema.get("properties").is_some() => "object",
        _ if schema.get("items").is_some() => "array",
        _ => "null",
    }
}

/// The least number that the schema allows, zero if it allows that.
fn lower_bound(schema: &Value) -> f64 {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let least =
        bound("minimum").or_else(|| bound("exclusiveMinimum").map(|n| n + 1.0)).unwrap_or(0.0).max(0.0);
    bound("maximum").map_or(least, |most| least.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fit_their_schema() {
        let schema = json!({
            "type": "object", "required": ["a", "kind", "nested", "n"],
            "properties": {
                "a": {"type": "string", "maxLength": 3}, "kind": {"enum": ["x", "y"]},
                "nested": {"$ref": "#/$defs/N"}, "n": {"type": "integer", "minimum": 2},
                "maybe": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
                "list": {"type": "array", "minItems": 1, "items": {"type": "number"}}
            },
            "$defs": {"N": {"type": "object", "required": ["self"], "properties": {"self": {"type": "array", "items": {"$ref": "#/$defs/N"}}, "o": {"type": "string"}}}}
        });
        let expected =
            json!({"a": "off", "kind": "x", "nested": {"self": []}, "n": 2, "maybe": false, "list": [0.0]});
        assert_eq!(of(&schema, "offline"), expected);
    }

    #[test]
    fn a_schema_that_never_ends_does() {
        let schema = json!({"$ref": "#/$defs/N", "$defs": {"N": {"type": "object", "required": ["n"], "properties": {"n": {"$ref": "#/$defs/N"}}}}});
        assert!(of(&schema, "x").is_object());
        of(&json!({"$ref": "#"}), "x");
        let lists = json!({"type": "array", "minItems": 16, "items": {"$ref": "#"}});
        assert!(of(&lists, "x").is_array());
    }
}
