//! Starting, resuming and forking runs.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::Value;

use crate::budget::Budget;
use crate::cache::Blobs;
use crate::clock::{Clock, SystemClock};
use crate::driver::{Driver, RunEnd, RunShared, ToDriver};
use crate::error::Error;
#[expect(unused_imports, reason = "named in the documentation")]
use crate::error::ErrorKind;
use crate::event::{EVENT_FORMAT, Event, ForkPoint, Record, RunStatus, Seq};
use crate::graph::RetryPolicy;
use crate::journal::{Journal, MemoryJournal, PAGE, RunFilter};
use crate::machine::Machine;
use crate::migration::Lineage;
use crate::model::{ChatModel, Delta};
use crate::offload::OffloadingJournal;
use crate::payload::Payload;
use crate::program::{IntoProgram, Program};
use crate::resources::Resources;
use crate::run::Run;
use crate::task::Brief;
use crate::tool::{NoTools, Toolbox};

type DeltaListener = Arc<dyn Fn(&Arc<str>, &Delta) + Send + Sync>;

/// What a runner stands on.
pub(crate) struct Ports {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) model: Arc<dyn ChatModel>,
    pub(crate) tools: Arc<dyn Toolbox>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) retry: RetryPolicy,
    pub(crate) on_delta: Option<DeltaListener>,
    pub(crate) resources: Option<Resources>,
}

/// Runs workflows. Cheap to clone; one runner drives any number of runs at once, on the tokio
/// runtime that it is called from.
#[derive(Clone)]
pub struct Runner {
    ports: Arc<Ports>,
    active: Arc<Mutex<HashMap<Arc<str>, Weak<RunShared>>>>,
    draining: Arc<AtomicBool>,
}

/// What a [`Runner`] stands on; each part has a default.
#[must_use]
pub struct RunnerBuilder {
    ports: Ports,
    blobs: Option<Arc<dyn Blobs>>,
}

impl RunnerBuilder {
    /// Where runs are recorded. Default: a [`MemoryJournal`], which forgets with the process.
    pub fn journal(mut self, journal: impl Journal + 'static) -> Self {
        self.ports.journal = Arc::new(journal);
        self
    }

    /// Where values go that are too large for the journal, which then holds their digests: see
    /// [`OffloadingJournal`]. Default: nowhere, and the journal holds all.
    pub fn blobs(mut self, blobs: impl Blobs + 'static) -> Self {
        self.blobs = Some(Arc::new(blobs));
        self
    }

    /// The model that agents talk to. Default: none, and each model call fails.
    pub fn model(mut self, model: impl ChatModel + 'static) -> Self {
        self.ports.model = Arc::new(model);
        self
    }

    /// The tools that agents may call. Default: none.
    pub fn tools(mut self, tools: impl Toolbox + 'static) -> Self {
        self.ports.tools = Arc::new(tools);
        self
    }

    /// Time and chance. Default: the system's.
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.ports.clock = Arc::new(clock);
        self
    }

    /// How often a call that failed transiently is made within one effect. Default: four times,
    /// half a second apart and doubling.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.ports.retry = retry;
        self
    }

    /// Listens to answers while they stream: the step's path and the piece. For display alone;
    /// the listener must not block.
    pub fn on_delta(mut self, listener: impl Fn(&Arc<str>, &Delta) + Send + Sync + 'static) -> Self {
        self.ports.on_delta = Some(Arc::new(listener));
        self
    }

    /// What agents share: each waits for its permit before it works, and gives it back while it
    /// waits for a person, a time or a signal. Default: no bounds.
    pub fn resources(mut self, resources: Resources) -> Self {
        self.ports.resources = Some(resources);
        self
    }

    /// The runner.
    pub fn build(mut self) -> Runner {
        if let Some(blobs) = self.blobs {
            self.ports.journal = Arc::new(OffloadingJournal::new(self.ports.journal, blobs));
        }
        Runner { ports: Arc::new(self.ports), active: Arc::default(), draining: Arc::default() }
    }
}

