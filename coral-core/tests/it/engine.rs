//! Steps, edges, conditions, joins, failure, cancellation.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coral_core::{
    AgentError, ErrorKind, FirstOk, Flow, Handle, MemoryJournal, Quorum, RetryPolicy, RunStatus, Runner,
    Settle, StartOptions, Workflow,
};

use crate::support::story;

macro_rules! workflow {
    ($name:ident, $input:ty => $output:ty, |$flow:ident| $build:expr) => {
        struct $name;
        impl Workflow for $name {
            type Input = $input;
            type Output = $output;
            fn name(&self) -> &str {
                stringify!($name)
            }
            fn build(&self, $flow: &mut Flow<$input>) -> Handle<$output> {
                $build
            }
        }
    };
}

fn runner() -> Runner {
    Runner::builder().journal(MemoryJournal::new()).build()
}

workflow!(Chain, u32 => u32, |flow| {
    let a = flow.function("a", flow.input(), |n: u32| async move { Ok(n + 1) });
    let b = flow.function("b", &a, |n: u32| async move { Ok(n * 10) });
    flow.function("c", &b, |n: u32| async move { Ok(n + 2) })
});

#[tokio::test]
async fn a_chain_runs_in_order() {
    let run = runner().start(&Chain, 1).await.unwrap();
    assert_eq!(run.output().await.unwrap(), 22);
    assert_eq!(
        story(&run).await,
        [
            "run_started",
            "step_started a",
            "step_succeeded a",
            "step_started b",
            "step_succeeded b",
            "step_started c",
            "step_succeeded c",
            "run_finished succeeded",
        ]
    );
}

workflow!(Diamond, String => String, |flow| {
    let left = flow.function("left", flow.input(), |s: String| async move { Ok(format!("{s}<")) });
    let right = flow
        .function("right", flow.input(), |s: String| async move { Ok(format!(">{s}")) })
        .when("wants_right");
    let join = flow.function("join", (&left, &right), |(l, r): (String, Option<String>)| async move {
        Ok(format!("{l}{}", r.unwrap_or_default()))
    });
    flow.function("again", (flow.input(), &join), |(i, j): (String, String)| async move { Ok(format!("{i}:{j}")) })
});

#[tokio::test]
async fn a_condition_decides_whether_a_step_runs() {
    let run = runner().start(&Diamond, "x".to_owned()).await.unwrap();
    assert_eq!(run.output().await.unwrap(), "x:x<");
    assert!(story(&run).await.contains(&"step_skipped right because `wants_right` does not hold".to_owned()));
    let run = runner()
        .start_with(&Diamond, "x".to_owned(), StartOptions::new().fact("wants_right", true))
        .await
        .unwrap();
    assert_eq!(run.output().await.unwrap(), "x:x<>x");
}

static FLAKY: AtomicUsize = AtomicUsize::new(0);

workflow!(Flaky, u32 => u32, |flow| {
    let ok = flow.function("ok", flow.input(), |n: u32| async move {
        FLAKY.fetch_add(100, Ordering::SeqCst);
        Ok(n)
    });
    let flaky = flow
        .function("flaky", flow.input(), |n: u32| async move {
            match FLAKY.fetch_add(1, Ordering::SeqCst) % 100 {
                0 | 1 => Err(AgentError::transient("busy")),
                _ => Ok(n),
            }
        })
        .retry(RetryPolicy::attempts(2));
    flow.function("sum", (&ok, &flaky), |(a, b): (u32, u32)| async move { Ok(a + b) })
});

#[tokio::test(start_paused = true)]
async fn a_failed_step_is_tried_again_and_a_failed_run_resumed_without_its_finished_siblings() {
    let runner = runner();
    let run = runner.start(&Flaky, 4).await.unwrap();
    let error = run.output().await.unwrap_err();
    assert_eq!(error.to_string(), "busy");
    assert_eq!(FLAKY.load(Ordering::SeqCst), 102);
    let again = runner.resume(&Flaky, run.id()).await.unwrap();
    assert_eq!(again.output().await.unwrap(), 8);
    assert_eq!(FLAKY.load(Ordering::SeqCst), 103, "`ok` did not run again");
    let story = story(&again).await;
    assert_eq!(story.iter().filter(|line| *line == "step_started flaky").count(), 3);
    assert!(story.contains(&"step_skipped sum because `flaky` failed".to_owned()));
    assert_eq!(story.last().unwrap(), "run_finished succeeded");
}

