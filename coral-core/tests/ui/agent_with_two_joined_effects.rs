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
        let (first, now) = tokio::join!(cx.chat(&request), cx.now_ms());
        Ok(Design(format!("{} {}", first?.message.text(), now?)))
    }
}

fn main() {}
