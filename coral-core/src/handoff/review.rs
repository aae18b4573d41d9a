//! Work that goes back: what happens where something that an agent depends on was not delivered,
//! and where a reviewer is not content.

use std::collections::BTreeSet;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::graph::{Graph, StepData};
use crate::payload::Payload;
use crate::spec::AgentSpec;
use crate::task::HandoffMessage;

/// Rounds of review where nothing else is said.
const MAX_ROUNDS: u32 = 2;

/// What happens where a deliverable that an agent depends on was not delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OnGap {
    /// The step fails with [`MissingDependency`](crate::ErrorKind::MissingDependency).
    #[default]
    Fail,
    /// The work goes back to the agents that owe it, which are told what is missing.
    SendBack,
    /// The agent works from the brief instead. It is told what is missing, and the journal notes it
    /// (`taken_from_brief`).
    FromBrief,
}

/// One thing that a reviewer is not content with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Who is to mend it: the step, or its agent.
    pub to: String,
    /// What is wrong, where, and what would be right.
    pub finding: String,
}

/// Work that goes back to the step that did it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Returned {
    /// The path of the step that works again.
    pub to: Arc<str>,
    /// Why: a message of type [`Review`](crate::MessageType::Review) whose tasks are the findings.
    pub message: Arc<HandoffMessage>,
}

/// What came before the present round of a step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rework {
    /// What the step gave last.
    pub(crate) previous: Option<Payload>,
    /// What was sent back to it, and by it, of all rounds.
    pub(crate) messages: Vec<Arc<HandoffMessage>>,
}

/// What a step may send back, as its graph says, or else its agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReviewPolicy {
    pub(crate) on_gap: OnGap,
    pub(crate) max_rounds: u32,
    /// The steps whose work it reviews, by name, each with its agent.
    pub(crate) reviews: Vec<(Arc<str>, Arc<str>)>,
}

impl ReviewPolicy {
    pub(crate) fn of(graph: &Graph, at: usize, data: &StepData, spec: &AgentSpec) -> Self {
        let handoff = &spec.handoff;
        let named = |name: &str| graph.step(name).and_then(|at| graph.steps().get(at));
        let reviewed = |step: &StepData| Some((step.name.clone(), step.kind.agent()?.clone()));
        let reviews = if data.reviews.is_empty() && !handoff.reviews.is_empty() {
            let before = graph.before(at).into_iter().filter_map(|at| graph.steps().get(at));
            let theirs = before.filter_map(reviewed);
            theirs.filter(|(_, agent)| handoff.reviews.iter().any(|id| **agent == **id)).collect()
        } else {
            data.reviews.iter().filter_map(|name| reviewed(named(name)?)).collect()
        };
        ReviewPolicy {
            on_gap: data.on_gap.or(handoff.on_gap).unwrap_or_default(),
            max_rounds: data.max_rounds.or(handoff.max_rounds).unwrap_or(MAX_ROUNDS),
            reviews,
        }
    }

    /// The step that `name` means: its own name or, if that is no step's, its agent's.
    pub(crate) fn reviewed(&self, name: &str) -> Option<&Arc<str>> {
        let by_name = self.reviews.iter().find(|(step, _)| **step == *name);
        by_name.or_else(|| self.reviews.iter().find(|(_, agent)| **agent == *name)).map(|(step, _)| step)
    }
}

impl Graph {
    /// The steps that the step of number `at` comes after, the nearest first.
    pub(crate) fn before(&self, at: usize) -> Vec<usize> {
        let mut seen = BTreeSet::from([at]);
        let mut found = vec![at];
        let mut next = 0;
        while let Some(at) = found.get(next).copied() {
            next += 1;
            let before = self.wiring(at).into_iter().flat_map(|wires| &wires.before);
            found.extend(before.map(|(from, _)| *from).filter(|from| seen.insert(*from)));
        }
        found.split_off(1)
    }
}
