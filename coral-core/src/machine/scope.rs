//! Graphs within a run: the run's own, and those that steps open.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::{Command, Machine, Slot, StepState};
use crate::error::{Error, ErrorKind};
use crate::event::SkipReason;
use crate::graph::{Graph, StepKind, Wiring};
use crate::payload::Payload;

/// One graph that runs.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) graph: Arc<Graph>,
    /// The number of its first step.
    pub(super) first: usize,
    pub(super) input: Payload,
    /// Steps that are not over.
    pub(super) open: usize,
    /// The step that opened it; `None` for the run's own.
    pub(super) owner: Option<usize>,
    /// What came of it, once all its steps are over.
    result: Option<Result<Payload, Error>>,
}

impl Scope {
    pub(super) fn name(&self, at: usize) -> Arc<str> {
        self.graph.steps().get(at).map(|data| data.name.clone()).unwrap_or_default()
    }
}

/// The path, its graph's number among the bodies, and the input of a scope that opens next.
struct Next {
    prefix: String,
    body: usize,
    input: Payload,
}

impl Machine {
    pub(super) fn add_scope(
        &mut self,
        graph: Arc<Graph>,
        prefix: &str,
        input: Payload,
        owner: Option<usize>,
    ) {
        let (id, first) = (self.scopes.len(), self.slots.len());
        for (at, step) in graph.steps().iter().enumerate() {
            let mut path = step.name.clone();
            let mut attempts = 0;
            if owner.is_some() {
                path = format!("{prefix}/{}", step.name).into();
                // Where the graph around it began anew, the attempts go on, so that none has the
                // effects of another.
                let before = self.by_path.insert(path.clone(), first + at);
                attempts = before.and_then(|step| self.slots.get(step)).map_or(0, |slot| slot.attempts);
            }
            self.slots.push(Slot {
                scope: id,
                at,
                path,
                state: StepState::Waiting,
                attempts,
                started: false,
                unsettled: graph.wiring(at).map_or(0, |wires| wires.before.len()),
                taken: None,
                opened: None,
                children: Vec::new(),
                running: 0,
                failed: false,
                verdict: None,
                needless: None,
            });
        }
        let open = graph.steps().len();
        self.scopes.push(Scope { graph, first, input, open, owner, result: None });
    }

    /// The scope that `step` belongs to, and the step's edges in it.
    pub(super) fn surroundings(&self, step: usize) -> Option<(&Scope, &Wiring)> {
        let slot = self.slots.get(step)?;
        let scope = self.scopes.get(slot.scope)?;
        Some((scope, scope.graph.wiring(slot.at)?))
    }

    /// The scopes from the run's own down to that of `step`, each as the number of the step that
    /// opened it and of the graph among that step's bodies.
    pub(crate) fn lineage(&self, step: usize) -> Vec<(usize, usize)> {
        let mut lineage = Vec::new();
        let mut at = step;
        while let Some(scope) = self.slots.get(at).and_then(|slot| self.scopes.get(slot.scope)) {
            let Some(owner) = scope.owner else { break };
            let Some(slot) = self.slots.get(owner) else { break };
            let bodies =
                self.scopes.get(slot.scope).map(|scope| scope.graph.bodies(slot.at)).unwrap_or_default();
            let body = bodies.iter().position(|body| Arc::ptr_eq(body, &scope.graph)).unwrap_or(0);
            lineage.push((slot.at, body));
            at = owner;
        }
        lineage.reverse();
        lineage
    }

    /// The steps of a graph that is not over.
    pub(super) fn open_steps(&self, scope: usize) -> std::ops::Range<usize> {
        match self.scopes.get(scope) {
            Some(scope) if scope.result.is_none() => scope.first..scope.first + scope.graph.steps().len(),
            _ => 0..0,
        }
    }

    /// How deep `step` is nested: 1 for the run's own.
    pub(crate) fn depth(&self, step: usize) -> u64 {
        self.lineage(step).len() as u64 + 1
    }

    /// The number of `step` in its graph.
    pub(crate) fn local(&self, step: usize) -> Option<usize> {
        self.slots.get(step).map(|slot| slot.at)
    }

    /// The number of the step called `name` in the graph that `step` belongs to.
    pub(crate) fn sibling(&self, step: usize, name: &str) -> Option<usize> {
        let scope = self.scopes.get(self.slots.get(step)?.scope)?;
        Some(scope.first + scope.graph.step(name)?)
    }

    /// The step that opened the graph that `step` belongs to.
    pub(crate) fn owner(&self, step: usize) -> Option<usize> {
        self.scopes.get(self.slots.get(step)?.scope)?.owner
    }

