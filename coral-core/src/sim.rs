//! Simulation: a workflow under crashes, faults and odd timing, the same for the same seed.
//!
//! A [`Simulation`] runs a scenario once in calm, and then once for each seed, with the [`Faults`] that
//! the seed draws: appends that die before or after they land, processes that are killed in between, answers that
//! are late, cut off or bad JSON, tools that are away or get a call twice, a clock that jumps. After each
//! crash a fresh [`Runner`] takes the run up from its journal, as a restarted process would. Whatever the
//! scenario returns must be what it returned in calm. Time is virtual: an hour of waiting takes nothing.
//!
//! A failure names its seed, and the fewest faults that were found to bring it about.
//!
//! ```
//! use coral_core::sim::{Faults, Simulation};
//! use coral_core::{AgentError, Flow, Handle, Workflow};
//!
//! struct Double;
//!
//! impl Workflow for Double {
//!     type Input = u32;
//!     type Output = u32;
//!     fn name(&self) -> &str {
//!         "double"
//!     }
//!     fn build(&self, flow: &mut Flow<u32>) -> Handle<u32> {
//!         let one = flow.function("one", flow.input(), |n: u32| async move { Ok(n + 1) });
//!         flow.function("two", &one, |n: u32| async move { Ok(n * 2) })
//!     }
//! }
//!
//! let report = Simulation::new().seeds(0..50).faults(Faults::all()).explore(|world| async move {
//!     world.run(&Double, 20).await
//! });
//! let report = report.unwrap_or_else(|found| panic!("{found}"));
//! assert_eq!(report.calm, 42);
//! assert!(report.crashes > 0);
//! ```
//!
//! # What it does not do
//! Steps interleave by the delays that are drawn for their calls and appends, on one thread: code of a scenario
//! that calls nothing of the [`World`] runs in the order of the scheduler. Threads that the scenario
//! starts by itself are not simulated.

mod chance;
mod ports;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::Value;
use tokio::task::AbortHandle;

pub use self::chance::Injected;
use self::chance::{Chance, Site};
use self::ports::{DyingJournal, FaultyModel, FaultyTools, JumpingClock};
use crate::agent::panicked;
use crate::error::{Error, ErrorClass, ErrorKind};
use crate::event::{EffectKind, Event, Outcome, Question, Record};
use crate::journal::{Journal, MemoryJournal};
use crate::model::ChatModel;
use crate::program::{IntoProgram, Program};
use crate::run::Run;
use crate::runner::{Runner, RunnerBuilder, StartOptions};
use crate::tool::Toolbox;

/// How many crashes and failures a run is taken up after; then it runs in calm.
const LIVES: u32 = 12;

/// How many milliseconds a run may take, in virtual time, before it counts as stuck.
const STUCK_MS: u64 = 400 * 24 * 3_600_000;

/// How many faults are left out, one by one, to find those that matter.
const SHRINKS: usize = 64;

/// How likely each fault is, in thousandths of the occasions for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Faults {
    /// An append to the journal kills the process: in one half of the cases the records have landed.
    pub crash: u16,
    /// The process is killed at a moment of its own.
    pub kill: u16,
    /// Another process takes the run over at a moment of its own, while the first one still works on it.
    pub takeover: u16,
    /// A model call is refused for its rate, with a hint when to come again.
    pub rate_limit: u16,
    /// A model's answer breaks off.
    pub cut_answer: u16,
    /// An answer that must be JSON is half of it.
    pub bad_json: u16,
    /// A tool's server is away before it takes the call.
    pub tool_away: u16,
    /// A call of a tool that may be repeated reaches it twice, under the same key.
    pub twice: u16,
    /// The clock jumps, by up to an hour, forward or back.
    pub clock_jump: u16,
    /// Each call and append takes up to so many milliseconds.
    pub max_delay_ms: u64,
}

