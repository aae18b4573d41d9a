#[path = "support/team.rs"]
mod team;
use team::*;

struct Connection;

fn build(flow: &mut Flow<Idea>) {
    flow.function("connect", flow.input(), |_: Idea| async move { Ok(Connection) });
}

fn main() {}
