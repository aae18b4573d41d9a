//! What all decoders share: reading JSON of which only a part is known.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::failure::Failure;

/// Text that stays where it is, unless it has escapes. serde borrows into a `Cow` that stands by itself, but not into
/// one within an `Option`.
#[derive(Debug)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<Text<'_>> for String {
    fn from(text: Text<'_>) -> String {
        text.0.into_owned()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Either)
    }
}

/// Reads `text` as `what`.
pub(super) fn parse<'a, T: Deserialize<'a>>(text: &'a str, what: &str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|error| unexpected(what, &error))
}

/// Fills `what`, which begins empty, from a whole text.
pub(super) fn fill<'a, R, T>(mut from: serde_json::Deserializer<R>, what: &str) -> Result<T, Failure>
where
    R: serde_json::de::Read<'a>,
    T: ByField<'a> + Default,
{
    let mut filled = T::default();
    let read = Fill(&mut filled).deserialize(&mut from).and_then(|()| from.end());
    read.map_err(|error| unexpected(what, &error)).map(|()| filled)
}

/// Reads `bytes` as `what`.
pub(super) fn parse_slice<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| unexpected(what, &error))
}

fn unexpected(what: &str, error: &serde_json::Error) -> Failure {
    Failure::malformed(format!("expected {what}: {error}"))
}

/// Reads `text` as `what`, an event with a `type`. `None` if it is of a type that is not `known`: such an event may
/// look as it likes.
pub(super) fn parse_event<'a, T: Deserialize<'a>>(
    text: &'a str,
    what: &str,
    known: &[&str],
) -> Result<Option<T>, Failure> {
    #[derive(Deserialize)]
    struct Kind<'a> {
        #[serde(rename = "type", borrow)]
        kind: Text<'a>,
    }
    match serde_json::from_str(text) {
        Ok(event) => Ok(Some(event)),
        Err(error) => match serde_json::from_str::<Kind<'_>>(text) {
            Ok(Kind { kind }) if !known.contains(&&*kind) => Ok(None),
            _ => Err(unexpected(what, &error)),
        },
    }
}

/// A list, or `null` for an empty one.
pub(super) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// A count of tokens. What is no count is none: nothing that a provider says of its usage makes an answer unreadable.
pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(number(&Value::deserialize(deserializer)?))
}

/// Counts that stand together. What has another form says nothing.
pub(super) fn details<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let said = Value::deserialize(deserializer)?;
    Ok(if said.is_object() { serde_json::from_value(said).ok() } else { None })
}

/// What is read field by field to where it is kept.
///
/// What serde derives gives each value back from level to level, and an event of a stream is so small that moving its
/// parts about takes longer than reading them.
pub(super) trait ByField<'de> {
    /// Reads the field of this name.
    fn field<A: MapAccess<'de>>(&mut self, name: &str, value: &mut A) -> Result<(), A::Error>;
}

/// Fills what it holds from an object.
pub(super) struct Fill<'t, T>(pub(super) &'t mut T);

impl<'de, T: ByField<'de>> DeserializeSeed<'de> for Fill<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: ByField<'de>> Visitor<'de> for Fill<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Text<'de>>()? {
            self.0.field(&name, &mut map)?;
        }
        Ok(())
    }
}

/// Fills what it holds from an object, and says whether there was one, and not a `null`.
pub(super) struct FillIfThere<'t, T>(pub(super) &'t mut T);

impl<'de, T: ByField<'de>> DeserializeSeed<'de> for FillIfThere<'_, T> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, T: ByField<'de>> Visitor<'de> for FillIfThere<'_, T> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object, or null")
    }

    fn visit_none<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        Fill(self.0).deserialize(deserializer).map(|()| true)
    }
}

/// Passes over a field's value.
pub(super) fn skip<'de, A: MapAccess<'de>>(value: &mut A) -> Result<(), A::Error> {
    value.next_value::<IgnoredAny>().map(drop)
}

/// A number of tokens, which some servers write with a fraction.
pub(super) fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64))
}
