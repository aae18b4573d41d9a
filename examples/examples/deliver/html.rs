//! The report as one HTML file that needs nothing else.

use coral_core::{Error, RunStatus};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use crate::report::{Delivered, Effect, EffectState, Report, State};
use crate::{graph, text};

/// What the template sees.
#[derive(Serialize)]
struct Page<'a> {
    report: &'a Report,
    /// The run's facts, their values as JSON.
    facts: Vec<(&'a str, String)>,
    status: RunStatus,
    offline: bool,
    /// SVG.
    graph: String,
    rows: Vec<Row<'a>>,
    /// Where the run was taken up again, in percent of the whole.
    resumed: Vec<f64>,
    troubles: Vec<&'a Effect>,
    delivering: Vec<Delivering<'a>>,
    succeeded: usize,
    skipped: usize,
    failed: usize,
    all: usize,
    /// The timeline's axis: percent of the whole, and how it is named.
    ticks: Vec<(u64, String)>,
    resume: Option<&'a str>,
    version: &'a str,
}

#[derive(Serialize)]
struct Delivering<'a> {
    step: &'a str,
    agent: &'a str,
    items: Vec<&'a Delivered>,
}

/// A step's place on the timeline, in percent of the whole.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    state: &'static str,
    took: String,
    bars: Vec<Bar>,
}

#[derive(Serialize)]
struct Bar {
    left: f64,
    width: f64,
    state: &'static str,
    title: String,
}

/// `resume` is the command that goes on with the run, where it can go on.
pub fn render(report: &Report, resume: &str) -> Result<String, Error> {
    let failed = |error: minijinja::Error| Error::storage("writing report.html", error);
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
    env.set_syntax(syntax);
    env.add_filter("duration", text::duration);
    env.add_filter("number", text::number);
    env.add_filter("bytes", text::bytes);
    env.add_filter("dollars", text::dollars);
    env.add_filter("words", |text: String| text.replace('_', " "));
    env.add_filter("href", |path: String| minijinja::Value::from_safe_string(text::href(&path)));
    env.add_filter("code", |text: String| minijinja::Value::from_safe_string(code(&text)));
    env.add_filter("day_and_time", |text: String| match text.split_once('T') {
        Some((day, time)) => format!("{day} {} UTC", time.get(..8).unwrap_or(time)),
        None => text,
    });
    env.add_template("report.html", include_str!("report.html")).map_err(failed)?;
    let whole = report.active_ms.max(1) as f64;
    let percent = |ms: u64| ms as f64 * 100.0 / whole;
    let rows = timeline(report, percent);
    let resumed: Vec<f64> = report.resumed_at_ms.iter().map(|ms| percent(*ms)).collect();
    let troubles: Vec<_> = report
        .effects
        .iter()
        .filter(|effect| matches!(effect.state, EffectState::Failed | EffectState::Denied))
        .collect();
    let delivering = report
        .steps
        .iter()
        .map(|step| Delivering {
            step: &step.name,
            agent: &step.agent,
            items: report.deliverables.iter().filter(|item| item.step == step.name).collect(),
        })
        .collect();
    let page = Page {
        report,
        facts: report.facts.iter().map(|(name, value)| (name.as_str(), value.to_string())).collect(),
        status: report.status,
        offline: report.is_offline(),
        graph: graph::svg(report),
        rows,
        resumed,
        troubles,
        delivering,
        succeeded: report.count(State::Succeeded),
        skipped: report.count(State::Skipped),
        failed: report.count(State::Failed),
        all: report.outer().count(),
        ticks: (0..=4).map(|i| (i * 25, text::duration(report.active_ms * i / 4))).collect(),
        resume: matches!(report.status, RunStatus::Running | RunStatus::Failed).then_some(resume),
        version: env!("CARGO_PKG_VERSION"),
    };
    env.get_template("report.html").and_then(|template| template.render(Serde(&page))).map_err(failed)
}

/// Text for HTML in which what stands in backticks is code.
fn code(text: &str) -> String {
    let mut out = String::new();
    for (i, piece) in text.split('`').enumerate() {
        if i > 0 {
            out.push_str(if i % 2 == 1 { "<code>" } else { "</code>" });
        }
        out.push_str(&text::escape(piece));
    }
    if text.matches('`').count() % 2 == 1 {
        out.push_str("</code>");
    }
    out
}

fn timeline(report: &Report, percent: impl Fn(u64) -> f64) -> Vec<Row<'_>> {
    let mut rows: Vec<(u64, Row<'_>)> = report
        .steps
        .iter()
        .filter_map(|step| {
            let began = step.attempts.first()?.from_ms;
            let bars = step
                .attempts
                .iter()
                .map(|attempt| {
                    let to = if attempt.state == State::Running { report.active_ms } else { attempt.to_ms };
                    let took = to.saturating_sub(attempt.from_ms);
                    Bar {
                        left: percent(attempt.from_ms),
                        width: percent(took),
                        state: attempt.state.as_str(),
                        title: format!(
                            "{}, attempt {}: {} after {}",
                            step.name,
                            attempt.number,
                            attempt.state.as_str(),
                            text::duration(took)
                        ),
                    }
                })
                .collect();
            let row = Row {
                name: &step.name,
                state: step.state.as_str(),
                took: text::duration(step.duration_ms),
                bars,
            };
            Some((began, row))
        })
        .collect();
    rows.sort_by_key(|(began, _)| *began);
    rows.into_iter().map(|(_, row)| row).collect()
}
