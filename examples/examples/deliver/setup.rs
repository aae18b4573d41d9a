//! Everything that a run stands on. What can be wrong is found here, before anything is written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coral_agents::{Registry, parse_brief, parse_workflow};
use coral_core::{
    Brief, Caller, ChatModel, Error, Event, GraphData, Journal, Program, RunFilter, Runner, StartOptions,
};
use coral_llm::from_vars;
use coral_mcp::{Access, Decision, FileAudit, Permissions, Policy, Sandbox};
use coral_state::SqliteJournal;
use serde_json::Value;

use crate::args::{Job, Source};
use crate::files::read_named;
use crate::progress::Progress;

const DEFAULT_WORKFLOW: &str = "documentation_first";

/// The engine's own directory below the deliverables; no agent may touch it.
pub const STATE_DIR: &str = ".coral";

/// A job that can begin.
pub struct Ready {
    pub program: Program<Brief, Value>,
    pub model: Arc<dyn ChatModel>,
    pub begin: Begin,
    permissions: Permissions,
}

pub enum Begin {
    Start { brief: Brief, options: Box<StartOptions> },
    Resume { run: String },
}

/// Reads and checks all that the command line names.
pub async fn check(job: &Job) -> Result<Ready, Error> {
    let registry = Registry::builtin();
    let model = from_vars(|name| match (name, &job.model) {
        ("CORAL_MODEL", Some(model)) => Some(model.clone()),
        _ => std::env::var(name).ok(),
    })?;
    let permissions = match &job.permissions {
        Some(path) => Permissions::from_yaml(&read_named("permissions", path)?, &path.to_string_lossy())?,
        None => Permissions::from_yaml(include_str!("../../permissions.yaml"), "examples/permissions.yaml")?,
    };
    let (graph, begin) = match &job.source {
        Source::Start { brief, workflow, conditions } => {
            let brief = parse_brief(&brief.to_string_lossy(), &read_named("brief", brief)?)?;
            let graph = match workflow {
                Some(path) => {
                    parse_workflow(&path.to_string_lossy(), &read_named("workflow", path)?, &registry)?
                }
                None => (**registry.workflow(DEFAULT_WORKFLOW)?).clone(),
            };
            check_conditions(&graph, conditions.keys())?;
            let mut options = StartOptions::new();
            options.facts.clone_from(conditions);
            (graph, Begin::Start { brief, options: Box::new(options) })
        }
        Source::Resume { run } => (recorded_graph(&job.out, run).await?, Begin::Resume { run: run.clone() }),
    };
    let program = Program::from_graph(graph, &registry.team()?)?;
    if job.out.exists() && !job.out.is_dir() {
        return Err(Error::invalid("--out", format!("`{}` is not a directory", job.out.display())));
    }
    Ok(Ready { program, model, begin, permissions })
}

/// A fact that no condition asks for is most likely misspelt.
fn check_conditions<'a>(graph: &GraphData, given: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    let asked: BTreeSet<&str> = graph
        .steps
        .iter()
        .filter_map(|step| step.when.as_deref())
        .flat_map(|when| when.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .filter(|word| !word.is_empty())
        .collect();
    for name in given {
        if !asked.contains(name.as_str()) {
            let error = Error::not_found("condition", name, asked.iter().copied());
            return Err(error.at(format!("workflow `{}`", graph.name)));
        }
    }
    Ok(())
}

/// The graph that a recorded run began with.
async fn recorded_graph(out: &Path, run: &str) -> Result<GraphData, Error> {
    let path = journal_path(out);
    if !path.is_file() {
        return Err(Error::not_found("run", run, []).with_help(format!(
            "there is no journal at `{}`; is --out the same as before?",
            path.display()
        )));
    }
    let journal = SqliteJournal::open(&path)?;
    match journal.read(run, 1, 1).await?.pop().map(|record| record.event) {
        Some(Event::RunStarted { graph, .. }) => Ok((*graph).clone()),
        _ => {
            let runs = journal.runs(&RunFilter::default()).await?;
            let runs = runs.iter().filter(|head| coral_state::is_run(head));
            let known: Vec<&str> = runs.map(|head| head.run.as_str()).collect();
            Err(Error::not_found("run", run, known.iter().copied()).with_help(format!(
                "recorded in `{}`: {}",
                path.display(),
                known.join(", ")
            )))
        }
    }
}

pub fn journal_path(out: &Path) -> PathBuf {
    out.join(STATE_DIR).join("journal.db")
}

/// What was made on disk before the run began, so that it can be taken back.
pub struct Made {
    out: Option<PathBuf>,
    state: Option<PathBuf>,
}

impl Made {
    /// Removes what this process made, if nothing has come of it.
    pub fn undo(self) {
        if let Some(state) = self.state {
            let _ = std::fs::remove_dir_all(state);
            // Only if it is empty, so only if no agent has delivered anything.
            let _ = self.out.map(std::fs::remove_dir);
        }
    }
}

/// Makes the directories.
pub fn make_dirs(out: &Path) -> Result<Made, Error> {
    let state = out.join(STATE_DIR);
    let made = Made {
        out: (!out.exists()).then(|| out.to_owned()),
        state: (!state.exists()).then(|| state.clone()),
    };
    std::fs::create_dir_all(&state)
        .map_err(|error| Error::storage(format!("making the directory `{}`", state.display()), error))?;
    Ok(made)
}

/// A runner with a journal on disk, the model, and the file system behind the permissions.
pub async fn runner(ready: &Ready, out: &Path, progress: &Progress) -> Result<Runner, Error> {
    let tools = Sandbox::builder()
        .permissions(ready.permissions.clone())
        .policy(KeepOut)
        .audit(FileAudit::open(out.join(STATE_DIR).join("audit.jsonl"))?)
        .root(out)
        .filesystem()
        .build()
        .await?;
    let streamed = progress.clone();
    Ok(Runner::builder()
        .journal(SqliteJournal::open(journal_path(out))?)
        .model(ready.model.clone())
        .tools(tools)
        .on_delta(move |path, delta| streamed.streamed(path, delta))
        .build())
}

/// Keeps agents away from the journal and the report, whatever a permission file grants.
struct KeepOut;

impl Policy for KeepOut {
    fn decide(&self, access: &Access<'_>) -> Decision {
        let own = |path: &str| {
            let first = path.split('/').next().unwrap_or_default();
            first == STATE_DIR || matches!(path, "report.html" | "run.json")
        };
        match access.paths.iter().find(|path| own(path.relative())) {
            Some(path) => Decision::deny(format!("`{path}` belongs to the engine")),
            None => Decision::allow("nothing of the engine's own is touched"),
        }
    }

    fn may_reach(&self, _caller: &Caller, _server: &str, _now_ms: u64) -> bool {
        true
    }

    fn may_see(&self, _access: &Access<'_>) -> bool {
        true
    }
}
