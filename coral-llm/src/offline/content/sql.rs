//! Tables and rows, in the SQL that PostgreSQL and SQLite share.

use std::fmt::Write as _;

use super::{notice, quotable};
use crate::offline::brief::{Brief, Entity};

pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) rule: String,
}

/// The columns of an entity's table: a key, what the brief says it has, what it belongs to, and when it changed.
pub(super) fn columns(entity: &Entity, brief: &Brief) -> Vec<Column> {
    let column = |name: &str, kind, rule: &str| Column { name: name.to_owned(), kind, rule: rule.to_owned() };
    let mut columns = vec![column("id", "INTEGER", "PRIMARY KEY")];
    if entity.fields.is_empty() {
        columns.push(column("name", "TEXT", "NOT NULL"));
    }
    for field in &entity.fields {
        let kind = if field.ends_with("date") || field == "due" { "DATE" } else { "TEXT" };
        let rule = if ["title", "name"].contains(&field.as_str()) { "NOT NULL" } else { "" };
        columns.push(column(&column_name(field), kind, rule));
    }
    // The first thing is what the others group, own or describe.
    if let Some((root, others)) = brief.entities.split_first()
        && root == entity
    {
        for other in others {
            columns.push(Column {
                name: format!("{}_id", other.one),
                kind: "INTEGER",
                rule: format!("REFERENCES {} (id)", table_name(other)),
            });
        }
    }
    columns.push(column("created_at", "TIMESTAMP", "NOT NULL DEFAULT CURRENT_TIMESTAMP"));
    columns.push(column("updated_at", "TIMESTAMP", "NOT NULL DEFAULT CURRENT_TIMESTAMP"));
    let mut seen: Vec<String> = Vec::new();
    columns.retain(|column| {
        let new = !seen.contains(&column.name);
        seen.push(column.name.clone());
        new
    });
    columns
}

/// Words that SQL keeps for itself.
const RESERVED: [&str; 28] = [
    "all",
    "and",
    "any",
    "as",
    "asc",
    "case",
    "check",
    "column",
    "default",
    "desc",
    "else",
    "end",
    "for",
    "from",
    "group",
    "index",
    "limit",
    "not",
    "order",
    "or",
    "primary",
    "references",
    "table",
    "to",
    "user",
    "using",
    "when",
    "where",
];

fn column_name(field: &str) -> String {
    if RESERVED.contains(&field) { format!("{field}_value") } else { field.to_owned() }
}

/// The name of a table: plural, which no reserved word is.
pub(super) fn table_name(entity: &Entity) -> String {
    entity.many.clone()
}

pub(super) fn schema(brief: &Brief) -> String {
    let mut text = format!("-- {}\n-- Project: {}\n\n", notice(), quotable(&brief.title));
    // What is referred to comes before what refers to it.
    for entity in brief.entities.iter().rev() {
        let _ = writeln!(text, "CREATE TABLE {} (", table_name(entity));
        let columns: Vec<String> = columns(entity, brief)
            .iter()
            .map(|column| {
                format!("    {} {} {}", column.name, column.kind, column.rule).trim_end().to_owned()
            })
            .collect();
        text.push_str(&columns.join(",\n"));
        text.push_str("\n);\n\n");
    }
    if let Some((root, others)) = brief.entities.split_first() {
        for other in others {
            let table = table_name(root);
            let _ = writeln!(text, "CREATE INDEX {table}_by_{0} ON {table} ({0}_id);", other.one);
        }
    }
    text
}

pub(super) fn seeds(brief: &Brief) -> String {
    let mut text = format!("-- {}\n-- Rows for development, not for production.\n\n", notice());
    for entity in brief.entities.iter().rev() {
        let columns: Vec<Column> =
            columns(entity, brief).into_iter().filter(|column| !column.name.ends_with("_at")).collect();
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        for n in 1..=2 {
            let values: Vec<String> = columns
                .iter()
                .map(|column| match column.kind {
                    "INTEGER" => n.to_string(),
                    "DATE" => format!("'2030-01-0{n}'"),
                    _ => format!("'{} {} {n}'", entity.one, column.name.replace('_', " ")),
                })
                .collect();
            let _ = writeln!(
                text,
                "INSERT INTO {} ({}) VALUES ({});",
                table_name(entity),
                names.join(", "),
                values.join(", ")
            );
        }
    }
    text
}
