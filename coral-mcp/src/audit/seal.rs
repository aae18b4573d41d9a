//! Signatures over the chain, and checking a file against them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;

use coral_core::Error;
use ed25519_compact::{KeyPair, PublicKey, Seed, Signature};
use serde::{Deserialize, Serialize};

use super::{AuditEvent, AuditRecord, GENESIS};

/// What is signed: the position and the hash up to which a chain is vouched for.
fn message(seq: u64, head: &str) -> String {
    format!("coral audit checkpoint 1\n{seq}\n{head}\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = (0..text.len()).step_by(2).map(|at| text.get(at..at + 2));
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

/// Signs an audit's checkpoints.
#[derive(Clone)]
pub struct AuditKey(KeyPair);

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditKey({})", self.verifying_key())
    }
}

impl AuditKey {
    /// A new key from the system's randomness.
    pub fn generate() -> Self {
        AuditKey(KeyPair::generate())
    }

    /// The key in a file, which is made the first time, readable by its owner alone.
    ///
    /// Whoever can read it can rewrite the audit: keep it where agents and their servers can't.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) or [`Invalid`](coral_core::ErrorKind::Invalid).
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |error: std::io::Error| {
            Error::storage("opening the audit key", error).at(path.display().to_string())
        };
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let seed =
                    unhex(text.trim()).and_then(|bytes| Seed::from_slice(&bytes).ok()).ok_or_else(|| {
                        Error::invalid("audit key", "it is not 64 hexadecimal digits")
                            .at(path.display().to_string())
                    })?;
                Ok(AuditKey(KeyPair::from_seed(seed)))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let seed = Seed::generate();
                let mut options = std::fs::OpenOptions::new();
                options.write(true).create_new(true);
                super::file::private(&mut options);
                let mut file = options.open(path).map_err(failed)?;
                file.write_all(hex(&*seed).as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
                Ok(AuditKey(KeyPair::from_seed(seed)))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The key that checks this one's signatures, as 64 hexadecimal digits. It is no secret.
    pub fn verifying_key(&self) -> String {
        hex(&*self.0.pk)
    }

    pub(super) fn sign(&self, seq: u64, head: &str) -> Checkpoint {
        let signature = self.0.sk.sign(message(seq, head), None);
        Checkpoint { seq, head: head.to_owned(), signature: hex(&*signature) }
    }
}

/// A signature over a chain up to a record. A copy kept elsewhere shows that a file was cut off
/// or exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The record up to which it vouches.
    pub seq: u64,
    /// That record's hash.
    pub head: String,
    /// The Ed25519 signature, hexadecimal.
    pub signature: String,
}

impl Checkpoint {
    fn is_signed_by(&self, key: &PublicKey) -> bool {
        let signature = unhex(&self.signature).and_then(|bytes| Signature::from_slice(&bytes).ok());
        signature.is_some_and(|signature| key.verify(message(self.seq, &self.head), &signature).is_ok())
    }
}

/// What a check of an audit file found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditCheck {
    /// How many records there are.
    pub records: u64,
    /// The record up to which signatures vouch.
    pub signed_to: u64,
    /// Everything that is wrong; empty for a file that was not touched.
    pub problems: Vec<String>,
}

impl AuditCheck {
    /// Whether nothing is wrong.
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }

    /// How many of the last records no signature vouches for: a crash leaves some, and so does
    /// a forger.
    pub fn unsigned(&self) -> u64 {
        self.records.saturating_sub(self.signed_to)
    }
}

/// Checks an audit's text (JSON Lines) against the key that signed it.
///
/// Edits, deletions, reordering and a whole rewrite show in the file itself; that its end was cut
/// off shows against `known`, the latest checkpoint that was kept elsewhere.
///
/// # Errors
/// [`Invalid`](coral_core::ErrorKind::Invalid) for a key that is none.
pub fn check_audit(text: &str, verifying_key: &str, known: Option<&Checkpoint>) -> Result<AuditCheck, Error> {
    let key = unhex(verifying_key)
        .and_then(|bytes| PublicKey::from_slice(&bytes).ok())
        .ok_or_else(|| Error::invalid("audit key", "a verifying key is 64 hexadecimal digits"))?;
    let mut check = AuditCheck { records: 0, signed_to: 0, problems: Vec::new() };
    let mut head = GENESIS.to_owned();
    let mut hashes = BTreeMap::new();
    if !text.is_empty() && !text.ends_with('\n') {
        check.problems.push("the last record is torn".to_owned());
    }
    for (i, line) in text.lines().enumerate() {
        let seq = u64::try_from(i).unwrap_or(u64::MAX).saturating_add(1);
        let record: AuditRecord = match serde_json::from_str(line) {
            Ok(record) => record,
            Err(error) => {
                check.problems.push(format!("line {seq} is not a record: {error}"));
                break;
            }
        };
        let exact = serde_json::to_string(&record).is_ok_and(|text| text == line);
        if let Err(problem) = record.check(seq, &head) {
            check.problems.push(problem);
        } else if !exact {
            check.problems.push(format!("record {seq} was changed"));
        }
        if let AuditEvent::Sealed { checkpoint } = &record.entry.event {
            if checkpoint.seq != check.records || checkpoint.head != head || !checkpoint.is_signed_by(&key) {
                check.problems.push(format!("the checkpoint at record {seq} is not signed by this key"));
            } else if check.problems.is_empty() {
                check.signed_to = seq;
            }
        }
        check.records = seq;
        head = record.hash;
        hashes.insert(seq, head.clone());
    }
    if let Some(known) = known {
        if !known.is_signed_by(&key) {
            check.problems.push("the known checkpoint is not signed by this key".to_owned());
        }
        match hashes.get(&known.seq) {
            Some(hash) if *hash == known.head => check.signed_to = check.signed_to.max(known.seq),
            Some(_) => check.problems.push(format!("record {} is not the one that was signed", known.seq)),
            None => {
                check.problems.push(format!("the file ends before record {}, which was signed", known.seq));
            }
        }
    }
    Ok(check)
}