/// How a run is started.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StartOptions {
    /// The run's id: letters, digits, `-`, `_` and `.`, at most 128. Default: the workflow's name,
    /// the time and a drawn number.
    pub id: Option<String>,
    /// The project that the run belongs to. Default: that of the [`Brief`], if the input is one.
    pub project: Option<String>,
    /// Facts that conditions ask for, over those of the [`Brief`], if the input is one.
    pub facts: BTreeMap<String, Value>,
    /// What the run may use. Default: no limits.
    pub budget: Budget,
}

impl StartOptions {
    /// All default.
    pub fn new() -> Self {
        StartOptions::default()
    }

    /// Sets the run's id.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the project.
    #[must_use]
    pub fn project(mut self, project: impl Into<String>) -> Self {
        self.project = Some(project.into());
        self
    }

    /// Limits what the run may use.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Adds a fact.
    #[must_use]
    pub fn fact(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.facts.insert(name.into(), value.into());
        self
    }
}

/// How a run is resumed.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ResumeOptions {
    /// By how much each limit of the run's budgets is raised.
    pub top_up: Budget,
}

impl ResumeOptions {
    /// All default.
    pub fn new() -> Self {
        ResumeOptions::default()
    }

    /// Raises the limits of the run's budgets.
    #[must_use]
    pub fn top_up(mut self, more: Budget) -> Self {
        self.top_up = more;
        self
    }
}

impl Runner {
    /// A runner with all parts at their defaults, to be set.
    pub fn builder() -> RunnerBuilder {
        RunnerBuilder {
            ports: Ports {
                journal: Arc::new(MemoryJournal::new()),
                model: Arc::new(NoModel),
                tools: Arc::new(NoTools),
                clock: Arc::new(SystemClock),
                retry: RetryPolicy::attempts(4),
                on_delta: None,
                resources: None,
            },
            blobs: None,
        }
    }

    /// Where runs are recorded.
    pub fn journal(&self) -> &Arc<dyn Journal> {
        &self.ports.journal
    }

    /// Starts a run. When it returns, the run's beginning is durable.
    ///
    /// The run goes on by itself, whether or not the handle is kept, as long as the tokio runtime
    /// does.
    ///
    /// # Errors
    /// [`Problems`](ErrorKind::Problems) if the workflow can't run; those of the journal.
    pub async fn start<P: IntoProgram>(&self, workflow: P, input: P::Input) -> Result<Run<P::Output>, Error> {
        self.start_with(workflow, input, StartOptions::default()).await
    }

    /// Starts a run with an id, a project or facts of its own.
    ///
    /// # Errors
    /// As [`start`](Self::start); [`Invalid`](ErrorKind::Invalid) if the id can't be one;
    /// [`Conflict`](ErrorKind::Conflict) if there is a run of this id;
    /// [`Limit`](ErrorKind::Limit) while as many steps wait for resources as may.
    pub async fn start_with<P: IntoProgram>(
        &self,
        workflow: P,
        input: P::Input,
        options: StartOptions,
    ) -> Result<Run<P::Output>, Error> {
        self.check_open()?;
        let program = workflow.into_program()?;
        if let Some(resources) = &self.ports.resources {
            resources.admit()?;
        }
        let input = Payload::new(input);
        let brief = input.typed::<Brief>();
        let project =
            options.project.unwrap_or_else(|| brief.map(|brief| brief.project.clone()).unwrap_or_default());
        let mut facts = brief.map(|brief| brief.facts.clone()).unwrap_or_default();
        facts.extend(options.facts);
        let graph = program.graph().data().clone();
        let id = self.id_of(options.id, &graph.name)?;
        // Most runs have neither, and many may wait.
        let project: Arc<str> = if project.is_empty() { Arc::default() } else { project.into() };
        let facts = if facts.is_empty() { NO_FACTS.clone() } else { Arc::new(facts) };
        let shared = RunShared::new(id, project.clone(), facts.clone(), self.ports.clone());
        shared.ledger().open(options.budget.clone(), self.ports.clock.now_ms(), None);
        let mut driver = Driver::new(shared.clone(), program.inner.clone(), 0);
        driver
            .begin(Event::RunStarted {
                format: EVENT_FORMAT,
                project,
                graph,
                pins: program.pins().clone(),
                input,
                facts,
                budget: Box::new(options.budget),
                forked_from: None,
            })
            .await?;
        Ok(self.launch(shared, driver))
    }

