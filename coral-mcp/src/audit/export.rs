//! An audit for people: tables and counts.

use std::collections::BTreeMap;

use coral_core::{Error, rfc3339};
use serde::Serialize;

use super::{AuditEvent, AuditRecord};
use crate::access::Verdict;

/// Reads an audit's text (JSON Lines), without checking it.
///
/// # Errors
/// [`Invalid`](coral_core::ErrorKind::Invalid) with the line for what is not a record.
pub fn read_audit(text: &str) -> Result<Vec<AuditRecord>, Error> {
    let read = |(i, line)| {
        serde_json::from_str(line).map_err(|e: serde_json::Error| {
            Error::invalid("audit", e.to_string()).at(format!("line {}", i + 1))
        })
    };
    text.lines().enumerate().map(read).collect()
}

/// Records as comma-separated values, with a line of names first.
///
/// A field that a spreadsheet would take for a formula is kept from it by a leading apostrophe.
pub fn audit_csv(records: &[AuditRecord]) -> String {
    let mut csv =
        "seq,time,run,path,project,agent,server,tool,key,event,verdict,operation,paths,rule,took_ms,bytes,arguments,policy,on_behalf,token,hash\n"
            .to_owned();
    for record in records {
        let entry = &record.entry;
        let mut row = vec![
            record.seq.to_string(),
            rfc3339(entry.at_ms),
            entry.run.clone(),
            entry.path.clone(),
            entry.project.clone(),
            entry.agent.clone(),
            entry.server.clone(),
            entry.tool.clone(),
            entry.key.clone(),
        ];
        let none = String::new;
        row.extend(match &entry.event {
            AuditEvent::Decided { verdict, rule, operation, paths, .. } => [
                "decided".to_owned(),
                verdict.as_str().to_owned(),
                operation.map_or_else(none, |o| o.as_str().to_owned()),
                paths.join(" "),
                rule.clone(),
                none(),
                none(),
            ],
            AuditEvent::Ended { outcome, took_ms, bytes, .. } => [
                format!("ended {outcome}"),
                none(),
                none(),
                none(),
                none(),
                took_ms.to_string(),
                bytes.to_string(),
            ],
            AuditEvent::Connected { to, verdict, rule } => [
                format!("connected to {to}"),
                verdict.as_str().to_owned(),
                none(),
                none(),
                rule.clone(),
                none(),
                none(),
            ],
            AuditEvent::Noted { note } => {
                ["noted".to_owned(), none(), none(), none(), note.clone(), none(), none()]
            }
            AuditEvent::Blocked { why, hash, .. } => {
                [format!("blocked as {hash}"), none(), none(), none(), why.clone(), none(), none()]
            }
            AuditEvent::Adopted { unsigned } => {
                [format!("adopted {unsigned}"), none(), none(), none(), none(), none(), none()]
            }
            AuditEvent::Sealed { checkpoint } => {
                [format!("sealed to {}", checkpoint.seq), none(), none(), none(), none(), none(), none()]
            }
        });
        row.extend(match &entry.event {
            AuditEvent::Decided { arguments, policy, on_behalf, token, .. } => {
                [arguments.clone(), policy.clone(), on_behalf.join(" "), token.clone()]
            }
            _ => [none(), none(), none(), none()],
        });
        row.push(record.hash.clone());
        csv.push_str(&row.iter().map(|field| quoted(field)).collect::<Vec<_>>().join(","));
        csv.push('\n');
    }
    csv
}

fn quoted(field: &str) -> String {
    let guard = if field.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    if guard.is_empty() && !field.contains([',', '"', '\n', '\r']) {
        return field.to_owned();
    }
    format!("\"{guard}{}\"", field.replace('"', "\"\""))
}

/// What one agent did at one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditSummary {
    /// Calls, and connections of its process, that were allowed.
    pub allowed: u64,
    /// Those that a person had to be asked about.
    pub asked: u64,
    /// Those that were refused.
    pub denied: u64,
    /// How often calls ended how: `ok`, `tool_error`, or the code of an error.
    pub outcomes: BTreeMap<String, u64>,
    /// Calls that ended in an error.
    pub failed: u64,
    /// The time of the first and the last record, in milliseconds since the Unix epoch.
    pub span_ms: (u64, u64),
}

