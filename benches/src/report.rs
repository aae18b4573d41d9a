//! What a bench leaves behind: a table for people, JSON for programs.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::measure::Outcome;

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was done.
    pub case: String,
    /// In what it is measured.
    pub unit: String,
    /// What it came to with Coral.
    pub ours: f64,
    /// What Coral stands against here.
    pub peer: String,
    /// What it came to there; `null` where it could not be measured.
    pub peer_value: Option<f64>,
    /// `ours / peer_value`.
    pub ratio: Option<f64>,
}

/// The rows of one bench.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    /// No rows yet.
    pub fn new(name: &'static str) -> Self {
        Report { name, rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a comparison.
    pub fn row(
        &mut self,
        case: impl Into<String>,
        unit: &str,
        ours: f64,
        peer: impl Into<String>,
        peer_value: Option<f64>,
    ) {
        let ratio = peer_value.filter(|value| *value > 0.0).map(|value| ours / value);
        let (case, unit, peer) = (case.into(), unit.to_owned(), peer.into());
        self.rows.push(Row { case, unit, ours, peer, peer_value, ratio });
    }

    /// Adds something that the reader of the table should know, such as what was left out and why.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Prints the table and writes `target/bench/<name>.json`.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn finish(self) -> Outcome {
        let cells = |row: &Row| {
            [
                row.case.clone(),
                row.unit.clone(),
                number(row.ours),
                row.peer.clone(),
                row.peer_value.map_or_else(|| "-".to_owned(), number),
                row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{}x", number(ratio))),
            ]
        };
        let head = ["case", "unit", "coral", "peer", "peer's", "ratio"].map(str::to_owned);
        let lines: Vec<[String; 6]> = std::iter::once(head).chain(self.rows.iter().map(cells)).collect();
        let width = |column: usize| {
            lines
                .iter()
                .filter_map(|line| line.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: [usize; 6] = std::array::from_fn(width);
        for line in &lines {
            let padded: Vec<String> = line
                .iter()
                .zip(widths)
                .enumerate()
                .map(|(i, (cell, width))| match i {
                    0 | 1 | 3 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                })
                .collect();
            println!("{}", padded.join("  ").trim_end());
        }
        for note in &self.notes {
            println!("note: {note}");
        }
        let dir = target_dir().join("bench");
        fs::create_dir_all(&dir)?;
        let file = dir.join(format!("{}.json", self.name));
        fs::write(&file, serde_json::to_string_pretty(&self.rows)? + "\n")?;
        println!("written: {}", file.display());
        Ok(())
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1_000.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        v if v >= 0.01 || v == 0.0 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

/// Where cargo builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).join("target"),
        PathBuf::from,
    )
}
