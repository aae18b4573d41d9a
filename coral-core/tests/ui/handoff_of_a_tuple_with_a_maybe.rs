#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    let design = flow.step(architect(), flow.input());
    let api = flow.step(backend(), &design);
    let ui = flow.step(frontend(), &design).when("needs_ui");
    flow.step(qa(), (&api, &ui));
}

fn main() {}
