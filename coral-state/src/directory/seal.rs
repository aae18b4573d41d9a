//! A directory whose blobs only those who hold a key can read.
//!
//! The directory's data key lies in it, wrapped by a master key that lies elsewhere, so that
//! destroying this one small file makes all the others worthless, whatever copies of them there are.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use coral_core::{BlobRef, Clock, Error, ErrorKind, SystemClock, hex};

use crate::blob_name;
use crate::crypto::{DataKey, KeyRing, OVERHEAD, Sealed, Tokens};
use crate::ledger::DATA_KEY;

/// The wrapped key: the id of the master key, and the rest in hexadecimal.
const KEY: &str = "key";
/// Stands in a directory whose key was destroyed, and says when that was.
const ERASED: &str = "erased";
/// What a file says of itself before its body: the name of what it holds and how much that is.
const LABEL: usize = 32 + 8;
/// The same as it lies there.
const SEALED_LABEL: usize = LABEL + OVERHEAD as usize;

pub(super) struct Seal {
    project: Box<str>,
    key: DataKey,
    names: Tokens,
}

fn failed(operation: &str, path: &Path, error: &io::Error) -> Error {
    super::failed(operation, path, error)
}

impl Seal {
    /// The seal of the directory, made if it has none yet.
    pub(super) fn open(root: &Path, project: &str, ring: &KeyRing) -> Result<Self, Error> {
        const OPEN: &str = "open the blob directory";
        if root.join(ERASED).exists() {
            return Err(erased(root, project));
        }
        let path = root.join(KEY);
        if !path.exists() {
            let fresh = lines(ring.current().id(), &ring.draw(project)?);
            super::replace(&path, fresh.as_bytes(), false).map_err(|e| failed(OPEN, &path, &e))?;
        }
        let text = fs::read_to_string(&path).map_err(|e| failed(OPEN, &path, &e))?;
        let (master, wrapped) = parse(&text).ok_or_else(|| {
            Error::storage(OPEN, "its key can't be read")
                .with_help("restore the directory from a backup")
                .at(path.display().to_string())
        })?;
        let key = ring.open(0, project, master, &wrapped)?;
        if master != ring.current().id() {
            let anew = lines(ring.current().id(), &ring.rewrap(project, master, &wrapped)?);
            super::replace(&path, anew.as_bytes(), true).map_err(|e| failed(OPEN, &path, &e))?;
        }
        let names = key.tokens()?;
        Ok(Seal { project: project.into(), key, names })
    }

    pub(super) fn project(&self) -> &str {
        &self.project
    }

    /// What stands for a blob's name, so that nobody can try what it may be of.
    pub(super) fn name(&self, blob: &BlobRef) -> Result<String, Error> {
        blob_name::key(blob)?;
        Ok(self.names.name_of(&blob.sha256))
    }

    /// A blob as it lies in its file.
    pub(super) fn seal(&self, root: &Path, blob: &BlobRef, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        // Another process may have destroyed the key that this one still holds.
        if !root.join(KEY).exists() {
            return Err(erased(root, &self.project));
        }
        let key = blob_name::key(blob)?;
        let label = [&key[..], &blob.bytes.to_le_bytes()].concat();
        let mut sealed = self.key.seal(0, b"blob label", &label)?;
        sealed.extend(self.key.seal(0, &about(&key), bytes)?);
        Ok(sealed)
    }

    pub(super) fn unseal(&self, root: &Path, blob: &BlobRef, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        if !root.join(KEY).exists() {
            return Err(erased(root, &self.project));
        }
        let damaged = || {
            Error::storage(
                "read a blob",
                format!("the file of `{}` is not one that this key sealed", blob.sha256),
            )
            .with_help("restore the directory from a backup, and check who can write to it")
        };
        let body = sealed.get(SEALED_LABEL..).and_then(Sealed::parse).ok_or_else(damaged)?;
        self.key.open(&body, &about(&blob_name::key(blob)?))
    }

    /// What the file at `path` says that it holds; `None` if it is none of this directory's.
    pub(super) fn label(&self, path: &Path) -> io::Result<Option<BlobRef>> {
        let mut label = Vec::with_capacity(SEALED_LABEL);
        File::open(path)?.take(SEALED_LABEL as u64).read_to_end(&mut label)?;
        let Some(plain) = self.key.unseal(&label, b"blob label") else { return Ok(None) };
        let Some((name, Ok(length))) =
            plain.split_first_chunk::<32>().map(|(name, rest)| (name, rest.try_into()))
        else {
            return Ok(None);
        };
        let sha256 = hex(name);
        Ok(Some(BlobRef { sha256, bytes: u64::from_le_bytes(length) }))
    }

    /// Destroys the key, and notes it.
    pub(super) fn destroy(&self, root: &Path) -> Result<(), Error> {
        const ERASE: &str = "erase a blob directory";
        let path = root.join(KEY);
        let now = SystemClock.now_ms().to_string();
        let destroy = || -> io::Result<()> {
            super::replace(&root.join(ERASED), now.as_bytes(), false)?;
            if path.exists() {
                // Overwritten first: what is unlinked may lie on for a while.
                let mut file = File::options().write(true).open(&path)?;
                let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
                file.write_all(&vec![b'0'; length])?;
                file.sync_all()?;
                fs::remove_file(&path)?;
            }
            super::sync_directory(root)
        };
        destroy().map_err(|e| failed(ERASE, &path, &e))
    }
}

fn about(key: &[u8; 32]) -> Vec<u8> {
    [b"blob file\0", &key[..]].concat()
}

fn erased(root: &Path, project: &str) -> Error {
    let at = fs::read_to_string(root.join(ERASED)).ok().and_then(|text| text.parse().ok());
    let when = at.map(|at| format!(" at {}", coral_core::rfc3339(at))).unwrap_or_default();
    Error::new(ErrorKind::NotFound { what: DATA_KEY.to_owned(), name: project.to_owned(), nearest: None })
        .with_help(format!("it was destroyed{when}, and with it all that it sealed"))
        .at(root.display().to_string())
}

fn lines(master: &str, wrapped: &[u8]) -> String {
    format!("{master}\n{}\n", hex(wrapped))
}

fn parse(text: &str) -> Option<(&str, Vec<u8>)> {
    let (master, hex) = text.trim_end().split_once('\n')?;
    let (pairs, []) = hex.as_bytes().as_chunks::<2>() else { return None };
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    Some((master, pairs.iter().map(byte).collect::<Option<_>>()?))
}
