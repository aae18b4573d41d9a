//! Faults of the real thing: full disks, cut files, processes that race.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use coral_core::{ErrorClass, Event, Journal, Record, Seq};
use coral_state::SqliteJournal;

use crate::support::{keep, team_run};

/// Names the directory to a child of a test, and makes it one.
const PLACE: &str = "CORAL_FAULT_PLACE";

/// A shell that runs `script`, where `$0` is one test of this executable as a child at `place`.
fn child(test: &str, place: &Path, through: &[&str], script: &str) -> Child {
    let executable = std::env::current_exe().unwrap();
    let run = format!("{} faults::{test} --exact --nocapture --test-threads=1", executable.display());
    let mut command = Command::new(through.first().unwrap_or(&"sh"));
    command.args(through.iter().skip(1));
    if !through.is_empty() {
        command.arg("sh");
    }
    command
        .args(["-c", &script.replace("$0", &run)])
        .env(PLACE, place)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

fn place() -> Option<std::path::PathBuf> {
    std::env::var_os(PLACE).map(Into::into)
}

/// Numbers that no compression makes small.
fn numbers(from: u64, count: u64) -> serde_json::Value {
    (0..count).map(|n| (n + from).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
}

/// A record of them.
fn noise(seq: Seq) -> Record {
    let event = Event::Noted { path: "a".into(), topic: "noise".into(), note: numbers(seq, 2_000) };
    Record { seq, at_ms: seq, event }
}

/// Appends until the disk refuses, and gives the last seq that was acknowledged.
async fn fill(journal: &SqliteJournal, from: Seq) -> Seq {
    let epoch = journal.acquire("run").await.unwrap();
    let mut last = from;
    loop {
        match journal.append("run", epoch, last, vec![noise(last + 1)].into()).await {
            Ok(()) => last += 1,
            Err(error) => {
                assert_eq!(error.class(), ErrorClass::System, "{error:?}");
                assert!(error.help().unwrap().contains("space"), "{error:?}");
                return last;
            }
        }
        assert!(last < 5_000, "the disk has no end");
    }
}

async fn check(journal: &SqliteJournal, last: Seq) {
    let kept = journal.read("run", 1, usize::MAX).await.unwrap();
    assert_eq!(kept.len() as Seq, last, "what was acknowledged is there, and nothing else");
    assert_eq!(kept[1..], (2..=last).map(noise).collect::<Vec<_>>());
    assert_eq!(journal.verify("run").await.unwrap(), last);
}

/// On a file system of two megabytes, or with files bounded to so much.
#[test]
fn a_full_disk_loses_nothing_acknowledged() {
    if let Some(place) = place() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(async {
            let ballast = place.join("ballast");
            std::fs::write(&ballast, vec![1; 700 << 10]).unwrap();
            let path = place.join("coral.db");
            let journal = SqliteJournal::open(&path).unwrap();
            keep(&journal, "run", &team_run("reef", "", serde_json::json!({}))[..1]).await;
            let last = fill(&journal, 1).await;
            assert!(last > 5, "some went in");
            // Reading goes on while nothing can be written.
            check(&journal, last).await;
            drop(journal);
            let journal = SqliteJournal::open(&path).unwrap();
            check(&journal, last).await;
            std::fs::remove_file(&ballast).unwrap();
            let more = fill(&journal, last).await;
            check(&journal, more).await;
            println!("filled to {last}, then to {more}.");
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size=2m none {} && exec $0", dir.path().display());
    // A mount of its own where the system lets a user have one.
    let may_mount = Command::new("unshare")
        .args(["-rm", "sh", "-c", &mount.replace("exec $0", "true")])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if may_mount {
        let output = child("a_full_disk_loses_nothing_acknowledged", dir.path(), &["unshare", "-rm"], &mount);
        let output = output.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        let filled = text.lines().find_map(|line| line.split_once("filled to ")).unwrap();
        let (last, more) = filled.1.trim_end_matches('.').split_once(", then to ").unwrap();
        assert!(last.parse::<u64>().unwrap() < more.parse::<u64>().unwrap(), "room that came was used");
    }
    // Everywhere: no file may grow beyond two megabytes, which no signal tells.
    let dir = tempfile::tempdir().unwrap();
    let bounded = "trap '' XFSZ; ulimit -f 4096; exec $0";
    let output = child("a_full_disk_loses_nothing_acknowledged", dir.path(), &[], bounded);
    let output = output.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Two processes take the same run from each other, again and again.
#[test]
fn two_processes_that_race_for_a_run_lose_nothing() {
    const EACH: usize = 60;
    if let Some(place) = place() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(async {
            let journal = SqliteJournal::open(place.join("coral.db")).unwrap();
            let me = u64::from(std::process::id());
            let mut kept = 0;
            while kept < EACH {
                let epoch = journal.acquire("run").await.unwrap();
                let last = journal.head("run").await.unwrap().unwrap().last_seq;
                let batch = [1, 2].map(|next| {
                    let note = serde_json::json!(me);
                    let event = Event::Noted { path: "a".into(), topic: "race".into(), note };
                    Record { seq: last + next, at_ms: me, event }
                });
                match journal.append("run", epoch, last, batch.into()).await {
                    Ok(()) => {
                        kept += 1;
                        println!("kept {last}.");
                    }
                    Err(error) => assert!(error.is_fenced(), "{error:?}"),
                }
            }
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coral.db");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let journal = SqliteJournal::open(&path).unwrap();
        keep(&journal, "run", &team_run("reef", "", serde_json::json!({}))[..1]).await;
    });
    let test = "two_processes_that_race_for_a_run_lose_nothing";
    let racers = [0, 1].map(|_| child(test, dir.path(), &[], "exec $0"));
    let mut told: Vec<(u64, Seq)> = Vec::new();
    let readers = racers.map(|mut racer| {
        std::thread::spawn(move || {
            let lines = BufReader::new(racer.stdout.take().unwrap()).lines();
            let kept: Vec<Seq> = lines
                .map_while(Result::ok)
                .filter_map(|line| line.split_once("kept ")?.1.strip_suffix('.')?.parse().ok())
                .collect();
            assert!(racer.wait().unwrap().success());
            (u64::from(racer.id()), kept)
        })
    });
    for reader in readers {
        let (racer, kept) = reader.join().unwrap();
        assert_eq!(kept.len(), EACH);
        told.extend(kept.into_iter().map(|at| (racer, at)));
    }
    runtime.block_on(async {
        let journal = SqliteJournal::open(&path).unwrap();
        let kept = journal.read("run", 1, usize::MAX).await.unwrap();
        assert_eq!(kept.len(), 1 + 2 * 2 * EACH, "every batch once, and no other");
        for (racer, at) in told {
            for record in &kept[usize::try_from(at).unwrap()..][..2] {
                assert_eq!(record.at_ms, racer, "both records of a batch are the racer's");
            }
        }
    });
}

/// A file cut off within its last page gives what was written or an error, never less as if it were
/// all and never something else. The driver itself takes what is missing for zeros.
#[tokio::test]
async fn a_file_cut_within_its_last_page_is_told() {
    // In memory where there is such a place: thousands of files are opened and closed.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = dir.path().join("coral.db");
    let records = {
        let journal = SqliteJournal::open(&path).unwrap();
        keep(&journal, "run", &team_run("reef", "", serde_json::json!({}))[..1]).await;
        let epoch = journal.acquire("run").await.unwrap();
        for at in 1..4 {
            let event = Event::Noted { path: "a".into(), topic: "noise".into(), note: numbers(at, 300) };
            let record = Record { seq: at + 1, at_ms: at, event };
            journal.append("run", epoch, at, vec![record].into()).await.unwrap();
        }
        journal.read("run", 1, 99).await.unwrap()
    };
    let whole = std::fs::read(&path).unwrap();
    let cut = dir.path().join("cut.db");
    let (mut told, mut cuts) = (0, 0);
    for length in (1..=4_096).map(|cut| whole.len() - cut) {
        std::fs::write(&cut, &whole[..length]).unwrap();
        let read = match SqliteJournal::open(&cut) {
            Ok(journal) => journal.read("run", 1, 99).await,
            Err(error) => Err(error),
        };
        for ending in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{ending}", cut.display()));
        }
        cuts += 1;
        match read {
            Ok(read) => assert_eq!(read, records, "cut to {length}"),
            Err(error) => {
                assert_eq!(error.class(), ErrorClass::System, "{error:?}");
                told += 1;
            }
        }
    }
    assert!(told > cuts / 2, "{told} of {cuts} cuts were told");
}
