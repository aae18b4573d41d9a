//! Events out of bytes: server-sent events, lines of JSON, or one whole body.

use std::ops::{Deref, Range};

use bytes::Bytes;
use memchr::{memchr, memchr2};

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

/// One event: its name, where the framing has names, and its data.
#[derive(Debug, PartialEq)]
pub(super) struct Event<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) data: &'a str,
}

/// Cuts bytes that come in pieces of any size into events, and gives them out where they lie.
pub(super) struct Framer {
    framing: Framing,
    /// What came; what stands before `taken` was given out.
    buffer: Buffer,
    taken: usize,
    /// Where the line begins that is not yet whole, from `taken` on.
    line: usize,
    /// How far its end was looked for, from `taken` on.
    searched: usize,
    /// Whether the last line ended in a carriage return: a line feed that follows belongs to it.
    returned: bool,
    /// Whether a line was read: before the first one a byte order mark may stand.
    begun: bool,
    block: Block,
    /// The data of an event that has several lines of it.
    joined: Vec<u8>,
    max: usize,
}

/// Bytes that are read where they came. Only what is left of a piece is copied, to stand before the next one.
pub(super) enum Buffer {
    Piece(Bytes),
    Gathered(Vec<u8>),
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer::Piece(Bytes::new())
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Buffer::Piece(bytes) => bytes,
            Buffer::Gathered(bytes) => bytes,
        }
    }
}

/// What the lines of a server-sent event said so far. Places count from where it begins.
#[derive(Default)]
struct Block {
    name: Option<Range<usize>>,
    data: Data,
}

#[derive(Default)]
enum Data {
    #[default]
    None,
    Line(Range<usize>),
    Joined,
}

impl Framer {
    pub(super) fn new(framing: Framing, max: usize) -> Self {
        Framer {
            framing,
            buffer: Buffer::default(),
            taken: 0,
            line: 0,
            searched: 0,
            returned: false,
            begun: false,
            block: Block::default(),
            joined: Vec::new(),
            max,
        }
    }

    pub(super) fn push(&mut self, bytes: Bytes) -> Result<(), Failure> {
        self.append(bytes);
        if self.framing == Framing::Whole { self.check(self.buffer.len()) } else { Ok(()) }
    }

    fn append(&mut self, bytes: Bytes) {
        let taken = std::mem::take(&mut self.taken);
        let mut gathered = match std::mem::take(&mut self.buffer) {
            known if known.len() <= taken => {
                self.buffer = Buffer::Piece(bytes);
                return;
            }
            Buffer::Piece(piece) => piece.get(taken..).unwrap_or_default().to_vec(),
            Buffer::Gathered(mut gathered) => {
                gathered.drain(..taken);
                gathered
            }
        };
        gathered.extend_from_slice(&bytes);
        self.buffer = Buffer::Gathered(gathered);
    }

