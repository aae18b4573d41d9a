//! What the permission file says of the connection to a server, beside the servers file.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::path::ProjectPath;

/// The most connections to one server.
const MAX_CONNECTIONS: usize = 64;

/// Which generation of the protocol is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Generation {
    /// Whichever the server knows; the newer is asked for first.
    #[default]
    Any,
    /// Up to 2025-11-25, which begin with `initialize`.
    WithHandshake,
    /// From 2026-07-28 on, which have no sessions.
    WithoutHandshake,
}

/// Whom one connection serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Per {
    /// Everyone.
    #[default]
    Sandbox,
    /// One run, with which it ends.
    Run,
    /// One agent of one run.
    Agent,
}

/// The rules of one connection.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConnectionRules {
    /// Whether the server's address may lie in a private network.
    #[serde(default)]
    pub(crate) private_addresses: bool,
    #[serde(default)]
    pub(crate) protocol: Generation,
    /// Whom one connection, and so one process, serves.
    #[serde(default)]
    pub(crate) per: Per,
    /// How many connections, and so processes, there may be at once; one if it is not said.
    pub(crate) connections: Option<usize>,
    /// After how long without a call a connection is closed; never if it is not said.
    pub(crate) idle_s: Option<u64>,
    /// How long the server may take to start and to shake hands.
    pub(crate) start_s: Option<u64>,
    /// Whether the server may put questions to a person.
    #[serde(default)]
    pub(crate) elicitation: bool,
    /// Whether the server may have the model called.
    #[serde(default)]
    pub(crate) sampling: bool,
    /// Whether its resources are offered as the tools `list_resources` and `read_resource`.
    #[serde(default)]
    pub(crate) resources: bool,
    /// Whether its prompts are offered as the tools `list_prompts` and `get_prompt`.
    #[serde(default)]
    pub(crate) prompts: bool,
    /// The directories of the project that it is told of.
    pub(crate) roots: Option<Vec<String>>,
}

impl ConnectionRules {
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.idle_s == Some(0) || self.start_s == Some(0) {
            return Err("a time of 0 lets nothing through".to_owned());
        }
        if !self.connections.is_none_or(|n| (1..=MAX_CONNECTIONS).contains(&n)) {
            return Err(format!("`connections` must be from 1 to {MAX_CONNECTIONS}"));
        }
        self.roots.iter().flatten().try_for_each(|root| ProjectPath::parse(root).map(drop))
    }

    pub(crate) fn idle(&self) -> Option<Duration> {
        self.idle_s.map(Duration::from_secs)
    }

    /// The addresses of the roots, below the project's root directory.
    pub(crate) fn roots_in(&self, root: &Path) -> Result<Option<Vec<String>>, coral_core::Error> {
        let Some(roots) = &self.roots else { return Ok(None) };
        let address = |path: &String| {
            let place = root.join(path.parse::<ProjectPath>()?.relative());
            Ok(format!("file://{}", encoded(&place.to_string_lossy())))
        };
        roots.iter().map(address).collect::<Result<_, _>>().map(Some)
    }
}

/// A path as it stands in an address.
fn encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_addresses_below_the_project() {
        let rules = ConnectionRules { roots: Some(vec!["/project/a b".to_owned()]), ..Default::default() };
        assert_eq!(rules.roots_in(Path::new("/srv/x")).unwrap().unwrap(), ["file:///srv/x/a%20b"]);
        let outside =
            ConnectionRules { roots: Some(vec!["/project/../etc".to_owned()]), ..Default::default() };
        assert!(outside.check().is_err());
    }
}
