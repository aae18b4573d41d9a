//! What must hold of a decoder whatever it reads. The fuzz targets and the ordinary tests share it.

use bytes::Bytes;
use coral_core::{ChatResponse, ModelFault};
use coral_llm::{Dialect, Framing, Protocol};

/// Reads an answer out of `data`, at once and in pieces, and compares: no bytes panic, and how they are cut changes nothing.
///
/// The first byte chooses the framing, the second the length of the pieces.
pub(crate) fn check(protocol: Protocol, data: &[u8]) {
    let [framing, length, answer @ ..] = data else { return };
    let framing = match framing % 3 {
        0 => Framing::Sse,
        1 => Framing::Lines,
        _ => Framing::Whole,
    };
    let at_once = decode(protocol, framing, [answer]);
    let in_pieces = decode(protocol, framing, answer.chunks(usize::from(*length).max(1)));
    assert_eq!(at_once, in_pieces, "{protocol:?} {framing:?}");
}

fn decode<'a>(
    protocol: Protocol,
    framing: Framing,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<ChatResponse, ModelFault> {
    let mut decoder = protocol.decoder(framing, &Dialect::default());
    for piece in pieces {
        if decoder.is_done() {
            break;
        }
        decoder.feed(Bytes::copy_from_slice(piece), &mut |_| {}).map_err(|failure| failure.fault)?;
    }
    decoder.finish(&mut |_| {}).map_err(|failure| failure.fault)
}
