//! Workflows and evaluations made of anything.
//!
//! `cargo +nightly fuzz run workflows` in `coral-agents/fuzz`.
#![no_main]

use std::sync::LazyLock;

use coral_agents::{Registry, parse_cases, parse_workflow};
use libfuzzer_sys::fuzz_target;

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::builtin);

fuzz_target!(|text: &str| {
    match parse_workflow("fuzz.yaml", text, &REGISTRY) {
        Ok(graph) => assert!(graph.problems().is_empty()),
        Err(error) => assert!(error.to_string().contains("fuzz.yaml:"), "{error}"),
    }
    let _ = parse_cases("fuzz.yaml", text);
});
