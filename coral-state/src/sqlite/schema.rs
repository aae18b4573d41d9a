//! The tables, and how a file of an older release becomes one of this release.

#[cfg(feature = "postgres")]
use std::path::Path;
use std::time::Duration;

use coral_core::Error;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::fault::storage;
use super::{Durability, SqliteOptions};

/// `CORL`: marks a file as a store of Coral.
const APPLICATION_ID: i32 = 0x434f_524c;

/// What leads from each version to the next. Only ever appended to.
///
/// Chunks lie in the order of their commits, so that a commit of many runs writes few pages; the
/// index finds those of one run.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        run TEXT NOT NULL UNIQUE,
        epoch INTEGER NOT NULL,
        workflow TEXT NOT NULL,
        project TEXT NOT NULL,
        status TEXT NOT NULL,
        last_seq INTEGER NOT NULL,
        started_at_ms INTEGER NOT NULL,
        updated_at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX runs_by_status ON runs (status, run);
    CREATE INDEX runs_by_project ON runs (project, run);
    CREATE INDEX runs_by_workflow ON runs (workflow, run);
    CREATE TABLE chunks (
        id INTEGER PRIMARY KEY,
        run_id INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        data BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX chunks_by_run ON chunks (run_id, last_seq);
    CREATE TABLE blobs (
        id INTEGER PRIMARY KEY,
        scope TEXT NOT NULL,
        sha256 BLOB NOT NULL,
        data BLOB NOT NULL,
        UNIQUE (scope, sha256)
    ) STRICT;
    CREATE TABLE cache (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        value BLOB NOT NULL,
        until_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX cache_by_until ON cache (until_ms);
    CREATE TABLE data_keys (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        scope TEXT NOT NULL,
        master TEXT NOT NULL,
        wrapped BLOB
    ) STRICT;
    CREATE INDEX data_keys_by_scope ON data_keys (scope);
    CREATE TABLE tombstones (
        scope TEXT PRIMARY KEY,
        erased_at_ms INTEGER NOT NULL,
        keys INTEGER NOT NULL,
        master TEXT NOT NULL,
        signature BLOB NOT NULL
    ) STRICT;
", "
    -- 0 is long ago: what is there already has had its grace.
    ALTER TABLE blobs ADD COLUMN kept_at_ms INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE snapshots (
        run_id INTEGER PRIMARY KEY,
        last_seq INTEGER NOT NULL,
        data BLOB NOT NULL
    ) STRICT;
    CREATE TABLE run_index (
        id INTEGER PRIMARY KEY,
        run TEXT NOT NULL UNIQUE,
        project TEXT NOT NULL,
        workflow TEXT NOT NULL,
        status TEXT NOT NULL,
        phase TEXT NOT NULL,
        last_seq INTEGER NOT NULL,
        started_at_ms INTEGER NOT NULL,
        updated_at_ms INTEGER NOT NULL,
        cost INTEGER NOT NULL,
        summary BLOB NOT NULL
    ) STRICT;
    CREATE INDEX run_index_by_start ON run_index (started_at_ms, run, project, workflow, status, phase, cost);
    CREATE INDEX run_index_by_update ON run_index (updated_at_ms, run, project, workflow, status, phase, cost, started_at_ms);
    CREATE INDEX run_index_by_cost ON run_index (cost, run, project, workflow, status, phase, started_at_ms);
    CREATE INDEX run_index_by_project ON run_index (project, started_at_ms, run);
    CREATE INDEX run_index_by_status ON run_index (status, started_at_ms, run);
    CREATE TABLE run_terms (
        term TEXT NOT NULL,
        id INTEGER NOT NULL,
        PRIMARY KEY (term, id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX run_terms_by_run ON run_terms (id);
    CREATE VIRTUAL TABLE run_text USING fts5 (
        words, content = '', contentless_delete = 1, detail = none, prefix = '3'
    );
", "
    -- Words come as they are to be found: the tokenizer must not split or fold them any further.
    DROP TABLE run_text;
    CREATE VIRTUAL TABLE run_text USING fts5 (
        words, content = '', contentless_delete = 1, detail = none, prefix = '3', tokenize = 'ascii'
    );
    DELETE FROM run_index;
    DELETE FROM run_terms;
", "
    -- What is folded from a run is bound to its revision, so that nothing that was folded before an
    -- erasure is kept after it. Ids of removed runs are given again; revisions never are.
    ALTER TABLE runs ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE revisions (last INTEGER NOT NULL) STRICT;
    INSERT INTO revisions VALUES (0);
    -- Lines name agents at any depth since: they are folded again.
    DELETE FROM run_index;
    DELETE FROM run_terms;
    INSERT INTO run_text (run_text) VALUES ('delete-all');
"];

/// The connection of the writer, on a file brought up to this release.
pub(super) fn open_writer(options: &SqliteOptions) -> Result<Connection, Error> {
    let mut conn = connect(options, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    check_owner(&conn, options)?;
    let setup = || -> rusqlite::Result<()> {
        conn.pragma_update(None, "journal_mode", "WAL")?;
        let synchronous = match options.durability {
            Durability::Full => "FULL",
            Durability::Normal => "NORMAL",
        };
        conn.pragma_update(None, "synchronous", synchronous)?;
        // On macOS an ordinary fsync does not reach the platter.
        conn.pragma_update(None, "fullfsync", true)?;
        conn.pragma_update(None, "checkpoint_fullfsync", true)?;
        conn.pragma_update(None, "wal_autocheckpoint", 4_000)?;
        conn.pragma_update(None, "journal_size_limit", 64 << 20)?;
        // What was removed, be it a run or a destroyed key, must not lie on in a free page.
        conn.pragma_update(None, "secure_delete", true)?;
        if let Some(bytes) = options.max_bytes {
            let page: i64 = conn.pragma_query_value(None, "page_size", |row| row.get(0))?;
            let pages = i64::try_from(bytes).unwrap_or(i64::MAX) / page.max(1);
            conn.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
        }
        Ok(())
    };
    setup().map_err(|e| storage("set up the store", &e))?;
    migrate(&mut conn, options)?;
    let (sealed, filled): (bool, bool) = conn
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM data_keys),
             EXISTS (SELECT 1 FROM chunks) OR EXISTS (SELECT 1 FROM blobs)",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .map_err(|e| storage("open the store", &e))?;
    let refused = match options.keys {
        None if sealed => Error::invalid("store", "it is encrypted and no key was given")
            .with_help("open it with `SqliteOptions::keys`"),
        Some(_) if filled && !sealed => {
            Error::invalid("store", "what it holds is readable, and keys would only seal what is new")
                .with_help("open it without keys, make an `encrypted_copy`, and open that")
        }
        _ => return Ok(conn),
    };
    Err(refused.at(options.path.display().to_string()))
}

/// A new store in a new file, with nothing in it.
#[cfg(feature = "postgres")]
pub(crate) fn blank(path: &Path) -> Result<Connection, Error> {
    let conn = open_writer(&SqliteOptions::at(path))?;
    // What is written at once and synced at the end needs no log.
    conn.pragma_update(None, "journal_mode", "DELETE").map_err(|e| storage("set up the store", &e))?;
    conn.pragma_update(None, "synchronous", "OFF").map_err(|e| storage("set up the store", &e))?;
    Ok(conn)
}

/// Brings the store in a file up to this release, or refuses the file.
#[cfg(feature = "postgres")]
pub(crate) fn check(path: &Path) -> Result<Connection, Error> {
    let options = SqliteOptions::at(path);
    let mut conn = connect(&options, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    check_owner(&conn, &options)?;
    migrate(&mut conn, &options)?;
    Ok(conn)
}

/// A connection that only reads.
pub(super) fn open_reader(options: &SqliteOptions) -> Result<Connection, Error> {
    let conn = connect(options, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    conn.pragma_update(None, "query_only", true).map_err(|e| storage("open the store", &e))?;
    Ok(conn)
}

fn connect(options: &SqliteOptions, mode: OpenFlags) -> Result<Connection, Error> {
    let open = || -> rusqlite::Result<Connection> {
        let conn = Connection::open_with_flags(&options.path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        let timeout =
            if options.busy_timeout.is_zero() { Duration::from_millis(1) } else { options.busy_timeout };
        conn.busy_timeout(timeout)?;
        conn.set_prepared_statement_cache_capacity(64);
        conn.pragma_update(None, "mmap_size", 256_i64 << 20)?;
        conn.pragma_update(None, "temp_store", "MEMORY")?;
        Ok(conn)
    };
    open().map_err(|e| storage("open the store", &e).at(options.path.display().to_string()))
}

fn version(conn: &Connection) -> rusqlite::Result<(i32, i32)> {
    let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    Ok((pragma("application_id")?, pragma("user_version")?))
}

/// Refuses another program's database before anything is written to it.
fn check_owner(conn: &Connection, options: &SqliteOptions) -> Result<(), Error> {
    let look = || -> rusqlite::Result<(i32, i64)> {
        let tables = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((version(conn)?.0, tables))
    };
    let at = || options.path.display().to_string();
    let (owner, tables) = look().map_err(|e| storage("open the store", &e).at(at()))?;
    if owner == APPLICATION_ID || (owner == 0 && tables == 0) {
        return Ok(());
    }
    Err(Error::invalid("store", "the file is a SQLite database of another program")
        .with_help("give the path of a file that does not exist yet")
        .at(at()))
}

fn migrate(conn: &mut Connection, options: &SqliteOptions) -> Result<(), Error> {
    let failed = |e: rusqlite::Error| storage("bring the store up to date", &e);
    let current = i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX);
    if version(conn).map_err(failed)? == (APPLICATION_ID, current) {
        return Ok(());
    }
    // Another process may open the same file now: who has the lock looks again.
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let (_, found) = version(&tx).map_err(failed)?;
    if found > current {
        return Err(Error::invalid(
            "store",
            format!("its format is version {found}, this release knows up to {current}"),
        )
        .with_help("open it with the release that wrote it, or a newer one")
        .at(options.path.display().to_string()));
    }
    for step in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        tx.execute_batch(step).map_err(failed)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    tx.pragma_update(None, "user_version", current).map_err(failed)?;
    tx.commit().map_err(failed)
}
