//! The connections of one server, by whom they are for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use coral_core::{Caller, Error, ToolFault};

use super::State;
use crate::config::Per;
use crate::server::fault;

/// For how many runs and agents at once one server may have connections of their own.
const MAX: usize = 256;

/// Whom a connection is for: a run and, within it, an agent, where the rules part them; nobody else gets
/// to see what its server keeps for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Holder {
    run: String,
    agent: String,
}

impl Holder {
    pub(super) fn of(per: Per, caller: &Caller) -> Self {
        match per {
            Per::Sandbox => Holder::default(),
            Per::Run => Holder { run: caller.run.to_string(), agent: String::new() },
            Per::Agent => Holder { run: caller.run.to_string(), agent: caller.agent.to_string() },
        }
    }
}

/// The connections of each holder.
#[derive(Default)]
pub(crate) struct States(Mutex<HashMap<Holder, Arc<tokio::sync::Mutex<State>>>>);

impl States {
    /// Those of `holder`.
    ///
    /// # Errors
    /// When there are too many holders: a connection is often a process.
    pub(super) fn of(&self, server: &str, holder: &Holder) -> Result<Arc<tokio::sync::Mutex<State>>, Error> {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = states.get(holder) {
            return Ok(Arc::clone(state));
        }
        if states.len() >= MAX {
            // Those that hold nothing, and that nobody is about to fill.
            states.retain(|_, state| {
                Arc::strong_count(state) > 1 || state.try_lock().is_ok_and(|state| state.is_in_use())
            });
        }
        if states.len() >= MAX {
            let problem = format!("{MAX} runs and agents have connections of their own to it already");
            return Err(fault(server, ToolFault::Unavailable, problem)
                .with_help("set `idle_s` in its rules under `connection`, or `per: run` for `per: agent`"));
        }
        Ok(Arc::clone(states.entry(holder.clone()).or_default()))
    }

    pub(super) fn all(&self) -> Vec<Arc<tokio::sync::Mutex<State>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Closes the connections that were for a run alone.
    pub(super) fn forget(&self, run: &str) {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states.retain(|holder, _| holder == &Holder::default() || holder.run != run);
    }
}
