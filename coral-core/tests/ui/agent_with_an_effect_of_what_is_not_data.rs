#[path = "support/team.rs"]
mod team;
use team::*;

struct Connection;

impl Connection {
    fn name(&self) -> String {
        "connection".to_owned()
    }
}

struct Own(AgentSpec);

#[async_trait::async_trait]
impl Agent for Own {
    type Input = Idea;
    type Output = Design;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, input: Idea, cx: &mut AgentContext) -> Result<Design, AgentError> {
        let connection: Connection = cx
            .effect("connect", coral_core::EffectClass::Pure, &input.0, |_key| async move { Ok(Connection) })
            .await?;
        Ok(Design(connection.name()))
    }
}

fn main() {}