impl Faults {
    /// None, and no delays.
    pub const fn none() -> Self {
        Faults {
            crash: 0,
            kill: 0,
            takeover: 0,
            rate_limit: 0,
            cut_answer: 0,
            bad_json: 0,
            tool_away: 0,
            twice: 0,
            clock_jump: 0,
            max_delay_ms: 0,
        }
    }

    /// Each of them now and then.
    pub const fn all() -> Self {
        Faults {
            crash: 60,
            kill: 300,
            takeover: 100,
            rate_limit: 50,
            cut_answer: 30,
            bad_json: 30,
            tool_away: 50,
            twice: 100,
            clock_jump: 50,
            max_delay_ms: 40,
        }
    }
}

impl Default for Faults {
    fn default() -> Self {
        Faults::all()
    }
}

/// Runs a scenario under many seeds.
#[derive(Clone, Debug)]
#[must_use]
pub struct Simulation {
    seeds: Range<u64>,
    faults: Faults,
}

impl Default for Simulation {
    fn default() -> Self {
        Simulation { seeds: 0..200, faults: Faults::all() }
    }
}

/// What a simulation found in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explored<T> {
    /// What the scenario returned in calm, and under each seed.
    pub calm: T,
    /// Seeds that were tried.
    pub seeds: u64,
    /// Faults that were injected, crashes among them.
    pub faults: u64,
    /// Processes that died.
    pub crashes: u64,
}

/// What a simulation found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// The seed; `None` if it went wrong in calm.
    pub seed: Option<u64>,
    /// What went wrong.
    pub problem: String,
    /// The fewest faults that were found to bring it about, in their order.
    pub faults: Vec<Injected>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(seed) = self.seed else { return write!(f, "in calm, without any fault: {}", self.problem) };
        write!(f, "seed {seed}: {}", self.problem)?;
        for fault in &self.faults {
            write!(f, "\n  after {fault}")?;
        }
        write!(f, "\nrun it again with `.seeds({seed}..{})`", seed + 1)
    }
}

impl std::error::Error for Found {}

impl Simulation {
    /// Two hundred seeds, under all faults.
    pub fn new() -> Self {
        Simulation::default()
    }

    /// Sets the seeds.
    pub fn seeds(mut self, seeds: Range<u64>) -> Self {
        self.seeds = seeds;
        self
    }

    /// Sets how likely each fault is.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// Runs `scenario` in calm and under each seed, each time in a [`World`] of its own. What it returns must
    /// always be the same; a panic of its is a failure too.
    ///
    /// It blocks this thread, on a runtime of its own: call it from a plain test, not from an async one.
    ///
    /// # Errors
    /// [`Found`] for the first seed under which the scenario fails, or returns something else.
    pub fn explore<T, F, Fut>(&self, scenario: F) -> Result<Explored<T>, Box<Found>>
    where
        T: PartialEq + fmt::Debug,
        F: Fn(World) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let (calm, _) = live(&Chance::new(0, Faults::none(), BTreeSet::new()), &scenario);
        let calm = calm.map_err(|problem| Box::new(Found { seed: None, problem, faults: Vec::new() }))?;
        let mut explored = Explored { calm, seeds: 0, faults: 0, crashes: 0 };
        for seed in self.seeds.clone() {
            let attempt = |spared: &BTreeSet<Site>| {
                let chance = Chance::new(seed, self.faults, spared.clone());
                let (outcome, crashes) = live(&chance, &scenario);
                let problem = match outcome {
                    Ok(value) if value == explored.calm => None,
                    Ok(value) => Some(format!("it gave {value:?}; in calm it gave {:?}", explored.calm)),
                    Err(problem) => Some(problem),
                };
                (problem, chance.injected(), crashes)
            };
            let (problem, faults, crashes) = attempt(&BTreeSet::new());
            if let Some(problem) = problem {
                return Err(Box::new(shrink(seed, problem, faults, attempt)));
            }
            explored.seeds += 1;
            explored.faults += faults.len() as u64;
            explored.crashes += crashes;
        }
        Ok(explored)
    }
}

