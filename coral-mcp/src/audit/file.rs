//! The audit as a file of JSON Lines.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coral_core::{Clock, Error, SystemClock};

use super::seal::Walk;
use super::{Audit, AuditEntry, AuditEvent, AuditKey, AuditPast, AuditRecord, Checkpoint};

/// An audit in a file, one JSON object a line.
///
/// Opening a file that exists checks its whole chain, with a key every signature too, and goes on
/// with it. A last line that a crash left torn is cut off, and the next record says so; records that
/// a crash left without a signature are told as [`Adopted`](AuditEvent::Adopted). The file is locked:
/// one chain has one writer.
///
/// A decision that lets a call change something is on disk when [`append`](Audit::append)
/// returns, so that no change happens which the file does not know of; those that wait at once share
/// one wait for the disk. Other records may be lost when the machine's power is.
#[derive(Debug)]
pub struct FileAudit {
    path: PathBuf,
    state: Mutex<State>,
    /// The record up to which the disk has them all.
    synced: Mutex<u64>,
    /// The file again, so that waiting for the disk holds up no writer.
    disk: File,
    past: AuditPast,
    key: Option<AuditKey>,
}

/// A signature is made at the latest after this many records, and at the first record after this
/// time.
pub(super) const SEAL_EVERY: u64 = 1_024;
const SEAL_EVERY_MS: u64 = 60_000;

#[derive(Debug)]
struct State {
    file: File,
    seq: u64,
    head: String,
    /// The length up to which the file is whole; `None` once a failed write could not be undone.
    length: Option<u64>,
    /// The records since the last signature, and when that was made.
    unsigned: u64,
    sealed_at_ms: u64,
    last: Option<Checkpoint>,
}

