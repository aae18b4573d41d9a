//! For whom an agent acts: rights only shrink on the way.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use coral_core::{Caller, Error, ErrorKind};

/// More than any run needs; forgetting one would widen rights.
const MAX: usize = 100_000;

type Key = (String, String);

/// The agents on whose behalf others act, by run and agent.
#[derive(Default)]
pub(super) struct Delegations {
    parents: Mutex<HashMap<Key, Vec<Caller>>>,
}

fn key(caller: &Caller) -> Key {
    (caller.run.to_string(), caller.agent.to_string())
}

impl Delegations {
    /// Whether this is new.
    pub(super) fn add(&self, parent: &Caller, child: &Caller) -> Result<bool, Error> {
        let mut parents = self.parents.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            parents.get(&key(child)).is_some_and(|of| of.iter().any(|known| key(known) == key(parent)));
        if known || key(parent) == key(child) {
            return Ok(false);
        }
        let count: usize = parents.values().map(Vec::len).sum();
        if count >= MAX {
            let max = u64::try_from(MAX).unwrap_or(u64::MAX);
            return Err(Error::new(ErrorKind::Limit { limit: "delegations".to_owned(), max }));
        }
        parents.entry(key(child)).or_default().push(parent.clone());
        Ok(true)
    }

    /// The caller and everyone for whom it acts, near ones first.
    pub(super) fn principals<'a>(&self, caller: &'a Caller) -> Cow<'a, [Caller]> {
        let parents = self.parents.lock().unwrap_or_else(PoisonError::into_inner);
        if parents.is_empty() {
            return Cow::Borrowed(std::slice::from_ref(caller));
        }
        let mut found = vec![caller.clone()];
        let mut next = 0;
        while let Some(of) = found.get(next).map(key) {
            next += 1;
            for parent in parents.get(&of).into_iter().flatten() {
                if !found.iter().any(|known| key(known) == key(parent)) {
                    found.push(parent.clone());
                }
            }
        }
        Cow::Owned(found)
    }

    /// Ends what was delegated in a run.
    pub(super) fn forget(&self, run: &str) {
        self.parents.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| of != run);
    }
}
