//! Sessions of users, over any journal.

use std::fmt;
use std::sync::Arc;

use coral_core::{Clock, Error, Journal, SystemClock};
use serde_json::Value;

use crate::ledger::{Ledger, check_id};
use crate::snapshots::Snapshots;
use crate::views::{SessionChange, SessionState};

/// The sessions kept in a journal: who the user is, what they watch and what they prefer.
///
/// ```
/// use coral_core::MemoryJournal;
/// use coral_state::Sessions;
/// use serde_json::json;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let sessions = Sessions::new(MemoryJournal::new());
/// sessions.begin("s-1", "reef", json!({"name": "Ada"})).await?;
/// let session = sessions.prefer("s-1", "theme", json!("dark")).await?;
/// assert_eq!(session.preferences["theme"], "dark");
/// # Ok::<(), coral_core::Error>(())
/// # }).unwrap();
/// ```
pub struct Sessions {
    ledger: Ledger,
}

impl Sessions {
    /// The sessions in `journal`.
    pub fn new(journal: impl Journal + 'static) -> Self {
        Self::with_clock(journal, Arc::new(SystemClock))
    }

    /// The same by another clock.
    pub fn with_clock(journal: impl Journal + 'static, clock: Arc<dyn Clock>) -> Self {
        Sessions { ledger: Ledger::new(Arc::new(journal), clock) }
    }

    /// The same, where sessions in which much happened begin with a snapshot: in the store itself,
    /// or in a cache by [`CachedSnapshots`](crate::CachedSnapshots).
    #[must_use]
    pub fn with_snapshots(mut self, snapshots: impl Snapshots + 'static) -> Self {
        self.ledger = self.ledger.with_snapshots(Arc::new(snapshots));
        self
    }

    /// Begins a session, or takes an ended one up again with its preferences.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the id can't be one or the session goes on;
    /// those of the journal.
    pub async fn begin(&self, id: &str, project: &str, user: Value) -> Result<SessionState, Error> {
        check_id("session", id)?;
        self.ledger
            .change(id, |found: Option<&SessionState>| match found {
                Some(session) if !session.ended => {
                    Err(Error::invalid("session id", format!("`{id}` is of a session that goes on")))
                }
                _ => Ok(vec![
                    SessionChange::Began { project: project.to_owned() },
                    SessionChange::Context { user: user.clone() },
                ]),
            })
            .await
    }

    /// The session, ended or not.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn get(&self, id: &str) -> Result<Option<SessionState>, Error> {
        Ok(self.ledger.get(id).await?.map(|(state, _)| state))
    }

    /// All sessions that go on, in the order of their ids.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn open(&self) -> Result<Vec<SessionState>, Error> {
        let mut sessions: Vec<SessionState> = self.ledger.all().await?;
        sessions.retain(|session| !session.ended);
        Ok(sessions)
    }

    /// Replaces what is known of the user.
    ///
    /// # Errors
    /// [`NotFound`](coral_core::ErrorKind::NotFound) unless the session goes on; those of the journal.
    pub async fn set_user(&self, id: &str, user: Value) -> Result<SessionState, Error> {
        self.change(id, |session| {
            (session.user != user).then(|| SessionChange::Context { user: user.clone() })
        })
        .await
    }

    /// Sets a preference; `null` takes it out.
    ///
    /// # Errors
    /// As [`set_user`](Self::set_user).
    pub async fn prefer(&self, id: &str, key: &str, value: Value) -> Result<SessionState, Error> {
        self.change(id, |session| {
            let changed = session.preferences.get(key).unwrap_or(&Value::Null) != &value;
            changed.then(|| SessionChange::Preferred { key: key.to_owned(), value: value.clone() })
        })
        .await
    }

    /// Lets the session watch a run.
    ///
    /// # Errors
    /// As [`set_user`](Self::set_user).
    pub async fn attach(&self, id: &str, run: &str) -> Result<SessionState, Error> {
        self.change(id, |session| {
            (!session.workflows.contains(run)).then(|| SessionChange::Attached { run: run.to_owned() })
        })
        .await
    }

    /// Lets the session no longer watch a run.
    ///
    /// # Errors
    /// As [`set_user`](Self::set_user).
    pub async fn detach(&self, id: &str, run: &str) -> Result<SessionState, Error> {
        self.change(id, |session| {
            session.workflows.contains(run).then(|| SessionChange::Detached { run: run.to_owned() })
        })
        .await
    }

    /// Ends the session.
    ///
    /// # Errors
    /// As [`set_user`](Self::set_user).
    pub async fn end(&self, id: &str) -> Result<SessionState, Error> {
        self.change(id, |_| Some(SessionChange::Ended)).await
    }

    async fn change(
        &self,
        id: &str,
        decide: impl Fn(&SessionState) -> Option<SessionChange> + Send + Sync,
    ) -> Result<SessionState, Error> {
        self.ledger
            .change(id, |found: Option<&SessionState>| match found {
                Some(session) if !session.ended => Ok(decide(session).into_iter().collect()),
                _ => Err(Error::not_found("session", id, [])),
            })
            .await
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}
