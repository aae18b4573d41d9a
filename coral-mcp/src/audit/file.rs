//! The audit as a file of JSON Lines.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use coral_core::{Clock, Error, SystemClock};

use super::{Audit, AuditEntry, AuditEvent, AuditKey, AuditRecord, Checkpoint, GENESIS};

/// An audit in a file, one JSON object a line.
///
/// Opening a file that exists checks its whole chain and goes on with it. A last line that a
/// crash left torn is cut off, and the next record says so. The file is locked: one chain has
/// one writer.
///
/// A decision that lets a call change something is on disk when [`append`](Audit::append)
/// returns, so that no change happens which the file does not know of. Other records may be lost
/// when the machine's power is.
#[derive(Debug)]
pub struct FileAudit {
    path: PathBuf,
    state: Mutex<State>,
    untrusted: Vec<(String, String)>,
    key: Option<AuditKey>,
}

/// A signature is made at the latest after this many records, and at the first record after this
/// time.
const SEAL_EVERY: u64 = 1_024;
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
    /// writes it; [`Invalid`](coral_core::ErrorKind::Invalid) if its chain is broken.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        FileAudit::begin(path.into(), None)
    }

    /// As [`open`](Self::open), and signs the chain every 1,024 records or 60 seconds and at its
    /// end. Keep [`checkpoint`](Self::checkpoint) elsewhere: with it
    /// [`check_audit`](crate::check_audit) finds a file that was cut off or exchanged.
    ///
    /// # Errors
    /// As those of [`open`](Self::open).
    pub fn signed(path: impl Into<PathBuf>, key: AuditKey) -> Result<Self, Error> {
        FileAudit::begin(path.into(), Some(key))
    }

    fn begin(path: PathBuf, key: Option<AuditKey>) -> Result<Self, Error> {
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
        let (seq, head, untrusted) = check_lines(lines, &path)?;
        let length = u64::try_from(whole).unwrap_or(u64::MAX);
        file.set_len(length).and_then(|()| file.seek(SeekFrom::End(0))).map_err(|e| failed(&e))?;
        let torn = torn.len();
        let state = State { file, seq, head, length: Some(length), unsigned: 0, sealed_at_ms: 0, last: None };
        let audit = FileAudit { path, untrusted, key, state: Mutex::new(state) };
        if torn > 0 {
            audit.append(AuditEntry::note(
                SystemClock.now_ms(),
                format!("cut off a torn record of {torn} bytes"),
            ))?;
        }
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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.unsigned > 0 || state.last.is_none() {
            self.seal(&mut state, at_ms)?;
        }
        Ok(state.last.clone())
    }

    fn seal(&self, state: &mut State, at_ms: u64) -> Result<(), Error> {
        let Some(key) = &self.key else { return Ok(()) };
        let checkpoint = key.sign(state.seq, &state.head);
        let event = AuditEvent::Sealed { checkpoint: checkpoint.clone() };
        self.write(state, AuditEntry { event, ..AuditEntry::note(at_ms, "") }, true)?;
        state.unsigned = 0;
        state.sealed_at_ms = at_ms;
        state.last = Some(checkpoint);
        Ok(())
    }

    /// The position and hash of the last record: kept elsewhere, they show a truncated or
    /// rewritten file.
    pub fn head(&self) -> (u64, String) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.seq, state.head.clone())
    }
}

#[cfg(unix)]
pub(super) fn private(options: &mut OpenOptions) {
    use std::os::unix::fs::OpenOptionsExt;
    options.mode(0o600);
}

#[cfg(not(unix))]
pub(super) fn private(_options: &mut OpenOptions) {}

type Checked = (u64, String, Vec<(String, String)>);

/// Checks a chain from its beginning; gives its last position and hash, and the runs that took in
/// content from outside.
fn check_lines(lines: &[u8], path: &Path) -> Result<Checked, Error> {
    let mut untrusted = Vec::new();
    let mut seq = 0;
    let mut head = GENESIS.to_owned();
    for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        seq += 1;
        let broken = |problem: String| {
            Error::invalid("audit file", problem)
                .at(format!("{}:{seq}", path.display()))
                .with_help("keep the file for inspection and begin a new one")
        };
        let record: AuditRecord = serde_json::from_slice(line).map_err(|e| broken(e.to_string()))?;
        record.check(seq, &head).map_err(broken)?;
        // What the hash does not cover must not be there.
        if serde_json::to_vec(&record).ok().as_deref() != Some(line) {
            return Err(broken(format!("record {seq} was changed")));
        }
        untrusted.extend(record.entry.untrusted_run().filter(|run| !untrusted.contains(run)));
        head = record.hash;
    }
    Ok((seq, head, untrusted))
}

impl FileAudit {
    fn write(&self, state: &mut State, entry: AuditEntry, must_last: bool) -> Result<(), Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::storage("writing the audit file", error).at(self.path.display().to_string())
        };
        let Some(length) = state.length else {
            return Err(failed(&"an earlier write failed and could not be undone"));
        };
        let record = AuditRecord::chained(state.seq + 1, &state.head, entry)?;
        let mut line = serde_json::to_vec(&record).map_err(|e| failed(&e))?;
        line.push(b'\n');
        let written = state.file.write_all(&line).and_then(|()| match must_last {
            true => state.file.sync_data(),
            false => Ok(()),
        });
        if let Err(error) = written {
            // Half a record must not stay: the next one would be taken for its rest.
            let undone = state.file.set_len(length).and_then(|()| state.file.seek(SeekFrom::End(0)));
            state.length = undone.is_ok().then_some(length);
            return Err(failed(&error));
        }
        state.length = Some(length.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX)));
        state.seq = record.seq;
        state.head = record.hash;
        Ok(())
    }
}

impl Drop for FileAudit {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (must_last, at_ms) = (entry.must_last(), entry.at_ms);
        self.write(&mut state, entry, must_last)?;
        if self.key.is_none() {
            return Ok(());
        }
        state.unsigned += 1;
        if state.unsigned == 1 && state.sealed_at_ms == 0 {
            state.sealed_at_ms = at_ms;
        }
        if state.unsigned >= SEAL_EVERY || at_ms.saturating_sub(state.sealed_at_ms) >= SEAL_EVERY_MS {
            self.seal(&mut state, at_ms)?;
        }
        Ok(())
    }

    fn untrusted_runs(&self) -> Vec<(String, String)> {
        self.untrusted.clone()
    }
}
