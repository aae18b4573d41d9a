//! The providers that are known by name: data, not code.

use std::sync::LazyLock;

use coral_core::Error;
use serde::{Deserialize, Serialize};

use crate::dialect::Dialect;
use crate::wire::Protocol;

/// A provider as data: where it is, what it speaks, where its key is found.
///
/// ```
/// let groq = coral_llm::Vendor::named("groq")?;
/// assert_eq!(groq.key_env, ["GROQ_API_KEY"]);
/// assert!(coral_llm::Vendor::named("grok").is_err());
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vendor {
    /// The name, as in `groq/some-model`.
    pub id: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it is.
    pub base_url: String,
    /// The environment variable that says where it is instead.
    #[serde(default)]
    pub base_url_env: Option<String>,
    /// The environment variables that may hold its key, the first one set counts. Empty if it needs none.
    #[serde(default)]
    pub key_env: Vec<String>,
    /// Whether it can be used without its key.
    #[serde(default)]
    pub key_optional: bool,
    /// The model where none is named.
    #[serde(default)]
    pub default_model: Option<String>,
    /// How it departs from its protocol.
    #[serde(default)]
    pub dialect: Dialect,
}

static KNOWN: LazyLock<Vec<Vendor>> = LazyLock::new(|| {
    // INVARIANT: a test parses the file, so that an empty list can't be released.
    serde_json::from_str(include_str!("vendors.json")).unwrap_or_default()
});

impl Vendor {
    /// All providers that are known by name.
    pub fn all() -> &'static [Vendor] {
        &KNOWN
    }

    /// The provider called `id`.
    ///
    /// # Errors
    /// [`NotFound`](coral_core::ErrorKind::NotFound), with the name that is most alike.
    pub fn named(id: &str) -> Result<&'static Vendor, Error> {
        KNOWN.iter().find(|vendor| vendor.id == id).ok_or_else(|| {
            Error::not_found("model provider", id, KNOWN.iter().map(|vendor| vendor.id.as_str()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_vendors_is_whole() {
        let vendors: Vec<Vendor> = serde_json::from_str(include_str!("vendors.json")).unwrap();
        let mut ids: Vec<&str> = vendors.iter().map(|vendor| vendor.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), vendors.len(), "a name stands twice");
        for vendor in &vendors {
            assert!(vendor.base_url.starts_with("http") && !vendor.base_url.ends_with('/'), "{}", vendor.id);
        }
    }
}
