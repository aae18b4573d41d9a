//! Taking a project out, whole or as a report, and putting it back.

mod report;
mod yaml;

use std::collections::BTreeSet;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coral_core::{BlobRef, Blobs, Error, ErrorKind, Event, Record, RunFilter};
use serde::{Deserialize, Serialize};

use crate::garbage::BlobSweep;
use crate::ledger::{View, check_id, is_ledger};
use crate::projects::Projects;
use crate::views::{ProjectState, SessionState, WorkflowState};

/// The version of [`Archive`]'s format.
const FORMAT: u32 = 1;

/// All that is kept of a project: its own journal and those of its runs, record by record.
///
/// As JSON or YAML it can be put back, here or elsewhere; as Markdown or HTML it is a report for
/// people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Archive {
    /// The version of this format.
    pub format: u32,
    /// The project's id.
    pub project: String,
    /// The journals, the project's own first, then its runs and sessions by id.
    pub journals: Vec<ArchivedJournal>,
    /// Its blobs, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<ArchivedBlob>,
}

/// One blob of an [`Archive`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ArchivedBlob {
    /// Its name: the SHA-256 of what it holds.
    pub sha256: String,
    /// What it holds, base64.
    pub data: String,
}

impl ArchivedBlob {
    /// What it holds, if that is what the name says.
    fn bytes(&self) -> Option<Vec<u8>> {
        let bytes = BASE64_STANDARD.decode(&self.data).ok()?;
        (BlobRef::of(&bytes).sha256 == self.sha256).then_some(bytes)
    }
}

/// One journal of an [`Archive`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ArchivedJournal {
    /// The id that it is kept under.
    pub run: String,
    /// Its records, all of them.
    pub records: Vec<Record>,
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// Journals that were not there before.
    pub new: usize,
    /// Journals that were there and went on.
    pub extended: usize,
    /// Journals that were there as they are.
    pub unchanged: usize,
}

impl Projects {
    /// All that journals keep of a project: its own, its runs' and its sessions'. What lies in a blob store
    /// [`export_with`](Self::export_with) adds.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); those of the journal.
    pub async fn export(&self, id: &str) -> Result<Archive, Error> {
        let own = format!("{}{id}", ProjectState::PREFIX);
        let mut filter = RunFilter::default();
        filter.project = Some(id.to_owned());
        let mut runs = vec![own.clone()];
        runs.extend(
            self.journal()
                .runs(&filter)
                .await?
                .into_iter()
                .filter(|head| !is_ledger(head) || head.run.starts_with(SessionState::PREFIX))
                .map(|head| head.run),
        );
        let mut journals = Vec::new();
        for run in runs {
            let records = self.journal().read(&run, 1, usize::MAX).await?;
            if records.is_empty() && run == own {
                return Err(Error::not_found("project", id, []));
            }
            journals.push(ArchivedJournal { run, records });
        }
        Ok(Archive { format: FORMAT, project: id.to_owned(), journals, blobs: Vec::new() })
    }

    /// The same with the blobs of the project, or, of a store of blobs of no project, those that its
    /// records name.
    ///
    /// # Errors
    /// As [`export`](Self::export), and those of the blob store.
    pub async fn export_with(&self, id: &str, blobs: &impl BlobSweep) -> Result<Archive, Error> {
        let mut archive = self.export(id).await?;
        let mut stored = blobs.older_than(u64::MAX).await?;
        if blobs.project() != id {
            let text = serde_json::to_string(&archive.journals)
                .map_err(|e| Error::invalid("archive", e.to_string()))?;
            stored.retain(|blob| text.contains(&*blob.sha256));
        }
        stored.sort_by(|a, b| a.sha256.cmp(&b.sha256));
        for blob in stored {
            // One that was swept since then is not missed.
            if let Some(bytes) = blobs.get(&blob).await? {
                let data = BASE64_STANDARD.encode(&bytes);
                archive.blobs.push(ArchivedBlob { sha256: blob.sha256, data });
            }
        }
        Ok(archive)
    }

    /// Puts back what [`export_with`](Self::export_with) took: the blobs into `blobs`, then the journals that
    /// name them.
    ///
    /// # Errors
    /// As [`import`](Self::import), and those of the blob store.
    pub async fn import_with(&self, archive: &Archive, blobs: &impl Blobs) -> Result<Imported, Error> {
        archive.check()?;
        for blob in &archive.blobs {
            blobs.put(&blob.bytes().unwrap_or_default()).await?;
        }
        self.import(archive).await
    }

    /// Puts back what was exported, under the same ids. What is there already must be the same as
    /// far as it goes; doing it again does nothing.
    ///
    /// # Errors
    /// [`Problems`](ErrorKind::Problems) naming every journal that does not fit, before anything is
    /// written; those of the journal.
    pub async fn import(&self, archive: &Archive) -> Result<Imported, Error> {
        archive.check()?;
        let mut problems = Vec::new();
        let mut there = Vec::new();
        for ArchivedJournal { run, records } in &archive.journals {
            let found = self.journal().read(run, 1, usize::MAX).await?;
            if found.iter().zip(records).any(|(found, record)| found != record) {
                problems.push(format!("`{run}` is there and holds something else"));
            }
            there.push(found.len());
        }
        if !problems.is_empty() {
            return Err(Error::new(ErrorKind::Problems { what: "import".into(), problems })
                .with_help("import into a store that does not hold another project of this id"));
        }
        let mut imported = Imported::default();
        for (ArchivedJournal { run, records }, there) in archive.journals.iter().zip(there) {
            let missing = records.get(there..).unwrap_or_default();
            match (there, missing) {
                (_, []) => imported.unchanged += 1,
                (there, missing) => {
                    let epoch = self.journal().acquire(run).await?;
                    self.journal().append(run, epoch, there as u64, missing.to_vec().into()).await?;
                    imported.new += usize::from(there == 0);
                    imported.extended += usize::from(there > 0);
                }
            }
        }
        Ok(imported)
    }
}

