//! The index of runs in a SQLite file: a fold over the journal that can be thrown away and made
//! again.
//!
//! Conditions on a single value are columns of the table and of the indexes that it is sorted by;
//! agents, tags and words are lists of runs. A query intersects the lists that it needs. If little
//! is left, those runs are fetched and sorted; if much is left, runs are walked in the order asked
//! for until the page is full.

use std::sync::Arc;

use coral_core::{Error, RunHead, RunStatus, Seq};
use rusqlite::types::Value as Column;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use super::{SqliteJournal, SqliteStore, keys, unsealed};
use crate::index::{Cursor, Refreshed, RunPage, RunQuery, RunSummary, SortBy};
use crate::lines::{Line, Writing, summary_of};
use crate::status::{status_name, status_of};
use crate::vault::{Since, Vault, about_summary};

/// Runs folded between two writes.
const BATCH: usize = 256;
/// Runs that are fetched one by one rather than met on a walk.
const FEW: usize = 4_000;
/// What is counted beyond the page.
const COUNTED: usize = 1_000;

/// An index of all runs of a [`SqliteStore`], kept in its file.
///
/// [`refresh`](SqliteIndex::refresh) folds in what is new; [`query`](SqliteIndex::query) answers
/// from the file, whichever process folded. [`RunPage::total`] counts up to a thousand.
///
/// In an encrypted store the line of a run is sealed by its project's key. Phases, agents, tags and
/// words are kept as keyed hashes, which show that two runs share one and nothing else, so words
/// match only whole; erasing a project removes its lines. What each run cost stays readable, like
/// its times.
///
/// ```
/// use coral_state::{RunQuery, SqliteStore};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("coral.db");
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let index = SqliteStore::open(path)?.index();
/// index.refresh().await?;
/// assert_eq!(index.query(&RunQuery::default()).await?.total, 0);
/// # Ok::<(), coral_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct SqliteIndex(SqliteStore);

/// Takes a run out of the index.
pub(super) fn forget_run(conn: &Connection, run: &str) -> rusqlite::Result<()> {
    let id: Option<i64> = conn
        .prepare_cached("SELECT id FROM run_index WHERE run = ?1")?
        .query_row([run], |row| row.get(0))
        .optional()?;
    id.map_or(Ok(()), |id| forget(conn, id))
}

/// Takes all runs of a project out of the index, and every trace of their words.
pub(super) fn forget_project(conn: &Connection, project: &str) -> rusqlite::Result<()> {
    let ids: Vec<i64> = conn
        .prepare_cached("SELECT id FROM run_index WHERE project = ?1")?
        .query_map([project], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for id in &ids {
        forget(conn, *id)?;
    }
    if !ids.is_empty() {
        // Deleted words lie on in older segments until these are merged.
        conn.execute("INSERT INTO run_text (run_text) VALUES ('optimize')", [])?;
    }
    Ok(())
}

fn forget(conn: &Connection, id: i64) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM run_index WHERE id = ?1",
        "DELETE FROM run_terms WHERE id = ?1",
        "DELETE FROM run_text WHERE rowid = ?1",
    ] {
        conn.prepare_cached(sql)?.execute([id])?;
    }
    Ok(())
}

impl SqliteIndex {
    pub(super) fn new(store: SqliteStore) -> Self {
        SqliteIndex(store)
    }

    async fn writing(&self) -> Result<Writing, Error> {
        match &self.0.0.keys {
            None => Ok(Writing::Plain),
            Some(vault) => Writing::hashed(&*keys::first_of(&self.0, vault, "").await?),
        }
    }

