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

    async fn run(&self, input: Idea, cx: &mut AgentContext) -> Result<Design, AgentError> {
        let request = ChatRequest::user(input.0);
        let first = cx.chat(&request);
        let second = cx.chat(&request);
        Ok(Design(format!("{} {}", first.await?.message.text(), second.await?.message.text())))
    }
}

fn main() {}
