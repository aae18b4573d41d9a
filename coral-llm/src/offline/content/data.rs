//! Settings, tables and other data.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{notice, openapi, quotable, slug};
use crate::offline::brief::{Brief, Entity, Point};
use crate::offline::prompt::Wanted;

fn points(points: &[Point]) -> Value {
    points.iter().map(|point| json!({"id": point.id, "text": quotable(&point.text)})).collect()
}

fn facts(wanted: &Wanted, brief: &Brief) -> Value {
    json!({
        "project": quotable(&brief.title),
        "deliverable": wanted.kind,
        "description": quotable(&wanted.description),
        "requirements": points(&brief.requirements),
        "quality": points(&brief.quality),
        "constraints": points(&brief.constraints),
        "entities": brief.entities.iter().map(|entity| {
            json!({"name": entity.one, "fields": entity.fields})
        }).collect::<Vec<_>>(),
    })
}

pub(super) fn yaml(wanted: &Wanted, brief: &Brief) -> String {
    let mut text = format!("# {}\n", notice());
    openapi::write_yaml(&facts(wanted, brief), 0, &mut text);
    text
}

pub(super) fn json(wanted: &Wanted, brief: &Brief) -> String {
    pretty(&with_notice("made_by", facts(wanted, brief)))
}

pub(super) fn json_schema(brief: &Brief) -> String {
    let definition = |entity: &Entity| {
        let mut properties = Map::new();
        for column in super::sql::columns(entity, brief) {
            let kind = if column.kind == "INTEGER" { "integer" } else { "string" };
            properties.insert(column.name, json!({"type": kind}));
        }
        (entity.type_name(), json!({"type": "object", "properties": properties, "required": ["id"]}))
    };
    let definitions: Map<String, Value> = brief.entities.iter().map(definition).collect();
    pretty(&with_notice(
        "$comment",
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": quotable(&brief.title),
            "$defs": definitions,
        }),
    ))
}

fn with_notice(key: &str, mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.insert(key.to_owned(), notice().into());
    }
    value
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

pub(super) fn toml(wanted: &Wanted, brief: &Brief) -> String {
    let mut text = format!(
        "# {}\n\nname = \"{}\"\ndeliverable = \"{}\"\n",
        notice(),
        slug(&brief.title),
        quotable(&wanted.kind)
    );
    for point in brief.requirements.iter().chain(&brief.quality).chain(&brief.constraints) {
        let _ = write!(text, "\n[[points]]\nid = \"{}\"\ntext = \"{}\"\n", point.id, quotable(&point.text));
    }
    text
}

pub(super) fn csv(wanted: &Wanted, brief: &Brief) -> String {
    let mut text = format!("id,text\nnote,\"{} ({})\"\n", notice(), quotable(&wanted.kind));
    for point in brief.requirements.iter().chain(&brief.quality) {
        let _ = writeln!(text, "{},\"{}\"", point.id, quotable(&point.text));
    }
    text
}

pub(super) fn env(brief: &Brief) -> String {
    let name = slug(&brief.title);
    format!("# {}\nAPP_NAME={name}\nDATABASE_URL=postgres://{name}@localhost/{name}\nPORT=8080\n", notice())
}

pub(super) fn terraform(wanted: &Wanted, brief: &Brief) -> String {
    format!(
        "# {}\n# {}\n\nterraform {{\n  required_version = \">= 1.6\"\n}}\n\nvariable \"name\" {{\n  type        = string\n  default     = \"{}\"\n  description = \"{}\"\n}}\n",
        notice(),
        quotable(&wanted.description),
        slug(&brief.title),
        quotable(&brief.title)
    )
}

pub(super) fn plain(wanted: &Wanted, brief: &Brief) -> String {
    let mut text =
        format!("# {}\n# {}: {}\n", notice(), quotable(&brief.title), quotable(&wanted.description));
    for point in brief.requirements.iter().chain(&brief.quality).chain(&brief.constraints) {
        let _ = writeln!(text, "# {} {}", point.id, quotable(&point.text));
    }
    text
}
