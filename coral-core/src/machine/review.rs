//! Work that goes back.
//!
//! A step that sends work back waits again, and so does everything behind the step that the work
//! goes to. Nothing of that starts any more, and what runs of it comes to its end, so that no
//! work that is paid for is cut off, and reviewers side by side are heard together. Then the step
//! that owes, and all behind it, begin anew as the next attempt.

use std::collections::BTreeSet;

use super::{Command, Machine, StepState};
use crate::handoff::Returned;
use crate::payload::Payload;

/// What is kept of a step that was part of a review.
#[derive(Debug, Default)]
pub(super) struct Reviewed {
    /// How often it has sent work back.
    pub(super) rounds: u32,
    /// Its attempts before the present round.
    before: u32,
    /// What it gave last.
    previous: Option<Payload>,
    /// Whether it may not start, since something before it is to be done again.
    held: bool,
}

impl Machine {
    /// How often `step` has sent work back.
    pub(crate) fn rounds(&self, step: usize) -> u32 {
        self.reviewed.get(&step).map_or(0, |reviewed| reviewed.rounds)
    }

    /// What `step` gave before its work, or what it was built on, was sent back.
    pub(crate) fn previous(&self, step: usize) -> Option<&Payload> {
        self.reviewed.get(&step)?.previous.as_ref()
    }

    /// The steps of its graph that `step` comes after, the nearest first.
    pub(crate) fn before(&self, step: usize) -> Vec<usize> {
        let Some(slot) = self.slots.get(step) else { return Vec::new() };
        let Some(scope) = self.scopes.get(slot.scope) else { return Vec::new() };
        scope.graph.before(slot.at).into_iter().map(|at| scope.first + at).collect()
    }

    /// The attempts of `step` before its present round of review.
    pub(super) fn attempts_before(&self, step: usize) -> u32 {
        self.reviewed.get(&step).map_or(0, |reviewed| reviewed.before)
    }

    /// Whether a scope is not one of a round that is over.
    pub(super) fn is_current(&self, id: usize) -> bool {
        let mut id = id;
        while !self.reviewed.is_empty() {
            let owner = self.scopes.get(id).and_then(|scope| self.slots.get(scope.owner?));
            match owner {
                Some(owner) if owner.children.contains(&id) => id = owner.scope,
                Some(_) => return false,
                None => return true,
            }
        }
        true
    }

    pub(super) fn is_held(&self, step: usize) -> bool {
        !self.reviewed.is_empty() && self.reviewed.get(&step).is_some_and(|reviewed| reviewed.held)
    }

    pub(super) fn send_back(
        &mut self,
        step: usize,
        round: u32,
        returned: &[Returned],
        commands: &mut Vec<Command>,
    ) {
        if self.cancel.is_some() {
            return self.settle(Some(step), StepState::Failed(self.cancelled()), commands);
        }
        let Some((id, at)) = self.slots.get(step).map(|slot| (slot.scope, slot.at)) else { return };
        let Some((graph, first)) = self.scopes.get(id).map(|scope| (scope.graph.clone(), scope.first)) else {
            return;
        };
        let to = returned.iter().filter_map(|returned| self.step(&returned.to)?.checked_sub(first));
        let mut open: Vec<usize> = to.filter(|at| *at < graph.steps().len()).collect();
        open.push(at);
        let mut again = BTreeSet::new();
        while let Some(at) = open.pop() {
            if again.insert(at) {
                open.extend(graph.wiring(at).into_iter().flat_map(|wires| &wires.behind));
            }
        }
        for at in again {
            self.reviewed.entry(first + at).or_default().held = true;
        }
        self.reviewed.entry(step).or_default().rounds = round;
        if let Some(slot) = self.slots.get_mut(step) {
            slot.state = StepState::Waiting;
        }
        self.begin_anew(id, commands);
    }

    /// Once nothing runs of what is held in a graph: lets it begin anew.
    pub(super) fn begin_anew(&mut self, id: usize, commands: &mut Vec<Command>) {
        let Some(scope) = self.scopes.get(id).filter(|_| !self.reviewed.is_empty()) else { return };
        let steps = scope.first..scope.first + scope.graph.steps().len();
        let held: Vec<usize> =
            self.reviewed.range(steps).filter(|(_, reviewed)| reviewed.held).map(|(step, _)| *step).collect();
        let is_busy =
            |state: Option<&StepState>| state.is_some_and(|s| !s.is_settled() && *s != StepState::Waiting);
        if held.is_empty() || self.cancel.is_some() || held.iter().any(|step| is_busy(self.state(*step))) {
            return;
        }
        let mut reopened = 0;
        for step in &held {
            let (Some(slot), Some(reviewed)) = (self.slots.get_mut(*step), self.reviewed.get_mut(step))
            else {
                continue;
            };
            reopened += usize::from(slot.state.is_settled());
            if let StepState::Succeeded(output) = std::mem::replace(&mut slot.state, StepState::Waiting) {
                reviewed.previous = Some(output);
            }
            reviewed.before = slot.attempts;
            reviewed.held = false;
            slot.taken = None;
            slot.opened = None;
            slot.children.clear();
            slot.running = 0;
            slot.failed = false;
            slot.verdict = None;
            slot.needless = None;
        }
        if let Some(scope) = self.scopes.get_mut(id) {
            scope.open += reopened;
        }
        self.recount(id);
        for step in held {
            self.consider(step, None, commands);
        }
    }
}
