//! Budgets whose time is up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{BACKOFF, Driver};
use crate::budget::covers;
use crate::event::Event;
use crate::machine::StepState;

/// When the time of each budget is up: a moment of this process, found once.
#[derive(Clone, Default)]
pub(super) struct Deadlines {
    dues: BTreeSet<(Instant, Arc<str>)>,
    /// How many of the budgets in the ledger are known here.
    known: usize,
}

impl Deadlines {
    /// The first.
    pub(super) fn next(&self) -> Option<Instant> {
        self.dues.first().map(|(due, _)| *due)
    }
}

impl Driver {
    /// When the time of a budget is up next.
    pub(super) fn next_deadline(&mut self) -> Option<Instant> {
        let ledger = self.shared.ledger();
        let known = ledger.timed();
        if known > self.deadlines.known {
            let (now, now_ms) = (Instant::now(), self.shared.ports.clock.now_ms());
            for (path, due_ms) in ledger.deadlines(self.deadlines.known) {
                // A limit of so many milliseconds holds up to the last of them.
                let left = Duration::from_millis(due_ms.saturating_sub(now_ms).saturating_add(1));
                self.deadlines.dues.extend(now.checked_add(left).map(|due| (due, path.clone())));
            }
            self.deadlines.known = known;
        }
        drop(ledger);
        self.deadlines.next()
    }

    /// Stops what works under budgets whose time is up.
    pub(super) fn end_times(&mut self, now: Instant) {
        while let Some((due, _)) = self.deadlines.dues.first()
            && *due <= now
            && let Some((_, path)) = self.deadlines.dues.pop_first()
        {
            let Some(error) = self.shared.ledger().end_time(&path) else { continue };
            let live = self.live.iter().enumerate().filter(|(_, live)| live.is_some()).map(|(step, _)| step);
            let busy: Vec<usize> = live.chain(self.waits.steps()).collect();
            for step in busy {
                if !self.machine.path(step).is_some_and(|at| covers(&path, at)) {
                    continue;
                }
                match self.machine.state(step) {
                    // Its next attempt is refused when it begins, which is now.
                    Some(StepState::Backoff { attempt, .. }) => self.end_backoff(step, *attempt),
                    _ => self.abort(step, error.clone()),
                }
            }
        }
    }

    fn end_backoff(&mut self, step: usize, attempt: u32) {
        let Some(path) = self.machine.path(step).cloned() else { return };
        if let Some(live) =
            self.live.get(step).and_then(Option::as_ref).filter(|live| live.attempt == BACKOFF)
        {
            live.task.abort();
            self.end_live(step);
        }
        self.push(Event::RetryDue { path, attempt }, true);
    }
}