    /// The id of a run that begins.
    fn id_of(&self, id: Option<String>, workflow: &str) -> Result<Arc<str>, Error> {
        match id {
            Some(id) => {
                check_id(&id)?;
                Ok(id.into())
            }
            None => {
                let (now, chance) = (self.ports.clock.now_ms(), self.ports.clock.random() >> 32);
                let name: String =
                    workflow.chars().take(64).map(|c| if fits_id(c) { c } else { '-' }).collect();
                Ok(format!("{}-{now:x}-{chance:08x}", name.trim_start_matches('.')).into())
            }
        }
    }

    /// Starts a run that has the first `at` records of another as its own, and goes on from there:
    /// a rollback to any point, inside of nested graphs too. The other run is only read. Effects recorded
    /// up to there are not done again; those after it are done anew, under keys of the new run.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is no such run; [`Invalid`](ErrorKind::Invalid) if it has no
    /// record `at`; else as [`resume`](Self::resume).
    pub async fn fork<P: IntoProgram>(
        &self,
        workflow: P,
        run: &str,
        at: Seq,
        id: Option<String>,
    ) -> Result<Run<P::Output>, Error> {
        self.check_open()?;
        let program = workflow.into_program()?;
        let mut records = self.read(run, Some(at)).await?;
        if records.last().is_none_or(|last| last.seq != at) {
            return Err(Error::invalid(format!("fork of `{run}`"), format!("it has no record {at}")));
        }
        let Some(mut lineage) = Lineage::new(records.first()) else { return Err(not_begun(run)) };
        records.iter().for_each(|record| lineage.apply(record));
        lineage.check(run, &program.inner, &program.migrations)?;
        let workflow = lineage.graph.name.clone();
        if let Some(Record { event: Event::RunStarted { forked_from, .. }, .. }) = records.first_mut() {
            *forked_from = Some(ForkPoint { run: run.into(), seq: at });
        }
        let id = self.id_of(id, &workflow)?;
        self.ports.journal.begin(&id, records.into()).await?;
        self.resume_inner(&program, &id, ResumeOptions::default(), None).await
    }

    /// How a run stood after its record `at`, or stands now: which steps had which outputs. It
    /// needs nothing but the journal.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is no such run; those of the journal.
    pub async fn inspect(&self, run: &str, at: Option<Seq>) -> Result<Machine, Error> {
        let records = self.read(run, at).await?;
        Lineage::fold(&records)?.ok_or_else(|| not_begun(run))
    }

    async fn lineage(&self, run: &str) -> Result<Lineage, Error> {
        Lineage::read(&*self.ports.journal, run).await?.ok_or_else(|| not_begun(run))
    }

    /// The records of a run, up to and with `until`.
    async fn read(&self, run: &str, until: Option<Seq>) -> Result<Vec<Record>, Error> {
        let journal = &self.ports.journal;
        let Some(head) = journal.head(run).await? else { return Err(self.no_such_run(run).await?) };
        let until = until.unwrap_or(Seq::MAX).min(head.last_seq);
        let mut records: Vec<Record> = Vec::new();
        loop {
            let from = records.last().map_or(1, |last| last.seq + 1);
            let missing = usize::try_from(until.saturating_sub(from - 1)).unwrap_or(PAGE).min(PAGE);
            let page = if missing == 0 { Vec::new() } else { journal.read(run, from, missing).await? };
            if page.is_empty() {
                return Ok(records);
            }
            records.extend(page);
        }
    }

    async fn no_such_run(&self, run: &str) -> Result<Error, Error> {
        let runs = self.ports.journal.runs(&RunFilter::default()).await?;
        Ok(Error::not_found("run", run, runs.iter().map(|head| head.run.as_str())))
    }

    /// Takes a run up where its journal ends: after a crash, a shutdown or a failure. What is
    /// recorded is not done again. A run that is over gives its recorded end.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is no such run;
    /// [`DefinitionChanged`](ErrorKind::DefinitionChanged) if it began under another definition;
    /// those of the journal.
    pub async fn resume<P: IntoProgram>(&self, workflow: P, run: &str) -> Result<Run<P::Output>, Error> {
        self.resume_with(workflow, run, ResumeOptions::default()).await
    }

