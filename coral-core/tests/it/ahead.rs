//! Functions that go ahead of the journal, and what does not.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, All, Event, Flow, Handle, Journal, MemoryJournal, RunStatus,
    Runner, Workflow,
};

use crate::support::{Watched, records};

/// The steps that the journal says have succeeded.
async fn done(journal: &MemoryJournal) -> Vec<String> {
    let Some(head) = journal.runs(&Default::default()).await.unwrap().pop() else { return Vec::new() };
    let records = records(journal, &head.run).await;
    let done = records.iter().filter_map(|record| match &record.event {
        Event::StepSucceeded { path, .. } => Some(path.to_string()),
        _ => None,
    });
    done.collect()
}

/// Says what is durable when it begins.
struct Witness(AgentSpec, Arc<Watched>);

#[async_trait]
impl Agent for Witness {
    type Input = u64;
    type Output = Vec<String>;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, _: u64, _: &mut AgentContext) -> Result<Vec<String>, AgentError> {
        Ok(done(&self.1.inner).await)
    }
}

/// Three functions, of which the second may take its time, then an agent and a function.
struct Line(Arc<Watched>, Duration);

impl Workflow for Line {
    type Input = u64;
    type Output = (Vec<String>, Vec<String>);

    fn name(&self) -> &str {
        "line"
    }

    fn build(&self, flow: &mut Flow<u64>) -> Handle<Self::Output> {
        let (takes, journal) = (self.1, self.0.clone());
        let first = flow.function("first", flow.input(), |n: u64| async move { Ok(n + 1) });
        let second = flow.function("second", &first, move |n: u64| async move {
            // It keeps its thread, as one does that computes.
            std::thread::sleep(takes);
            Ok(n + 1)
        });
        let third = flow.function("third", &second, move |n: u64| {
            let journal = journal.clone();
            async move { Ok((n + 1, done(&journal.inner).await)) }
        });
        let number = flow.function("number", &third, |(n, _): (u64, Vec<String>)| async move { Ok(n) });
        let agent = flow.step(Witness(AgentSpec::new("witness", "Witness"), self.0.clone()), &number);
        flow.function(
            "both",
            (&third, &agent),
            |((_, before), seen): ((u64, Vec<String>), Vec<String>)| async move { Ok((before, seen)) },
        )
    }
}

#[tokio::test(start_paused = true)]
async fn functions_go_ahead_of_the_journal_and_an_agent_waits_for_it() {
    let journal = Arc::new(Watched::default());
    let runner = Runner::builder().journal(journal.clone()).build();
    let run = runner.start(&Line(journal.clone(), Duration::ZERO), 1).await.unwrap();
    let (before, seen) = run.output().await.unwrap();
    assert_eq!(before, [""; 0], "the third function went ahead of the journal");
    assert_eq!(seen, ["first", "second", "third", "number"], "the agent did not");
}

#[tokio::test]
async fn no_more_than_a_millisecond_of_work_goes_ahead() {
    let journal = Arc::new(Watched::default());
    let runner = Runner::builder().journal(journal.clone()).build();
    let run = runner.start(&Line(journal.clone(), Duration::from_millis(2)), 1).await.unwrap();
    let (before, _) = run.output().await.unwrap();
    assert_eq!(before, ["first", "second"], "what took longer is durable before the third begins");
}

/// Two functions, of which the second fails.
struct Fails;

impl Workflow for Fails {
    type Input = u64;
    type Output = u64;

    fn name(&self) -> &str {
        "fails"
    }

    fn build(&self, flow: &mut Flow<u64>) -> Handle<u64> {
        let first = flow.function("first", flow.input(), |n: u64| async move { Ok(n + 1) });
        flow.function("second", &first, |_: u64| async move { Err::<u64, _>(AgentError::user("so it goes")) })
    }
}

#[tokio::test(start_paused = true)]
async fn functions_that_end_at_once_share_a_write_with_the_end_of_the_run() {
    let journal = Arc::new(Watched::default());
    let runner = Runner::builder().journal(journal.clone()).build();
    let run = runner.start(&Fails, 1).await.unwrap();
    assert_eq!(journal.appends(), 1, "the beginning");
    assert_eq!(run.wait().await.unwrap(), RunStatus::Failed);
    assert_eq!(journal.appends(), 1, "both functions and the end");
    assert_eq!(done(&journal.inner).await, ["first"]);
    let records = records(&*journal.inner, run.id()).await;
    assert!(records.iter().zip(1..).all(|(record, seq)| record.seq == seq));
    assert!(matches!(&records.last().unwrap().event, Event::RunFinished { status: RunStatus::Failed, .. }));
}

/// Twenty functions beside each other, and one that takes what all give.
struct Wide;

impl Workflow for Wide {
    type Input = u64;
    type Output = u64;

    fn name(&self) -> &str {
        "wide"
    }

    fn build(&self, flow: &mut Flow<u64>) -> Handle<u64> {
        let input = flow.input();
        let all: [Handle<u64>; 20] = std::array::from_fn(|n| {
            flow.function(&format!("f{n}"), &input, move |of: u64| async move { Ok(of + n as u64) })
        });
        flow.function("sum", All(all), |all: Vec<u64>| async move { Ok(all.iter().sum()) })
    }
}

#[tokio::test(start_paused = true)]
async fn functions_beside_each_other_share_a_write_if_they_end_at_once() {
    let journal = Arc::new(Watched::default());
    let runner = Runner::builder().journal(journal.clone()).build();
    let run = runner.start(&Wide, 1).await.unwrap();
    assert_eq!(run.output().await.unwrap(), 210);
    assert_eq!(journal.appends(), 2, "the beginning, and all the rest");
    assert_eq!(done(&journal.inner).await.len(), 21);
}
