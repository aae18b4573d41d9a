//! Names of blobs: from outside, so checked before they become keys or paths.

use std::sync::Arc;

use coral_core::{BlobRef, Error};

/// The 32 bytes of the name.
pub(crate) fn key(blob: &BlobRef) -> Result<[u8; 32], Error> {
    let bad = || {
        Error::invalid("blob name", format!("`{}` is not a SHA-256 in lower-case hexadecimal", blob.sha256))
    };
    let text = blob.sha256.as_bytes();
    let mut key = [0; 32];
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != key.len() || !rest.is_empty() {
        return Err(bad());
    }
    for (byte, [high, low]) in key.iter_mut().zip(pairs) {
        *byte = digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low).ok_or_else(bad)?;
    }
    Ok(key)
}

fn digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

/// `bytes`, if they are what the name says.
pub(crate) fn verified(blob: &BlobRef, bytes: Arc<[u8]>) -> Result<Arc<[u8]>, Error> {
    let found = BlobRef::of(&bytes);
    if found == *blob {
        return Ok(bytes);
    }
    Err(Error::storage(
        "read a blob",
        format!(
            "blob `{}` of {} bytes reads as `{}` of {}",
            blob.sha256, blob.bytes, found.sha256, found.bytes
        ),
    )
    .with_help("the store is damaged: restore it from a backup, and check the disk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_hash_is_a_name() {
        let good = BlobRef::of(b"coral");
        assert_eq!(key(&good).unwrap()[0], u8::from_str_radix(&good.sha256[..2], 16).unwrap());
        let long = format!("{}0", good.sha256);
        let upper = good.sha256.to_uppercase();
        for name in ["", "../../etc/passwd", &good.sha256[1..], &long, &upper, &"é".repeat(32)] {
            let blob = BlobRef { sha256: name.to_owned(), bytes: 5 };
            assert!(key(&blob).is_err(), "{name}");
        }
    }
}