impl Archive {
    /// Reads JSON, or YAML where the feature `yaml` is on.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if it is neither or not an archive,
    /// [`Problems`](ErrorKind::Problems) if it does not hold together.
    pub fn from_text(text: &str) -> Result<Self, Error> {
        let bad = |e: &dyn std::fmt::Display| Error::invalid("archive", e.to_string());
        let archive: Archive = if text.trim_start().starts_with('{') || !cfg!(feature = "yaml") {
            serde_json::from_str(text).map_err(|e| bad(&e))?
        } else {
            yaml::parse(text).map_err(|e| bad(&e))?
        };
        archive.check()?;
        Ok(archive)
    }

    /// As JSON.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if a value can't be JSON.
    pub fn to_json(&self) -> Result<String, Error> {
        serde_json::to_string_pretty(self).map_err(|e| Error::invalid("archive", e.to_string()))
    }

    /// As YAML.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if a value can't be JSON.
    pub fn to_yaml(&self) -> Result<String, Error> {
        let value = serde_json::to_value(self).map_err(|e| Error::invalid("archive", e.to_string()))?;
        Ok(yaml::write(&value))
    }

    /// The same without personal data: every text in every record is replaced, and the numbers and keys
    /// in what agents were given and gave. Times, costs and the like stay; blobs are left out. Not for
    /// putting back.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if a value can't be JSON.
    #[cfg(feature = "privacy")]
    pub fn anonymized(&self, anonymizer: &crate::privacy::Anonymizer) -> Result<Self, Error> {
        let mut archive = self.clone();
        archive.project = anonymizer.text(&self.project);
        archive.blobs.clear();
        for journal in &mut archive.journals {
            journal.run = anonymizer.text(&journal.run);
            for record in &mut journal.records {
                record.event = anonymizer.data(&record.event)?;
            }
        }
        Ok(archive)
    }

    /// A report in Markdown.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the project's journal is of a newer release.
    pub fn to_markdown(&self) -> Result<String, Error> {
        Ok(report::markdown(&self.project()?, &self.runs()))
    }

    /// A report in HTML, one file that needs no other.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the project's journal is of a newer release.
    pub fn to_html(&self) -> Result<String, Error> {
        Ok(report::html(&self.project()?, &self.runs()))
    }

    fn project(&self) -> Result<ProjectState, Error> {
        let mut project = ProjectState::empty(&self.project);
        for record in self.journals.first().into_iter().flat_map(|own| &own.records) {
            if let Event::Noted { note, .. } = &record.event {
                let change = serde_json::from_value(note.clone()).map_err(|e| {
                    Error::invalid("archive", format!("an unknown change of the project: {e}"))
                })?;
                project.apply(record.at_ms, change);
            }
        }
        Ok(project)
    }

    fn runs(&self) -> Vec<WorkflowState> {
        self.journals
            .iter()
            .filter(|journal| !journal.run.contains(':'))
            .map(|journal| {
                let mut state = WorkflowState::new(&*journal.run);
                journal.records.iter().for_each(|record| state.apply(record));
                state
            })
            .collect()
    }

    /// Whether it holds together: it comes from outside.
    fn check(&self) -> Result<(), Error> {
        if self.format != FORMAT {
            return Err(Error::invalid("archive", format!("its format is {}, not {FORMAT}", self.format))
                .with_help("read it with the release that wrote it, or a newer one"));
        }
        check_id("project", &self.project)?;
        let own = format!("{}{}", ProjectState::PREFIX, self.project);
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        for (place, ArchivedJournal { run, records }) in self.journals.iter().enumerate() {
            if !seen.insert(run) {
                problems.push(format!("`{run}` is there twice"));
            }
            let begins = |record: &Record| matches!(record.event, Event::RunStarted { .. });
            if let Some(record) = records.iter().skip(1).find(|record| begins(record)) {
                problems.push(format!("`{run}` begins again at seq {}", record.seq));
            }
            let beside = run.strip_prefix(SessionState::PREFIX).unwrap_or(run);
            if (place == 0) != (*run == own) || (place > 0 && beside.contains(':')) {
                problems.push(format!("`{run}` is not where it belongs"));
            }
            let project = match records.first().map(|record| &record.event) {
                Some(Event::RunStarted { project, .. }) => Some(project),
                _ => None,
            };
            if project.is_none_or(|project| **project != *self.project) {
                problems.push(format!("`{run}` does not begin as a run of the project"));
            }
            if records.iter().zip(1..).any(|(record, seq)| record.seq != seq) {
                problems.push(format!("records of `{run}` are missing"));
            }
        }
        for blob in self.blobs.iter().filter(|blob| blob.bytes().is_none()) {
            problems.push(format!("blob `{}` is not what its name says", blob.sha256));
        }
        if self.journals.is_empty() {
            problems.push("it is empty".into());
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Problems { what: "archive".into(), problems }))
    }
}
