//! What a journal must do, one function for each promise of the contract.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use coral_core::{ErrorKind, Event, Journal, Record, RunFilter, RunHead, RunStatus, Seq};
use tokio::task::JoinSet;

use super::events::{every_kind, every_name, finished, first, name, noted, records, started};
use super::{Backend, crash, skipped};

async fn open<B: Backend>() -> (B, Arc<B::Journal>) {
    let backend = B::create().await;
    let journal = Arc::new(backend.open().await.unwrap());
    (backend, journal)
}

/// A run with records `1..=last`, and its epoch.
async fn run_of(journal: &impl Journal, run: &str, last: Seq) -> u64 {
    let epoch = journal.acquire(run).await.unwrap();
    journal.append(run, epoch, 0, records(1, last).into()).await.unwrap();
    epoch
}

async fn all(journal: &impl Journal, run: &str) -> Vec<Record> {
    journal.read(run, 1, usize::MAX).await.unwrap()
}

pub(super) async fn begins_empty<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    assert_eq!(journal.head("nobody").await.unwrap(), None);
    assert_eq!(all(&journal, "nobody").await, []);
    assert_eq!(journal.runs(&RunFilter::default()).await.unwrap(), []);
    assert!(journal.acquire("taken").await.unwrap() >= 1);
    assert_eq!(journal.head("taken").await.unwrap(), None, "taking a run over does not begin it");
    assert_eq!(journal.runs(&RunFilter::default()).await.unwrap(), []);
}

pub(super) async fn begins_a_run_once<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let epoch = journal.begin("run", records(1, 3).into()).await.unwrap();
    assert!(epoch >= 1);
    let error = journal.begin("run", records(1, 2).into()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Conflict { expected: 0, found: 3, .. }), "{error}");
    journal.append("run", epoch, 3, records(4, 5).into()).await.unwrap();
    assert_eq!(all(&journal, "run").await, records(1, 5));
    // One that was taken over and has no record yet has not begun.
    let before = journal.acquire("taken").await.unwrap();
    let epoch = journal.begin("taken", records(1, 1).into()).await.unwrap();
    assert!(epoch > before);
    let error = journal.append("taken", before, 1, records(2, 2).into()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Fenced { .. }), "{error}");
    // What can't begin a run leaves none behind.
    assert!(journal.begin("bad", records(2, 3).into()).await.is_err());
    assert_eq!(journal.head("bad").await.unwrap(), None);
}

pub(super) async fn appends_in_order<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let epoch = journal.acquire("run").await.unwrap();
    let mut at = 0;
    for to in [1, 2, 5, 6, 30, 31] {
        journal.append("run", epoch, at, records(at + 1, to).into()).await.unwrap();
        at = to;
        assert_eq!(all(&journal, "run").await, records(1, to));
    }
}

pub(super) async fn keeps_events_exactly<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let records = every_kind();
    let known: BTreeSet<_> = records.iter().map(|record| name(&record.event)).collect();
    assert_eq!(known, every_name(), "the exam must hold every kind of event");
    let epoch = journal.acquire("together").await.unwrap();
    journal.append("together", epoch, 0, records.clone().into()).await.unwrap();
    for (kept, record) in all(&journal, "together").await.iter().zip(&records) {
        assert_eq!(kept, record);
    }
    let epoch = journal.acquire("apart").await.unwrap();
    for record in &records {
        journal.append("apart", epoch, record.seq - 1, vec![record.clone()].into()).await.unwrap();
    }
    assert_eq!(all(&journal, "apart").await, records);
}

pub(super) async fn reads_from_and_up_to<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let epoch = run_of(&journal, "run", 4).await;
    journal.append("run", epoch, 4, records(5, 7).into()).await.unwrap();
    journal.append("run", epoch, 7, records(8, 8).into()).await.unwrap();
    run_of(&journal, "run-after", 9).await;
    for from in 0..12 {
        for limit in [0, 1, 2, 3, 5, 100, usize::MAX] {
            let expected: Vec<_> = records(from.max(1), 8).into_iter().take(limit).collect();
            assert_eq!(
                journal.read("run", from, limit).await.unwrap(),
                expected,
                "from {from}, at most {limit}"
            );
        }
    }
    assert_eq!(journal.read("run", Seq::MAX, 3).await.unwrap(), []);
}