    /// All steps so far, such that each comes after those of its graph that it waits for.
    pub(crate) fn order(&self) -> Vec<usize> {
        self.scopes
            .iter()
            .flat_map(|scope| scope.graph.order().into_iter().map(|at| scope.first + at))
            .collect()
    }

    /// The run's own input.
    pub fn input(&self) -> Option<&Payload> {
        self.scopes.first().map(|root| &root.input)
    }

    /// In a route: the step of the agent that worked before `step`, and the path of the agent that
    /// works after it, without the agent's name.
    pub(crate) fn hops(&self, step: usize) -> Option<(Option<usize>, String)> {
        let slot = self.slots.get(step)?;
        let owner = self.scopes.get(slot.scope)?.owner?;
        let route = self.slots.get(owner)?;
        let graph = &self.scopes.get(route.scope)?.graph;
        let StepKind::Route { .. } = graph.steps().get(route.at)?.kind else { return None };
        let hop = route.children.iter().position(|child| *child == slot.scope)?;
        let before = hop.checked_sub(1).and_then(|hop| route.children.get(hop));
        let before = before.and_then(|child| self.scopes.get(*child)).map(|scope| scope.first);
        Some((before, format!("{}/hop[{}]", route.path, hop + 2)))
    }

    /// What a graph whose steps are all over gives.
    pub(super) fn result_of(&self, id: usize) -> Result<Payload, Error> {
        let Some(scope) = self.scopes.get(id) else { return Ok(Payload::null()) };
        let ends: Vec<usize> = match scope.graph.output() {
            Some(output) => vec![output],
            None => (0..scope.graph.steps().len())
                .filter(|at| scope.graph.wiring(*at).is_some_and(|wires| wires.behind.is_empty()))
                .collect(),
        };
        let state = |at: usize| self.state(scope.first + at);
        let lost = ends.iter().any(|end| {
            matches!(
                state(*end),
                Some(StepState::Failed(_) | StepState::Skipped(SkipReason::InputFailed { .. }))
            )
        });
        if lost {
            let error = (0..scope.graph.steps().len()).find_map(|at| match state(at) {
                Some(StepState::Failed(error)) => Some(error.clone()),
                _ => None,
            });
            return Err(
                error.unwrap_or_else(|| Error::invalid("run", "no step that could give its output ran"))
            );
        }
        let output_of = |at: usize| state(at).and_then(StepState::output).cloned();
        Ok(match scope.graph.output() {
            Some(output) => output_of(output).unwrap_or_else(Payload::null),
            None => Payload::new(
                ends.iter()
                    .filter_map(|end| Some((scope.name(*end), output_of(*end)?)))
                    .collect::<BTreeMap<Arc<str>, Payload>>(),
            ),
        })
    }

    /// If all steps of a graph are over: says what came of it to the step that opened it, or ends
    /// the run.
    pub(super) fn close(&mut self, id: usize, commands: &mut Vec<Command>) {
        let Some(scope) = self.scopes.get(id).filter(|scope| scope.open == 0) else { return };
        let Some(owner) = scope.owner else { return self.finish(commands) };
        let result = match &self.cancel {
            Some(reason) => Err(Error::new(ErrorKind::Cancelled { reason: reason.to_string() })),
            None => self.result_of(id),
        };
        if let Some(slot) = self.slots.get_mut(owner) {
            slot.running -= 1;
            slot.failed |= result.is_err();
        }
        if let Some(scope) = self.scopes.get_mut(id) {
            scope.result = Some(result);
        }
        self.advance(owner, commands);
    }

    /// Opens what a step that holds steps is to run next, or settles it.
    pub(super) fn advance(&mut self, step: usize, commands: &mut Vec<Command>) {
        loop {
            let Some(slot) = self.slots.get(step) else { return };
            if slot.verdict.is_some() || slot.state.is_settled() {
                return;
            }
            let (StepState::Running { attempt } | StepState::Ready { attempt }) = slot.state else { return };
            let next = match self.next_in(step) {
                Ok(None) => return,
                Ok(Some(next)) => next,
                Err(result) => {
                    if let Some(slot) = self.slots.get_mut(step) {
                        slot.verdict = Some(result.clone());
                    }
                    return commands.push(Command::Settle { step, attempt, result });
                }
            };
            let Some(slot) = self.slots.get(step) else { return };
            let Some(graph) =
                self.scopes.get(slot.scope).and_then(|scope| scope.graph.bodies(slot.at).get(next.body))
            else {
                return;
            };
            let (graph, first) = (graph.clone(), self.slots.len());
            let id = self.scopes.len();
            self.add_scope(graph, &next.prefix, next.input, Some(step));
            if let Some(slot) = self.slots.get_mut(step) {
                slot.children.push(id);
                slot.running += 1;
            }
            for at in first..self.slots.len() {
                self.consider(at, None, commands);
            }
        }
    }

