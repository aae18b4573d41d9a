//! A run in progress: its events, its questions, its end.

use std::fmt;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::budget::Used;
use crate::driver::{RunEnd, RunShared, ToDriver};
use crate::error::{Error, ErrorKind};
use crate::event::{Question, Record, RunStatus, Seq};
use crate::journal::PAGE;
use crate::payload::{Data, Payload};

/// A run in progress, or over.
pub struct Run<O> {
    shared: Arc<RunShared>,
    output: PhantomData<fn() -> O>,
}

impl<O> Clone for Run<O> {
    fn clone(&self) -> Self {
        Run::new(self.shared.clone())
    }
}

impl<O> fmt::Debug for Run<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

impl<O> Run<O> {
    pub(crate) fn new(shared: Arc<RunShared>) -> Self {
        Run { shared, output: PhantomData }
    }

    /// The run's id: what [`Runner::resume`](crate::Runner::resume) takes.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// Asks the run to end. Running agents are stopped and clean up; what has not begun is
    /// skipped. A run that is over stays as it is.
    pub async fn cancel(&self, reason: &str) {
        if self.shared.end().is_none() {
            self.shared.send(ToDriver::Cancel(reason.into())).await;
        }
    }

    /// What the run has used so far.
    pub fn used(&self) -> Used {
        self.shared.ledger().used()
    }

    /// What was done until a budget or a cancellation ended the run: the output of each step that succeeded, by its
    /// path. Waits until the run is over; `None` if it ended otherwise.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub async fn partial(&self) -> Result<Option<Value>, Error> {
        self.end(|status, output, _| match output {
            Some(output) if matches!(status, RunStatus::Stopped | RunStatus::Cancelled) => {
                output.json().cloned().map(Some)
            }
            _ => Ok(None),
        })
        .await
    }

    /// The questions that wait for an answer, by id.
    pub async fn questions(&self) -> Vec<Arc<Question>> {
        let (reply, questions) = oneshot::channel();
        match self.shared.end() {
            None => self.shared.send(ToDriver::Questions(reply)).await,
            // Nobody would answer.
            Some(_) => drop(reply),
        }
        questions.await.unwrap_or_default()
    }

    /// Answers a question. Says whether this answer is the one that counts: the first does, and a
    /// later one changes nothing, nor does one to a run that is over.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is no such question;
    /// [`Invalid`](ErrorKind::Invalid) if the answer does not fit its schema;
    /// [`Suspended`](ErrorKind::Suspended) if the run stands still, [`Fenced`](ErrorKind::Fenced) if that is since
    /// another process took it over; those of the journal.
    pub async fn answer<A: Data>(&self, id: &str, answer: A, by: &str) -> Result<bool, Error> {
        if self.shared.end().is_none()
            && let Some(taken) = self.shared.answer(id.into(), Payload::new(answer), by.into()).await
        {
            return taken;
        }
        match self.shared.end() {
            Some(RunEnd::Finished { .. }) => Ok(false),
            _ => Err(self.stands_still()),
        }
    }

    /// Sends a signal to the run. It is durable when this returns, whether or not a step waits for it
    /// yet.
    ///
    /// # Errors
    /// [`Suspended`](ErrorKind::Suspended) if the run stands still or is over, [`Fenced`](ErrorKind::Fenced) if
    /// another process took it over; those of the journal.
    pub async fn signal<T: Data>(&self, name: &str, payload: T) -> Result<(), Error> {
        let (taken, wait) = oneshot::channel();
        match self.shared.end() {
            None => {
                let payload = Payload::new(payload);
                self.shared.send(ToDriver::Signal { name: name.into(), payload, taken }).await;
            }
            // Nobody would answer.
            Some(_) => drop(taken),
        }
        wait.await.unwrap_or_else(|_| Err(self.stands_still()))
    }

    fn stands_still(&self) -> Error {
        if let Some(RunEnd::Broken(error)) = self.shared.end()
            && error.is_fenced()
        {
            return error.clone();
        }
        Error::new(ErrorKind::Suspended { run: self.shared.id.to_string() })
            .with_help("resume it, then try again")
    }

    /// Waits until the run is over, and says how it ended.
    ///
    /// # Errors
    /// What kept the run from going on: [`Fenced`](ErrorKind::Fenced) if another process took it
    /// over, [`Suspended`](ErrorKind::Suspended) after [`Runner::shutdown`](crate::Runner::shutdown), those of the journal.
    /// The run can be resumed.
    pub async fn wait(&self) -> Result<RunStatus, Error> {
        self.end(|status, _, _| Ok(status)).await
    }

    /// The run's events in order, from seq `from` (1 is the first) on, then each new one as it
    /// comes; ends with the run. Nothing is dropped or reordered, however slow the reader.
    pub fn events(&self, from: Seq) -> EventStream {
        EventStream::new(self.shared.clone(), from.max(1))
    }

    async fn end<T>(
        &self,
        then: impl FnOnce(RunStatus, Option<&Payload>, Option<&Error>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match self.shared.ended().await {
            RunEnd::Finished { status, output, error } => then(*status, output.as_ref(), error.as_ref()),
            RunEnd::Broken(error) => Err(error.clone()),
        }
    }
}

impl<O: Data> Run<O> {
    /// Waits until the run is over and gives its output.
    ///
    /// # Errors
    /// The error of the step that failed; [`Budget`](ErrorKind::Budget) if a budget ended it, see
    /// [`partial`](Self::partial); [`Cancelled`](ErrorKind::Cancelled); else as
    /// [`wait`](Self::wait).
    pub async fn output(&self) -> Result<O, Error> {
        self.end(|_, output, error| match (output, error) {
            (_, Some(error)) => Err(error.clone()),
            (Some(output), None) => output.get(),
            (None, None) => Err(Error::invalid("run", "it ended without output")),
        })
        .await
    }
}

/// A run's events in order. See [`Run::events`].
pub struct EventStream(BoxStream<'static, Result<Record, Error>>);

impl EventStream {
    fn new(shared: Arc<RunShared>, from: Seq) -> Self {
        struct Cursor {
            shared: Arc<RunShared>,
            next: Seq,
            page: std::vec::IntoIter<Record>,
            broken: bool,
        }
        let cursor = Cursor { shared, next: from, page: Vec::new().into_iter(), broken: false };
        let stream = futures_util::stream::unfold(cursor, |mut cursor| async move {
            loop {
                if let Some(record) = cursor.page.next() {
                    cursor.next = record.seq + 1;
                    return Some((Ok(record), cursor));
                }
                if cursor.broken {
                    return None;
                }
                // Whether it is over is asked before the journal is read, so that no record
                // made in between is missed.
                let shared = cursor.shared.clone();
                let mut news = pin!(shared.news.notified());
                news.as_mut().enable();
                let over = shared.end().is_some();
                match cursor.shared.ports.journal.read(&cursor.shared.id, cursor.next, PAGE).await {
                    Ok(page) if !page.is_empty() => cursor.page = page.into_iter(),
                    Ok(_) if over => return None,
                    Ok(_) => news.await,
                    Err(error) => {
                        cursor.broken = true;
                        return Some((Err(error), cursor));
                    }
                }
            }
        });
        EventStream(stream.boxed())
    }

    /// The next event; `None` when the run is over and all were given.
    ///
    /// # Errors
    /// Those of the journal; the stream ends after one.
    pub async fn next(&mut self) -> Option<Result<Record, Error>> {
        self.0.next().await
    }
}

impl Stream for EventStream {
    type Item = Result<Record, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}
