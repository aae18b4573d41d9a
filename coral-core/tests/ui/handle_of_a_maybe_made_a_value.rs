#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    let design: Handle<Design> = flow.step(architect(), flow.input()).when("needs_design");
    let _ = design;
}

fn main() {}
