//! The engine through its public API.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that fails panics")]

mod budget;
mod crash;
mod engine;
mod fork;
mod matrix;
mod nesting;
mod peers;
mod people;
mod prompt_agent;
mod prompt_fit;
mod prompts;
mod properties;
mod resilience;
mod resources;
mod review;
mod support;
mod upgrade;
mod waiting;
