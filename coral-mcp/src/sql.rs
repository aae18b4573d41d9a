//! What a piece of SQL does, by a parser.

use std::ops::ControlFlow;

use serde::Deserialize;
use sqlparser::ast::{
    Expr, Function, ObjectName, Query, Select, SetExpr, Statement, TableFactor, Visit, Visitor,
};
use sqlparser::dialect::{Dialect, MsSqlDialect, MySqlDialect, PostgreSqlDialect, SQLiteDialect};
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Tokenizer;

use crate::access::Operation;

/// A longer text is not checked, and so refused.
const MAX_TOKENS: usize = 20_000;
/// A shorter text can't be nested so deep that it needs a stack of its own.
const SHORT: usize = 256;
const STACK: usize = 64 * 1_024 * 1_024;

/// Whose SQL it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SqlDialect {
    #[default]
    Postgres,
    Sqlite,
    /// Any of those that one server speaks: the strictest reading counts, and what one of them can't
    /// read executes.
    Any,
}

/// Functions that only compute. Any other may change something, read files or wait: `setval`,
/// `pg_read_file`, `load_extension`, `pg_sleep`, and what an extension adds.
const PURE_FUNCTIONS: [&str; 73] = [
    "abs",
    "array_agg",
    "avg",
    "cast",
    "ceil",
    "ceiling",
    "char_length",
    "coalesce",
    "concat",
    "concat_ws",
    "count",
    "current_date",
    "current_time",
    "current_timestamp",
    "date",
    "date_part",
    "date_trunc",
    "datetime",
    "dense_rank",
    "exp",
    "extract",
    "first_value",
    "floor",
    "format",
    "generate_series",
    "greatest",
    "group_concat",
    "ifnull",
    "iif",
    "instr",
    "json_agg",
    "json_array_length",
    "json_build_object",
    "json_each",
    "json_extract",
    "jsonb_agg",
    "jsonb_build_object",
    "julianday",
    "lag",
    "last_value",
    "lead",
    "least",
    "left",
    "length",
    "ln",
    "log",
    "lower",
    "ltrim",
    "max",
    "min",
    "mod",
    "now",
    "nullif",
    "octet_length",
    "percent_rank",
    "position",
    "power",
    "rank",
    "replace",
    "right",
    "round",
    "row_number",
    "rtrim",
    "sqrt",
    "string_agg",
    "strftime",
    "substr",
    "substring",
    "sum",
    "to_char",
    "trim",
    "unnest",
    "upper",
];

/// What a piece of SQL does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    /// The strictest operation among its statements.
    pub(crate) operation: Operation,
    /// The name of the operation, where it is one on the schema.
    pub(crate) named: Option<&'static str>,
}

/// What `text` does.
///
/// # Errors
/// What can't be parsed as a whole: it must be refused.
pub(crate) fn understand(text: &str, dialect: SqlDialect) -> Result<Meaning, String> {
    if text.len() <= SHORT {
        return parse(text, dialect);
    }
    // A chain of operators is a tree as deep as the chain is long.
    let text = text.to_owned();
    std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || parse(&text, dialect))
        .map_err(|error| format!("the SQL could not be checked: {error}"))?
        .join()
        .unwrap_or_else(|_| Err("the SQL could not be checked".to_owned()))
}

fn parse(text: &str, dialect: SqlDialect) -> Result<Meaning, String> {
    match dialect {
        SqlDialect::Postgres => parse_as(text, &PostgreSqlDialect {}),
        SqlDialect::Sqlite => parse_as(text, &SQLiteDialect {}),
        SqlDialect::Any => parse_as_any(text),
    }
}

fn parse_as_any(text: &str) -> Result<Meaning, String> {
    let dialects: [&dyn Dialect; 4] =
        [&PostgreSqlDialect {}, &SQLiteDialect {}, &MySqlDialect {}, &MsSqlDialect {}];
    let executes = Meaning { operation: Operation::Execute, named: None };
    // MySQL runs what stands in such comments, and others pass over it.
    let mut strictest = text.contains("/*!").then_some(executes);
    let mut problem = None;
    for dialect in dialects {
        match parse_as(text, dialect) {
            Ok(meaning) if strictest.is_none_or(|s: Meaning| meaning.operation > s.operation) => {
                strictest = Some(meaning);
            }
            Ok(_) => {}
            Err(why) => problem = problem.or(Some(why)),
        }
    }
    match (strictest, problem) {
        (Some(strictest), None) => Ok(strictest),
        (Some(_), Some(_)) => Ok(executes),
        (None, problem) => Err(problem.unwrap_or_default()),
    }
}

