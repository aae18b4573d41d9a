//! Providers against servers that we did not write: `aimock`, which speaks every provider's wire format and can fail
//! on demand, and the real llama-server on a tiny generated model.
//!
//! The servers are installed by `tests/setup/llm.sh`, which these tests run; they listen on the loopback interface and
//! end with the tests, whose pipe they read.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

mod aimock;
mod llama;
mod peer;
mod recordings;
