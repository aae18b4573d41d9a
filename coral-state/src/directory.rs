//! Blobs as files of a directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use coral_core::{BlobRef, Blobs, Error};

use crate::blob_name::{self, verified};
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
#[derive(Clone, Debug)]
pub struct DirectoryBlobs {
    root: Arc<Path>,
}

static DRAFTS: AtomicU64 = AtomicU64::new(0);

impl DirectoryBlobs {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if it can't be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(|e| failed("open the blob directory", &root, &e))?;
        Ok(DirectoryBlobs { root: root.into() })
    }

    fn path(&self, blob: &BlobRef) -> Result<PathBuf, Error> {
        blob_name::key(blob)?;
        let (folder, file) = blob.sha256.split_at(2);
        Ok(self.root.join(folder).join(file))
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
    let draft =
        folder.join(format!("draft-{}-{}", std::process::id(), DRAFTS.fetch_add(1, Ordering::Relaxed)));
    let written = File::create(&draft)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&draft, path));
    if let Err(error) = written {
        // The draft is only in the way; the first error is the one to tell.
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    sync_directory(folder)?;
    match folder.parent() {
        Some(root) if made => sync_directory(root),
        _ => Ok(()),
    }
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
        let bytes: Box<[u8]> = bytes.into();
        blocking("keep a blob", move || keep(&path, &bytes).map_err(|e| failed("keep a blob", &path, &e)))
            .await?;
        Ok(blob)
    }

    async fn get(&self, blob: &BlobRef) -> Result<Option<Arc<[u8]>>, Error> {
        let path = self.path(blob)?;
        let blob = blob.clone();
        blocking("read a blob", move || match fs::read(&path) {
            Ok(bytes) => verified(&blob, bytes.into()).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read a blob", &path, &error)),
        })
        .await
    }
}

/// The blobs under `root` that were last put before `cutoff`. What else lies there is left alone.
fn older_than(root: &Path, cutoff: SystemTime) -> io::Result<Vec<BlobRef>> {
    let mut found = Vec::new();
    for folder in fs::read_dir(root)? {
        let folder = folder?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in fs::read_dir(&folder)? {
            let file = file?;
            let name = [folder.file_name().unwrap_or_default(), &file.file_name()]
                .map(|part| part.to_string_lossy().into_owned());
            let data = file.metadata()?;
            let blob = BlobRef { sha256: name.concat(), bytes: data.len() };
            if blob_name::key(&blob).is_ok() && data.modified()? < cutoff {
                found.push(blob);
            }
        }
    }
    Ok(found)
}

/// A file is moved out of the way before its age is looked at again, so that a writer who puts
/// the same bytes meanwhile finds nothing there and writes them anew.
fn sweep(path: &Path, cutoff: SystemTime) -> io::Result<bool> {
    let aside = path.with_extension(format!("swept-{}", std::process::id()));
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
        ""
    }

    async fn older_than(&self, cutoff_ms: u64) -> Result<Vec<BlobRef>, Error> {
        let root = Arc::clone(&self.root);
        let cutoff = UNIX_EPOCH + Duration::from_millis(cutoff_ms);
        blocking("list blobs", move || older_than(&root, cutoff).map_err(|e| failed("list blobs", &root, &e)))
            .await
    }

    async fn sweep(&self, blob: &BlobRef, cutoff_ms: u64) -> Result<bool, Error> {
        let path = self.path(blob)?;
        let cutoff = UNIX_EPOCH + Duration::from_millis(cutoff_ms);
        blocking("remove a blob", move || {
            sweep(&path, cutoff).map_err(|e| failed("remove a blob", &path, &e))
        })
        .await
    }
}
