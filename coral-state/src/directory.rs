//! Blobs as files of a directory.

#[cfg(feature = "encryption")]
mod seal;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use coral_core::{BlobRef, Blobs, Error};

#[cfg(feature = "encryption")]
use self::seal::Seal;
use crate::blob_name::{self, verified};
#[cfg(feature = "encryption")]
use crate::crypto::KeyRing;
use crate::garbage::BlobSweep;

/// [`Blobs`] as files: `<directory>/ab/cdef…`, where `abcdef…` is the SHA-256.
///
/// A file is written under another name, synced and then renamed, so that a name never stands
/// for half a blob. Several processes may share the directory.
///
/// ```
/// use coral_core::Blobs;
/// use coral_state::DirectoryBlobs;
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path();
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let blobs = DirectoryBlobs::open(path)?;
/// let name = blobs.put(b"a large deliverable").await?;
/// assert_eq!(blobs.get(&name).await?.as_deref(), Some(&b"a large deliverable"[..]));
/// # Ok::<(), coral_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct DirectoryBlobs {
    root: Arc<Path>,
    #[cfg(feature = "encryption")]
    seal: Option<Arc<Seal>>,
}

impl fmt::Debug for DirectoryBlobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryBlobs").field("root", &self.root).finish_non_exhaustive()
    }
}

static DRAFTS: AtomicU64 = AtomicU64::new(0);
/// What the names of files begin with that are being written.
const DRAFT: &str = "draft-";
/// What the names of files end with that are being removed.
const SWEPT: &str = "swept-";
/// How long such a file is left alone: its process may be at work yet.
const AT_WORK: Duration = Duration::from_secs(60 * 60);

impl DirectoryBlobs {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if it can't be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(|e| failed("open the blob directory", &root, &e))?;
        Ok(DirectoryBlobs {
            root: root.into(),
            #[cfg(feature = "encryption")]
            seal: None,
        })
    }

    /// The same for the blobs of one project, which nobody can read without the master key: names of
    /// files are keyed hashes, and what they hold is sealed by a data key that lies, wrapped, in the
    /// directory. To change the master key, open it with a ring of both.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if it can't be made or its key was tampered with,
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the ring lacks the master key,
    /// [`NotFound`](coral_core::ErrorKind::NotFound) if it was [erased](Self::erase).
    #[cfg(feature = "encryption")]
    pub fn open_sealed(root: impl Into<PathBuf>, project: &str, ring: &KeyRing) -> Result<Self, Error> {
        let plain = Self::open(root)?;
        let seal = Seal::open(&plain.root, project, ring)?;
        Ok(DirectoryBlobs { seal: Some(Arc::new(seal)), ..plain })
    }

    /// Destroys the key of a [sealed](Self::open_sealed) directory and removes its files, so that no copy
    /// of them can be read either. The directory stays, and is of no use any more.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if it is not sealed; those of the disk. Doing it again
    /// goes on.
    #[cfg(feature = "encryption")]
    pub async fn erase(&self) -> Result<(), Error> {
        const ERASE: &str = "erase a blob directory";
        let Some(seal) = self.seal.clone() else {
            return Err(Error::invalid("blob directory", "it is not encrypted")
                .with_help("open it with `DirectoryBlobs::open_sealed`"));
        };
        let root = Arc::clone(&self.root);
        blocking(ERASE, move || {
            seal.destroy(&root)?;
            let remove = || -> io::Result<()> {
                for folder in fs::read_dir(&root)? {
                    let folder = folder?.path();
                    if folder.is_dir() {
                        fs::remove_dir_all(folder)?;
                    }
                }
                sync_directory(&root)
            };
            remove().map_err(|e| failed(ERASE, &root, &e))
        })
        .await
    }

    fn path(&self, blob: &BlobRef) -> Result<PathBuf, Error> {
        blob_name::key(blob)?;
        let name = self.name(blob)?;
        let (folder, file) = name.split_at(2);
        Ok(self.root.join(folder).join(file))
    }

    #[cfg(feature = "encryption")]
    fn name(&self, blob: &BlobRef) -> Result<String, Error> {
        match &self.seal {
            Some(seal) => seal.name(blob),
            None => Ok(blob.sha256.clone()),
        }
    }

    #[cfg(not(feature = "encryption"))]
    #[expect(clippy::unnecessary_wraps, reason = "it can fail where names are sealed")]
    fn name(&self, blob: &BlobRef) -> Result<String, Error> {
        Ok(blob.sha256.clone())
    }

    /// A blob as it lies in its file.
    #[cfg(feature = "encryption")]
    fn sealed(&self, blob: &BlobRef, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        match &self.seal {
            Some(seal) => seal.seal(&self.root, blob, bytes),
            None => Ok(bytes.to_vec()),
        }
    }

    #[cfg(not(feature = "encryption"))]
    #[expect(clippy::unnecessary_wraps, reason = "it can fail where blobs are sealed")]
    fn sealed(&self, _: &BlobRef, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(bytes.to_vec())
    }

    /// What a file that held `bytes` is of.
    #[cfg(feature = "encryption")]
    fn unsealed(&self, blob: &BlobRef, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        match &self.seal {
            Some(seal) => seal.unseal(&self.root, blob, &bytes),
            None => Ok(bytes),
        }
    }

    #[cfg(not(feature = "encryption"))]
    #[expect(clippy::unnecessary_wraps, reason = "it can fail where blobs are sealed")]
    fn unsealed(&self, _: &BlobRef, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        Ok(bytes)
    }

    /// What the file at `path`, called `name`, holds; `None` if it is none of this store's.
    fn label(&self, path: &Path, name: String) -> io::Result<Option<BlobRef>> {
        let named = BlobRef { sha256: name, bytes: fs::metadata(path)?.len() };
        if blob_name::key(&named).is_err() {
            return Ok(None);
        }
        #[cfg(feature = "encryption")]
        if let Some(seal) = &self.seal {
            return seal.label(path);
        }
        Ok(Some(named))
    }
}

