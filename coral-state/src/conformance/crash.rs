//! A writer that is killed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use coral_core::{Journal, Seq};

use super::events::records;
use super::{Backend, skipped};

/// Names the place to the writing process, and makes it one.
const PLACE: &str = "CORAL_CONFORMANCE_PLACE";
const RUNS: usize = 6;

pub(super) async fn check<B: Backend>(test: &str) {
    if let Ok(place) = std::env::var(PLACE) {
        return write_forever(B::at(&place).expect_place()).await;
    }
    let backend = B::create().await;
    let Some(place) = backend.place() else { return skipped("nothing outlives the process") };
    // The name of a test within its executable does not begin with the crate.
    let name = test.split_once("::").map_or(test, |(_, name)| name);
    let mut acknowledged: BTreeMap<String, Seq> = BTreeMap::new();
    for (round, enough) in [1, 30, 120, 300].into_iter().enumerate() {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture", "--test-threads=1"])
            .env(PLACE, &place)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut heard = 0;
        let mut killed = false;
        for line in BufReader::new(writer.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            // The test harness talks on the same stream, and the kill may cut a line off.
            let Some((run, seq)) = line.strip_prefix("kept ").and_then(|rest| rest.split_once(' ')) else {
                continue;
            };
            let Some(seq) = seq.strip_suffix('.').and_then(|seq| seq.parse().ok()) else { continue };
            acknowledged.insert(run.to_owned(), seq);
            heard += 1;
            if heard >= enough && !killed {
                writer.kill().unwrap();
                killed = true;
            }
        }
        assert!(killed, "the writer ended by itself in round {round} after {heard} appends");
        writer.wait().unwrap();
        verify(&backend, &acknowledged).await;
    }
}

trait ExpectPlace<B> {
    fn expect_place(self) -> B;
}

impl<B> ExpectPlace<B> for Option<B> {
    fn expect_place(self) -> B {
        match self {
            Some(backend) => backend,
            None => panic!("a backend that has a `place` must find it again in `at`"),
        }
    }
}

/// Batches of 1, 2, 3, 4, 1, … records: batch `n` begins after this many.
fn boundary(last: Seq) -> bool {
    matches!(last % 10, 0 | 1 | 3 | 6)
}

async fn write_forever<B: Backend>(backend: B) {
    let journal = Arc::new(backend.open().await.unwrap());
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..RUNS {
        let journal = journal.clone();
        writers.spawn(async move {
            let run = format!("run-{n}");
            let epoch = journal.acquire(&run).await.unwrap();
            let mut at = journal.head(&run).await.unwrap().map_or(0, |head| head.last_seq);
            loop {
                let to = (at + 1..).find(|seq| boundary(*seq)).unwrap();
                journal.append(&run, epoch, at, records(at + 1, to).into()).await.unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "kept {run} {to}.").unwrap();
                out.flush().unwrap();
                at = to;
            }
        });
    }
    writers.join_all().await;
}

async fn verify<B: Backend>(backend: &B, acknowledged: &BTreeMap<String, Seq>) {
    let journal = backend.open().await.unwrap();
    for n in 0..RUNS {
        let run = format!("run-{n}");
        let kept = journal.read(&run, 1, usize::MAX).await.unwrap();
        let last = kept.len() as Seq;
        let told = acknowledged.get(&run).copied().unwrap_or(0);
        assert!(last >= told, "`{run}` has {last} records, {told} were acknowledged");
        assert!(boundary(last), "`{run}` ends at {last}, within a batch");
        assert_eq!(kept, records(1, last), "`{run}` reads otherwise than it was written");
        let head = journal.head(&run).await.unwrap().map_or(0, |head| head.last_seq);
        assert_eq!(head, last, "the head of `{run}` and its records tell different stories");
    }
}
