//! The tables on the server, and how those of an older release become those of this one.

use coral_core::Error;

use super::connection::{Pool, storage};

/// What leads from each version to the next. Only ever appended to.
const MIGRATIONS: &[&str] = &[r#"
    CREATE TABLE runs (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        run TEXT COLLATE "C" NOT NULL UNIQUE,
        epoch BIGINT NOT NULL,
        workflow TEXT NOT NULL,
        project TEXT NOT NULL,
        status TEXT NOT NULL,
        last_seq BIGINT NOT NULL,
        started_at_ms BIGINT NOT NULL,
        updated_at_ms BIGINT NOT NULL
    ) WITH (fillfactor = 50);
    CREATE INDEX runs_by_status ON runs (status, run);
    CREATE INDEX runs_by_project ON runs (project, run);
    CREATE TABLE chunks (
        run_id BIGINT NOT NULL,
        last_seq BIGINT NOT NULL,
        data BYTEA NOT NULL,
        PRIMARY KEY (run_id, last_seq)
    );
    ALTER TABLE chunks ALTER COLUMN data SET STORAGE EXTERNAL;
"#];

/// Makes the schema what this release needs. Any number of processes may do so at once.
pub(super) async fn migrate(pool: &Pool, schema: &str) -> Result<(), Error> {
    let current = MIGRATIONS.len() as i64;
    let connection = pool.get().await?;
    let client = &connection.client;
    let done = async {
        client.batch_execute("BEGIN").await?;
        // Held until the transaction ends; the number means nothing but this.
        client.execute("SELECT pg_advisory_xact_lock(4860223871)", &[]).await?;
        client
            .batch_execute(&format!(
                "CREATE SCHEMA IF NOT EXISTS {schema};
                 CREATE TABLE IF NOT EXISTS {schema}.version (version BIGINT NOT NULL)"
            ))
            .await?;
        let row = client.query_opt("SELECT version FROM version", &[]).await?;
        let found = row.map_or(Ok(0), |row| row.try_get::<_, i64>(0))?;
        for step in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
            client.batch_execute(step).await?;
        }
        if found < current {
            client.execute("DELETE FROM version", &[]).await?;
            client.execute("INSERT INTO version VALUES ($1)", &[&current]).await?;
        }
        client.batch_execute("COMMIT").await?;
        Ok(found)
    };
    let found = match done.await {
        Ok(found) => found,
        Err(error) => {
            // The first error is the one to tell.
            let _ = client.batch_execute("ROLLBACK").await;
            return Err(storage("bring the tables up to date", &error));
        }
    };
    if found <= current {
        return Ok(());
    }
    Err(Error::invalid(
        "schema",
        format!("`{schema}` is of version {found}, this release knows up to {current}"),
    )
    .with_help("open it with the release that wrote it, or a newer one"))
}
