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
mod prompts;
mod running;
mod workflows;
