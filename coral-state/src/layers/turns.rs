//! Turns at a key, so that what is old never overtakes what is new.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coral_core::Error;

use super::Entry;

/// The keys that somebody is busy with.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<Box<str>, Arc<Turn>>>);

/// What those who are busy with one key agree by.
#[derive(Default)]
pub(super) struct Turn {
    /// Held while layers are changed.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Held while layers are asked; has what the last to ask found.
    pub(super) asking: tokio::sync::Mutex<Option<Found>>,
    changes: AtomicU64,
}

/// What was found, and how often the key had been changed before.
pub(super) struct Found {
    pub(super) before: u64,
    pub(super) result: Result<Option<Entry>, Error>,
}

impl Turn {
    /// How often the key was changed.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Begins a change. Its end counts as one too, however it ends: what was asked for in between is
    /// not to be trusted.
    pub(super) fn change(&self) -> Changing<'_> {
        self.changes.fetch_add(1, Ordering::AcqRel);
        Changing(self)
    }
}

pub(super) struct Changing<'a>(&'a Turn);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.changes.fetch_add(1, Ordering::AcqRel);
    }
}

impl Turns {
    fn all(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<Turn>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn at `key`, kept as long as anyone is busy with it.
    pub(super) fn at<'a>(&'a self, key: &'a str) -> Busy<'a> {
        let mut all = self.all();
        let turn = match all.get(key) {
            Some(turn) => turn.clone(),
            None => all.entry(key.into()).or_default().clone(),
        };
        Busy { turns: self, key, turn }
    }
}

pub(super) struct Busy<'a> {
    turns: &'a Turns,
    key: &'a str,
    turn: Arc<Turn>,
}

impl Deref for Busy<'_> {
    type Target = Turn;

    fn deref(&self) -> &Turn {
        &self.turn
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut all = self.turns.all();
        // This one and the map's own: nobody else is busy with the key.
        if Arc::strong_count(&self.turn) == 2 {
            all.remove(self.key);
        }
    }
}
