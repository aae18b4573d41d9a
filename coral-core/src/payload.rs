//! Values that travel along a graph's edges and into its journal.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::error::Error;

/// What a step can take and give: any plain, owned, serialisable type.
///
/// Implemented for every type that qualifies; there is nothing to write. A large value is best
/// held by an [`Arc`], so that handing it on is free.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be what a step takes or gives",
    label = "not plain data",
    note = "derive `Clone`, `serde::Serialize`, `serde::Deserialize` and `schemars::JsonSchema` for it; it must own all that it holds"
)]
pub trait Data: Serialize + DeserializeOwned + JsonSchema + Clone + Send + Sync + 'static {}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned + JsonSchema + Clone + Send + Sync + 'static> Data for T {}

/// A value on its way from one step to the next, shared and never copied.
///
/// While it stays in one process the next step takes it as the type that it was made from; it
/// becomes JSON only when a journal on disk, a condition or another type asks for it.
///
/// ```
/// use coral_core::Payload;
///
/// let payload = Payload::new(vec![1u32, 2]);
/// assert_eq!(payload.get::<Vec<u32>>()?, [1, 2]);
/// assert_eq!(payload.json()?, &serde_json::json!([1, 2]));
/// assert!(payload.get::<String>().is_err());
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Payload(Arc<Inner<dyn Carried>>);

/// One allocation: the JSON form, made when it is asked for, and the value itself.
struct Inner<T: ?Sized> {
    json: OnceLock<Result<Value, String>>,
    value: T,
}

trait Carried: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn to_json(&self) -> Result<Value, String>;
}

impl<T: Serialize + Send + Sync + 'static> Carried for T {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn to_json(&self) -> Result<Value, String> {
        serde_json::to_value(self).map_err(|e| e.to_string())
    }
}

/// Stands where a payload was made from JSON.
#[derive(Serialize)]
struct Untyped;

impl Payload {
    /// Carries `value`.
    pub fn new<T: Serialize + Send + Sync + 'static>(value: T) -> Self {
        Payload(Arc::new(Inner { json: OnceLock::new(), value }))
    }

    /// Carries a JSON value.
    pub fn from_json(value: Value) -> Self {
        Payload(Arc::new(Inner { json: OnceLock::from(Ok(value)), value: Untyped }))
    }

    /// JSON `null`: what a skipped step gives.
    pub fn null() -> Self {
        Payload::from_json(Value::Null)
    }

    /// The value as a `T`.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if the value is not a `T`.
    pub fn get<T: DeserializeOwned + Clone + 'static>(&self) -> Result<T, Error> {
        if let Some(value) = self.typed::<T>() {
            return Ok(value.clone());
        }
        T::deserialize(self.json()?).map_err(|e| Error::invalid("value", e.to_string()))
    }

    /// The value where it is, if it was made from a `T` in this process.
    pub fn typed<T: 'static>(&self) -> Option<&T> {
        self.0.value.as_any().downcast_ref::<T>()
    }

    /// The value as JSON, made once.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if the type can't be JSON, such as a map whose keys are
    /// structs.
    pub fn json(&self) -> Result<&Value, Error> {
        self.0
            .json
            .get_or_init(|| self.0.value.to_json())
            .as_ref()
            .map_err(|problem| Error::invalid("value", problem.clone()))
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || matches!((self.json(), other.json()), (Ok(a), Ok(b)) if a == b)
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.json() {
            Ok(value) => write!(f, "{value}"),
            Err(error) => write!(f, "<{error}>"),
        }
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Payload::from_json)
    }
}
