//! Events out of bytes: server-sent events, lines of JSON, or one whole body.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use sse_stream::SseByteStream;

use super::Protocol;
use crate::failure::Failure;

/// How the events of an answer are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Framing {
    /// Server-sent events.
    Sse,
    /// One JSON value a line.
    Lines,
    /// One JSON value.
    Whole,
}

impl Framing {
    /// The framing that a `content-type` says.
    pub fn of_content_type(content_type: &str) -> Framing {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("text/event-stream") {
            Framing::Sse
        } else if ["application/x-ndjson", "application/jsonl", "application/x-jsonlines"]
            .iter()
            .any(|known| essence.eq_ignore_ascii_case(known))
        {
            Framing::Lines
        } else {
            Framing::Whole
        }
    }

    /// The framing of an answer that was asked for as a stream, where its `content-type` is missing or wrong: what
    /// begins like a JSON value or a page of HTML is that, all else is what streams over `protocol` are.
    pub(crate) fn of_stream(content_type: &str, first: &[u8], protocol: Protocol) -> Framing {
        let said = Framing::of_content_type(content_type);
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if said != Framing::Whole || essence == "application/json" || essence.ends_with("+json") {
            return said;
        }
        match first.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') if protocol == Protocol::Ollama => Framing::Lines,
            Some(b'{' | b'[' | b'<') => Framing::Whole,
            _ if protocol == Protocol::Ollama => Framing::Lines,
            _ => Framing::Sse,
        }
    }
}

pub(super) struct Event {
    pub(super) name: Option<String>,
    pub(super) data: String,
}

pub(super) struct Framer {
    kind: Kind,
    /// Bytes that came since the last event.
    pending: usize,
    max: usize,
}

enum Kind {
    Sse(SseByteStream<Inlet>, Inlet),
    Lines { buffer: BytesMut, searched: usize },
    Whole(Option<BytesMut>),
}

impl Framer {
    pub(super) fn new(framing: Framing, max: usize) -> Self {
        let kind = match framing {
            Framing::Sse => {
                let inlet = Inlet::default();
                Kind::Sse(SseByteStream::new(inlet.clone()), inlet)
            }
            Framing::Lines => Kind::Lines { buffer: BytesMut::new(), searched: 0 },
            Framing::Whole => Kind::Whole(Some(BytesMut::new())),
        };
        Framer { kind, pending: 0, max }
    }

    pub(super) fn push(&mut self, bytes: Bytes) -> Result<(), Failure> {
        self.pending = self.pending.saturating_add(bytes.len());
        match &mut self.kind {
            Kind::Sse(_, inlet) => inlet.push(bytes),
            Kind::Lines { buffer, .. } => buffer.extend_from_slice(&bytes),
            Kind::Whole(buffer) => {
                if let Some(buffer) = buffer {
                    buffer.extend_from_slice(&bytes);
                }
                self.check()?;
            }
        }
        Ok(())
    }

    /// The next event, or `None` until more bytes come.
    pub(super) fn next(&mut self) -> Result<Option<Event>, Failure> {
        let event = match &mut self.kind {
            Kind::Sse(events, _) => next_sse(events)?,
            Kind::Lines { buffer, searched } => next_line(buffer, searched)?,
            Kind::Whole(_) => None,
        };
        if event.is_some() {
            self.pending = 0;
        } else {
            self.check()?;
        }
        Ok(event)
    }

    fn check(&self) -> Result<(), Failure> {
        if self.pending <= self.max {
            return Ok(());
        }
        Err(Failure::malformed(format!("one event of the answer is larger than {} bytes", self.max)))
    }

    /// Whether bytes came of an answer that comes whole.
    pub(super) fn has_whole(&self) -> bool {
        matches!(&self.kind, Kind::Whole(Some(buffer)) if !buffer.is_empty())
    }

    /// Ends the input, so that a last event without its blank line or line end comes out.
    pub(super) fn close(&mut self) {
        match &mut self.kind {
            Kind::Sse(_, inlet) => inlet.push(Bytes::from_static(b"\n\n")),
            Kind::Lines { buffer, .. } => buffer.extend_from_slice(b"\n"),
            Kind::Whole(_) => {}
        }
    }

