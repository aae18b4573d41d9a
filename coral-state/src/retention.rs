//! What becomes of runs that are over: alike for every store.

use std::collections::BTreeMap;

use async_trait::async_trait;
use coral_core::{Error, Journal, Record, RunFilter, RunHead, RunStatus, Seq, rfc3339};
use serde::Serialize;

use crate::codec;
use crate::garbage::{BlobSweep, GarbageReport, collect_garbage};
use crate::ledger::{View, check_id, is_erased, is_ledger};
use crate::projects::Projects;
use crate::views::{ProjectState, SessionState};

/// Records of one chunk after compaction.
const CHUNK: usize = 256;

/// What becomes of what a rule fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetentionAction {
    /// A run's records are packed into less room. For runs only.
    Compact,
    /// It is removed, head and all.
    Remove,
}

/// A class of data with a retention of its own. Caches are not among them: each of their entries
/// has its own end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DataClass {
    /// Journals of runs that are over: inputs, outputs, prompts, answers, costs.
    #[default]
    Runs,
    /// Sessions of users: who they are, what they watch and prefer.
    Sessions,
    /// Large payloads that no run refers to any more.
    Blobs,
}

impl DataClass {
    /// The class as a word, such as `sessions`.
    pub fn as_str(self) -> &'static str {
        match self {
            DataClass::Runs => "runs",
            DataClass::Sessions => "sessions",
            DataClass::Blobs => "blobs",
        }
    }
}

/// One rule of retention. What is left out fits all of the class.
///
/// ```
/// use coral_state::{DataClass, RetentionAction, RetentionRule};
///
/// let day_ms = 24 * 60 * 60 * 1_000;
/// let mut sessions = RetentionRule::after(30 * day_ms, RetentionAction::Remove);
/// sessions.class = DataClass::Sessions;
/// let mut runs = RetentionRule::after(7 * day_ms, RetentionAction::Compact);
/// runs.project = Some("reef".into());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionRule {
    /// What it is about.
    pub class: DataClass,
    /// Only what belongs to this project.
    pub project: Option<String>,
    /// Only runs of this workflow.
    pub workflow: Option<String>,
    /// Only runs that stand like this. Runs at work are never touched.
    pub status: Option<RunStatus>,
    /// How long it is left alone after it was last changed, in milliseconds.
    pub keep_ms: u64,
    /// What becomes of it then.
    pub action: RetentionAction,
}

impl RetentionRule {
    /// A rule for all runs.
    pub fn after(keep_ms: u64, action: RetentionAction) -> Self {
        RetentionRule { class: DataClass::Runs, project: None, workflow: None, status: None, keep_ms, action }
    }

    fn fits(&self, class: DataClass, head: &RunHead) -> bool {
        self.class == class
            && self.project.as_ref().is_none_or(|project| *project == head.project)
            && self.workflow.as_ref().is_none_or(|workflow| *workflow == head.workflow)
            && self.status.is_none_or(|status| status == head.status)
    }
}

/// What retention did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionReport {
    /// Runs that now take less room.
    pub compacted: Vec<String>,
    /// Runs and sessions that were removed, by the id of their journal.
    pub removed: Vec<String>,
    /// What became of blobs.
    pub blobs: GarbageReport,
}

/// What a store does for retention.
#[async_trait]
pub(crate) trait Upkeep: Send + Sync {
    type Blobs: BlobSweep;
    fn upkept(&self) -> impl Journal;
    fn blobs_in(&self, project: &str) -> Self::Blobs;
    async fn projects_with_blobs(&self) -> Result<Vec<String>, Error>;
    async fn remove(&self, run: &str) -> Result<bool, Error>;
    /// Changes the records of a run that is over, all at once; whether anything changed.
    async fn rewrite(&self, run: &str, change: Change) -> Result<bool, Error>;
    /// Forgets all that is cached; says how much that was.
    async fn empty_cache(&self) -> Result<usize, Error>;
    /// Sees to it that what was rewritten lies nowhere any more.
    async fn scrubbed(&self) -> Result<(), Error>;
    /// The same for what was removed, as far as that costs little.
    async fn swept(&self) -> Result<(), Error>;
}