impl FileAudit {
    /// Opens or begins the audit at `path`.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the file can't be used or another process
    /// writes it; [`Invalid`](coral_core::ErrorKind::Invalid) if its chain is broken or signed.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        FileAudit::begin(path.into(), None, None)
    }

    /// As [`open`](Self::open), and signs the chain every 1,024 records or 60 seconds and at its
    /// end. Where the key is kept in a file, the latest checkpoint is kept beside it, and a file that
    /// does not hold it any more is refused. Else keep [`checkpoint`](Self::checkpoint) elsewhere, and
    /// open it again by [`signed_after`](Self::signed_after).
    ///
    /// # Errors
    /// As those of [`open`](Self::open); [`Invalid`](coral_core::ErrorKind::Invalid) if a signature is
    /// missing or another's.
    pub fn signed(path: impl Into<PathBuf>, key: AuditKey) -> Result<Self, Error> {
        FileAudit::begin(path.into(), Some(key), None)
    }

    /// As [`signed`](Self::signed), where the file must hold the record that `known` vouches for.
    ///
    /// # Errors
    /// As those of [`signed`](Self::signed).
    pub fn signed_after(path: impl Into<PathBuf>, key: AuditKey, known: &Checkpoint) -> Result<Self, Error> {
        FileAudit::begin(path.into(), Some(key), Some(known))
    }

    fn begin(path: PathBuf, key: Option<AuditKey>, known: Option<&Checkpoint>) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::storage("opening the audit file", error).at(path.display().to_string())
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        private(&mut options);
        let mut file = options.open(&path).map_err(|e| failed(&e))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                failed(&"another process writes it").with_help("give each process an audit file of its own")
            }
            TryLockError::Error(error) => failed(&error),
        })?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| failed(&e))?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let (lines, torn) = bytes.split_at_checked(whole).unwrap_or((&bytes, &[]));
        let mut expected: Vec<Checkpoint> = known.cloned().into_iter().collect();
        let beside = key.as_ref().and_then(|key| key.beside(&path));
        if let Some(beside) = &beside {
            expected.extend(kept(beside)?);
        }
        let found = read(lines, &path, key.as_ref(), &expected, beside.as_deref())?;
        let length = u64::try_from(whole).unwrap_or(u64::MAX);
        file.set_len(length).and_then(|()| file.seek(SeekFrom::End(0))).map_err(|e| failed(&e))?;
        let disk = file.try_clone().map_err(|e| failed(&e))?;
        let torn = torn.len();
        let Found { seq, head, unsigned, last, past } = found;
        let state = State { file, seq, head, length: Some(length), unsigned, sealed_at_ms: 0, last };
        let audit = FileAudit { path, state: Mutex::new(state), synced: Mutex::new(seq), disk, past, key };
        let now_ms = SystemClock.now_ms();
        let mut state = audit.lock();
        let mut notes = Vec::new();
        if audit.key.is_some() && unsigned > 0 {
            notes.push(AuditEvent::Adopted { unsigned });
        }
        if torn > 0 {
            notes.push(AuditEvent::Noted { note: format!("cut off a torn record of {torn} bytes") });
        }
        for event in notes {
            audit.write(&mut state, AuditEntry { event, ..AuditEntry::note(now_ms, "") })?;
            state.unsigned += 1;
        }
        // Signed at once: from here on it is known how much of it nobody vouched for.
        if unsigned > 0 {
            audit.seal(&mut state, now_ms)?;
        }
        drop(state);
        Ok(audit)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Signs what is not signed yet, and gives the latest signature; `None` without a key.
    ///
    /// # Errors
    /// As those of [`append`](Audit::append).
    pub fn checkpoint(&self, at_ms: u64) -> Result<Option<Checkpoint>, Error> {
        let mut state = self.lock();
        if state.unsigned > 0 || state.last.is_none() {
            self.seal(&mut state, at_ms)?;
        }
        Ok(state.last.clone())
    }

    /// The position and hash of the last record: kept elsewhere, they show a truncated or
    /// rewritten file.
    pub fn head(&self) -> (u64, String) {
        let state = self.lock();
        (state.seq, state.head.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> Error {
        Error::storage("writing the audit file", error).at(self.path.display().to_string())
    }

    fn seal(&self, state: &mut State, at_ms: u64) -> Result<(), Error> {
        let Some(key) = &self.key else { return Ok(()) };
        let checkpoint = key.sign(state.seq, &state.head);
        let event = AuditEvent::Sealed { checkpoint: checkpoint.clone() };
        self.write(state, AuditEntry { event, ..AuditEntry::note(at_ms, "") })?;
        state.file.sync_data().map_err(|error| {
            state.length = None;
            self.failed(&error)
        })?;
        // What is kept beside the key is never ahead of the file.
        if let Some(beside) = key.beside(&self.path) {
            keep(&beside, &checkpoint)?;
        }
        state.unsigned = 0;
        state.sealed_at_ms = at_ms;
        state.last = Some(checkpoint);
        Ok(())
    }

    fn write(&self, state: &mut State, entry: AuditEntry) -> Result<(), Error> {
        let Some(length) = state.length else {
            return Err(self.failed(&"an earlier write failed and could not be undone"));
        };
        let record = AuditRecord::chained(state.seq + 1, &state.head, entry)?;
        let mut line = serde_json::to_vec(&record).map_err(|e| self.failed(&e))?;
        line.push(b'\n');
        if let Err(error) = state.file.write_all(&line) {
            // Half a record must not stay: the next one would be taken for its rest.
            let undone = state.file.set_len(length).and_then(|()| state.file.seek(SeekFrom::End(0)));
            state.length = undone.is_ok().then_some(length);
            return Err(self.failed(&error));
        }
        state.length = Some(length.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX)));
        state.seq = record.seq;
        state.head = record.hash;
        Ok(())
    }

    /// Waits until record `seq` is on disk. Whoever comes first waits for all that are written by then.
    fn sync(&self, seq: u64) -> Result<(), Error> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if *synced >= seq {
            return Ok(());
        }
        let written = self.lock().seq;
        match self.disk.sync_data() {
            Ok(()) => {
                *synced = written;
                Ok(())
            }
            Err(error) => {
                // What the disk has is not known any more.
                self.lock().length = None;
                Err(self.failed(&error))
            }
        }
    }
}

#[cfg(unix)]
pub(super) fn private(options: &mut OpenOptions) {
    use std::os::unix::fs::OpenOptionsExt;
    options.mode(0o600);
}

#[cfg(not(unix))]
pub(super) fn private(_options: &mut OpenOptions) {}

/// What a file holds.
struct Found {
    seq: u64,
    head: String,
    unsigned: u64,
    last: Option<Checkpoint>,
    past: AuditPast,
}

