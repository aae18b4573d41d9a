#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    flow.function("shout", flow.input(), |idea: Idea| Ok(idea.0.to_uppercase()));
}

fn main() {}
