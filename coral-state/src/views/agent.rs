//! The state of one agent, across runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coral_core::{Error, Event, GraphData, Journal, Payload, Record, RunFilter};
use serde::Serialize;

use super::Spending;
use super::agents::{agent_at, agents_in, renamed_path};
use crate::ledger::{is_erased, is_run};

/// Records read at once.
const BATCH: usize = 1_024;

/// What an agent gave in one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentOutput {
    /// The run.
    pub run: Arc<str>,
    /// The step's path.
    pub path: Arc<str>,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What it gave.
    pub output: Payload,
}

/// How an agent failed in one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentFailure {
    /// The run.
    pub run: Arc<str>,
    /// The step's path.
    pub path: Arc<str>,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Why.
    pub error: Error,
}

/// One agent as it stands: the fold of the records of any runs, each run's in order.
///
/// Holds the last outputs only, so that it does not grow with the history.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AgentState {
    /// The agent's id.
    pub agent: String,
    /// The steps at work now, as run and path.
    pub running: BTreeSet<(Arc<str>, Arc<str>)>,
    /// Steps that it ended well.
    pub succeeded: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Attempts that failed since it last ended a step well.
    pub failed_in_a_row: u64,
    /// The last outputs, newest last.
    pub outputs: Vec<AgentOutput>,
    /// The last failure.
    pub last_failure: Option<AgentFailure>,
    /// What it used and cost.
    pub spent: Spending,
    /// Milliseconds that its ended steps took in all.
    pub took_ms: u64,
    /// The graphs of the runs in which it has a step.
    #[serde(skip)]
    graphs: BTreeMap<Arc<str>, Arc<GraphData>>,
    #[serde(skip)]
    began: BTreeMap<(Arc<str>, Arc<str>), u64>,
}

impl AgentState {
    /// Outputs kept.
    pub const OUTPUTS: usize = 16;

    /// An agent of which nothing is known yet.
    pub fn new(agent: impl Into<String>) -> Self {
        AgentState { agent: agent.into(), ..Default::default() }
    }

    /// Folds all runs of a journal that `filter` lets through, in the order in which they began. Runs
    /// whose project was erased tell nothing any more.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn of(
        journal: &(impl Journal + ?Sized),
        agent: impl Into<String>,
        filter: &RunFilter,
    ) -> Result<Self, Error> {
        let mut state = AgentState::new(agent);
        let mut heads = journal.runs(filter).await?;
        heads.retain(is_run);
        heads.sort_by_key(|head| head.started_at_ms);
        for head in heads {
            let run: Arc<str> = head.run.into();
            let mut next = 1;
            loop {
                let records = match journal.read(&run, next, BATCH).await {
                    Err(error) if is_erased(&error) => break,
                    result => result?,
                };
                records.iter().for_each(|record| state.apply(&run, record));
                next = records.last().map_or(next, |last| last.seq + 1);
                if records.len() < BATCH {
                    break;
                }
            }
        }
        Ok(state)
    }

    /// Folds in one record of `run`.
    pub fn apply(&mut self, run: &Arc<str>, record: &Record) {
        match &record.event {
            Event::RunStarted { graph, .. } => return self.learn(run, graph),
            Event::Migrated { graph, renamed, restarted, .. } => {
                self.learn(run, graph);
                let moved = |(of, path): &(Arc<str>, Arc<str>)| {
                    let path = if of == run { renamed_path(path, renamed) } else { path.clone() };
                    let given_up =
                        of == run && restarted.iter().any(|name| Some(&**name) == path.split('/').next());
                    (!given_up).then(|| (of.clone(), path))
                };
                self.running = self.running.iter().filter_map(moved).collect();
                self.began =
                    self.began.iter().filter_map(|(step, at_ms)| Some((moved(step)?, *at_ms))).collect();
                return;
            }
            Event::RunFinished { .. } => {
                self.running.retain(|(of, _)| of != run);
                self.began.retain(|(of, _), _| of != run);
                return;
            }
            _ => {}
        }
        let Some(path) = record.event.path() else { return };
        let agent = self.graphs.get(run).and_then(|graph| agent_at(graph, path));
        if agent.is_none_or(|agent| **agent != *self.agent) {
            return;
        }
        let step = (run.clone(), path.clone());
        match &record.event {
            Event::StepStarted { .. } => {
                self.began.entry(step.clone()).or_insert(record.at_ms);
                self.running.insert(step);
            }
            Event::EffectDone { spent, .. } => self.spent.add(spent),
            Event::StepSucceeded { output, .. } => {
                self.end(&step, record.at_ms);
                self.succeeded += 1;
                self.failed_in_a_row = 0;
                let (run, path) = step;
                // Runs are folded one after the other, and went on side by side.
                let place = self.outputs.partition_point(|other| other.at_ms <= record.at_ms);
                let output = AgentOutput { run, path, at_ms: record.at_ms, output: output.clone() };
                self.outputs.insert(place, output);
                if self.outputs.len() > Self::OUTPUTS {
                    self.outputs.remove(0);
                }
            }
            // It did its work, and was not content with that of others.
            Event::SentBack { .. } => {
                self.end(&step, record.at_ms);
                self.failed_in_a_row = 0;
            }
            Event::StepFailed { error, retry_in_ms, .. } => {
                if retry_in_ms.is_none() {
                    self.end(&step, record.at_ms);
                }
                self.failed += 1;
                self.failed_in_a_row += 1;
                if self.last_failure.as_ref().is_none_or(|last| last.at_ms <= record.at_ms) {
                    let (run, path) = step;
                    self.last_failure =
                        Some(AgentFailure { run, path, at_ms: record.at_ms, error: error.clone() });
                }
            }
            _ => {}
        }
    }

    fn learn(&mut self, run: &Arc<str>, graph: &Arc<GraphData>) {
        let here = graph.steps.iter().any(|step| agents_in(&step.kind).contains(&*self.agent));
        match here {
            true => drop(self.graphs.insert(run.clone(), graph.clone())),
            false => drop(self.graphs.remove(run)),
        }
    }

    fn end(&mut self, step: &(Arc<str>, Arc<str>), at_ms: u64) {
        self.running.remove(step);
        if let Some(began) = self.began.remove(step) {
            self.took_ms = self.took_ms.saturating_add(at_ms.saturating_sub(began));
        }
    }
}