    /// The next event that says something, or `None` until more bytes come.
    pub(super) fn next(&mut self) -> Result<Option<Event<'_>>, Failure> {
        while let Some(line) = self.next_line() {
            let block = match self.framing {
                Framing::Sse if !line.is_empty() => {
                    self.take_field(line);
                    continue;
                }
                Framing::Sse => std::mem::take(&mut self.block),
                Framing::Lines | Framing::Whole => Block { name: None, data: Data::Line(line) },
            };
            let begin = self.taken;
            self.check(self.line)?;
            self.taken += self.line;
            (self.line, self.searched) = (0, 0);
            // A block without data says nothing, nor does an empty line.
            if !self.bytes(begin, &block.data).trim_ascii().is_empty() {
                return self.event(begin, &block).map(Some);
            }
        }
        let left = self.buffer.len().saturating_sub(self.taken);
        if left == 0 {
            // The piece belongs to a larger buffer, which its connection can then use again.
            (self.buffer, self.taken) = (Buffer::default(), 0);
        }
        self.check(left)?;
        Ok(None)
    }

    /// The next whole line without its end, from `taken` on.
    fn next_line(&mut self) -> Option<Range<usize>> {
        let came = self.buffer.get(self.taken..)?;
        if self.returned {
            let follows = *came.get(self.line)?;
            self.returned = false;
            self.line += usize::from(follows == b'\n');
            self.searched = self.line;
        }
        let unsearched = came.get(self.searched..)?;
        let found = match self.framing {
            Framing::Sse => memchr2(b'\n', b'\r', unsearched),
            Framing::Lines => memchr(b'\n', unsearched),
            Framing::Whole => None,
        };
        let Some(length) = found else {
            self.searched = came.len();
            return None;
        };
        let end = self.searched + length;
        let line = self.line..end;
        self.returned = came.get(end) == Some(&b'\r');
        self.line = end + 1;
        self.searched = self.line;
        if std::mem::replace(&mut self.begun, true) || !came.starts_with(MARK) {
            return Some(line);
        }
        Some(MARK.len().min(line.end)..line.end)
    }

    /// A line of a server-sent event: a field's name, a colon, perhaps a blank, and its value.
    fn take_field(&mut self, line: Range<usize>) {
        let bytes = part(&self.buffer, self.taken, &line);
        let colon = memchr(b':', bytes);
        let name = bytes.get(..colon.unwrap_or(bytes.len())).unwrap_or_default();
        let value = colon.and_then(|colon| bytes.get(colon + 1..)).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let place = line.end - value.len()..line.end;
        match name {
            b"event" => self.block.name = Some(place),
            b"data" => {
                if let Data::Line(first) = &self.block.data {
                    self.joined.clear();
                    self.joined.extend_from_slice(part(&self.buffer, self.taken, first));
                    self.block.data = Data::Joined;
                }
                if matches!(self.block.data, Data::Joined) {
                    self.joined.push(b'\n');
                    self.joined.extend_from_slice(value);
                } else {
                    self.block.data = Data::Line(place);
                }
            }
            _ => {}
        }
    }

    /// The bytes of an event's data.
    fn bytes(&self, begin: usize, data: &Data) -> &[u8] {
        match data {
            Data::None => &[],
            Data::Line(place) => part(&self.buffer, begin, place),
            Data::Joined => &self.joined,
        }
    }

    /// The event whose lines begin at `begin`.
    fn event(&self, begin: usize, block: &Block) -> Result<Event<'_>, Failure> {
        let text = |bytes| {
            std::str::from_utf8(bytes)
                .map_err(|error| Failure::malformed(format!("expected events of UTF-8: {error}")))
        };
        let name = block.name.as_ref().map(|place| text(part(&self.buffer, begin, place))).transpose()?;
        Ok(Event { name, data: text(self.bytes(begin, &block.data))?.trim() })
    }

    fn check(&self, length: usize) -> Result<(), Failure> {
        if length <= self.max {
            return Ok(());
        }
        Err(Failure::malformed(format!("one event of the answer is larger than {} bytes", self.max)))
    }

    /// Whether bytes came of an answer that comes whole.
    pub(super) fn has_whole(&self) -> bool {
        self.framing == Framing::Whole && !self.buffer.is_empty()
    }

    /// Ends the input, so that a last event without its blank line or line end comes out.
    pub(super) fn close(&mut self) {
        self.append(Bytes::from_static(b"\n\n"));
    }

    /// The answer that came whole.
    pub(super) fn take_whole(&mut self) -> Option<Buffer> {
        (self.framing == Framing::Whole).then(|| std::mem::take(&mut self.buffer))
    }
}

/// What may stand before the first line.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// The bytes at `place`, which counts from `begin` on.
fn part<'a>(buffer: &'a [u8], begin: usize, place: &Range<usize>) -> &'a [u8] {
    buffer.get(begin + place.start..begin + place.end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_an_event_are_put_together_as_the_standard_says() {
        let bytes = b"data\n\n:c\n\nid: 1\nretry: 5\nevent: lost\n\ndata:  a\ndata:\ndata: b\nother: c\nevent: x\nevent: y\n\ndata: c\n\n";
        for size in 1..=bytes.len() {
            let mut framer = Framer::new(Framing::Sse, 1_000);
            let mut events = Vec::new();
            for chunk in bytes.chunks(size) {
                framer.push(Bytes::copy_from_slice(chunk)).unwrap();
                events.extend(drain(&mut framer));
            }
            assert_eq!(events, [(Some("y".into()), "a\n\nb".into()), (None, "c".into())], "chunks of {size}");
        }
    }

    #[test]
    fn signs_of_life_may_go_on_for_ever() {
        let mut framer = Framer::new(Framing::Sse, 100);
        for _ in 0..100 {
            framer.push(Bytes::from_static(b": still there\n\n")).unwrap();
            assert_eq!(framer.next().unwrap(), None);
        }
    }

    fn drain(framer: &mut Framer) -> Vec<(Option<String>, String)> {
        let mut events = Vec::new();
        while let Some(event) = framer.next().unwrap() {
            events.push((event.name.map(str::to_owned), event.data.to_owned()));
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