pub(super) async fn refuses_another_seq<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let epoch = run_of(&journal, "run", 5).await;
    for expected in [0, 4, 6, Seq::MAX >> 1] {
        let error = journal
            .append("run", epoch, expected, records(expected + 1, expected + 2).into())
            .await
            .unwrap_err();
        let told = ErrorKind::Conflict { run: "run".into(), expected, found: 5 };
        assert_eq!(*error.kind(), told);
    }
    assert_eq!(all(&journal, "run").await, records(1, 5));
    journal.append("run", epoch, 5, records(6, 6).into()).await.unwrap();
}

pub(super) async fn refuses_bad_batches<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let epoch = journal.acquire("run").await.unwrap();
    let begin = |seq| Record { seq, ..first() };
    for (why, expected, batch) in [
        ("no beginning", 0, vec![noted(1)]),
        ("from 0", 0, vec![begin(0)]),
        ("from 2", 0, vec![begin(2)]),
        ("a gap", 0, vec![first(), noted(3)]),
        ("twice", 0, vec![first(), noted(2), noted(2)]),
        ("backwards", 0, vec![first(), noted(3), noted(2)]),
    ] {
        let error = journal.append("run", epoch, expected, batch.into()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Invalid { .. }), "{why}: {error:?}");
        assert_eq!(journal.head("run").await.unwrap(), None, "{why}");
    }
    journal.append("run", epoch, 0, records(1, 2).into()).await.unwrap();
    let error = journal.append("run", epoch, 2, vec![begin(3)].into()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Invalid { .. }), "a second beginning: {error:?}");
    assert_eq!(all(&journal, "run").await, records(1, 2));
}

pub(super) async fn appends_whole_batches<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let epoch = run_of(&journal, "bad", 3).await;
    let good_epoch = run_of(&journal, "good", 3).await;
    let mut batch = records(4, 200);
    batch.push(noted(999));
    // Sent together, so that a backend that commits several batches at once does so here.
    let (bad, good) = tokio::join!(
        journal.append("bad", epoch, 3, batch.into()),
        journal.append("good", good_epoch, 3, records(4, 200).into()),
    );
    assert!(bad.is_err());
    good.unwrap();
    assert_eq!(all(&journal, "bad").await, records(1, 3));
    assert_eq!(journal.head("bad").await.unwrap().unwrap().last_seq, 3);
    assert_eq!(all(&journal, "good").await, records(1, 200));
}

pub(super) async fn allows_an_empty_batch<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let epoch = run_of(&journal, "run", 2).await;
    journal.append("run", epoch, 2, Vec::new().into()).await.unwrap();
    assert!(journal.append("run", epoch, 1, Vec::new().into()).await.unwrap_err().is_fenced());
    assert!(journal.append("run", epoch + 1, 2, Vec::new().into()).await.unwrap_err().is_fenced());
    assert_eq!(all(&journal, "run").await, records(1, 2));
}

pub(super) async fn needs_an_epoch<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let error = journal.append("run", 1, 0, records(1, 1).into()).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Fenced { run: "run".into(), held: 1, found: 0 });
    let epoch = journal.acquire("run").await.unwrap();
    let error = journal.append("run", epoch + 1, 0, records(1, 1).into()).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Fenced { run: "run".into(), held: epoch + 1, found: epoch });
    assert_eq!(journal.head("run").await.unwrap(), None);
}

