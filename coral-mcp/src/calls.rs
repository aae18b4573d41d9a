//! The calls under way on one connection: their deadlines, their progress, and for which of them a
//! server asks back.

use std::future::Future;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coral_core::CallContext;
use coral_core::resilience::Timers;
use rmcp::model::{ProgressNotificationParam, ProgressToken, RequestId};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How often a server may ask back in one call.
const MAX_QUESTIONS: u32 = 16;
/// How many reports of progress a call passes on, and how far apart they are.
const MAX_REPORTS: u32 = 200;
const BETWEEN_REPORTS: Duration = Duration::from_millis(100);

/// One call under way.
pub(crate) struct Underway {
    pub(crate) cx: CallContext,
    /// The tool, by its name at the server.
    pub(crate) tool: String,
    questions: AtomicU32,
    /// How many questions are open: the call's time stands still meanwhile.
    open: AtomicU32,
    /// Told when the first is opened and when the last is closed.
    turned: Notify,
    reports: Mutex<(u32, Option<Instant>)>,
}

impl Underway {
    pub(crate) fn new(cx: &CallContext, tool: &str) -> Arc<Self> {
        Arc::new(Underway {
            cx: cx.clone(),
            tool: tool.to_owned(),
            questions: AtomicU32::new(0),
            open: AtomicU32::new(0),
            turned: Notify::new(),
            reports: Mutex::default(),
        })
    }

    /// Begins a question; `None` if the server asked too often.
    pub(crate) fn question(self: &Arc<Self>) -> Option<Question> {
        if self.questions.fetch_add(1, Ordering::Relaxed) >= MAX_QUESTIONS {
            return None;
        }
        Some(self.hold())
    }

    /// Stops the call's clock until what is given back is dropped.
    fn hold(self: &Arc<Self>) -> Question {
        if self.open.fetch_add(1, Ordering::SeqCst) == 0 {
            self.turned.notify_waiters();
        }
        Question(Arc::clone(self))
    }

    /// Waits for `work`, for `limit` at the most, in which open questions do not count.
    ///
    /// # Errors
    /// When the time is over.
    pub(crate) async fn within<T>(
        &self,
        limit: Duration,
        timers: &Timers,
        work: impl Future<Output = T>,
    ) -> Result<T, ()> {
        let mut timer = timers.timer();
        let mut left = limit;
        let mut work = std::pin::pin!(work);
        loop {
            let began = Instant::now();
            // Made before it is looked whether one is open, it misses none that is from here on.
            let turned = self.turned.notified();
            if self.open.load(Ordering::SeqCst) > 0 {
                tokio::select! {
                    done = &mut work => return Ok(done),
                    () = turned => continue,
                }
            }
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = turned => left = left.saturating_sub(began.elapsed()),
                () = timer.until(began + left) => return Err(()),
            }
        }
    }

    fn progress(&self, report: &ProgressNotificationParam) {
        {
            let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let (count, last) = *reports;
            if count >= MAX_REPORTS || last.is_some_and(|last| now - last < BETWEEN_REPORTS) {
                return;
            }
            *reports = (count + 1, Some(now));
        }
        let message = report.message.as_deref().map(|text| crate::text::clean(text, 500));
        let note = json!({
            "tool": self.tool, "progress": report.progress, "total": report.total, "message": message,
        });
        self.cx.note("mcp.progress", note);
    }
}

/// A question that is open until this is dropped.
pub(crate) struct Question(Arc<Underway>);

impl Drop for Question {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.turned.notify_waiters();
        }
    }
}

/// The calls under way on one connection, by the ids and tokens of their requests.
#[derive(Default)]
pub(crate) struct Calls {
    /// As few as may be under way at once, so they are looked through.
    under_way: Mutex<Vec<Request>>,
    next: AtomicU64,
}

struct Request {
    key: u64,
    call: Arc<Underway>,
    /// Known once it is sent.
    sent: Option<(RequestId, ProgressToken)>,
}

