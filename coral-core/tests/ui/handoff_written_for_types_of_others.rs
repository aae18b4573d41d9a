#[path = "support/team.rs"]
mod team;
use team::*;

impl Handoff<String> for Vec<u8> {
    fn hand_off(self, _cx: &HandoffContext) -> Result<String, AgentError> {
        Ok(String::from_utf8(self)?)
    }
}

fn main() {}
