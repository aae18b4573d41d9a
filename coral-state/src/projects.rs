//! Projects: a registry over any journal.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use coral_core::{Clock, Error, ErrorKind, Journal, RunFilter, RunStatus, SystemClock};
use serde::Serialize;
use serde_json::Value;

#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::ledger::is_erased;
use crate::ledger::{Ledger, check_id, is_ledger};
use crate::snapshots::Snapshots;
use crate::views::{ProjectChange, ProjectState, ProjectStatus, Spending, Worked, WorkflowState};

/// What a project is made from, or changed to. What is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProjectDraft {
    /// The name for people; the id if there is none.
    pub name: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// The configuration, in any shape.
    pub config: Option<Value>,
    /// Facts to set; one that is `null` is taken out.
    pub metadata: BTreeMap<String, Value>,
    /// The tags, all of them.
    pub tags: Option<BTreeSet<String>>,
    /// The projects that it depends on, all of them.
    pub dependencies: Option<BTreeSet<String>>,
}

/// Which projects to list. What is left out lets all through.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProjectFilter {
    /// Only those that are here in their life. `None` leaves out deleted ones alone.
    pub status: Option<ProjectStatus>,
    /// Only those with this tag.
    pub tag: Option<String>,
    /// Only those whose id, name or description holds this text, in any case.
    pub text: Option<String>,
}

/// How far a project's runs are, all together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ProjectProgress {
    /// Runs by how they stand.
    pub runs: BTreeMap<String, usize>,
    /// Steps that are over.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// What remains of the run that needs longest, in milliseconds, by the durations of the
    /// project's earlier runs; `None` if nothing is known yet.
    pub remaining_ms: Option<u64>,
    /// What all runs used and cost.
    pub spent: Spending,
}

/// The registry of projects: makes, changes, archives, clones and deletes them, and lets one read
/// what another shares.
///
/// All of it is records in the journal that also keeps the runs, so any number of processes may
/// do this at once.
///
/// ```
/// use coral_core::MemoryJournal;
/// use coral_state::{ProjectDraft, Projects};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let projects = Projects::new(MemoryJournal::new());
/// let draft = ProjectDraft { name: Some("Task manager".into()), ..Default::default() };
/// projects.create("task-manager", draft).await?;
/// let copy = projects.clone_as("task-manager", "task-manager-2").await?;
/// assert_eq!(copy.name, "Task manager");
/// # Ok::<(), coral_core::Error>(())
/// # }).unwrap();
/// ```
pub struct Projects {
    ledger: Ledger,
}

impl Projects {
    /// The registry in `journal`.
    pub fn new(journal: impl Journal + 'static) -> Self {
        Self::with_clock(journal, Arc::new(SystemClock))
    }

    /// The same by another clock.
    pub fn with_clock(journal: impl Journal + 'static, clock: Arc<dyn Clock>) -> Self {
        Projects { ledger: Ledger::new(Arc::new(journal), clock) }
    }

    /// The same, where runs and projects in which much happened begin with a snapshot: in the store
    /// itself, or in a cache by [`CachedSnapshots`](crate::CachedSnapshots).
    #[must_use]
    pub fn with_snapshots(mut self, snapshots: impl Snapshots + 'static) -> Self {
        self.ledger = self.ledger.with_snapshots(Arc::new(snapshots));
        self
    }

    /// Makes a project.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the id can't be one or is taken, even by a project that
    /// was deleted; those of the journal.
    pub async fn create(&self, id: &str, draft: ProjectDraft) -> Result<ProjectState, Error> {
        check_id("project", id)?;
        let draft = ProjectDraft { name: draft.name.or_else(|| Some(id.to_owned())), ..draft };
        self.begin(id, ProjectChange::Created { cloned_from: None }, &draft, &BTreeMap::new()).await
    }

