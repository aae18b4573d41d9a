//! How records lie on disk: one chunk for each append.
//!
//! A chunk holds the records of one batch. Their numbers follow from the number of the last one,
//! which the backend keeps as the chunk's key, so that neither is written twice.
//!
//! The first byte says what follows:
//! - `[` — JSON: the time of the first record, then for each record the milliseconds since the
//!   one before it and its event: `[1738922400123,[0,{"step_started":…}],[3,…]]`
//! - `0x01` — the length of that JSON as a little-endian `u32`, then the JSON as one LZ4 block.

use std::cell::RefCell;
use std::fmt;

use coral_core::{Error, Event, Record, Seq};
use serde::de::{SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const JSON: u8 = b'[';
const LZ4: u8 = 1;
/// Below this many bytes a chunk is kept as it is: LZ4 finds nothing in so little.
const COMPRESS_FROM: usize = 512;
/// More than one SQLite value or one PostgreSQL field can hold, and far more than belongs in a journal.
const MAX_CHUNK: usize = 512 << 20;

struct Times<'a>(&'a [Record]);

impl Serialize for Times<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        let mut before = self.0.first().map_or(0, |first| first.at_ms);
        seq.serialize_element(&before)?;
        for record in self.0 {
            let later = record.at_ms.wrapping_sub(before).cast_signed();
            seq.serialize_element(&(later, &record.event))?;
            before = record.at_ms;
        }
        seq.end()
    }
}

/// How much memory a thread keeps for the chunks that it writes.
const MAX_KEPT: usize = 256 << 10;

