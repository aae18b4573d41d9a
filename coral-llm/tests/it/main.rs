//! Providers over sockets, against servers on the loopback interface.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod answer_tool;
mod anthropic;
mod asking;
mod cassettes;
mod codecs;
mod connections;
mod embeddings;
mod fuzzing;
mod more_protocols;
mod openai_chat;
mod quirks;
mod recordings;
mod report;
mod routing;
mod secrets;
mod server;
#[cfg(feature = "tokenizer")]
mod tokens;
mod ways;
mod wire_faults;
