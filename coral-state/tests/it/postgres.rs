//! What only a server can suffer.

use std::sync::Arc;
use std::time::Duration;

use coral_core::{Blobs, Error, ErrorKind, Event, Journal, Record, Seq};
use coral_state::{
    Follower, KeyRing, MasterKey, PostgresJournal, PostgresOptions, PostgresStore, SqliteOptions, SqliteStore,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::servers::{CERTIFICATE, postgres, postgres_config, shared_postgres};
use crate::support::{keep, team_run};

fn record(seq: Seq) -> Record {
    let records = team_run("reef", "", serde_json::json!({}));
    let like = if seq == 1 { &records[0] } else { &records[1] };
    Record { seq, ..like.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed_under_load() {
    let mut server = tokio::task::spawn_blocking(postgres).await.unwrap();
    let mut options = PostgresOptions::at(postgres_config(&server));
    options.patience = Duration::from_secs(60);
    let journal = Arc::new(PostgresJournal::connect_with(options).await.unwrap());
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (journal, told) = (journal.clone(), told.clone());
        writers.spawn(async move {
            let run = format!("run-{n}");
            let epoch = journal.acquire(&run).await.unwrap();
            for at in (0..400).step_by(2) {
                // An error here would be a lost append, or one told as failed that is there.
                journal.append(&run, epoch, at, vec![record(at + 1), record(at + 2)].into()).await.unwrap();
                told.send(()).unwrap();
            }
        });
    }
    drop(told);
    for crash_after in [100, 400] {
        for _ in 0..crash_after {
            heard.recv().await.unwrap();
        }
        server = tokio::task::spawn_blocking(move || {
            server.crash();
            server.restart();
            server
        })
        .await
        .unwrap();
    }
    writers.join_all().await;
    for n in 0..8 {
        let kept = journal.read(&format!("run-{n}"), 1, usize::MAX).await.unwrap();
        assert_eq!(kept.iter().map(|record| record.seq).collect::<Vec<_>>(), (1..=400).collect::<Vec<_>>());
    }
}

/// A way to the server that is cut once a client sends a word, and let through again when told to.
struct Way {
    port: u16,
    cut: tokio::sync::oneshot::Receiver<()>,
    mended: Arc<tokio::sync::Semaphore>,
}

impl Way {
    /// `delivers` says whether the word still arrives; then the way is cut once that was confirmed.
    async fn to(server: u16, word: &'static [u8], delivers: bool) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, cut) = tokio::sync::oneshot::channel();
        let mended = Arc::new(tokio::sync::Semaphore::new(1_000));
        let (tell, gate) = (Arc::new(std::sync::Mutex::new(Some(tell))), mended.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                gate.acquire().await.unwrap().forget();
                let (tell, gate) = (tell.clone(), gate.clone());
                tokio::spawn(async move {
                    let upstream = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    let ((mut from, mut to), (mut back, mut forth)) =
                        (client.into_split(), upstream.into_split());
                    let answers = tokio::spawn(async move { tokio::io::copy(&mut back, &mut to).await });
                    let mut bytes = vec![0; 1 << 16];
                    while let Ok(count @ 1..) = from.read(&mut bytes).await {
                        let last = bytes[..count].windows(word.len()).any(|part| part == word);
                        if last && let Some(tell) = tell.lock().unwrap().take() {
                            gate.forget_permits(1_000);
                            answers.abort();
                            if delivers {
                                forth.try_write(&bytes[..count]).unwrap();
                            }
                            tell.send(()).unwrap();
                            return;
                        }
                        forth.write_all(&bytes[..count]).await.unwrap();
                    }
                });
            }
        });
        Way { port, cut, mended }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_cut_off_is_told_by_what_lies_there() {
    let config = tokio::task::spawn_blocking(shared_postgres).await.unwrap();
    let server: u16 = config.split_once("port=").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    let noted = |word: &str| {
        let event = Event::Noted { path: "design".into(), topic: "t".into(), note: word.into() };
        Record { seq: 2, at_ms: 2, event }
    };
    for delivers in [false, true] {
        let way = Way::to(server, b"my own word", delivers).await;
        let mut options = PostgresOptions::at(&config);
        options.schema = format!("cut_off_{delivers}");
        let direct = PostgresJournal::connect_with(options.clone()).await.unwrap();
        options.config = config.replace(&server.to_string(), &way.port.to_string());
        let journal = PostgresJournal::connect_with(options).await.unwrap();
        let epoch = journal.acquire("run").await.unwrap();
        journal.append("run", epoch, 0, vec![record(1)].into()).await.unwrap();
        let appending = tokio::spawn({
            let (journal, mine) = (journal.clone(), noted("my own word"));
            async move { journal.append("run", epoch, 1, vec![mine].into()).await }
        });
        way.cut.await.unwrap();
        if delivers {
            while direct.head("run").await.unwrap().unwrap().last_seq < 2 {
                tokio::task::yield_now().await;
            }
            // Another goes on before this one hears of its own.
            let later = direct.acquire("run").await.unwrap();
            direct.append("run", later, 2, vec![Record { seq: 3, ..record(2) }].into()).await.unwrap();
        } else {
            // Of two with the same epoch the other was quicker, and is as far.
            direct.append("run", epoch, 1, vec![noted("another's")].into()).await.unwrap();
        }
        way.mended.add_permits(1_000);
        let result = appending.await.unwrap();
        match delivers {
            true => result.unwrap(),
            false => assert!(matches!(result.unwrap_err().kind(), ErrorKind::Conflict { found: 2, .. })),
        }
        let kept = direct.read("run", 2, 1).await.unwrap();
        assert_eq!(kept, [noted(if delivers { "my own word" } else { "another's" })]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_store_leaves_no_connection_behind() {
    let config = tokio::task::spawn_blocking(shared_postgres).await.unwrap();
    let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let count = async |like: &str| {
        let select =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'leaves' AND query LIKE $1";
        client.query_one(select, &[&like]).await.unwrap().get::<_, i64>(0)
    };
    let mut options = PostgresOptions::at(format!("{config} application_name=leaves"));
    options.schema = "leaves".into();
    let journal = PostgresJournal::connect_with(options).await.unwrap();
    let mut follower = Follower::new(journal.clone(), "run", 1);
    let listens = async {
        while count("LISTEN%").await == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = follower.next() => unreachable!("the run has no record"),
        () = listens => {}
    }
    drop((journal, follower));
    let gone = async {
        while count("%").await > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("its connections end with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_elsewhere_are_told_and_need_not_look() {
    let config = tokio::task::spawn_blocking(shared_postgres).await.unwrap();
    let mut options = PostgresOptions::at(config);
    options.schema = "told".into();
    // Longer than the test may take: only being told helps.
    options.poll = Duration::from_secs(3_600);
    let here = PostgresJournal::connect_with(options.clone()).await.unwrap();
    let there = PostgresJournal::connect_with(options).await.unwrap();
    let epoch = there.acquire("run").await.unwrap();
    let mut follower = Follower::new(here, "run", 1);
    let follow = tokio::spawn(async move {
        for seq in 1..=20 {
            assert_eq!(follower.next().await.unwrap().seq, seq);
        }
    });
    for at in 0..20 {
        there.append("run", epoch, at, vec![record(at + 1)].into()).await.unwrap();
    }
    // What was announced before the follower listened is found by looking; later appends are told.
    let mut at = 20;
    while !follow.is_finished() {
        there.append("run", epoch, at, vec![record(at + 1)].into()).await.unwrap();
        at += 1;
    }
    follow.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_told_as_transient() {
    let mut options = PostgresOptions::at("host=127.0.0.1 port=1 user=coral");
    options.patience = Duration::ZERO;
    let error = PostgresJournal::connect_with(options).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert!(error.help().unwrap().contains("runs and can be reached"), "{error:?}");
    for (config, schema) in [("host", "coral"), ("host=127.0.0.1", "no-such; schema")] {
        let mut options = PostgresOptions::at(config);
        options.schema = schema.into();
        assert_eq!(PostgresJournal::connect_with(options).await.unwrap_err().code(), "CORAL0001");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_refused() {
    let config = tokio::task::spawn_blocking(shared_postgres).await.unwrap();
    let mut options = PostgresOptions::at(&config);
    options.schema = "newer".into();
    drop(PostgresJournal::connect_with(options.clone()).await.unwrap());
    let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("UPDATE newer.version SET version = 9999").await.unwrap();
    let error = PostgresJournal::connect_with(options).await.unwrap_err();
    assert!(error.to_string().contains("version 9999"), "{error}");
}

async fn schema(name: &str, keys: Option<KeyRing>) -> Result<PostgresStore, Error> {
    let config = tokio::task::spawn_blocking(shared_postgres).await.unwrap();
    let mut options = PostgresOptions::at(config);
    options.schema = name.into();
    options.keys = keys;
    PostgresStore::connect_with(options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_one_moment_opens_as_a_file_and_is_restored() {
    for (name, keys) in [("plain", None), ("sealed", Some(KeyRing::new(MasterKey::generate().unwrap())))] {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("backup.db");
        let store = schema(&format!("backup_{name}"), keys.clone()).await.unwrap();
        let records = team_run("reef", "a reef", serde_json::json!({}));
        keep(&store.journal(), "before", &records).await;
        let blob = store.blobs_of("reef").put(b"a large deliverable").await.unwrap();
        if keys.is_some() {
            keep(&store.journal(), "erased", &team_run("kelp", "", serde_json::json!({}))).await;
            store.erase_project("kelp").await.unwrap();
        }
        let (done, ()) = tokio::join!(store.backup(&to), async {
            for n in 0..20 {
                keep(&store.journal(), &format!("during-{n}"), &records).await;
            }
        });
        done.unwrap();
        let error = store.backup(&to).await.unwrap_err();
        assert!(error.to_string().contains("already"), "{error}");

        let mut options = SqliteOptions::at(&to);
        options.keys = keys.clone();
        let file = SqliteStore::open_with(options).unwrap();
        assert_eq!(file.journal().read("before", 1, 99).await.unwrap(), records);
        assert_eq!(
            file.blobs_of("reef").get(&blob).await.unwrap().as_deref(),
            Some(&b"a large deliverable"[..])
        );
        let heads = file.journal().runs(&Default::default()).await.unwrap();
        for head in &heads {
            assert_eq!(file.journal().verify(&head.run).await.unwrap(), head.last_seq);
        }
        keep(&file.journal(), "in-the-file", &records).await;
        drop(file);

        let restored = schema(&format!("restored_{name}"), keys.clone()).await.unwrap();
        restored.restore(&to).await.unwrap();
        let there = restored.journal().runs(&Default::default()).await.unwrap();
        assert_eq!(there.len(), heads.len() + 1);
        for run in ["before", "in-the-file"] {
            assert_eq!(restored.journal().read(run, 1, 99).await.unwrap(), records);
        }
        assert!(restored.blobs_of("reef").get(&blob).await.unwrap().is_some());
        keep(&restored.journal(), "after", &records).await;
        if keys.is_some() {
            assert_eq!(restored.tombstones().await.unwrap(), store.tombstones().await.unwrap());
            assert!(restored.journal().read("erased", 1, 9).await.is_err());
            assert_eq!(restored.journal().verify("erased").await.unwrap(), 16);
        }
        let error = restored.restore(&to).await.unwrap_err();
        assert!(error.to_string().contains("not empty"), "{error}");
        let error =
            schema(&format!("none_{name}"), None).await.unwrap().restore(dir.path().join("none")).await;
        assert!(error.is_err());
    }
}

#[cfg(feature = "postgres-tls")]
#[tokio::test(flavor = "multi_thread")]
async fn connections_are_encrypted_where_asked_and_only_to_those_who_are_trusted() {
    let config = tokio::task::spawn_blocking(shared_postgres).await.unwrap();
    let mut options = PostgresOptions::at(format!("{config} sslmode=require"));
    options.schema = "tls".into();
    options.patience = Duration::ZERO;
    let error = PostgresJournal::connect_with(options.clone()).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("tls"), "plain where TLS is required: {error}");

    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let stranger = options.clone().trusting(other.cert.pem().as_bytes()).unwrap();
    let error = PostgresJournal::connect_with(stranger).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(options.clone().trusting(b"no certificate").is_err());

    let trusted = options.trusting(CERTIFICATE.0.as_bytes()).unwrap();
    let journal = PostgresJournal::connect_with(trusted).await.unwrap();
    let records = team_run("reef", "a reef", serde_json::json!({}));
    keep(&journal, "run", &records).await;
    assert_eq!(journal.read("run", 1, 99).await.unwrap(), records);
    let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let select = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                  WHERE ssl AND query LIKE '%chunks%'";
    let encrypted: i64 = client.query_one(select, &[]).await.unwrap().get(0);
    assert!(encrypted > 0, "the server sees no encrypted connection");
}
