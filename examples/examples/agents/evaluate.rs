//! Evaluating an agent, and setting definitions, models and versions of its prompt side by side.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coral_agents::{Candidate, EvaluationOptions, Registry, parse_cases};
use coral_core::{ChatModel, Error, PromptService, PromptStore, Runner};
use coral_mcp::{Permissions, Sandbox};

use super::Options;

/// Runs each candidate on the cases, and writes the report as a page and as JSON. The first model also grades, so that
/// all are graded alike. Each run has a directory of its own below that of `--out`.
pub(super) async fn run(
    registry: &Registry,
    options: &Options,
    cases: &Path,
    agent: &str,
) -> Result<String, Error> {
    let text = read(cases)?;
    let evaluation = parse_cases(&cases.to_string_lossy(), &text)?;
    let out = options.out.as_deref().unwrap_or(Path::new("target/evaluate"));
    let root = out.join(&evaluation.name);
    let models = models(&options.models)?;
    let mut candidates = Vec::new();
    for (name, registry, prompts) in variants(registry, options, agent)? {
        for model in &models {
            let name = match models.len() {
                1 => name.clone(),
                _ => format!("{name} on {}", model.name()),
            };
            let runner = Runner::builder().model(model.clone()).build();
            let candidate = Candidate::agent_with(name, &runner, &registry, agent, &options.phase, &prompts)?;
            let model = model.clone();
            candidates.push(candidate.with_workspaces(&root, move |dir| runner_in(dir, model.clone())));
        }
    }
    let mut how = EvaluationOptions::new();
    how.judge = models.first().cloned();
    let report = evaluation.run(&candidates, &how).await;
    let mut said = report.to_string();
    for (ending, text) in [("html", report.html()), ("json", format!("{:#}\n", report.json()))] {
        let path = root.join(format!("report.{ending}"));
        std::fs::write(&path, text)
            .map_err(|problem| Error::storage(format!("writing `{}`", path.display()), problem))?;
        let _ = writeln!(said, "\n{}", path.display());
    }
    Ok(said)
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path)
        .map_err(|problem| Error::storage(format!("reading `{}`", path.display()), problem))
}

/// The models of these names; the configured one if there are none.
fn models(names: &[String]) -> Result<Vec<Arc<dyn ChatModel>>, Error> {
    if names.is_empty() {
        return Ok(vec![coral_llm::from_env()?]);
    }
    let named = |name: &String| {
        coral_llm::from_vars(|variable| match variable {
            "CORAL_MODEL" => Some(name.clone()),
            other => std::env::var(other).ok(),
        })
    };
    names.iter().map(named).collect()
}

/// The definitions and the prompts to compare, by name.
fn variants(
    registry: &Registry,
    options: &Options,
    agent: &str,
) -> Result<Vec<(String, Registry, PromptService)>, Error> {
    let plain = || PromptService::builder().build();
    if let Some(path) = &options.prompts {
        let store: PromptStore = serde_json::from_str(&read(path)?)
            .map_err(|problem| Error::invalid(format!("`{}`", path.display()), problem.to_string()))?;
        let current = || store.current(agent).map(str::to_owned).into_iter().collect();
        let versions = if options.versions.is_empty() { current() } else { options.versions.clone() };
        let pinned = versions.iter().map(|version| {
            let mut store = store.clone();
            store.pin(agent, version)?;
            Ok((version.clone(), registry.clone(), PromptService::builder().store(store).build()?))
        });
        return pinned.collect();
    }
    if !options.versions.is_empty() {
        return Err(Error::invalid("`--version`", "the store of the versions is not given")
            .with_help("give it as `--prompts FILE`"));
    }
    let builtin = Registry::builtin();
    let mut variants = Vec::new();
    if options.dir.is_none() || builtin.agent(agent).is_ok() {
        variants.push(("built-in".to_owned(), builtin, plain()?));
    }
    if let Some(dir) = &options.dir {
        variants.push((dir.to_string_lossy().into_owned(), registry.clone(), plain()?));
    }
    Ok(variants)
}

/// A runner whose tools work in `dir`.
async fn runner_in(dir: PathBuf, model: Arc<dyn ChatModel>) -> Result<Runner, Error> {
    let permissions =
        Permissions::from_yaml(include_str!("../../permissions.yaml"), "examples/permissions.yaml")?;
    let tools = Sandbox::builder().permissions(permissions).root(&dir).filesystem().build().await?;
    Ok(Runner::builder().model(model).tools(tools).build())
}
