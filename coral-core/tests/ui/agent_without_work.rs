#[path = "support/team.rs"]
mod team;
use team::*;

struct Own(AgentSpec);

#[async_trait::async_trait]
impl Agent for Own {
    type Input = Idea;
    type Output = Design;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

}

fn main() {}