workflow!(Joins, u32 => (u32, Vec<u32>, Vec<Option<u32>>), |flow| {
    let slow = flow.function("slow", flow.input(), |n: u32| async move {
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        Ok(n)
    });
    let fast = flow.function("fast", flow.input(), |n: u32| async move { Ok(n + 1) });
    let bad = flow.function("bad", flow.input(), |_: u32| async move { Err::<u32, _>(AgentError::user("no")) });
    let first = flow.function("first", FirstOk([&slow, &fast, &bad]), |n: u32| async move { Ok(n) });
    let quorum = flow.function("quorum", Quorum(2, [&slow, &fast, &bad]), |n: Vec<u32>| async move { Ok(n) });
    let settle = flow.function("settle", Settle([&slow, &fast, &bad]), |n: Vec<Option<u32>>| async move { Ok(n) });
    flow.function("all", (&first, &quorum, &settle), |all: (u32, Vec<u32>, Vec<Option<u32>>)| async move { Ok(all) })
});

#[tokio::test(start_paused = true)]
async fn joins_wait_for_as_many_as_they_say() {
    let run = runner().start(&Joins, 1).await.unwrap();
    assert_eq!(run.output().await.unwrap(), (2, vec![1, 2], vec![Some(1), Some(2), None]));
    let story = story(&run).await;
    let at = |line: &str| story.iter().position(|l| l == line).unwrap();
    assert!(at("step_succeeded first") < at("step_succeeded slow"));
}

workflow!(Panics, u32 => u32, |flow| {
    flow.function("boom", flow.input(), |n: u32| async move {
        if n == 0 { panic!("n is {n}") }
        Ok(n)
    })
});

#[tokio::test]
async fn a_panic_ends_the_step_and_not_the_process() {
    let run = runner().start(&Panics, 0).await.unwrap();
    let error = run.output().await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Panicked { what, message } if what == "boom" && message == "n is 0")
    );
}

workflow!(Sleeps, u32 => u32, |flow| {
    let a = flow.function("a", flow.input(), |n: u32| async move {
        std::future::pending::<()>().await;
        Ok(n)
    });
    flow.function("b", &a, |n: u32| async move { Ok(n) })
});

#[tokio::test]
async fn cancelling_stops_what_runs_and_skips_the_rest() {
    let run = runner().start(&Sleeps, 0).await.unwrap();
    run.cancel("enough").await;
    assert_eq!(run.wait().await.unwrap(), RunStatus::Cancelled);
    assert!(run.output().await.unwrap_err().is_cancelled());
    assert_eq!(
        story(&run).await,
        [
            "run_started",
            "step_started a",
            "cancel_requested",
            "step_failed a",
            "step_skipped b because the run was cancelled",
            "run_finished cancelled"
        ]
    );
}

#[tokio::test]
async fn a_second_writer_fences_the_first() {
    let journal = Arc::new(MemoryJournal::new());
    let one = Runner::builder().journal(journal.clone()).build();
    let two = Runner::builder().journal(journal).build();
    let run = one.start(&Sleeps, 0).await.unwrap();
    let taken = two.resume(&Sleeps, run.id()).await.unwrap();
    run.cancel("too late").await;
    assert!(run.wait().await.unwrap_err().is_fenced());
    taken.cancel("enough").await;
    assert_eq!(taken.wait().await.unwrap(), RunStatus::Cancelled);
}

#[tokio::test]
async fn a_suspended_run_is_recovered() {
    let journal = Arc::new(MemoryJournal::new());
    let runner = Runner::builder().journal(journal.clone()).build();
    let run = runner.start(&Sleeps, 0).await.unwrap();
    runner.shutdown().await;
    assert!(matches!(run.wait().await.unwrap_err().kind(), ErrorKind::Suspended { .. }));
    let program = coral_core::Program::new(&Sleeps).unwrap();
    let recovered = Runner::builder().journal(journal).build().recover(&program).await.unwrap();
    assert_eq!(recovered.len(), 1);
    assert_eq!(recovered[0].0, run.id());
    recovered[0].1.as_ref().unwrap().cancel("enough").await;
}
