//! A directory worked on through handles alone.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cap_fs_ext::{DirExt, FollowSymlinks, MetadataExt, OpenOptionsFollowExt, OpenOptionsSyncExt};
use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, Metadata, OpenOptions};
use coral_core::Error;

/// The largest file that is read or written.
pub(super) const MAX_FILE: u64 = 8 * 1_024 * 1_024;

/// Marks a file that is being written; such names are not shown and can't be asked for.
const TEMP_SUFFIX: &str = ".coral-tmp";

pub(super) struct Disk {
    root: Dir,
    /// One change at a time: an edit reads and writes, and two writes to one file share a
    /// temporary name.
    changes: Mutex<()>,
}

/// What a directory holds, one level.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) size: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Link,
    Other,
}

impl Kind {
    pub(super) fn of(meta: &Metadata) -> Self {
        let kind = meta.file_type();
        if kind.is_symlink() {
            Kind::Link
        } else if kind.is_dir() {
            Kind::Directory
        } else if kind.is_file() {
            Kind::File
        } else {
            Kind::Other
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Directory => "directory",
            Kind::Link => "link",
            Kind::Other => "other",
        }
    }
}

type Done<T> = Result<T, String>;

fn explain(path: &str, what: &str, error: &io::Error) -> String {
    let shown = if path.is_empty() { "." } else { path };
    match error.kind() {
        io::ErrorKind::NotFound => format!("`{shown}` does not exist"),
        io::ErrorKind::AlreadyExists => format!("`{shown}` exists already"),
        io::ErrorKind::PermissionDenied => format!("the system does not permit {what} `{shown}`"),
        io::ErrorKind::NotADirectory => format!("a part of `{shown}` is not a directory"),
        io::ErrorKind::IsADirectory => format!("`{shown}` is a directory"),
        io::ErrorKind::StorageFull => format!("there is no space left for `{shown}`"),
        _ => format!("{what} `{shown}` failed: {error}"),
    }
}

impl Disk {
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let root = Dir::open_ambient_dir(root, ambient_authority()).map_err(|error| {
            Error::storage("opening the project's root directory", error)
                .at(root.display().to_string())
                .with_help("create the directory first")
        })?;
        Ok(Disk { root, changes: Mutex::new(()) })
    }

    /// Opens a directory part by part; no part may be a link.
    pub(super) fn dir(&self, path: &str) -> Done<Dir> {
        let mut dir = self.root.try_clone().map_err(|e| explain(path, "opening", &e))?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            dir = open_part(&dir, part, path)?;
        }
        Ok(dir)
    }

    fn dir_made(&self, path: &str) -> Done<Dir> {
        let mut dir = self.root.try_clone().map_err(|e| explain(path, "opening", &e))?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            match dir.create_dir(part) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(explain(path, "creating", &error)),
            }
            dir = open_part(&dir, part, path)?;
        }
        Ok(dir)
    }

    /// The directory that holds `path`, and its last part.
    fn parent<'p>(&self, path: &'p str) -> Done<(Dir, &'p str)> {
        let (parent, name) = split(path)?;
        Ok((self.dir(parent)?, name))
    }

    pub(super) fn metadata(&self, path: &str) -> Done<Metadata> {
        let found = if path.is_empty() {
            self.root.dir_metadata()
        } else {
            let (dir, name) = self.parent(path)?;
            dir.symlink_metadata(name)
        };
        found.map_err(|e| explain(path, "looking at", &e))
    }

    /// A file's bytes, its size bounded.
    pub(super) fn read(&self, path: &str) -> Done<Vec<u8>> {
        let (dir, name) = self.parent(path)?;
        let (file, meta) = open_file(&dir, name, path)?;
        if meta.len() > MAX_FILE {
            return Err(format!("`{path}` has {} bytes; files up to {MAX_FILE} are read", meta.len()));
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(|e| explain(path, "reading", &e))?;
        Ok(bytes)
    }

    /// A file's text.
    pub(super) fn read_text(&self, path: &str) -> Done<String> {
        String::from_utf8(self.read(path)?).map_err(|_| format!("`{path}` is not text in UTF-8"))
    }

    /// Puts `content` in the place of a file at once: readers see the old or the new, never a
    /// half. Directories on the way are made.
    pub(super) fn write(&self, path: &str, content: &[u8]) -> Done<()> {
        let _one = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let (parent, name) = split(path)?;
        let dir = self.dir_made(parent)?;
        replace(&dir, name, path, content)
    }

    /// Replaces a file's text by what `edit` makes of it.
    pub(super) fn edit(&self, path: &str, edit: impl FnOnce(&str) -> Done<String>) -> Done<()> {
        let _one = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let edited = edit(&self.read_text(path)?)?;
        let (dir, name) = self.parent(path)?;
        replace(&dir, name, path, edited.as_bytes())
    }

    pub(super) fn make_dir(&self, path: &str) -> Done<()> {
        let _one = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.dir_made(path).map(drop)
    }

    /// Moves a file or directory to a place where nothing is yet.
    pub(super) fn rename(&self, from: &str, to: &str) -> Done<()> {
        let _one = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let (from_dir, from_name) = self.parent(from)?;
        let meta = from_dir.symlink_metadata(from_name).map_err(|e| explain(from, "moving", &e))?;
        plain(from, &meta, true)?;
        let (to_parent, to_name) = split(to)?;
        let to_dir = self.dir_made(to_parent)?;
        match to_dir.symlink_metadata(to_name) {
            Ok(_) => Err(format!("`{to}` exists already")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                from_dir.rename(from_name, &to_dir, to_name).map_err(|e| explain(from, "moving", &e))
            }
            Err(error) => Err(explain(to, "looking at", &error)),
        }
    }

    /// What a directory holds, by name.
    pub(super) fn entries(&self, path: &str, dir: &Dir, max: usize) -> Done<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in dir.entries().map_err(|e| explain(path, "listing", &e))? {
            let entry = entry.map_err(|e| explain(path, "listing", &e))?;
            // A name that is not UTF-8 can't be said to a model, nor asked for.
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.ends_with(TEMP_SUFFIX) {
                continue;
            }
            let Ok(meta) = dir.symlink_metadata(&name) else { continue };
            entries.push(Entry { name, kind: Kind::of(&meta), size: meta.len() });
            if entries.len() >= max {
                break;
            }
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }
}

