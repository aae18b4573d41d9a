//! OpenAPI documents.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{notice, quotable};
use crate::offline::brief::{Brief, Entity};

pub(super) fn json(brief: &Brief) -> String {
    let mut document = document(brief);
    if let Some(fields) = document.as_object_mut() {
        fields.insert("x-made-by".into(), notice().into());
    }
    let text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text + "\n"
}

pub(super) fn yaml(brief: &Brief) -> String {
    let mut text = format!("# {}\n", notice());
    write_yaml(&document(brief), 0, &mut text);
    text
}

fn document(brief: &Brief) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for entity in &brief.entities {
        paths.insert(format!("/{}", entity.many), collection(entity));
        paths.insert(format!("/{}/{{{}_id}}", entity.many, entity.one), single(entity));
        schemas.insert(format!("New{}", entity.type_name()), schema(entity, brief, false));
        schemas.insert(entity.type_name(), schema(entity, brief, true));
    }
    schemas.insert(
        "Problem".into(),
        json!({"type": "object", "required": ["title", "status"], "properties": {
            "type": {"type": "string"}, "title": {"type": "string"},
            "status": {"type": "integer"}, "detail": {"type": "string"},
        }}),
    );
    let description = if brief.introduction.is_empty() { &brief.title } else { &brief.introduction };
    json!({
        "openapi": "3.1.1",
        "info": {"title": quotable(&brief.title), "version": "0.1.0", "description": quotable(description)},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn body(name: &str) -> Value {
    json!({"application/json": {"schema": reference(name)}})
}

fn problem(description: &str) -> Value {
    json!({"description": description, "content": {"application/problem+json": {"schema": reference("Problem")}}})
}

fn collection(entity: &Entity) -> Value {
    let name = entity.type_name();
    let list = json!({"application/json": {"schema": {"type": "array", "items": reference(&name)}}});
    json!({
        "get": {
            "operationId": format!("list{name}s"), "summary": format!("List the {}", entity.many),
            "parameters": [{"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100}}],
            "responses": {"200": {"description": format!("The {}", entity.many), "content": list}},
        },
        "post": {
            "operationId": format!("create{name}"), "summary": format!("Create a {}", entity.one),
            "requestBody": {"required": true, "content": body(&format!("New{name}"))},
            "responses": {
                "201": {"description": format!("The new {}", entity.one), "content": body(&name)},
                "422": problem("The input is not valid"),
            },
        },
    })
}

fn single(entity: &Entity) -> Value {
    let name = entity.type_name();
    let answer = json!({"description": format!("The {}", entity.one), "content": body(&name)});
    let missing = problem("There is none with this id");
    json!({
        "parameters": [{"name": format!("{}_id", entity.one), "in": "path", "required": true, "schema": {"type": "integer"}}],
        "get": {
            "operationId": format!("get{name}"), "summary": format!("Read a {}", entity.one),
            "responses": {"200": answer, "404": missing},
        },
        "put": {
            "operationId": format!("update{name}"), "summary": format!("Change a {}", entity.one),
            "requestBody": {"required": true, "content": body(&format!("New{name}"))},
            "responses": {"200": answer, "404": missing, "422": problem("The input is not valid")},
        },
        "delete": {
            "operationId": format!("delete{name}"), "summary": format!("Delete a {}", entity.one),
            "responses": {"204": {"description": "It is deleted"}, "404": missing},
        },
    })
}

fn schema(entity: &Entity, brief: &Brief, stored: bool) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for column in super::sql::columns(entity, brief) {
        let given_by_server = column.name == "id" || column.name.ends_with("_at");
        if given_by_server && !stored {
            continue;
        }
        let kind = match column.kind {
            "INTEGER" => json!({"type": "integer"}),
            "DATE" => json!({"type": "string", "format": "date"}),
            "TIMESTAMP" => json!({"type": "string", "format": "date-time"}),
            _ => json!({"type": "string"}),
        };
        if column.rule.contains("NOT NULL") || column.rule.contains("PRIMARY") {
            required.push(Value::String(column.name.clone()));
        }
        properties.insert(column.name, kind);
    }
    let mut schema = json!({"type": "object", "properties": properties});
    if let Some(fields) = schema.as_object_mut()
        && !required.is_empty()
    {
        fields.insert("required".into(), required.into());
    }
    schema
}

/// Writes JSON as YAML in block style. Scalars are written as JSON writes them, which YAML reads.
pub(super) fn write_yaml(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = if is_plain(key) { key.clone() } else { Value::String(key.clone()).to_string() };
                write_entry(&format!("{pad}{key}:"), value, indent + 2, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                write_entry(&format!("{pad}-"), item, indent + 2, out);
            }
        }
        scalar => {
            let _ = writeln!(out, "{pad}{scalar}");
        }
    }
}

fn write_entry(lead: &str, value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let _ = writeln!(out, "{lead}");
            write_yaml(value, indent, out);
        }
        Value::Array(items) if !items.is_empty() => {
            let _ = writeln!(out, "{lead}");
            write_yaml(value, indent, out);
        }
        scalar => {
            let _ = writeln!(out, "{lead} {scalar}");
        }
    }
}

fn is_plain(key: &str) -> bool {
    key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-/".contains(c))
        && !["yes", "no", "on", "off", "true", "false", "null", "y", "n"]
            .contains(&key.to_ascii_lowercase().as_str())
}
