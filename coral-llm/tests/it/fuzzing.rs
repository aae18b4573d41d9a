//! The fuzz targets without a fuzzer: their seeds as they are, and changed at random.

use coral_llm::Protocol;
use proptest::prelude::*;

#[path = "../../fuzz/outcome.rs"]
mod outcome;

const TARGETS: [(Protocol, &[u8]); 5] = [
    (Protocol::Anthropic, include_bytes!("../../fuzz/seeds/anthropic/stream")),
    (Protocol::OpenAiChat, include_bytes!("../../fuzz/seeds/openai_chat/stream")),
    (Protocol::OpenAiResponses, include_bytes!("../../fuzz/seeds/openai_responses/stream")),
    (Protocol::Gemini, include_bytes!("../../fuzz/seeds/gemini/stream")),
    (Protocol::Ollama, include_bytes!("../../fuzz/seeds/ollama/stream")),
];

#[test]
fn the_seeds_hold() {
    for (protocol, seed) in TARGETS {
        outcome::check(protocol, seed);
    }
}

proptest! {
    #[test]
    fn changed_seeds_hold(
        which in 0..TARGETS.len(),
        framing: u8,
        length in 1..40u8,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 0..12),
    ) {
        let (protocol, seed) = TARGETS[which];
        let mut data = seed.to_vec();
        for (place, byte, how) in changes {
            let place = place.index(data.len());
            match how {
                0 => data[place] = byte,
                1 => data.insert(place, byte),
                2 if data.len() > 3 => drop(data.remove(place)),
                _ => data.truncate(place.max(3)),
            }
        }
        data[0] = framing;
        data[1] = length;
        outcome::check(protocol, &data);
    }

    #[test]
    fn random_bytes_hold(which in 0..TARGETS.len(), data in prop::collection::vec(any::<u8>(), 0..200)) {
        outcome::check(TARGETS[which].0, &data);
    }
}
