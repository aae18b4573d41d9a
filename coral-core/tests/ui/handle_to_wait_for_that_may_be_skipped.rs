#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    let design = flow.step(architect(), flow.input()).when("needs_design");
    let _idea = flow.step(architect(), flow.input()).after(&design);
}

fn main() {}
