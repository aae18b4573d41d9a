#[path = "support/team.rs"]
mod team;
use team::*;

struct Shop;

impl Workflow for Shop {
    type Input = Idea;
    type Output = Design;

    fn name(&self) -> &str {
        "shop"
    }

    fn build(&self, flow: &mut Flow<Idea>) -> Handle<Design> {
        flow.step(architect(), flow.input())
    }
}

async fn start(runner: &Runner) -> Result<(), AgentError> {
    let run = runner.start(&Shop, Idea("a shop".to_owned())).await?;
    let _api: Api = run.output().await?;
    Ok(())
}

fn main() {}
