//! The state of a project.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ledger::View;

/// Where a project is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProjectStatus {
    /// Work goes on.
    #[default]
    Active,
    /// Kept to be looked at.
    Archived,
    /// Gone but for the fact that it was there.
    Deleted,
}

/// What can happen to a project; what its journal holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub(crate) enum ProjectChange {
    Created {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cloned_from: Option<String>,
    },
    Described {
        name: String,
        description: String,
    },
    Configured {
        config: Value,
    },
    Noted {
        key: String,
        value: Value,
    },
    Tagged {
        tags: BTreeSet<String>,
    },
    DependsOn {
        projects: BTreeSet<String>,
    },
    Shared {
        key: String,
        value: Value,
    },
    Granted {
        to: String,
        keys: BTreeSet<String>,
    },
    Revoked {
        from: String,
    },
    Moved {
        status: ProjectStatus,
    },
}

/// One project as it stands: the fold of its journal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProjectState {
    /// Its id.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Where it is in its life.
    pub status: ProjectStatus,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// When it last changed; work in its runs is not a change.
    pub updated_at_ms: u64,
    /// The project that it was cloned from.
    pub cloned_from: Option<String>,
    /// Its configuration, in whatever shape the embedder gave it.
    pub config: Value,
    /// Facts about it.
    pub metadata: BTreeMap<String, Value>,
    /// Its tags.
    pub tags: BTreeSet<String>,
    /// The projects that it depends on.
    pub dependencies: BTreeSet<String>,
    /// State that others may be granted to read.
    pub shared: BTreeMap<String, Value>,
    /// Which other project may read which keys of `shared`; `*` is all of them.
    pub grants: BTreeMap<String, BTreeSet<String>>,
}

impl ProjectState {
    /// Whether `reader` may read `key` of what this project shares.
    pub fn grants_to(&self, reader: &str, key: &str) -> bool {
        self.grants.get(reader).is_some_and(|keys| keys.contains("*") || keys.contains(key))
    }
}

impl View for ProjectState {
    const WORKFLOW: &'static str = "coral.project";
    const PREFIX: &'static str = "project:";
    type Change = ProjectChange;

    fn empty(id: &str) -> Self {
        ProjectState { id: id.to_owned(), ..Default::default() }
    }

    fn project(id: &str, _: &[ProjectChange]) -> String {
        id.to_owned()
    }

    fn erased(id: &str) -> Self {
        ProjectState { status: ProjectStatus::Deleted, ..ProjectState::empty(id) }
    }

    fn apply(&mut self, at_ms: u64, change: ProjectChange) {
        self.updated_at_ms = at_ms;
        match change {
            ProjectChange::Created { cloned_from } => {
                // An id that is used again begins anew.
                *self = ProjectState {
                    created_at_ms: at_ms,
                    updated_at_ms: at_ms,
                    cloned_from,
                    ..ProjectState::empty(&self.id)
                };
            }
            ProjectChange::Described { name, description } => {
                self.name = name;
                self.description = description;
            }
            ProjectChange::Configured { config } => self.config = config,
            ProjectChange::Noted { key, value: Value::Null } => {
                self.metadata.remove(&key);
            }
            ProjectChange::Noted { key, value } => {
                self.metadata.insert(key, value);
            }
            ProjectChange::Tagged { tags } => self.tags = tags,
            ProjectChange::DependsOn { projects } => self.dependencies = projects,
            ProjectChange::Shared { key, value: Value::Null } => {
                self.shared.remove(&key);
            }
            ProjectChange::Shared { key, value } => {
                self.shared.insert(key, value);
            }
            ProjectChange::Granted { to, keys } => {
                self.grants.insert(to, keys);
            }
            ProjectChange::Revoked { from } => {
                self.grants.remove(&from);
            }
            ProjectChange::Moved { status } => {
                self.status = status;
                if status == ProjectStatus::Deleted {
                    *self = ProjectState {
                        status,
                        created_at_ms: self.created_at_ms,
                        updated_at_ms: at_ms,
                        ..ProjectState::empty(&self.id)
                    };
                }
            }
        }
    }
}
