use coral_core::{AgentSpec, Brief, Error, Program, PromptAgent, Runner, Team};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (mut registry, mut team) = (coral_agents::Registry::new(), Team::new());
    for (id, task) in [("planner", "Plan {{ brief.text }}"), ("writer", "Describe {{ brief.text }}")] {
        let mut spec = AgentSpec::new(id, id);
        spec.prompt.task_template = task.into();
        registry.insert(spec.clone())?;
        team = team.with_agent(PromptAgent::new(spec)?);
    }
    let steps = "steps: [{agent: planner}, {agent: writer, inputs: [planner]}]";
    let program = Program::from_graph(coral_agents::parse_workflow("hello.yaml", steps, &registry)?, &team)?;
    let runner = Runner::builder().model(coral_llm::from_env()?).build();
    let brief = Brief { project: "Hello".into(), text: "a page that greets".into(), ..Brief::default() };
    let run = runner.start(&program, brief).await?;
    println!("{}", run.output().await?["writer"]["summary"]);
    Ok(())
}