fn parse_as(text: &str, dialect: &dyn Dialect) -> Result<Meaning, String> {
    let unparsable = |problem: String| format!("the SQL can't be parsed, and so not be allowed: {problem}");
    let tokens = Tokenizer::new(dialect, text).tokenize().map_err(|e| unparsable(e.to_string()))?;
    if tokens.len() > MAX_TOKENS {
        return Err(format!(
            "the SQL is too long to be checked: {} tokens, {MAX_TOKENS} at most",
            tokens.len()
        ));
    }
    let statements =
        Parser::new(dialect).with_tokens(tokens).parse_statements().map_err(|e| unparsable(e.to_string()))?;
    match statements.as_slice() {
        [] => Err("there is no SQL statement".to_owned()),
        [one] => Ok(Meaning { operation: statement(one), named: named(one) }),
        // What follows a semicolon may undo what the server wrapped around the first: a `COMMIT`
        // ends a read-only transaction.
        _ => Ok(Meaning { operation: Operation::Execute, named: None }),
    }
}

/// The names of operations on the schema.
pub(crate) const OPERATIONS: [&str; 2] = ["create_tables", "run_migrations"];

fn named(statement: &Statement) -> Option<&'static str> {
    match statement {
        Statement::CreateTable(_) => Some("create_tables"),
        Statement::CreateIndex(_)
        | Statement::CreateView(_)
        | Statement::AlterTable(_)
        | Statement::Drop { .. }
        | Statement::Truncate(_) => Some("run_migrations"),
        _ => None,
    }
}

fn statement(statement: &Statement) -> Operation {
    let mut found = Found(match statement {
        Statement::Query(_) => Operation::Read,
        Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) | Statement::Merge(_) => {
            Operation::Write
        }
        Statement::CreateTable(_)
        | Statement::CreateIndex(_)
        | Statement::CreateView(_)
        | Statement::AlterTable(_)
        | Statement::Drop { .. }
        | Statement::Truncate(_) => Operation::Write,
        // Whether it is run is said in more ways than one, so it counts as if it were.
        Statement::Explain { statement: inner, .. } => self::statement(inner),
        _ => Operation::Execute,
    });
    let _ = statement.visit(&mut found);
    found.0
}

/// The strictest operation found so far.
struct Found(Operation);

impl Found {
    fn raise(&mut self, operation: Operation) {
        self.0 = self.0.max(operation);
    }

    fn call(&mut self, name: &ObjectName) {
        let name = name.to_string().replace('"', "").to_lowercase();
        let name = name.strip_prefix("pg_catalog.").unwrap_or(&name);
        if !PURE_FUNCTIONS.contains(&name) {
            self.raise(Operation::Execute);
        }
    }
}

