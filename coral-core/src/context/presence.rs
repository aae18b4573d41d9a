//! Whether a step works, or only waits.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::call::Caller;
use crate::driver::{Resting, RunShared};
use crate::error::Error;
use crate::resources::Permit;

/// What one attempt of a step holds while it works, and lets go of while all that it does is to wait for a
/// person, a time or a signal: its permit, its place among the steps that a drain waits for, and its time limit.
pub(crate) struct Presence {
    run: Arc<RunShared>,
    caller: Arc<Caller>,
    state: Mutex<State>,
    /// One at a time gets the permit back.
    returning: tokio::sync::Mutex<()>,
    /// Told when the step works again.
    works: Notify,
}

struct State {
    permit: Option<Permit>,
    is_over: bool,
    /// What the step does at once, and how much of that waits.
    branches: usize,
    waiting: usize,
    /// Since when it only waits.
    resting: Option<(Instant, Resting)>,
    /// How long it only waited before.
    waited: Duration,
}

impl Presence {
    pub(super) fn new(run: Arc<RunShared>, caller: Arc<Caller>) -> Arc<Self> {
        let (permit, resting, waited) = (None, None, Duration::ZERO);
        let state = State { permit, is_over: false, branches: 1, waiting: 0, resting, waited };
        let (state, returning, works) = (Mutex::new(state), tokio::sync::Mutex::default(), Notify::new());
        Arc::new(Presence { run, caller, state, returning, works })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the step may work, where the runner's resources are bounded.
    pub(super) async fn begin_work(&self) -> Result<(), Error> {
        let Some(resources) = &self.run.ports.resources else { return Ok(()) };
        let _returning = self.returning.lock().await;
        let has_it = {
            let state = self.state();
            state.permit.is_some() || state.is_over
        };
        if !has_it {
            let permit = resources.acquire(&self.caller).await?;
            self.state().permit = Some(permit);
        }
        Ok(())
    }

    /// Waits for `what`, and then until the step may work again.
    pub(super) async fn wait<F: Future>(&self, what: F) -> Result<F::Output, Error> {
        let waiting = Waiting(self);
        self.rest_if(|state| state.waiting += 1).await;
        let output = what.await;
        self.begin_work().await?;
        drop(waiting);
        Ok(output)
    }

    /// Says that the step does so many things at once, until what is returned is dropped.
    pub(super) fn fan_out(&self, branches: usize) -> FanOut<'_> {
        self.state().branches = branches;
        FanOut(self)
    }

    /// One of the things that the step does at once is over.
    pub(super) async fn end_branch(&self) {
        self.rest_if(|state| state.branches = state.branches.saturating_sub(1)).await;
    }

    /// Makes a change, and lets go of what the step holds if all that is left is to wait.
    async fn rest_if(&self, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.state();
            change(&mut state);
            if state.waiting < state.branches || state.waiting == 0 || state.resting.is_some() {
                return;
            }
            state.permit = None;
            state.resting = Some((Instant::now(), self.run.rest()));
        }
        self.run.tell_of_rest().await;
    }

    /// Resolves when the step has worked for so long; what it only waited does not count.
    pub(crate) async fn worked_ms(&self, limit_ms: u64) {
        let begun = Instant::now();
        loop {
            let (rests, waited) = {
                let state = self.state();
                (state.resting.is_some(), state.waited)
            };
            if rests {
                self.works.notified().await;
                continue;
            }
            let Some(due) = begun.checked_add(Duration::from_millis(limit_ms).saturating_add(waited)) else {
                return std::future::pending().await;
            };
            if Instant::now() >= due {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }

    /// The attempt is over: whatever still knows of it holds nothing any more.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.is_over = true;
        (state.permit, state.resting) = (None, None);
    }
}

/// One thing that a step does waits as long as this lives.
struct Waiting<'a>(&'a Presence);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting = state.waiting.saturating_sub(1);
        if let Some((since, _)) = state.resting.take() {
            state.waited += since.elapsed();
            self.0.works.notify_one();
        }
    }
}

/// A step does several things at once as long as this lives.
pub(super) struct FanOut<'a>(&'a Presence);

impl Drop for FanOut<'_> {
    fn drop(&mut self) {
        self.0.state().branches = 1;
    }
}
