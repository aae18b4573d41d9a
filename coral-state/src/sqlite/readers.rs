//! Connections that only read, so that no read waits for the writer.

use std::sync::{Mutex, PoisonError};

use coral_core::Error;
use rusqlite::Connection;

use super::SqliteOptions;
use super::fault::storage;
use super::schema::open_reader;

/// Connections kept open while nobody uses them.
const IDLE: usize = 4;

pub(super) struct Readers {
    options: SqliteOptions,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(options: SqliteOptions) -> Self {
        Readers { options, idle: Mutex::default() }
    }

    /// Runs `query` on a connection of its own. Blocks the thread.
    pub(super) fn with<T>(
        &self,
        operation: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let conn = match idle {
            Some(conn) => conn,
            None => open_reader(&self.options)?,
        };
        let result = query(&conn).map_err(|e| storage(operation, &e));
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if result.is_ok() && idle.len() < IDLE {
            idle.push(conn);
        }
        result
    }
}
