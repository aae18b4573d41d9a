#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    let design: Handle<Api> = flow.step(architect(), flow.input());
    let _ = design;
}

fn main() {}
