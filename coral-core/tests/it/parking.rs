//! Runs that only wait are let go of, and go on from their journals.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coral_core::{
    Budget, ErrorKind, Event, Flow, Handle, MemoryJournal, Run, Runner, StartOptions, Workflow,
};
use tokio::time::{Instant, sleep};

use crate::support::{Watched, records};

/// Waits for a person, for an hour and for three signals, within a graph within a graph.
struct Patience;

struct Inner;

impl Workflow for Inner {
    type Input = String;
    type Output = String;

    fn name(&self) -> &str {
        "inner"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
        let answer = flow.ask::<String, String, _>("ask", flow.input());
        let first = flow.signal::<String>("word");
        let waited = flow.timer("hour", 3_600_000, (&answer, &first));
        flow.function("join", &waited, |(answer, word): (String, String)| async move {
            Ok(format!("{answer} {word}"))
        })
    }
}

impl Workflow for Patience {
    type Input = String;
    type Output = String;

    fn name(&self) -> &str {
        "patience"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
        let inner = flow.workflow(&Inner, flow.input());
        let last = flow.signal::<String>("last");
        flow.function("end", (&inner, &last), |(inner, last): (String, String)| async move {
            Ok(format!("{inner} {last}"))
        })
    }
}

async fn start(runner: &Runner) -> Run<String> {
    let options = StartOptions::new().id("run").budget(Budget::new().agents(3));
    runner.start_with(&Patience, "why?".to_owned(), options).await.unwrap()
}

/// Long enough for a short run to be parked.
async fn rest() {
    sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_parked_run_goes_on_by_an_answer_a_signal_and_a_time() {
    let journal = Arc::new(Watched::default());
    let runner = Runner::builder().journal(journal.clone()).build();
    let run = start(&runner).await;
    rest().await;
    assert_eq!(journal.reads(), 0, "what works is not read");
    let began = Instant::now();
    let question = run.questions().await.pop().unwrap();
    assert_eq!(journal.reads(), 1, "it was parked, and is read to be asked");
    assert!(run.answer(&question.id, "because".to_owned(), "tester").await.unwrap());
    assert_eq!(journal.reads(), 0, "it is not parked while things happen");
    rest().await;
    run.signal("word", "of it".to_owned()).await.unwrap();
    assert_eq!(journal.reads(), 1);
    rest().await;
    run.signal("last", "now".to_owned()).await.unwrap();
    assert_eq!(run.output().await.unwrap(), "because of it now");
    let hour = Duration::from_secs(3_600);
    assert!((hour..hour + Duration::from_secs(4)).contains(&began.elapsed()), "{:?}", began.elapsed());

    // As if it had never been parked: each effect once, and no sign of it.
    let recorded = records(&*journal.inner, "run").await;
    let count = |is: fn(&Event) -> bool| recorded.iter().filter(|record| is(&record.event)).count();
    assert_eq!(count(|event| matches!(event, Event::EffectIntended { .. })), 4);
    assert_eq!(count(|event| matches!(event, Event::EffectDone { .. })), 4);
    assert_eq!(count(|event| matches!(event, Event::QuestionAsked { .. })), 1);
    assert_eq!(count(|event| matches!(event, Event::RunResumed { .. })), 0);
}

#[tokio::test(start_paused = true)]
async fn a_parked_run_stops_without_being_read_and_is_cancelled_like_any_other() {
    let journal = Arc::new(Watched::default());
    let runner = Runner::builder().journal(journal.clone()).build();
    let run = start(&runner).await;
    rest().await;
    assert!(runner.drain(Duration::from_secs(1)).await);
    assert_eq!(journal.reads(), 0);
    assert!(matches!(run.output().await.unwrap_err().kind(), ErrorKind::Suspended { .. }));

    let runner = Runner::builder().journal(journal.clone()).build();
    let run = runner.resume(&Patience, "run").await.unwrap();
    rest().await;
    run.cancel("enough").await;
    assert!(matches!(run.output().await.unwrap_err().kind(), ErrorKind::Cancelled { .. }));
    let story = crate::support::story(&run).await;
    assert!(story.contains(&"run_finished cancelled".to_owned()), "{story:?}");
}

#[tokio::test(start_paused = true)]
async fn a_parked_run_that_another_process_took_over_is_fenced() {
    let journal = Arc::new(MemoryJournal::new());
    let (first, second) = [(); 2].map(|()| Runner::builder().journal(journal.clone()).build()).into();
    let parked = start(&first).await;
    rest().await;
    let taken = second.resume(&Patience, "run").await.unwrap();
    rest().await;
    let error = parked.signal("word", "lost?".to_owned()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Fenced { .. }), "{error}");
    let error = parked.output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Fenced { held: 1, found: 2, .. }), "{error}");
    let question = taken.questions().await.pop().unwrap();
    taken.answer(&question.id, "yes".to_owned(), "tester").await.unwrap();
    taken.signal("word", "kept".to_owned()).await.unwrap();
    taken.signal("last", "too".to_owned()).await.unwrap();
    assert_eq!(taken.output().await.unwrap(), "yes kept too");
}

#[tokio::test(start_paused = true)]
async fn a_parked_run_is_read_again_where_reading_failed_for_a_moment() {
    let journal = Arc::new(Watched::default());
    let runner = Runner::builder().journal(journal.clone()).build();
    let run = start(&runner).await;
    rest().await;
    journal.failing.store(2, Ordering::SeqCst);
    run.signal("word", "of it".to_owned()).await.unwrap();
    assert_eq!(journal.reads(), 3);
    rest().await;
    journal.failing.store(usize::MAX, Ordering::SeqCst);
    let error = run.signal("last", "now".to_owned()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Suspended { .. }), "{error}");
    assert!(matches!(run.output().await.unwrap_err().kind(), ErrorKind::Storage { .. }));
    journal.failing.store(0, Ordering::SeqCst);
    let run = runner.resume(&Patience, "run").await.unwrap();
    assert_eq!(run.questions().await.len(), 1);
}

/// Takes signals one after the other.
struct Counter;

impl Workflow for Counter {
    type Input = Vec<u32>;
    type Output = Vec<u32>;

    fn name(&self) -> &str {
        "counter"
    }

    fn build(&self, flow: &mut Flow<Vec<u32>>) -> Handle<Vec<u32>> {
        flow.map("each", 1, flow.input(), |flow: &mut Flow<u32>| flow.signal::<u32>("n"))
    }
}

/// Whether a signal comes while a run works, just when it is parked, or later: none is lost, and their order stays.
#[tokio::test(start_paused = true)]
async fn no_signal_is_lost_around_the_moment_of_parking() {
    for step_us in [0, 50, 90, 100, 110, 500, 1_700, 5_000] {
        let runner = Runner::builder().build();
        let run = runner.start(&Counter, vec![0; 40]).await.unwrap();
        for n in 0..40u32 {
            sleep(Duration::from_micros(step_us * u64::from(n % 7))).await;
            run.signal("n", n).await.unwrap();
        }
        assert_eq!(run.output().await.unwrap(), (0..40).collect::<Vec<_>>(), "{step_us} µs");
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_over_has_no_questions_and_takes_no_signal() {
    let runner = Runner::builder().build();
    let run = runner.start(&Counter, Vec::new()).await.unwrap();
    run.output().await.unwrap();
    assert!(run.questions().await.is_empty());
    let error = run.signal("n", 1).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Suspended { .. }), "{error}");
}
