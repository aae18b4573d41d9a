//! Runs to test with.

use std::collections::BTreeMap;
use std::sync::Arc;

use coral_core::{
    Deliverable, Error, Event, GraphData, HandoffMessage, Input, Journal, MessageContext, MessageType,
    Outcome, Payload, Record, RunStatus, Spent, StepData, StepKind, Usage, Usd,
};
use serde_json::{Value, json};

/// The events of a small team's run, up to and with the first `events` of them.
///
/// `design` (architect) → `api` ∥ `ui` → `test`; `api` fails once and is tried again.
pub(crate) fn team_run(project: &str, brief: &str, facts: Value) -> Vec<Record> {
    let step = |name: &str, agent: &str, phase: &str, inputs: &[&str]| StepData {
        inputs: inputs.iter().map(|step| Input::required(*step)).collect(),
        phase: phase.into(),
        ..StepData::new(name, StepKind::Agent(agent.into()))
    };
    let graph = GraphData {
        name: "delivery".into(),
        steps: vec![
            step("design", "project_architect", "design", &[]),
            step("api", "backend_developer", "build", &["design"]),
            step("ui", "frontend_developer", "build", &["design"]),
            step("test", "qa_testing", "check", &["api", "ui"]),
        ],
        ..Default::default()
    };
    let facts: BTreeMap<String, Value> = serde_json::from_value(facts).unwrap();
    let started = |path: &str, attempt| Event::StepStarted { path: path.into(), attempt };
    let spent = |path: &str, attempt, dollars| Event::EffectDone {
        path: path.into(),
        attempt,
        index: 0,
        outcome: Outcome::Ok(Payload::from_json(json!("done"))),
        spent: Box::new(Spent {
            model: Some("small-1".into()),
            usage: Usage { input_tokens: 100, output_tokens: 10, ..Default::default() },
            cost: Some(Usd::from_dollars(dollars)),
            tries: 1,
            settled: None,
        }),
    };
    let succeeded = |path: &str, attempt| Event::StepSucceeded {
        path: path.into(),
        attempt,
        output: Payload::from_json(json!({"summary": path})),
    };
    let handed = Event::HandedOff {
        from: "design".into(),
        to: "api".into(),
        message: Arc::new(HandoffMessage {
            message_id: "m-1".into(),
            timestamp: "2025-02-07T10:00:00.000Z".into(),
            from_agent: "project_architect".into(),
            to_agent: "backend_developer".into(),
            message_type: MessageType::Handoff,
            context: MessageContext {
                project: project.into(),
                phase: "design".into(),
                deliverables: vec![Deliverable {
                    kind: "architecture".into(),
                    path: "docs/architecture.md".into(),
                    description: "how it | is <built>".into(),
                }],
            },
            next_tasks: vec!["build the API".into()],
        }),
    };
    let events = vec![
        Event::RunStarted {
            format: 1,
            project: project.into(),
            graph: graph.into(),
            pins: Arc::default(),
            input: Payload::from_json(json!({"project": project, "text": brief})),
            facts: facts.into(),
            budget: Box::default(),
            forked_from: None,
        },
        started("design", 1),
        spent("design", 1, 0.5),
        succeeded("design", 1),
        handed,
        started("api", 1),
        started("ui", 1),
        Event::StepFailed {
            path: "api".into(),
            attempt: 1,
            error: Error::storage("build", "no <disk>"),
            retry_in_ms: Some(10),
        },
        started("api", 2),
        spent("api", 2, 0.25),
        succeeded("api", 2),
        succeeded("ui", 1),
        started("test", 1),
        spent("test", 1, 0.25),
        succeeded("test", 1),
        Event::RunFinished {
            status: RunStatus::Succeeded,
            output: Some(Payload::from_json(json!({"ok": true}))),
            error: None,
        },
    ];
    (1..).zip(events).map(|(seq, event)| Record { seq, at_ms: 1_000_000 + seq * 1_000, event }).collect()
}

/// Appends all of `records` to `run`.
pub(crate) async fn keep(journal: &impl Journal, run: &str, records: &[Record]) {
    let epoch = journal.acquire(run).await.unwrap();
    journal.append(run, epoch, 0, records.to_vec().into()).await.unwrap();
}

/// Copies a SQLite store as a power cut leaves it: whatever is in the files now, less the last
/// `bytes` of its log.
pub(crate) fn tear(from: &std::path::Path, to: &std::path::Path, bytes: u64) {
    let log = |path: &std::path::Path| format!("{}-wal", path.display());
    std::fs::copy(from, to).unwrap();
    std::fs::copy(log(from), log(to)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(log(to)).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(bytes)).unwrap();
}

/// Whether `needle` lies in any file of the directory or of those within it.
pub(crate) fn holds(dir: &std::path::Path, needle: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|file| {
        let path = file.unwrap().path();
        if path.is_dir() {
            return holds(&path, needle);
        }
        // A server's own files come and go.
        let bytes = std::fs::read(path).unwrap_or_default();
        let mut from = 0;
        while let Some(at) = bytes[from..].iter().position(|byte| *byte == needle[0]) {
            from += at;
            if bytes[from..].starts_with(needle) {
                return true;
            }
            from += 1;
        }
        false
    })
}
