//! What the terminal shows while a run goes on.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coral_core::{Delta, Event, Record};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report::{Report, State};
use crate::text::{bytes, count, duration, number};

/// A line for each step that ends; on a terminal also a spinner for each that runs, and a bar.
#[derive(Clone)]
pub struct Progress(Arc<Inner>);

struct Inner {
    live: Option<Live>,
}

struct Live {
    all: MultiProgress,
    bar: ProgressBar,
    running: Mutex<HashMap<Arc<str>, Spinner>>,
}

struct Spinner {
    bar: ProgressBar,
    agent: Arc<str>,
    streamed: u64,
}

impl Progress {
    pub fn new() -> Self {
        let live = std::io::stdout().is_terminal().then(|| {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
            let bar = all.add(ProgressBar::new(0));
            bar.set_style(style("{bar:32.green/dim} {pos}/{len} steps  {elapsed}"));
            Live { all, bar, running: Mutex::default() }
        });
        Progress(Arc::new(Inner { live }))
    }

    /// A line above whatever moves.
    pub fn line(&self, text: &str) {
        match &self.0.live {
            // A terminal that went away while the run goes on is no reason to stop it.
            Some(live) => drop(live.all.println(text)),
            None => println!("{text}"),
        }
    }

    /// Shows what `record` changed; `report` has taken it in already.
    pub fn show(&self, report: &Report, record: &Record) {
        match &record.event {
            Event::StepStarted { path, attempt } => {
                if let (Some(live), Some(step)) = (&self.0.live, report.step(path)) {
                    live.begin(path, &step.agent);
                } else if let Some(step) = report.step(path) {
                    let again = if *attempt > 1 { format!(", attempt {attempt}") } else { String::new() };
                    println!("{} … {path} ({}{again})", place(report), step.agent);
                }
            }
            Event::StepSucceeded { path, .. }
            | Event::StepFailed { path, .. }
            | Event::SentBack { path, .. }
            | Event::StepSkipped { path, .. } => {
                if let Some(live) = &self.0.live {
                    live.end(path);
                }
                self.line(&ended(report, path));
            }
            Event::CallRetried { path, error, delay_ms, .. } => {
                self.line(&format!("{} ↻ {path}: again in {}: {error}", place(report), duration(*delay_ms)));
            }
            _ => {}
        }
        if let Some(live) = &self.0.live {
            live.bar.set_length(report.outer().count() as u64);
            live.bar.set_position(over(report) as u64);
        }
    }

    /// A piece of an answer came in.
    pub fn streamed(&self, path: &str, delta: &Delta) {
        let Some(live) = &self.0.live else { return };
        let mut running = live.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(spinner) = running.get_mut(path) else { return };
        spinner.streamed += match delta {
            Delta::Text(text) | Delta::Thinking(text) => text.len() as u64,
            Delta::ToolArguments { fragment, .. } => fragment.len() as u64,
            _ => 0,
        };
        spinner.bar.set_message(format!("{path} ({}), {} so far", spinner.agent, bytes(spinner.streamed)));
    }

    /// Takes everything that moves off the terminal.
    pub fn finish(&self) {
        if let Some(live) = &self.0.live {
            let mut running = live.running.lock().unwrap_or_else(PoisonError::into_inner);
            for (_, spinner) in running.drain() {
                spinner.bar.finish_and_clear();
            }
            live.bar.finish_and_clear();
        }
    }
}

impl Live {
    fn begin(&self, path: &Arc<str>, agent: &Arc<str>) {
        let bar = self.all.insert_before(&self.bar, ProgressBar::new_spinner());
        bar.set_style(style("{spinner:.cyan} {msg}  {elapsed}"));
        bar.set_message(format!("{path} ({agent})"));
        bar.enable_steady_tick(Duration::from_millis(100));
        let spinner = Spinner { bar, agent: agent.clone(), streamed: 0 };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = running.insert(path.clone(), spinner) {
            before.bar.finish_and_clear();
        }
    }

    fn end(&self, path: &str) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spinner) = running.remove(path) {
            spinner.bar.finish_and_clear();
            self.all.remove(&spinner.bar);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Steps that are over.
fn over(report: &Report) -> usize {
    [State::Succeeded, State::Failed, State::Skipped].into_iter().map(|state| report.count(state)).sum()
}

/// `[ 3/12]`: how many steps are over, of how many.
fn place(report: &Report) -> String {
    let all = report.outer().count().to_string();
    format!("[{:>width$}/{all}]", over(report), width = all.len())
}

fn ended(report: &Report, path: &str) -> String {
    let Some(step) = report.step(path) else { return String::new() };
    let place = place(report);
    let reason = step.reason.as_deref().unwrap_or_default();
    match step.state {
        State::Skipped => format!("{place} – {path} skipped: {reason}"),
        State::Waiting => format!("{place} ↩ {path} {reason}"),
        State::Failed => format!("{place} ✗ {path} failed: {reason}"),
        _ => {
            let files = report.deliverables.iter().filter(|item| *item.step == *path).count();
            format!(
                "{place} ✓ {path} ({}): {}, {} tokens, {}",
                step.agent,
                count(files, "deliverable"),
                number(step.usage.total_tokens()),
                duration(step.duration_ms)
            )
        }
    }
}
