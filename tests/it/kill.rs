//! `kill -9` at any moment, and on from there: nothing is lost, nothing is asked twice.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use coral_core::{ChatResponse, Event, Journal, Outcome, Record, RunFilter};
use coral_state::SqliteJournal;
use coral_tests::{Cut, Job, Provider, Wire, files};
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::deliver::{DELIVER, run_json, start};

const SIGKILL: i32 = 9;

/// All records of the one run below `out`.
async fn records(out: &Path) -> (String, Vec<Record>) {
    let journal = SqliteJournal::open(out.join(".coral/journal.db")).unwrap();
    let runs = journal.runs(&RunFilter::default()).await.unwrap();
    assert_eq!(runs.len(), 1);
    let run = runs[0].run.clone();
    let records = journal.read(&run, 1, usize::MAX).await.unwrap();
    (run, records)
}

/// The ids of the answers that are recorded.
fn recorded_answers(records: &[Record]) -> BTreeSet<String> {
    records
        .iter()
        .filter_map(|record| match &record.event {
            Event::EffectDone { outcome: Outcome::Ok(payload), .. } => payload.get::<ChatResponse>().ok()?.id,
            _ => None,
        })
        .collect()
}

/// Step, attempt, index, kind and request of an effect.
type Effect = (String, u32, u32, String, String);

/// The effects whose outcome is recorded, and how often it was.
fn completed(records: &[Record]) -> BTreeMap<Effect, usize> {
    let mut intents = BTreeMap::new();
    let mut completed = BTreeMap::new();
    for record in records {
        match &record.event {
            Event::EffectIntended { path, attempt, index, effect, digest, .. } => {
                intents.insert((path.clone(), *attempt, *index), (format!("{effect:?}"), digest.clone()));
            }
            Event::EffectDone { path, attempt, index, outcome: Outcome::Ok(_), .. } => {
                let (effect, digest) = intents[&(path.clone(), *attempt, *index)].clone();
                *completed.entry((path.to_string(), *attempt, *index, effect, digest)).or_default() += 1;
            }
            _ => {}
        }
    }
    completed
}

/// What each step gave.
fn outputs(records: &[Record]) -> BTreeMap<String, Value> {
    records
        .iter()
        .filter_map(|record| match &record.event {
            Event::StepSucceeded { path, output, .. } => {
                Some((path.to_string(), output.json().unwrap().clone()))
            }
            _ => None,
        })
        .collect()
}

/// What a run leaves that nobody disturbed.
struct Whole {
    files: BTreeMap<String, String>,
    outputs: BTreeMap<String, Value>,
    completed: BTreeMap<Effect, usize>,
    calls: usize,
}

/// Such a run, made once for each format.
async fn undisturbed(wire: Wire) -> &'static Whole {
    static ANTHROPIC: OnceCell<Whole> = OnceCell::const_new();
    static OPENAI: OnceCell<Whole> = OnceCell::const_new();
    let cell = match wire {
        Wire::Anthropic => &ANTHROPIC,
        Wire::OpenAi => &OPENAI,
    };
    cell.get_or_init(|| async {
        let provider = Provider::start().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let finished = start(dir.path(), &[]).env(provider.env(wire)).finish().await.unwrap();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let (_, records) = records(dir.path()).await;
        Whole {
            files: files(dir.path()).unwrap(),
            outputs: outputs(&records),
            completed: completed(&records),
            calls: provider.calls().len(),
        }
    })
    .await
}

/// Fails with what differs, and not with all there is.
fn same<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    a: &BTreeMap<K, V>,
    b: &BTreeMap<K, V>,
    what: &str,
) {
    let differs: Vec<_> = a.keys().chain(b.keys()).filter(|key| a.get(*key) != b.get(*key)).collect();
    assert!(differs.is_empty(), "{what}: these differ: {differs:#?}");
}

