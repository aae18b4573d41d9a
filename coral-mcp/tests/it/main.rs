//! Tests of the crate's public interface.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod asks;
mod attacks;
mod audit;
#[cfg(target_os = "linux")]
mod commands;
mod config;
#[cfg(feature = "http")]
mod conformance;
#[cfg(target_os = "linux")]
mod container;
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
#[cfg(target_os = "linux")]
mod postgres;
mod profiles;
mod programs;
#[cfg(target_os = "linux")]
mod public;
#[cfg(target_os = "linux")]
mod suite;
#[cfg(feature = "tokens")]
mod tokens;
#[cfg(feature = "http")]
mod web;
