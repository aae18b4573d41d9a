//! The summary table of the terminal.

use crate::report::{Report, State};
use crate::text::{dollars, duration, number};

/// Step, agent, model, duration, tokens, USD: one line a step and a total, in aligned columns.
pub fn summary(report: &Report) -> String {
    let mut rows = vec![["Step", "Agent", "Model", "Duration", "Tokens", "USD"].map(str::to_owned)];
    for step in &report.steps {
        let ran = !step.attempts.is_empty();
        let shown = |text: String| if ran { text } else { "–".to_owned() };
        let model = match step.state {
            State::Succeeded => step.model.as_deref().unwrap_or("–"),
            state => state.as_str(),
        };
        rows.push([
            step.name.to_string(),
            step.agent.to_string(),
            model.to_owned(),
            shown(duration(step.duration_ms)),
            shown(number(step.usage.total_tokens())),
            shown(dollars(step.usd)),
        ]);
    }
    rows.push([
        "Total".to_owned(),
        String::new(),
        String::new(),
        duration(report.active_ms),
        number(report.totals.input_tokens + report.totals.output_tokens),
        dollars(report.totals.usd),
    ]);
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let rule = widths.map(|width| "─".repeat(width)).join("  ");
    let last = rows.len() - 1;
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        if i == 1 || i == last {
            out.push_str(&rule);
            out.push('\n');
        }
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(
                |(column, (cell, width))| {
                    if column < 3 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}
