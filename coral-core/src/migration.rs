//! Going on with a run under another definition than the one it began with.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::event::{Event, Pins, Record, Renamed, Seq};
use crate::graph::{Graph, GraphData};
use crate::journal::{Journal, PAGE};
use crate::machine::{Machine, StepState};
use crate::program;

/// A declared way from one definition of a workflow to another: what lets a run that began under the old one go
/// on under the new.
///
/// Steps keep their state by their paths: what is done stays done, a new step runs, and of a step that is gone
/// nothing more is heard. A step that is at work can't be renamed, and not go on under another agent, unless it is
/// [restarted](Self::restart). The migration is recorded in the run's journal, with its reason.
///
/// ```
/// use coral_core::{Flow, Handle, Migration, Program, Workflow};
///
/// struct Report;
/// impl Workflow for Report {
///     type Input = String;
///     type Output = String;
///     fn name(&self) -> &str {
///         "report"
///     }
///     fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
///         flow.function("draft", flow.input(), |topic: String| async move { Ok(topic) })
///     }
/// }
///
/// # fn main() -> Result<(), coral_core::Error> {
/// # let old = Program::new(&Report)?;
/// // The old definition's digest is in the error that refused the run, and in `program.pins().digest()`.
/// let program = Program::new(&Report)?
///     .with_migration(Migration::of(old.pins().digest(), "`write` is called `draft` now").rename("write", "draft"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    from: String,
    reason: Arc<str>,
    renamed: Renamed,
    restarted: BTreeSet<Arc<str>>,
}

impl Migration {
    /// A migration of runs that are pinned to the definition with this digest: see
    /// [`Pins::digest`](crate::Pins::digest). `reason` is recorded.
    pub fn of(digest: impl Into<String>, reason: impl Into<Arc<str>>) -> Self {
        let (renamed, restarted) = (Renamed::new(), BTreeSet::new());
        Migration { from: digest.into(), reason: reason.into(), renamed, restarted }
    }

    /// A step of the workflow has another name now.
    #[must_use]
    pub fn rename(mut self, old: impl Into<Arc<str>>, new: impl Into<Arc<str>>) -> Self {
        self.renamed.insert(old.into(), new.into());
        self
    }

    /// If the step at this path, as it is called now, is at work, its attempt is given up, and another
    /// begins under the new definition. What the attempt did that can't be repeated is kept.
    #[must_use]
    pub fn restart(mut self, path: impl Into<Arc<str>>) -> Self {
        self.restarted.insert(path.into());
        self
    }
}

/// The definitions that a run has had.
pub(crate) struct Lineage {
    pub(crate) graph: Arc<GraphData>,
    pub(crate) pins: Arc<Pins>,
    /// What each migration renamed, by its place in the journal.
    steps: Vec<(Seq, Arc<Renamed>)>,
}

impl Lineage {
    /// Of a run that begins with `first`, if it begins as runs do.
    pub(crate) fn new(first: Option<&Record>) -> Option<Self> {
        let Event::RunStarted { graph, pins, .. } = &first?.event else { return None };
        Some(Lineage { graph: graph.clone(), pins: pins.clone(), steps: Vec::new() })
    }

    /// Takes note of `record`, if it is a migration.
    pub(crate) fn apply(&mut self, record: &Record) {
        if let Event::Migrated { graph, pins, renamed, .. } = &record.event {
            (self.graph, self.pins) = (graph.clone(), pins.clone());
            self.steps.push((record.seq, renamed.clone()));
        }
    }

    /// Reads the whole journal of a run for its migrations.
    pub(crate) async fn read(journal: &dyn Journal, run: &str) -> Result<Option<Self>, Error> {
        let mut page = journal.read(run, 1, PAGE).await?;
        let Some(mut lineage) = Lineage::new(page.first()) else { return Ok(None) };
        while let Some(last) = page.last().map(|record| record.seq) {
            page.iter().for_each(|record| lineage.apply(record));
            let full = page.len() == PAGE;
            page = if full { journal.read(run, last + 1, PAGE).await? } else { Vec::new() };
        }
        Ok(Some(lineage))
    }

    /// Adds a migration that is not recorded yet.
    pub(crate) fn then(&mut self, migration: &Migration) {
        self.steps.push((Seq::MAX, Arc::new(migration.renamed.clone())));
    }

    /// Whether a migration is recorded at `seq`.
    pub(crate) fn knows(&self, seq: Seq) -> bool {
        self.steps.iter().any(|(at, _)| *at == seq)
    }

