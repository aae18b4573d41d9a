//! What of a record is hashed: all but its hash, as JSON with sorted fields.

use coral_core::{Error, canonical_json};
use serde::Serialize;

use super::{AuditEntry, AuditEvent, AuditRecord};
use crate::access::{Operation, Verdict};
use crate::text::sha256_hex;

/// The record of a decision or of a call's end, which every call leaves: its fields in the order of their names, so that
/// they can be written as they are. One that is empty is left out, as in the record.
#[derive(Default, Serialize)]
struct Sorted<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a str>,
    at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    hash: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    key: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    on_behalf: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<Operation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    path: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    paths: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    prev: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    project: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    run: &'a str,
    seq: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    server: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    tool: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    untrusted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Verdict>,
    what: &'a str,
}

impl<'a> Sorted<'a> {
    /// `None` for a record of another kind.
    fn of(record: &'a AuditRecord) -> Option<Self> {
        let AuditEntry { at_ms, run, path, project, agent, server, tool, key, event } = &record.entry;
        let entry = Sorted {
            agent,
            at_ms: *at_ms,
            key,
            path,
            prev: &record.prev,
            project,
            run,
            seq: record.seq,
            server,
            tool,
            ..Sorted::default()
        };
        match event {
            AuditEvent::Decided { verdict, rule, operation, paths, arguments, policy, on_behalf, token } => {
                Some(Sorted {
                    verdict: Some(*verdict),
                    rule: Some(rule),
                    operation: *operation,
                    paths,
                    arguments: Some(arguments),
                    policy: Some(policy),
                    on_behalf,
                    token,
                    what: "decided",
                    ..entry
                })
            }
            AuditEvent::Ended { outcome, took_ms, bytes, untrusted } => Some(Sorted {
                outcome: Some(outcome),
                took_ms: Some(*took_ms),
                bytes: Some(*bytes),
                untrusted: *untrusted,
                what: "ended",
                ..entry
            }),
            _ => None,
        }
    }
}

/// The hash that a record should have, whatever it has: that of all else as canonical JSON.
pub(super) fn hash_of(record: &AuditRecord) -> Result<String, Error> {
    let Some(sorted) = Sorted::of(record) else {
        let plain = AuditRecord { hash: String::new(), ..record.clone() };
        return Ok(sha256_hex(&canonical_json(&plain)?));
    };
    let mut text = Vec::with_capacity(1_024);
    serde_json::to_writer(&mut text, &sorted).map_err(|e| Error::invalid("audit record", e.to_string()))?;
    Ok(sha256_hex(&text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use coral_core::digest;

    use crate::audit::GENESIS;

    fn event() -> impl Strategy<Value = AuditEvent> {
        let text = || "[a-z\"é\\\\\n]{0,4}";
        let texts = || prop::collection::vec("[a-z/]{0,4}", 0..3);
        let verdict = prop::sample::select(vec![Verdict::Allow, Verdict::Ask, Verdict::Deny]);
        let operation = prop::option::of(prop::sample::select(vec![Operation::Read, Operation::Execute]));
        prop_oneof![
            (verdict, operation, text(), texts(), text(), texts(), text()).prop_map(
                |(verdict, operation, rule, paths, arguments, on_behalf, token)| AuditEvent::Decided {
                    verdict,
                    rule,
                    operation,
                    paths,
                    arguments,
                    policy: "p".into(),
                    on_behalf,
                    token,
                }
            ),
            (text(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
                |(outcome, took_ms, bytes, untrusted)| AuditEvent::Ended {
                    outcome,
                    took_ms,
                    bytes,
                    untrusted
                }
            ),
            text().prop_map(|note| AuditEvent::Noted { note }),
            (text(), text(), text(), text()).prop_map(|(why, hash, before, now)| AuditEvent::Blocked {
                why,
                hash,
                before,
                now
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_hashed_is_the_canonical_json_of_the_record(
            event in event(), seq in any::<u64>(), (run, agent, key) in ("[a-z]{0,2}", "[a-z]{0,2}", "[a-z]{0,2}"),
        ) {
            let entry = AuditEntry { run, agent, key, event, ..AuditEntry::note(seq / 2, "") };
            let record = AuditRecord { seq, prev: GENESIS.into(), entry, hash: String::new() };
            let hash = hash_of(&record).unwrap();
            prop_assert_eq!(&hash, &digest(&record).unwrap());
            // It can be checked by who reads it from its line.
            let line = serde_json::to_string(&AuditRecord { hash: hash.clone(), ..record }).unwrap();
            let read: AuditRecord = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(hash_of(&read).unwrap(), hash);
        }
    }
}
