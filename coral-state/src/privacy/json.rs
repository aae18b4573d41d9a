//! Texts within JSON: strings, and the numbers and keys that hold personal data as well.

use coral_core::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// `value` with every text in it changed: strings, whole numbers, which become strings where they are
/// changed, and keys of objects.
pub(super) fn each_text(value: Value, change: &impl Fn(&str) -> String) -> Value {
    walk(value, change, &mut || true)
}

/// The same, where `allow` is asked before each change of a number or a key.
fn walk(value: Value, change: &impl Fn(&str) -> String, allow: &mut impl FnMut() -> bool) -> Value {
    match value {
        Value::String(text) => Value::String(change(&text)),
        Value::Number(number) if number.is_u64() || number.is_i64() => {
            let text = number.to_string();
            let changed = change(&text);
            if changed != text && allow() { Value::String(changed) } else { Value::Number(number) }
        }
        Value::Array(items) => items.into_iter().map(|item| walk(item, change, allow)).collect(),
        Value::Object(fields) => {
            let mut out = Map::new();
            for (key, value) in fields {
                let changed = change(&key);
                let key = if changed != key && allow() { unused(&out, changed) } else { key };
                out.insert(key, walk(value, change, allow));
            }
            Value::Object(out)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

/// `key`, or one like it that is not in `fields`: two keys may have become the same.
fn unused(fields: &Map<String, Value>, key: String) -> String {
    if !fields.contains_key(&key) {
        return key;
    }
    (2..).map(|n| format!("{key} ({n})")).find(|key| !fields.contains_key(key)).unwrap_or(key)
}

/// `data` with every text in it changed, as far as it still is data of its kind: where a number or a key
/// is of the format, it stays.
pub(super) fn rewrite<T: Serialize + DeserializeOwned>(
    data: &T,
    change: &impl Fn(&str) -> String,
) -> Result<T, serde_json::Error> {
    let value = serde_json::to_value(data)?;
    let mut count = 0;
    let whole = walk(value.clone(), change, &mut || {
        count += 1;
        true
    });
    let failed = match serde_json::from_value(whole) {
        Ok(changed) => return Ok(changed),
        Err(failed) => failed,
    };
    if count == 0 {
        return Err(failed);
    }
    let made = |allowed: &[bool]| {
        let mut answers = allowed.iter().copied();
        serde_json::from_value::<T>(walk(value.clone(), change, &mut || answers.next().unwrap_or(false)))
    };
    let mut allowed = vec![false; count];
    let mut best = made(&allowed)?;
    // Halves that do not fit are halved again, so that many changes of which few do not fit are few tries.
    let mut ranges: Vec<_> = std::iter::once(0..count).collect();
    while let Some(range) = ranges.pop() {
        allowed.get_mut(range.clone()).unwrap_or_default().fill(true);
        match made(&allowed) {
            Ok(changed) => best = changed,
            Err(_) => {
                allowed.get_mut(range.clone()).unwrap_or_default().fill(false);
                let middle = range.start + range.len() / 2;
                if range.len() > 1 {
                    ranges.extend([middle..range.end, range.start..middle]);
                }
            }
        }
    }
    Ok(best)
}

/// Why something can't be written without personal data.
pub(super) fn failed(error: serde_json::Error) -> Error {
    Error::invalid("value", format!("it can't be anonymised: {error}"))
}
