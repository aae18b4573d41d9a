//! What the tests of the whole stand on: a provider on loopback, and the main job as a process.

mod job;
mod provider;
mod wire;

pub use crate::job::{Finished, Job, Running, files};
pub use crate::provider::{Call, Cut, Provider};
pub use crate::wire::Wire;

use std::path::{Path, PathBuf};

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}
