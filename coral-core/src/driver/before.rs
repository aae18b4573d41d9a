//! What a step gets to know of those before it.

use std::sync::Arc;

use super::Driver;
use crate::graph::StepKind;
use crate::handoff::{HandoffContext, HandoffSource};
use crate::machine::StepState;
use crate::payload::Payload;
use crate::program::Body;
use crate::task::{Deliverable, Report};

impl Driver {
    /// All that the steps before `at` have delivered so far.
    pub(super) fn gather(&mut self, at: usize) -> Arc<[Deliverable]> {
        let mut all: Vec<Deliverable> = Vec::new();
        let mut add = |from: Option<usize>| {
            let Some(from) = from else { return };
            // Of a round before, nothing counts: what a step delivered then is there when it has
            // delivered it again.
            let (begun, worked) = match self.machine.state(from) {
                None | Some(StepState::Waiting | StepState::Skipped(_)) => (false, false),
                Some(state) => (true, state.output().is_some()),
            };
            let theirs =
                self.available.get(&from).filter(|_| begun).into_iter().flat_map(|known| known.iter());
            let paths = self.machine.path(from).cloned().zip(self.machine.path(at).cloned());
            let message = paths.and_then(|paths| self.messages.get(&paths)).filter(|_| worked);
            // A message goes from one agent to another; what agents inside of a step delivered, and what is to reach
            // those inside of this one, is told by reports.
            let reported = match message {
                None if worked => self.delivered_in(from, at),
                _ => Vec::new(),
            };
            let new = message.into_iter().flat_map(|message| &message.context.deliverables);
            for deliverable in theirs.chain(new).chain(&reported) {
                if !all.contains(deliverable) {
                    all.push(deliverable.clone());
                }
            }
        };
        add(self.machine.owner(at));
        add(self.machine.hops(at).and_then(|(before, _)| before));
        for input in self.machine.data(at).into_iter().flat_map(|data| &data.inputs) {
            add(self.machine.sibling(at, &input.step));
        }
        let all: Arc<[Deliverable]> = all.into();
        if all.is_empty() {
            self.available.remove(&at);
        } else {
            self.available.insert(at, all.clone());
        }
        all
    }

    /// What the agents inside of a step, or the one that it runs, reported as delivered, where no message tells `to`.
    fn delivered_in(&self, step: usize, to: usize) -> Vec<Deliverable> {
        let kind = |step: usize| self.machine.data(step).map(|data| &data.kind);
        let outputs: Vec<&Payload> = match (kind(step), kind(to), self.machine.path(step)) {
            (_, Some(StepKind::Function(_)), _) => Vec::new(),
            (Some(StepKind::Agent(_)), ..) => {
                self.machine.state(step).and_then(StepState::output).into_iter().collect()
            }
            (Some(kind), _, Some(path)) if kind.is_composite() => {
                let inside =
                    |other: &str| other.strip_prefix(&**path).is_some_and(|rest| rest.starts_with('/'));
                let steps = self.machine.steps().filter(|(path, _)| inside(path));
                steps.filter_map(|(_, state)| state.output()).collect()
            }
            _ => Vec::new(),
        };
        let reports = outputs.into_iter().filter_map(|output| output.get::<Report>().ok());
        reports.flat_map(|report| report.deliverables).collect()
    }

    pub(super) fn handoff_context(&mut self, at: usize) -> HandoffContext {
        let available = self.gather(at);
        let Some(data) = self.machine.data(at) else { return HandoffContext::default() };
        let before = match self.machine.hops(at) {
            Some((Some(before), _)) => vec![Some(before)],
            _ if data.inputs.is_empty() => vec![None],
            _ => data.inputs.iter().map(|input| self.machine.sibling(at, &input.step)).collect(),
        };
        HandoffContext {
            available,
            rework: self.rework(at),
            input: self.machine.input().cloned(),
            phase: data.phase.clone(),
            instructions: data.instructions.clone(),
            sources: before.into_iter().map(|from| self.source(from, at)).collect(),
        }
    }

    fn source(&self, from: Option<usize>, to: usize) -> HandoffSource {
        let Some((from, path)) = from.and_then(|from| Some((from, self.machine.path(from)?.clone()))) else {
            return HandoffSource::default();
        };
        let step = self.body(from).and_then(|(program, local)| {
            program.steps.get(local).map(|step| (matches!(step.body, Body::Agent { .. }), step.spec.clone()))
        });
        let to = self.machine.path(to).cloned().unwrap_or_default();
        HandoffSource {
            agent: step.and_then(|(is_agent, spec)| is_agent.then_some(spec)),
            message: self.messages.get(&(path.clone(), to)).cloned(),
            path,
        }
    }
}