/// Reads a chain from its beginning and checks it.
fn read(
    lines: &[u8],
    path: &Path,
    key: Option<&AuditKey>,
    expected: &[Checkpoint],
    beside: Option<&Path>,
) -> Result<Found, Error> {
    let broken = |problem: String, seq: u64| {
        Error::invalid("audit file", problem)
            .at(format!("{}:{seq}", path.display()))
            .with_help("keep the file for inspection and begin a new one")
    };
    let mut walk = Walk::new(key.map(AuditKey::public));
    let mut past = AuditPast::default();
    for known in expected {
        if !key.is_some_and(|key| known.is_signed_by(key.public())) {
            return Err(broken(
                "the checkpoint that was kept is not signed by this key".to_owned(),
                known.seq,
            ));
        }
    }
    let mut missing: Vec<&Checkpoint> = expected.iter().filter(|known| known.seq > 0).collect();
    for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let seq = walk.seq.saturating_add(1);
        let text = std::str::from_utf8(line).map_err(|error| broken(error.to_string(), seq))?;
        let record = walk.step(text).map_err(|(problem, _)| broken(problem, seq))?;
        if key.is_none() && matches!(record.entry.event, AuditEvent::Sealed { .. }) {
            return Err(broken("its records are signed".to_owned(), seq)
                .with_help("open it with the key that signed it, or begin a new file"));
        }
        past.add(&record.entry);
        if let Some(known) = missing.iter().find(|known| known.seq == seq)
            && known.head != walk.head
        {
            return Err(broken(format!("record {seq} is not the one that was signed"), seq));
        }
        missing.retain(|known| known.seq != seq);
    }
    if let Some(known) = missing.first() {
        let error = broken(format!("the file ends before record {}, which was signed", known.seq), walk.seq);
        return Err(match beside {
            Some(beside) => error.with_help(format!(
                "look for the file that is missing; to begin another chain in its place, remove `{}`",
                beside.display()
            )),
            None => error,
        });
    }
    if let Some(problem) = walk.overdue().filter(|_| key.is_some()) {
        return Err(broken(problem, walk.seq));
    }
    let unsigned = walk.unsigned();
    Ok(Found { seq: walk.seq, head: walk.head, unsigned, last: walk.last, past })
}

/// The checkpoint that is kept in a file, if there is one.
fn kept(path: &Path) -> Result<Option<Checkpoint>, Error> {
    let place = || path.display().to_string();
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::invalid("audit checkpoint", error.to_string()).at(place())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::storage("reading the audit's checkpoint", error).at(place())),
    }
}

fn keep(path: &Path, checkpoint: &Checkpoint) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::storage("keeping the audit's checkpoint", error).at(path.display().to_string())
    };
    let text = serde_json::to_vec(checkpoint).map_err(|error| failed(&error))?;
    let temp = path.with_extension("coral-tmp");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    private(&mut options);
    options
        .open(&temp)
        .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_data()))
        .and_then(|()| std::fs::rename(&temp, path))
        .map_err(|error| failed(&error))
}

impl Drop for FileAudit {
    fn drop(&mut self) {
        let mut state = self.lock();
        let at_ms = SystemClock.now_ms();
        if state.unsigned > 0
            && let Err(error) = self.seal(&mut state, at_ms)
        {
            tracing::error!(%error, "the end of an audit could not be signed");
        }
    }
}

impl Audit for FileAudit {
    fn append(&self, entry: AuditEntry) -> Result<(), Error> {
        let mut state = self.lock();
        let (must_last, at_ms) = (entry.must_last(), entry.at_ms);
        self.write(&mut state, entry)?;
        let seq = state.seq;
        if self.key.is_some() {
            state.unsigned += 1;
            if state.unsigned == 1 && state.sealed_at_ms == 0 {
                state.sealed_at_ms = at_ms;
            }
            if state.unsigned >= SEAL_EVERY || at_ms.saturating_sub(state.sealed_at_ms) >= SEAL_EVERY_MS {
                self.seal(&mut state, at_ms)?;
            }
        }
        drop(state);
        if must_last { self.sync(seq) } else { Ok(()) }
    }

    fn past(&self) -> AuditPast {
        self.past.clone()
    }

    fn key(&self) -> Option<[u8; 32]> {
        self.key.as_ref().map(AuditKey::hash_key)
    }
}
