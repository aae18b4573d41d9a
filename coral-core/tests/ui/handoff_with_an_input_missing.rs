#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    let design = flow.step(architect(), flow.input());
    let api = flow.step(backend(), &design);
    flow.step(qa(), &api);
}

fn main() {}
