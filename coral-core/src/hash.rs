//! Hashes: of bytes, and of JSON in one canonical form.

use serde::Serialize;
use serde_json::Value;

use crate::error::Error;

/// SHA-256 of `bytes` in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&hmac_sha256::Hash::hash(bytes))
}

/// The SHA-256 of `value` as [canonical JSON](canonical_json), in lower-case hexadecimal.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) if the value can't be JSON.
pub fn digest<T: Serialize + ?Sized>(value: &T) -> Result<String, Error> {
    Ok(sha256_hex(&canonical_json(value)?))
}

/// `value` as JSON with sorted keys and nothing between them: the same on every machine, in every release, whatever
/// features `serde_json` was built with.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) if the value can't be JSON.
pub fn canonical_json<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Error> {
    canonical_value(&serde_json::to_value(value).map_err(invalid)?)
}

/// As [`canonical_json`], of what is JSON already: it need not be copied for it.
///
/// # Errors
/// See [`canonical_json`].
pub fn canonical_value(value: &Value) -> Result<Vec<u8>, Error> {
    let mut text = Vec::with_capacity(512);
    write_canonical(value, &mut text).map_err(invalid)?;
    Ok(text)
}

fn invalid(error: serde_json::Error) -> Error {
    Error::invalid("value", error.to_string())
}

/// A number derived from `seed`, to spread waits by: a replay waits as long.
pub(crate) fn jitter(seed: &str) -> u64 {
    hmac_sha256::Hash::hash(seed.as_bytes()).iter().take(8).fold(0, |n, byte| (n << 8) | u64::from(*byte))
}

/// `bytes` in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|nibble| DIGITS.get(usize::from(nibble)).map(|d| char::from(*d)))
        .collect()
}

fn write_canonical(value: &Value, out: &mut Vec<u8>) -> serde_json::Result<()> {
    match value {
        Value::Object(map) if map.keys().is_sorted() => write_object(map.iter(), out),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            write_object(entries.into_iter(), out)
        }
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_canonical(item, out)?;
            }
            out.push(b']');
            Ok(())
        }
        scalar => serde_json::to_writer(out, scalar),
    }
}

fn write_object<'a>(
    entries: impl Iterator<Item = (&'a String, &'a Value)>,
    out: &mut Vec<u8>,
) -> serde_json::Result<()> {
    out.push(b'{');
    for (i, (key, value)) in entries.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, key)?;
        out.push(b':');
        write_canonical(value, out)?;
    }
    out.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_does_not_depend_on_key_order() {
        let a: Value = serde_json::from_str(r#"{"b":[1,{"y":2,"x":"é\n"}],"a":null}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{"a":null,"b":[1,{"x":"é\n","y":2}]}"#).unwrap();
        assert_eq!(digest(&a).unwrap(), digest(&b).unwrap());
        assert_eq!(
            digest(&a).unwrap(),
            sha256_hex("{\"a\":null,\"b\":[1,{\"x\":\"é\\n\",\"y\":2}]}".as_bytes())
        );
    }
}
