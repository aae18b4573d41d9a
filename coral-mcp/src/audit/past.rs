//! What an audit tells of the time before this process.

use std::collections::BTreeMap;

use super::{AuditEntry, AuditEvent};
use crate::access::Verdict;

/// What became of runs and projects so far, by the records of an audit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditPast {
    /// The runs that took in content from untrusted servers, each with the tool that first brought it.
    pub untrusted: BTreeMap<String, String>,
    /// How many calls each run was allowed.
    pub calls_of_runs: BTreeMap<String, u64>,
    /// How many calls each project was allowed.
    pub calls_of_projects: BTreeMap<String, u64>,
}

impl AuditPast {
    /// Takes in one more entry.
    pub fn add(&mut self, entry: &AuditEntry) {
        match &entry.event {
            AuditEvent::Ended { untrusted: true, .. } if !self.untrusted.contains_key(&entry.run) => {
                self.untrusted.insert(entry.run.clone(), entry.tool.clone());
            }
            AuditEvent::Decided { verdict: Verdict::Allow, .. } => {
                for (counts, name) in
                    [(&mut self.calls_of_runs, &entry.run), (&mut self.calls_of_projects, &entry.project)]
                {
                    match counts.get_mut(name) {
                        Some(count) => *count += 1,
                        None => drop(counts.insert(name.clone(), 1)),
                    }
                }
            }
            _ => {}
        }
    }
}
