//! What the stores of this crate promise, tested from outside.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod encryption;
mod journals;
#[cfg(feature = "postgres")]
mod postgres;
mod projects;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod servers;
mod sqlite;
mod stores;
mod support;