    /// Folds in what the journal has gained.
    ///
    /// # Errors
    /// Those of the store that are not one run's alone; what was folded before stays.
    pub async fn refresh(&self) -> Result<Refreshed, Error> {
        let writing = self.writing().await?;
        let stale: Vec<(i64, RunHead)> = self
            .0
            .read("read the index", |conn| {
                conn.prepare_cached(
                    "SELECT r.workflow, r.project, r.status, r.last_seq, r.started_at_ms, r.updated_at_ms, r.run,
                     r.revision, r.id
                     FROM runs r LEFT JOIN run_index i ON i.id = r.id
                     WHERE r.last_seq > 0 AND instr(r.run, ':') = 0
                     AND (i.id IS NULL OR i.last_seq <> r.last_seq OR i.run <> r.run)",
                )?
                .query_map([], |row| Ok((row.get(8)?, super::writer::head_of(row)?)))?
                .collect()
            })
            .await?;
        let journal = self.0.journal();
        let mut refreshed = Refreshed::default();
        for batch in stale.chunks(BATCH) {
            let mut lines = Vec::with_capacity(batch.len());
            for (id, head) in batch {
                match self.line(&journal, head, &writing).await {
                    Ok(line) => lines.push((*id, line)),
                    Err(error) => refreshed.skip(&head.run, error)?,
                }
            }
            refreshed.changed += self
                .0
                .write("write the index", move |conn| {
                    let kept = lines.iter().map(|(id, line)| keep(conn, *id, line).map(usize::from));
                    kept.sum::<rusqlite::Result<usize>>()
                })
                .await?;
        }
        Ok(refreshed)
    }

    async fn line(&self, journal: &SqliteJournal, head: &RunHead, writing: &Writing) -> Result<Line, Error> {
        let mut line = Line::of(journal, &self.0, head, writing).await?;
        if !line.summary.is_empty() {
            line.summary = self.0.sealed(&head.project, &about_summary(&head.run), line.summary).await?;
        }
        Ok(line)
    }

    /// Throws the index away and folds it again.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn rebuild(&self) -> Result<Refreshed, Error> {
        self.0
            .write("write the index", |conn| {
                conn.execute("DELETE FROM run_index", [])?;
                conn.execute("DELETE FROM run_terms", [])?;
                conn.execute("INSERT INTO run_text (run_text) VALUES ('delete-all')", [])?;
                Ok(())
            })
            .await?;
        self.refresh().await
    }

    /// One page of the runs that match, as of the last refresh.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn query(&self, query: &RunQuery) -> Result<RunPage, Error> {
        let writing = self.writing().await?;
        let (query, vault) = (query.clone(), self.0.0.keys.clone());
        self.0
            .read("query the index", move |conn| {
                let vault = vault.as_deref().map(Vault::since);
                let found = find(conn, &query, &writing)?;
                let mut page = RunPage { total: found.total, exact: found.exact, ..Default::default() };
                let more = found.runs.len() > query.limit;
                let last = found.runs.iter().take(query.limit).next_back().filter(|_| more);
                page.next = last.map(|(key, _, run)| Cursor { key: key.cast_unsigned(), run: run.clone() });
                for (_, id, _) in found.runs.iter().take(query.limit) {
                    match load(conn, vault, *id)? {
                        Ok(summary) => page.runs.push(Arc::new(summary)),
                        Err(error) => return Ok(Err(error)),
                    }
                }
                Ok(Ok(page))
            })
            .await?
    }
}

/// Keeps a line, unless the run is gone or became something else since it was folded.
fn keep(conn: &Connection, id: i64, line: &Line) -> rusqlite::Result<bool> {
    let head = &line.head;
    let same = conn
        .prepare_cached("SELECT 1 FROM runs WHERE id = ?1 AND run = ?2 AND revision = ?3")?
        .exists(params![id, head.run, head.revision.cast_signed()])?;
    if !same {
        return Ok(false);
    }
    forget(conn, id)?;
    conn.prepare_cached(
        "INSERT INTO run_index (id, run, project, workflow, status, phase, last_seq, started_at_ms,
         updated_at_ms, cost, summary) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?
    .execute(params![
        id,
        head.run,
        head.project,
        head.workflow,
        status_name(head.status),
        line.phase,
        head.last_seq.cast_signed(),
        head.started_at_ms.cast_signed(),
        head.updated_at_ms.cast_signed(),
        line.cost,
        &line.summary[..],
    ])?;
    let mut insert = conn.prepare_cached("INSERT INTO run_terms (term, id) VALUES (?1, ?2)")?;
    for term in &line.terms {
        insert.execute(params![term, id])?;
    }
    conn.prepare_cached("INSERT INTO run_text (rowid, words) VALUES (?1, ?2)")?
        .execute(params![id, line.words])?;
    Ok(true)
}

