//! What the stores of this crate promise, tested from outside.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod agents;
mod encryption;
mod erasure;
mod export;
#[cfg(target_os = "linux")]
mod faults;
mod index;
mod journals;
#[cfg(all(feature = "layers", feature = "redis"))]
mod layers;
mod meddled;
mod migration;
mod parity;
mod places;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "privacy")]
mod privacy;
mod projects;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod servers;
mod snapshots;
mod sqlite;
mod stores;
mod support;
mod third_party;
mod upkeep;