pub(super) async fn fences_older_epochs<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let old = run_of(&journal, "run", 3).await;
    let new = journal.acquire("run").await.unwrap();
    assert!(new > old);
    let error = journal.append("run", old, 3, records(4, 4).into()).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Fenced { run: "run".into(), held: old, found: new });
    journal.append("run", new, 3, records(4, 4).into()).await.unwrap();
    // Being fenced comes before being at another seq: the writer must stop, not look again.
    let error = journal.append("run", old, 3, records(4, 4).into()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Fenced { .. }), "{error:?}");
    assert_eq!(all(&journal, "run").await, records(1, 4));
}

pub(super) async fn raises_epochs_for_each_taker<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let mut takers = JoinSet::new();
    for _ in 0..24 {
        let journal = journal.clone();
        takers.spawn(async move { journal.acquire("run").await.unwrap() });
    }
    let epochs: BTreeSet<_> = takers.join_all().await.into_iter().collect();
    assert_eq!(epochs.len(), 24, "{epochs:?}");
    let holder = *epochs.last().unwrap();
    for epoch in epochs {
        let result = journal.append("run", epoch, 0, records(1, 1).into()).await;
        assert_eq!(result.is_ok(), epoch == holder, "epoch {epoch} of {holder}");
    }
}

pub(super) async fn folds_heads<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let epoch = journal.acquire("run").await.unwrap();
    let mut expected = RunHead::new("run");
    let events = [
        started("reef", "delivery"),
        noted(0).event,
        finished(RunStatus::Failed),
        Event::RunResumed { epoch: 2 },
        noted(0).event,
        finished(RunStatus::Succeeded),
    ];
    for (seq, event) in (1..).zip(events) {
        let record = Record { seq, at_ms: 1_000 * seq, event };
        expected.apply(&record);
        journal.append("run", epoch, seq - 1, vec![record].into()).await.unwrap();
        assert_eq!(journal.head("run").await.unwrap().as_ref(), Some(&expected));
    }
    assert_eq!(expected.status, RunStatus::Succeeded);
    assert_eq!((expected.started_at_ms, expected.updated_at_ms), (1_000, 6_000));
}

pub(super) async fn filters_runs<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let mut heads = Vec::new();
    for (run, project, workflow, status) in [
        ("c", "reef", "delivery", RunStatus::Running),
        ("a", "reef", "audit", RunStatus::Succeeded),
        ("b", "kelp", "delivery", RunStatus::Failed),
        ("B", "reef", "delivery", RunStatus::Cancelled),
        ("é", "kelp", "audit", RunStatus::Running),
        ("a-1", "", "delivery", RunStatus::Running),
    ] {
        let epoch = journal.acquire(run).await.unwrap();
        let mut batch = vec![Record { event: started(project, workflow), ..first() }];
        if status != RunStatus::Running {
            batch.push(Record { seq: 2, at_ms: 2, event: finished(status) });
        }
        let mut head = RunHead::new(run);
        batch.iter().for_each(|record| head.apply(record));
        heads.push(head);
        journal.append(run, epoch, 0, batch.into()).await.unwrap();
    }
    heads.sort_by(|a, b| a.run.cmp(&b.run));
    let some = |text: &str| Some(text.to_owned());
    for workflow in [None, some("delivery"), some("audit"), some("none")] {
        for project in [None, some("reef"), some("kelp"), some("")] {
            for status in [None, Some(RunStatus::Running), Some(RunStatus::Failed)] {
                let mut filter = RunFilter::default();
                filter.workflow.clone_from(&workflow);
                filter.project.clone_from(&project);
                filter.status = status;
                let expected: Vec<_> = heads.iter().filter(|head| filter.matches(head)).cloned().collect();
                assert_eq!(journal.runs(&filter).await.unwrap(), expected, "{filter:?}");
            }
        }
    }
}

