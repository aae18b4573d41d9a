//! Signatures over the chain, and checking a file against them.

use std::fmt;
use std::path::{Path, PathBuf};

use coral_core::{Error, hex};
use ed25519_compact::{KeyPair, PublicKey, Seed, Signature};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::file::SEAL_EVERY;
use super::{AuditEvent, AuditRecord, GENESIS};
use crate::text::{keyed, sha256_hex};

/// How many records may come between the one at which a signature is due and the signature.
const SLACK: u64 = 16;

/// What is signed: the position and the hash up to which a chain is vouched for.
fn message(seq: u64, head: &str) -> String {
    format!("coral audit checkpoint 1\n{seq}\n{head}\n")
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = (0..text.len()).step_by(2).map(|at| text.get(at..at + 2));
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

/// Signs an audit's checkpoints.
#[derive(Clone)]
pub struct AuditKey {
    pair: KeyPair,
    /// The file that it is kept in: the last checkpoint of each audit is kept beside it.
    path: Option<PathBuf>,
}

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditKey({})", self.verifying_key())
    }
}

impl AuditKey {
    /// A new key from the system's randomness.
    pub fn generate() -> Self {
        AuditKey { pair: KeyPair::generate(), path: None }
    }

    /// The key in a file, which is made the first time, readable by its owner alone.
    ///
    /// Whoever can read it can rewrite the audit: keep it where agents and their servers can't. An
    /// audit that is signed by it has its latest checkpoint beside it, in a file whose name begins with
    /// the key's, and is opened again only if it still holds that.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) or [`Invalid`](coral_core::ErrorKind::Invalid).
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |error: std::io::Error| {
            Error::storage("opening the audit key", error).at(path.display().to_string())
        };
        let text = crate::text::secret_file(path, || hex(&*Seed::generate())).map_err(failed)?;
        let seed = unhex(text.trim()).and_then(|bytes| Seed::from_slice(&bytes).ok()).ok_or_else(|| {
            Error::invalid("audit key", "it is not 64 hexadecimal digits").at(path.display().to_string())
        })?;
        Ok(AuditKey { pair: KeyPair::from_seed(seed), path: Some(path.to_owned()) })
    }

    /// The key that checks this one's signatures, as 64 hexadecimal digits. It is no secret.
    pub fn verifying_key(&self) -> String {
        hex(&*self.pair.pk)
    }

    /// What an audit under this key records of a call's arguments: whoever has the key can show by it
    /// which arguments they were.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) for what can't be hashed.
    pub fn arguments_hash(&self, arguments: &Value) -> Result<String, Error> {
        keyed_hash(&self.hash_key(), arguments)
    }

    /// The key of hashes, from which this one can't be had.
    pub(super) fn hash_key(&self) -> [u8; 32] {
        keyed(&self.pair.sk.seed(), b"coral audit arguments 1")
    }

    pub(super) fn sign(&self, seq: u64, head: &str) -> Checkpoint {
        let signature = self.pair.sk.sign(message(seq, head), None);
        Checkpoint { seq, head: head.to_owned(), signature: hex(&*signature) }
    }

    pub(super) fn public(&self) -> &PublicKey {
        &self.pair.pk
    }

    /// Where the latest checkpoint of the audit at `path` is kept.
    pub(super) fn beside(&self, path: &Path) -> Option<PathBuf> {
        let key = self.path.as_ref()?;
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let of: String = sha256_hex(whole.as_os_str().as_encoded_bytes()).chars().take(12).collect();
        let mut name = key.file_name()?.to_owned();
        name.push(format!(".{of}.head"));
        Some(key.with_file_name(name))
    }
}

/// A value as canonical JSON, under a keyed hash.
pub(crate) fn keyed_hash(key: &[u8; 32], value: &Value) -> Result<String, Error> {
    Ok(hex(&keyed(key, &coral_core::canonical_value(value)?)))
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
    pub(super) fn is_signed_by(&self, key: &PublicKey) -> bool {
        let signature = unhex(&self.signature).and_then(|bytes| Signature::from_slice(&bytes).ok());
        signature.is_some_and(|signature| key.verify(message(self.seq, &self.head), &signature).is_ok())
    }
}

/// What can be said of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditState {
    /// Signatures vouch for all of it.
    Intact,
    /// Nothing shows that it was changed, and signatures do not vouch for all of it: a crash leaves
    /// records without one, and so does a forger.
    Incomplete,
    /// It was changed, cut off or exchanged.
    Tampered,
}

/// What a check of an audit file found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditCheck {
    /// How many records there are.
    pub records: u64,
    /// The record up to which signatures vouch.
    pub signed_to: u64,
    /// How many records up to there were without a signature when the audit was taken up again: they
    /// are as they were then, and nobody vouches for them before that.
    pub adopted: u64,
    /// Everything that is wrong; empty for a file that was not touched.
    pub problems: Vec<String>,
}

impl AuditCheck {
    /// What can be said of the audit as a whole.
    pub fn state(&self) -> AuditState {
        if !self.problems.is_empty() {
            return AuditState::Tampered;
        }
        match self.unsigned() == 0 && self.adopted == 0 {
            true => AuditState::Intact,
            false => AuditState::Incomplete,
        }
    }

