//! Runs as lists of events, and what is reported of them.

use coral_core::{ChatResponse, Deliverable, EffectClass, Input, Payload, StepData, StepKind, ToolOutput};
use serde_json::json;

use super::*;

fn agent(name: &str, agent: &str, inputs: &[&str]) -> StepData {
    StepData {
        inputs: inputs.iter().map(|input| Input::from(*input)).collect(),
        ..StepData::new(name, StepKind::Agent(agent.into()))
    }
}

fn started() -> Event {
    let steps = vec![
        agent("design", "architect", &[]),
        agent("build", "developer", &["design"]),
        agent("app", "mobile", &["design"]),
    ];
    let graph = GraphData { name: "team".into(), steps, ..GraphData::default() };
    let event = json!({"run_started": {
        "format": 1, "project": "demo", "graph": graph, "pins": {"graph": "", "agents": {}}, "input": null,
        "facts": {"needs_mobile": false},
    }});
    serde_json::from_value(event).unwrap()
}

fn begin(path: &str, attempt: u32) -> Event {
    Event::StepStarted { path: path.into(), attempt }
}

fn intend(path: &str, index: u32, effect: EffectKind) -> Event {
    Event::EffectIntended {
        path: path.into(),
        attempt: 1,
        index,
        effect,
        label: "it".into(),
        digest: format!("{path}{index}"),
        class: EffectClass::Idempotent,
        reserved: None,
        follows: None,
    }
}

fn answered(path: &str, index: u32, tokens: u64, cost: Option<Usd>) -> Event {
    Event::EffectDone {
        path: path.into(),
        attempt: 1,
        index,
        outcome: Outcome::Ok(Payload::new(ChatResponse::text("m-1", ""))),
        spent: Box::new(Spent {
            model: Some("m-1".into()),
            usage: Usage { input_tokens: tokens, output_tokens: 1, ..Usage::default() },
            cost,
            tries: 1,
            settled: None,
        }),
    }
}

fn called(path: &str, index: u32, outcome: Outcome) -> Event {
    Event::EffectDone { path: path.into(), attempt: 1, index, outcome, spent: Box::default() }
}

fn succeeded(path: &str, file: &str) -> Event {
    let report = coral_core::Report {
        summary: format!("did {path}"),
        deliverables: vec![Deliverable { kind: "text".into(), path: file.into(), description: "it".into() }],
        ..coral_core::Report::default()
    };
    Event::StepSucceeded { path: path.into(), attempt: 1, output: Payload::new(report) }
}

/// The report of events at their times in milliseconds.
fn report(events: Vec<(u64, Event)>) -> Report {
    let mut report = Report::new("run-1");
    for ((at_ms, event), seq) in events.into_iter().zip(1..) {
        report.apply(&Record { seq, at_ms, event });
    }
    report
}

#[test]
fn calls_tokens_and_costs_add_up_by_step_and_in_all() {
    let report = report(vec![
        (1_000, started()),
        (1_010, begin("design", 1)),
        (1_011, intend("design", 0, EffectKind::Chat)),
        (1_500, answered("design", 0, 100, Some(Usd::from_dollars(0.25)))),
        (1_501, intend("design", 1, EffectKind::Tool)),
        (1_502, called("design", 1, Outcome::Ok(Payload::new(ToolOutput::text("written"))))),
        (1_503, intend("design", 2, EffectKind::Chat)),
        (1_900, answered("design", 2, 200, Some(Usd::from_dollars(0.5)))),
        (2_010, succeeded("design", "docs/design.md")),
        (2_011, begin("build", 1)),
        (
            2_012,
            Event::StepSkipped {
                path: "app".into(),
                reason: SkipReason::Condition { when: "needs_mobile".into() },
            },
        ),
    ]);
    let design = report.step("design").unwrap();
    assert_eq!((design.state, design.duration_ms, &*design.agent), (State::Succeeded, 1_000, "architect"));
    assert_eq!((design.model_calls, design.tool_calls, design.usage.total_tokens()), (2, 1, 302));
    assert_eq!((design.usd, design.model.as_deref()), (Some(0.75), Some("m-1")));
    assert_eq!(report.step("build").unwrap().state, State::Running);
    let app = report.step("app").unwrap();
    assert_eq!(
        (app.state, app.reason.as_deref()),
        (State::Skipped, Some("condition `needs_mobile` does not hold"))
    );
    assert_eq!((report.totals.model_calls, report.totals.tool_calls, report.totals.usd), (2, 1, Some(0.75)));
    let delivered: Vec<_> =
        report.deliverables.iter().map(|item| (&*item.step, item.path.as_str())).collect();
    assert_eq!(delivered, [("design", "docs/design.md")]);
    assert_eq!(report.status, RunStatus::Running);
}

