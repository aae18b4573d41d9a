#[path = "support/team.rs"]
mod team;
use team::*;

#[derive(Clone, Deserialize, JsonSchema)]
struct Connection;

struct Own(AgentSpec);

#[async_trait::async_trait]
impl Agent for Own {
    type Input = Connection;
    type Output = Design;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, _input: Connection, _cx: &mut AgentContext) -> Result<Design, AgentError> {
        Ok(Design(String::new()))
    }
}

fn main() {}
