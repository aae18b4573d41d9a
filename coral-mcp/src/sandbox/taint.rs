//! Which runs took in content from outside.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Above this many runs every run counts as one that did: forgetting one would trust it.
const MAX_RUNS: usize = 100_000;

/// The tool that brought content from an untrusted server into each run.
///
/// The mark is on the run, not on the step: whatever a step read reaches the next one through its
/// handoff.
#[derive(Debug, Default)]
pub(super) struct Taint {
    runs: Mutex<HashMap<String, String>>,
}

impl Taint {
    /// With the runs that did before this process.
    pub(super) fn of(runs: impl IntoIterator<Item = (String, String)>) -> Self {
        Taint { runs: Mutex::new(runs.into_iter().collect()) }
    }

    pub(super) fn mark(&self, run: &str, tool: &str) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.len() < MAX_RUNS && !runs.contains_key(run) {
            runs.insert(run.to_owned(), tool.to_owned());
        }
    }

    /// The tool that did, if one did.
    pub(super) fn source(&self, run: &str) -> Option<String> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let full = || (runs.len() >= MAX_RUNS).then(|| "a tool".to_owned());
        runs.get(run).cloned().or_else(full)
    }
}