#[test]
fn a_price_that_is_not_known_makes_no_sum() {
    let report = report(vec![
        (0, started()),
        (1, begin("design", 1)),
        (2, intend("design", 0, EffectKind::Chat)),
        (3, answered("design", 0, 10, Some(Usd::from_dollars(1.0)))),
        (4, intend("design", 1, EffectKind::Chat)),
        (5, answered("design", 1, 10, None)),
    ]);
    assert_eq!((report.step("design").unwrap().usd, report.totals.usd), (None, None));
}

#[test]
fn the_time_between_a_kill_and_a_resume_is_left_out() {
    let report = report(vec![
        (1_000, started()),
        (1_100, begin("design", 1)),
        (1_200, intend("design", 0, EffectKind::Chat)),
        (90_000, Event::RunResumed { epoch: 2 }),
        (90_300, answered("design", 0, 10, None)),
        (90_400, succeeded("design", "a")),
    ]);
    assert_eq!(report.resumed_at_ms, [200]);
    assert_eq!(report.active_ms, 600);
    let design = report.step("design").unwrap();
    assert_eq!(design.attempts, [Attempt { number: 1, from_ms: 100, to_ms: 600, state: State::Succeeded }]);
    assert_eq!(design.duration_ms, 500);
}

#[test]
fn a_refused_call_is_told_from_a_failed_one() {
    let denied =
        Error::new(ErrorKind::Denied { agent: "a".into(), action: "write".into(), reason: "no".into() });
    let report = report(vec![
        (0, started()),
        (1, begin("design", 1)),
        (2, intend("design", 0, EffectKind::Tool)),
        (2, intend("design", 1, EffectKind::Tool)),
        (3, called("design", 0, Outcome::Err(denied))),
        (4, called("design", 1, Outcome::Err(Error::invalid("it", "broken")))),
    ]);
    let states: Vec<_> = report.effects.iter().map(|effect| effect.state).collect();
    assert_eq!(states, [EffectState::Denied, EffectState::Failed]);
    assert_eq!((report.totals.denied_calls, report.totals.tool_calls), (1, 2));
}

#[test]
fn a_failed_run_that_goes_on_is_running_again() {
    let failed = Event::StepFailed {
        path: "design".into(),
        attempt: 1,
        error: Error::invalid("it", "broken"),
        retry_in_ms: None,
    };
    let ended = Event::RunFinished {
        status: RunStatus::Failed,
        output: None,
        error: Some(Error::invalid("it", "broken")),
    };
    let mut events = vec![(0, started()), (1, begin("design", 1)), (5, failed), (6, ended)];
    let broken = report(events.clone());
    assert_eq!(
        (broken.status, broken.error.as_deref()),
        (RunStatus::Failed, Some("it is not valid: broken"))
    );
    assert_eq!(broken.step("design").unwrap().state, State::Failed);
    events.extend([(10, Event::RunResumed { epoch: 2 }), (11, begin("design", 2))]);
    let again = report(events);
    assert_eq!((again.status, again.error.as_deref()), (RunStatus::Running, None));
    let attempts: Vec<_> =
        again.step("design").unwrap().attempts.iter().map(|a| (a.number, a.state)).collect();
    assert_eq!(attempts, [(1, State::Failed), (2, State::Running)]);
}

#[test]
fn the_page_needs_nothing_else_and_shows_no_raw_markup() {
    let mut report = report(vec![
        (0, started()),
        (1, begin("design", 1)),
        (2, succeeded("design", "docs/<b>.md")),
        (
            3,
            Event::StepSkipped {
                path: "app".into(),
                reason: SkipReason::InputFailed { step: "<build>".into() },
            },
        ),
    ]);
    report.draw();
    assert!(report.graph.contains("classDef succeeded"), "{}", report.graph);
    let page = crate::html::render(&report, "go --on").unwrap();
    for outside in ["http://", "https://", "src=", "<script", "@import", "url(/"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("href=\"./docs/%3Cb%3E.md\"") && !page.contains("<b>.md"));
    assert!(page.contains("<code>&lt;build&gt;</code> failed"));
    assert!(page.contains("go --on"));
    assert!(page.contains("<svg"));
    let table = crate::table::summary(&report);
    assert!(table.contains("design  architect"), "{table}");
}
