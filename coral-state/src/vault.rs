//! The data keys that a process holds, whichever backend keeps them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coral_core::{Error, ErrorKind, Event, Record, Seq, rfc3339};

use crate::crypto::{DataKey, KeyRing, Sealed};
use crate::ledger::DATA_KEY;

/// Runs whose project is remembered.
const RUNS: usize = 16_384;

/// What remains of a project whose keys were destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tombstone {
    /// The project.
    pub project: String,
    /// When its keys were destroyed, in milliseconds since the Unix epoch.
    pub erased_at_ms: u64,
    /// How many keys that were.
    pub keys: usize,
    /// The master key that signed this.
    pub master: String,
    /// Whether the signature is good; `None` if the ring does not hold that master key.
    pub signature: Option<bool>,
}

/// A row of the table of tombstones.
pub(crate) struct Stone {
    pub(crate) scope: String,
    pub(crate) at_ms: i64,
    pub(crate) keys: i64,
    pub(crate) master: String,
    pub(crate) signature: Vec<u8>,
}

impl Stone {
    /// What `ring` says of `keys` keys of `scope` destroyed at `at_ms`.
    pub(crate) fn carve(ring: &KeyRing, scope: &str, at_ms: i64, keys: i64) -> Self {
        let master = ring.current();
        Stone {
            scope: scope.to_owned(),
            at_ms,
            keys,
            master: master.id().to_owned(),
            signature: master.sign(&epitaph(scope, at_ms, keys)).to_vec(),
        }
    }

    /// Reads it, and checks the signature where `ring` can.
    pub(crate) fn read(self, ring: &KeyRing) -> Tombstone {
        let signed = ring.get(&self.master).map(|key| key.sign(&epitaph(&self.scope, self.at_ms, self.keys)));
        Tombstone {
            project: self.scope,
            erased_at_ms: self.at_ms.cast_unsigned(),
            keys: usize::try_from(self.keys).unwrap_or(0),
            master: self.master,
            signature: signed.map(|signed| signed[..] == self.signature[..]),
        }
    }
}

fn epitaph(scope: &str, at_ms: i64, keys: i64) -> String {
    format!("{at_ms}\0{keys}\0{scope}")
}

/// A row of the table of data keys.
pub(crate) struct KeyRow {
    pub(crate) id: u32,
    pub(crate) scope: String,
    pub(crate) master: String,
    /// `None` once it is destroyed.
    pub(crate) wrapped: Option<Vec<u8>>,
}

/// The data keys that were needed so far, unwrapped, and the ring that unwraps more.
pub(crate) struct Vault {
    ring: KeyRing,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// How often something was forgotten.
    forgotten: u64,
    by_id: HashMap<u32, Arc<DataKey>>,
    current: HashMap<Box<str>, Arc<DataKey>>,
    runs: HashMap<Box<str>, Box<str>>,
}

/// A vault, since a moment: a key that was read from the store after it is kept in mind only if
/// nothing was forgotten meanwhile, so that no key outlives its erasure by having been on its way.
#[derive(Clone, Copy)]
pub(crate) struct Since<'a> {
    vault: &'a Vault,
    forgotten: u64,
}

impl Since<'_> {
    /// The key of that id, if it was needed before.
    pub(crate) fn get(self, id: u32) -> Option<Arc<DataKey>> {
        self.vault.get(id)
    }

    /// Unwraps a key, and keeps it in mind.
    pub(crate) fn add(self, row: &KeyRow) -> Result<Arc<DataKey>, Error> {
        self.keep(row, false)
    }

    /// The same for the key that seals what is new in its scope.
    pub(crate) fn add_current(self, row: &KeyRow) -> Result<Arc<DataKey>, Error> {
        self.keep(row, true)
    }

    fn keep(self, row: &KeyRow, current: bool) -> Result<Arc<DataKey>, Error> {
        let wrapped = row.wrapped.as_deref().ok_or_else(|| erased(&row.scope, None))?;
        let key = Arc::new(self.vault.ring.open(row.id, &row.scope, &row.master, wrapped)?);
        let mut known = self.vault.known();
        if known.forgotten == self.forgotten {
            known.by_id.insert(row.id, key.clone());
            if current {
                known.current.insert(row.scope.as_str().into(), key.clone());
            }
        }
        Ok(key)
    }
}

impl Vault {
    pub(crate) fn new(ring: KeyRing) -> Self {
        Vault { ring, known: Mutex::default() }
    }

    pub(crate) fn ring(&self) -> &KeyRing {
        &self.ring
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key that seals what is new in `scope`, if it was needed before.
    pub(crate) fn current(&self, scope: &str) -> Option<Arc<DataKey>> {
        self.known().current.get(scope).cloned()
    }

    /// The key of that id, if it was needed before.
    pub(crate) fn get(&self, id: u32) -> Option<Arc<DataKey>> {
        self.known().by_id.get(&id).cloned()
    }

    /// This vault as of now: taken before the store is asked for a key.
    pub(crate) fn since(&self) -> Since<'_> {
        Since { vault: self, forgotten: self.known().forgotten }
    }

