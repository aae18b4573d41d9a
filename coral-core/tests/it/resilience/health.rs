use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use coral_core::resilience::{
    BreakerPolicy, Check, Checkup, CircuitBreaker, Health, HealthReport, JournalCheck, ModelCheck, ToolsCheck,
};
use coral_core::{
    Caller, ChatResponse, Error, Journal, MemoryJournal, ModelFault, NoTools, Record, RunFilter, RunHead, Seq,
};

use super::{fault, ms};
use crate::support::{FnModel, Sink};

/// A journal whose disk is gone.
struct Gone;

#[async_trait]
impl Journal for Gone {
    async fn acquire(&self, _run: &str) -> Result<u64, Error> {
        Err(Error::storage("acquire", "the disk is gone"))
    }

    async fn append(&self, _: &str, _: u64, _: Seq, _: std::sync::Arc<[Record]>) -> Result<(), Error> {
        Err(Error::storage("append", "the disk is gone"))
    }

    async fn read(&self, _: &str, _: Seq, _: usize) -> Result<Vec<Record>, Error> {
        Err(Error::storage("read", "the disk is gone"))
    }

    async fn head(&self, _run: &str) -> Result<Option<RunHead>, Error> {
        Err(Error::storage("head", "the disk is gone"))
    }

    async fn runs(&self, _filter: &RunFilter) -> Result<Vec<RunHead>, Error> {
        Err(Error::storage("runs", "the disk is gone"))
    }
}

/// A part that never answers.
struct Hangs;

#[async_trait]
impl Check for Hangs {
    fn part(&self) -> &str {
        "hangs"
    }

    async fn check(&self) -> Checkup {
        std::future::pending().await
    }
}

async fn lines(checks: &[Box<dyn Check>]) -> (Health, Vec<String>) {
    let report = HealthReport::of(checks, 500).await;
    (report.health, report.parts.iter().map(ToString::to_string).collect())
}

#[tokio::test(start_paused = true)]
async fn a_report_is_as_bad_as_its_worst_part() {
    let tools = ToolsCheck { tools: Sink::default(), caller: Caller::agent("qa") };
    let well: Box<dyn Check> = Box::new(JournalCheck(MemoryJournal::new()));
    let checks = [well, Box::new(tools)];
    assert_eq!(lines(&checks).await, (Health::Up, vec!["journal: up".into(), "tools: up (1 tools)".into()]));

    let no_tools = ToolsCheck { tools: NoTools, caller: Caller::default() };
    let checks: [Box<dyn Check>; 2] = [Box::new(JournalCheck(MemoryJournal::new())), Box::new(no_tools)];
    assert_eq!(
        lines(&checks).await,
        (Health::Degraded, vec!["journal: up".into(), "tools: degraded (no tool is offered)".into()])
    );

    let checks: [Box<dyn Check>; 2] = [Box::new(JournalCheck(Gone)), Box::new(Arc::new(Hangs))];
    assert_eq!(
        lines(&checks).await,
        (
            Health::Down,
            vec![
                "journal: down (head failed: the disk is gone)".into(),
                "hangs: down (`the check of hangs` did not end within 500 ms)".into(),
            ]
        )
    );
    assert_eq!(HealthReport::of(&[], 1).await.health, Health::Up);
}

#[tokio::test(start_paused = true)]
async fn a_report_is_data() {
    let report = HealthReport::of(&[Box::new(JournalCheck(Gone)), Box::new(Hangs)], 500).await;
    assert_eq!(report.parts.iter().map(|part| part.took_ms).collect::<Vec<_>>(), [0, 500]);
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<HealthReport>(&text).unwrap(), report);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_tells_what_the_calls_of_late_have_shown() {
    let breaker =
        CircuitBreaker::new("api", BreakerPolicy { failures: NonZeroU32::MIN, ..Default::default() });
    assert_eq!(breaker.check().await.health, Health::Up);
    breaker.admit().unwrap().failure();
    assert_eq!(breaker.check().await.to_string(), "api: down");
    tokio::time::advance(ms(10_000)).await;
    assert_eq!(breaker.check().await.health, Health::Degraded);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_busy_is_degraded_and_one_without_its_key_is_down() {
    for (planned, health) in [
        (None, Health::Up),
        (Some(ModelFault::Overloaded), Health::Degraded),
        (Some(ModelFault::Authentication), Health::Down),
    ] {
        let model = FnModel::new(move |_, request| {
            assert_eq!(request.max_output_tokens, Some(1), "a check is cheap");
            planned.map_or_else(|| Ok(ChatResponse::text("test", "pong")), |planned| Err(fault(planned)))
        });
        assert_eq!(ModelCheck(model).check().await.health, health);
    }
}
