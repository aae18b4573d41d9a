//! The journal on a PostgreSQL server of its own, beside its bare driver.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coral_state::{PostgresJournal, PostgresOptions};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use super::{EVENTS, Runtime, Table, appended, keep_run, paired, read, record, servers, time};

/// Connections of each side.
const CONNECTIONS: usize = 8;

async fn connect(config: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(config, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Events a second of the driver alone: each writer inserts one after the other, serialised
/// beforehand.
async fn bare_appended(config: &str, writers: usize, round: usize, time: Duration) -> f64 {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS.min(writers) {
        let client = connect(config).await;
        let insert = client.prepare("INSERT INTO events VALUES ($1, $2, $3)").await.unwrap();
        clients.push(Arc::new((client, insert)));
    }
    let event: Arc<[u8]> = serde_json::to_vec(&record(2).event).unwrap().into();
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (writer, pair) in (0..writers).zip(clients.iter().cycle().cloned()) {
        let event = event.clone();
        tasks.spawn(async move {
            let run = i64::try_from(round * 10_000 + writers * 100 + writer).unwrap();
            let mut seq = 0i64;
            while start.elapsed() < time {
                seq += 1;
                pair.0.execute(&pair.1, &[&run, &seq, &&event[..]]).await.unwrap();
            }
            seq
        });
    }
    let events: i64 = tasks.join_all().await.into_iter().sum();
    events as f64 / start.elapsed().as_secs_f64()
}

pub(super) fn journal(runtime: &Runtime, _: &Path, table: &mut Table) {
    let on_path = std::process::Command::new("postgres").arg("--version").output().is_ok();
    if !on_path && !Path::new("/usr/lib/postgresql").exists() {
        println!("PostgreSQL is not installed: tests/setup/state.sh installs it");
        return;
    }
    let server = servers::postgres();
    let config = servers::postgres_config(&server);
    let journal = runtime.block_on(async {
        let client = connect(&config).await;
        let table = "CREATE TABLE events (run BIGINT, seq BIGINT, event BYTEA, PRIMARY KEY (run, seq))";
        client.batch_execute(table).await.unwrap();
        let mut options = PostgresOptions::at(&config);
        options.connections = CONNECTIONS;
        Arc::new(PostgresJournal::connect_with(options).await.unwrap())
    });
    let span = time(Duration::from_millis(1_500));
    for writers in [1, 64] {
        let (ours, theirs) = paired(
            5,
            |round| runtime.block_on(appended(&journal, writers, round, span)),
            |round| runtime.block_on(bare_appended(&config, writers, round, span)),
        );
        table.row(
            &format!("PostgreSQL, append, {writers} writers"),
            "events/s",
            ours,
            "tokio-postgres, an insert an event",
            theirs,
        );
    }
    runtime.block_on(keep_run(&journal));
    let rows = runtime.block_on(async {
        let client = connect(&config).await;
        for seq in 1..=EVENTS {
            let event = serde_json::to_vec(&record(seq).event).unwrap();
            client
                .execute("INSERT INTO events VALUES (-1, $1, $2)", &[&seq.cast_signed(), &event])
                .await
                .unwrap();
        }
        client
    });
    for readers in [1, 64] {
        let (ours, theirs) = paired(
            5,
            |_| runtime.block_on(read(&journal, readers, time(Duration::from_millis(500)))),
            |_| {
                let (start, mut events) = (Instant::now(), 0);
                while start.elapsed() < time(Duration::from_millis(500)) {
                    let select = "SELECT event FROM events WHERE run = -1 ORDER BY seq";
                    let found = runtime.block_on(rows.query(select, &[])).unwrap();
                    let parsed = found
                        .iter()
                        .map(|row| serde_json::from_slice::<coral_core::Event>(row.get(0)).unwrap());
                    events += parsed.count();
                }
                events as f64 / start.elapsed().as_secs_f64()
            },
        );
        table.row(
            &format!("PostgreSQL, read, {readers} at once"),
            "events/s",
            ours,
            "tokio-postgres, 1 at once, parsed",
            theirs,
        );
    }
}