pub(super) async fn takes_any_id<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let long = "r".repeat(2_000);
    let ids = ["", "'; DROP TABLE runs; --", "a/b/../c", "%", "_", "\u{1F980}\n\t\"", "run", "RUN", &long];
    for (id, last) in ids.into_iter().zip(1..) {
        run_of(&journal, id, last).await;
    }
    for (id, last) in ids.into_iter().zip(1..) {
        assert_eq!(all(&journal, id).await, records(1, last), "{id}");
    }
    let listed: Vec<_> =
        journal.runs(&RunFilter::default()).await.unwrap().into_iter().map(|head| head.run).collect();
    let sorted: BTreeSet<_> = ids.into_iter().map(str::to_owned).collect();
    assert_eq!(listed, sorted.into_iter().collect::<Vec<_>>());
}

pub(super) async fn keeps_large_payloads<B: Backend>(_: &str) {
    let (place, journal) = open::<B>().await;
    let epoch = run_of(&journal, "run", 1).await;
    // Numbers that no compression makes small.
    let mut state = 1u64;
    let noise: Vec<u64> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 1
    })
    .take(200_000)
    .collect();
    let note = serde_json::to_value(noise).unwrap();
    let event = Event::Noted { path: "a".into(), topic: "large".into(), note };
    let large = Record { seq: 2, at_ms: 5, event };
    journal.append("run", epoch, 1, vec![large.clone(), noted(3)].into()).await.unwrap();
    drop(journal);
    let journal = place.open().await.unwrap();
    assert_eq!(all(&journal, "run").await, [first(), large, noted(3)]);
}

