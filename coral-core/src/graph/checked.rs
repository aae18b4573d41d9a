//! Graphs that can run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

use super::{GraphData, GraphProblem, Join, StepData, StepKind};
use crate::condition::Condition;
use crate::error::{Error, ErrorKind, nearest};
use crate::schema::Schema;

/// A graph that can run: names are unique, edges lead to steps, nothing goes in circles,
/// conditions parse, and every step is used.
#[derive(Debug)]
pub struct Graph {
    data: Arc<GraphData>,
    digest: String,
    wiring: Vec<Wiring>,
    names: HashMap<Arc<str>, usize>,
    checked: Checked,
}

/// The edges of one step, by number.
#[derive(Debug)]
pub(crate) struct Wiring {
    /// The steps that it waits for, and whether it runs even if they were skipped.
    pub(crate) before: Vec<(usize, bool)>,
    /// The steps that wait for it.
    pub(crate) behind: Vec<usize>,
    /// The steps whose outputs it takes, in order; `None` is the graph's own input.
    pub(crate) inputs: Vec<Option<usize>>,
}

#[derive(Debug)]
pub(super) struct Checked {
    /// The steps by number; an edge says whether its taker runs even if its giver was skipped.
    nodes: StableDiGraph<usize, bool>,
    conditions: Vec<Option<Condition>>,
    /// When a loop is done, by step.
    untils: Vec<Option<Condition>>,
    /// The graphs inside of composite steps, by step.
    bodies: Vec<Vec<Arc<Graph>>>,
    output: Option<usize>,
}