    /// What opens next in a step that holds steps: a scope, nothing for now, or, as `Err`, what
    /// the step comes to.
    fn next_in(&self, step: usize) -> Result<Option<Next>, Result<Payload, Error>> {
        let (Some(slot), Some(data)) = (self.slots.get(step), self.data(step)) else { return Ok(None) };
        let Some(input) = &slot.opened else { return Ok(None) };
        if let Some(name) = &slot.needless {
            let reason = super::without(name).to_string();
            let stopped = Err(Error::new(ErrorKind::Cancelled { reason }));
            return if slot.running > 0 { Ok(None) } else { Err(stopped) };
        }
        let path = &slot.path;
        let done = slot.children.len();
        let number = done + 1;
        let last = slot.children.last().and_then(|id| self.scopes.get(*id));
        let last = match last.map(|child| &child.result) {
            None if self.cancel.is_some() => return Err(Err(self.cancelled())),
            None => None,
            Some(result) => Some(result),
        };
        let limit = |limit: String, max: u32| Error::new(ErrorKind::Limit { limit, max: max.into() });
        match &data.kind {
            StepKind::Agent(_)
            | StepKind::Function(_)
            | StepKind::Ask { .. }
            | StepKind::Timer(_)
            | StepKind::Signal(_) => Ok(None),
            StepKind::Workflow(_) => match last {
                None => Ok(Some(Next { prefix: path.to_string(), body: 0, input: input.clone() })),
                Some(None) => Ok(None),
                Some(Some(result)) => Err(result.clone()),
            },
            StepKind::Map { over, concurrency, .. } => {
                self.next_item(slot, input, over.as_deref(), *concurrency)
            }
            StepKind::Loop { until, max_turns, .. } => match last {
                None => Ok(Some(Next { prefix: format!("{path}/turn[1]"), body: 0, input: input.clone() })),
                Some(None) => Ok(None),
                Some(Some(Err(error))) => Err(Err(error.clone())),
                Some(Some(Ok(output))) => {
                    let turn = u32::try_from(done).unwrap_or(u32::MAX);
                    let scope = self.scopes.get(slot.scope);
                    let holds =
                        scope.and_then(|scope| scope.graph.until(slot.at)).map_or(Ok(true), |until| {
                            until.holds(&self.facts, input, |_| None, Some((turn, output.clone())))
                        });
                    match holds {
                        Err(error) => Err(Err(error)),
                        Ok(true) => Err(Ok(output.clone())),
                        Ok(false) if turn >= *max_turns => {
                            Err(Err(limit(format!("max_turns of `{path}`"), *max_turns)
                                .with_help(format!("`{until}` did not hold after any turn"))))
                        }
                        Ok(false) => Ok(Some(Next {
                            prefix: format!("{path}/turn[{number}]"),
                            body: 0,
                            input: output.clone(),
                        })),
                    }
                }
            },
            StepKind::Route { agents, max_hops } => match last {
                None => Ok(Some(Next { prefix: format!("{path}/hop[1]"), body: 0, input: input.clone() })),
                Some(None) => Ok(None),
                Some(Some(Err(error))) => Err(Err(error.clone())),
                Some(Some(Ok(output))) => {
                    let next = output
                        .json()
                        .ok()
                        .and_then(|output| output.get("next_agent"))
                        .and_then(Value::as_str);
                    let Some(next) = next else { return Err(Ok(output.clone())) };
                    match agents.iter().position(|agent| **agent == *next) {
                        None => {
                            Err(Err(Error::not_found("agent", next, agents.iter().map(|agent| &**agent))
                                .with_help(format!("`{path}` routes only among its own agents"))))
                        }
                        Some(_) if done >= *max_hops as usize => {
                            Err(Err(limit(format!("max_hops of `{path}`"), *max_hops)))
                        }
                        Some(body) => Ok(Some(Next {
                            prefix: format!("{path}/hop[{number}]"),
                            body,
                            input: output.clone(),
                        })),
                    }
                }
            },
        }
    }

    pub(super) fn cancelled(&self) -> Error {
        Error::new(ErrorKind::Cancelled { reason: self.cancel.as_deref().unwrap_or_default().to_owned() })
    }

    fn next_item(
        &self,
        slot: &Slot,
        input: &Payload,
        over: Option<&str>,
        concurrency: usize,
    ) -> Result<Option<Next>, Result<Payload, Error>> {
        let path = &slot.path;
        let items = items_of(path, input, over).map_err(Err)?;
        let (running, index) = (slot.running, slot.children.len());
        match items.get(index) {
            Some(item) if !slot.failed && self.cancel.is_none() => {
                Ok((running < concurrency).then(|| Next {
                    prefix: format!("{path}/item[{index}]"),
                    body: 0,
                    input: Payload::from_json(item.clone()),
                }))
            }
            _ if running > 0 => Ok(None),
            _ if self.cancel.is_some() => Err(Err(self.cancelled())),
            _ => {
                let results = slot.children.iter().filter_map(|id| self.scopes.get(*id)?.result.clone());
                Err(results.collect::<Result<Vec<Payload>, Error>>().map(Payload::new))
            }
        }
    }

