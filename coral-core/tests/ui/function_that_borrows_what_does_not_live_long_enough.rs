#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    let greeting = String::from("hello");
    flow.function("greet", flow.input(), |idea: Idea| {
        let text = format!("{greeting} {}", idea.0);
        async move { Ok(text) }
    });
}

fn main() {}