pub(super) async fn keeps_payloads_by_reference<B: Backend>(_: &str) {
    let (place, journal) = open::<B>().await;
    let Some(blobs) = place.blobs().await else { return skipped("the backend names no blobs") };
    let epoch = run_of(&journal, "run", 1).await;
    let before = place.bytes().await;
    let large: Vec<u8> = (0..2_000_000u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let blob = blobs.put(&large).await.unwrap();
    assert_eq!(blobs.put(&large).await.unwrap(), blob, "the same bytes are the same blob");
    let event = Event::Noted {
        path: "a".into(),
        topic: "deliverable".into(),
        note: serde_json::to_value(&blob).unwrap(),
    };
    journal.append("run", epoch, 1, vec![Record { seq: 2, at_ms: 2, event }].into()).await.unwrap();
    drop((journal, blobs));
    let journal = place.open().await.unwrap();
    let Some(Event::Noted { note, .. }) = all(&journal, "run").await.pop().map(|record| record.event) else {
        panic!("the note is gone");
    };
    let blobs = place.blobs().await.unwrap();
    let found = blobs.get(&serde_json::from_value(note).unwrap()).await.unwrap();
    assert!(found.as_deref() == Some(&large[..]), "the payload reads otherwise than it was written");
    assert_eq!(blobs.get(&coral_core::BlobRef::of(b"never kept")).await.unwrap(), None);
    if let Some((before, after)) = before.zip(place.bytes().await) {
        let twice = 2 * large.len() as u64;
        assert!(after.saturating_sub(before) < twice, "the payload is kept once, not {before} to {after}");
    }
}

pub(super) async fn survives_torn_writes<B: Backend>(_: &str) {
    let (place, journal) = open::<B>().await;
    let epoch = run_of(&journal, "run", 4).await;
    journal.append("run", epoch, 4, records(5, 9).into()).await.unwrap();
    for bytes in [1, 7, 100, 600, 4_000, 9_000] {
        let Some(torn) = place.torn(bytes).await else {
            return skipped("the backend can't be torn");
        };
        let survivor = torn.open().await.unwrap();
        let kept = all(&survivor, "run").await;
        let last = kept.len() as Seq;
        assert!(matches!(last, 0 | 4 | 9), "{last} records are not whole batches, {bytes} bytes cut off");
        assert_eq!(kept, records(1, last));
        let head = survivor.head("run").await.unwrap();
        assert_eq!(head.map_or(0, |head| head.last_seq), last);
        let epoch = survivor.acquire("run").await.unwrap();
        survivor.append("run", epoch, last, records(last + 1, last + 3).into()).await.unwrap();
        assert_eq!(all(&survivor, "run").await, records(1, last + 3), "it goes on from there");
    }
}

pub(super) async fn serves_many_runs_at_once<B: Backend>(_: &str) {
    const RUNS: usize = 64;
    let (_place, journal) = open::<B>().await;
    let mut writers = JoinSet::new();
    for n in 0..RUNS {
        let journal = journal.clone();
        writers.spawn(async move {
            let run = format!("run-{n:02}");
            let epoch = journal.acquire(&run).await.unwrap();
            for at in 0..20 {
                journal.append(&run, epoch, at, records(at + 1, at + 1).into()).await.unwrap();
                if at % 7 == 3 {
                    // A mistake in one run is nobody else's trouble.
                    assert!(journal.append(&run, epoch, at, records(at + 1, at + 1).into()).await.is_err());
                    assert_eq!(
                        all(&journal, &run).await.len() as Seq,
                        at + 1,
                        "a writer reads its own writes"
                    );
                }
            }
        });
    }
    writers.join_all().await;
    let heads = journal.runs(&RunFilter::unfinished()).await.unwrap();
    assert_eq!(heads.len(), RUNS);
    for head in heads {
        assert_eq!(head.last_seq, 20);
        assert_eq!(all(&journal, &head.run).await, records(1, 20));
    }
}

pub(super) async fn lets_one_racer_win<B: Backend>(_: &str) {
    let (place, journal) = open::<B>().await;
    let other = Arc::new(place.open().await.unwrap());
    let epoch = run_of(&journal, "run", 1).await;
    for at in 1..12 {
        let mut racers = JoinSet::new();
        for n in 0..8 {
            let journal = if n % 2 == 0 { journal.clone() } else { other.clone() };
            racers.spawn(async move {
                let record = Record { at_ms: n, ..noted(at + 1) };
                journal.append("run", epoch, at, vec![record].into()).await.map(|()| n)
            });
        }
        let results = racers.join_all().await;
        let winners: Vec<_> = results.iter().flatten().copied().collect();
        assert_eq!(winners.len(), 1, "at {at}: {results:?}");
        for error in results.into_iter().filter_map(Result::err) {
            let told = ErrorKind::Conflict { run: "run".into(), expected: at, found: at + 1 };
            assert_eq!(*error.kind(), told);
        }
        let kept = journal.read("run", at + 1, 9).await.unwrap();
        assert_eq!(kept.iter().map(|record| record.at_ms).collect::<Vec<_>>(), winners);
    }
}

pub(super) async fn shows_writes_to_other_handles<B: Backend>(_: &str) {
    let (place, one) = open::<B>().await;
    let two = place.open().await.unwrap();
    let first_epoch = run_of(&one, "run", 2).await;
    assert_eq!(all(&two, "run").await, records(1, 2));
    one.append("run", first_epoch, 2, records(3, 3).into()).await.unwrap();
    two.append("run", first_epoch, 3, records(4, 4).into()).await.unwrap();
    one.append("run", first_epoch, 4, records(5, 5).into()).await.unwrap();
    let second_epoch = two.acquire("run").await.unwrap();
    assert!(second_epoch > first_epoch);
    let error = one.append("run", first_epoch, 5, records(6, 6).into()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Fenced { .. }), "{error:?}");
    two.append("run", second_epoch, 5, records(6, 6).into()).await.unwrap();
    assert_eq!(one.head("run").await.unwrap().unwrap().last_seq, 6);
    assert_eq!(one.acquire("run").await.unwrap(), second_epoch + 1);
}

