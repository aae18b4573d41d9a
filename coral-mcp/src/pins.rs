//! Servers and tools as they were when they were first seen: what changes is not used until a person
//! agrees.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use coral_core::{Clock, Error};
use serde::{Deserialize, Serialize};

use crate::audit::{Audit, AuditEntry, AuditEvent};
use crate::text::{clean, sha256_hex};

/// A longer definition is pinned by its hash alone.
const MAX_DEFINITION: usize = 32 * 1_024;
/// How much of a definition stands in a question.
const IN_QUESTION: usize = 1_500;
/// Above this many open questions about tools the oldest are asked anew.
const MAX_ASKED: usize = 10_000;

/// One tool, to be compared with its pin.
pub(crate) struct Seen<'a> {
    pub(crate) tool: &'a str,
    pub(crate) hash: &'a str,
    /// Everything that its server says of it, as canonical JSON.
    pub(crate) definition: &'a str,
    /// What its description seems to try, if it does.
    pub(crate) suspicion: Option<String>,
}

/// Why a tool is not called until a person agrees.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Block {
    pub(crate) why: String,
    /// Whether a person may be asked in the midst of a run; of what seems to instruct its reader nobody
    /// is.
    pub(crate) asks: bool,
    /// What was pinned.
    pub(crate) before: Option<String>,
    /// What it is now.
    pub(crate) now: String,
}

impl Block {
    /// What a person is asked.
    pub(crate) fn question(&self, hash: &str) -> String {
        let shown = |definition: &str| clean(definition, IN_QUESTION);
        let before = self.before.as_deref().map_or_else(|| "nothing".to_owned(), shown);
        format!(
            "the tool is blocked until a person agrees to it: {} (now {}, {}; before: {before})",
            self.why,
            hash.get(..12).unwrap_or(hash),
            shown(&self.now),
        )
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    hash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    definition: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PinnedServer {
    /// The hash of how it is started or where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tools: Option<BTreeMap<String, Pin>>,
}

type PinnedServers = BTreeMap<String, PinnedServer>;

/// The hashes of servers and of their tools.
///
/// A server's tools are pinned when they are listed for the first time. From then on a tool whose
/// name, description, schema or anything else differs is blocked, and so is one that is new. A
/// tool whose description seems to instruct the model is not pinned in the first place. How a server
/// is started, with the program that is started, is pinned too.
pub(crate) struct Pins {
    state: Mutex<State>,
    path: Option<PathBuf>,
    audit: Arc<dyn Audit>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct State {
    servers: PinnedServers,
    /// What is blocked, by server and tool, with its hash: the audit tells of each once.
    told: BTreeMap<(String, String), String>,
    /// Which definition a person was asked about, by the call.
    asked: HashMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    servers: PinnedServers,
}

/// As the first version of the file was: hashes of tools alone.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstFile {
    #[serde(rename = "version")]
    _version: u32,
    servers: BTreeMap<String, BTreeMap<String, String>>,
}

fn read(bytes: &[u8]) -> Result<PinnedServers, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let shape = |error: serde_json::Error| error.to_string();
    match serde_json::from_slice::<Versioned>(bytes).map_err(shape)?.version {
        1 => {
            let file: FirstFile = serde_json::from_slice(bytes).map_err(shape)?;
            let pins = |tools: BTreeMap<String, String>| {
                tools.into_iter().map(|(tool, hash)| (tool, Pin { hash, definition: None })).collect()
            };
            let servers = file.servers.into_iter();
            Ok(servers
                .map(|(name, tools)| (name, PinnedServer { source: None, tools: Some(pins(tools)) }))
                .collect())
        }
        2 => Ok(serde_json::from_slice::<File>(bytes).map_err(shape)?.servers),
        version => Err(format!("its version is {version}, and this release knows 1 and 2")),
    }
}

impl Pins {
    /// Pins that end with the process, or, with a file, outlive it.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) or [`Invalid`](coral_core::ErrorKind::Invalid) for a
    /// file that can't be read.
    pub(crate) fn open(
        path: Option<&Path>,
        audit: Arc<dyn Audit>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let mut state = State::default();
        if let Some(path) = path {
            let place = || path.display().to_string();
            match std::fs::read(path) {
                Ok(bytes) => {
                    state.servers =
                        read(&bytes).map_err(|problem| Error::invalid("pin file", problem).at(place()))?;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::storage("reading the pin file", error).at(place())),
            }
        }
        Ok(Pins { state: Mutex::new(state), path: path.map(Path::to_owned), audit, clock })
    }