    /// Counts again which of the steps before are not over, for each step of a graph.
    pub(super) fn recount(&mut self, id: usize) {
        let Some(scope) = self.scopes.get(id) else { return };
        let (graph, first) = (scope.graph.clone(), scope.first);
        for step in first..first + graph.steps().len() {
            let unsettled = graph.wiring(step - first).map_or(0, |wires| {
                let open = |from: &usize| self.state(first + from).is_some_and(|state| !state.is_settled());
                wires.before.iter().filter(|(from, _)| open(from)).count()
            });
            if let Some(slot) = self.slots.get_mut(step) {
                slot.unsettled = unsettled;
            }
        }
    }

    /// After a failed run is resumed: what failed in a graph, and what was skipped for it, is open
    /// again; so are the graphs inside of steps that failed. What succeeded stays. An attempt that a budget stopped
    /// goes on, if it has what it began with.
    pub(super) fn reopen(&mut self, id: usize, commands: &mut Vec<Command>) {
        let Some(scope) = self.scopes.get_mut(id) else { return };
        scope.result = None;
        let (graph, first) = (scope.graph.clone(), scope.first);
        let steps = first..first + graph.steps().len();
        let (mut opened, mut stopped) = (Vec::new(), Vec::new());
        let mut reopened = 0;
        for step in steps.clone() {
            let Some(slot) = self.slots.get_mut(step) else { continue };
            let lost = matches!(slot.state, StepState::Failed(_) | StepState::Skipped(_));
            if !lost || slot.needless.is_some() {
                continue;
            }
            reopened += 1;
            let by_budget = matches!(&slot.state, StepState::Failed(error) if matches!(error.kind(), ErrorKind::Budget { .. }));
            slot.verdict = None;
            slot.failed = false;
            if let Some(reviewed) = self.reviewed.get_mut(&step) {
                reviewed.rounds = 0;
            }
            if slot.opened.is_some() {
                slot.state = StepState::Running { attempt: slot.attempts };
                opened.push(step);
            } else {
                slot.state = StepState::Waiting;
                if by_budget && slot.started {
                    stopped.push(step);
                } else {
                    slot.taken = None;
                }
            }
        }
        if let Some(scope) = self.scopes.get_mut(id) {
            scope.open += reopened;
        }
        self.recount(id);
        for step in opened {
            let children = self.slots.get(step).map(|slot| slot.children.clone()).unwrap_or_default();
            for child in children {
                let failed = self.scopes.get(child).is_some_and(|scope| matches!(scope.result, Some(Err(_))));
                if failed {
                    if let Some(slot) = self.slots.get_mut(step) {
                        slot.running += 1;
                    }
                    self.reopen(child, commands);
                }
            }
            self.advance(step, commands);
        }
        for step in stopped {
            let is_held = self.is_held(step);
            let Some(slot) = self.slots.get_mut(step) else { continue };
            if !is_held && (slot.unsettled == 0 || slot.taken.is_some()) {
                let attempt = slot.attempts;
                slot.state = StepState::Running { attempt };
                commands.push(Command::Run { step, attempt });
            } else {
                slot.taken = None;
            }
        }
        for step in steps {
            self.consider(step, None, commands);
        }
    }
}

/// The list that a map goes through.
fn items_of<'a>(path: &str, input: &'a Payload, over: Option<&str>) -> Result<&'a Vec<Value>, Error> {
    let refuse = |problem: String| Error::invalid(format!("input of `{path}`"), problem);
    let mut found = input.json()?;
    for key in over.into_iter().flat_map(|over| over.split('.')) {
        found = found.get(key).ok_or_else(|| {
            let keys = found.as_object().into_iter().flat_map(|object| object.keys());
            let keys: Vec<&str> = keys.map(String::as_str).collect();
            let there =
                if keys.is_empty() { String::new() } else { format!("; there are {}", keys.join(", ")) };
            refuse(format!(
                "the map goes over `{}`, and there is no `{key}`{there}",
                over.unwrap_or_default()
            ))
        })?;
    }
    match (found, over) {
        (Value::Array(items), _) => Ok(items),
        (_, None) => Err(refuse("a map takes a list".to_owned())),
        (_, Some(over)) => Err(refuse(format!("the map goes over `{over}`, which is no list"))),
    }
}
