#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    flow.step(architect(), ());
}

fn main() {}