    pub(super) fn take_whole(&mut self) -> Option<BytesMut> {
        match &mut self.kind {
            Kind::Whole(buffer) => buffer.take(),
            Kind::Sse(..) | Kind::Lines { .. } => None,
        }
    }
}

/// The next event that says something: a block without data is none.
fn next_sse(events: &mut SseByteStream<Inlet>) -> Result<Option<Event>, Failure> {
    loop {
        match Pin::new(&mut *events).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(event))) => {
                if let Some(data) = event.data.filter(|data| !data.trim().is_empty()) {
                    return Ok(Some(Event { name: event.event, data }));
                }
            }
            Poll::Ready(Some(Err(error))) => {
                return Err(Failure::malformed(format!("expected server-sent events: {error}")));
            }
            Poll::Ready(None) | Poll::Pending => return Ok(None),
        }
    }
}

fn next_line(buffer: &mut BytesMut, searched: &mut usize) -> Result<Option<Event>, Failure> {
    loop {
        let unsearched = buffer.get(*searched..).unwrap_or_default();
        let Some(end) = unsearched.iter().position(|byte| *byte == b'\n') else {
            *searched = buffer.len();
            return Ok(None);
        };
        let line = buffer.split_to(*searched + end + 1);
        *searched = 0;
        let text = std::str::from_utf8(&line)
            .map_err(|error| Failure::malformed(format!("expected lines of UTF-8: {error}")))?
            .trim();
        if !text.is_empty() {
            return Ok(Some(Event { name: None, data: text.to_owned() }));
        }
    }
}

/// The stream that the decoder of server-sent events reads: what was pushed and not yet taken.
///
/// It lets a decoder that wants to pull be fed by hand. Nothing waits on it, so no waker is kept.
#[derive(Clone, Default)]
struct Inlet(Arc<Mutex<VecDeque<Bytes>>>);

impl Inlet {
    fn push(&self, bytes: Bytes) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(bytes);
    }
}

impl Stream for Inlet {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
            Some(bytes) => Poll::Ready(Some(Ok(bytes))),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(framer: &mut Framer) -> Vec<(Option<String>, String)> {
        let mut events = Vec::new();
        while let Some(event) = framer.next().unwrap() {
            events.push((event.name, event.data));
        }
        events
    }

    #[test]
    fn server_sent_events_come_out_of_any_chunks() {
        let bytes = b"\xef\xbb\xbf: comment\r\nevent: a\r\ndata: 1\r\ndata: \xc3\xa9\r\n\r\nevent:b\rdata:2\r\rdata: 3\n\n";
        for size in 1..bytes.len() {
            let mut framer = Framer::new(Framing::Sse, 1_000);
            let mut events = Vec::new();
            for chunk in bytes.chunks(size) {
                framer.push(Bytes::copy_from_slice(chunk)).unwrap();
                events.extend(drain(&mut framer));
            }
            let expected =
                [(Some("a".into()), "1\né".into()), (Some("b".into()), "2".into()), (None, "3".into())];
            assert_eq!(events, expected, "chunks of {size}");
        }
    }

    #[test]
    fn lines_come_out_of_any_chunks() {
        let bytes = "{\"a\":1}\r\n\n{\"b\":\"é\"}\n".as_bytes();
        for size in 1..bytes.len() {
            let mut framer = Framer::new(Framing::Lines, 1_000);
            let mut events = Vec::new();
            for chunk in bytes.chunks(size) {
                framer.push(Bytes::copy_from_slice(chunk)).unwrap();
                events.extend(drain(&mut framer));
            }
            assert_eq!(events, [(None, "{\"a\":1}".into()), (None, "{\"b\":\"é\"}".into())]);
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        for framing in [Framing::Sse, Framing::Lines, Framing::Whole] {
            let mut framer = Framer::new(framing, 100);
            let refused = (0..20).any(|_| {
                framer.push(Bytes::from_static(b"data: 0123456789")).is_err() || framer.next().is_err()
            });
            assert!(refused, "{framing:?}");
        }
    }

    #[test]
    fn content_types_say_the_framing() {
        assert_eq!(Framing::of_content_type("text/event-stream; charset=utf-8"), Framing::Sse);
        assert_eq!(Framing::of_content_type("Application/X-NDJSON"), Framing::Lines);
        assert_eq!(Framing::of_content_type("application/json"), Framing::Whole);
    }
}
