#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    flow.step(backend(), flow.input());
}

fn main() {}