    /// The row wrapped by the ring's current key.
    pub(crate) fn rewrap(&self, row: &KeyRow) -> Result<Vec<u8>, Error> {
        self.ring.rewrap(&row.scope, &row.master, row.wrapped.as_deref().unwrap_or_default())
    }

    /// The scope that `run` seals by: that of its beginning, if `records` are it, or what was
    /// learned before. `None` if it must be looked up.
    pub(crate) fn scope_of(&self, run: &str, records: &[Record]) -> Option<Box<str>> {
        if let Some(Event::RunStarted { project, .. }) = records.first().map(|record| &record.event) {
            self.known().runs.remove(run);
            return Some((&**project).into());
        }
        self.known().runs.get(run).cloned()
    }

    pub(crate) fn learn_scope(&self, run: &str, scope: &str) {
        let mut known = self.known();
        if known.runs.len() >= RUNS {
            known.runs.clear();
        }
        known.runs.insert(run.into(), scope.into());
    }

    /// Forgets what it knows of a scope.
    pub(crate) fn forget(&self, scope: &str) {
        let mut known = self.known();
        known.forgotten += 1;
        known.current.remove(scope);
        // Which of these belong to the scope is not known; the others are found again.
        known.by_id.clear();
    }

    /// Forgets what was erased by another process, where `result` tells of it.
    pub(crate) fn heed<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && let ErrorKind::NotFound { what, name, .. } = error.kind()
            && what == DATA_KEY
        {
            self.forget(name);
        }
        result
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").finish_non_exhaustive()
    }
}

/// Says that what `scope` kept can't be read any more.
pub(crate) fn erased(scope: &str, at_ms: Option<u64>) -> Error {
    let when = at_ms.map(|at_ms| format!(" at {}", rfc3339(at_ms))).unwrap_or_default();
    Error::new(ErrorKind::NotFound { what: DATA_KEY.to_owned(), name: scope.to_owned(), nearest: None })
        .with_help(format!("it was destroyed{when}, and with it all that it sealed"))
}

pub(crate) fn missing(id: u32) -> Error {
    Error::storage("unseal", format!("data key {id} is missing")).with_help("restore the store from a backup")
}

/// Says that what belongs to no project can't be erased as one: the store's own keys are among it.
pub(crate) fn no_project() -> Error {
    Error::invalid("project", "it has no id").with_help(
        "what belongs to no project shares the store's own keys: remove its runs one by one with `remove_run`",
    )
}

pub(crate) fn not_encrypted(how: &str) -> Error {
    Error::invalid("store", "it is not encrypted").with_help(format!("open it with `{how}`"))
}

/// What a chunk is sealed as: the place that it may be read from.
pub(crate) fn about_chunk(run: &str, last: Seq) -> Vec<u8> {
    [b"chunk\0", &last.to_le_bytes()[..], run.as_bytes()].concat()
}

/// What a blob is sealed as.
pub(crate) fn about_blob(key: &[u8; 32]) -> Vec<u8> {
    [b"blob\0", &key[..]].concat()
}

/// What a snapshot of a run is sealed as.
pub(crate) fn about_snapshot(run: &str) -> Vec<u8> {
    [b"snapshot\0", run.as_bytes()].concat()
}

/// What a run's line in the index is sealed as.
pub(crate) fn about_summary(run: &str) -> Vec<u8> {
    [b"summary\0", run.as_bytes()].concat()
}

/// The chunk of `records` as `key` seals it.
pub(crate) fn seal_chunk(
    key: &DataKey,
    run: &str,
    last: Seq,
    records: usize,
    chunk: &[u8],
) -> Result<Vec<u8>, Error> {
    key.seal(u32::try_from(records).unwrap_or(u32::MAX), &about_chunk(run, last), chunk)
}

/// Checks without any key that the chunks of a run, told one by one in order, leave nothing out.
#[derive(Default)]
pub(crate) struct Verifier {
    verified: Seq,
}

impl Verifier {
    pub(crate) fn next(&mut self, run: &str, last: Seq, chunk: &[u8]) -> Result<(), Error> {
        let whole = match Sealed::parse(chunk) {
            Some(sealed) if self.verified + u64::from(sealed.count) == last => Ok(()),
            Some(_) => Err(crate::codec::corrupt(format_args!("records are missing before seq {last}"))),
            None => crate::codec::decode(chunk, last, self.verified + 1, usize::MAX, &mut Vec::new()),
        };
        whole.map_err(|damage| damage.at(format!("run `{run}`")))?;
        self.verified = last;
        Ok(())
    }

    /// How many records there are, if the head says the same.
    pub(crate) fn end(self, run: &str, head: Seq) -> Result<u64, Error> {
        if head == self.verified {
            return Ok(self.verified);
        }
        let damage =
            crate::codec::corrupt(format_args!("the head is not at the last record, {}", self.verified));
        Err(damage.at(format!("run `{run}`")))
    }
}
