//! What is done before what came before it is durable.
//!
//! A function has no effects that are recorded, so nothing outside can depend on its being durable that it ran. Where
//! nothing else of the run works, functions that end at once follow each other without waiting for the journal, and
//! share the append with which the run goes on to something else: an agent, a task, its end. What a crash can take is
//! the work of functions of [one millisecond](AT_MOST) at the most, which is done again.
//!
//! Functions that could run beside each other do so in tasks, but that a task costs more than most functions. So they
//! are [taken in turn](IN_TURN) for a while; one that took longer the last time is not.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::{BATCH, Driver};
use crate::event::Record;
use crate::machine::Command;
use crate::program::{Body, Step};

/// How long the functions may have worked whose ends are not durable when another begins.
const AT_MOST: Duration = Duration::from_millis(1);

/// How long functions may take together that could run beside each other and are run one after the other.
const IN_TURN: Duration = Duration::from_micros(100);

/// What is applied and not durable yet.
#[derive(Default)]
pub(super) struct Ahead {
    records: Vec<Record>,
    /// When the first function began that has left something in the records or the batch.
    since: Option<Instant>,
    /// How long those took that could have run beside others.
    in_turn: Duration,
    /// How many events of the batch may go ahead.
    ready: usize,
}

impl Ahead {
    /// So many events more of the batch may go ahead.
    pub(super) fn count(&mut self, events: usize) {
        self.ready += events;
    }

    /// The records, which are made durable now with the batch.
    pub(super) fn take(&mut self) -> Vec<Record> {
        std::mem::take(self).records
    }
}

/// What the future gives that `begin` makes, in a task of its own. Whether it kept the thread for long is noted.
pub(super) async fn timed<F: Future + Unpin>(is_slow: &AtomicBool, begin: impl FnOnce() -> F) -> F::Output {
    let begun = Instant::now();
    let mut work = begin();
    let mut is_first = true;
    poll_fn(|cx| {
        let polled = work.poll_unpin(cx);
        if std::mem::take(&mut is_first) {
            is_slow.store(begun.elapsed() > IN_TURN, Ordering::Relaxed);
        }
        polled
    })
    .await
}

impl Driver {
    /// Whether what the machine asks for may be done before all that it has applied is durable.
    pub(super) fn may_carry_out(&self) -> bool {
        if self.ahead.records.is_empty() {
            return true;
        }
        match self.commands.as_slice() {
            [Command::Run { step, .. }] => self.is_without_effects(*step),
            // These only bring forth events.
            commands => commands.iter().all(|command| {
                matches!(command, Command::Skip { .. } | Command::Settle { .. } | Command::Finish { .. })
            }),
        }
    }

    /// Whether a step is a function that hands nothing over, or only waits.
    fn is_without_effects(&self, at: usize) -> bool {
        let Some((program, local)) = self.body(at) else { return false };
        program.steps.get(local).is_some_and(|step| match step.body {
            Body::Function { .. } => step.place.successors.is_empty(),
            Body::Wait { .. } => true,
            Body::Agent { .. } | Body::Composite { .. } => false,
        })
    }

    /// Whether the batch may be applied before it is durable.
    pub(super) fn goes_ahead(&self) -> bool {
        let count = self.batch.len();
        count > 0
            && count == self.ahead.ready
            && self.ahead.records.len() + count < BATCH
            && self.working == 0
            && self.waits.is_empty()
            && self.acks.is_empty()
            && self.told.is_empty()
            && !self.shared.is_draining()
            && self.ahead.since.is_none_or(|since| since.elapsed() < AT_MOST)
    }

    /// Whether a function is run without a task, as far as it gets without waiting: one that is `alone` has nobody to
    /// run beside.
    pub(super) fn is_in_turn(&self, step: &Step, alone: bool) -> bool {
        alone || (!step.is_slow.load(Ordering::Relaxed) && self.ahead.in_turn < IN_TURN)
    }

    /// Runs what a function does at once.
    pub(super) fn in_turn<T>(&mut self, step: &Step, alone: bool, act: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        self.ahead.since.get_or_insert(begun);
        let done = act();
        if !alone {
            let took = begun.elapsed();
            self.ahead.in_turn += took;
            step.is_slow.store(took > IN_TURN, Ordering::Relaxed);
        }
        done
    }

    /// Applies the batch.
    pub(super) fn go_ahead(&mut self) {
        let at_ms = self.shared.ports.clock.now_ms();
        self.ahead.ready = 0;
        let mut batch = std::mem::take(&mut self.batch);
        for (event, step) in batch.drain(..) {
            let seq = self.seq + 1 + self.ahead.records.len() as u64;
            let record = Record { seq, at_ms, event };
            self.apply(&record, step);
            self.ahead.records.push(record);
        }
        self.batch = batch;
    }
}