    async fn begin(
        &self,
        id: &str,
        created: ProjectChange,
        draft: &ProjectDraft,
        shared: &BTreeMap<String, Value>,
    ) -> Result<ProjectState, Error> {
        check_dependencies(id, draft)?;
        self.ledger
            .change(id, |found: Option<&ProjectState>| {
                if found.is_some() {
                    return Err(Error::invalid("project id", format!("`{id}` is taken"))
                        .with_help("choose another; the id of a deleted project is not given again"));
                }
                let mut changes = vec![created.clone()];
                changes.extend(changes_to(&ProjectState::default(), draft));
                changes.extend(
                    shared
                        .iter()
                        .map(|(key, value)| ProjectChange::Shared { key: key.clone(), value: value.clone() }),
                );
                Ok(changes)
            })
            .await
    }

    /// The project, deleted or not, if it ever was.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn get(&self, id: &str) -> Result<Option<ProjectState>, Error> {
        Ok(self.ledger.get(id).await?.map(|(state, _)| state))
    }

    /// The projects that `filter` lets through, in the order of their ids.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn list(&self, filter: &ProjectFilter) -> Result<Vec<ProjectState>, Error> {
        let text = filter.text.as_ref().map(|text| text.to_lowercase());
        let holds = |field: &str, text: &str| field.to_lowercase().contains(text);
        let mut projects: Vec<ProjectState> = self.ledger.all().await?;
        projects.retain(|project| {
            filter.status.map_or(project.status != ProjectStatus::Deleted, |status| project.status == status)
                && filter.tag.as_ref().is_none_or(|tag| project.tags.contains(tag))
                && text.as_ref().is_none_or(|text| {
                    [&project.id, &project.name, &project.description].iter().any(|field| holds(field, text))
                })
        });
        Ok(projects)
    }

    /// Changes what `draft` says.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) unless the project is
    /// active; those of the journal.
    pub async fn update(&self, id: &str, draft: &ProjectDraft) -> Result<ProjectState, Error> {
        check_dependencies(id, draft)?;
        self.change_active(id, |project| Ok(changes_to(project, draft))).await
    }

    /// Puts a project away: it can be looked at, and no longer changed.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); those of the journal.
    pub async fn archive(&self, id: &str) -> Result<ProjectState, Error> {
        self.move_to(id, ProjectStatus::Archived).await
    }

    /// Takes an archived project up again.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); those of the journal.
    pub async fn restore(&self, id: &str) -> Result<ProjectState, Error> {
        self.move_to(id, ProjectStatus::Active).await
    }

    /// Deletes a project for good; a tombstone stays, so that the id never means another project.
    ///
    /// Its journals stay: [`remove_project`](crate::SqliteStore::remove_project) of the store removes
    /// them, and in an encrypted store [`erase_project`](crate::SqliteStore::erase_project) makes them
    /// unreadable, in every copy.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) while a run of it is at
    /// work; those of the journal.
    pub async fn delete(&self, id: &str) -> Result<ProjectState, Error> {
        let mut filter = RunFilter::unfinished();
        filter.project = Some(id.to_owned());
        let running = self.ledger.journal().runs(&filter).await?;
        if let Some(head) = running.iter().find(|head| !is_ledger(head)) {
            return Err(Error::invalid("deletion", format!("run `{}` of `{id}` is at work", head.run))
                .with_help("cancel it first"));
        }
        self.move_to(id, ProjectStatus::Deleted).await
    }

    /// Puts the tombstone of a project whose journal was removed where that was.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) async fn bury(&self, id: &str) -> Result<(), Error> {
        let buried = self.ledger.change(id, |_: Option<&ProjectState>| {
            Ok(vec![
                ProjectChange::Created { cloned_from: None },
                ProjectChange::Moved { status: ProjectStatus::Deleted },
            ])
        });
        match buried.await {
            // An erased project has a tombstone already.
            Err(error) if is_erased(&error) => Ok(()),
            result => result.map(drop),
        }
    }

    async fn move_to(&self, id: &str, status: ProjectStatus) -> Result<ProjectState, Error> {
        self.change(id, |project| {
            Ok(if project.status == status { Vec::new() } else { vec![ProjectChange::Moved { status }] })
        })
        .await
    }

    /// Makes `to` from `from`: its configuration, metadata, tags, dependencies and shared state,
    /// without its runs and grants.
    ///
    /// # Errors
    /// As [`create`](Self::create), and [`NotFound`](ErrorKind::NotFound).
    pub async fn clone_as(&self, from: &str, to: &str) -> Result<ProjectState, Error> {
        check_id("project", to)?;
        let source = match self.get(from).await? {
            Some(source) if source.status != ProjectStatus::Deleted => source,
            _ => return Err(self.not_found(from).await?),
        };
        let draft = ProjectDraft {
            name: Some(source.name),
            description: Some(source.description),
            config: Some(source.config),
            metadata: source.metadata,
            tags: Some(source.tags),
            dependencies: Some(source.dependencies),
        };
        let created = ProjectChange::Created { cloned_from: Some(from.to_owned()) };
        self.begin(to, created, &draft, &source.shared).await
    }

    /// Sets what other projects may be granted to read; `null` takes it out.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub async fn share(&self, id: &str, key: &str, value: Value) -> Result<ProjectState, Error> {
        self.change_active(id, |project| {
            let same = project.shared.get(key).unwrap_or(&Value::Null) == &value;
            let shared = ProjectChange::Shared { key: key.to_owned(), value: value.clone() };
            Ok(if same { Vec::new() } else { vec![shared] })
        })
        .await
    }

    /// Lets project `to` read `keys` of what `id` shares, and no others; `*` is all of them.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub async fn grant(&self, id: &str, to: &str, keys: &[&str]) -> Result<ProjectState, Error> {
        check_id("project", to)?;
        let keys: BTreeSet<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        self.change_active(id, |project| {
            let same = project.grants.get(to) == Some(&keys);
            let granted = ProjectChange::Granted { to: to.to_owned(), keys: keys.clone() };
            Ok(if same { Vec::new() } else { vec![granted] })
        })
        .await
    }

    /// Takes back what `from` was granted.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub async fn revoke(&self, id: &str, from: &str) -> Result<ProjectState, Error> {
        self.change_active(id, |project| {
            let revoked = ProjectChange::Revoked { from: from.to_owned() };
            Ok(if project.grants.contains_key(from) { vec![revoked] } else { Vec::new() })
        })
        .await
    }

    /// What project `owner` shares under `key`, read on behalf of project `reader`.
    ///
    /// # Errors
    /// [`Denied`](ErrorKind::Denied) without a grant, whether or not there is such a project or
    /// key; those of the journal.
    pub async fn shared(&self, reader: &str, owner: &str, key: &str) -> Result<Option<Value>, Error> {
        let project = self.get(owner).await?;
        let allowed = |project: &ProjectState| reader == owner || project.grants_to(reader, key);
        match project.filter(allowed) {
            Some(mut project) => Ok(project.shared.remove(key)),
            None => Err(Error::new(ErrorKind::Denied {
                agent: format!("project {reader}"),
                action: format!("read `{key}` of project {owner}"),
                reason: "there is no grant".into(),
            })
            .with_help("ask the owner to `grant` it")),
        }
    }

    /// How far the project's runs are.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn progress(&self, id: &str) -> Result<ProjectProgress, Error> {
        let states = self.runs(id).await?;
        let mut took: BTreeMap<Arc<str>, Worked> = BTreeMap::new();
        for (agent, worked) in states.iter().flat_map(|state| &state.worked) {
            *took.entry(agent.clone()).or_default() += *worked;
        }
        let typical = |agent: &str| took.get(agent).and_then(Worked::mean_ms);
        let mut all = ProjectProgress { remaining_ms: Some(0), ..Default::default() };
        for state in &states {
            *all.runs.entry(crate::status::status_name(state.status)).or_default() += 1;
            let progress = state.progress_by(typical);
            all.done += progress.done;
            all.total += progress.total;
            all.spent += state.spent;
            if state.status == RunStatus::Running {
                all.remaining_ms =
                    all.remaining_ms.zip(progress.remaining_ms).map(|(longest, own)| longest.max(own));
            }
        }
        Ok(all)
    }

    /// The project's runs as they stand, in the order of their ids.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn runs(&self, id: &str) -> Result<Vec<WorkflowState>, Error> {
        let mut filter = RunFilter::default();
        filter.project = Some(id.to_owned());
        let mut states = Vec::new();
        for head in self.ledger.journal().runs(&filter).await? {
            if is_ledger(&head) {
                continue;
            }
            let journal = self.ledger.journal();
            let state = match self.ledger.snapshots() {
                Some(snapshots) => WorkflowState::open(journal, snapshots, &head.run).await?,
                None => WorkflowState::of(journal, &head.run).await?,
            };
            states.extend(state);
        }
        Ok(states)
    }

    /// The journal that all this is in.
    pub fn journal(&self) -> &Arc<dyn Journal> {
        self.ledger.journal()
    }

    async fn change(
        &self,
        id: &str,
        decide: impl Fn(&ProjectState) -> Result<Vec<ProjectChange>, Error> + Send + Sync,
    ) -> Result<ProjectState, Error> {
        if self.get(id).await?.is_none_or(|project| project.status == ProjectStatus::Deleted) {
            return Err(self.not_found(id).await?);
        }
        self.ledger
            .change(id, |found: Option<&ProjectState>| match found {
                Some(project) if project.status != ProjectStatus::Deleted => decide(project),
                _ => Err(Error::not_found("project", id, [])),
            })
            .await
    }

    async fn change_active(
        &self,
        id: &str,
        decide: impl Fn(&ProjectState) -> Result<Vec<ProjectChange>, Error> + Send + Sync,
    ) -> Result<ProjectState, Error> {
        self.change(id, |project| {
            if project.status == ProjectStatus::Active {
                return decide(project);
            }
            Err(Error::invalid("change", format!("project `{id}` is archived"))
                .with_help("`restore` it first"))
        })
        .await
    }

    async fn not_found(&self, id: &str) -> Result<Error, Error> {
        let known = self.list(&ProjectFilter::default()).await?;
        Ok(Error::not_found("project", id, known.iter().map(|project| &*project.id)))
    }
}