/// What becomes of a run's records.
pub(crate) enum Change {
    /// They stay as they are and take less room.
    Pack,
    /// Others take their place.
    #[cfg(feature = "privacy")]
    Edit(Edit),
}

/// Makes other records of a run's.
#[cfg(feature = "privacy")]
pub(crate) type Edit = Box<dyn FnOnce(Vec<Record>) -> Result<Vec<Record>, Error> + Send>;

impl Change {
    /// Whether what was folded from the run must be folded again.
    pub(crate) fn edits(&self) -> bool {
        !matches!(self, Change::Pack)
    }

    /// The records to write, of those that lie in so many chunks; `None` if nothing is gained.
    pub(crate) fn apply(self, records: Vec<Record>, chunks: usize) -> Result<Option<Vec<Record>>, Error> {
        match self {
            Change::Pack => Ok((chunks > records.len().div_ceil(CHUNK)).then_some(records)),
            #[cfg(feature = "privacy")]
            Change::Edit(edit) => edit(records).map(Some),
        }
    }
}

/// Applies `rules`, each to what no rule before it fits.
pub(crate) async fn retain(
    store: &impl Upkeep,
    rules: &[RetentionRule],
    now_ms: u64,
) -> Result<RetentionReport, Error> {
    let only_runs =
        |rule: &&RetentionRule| rule.action == RetentionAction::Compact && rule.class != DataClass::Runs;
    if let Some(rule) = rules.iter().find(only_runs) {
        return Err(Error::invalid(
            "retention rule",
            format!("{} can't be compacted, only runs can", rule.class.as_str()),
        )
        .with_help("say `RetentionAction::Remove`, or leave the rule out"));
    }
    let mut report = RetentionReport::default();
    let journal = store.upkept();
    for head in journal.runs(&RunFilter::default()).await? {
        let Some(class) = class_of(&head) else { continue };
        if head.status == RunStatus::Running {
            continue;
        }
        let Some(rule) = rules.iter().find(|rule| rule.fits(class, &head)) else { continue };
        if now_ms.saturating_sub(head.updated_at_ms) < rule.keep_ms {
            continue;
        }
        match rule.action {
            RetentionAction::Remove => {
                if store.remove(&head.run).await? {
                    report.removed.push(head.run);
                }
            }
            RetentionAction::Compact => {
                match store.rewrite(&head.run, Change::Pack).await {
                    Ok(true) => report.compacted.push(head.run),
                    Ok(false) => {}
                    // What can't be read takes what room it takes.
                    Err(error) if is_erased(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    for project in store.projects_with_blobs().await? {
        let fits = |rule: &&RetentionRule| {
            rule.class == DataClass::Blobs && rule.project.as_ref().is_none_or(|only| *only == project)
        };
        if let Some(rule) = rules.iter().find(fits) {
            let blobs = store.blobs_in(&project);
            report.blobs += collect_garbage(&journal, &blobs, rule.keep_ms, now_ms).await?;
        }
    }
    if !report.removed.is_empty() || report.blobs.removed > 0 {
        store.swept().await?;
    }
    Ok(report)
}

/// What removing a project did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProjectRemoval {
    /// The journals that were removed: of its runs, its sessions and its own.
    pub journals: Vec<String>,
    /// Its blobs that were removed.
    pub blobs: usize,
}

/// Removes all that a store holds of a project; what is left is that there was one.
pub(crate) async fn remove_project(
    store: &impl Upkeep,
    projects: &Projects,
    project: &str,
) -> Result<ProjectRemoval, Error> {
    check_id("project", project)?;
    let journal = store.upkept();
    let mut filter = RunFilter::default();
    filter.project = Some(project.to_owned());
    let mut heads = journal.runs(&filter).await?;
    if let Some(head) = heads.iter().find(|head| !is_ledger(head) && head.status == RunStatus::Running) {
        return Err(Error::invalid("removal", format!("run `{}` of `{project}` is at work", head.run))
            .with_help("cancel it first"));
    }
    // Its own journal last: as long as that is there, this can be done again.
    heads.sort_by_key(|head| head.run.starts_with(ProjectState::PREFIX));
    let mut removal = ProjectRemoval::default();
    let blobs = store.blobs_in(project);
    for blob in blobs.older_than(u64::MAX).await? {
        removal.blobs += usize::from(blobs.sweep(&blob, u64::MAX).await?);
    }
    store.empty_cache().await?;
    for head in heads {
        if store.remove(&head.run).await? {
            let own = head.run.starts_with(ProjectState::PREFIX);
            removal.journals.push(head.run);
            if own {
                projects.bury(project).await?;
            }
        }
    }
    store.scrubbed().await?;
    Ok(removal)
}

/// The chunks of `records`, as few as may be, each with its last seq.
pub(crate) fn pack(
    records: &[Record],
    seal: impl Fn(Seq, usize, Vec<u8>) -> Result<Vec<u8>, Error>,
) -> Result<Vec<(Seq, Vec<u8>)>, Error> {
    let mut packed = Vec::new();
    for batch in records.chunks(CHUNK) {
        let Some(last) = batch.last().map(|record| record.seq) else { continue };
        packed.push((last, seal(last, batch.len(), codec::encode(batch)?)?));
    }
    Ok(packed)
}

/// What of one class a project holds, and what the rules say of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Holding {
    /// The project; empty if none.
    pub project: String,
    /// The class.
    pub class: DataClass,
    /// How many runs or sessions there are.
    pub count: usize,
    /// How many of them are at work, which no rule touches.
    pub at_work: usize,
    /// When the oldest was last changed, in milliseconds since the Unix epoch.
    pub oldest_ms: u64,
    /// How many of them no rule fits: they are kept for ever.
    pub without_rule: usize,
    /// How many are due: [`retain`](crate::SqliteStore::retain) would act on them now.
    pub due: usize,
}

/// What is held, by project and class, and for how long the rules let it: what a record of
/// processing activities asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RetentionOverview {
    /// When this was so, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// By project, then class.
    pub holdings: Vec<Holding>,
}

impl RetentionOverview {
    /// Looks at the heads of a journal, as of `now_ms`; blobs follow from the runs that name them.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn of(journal: &impl Journal, rules: &[RetentionRule], now_ms: u64) -> Result<Self, Error> {
        let mut holdings: BTreeMap<(String, DataClass), Holding> = BTreeMap::new();
        for head in journal.runs(&RunFilter::default()).await? {
            let Some(class) = class_of(&head) else { continue };
            let holding = holdings.entry((head.project.clone(), class)).or_insert_with(|| Holding {
                project: head.project.clone(),
                class,
                count: 0,
                at_work: 0,
                oldest_ms: u64::MAX,
                without_rule: 0,
                due: 0,
            });
            holding.count += 1;
            holding.oldest_ms = holding.oldest_ms.min(head.updated_at_ms);
            let at_work = class == DataClass::Runs && head.status == RunStatus::Running;
            holding.at_work += usize::from(at_work);
            match rules.iter().find(|rule| rule.fits(class, &head)) {
                None => holding.without_rule += 1,
                Some(rule) if !at_work && now_ms.saturating_sub(head.updated_at_ms) >= rule.keep_ms => {
                    holding.due += 1;
                }
                Some(_) => {}
            }
        }
        Ok(RetentionOverview { at_ms: now_ms, holdings: holdings.into_values().collect() })
    }

    /// As a table in Markdown.
    pub fn to_markdown(&self) -> String {
        let mut text = format!(
            "What is held as of {}\n\n| project | class | held | at work | oldest change | due | without a rule |\n\
             |---|---|---|---|---|---|---|\n",
            rfc3339(self.at_ms)
        );
        for holding in &self.holdings {
            text.push_str(&format!(
                "| {} | {} | {} | {} | {} | {} | {} |\n",
                holding.project.replace('|', "\\|"),
                holding.class.as_str(),
                holding.count,
                holding.at_work,
                rfc3339(holding.oldest_ms),
                holding.due,
                holding.without_rule,
            ));
        }
        text
    }
}

/// The class of a journal; `None` for that of a project, which is there as long as the project.
pub(crate) fn class_of(head: &RunHead) -> Option<DataClass> {
    match is_ledger(head) {
        false => Some(DataClass::Runs),
        true if head.run.starts_with(SessionState::PREFIX) => Some(DataClass::Sessions),
        true => None,
    }
}
