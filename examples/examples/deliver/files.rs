//! Files that are there whole or not at all.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use coral_core::Error;

/// Writes a file beside its place and moves it there, so that nobody sees half of it.
pub fn write_whole(path: &Path, content: &str) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::storage(format!("writing `{}`", path.display()), error);
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let mut file = fs::File::create(&part).map_err(failed)?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&part, path).map_err(failed)
}

/// The text of a file that the user named.
pub fn read_named(what: &str, path: &Path) -> Result<String, Error> {
    fs::read_to_string(path)
        .map_err(|error| Error::storage(format!("reading the {what} `{}`", path.display()), error))
}
