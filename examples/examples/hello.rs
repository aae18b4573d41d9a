use coral_agents::{Registry, parse_workflow};
use coral_core::{AgentSpec, Brief, Error, Program, Runner};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut registry = Registry::new();
    for (id, task) in [("planner", "Plan {{ brief.text }}"), ("writer", "Describe {{ brief.text }}")] {
        let mut agent = AgentSpec::new(id, id);
        agent.prompt.task_template = task.into();
        registry.insert(agent)?;
    }
    let steps = "steps: [{agent: planner}, {agent: writer, inputs: [planner]}]";
    let program = Program::from_graph(parse_workflow("hello.yaml", steps, &registry)?, &registry.team()?)?;
    let runner = Runner::builder().model(coral_llm::from_env()?).build();
    let brief = Brief { project: "Hello".into(), text: "a page that greets".into(), ..Brief::default() };
    let run = runner.start(&program, brief).await?;
    println!("{}", run.output().await?["writer"]["summary"]);
    Ok(())
}