    /// [`resume`](Self::resume) with a top-up of the budget.
    ///
    /// # Errors
    /// As [`resume`](Self::resume).
    pub async fn resume_with<P: IntoProgram>(
        &self,
        workflow: P,
        run: &str,
        options: ResumeOptions,
    ) -> Result<Run<P::Output>, Error> {
        let program = workflow.into_program()?;
        self.resume_inner(&program, run, options, None).await
    }

    async fn resume_inner<I, O>(
        &self,
        program: &Program<I, O>,
        run: &str,
        options: ResumeOptions,
        lineage: Option<Lineage>,
    ) -> Result<Run<O>, Error> {
        self.check_open()?;
        let journal = &self.ports.journal;
        if journal.head(run).await?.is_none() {
            return Err(self.no_such_run(run).await?);
        }
        // Checked before the run is taken over: whoever works on it goes on if this process must not.
        let first = journal.read(run, 1, 1).await?.pop();
        let Some(Record {
            event: Event::RunStarted { format, project, pins, facts, budget, forked_from, .. },
            at_ms,
            ..
        }) = &first
        else {
            return Err(not_begun(run));
        };
        if *format > EVENT_FORMAT {
            return Err(Error::invalid(
                format!("run `{run}`"),
                format!("it is recorded in format {format}, this release reads up to {EVENT_FORMAT}"),
            )
            .with_help("resume it with the release that wrote it, or a newer one"));
        }
        // Only a run that was migrated, or is to be, needs another look at its journal first.
        let mut lineage = match lineage {
            Some(lineage) => lineage,
            None if *pins != program.inner.pins => self.lineage(run).await?,
            None => Lineage::new(first.as_ref()).ok_or_else(|| not_begun(run))?,
        };
        let migration = lineage.check(run, &program.inner, &program.migrations)?;
        let epoch = journal.acquire(run).await?;
        let mut page = journal.read(run, 1, PAGE).await?;
        migration.into_iter().for_each(|migration| lineage.then(migration));
        let shared = RunShared::new(run.into(), project.clone(), facts.clone(), self.ports.clone());
        let forked_at = forked_from.as_ref().map(|point| point.seq);
        shared.ledger().open((**budget).clone(), *at_ms, forked_at);
        let mut driver = Driver::new(shared.clone(), program.inner.clone(), epoch);
        let mut finished = None;
        while let Some(last) = page.last().map(|record| record.seq) {
            for record in &page {
                if matches!(record.event, Event::Migrated { .. }) && !lineage.knows(record.seq) {
                    // It began under this definition, and was migrated away from it.
                    let lineage = self.lineage(run).await?;
                    return Box::pin(self.resume_inner(program, run, options, Some(lineage))).await;
                }
                driver.replay(&lineage.rename(record));
                if let Event::RunFinished { status, output, error } = &record.event {
                    finished = Some((*status, output.clone(), error.clone()));
                }
            }
            let full = page.len() == PAGE;
            page = if full { journal.read(run, last + 1, PAGE).await? } else { Vec::new() };
        }
        match finished {
            Some((status @ (RunStatus::Succeeded | RunStatus::Cancelled), output, error))
                if driver.machine.status() == status =>
            {
                // An output that is `null` reads back as none.
                let output = output.or_else(|| (status == RunStatus::Succeeded).then(Payload::null));
                shared.finish(RunEnd::Finished { status, output, error });
                Ok(Run::new(shared))
            }
            _ => {
                if let Some(migration) = migration {
                    let (inner, at_work) = (&program.inner, driver.at_work());
                    driver.begin(lineage.migrate(migration, inner, &driver.machine, &at_work)?).await?;
                }
                if !options.top_up.is_unlimited() {
                    driver.begin(Event::BudgetToppedUp { more: Box::new(options.top_up) }).await?;
                }
                driver.begin(Event::RunResumed { epoch }).await?;
                Ok(self.launch(shared, driver))
            }
        }
    }

