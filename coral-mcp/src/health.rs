//! What a transport tells of its server beside the messages.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::asked::Asked;
use crate::calls::Calls;

/// Whether a message as it is on the wire is an answer to a call and nothing more: most are, and of these
/// nothing but what the protocol's types hold is wanted. A name that is spelled by escapes is not to be
/// overlooked.
pub(crate) fn is_mere_answer(message: &str) -> bool {
    !["\"method\"", "\"tools\"", "\\u"].iter().any(|part| message.contains(part))
}

/// The state of one connection, shared between its transport and its user.
#[derive(Default)]
pub(crate) struct Health {
    problem: Mutex<Option<String>>,
    changed: AtomicBool,
    tools: Mutex<BTreeMap<String, Value>>,
    first_id: AtomicI64,
    calls: Arc<Calls>,
    asked: Asked,
    secrets: Mutex<Vec<String>>,
}

impl Health {
    /// Notes why the connection ended; the first reason stays.
    pub(crate) fn broke(&self, problem: impl Into<String>) {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| problem.into());
    }

    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The calls under way on the connection.
    pub(crate) fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    /// What the server asked and was not answered yet.
    pub(crate) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Has a value blotted out of what the server answers.
    #[cfg(feature = "http")]
    pub(crate) fn hide(&self, secret: &str) {
        /// Older tokens than these have run out.
        const MAX_SECRETS: usize = 16;
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        // Short values would blot out words that merely look like them.
        if secret.len() >= 6 && !secrets.iter().any(|known| known == secret) {
            if secrets.len() == MAX_SECRETS {
                secrets.remove(0);
            }
            secrets.push(secret.to_owned());
        }
    }

    /// The values to blot out, with those of `more`.
    pub(crate) fn secrets(&self, more: &[String]) -> Vec<String> {
        let own = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        more.iter().chain(own.iter()).cloned().collect()
    }

    /// The server says that its tools are others now.
    pub(crate) fn tools_changed(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Whether the tools were said to be others.
    pub(crate) fn is_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    /// Whether the tools were said to be others since this was asked last.
    pub(crate) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    /// The older handshake began with request `id`: what was asked before is not waited for.
    pub(crate) fn began_again(&self, id: i64) {
        self.first_id.store(id, Ordering::Relaxed);
    }

    /// Whether an answer is one that nobody waits for any more. A server that starts slowly answers
    /// the newer handshake after the older was begun, and must not be taken to answer that.
    pub(crate) fn is_late(&self, id: &Value) -> bool {
        id.as_i64().is_some_and(|id| id < self.first_id.load(Ordering::Relaxed))
    }

    /// Keeps the tools of a message as the server sent them: what the protocol's types leave out is part
    /// of what is pinned.
    pub(crate) fn saw_tools(&self, message: &Value) {
        let Some(Value::Array(tools)) = message.pointer("/result/tools") else { return };
        let mut kept = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        for tool in tools {
            if let Some(name) = tool.get("name").and_then(Value::as_str) {
                kept.insert(name.to_owned(), tool.clone());
            }
        }
    }

    /// The tools as they were sent, which are forgotten by this.
    pub(crate) fn take_tools(&self) -> BTreeMap<String, Value> {
        std::mem::take(&mut *self.tools.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
