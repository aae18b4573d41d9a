#[path = "support/team.rs"]
mod team;
use team::*;

struct Shop;

impl Workflow for Shop {
    type Input = Idea;
    type Output = Verdict;

    fn name(&self) -> &str {
        "shop"
    }

    fn build(&self, flow: &mut Flow<Idea>) -> Handle<Verdict> {
        let design = flow.step(architect(), flow.input());
        flow.step(backend(), &design)
    }
}

fn main() {}
