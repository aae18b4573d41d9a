//! What is held on one person: taking it out, and taking it away.

use coral_core::{BlobRef, Error, Journal, Record, RunFilter, RunHead, RunStatus};
use regex::{Regex, RegexBuilder};
use serde::Serialize;
use serde_json::Value;

use crate::garbage::BlobSweep;
use crate::ledger::is_erased;
use crate::retention::{Change, Upkeep, class_of};

const BATCH: usize = 512;
/// What takes the place of what was erased.
const ERASED: &str = "[erased]";
/// Fewer characters are in too many words.
const SHORTEST: usize = 3;

/// A person, by the words that stand for them: addresses, numbers, names, user ids.
///
/// ```
/// use coral_core::MemoryJournal;
/// use coral_state::Subject;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let subject = Subject::known_by(["ada@example.org", "Ada Lovelace"])?;
/// let held = subject.export(&MemoryJournal::new()).await?;
/// assert!(held.records.is_empty());
/// # Ok::<(), coral_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Subject {
    pattern: Regex,
}

/// One record that speaks of a person.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SubjectFinding {
    /// The journal that it is in: a run's, a session's or a project's.
    pub run: String,
    /// The project; may be empty.
    pub project: String,
    /// The whole record.
    pub record: Record,
}

/// All that is held on a person, for handing it over.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SubjectExport {
    /// The records, by journal and seq.
    pub records: Vec<SubjectFinding>,
    /// Journals that can't be read any more since their project was erased.
    pub unreadable: Vec<String>,
}

/// What erasing a person did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SubjectErasure {
    /// Journals in which `[erased]` now stands for the person.
    pub rewritten: Vec<String>,
    /// Journals that speak of the person and were left, being at work: end them and erase again.
    pub at_work: Vec<String>,
    /// Blobs that spoke of the person and were removed.
    pub blobs: Vec<BlobRef>,
}

impl Subject {
    /// A person known by these words, in any case, each of at least three characters.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if there are none, or one is too short or the
    /// name of something in every record.
    pub fn known_by<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let words: Vec<&str> = words.into_iter().map(str::trim).collect();
        if let Some(short) = words.iter().find(|word| word.chars().count() < SHORTEST) {
            return Err(Error::invalid("subject", format!("`{short}` is too short to stand for one person")));
        }
        if words.is_empty() {
            return Err(Error::invalid("subject", "there is no word for them"));
        }
        let mut escaped: Vec<String> = words.into_iter().map(regex::escape).collect();
        escaped.sort_by_key(|word| std::cmp::Reverse(word.len()));
        let pattern = RegexBuilder::new(&escaped.join("|"))
            .case_insensitive(true)
            .build()
            .map_err(|e| Error::invalid("subject", e.to_string()))?;
        Ok(Subject { pattern })
    }

    fn is_in(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.pattern.is_match(text),
            Value::Array(items) => items.iter().any(|item| self.is_in(item)),
            Value::Object(map) => {
                map.iter().any(|(key, value)| self.pattern.is_match(key) || self.is_in(value))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }

    fn out_of(&self, value: Value) -> Value {
        let without = |text: String| self.pattern.replace_all(&text, ERASED).into_owned();
        match value {
            Value::String(text) => Value::String(without(text)),
            Value::Array(items) => items.into_iter().map(|item| self.out_of(item)).collect(),
            Value::Object(map) => {
                map.into_iter().map(|(key, value)| (without(key), self.out_of(value))).collect()
            }
            other => other,
        }
    }

    fn find(&self, record: &Record) -> Result<bool, Error> {
        let value = serde_json::to_value(&record.event)
            .map_err(|e| Error::storage("search the journal", format!("seq {}: {e}", record.seq)))?;
        Ok(self.is_in(&value))
    }

    /// All that a journal holds on the person: in runs, sessions and projects.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn export(&self, journal: &impl Journal) -> Result<SubjectExport, Error> {
        let mut export = SubjectExport::default();
        for head in journal.runs(&RunFilter::default()).await? {
            match self.search(journal, &head).await {
                Ok(found) => export.records.extend(found),
                Err(error) if is_erased(&error) => export.unreadable.push(head.run),
                Err(error) => return Err(error),
            }
        }
        Ok(export)
    }

    async fn search(&self, journal: &impl Journal, head: &RunHead) -> Result<Vec<SubjectFinding>, Error> {
        let mut found = Vec::new();
        let mut next = 1;
        loop {
            let records = journal.read(&head.run, next, BATCH).await?;
            let count = records.len();
            for record in records {
                next = record.seq + 1;
                if self.find(&record)? {
                    found.push(SubjectFinding {
                        run: head.run.clone(),
                        project: head.project.clone(),
                        record,
                    });
                }
            }
            if count < BATCH {
                return Ok(found);
            }
        }
    }

    /// The blobs that hold text about the person.
    ///
    /// # Errors
    /// Those of the blob store.
    pub async fn blobs(&self, blobs: &impl BlobSweep) -> Result<Vec<BlobRef>, Error> {
        let mut found = Vec::new();
        for stored in blobs.older_than(u64::MAX).await? {
            let Some(bytes) = blobs.get(&stored).await? else { continue };
            if self.pattern.is_match(&String::from_utf8_lossy(&bytes)) {
                found.push(stored);
            }
        }
        Ok(found)
    }

    /// Takes the person out of everything in `store`: what spoke of them says `[erased]`, blobs
    /// that did are gone, and the cache is empty. Records keep their number, time and shape, so runs stay whole.
    pub(crate) async fn erase(&self, store: &impl Upkeep) -> Result<SubjectErasure, Error> {
        let mut erasure = SubjectErasure::default();
        let journal = store.upkept();
        for head in journal.runs(&RunFilter::default()).await? {
            let found = match self.search(&journal, &head).await {
                Err(error) if is_erased(&error) => continue,
                result => result?,
            };
            if found.is_empty() {
                continue;
            }
            let at_work = head.status == RunStatus::Running && class_of(&head).is_some();
            let subject = self.clone();
            let edit = move |records: Vec<Record>| {
                let without = |record: Record| {
                    let bad = |e: serde_json::Error| {
                        Error::invalid(
                            "subject",
                            format!("without it seq {} makes no sense: {e}", record.seq),
                        )
                        .with_help("a word for the person is also a word of the format: leave it out")
                    };
                    let event = serde_json::to_value(&record.event).map_err(bad)?;
                    let event = serde_json::from_value(subject.out_of(event)).map_err(bad)?;
                    Ok(Record { event, ..record })
                };
                records.into_iter().map(without).collect::<Result<Vec<_>, Error>>()
            };
            if !at_work && store.rewrite(&head.run, Change::Edit(Box::new(edit))).await? {
                erasure.rewritten.push(head.run);
            } else {
                erasure.at_work.push(head.run);
            }
        }
        for project in store.projects_with_blobs().await? {
            let blobs = store.blobs_in(&project);
            let found = match self.blobs(&blobs).await {
                Err(error) if is_erased(&error) => continue,
                result => result?,
            };
            for blob in found {
                if blobs.sweep(&blob, u64::MAX).await? {
                    erasure.blobs.push(blob);
                }
            }
        }
        // What a cached value is about can't be told by its key; all of it can be made again.
        let cached = store.empty_cache().await?;
        if !erasure.rewritten.is_empty() || !erasure.blobs.is_empty() || cached > 0 {
            store.scrubbed().await?;
        }
        Ok(erasure)
    }
}