fn split(path: &str) -> Done<(&str, &str)> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name.is_empty() {
        return Err("the project's root is a directory, not a file".to_owned());
    }
    if name.ends_with(TEMP_SUFFIX) {
        return Err(format!("names that end in `{TEMP_SUFFIX}` are kept for files being written"));
    }
    Ok((parent, name))
}

pub(super) fn open_part(dir: &Dir, part: &str, path: &str) -> Done<Dir> {
    dir.open_dir_nofollow(part).map_err(|error| match dir.symlink_metadata(part) {
        Ok(meta) if meta.file_type().is_symlink() => link(path, part),
        _ => explain(path, "opening", &error),
    })
}

fn link(path: &str, part: &str) -> String {
    format!("`{part}` in `{path}` is a symbolic link, and links are not followed; name the real place")
}

fn open_file(dir: &Dir, name: &str, path: &str) -> Done<(File, Metadata)> {
    let mut options = OpenOptions::new();
    // Without `nonblock` opening a pipe would wait for a writer for ever.
    options.read(true).follow(FollowSymlinks::No).nonblock(true);
    let file = dir.open_with(name, &options).map_err(|error| match dir.symlink_metadata(name) {
        Ok(meta) if meta.file_type().is_symlink() => link(path, name),
        _ => explain(path, "opening", &error),
    })?;
    let meta = file.metadata().map_err(|e| explain(path, "looking at", &e))?;
    plain(path, &meta, false)?;
    Ok((file, meta))
}

/// Refuses what is not a plain file (or directory), and a file that has a second name.
fn plain(path: &str, meta: &Metadata, directories: bool) -> Done<()> {
    match Kind::of(meta) {
        Kind::File if meta.nlink() > 1 => Err(format!(
            "`{path}` has {} hard links, and one of them may lie outside of the project",
            meta.nlink()
        )),
        Kind::File => Ok(()),
        Kind::Directory if directories => Ok(()),
        Kind::Directory => Err(format!("`{path}` is a directory")),
        Kind::Link => Err(link(path, path)),
        Kind::Other => Err(format!("`{path}` is neither a file nor a directory")),
    }
}

fn replace(dir: &Dir, name: &str, path: &str, content: &[u8]) -> Done<()> {
    if u64::try_from(content.len()).unwrap_or(u64::MAX) > MAX_FILE {
        return Err(format!("{} bytes are too many; files up to {MAX_FILE} are written", content.len()));
    }
    let permissions = match dir.symlink_metadata(name) {
        Ok(meta) => {
            plain(path, &meta, false)?;
            Some(meta.permissions())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(explain(path, "looking at", &error)),
    };
    // The name is fixed, so that what a killed process leaves is taken over by the next write.
    let temp = format!(".{name}{TEMP_SUFFIX}");
    match dir.remove_file_or_symlink(&temp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(explain(path, "writing", &error));
        }
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).follow(FollowSymlinks::No);
    let written = (|| {
        let mut file = dir.open_with(&temp, &options)?;
        file.write_all(content)?;
        if let Some(permissions) = permissions {
            file.set_permissions(permissions)?;
        }
        file.sync_all()?;
        dir.rename(&temp, dir, name)?;
        // The new name is safe only when its directory is.
        dir.open(".")?.sync_all()
    })();
    written.map_err(|error: io::Error| {
        let _ = dir.remove_file_or_symlink(&temp);
        explain(path, "writing", &error)
    })
}
