//! Journals of every release load and go on.

use std::collections::BTreeSet;

use coral_core::{Brief, Budget, Event, Journal, Record, ResumeOptions, RunStatus, StartOptions, StepData};

use super::{World, agent, key, reviewer, samples};
use crate::support::{CrashJournal, line, records};

/// Where the journals of releases are kept: they load and go on forever.
fn fixture(release: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/journal-{release}.json"))
}

/// A run of the last sample, cut off in its middle, as each release wrote it. A new release adds its own:
/// `CORAL_WRITE_FIXTURE=1.2.3 cargo test -p coral-core --test it journals_of_every_release`.
#[tokio::test(start_paused = true)]
async fn journals_of_every_release_load_and_go_on() {
    let six = samples().pop().unwrap();
    let calm = World::new(&six);
    let expected = calm.live(None).await.unwrap();
    if let Ok(release) = std::env::var("CORAL_WRITE_FIXTURE") {
        let cut = World::new(&six);
        cut.live(Some((24, true))).await.unwrap_err();
        let text = serde_json::to_string_pretty(&records(&*cut.journal, "run").await).unwrap();
        std::fs::write(fixture(&release), text + "\n").unwrap();
    }
    for release in ["0.1.0"] {
        let text = std::fs::read_to_string(fixture(release)).unwrap();
        let recorded: Vec<Record> = serde_json::from_str(&text).unwrap();
        let open =
            recorded.iter().filter(|record| matches!(record.event, Event::QuestionAsked { .. })).count();
        assert!(open > 0 && recorded.len() > 60, "{release}: a fixture that shows something");
        let world = World::new(&six);
        let epoch = world.journal.acquire("run").await.unwrap();
        world.journal.append("run", epoch, 0, recorded.clone().into()).await.unwrap();
        assert_eq!(world.live(None).await.unwrap(), expected, "{release}");
        let after = records(&*world.journal, "run").await;
        assert_eq!(after[..recorded.len()], recorded[..], "{release}: what was recorded stays");
        world.check().await;
    }
}

/// Stopped by a budget, topped up, cut off by a crash: with failures, retries, a skipped step, a round of review, a
/// signal, timers, and calls of models and tools of each class.
#[tokio::test(start_paused = true)]
async fn journals_with_every_turn_of_a_run_load_and_go_on() {
    let mut all = (*samples().into_iter().find(|graph| graph.name == "shop").unwrap()).clone();
    let never = StepData { when: Some("input.nothing == 1".into()), ..agent("never", "buyer", &["list"]) };
    all.steps.extend([
        never,
        agent("end", "buyer", &["m"]),
        agent("work", "buyer", &["list"]),
        reviewer("critic", "critic2", &["work"]),
    ]);
    let calm = World::new(&all);
    let expected = calm.live(None).await.unwrap();
    let kinds = |recorded: &[Record]| {
        let kind = |record: &Record| line(&record.event).split(' ').next().map(str::to_owned);
        recorded.iter().filter_map(kind).collect::<BTreeSet<String>>()
    };
    if let Ok(release) = std::env::var("CORAL_WRITE_FIXTURE") {
        let cut = World::new(&all);
        let options = StartOptions::new().id("run").budget(Budget::new().calls(6));
        let runner = cut.runner(cut.journal.clone());
        let run = runner.start_with(&cut.program, Brief::default(), options).await.unwrap();
        let answers = tokio::spawn(cut.answering(&run));
        assert_eq!(run.wait().await.unwrap(), RunStatus::Stopped);
        answers.abort();
        let more = ResumeOptions::new().top_up(Budget::new().calls(1_000));
        let dying = cut.runner(CrashJournal::new(cut.journal.clone(), 20, true));
        let run = dying.resume_with(&cut.program, "run", more).await.unwrap();
        let answers = tokio::spawn(cut.answering(&run));
        run.output().await.unwrap_err();
        answers.abort();
        let text = serde_json::to_string_pretty(&records(&*cut.journal, "run").await).unwrap();
        std::fs::write(fixture(&format!("{release}-turns")), text + "\n").unwrap();
    }
    for release in ["0.1.0-turns"] {
        let text = std::fs::read_to_string(fixture(release)).unwrap();
        let recorded: Vec<Record> = serde_json::from_str(&text).unwrap();
        let there = kinds(&recorded);
        for kind in [
            "budget_topped_up",
            "effect_done",
            "effect_intended",
            "handed_off",
            "retry_due",
            "run_finished",
            "run_resumed",
            "scope_opened",
            "sent_back",
            "signal_received",
            "stage_entered",
            "step_failed",
            "step_skipped",
            "step_started",
            "step_succeeded",
        ] {
            assert!(there.contains(kind), "{release}: no `{kind}` in {there:?}");
        }
        let world = World::new(&all);
        let epoch = world.journal.acquire("run").await.unwrap();
        world.journal.append("run", epoch, 0, recorded.clone().into()).await.unwrap();
        // What was done before has arrived: whoever is asked about it knows that.
        for record in &recorded {
            if let Event::EffectIntended { path, attempt, index, class, .. } = &record.event
                && !class.is_repeatable()
            {
                let done = |other: &Record| matches!(&other.event, Event::EffectDone { path: p, attempt: a, index: i, .. } if (p, a, i) == (path, attempt, index));
                if !recorded.iter().any(done) {
                    let seqs = vec![record.seq];
                    world.shop.arrivals.lock().unwrap().insert(key(path, *attempt, *index), seqs);
                }
            }
        }
        assert_eq!(world.live(None).await.unwrap(), expected, "{release}");
        let after = records(&*world.journal, "run").await;
        assert_eq!(after[..recorded.len()], recorded[..], "{release}: what was recorded stays");
        world.check().await;
    }
}