impl fmt::Debug for Projects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Projects").finish_non_exhaustive()
    }
}

fn check_dependencies(id: &str, draft: &ProjectDraft) -> Result<(), Error> {
    for other in draft.dependencies.iter().flatten() {
        check_id("project", other)?;
        if other == id {
            return Err(Error::invalid("project", format!("`{id}` can't depend on itself")));
        }
    }
    Ok(())
}

/// What turns `project` into what `draft` says.
fn changes_to(project: &ProjectState, draft: &ProjectDraft) -> Vec<ProjectChange> {
    let mut changes = Vec::new();
    let name = draft.name.as_ref().unwrap_or(&project.name);
    let description = draft.description.as_ref().unwrap_or(&project.description);
    if (name, description) != (&project.name, &project.description) {
        changes.push(ProjectChange::Described { name: name.clone(), description: description.clone() });
    }
    if let Some(config) = draft.config.as_ref().filter(|config| **config != project.config) {
        changes.push(ProjectChange::Configured { config: config.clone() });
    }
    for (key, value) in &draft.metadata {
        if project.metadata.get(key).unwrap_or(&Value::Null) != value {
            changes.push(ProjectChange::Noted { key: key.clone(), value: value.clone() });
        }
    }
    if let Some(tags) = draft.tags.as_ref().filter(|tags| **tags != project.tags) {
        changes.push(ProjectChange::Tagged { tags: tags.clone() });
    }
    if let Some(projects) = draft.dependencies.as_ref().filter(|projects| **projects != project.dependencies)
    {
        changes.push(ProjectChange::DependsOn { projects: projects.clone() });
    }
    changes
}
