//! The table, and the figures as JSON.

use std::fmt::Write as _;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Value>,
    text: String,
}

impl Report {
    /// One row: `theirs` is what `peer` needs, or the target.
    pub(crate) fn row(&mut self, case: &str, unit: &str, ours: f64, peer: &str, theirs: Option<f64>) {
        let ratio = theirs.filter(|theirs| *theirs > 0.0).map(|theirs| ours / theirs);
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let _ = writeln!(
            self.text,
            "{case:40} {ours:>10.2} {:>10} {:>6}  {unit}, against {peer}",
            shown(theirs),
            shown(ratio)
        );
        self.rows.push(json!({
            "case": case, "unit": unit, "ours": ours, "peer": peer, "peer_value": theirs, "ratio": ratio
        }));
    }

    pub(crate) fn print(&self) {
        println!("{:40} {:>10} {:>10} {:>6}", "case", "ours", "peer", "ratio");
        print!("{}", self.text);
    }

    pub(crate) fn save(&self, target: &Path) {
        let directory = target.join("bench");
        std::fs::create_dir_all(&directory).unwrap();
        let text = serde_json::to_string_pretty(&self.rows).unwrap();
        std::fs::write(directory.join("llm.json"), text + "\n").unwrap();
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds for which this thread ran.
pub(crate) fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}
