//! Tools as they were when they were first seen: one that changes is not called until a person
//! agrees.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use coral_core::Error;
use serde::{Deserialize, Serialize};

/// One tool, to be compared with its pin.
pub(crate) struct Seen<'a> {
    pub(crate) tool: &'a str,
    pub(crate) hash: &'a str,
    /// What its description seems to try, if it does.
    pub(crate) suspicion: Option<String>,
}

/// The hashes of the tools of each server.
///
/// A server's tools are pinned when they are listed for the first time. From then on a tool whose
/// name, description, schema or anything else differs is blocked, and so is one that is new. A
/// tool whose description seems to instruct the model is not pinned in the first place.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    servers: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
    path: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    servers: BTreeMap<String, BTreeMap<String, String>>,
}

impl Pins {
    /// Pins that outlive the process.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |problem: String| Error::invalid("pin file", problem).at(path.display().to_string());
        let servers = match std::fs::read(path) {
            Ok(bytes) => {
                let file: File = serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))?;
                if file.version != 1 {
                    return Err(failed(format!("its version is {}, and this release knows 1", file.version)));
                }
                file.servers
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                return Err(Error::storage("reading the pin file", error).at(path.display().to_string()));
            }
        };
        Ok(Pins { servers: Mutex::new(servers), path: Some(path.to_owned()) })
    }

    /// Why each tool is blocked, if it is, in the order of `seen`.
    pub(crate) fn check(&self, server: &str, seen: &[Seen<'_>]) -> Result<Vec<Option<String>>, Error> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pinned) = servers.get(server) {
            let blocked = seen.iter().map(|seen| match (pinned.get(seen.tool), &seen.suspicion) {
                (Some(hash), _) if hash == seen.hash => None,
                (Some(_), _) => Some("it is not what it was when it was pinned".to_owned()),
                (None, Some(suspicion)) => Some(suspicion.clone()),
                (None, None) => Some("it is new since its server was pinned".to_owned()),
            });
            return Ok(blocked.collect());
        }
        let clean = seen.iter().filter(|seen| seen.suspicion.is_none());
        let pinned = clean.map(|seen| (seen.tool.to_owned(), seen.hash.to_owned())).collect();
        servers.insert(server.to_owned(), pinned);
        self.save(&servers)?;
        Ok(seen.iter().map(|seen| seen.suspicion.clone()).collect())
    }

    /// Pins tools as they are now.
    pub(crate) fn approve(&self, server: &str, tools: BTreeMap<String, String>) -> Result<(), Error> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.insert(server.to_owned(), tools);
        self.save(&servers)
    }

    fn save(&self, servers: &BTreeMap<String, BTreeMap<String, String>>) -> Result<(), Error> {
        let Some(path) = &self.path else { return Ok(()) };
        let failed = |e: &dyn std::fmt::Display| {
            Error::storage("writing the pin file", e).at(path.display().to_string())
        };
        let file = File { version: 1, servers: servers.clone() };
        let text = serde_json::to_vec_pretty(&file).map_err(|e| failed(&e))?;
        let temp = path.with_extension("coral-tmp");
        std::fs::write(&temp, text).and_then(|()| std::fs::rename(&temp, path)).map_err(|e| failed(&e))
    }
}