impl Checked {
    pub(super) fn of(data: &GraphData) -> (Checked, Vec<GraphProblem>) {
        let mut problems = Vec::new();
        let mut problem = |step: Option<&Arc<str>>, message: String| {
            problems.push(GraphProblem { step: step.cloned(), message });
        };
        if data.steps.is_empty() {
            problem(None, "the graph has no steps".to_owned());
        }
        let mut index: BTreeMap<&str, usize> = BTreeMap::new();
        let mut nodes = StableDiGraph::with_capacity(data.steps.len(), data.steps.len());
        let mut conditions = Vec::with_capacity(data.steps.len());
        let mut untils = Vec::with_capacity(data.steps.len());
        let mut bodies = Vec::with_capacity(data.steps.len());
        for (i, step) in data.steps.iter().enumerate() {
            nodes.add_node(i);
            if !crate::spec::is_id(&step.name) {
                problem(
                    Some(&step.name),
                    "a step's name is lower-case letters, digits, `_` and `-`, begins with a letter, and is at most 64 long"
                        .to_owned(),
                );
            }
            if &*step.name == "input" {
                problem(
                    Some(&step.name),
                    "`input` is the workflow's own input and can't name a step".to_owned(),
                );
            }
            if index.insert(&step.name, i).is_some() {
                problem(Some(&step.name), "the name is used twice".to_owned());
            }
            if step.retry.max_attempts == 0 {
                problem(
                    Some(&step.name),
                    "`retry.max_attempts` counts the first try, so it is at least 1".to_owned(),
                );
            }
            match step.join {
                Join::Quorum(n) if n == 0 || n > step.inputs.len() => {
                    problem(
                        Some(&step.name),
                        format!("a quorum of {n} of {} inputs can't be met", step.inputs.len()),
                    );
                }
                Join::FirstOk | Join::Settle if step.inputs.is_empty() => {
                    problem(Some(&step.name), "a join needs inputs".to_owned());
                }
                _ => {}
            }
            let mut parse = |source: &Arc<str>| match Condition::parse(source) {
                Ok(condition) => Some(condition),
                Err(error) => {
                    problem(Some(&step.name), format!("condition `{source}`: {error}"));
                    None
                }
            };
            conditions.push(step.when.as_ref().and_then(&mut parse));
            untils.push(match &step.kind {
                StepKind::Loop { until, .. } => parse(until),
                _ => None,
            });
            let bound = match &step.kind {
                StepKind::Map { concurrency, .. } => *concurrency,
                StepKind::Loop { max_turns: max, .. } | StepKind::Route { max_hops: max, .. } => {
                    *max as usize
                }
                _ => 1,
            };
            if bound == 0 {
                problem(Some(&step.name), "its bound is 0, so it could never run".to_owned());
            }
            if let StepKind::Ask { answer, deadline_ms: Some(_), default } = &step.kind {
                match default {
                    None => {
                        let message = "a question with a deadline needs a default answer";
                        problem(Some(&step.name), message.to_owned());
                    }
                    Some(default) => {
                        // A schema of keywords that are not known here is left to the step's own type.
                        let schema = Schema::new(answer.clone()).ok();
                        for wrong in schema.into_iter().flat_map(|schema| schema.problems(default)) {
                            problem(Some(&step.name), format!("the default answer does not fit: {wrong}"));
                        }
                    }
                }
            }
            if matches!(&step.kind, StepKind::Route { agents, .. } if agents.is_empty()) {
                problem(Some(&step.name), "a route needs agents".to_owned());
            }
            if step.kind.is_composite() && step.retry.max_attempts > 1 {
                let message =
                    "a step that holds steps is not tried again as a whole; put `retry` on those inside";
                problem(Some(&step.name), message.to_owned());
            }
            let mut inner = Vec::new();
            for body in step.kind.bodies() {
                match Graph::checked(body) {
                    Ok(graph) => inner.push(Arc::new(graph)),
                    Err(found) => {
                        for inside in found {
                            problem(Some(&step.name), format!("inside: {inside}"));
                        }
                    }
                }
            }
            bodies.push(inner);
        }
        let find = |name: &str| index.get(name).copied();
        let unknown = |name: &str| {
            let hint = nearest(name, index.keys().copied())
                .map(|n| format!("; did you mean `{n}`?"))
                .unwrap_or_default();
            format!("no step is called `{name}`{hint}")
        };
        for (i, step) in data.steps.iter().enumerate() {
            let mut seen = BTreeSet::new();
            let edges = step.inputs.iter().map(|input| (&input.step, input.optional));
            let edges = edges.filter(|(before, _)| &***before != "input");
            for (before, optional) in edges.chain(step.after.iter().map(|before| (before, true))) {
                match find(before) {
                    Some(from) if !seen.insert(from) => {
                        problem(Some(&step.name), format!("`{before}` is named twice"));
                    }
                    Some(from) => {
                        nodes.add_edge(NodeIndex::new(from), NodeIndex::new(i), optional);
                    }
                    None => problem(Some(&step.name), unknown(before)),
                }
            }
            for name in conditions.get(i).into_iter().flatten().flat_map(Condition::steps) {
                match find(name) {
                    None => problem(Some(&step.name), format!("its condition: {}", unknown(name))),
                    Some(from) if !seen.contains(&from) => problem(
                        Some(&step.name),
                        format!(
                            "its condition reads `{name}`, so `{name}` must be among its `inputs` or `after`"
                        ),
                    ),
                    Some(_) => {}
                }
            }
        }
        for component in petgraph::algo::tarjan_scc(&nodes) {
            let looped = component.len() > 1
                || component.first().is_some_and(|node| nodes.find_edge(*node, *node).is_some());
            if looped {
                let mut members: Vec<usize> = component.iter().map(|node| node.index()).collect();
                members.sort_unstable();
                let names: Vec<&str> =
                    members.iter().filter_map(|i| data.steps.get(*i)).map(|step| &*step.name).collect();
                problem(
                    members.first().and_then(|i| data.steps.get(*i)).map(|step| &step.name),
                    format!("steps wait for each other in a circle: {}", names.join(", ")),
                );
            }
        }
        for (i, step) in data.steps.iter().enumerate() {
            if step.max_rounds == Some(0) {
                problem(Some(&step.name), "`max_rounds` is 0, so it could never send work back".to_owned());
            }
            if !step.reviews.is_empty() && step.kind.agent().is_none() {
                problem(Some(&step.name), "only an agent can review".to_owned());
            }
            for reviewed in &step.reviews {
                let agent = |at: usize| data.steps.get(at).is_some_and(|step| step.kind.agent().is_some());
                let is_before = |at: usize| {
                    let (from, to) = (NodeIndex::new(at), NodeIndex::new(i));
                    at != i && petgraph::algo::has_path_connecting(&nodes, from, to, None)
                };
                let message = match find(reviewed) {
                    None => unknown(reviewed),
                    Some(at) if !agent(at) => format!("`{reviewed}` runs no agent that could mend its work"),
                    Some(at) if !is_before(at) => format!("`{reviewed}` does not come before it"),
                    Some(_) => continue,
                };
                problem(Some(&step.name), format!("`reviews`: {message}"));
            }
        }
        let output = data.output.as_ref().and_then(|name| {
            let found = find(name);
            if found.is_none() {
                problem(None, format!("output: {}", unknown(name)));
            }
            found
        });
        if let Some(output) = output {
            let mut used = BTreeSet::from([NodeIndex::new(output)]);
            let mut stack = vec![NodeIndex::new(output)];
            while let Some(node) = stack.pop() {
                stack.extend(
                    nodes.neighbors_directed(node, Direction::Incoming).filter(|before| used.insert(*before)),
                );
            }
            for (i, step) in data.steps.iter().enumerate() {
                if !used.contains(&NodeIndex::new(i)) {
                    problem(
                        Some(&step.name),
                        format!(
                            "the output `{}` does not come from it: unreachable",
                            data.output.as_deref().unwrap_or("")
                        ),
                    );
                }
            }
        }
        (Checked { nodes, conditions, untils, bodies, output }, problems)
    }

