#[path = "support/team.rs"]
mod team;
use team::*;

fn build(flow: &mut Flow<Idea>) {
    let design = flow.step(architect(), flow.input());
    std::thread::spawn(move || design.named("design"));
}

fn main() {}
