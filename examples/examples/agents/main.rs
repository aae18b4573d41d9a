//! The catalogue of agents and workflows.
//!
//! ```text
//! cargo run --example agents -- list
//! cargo run --example agents -- search load testing
//! cargo run --example agents -- show qa_testing
//! cargo run --example agents -- handoffs
//! cargo run --example agents -- workflows
//! cargo run --example agents -- explain documentation_first needs_mobile=true
//! cargo run --example agents -- check my-agents
//! cargo run --example agents -- watch --dir my-agents
//! cargo run --example agents -- import path/to/project
//! cargo run --example agents -- export path/to/project
//! cargo run --example agents -- evaluate coral-agents/evaluations/project_architect.yaml project_architect
//! ```
//!
//! `--dir DIR` puts the definitions of a directory on top of the built-in ones, for any command.
//! `evaluate` compares whatever it is given two of: the definitions with and without `--dir`, models (`--model A
//! --model B`), versions of the prompt from a store that was saved as JSON (`--prompts FILE --version X --version Y`). It
//! runs in the phase of `--phase`, on the provider that is configured, or offline, and writes below `--out`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use coral_agents::{
    Changes, Explanation, Format, LiveRegistry, Registry, Severity, export_agent, export_team,
};
use coral_core::{AgentSpec, Error, LintRules};
use serde_json::Value;

mod evaluate;
#[cfg(test)]
mod tests;

const USAGE: &str = "usage: agents [--dir DIR] (list | search WORDS | show AGENT | handoffs | workflows | \
                     explain WORKFLOW [FACT=VALUE]… | check [DIR] | watch | import DIR | export DIR | \
                     evaluate CASES AGENT [--phase PHASE] [--model MODEL]… [--prompts FILE --version VERSION…] [--out DIR])";

/// What the options say.
#[derive(Debug, Default)]
struct Options {
    /// Definitions on top of the built-in ones.
    dir: Option<PathBuf>,
    phase: String,
    models: Vec<String>,
    /// A store of prompt versions.
    prompts: Option<PathBuf>,
    versions: Vec<String>,
    /// Where an evaluation writes; `target/evaluate` if nothing is given.
    out: Option<PathBuf>,
}