/// Counts records by agent and server.
pub fn summarize_audit(records: &[AuditRecord]) -> BTreeMap<(String, String), AuditSummary> {
    summarize_audit_of(records, 0, u64::MAX)
}

/// As [`summarize_audit`], of the records from `from_ms` on and before `until_ms`, in milliseconds
/// since the Unix epoch.
pub fn summarize_audit_of(
    records: &[AuditRecord],
    from_ms: u64,
    until_ms: u64,
) -> BTreeMap<(String, String), AuditSummary> {
    let mut summaries: BTreeMap<(String, String), AuditSummary> = BTreeMap::new();
    for AuditRecord { entry, .. } in records {
        if !(from_ms..until_ms).contains(&entry.at_ms)
            || !matches!(
                entry.event,
                AuditEvent::Decided { .. } | AuditEvent::Ended { .. } | AuditEvent::Connected { .. }
            )
        {
            continue;
        }
        let new = AuditSummary { span_ms: (entry.at_ms, entry.at_ms), ..AuditSummary::default() };
        let of = summaries.entry((entry.agent.clone(), entry.server.clone())).or_insert(new);
        of.span_ms = (of.span_ms.0.min(entry.at_ms), of.span_ms.1.max(entry.at_ms));
        match &entry.event {
            AuditEvent::Decided { verdict, .. } | AuditEvent::Connected { verdict, .. } => match verdict {
                Verdict::Allow => of.allowed += 1,
                Verdict::Ask => of.asked += 1,
                Verdict::Deny => of.denied += 1,
            },
            AuditEvent::Ended { outcome, .. } => {
                of.failed += u64::from(outcome != "ok");
                *of.outcomes.entry(outcome.clone()).or_default() += 1;
            }
            _ => {}
        }
    }
    summaries
}

/// One line of a report: what an agent did at a server in a span of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditLine {
    /// When the span begins, in milliseconds since the Unix epoch.
    pub from_ms: u64,
    /// The agent.
    pub agent: String,
    /// The server.
    pub server: String,
    /// What it did.
    pub did: AuditSummary,
}

/// Counts records by spans of `span_ms`, by agent and by server, in this order. Spans in which nothing
/// happened are left out.
pub fn audit_report(records: &[AuditRecord], span_ms: u64) -> Vec<AuditLine> {
    let span_ms = span_ms.max(1);
    let mut spans: BTreeMap<u64, Vec<AuditRecord>> = BTreeMap::new();
    for record in records {
        let from_ms = record.entry.at_ms / span_ms * span_ms;
        spans.entry(from_ms).or_default().push(record.clone());
    }
    let lines = |(from_ms, records): (u64, Vec<AuditRecord>)| {
        let did = summarize_audit(&records).into_iter();
        did.map(move |((agent, server), did)| AuditLine { from_ms, agent, server, did })
    };
    spans.into_iter().flat_map(lines).collect()
}

/// A report as a table for people, with a line of names first.
pub fn audit_table(report: &[AuditLine]) -> String {
    let mut rows: Vec<[String; 8]> = vec![
        ["from", "agent", "server", "allowed", "asked", "denied", "failed", "outcomes"].map(str::to_owned),
    ];
    for AuditLine { from_ms, agent, server, did } in report {
        let outcomes: Vec<String> = did.outcomes.iter().map(|(of, n)| format!("{of} {n}")).collect();
        let clean = |name: &str| crate::text::clean(name, 60).replace('\n', " ");
        rows.push([
            rfc3339(*from_ms),
            clean(agent),
            clean(server),
            did.allowed.to_string(),
            did.asked.to_string(),
            did.denied.to_string(),
            did.failed.to_string(),
            outcomes.join(", "),
        ]);
    }
    let mut widths = [0; 8];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; 8]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
