//! YAML as a tree that knows its lines.
//!
//! A deserialiser ends at the first value that does not fit. A file that people write deserves
//! all of its problems in one go, with lines; so the parser's events become a tree of [`Node`]s
//! first, and typed values are read from the tree.

mod de;
mod everyday;

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, Span, Tag};
use serde::de::Deserialize;
#[cfg(test)]
use serde_json::Value;

use crate::problem::Problem;

/// The largest text that is looked at.
pub(crate) const MAX_BYTES: usize = 4 << 20;

/// The most values that a text may have, those that aliases repeat counted each time.
const MAX_NODES: usize = 100_000;

/// The most keys that a mapping may have.
const MAX_KEYS: usize = 2_000;

/// How deep values may be nested.
const MAX_DEPTH: usize = 48;

/// A value of a YAML text and the line that it begins on, from 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node<'a> {
    pub(crate) line: usize,
    pub(crate) yaml: Yaml<'a>,
}

/// What a [`Node`] holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Yaml<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    Map(Vec<Entry<'a>>),
}

/// A key of a mapping and its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry<'a> {
    pub(crate) line: usize,
    pub(crate) key: Cow<'a, str>,
    pub(crate) value: Node<'a>,
}

/// Reads `text`, whose first line is line `first_line` of its file.
pub(crate) fn parse(text: &str, first_line: usize) -> Result<Node<'_>, Problem> {
    if text.len() > MAX_BYTES {
        return Err(Problem::new(
            first_line,
            format!("the text has {} bytes, and {MAX_BYTES} is the most that is read", text.len()),
        ));
    }
    match everyday::read(text, first_line) {
        Some(node) => Ok(node),
        None => parse_in_full(text, first_line),
    }
}

fn parse_in_full(text: &str, first_line: usize) -> Result<Node<'_>, Problem> {
    let options = granit_parser::options! {
        disallow_directives: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    Builder::new(first_line).build(text, options)
}

/// Makes a tree of a parser's events.
struct Builder<'a> {
    first_line: usize,
    open: Vec<Open<'a>>,
    anchors: HashMap<usize, Node<'a>>,
    nodes: usize,
    root: Option<Node<'a>>,
}

/// A list or a mapping that is not complete yet.
struct Open<'a> {
    line: usize,
    anchor: usize,
    kind: OpenKind<'a>,
}

enum OpenKind<'a> {
    List(Vec<Node<'a>>),
    Map(Vec<Entry<'a>>, Option<(usize, Cow<'a, str>)>),
}

impl<'a> Builder<'a> {
    fn new(first_line: usize) -> Self {
        Builder { first_line, open: Vec::new(), anchors: HashMap::new(), nodes: 0, root: None }
    }

    fn build(mut self, text: &'a str, options: Options) -> Result<Node<'a>, Problem> {
        for event in Parser::new_from_str_with_options(text, options) {
            let (event, span) = event.map_err(|error| self.problem(error.marker().line(), error.info()))?;
            self.take(event, &span)?;
        }
        Ok(self.root.unwrap_or(Node { line: self.first_line, yaml: Yaml::Null }))
    }

    /// A problem on a line of the text.
    fn problem(&self, line: usize, message: impl Into<String>) -> Problem {
        Problem::new(self.first_line + line.max(1) - 1, message)
    }

    fn take(&mut self, event: Event<'a>, span: &Span) -> Result<(), Problem> {
        let at = span.start.line();
        let line = self.first_line + at.max(1) - 1;
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(self.problem(at, "a second document begins here, and only one is read"))
            }
            Event::Scalar(text, style, anchor, tag) => {
                let yaml = match known(tag.as_deref()) {
                    Ok(as_text) => scalar(text, style, as_text),
                    Err(tag) => return Err(self.problem(at, tag)),
                };
                self.add(Node { line, yaml }, anchor, at)
            }
            Event::SequenceStart(_, anchor, tag) => {
                known(tag.as_deref()).map_err(|tag| self.problem(at, tag))?;
                self.open.push(Open { line, anchor, kind: OpenKind::List(Vec::new()) });
                Ok(())
            }
            Event::MappingStart(_, anchor, tag) => {
                known(tag.as_deref()).map_err(|tag| self.problem(at, tag))?;
                self.open.push(Open { line, anchor, kind: OpenKind::Map(Vec::new(), None) });
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { line, anchor, kind }) = self.open.pop() else { return Ok(()) };
                let yaml = match kind {
                    OpenKind::List(items) => Yaml::List(items),
                    OpenKind::Map(entries, _) => Yaml::Map(entries),
                };
                self.add(Node { line, yaml }, anchor, at)
            }
            Event::Alias(anchor) => {
                let Some(mut node) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.problem(at, "the alias repeats something that it is part of"));
                };
                self.nodes += node.count();
                node.line = line;
                self.add(node, 0, at)
            }
            _ => Ok(()),
        }
    }

    /// Puts a complete value where it belongs.
    fn add(&mut self, node: Node<'a>, anchor: usize, at: usize) -> Result<(), Problem> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(self.problem(at, format!("there are more than {MAX_NODES} values")));
        }
        if anchor != 0 {
            self.nodes += node.count();
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map(entries, key)) => match key.take() {
                Some((line, name)) => entries.push(Entry { line, key: name, value: node }),
                None => {
                    let Some(name) = node.into_key() else {
                        return Err(self.problem(at, "a key must be text"));
                    };
                    if let Some(first) = entries.iter().find(|entry| entry.key == name) {
                        let message = format!("key `{name}` stands on line {} too", first.line);
                        return Err(self.problem(at, message));
                    }
                    if entries.len() == MAX_KEYS {
                        return Err(self.problem(at, format!("the mapping has more than {MAX_KEYS} keys")));
                    }
                    *key = Some((self.first_line + at.max(1) - 1, name));
                }
            },
        }
        Ok(())
    }
}