#[derive(Default)]
struct Found {
    /// Key, id and name of the page's runs, and of one more if there is one.
    runs: Vec<(i64, i64, String)>,
    total: usize,
    exact: bool,
}

fn column(sort: SortBy) -> &'static str {
    match sort {
        SortBy::Started => "started_at_ms",
        SortBy::Updated => "updated_at_ms",
        SortBy::Cost => "cost",
        SortBy::Run => "0",
    }
}

fn find(conn: &Connection, query: &RunQuery, writing: &Writing) -> rusqlite::Result<Found> {
    let mut conditions = vec!["1".to_owned()];
    let mut values: Vec<Column> = Vec::new();
    let mut is = |condition: &str, value: Option<Column>| {
        if let Some(value) = value {
            values.push(value);
            conditions.push(format!("{condition} ?{}", values.len()));
        }
    };
    let number = |value: u64| Column::from(i64::try_from(value).unwrap_or(i64::MAX));
    is("project =", query.project.clone().map(Column::from));
    is("workflow =", query.workflow.clone().map(Column::from));
    is("status =", query.status.map(|status| status_name(status).into()));
    is("phase =", query.phase.as_deref().map(|phase| writing.phase(phase).into()));
    is("started_at_ms >=", query.started_ms.as_ref().map(|time| number(time.start)));
    is("started_at_ms <", query.started_ms.as_ref().map(|time| number(time.end)));
    is("cost >=", query.min_cost.map(|cost| number(cost.as_pico())));
    is("cost <=", query.max_cost.map(|cost| number(cost.as_pico())));

    let agent = query.agent.as_deref().map(|agent| writing.term("agent", agent));
    let tag = query.tag.as_deref().map(|tag| writing.term("tag", tag));
    let mut listed: Option<Vec<i64>> = None;
    for term in [agent, tag].into_iter().flatten() {
        let ids = ids(conn, "SELECT id FROM run_terms WHERE term = ?1 ORDER BY id", &term)?;
        listed = Some(both(listed, ids));
    }
    let search = query.text.as_deref().map(|text| writing.search(text)).filter(|words| !words.is_empty());
    if let Some(words) = search {
        let search = fts(&words);
        let ids = ids(conn, "SELECT rowid FROM run_text WHERE run_text MATCH ?1 ORDER BY rowid", &search)?;
        listed = Some(both(listed, ids));
    }

    let key = column(query.sort);
    let way = if query.descending { "DESC" } else { "ASC" };
    let order = if query.sort == SortBy::Run { String::new() } else { format!("{key} {way}, ") };
    let few = listed.as_ref().is_some_and(|ids| ids.len() <= FEW);
    if let Some(ids) = listed.as_ref().filter(|_| few) {
        values.push(serde_json::to_string(ids).unwrap_or_default().into());
        conditions.push(format!("id IN (SELECT value FROM json_each(?{}))", values.len()));
    }
    let among = listed.filter(|_| !few).map(|ids| Bits::of(&ids));
    let select = |after: bool| {
        let after = match (&query.after, after) {
            (Some(_), true) => {
                let than = if query.descending { "<" } else { ">" };
                format!(" AND ({key}, run) {than} (?{}, ?{})", values.len() + 1, values.len() + 2)
            }
            _ => String::new(),
        };
        format!(
            "SELECT {key}, id, run FROM run_index WHERE {}{after} ORDER BY {order}run {way}",
            conditions.join(" AND ")
        )
    };
    let mut found = Found::default();
    let paged = query.after.is_some();
    // The page, and what it takes to say how many there are: one walk where that is the same.
    let page = query.limit.saturating_add(1);
    let enough = if paged { page } else { page.max(COUNTED) };
    let mut bound = values.clone();
    bound.extend(query.after.iter().flat_map(|after| [number(after.key), after.run.clone().into()]));
    let mut seen = 0;
    found.exact = walk(conn, &select(true), bound, among.as_ref(), enough, |row| {
        seen += 1;
        if found.runs.len() <= query.limit {
            found.runs.push((row.get(0)?, row.get(1)?, row.get(2)?));
        }
        Ok(())
    })?;
    found.total = seen;
    if paged {
        found.total = 0;
        let total = &mut found.total;
        found.exact = walk(conn, &select(false), values, among.as_ref(), COUNTED, |_| {
            *total += 1;
            Ok(())
        })?;
    }
    Ok(found)
}

