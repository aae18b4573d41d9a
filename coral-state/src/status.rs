//! The status of a run as a word in a table.

use coral_core::RunStatus;

/// The status by its JSON name.
pub(crate) fn status_name(status: RunStatus) -> String {
    match serde_json::to_value(status) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// The status of that name, if this release knows it.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) fn status_of(name: &str) -> Option<RunStatus> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}
