//! Every protocol from recordings of servers that others wrote, without those servers.

use std::sync::Arc;

use coral_llm::Cassette;

#[path = "../recordings/scenarios.rs"]
mod scenarios;

use scenarios::{AIMOCK, LLAMA};

#[tokio::test]
async fn what_aimock_said_is_still_understood() {
    for recorded in AIMOCK {
        let cassette = Arc::new(Cassette::load(recorded.file()).unwrap());
        recorded.play_aimock("http://recorded.invalid", cassette.clone()).await;
        assert_eq!(cassette.left(), 0, "{}", recorded.name);
    }
}

#[tokio::test]
async fn what_a_llama_server_said_is_still_understood() {
    for recorded in LLAMA {
        let cassette = Arc::new(Cassette::load(recorded.file()).unwrap());
        recorded.play_llama("http://recorded.invalid", cassette.clone()).await;
        assert_eq!(cassette.left(), 0, "{}", recorded.name);
    }
}
