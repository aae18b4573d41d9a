//! Text that came from outside, made safe to show.

use std::borrow::Cow;

use coral_core::hex;
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::path::is_unseen;

/// `text` without terminal escapes and invisible characters, cut to `max_bytes` with a note of
/// what is missing.
pub(crate) fn clean<'a>(text: impl Into<Cow<'a, str>>, max_bytes: usize) -> String {
    let text = text.into();
    let is_plain = |b: u8| matches!(b, b' '..=b'~' | b'\n' | b'\t' | b'\r');
    if text.len() <= max_bytes && text.bytes().all(is_plain) {
        return text.into_owned();
    }
    let mut kept = String::with_capacity(text.len().min(max_bytes));
    let mut rest = text.char_indices();
    for (at, c) in rest.by_ref() {
        if kept.len() + c.len_utf8() > max_bytes {
            kept.push_str(&format!("\n[cut off: {} more bytes]", text.len() - at));
            break;
        }
        // A file may hold joiners and variation selectors that its script or an emoji needs;
        // these show in what is around them.
        let harmless = matches!(c, '\n' | '\t' | '\r' | '\u{200c}' | '\u{200d}' | '\u{fe0f}');
        if harmless || !is_unseen(c) {
            kept.push(c);
        }
    }
    kept
}

/// SHA-256 of `bytes` in hexadecimal: what `coral_core` gives, by the processor's own instructions, since every call is
/// recorded under hashes, and programs are hashed whole.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// HMAC-SHA-256 of `bytes` under `key`.
pub(crate) fn keyed(key: &[u8; 32], bytes: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    let (begin, _) = block.split_at_mut(key.len());
    begin.copy_from_slice(key);
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
    mac.update(bytes);
    mac.finalize().into_bytes().into()
}

/// The text of a file that only its owner may read, made by `new` the first time.
pub(crate) fn secret_file(path: &std::path::Path, new: impl FnOnce() -> String) -> std::io::Result<String> {
    use std::io::Write;
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = new();
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file = options.open(path)?;
            file.write_all(text.as_bytes()).and_then(|()| file.sync_all())?;
            Ok(text)
        }
        read => read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_tags_go_and_the_rest_stays() {
        assert_eq!(clean("a\u{1b}[31mb\u{e0041}\u{202e}c\td\n", 100), "a[31mbc\td\n");
        assert_eq!(clean("größe 👩‍💻", 100), "größe 👩‍💻");
    }

    #[test]
    fn a_cut_falls_between_characters() {
        assert_eq!(clean("ääää", 5), "ää\n[cut off: 4 more bytes]");
        assert_eq!(clean("abcde", 5), "abcde");
    }
}
