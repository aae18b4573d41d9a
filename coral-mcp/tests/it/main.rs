//! Tests of the crate's public interface.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod attacks;
mod audit;
mod desk;
mod filesystem;
mod permissions;
