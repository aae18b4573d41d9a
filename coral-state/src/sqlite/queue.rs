//! The way from async callers to the writer's thread, made for groups: one lock and one wake-up
//! serve all that is taken together.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    enough: Condvar,
    room: Semaphore,
}

struct State<T> {
    waiting: Vec<T>,
    /// How many must wait before the taker is woken.
    wanted: usize,
    closed: bool,
}

impl<T> Queue<T> {
    /// A queue with room for `capacity`.
    pub(super) fn new(capacity: usize) -> Self {
        Queue {
            state: Mutex::new(State { waiting: Vec::new(), wanted: usize::MAX, closed: false }),
            enough: Condvar::new(),
            room: Semaphore::new(capacity.clamp(1, Semaphore::MAX_PERMITS)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `item` once there is room; gives it back if the queue is closed.
    pub(super) async fn push(&self, item: T) -> Result<(), T> {
        let Ok(permit) = self.room.acquire().await else { return Err(item) };
        permit.forget();
        let mut state = self.state();
        if state.closed {
            return Err(item);
        }
        state.waiting.push(item);
        if state.waiting.len() == state.wanted {
            self.enough.notify_one();
        }
        Ok(())
    }

    /// Moves all that waits into `taken`, blocking until there is something. If fewer than `usual`
    /// are there, it gives the others until `patience` is over. `false` once the queue is closed
    /// and empty.
    pub(super) fn take(&self, usual: usize, patience: Duration, taken: &mut impl Extend<T>) -> bool {
        let mut state = self.state();
        state.wanted = 1;
        while state.waiting.is_empty() {
            if state.closed {
                return false;
            }
            state = self.enough.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.waiting.len() < usual && !patience.is_zero() {
            state.wanted = usual;
            let lacking = |state: &mut State<T>| state.waiting.len() < usual && !state.closed;
            state = match self.enough.wait_timeout_while(state, patience, lacking) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        state.wanted = usize::MAX;
        let items = std::mem::take(&mut state.waiting);
        drop(state);
        self.room.add_permits(items.len());
        taken.extend(items);
        true
    }

    /// Takes no more; what waits can still be taken.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.room.close();
        self.enough.notify_one();
    }

    /// Closes and forgets what waits: nobody will take it.
    pub(super) fn abandon(&self) {
        self.close();
        drop(std::mem::take(&mut self.state().waiting));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn gives_everything_once_and_in_order() {
        let queue = Arc::new(Queue::new(3));
        let taker = std::thread::spawn({
            let queue = queue.clone();
            move || {
                let mut taken = Vec::new();
                while queue.take(5, Duration::from_millis(1), &mut taken) {}
                taken
            }
        });
        for n in 0..100 {
            queue.push(n).await.unwrap();
        }
        queue.close();
        assert_eq!(queue.push(100).await, Err(100));
        assert_eq!(taker.join().unwrap(), (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_full_queue_makes_its_callers_wait() {
        let queue = Queue::new(1);
        queue.push(1).await.unwrap();
        let mut second = std::pin::pin!(queue.push(2));
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(second.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
        let mut taken = Vec::new();
        assert!(queue.take(1, Duration::ZERO, &mut taken));
        second.await.unwrap();
        assert!(queue.take(1, Duration::ZERO, &mut taken));
        assert_eq!(taken, [1, 2]);
    }

    #[tokio::test]
    async fn abandoning_frees_what_waits_and_who_waits() {
        let queue = Queue::new(1);
        let item = Arc::new(());
        queue.push(item.clone()).await.unwrap();
        let second = queue.push(item.clone());
        let (second, ()) = tokio::join!(second, async { queue.abandon() });
        assert!(second.is_err());
        drop(second);
        assert_eq!(Arc::strong_count(&item), 1);
        assert!(!queue.take(1, Duration::ZERO, &mut Vec::new()));
    }
}
