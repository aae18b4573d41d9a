//! Limits of time for calls that nearly always end well before them.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// How many timers are kept that no call has: enough for the calls that end while others begin.
const MAX_KEPT: usize = 64;

/// Longer than any call lasts, and not too long for any clock.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Timers that go from call to call, for a port whose calls are limited in time.
///
/// To set a timer of tokio's wakes the thread that waits for the timers, and a call that takes a hundred microseconds
/// feels that. A timer that is kept here was set for an earlier call and still runs, so it goes off no later than the
/// next call of the same limit needs; where it goes off too early, it is set to what is left.
///
/// So a timer outlasts its call. Nothing is woken by it then, but a paused clock that advances by itself advances to
/// it where nothing else is waited for but other threads.
///
/// ```
/// use std::time::Duration;
///
/// use coral_core::resilience::Timers;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let timers = Timers::default();
/// let answer = timers.timer().within(Duration::from_secs(60), async { 42 }).await;
/// assert_eq!(answer, Some(42));
/// # }
/// ```
#[derive(Default)]
pub struct Timers(Mutex<Vec<Set>>);

/// A timer that is set, and the runtime by which: it goes off there alone.
struct Set {
    sleep: Pin<Box<Sleep>>,
    runtime: Id,
    /// Whom it wakes.
    waker: Option<Waker>,
}

impl Set {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Whom it wakes already need not be entered again each time that they look.
        let is_known = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if is_known && !self.sleep.is_elapsed() {
            return Poll::Pending;
        }
        // A task whose turn is over would not be entered at all.
        let polled = pin!(unconstrained(self.sleep.as_mut())).poll(cx);
        self.waker = polled.is_pending().then(|| cx.waker().clone());
        polled
    }
}

/// One of [`Timers`], as long as a call lasts. It is taken only once there is something to wait for.
#[derive(Debug)]
pub struct Timer<'a> {
    timers: &'a Timers,
    set: Option<Set>,
}

impl Timers {
    /// A timer for a call, which may use it for one wait after the other.
    pub fn timer(&self) -> Timer<'_> {
        Timer { timers: self, set: None }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Set>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, deadline: Instant) -> Set {
        let runtime = Handle::current().id();
        let mut foreign = Vec::new();
        let taken = {
            let mut kept = self.kept();
            if kept.last().is_some_and(|last| last.runtime != runtime) {
                foreign.extend(kept.extract_if(.., |kept| kept.runtime != runtime));
            }
            kept.pop()
        };
        taken.unwrap_or_else(|| Set { sleep: Box::pin(sleep_until(deadline)), runtime, waker: None })
    }
}

impl Timer<'_> {
    /// What `work` gives, or `None` if it takes longer than `limit` from when it first has to wait.
    ///
    /// # Panics
    /// Outside of a tokio runtime that keeps time.
    pub async fn within<T>(&mut self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let mut deadline = None;
        poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            let deadline = *deadline.get_or_insert_with(|| {
                let now = Instant::now();
                now.checked_add(limit).unwrap_or(now + FOREVER)
            });
            self.poll_until(deadline, cx).map(|()| None)
        })
        .await
    }

    /// Waits until `deadline`.
    ///
    /// # Panics
    /// Outside of a tokio runtime that keeps time.
    pub async fn until(&mut self, deadline: Instant) {
        poll_fn(|cx| self.poll_until(deadline, cx)).await;
    }

    fn poll_until(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let set = self.set.get_or_insert_with(|| self.timers.take(deadline));
        if set.sleep.deadline() > deadline {
            set.sleep.as_mut().reset(deadline);
        }
        while set.poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            set.sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let Some(mut set) = self.set.take() else { return };
        // A call may be dropped after its runtime was, and the timer of that can't be asked any more.
        if set.sleep.is_elapsed() || !Handle::try_current().is_ok_and(|handle| handle.id() == set.runtime) {
            return;
        }
        // It would hold on to the task that waited. What else goes with that may have a timer of its own, so this
        // is done before the others are locked.
        set.waker = None;
        let _ = set.poll(&mut Context::from_waker(Waker::noop()));
        let mut kept = self.timers.kept();
        if kept.len() < MAX_KEPT {
            kept.push(set);
        }
    }
}

impl fmt::Debug for Timers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timers").field("kept", &self.kept().len()).finish()
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Set").field("deadline", &self.sleep.deadline()).finish()
    }
}
