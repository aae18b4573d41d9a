//! What the document says of each server.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::profile::ToolProfile;

/// How a server's process is kept apart from the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Isolation {
    /// Not at all: it may do whatever this process may.
    None,
    /// By the kernel: namespaces, limits, Landlock, seccomp.
    Kernel,
}

/// The rules of one server.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServerRules {
    /// The name of a built-in profile.
    pub(crate) profile: Option<String>,
    /// What single tools do, over the profile.
    #[serde(default)]
    pub(crate) tools: BTreeMap<String, ToolProfile>,
    pub(crate) timeout_s: Option<u64>,
    pub(crate) max_result_kib: Option<usize>,
    pub(crate) calls_per_minute: Option<u32>,
    pub(crate) concurrency: Option<usize>,
    /// Whether what it answers may be taken for the project's own words.
    #[serde(default)]
    pub(crate) trusted: bool,
    pub(crate) isolation: Option<Isolation>,
    /// Whether its process may use the network.
    #[serde(default)]
    pub(crate) network: bool,
    /// Files and directories outside of the project that its process may read, such as where it is
    /// installed.
    #[serde(default)]
    pub(crate) read: Vec<String>,
    /// The directories of the project that its process may write to.
    #[serde(default)]
    pub(crate) write: Vec<String>,
}

impl ServerRules {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.timeout_s == Some(0)
            || self.max_result_kib == Some(0)
            || self.calls_per_minute == Some(0)
            || self.concurrency == Some(0)
        {
            return Err(
                "a limit of 0 lets nothing through; take the server out of the grants instead".to_owned()
            );
        }
        if let Some(path) = self.write.iter().find(|path| !path.starts_with("/project")) {
            return Err(format!("`{path}` must begin with `/project`, the project's root directory"));
        }
        if let Some(path) = self.read.iter().find(|path| !path.starts_with('/') || path.as_str() == "/") {
            return Err(format!("`{path}` must be an absolute path, and not all of the system"));
        }
        self.write.iter().try_for_each(|path| crate::path::ProjectPath::parse(path).map(drop))
    }
}