/// Why there is nothing to print.
enum Refused {
    /// The command line says nothing that can be done.
    Usage(String),
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused::Failed(error)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut words = Vec::new();
    let mut options = Options::default();
    let mut args = lexopt::Parser::from_env();
    loop {
        let value = match args.next() {
            Ok(None) => break,
            Ok(Some(lexopt::Arg::Value(word))) => {
                words.push(word.to_string_lossy().into_owned());
                continue;
            }
            Ok(Some(lexopt::Arg::Long("help") | lexopt::Arg::Short('h'))) => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            Ok(Some(lexopt::Arg::Long(name))) => {
                let name = name.to_owned();
                args.value().and_then(|value| options.set(&name, value.to_string_lossy().into_owned()))
            }
            Ok(Some(other)) => Err(other.unexpected()),
            Err(error) => Err(error),
        };
        if let Err(error) = value {
            return refuse(&error.to_string());
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words, &options, &mut std::io::stdin().lock()).await {
        Ok((text, good)) => {
            print!("{text}");
            if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(Refused::Usage(problem)) => refuse(&problem),
        Err(Refused::Failed(error)) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

impl Options {
    fn set(&mut self, name: &str, value: String) -> Result<(), lexopt::Error> {
        match name {
            "dir" => self.dir = Some(value.into()),
            "phase" => self.phase = value,
            "model" => self.models.push(value),
            "prompts" => self.prompts = Some(value.into()),
            "version" => self.versions.push(value),
            "out" => self.out = Some(value.into()),
            other => return Err(lexopt::Error::UnexpectedOption(format!("--{other}"))),
        }
        Ok(())
    }
}

fn refuse(problem: &str) -> ExitCode {
    eprintln!("error: {problem}\n{USAGE}");
    ExitCode::from(2)
}

/// What a command prints, and whether it found all in order.
async fn run(words: &[&str], options: &Options, input: &mut dyn BufRead) -> Result<(String, bool), Refused> {
    let mut registry = Registry::builtin();
    let mut skipped = Vec::new();
    // `check DIR` is `check --dir DIR`.
    let (words, dir) = match words {
        ["check", given] => (&["check"][..], Some(Path::new(*given))),
        _ => (words, options.dir.as_deref()),
    };
    if let Some(dir) = dir {
        skipped = registry.load_dir(dir)?.skipped;
        for file in &skipped {
            eprintln!("skipped {}: {}", file.file.display(), file.error);
        }
    }
    let text = match words {
        ["list"] => list(registry.agents().map(|spec| &**spec)),
        ["search", capability @ ..] if !capability.is_empty() => {
            let found = registry.with_capability(&capability.join(" "));
            if found.is_empty() {
                let known: Vec<&str> = registry.capabilities().into_keys().collect();
                return Err(Error::not_found("capability", capability.join("_"), known).into());
            }
            list(found.into_iter().map(|spec| &**spec))
        }
        ["show", agent] => show(registry.agent(agent)?),
        ["handoffs"] => handoffs(&registry),
        ["workflows"] => registry.workflows().fold(String::new(), |mut out, workflow| {
            let _ = writeln!(
                out,
                "{:<22} {:>2} steps  {}",
                workflow.name,
                workflow.steps.len(),
                workflow.description
            );
            out
        }),
        ["explain", workflow, facts @ ..] => {
            let facts = facts.iter().map(|fact| parse_fact(fact)).collect::<Result<BTreeMap<_, _>, _>>()?;
            let explanation = Explanation::new(registry.workflow(workflow)?, &facts)?;
            format!("{explanation}\n{}", explanation.mermaid())
        }
        ["check"] => {
            let mut findings = registry.check();
            findings.extend(registry.lint(&LintRules::default()));
            findings.sort();
            let mut text: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
            let _ = writeln!(
                text,
                "{} agents, {} workflows, {} findings, {} files skipped",
                registry.agents().count(),
                registry.workflows().count(),
                findings.len(),
                skipped.len(),
            );
            let good =
                skipped.is_empty() && findings.iter().all(|finding| finding.severity != Severity::Error);
            return Ok((text, good));
        }
        ["watch"] => match dir {
            Some(dir) => watch(dir, input, |text| println!("{text}"))?,
            None => {
                return Err(Refused::Usage("`watch` needs a directory: give it as `--dir DIR`".to_owned()));
            }
        },
        ["import", dir] => registry.import_dir(dir)?.to_string(),
        ["export", dir] => export(&registry, Path::new(dir))?,
        ["evaluate", cases, agent] => evaluate::run(&registry, options, Path::new(cases), agent).await?,
        [] => return Err(Refused::Usage("which command?".to_owned())),
        [command @ ("show" | "import" | "export" | "explain" | "search" | "evaluate"), ..] => {
            return Err(Refused::Usage(format!("`{command}` is not given what it needs, or too much")));
        }
        [other, ..] => return Err(Refused::Usage(format!("there is no command `{other}`"))),
    };
    Ok((text, true))
}

/// Says what changes in a directory, until a line is entered.
fn watch(
    dir: &Path,
    input: &mut dyn BufRead,
    say: impl Fn(&str) + Clone + Send + Sync + 'static,
) -> Result<String, Error> {
    let (live, loaded) = LiveRegistry::open(Registry::builtin(), dir)?;
    let tell = say.clone();
    let _following = Arc::new(live).follow(move |changes| match changes {
        Ok(changes) => tell(&changed(&changes)),
        Err(error) => tell(&format!("error: {error}")),
    })?;
    say(&format!(
        "{} agents of {}; change a file, or press Enter to end",
        loaded.agents.len(),
        dir.display()
    ));
    let mut line = String::new();
    input.read_line(&mut line).map_err(|error| Error::storage("reading the input", error))?;
    Ok(String::new())
}

/// A change in one line for each kind of thing.
fn changed(changes: &Changes) -> String {
    let mut lines = Vec::new();
    for (what, names) in [
        ("agents", &changes.agents),
        ("agents gone", &changes.removed_agents),
        ("partials", &changes.partials),
        ("workflows", &changes.workflows),
        ("workflows gone", &changes.removed_workflows),
    ] {
        if !names.is_empty() {
            lines.push(format!("{what}: {}", names.join(", ")));
        }
    }
    lines.extend(
        changes.skipped.iter().map(|file| format!("skipped {}: {}", file.file.display(), file.error)),
    );
    lines.join("\n")
}

fn list<'a>(agents: impl Iterator<Item = &'a AgentSpec>) -> String {
    let mut agents: Vec<&AgentSpec> = agents.collect();
    agents.sort_by_key(|spec| (spec.category, &spec.group, &spec.id));
    agents.into_iter().fold(String::new(), |mut out, spec| {
        let _ = writeln!(out, "{:<26} {:<18} {}", spec.id, spec.group, spec.summary);
        out
    })
}

fn show(spec: &AgentSpec) -> String {
    let mut out = format!("{} ({}, {})\n{}\n", spec.name, spec.id, spec.category.as_str(), spec.summary);
    let mut line = |label: &str, list: &[String]| {
        if !list.is_empty() {
            let _ = writeln!(out, "{label:<14} {}", list.join(", "));
        }
    };
    line("also called", &spec.aliases);
    line("can", &spec.capabilities);
    line("needs", &spec.dependencies);
    line("uses", &spec.optional_dependencies);
    line("hands off to", &spec.handoff.next_agents);
    line("operations", &spec.operations);
    line("methods", &spec.methodologies);
    let mut outputs = |label: &str, outputs: &[coral_core::OutputSpec]| {
        for output in outputs {
            let optional = if output.optional { ", if it applies" } else { "" };
            let _ = writeln!(
                out,
                "{label:<14} {} ({}{optional}): {}",
                output.path, output.kind, output.description
            );
        }
    };
    outputs("delivers", &spec.outputs);
    for (name, phase) in &spec.phases {
        outputs(&format!("in {name}"), phase.outputs.as_deref().unwrap_or_default());
    }
    let _ = writeln!(
        out,
        "{:<14} tier {:?}, {} turns at the most, prompt of {} characters",
        "model",
        spec.model.tier,
        spec.limits.max_turns,
        spec.prompt.system_instructions.len() + spec.prompt.task_template.len(),
    );
    out
}

/// Who hands off to whom, as a Mermaid flowchart.
fn handoffs(registry: &Registry) -> String {
    let mut out = String::from("flowchart LR\n");
    for spec in registry.agents() {
        let _ = writeln!(out, "    {}[\"{}\"]", spec.id, spec.name);
        for next in &spec.handoff.next_agents {
            let _ = writeln!(out, "    {} --> {next}", spec.id);
        }
        for reviewed in &spec.handoff.reviews {
            let _ = writeln!(out, "    {} -.->|reviews| {reviewed}", spec.id);
        }
    }
    out
}

fn parse_fact(text: &str) -> Result<(String, Value), Error> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| Error::invalid("fact", format!("`{text}` is not of the form `name=value`")))?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| Value::from(value))))
}

/// Writes the agents as sub-agent files and one `AGENTS.md` below `dir`; nothing is overwritten.
fn export(registry: &Registry, dir: &Path) -> Result<String, Error> {
    let mut files = vec![export_team(registry)];
    for spec in registry.agents() {
        files.push(export_agent(registry, &spec.id, Format::Subagent)?);
    }
    let mut out = String::new();
    for file in files {
        let path = dir.join(&file.path);
        let failed =
            |problem: std::io::Error| Error::storage(format!("writing `{}`", path.display()), problem);
        if path.exists() {
            let _ = writeln!(out, "{} is there already and stays as it is", path.display());
            continue;
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        std::fs::write(&path, &file.text).map_err(failed)?;
        let _ = writeln!(out, "{}", path.display());
        for note in &file.notes {
            let _ = writeln!(out, "  {note}");
        }
    }
    Ok(out)
}
