//! Reports for people.

use std::fmt::Write as _;

use coral_core::rfc3339;

use crate::status::status_name;
use crate::views::{ProjectState, Spending, StepStatus, StepView, WorkflowState};

/// A report as titled tables and paragraphs, before it is Markdown or HTML.
enum Part {
    Title(u8, String),
    Text(String),
    Table(Vec<&'static str>, Vec<Vec<String>>),
}

fn parts(project: &ProjectState, runs: &[WorkflowState]) -> Vec<Part> {
    let mut spent = Spending::default();
    let (mut done, mut total) = (0, 0);
    for run in runs {
        spent += run.spent;
        let progress = run.progress();
        done += progress.done;
        total += progress.total;
    }
    let list = |items: Vec<&str>| if items.is_empty() { "–".to_owned() } else { items.join(", ") };
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut about = vec![
        row("Id", project.id.clone()),
        row("Status", word(&project.status)),
        row("Made", rfc3339(project.created_at_ms)),
        row("Tags", list(project.tags.iter().map(String::as_str).collect())),
        row("Depends on", list(project.dependencies.iter().map(String::as_str).collect())),
        row("Runs", runs.len().to_string()),
        row("Steps done", format!("{done} of {total}")),
        row("Cost", spent.cost.to_string()),
        row("Tokens", format!("{} in, {} out", spent.input_tokens, spent.output_tokens)),
    ];
    about.extend(project.metadata.iter().map(|(key, value)| row(key, plain(value))));
    let name = if project.name.is_empty() { &project.id } else { &project.name };
    let mut parts = vec![Part::Title(1, name.clone())];
    if !project.description.is_empty() {
        parts.push(Part::Text(project.description.clone()));
    }
    parts.push(Part::Table(vec!["", ""], about));
    for run in runs {
        parts.push(Part::Title(2, format!("Run {}", run.run)));
        parts.push(Part::Text(format!(
            "{}: {}, begun {}, {}",
            run.workflow,
            status_name(run.status),
            rfc3339(run.started_at_ms),
            run.spent.cost
        )));
        if let Some(error) = &run.error {
            parts.push(Part::Text(format!("It ended with an error: {error}")));
        }
        let heads = vec!["Step", "Agent", "Phase", "Status", "Attempts", "Seconds", "Cost", "Problem"];
        parts.push(Part::Table(heads, run.steps.iter().map(step_row).collect()));
        if !run.deliverables.is_empty() {
            let rows =
                run.deliverables.iter().map(|d| vec![d.kind.clone(), d.path.clone(), d.description.clone()]);
            parts.push(Part::Title(3, "Deliverables".into()));
            parts.push(Part::Table(vec!["Type", "Path", "Description"], rows.collect()));
        }
        if !run.handoffs.is_empty() {
            let rows = run.handoffs.iter().map(|handoff| {
                vec![handoff.from_agent.clone(), handoff.to_agent.clone(), handoff.next_tasks.join("; ")]
            });
            parts.push(Part::Title(3, "Handoffs".into()));
            parts.push(Part::Table(vec!["From", "To", "Next tasks"], rows.collect()));
        }
    }
    parts
}

fn step_row(step: &StepView) -> Vec<String> {
    let took = step.started_at_ms.zip(step.ended_at_ms).map(|(from, to)| to.saturating_sub(from));
    vec![
        step.name.to_string(),
        step.agent.to_string(),
        step.phase.to_string(),
        word::<StepStatus>(&step.status),
        step.attempts.to_string(),
        took.map(|ms| format!("{}.{:03}", ms / 1_000, ms % 1_000)).unwrap_or_default(),
        step.spent.cost.to_string(),
        step.error.as_ref().map(ToString::to_string).unwrap_or_default(),
    ]
}

fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value).map(|value| plain(&value)).unwrap_or_default()
}

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

pub(super) fn markdown(project: &ProjectState, runs: &[WorkflowState]) -> String {
    // Whatever the text, it stays text: no markup, no cell and no line of its own.
    let escape = |text: &str| {
        let mut out = String::new();
        for c in text.chars() {
            match c {
                '\n' | '\r' => out.push(' '),
                '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' => out.extend(['\\', c]),
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                c => out.push(c),
            }
        }
        out
    };
    let mut out = String::new();
    for part in parts(project, runs) {
        match part {
            Part::Title(level, text) => {
                out.extend(std::iter::repeat_n('#', level.into()));
                let _ = writeln!(out, " {}\n", escape(&text));
            }
            Part::Text(text) => {
                let _ = writeln!(out, "{}\n", escape(&text));
            }
            Part::Table(heads, rows) => {
                let _ = writeln!(out, "| {} |", heads.join(" | "));
                let _ = writeln!(out, "|{}", "---|".repeat(heads.len()));
                for row in rows {
                    let cells: Vec<_> = row.iter().map(|cell| escape(cell)).collect();
                    let _ = writeln!(out, "| {} |", cells.join(" | "));
                }
                out.push('\n');
            }
        }
    }
    out
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;\
color:#1b2a33;background:#fff}table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}\
td,th{border:1px solid #cdd7dc;padding:.3rem .6rem;text-align:left;vertical-align:top}\
th{background:#eef3f5}@media(prefers-color-scheme:dark){body{color:#dde6ea;background:#12191d}\
td,th{border-color:#34434b}th{background:#1d282e}}";

pub(super) fn html(project: &ProjectState, runs: &[WorkflowState]) -> String {
    let escape = |text: &str| {
        let mut out = String::new();
        for c in text.chars() {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '"' => out.push_str("&quot;"),
                '\'' => out.push_str("&#39;"),
                c => out.push(c),
            }
        }
        out
    };
    let name = if project.name.is_empty() { &project.id } else { &project.name };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n",
        escape(name)
    );
    for part in parts(project, runs) {
        match part {
            Part::Title(level, text) => {
                let _ = writeln!(out, "<h{level}>{}</h{level}>", escape(&text));
            }
            Part::Text(text) => {
                let _ = writeln!(out, "<p>{}</p>", escape(&text));
            }
            Part::Table(heads, rows) => {
                out.push_str("<table>\n");
                if heads.iter().any(|head| !head.is_empty()) {
                    let _ = writeln!(out, "<tr><th>{}</th></tr>", heads.join("</th><th>"));
                }
                for row in rows {
                    let cells: Vec<_> = row.iter().map(|cell| escape(cell)).collect();
                    let _ = writeln!(out, "<tr><td>{}</td></tr>", cells.join("</td><td>"));
                }
                out.push_str("</table>\n");
            }
        }
    }
    out.push_str("</body>\n</html>\n");
    out
}
