//! Records for the exam.

use std::sync::Arc;

use coral_core::{
    EVENT_FORMAT, EffectClass, EffectKind, Error, ErrorKind, Event, GraphData, HandoffMessage,
    MessageContext, MessageType, ModelFault, Outcome, Payload, Record, Returned, RunStatus, Seq, SkipReason,
    Spent, Stage, Usage, Usd,
};
use serde_json::json;

pub(super) fn started(project: &str, workflow: &str) -> Event {
    Event::RunStarted {
        format: EVENT_FORMAT,
        project: project.into(),
        graph: Arc::new(GraphData { name: workflow.to_owned(), ..Default::default() }),
        pins: Arc::default(),
        input: Payload::from_json(json!({"brief": "a reef"})),
        facts: Arc::new([("needs_mobile".to_owned(), json!(true))].into()),
        budget: Box::default(),
        forked_from: None,
    }
}

pub(super) fn finished(status: RunStatus) -> Event {
    Event::RunFinished { status, output: None, error: None }
}

/// A record like most of a run's: some two hundred bytes.
pub(super) fn noted(seq: Seq) -> Record {
    let event = Event::Noted {
        path: "build/api".into(),
        topic: "conformance".into(),
        note: json!({"n": seq, "text": "what an agent found worth noting in the course of its work"}),
    };
    Record { seq, at_ms: 1_738_922_400_000 + seq % 1_000, event }
}

/// The first record of a run.
pub(super) fn first() -> Record {
    Record { seq: 1, at_ms: 1_738_922_400_000, event: started("reef", "delivery") }
}

/// Records `from..=to`.
pub(super) fn records(from: Seq, to: Seq) -> Vec<Record> {
    (from..=to).map(|seq| if seq == 1 { first() } else { noted(seq) }).collect()
}

/// One of every kind of event, with values at the edges.
pub(super) fn every_kind() -> Vec<Record> {
    let path: Arc<str> = "build/item[3]/api".into();
    let error = Error::new(ErrorKind::Model {
        fault: ModelFault::RateLimited,
        model: "small".into(),
        problem: "60 requests a minute".into(),
    })
    .with_help("wait")
    .with_retry_after_ms(7_000);
    let usage = Usage { input_tokens: u64::MAX >> 1, output_tokens: 7, ..Default::default() };
    let spent =
        Spent { model: Some("small-1".into()), usage, cost: Some(Usd::per_million(3.0, 7)), tries: 2 };
    let message = HandoffMessage {
        message_id: "0195…".into(),
        timestamp: "2025-02-07T10:00:00.123Z".into(),
        from_agent: "a".into(),
        to_agent: "b".into(),
        message_type: MessageType::Handoff,
        context: MessageContext::default(),
        next_tasks: vec!["zero \0, quote \", line\n, 𝄞, \u{2028}".into()],
    };
    let events = vec![
        started("", "delivery"),
        Event::RunResumed { epoch: u64::MAX },
        Event::StepStarted { path: path.clone(), attempt: 1 },
        Event::StageEntered { path: path.clone(), attempt: 1, stage: Stage::CleanUp },
        Event::EffectIntended {
            path: path.clone(),
            attempt: 1,
            index: u32::MAX,
            effect: EffectKind::Chat,
            label: "small".into(),
            digest: "00".repeat(32),
            class: EffectClass::Irreversible,
        },
        Event::EffectDone {
            path: path.clone(),
            attempt: 1,
            index: 0,
            outcome: Outcome::Ok(Payload::from_json(json!({
                "empty": {}, "list": [], "null": null, "min": i64::MIN, "max": u64::MAX, "half": 0.5,
                "tiny": 5e-324, "third": 1.0 / 3.0, "": "", "deep": [[[[[[[[1]]]]]]]],
            }))),
            spent,
        },
        Event::CallRetried { path: path.clone(), attempt: 1, index: 0, error: error.clone(), delay_ms: 1 },
        Event::EffectDone {
            path: path.clone(),
            attempt: 1,
            index: 1,
            outcome: Outcome::Err(error.clone()),
            spent: Spent::default(),
        },
        Event::StepFailed { path: path.clone(), attempt: 1, error: error.clone(), retry_in_ms: Some(0) },
        Event::SentBack {
            path: path.clone(),
            attempt: 1,
            round: u32::MAX,
            returned: vec![Returned { to: "b".into(), message: Arc::new(message.clone()) }],
        },
        Event::RetryDue { path: path.clone(), attempt: 2 },
        Event::StepSucceeded { path: path.clone(), attempt: 2, output: Payload::null() },
        Event::StepSkipped {
            path: path.clone(),
            reason: SkipReason::Condition { when: "needs_mobile".into() },
        },
        Event::HandedOff { from: path.clone(), to: "b".into(), message: Arc::new(message) },
        Event::Noted { path, topic: "".into(), note: json!("x".repeat(3_000)) },
        Event::CancelRequested { reason: "".into() },
        Event::RunFinished {
            status: RunStatus::Failed,
            output: Some(Payload::from_json(json!([]))),
            error: Some(error),
        },
    ];
    // The clock may jump either way, and as far as it can.
    let times = [1_738_922_400_000, 0, u64::MAX, 1_738_922_400_001];
    (1..)
        .zip(events)
        .zip(times.into_iter().cycle())
        .map(|((seq, event), at_ms)| Record { seq, at_ms, event })
        .collect()
}
