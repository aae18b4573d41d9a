//! The state of one agent, across runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coral_core::{Error, Event, Payload, Record};
use serde::Serialize;

use super::Spending;

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
    #[serde(skip)]
    steps: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
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

    /// Folds in one record of `run`.
    pub fn apply(&mut self, run: &Arc<str>, record: &Record) {
        if let Event::RunStarted { graph, .. } = &record.event {
            let own =
                graph.steps.iter().filter(|step| step.kind.agent().is_some_and(|id| **id == *self.agent));
            let own: BTreeSet<_> = own.map(|step| step.name.clone()).collect();
            if !own.is_empty() {
                self.steps.insert(run.clone(), own);
            }
            return;
        }
        if matches!(record.event, Event::RunFinished { .. }) {
            self.running.retain(|(of, _)| of != run);
            self.began.retain(|(of, _), _| of != run);
            return;
        }
        let Some(path) = record.event.path() else { return };
        let name = path.split(['/', '[']).next().unwrap_or_default();
        if !self.steps.get(run).is_some_and(|own| own.contains(name)) {
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
                if self.outputs.len() >= Self::OUTPUTS {
                    self.outputs.remove(0);
                }
                let (run, path) = step;
                self.outputs.push(AgentOutput { run, path, at_ms: record.at_ms, output: output.clone() });
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
                let (run, path) = step;
                self.last_failure =
                    Some(AgentFailure { run, path, at_ms: record.at_ms, error: error.clone() });
            }
            _ => {}
        }
    }

    fn end(&mut self, step: &(Arc<str>, Arc<str>), at_ms: u64) {
        self.running.remove(step);
        if let Some(began) = self.began.remove(step) {
            self.took_ms = self.took_ms.saturating_add(at_ms.saturating_sub(began));
        }
    }
}