pub(super) async fn follows_in_order<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let mut followers = JoinSet::new();
    for from in [0, 1, 2, 90, 300] {
        let mut follower = B::follow(journal.clone(), "run", from);
        followers.spawn(async move {
            let mut seen = Vec::new();
            while seen.last().is_none_or(|record: &Record| record.seq < 600) {
                seen.push(follower.next().await.unwrap());
            }
            assert_eq!(seen, records(from.max(1), 600));
        });
    }
    let epoch = run_of(&journal, "run", 3).await;
    let other = run_of(&journal, "other", 1).await;
    let mut at = 3;
    while at < 600 {
        let to = 600.min(at + 1 + at % 9);
        journal.append("run", epoch, at, records(at + 1, to).into()).await.unwrap();
        at = to;
        if at % 10 == 0 {
            // One who gives up waiting and comes back misses nothing either.
            let mut hasty = B::follow(journal.clone(), "run", at + 1);
            let _ = tokio::time::timeout(Duration::from_millis(1), hasty.next()).await;
        }
    }
    journal.append("other", other, 1, records(2, 2).into()).await.unwrap();
    followers.join_all().await;
}

pub(super) async fn follows_what_others_append<B: Backend>(_: &str) {
    let (place, journal) = open::<B>().await;
    let elsewhere = place.open().await.unwrap();
    let mut follower = B::follow(journal, "run", 2);
    let epoch = run_of(&elsewhere, "run", 1).await;
    let (seen, ()) = tokio::join!(follower.next(), async {
        elsewhere.append("run", epoch, 1, records(2, 2).into()).await.unwrap();
    });
    assert_eq!(seen.unwrap(), noted(2));
}

pub(super) async fn reopens<B: Backend>(_: &str) {
    let (place, journal) = open::<B>().await;
    let epoch = run_of(&journal, "run", 9).await;
    let head = journal.head("run").await.unwrap();
    drop(journal);
    let journal = place.open().await.unwrap();
    assert_eq!(all(&journal, "run").await, records(1, 9));
    assert_eq!(journal.head("run").await.unwrap(), head);
    journal.append("run", epoch, 9, records(10, 10).into()).await.unwrap();
    assert!(journal.acquire("run").await.unwrap() > epoch, "an epoch never comes back");
}

pub(super) async fn keeps_dropped_appends_whole<B: Backend>(_: &str) {
    let (_place, journal) = open::<B>().await;
    let mut epoch = run_of(&journal, "run", 1).await;
    let mut at = 1;
    for polls in 0..20 {
        let batch = records(at + 1, at + 5);
        {
            let mut append = journal.append("run", epoch, at, batch.into());
            for _ in 0..=polls % 4 {
                if std::future::poll_fn(|cx| std::task::Poll::Ready(append.as_mut().poll(cx).is_ready()))
                    .await
                {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        // Taking the run over comes after whatever the dropped append still does.
        epoch = journal.acquire("run").await.unwrap();
        let last = journal.head("run").await.unwrap().unwrap().last_seq;
        assert!(last == at || last == at + 5, "{last} after {at}");
        assert_eq!(all(&journal, "run").await, records(1, last));
        at = last;
    }
}

pub(super) async fn grows_linearly<B: Backend>(_: &str) {
    const STEP: Seq = 2_000;
    let (place, journal) = open::<B>().await;
    let epoch = run_of(&journal, "run", 1).await;
    let mut at = 1;
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let end = at + STEP;
        while at < end {
            journal.append("run", epoch, at, records(at + 1, at + 20).into()).await.unwrap();
            at += 20;
        }
        match place.bytes().await {
            Some(bytes) => sizes.push(bytes),
            None => return,
        }
    }
    let written: usize =
        records(2, STEP + 1).iter().map(|record| serde_json::to_vec(&record.event).unwrap().len()).sum();
    let grown: Vec<_> =
        sizes.iter().zip(sizes.iter().skip(1)).map(|(before, after)| after - before).collect();
    let [early, late] = grown[..] else { panic!("{sizes:?}") };
    // Files grow by many pages at once.
    let page = 128 << 10;
    assert!(
        late * 10 <= early * 12 + page * 10,
        "{STEP} records took {early} bytes, the next {STEP} took {late}"
    );
    let both = early + late;
    assert!(both * 10 <= written as u64 * 26 + page * 10, "twice {written} bytes of events took {both}");
}

pub(super) async fn survives_kill<B: Backend>(test: &str) {
    crash::check::<B>(test).await;
}
