//! Finding runs: by status, phase, agent, tag, time, cost and text, sorted and in pages.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use coral_core::{Error, Journal, RunFilter, RunHead, RunStatus, Usd};
use serde::{Deserialize, Serialize};

use crate::ledger::{is_erased, is_ledger};
use crate::views::{Spending, WorkflowState};

/// Characters of a run's input, and of its error, that are searched.
const TEXT: usize = 2_000;
/// Characters of a word that tell it from others.
const WORD: usize = 100;
/// Characters from which on a word stands for all that begin with it.
const BEGINNING: usize = 3;

/// A run in a line: what lists show and queries ask for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunSummary {
    /// What the journal itself knows of it.
    #[serde(flatten)]
    pub head: RunHead,
    /// The phase at work; may be empty.
    pub phase: Arc<str>,
    /// The agents of its steps, and of the steps within them.
    pub agents: BTreeSet<Arc<str>>,
    /// Its tags; see [`WorkflowState::tags`].
    pub tags: BTreeSet<String>,
    /// Steps that are over.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// What it used and cost.
    pub spent: Spending,
    /// The words that text queries look among, each between spaces.
    #[serde(skip)]
    words: Box<str>,
}

impl RunSummary {
    pub(crate) fn of(head: &RunHead, state: &WorkflowState) -> Self {
        let progress = state.progress();
        let mut text = format!("{}\n{}\n{}\n", head.run, head.workflow, head.project);
        if let Some(Ok(input)) = state.input.as_ref().map(|input| input.json()) {
            text.extend(input.to_string().chars().take(TEXT));
        }
        if let Some(error) = &state.error {
            text.push('\n');
            text.extend(error.to_string().chars().take(TEXT));
        }
        let words: BTreeSet<String> = words(&text).into_iter().collect();
        RunSummary {
            head: head.clone(),
            phase: state.current_phase().cloned().unwrap_or_default(),
            agents: state.steps.iter().flat_map(|step| step.agents.iter().cloned()).collect(),
            tags: state.tags().into_iter().map(str::to_owned).collect(),
            done: progress.done,
            total: progress.total,
            spent: state.spent,
            words: words.iter().flat_map(|word| [" ", word]).chain([" "]).collect::<String>().into(),
        }
    }

    /// The words that text queries look among, each once.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        self.words.split_ascii_whitespace()
    }

    fn has(&self, word: &str) -> bool {
        match is_beginning(word) {
            true => self.words.contains(&format!(" {word}")),
            false => self.words.contains(&format!(" {word} ")),
        }
    }
}

/// The words of a text, in lower case.
pub(crate) fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(|word| word.chars().take(WORD).collect()).collect()
}

/// Whether a word that is asked for stands for all that begin with it.
pub(crate) fn is_beginning(word: &str) -> bool {
    word.chars().nth(BEGINNING - 1).is_some()
}

/// What runs are sorted by; equal ones by id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SortBy {
    /// When they began.
    #[default]
    Started,
    /// When they last went on.
    Updated,
    /// What they cost.
    Cost,
    /// Their ids.
    Run,
}

/// Which runs to find. What is left out lets all through; several conditions must all hold.
///
/// ```
/// use coral_core::RunStatus;
/// use coral_state::{RunQuery, SortBy};
///
/// let mut query = RunQuery::default();
/// query.status = Some(RunStatus::Failed);
/// query.agent = Some("qa_testing".into());
/// query.sort = SortBy::Cost;
/// query.descending = true;
/// query.limit = 20;
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RunQuery {
    /// Only runs of this project.
    pub project: Option<String>,
    /// Only runs of this workflow.
    pub workflow: Option<String>,
    /// Only runs that stand like this.
    pub status: Option<RunStatus>,
    /// Only runs in this phase.
    pub phase: Option<String>,
    /// Only runs in which this agent has a step, at any depth.
    pub agent: Option<String>,
    /// Only runs with this tag.
    pub tag: Option<String>,
    /// Only runs begun in this time, in milliseconds since the Unix epoch.
    pub started_ms: Option<Range<u64>>,
    /// Only runs that cost at least this.
    pub min_cost: Option<Usd>,
    /// Only runs that cost at most this.
    pub max_cost: Option<Usd>,
    /// Only runs whose id, names, input or error holds all words of this text, in any case: runs of
    /// letters and digits. One of three characters or more stands for all that begin with it, but in
    /// an index that is encrypted.
    pub text: Option<String>,
    /// The order.
    pub sort: SortBy,
    /// Whether the greatest comes first.
    pub descending: bool,
    /// Runs of one page at the most.
    pub limit: usize,
    /// Goes on after the page that gave this.
    pub after: Option<Cursor>,
}

impl Default for RunQuery {
    fn default() -> Self {
        RunQuery {
            project: None,
            workflow: None,
            status: None,
            phase: None,
            agent: None,
            tag: None,
            started_ms: None,
            min_cost: None,
            max_cost: None,
            text: None,
            sort: SortBy::default(),
            descending: false,
            limit: 50,
            after: None,
        }
    }
}

