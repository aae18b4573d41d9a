//! Waking those who follow a run in this process.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use coral_core::Seq;
use tokio::sync::watch;

/// The last seq of each run that somebody follows.
#[derive(Default)]
pub(crate) struct Bell(Mutex<HashMap<Box<str>, watch::Sender<Seq>>>);

impl Bell {
    /// Listens for `run`, seeing what is rung from now on.
    pub(crate) fn listen(&self, run: &str) -> watch::Receiver<Seq> {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match runs.get(run) {
            Some(sender) => sender.subscribe(),
            None => {
                // Those whom nobody follows any more are only in the way.
                runs.retain(|_, sender| sender.receiver_count() > 0);
                let (sender, receiver) = watch::channel(0);
                runs.insert(run.into(), sender);
                receiver
            }
        }
    }

    /// Tells that the runs have grown.
    pub(crate) fn ring<'a>(&self, grown: impl IntoIterator<Item = (&'a str, Seq)>) {
        let runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.is_empty() {
            return;
        }
        for (run, seq) in grown {
            if let Some(sender) = runs.get(run) {
                sender.send_if_modified(|last| {
                    let later = seq > *last;
                    *last = seq.max(*last);
                    later
                });
            }
        }
    }
}