impl Visitor for Found {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if matches!(
            *query.body,
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_)
        ) || !query.locks.is_empty()
        {
            self.raise(Operation::Write);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        if select.into.is_some() {
            self.raise(Operation::Write);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_statement(&mut self, inner: &Statement) -> ControlFlow<()> {
        if matches!(
            inner,
            Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) | Statement::Merge(_)
        ) {
            self.raise(Operation::Write);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(Function { name, .. }) = expr {
            self.call(name);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<()> {
        match table {
            TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. } => {
                self.call(name);
            }
            TableFactor::TableFunction { .. } => self.raise(Operation::Execute),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SqlDialect::{Any, Postgres, Sqlite};

    fn classify(text: &str, dialect: SqlDialect) -> Result<Operation, String> {
        understand(text, dialect).map(|meaning| meaning.operation)
    }

    #[test]
    fn changes_of_the_schema_have_names() {
        let named = |text| understand(text, Postgres).unwrap().named;
        assert_eq!(named("CREATE TABLE t (a INT)"), Some("create_tables"));
        assert_eq!(named("ALTER TABLE t ADD b INT"), Some("run_migrations"));
        assert_eq!(named("DROP TABLE t"), Some("run_migrations"));
        assert_eq!(named("SELECT 1"), None);
        assert_eq!(named("CREATE TABLE t (a INT); DROP TABLE t"), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_breaks_the_checker(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let text = String::from_utf8_lossy(&bytes);
            let _ = understand(&text, Postgres);
            let _ = understand(&format!("SELECT {text}"), Sqlite);
        }

        #[test]
        fn what_follows_a_statement_is_not_overlooked(tail in "[a-z(); '$-]{1,40}") {
            if let Ok(meaning) = understand(&format!("SELECT 1; {tail}"), Postgres) {
                let only_blank = tail.chars().all(|c| c == ';' || c == ' ') || tail.trim_start_matches([' ', ';']).starts_with("--");
                proptest::prop_assert!(only_blank || meaning.operation == Operation::Execute, "{}", tail);
            }
        }
    }

    #[test]
    fn statements_are_classed_by_what_they_do() {
        use Operation::{Execute, Read, Write};
        for (dialect, text, expected) in [
            (Postgres, "SELECT id, lower(name) FROM users WHERE id = 1", Read),
            (Postgres, "select count(*) from a join b using (id) group by x;", Read),
            (Postgres, "WITH x AS (SELECT 1) SELECT * FROM x", Read),
            (Postgres, "EXPLAIN DELETE FROM t", Write),
            (Postgres, "EXPLAIN SELECT * FROM t", Read),
            (Postgres, "EXPLAIN ANALYZE DELETE FROM t", Write),
            (Postgres, "EXPLAIN (ANALYZE) CREATE TABLE x AS SELECT 1", Write),
            (Postgres, "EXPLAIN (ANALYZE TRUE) CREATE MATERIALIZED VIEW x AS SELECT 1", Write),
            (Postgres, "CREATE MATERIALIZED VIEW x AS SELECT 1", Write),
            (Postgres, "EXPLAIN ANALYZE EXECUTE drop_all", Execute),
            (Any, "SELECT id FROM users WHERE id = 1 LIMIT 10", Read),
            (Any, "UPDATE t SET a = 1", Write),
            (Any, "SELECT 1 /*! ; DROP TABLE t */", Execute),
            (Any, "SELECT /*!50000 sleep(100) */ 1", Execute),
            (Any, "SELECT 'a\\'; DROP TABLE t; -- '", Execute),
            (Any, "SELECT 1--1; DROP TABLE t", Execute),
            (Any, "SELECT 1 # ; DROP TABLE t", Execute),
            (Any, "SELECT `sleep`(100)", Execute),
            (Any, "SELECT $$; DROP TABLE t; --$$", Execute),
            (Postgres, "VALUES (1), (2)", Read),
            (Postgres, "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", Write),
            (Postgres, "WITH x AS (INSERT INTO t VALUES (1) RETURNING 1) SELECT 1", Write),
            (Postgres, "SELECT * INTO copy FROM t", Write),
            (Postgres, "SELECT * FROM t FOR UPDATE", Write),
            (Postgres, "INSERT INTO t VALUES ('; DROP TABLE t')", Write),
            (Postgres, "UPDATE t SET a = 1", Write),
            (Postgres, "CREATE TABLE t (id int)", Write),
            (Postgres, "DROP TABLE t", Write),
            (Postgres, "TRUNCATE t", Write),
            (Postgres, "SELECT setval('s', 1)", Execute),
            (Postgres, "SELECT pg_read_file('/etc/passwd')", Execute),
            (Postgres, "SELECT * FROM pg_ls_dir('/')", Execute),
            (Postgres, "SELECT pg_catalog.pg_sleep(100)", Execute),
            (Postgres, "SELECT \"setval\"('s', 1)", Execute),
            (Postgres, "SELECT 1 WHERE EXISTS (SELECT lo_import('/etc/passwd'))", Execute),
            (Postgres, "COPY t FROM PROGRAM 'sh'", Execute),
            (Postgres, "COPY t TO '/tmp/x'", Execute),
            (Postgres, "COMMIT; DELETE FROM t; SELECT 1", Execute),
            (Postgres, "SELECT 1; SELECT 2", Execute),
            (Postgres, "COMMIT", Execute),
            (Postgres, "SET ROLE admin", Execute),
            (Postgres, "GRANT ALL ON t TO public", Execute),
            (Postgres, "SELECT $$; DROP TABLE t; --$$", Read),
            (Postgres, "SELECT 1 /* ; DROP TABLE t */", Read),
            (Sqlite, "SELECT name FROM sqlite_master", Read),
            (Sqlite, "ATTACH DATABASE '/tmp/x' AS x", Execute),
            (Sqlite, "PRAGMA writable_schema = 1", Execute),
            (Sqlite, "SELECT load_extension('/tmp/x.so')", Execute),
            (Sqlite, "SELECT writefile('/tmp/x', 'y')", Execute),
            (Sqlite, "REPLACE INTO t VALUES (1)", Write),
        ] {
            assert_eq!(classify(text, dialect), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for text in [
            "",
            ";",
            "SELEC 1",
            "SELECT 'open",
            "DELETE FROM t; garbage here",
            "VACUUM INTO '/tmp/x'",
            "-- x",
        ] {
            let found = classify(text, Sqlite);
            assert!(found.is_err() || found == Ok(Operation::Execute), "{text}: {found:?}");
        }
    }

    #[test]
    fn deep_and_long_texts_do_not_break_the_checker() {
        let chain = format!("SELECT {}1", "1+".repeat(9_000));
        assert_eq!(classify(&chain, Postgres), Ok(Operation::Read));
        let nested = format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000));
        assert!(classify(&nested, Postgres).is_err());
        let long = format!("SELECT {}1", "1 + ".repeat(50_000));
        assert!(classify(&long, Postgres).unwrap_err().contains("too long"));
    }
}