    /// `record` with its step as it is called in the end.
    pub(crate) fn rename<'a>(&self, record: &'a Record) -> Cow<'a, Record> {
        let mut record = Cow::Borrowed(record);
        let seq = record.seq;
        for (_, renamed) in self.steps.iter().filter(|(at, _)| *at > seq) {
            if !renamed.is_empty() {
                record.to_mut().event.rename(renamed);
            }
        }
        record
    }

    /// The machine of this run after `records`, the first of its journal.
    pub(crate) fn fold(records: &[Record]) -> Result<Option<Machine>, Error> {
        let Some(mut lineage) = Lineage::new(records.first()) else { return Ok(None) };
        records.iter().for_each(|record| lineage.apply(record));
        let mut machine = Machine::new(Arc::new(Graph::new((*lineage.graph).clone())?));
        for record in records {
            machine.on_event(&lineage.rename(record).event, &mut Vec::new());
        }
        Ok(Some(machine))
    }

    /// Whether the run may go on under `program`: by a migration, if one is needed.
    pub(crate) fn check<'a>(
        &self,
        run: &str,
        program: &program::Inner,
        migrations: &'a [Migration],
    ) -> Result<Option<&'a Migration>, Error> {
        let (pins, now) = (&self.pins, &program.pins);
        if pins == now {
            return Ok(None);
        }
        let digest = pins.digest();
        if let Some(migration) = migrations.iter().find(|migration| migration.from == digest) {
            return Ok(Some(migration));
        }
        let mut differences = Graph::new((*self.graph).clone())
            .map(|began| began.diff(program.graph.data()))
            .unwrap_or_default();
        for (id, was) in &pins.agents {
            match now.agents.get(id) {
                None => differences.push(format!("agent `{id}` is gone")),
                Some(is) if is != was => differences.push(format!("the definition of agent `{id}` differs")),
                Some(_) => {}
            }
        }
        for id in now.agents.keys().filter(|id| !pins.agents.contains_key(*id)) {
            differences.push(format!("agent `{id}` is new"));
        }
        let changed = ErrorKind::DefinitionChanged { run: run.to_owned(), diff: differences.join("; ") };
        Err(Error::new(changed).with_help(format!(
            "resume it under the definition that it began with, start a new run, or declare a \
             `Migration::of(\"{digest}\", ..)`"
        )))
    }

    /// What is to be recorded when the run goes on by `migration`, whose journal is folded into `machine`.
    /// `at_work` are the steps that have begun and not ended, as they are called now.
    pub(crate) fn migrate(
        &self,
        migration: &Migration,
        program: &program::Inner,
        machine: &Machine,
        at_work: &[Arc<str>],
    ) -> Result<Event, Error> {
        let mut problems = Vec::new();
        let mut restarted = migration.restarted.clone();
        for path in at_work {
            let step = machine.step(path);
            if migration.restarted.contains(path) {
                if step.is_some_and(|step| machine.is_open(step)) {
                    problems
                        .push(format!("`{path}` holds steps at work and can't be restarted; restart those"));
                }
                continue;
            }
            let root = path.split('/').next();
            let is_renamed = migration.renamed.values().any(|new| Some(&**new) == root);
            let agent = step.and_then(|step| machine.data(step)?.kind.agent().cloned());
            let differs = agent.is_some_and(|id| self.pins.agents.get(&*id) != program.pins.agents.get(&*id));
            match step.and_then(|step| machine.state(step)) {
                // A budget stopped it: under another definition it begins anew.
                Some(StepState::Failed(_)) if differs || is_renamed => {
                    restarted.insert(path.clone());
                }
                None => problems.push(format!("`{path}` is at work and is gone")),
                // The keys of its effects and the ids of its questions hold the name.
                _ if is_renamed => problems.push(format!("`{path}` is at work and had another name")),
                Some(StepState::Running { .. }) if differs => {
                    problems.push(format!("`{path}` is at work and its agent has another definition"));
                }
                Some(_) => {}
            }
        }
        let unknown = migration.restarted.iter().chain(migration.renamed.values());
        for path in unknown.filter(|path| machine.step(path).is_none()) {
            problems.push(format!("there is no step `{path}`"));
        }
        if !problems.is_empty() {
            let what = format!("migration `{}`", migration.reason);
            return Err(Error::new(ErrorKind::Problems { what, problems })
                .with_help("let the steps at work end under the old definition, or restart them"));
        }
        Ok(Event::Migrated {
            graph: program.graph.data().clone(),
            pins: program.pins.clone(),
            renamed: Arc::new(migration.renamed.clone()),
            restarted: restarted.into_iter().collect(),
            reason: migration.reason.clone(),
        })
    }
}

/// How `path` is called now, if it or a step around it has another name.
pub(crate) fn renamed_path(path: &str, renamed: &Renamed) -> Option<Arc<str>> {
    let (root, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
    renamed.get(root).map(|new| format!("{new}{rest}").into())
}
