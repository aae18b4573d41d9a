//! Large values beside the journal.

use std::sync::Arc;

use coral_core::{
    Blobs, ErrorKind, Flow, Handle, Journal, MemoryBlobs, MemoryJournal, OffloadingJournal, Runner,
    StartOptions, Workflow,
};
use serde_json::{Value, json};

use crate::support::records;

/// Hands its input on through a map and a graph within a graph.
struct Nested;

struct Inner;

impl Workflow for Inner {
    type Input = Vec<Value>;
    type Output = Vec<Value>;

    fn name(&self) -> &str {
        "inner"
    }

    fn build(&self, flow: &mut Flow<Vec<Value>>) -> Handle<Vec<Value>> {
        flow.map("each", 4, flow.input(), |flow: &mut Flow<Value>| {
            flow.function("pass", flow.input(), |value: Value| async move { Ok(value) })
        })
    }
}

impl Workflow for Nested {
    type Input = Vec<Value>;
    type Output = Vec<Value>;

    fn name(&self) -> &str {
        "nested"
    }

    fn build(&self, flow: &mut Flow<Vec<Value>>) -> Handle<Vec<Value>> {
        let inner = flow.workflow(&Inner, flow.input());
        let go = flow.signal::<String>("go");
        flow.function("end", (&inner, &go), |(values, _): (Vec<Value>, String)| async move { Ok(values) })
    }
}

fn runner(journal: &Arc<MemoryJournal>, blobs: &Arc<MemoryBlobs>) -> Runner {
    Runner::builder().journal(journal.clone()).blobs(blobs.clone()).build()
}

#[tokio::test]
async fn large_values_lie_in_the_blobs_once_and_a_resumed_run_has_them_back() {
    let (journal, blobs) = (Arc::new(MemoryJournal::new()), Arc::new(MemoryBlobs::default()));
    let large = json!({ "text": "coral ".repeat(40_000) });
    // One that only looks like what stands for a blob.
    let mimic = json!({ "$coral_blob": { "sha256": "0", "bytes": 1 } });
    let input = vec![large.clone(), json!("small"), mimic];
    let first = runner(&journal, &blobs);
    let run = first.start_with(&Nested, input.clone(), StartOptions::new().id("run")).await.unwrap();
    let mut events = run.events(1);
    while let Some(record) = events.next().await {
        if record.unwrap().event.path().is_some_and(|path| &**path == "go") {
            break;
        }
    }
    first.shutdown().await;

    let second = runner(&journal, &blobs);
    let run = second.resume(&Nested, "run").await.unwrap();
    run.signal("go", "now".to_owned()).await.unwrap();
    assert_eq!(run.output().await.unwrap(), input);
    let below = records(&*journal, "run").await;
    let bytes = serde_json::to_vec(&below).unwrap().len();
    assert!(bytes < 64 << 10, "{bytes} bytes in the journal below");
    // Whoever reads through the runner's journal sees the values.
    let seen = records(&**second.journal(), "run").await;
    assert_eq!(seen.len(), below.len());
    assert!(serde_json::to_vec(&seen).unwrap().len() > 4 * 240_000);
    let state = second.inspect("run", None).await.unwrap();
    let end = state.state(state.step("end").unwrap()).unwrap().output().unwrap().json().unwrap().clone();
    assert_eq!(end, json!(input));
}

#[tokio::test]
async fn a_blob_that_is_gone_is_named() {
    let (journal, blobs) = (Arc::new(MemoryJournal::new()), Arc::new(MemoryBlobs::default()));
    let first = runner(&journal, &blobs);
    let input = vec![json!("x".repeat(100_000))];
    first.start_with(&Nested, input, StartOptions::new().id("run")).await.unwrap();
    first.shutdown().await;
    let error = runner(&journal, &Arc::default()).resume(&Nested, "run").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Storage { .. }), "{error}");
    assert!(error.to_string().contains("of record 1 is not in the store"), "{error}");
}

#[tokio::test]
async fn what_counts_as_large_is_up_to_the_embedder() {
    let (journal, blobs) = (Arc::new(MemoryJournal::new()), Arc::new(MemoryBlobs::default()));
    let offloading = OffloadingJournal::new(journal.clone(), blobs.clone()).above_bytes(8);
    let runner = Runner::builder().journal(offloading).build();
    let input = vec![json!("longer than eight")];
    runner.start_with(&Nested, input.clone(), StartOptions::new().id("run")).await.unwrap();
    let blob = coral_core::BlobRef::of(&serde_json::to_vec(&input).unwrap());
    assert!(blobs.get(&blob).await.unwrap().is_some());
    assert!(journal.head("run").await.unwrap().is_some());
}