impl RunQuery {
    fn matches(&self, run: &RunSummary, words: &[String]) -> bool {
        let is =
            |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&self.project, &run.head.project)
            && is(&self.workflow, &run.head.workflow)
            && self.status.is_none_or(|status| status == run.head.status)
            && is(&self.phase, &run.phase)
            && self.agent.as_deref().is_none_or(|agent| run.agents.contains(agent))
            && self.tag.as_ref().is_none_or(|tag| run.tags.contains(tag))
            && self.started_ms.as_ref().is_none_or(|time| time.contains(&run.head.started_at_ms))
            && self.min_cost.is_none_or(|least| run.spent.cost >= least)
            && self.max_cost.is_none_or(|most| run.spent.cost <= most)
            && words.iter().all(|word| run.has(word))
    }

    fn key(&self, run: &RunSummary) -> u64 {
        match self.sort {
            SortBy::Started => run.head.started_at_ms,
            SortBy::Updated => run.head.updated_at_ms,
            SortBy::Cost => run.spent.cost.as_pico(),
            SortBy::Run => 0,
        }
    }

    fn order(&self, a: (u64, &str), b: (u64, &str)) -> Ordering {
        if self.descending { b.cmp(&a) } else { a.cmp(&b) }
    }
}

/// A place in the results of a query: after which run they go on. It stays good when runs come
/// and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub(crate) key: u64,
    pub(crate) run: String,
}

/// One page of what a query found.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RunPage {
    /// The runs, in the order asked for.
    pub runs: Vec<Arc<RunSummary>>,
    /// Where the next page begins, if there is one.
    pub next: Option<Cursor>,
    /// How many runs there are on all pages together, those before this one included.
    pub total: usize,
    /// Whether `total` is all of them, rather than as many as an index on disk counts.
    pub exact: bool,
}

/// What refreshing an index did.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Refreshed {
    /// Runs whose line was made, changed or taken out.
    pub changed: usize,
    /// Runs that could not be folded, and why: their journals are damaged or hold what the store's index
    /// can't. They stay as they were in the index, and are tried again with the next refresh.
    pub skipped: Vec<(String, Error)>,
}

impl Refreshed {
    /// Notes that a run could not be folded, unless the store is in trouble rather than the run.
    pub(crate) fn skip(&mut self, run: &str, error: Error) -> Result<(), Error> {
        if error.is_transient() {
            return Err(error);
        }
        tracing::warn!(run, %error, "a run is left out of the index");
        self.skipped.push((run.to_owned(), error));
        Ok(())
    }
}

/// An index of all runs of a journal, folded from it and held in memory.
///
/// [`refresh`](RunIndex::refresh) folds in what is new; [`query`](RunIndex::query) answers from
/// memory. Nothing of it is kept on disk, so it leaks nothing of an encrypted store.
///
/// ```
/// use coral_core::MemoryJournal;
/// use coral_state::{RunIndex, RunQuery};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let index = RunIndex::new(MemoryJournal::new());
/// index.refresh().await?;
/// assert_eq!(index.query(&RunQuery::default()).total, 0);
/// # Ok::<(), coral_core::Error>(())
/// # }).unwrap();
/// ```
pub struct RunIndex {
    journal: Arc<dyn Journal>,
    /// One refresh at a time; runs that are not over are folded on from where they were, as long as
    /// their revision stays.
    open: tokio::sync::Mutex<HashMap<String, (u64, WorkflowState)>>,
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    runs: BTreeMap<String, Arc<RunSummary>>,
    by_status: HashMap<RunStatus, BTreeSet<String>>,
    by_project: HashMap<String, BTreeSet<String>>,
    by_agent: HashMap<Arc<str>, BTreeSet<String>>,
    by_tag: HashMap<String, BTreeSet<String>>,
}

impl Known {
    fn put(&mut self, run: RunSummary) {
        let id = run.head.run.clone();
        self.remove(&id);
        self.by_status.entry(run.head.status).or_default().insert(id.clone());
        self.by_project.entry(run.head.project.clone()).or_default().insert(id.clone());
        for agent in &run.agents {
            self.by_agent.entry(agent.clone()).or_default().insert(id.clone());
        }
        for tag in &run.tags {
            self.by_tag.entry(tag.clone()).or_default().insert(id.clone());
        }
        self.runs.insert(id, Arc::new(run));
    }

    fn remove(&mut self, id: &str) {
        let Some(run) = self.runs.remove(id) else { return };
        let sets = [self.by_status.get_mut(&run.head.status), self.by_project.get_mut(&run.head.project)];
        for set in sets.into_iter().flatten() {
            set.remove(id);
        }
        for agent in &run.agents {
            self.by_agent.get_mut(agent).map(|set| set.remove(id));
        }
        for tag in &run.tags {
            self.by_tag.get_mut(tag).map(|set| set.remove(id));
        }
    }