/// Kills the job at each of `cuts`, one after the other, resumes it after each, and compares the
/// end with that of a run that nobody disturbed.
async fn survives(wire: Wire, cuts: &[Cut]) {
    let whole = undisturbed(wire).await;
    let provider = Provider::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("killed");

    let mut job = start(&out, &[]).env(provider.env(wire));
    for cut in cuts {
        provider.cut(Some(*cut));
        let running = job.start().unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(60), provider.reached())
            .await
            .expect("the cut is reached");
        let status = running.kill().await.unwrap();
        assert_eq!(status.signal(), Some(SIGKILL), "{cut:?}: the job was still running");
        let (run, _) = records(&out).await;
        let args = ["--resume", &run, "--out", &out.to_string_lossy()].map(str::to_owned);
        job = Job::new(DELIVER, args).env(provider.env(wire));
    }
    let (_, at_last_kill) = records(&out).await;
    provider.cut(None);
    let finished = job.finish().await.unwrap();
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{cuts:?}: {}", finished.stdout);

    // The deliverables, what the steps gave and what was done are those of the undisturbed run.
    same(&files(&out).unwrap(), &whole.files, &format!("{cuts:?}, deliverables"));
    let (_, resumed) = records(&out).await;
    same(&outputs(&resumed), &whole.outputs, &format!("{cuts:?}, outputs"));
    let done = completed(&resumed);
    assert!(done.values().all(|times| *times == 1), "{cuts:?}: an effect was recorded twice: {done:?}");
    same(&done, &whole.completed, &format!("{cuts:?}, completed effects"));
    let resumes = resumed.iter().filter(|record| matches!(record.event, Event::RunResumed { .. })).count();
    assert_eq!(resumes, cuts.len());
    assert_eq!(run_json(&out)["resumed_at_ms"].as_array().unwrap().len(), cuts.len());

    // No call whose outcome was recorded, at the last kill or since, was sent again.
    let calls = provider.calls();
    let recorded = recorded_answers(&resumed);
    assert!(recorded.is_superset(&recorded_answers(&at_last_kill)), "{cuts:?}: what is recorded stays");
    for call in calls.iter().filter(|call| recorded.contains(&call.id)) {
        let again: Vec<_> =
            calls.iter().filter(|other| other.digest == call.digest && other.number > call.number).collect();
        assert!(again.is_empty(), "{cuts:?}: call {} was sent again as {again:?}", call.number);
    }
    // Each question has one answer on record, in all.
    assert_eq!(recorded.len(), whole.calls, "{cuts:?}");
}

#[tokio::test]
async fn a_kill_before_the_first_answer() {
    survives(Wire::Anthropic, &[Cut::Received(1)]).await;
}

#[tokio::test]
async fn a_kill_between_two_answers_of_a_step() {
    survives(Wire::OpenAi, &[Cut::Received(4)]).await;
}

#[tokio::test]
async fn a_kill_in_the_middle_of_an_answer() {
    survives(Wire::Anthropic, &[Cut::Midway(3)]).await;
    survives(Wire::OpenAi, &[Cut::Midway(2)]).await;
}

#[tokio::test]
async fn a_kill_while_steps_run_side_by_side() {
    survives(Wire::OpenAi, &[Cut::Answered(6)]).await;
    survives(Wire::Anthropic, &[Cut::Midway(8)]).await;
}

#[tokio::test]
async fn a_kill_right_after_an_answer() {
    survives(Wire::Anthropic, &[Cut::Answered(2)]).await;
}

#[tokio::test]
async fn a_kill_at_the_last_call() {
    survives(Wire::Anthropic, &[Cut::Received(18)]).await;
}

#[tokio::test]
async fn many_kills_of_one_run() {
    let cuts = [Cut::Received(2), Cut::Answered(2), Cut::Midway(1), Cut::Received(3), Cut::Answered(1)];
    survives(Wire::Anthropic, &cuts).await;
    survives(Wire::OpenAi, &cuts).await;
}

#[tokio::test]
async fn ctrl_c_stops_the_run_and_says_how_to_go_on() {
    let provider = Provider::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    provider.cut(Some(Cut::Received(3)));
    let running = start(&out, &[]).env(provider.env(Wire::OpenAi)).start().unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(60), provider.reached())
        .await
        .expect("the cut is reached");
    running.interrupt().unwrap();
    let finished = running.finish().await.unwrap();
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(130), ""), "{}", finished.stdout);
    let (run, _) = records(&out).await;
    assert!(finished.stdout.contains(&format!("go on with: cargo run --example deliver -- --resume {run}")));
    assert_eq!(run_json(&out)["status"], "running");

    provider.cut(None);
    let args = ["--resume", &run, "--out", &out.to_string_lossy()].map(str::to_owned);
    let finished = Job::new(DELIVER, args).env(provider.env(Wire::OpenAi)).finish().await.unwrap();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    same(&files(&out).unwrap(), &undisturbed(Wire::OpenAi).await.files, "deliverables");
}
