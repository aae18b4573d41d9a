//! The audit as a file of JSON Lines.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use coral_core::{Clock, Error, SystemClock};

use super::{Audit, AuditEntry, AuditRecord, GENESIS};

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
}

#[derive(Debug)]
struct State {
    file: File,
    seq: u64,
    head: String,
    /// The length up to which the file is whole; `None` once a failed write could not be undone.
    length: Option<u64>,
}

impl FileAudit {
    /// Opens or begins the audit at `path`.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the file can't be used or another process
    /// writes it; [`Invalid`](coral_core::ErrorKind::Invalid) if its chain is broken.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
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
        let audit =
            FileAudit { path, untrusted, state: Mutex::new(State { file, seq, head, length: Some(length) }) };
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

    /// The position and hash of the last record: kept elsewhere, they show a truncated or
    /// rewritten file.
    pub fn head(&self) -> (u64, String) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.seq, state.head.clone())
    }
}

#[cfg(unix)]
fn private(options: &mut OpenOptions) {
    use std::os::unix::fs::OpenOptionsExt;
    options.mode(0o600);
}

#[cfg(not(unix))]
fn private(_options: &mut OpenOptions) {}

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

impl Audit for FileAudit {
    fn append(&self, entry: AuditEntry) -> Result<(), Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::storage("writing the audit file", error).at(self.path.display().to_string())
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(length) = state.length else {
            return Err(failed(&"an earlier write failed and could not be undone"));
        };
        let must_last = entry.must_last();
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

    fn untrusted_runs(&self) -> Vec<(String, String)> {
        self.untrusted.clone()
    }
}
