//! Prompts under version control, with the state of the project in them. Needs no network.
//!
//! ```text
//! cargo run --example prompts
//! ```

use std::sync::Arc;

use async_trait::async_trait;
use coral_agents::Registry;
use coral_core::{
    Brief, ContextQuery, ContextSource, Error, GraphData, MemoryJournal, Partials, Program, PromptService,
    PromptStore, PromptText, PromptUse, Runner, StartOptions, StepData, StepKind, Team,
};
use coral_llm::{Reply, ScriptedModel};
use coral_state::{ProjectDraft, Projects};
use serde_json::{Value, json};

const AGENT: &str = "technical_writer";

/// What a project is and how far it has come, for the prompts of its agents. Prompts know nothing of projects, and
/// projects nothing of prompts: a program that has both joins them.
struct ProjectSource(Projects);

#[async_trait]
impl ContextSource for ProjectSource {
    fn name(&self) -> &str {
        "project_state"
    }

    async fn load(&self, query: &ContextQuery<'_>) -> Result<Value, Error> {
        let Some(project) = self.0.get(query.project).await? else { return Ok(Value::Null) };
        let progress = self.0.progress(query.project).await?;
        Ok(json!({
            "name": project.name,
            "configuration": project.config,
            "shared": project.shared,
            "steps_done": progress.done,
            "steps": progress.total,
        }))
    }
}

/// Two versions of one agent's prompt: what differs, who gets which, and the way back.
fn versions(registry: &Registry) -> Result<PromptStore, Error> {
    let partials: Partials = registry.partials().collect();
    let mut spec = registry.agent(AGENT)?.as_ref().clone();
    let mut store = PromptStore::new();
    let first = store.commit(AGENT, PromptText::of(&spec, &partials), "as it comes")?;

    spec.prompt.output_format.push_str("\n\nEach page begins with one sentence that says for whom it is.");
    let second = store.commit(AGENT, PromptText::of(&spec, &partials), "say for whom")?;
    print!("{}", store.diff(AGENT, &first, &second)?);

    // A fifth of the steps try the second version; which ones follows from their names, so a restart changes nothing.
    store.roll_back(AGENT, "not yet for everybody")?;
    store.begin_trial(AGENT, [(second.as_str(), 20)])?;
    let tries = |i: &u32| store.choose(AGENT, &format!("run-{i}/write")).is_some_and(|(id, _)| id == second);
    println!("\n{} of 100 steps would try {second}", (0..100).filter(tries).count());
    store.end_trial(AGENT)?;
    store.pin(AGENT, &second)?;
    Ok(store)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let journal = Arc::new(MemoryJournal::new());
    let projects = Projects::new(journal.clone());
    let draft = ProjectDraft {
        name: Some("Reefs of the north".into()),
        config: Some(json!({"language": "English", "readers": "divers"})),
        ..ProjectDraft::default()
    };
    projects.create("north", draft).await?;

    let registry = Registry::builtin();
    let prompts =
        PromptService::builder().store(versions(&registry)?).source(ProjectSource(projects)).build()?;
    let team: Team = registry.team_with(&prompts)?;
    let step =
        StepData { phase: "review_report".into(), ..StepData::new("write", StepKind::Agent(AGENT.into())) };
    let graph = GraphData { name: "report".into(), steps: vec![step], ..GraphData::default() };
    let report = json!({
        "summary": "The dive computer was reviewed.",
        "deliverables": [{"type": "review_report", "path": "docs/security/review_report.md", "description": "It"}],
        "decisions": [],
        "next_tasks": [],
        "data": {"findings": {"closed": 0, "open": 0, "accepted": 0}, "advice": "Decide nothing yet"},
    });
    let model = Arc::new(ScriptedModel::new().otherwise(move |_| Reply::json(&report)));
    let runner = Runner::builder().model(model.clone()).journal(journal).build();
    let options = StartOptions::new().id("run-1").project("north");
    let brief = Brief { text: "Report on the review of the dive computer.".into(), ..Brief::default() };
    let run = runner.start_with(&Program::from_graph(graph, &team)?, brief, options).await?;
    run.output().await?;

    for request in model.requests() {
        let task = request.messages.last().map(coral_core::Message::text).unwrap_or_default();
        let section = task.split("\n\n").skip_while(|part| !part.starts_with("## Project state"));
        println!("\nThe prompt has:\n{}", section.take(2).collect::<Vec<_>>().join("\n\n"));
    }
    for record in runner.journal().read("run-1", 1, 100).await? {
        if let Some((path, used)) = PromptUse::of(&record.event) {
            println!("\n{path} was given version {} ({:?})", used.version, used.by);
        }
    }
    Ok(())
}
