//! Decisions that hold until something changes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::access::{Access, Decision};

/// How many decisions are kept. When there are more, all are forgotten: making one anew costs
/// little.
const MAX: usize = 8_192;
/// Longer questions are not worth keeping.
const MAX_KEY: usize = 4_096;

struct Known {
    decision: Decision,
    /// From when to when it holds.
    from_ms: u64,
    until_ms: u64,
}

/// Decisions by everything that they depend on but the time.
#[derive(Default)]
pub(super) struct Decisions(Mutex<HashMap<Box<str>, Known>>);

impl Decisions {
    pub(super) fn get(&self, key: &str, now_ms: u64) -> Option<Decision> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(key).filter(|known| (known.from_ms..known.until_ms).contains(&now_ms))?;
        Some(known.decision.clone())
    }

    pub(super) fn put(&self, key: String, decision: Decision, from_ms: u64, until_ms: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX {
            known.clear();
        }
        known.insert(key.into(), Known { decision, from_ms, until_ms });
    }
}

/// Everything that a decision depends on but the time; `None` if that is too long. Each part is
/// led by its length, so that no two questions have one key.
pub(super) fn key(access: &Access<'_>, arguments: bool) -> Option<String> {
    let mut key = String::with_capacity(160);
    let caller = access.caller;
    // What a decision says of where content came from is in its rule.
    let untrusted = access.untrusted.unwrap_or_default();
    for part in [
        caller.agent.as_ref(),
        caller.project.as_ref(),
        caller.phase.as_ref(),
        access.server,
        access.tool,
        access.named.unwrap_or_default(),
        untrusted,
    ] {
        push(&mut key, part)?;
    }
    let flags = [
        caller.category as u8,
        access.operation as u8,
        u8::from(access.raised),
        u8::from(access.recursive),
        u8::from(access.untrusted.is_some()),
        u8::from(access.named.is_some()),
    ];
    key.extend(flags.map(|flag| char::from(b'0' + flag)));
    key.push_str(&access.paths.len().to_string());
    for path in access.paths {
        push(&mut key, path.relative())?;
    }
    for (mark, list) in [('!', access.programs), ('@', access.hosts)] {
        if !list.is_empty() {
            key.push(mark);
            key.push_str(&list.len().to_string());
            list.iter().try_for_each(|text| push(&mut key, text))?;
        }
    }
    if arguments {
        key.push('|');
        if let Some(arguments) = access.arguments {
            push(&mut key, &serde_json::to_string(arguments).ok()?)?;
        }
    }
    Some(key)
}

fn push(key: &mut String, part: &str) -> Option<()> {
    if key.len() + part.len() > MAX_KEY {
        return None;
    }
    // One character is a length of up to 0xD7FF without a gap in between.
    key.push(char::from_u32(u32::try_from(part.len()).ok()?)?);
    key.push_str(part);
    Some(())
}
