#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    let design = flow.step(architect(), flow.input()).when("needs_design");
    flow.step(backend(), &design);
}

fn main() {}
