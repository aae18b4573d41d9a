//! The report as a page that needs nothing else.

use std::fmt::Write as _;

use super::report::{EvaluationReport, money, shown, signed};
use super::{by_case, totals};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c2330;background:#fff}\
table{border-collapse:collapse;margin:1rem 0}th,td{border:1px solid #c9d1dc;padding:.3rem .6rem;text-align:left;vertical-align:top}\
th{background:#f1f4f8}td.n{text-align:right;font-variant-numeric:tabular-nums}.good{color:#126b36}.bad{color:#a11d1d}.none{color:#5c6675}\
@media(prefers-color-scheme:dark){body{color:#e3e8ef;background:#141a22}th{background:#1e2731}th,td{border-color:#39434f}.good{color:#6fd197}.bad{color:#ff9a92}.none{color:#9aa5b1}}";

impl EvaluationReport {
    /// The report as one HTML page, without scripts or anything to load.
    pub fn html(&self) -> String {
        let mut out = String::new();
        let name = escape(&self.name);
        let _ = write!(
            out,
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Evaluation: {name}</title><style>{STYLE}</style></head><body>\n<h1>Evaluation: {name}</h1>\n<table><thead><tr><th>candidate</th><th>score</th><th>passed</th><th>tokens</th><th>USD</th><th>seconds</th></tr></thead><tbody>\n"
        );
        for candidate in &self.candidates {
            let (usage, cost, duration) = totals(&candidate.results);
            let (passed, all) = candidate.passed();
            let seconds = std::time::Duration::from_millis(duration).as_secs_f64();
            let _ = writeln!(
                out,
                "<tr><th>{}</th><td class=\"n\">{}</td><td class=\"n\">{passed} of {all}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{seconds:.1}</td></tr>",
                escape(&candidate.name),
                shown(candidate.score()),
                usage.total_tokens(),
                money(cost),
            );
        }
        out.push_str("</tbody></table>\n");
        let first = self.candidates.first();
        for (i, other) in self.candidates.iter().enumerate().skip(1) {
            if let (Some(comparison), Some(first)) = (self.compare(0, i), first) {
                let _ = writeln!(
                    out,
                    "<p><b>{}</b> against <b>{}</b>: {}</p>",
                    escape(&other.name),
                    escape(&first.name),
                    escape(&signed(&comparison))
                );
            }
        }
        for candidate in &self.candidates {
            let _ = writeln!(
                out,
                "<h2>{}</h2>\n<table><thead><tr><th>case</th><th>score</th><th>checks</th></tr></thead><tbody>",
                escape(&candidate.name)
            );
            for (case, results) in by_case(&candidate.results) {
                let _ = write!(
                    out,
                    "<tr><th>{}</th><td class=\"n\">{}</td><td>",
                    escape(case),
                    shown(candidate.case_score(case))
                );
                for result in results {
                    if let Some(error) = &result.error {
                        let _ = write!(out, "<div class=\"bad\">the run failed: {}</div>", escape(error));
                        continue;
                    }
                    for check in &result.checks {
                        let (class, score) = match (check.graded, check.passed) {
                            (false, _) => ("none", "not graded".to_owned()),
                            (true, true) => ("good", format!("{:.2}", check.score)),
                            (true, false) => ("bad", format!("{:.2}", check.score)),
                        };
                        let why =
                            if check.why.is_empty() { String::new() } else { format!(": {}", check.why) };
                        let _ = write!(
                            out,
                            "<div class=\"{class}\">{score} {}{}</div>",
                            escape(&check.check),
                            escape(&why)
                        );
                    }
                }
                out.push_str("</td></tr>\n");
            }
            out.push_str("</tbody></table>\n");
        }
        out.push_str("</body></html>\n");
        out
    }
}

/// A text as HTML shows it.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
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
}
