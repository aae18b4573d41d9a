//! The recordings of the servers here, which other tests play again: made anew where `CORAL_RECORD` is set.

use std::sync::Arc;

use coral_llm::{HttpTransport, Recorder};

#[path = "../recordings/scenarios.rs"]
mod scenarios;

use scenarios::{AIMOCK, LLAMA, Recorded};

use crate::peer::aimock;

fn recorder(url: &str) -> Recorder {
    Recorder::new(Arc::new(HttpTransport::for_url(url).unwrap()))
}

fn keep(recorded: &Recorded, recorder: &Recorder) {
    if std::env::var_os("CORAL_RECORD").is_some() {
        recorder.cassette().save(recorded.file()).unwrap();
    }
}

#[tokio::test]
async fn aimock_says_what_is_recorded() {
    let peer = aimock();
    for recorded in AIMOCK {
        let recorder = recorder(&peer.url);
        recorded.play_aimock(&peer.url, Arc::new(recorder.clone())).await;
        keep(&recorded, &recorder);
    }
}

#[tokio::test]
async fn a_llama_server_says_what_is_recorded() {
    let peer = crate::llama::llama();
    for recorded in LLAMA {
        let recorder = recorder(&peer.url);
        recorded.play_llama(&peer.url, Arc::new(recorder.clone())).await;
        keep(&recorded, &recorder);
    }
}
