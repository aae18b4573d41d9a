//! The engine through its public API.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that fails panics")]

mod ahead;
mod budget;
mod crash;
mod deadlines;
mod effects;
mod engine;
mod fork;
mod matrix;
mod nesting;
mod offload;
mod parking;
mod peers;
mod people;
mod presence;
mod prompt_agent;
mod prompt_fit;
mod prompt_versions;
mod prompt_written;
mod prompts;
mod properties;
mod resilience;
mod resources;
mod review;
mod support;
mod upgrade;
mod waiting;
