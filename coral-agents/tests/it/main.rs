//! Tests that use only the public interface.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper of a test that can't go on has failed"
)]

mod corpus;
mod directory;
mod evaluation;
mod handoffs;
mod kinds;
mod live_model;
#[path = "../../../coral-llm/tests/peers/peer.rs"]
#[expect(
    dead_code,
    clippy::panic,
    reason = "the tests of coral-llm start other servers too; one that does not start fails them"
)]
mod peer;
mod prompts;
mod running;
mod workflows;
