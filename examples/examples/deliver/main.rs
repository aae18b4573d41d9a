//! The main job: a brief goes in, a team of agents works through its workflow, deliverables and a
//! report come out. A run that was killed goes on where it was.
//!
//! ```text
//! cargo run --example deliver -- examples/briefs/task_manager.md --out target/deliver
//! ```
//!
//! - `args` reads the command line, `setup` checks all that it names and builds the runner
//! - `report` folds the run's records into what is known of it; `graph`, `html` and `table` show that
//! - `progress` is the terminal while the run goes on

mod args;
mod files;
mod graph;
mod html;
mod progress;
mod report;
mod setup;
mod table;
mod text;

use std::path::Path;
use std::process::ExitCode;

use coral_core::{EffectKind, Error, ErrorKind, Run, RunStatus};
use serde_json::Value;

use crate::args::{Asked, Job};
use crate::progress::Progress;
use crate::report::{EffectState, Report};
use crate::setup::Begin;

/// The exit code after an error.
const FAILED: u8 = 2;

/// The exit code after Ctrl-C, as shells expect it.
const STOPPED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let done = match args::parse(std::env::args_os().skip(1)) {
        Ok(Asked::Help) => {
            print!("{}", args::HELP);
            Ok(ExitCode::SUCCESS)
        }
        Ok(Asked::ListAgents) => {
            list_agents();
            Ok(ExitCode::SUCCESS)
        }
        Ok(Asked::Job(job)) => deliver(&job).await,
        Err(error) => Err(error),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error[{}]: {error}", error.code());
        ExitCode::from(FAILED)
    })
}

fn list_agents() {
    let registry = coral_agents::Registry::builtin();
    for agent in registry.agents() {
        println!("{:<27} {:<10} {:<17} {}", agent.id, agent.category.as_str(), agent.group, agent.summary);
    }
}

async fn deliver(job: &Job) -> Result<ExitCode, Error> {
    let ready = setup::check(job).await?;
    let made = setup::make_dirs(&job.out)?;
    let progress = Progress::new();
    let runner = setup::runner(&ready, &job.out, &progress).await?;
    let run = match ready.begin {
        Begin::Start { ref brief, ref options } => {
            runner.start_with(&ready.program, brief.clone(), (**options).clone()).await?
        }
        Begin::Resume { ref run } => runner.resume(&ready.program, run).await?,
    };
    let resume = resume_command(job, run.id());
    introduce(&ready, job, run.id(), &resume);

    let (report, stopped) = tokio::select! {
        report = follow(&run, &progress) => (report?, false),
        Ok(()) = tokio::signal::ctrl_c() => {
            runner.shutdown().await;
            (follow(&run, &progress).await?, true)
        }
    };
    progress.finish();

    if report.status == RunStatus::Failed && !anything_done(&report) {
        // Nothing is worth going on with, so nothing is left behind.
        let error = why_it_ended(&run).await;
        drop((run, runner));
        made.undo();
        return Err(error);
    }
    let report = leave(report, job, &resume)?;
    println!("\n{}", table::summary(&report));
    println!("report     {}", job.out.join("report.html").display());
    println!("as data    {}", job.out.join("run.json").display());
    match report.status {
        RunStatus::Succeeded => Ok(ExitCode::SUCCESS),
        RunStatus::Running if stopped => {
            println!("stopped    go on with: {resume}");
            Ok(ExitCode::from(STOPPED))
        }
        _ => {
            let error = why_it_ended(&run).await;
            let help = error.help().map(|help| format!("{help}; ")).unwrap_or_default();
            Err(error.with_help(format!("{help}go on with: {resume}")))
        }
    }
}

/// Takes the run's records in as they come, and shows them.
async fn follow(run: &Run<Value>, progress: &Progress) -> Result<Report, Error> {
    let mut report = Report::new(run.id());
    let mut events = run.events(1);
    while let Some(record) = events.next().await {
        let record = record?;
        report.apply(&record);
        progress.show(&report, &record);
    }
    Ok(report)
}

/// Whether any model call was answered: the part of a run that costs.
fn anything_done(report: &Report) -> bool {
    report.effects.iter().any(|effect| effect.kind == EffectKind::Chat && effect.state == EffectState::Done)
}

async fn why_it_ended(run: &Run<Value>) -> Error {
    match run.output().await {
        Ok(_) => Error::new(ErrorKind::Suspended { run: run.id().to_owned() }),
        Err(error) => error,
    }
}

/// Writes the report, as a page and as data.
fn leave(mut report: Report, job: &Job, resume: &str) -> Result<Report, Error> {
    report.draw();
    for item in &mut report.deliverables {
        item.bytes = std::fs::metadata(job.out.join(&item.path)).ok().map(|file| file.len());
    }
    let json =
        serde_json::to_string_pretty(&report).map_err(|error| Error::storage("writing run.json", error))?;
    files::write_whole(&job.out.join("report.html"), &html::render(&report, resume)?)?;
    files::write_whole(&job.out.join("run.json"), &json)?;
    Ok(report)
}

fn introduce(ready: &setup::Ready, job: &Job, run: &str, resume: &str) {
    let graph = ready.program.graph();
    let model = if ready.model.info().offline {
        "offline: no language model is called, and each file says so; set ANTHROPIC_API_KEY, OPENAI_API_KEY or \
         OLLAMA_HOST for a real one"
    } else {
        ready.model.name()
    };
    println!("workflow   {} ({})", graph.data().name, text::count(graph.steps().len(), "step"));
    println!("model      {model}");
    println!("run        {run}");
    println!("journal    {}", setup::journal_path(&job.out).display());
    println!("resume     {resume}\n");
}

/// The command that goes on with a run.
fn resume_command(job: &Job, run: &str) -> String {
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let mut command = format!("cargo run --example deliver -- --resume {run} --out {}", path(&job.out));
    if let Some(model) = &job.model {
        command.push_str(&format!(" --model {}", quoted(model)));
    }
    if let Some(permissions) = &job.permissions {
        command.push_str(&format!(" --permissions {}", path(permissions)));
    }
    command
}

/// The text as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}
