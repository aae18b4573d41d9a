//! Forks of runs that work, and runs that are taken up on other machines.

use std::sync::Arc;
use std::time::Duration;

use coral_core::{
    Brief, Budget, Clock, Event, GraphData, Journal, ManualClock, Outcome, RetryPolicy, StartOptions,
    StepData, StepKind, digest,
};

use super::{World, agent, ask, flaky, graph};
use crate::support::{records, step};

/// A graph of three to seven steps of any kind, each after some of those before it.
fn drawn(chance: &ManualClock) -> Arc<GraphData> {
    let draw = |below: u64| chance.random() % below;
    let mut steps: Vec<StepData> = Vec::new();
    for n in 0..3 + draw(5) {
        let name = format!("s{n}");
        let before: Vec<String> = steps.iter().map(|step| step.name.to_string()).collect();
        let before: Vec<&str> = before.iter().filter(|_| draw(3) == 0).map(String::as_str).take(2).collect();
        steps.push(match draw(6) {
            0 => ask(&name, &before),
            1 => flaky(&name, &before),
            2 => StepData {
                retry: RetryPolicy::attempts(2),
                budget: Budget::new().calls(50),
                ..agent(&name, "seller", &before)
            },
            3 => step(&name, StepKind::Timer(5), &before),
            4 => {
                let inside = vec![agent("x", "buyer", &[]), ask("q", &["x"]), agent("y", "buyer", &["q"])];
                step(&name, StepKind::Workflow(graph("sub", inside)), &before)
            }
            _ => agent(&name, "buyer", &before),
        });
    }
    graph("drawn", steps)
}

#[tokio::test(start_paused = true)]
async fn a_fork_of_a_run_that_works_leaves_it_alone_and_both_come_to_the_same() {
    let chance = ManualClock::default();
    let mut prefixes = 0;
    for seed in 0..120 {
        let graph = drawn(&chance);
        let world = World::new(&graph);
        let runner = world.runner(world.journal.clone());
        let budget = Budget::new().calls(10_000).agents(10_000).wall_ms(86_400_000);
        let options = StartOptions::new().id("run").budget(budget);
        let run = runner.start_with(&world.program, Brief::default(), options).await.unwrap();
        // It works on for a while, and is not stopped.
        let mut events = run.events(1);
        let mut last = 1;
        for _ in 0..chance.random() % 60 {
            match tokio::time::timeout(Duration::from_secs(5), events.next()).await {
                Ok(Some(Ok(record))) => last = record.seq,
                _ => break,
            }
        }
        let at = 1 + chance.random() % last;
        let parent = records(&*world.journal, "run").await;
        let before = digest(&parent).unwrap();
        let fork = runner.fork(&world.program, "run", at, Some("fork".into())).await.unwrap();
        let answers = [tokio::spawn(world.answering(&run)), tokio::spawn(world.answering(&fork))];
        let outputs = [run.output().await.unwrap(), fork.output().await.unwrap()];
        assert_eq!(outputs[0], outputs[1], "seed {seed}, forked at {at}");
        answers.iter().for_each(tokio::task::JoinHandle::abort);
        let (of_run, of_fork) =
            (records(&*world.journal, "run").await, records(&*world.journal, "fork").await);
        assert_eq!(digest(&of_run[..parent.len()]).unwrap(), before, "seed {seed}: the parent's bytes");
        assert_eq!(of_fork[1..at as usize], parent[1..at as usize], "seed {seed}: the prefix");
        // What was done before the fork does not arrive again, under a key of the fork.
        for record in &parent[..at as usize] {
            if let Event::EffectDone { path, attempt, index, outcome: Outcome::Ok(_), .. } = &record.event {
                let key = coral_core::sha256_hex(format!("fork/{path}#{attempt}:{index}").as_bytes());
                assert!(!world.shop.knows(&key), "seed {seed}: effect {index} of `{path}`");
                prefixes += 1;
            }
        }
    }
    assert!(prefixes > 100, "only {prefixes} effects before the forks");
}

/// Each hash map has a seed of its own, so each process here has others.
#[test]
fn a_run_that_is_taken_up_writes_the_same_bytes_under_any_number_of_threads() {
    let inside = vec![agent("x", "buyer", &[]), ask("q", &["x"]), agent("y", "buyer", &["q"])];
    let steps = vec![
        agent("a", "seller", &[]),
        step("sub", StepKind::Workflow(graph("sub", inside)), &["a"]),
        ask("sure", &["sub"]),
        agent("end", "buyer", &["sure"]),
    ];
    let steps = steps.into_iter().map(|step| StepData {
        retry: RetryPolicy {
            backoff_ms: 1,
            ..RetryPolicy::attempts(if step.kind.agent().is_some() { 2 } else { 1 })
        },
        ..step
    });
    let graph = graph("chain", steps.collect());
    let threads = |threads: usize| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_time().build().unwrap()
    };
    let still = || World { stands: true, ..World::new(&graph) };
    let whole = still();
    let recorded = threads(1).block_on(async {
        whole.live(None).await.unwrap();
        records(&*whole.journal, "run").await
    });
    for cut in [5, recorded.len() / 3, recorded.len() / 2, recorded.len() - 5] {
        let journals: Vec<String> = [1, 2, 4, 4]
            .map(|number| {
                let world = still();
                threads(number).block_on(async {
                    let epoch = world.journal.acquire("run").await.unwrap();
                    world.journal.append("run", epoch, 0, recorded[..cut].into()).await.unwrap();
                    world.live(None).await.unwrap();
                    serde_json::to_string(&records(&*world.journal, "run").await).unwrap()
                })
            })
            .into();
        assert!(journals.iter().all(|journal| *journal == journals[0]), "cut off at {cut}");
    }
}
