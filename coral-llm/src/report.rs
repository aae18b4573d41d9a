//! What runs cost, read from their journals.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use coral_core::{
    EffectKind, Error, Event, GraphData, Journal, Record, RunFilter, Seq, StepKind, Usage, Usd,
};
use serde::Serialize;
use serde_json::Value;

use crate::note;
use crate::relay::added;

/// What one model call of a run used and cost. A tool that called a model is one, too.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CallCost {
    /// The project.
    pub project: Arc<str>,
    /// The run.
    pub run: Arc<str>,
    /// The step's path in the run.
    pub path: Arc<str>,
    /// The step's attempt.
    pub attempt: u32,
    /// The effect's index in the attempt.
    pub index: u32,
    /// The agent; empty for a function step.
    pub agent: Arc<str>,
    /// The model that answered, in the provider's words; empty if none did.
    pub model: Arc<str>,
    /// Tokens, those of tries that were no good included.
    pub usage: Usage,
    /// What it cost, where the price is known.
    pub cost: Option<Usd>,
    /// What it would have cost at the most expensive model that fits, where a router chose.
    pub dearest: Option<Usd>,
    /// What the cache saved.
    pub saved_by_cache: Option<Usd>,
    /// Why a router chose the model.
    pub reason: Option<String>,
    /// How often a router went on to another model.
    pub escalations: u32,
}

/// What calls cost together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CostTotal {
    /// Calls that were answered.
    pub calls: u64,
    /// Those of them that the cache answered.
    pub cache_hits: u64,
    /// Those of them whose price is not known: `cost` leaves them out.
    pub unpriced: u64,
    /// Times that a router went on to another model.
    pub escalations: u64,
    /// Tokens.
    pub usage: Usage,
    /// What they cost.
    pub cost: Usd,
    /// What they would have cost without a cache, at the most expensive models that fit.
    pub dearest: Usd,
    /// The part of the saving that is the cache's.
    pub saved_by_cache: Usd,
}

impl CostTotal {
    /// What was saved, by routing and caching.
    pub fn saved(&self) -> Usd {
        self.dearest.saturating_sub(self.cost)
    }

    fn add(&mut self, call: &CallCost) {
        let (cost, by_cache) = (call.cost.unwrap_or_default(), call.saved_by_cache.unwrap_or_default());
        self.calls += 1;
        self.cache_hits += u64::from(call.saved_by_cache.is_some());
        self.unpriced += u64::from(call.cost.is_none());
        self.escalations += u64::from(call.escalations);
        self.usage += call.usage;
        self.cost += cost;
        self.dearest += call.dearest.unwrap_or(cost).max(cost) + by_cache;
        self.saved_by_cache += by_cache;
    }
}

impl fmt::Display for CostTotal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls, {} tokens, {}", self.calls, self.usage.total_tokens(), self.cost)?;
        if self.saved() > Usd::ZERO {
            write!(f, ", {} saved", self.saved())?;
        }
        if self.unpriced > 0 {
            write!(f, ", {} calls of unknown price", self.unpriced)?;
        }
        Ok(())
    }
}

/// What runs cost, per call, step, agent, run and project: a fold over their journals, which say the same whenever they
/// are read.
///
/// What layers of this crate noted about the calls is part of it: why a model was chosen, what the most expensive one
/// that fits would have cost, what a cache saved. Calls whose run was killed before their outcome was recorded are not:
/// only the provider knows of them. The records that a fork shares with its parent are the parent's.
///
/// ```
/// use coral_core::{MemoryJournal, Usd};
/// use coral_llm::CostReport;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), coral_core::Error> {
/// let journal = MemoryJournal::default();
/// let report = CostReport::of_project(&journal, "reef").await?;
/// for (agent, total) in report.by(|call| call.agent.clone()) {
///     println!("{agent}: {total}");
/// }
/// assert_eq!(report.total().cost, Usd::ZERO);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct CostReport {
    runs: BTreeMap<Arc<str>, RunFacts>,
    calls: BTreeMap<Key, Open>,
}

/// What the first record of a run says.
#[derive(Clone, Debug, Default)]
struct RunFacts {
    project: Arc<str>,
    graph: Option<Arc<GraphData>>,
    /// The last record that another run has, too.
    shared: Seq,
}

/// The run, the step, its attempt, the effect's index.
type Key = (Arc<str>, Arc<str>, u32, u32);

/// A call, and whether it is over: its notes stand before its outcome.
#[derive(Clone, Debug, Default)]
struct Open {
    call: CallCost,
    is_chat: bool,
    is_over: bool,
    vain: Vain,
}

/// Records that are read at once.
const BATCH: usize = 1_000;

