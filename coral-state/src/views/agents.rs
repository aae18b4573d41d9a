//! Which agents work where in a graph, at any depth.

use std::collections::BTreeSet;
use std::sync::Arc;

use coral_core::{GraphData, Renamed, StepKind};

/// The agents that may work in a step: its own, or those of the steps within.
pub(super) fn agents_in(kind: &StepKind) -> BTreeSet<Arc<str>> {
    match kind {
        StepKind::Agent(id) => [id.clone()].into(),
        StepKind::Workflow(body) | StepKind::Map { body, .. } | StepKind::Loop { body, .. } => {
            body.steps.iter().flat_map(|step| agents_in(&step.kind)).collect()
        }
        StepKind::Route { agents, .. } => agents.iter().cloned().collect(),
        _ => BTreeSet::new(),
    }
}

/// The agent whose step `path` is, if it is an agent's.
pub(super) fn agent_at<'a>(graph: &'a GraphData, path: &str) -> Option<&'a Arc<str>> {
    let (name, within) = path.split_once('/').map_or((path, None), |(name, within)| (name, Some(within)));
    let kind = &graph.steps.iter().find(|step| *step.name == *name)?.kind;
    let Some(within) = within else { return kind.agent() };
    // Past `item[3]`, `turn[2]` or `hop[2]`.
    let part = || within.split_once('/').map(|(_, part)| part);
    match kind {
        StepKind::Workflow(body) => agent_at(body, within),
        StepKind::Map { body, .. } | StepKind::Loop { body, .. } => agent_at(body, part()?),
        StepKind::Route { agents, .. } => {
            let name = part()?;
            agents.iter().find(|agent| ***agent == *name)
        }
        _ => None,
    }
}

/// `path` by the names that steps have after a migration.
pub(super) fn renamed_path(path: &Arc<str>, renamed: &Renamed) -> Arc<str> {
    let name = path.split('/').next().unwrap_or_default();
    match (renamed.get(name), path.strip_prefix(name)) {
        (Some(new), Some(within)) => format!("{new}{within}").into(),
        _ => path.clone(),
    }
}
