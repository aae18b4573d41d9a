//! Records for the exam.

use std::collections::BTreeSet;
use std::sync::Arc;

use coral_core::{
    Budget, EVENT_FORMAT, EffectClass, EffectKind, EffectPlace, Error, ErrorKind, Event, ForkPoint,
    GraphData, HandoffMessage, MessageContext, MessageType, ModelFault, Outcome, Payload, Pins, Question,
    Record, Returned, RunStatus, Seq, SkipReason, Spent, Stage, Usage, Usd, Used,
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
    let spent = Box::new(Spent {
        model: Some("small-1".into()),
        usage,
        cost: Some(Usd::per_million(3.0, 7)),
        tries: 2,
        settled: Some(Box::new(Used {
            usd: Usd::per_million(3.0, 8),
            tokens: u64::MAX,
            calls: 3,
            agents: 0,
        })),
    });
    let message = HandoffMessage {
        message_id: "0195…".into(),
        timestamp: "2025-02-07T10:00:00.123Z".into(),
        from_agent: "a".into(),
        to_agent: "b".into(),
        message_type: MessageType::Handoff,
        context: MessageContext::default(),
        next_tasks: vec!["zero \0, quote \", line\n, 𝄞, \u{2028}".into()],
    };
    let question = Question {
        id: "build/item[3]/api#2:00ff".into(),
        label: "approve_deployment".into(),
        question: Payload::from_json(json!({"to": "production", "cost": 1e300})),
        answer_schema: json!({"type": "boolean"}),
        deadline_ms: Some(u64::MAX),
    };
    let message = Arc::new(message);
    let events = vec![
        Event::RunStarted {
            format: EVENT_FORMAT,
            project: "".into(),
            graph: Arc::new(GraphData { name: "delivery".to_owned(), ..Default::default() }),
            pins: Arc::new(Pins { graph: "00ff".into(), agents: [("a".into(), "ff".into())].into() }),
            input: Payload::null(),
            facts: Arc::default(),
            budget: Box::new(Budget::new().usd(0.000_001)),
            forked_from: Some(ForkPoint { run: "parent".into(), seq: Seq::MAX }),
        },
        Event::RunResumed { epoch: u64::MAX },
        Event::BudgetToppedUp {
            more: Box::new(Budget { tokens: Some(u64::MAX), ..Budget::new().usd(12.5) }),
        },
        Event::BudgetToppedUp { more: Box::default() },
        Event::Migrated {
            graph: Arc::new(GraphData { name: "delivery".to_owned(), ..Default::default() }),
            pins: Arc::default(),
            renamed: Arc::new([("api".into(), "service".into())].into()),
            restarted: vec![path.clone()],
            reason: "the design grew".into(),
        },
        Event::ScopeOpened { path: path.clone(), input: Payload::from_json(json!([1, "two", null])) },
        Event::QuestionAsked { path: path.clone(), question: Arc::new(question.clone()) },
        Event::QuestionAsked {
            path: path.clone(),
            question: Arc::new(Question { deadline_ms: None, ..question.clone() }),
        },
        Event::QuestionAnswered {
            id: question.id,
            answer: Payload::from_json(json!(false)),
            by: "ada@example.org".into(),
        },
        Event::SignalReceived { name: "".into(), payload: Payload::from_json(json!({"build": 7})) },
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
            reserved: Some(Box::new(Used { usd: Usd::from_pico(7), tokens: 9, calls: 1, agents: 0 })),
            follows: Some(EffectPlace { attempt: 1, index: 3 }),
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
            spent: Box::default(),
        },
        Event::StepFailed { path: path.clone(), attempt: 1, error: error.clone(), retry_in_ms: Some(0) },
        Event::RetryDue { path: path.clone(), attempt: 2 },
        Event::StepSucceeded { path: path.clone(), attempt: 2, output: Payload::null() },
        Event::StepSkipped {
            path: path.clone(),
            reason: SkipReason::Condition { when: "needs_mobile".into() },
        },
        Event::StepSkipped { path: path.clone(), reason: SkipReason::NotNeeded { step: "b".into() } },
        Event::StepSkipped { path: path.clone(), reason: SkipReason::Cancelled },
        Event::HandedOff { from: path.clone(), to: "b".into(), message: message.clone() },
        Event::SentBack {
            path: path.clone(),
            attempt: 1,
            round: u32::MAX,
            returned: vec![Returned { to: "build/api".into(), message }],
        },
        Event::CallNoted {
            path: path.clone(),
            attempt: 1,
            index: 3,
            topic: "model_chosen".into(),
            note: json!({"model": "small", "score": 0.1}),
        },
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

/// The names of all events that there are, as this build reads them.
pub(super) fn every_name() -> BTreeSet<String> {
    let told = serde_json::from_value::<Event>(json!({"no such event": {}})).unwrap_err().to_string();
    // The list of what would have been understood, each name between backticks.
    told.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

/// The name of an event.
pub(super) fn name(event: &Event) -> String {
    let value = serde_json::to_value(event).unwrap();
    value.as_object().and_then(|object| object.keys().next().cloned()).unwrap_or_default()
}