impl CostReport {
    /// The report of one run.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn of_run(journal: &dyn Journal, run: &str) -> Result<Self, Error> {
        let mut report = CostReport::default();
        report.read(journal, run).await?;
        Ok(report)
    }

    /// The report of all runs of a project.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn of_project(journal: &dyn Journal, project: &str) -> Result<Self, Error> {
        let mut filter = RunFilter::default();
        filter.project = Some(project.to_owned());
        let mut report = CostReport::default();
        for head in journal.runs(&filter).await? {
            report.read(journal, &head.run).await?;
        }
        Ok(report)
    }

    async fn read(&mut self, journal: &dyn Journal, run: &str) -> Result<(), Error> {
        let mut from = 1;
        loop {
            let records = journal.read(run, from, BATCH).await?;
            let Some(last) = records.last() else { return Ok(()) };
            from = last.seq + 1;
            for record in &records {
                self.fold(run, record);
            }
        }
    }

    /// Takes in the next record of a run. All of them must come, in order; those of several runs may mingle.
    pub fn fold(&mut self, run: &str, record: &Record) {
        if let Event::RunStarted { project, graph, forked_from, .. } = &record.event {
            let shared = forked_from.as_ref().map_or(0, |from| from.seq);
            let facts = RunFacts { project: project.clone(), graph: Some(graph.clone()), shared };
            self.runs.insert(run.into(), facts);
        }
        let Some((name, facts)) = self.runs.get_key_value(run) else { return };
        if record.seq <= facts.shared {
            return;
        }
        let (path, attempt, index) = match &record.event {
            Event::EffectIntended { path, attempt, index, .. }
            | Event::CallNoted { path, attempt, index, .. }
            | Event::EffectDone { path, attempt, index, .. } => (path, *attempt, *index),
            _ => return,
        };
        let open = self.calls.entry((name.clone(), path.clone(), attempt, index)).or_insert_with(|| {
            let agent = facts.graph.as_ref().and_then(|graph| agent_at(graph, path)).unwrap_or_default();
            let (project, run, path) = (facts.project.clone(), name.clone(), path.clone());
            let call = CallCost { project, run, path, attempt, index, agent, ..CallCost::default() };
            Open { call, ..Open::default() }
        });
        match &record.event {
            Event::EffectIntended { effect, .. } => open.is_chat = *effect == EffectKind::Chat,
            Event::CallNoted { topic, note, .. } if **topic == *note::PAID_IN_VAIN => open.vain.take(note),
            Event::CallNoted { topic, note, .. } => take_note(&mut open.call, topic, note),
            Event::EffectDone { spent, .. } => {
                open.is_over =
                    if open.is_chat { spent.model.is_some() } else { spent.usage != Usage::default() };
                let vain = std::mem::take(&mut open.vain);
                open.is_over = open.is_over || vain.usage != Usage::default();
                open.call.model = spent.model.clone().unwrap_or(vain.model);
                open.call.usage = spent.usage;
                open.call.usage += vain.usage;
                open.call.cost = added(spent.cost, vain.cost);
            }
            _ => {}
        }
    }

    /// The calls that were answered, by run, step, attempt and index.
    pub fn calls(&self) -> impl Iterator<Item = &CallCost> {
        self.calls.values().filter(|open| open.is_over).map(|open| &open.call)
    }

    /// The totals of calls that have the same `key`, such as their step, agent, run, project or model.
    pub fn by<K: Ord>(&self, key: impl Fn(&CallCost) -> K) -> BTreeMap<K, CostTotal> {
        let mut totals: BTreeMap<K, CostTotal> = BTreeMap::new();
        for call in self.calls() {
            totals.entry(key(call)).or_default().add(call);
        }
        totals
    }

    /// The total of everything.
    pub fn total(&self) -> CostTotal {
        self.by(|_| ()).into_values().next().unwrap_or_default()
    }
}

/// What was paid for a call beside its outcome.
#[derive(Clone, Debug, Default)]
struct Vain {
    model: Arc<str>,
    usage: Usage,
    cost: Option<Usd>,
}

impl Vain {
    fn take(&mut self, said: &Value) {
        let field = |name: &str| said.get(name).cloned().unwrap_or_default();
        self.model = field("model").as_str().unwrap_or_default().into();
        self.usage += serde_json::from_value(field("usage")).unwrap_or_default();
        self.cost = added(self.cost, serde_json::from_value(field("cost")).unwrap_or_default());
    }
}

fn take_note(call: &mut CallCost, topic: &str, said: &Value) {
    let usd = |pointer: &str| said.pointer(pointer).and_then(Value::as_u64).map(Usd::from_pico);
    match topic {
        note::MODEL_CHOSEN => call.reason = said.get("reason").and_then(Value::as_str).map(str::to_owned),
        note::MODEL_ESCALATED => call.escalations += 1,
        note::MODEL_PAID => call.dearest = usd("/dearest/cost"),
        note::CACHE_HIT => call.saved_by_cache = usd("/saved"),
        _ => {}
    }
}

/// The agent of the step at `path`, such as `build/item[3]/api`.
fn agent_at(graph: &GraphData, path: &str) -> Option<Arc<str>> {
    let mut segments = path.split('/').filter(|segment| !segment.ends_with(']'));
    let mut graph = graph;
    loop {
        let name = segments.next()?;
        let step = graph.steps.iter().find(|step| *step.name == *name)?;
        match &step.kind {
            StepKind::Agent(agent) => return Some(agent.clone()),
            StepKind::Workflow(body) | StepKind::Map { body, .. } | StepKind::Loop { body, .. } => {
                graph = body;
            }
            StepKind::Route { agents, .. } => {
                let name = segments.next()?;
                return agents.iter().find(|agent| ***agent == *name).cloned();
            }
            _ => return None,
        }
    }
}

impl fmt::Display for CostReport {
    /// One line for each agent and model, and one for all.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((agent, model), total) in self.by(|call| (call.agent.clone(), call.model.clone())) {
            let who = if agent.is_empty() { "(no agent)" } else { &agent };
            writeln!(f, "{who} at {model}: {total}")?;
        }
        write!(f, "total: {}", self.total())
    }
}