    /// Whether signatures vouch for all of it.
    pub fn is_intact(&self) -> bool {
        self.state() == AuditState::Intact
    }

    /// How many of the last records no signature vouches for.
    pub fn unsigned(&self) -> u64 {
        self.records.saturating_sub(self.signed_to)
    }
}

/// A verifying key from its text.
fn verifying(key: &str) -> Result<PublicKey, Error> {
    unhex(key)
        .and_then(|bytes| PublicKey::from_slice(&bytes).ok())
        .ok_or_else(|| Error::invalid("audit key", "a verifying key is 64 hexadecimal digits"))
}

/// Walks a chain from its beginning.
pub(super) struct Walk<'a> {
    key: Option<&'a PublicKey>,
    pub(super) seq: u64,
    pub(super) head: String,
    /// The record up to which signatures vouch; a signature vouches for itself too.
    pub(super) signed_to: u64,
    pub(super) adopted: u64,
    pub(super) last: Option<Checkpoint>,
}

impl<'a> Walk<'a> {
    /// Without a key signatures are passed over.
    pub(super) fn new(key: Option<&'a PublicKey>) -> Self {
        Walk { key, seq: 0, head: GENESIS.to_owned(), signed_to: 0, adopted: 0, last: None }
    }

    /// Goes on to the next line, and gives its record.
    ///
    /// # Errors
    /// What is wrong with the line, and whether it holds a record all the same.
    pub(super) fn step(&mut self, line: &str) -> Result<AuditRecord, (String, bool)> {
        let seq = self.seq.saturating_add(1);
        let record: AuditRecord = serde_json::from_str(line)
            .map_err(|error| (format!("line {seq} is not a record: {error}"), false))?;
        let before = std::mem::replace(&mut self.head, record.hash.clone());
        self.seq = seq;
        let fault = |problem: String| (problem, true);
        record.check(seq, &before).map_err(fault)?;
        // What the hash does not cover must not be there.
        if serde_json::to_string(&record).ok().as_deref() != Some(line) {
            return Err(fault(format!("record {seq} was changed")));
        }
        match (&record.entry.event, self.key) {
            (AuditEvent::Sealed { checkpoint }, Some(key)) => {
                if checkpoint.seq != seq - 1 || checkpoint.head != before || !checkpoint.is_signed_by(key) {
                    return Err(fault(format!("the checkpoint at record {seq} is not signed by this key")));
                }
                self.signed_to = seq;
                self.last = Some(checkpoint.clone());
            }
            (AuditEvent::Adopted { unsigned }, Some(_)) => {
                if self.unsigned() != unsigned.saturating_add(1) {
                    return Err(fault(format!("record {seq} tells of another number of unsigned records")));
                }
                self.adopted = self.adopted.saturating_add(*unsigned);
            }
            _ => {}
        }
        Ok(record)
    }

    /// How many records there are since the last signature.
    pub(super) fn unsigned(&self) -> u64 {
        self.seq.saturating_sub(self.signed_to)
    }

    /// Why so many records without a signature can't be a crash's doing.
    pub(super) fn overdue(&self) -> Option<String> {
        // The signature that is due may be what the crash prevented, and so may the next try's.
        (self.unsigned() > SEAL_EVERY + SLACK).then(|| {
            format!(
                "the last {} records are not signed, and a signature is made every {SEAL_EVERY}",
                self.unsigned()
            )
        })
    }
}

/// Checks an audit's text (JSON Lines) against the key that signed it.
///
/// Edits, deletions, reordering and a whole rewrite show in the file itself, as far as signatures
/// vouch for it; that its end was cut off or made anew shows against `known`, the latest checkpoint
/// that was kept elsewhere.
///
/// # Errors
/// [`Invalid`](coral_core::ErrorKind::Invalid) for a key that is none.
pub fn check_audit(text: &str, verifying_key: &str, known: Option<&Checkpoint>) -> Result<AuditCheck, Error> {
    let key = verifying(verifying_key)?;
    let mut walk = Walk::new(Some(&key));
    let mut problems = Vec::new();
    let mut signed_to = 0;
    // The hash of the record that `known` speaks of.
    let mut found = known.filter(|known| known.seq == 0).map(|_| GENESIS.to_owned());
    if !text.is_empty() && !text.ends_with('\n') {
        problems.push("the last record is torn".to_owned());
    }
    for line in text.lines() {
        match walk.step(line) {
            Ok(_) => {}
            Err((problem, is_record)) => {
                problems.push(problem);
                if !is_record {
                    break;
                }
            }
        }
        if problems.is_empty() {
            signed_to = walk.signed_to;
        }
        if known.is_some_and(|known| known.seq == walk.seq) {
            found = Some(walk.head.clone());
        }
    }
    if let Some(known) = known {
        if !known.is_signed_by(&key) {
            problems.push("the known checkpoint is not signed by this key".to_owned());
        }
        match found {
            Some(hash) if hash == known.head => signed_to = signed_to.max(known.seq),
            Some(_) => problems.push(format!("record {} is not the one that was signed", known.seq)),
            None => problems.push(format!("the file ends before record {}, which was signed", known.seq)),
        }
    }
    walk.signed_to = walk.signed_to.max(signed_to);
    problems.extend(walk.overdue());
    Ok(AuditCheck { records: walk.seq, signed_to, adopted: walk.adopted, problems })
}
