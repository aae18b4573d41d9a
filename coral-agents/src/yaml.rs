//! YAML as a tree that knows its lines.
//!
//! The YAML crate deserialises straight into a type and ends at the first error. A file that
//! people write deserves all of its problems in one go, with lines; so the text becomes a tree
//! of [`Node`]s first, and typed values are read from the tree.

mod de;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
#[cfg(test)]
use serde_json::Value;
use serde_saphyr::Spanned;

use crate::problem::Problem;

/// The largest text that is looked at.
pub(crate) const MAX_BYTES: usize = 4 << 20;

/// A value of a YAML text and the line that it begins on, from 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) yaml: Yaml,
}

/// What a [`Node`] holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Yaml {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a mapping and its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) line: usize,
    pub(crate) key: String,
    pub(crate) value: Node,
}

/// Reads `text`, whose first line is line `first_line` of its file.
pub(crate) fn parse(text: &str, first_line: usize) -> Result<Node, Problem> {
    if text.len() > MAX_BYTES {
        return Err(Problem::new(
            first_line,
            format!("the text has {} bytes, and {MAX_BYTES} is the most that is read", text.len()),
        ));
    }
    let options = serde_saphyr::options! {
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        with_snippet: false,
        budget: serde_saphyr::budget! { max_nodes: 100_000, max_depth: 48, max_documents: 1 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 20_000 },
    };
    let mut node: Node = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().and_then(|at| usize::try_from(at.line()).ok()).filter(|line| *line > 0);
        Problem::new(first_line + line.unwrap_or(1) - 1, one_line(&error))
    })?;
    node.shift(first_line - 1);
    Ok(node)
}

/// The message of a YAML error without its place and on one line.
fn one_line(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().render();
    let text = text.lines().next().unwrap_or_default().trim();
    let text = match text.strip_prefix("error: ") {
        Some(rest) => rest,
        None => text,
    };
    let text = match text.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((place, rest)) if place.chars().all(|c| c.is_ascii_digit() || " column".contains(c)) => rest,
        _ => text,
    };
    // Advice on the crate's own options is of no use to the writer of a file.
    let text = text.split_once(", set DuplicateKeyPolicy").map_or(text, |(message, _)| message);
    match text.rsplit_once(" at line ") {
        Some((message, place)) if place.starts_with(|c: char| c.is_ascii_digit()) => message.to_owned(),
        _ => text.to_owned(),
    }
}

impl Node {
    fn shift(&mut self, lines: usize) {
        if lines == 0 {
            return;
        }
        self.line += lines;
        match &mut self.yaml {
            Yaml::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Yaml::Map(entries) => entries.iter_mut().for_each(|entry| {
                entry.line += lines;
                entry.value.shift(lines);
            }),
            _ => {}
        }
    }

    /// The entry of a mapping.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The value of a mapping's key.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entries of a mapping; none if it is something else.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.yaml {
            Yaml::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.yaml {
            Yaml::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The line of the first value in the tree that is this text.
    pub(crate) fn line_of_text(&self, text: &str) -> Option<usize> {
        match &self.yaml {
            Yaml::Text(found) => (found == text).then_some(self.line),
            Yaml::List(items) => items.iter().find_map(|item| item.line_of_text(text)),
            Yaml::Map(entries) => entries.iter().find_map(|entry| entry.value.line_of_text(text)),
            _ => None,
        }
    }

    /// What kind of value it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.yaml {
            Yaml::Null => "nothing",
            Yaml::Bool(_) => "true or false",
            Yaml::Int(_) | Yaml::Uint(_) | Yaml::Float(_) => "a number",
            Yaml::Text(_) => "text",
            Yaml::List(_) => "a list",
            Yaml::Map(_) => "a mapping",
        }
    }

    /// The value without lines.
    #[cfg(test)]
    pub(crate) fn to_json(&self) -> Value {
        match &self.yaml {
            Yaml::Null => Value::Null,
            Yaml::Bool(value) => Value::from(*value),
            Yaml::Int(value) => Value::from(*value),
            Yaml::Uint(value) => Value::from(*value),
            Yaml::Float(value) => Value::from(*value),
            Yaml::Text(text) => Value::from(text.as_str()),
            Yaml::List(items) => items.iter().map(Node::to_json).collect(),
            Yaml::Map(entries) => {
                entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect()
            }
        }
    }

    /// Reads a typed value; the problem has the line of the value that does not fit.
    pub(crate) fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Problem> {
        de::read(self)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Yaml>::deserialize(deserializer)?;
        Ok(Node { line: usize::try_from(referenced.line()).unwrap_or(0).max(1), yaml: value })
    }
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Yaml;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_none<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
        Ok(Yaml::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
        Ok(Yaml::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
        Ok(i64::try_from(value).map_or(Yaml::Uint(value), Yaml::Int))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Yaml, E> {
        Ok(Yaml::Text(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Yaml, E> {
        Ok(Yaml::Text(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Yaml, E> {
        Ok(Yaml::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Yaml, E> {
        Ok(Yaml::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Yaml, E> {
        Ok(Yaml::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Yaml, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Yaml::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Yaml, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let line = usize::try_from(key.referenced.line()).unwrap_or(0).max(1);
            entries.push(Entry { line, key: key.value, value: map.next_value()? });
        }
        Ok(Yaml::Map(entries))
    }
}

#[cfg(test)]
mod tests;