fn failed(operation: &str, path: &Path, error: &io::Error) -> Error {
    let help = match error.kind() {
        io::ErrorKind::StorageFull => "the disk is full: nothing of this was kept; free some space",
        io::ErrorKind::PermissionDenied => "check that this user may write there",
        _ => "check the disk and the path",
    };
    Error::storage(operation, error).with_help(help).at(path.display().to_string())
}

fn keep(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Some(folder) = path.parent() else { return Err(io::ErrorKind::InvalidInput.into()) };
    if let Ok(file) = File::options().append(true).open(path) {
        // Its grace begins anew, and whoever wrote it may not have synced the directory yet. Should
        // it be swept at this moment, it is written again below.
        file.set_modified(SystemTime::now())?;
        sync_directory(folder)?;
        if path.exists() {
            return Ok(());
        }
    }
    let made = !folder.exists();
    fs::create_dir_all(folder)?;
    replace(path, bytes, true)?;
    match folder.parent() {
        Some(root) if made => sync_directory(root),
        _ => Ok(()),
    }
}

/// Writes a file that is there whole or not at all. One that is there already is replaced if `anew`, and
/// stays otherwise.
fn replace(path: &Path, bytes: &[u8], anew: bool) -> io::Result<()> {
    let Some(folder) = path.parent() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let draft =
        folder.join(format!("{DRAFT}{}-{}", std::process::id(), DRAFTS.fetch_add(1, Ordering::Relaxed)));
    let written = File::create(&draft)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| match anew {
            true => fs::rename(&draft, path),
            false => match fs::hard_link(&draft, path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => fs::remove_file(&draft),
            },
        });
    if let Err(error) = written {
        // The draft is only in the way; the first error is the one to tell.
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    sync_directory(folder)
}

/// Makes the names in a directory durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::storage(operation, e))?
}

#[async_trait]
impl Blobs for DirectoryBlobs {
    async fn put(&self, bytes: &[u8]) -> Result<BlobRef, Error> {
        let blob = BlobRef::of(bytes);
        let path = self.path(&blob)?;
        let bytes = self.sealed(&blob, bytes)?;
        blocking("keep a blob", move || keep(&path, &bytes).map_err(|e| failed("keep a blob", &path, &e)))
            .await?;
        Ok(blob)
    }

