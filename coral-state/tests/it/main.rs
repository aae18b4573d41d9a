//! What the stores of this crate promise, tested from outside.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod encryption;
mod journals;
mod projects;
mod sqlite;
mod stores;
mod support;
