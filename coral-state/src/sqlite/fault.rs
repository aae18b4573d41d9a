//! SQLite's errors as Coral's.

use coral_core::{Error, ErrorKind};
use rusqlite::ErrorCode;

/// `error` of `operation`, classed and with what to do about it.
pub(crate) fn storage(operation: &'static str, error: &rusqlite::Error) -> Error {
    let code = error.sqlite_error_code();
    let transient = matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked));
    let help = match code {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another process holds the file; try again, or give `busy_timeout` more time"
        }
        Some(ErrorCode::DiskFull) => {
            "the disk is full: nothing of this was written, all before it is safe; free some space and resume"
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            "the file is damaged: restore it from a backup, and check the disk"
        }
        Some(ErrorCode::NotADatabase) => "the file is not a SQLite database; give the path of another",
        Some(ErrorCode::CannotOpen) => "check that the directory exists and that this user may write there",
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            "check that this user may write the file and its directory"
        }
        Some(ErrorCode::SystemIoFailure) => {
            "the disk reported an error; check it and the free space, then open the store again"
        }
        Some(ErrorCode::TooBig) => "keep large values in a blob store and their names in the journal",
        _ => "",
    };
    let error = Error::new(ErrorKind::Storage {
        operation: operation.to_owned(),
        problem: error.to_string(),
        transient,
    });
    if help.is_empty() { error } else { error.with_help(help) }
}

/// Whether the state of the file is unknown after this error of a commit, so that only opening it
/// anew tells what is there.
pub(super) fn leaves_doubt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure))
}
