//! The index of runs on a server: a fold over the journal that can be thrown away and made again.

use std::sync::Arc;

use coral_core::{Error, RunHead};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::journal::head_of;
use super::{PostgresJournal, PostgresStore, get, signed};
use crate::index::{Cursor, Refreshed, RunPage, RunQuery, RunSummary, SortBy};
use crate::lines::{Line, Writing, summary_of};
use crate::status::status_name;
use crate::vault::about_summary;

/// What is counted beyond the page.
const COUNTED: i64 = 1_000;

/// An index of all runs of a [`PostgresStore`], kept in its schema.
///
/// It is that of [`SqliteIndex`](crate::SqliteIndex), with the same meaning of words and the same
/// reserve in an encrypted store.
#[derive(Clone, Debug)]
pub struct PostgresIndex(PostgresStore);

/// Conditions of a query, and their values in order.
#[derive(Default)]
struct Conditions {
    sql: String,
    values: Vec<Box<dyn ToSql + Sync + Send>>,
}

impl Conditions {
    /// Adds `condition`, in which `$` stands for the value, if there is one.
    fn is<T: ToSql + Sync + Send + 'static>(&mut self, condition: &str, value: Option<T>) {
        let Some(value) = value else { return };
        self.values.push(Box::new(value));
        let place = format!("${}", self.values.len());
        self.sql.push_str(" AND ");
        self.sql.push_str(&condition.replace('$', &place));
    }

    fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect()
    }
}

fn column(sort: SortBy) -> &'static str {
    match sort {
        SortBy::Started => "started_at_ms",
        SortBy::Updated => "updated_at_ms",
        SortBy::Cost => "cost",
        SortBy::Run => "0::bigint",
    }
}

fn conditions(query: &RunQuery, writing: &Writing) -> Conditions {
    let mut all = Conditions::default();
    all.is("project = $", query.project.clone());
    all.is("workflow = $", query.workflow.clone());
    all.is("status = $", query.status.map(status_name));
    all.is("phase = $", query.phase.as_deref().map(|phase| writing.phase(phase)));
    all.is("started_at_ms >= $", query.started_ms.as_ref().map(|time| signed(time.start)));
    all.is("started_at_ms < $", query.started_ms.as_ref().map(|time| signed(time.end)));
    all.is("cost >= $", query.min_cost.map(|cost| signed(cost.as_pico())));
    all.is("cost <= $", query.max_cost.map(|cost| signed(cost.as_pico())));
    let agent = query.agent.as_deref().map(|agent| writing.term("agent", agent));
    let tag = query.tag.as_deref().map(|tag| writing.term("tag", tag));
    let terms: Vec<String> = agent.into_iter().chain(tag).collect();
    all.is("terms @> $::text[]", Some(terms).filter(|terms| !terms.is_empty()));
    let words = query.text.as_deref().map(|text| writing.search(text)).unwrap_or_default();
    let asked = words.iter().map(|(word, begins)| format!("'{word}'{}", if *begins { ":*" } else { "" }));
    let search = asked.collect::<Vec<_>>().join(" & ");
    all.is("words @@ $::text::tsquery", Some(search).filter(|search| !search.is_empty()));
    all
}

impl PostgresIndex {
    pub(super) fn new(store: PostgresStore) -> Self {
        PostgresIndex(store)
    }

    async fn writing(&self) -> Result<Writing, Error> {
        match &self.0.0.vault {
            None => Ok(Writing::Plain),
            Some(_) => Writing::hashed(&*self.0.first_key_of("").await?),
        }
    }

    /// Folds in what the journal has gained.
    ///
    /// # Errors
    /// Those of the store that are not one run's alone; what was folded before stays.
    pub async fn refresh(&self) -> Result<Refreshed, Error> {
        let writing = self.writing().await?;
        let select = "SELECT r.workflow, r.project, r.status, r.last_seq, r.started_at_ms, r.updated_at_ms,
                      r.run, r.epoch, r.revision, r.id FROM runs r LEFT JOIN run_index i ON i.id = r.id
                      WHERE r.last_seq > 0 AND position(':' in r.run) = 0
                      AND (i.id IS NULL OR i.last_seq <> r.last_seq)";
        let stale = self.0.0.pool.query("read the index", select, &[]).await?;
        let journal = self.0.journal();
        let mut refreshed = Refreshed::default();
        for row in &stale {
            let (head, _) = head_of(row)?;
            match self.fold(&journal, get(row, 9)?, &head, &writing).await {
                Ok(kept) => refreshed.changed += usize::from(kept),
                Err(error) => refreshed.skip(&head.run, error)?,
            }
        }
        Ok(refreshed)
    }