    fn wires(&self, step: usize, inputs: Vec<Option<usize>>) -> Wiring {
        let node = NodeIndex::new(step);
        let mut before: Vec<_> = self
            .nodes
            .edges_directed(node, Direction::Incoming)
            .map(|edge| (edge.source().index(), *edge.weight()))
            .collect();
        before.sort_unstable();
        let mut behind: Vec<_> =
            self.nodes.neighbors_directed(node, Direction::Outgoing).map(NodeIndex::index).collect();
        behind.sort_unstable();
        Wiring { before, behind, inputs }
    }
}

impl Graph {
    /// Checks `data`.
    ///
    /// # Errors
    /// [`Problems`](ErrorKind::Problems) with all that is wrong, each naming its step.
    pub fn new(data: GraphData) -> Result<Self, Error> {
        let what = format!("workflow `{}`", data.name);
        Graph::checked(data).map_err(|problems| {
            let problems = problems.iter().map(ToString::to_string).collect();
            Error::new(ErrorKind::Problems { what, problems })
        })
    }

    fn checked(data: GraphData) -> Result<Self, Vec<GraphProblem>> {
        let (checked, problems) = Checked::of(&data);
        if !problems.is_empty() {
            return Err(problems);
        }
        let digest =
            data.digest().map_err(|error| vec![GraphProblem { step: None, message: error.to_string() }])?;
        let names: HashMap<Arc<str>, usize> =
            data.steps.iter().enumerate().map(|(i, step)| (step.name.clone(), i)).collect();
        let inputs_of = |step: &StepData| match step.inputs.as_slice() {
            [] => vec![None],
            inputs => inputs.iter().map(|input| names.get(&input.step).copied()).collect(),
        };
        let wiring =
            data.steps.iter().enumerate().map(|(i, step)| checked.wires(i, inputs_of(step))).collect();
        Ok(Graph { data: Arc::new(data), digest, wiring, names, checked })
    }

    /// The graph as data.
    pub fn data(&self) -> &Arc<GraphData> {
        &self.data
    }

    /// The SHA-256 of the data in canonical JSON.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Its steps, in the order of the definition.
    pub fn steps(&self) -> &[StepData] {
        &self.data.steps
    }

    /// Its steps by number, such that each comes after those that it waits for.
    pub fn order(&self) -> Vec<usize> {
        // A `Graph` has no cycles, so the sort can't fail.
        petgraph::algo::toposort(&self.checked.nodes, None)
            .map(|order| order.into_iter().map(NodeIndex::index).collect())
            .unwrap_or_default()
    }

    /// The number of the step of this name.
    pub fn step(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    pub(crate) fn condition(&self, step: usize) -> Option<&Condition> {
        self.checked.conditions.get(step).and_then(Option::as_ref)
    }

    pub(crate) fn until(&self, step: usize) -> Option<&Condition> {
        self.checked.untils.get(step).and_then(Option::as_ref)
    }

    pub(crate) fn bodies(&self, step: usize) -> &[Arc<Graph>] {
        self.checked.bodies.get(step).map(Vec::as_slice).unwrap_or_default()
    }

    pub(crate) fn output(&self) -> Option<usize> {
        self.checked.output
    }

    pub(crate) fn wiring(&self, step: usize) -> Option<&Wiring> {
        self.wiring.get(step)
    }

    /// What differs between this graph and `other`, one readable line a difference.
    pub fn diff(&self, other: &GraphData) -> Vec<String> {
        let mut lines = Vec::new();
        let theirs: BTreeMap<&str, &StepData> = other.steps.iter().map(|s| (&*s.name, s)).collect();
        let ours: BTreeMap<&str, &StepData> = self.data.steps.iter().map(|s| (&*s.name, s)).collect();
        for (name, step) in &ours {
            match theirs.get(name) {
                None => lines.push(format!("step `{name}` is gone")),
                Some(other) if other != step => {
                    let (a, b) = (serde_json::to_value(step), serde_json::to_value(other));
                    let (Ok(serde_json::Value::Object(a)), Ok(serde_json::Value::Object(b))) = (a, b) else {
                        continue;
                    };
                    let fields: BTreeSet<&String> =
                        a.keys().chain(b.keys()).filter(|k| a.get(*k) != b.get(*k)).collect();
                    let shown = |value: Option<&serde_json::Value>| {
                        value.map_or("nothing".to_owned(), ToString::to_string)
                    };
                    for field in fields {
                        let (was, is) = (shown(a.get(field)), shown(b.get(field)));
                        lines.push(format!("step `{name}`: {field} was {was}, is {is}"));
                    }
                }
                Some(_) => {}
            }
        }
        lines.extend(
            theirs
                .keys()
                .filter(|name| !ours.contains_key(*name))
                .map(|name| format!("step `{name}` is new")),
        );
        if self.data.output != other.output {
            lines.push("the output step differs".to_owned());
        }
        if lines.is_empty() && *self.data != *other {
            lines.push("the order of the steps, the name or the description differs".to_owned());
        }
        lines
    }
}
