//! The record of every decision and call, chained by hashes.

mod canonical;
mod export;
mod file;
mod past;
mod seal;

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use coral_core::Error;
use serde::{Deserialize, Serialize};

use self::canonical::hash_of;
use crate::access::{Operation, Verdict};

pub use self::export::{
    AuditLine, AuditSummary, audit_csv, audit_report, audit_table, read_audit, summarize_audit,
    summarize_audit_of,
};
pub use self::file::FileAudit;
pub use self::past::AuditPast;
pub(crate) use self::seal::keyed_hash;
pub use self::seal::{AuditCheck, AuditKey, AuditState, Checkpoint, check_audit};

/// The hash that the first record of a chain names as the one before it.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum AuditEvent {
    /// A call was decided on; written before the call is made.
    Decided {
        /// The verdict.
        verdict: Verdict,
        /// The rule that decided.
        rule: String,
        /// What the call does, where its tool is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        operation: Option<Operation>,
        /// The places that the arguments name.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        paths: Vec<String>,
        /// The arguments as canonical JSON under a keyed hash, HMAC-SHA-256: see [`Audit::key`].
        arguments: String,
        /// The hash of the permission document.
        policy: String,
        /// For whom the agent acts, near ones first.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        on_behalf: Vec<String>,
        /// The beginning of the hash of the caller's token, where there are tokens.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        token: String,
    },
    /// A call ended.
    Ended {
        /// `ok`, `tool_error`, or the code of an error.
        outcome: String,
        /// How long it took, in milliseconds.
        took_ms: u64,
        /// The size of the result, in bytes.
        bytes: u64,
        /// Whether the result came from a server that is not trusted.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        untrusted: bool,
    },
    /// A server's process asked for a connection to a place of the network.
    Connected {
        /// The place, `host:port`, or what was asked for where it is none.
        to: String,
        /// Whether it was let through.
        verdict: Verdict,
        /// Why.
        rule: String,
    },
    /// A tool is blocked, as it is new or changed.
    Blocked {
        /// Why.
        why: String,
        /// The hash of what it is now, to be agreed to.
        #[serde(rename = "tool_hash")]
        hash: String,
        /// What was pinned, as its server said it; empty for one that is new.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        before: String,
        /// What it is now.
        now: String,
    },
    /// The chain up to the record before was signed.
    Sealed {
        /// The signature.
        checkpoint: Checkpoint,
    },
    /// A signed chain was taken up again, and its last records had no signature: a crash leaves
    /// some, and so does a forger. Signatures from here on do not vouch for them.
    Adopted {
        /// How many records before this one.
        unsigned: u64,
    },
    /// Something about the sandbox itself, such as its start or a torn record cut off.
    Noted {
        /// What.
        note: String,
    },
}

/// One line of the audit, before it is chained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run: String,
    /// The step's path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The project that the run belongs to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub project: String,
    /// The agent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent: String,
    /// The server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub server: String,
    /// The tool, as the agent named it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tool: String,
    /// The idempotency key of the call.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// What happened.
    #[serde(flatten)]
    pub event: AuditEvent,
}

impl AuditEntry {
    /// Whether the entry must be on disk before anything else happens: a decision that lets a
    /// call change something.
    pub(crate) fn must_last(&self) -> bool {
        matches!(
            self.event,
            AuditEvent::Decided {
                verdict: Verdict::Allow,
                operation: Some(Operation::Write | Operation::Execute),
                ..
            }
        )
    }

    /// An entry about the sandbox itself.
    pub fn note(at_ms: u64, note: impl Into<String>) -> Self {
        AuditEntry {
            at_ms,
            run: String::new(),
            path: String::new(),
            project: String::new(),
            agent: String::new(),
            server: String::new(),
            tool: String::new(),
            key: String::new(),
            event: AuditEvent::Noted { note: note.into() },
        }
    }
}

