use coral_agents::{Registry, parse_brief};
use coral_core::{Program, Runner};
use coral_mcp::{FileAudit, Permissions, Sandbox};
use coral_state::SqliteJournal;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (registry, out) = (Registry::builtin(), std::env::temp_dir().join("coral-hello"));
    std::fs::create_dir_all(out.join("project"))?;
    let program = Program::from_graph((**registry.workflow("backend_only")?).clone(), &registry.team()?)?;
    let rules = Permissions::from_yaml(include_str!("../permissions.yaml"), "permissions.yaml")?;
    let sandbox = Sandbox::builder().permissions(rules).audit(FileAudit::open(out.join("audit.jsonl"))?);
    let tools = sandbox.root(out.join("project")).filesystem().build().await?;
    let journal = SqliteJournal::open(out.join("journal.db"))?;
    let runner = Runner::builder().model(coral_llm::from_env()?).tools(tools).journal(journal).build();
    let brief = parse_brief("reef.md", "# Reef\n\nA service that knows what lives on a reef.\n")?;
    let run = runner.start(&program, brief).await?;
    println!("{}: {:#}", run.id(), run.output().await?);
    Ok(())
}
