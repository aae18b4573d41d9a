//! What layers around a model share: knowing whether something was heard, and the time that is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coral_core::{CallContext, ChatResponse, Delta, Part, Usd};
use tokio::time::Instant;

/// Passes a call on, perhaps to several models one after the other.
pub(crate) struct Relay<'a> {
    cx: &'a CallContext,
    heard: Arc<AtomicBool>,
    deadline: Option<Instant>,
    unheard: bool,
}

impl<'a> Relay<'a> {
    pub(crate) fn new(cx: &'a CallContext) -> Self {
        let deadline = cx.timeout_ms().map(|ms| Instant::now() + Duration::from_millis(ms));
        Relay { cx, heard: Arc::default(), deadline, unheard: false }
    }

    /// Keeps the pieces of the answers from the listener.
    pub(crate) fn unheard(mut self) -> Self {
        self.unheard = true;
        self
    }

    /// The terms of the next try: what is left of the time, and a listener that notes whether it heard something.
    pub(crate) fn next(&self) -> CallContext {
        let mut cx = self.cx.clone();
        if let Some(left) = self.left_ms() {
            cx = cx.with_timeout_ms(left);
        }
        if !self.cx.streams() {
            return cx;
        }
        if self.unheard {
            return cx.on_delta(|_| {});
        }
        let (heard, listener) = (self.heard.clone(), self.cx.clone());
        cx.on_delta(move |delta| {
            heard.store(true, Ordering::Relaxed);
            listener.emit(delta);
        })
    }

    /// The same for a request with another body, such as that of another model. An endpoint that knows a key refuses
    /// another body under it, or gives the answer to the first, so this one has a key of its own: the same for each try.
    pub(crate) fn next_as(&self, what: &str, number: usize) -> CallContext {
        let cx = self.next();
        if cx.key().is_empty() {
            return cx;
        }
        let key = format!("{}.{what}{number}", cx.key());
        cx.with_key(key)
    }

    /// Whether the listener heard something: then another answer would begin in the middle of this one.
    pub(crate) fn was_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// Milliseconds that are left, if the call has a limit.
    pub(crate) fn left_ms(&self) -> Option<u64> {
        let left = self.deadline?.saturating_duration_since(Instant::now());
        Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
    }
}

/// What two calls cost together, as far as it is known.
pub(crate) fn added(a: Option<Usd>, b: Option<Usd>) -> Option<Usd> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

/// Reports the parts of an answer that is there whole.
pub(crate) fn tell_whole(response: &ChatResponse, cx: &CallContext) {
    if !cx.streams() {
        return;
    }
    let mut index = 0;
    for part in &response.message.parts {
        match part {
            Part::Text { text } => cx.emit(&Delta::Text(text.clone())),
            Part::Thinking { text, .. } => cx.emit(&Delta::Thinking(text.clone())),
            Part::ToolCall(call) => {
                cx.emit(&Delta::ToolCall { index, name: call.name.clone() });
                cx.emit(&Delta::ToolArguments { index, fragment: call.arguments.to_string() });
                index += 1;
            }
            _ => {}
        }
    }
}