    /// Why each tool is blocked, if it is, in the order of `seen`.
    pub(crate) fn check(&self, server: &str, seen: &[Seen<'_>]) -> Result<Vec<Option<Block>>, Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let pinned = state.servers.get(server).and_then(|server| server.tools.clone());
        let first = pinned.is_none();
        let pinned = pinned.unwrap_or_default();
        let block = |seen: &Seen<'_>| {
            let pin = pinned.get(seen.tool);
            let (why, asks) = match (pin, &seen.suspicion) {
                (Some(pin), _) if pin.hash == seen.hash => return None,
                (Some(_), None) => ("it is not what it was when it was pinned".to_owned(), true),
                (Some(_), Some(suspicion)) => {
                    (format!("it is not what it was when it was pinned, and {suspicion}"), false)
                }
                (None, Some(suspicion)) => (suspicion.clone(), false),
                (None, None) if first => return None,
                (None, None) => ("it is new since its server was pinned".to_owned(), true),
            };
            let before =
                pin.map(|pin| pin.definition.clone().unwrap_or_else(|| format!("hash {}", pin.hash)));
            Some(Block { why, asks, before, now: seen.definition.to_owned() })
        };
        let blocks: Vec<Option<Block>> = seen.iter().map(block).collect();
        if first {
            let clean = seen.iter().filter(|seen| seen.suspicion.is_none());
            let tools = clean.map(|seen| (seen.tool.to_owned(), pin(seen.hash, seen.definition))).collect();
            state.servers.entry(server.to_owned()).or_default().tools = Some(tools);
            self.save(&state.servers)?;
        }
        for (seen, block) in seen.iter().zip(&blocks) {
            let Some(block) = block else { continue };
            let key = (server.to_owned(), seen.tool.to_owned());
            if state.told.get(&key).is_some_and(|hash| hash == seen.hash) {
                continue;
            }
            self.tell(server, seen.tool, seen.hash, block)?;
            state.told.insert(key, seen.hash.to_owned());
        }
        Ok(blocks)
    }

    fn tell(&self, server: &str, tool: &str, hash: &str, block: &Block) -> Result<(), Error> {
        let kept = |definition: &str| clean(definition, MAX_DEFINITION);
        let event = AuditEvent::Blocked {
            why: block.why.clone(),
            hash: hash.to_owned(),
            before: block.before.as_deref().map(kept).unwrap_or_default(),
            now: kept(&block.now),
        };
        let entry = AuditEntry::note(self.clock.now_ms(), "");
        self.audit.append(AuditEntry {
            server: server.to_owned(),
            tool: format!("{server}__{tool}"),
            event,
            ..entry
        })
    }

    /// Pins a tool as it is now.
    pub(crate) fn approve(
        &self,
        server: &str,
        tool: &str,
        hash: &str,
        definition: &str,
    ) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let tools = state.servers.entry(server.to_owned()).or_default().tools.get_or_insert_default();
        tools.insert(tool.to_owned(), pin(hash, definition));
        self.save(&state.servers)
    }