/// Calls `meet` for the rows of `sql` that are among `among`, `enough` of them at the most; whether
/// those are all.
fn walk(
    conn: &Connection,
    sql: &str,
    values: Vec<Column>,
    among: Option<&Bits>,
    enough: usize,
    mut meet: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<bool> {
    let mut select = conn.prepare_cached(sql)?;
    let mut rows = select.query(params_from_iter(values))?;
    let mut met = 0;
    while let Some(row) = rows.next()? {
        if among.is_some_and(|among| !row.get(1).is_ok_and(|id| among.hold(id))) {
            continue;
        }
        if met == enough {
            return Ok(false);
        }
        met += 1;
        meet(row)?;
    }
    Ok(true)
}

/// What FTS5 is asked for.
fn fts(words: &[(String, bool)]) -> String {
    let asked = words.iter().map(|(word, begins)| format!("\"{word}\"{}", if *begins { "*" } else { "" }));
    asked.collect::<Vec<_>>().join(" AND ")
}

fn ids(conn: &Connection, sql: &str, value: &str) -> rusqlite::Result<Vec<i64>> {
    conn.prepare_cached(sql)?.query_map([value], |row| row.get(0))?.collect()
}

/// What is in both of two ascending lists.
fn both(one: Option<Vec<i64>>, two: Vec<i64>) -> Vec<i64> {
    let Some(one) = one else { return two };
    let mut two = two.into_iter().peekable();
    one.into_iter()
        .filter(|id| {
            while two.next_if(|other| other < id).is_some() {}
            two.peek() == Some(id)
        })
        .collect()
}

/// Ids as one bit each.
struct Bits(Vec<u64>);

impl Bits {
    fn of(ids: &[i64]) -> Self {
        let place = |id: i64| usize::try_from(id).unwrap_or(0);
        let mut bits = vec![0; ids.last().map_or(0, |last| place(*last) / 64 + 1)];
        for id in ids.iter().map(|id| place(*id)) {
            if let Some(word) = bits.get_mut(id / 64) {
                *word |= 1 << (id % 64);
            }
        }
        Bits(bits)
    }

    fn hold(&self, id: i64) -> bool {
        let id = usize::try_from(id).unwrap_or(usize::MAX);
        self.0.get(id / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }
}

fn load(conn: &Connection, vault: Option<Since<'_>>, id: i64) -> rusqlite::Result<Result<RunSummary, Error>> {
    conn.prepare_cached(
        "SELECT i.run, i.project, i.workflow, i.status, i.last_seq, i.started_at_ms, i.updated_at_ms,
         coalesce(r.revision, 0), i.summary FROM run_index i LEFT JOIN runs r ON r.id = i.id WHERE i.id = ?1",
    )?
    .query_row([id], |row| {
        let number = |place| row.get::<_, i64>(place).map(i64::cast_unsigned);
        let status: String = row.get(3)?;
        let head = RunHead {
            run: row.get(0)?,
            project: row.get(1)?,
            workflow: row.get(2)?,
            status: status_of(&status).unwrap_or(RunStatus::Running),
            last_seq: number(4)? as Seq,
            started_at_ms: number(5)?,
            updated_at_ms: number(6)?,
            revision: number(7)?,
        };
        let summary = row.get_ref(8)?.as_blob()?;
        let plain = match summary {
            [] => Ok(Arc::default()),
            sealed => unsealed(vault, conn, sealed, &about_summary(&head.run)),
        };
        Ok(summary_of(head, plain))
    })
}
