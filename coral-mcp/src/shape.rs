//! A server's JSON schemas, put to the test.

use boon::{Compiler, SchemaIndex, Schemas, UrlLoader};
use serde_json::Value;

/// Where a schema stands that has no place of its own.
const PLACE: &str = "mcp://schema";

/// A compiled schema. What it refers to outside of itself is never fetched: a server chose it.
pub(crate) struct Shape {
    schemas: Schemas,
    index: SchemaIndex,
}

struct Nothing;

impl UrlLoader for Nothing {
    fn load(&self, url: &str) -> Result<Value, Box<dyn std::error::Error>> {
        Err(format!("`{url}` is outside of the schema, and is not fetched").into())
    }
}

impl Shape {
    /// # Errors
    /// Why it is not a schema.
    pub(crate) fn new(schema: &Value) -> Result<Self, String> {
        let mut schemas = Schemas::new();
        let mut compiler = Compiler::new();
        compiler.use_loader(Box::new(Nothing));
        compiler.add_resource(PLACE, schema.clone()).map_err(|error| error.to_string())?;
        let index = compiler.compile(PLACE, &mut schemas).map_err(|error| error.to_string())?;
        Ok(Shape { schemas, index })
    }

    /// What does not fit, if something does not.
    pub(crate) fn problem(&self, value: &Value) -> Option<String> {
        let error = self.schemas.validate(value, self.index).err()?;
        let text = error.to_string();
        // The first line names the schema, which is ours.
        let problems: Vec<&str> = text.lines().skip(1).map(str::trim).take(3).collect();
        let text = if problems.is_empty() { text } else { problems.join("; ") };
        Some(crate::text::clean(&text, 500))
    }
}

/// `value` with the defaults of the properties that it lacks.
pub(crate) fn with_defaults(schema: &Value, mut value: Value) -> Value {
    let properties = schema.get("properties").and_then(Value::as_object);
    if let (Some(properties), Value::Object(map)) = (properties, &mut value) {
        for (name, property) in properties {
            if let (false, Some(default)) = (map.contains_key(name), property.get("default")) {
                map.insert(name.clone(), default.clone());
            }
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_does_not_fit_is_named_and_nothing_is_fetched() {
        let shape = Shape::new(&json!({
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0}},
            "required": ["n"],
        }))
        .unwrap();
        assert_eq!(shape.problem(&json!({"n": 1})), None);
        assert!(shape.problem(&json!({"n": -1})).unwrap().contains("/n"));
        assert!(shape.problem(&json!({})).unwrap().contains('n'));
        for place in ["http://127.0.0.1:1/schema.json", "file:///etc/passwd"] {
            let error = Shape::new(&json!({"$ref": place})).err().unwrap();
            assert!(!error.is_empty());
        }
    }

    #[test]
    fn defaults_fill_what_is_missing_and_nothing_else() {
        let schema = json!({"properties": {"a": {"default": 1}, "b": {"default": "x"}, "c": {}}});
        assert_eq!(with_defaults(&schema, json!({"b": "y"})), json!({"a": 1, "b": "y"}));
        assert_eq!(with_defaults(&schema, json!([])), json!([]));
    }

    proptest! {
        #[test]
        fn no_schema_and_no_value_is_too_much(schema in crate::results::tests::any_json(), value in crate::results::tests::any_json()) {
            if let Ok(shape) = Shape::new(&schema) {
                let _ = shape.problem(&value);
            }
            let _ = with_defaults(&schema, value);
        }
    }
}