/// Whether a tag makes a value text; an error if the tag means nothing here.
fn known(tag: Option<&Tag>) -> Result<bool, String> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema_tag("str") => Ok(true),
        Some(tag) if tag.is_yaml_core_schema() => Ok(false),
        Some(tag) => Err(format!("the tag `{}` means nothing here", tag.original())),
    }
}

/// A scalar by the core schema of YAML 1.2, but for numbers with leading zeros, which are text.
fn scalar(text: Cow<'_, str>, style: ScalarStyle, as_text: bool) -> Yaml<'_> {
    if as_text || style != ScalarStyle::Plain {
        return Yaml::Text(text);
    }
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => return Yaml::Null,
        "true" | "True" | "TRUE" => return Yaml::Bool(true),
        "false" | "False" | "FALSE" => return Yaml::Bool(false),
        _ => {}
    }
    number(&text).unwrap_or(Yaml::Text(text))
}

fn number(text: &str) -> Option<Yaml<'static>> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).ok().map(Yaml::Int);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return i64::from_str_radix(octal, 8).ok().map(Yaml::Int);
    }
    let leading_zero = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
    if leading_zero || !digits.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) {
        return None;
    }
    if let Ok(value) = text.parse() {
        return Some(Yaml::Int(value));
    }
    if let Ok(value) = text.parse() {
        return Some(Yaml::Uint(value));
    }
    text.parse().ok().filter(|value: &f64| value.is_finite()).map(Yaml::Float)
}

impl<'a> Node<'a> {
    /// How many values it has below it.
    fn count(&self) -> usize {
        match &self.yaml {
            Yaml::List(items) => items.iter().map(|item| 1 + item.count()).sum(),
            Yaml::Map(entries) => entries.iter().map(|entry| 2 + entry.value.count()).sum(),
            _ => 0,
        }
    }

    /// The text of a scalar that is a key.
    fn into_key(self) -> Option<Cow<'a, str>> {
        match self.yaml {
            Yaml::Text(text) => Some(text),
            Yaml::Null => Some(Cow::Borrowed("")),
            Yaml::Bool(value) => Some(value.to_string().into()),
            Yaml::Int(value) => Some(value.to_string().into()),
            Yaml::Uint(value) => Some(value.to_string().into()),
            Yaml::Float(value) => Some(value.to_string().into()),
            Yaml::List(_) | Yaml::Map(_) => None,
        }
    }

    /// The same, with texts of its own.
    pub(crate) fn into_owned(self) -> Node<'static> {
        let yaml = match self.yaml {
            Yaml::Null => Yaml::Null,
            Yaml::Bool(value) => Yaml::Bool(value),
            Yaml::Int(value) => Yaml::Int(value),
            Yaml::Uint(value) => Yaml::Uint(value),
            Yaml::Float(value) => Yaml::Float(value),
            Yaml::Text(text) => Yaml::Text(Cow::Owned(text.into_owned())),
            Yaml::List(items) => Yaml::List(items.into_iter().map(Node::into_owned).collect()),
            Yaml::Map(entries) => Yaml::Map(
                entries
                    .into_iter()
                    .map(|Entry { line, key, value }| Entry {
                        line,
                        key: Cow::Owned(key.into_owned()),
                        value: value.into_owned(),
                    })
                    .collect(),
            ),
        };
        Node { line: self.line, yaml }
    }

    /// The entry of a mapping.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry<'a>> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The value of a mapping's key.
    pub(crate) fn get(&self, key: &str) -> Option<&Node<'a>> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entries of a mapping; none if it is something else.
    pub(crate) fn entries(&self) -> &[Entry<'a>] {
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
            Yaml::Text(text) => Value::from(text.as_ref()),
            Yaml::List(items) => items.iter().map(Node::to_json).collect(),
            Yaml::Map(entries) => {
                entries.iter().map(|entry| (entry.key.clone().into_owned(), entry.value.to_json())).collect()
            }
        }
    }

    /// Reads a typed value; the problem has the line of the value that does not fit.
    pub(crate) fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Problem> {
        de::read(self)
    }
}

#[cfg(test)]
mod tests;
