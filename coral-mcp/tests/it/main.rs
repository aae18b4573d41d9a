//! Tests of the crate's public interface.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod attacks;
mod audit;
#[cfg(target_os = "linux")]
mod commands;
mod config;
mod delegation;
mod desk;
#[cfg(feature = "cedar")]
mod engine;
mod evil;
mod filesystem;
#[cfg(target_os = "linux")]
mod jail;
mod limits;
mod permissions;
mod profiles;
mod programs;
#[cfg(target_os = "linux")]
mod public;
#[cfg(feature = "tokens")]
mod tokens;