    async fn get(&self, blob: &BlobRef) -> Result<Option<Arc<[u8]>>, Error> {
        let path = self.path(blob)?;
        let (store, blob) = (self.clone(), blob.clone());
        blocking("read a blob", move || match fs::read(&path) {
            Ok(bytes) => verified(&blob, store.unsealed(&blob, bytes)?.into()).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read a blob", &path, &error)),
        })
        .await
    }
}

/// The blobs of `store` that were last put before `cutoff`. What a process left half done when it was
/// killed is tidied up; what else lies there is left alone.
fn older_than(store: &DirectoryBlobs, cutoff: SystemTime) -> io::Result<Vec<BlobRef>> {
    let mut found = Vec::new();
    for folder in fs::read_dir(&store.root)? {
        let folder = folder?.path();
        if !folder.is_dir() {
            continue;
        }
        let start = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for file in fs::read_dir(&folder)? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            let modified = file.metadata()?.modified()?;
            if let Some(blob) = store.label(&file.path(), format!("{start}{name}"))? {
                if modified < cutoff {
                    found.push(blob);
                }
            } else if start.len() == 2 && modified.elapsed().is_ok_and(|age| age > AT_WORK) {
                tidy(&file.path(), &name, modified < cutoff)?;
            }
        }
    }
    Ok(found)
}

/// Ends what a killed process had begun with a file of this name.
fn tidy(path: &Path, name: &str, old: bool) -> io::Result<()> {
    if name.starts_with(DRAFT) {
        return fs::remove_file(path);
    }
    match name.split_once('.') {
        // It was about to be removed. If it was put again meanwhile, it is wanted.
        Some((blob, ending)) if ending.starts_with(SWEPT) => {
            match old || path.with_file_name(blob).exists() {
                true => fs::remove_file(path),
                false => fs::rename(path, path.with_file_name(blob)),
            }
        }
        _ => Ok(()),
    }
}

/// A file is moved out of the way before its age is looked at again, so that a writer who puts
/// the same bytes meanwhile finds nothing there and writes them anew.
fn sweep(path: &Path, cutoff: SystemTime) -> io::Result<bool> {
    let aside = path.with_extension(format!("{SWEPT}{}", std::process::id()));
    if let Err(error) = fs::rename(path, &aside) {
        return if error.kind() == io::ErrorKind::NotFound { Ok(false) } else { Err(error) };
    }
    if fs::metadata(&aside)?.modified()? >= cutoff {
        fs::rename(&aside, path)?;
        return Ok(false);
    }
    fs::remove_file(&aside)?;
    Ok(true)
}

#[async_trait]
impl BlobSweep for DirectoryBlobs {
    fn project(&self) -> &str {
        #[cfg(feature = "encryption")]
        if let Some(seal) = &self.seal {
            return seal.project();
        }
        ""
    }

    async fn older_than(&self, cutoff_ms: u64) -> Result<Vec<BlobRef>, Error> {
        let store = self.clone();
        // A time beyond what the system can tell is later than any.
        let cutoff = UNIX_EPOCH.checked_add(Duration::from_millis(cutoff_ms.min(i64::MAX as u64 / 2)));
        let cutoff = cutoff.unwrap_or_else(SystemTime::now);
        blocking("list blobs", move || {
            older_than(&store, cutoff).map_err(|e| failed("list blobs", &store.root, &e))
        })
        .await
    }

    async fn sweep(&self, blob: &BlobRef, cutoff_ms: u64) -> Result<bool, Error> {
        let path = self.path(blob)?;
        let cutoff = UNIX_EPOCH.checked_add(Duration::from_millis(cutoff_ms.min(i64::MAX as u64 / 2)));
        let cutoff = cutoff.unwrap_or_else(SystemTime::now);
        blocking("remove a blob", move || {
            sweep(&path, cutoff).map_err(|e| failed("remove a blob", &path, &e))
        })
        .await
    }
}
