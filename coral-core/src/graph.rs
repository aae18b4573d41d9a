//! The graph of a workflow as data.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A graph as data: what a journal keeps and a file describes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphData {
    /// The workflow's name.
    pub name: String,
    /// The steps, in the order of the definition.
    pub steps: Vec<StepData>,
    /// The step whose output is the workflow's; all steps that nothing follows if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Arc<str>>,
}

/// One step as data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepData {
    /// Its name, unique in the graph.
    pub name: Arc<str>,
}
