//! What is held on one person: taking it out, and taking it away.

use std::sync::Arc;

use coral_core::{BlobRef, Blobs as _, Error, Event, Journal, Record, RunFilter, RunHead, RunStatus};
use regex::{Regex, RegexBuilder};
use serde::Serialize;
use serde_json::Value;

use super::json;
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
    /// Journals whose id, project or workflow is named by a word for them.
    pub named: Vec<String>,
    /// Journals that can't be read any more since their project was erased.
    pub unreadable: Vec<String>,
    /// Blobs that speak of them, where a store was asked.
    pub blobs: Vec<SubjectBlob>,
}

/// One blob that speaks of a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SubjectBlob {
    /// The project that it belongs to; may be empty.
    pub project: String,
    /// Its name.
    pub blob: BlobRef,
    /// What it holds; where that is not all text, with a mark for what is not.
    pub text: String,
}

/// What erasing a person did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SubjectErasure {
    /// Journals in which `[erased]` now stands for the person.
    pub rewritten: Vec<String>,
    /// Journals that speak of the person and were left, being at work: end them and erase again.
    pub at_work: Vec<String>,
    /// Journals whose id, project or workflow is named by a word for the person. Names are what others
    /// refer by, so they stay: remove these journals, and `erase_project` or `remove_project` the project.
    pub named: Vec<String>,
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

    /// Whether one of the words is the name of a journal, its project or its workflow.
    fn names(&self, head: &RunHead) -> bool {
        [&head.run, &head.project, &head.workflow].iter().any(|name| self.pattern.is_match(name))
    }

    fn is_in(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.pattern.is_match(text),
            Value::Array(items) => items.iter().any(|item| self.is_in(item)),
            Value::Object(map) => {
                map.iter().any(|(key, value)| self.pattern.is_match(key) || self.is_in(value))
            }
            Value::Number(number) => self.pattern.is_match(&number.to_string()),
            Value::Null | Value::Bool(_) => false,
        }
    }

    /// The record without the person; `None` if it does not speak of them.
    ///
    /// The names of the project and of the workflow stay: the journal is listed by them.
    fn without(&self, record: &Record) -> Result<Option<Record>, Error> {
        let bad = |e: serde_json::Error| {
            Error::invalid("subject", format!("without it seq {} makes no sense: {e}", record.seq))
                .with_help("a word for the person is also a word of the format: leave it out")
        };
        let value = serde_json::to_value(&record.event)
            .map_err(|e| Error::storage("search the journal", format!("seq {}: {e}", record.seq)))?;
        if !self.is_in(&value) {
            return Ok(None);
        }
        let erase = |text: &str| self.pattern.replace_all(text, ERASED).into_owned();
        let mut event = json::rewrite(&record.event, &erase).map_err(bad)?;
        if let (
            Event::RunStarted { project, graph, .. },
            Event::RunStarted { project: project_before, graph: before, .. },
        ) = (&mut event, &record.event)
        {
            project.clone_from(project_before);
            Arc::make_mut(graph).name.clone_from(&before.name);
        }
        // Numbers of the format may look like a number of the person's, and are not theirs.
        Ok((event != record.event).then(|| Record { event, ..record.clone() }))
    }

    /// All that a journal holds on the person: in runs, sessions and projects.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn export(&self, journal: &impl Journal) -> Result<SubjectExport, Error> {
        let mut export = SubjectExport::default();
        for head in journal.runs(&RunFilter::default()).await? {
            if self.names(&head) {
                export.named.push(head.run.clone());
            }
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
                if self.without(&record)?.is_some() {
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

    /// All that a store holds on the person, blobs included.
    pub(crate) async fn export_of(&self, store: &impl Upkeep) -> Result<SubjectExport, Error> {
        let mut export = self.export(&store.upkept()).await?;
        for project in store.projects_with_blobs().await? {
            let blobs = store.blobs_in(&project);
            let found = match self.blobs(&blobs).await {
                Err(error) if is_erased(&error) => continue,
                result => result?,
            };
            for blob in found {
                let Some(bytes) = blobs.get(&blob).await? else { continue };
                let text = String::from_utf8_lossy(&bytes).into_owned();
                export.blobs.push(SubjectBlob { project: project.clone(), blob, text });
            }
        }
        Ok(export)
    }

    /// Takes the person out of everything in `store`: what spoke of them says `[erased]`, blobs
    /// that did are gone, and the cache is empty. Records keep their number, time and shape, so runs stay whole.
    pub(crate) async fn erase(&self, store: &impl Upkeep) -> Result<SubjectErasure, Error> {
        let mut erasure = SubjectErasure::default();
        let journal = store.upkept();
        for head in journal.runs(&RunFilter::default()).await? {
            if self.names(&head) {
                erasure.named.push(head.run.clone());
            }
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
                let edited =
                    records.into_iter().map(|record| Ok(subject.without(&record)?.unwrap_or(record)));
                edited.collect::<Result<Vec<_>, Error>>()
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
