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

async fn start(runner: &Runner) {
    let _ = runner.start(&Shop, 7_u32).await;
}

fn main() {}
