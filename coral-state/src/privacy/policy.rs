//! Which personal data may leave by which way.

use std::fmt;
use std::io;
use std::sync::Arc;

use coral_core::{ChatModel, Error};
use serde::{Deserialize, Serialize};

use super::{Anonymizer, Detector, PrivateModel};
use crate::crypto::MasterKey;
use crate::export::Archive;

/// What becomes of personal data on one way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Treatment {
    /// It stays.
    Keep,
    /// Its kind takes its place, for good.
    #[default]
    Remove,
    /// A pseudonym takes its place, which the policy's key turns back; without a key it is removed.
    Pseudonymise,
}

/// What becomes of personal data on its way to models, into logs and into exports. What is left
/// out is removed.
///
/// ```
/// use std::io::Write;
///
/// use coral_state::{Detector, MasterKey, PrivacyPolicy, Treatment};
///
/// let policy = PrivacyPolicy::new(Detector::new())
///     .with_key(&MasterKey::generate()?)
///     .prompts(Treatment::Pseudonymise);
///
/// // As the writer of a subscriber: `.with_writer(move || policy.writer(std::io::stderr()))`.
/// let mut log = Vec::new();
/// policy.writer(&mut log).write_all(b"asked ada@example.org\n").unwrap();
/// assert_eq!(log, b"asked [email]\n");
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PrivacyPolicy {
    removing: Anonymizer,
    pseudonymising: Option<Anonymizer>,
    prompts: Treatment,
    logs: Treatment,
    exports: Treatment,
}

impl PrivacyPolicy {
    /// Removes what `detector` finds, everywhere.
    pub fn new(detector: Detector) -> Self {
        PrivacyPolicy {
            removing: Anonymizer::new(detector),
            pseudonymising: None,
            prompts: Treatment::default(),
            logs: Treatment::default(),
            exports: Treatment::default(),
        }
    }

    /// Makes pseudonyms by `key`, the same ones on every way.
    #[must_use]
    pub fn with_key(mut self, key: &MasterKey) -> Self {
        self.pseudonymising = Some(self.removing.clone().with_key(key));
        self
    }

    /// What becomes of it in prompts.
    #[must_use]
    pub fn prompts(mut self, treatment: Treatment) -> Self {
        self.prompts = treatment;
        self
    }

    /// What becomes of it in logs.
    #[must_use]
    pub fn logs(mut self, treatment: Treatment) -> Self {
        self.logs = treatment;
        self
    }

    /// What becomes of it in exports.
    #[must_use]
    pub fn exports(mut self, treatment: Treatment) -> Self {
        self.exports = treatment;
        self
    }

    fn by(&self, treatment: Treatment) -> Option<&Anonymizer> {
        match treatment {
            Treatment::Keep => None,
            Treatment::Remove => Some(&self.removing),
            Treatment::Pseudonymise => Some(self.pseudonymising.as_ref().unwrap_or(&self.removing)),
        }
    }

    /// A model that sees of a prompt what this policy lets it.
    pub fn model<M: ChatModel + 'static>(&self, model: M) -> Arc<dyn ChatModel> {
        match self.by(self.prompts) {
            Some(anonymizer) => Arc::new(PrivateModel::new(model, anonymizer.clone())),
            None => Arc::new(model),
        }
    }

    /// A writer for logs that lets through what this policy lets into them.
    pub fn writer<W: io::Write>(&self, to: W) -> PrivateWriter<W> {
        PrivateWriter { to, anonymizer: self.by(self.logs).cloned(), line: Vec::new() }
    }

    /// The archive as this policy lets it out. With pseudonyms or without, it is not for putting
    /// back.
    ///
    /// # Errors
    /// As [`Archive::anonymized`].
    pub fn archive(&self, archive: &Archive) -> Result<Archive, Error> {
        match self.by(self.exports) {
            Some(anonymizer) => archive.anonymized(anonymizer),
            None => Ok(archive.clone()),
        }
    }
}

/// Writes lines of text without personal data. A line goes on when it ends, or when this is
/// flushed or dropped, so that nothing is missed because it came in two pieces.
///
/// Any subscriber that writes text takes it: `tracing_subscriber::fmt().with_writer(..)` wants a
/// function that makes one.
pub struct PrivateWriter<W: io::Write> {
    to: W,
    anonymizer: Option<Anonymizer>,
    line: Vec<u8>,
}

/// A line longer than this goes on in pieces.
const LONGEST: usize = 1 << 20;

impl<W: io::Write> PrivateWriter<W> {
    fn release(&mut self, upto: usize) -> io::Result<()> {
        let Some(anonymizer) = &self.anonymizer else { return Ok(()) };
        let text: Vec<u8> = self.line.drain(..upto).collect();
        self.to.write_all(anonymizer.text(&String::from_utf8_lossy(&text)).as_bytes())
    }
}

impl<W: io::Write> io::Write for PrivateWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.anonymizer.is_none() {
            return self.to.write(bytes);
        }
        self.line.extend_from_slice(bytes);
        match self.line.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => self.release(end + 1)?,
            None if self.line.len() > LONGEST => self.release(self.line.len())?,
            None => {}
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.release(self.line.len())?;
        self.to.flush()
    }
}

impl<W: io::Write> Drop for PrivateWriter<W> {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = io::Write::flush(self);
    }
}

impl<W: io::Write> fmt::Debug for PrivateWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateWriter").field("anonymizer", &self.anonymizer).finish_non_exhaustive()
    }
}
