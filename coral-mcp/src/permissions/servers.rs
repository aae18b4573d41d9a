//! What the document says of each server.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::config::ConnectionRules;
use crate::profile::ToolProfile;

/// How a server's process is kept apart from the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Isolation {
    /// Not at all: it may do whatever this process may.
    None,
    /// By the kernel: namespaces, limits, Landlock, seccomp.
    Kernel,
    /// By all of that in a file system of its own, which bubblewrap makes.
    Strict,
    /// In a container, which a container engine makes.
    Container,
}

impl Isolation {
    /// The name in permission files and in the audit.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Isolation::None => "none",
            Isolation::Kernel => "kernel",
            Isolation::Strict => "strict",
            Isolation::Container => "container",
        }
    }
}

/// What of the network a server's process may reach.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum NetworkRule {
    /// All or nothing.
    All(bool),
    /// These places, through a proxy.
    Only(Vec<String>),
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
    /// How often an agent may call the server in a minute, and how often all together may.
    pub(crate) calls_per_minute: Option<u32>,
    pub(crate) total_calls_per_minute: Option<u32>,
    pub(crate) concurrency: Option<usize>,
    /// Whether what it answers may be taken for the project's own words.
    #[serde(default)]
    pub(crate) trusted: bool,
    pub(crate) isolation: Option<Isolation>,
    /// Whether addresses in arguments may lead into the own machine and network.
    #[serde(default)]
    pub(crate) private_hosts: bool,
    /// What its process may reach of the network; nothing where it is isolated and this is not said.
    pub(crate) network: Option<NetworkRule>,
    /// The most memory that its process may take, in MiB.
    pub(crate) memory_mib: Option<u64>,
    /// The most processes and threads that it may have.
    pub(crate) processes: Option<u64>,
    /// The image of its container.
    pub(crate) image: Option<String>,
    /// The container engine: the name of a program, or where it is.
    pub(crate) engine: Option<String>,
    /// Files and directories outside of the project that its process may read, such as where it is
    /// installed.
    #[serde(default)]
    pub(crate) read: Vec<String>,
    /// Files and directories of the project that its process may read, beside those of the grants of
    /// who may use it.
    #[serde(default)]
    pub(crate) project_read: Vec<String>,
    /// The directories of the project that its process may write to.
    #[serde(default)]
    pub(crate) write: Vec<String>,
    /// How it is connected, and what it may ask back.
    #[serde(default)]
    pub(crate) connection: ConnectionRules,
}

impl ServerRules {
    pub(super) fn check(&self) -> Result<(), String> {
        self.connection.check()?;
        if self.timeout_s == Some(0)
            || self.max_result_kib == Some(0)
            || self.calls_per_minute == Some(0)
            || self.total_calls_per_minute == Some(0)
            || self.tools.values().any(|tool| tool.calls_per_minute == Some(0))
            || self.concurrency == Some(0)
            || self.memory_mib == Some(0)
            || self.processes == Some(0)
        {
            return Err(
                "a limit of 0 lets nothing through; take the server out of the grants instead".to_owned()
            );
        }
        if let Some(key) = self.restriction().filter(|_| self.isolation == Some(Isolation::None)) {
            return Err(format!(
                "`{key}` holds only where the process is isolated; take it or `isolation: none` out"
            ));
        }
        let of_project = self.write.iter().chain(&self.project_read);
        if let Some(path) = of_project.clone().find(|path| !path.starts_with("/project")) {
            return Err(format!("`{path}` must begin with `/project`, the project's root directory"));
        }
        if let Some(path) = self.read.iter().find(|path| !path.starts_with('/') || path.as_str() == "/") {
            return Err(format!("`{path}` must be an absolute path, and not all of the system"));
        }
        if self.image.is_some() != (self.isolation == Some(Isolation::Container)) {
            return Err("`isolation: container` and `image` go together".to_owned());
        }
        if let Some(NetworkRule::Only(places)) = &self.network {
            crate::egress::AllowList::parse(places)?;
        }
        of_project.map(|path| crate::path::ProjectPath::parse(path)).try_for_each(|path| path.map(drop))
    }

    /// A key that narrows what the process may do, if one is there. `network: true` narrows nothing.
    pub(crate) fn restriction(&self) -> Option<&'static str> {
        let keys = [
            ("network", self.network.as_ref().is_some_and(|rule| !matches!(rule, NetworkRule::All(true)))),
            ("read", !self.read.is_empty()),
            ("project_read", !self.project_read.is_empty()),
            ("write", !self.write.is_empty()),
            ("memory_mib", self.memory_mib.is_some()),
            ("processes", self.processes.is_some()),
        ];
        keys.into_iter().find(|(_, written)| *written).map(|(key, _)| key)
    }
}
