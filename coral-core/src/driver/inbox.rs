//! What waits for a run's driver.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::sync::Notify;

use super::shared::ToDriver;

/// Messages that may wait; beyond, whoever sends another waits.
const CAPACITY: usize = 256;

/// A bounded queue with one reader. It takes no memory while it is empty and its run is parked, which is
/// what a channel of blocks does not offer.
#[derive(Default)]
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    room: Notify,
}

#[derive(Default)]
struct Queue {
    letters: Vec<ToDriver>,
    /// Wakes the reader, if it waits.
    reader: Option<Waker>,
    closed: bool,
}

impl Inbox {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message, once there is room for it. One to a driver that is gone is dropped, and with it
    /// the end of whatever channel it is to be answered on.
    pub(crate) async fn send(&self, letter: ToDriver) {
        if let Err(letter) = self.push(letter) {
            // Boxed, so that the tasks of steps are small: this is rare.
            Box::pin(self.push_when_there_is_room(letter)).await;
        }
    }

    fn push(&self, letter: ToDriver) -> Result<(), ToDriver> {
        let mut queue = self.queue();
        if queue.closed {
            return Ok(());
        }
        if queue.letters.len() >= CAPACITY {
            return Err(letter);
        }
        queue.letters.push(letter);
        let reader = queue.reader.take();
        drop(queue);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }

    async fn push_when_there_is_room(&self, mut letter: ToDriver) {
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            match self.push(letter) {
                Ok(()) => return,
                Err(back) => letter = back,
            }
            room.await;
        }
    }

    /// Waits until there is a message. There is one reader, which keeps nothing while it waits.
    pub(super) fn arrived(&self) -> impl Future<Output = ()> {
        poll_fn(|cx| {
            let mut queue = self.queue();
            if !queue.letters.is_empty() {
                return Poll::Ready(());
            }
            match &mut queue.reader {
                Some(reader) => reader.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            Poll::Pending
        })
    }

    /// Takes all messages, in the order in which they came, into `letters`, which is empty.
    pub(super) fn take(&self, letters: &mut Vec<ToDriver>) {
        let mut queue = self.queue();
        let was_full = queue.letters.len() >= CAPACITY;
        std::mem::swap(&mut queue.letters, letters);
        drop(queue);
        if was_full {
            self.room.notify_waiters();
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.queue().letters.is_empty()
    }

    /// Gives back the memory of messages that were taken.
    pub(super) fn shrink(&self) {
        self.queue().letters.shrink_to_fit();
    }

    /// Whether the first message asks the driver to stop, so that none needs to be there for it.
    pub(super) fn asks_to_stop(&self) -> bool {
        matches!(self.queue().letters.first(), Some(ToDriver::Drain | ToDriver::Suspend))
    }

    /// Takes no message any more, and drops those that wait.
    pub(super) fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        let letters = std::mem::take(&mut queue.letters);
        drop(queue);
        self.room.notify_waiters();
        drop(letters);
    }
}
