//! What an evaluation found, for people and programs.

use std::fmt::{self, Write as _};

use coral_core::{Usage, Usd};
use serde::Serialize;
use serde_json::{Value, json};

use super::compare::Comparison;
use super::{by_case, totals};

/// What an evaluation found. As text, it is Markdown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationReport {
    /// The evaluation's name.
    pub name: String,
    /// What each candidate came to, in the order in which they were given.
    pub candidates: Vec<CandidateReport>,
}

/// What one candidate came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CandidateReport {
    /// Its name.
    pub name: String,
    /// Every run, in the order of the cases.
    pub results: Vec<CaseResult>,
}

/// What one run of a case came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CaseResult {
    /// The case.
    pub case: String,
    /// What each check found.
    pub checks: Vec<CheckResult>,
    /// Why the run failed, if it did.
    pub error: Option<String>,
    /// Tokens of the run.
    pub usage: Usage,
    /// What the run cost, where the price is known.
    pub cost: Option<Usd>,
    /// How long it took.
    pub duration_ms: u64,
}

/// What one check found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CheckResult {
    /// What was looked at.
    pub check: String,
    /// From 0 to 1.
    pub score: f64,
    /// How much it counts.
    pub weight: f64,
    /// Whether it is good enough.
    pub passed: bool,
    /// Whether it could be told at all; what could not counts for nothing.
    pub graded: bool,
    /// Why it is not good, or what the judge said.
    pub why: String,
}

impl CaseResult {
    /// The weighted mean of its checks, from 0 to 1; nothing if none could be graded.
    pub fn score(&self) -> Option<f64> {
        let graded = || self.checks.iter().filter(|check| check.graded);
        let weight: f64 = graded().map(|check| check.weight).sum();
        (weight > 0.0).then(|| graded().map(|check| check.score * check.weight).sum::<f64>() / weight)
    }

    /// Whether the run succeeded and every check that could be graded passed.
    pub fn passed(&self) -> bool {
        self.error.is_none() && self.checks.iter().all(|check| check.passed || !check.graded)
    }
}

impl CandidateReport {
    /// The mean of its cases' scores; nothing if none could be graded.
    pub fn score(&self) -> Option<f64> {
        mean(by_case(&self.results).into_iter().filter_map(|(_, results)| mean(scores(&results))))
    }

    /// Runs that passed, and runs in all.
    pub fn passed(&self) -> (usize, usize) {
        (self.results.iter().filter(|result| result.passed()).count(), self.results.len())
    }

    /// The mean score of a case, over its repeats.
    pub fn case_score(&self, case: &str) -> Option<f64> {
        mean(self.results.iter().filter(|result| result.case == case).filter_map(CaseResult::score))
    }
}

fn scores<'a>(results: &'a [&'a CaseResult]) -> impl Iterator<Item = f64> + 'a {
    results.iter().filter_map(|result| result.score())
}

fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.into_iter().fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

pub(super) fn shown(score: Option<f64>) -> String {
    score.map_or_else(|| "–".to_owned(), |score| format!("{score:.2}"))
}

impl EvaluationReport {
    /// How the candidate of index `other` does against that of index `base`, over the cases that both
    /// have a score for; nothing if there is no such candidate.
    pub fn compare(&self, base: usize, other: usize) -> Option<Comparison> {
        let (base, other) = (self.candidates.get(base)?, self.candidates.get(other)?);
        let gain = |case| Some(other.case_score(case)? - base.case_score(case)?);
        let gains: Vec<f64> = by_case(&base.results).into_iter().filter_map(|(case, _)| gain(case)).collect();
        Some(Comparison::of(&gains))
    }

    /// The report as JSON, with what the first candidate compares to.
    pub fn json(&self) -> Value {
        let candidates: Vec<Value> = self
            .candidates
            .iter()
            .map(|candidate| {
                let (passed, runs) = candidate.passed();
                let CandidateReport { name, results } = candidate;
                json!({"name": name, "score": candidate.score(), "passed": passed, "runs": runs, "results": results})
            })
            .collect();
        let comparisons: Vec<Value> = self
            .candidates
            .iter()
            .enumerate()
            .skip(1)
            .filter_map(|(i, other)| {
                let (base, comparison) = (self.candidates.first()?, self.compare(0, i)?);
                let verdict = comparison.verdict();
                Some(json!({"base": base.name, "other": other.name, "comparison": comparison, "verdict": verdict}))
            })
            .collect();
        json!({"name": self.name, "candidates": candidates, "comparisons": comparisons})
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "# Evaluation: {}\n", self.name)?;
        writeln!(out, "| candidate | score | passed | tokens | USD | seconds |\n|---|---|---|---|---|---|")?;
        for candidate in &self.candidates {
            let (usage, cost, duration) = totals(&candidate.results);
            let (passed, all) = candidate.passed();
            let cost = money(cost);
            let seconds = std::time::Duration::from_millis(duration).as_secs_f64();
            writeln!(
                out,
                "| {} | {} | {passed} of {all} | {} | {cost} | {seconds:.1} |",
                cell(&candidate.name),
                shown(candidate.score()),
                usage.total_tokens(),
            )?;
        }
        let Some(first) = self.candidates.first() else { return Ok(()) };
        for (i, other) in self.candidates.iter().enumerate().skip(1) {
            if let Some(comparison) = self.compare(0, i) {
                writeln!(out, "\n`{}` against `{}`: {}", other.name, first.name, signed(&comparison))?;
            }
        }
        write!(out, "\n## By case\n\n| case |")?;
        for candidate in &self.candidates {
            write!(out, " {} |", cell(&candidate.name))?;
        }
        writeln!(out, "\n|---|{}", "---|".repeat(self.candidates.len()))?;
        for (case, _) in by_case(&first.results) {
            write!(out, "| {} |", cell(case))?;
            for candidate in &self.candidates {
                write!(out, " {} |", shown(candidate.case_score(case)))?;
            }
            writeln!(out)?;
        }
        for candidate in &self.candidates {
            let lacking: Vec<&CaseResult> = candidate
                .results
                .iter()
                .filter(|r| !r.passed() || r.checks.iter().any(|c| !c.graded))
                .collect();
            if !lacking.is_empty() {
                writeln!(out, "\n## What `{}` lacks\n", candidate.name)?;
            }
            for result in lacking {
                if let Some(error) = &result.error {
                    writeln!(out, "- {}: the run failed: {error}", result.case)?;
                    continue;
                }
                for check in result.checks.iter().filter(|check| !check.passed) {
                    let score =
                        if check.graded { format!("{:.2}", check.score) } else { "not graded".to_owned() };
                    writeln!(out, "- {}: {}: {score}: {}", result.case, check.check, check.why)?;
                }
            }
        }
        Ok(())
    }
}

pub(super) fn money(cost: Option<Usd>) -> String {
    cost.map_or_else(|| "–".to_owned(), |cost| format!("{:.4}", cost.as_dollars()))
}

/// A comparison in a sentence.
pub(super) fn signed(comparison: &Comparison) -> String {
    let Comparison { better, worse, same, mean, interval, p_value, .. } = comparison;
    let mut out =
        format!("better in {better}, worse in {worse}, the same in {same}; mean difference {mean:+.2}");
    if let Some((low, high)) = interval {
        let _ = write!(out, " (95 % between {low:+.2} and {high:+.2})");
    }
    let _ = write!(out, ", sign test p = {p_value:.3}: {}.", comparison.verdict());
    out
}

/// A text that does not break a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

impl fmt::Display for EvaluationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        self.write(&mut out)?;
        f.write_str(&out)
    }
}
