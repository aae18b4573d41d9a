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
//! `--dir DIR` puts the definitions of a directory on top of the built-in ones, for any command;
//! `evaluate` then compares the two. It runs on the provider that is configured, or offline.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use coral_agents::{
    Candidate, EvaluationOptions, Explanation, Format, LiveRegistry, Registry, Severity, export_agent,
    export_team, parse_cases,
};
use coral_core::{AgentSpec, ChatModel, Error, LintRules, Runner};
use coral_mcp::{Permissions, Sandbox};
use serde_json::Value;

const USAGE: &str = "usage: agents [--dir DIR] (list | search WORDS | show AGENT | handoffs | workflows | \
                     explain WORKFLOW [FACT=VALUE]… | check [DIR] | watch | import DIR | export DIR | evaluate CASES AGENT)";

#[tokio::main]
async fn main() -> ExitCode {
    let mut words = Vec::new();
    let mut dir = None;
    let mut args = lexopt::Parser::from_env();
    loop {
        match args.next() {
            Ok(None) => break,
            Ok(Some(lexopt::Arg::Value(word))) => words.push(word.to_string_lossy().into_owned()),
            Ok(Some(lexopt::Arg::Long("dir"))) => match args.value() {
                Ok(value) => dir = Some(PathBuf::from(value)),
                Err(error) => return refuse(&error.to_string()),
            },
            Ok(Some(lexopt::Arg::Long("help") | lexopt::Arg::Short('h'))) => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            Ok(Some(other)) => return refuse(&other.unexpected().to_string()),
            Err(error) => return refuse(&error.to_string()),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words, dir.as_deref()).await {
        Ok(Some((text, good))) => {
            print!("{text}");
            if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ok(None) => refuse("which command?"),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn refuse(problem: &str) -> ExitCode {
    eprintln!("error: {problem}\n{USAGE}");
    ExitCode::from(2)
}

/// What a command prints, and whether it found all in order; nothing if there is no such command.
async fn run(words: &[&str], dir: Option<&Path>) -> Result<Option<(String, bool)>, Error> {
    let mut registry = Registry::builtin();
    let mut skipped = Vec::new();
    // `check DIR` is `check --dir DIR`.
    let (words, dir) = match words {
        ["check", given] => (&["check"][..], Some(Path::new(*given))),
        _ => (words, dir),
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
                return Err(Error::not_found("capability", capability.join("_"), known));
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
            return Ok(Some((text, good)));
        }
        ["watch"] => match dir {
            Some(dir) => watch(dir)?,
            None => return Ok(None),
        },
        ["import", dir] => registry.import_dir(dir)?.to_string(),
        ["export", dir] => export(&registry, Path::new(dir))?,
        ["evaluate", cases, agent] => evaluate(&registry, dir, Path::new(cases), agent).await?,
        _ => return Ok(None),
    };
    Ok(Some((text, true)))
}

/// Says what changes in a directory, until a line is entered.
fn watch(dir: &Path) -> Result<String, Error> {
    let (live, loaded) = LiveRegistry::open(Registry::builtin(), dir)?;
    println!("{} agents of {}; change a file, or press Enter to end", loaded.agents.len(), dir.display());
    let _following = Arc::new(live).follow(|changes| match changes {
        Ok(changes) => println!("{changes:#?}"),
        Err(error) => eprintln!("error: {error}"),
    })?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|error| Error::storage("reading the input", error))?;
    Ok(String::new())
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

/// Runs an agent on cases, and, where a directory was given, its built-in version too, and writes the
/// report as a page and as JSON. The model that works also grades; give the judge a model of its own
/// where that matters. Each run has a directory of its own below `target/evaluate`.
async fn evaluate(
    registry: &Registry,
    dir: Option<&Path>,
    cases: &Path,
    agent: &str,
) -> Result<String, Error> {
    let text = std::fs::read_to_string(cases)
        .map_err(|problem| Error::storage(format!("reading `{}`", cases.display()), problem))?;
    let evaluation = parse_cases(&cases.to_string_lossy(), &text)?;
    let root = Path::new("target/evaluate").join(&evaluation.name);
    let model = coral_llm::from_env()?;
    let candidate = |name: &str, registry: &Registry| {
        let runner = Runner::builder().model(model.clone()).build();
        let model = model.clone();
        let candidate = Candidate::agent(name, &runner, registry, agent, "")?;
        Ok::<_, Error>(candidate.with_workspaces(&root, move |dir| runner_in(dir, model.clone())))
    };
    let mut candidates = Vec::new();
    let builtin = Registry::builtin();
    if dir.is_none() || builtin.agent(agent).is_ok() {
        candidates.push(candidate("built-in", &builtin)?);
    }
    if let Some(dir) = dir {
        candidates.push(candidate(&dir.to_string_lossy(), registry)?);
    }
    let options = EvaluationOptions::new().judge(model.clone());
    let report = evaluation.run(&candidates, &options).await;
    let mut out = report.to_string();
    for (ending, text) in [("html", report.html()), ("json", format!("{:#}\n", report.json()))] {
        let path = root.join(format!("report.{ending}"));
        std::fs::write(&path, text)
            .map_err(|problem| Error::storage(format!("writing `{}`", path.display()), problem))?;
        let _ = writeln!(out, "\n{}", path.display());
    }
    Ok(out)
}

/// A runner whose tools work in `dir`.
async fn runner_in(dir: PathBuf, model: Arc<dyn ChatModel>) -> Result<Runner, Error> {
    let permissions =
        Permissions::from_yaml(include_str!("../permissions.yaml"), "examples/permissions.yaml")?;
    let tools = Sandbox::builder().permissions(permissions).root(&dir).filesystem().build().await?;
    Ok(Runner::builder().model(model).tools(tools).build())
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
