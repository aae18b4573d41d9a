#[path = "support/team.rs"]
mod team;
use team::*;

#[derive(Clone, Serialize, Deserialize)]
struct Plan {
    text: String,
}

struct Own(AgentSpec);

#[async_trait::async_trait]
impl Agent for Own {
    type Input = Idea;
    type Output = Plan;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, input: Idea, _cx: &mut AgentContext) -> Result<Plan, AgentError> {
        Ok(Plan { text: input.0 })
    }
}

fn main() {}