    /// The hash of how a server was started when it was pinned, if it was another. A server that is
    /// seen for the first time is pinned.
    pub(crate) fn check_source(&self, server: &str, source: &str) -> Result<Option<String>, Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let pinned = &mut state.servers.entry(server.to_owned()).or_default().source;
        match pinned {
            Some(pinned) => Ok((pinned != source).then(|| pinned.clone())),
            None => {
                *pinned = Some(source.to_owned());
                self.save(&state.servers)?;
                Ok(None)
            }
        }
    }

    /// Pins a server as it is started now.
    pub(crate) fn approve_source(&self, server: &str, source: &str) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.servers.entry(server.to_owned()).or_default().source = Some(source.to_owned());
        self.save(&state.servers)
    }

    /// Notes that a person is asked about `hash` for a call.
    pub(crate) fn ask(&self, call: String, hash: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.asked.len() >= MAX_ASKED {
            state.asked.clear();
        }
        state.asked.insert(call, hash.to_owned());
    }

    /// Whether it was `hash` that a person was asked about for a call: the answer is about no other.
    pub(crate) fn take_asked(&self, call: &str, hash: &str) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.remove(call).is_some_and(|asked| asked == hash)
    }

    fn save(&self, servers: &PinnedServers) -> Result<(), Error> {
        let Some(path) = &self.path else { return Ok(()) };
        let failed = |e: &dyn std::fmt::Display| {
            Error::storage("writing the pin file", e).at(path.display().to_string())
        };
        let file = File { version: 2, servers: servers.clone() };
        let text = serde_json::to_vec_pretty(&file).map_err(|e| failed(&e))?;
        let temp = path.with_extension("coral-tmp");
        std::fs::write(&temp, text).and_then(|()| std::fs::rename(&temp, path)).map_err(|e| failed(&e))
    }
}

fn pin(hash: &str, definition: &str) -> Pin {
    let definition = (definition.len() <= MAX_DEFINITION).then(|| definition.to_owned());
    Pin { hash: hash.to_owned(), definition }
}

/// The hash of how a server is started: its words, the names of its variables, its directory, and the
/// file of its program.
pub(crate) fn source(words: &[&str], program: Option<&Path>) -> Result<String, String> {
    let mut text = String::new();
    for word in words {
        text.push_str(&format!("{} {word}\n", word.len()));
    }
    if let Some(program) = program {
        text.push_str(&program::hash(program)?);
    }
    Ok(sha256_hex(text.as_bytes()))
}

/// Hashes of programs, each file read once as long as it stays what it is.
mod program {
    use std::collections::HashMap;
    use std::fs::File;
    use std::io::Read;
    use std::path::Path;
    use std::sync::{LazyLock, Mutex, PoisonError};

    use sha2::{Digest, Sha256};

    use coral_core::hex;

    /// More programs than any process starts.
    const MAX: usize = 1_024;

    type Known = HashMap<String, String>;
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

    pub(super) fn hash(program: &Path) -> Result<String, String> {
        let failed = |error: std::io::Error| format!("reading `{}`: {error}", program.display());
        let mut file = File::open(program).map_err(failed)?;
        let state = state(&file.metadata().map_err(failed)?);
        if let Some(hash) = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(&state) {
            return Ok(hash.clone());
        }
        let mut whole = Sha256::new();
        let mut buffer = vec![0; 256 * 1_024];
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                n => whole.update(buffer.get(..n).unwrap_or_default()),
            }
        }
        let hash: String = hex(&whole.finalize());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX {
            known.clear();
        }
        known.insert(state, hash.clone());
        Ok(hash)
    }

    /// What changes whenever the file does: who may not be root can't set the time of its last change.
    #[cfg(unix)]
    fn state(meta: &std::fs::Metadata) -> String {
        use std::os::unix::fs::MetadataExt;
        let (dev, ino, size) = (meta.dev(), meta.ino(), meta.size());
        format!("{dev} {ino} {size} {} {} {}", meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
    }

    #[cfg(not(unix))]
    fn state(meta: &std::fs::Metadata) -> String {
        format!("{} {:?}", meta.len(), meta.modified().ok())
    }
}
