#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    flow.route("desk", 3, flow.input(), |desk| desk.agent(architect()));
}

fn main() {}
