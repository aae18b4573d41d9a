//! Forking a run at any of its records, and looking at any of its pasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coral_core::{
    ErrorKind, Event, Flow, Handle, Journal, MemoryJournal, RunStatus, Runner, StepState, Workflow, digest,
};

use crate::support::records;

/// A map over a sub-workflow, then a loop: nested in every way.
struct Nested(Arc<AtomicUsize>);

struct Inc(Arc<AtomicUsize>);

impl Workflow for Inc {
    type Input = u32;
    type Output = u32;

    fn name(&self) -> &str {
        "inc"
    }

    fn build(&self, flow: &mut Flow<u32>) -> Handle<u32> {
        let count = self.0.clone();
        let one = flow.function("one", flow.input(), move |n: u32| {
            count.fetch_add(1, Ordering::SeqCst);
            async move { Ok(n + 1) }
        });
        flow.function("two", &one, |n: u32| async move { Ok(n + 1) })
    }
}

impl Workflow for Nested {
    type Input = Vec<u32>;
    type Output = u32;

    fn name(&self) -> &str {
        "nested"
    }

    fn build(&self, flow: &mut Flow<Vec<u32>>) -> Handle<u32> {
        let count = self.0.clone();
        let all = flow.map("each", 2, flow.input(), move |flow: &mut Flow<u32>| {
            flow.workflow(&Inc(count), flow.input())
        });
        let sum = flow.function("sum", &all, |all: Vec<u32>| async move { Ok(all.iter().sum::<u32>()) });
        flow.repeat("double", "output > 50", 9, &sum, |flow: &mut Flow<u32>| {
            flow.function("twice", flow.input(), |n: u32| async move { Ok(n * 2) })
        })
    }
}

/// Time travel into a sub-graph runs the whole again, and a fork writes into its parent.
#[tokio::test]
async fn langgraph_7038_7115_7498_8458_8551_a_fork_leaves_its_parent_alone_and_runs_only_what_comes_after() {
    let journal = Arc::new(MemoryJournal::new());
    let runner = Runner::builder().journal(journal.clone()).build();
    let flow = Nested(Arc::default());
    let run = runner.start(&flow, vec![1, 2, 3]).await.unwrap();
    let expected = run.output().await.unwrap();
    let parent = records(&*journal, run.id()).await;
    let before = digest(&parent).unwrap();
    for at in 1..=parent.len() as u64 {
        let done = parent[..at as usize]
            .iter()
            .filter(
                |record| matches!(&record.event, Event::StepSucceeded { path, .. } if path.ends_with("/one")),
            )
            .count();
        flow.0.store(0, Ordering::SeqCst);
        let fork = runner.fork(&flow, run.id(), at, None).await.unwrap();
        assert_eq!(fork.output().await.unwrap(), expected, "forked at {at}");
        assert_eq!(flow.0.load(Ordering::SeqCst), 3 - done, "forked at {at}");
        let records = records(&*journal, fork.id()).await;
        assert_eq!(records[1..at as usize], parent[1..at as usize], "the prefix is the same");
        match &records[0].event {
            Event::RunStarted { forked_from: Some(point), .. } => {
                assert_eq!((&*point.run, point.seq), (run.id(), at));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(digest(&records(&*journal, run.id()).await).unwrap(), before);
    let error = runner.fork(&flow, run.id(), 9_999, None).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Invalid { .. }), "{error}");
}

#[tokio::test]
async fn every_past_of_a_run_can_be_looked_at() {
    let journal = Arc::new(MemoryJournal::new());
    let runner = Runner::builder().journal(journal.clone()).build();
    let run = runner.start(&Nested(Arc::default()), vec![1]).await.unwrap();
    run.output().await.unwrap();
    let last = journal.head(run.id()).await.unwrap().unwrap().last_seq;
    let mut settled = 0;
    for at in 1..=last {
        let past = runner.inspect(run.id(), Some(at)).await.unwrap();
        let now = past.steps().filter(|(_, state)| state.is_settled()).count();
        assert!(now >= settled);
        settled = now;
        assert_eq!(past.status() == RunStatus::Succeeded, at == last);
    }
    let now = runner.inspect(run.id(), None).await.unwrap();
    let state = now.state(now.step("each/item[0]/inc/two").unwrap()).unwrap();
    assert!(matches!(state, StepState::Succeeded(output) if output.get::<u32>().unwrap() == 3));
}