    /// The runs that an index says can match, the fewest that any says; `None` is all of them.
    fn candidates(&self, query: &RunQuery) -> Option<&BTreeSet<String>> {
        static NONE: BTreeSet<String> = BTreeSet::new();
        let status = query.status.map(|status| self.by_status.get(&status).unwrap_or(&NONE));
        let project = query.project.as_ref().map(|project| self.by_project.get(project).unwrap_or(&NONE));
        let agent = query.agent.as_deref().map(|agent| self.by_agent.get(agent).unwrap_or(&NONE));
        let tag = query.tag.as_ref().map(|tag| self.by_tag.get(tag).unwrap_or(&NONE));
        [status, project, agent, tag].into_iter().flatten().min_by_key(|set| set.len())
    }
}

impl RunIndex {
    /// An index of `journal`, empty until it is first refreshed.
    pub fn new(journal: impl Journal + 'static) -> Self {
        RunIndex { journal: Arc::new(journal), open: Default::default(), known: RwLock::default() }
    }

    /// Folds in what the journal has gained, and drops what it has lost.
    ///
    /// # Errors
    /// Those of the journal that are not one run's alone; what was folded before stays.
    pub async fn refresh(&self) -> Result<Refreshed, Error> {
        let mut open = self.open.lock().await;
        let heads = self.journal.runs(&RunFilter::default()).await?;
        let stale: Vec<RunHead> = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let fresh = |head: &RunHead| known.runs.get(&head.run).is_some_and(|run| run.head == *head);
            heads.iter().filter(|head| !is_ledger(head) && !fresh(head)).cloned().collect()
        };
        let mut refreshed = Refreshed { changed: self.drop_lost(&heads), skipped: Vec::new() };
        open.retain(|run, _| heads.binary_search_by(|head| head.run.as_str().cmp(run)).is_ok());
        for head in stale {
            // What was folded under another revision, or of a run that began anew, says nothing of this one.
            let begun = open.remove(&head.run).filter(|(revision, state)| {
                (*revision, state.started_at_ms) == (head.revision, head.started_at_ms)
                    && state.last_seq <= head.last_seq
            });
            let mut state = begun.map_or_else(|| WorkflowState::new(&*head.run), |(_, state)| state);
            match state.advance(&self.journal).await {
                Ok(()) => {}
                // Its head is all that is left of it.
                Err(error) if is_erased(&error) => state = WorkflowState::new(&*head.run),
                Err(error) => {
                    refreshed.skip(&head.run, error)?;
                    continue;
                }
            }
            let now = self.journal.head(&head.run).await?;
            if now.is_none_or(|now| now.revision != head.revision) {
                // It was rewritten or removed while it was read: the next refresh finds it as it is.
                continue;
            }
            let summary = RunSummary::of(&head, &state);
            self.known.write().unwrap_or_else(PoisonError::into_inner).put(summary);
            if head.status == RunStatus::Running {
                open.insert(head.run, (head.revision, state));
            }
            refreshed.changed += 1;
        }
        Ok(refreshed)
    }

    fn drop_lost(&self, heads: &[RunHead]) -> usize {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let here: BTreeSet<&str> = heads.iter().map(|head| &*head.run).collect();
        let lost: Vec<String> = known.runs.keys().filter(|run| !here.contains(&***run)).cloned().collect();
        for run in &lost {
            known.remove(run);
        }
        lost.len()
    }

    /// One page of the runs that match, as of the last refresh.
    pub fn query(&self, query: &RunQuery) -> RunPage {
        let words = query.text.as_deref().map(words).unwrap_or_default();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<(u64, &Arc<RunSummary>)> = match known.candidates(query) {
            Some(ids) => self.matching(query, &words, ids.iter().filter_map(|id| known.runs.get(id))),
            None => self.matching(query, &words, known.runs.values()),
        };
        let total = found.len();
        if let Some(after) = &query.after {
            found.retain(|(key, run)| {
                query.order((*key, &run.head.run), (after.key, &after.run)) == Ordering::Greater
            });
        }
        let order = |a: &(u64, &Arc<RunSummary>), b: &(u64, &Arc<RunSummary>)| {
            query.order((a.0, &a.1.head.run), (b.0, &b.1.head.run))
        };
        let more = found.len() > query.limit;
        if more && query.limit > 0 {
            // Only the page itself need be sorted.
            found.select_nth_unstable_by(query.limit - 1, order);
        }
        found.truncate(query.limit);
        found.sort_unstable_by(order);
        let last = found.last().filter(|_| more);
        RunPage {
            next: last.map(|(key, run)| Cursor { key: *key, run: run.head.run.clone() }),
            runs: found.into_iter().map(|(_, run)| run.clone()).collect(),
            total,
            exact: true,
        }
    }

    fn matching<'a>(
        &self,
        query: &RunQuery,
        words: &[String],
        runs: impl Iterator<Item = &'a Arc<RunSummary>>,
    ) -> Vec<(u64, &'a Arc<RunSummary>)> {
        runs.filter(|run| query.matches(run, words)).map(|run| (query.key(run), run)).collect()
    }
}

impl fmt::Debug for RunIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunIndex").finish_non_exhaustive()
    }
}
