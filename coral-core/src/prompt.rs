//! Prompts: templates, strict about their variables.

use std::collections::BTreeMap;

/// The templates that prompts may include, by name.
#[derive(Clone, Debug, Default)]
pub struct Prompts {
    partials: BTreeMap<String, String>,
}