/// Leaves faults out, one by one, as long as it still goes wrong.
fn shrink(
    seed: u64,
    problem: String,
    faults: Vec<Injected>,
    attempt: impl Fn(&BTreeSet<Site>) -> (Option<String>, Vec<Injected>, u64),
) -> Found {
    let mut found = Found { seed: Some(seed), problem, faults };
    let mut spared = BTreeSet::new();
    for fault in found.faults.clone().into_iter().take(SHRINKS) {
        let mut fewer = spared.clone();
        fewer.insert(fault.site);
        if let (Some(problem), faults, _) = attempt(&fewer)
            && faults.len() < found.faults.len()
        {
            (found.problem, found.faults) = (problem, faults);
            spared = fewer;
        }
    }
    found
}

/// Runs the scenario once; gives what came of it and how many processes died.
fn live<T, F, Fut>(chance: &Arc<Chance>, scenario: &F) -> (Result<T, String>, u64)
where
    F: Fn(World) -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return (Err(format!("no runtime: {error}")), 0),
    };
    let world = World::new(chance.clone());
    let crashes = world.crashes.clone();
    let outcome = runtime.block_on(AssertUnwindSafe(async { scenario(world).await }).catch_unwind());
    let outcome = match outcome {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(panic) => Err(panicked(&"the scenario".into(), &*panic).to_string()),
    };
    (outcome, crashes.load(Ordering::Relaxed))
}

type Says<T> = dyn Fn(&T) -> Option<Value> + Send + Sync;

/// What runs are told from outside: answers to questions, and signals by name.
#[derive(Clone, Default)]
struct Outside {
    answer: Option<Arc<Says<Question>>>,
    signal: Option<Arc<Says<str>>>,
}

/// What one seed's scenario lives in: a journal that outlives processes, and ports that fail as the seed
/// says.
#[derive(Clone)]
pub struct World {
    chance: Arc<Chance>,
    journal: Arc<MemoryJournal>,
    clock: Arc<JumpingClock>,
    model: Option<Arc<dyn ChatModel>>,
    tools: Option<Arc<dyn Toolbox>>,
    outside: Outside,
    options: StartOptions,
    stands_on: Option<Arc<StandsOn>>,
    crashes: Arc<AtomicU64>,
}

type StandsOn = dyn Fn(RunnerBuilder) -> RunnerBuilder + Send + Sync;

impl World {
    fn new(chance: Arc<Chance>) -> Self {
        World {
            clock: Arc::new(JumpingClock::new(chance.clone())),
            chance,
            journal: Arc::default(),
            model: None,
            tools: None,
            outside: Outside::default(),
            options: StartOptions::new(),
            stands_on: None,
            crashes: Arc::default(),
        }
    }

    /// The seed; 0 in calm.
    pub fn seed(&self) -> u64 {
        self.chance.seed()
    }

    /// Sets the model that agents talk to; it fails as the seed says.
    #[must_use]
    pub fn model(mut self, model: impl ChatModel + 'static) -> Self {
        self.model = Some(Arc::new(FaultyModel::new(model, self.chance.clone())));
        self
    }

    /// Sets the tools that agents call; they fail as the seed says.
    #[must_use]
    pub fn tools(mut self, tools: impl Toolbox + 'static) -> Self {
        self.tools = Some(Arc::new(FaultyTools::new(tools, self.chance.clone())));
        self
    }