/// One line of the audit: an entry in its place in the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// The position, from 1.
    pub seq: u64,
    /// The hash of the record before; [`GENESIS`] for the first.
    pub prev: String,
    /// What happened.
    #[serde(flatten)]
    pub entry: AuditEntry,
    /// The hash of all the above as canonical JSON.
    #[serde(default)]
    pub hash: String,
}

impl AuditRecord {
    fn chained(seq: u64, prev: &str, entry: AuditEntry) -> Result<Self, Error> {
        let mut record = AuditRecord { seq, prev: prev.to_owned(), entry, hash: String::new() };
        record.hash = hash_of(&record)?;
        Ok(record)
    }

    /// Checks that the record is whole and follows the one with `seq - 1` and `prev`.
    pub(crate) fn check(&self, seq: u64, prev: &str) -> Result<(), String> {
        if self.seq != seq {
            return Err(format!("record {} stands where record {seq} belongs", self.seq));
        }
        if self.prev != prev {
            return Err(format!("record {seq} does not follow the record before it"));
        }
        match hash_of(self) {
            Ok(hash) if hash == self.hash => Ok(()),
            Ok(_) => Err(format!("record {seq} was changed")),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Where audit entries go.
///
/// # Duties of an implementation
/// - [`append`](Audit::append) returns once the entry is as safe as the sink makes it: a call
///   is made only after its decision was appended.
/// - Entries of concurrent calls are chained in one order, the order of the returns.
pub trait Audit: Send + Sync {
    /// Adds an entry to the chain.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if it could not be kept.
    fn append(&self, entry: AuditEntry) -> Result<(), Error>;

    /// What the records before this process began say of runs: what a run took in and how often it
    /// called holds after a restart too.
    fn past(&self) -> AuditPast {
        AuditPast::default()
    }

    /// The key under which arguments are hashed, so that who reads the audit can't guess them; one
    /// that ends with the sandbox, if there is none.
    fn key(&self) -> Option<[u8; 32]> {
        None
    }

    /// Whether [`append`](Audit::append) may wait for a disk or a network, for a decision that lets a
    /// call change something. It is then called where that holds up nothing else.
    fn waits(&self) -> bool {
        true
    }
}

impl<T: Audit + ?Sized> Audit for std::sync::Arc<T> {
    fn append(&self, entry: AuditEntry) -> Result<(), Error> {
        (**self).append(entry)
    }

    fn past(&self) -> AuditPast {
        (**self).past()
    }

    fn key(&self) -> Option<[u8; 32]> {
        (**self).key()
    }

    fn waits(&self) -> bool {
        (**self).waits()
    }
}

/// How many records are kept in memory if it is not said.
const IN_MEMORY: usize = 65_536;

/// An audit in memory, of the last 65,536 records: for tests, and for programs that look at it
/// themselves.
#[derive(Debug)]
pub struct MemoryAudit {
    records: Mutex<VecDeque<AuditRecord>>,
    most: usize,
}

impl Default for MemoryAudit {
    fn default() -> Self {
        MemoryAudit::of(IN_MEMORY)
    }
}

impl MemoryAudit {
    /// An empty audit.
    pub fn new() -> Self {
        MemoryAudit::default()
    }

    /// One that keeps the last `most` records, and one at least.
    pub fn of(most: usize) -> Self {
        MemoryAudit { records: Mutex::default(), most: most.max(1) }
    }

    /// Every record that is kept, the oldest first.
    pub fn records(&self) -> Vec<AuditRecord> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Audit for MemoryAudit {
    fn append(&self, entry: AuditEntry) -> Result<(), Error> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let (seq, prev) = records.back().map_or((0, GENESIS), |last| (last.seq, last.hash.as_str()));
        let record = AuditRecord::chained(seq.saturating_add(1), prev, entry)?;
        if records.len() >= self.most {
            records.pop_front();
        }
        records.push_back(record);
        Ok(())
    }

    fn past(&self) -> AuditPast {
        let mut past = AuditPast::default();
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.iter().for_each(|record| past.add(&record.entry));
        past
    }

    fn waits(&self) -> bool {
        false
    }
}
