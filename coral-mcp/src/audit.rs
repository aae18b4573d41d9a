//! The record of every decision and call, chained by hashes.

mod export;
mod file;
mod seal;

use std::sync::{Mutex, PoisonError};

use coral_core::{Error, digest};
use serde::{Deserialize, Serialize};

use crate::access::{Operation, Verdict};

pub use self::export::{AuditSummary, audit_csv, read_audit, summarize_audit, summarize_audit_of};
pub use self::file::FileAudit;
pub use self::seal::{AuditCheck, AuditKey, Checkpoint, check_audit};

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
        /// The SHA-256 of the arguments as canonical JSON.
        arguments: String,
        /// The hash of the permission document.
        policy: String,
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
    /// The chain up to the record before was signed.
    Sealed {
        /// The signature.
        checkpoint: Checkpoint,
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

    /// The run and tool, if the entry tells that content from outside came in.
    fn untrusted_run(&self) -> Option<(String, String)> {
        matches!(self.event, AuditEvent::Ended { untrusted: true, .. })
            .then(|| (self.run.clone(), self.tool.clone()))
    }

    /// An entry about the sandbox itself.
    pub fn note(at_ms: u64, note: impl Into<String>) -> Self {
        AuditEntry {
            at_ms,
            run: String::new(),
            path: String::new(),
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
        record.hash = record.expected_hash()?;
        Ok(record)
    }

    /// The hash that the record should have.
    fn expected_hash(&self) -> Result<String, Error> {
        digest(&AuditRecord { hash: String::new(), ..self.clone() })
    }

    /// Checks that the record is whole and follows the one with `seq - 1` and `prev`.
    pub(crate) fn check(&self, seq: u64, prev: &str) -> Result<(), String> {
        if self.seq != seq {
            return Err(format!("record {} stands where record {seq} belongs", self.seq));
        }
        if self.prev != prev {
            return Err(format!("record {seq} does not follow the record before it"));
        }
        match self.expected_hash() {
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

    /// The runs that took in content from untrusted servers before this process began, each with
    /// the tool that brought it: they stay marked after a restart.
    fn untrusted_runs(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

impl<T: Audit + ?Sized> Audit for std::sync::Arc<T> {
    fn append(&self, entry: AuditEntry) -> Result<(), Error> {
        (**self).append(entry)
    }

    fn untrusted_runs(&self) -> Vec<(String, String)> {
        (**self).untrusted_runs()
    }
}

/// An audit in memory: for tests, and for programs that look at it themselves.
#[derive(Debug, Default)]
pub struct MemoryAudit {
    records: Mutex<Vec<AuditRecord>>,
}

impl MemoryAudit {
    /// An empty audit.
    pub fn new() -> Self {
        MemoryAudit::default()
    }

    /// Every record so far.
    pub fn records(&self) -> Vec<AuditRecord> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Audit for MemoryAudit {
    fn append(&self, entry: AuditEntry) -> Result<(), Error> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = u64::try_from(records.len()).unwrap_or(u64::MAX).saturating_add(1);
        let prev = records.last().map_or(GENESIS, |record| record.hash.as_str());
        let record = AuditRecord::chained(seq, prev, entry)?;
        records.push(record);
        Ok(())
    }

    fn untrusted_runs(&self) -> Vec<(String, String)> {
        self.records().iter().filter_map(|record| record.entry.untrusted_run()).collect()
    }
}