impl Request {
    fn is(&self, id: &RequestId) -> bool {
        self.sent.as_ref().is_some_and(|(sent, _)| sent == id)
    }
}

impl Calls {
    /// Enters a request, before it is sent, until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, call: &Arc<Underway>) -> Entered {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().push(Request { key, call: Arc::clone(call), sent: None });
        Entered { calls: Arc::clone(self), key }
    }

    /// How many calls are under way.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Request>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the clocks of all calls under way until what is given back is dropped.
    #[cfg(feature = "http")]
    pub(crate) fn hold(&self) -> Vec<Question> {
        self.lock().iter().map(|request| request.call.hold()).collect()
    }

    /// The call that a server asks back for: the one on whose stream it asks, else the only one. With
    /// several under way and no stream it can't be told, and a question must not reach another's
    /// run.
    pub(crate) fn asking(&self, origin: Option<&RequestId>) -> Option<Arc<Underway>> {
        let under_way = self.lock();
        let on_stream = origin.and_then(|origin| under_way.iter().find(|request| request.is(origin)));
        let only = || {
            let only = under_way.first().filter(|_| under_way.len() == 1);
            // A stream of its own belongs to a request that was not entered yet, or to none here.
            only.filter(|only| origin.is_none() || only.sent.is_none())
        };
        on_stream.or_else(only).map(|request| Arc::clone(&request.call))
    }

    /// Passes progress on to the call that it is of.
    pub(crate) fn progress(&self, report: &ProgressNotificationParam) {
        let is = |request: &&Request| {
            request.sent.as_ref().is_some_and(|(_, token)| *token == report.progress_token)
        };
        let call = self.lock().iter().find(is).map(|request| Arc::clone(&request.call));
        if let Some(call) = call {
            call.progress(report);
        }
    }
}

/// A request that is under way.
pub(crate) struct Entered {
    calls: Arc<Calls>,
    key: u64,
}

impl Entered {
    pub(crate) fn sent(&self, id: RequestId, token: ProgressToken) {
        if let Some(request) = self.calls.lock().iter_mut().find(|request| request.key == self.key) {
            request.sent = Some((id, token));
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.calls.lock().retain(|request| request.key != self.key);
    }
}

#[cfg(test)]
mod tests {
    use coral_core::Caller;

    use super::*;

    fn call() -> Arc<Underway> {
        Underway::new(&CallContext::new(Caller::agent("dev")), "t")
    }

    #[tokio::test(start_paused = true)]
    async fn time_stands_still_while_a_question_is_open() {
        let (call, timers) = (call(), Timers::default());
        let question = call.question().unwrap();
        let work = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            drop(question);
            tokio::time::sleep(Duration::from_secs(5)).await;
        };
        assert_eq!(call.within(Duration::from_secs(10), &timers, work).await, Ok(()));
        let idle = tokio::time::sleep(Duration::from_secs(11));
        assert_eq!(call.within(Duration::from_secs(10), &timers, idle).await, Err(()));
    }

    #[test]
    fn a_server_may_ask_so_often_and_no_more() {
        let call = call();
        let asked = std::iter::from_fn(|| call.question()).take(100).count();
        assert_eq!(asked, 16);
    }

    #[test]
    fn a_question_goes_to_its_own_call_or_to_none() {
        let calls = Arc::new(Calls::default());
        let token = |n: i64| ProgressToken(RequestId::Number(n));
        let (a, b) = (call(), call());
        let first = calls.enter(&a);
        first.sent(RequestId::Number(1), token(1));
        assert!(Arc::ptr_eq(&calls.asking(None).unwrap(), &a));
        let second = calls.enter(&b);
        second.sent(RequestId::Number(2), token(2));
        assert!(calls.asking(None).is_none(), "two are under way");
        assert!(Arc::ptr_eq(&calls.asking(Some(&RequestId::Number(2))).unwrap(), &b));
        assert!(calls.asking(Some(&RequestId::Number(3))).is_none());
        drop((first, second));
        assert!(calls.asking(None).is_none());
    }
}