    /// Sets how runs are started: with a budget, facts, an id. Without an id a run is called `run`.
    #[must_use]
    pub fn options(mut self, options: StartOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets what else the runner of each process stands on, such as its resources or its policy for retries.
    #[must_use]
    pub fn stands_on(
        mut self,
        parts: impl Fn(RunnerBuilder) -> RunnerBuilder + Send + Sync + 'static,
    ) -> Self {
        self.stands_on = Some(Arc::new(parts));
        self
    }

    /// Answers the questions of runs, as a person would: `None` leaves one open.
    #[must_use]
    pub fn answers(mut self, answer: impl Fn(&Question) -> Option<Value> + Send + Sync + 'static) -> Self {
        self.outside.answer = Some(Arc::new(answer));
        self
    }

    /// Sends the signals that runs wait for, each with what is given for its name; `None` sends none.
    #[must_use]
    pub fn signals(mut self, signal: impl Fn(&str) -> Option<Value> + Send + Sync + 'static) -> Self {
        self.outside.signal = Some(Arc::new(signal));
        self
    }

    /// The journal, which outlives each process: for looking at what is recorded.
    pub fn journal(&self) -> &Arc<MemoryJournal> {
        &self.journal
    }

    /// Waits as long as the seed says, in virtual time: for a service of the scenario's own.
    pub async fn delay(&self, site: &'static str) {
        self.chance.delay(site).await;
    }

    /// Whether the seed lets a fault of the scenario's own happen, that is as likely as so many
    /// thousandths; it is listed with the others under its name.
    pub fn strikes(&self, fault: &'static str, thousandths: u16) -> bool {
        self.chance.strikes(fault, thousandths)
    }

    /// Starts a run, takes it up again after each crash and each failure that is not the caller's, and gives its
    /// output. The journal must then hold each effect's outcome once.
    ///
    /// # Errors
    /// Those of the run; [`Divergence`](ErrorKind::Divergence) and the like are what to look for.
    pub async fn run<P>(&self, workflow: P, input: P::Input) -> Result<P::Output, Error>
    where
        P: IntoProgram,
        P::Input: Clone,
    {
        let program = workflow.into_program()?;
        let mut life = 0;
        loop {
            life += 1;
            let dead = Arc::new(AtomicBool::new(false));
            let outcome = self.live(&program, &input, dead.clone(), life > LIVES).await;
            let dead = dead.load(Ordering::SeqCst);
            self.crashes.fetch_add(u64::from(dead), Ordering::Relaxed);
            match outcome {
                Ok(output) => {
                    self.check().await?;
                    return Ok(output);
                }
                Err(_) if dead && life <= LIVES => {}
                Err(error) if may_go_on(&error) && life <= LIVES => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// One process: until the run is over, or it dies.
    async fn live<I, O>(
        &self,
        program: &Program<I, O>,
        input: &I,
        dead: Arc<AtomicBool>,
        calm: bool,
    ) -> Result<O, Error>
    where
        I: crate::payload::Data + Clone,
        O: crate::payload::Data,
    {
        let chance = if calm { Chance::new(0, Faults::none(), BTreeSet::new()) } else { self.chance.clone() };
        let id = self.options.id.as_deref().unwrap_or("run");
        let runner = self.process(&chance, &dead);
        let run = match self.journal.head(id).await? {
            None => runner.start_with(program, input.clone(), self.options.clone().id(id)).await?,
            Some(_) => runner.resume(program, id).await?,
        };
        let attending = self.attending(&run, &chance);
        let killed = chance.strikes("the process is killed", chance.faults().kill);
        let taken_over =
            !killed && chance.strikes("another process takes the run over", chance.faults().takeover);
        let moment = Duration::from_millis(chance.below("moment of the kill", 2_000));
        let output = tokio::select! {
            output = run.output() => output,
            () = tokio::time::sleep(moment), if killed => {
                // Nothing is recorded from now on, and whoever tries finds that out.
                dead.store(true, Ordering::SeqCst);
                runner.shutdown().await;
                Err(Error::storage("append", "the process was killed"))
            }
            () = tokio::time::sleep(moment), if taken_over => {
                let other = self.process(&chance, &dead).resume(program, id).await?;
                let attending = self.attending(&other, &chance);
                let output = other.output().await;
                drop(attending);
                output
            }
            () = tokio::time::sleep(Duration::from_millis(STUCK_MS)) => {
                let open = run.questions().await.len();
                let what = format!("the run, of which {open} questions are open,");
                Err(Error::new(ErrorKind::TimedOut { what, limit_ms: STUCK_MS }))
            }
        };
        drop(attending);
        // Where another process has the run, this one still tries to work on it until here.
        runner.shutdown().await;
        output
    }

    /// What a process runs workflows with.
    fn process(&self, chance: &Arc<Chance>, dead: &Arc<AtomicBool>) -> Runner {
        let journal = DyingJournal::new(self.journal.clone(), chance.clone(), dead.clone());
        let mut builder = Runner::builder();
        if let Some(stands_on) = &self.stands_on {
            builder = stands_on(builder);
        }
        builder = builder.journal(journal).clock(self.clock.clone());
        if let Some(model) = &self.model {
            builder = builder.model(model.clone());
        }
        if let Some(tools) = &self.tools {
            builder = builder.tools(tools.clone());
        }
        builder.build()
    }

    /// Tells `run` what it waits for, as long as what is returned lives.
    fn attending<O: 'static>(&self, run: &Run<O>, chance: &Arc<Chance>) -> Attending {
        let (outside, run, chance) = (self.outside.clone(), run.clone(), chance.clone());
        Attending(tokio::spawn(outside.attend(run, chance, self.journal.clone())).abort_handle())
    }

    /// Each effect has one outcome.
    async fn check(&self) -> Result<(), Error> {
        let mut seen = BTreeSet::new();
        let id = self.options.id.as_deref().unwrap_or("run");
        for Record { event, .. } in self.journal.read(id, 1, usize::MAX).await? {
            if let Event::EffectDone { path, attempt, index, outcome: Outcome::Ok(_), .. } = event
                && !seen.insert((path.clone(), attempt, index))
            {
                let problem = format!("effect {index} of `{path}`, attempt {attempt}, is recorded twice");
                return Err(Error::storage("reading the journal", problem));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("seed", &self.seed()).finish_non_exhaustive()
    }
}

/// Whether somebody who looks after runs would resume one that failed like this.
fn may_go_on(error: &Error) -> bool {
    let is_found = matches!(error.kind(), ErrorKind::TimedOut { .. } | ErrorKind::Divergence { .. });
    error.class() != ErrorClass::User && !is_found
}

/// The task of somebody who answers questions and sends signals.
struct Attending(AbortHandle);

impl Drop for Attending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Outside {
    async fn attend<O>(self, run: Run<O>, chance: Arc<Chance>, journal: Arc<MemoryJournal>) {
        let mut awaited = BTreeMap::new();
        let mut events = run.events(1);
        while let Some(Ok(record)) = events.next().await {
            match &record.event {
                Event::QuestionAsked { question, .. } => {
                    if let Some(answer) = &self.answer
                        && let Some(value) = answer(question)
                    {
                        chance.delay("answer").await;
                        // One that was answered before a crash stays as it was answered.
                        let _ = run.answer(&question.id, value, "simulation").await;
                    }
                }
                Event::EffectIntended { effect: EffectKind::Signal, label: name, .. } => {
                    if let Some(signal) = &self.signal
                        && let Some(value) = signal(name)
                    {
                        let count: &mut usize = awaited.entry(name.clone()).or_default();
                        *count += 1;
                        chance.delay("signal").await;
                        // One that came before a crash is there.
                        if received(&journal, run.id(), name).await < *count {
                            let _ = run.signal(name, value).await;
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// How many signals of this name are recorded.
async fn received(journal: &MemoryJournal, run: &str, name: &str) -> usize {
    let records = journal.read(run, 1, usize::MAX).await.unwrap_or_default();
    let is_it = |record: &&Record| matches!(&record.event, Event::SignalReceived { name: came, .. } if **came == *name);
    records.iter().filter(is_it).count()
}
