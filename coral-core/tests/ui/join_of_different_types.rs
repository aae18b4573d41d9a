#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    let design = flow.step(architect(), flow.input());
    let api = flow.step(backend(), &design);
    let ui = flow.step(frontend(), &design);
    flow.function("all", All([&api, &ui]), |all: Vec<Api>| async move { Ok(all) });
}

fn main() {}
