use std::collections::BTreeMap;

use coral_core::resilience::{Bulkhead, Lane};
use coral_core::{Category, ChatModel, ChatRequest, ModelFault};
use tokio::time::Instant;

use super::{Slow, caller, fault_of, ms, settle, since};

fn bulkhead(concurrent: usize, waiting: usize) -> Bulkhead {
    Bulkhead::new(BTreeMap::from([(Category::Specialist, Lane { concurrent, waiting })]))
}

#[tokio::test(start_paused = true)]
async fn one_category_can_not_take_the_room_of_another() {
    let bulkhead = bulkhead(2, 100);
    let begin = Instant::now();
    let call = |category: Category| {
        let model = bulkhead.wrap(Slow(1_000));
        tokio::spawn(async move {
            model.chat(&ChatRequest::default(), &caller(category)).await.unwrap();
            since(begin)
        })
    };
    let specialists: Vec<_> = (0..6).map(|_| call(Category::Specialist)).collect();
    settle().await;
    let core = call(Category::Core);
    assert_eq!(core.await.unwrap(), 1_000, "it has no lane and waits for nobody");
    let mut ends = Vec::new();
    for task in specialists {
        ends.push(task.await.unwrap());
    }
    assert_eq!(ends, [1_000, 1_000, 2_000, 2_000, 3_000, 3_000], "two at once, in their order");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once() {
    let bulkhead = bulkhead(1, 1);
    let model = bulkhead.wrap(Slow(1_000));
    let cx = caller(Category::Specialist);
    let request = ChatRequest::default();
    let begin = Instant::now();
    let (a, b, c) =
        tokio::join!(model.chat(&request, &cx), model.chat(&request, &cx), model.chat(&request, &cx));
    assert!(a.is_ok() && b.is_ok());
    let error = c.unwrap_err();
    assert!(error.is_transient(), "the engine comes again");
    assert_eq!(
        error.to_string(),
        "model `slow` failed (rate_limited): 1 calls of specialist agents wait already"
    );
    assert_eq!(since(begin), 2_000);
}

#[tokio::test(start_paused = true)]
async fn one_that_gives_up_frees_its_place_in_the_queue() {
    let bulkhead = bulkhead(1, 1);
    let slot = bulkhead.enter(Category::Specialist).await.unwrap();
    assert!(tokio::time::timeout(ms(10), bulkhead.enter(Category::Specialist)).await.is_err());
    let waits = tokio::spawn({
        let bulkhead = bulkhead.clone();
        async move { bulkhead.enter(Category::Specialist).await.is_ok() }
    });
    settle().await;
    assert!(!waits.is_finished());
    drop(slot);
    assert!(waits.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_leaves_its_place() {
    let bulkhead = bulkhead(1, 0);
    let model = bulkhead.wrap(Slow(60_000));
    let cx = caller(Category::Specialist);
    let request = ChatRequest::default();
    assert!(tokio::time::timeout(ms(10), model.chat(&request, &cx)).await.is_err());
    let _slot = bulkhead.enter(Category::Specialist).await.unwrap();
    assert_eq!(fault_of(model.chat(&request, &cx).await), ModelFault::RateLimited);
}
