//! Typed values from a [`Node`] tree.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};
use serde::forward_to_deserialize_any;

use super::{Entry, Node, Yaml};
use crate::problem::{Problem, hint};

/// A message that gets the line of the innermost value it passes.
#[derive(Debug)]
struct Misfit {
    line: Option<usize>,
    message: String,
}

impl Misfit {
    fn at(mut self, line: usize) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Misfit { line: None, message: message.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found {}", Found(found)))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let near = hint(field, expected.iter().copied());
        let known = if near.is_empty() && !expected.is_empty() {
            format!("; known keys are {}", Names(expected))
        } else {
            near
        };
        Self::custom(format_args!("unknown key `{field}`{known}"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!("expected one of {}, found `{variant}`", Names(expected)))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format_args!("key `{field}` is missing"))
    }
}

struct Names(&'static [&'static str]);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            write!(f, "{}`{name}`", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

struct Found<'a>(Unexpected<'a>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Bool(value) => write!(f, "`{value}`, which needs quotes to be text"),
            Unexpected::Signed(value) => write!(f, "the number `{value}`"),
            Unexpected::Unsigned(value) => write!(f, "the number `{value}`"),
            Unexpected::Float(value) => write!(f, "the number `{value}`"),
            Unexpected::Str(value) => {
                let end = value.char_indices().nth(40).map_or(value.len(), |(at, _)| at);
                write!(f, "`{}`", value.get(..end).unwrap_or_default().escape_debug())
            }
            Unexpected::Unit | Unexpected::Option => f.write_str("nothing"),
            Unexpected::Seq => f.write_str("a list"),
            Unexpected::Map => f.write_str("a mapping"),
            ref other => other.fmt(f),
        }
    }
}

pub(super) fn read<T: for<'de> Deserialize<'de>>(node: &Node<'_>) -> Result<T, Problem> {
    T::deserialize(At(node)).map_err(|misfit| Problem::new(misfit.line.unwrap_or(node.line), misfit.message))
}

/// Reads from a node.
struct At<'a>(&'a Node<'a>);

impl<'de> Deserializer<'de> for At<'_> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let line = self.0.line;
        match &self.0.yaml {
            Yaml::Null => visitor.visit_unit(),
            Yaml::Bool(value) => visitor.visit_bool(*value),
            Yaml::Int(value) => visitor.visit_i64(*value),
            Yaml::Uint(value) => visitor.visit_u64(*value),
            Yaml::Float(value) => visitor.visit_f64(*value),
            Yaml::Text(text) => visitor.visit_str(text),
            Yaml::List(items) => visitor.visit_seq(Items(items.iter())),
            Yaml::Map(entries) => visitor.visit_map(Entries::of(entries)),
        }
        .map_err(|misfit| misfit.at(line))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0.yaml {
            Yaml::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let line = self.0.line;
        match &self.0.yaml {
            Yaml::Text(text) => {
                let text: StrDeserializer<'_, Misfit> = text.as_ref().into_deserializer();
                visitor.visit_enum(text)
            }
            Yaml::Map(entries) if entries.len() == 1 => {
                visitor.visit_enum(MapAccessDeserializer::new(Entries::of(entries)))
            }
            _ => Err(de::Error::custom(format_args!("expected a name, found {}", self.0.kind()))),
        }
        .map_err(|misfit| misfit.at(line))
    }

    /// A null where a mapping or a list belongs is an empty one: `handoff:` with nothing behind it.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0.yaml {
            Yaml::Null => visitor.visit_seq(Items([].iter())),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0.yaml {
            Yaml::Null => visitor.visit_map(Entries::of(&[])),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let line = self.0.line;
        match self.0.yaml {
            Yaml::Null => visitor.visit_map(Entries::of(&[])),
            // A derived struct would read a list by position, which no file means.
            Yaml::List(_) => Err(de::Error::invalid_type(Unexpected::Seq, &"a mapping")),
            _ => return self.deserialize_any(visitor),
        }
        .map_err(|misfit: Misfit| misfit.at(line))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Items<'a>(std::slice::Iter<'a, Node<'a>>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        self.0.next().map(|node| seed.deserialize(At(node))).transpose()
    }
}

struct Entries<'a> {
    rest: std::slice::Iter<'a, Entry<'a>>,
    current: Option<&'a Entry<'a>>,
}

impl<'a> Entries<'a> {
    fn of(entries: &'a [Entry<'a>]) -> Self {
        Entries { rest: entries.iter(), current: None }
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        self.current = self.rest.next();
        self.current
            .map(|entry| {
                let key: StrDeserializer<'_, Misfit> = entry.key.as_ref().into_deserializer();
                seed.deserialize(key).map_err(|misfit| misfit.at(entry.line))
            })
            .transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        match self.current {
            Some(entry) => seed.deserialize(At(&entry.value)).map_err(|misfit| {
                let line = misfit.line.unwrap_or(entry.line);
                Misfit { message: format!("`{}`: {}", entry.key, misfit.message), line: Some(line) }
            }),
            None => Err(de::Error::custom("a value was asked for before its key")),
        }
    }
}