    /// Makes the line of a run anew; whether it was kept.
    async fn fold(
        &self,
        journal: &PostgresJournal,
        id: i64,
        head: &RunHead,
        writing: &Writing,
    ) -> Result<bool, Error> {
        let mut line = Line::of(journal, &self.0, head, writing).await?;
        if !line.summary.is_empty() {
            let plain = line.summary.to_vec();
            line.summary = self.0.seal(&head.project, &about_summary(&head.run), plain).await?.into();
        }
        self.keep(id, line).await
    }

    async fn keep(&self, id: i64, line: Line) -> Result<bool, Error> {
        // Only while the run is there and what it was when it was folded: who removes or rewrites it
        // meanwhile takes its line out first.
        let insert = "INSERT INTO run_index (id, run, project, workflow, status, phase, last_seq,
                      started_at_ms, updated_at_ms, cost, terms, words, summary)
                      SELECT id, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11,
                      array_to_tsvector(string_to_array($12, ' ')), $13 FROM runs WHERE id = $1 AND revision = $14 FOR SHARE
                      ON CONFLICT (id) DO UPDATE SET status = excluded.status, phase = excluded.phase,
                      project = excluded.project, workflow = excluded.workflow,
                      last_seq = excluded.last_seq, started_at_ms = excluded.started_at_ms,
                      updated_at_ms = excluded.updated_at_ms, cost = excluded.cost,
                      terms = excluded.terms, words = excluded.words, summary = excluded.summary
                      RETURNING 1";
        let head = &line.head;
        let terms: Vec<String> = line.terms.into_iter().collect();
        let values: [&(dyn ToSql + Sync); 14] = [
            &id,
            &head.run,
            &head.project,
            &head.workflow,
            &status_name(head.status),
            &line.phase,
            &signed(head.last_seq),
            &signed(head.started_at_ms),
            &signed(head.updated_at_ms),
            &line.cost,
            &terms,
            &line.words,
            &&line.summary[..],
            &head.revision.cast_signed(),
        ];
        Ok(!self.0.0.pool.query("write the index", insert, &values).await?.is_empty())
    }

    /// Throws the index away and folds it again.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn rebuild(&self) -> Result<Refreshed, Error> {
        self.0.0.pool.query("write the index", "DELETE FROM run_index", &[]).await?;
        self.refresh().await
    }

    /// One page of the runs that match, as of the last refresh.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn query(&self, query: &RunQuery) -> Result<RunPage, Error> {
        const QUERY: &str = "query the index";
        let writing = self.writing().await?;
        let pool = &self.0.0.pool;
        let counted = conditions(query, &writing);
        let count = format!(
            "SELECT count(*) FROM (SELECT 1 FROM run_index WHERE true{} LIMIT {}) AS found",
            counted.sql,
            COUNTED + 1
        );
        let rows = pool.query(QUERY, &count, &counted.values()).await?;
        let total: i64 = rows.first().map_or(Ok(0), |row| get(row, 0))?;

        let mut paged = conditions(query, &writing);
        let key = column(query.sort);
        let (than, way) = if query.descending { ("<", "DESC") } else { (">", "ASC") };
        if let Some(after) = &query.after {
            paged.values.extend::<[Box<dyn ToSql + Sync + Send>; 2]>([
                Box::new(signed(after.key)),
                Box::new(after.run.clone()),
            ]);
            let count = paged.values.len();
            paged.sql.push_str(&format!(" AND ({key}, run) {than} (${}, ${count})", count - 1));
        }
        let order = if query.sort == SortBy::Run { String::new() } else { format!("{key} {way}, ") };
        let select = format!(
            "SELECT workflow, project, status, last_seq, started_at_ms, updated_at_ms, run, 0::bigint,
             0::bigint, {key}, summary FROM run_index WHERE true{} ORDER BY {order}run {way} LIMIT {}",
            paged.sql,
            signed(query.limit as u64).saturating_add(1),
        );
        let rows = pool.query(QUERY, &select, &paged.values()).await?;
        let shown = rows.get(..query.limit.min(rows.len())).unwrap_or_default();
        let mut page = RunPage {
            total: usize::try_from(total.min(COUNTED)).unwrap_or(0),
            exact: total <= COUNTED,
            ..Default::default()
        };
        if let Some(last) = shown.last().filter(|_| rows.len() > query.limit) {
            page.next = Some(Cursor { key: get::<i64>(last, 9)?.cast_unsigned(), run: get(last, 6)? });
        }
        for row in shown {
            page.runs.push(Arc::new(self.load(row).await?));
        }
        Ok(page)
    }

    async fn load(&self, row: &Row) -> Result<RunSummary, Error> {
        let (head, _): (RunHead, u64) = head_of(row)?;
        let summary: Vec<u8> = get(row, 10)?;
        let plain = match summary.is_empty() {
            true => Ok(Arc::default()),
            false => self.0.unseal(summary, &about_summary(&head.run)).await.map(Into::into),
        };
        summary_of(head, plain)
    }
}
