#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    let first = flow.step(architect(), flow.input());
    let second = flow.step(architect(), flow.input());
    flow.step(backend(), All([&first, &second]));
}

fn main() {}