thread_local! {
    /// The JSON of a chunk and its packed form, before it is known how long they are.
    static SCRATCH: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// The chunk of `records`.
pub(crate) fn encode(records: &[Record]) -> Result<Vec<u8>, Error> {
    // What a user's value does while it is written could come back here.
    let (mut json, mut packed) = SCRATCH.take();
    let chunk = encode_in(&mut json, &mut packed, records);
    if json.capacity() + packed.capacity() <= MAX_KEPT {
        SCRATCH.set((json, packed));
    }
    chunk
}

fn encode_in(json: &mut Vec<u8>, packed: &mut Vec<u8>, records: &[Record]) -> Result<Vec<u8>, Error> {
    json.clear();
    serde_json::to_writer(&mut *json, &Times(records))
        .map_err(|e| Error::invalid("event", format!("it can't be written as JSON: {e}")))?;
    if json.len() > MAX_CHUNK {
        return Err(Error::invalid(
            "append",
            format!("the batch is {} bytes, {MAX_CHUNK} is the most", json.len()),
        )
        .with_help("keep large values in a blob store and their names in the journal"));
    }
    if json.len() < COMPRESS_FROM {
        return Ok(json.to_vec());
    }
    let most = 5 + lz4_flex::block::get_maximum_output_size(json.len());
    if packed.len() < most {
        packed.resize(most, 0);
    }
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
    let Some((head, body)) = packed.split_at_mut_checked(5) else { return Ok(json.to_vec()) };
    if let Some((kind, size)) = head.split_first_mut() {
        *kind = LZ4;
        size.copy_from_slice(&length.to_le_bytes());
    }
    match lz4_flex::block::compress_into(json, body) {
        // A tenth must be gained, or reading would pay for nothing.
        Ok(size) if size + 5 < json.len() - json.len() / 10 => {
            Ok(packed.get(..size + 5).unwrap_or_default().to_vec())
        }
        _ => Ok(json.to_vec()),
    }
}

/// Appends to `out` the records of a chunk from seq `from` on, until `out` holds `limit`.
pub(crate) fn decode(
    chunk: &[u8],
    last: Seq,
    from: Seq,
    limit: usize,
    out: &mut Vec<Record>,
) -> Result<(), Error> {
    if out.len() >= limit {
        return Ok(());
    }
    let events = events(chunk)?;
    let count = events.0.len() as u64;
    if count == 0 || count > last {
        return Err(corrupt(format_args!("a chunk that ends at seq {last} holds {count} records")));
    }
    let first = last - count + 1;
    let expected = out.last().map_or(from, |record| record.seq + 1);
    if first > expected {
        return Err(corrupt(format_args!("records {expected} to {} are missing", first - 1)));
    }
    let skip = usize::try_from(expected - first).unwrap_or(usize::MAX);
    let room = limit.saturating_sub(out.len());
    out.extend(events.0.into_iter().zip(first..).skip(skip).take(room).map(|((at_ms, event), seq)| Record {
        seq,
        at_ms,
        event,
    }));
    Ok(())
}

/// How many records a chunk holds.
#[cfg(feature = "sqlite")]
pub(crate) fn count(chunk: &[u8]) -> Result<usize, Error> {
    Ok(events(chunk)?.0.len())
}

fn events(chunk: &[u8]) -> Result<Timed, Error> {
    match chunk.split_first() {
        Some((&JSON, _)) => parse(chunk),
        Some((&LZ4, packed)) => {
            let (size, packed) =
                packed.split_first_chunk::<4>().ok_or_else(|| corrupt("a chunk is cut off"))?;
            let size = u32::from_le_bytes(*size) as usize;
            if size > MAX_CHUNK {
                return Err(corrupt("a chunk claims an impossible size"));
            }
            let json = lz4_flex::block::decompress(packed, size).map_err(corrupt)?;
            parse(&json)
        }
        Some((kind, _)) => {
            Err(Error::storage("read the journal", format!("a chunk is of the unknown kind {kind}"))
                .with_help("it was written by a newer release; read it with that"))
        }
        None => Err(corrupt("a chunk is empty")),
    }
}

pub(crate) fn corrupt(problem: impl fmt::Display) -> Error {
    Error::storage("read the journal", problem)
        .with_help("the store is damaged: restore it from a backup, and check the disk")
}

fn parse(json: &[u8]) -> Result<Timed, Error> {
    serde_json::from_slice(json).map_err(corrupt)
}

struct Timed(Vec<(u64, Event)>);

impl<'de> Deserialize<'de> for Timed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Chunk;

        impl<'de> Visitor<'de> for Chunk {
            type Value = Timed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time, then pairs of a difference and an event")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Timed, A::Error> {
                let mut at: u64 =
                    seq.next_element()?.ok_or_else(|| serde::de::Error::invalid_length(0, &self))?;
                let mut events = Vec::new();
                while let Some((later, event)) = seq.next_element::<(i64, Event)>()? {
                    at = at.wrapping_add(later.cast_unsigned());
                    events.push((at, event));
                }
                Ok(Timed(events))
            }
        }

        deserializer.deserialize_seq(Chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(seq: Seq, at_ms: u64, text: &str) -> Record {
        Record { seq, at_ms, event: Event::Noted { path: "a".into(), topic: "t".into(), note: text.into() } }
    }

    fn round_trip(records: &[Record]) -> Vec<Record> {
        let mut out = Vec::new();
        let last = records.last().unwrap().seq;
        decode(&encode(records).unwrap(), last, records[0].seq, usize::MAX, &mut out).unwrap();
        out
    }

    #[test]
    fn chunks_round_trip() {
        let long = "coral reef ".repeat(200);
        for records in [
            vec![noted(1, 0, "")],
            vec![noted(7, 5, "a"), noted(8, 3, "b"), noted(9, u64::MAX, "c"), noted(10, 0, "d")],
            vec![noted(2, 1_738_922_400_123, &long)],
        ] {
            assert_eq!(round_trip(&records), records);
        }
        assert!(encode(&[noted(1, 1, &long)]).unwrap().len() < long.len() / 4);
    }

    #[test]
    fn decode_starts_and_stops_where_asked() {
        let records: Vec<_> = (5..=9).map(|seq| noted(seq, seq, "x")).collect();
        let chunk = encode(&records).unwrap();
        let mut out = Vec::new();
        decode(&chunk, 9, 6, 2, &mut out).unwrap();
        assert_eq!(out, records[1..3]);
    }

    #[test]
    fn damage_is_an_error_not_a_panic() {
        let plain = encode(&[noted(3, 1, "x")]).unwrap();
        let packed = encode(&[noted(3, 1, &"abc ".repeat(400))]).unwrap();
        for chunk in [&plain, &packed] {
            for cut in 0..chunk.len() {
                assert!(decode(&chunk[..cut], 3, 3, 9, &mut Vec::new()).is_err(), "cut at {cut}");
            }
            for at in 0..chunk.len().min(64) {
                let mut chunk = chunk.clone();
                chunk[at] ^= 0x80;
                // A changed byte within a text may still be valid; it must only not panic.
                let _ = decode(&chunk, 3, 3, 9, &mut Vec::new());
            }
        }
        assert!(decode(&plain, 0, 0, 9, &mut Vec::new()).is_err(), "a record before the first");
        assert!(decode(&plain, 3, 1, 9, &mut Vec::new()).is_err(), "a gap");
    }
}
