//! The state of a session.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ledger::View;

/// What can happen in a session; what its journal holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub(crate) enum SessionChange {
    Began { project: String },
    Context { user: Value },
    Preferred { key: String, value: Value },
    Attached { run: String },
    Detached { run: String },
    Ended,
}

/// One session of a user as it stands: the fold of its journal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SessionState {
    /// Its id.
    pub id: String,
    /// The project that it works in; may be empty.
    pub project: String,
    /// Who the user is and what they are about, in whatever shape the embedder gave it.
    pub user: Value,
    /// What the user prefers.
    pub preferences: BTreeMap<String, Value>,
    /// The runs that the session watches.
    pub workflows: BTreeSet<String>,
    /// When it began, in milliseconds since the Unix epoch.
    pub started_at_ms: u64,
    /// When it last changed.
    pub updated_at_ms: u64,
    /// Whether it is over.
    pub ended: bool,
}

impl View for SessionState {
    const WORKFLOW: &'static str = "coral.session";
    const PREFIX: &'static str = "session:";
    type Change = SessionChange;

    fn empty(id: &str) -> Self {
        SessionState { id: id.to_owned(), ..Default::default() }
    }

    fn project(_: &str, changes: &[SessionChange]) -> String {
        match changes.first() {
            Some(SessionChange::Began { project }) => project.clone(),
            _ => String::new(),
        }
    }

    fn erased(id: &str) -> Self {
        SessionState { ended: true, ..SessionState::empty(id) }
    }

    fn apply(&mut self, at_ms: u64, change: SessionChange) {
        self.updated_at_ms = at_ms;
        match change {
            SessionChange::Began { project } => {
                self.started_at_ms = at_ms;
                self.project = project;
                self.ended = false;
            }
            SessionChange::Context { user } => self.user = user,
            SessionChange::Preferred { key, value: Value::Null } => {
                self.preferences.remove(&key);
            }
            SessionChange::Preferred { key, value } => {
                self.preferences.insert(key, value);
            }
            SessionChange::Attached { run } => {
                self.workflows.insert(run);
            }
            SessionChange::Detached { run } => {
                self.workflows.remove(&run);
            }
            SessionChange::Ended => {
                self.ended = true;
                self.workflows.clear();
            }
        }
    }
}