    /// Resumes every unfinished run of `program`: what a service calls when it starts. A run that
    /// can't be resumed is reported in its place and does not keep the others from going on.
    ///
    /// # Errors
    /// Those of the journal when it lists its runs.
    pub async fn recover<I, O>(
        &self,
        program: &Program<I, O>,
    ) -> Result<Vec<(String, Result<Run<O>, Error>)>, Error> {
        let mut filter = RunFilter::unfinished();
        filter.workflow = Some(program.graph().data().name.clone());
        let mut runs = Vec::new();
        for head in self.ports.journal.runs(&filter).await? {
            if self.is_active(&head.run) {
                continue;
            }
            let run = self.resume_inner(program, &head.run, ResumeOptions::default(), None).await;
            runs.push((head.run, run));
        }
        Ok(runs)
    }

    /// Suspends every run of this runner at its next durable point, and waits until all stand.
    /// Calls in flight are dropped; the runs can be resumed, here or in another process.
    pub async fn shutdown(&self) {
        self.stop(|| ToDriver::Suspend).await;
    }

    /// Ends gracefully: takes no run any more, begins no step any more, and waits until the steps that work are
    /// over, but at most for `patience`; then [shuts down](Self::shutdown). No call is cut off that ends in
    /// time. Steps that wait for a person, a time or a signal are not waited for. The runs can be
    /// resumed in another process. Says whether no step had to be cut off.
    pub async fn drain(&self, patience: Duration) -> bool {
        self.draining.store(true, Ordering::SeqCst);
        let drained = tokio::time::timeout(patience, self.stop(|| ToDriver::Drain)).await.is_ok();
        self.shutdown().await;
        drained
    }

    /// Sends `letter` to every active run, and waits until all stand.
    async fn stop(&self, letter: impl Fn() -> ToDriver) {
        let active: Vec<Arc<RunShared>> = {
            let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            active.values().filter_map(Weak::upgrade).collect()
        };
        for run in &active {
            run.send(letter()).await;
        }
        for run in &active {
            run.ended().await;
        }
    }

    fn check_open(&self) -> Result<(), Error> {
        match self.draining.load(Ordering::SeqCst) {
            true => Err(Error::invalid("runner", "it is shutting down and takes no run")
                .with_help("start or resume the run on another runner")),
            false => Ok(()),
        }
    }

    fn is_active(&self, run: &str) -> bool {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.get(run).and_then(Weak::upgrade).is_some_and(|run| run.end().is_none())
    }

    fn launch<O>(&self, shared: Arc<RunShared>, driver: Driver) -> Run<O> {
        {
            let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            if active.len() >= 2 * active.capacity().max(32) / 3 {
                active.retain(|_, run| run.upgrade().is_some_and(|run| run.end().is_none()));
            }
            active.insert(shared.id.clone(), Arc::downgrade(&shared));
        }
        if self.draining.load(Ordering::SeqCst) {
            // It began while the runner began to drain, which may have missed it.
            shared.begin_draining();
        }
        tokio::spawn(Box::new(driver).drive());
        Run::new(shared)
    }
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").field("model", &self.ports.model.name()).finish_non_exhaustive()
    }
}

static NO_FACTS: LazyLock<Arc<BTreeMap<String, Value>>> = LazyLock::new(Arc::default);

fn not_begun(run: &str) -> Error {
    Error::storage("reading the journal", format!("run `{run}` does not begin with `run_started`"))
}

fn fits_id(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

fn check_id(id: &str) -> Result<(), Error> {
    if id.is_empty() || id.len() > 128 || !id.chars().all(fits_id) || id.starts_with('.') {
        return Err(Error::invalid(
            format!("run id `{id}`"),
            "it must be letters, digits, `-`, `_` and `.`, not begin with `.`, and be at most 128 long",
        ));
    }
    Ok(())
}

/// Stands where no model was given.
struct NoModel;

#[async_trait::async_trait]
impl ChatModel for NoModel {
    fn name(&self) -> &str {
        "none"
    }

    async fn chat(
        &self,
        _request: &crate::model::ChatRequest,
        _cx: &crate::call::CallContext,
    ) -> Result<crate::model::ChatResponse, Error> {
        Err(Error::invalid("model call", "the runner has no model")
            .with_help("give the runner one: `Runner::builder().model(..)`"))
    }
}
