use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};

use coral_core::resilience::{RateLimit, RatePolicy, estimate_tokens};
use coral_core::{
    ChatModel, ChatRequest, ChatResponse, Message, ModelFault, ModelInfo, TokenCounter, UpperEstimate, Usage,
};
use proptest::prelude::*;
use tokio::time::Instant;

use super::{ask, fault, fault_of, ms, settle, since};
use crate::support::{FnModel, Sink};

fn limit(requests: u64, tokens: u64) -> RateLimit {
    RateLimit::new(RatePolicy {
        requests_per_minute: NonZeroU64::new(requests),
        tokens_per_minute: NonZeroU64::new(tokens),
        ..Default::default()
    })
}

#[tokio::test(start_paused = true)]
async fn requests_go_out_at_their_rate() {
    let limit = limit(60, 0);
    let begin = Instant::now();
    for _ in 0..60 {
        drop(limit.reserve(0).await.unwrap());
    }
    assert_eq!(since(begin), 0, "a minute's worth goes at once");
    for n in 1..=5 {
        drop(limit.reserve(0).await.unwrap());
        assert_eq!(since(begin), n * 1_000, "then one a second");
    }
    tokio::time::advance(ms(600_000)).await;
    let begin = Instant::now();
    for _ in 0..61 {
        drop(limit.reserve(0).await.unwrap());
    }
    assert_eq!(since(begin), 1_000, "a long pause saves up a minute's worth, and no more");
}

#[tokio::test(start_paused = true)]
async fn tokens_are_reserved_before_and_settled_after() {
    let limit = limit(0, 1_000);
    let begin = Instant::now();
    let first = limit.reserve(900).await.unwrap();
    let second = tokio::spawn({
        let limit = limit.clone();
        async move { limit.reserve(900).await.map(|_| since(begin)) }
    });
    settle().await;
    tokio::time::advance(ms(6_000)).await;
    assert!(!second.is_finished(), "800 are missing, 100 have flowed in");
    first.settle(100);
    assert_eq!(second.await.unwrap().unwrap(), 6_000, "what was not used came back at once");
}

#[tokio::test(start_paused = true)]
async fn a_reservation_that_is_dropped_counts_as_used() {
    let limit = limit(0, 1_000);
    drop(limit.reserve(1_000).await.unwrap());
    let begin = Instant::now();
    drop(limit.reserve(500).await.unwrap());
    assert_eq!(since(begin), 30_000);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_uses_more_than_it_reserved_leaves_a_debt() {
    let limit = limit(0, 1_000);
    limit.reserve(100).await.unwrap().settle(1_500);
    let begin = Instant::now();
    limit.reserve(100).await.unwrap().settle(100);
    assert_eq!(since(begin), 36_000, "500 of debt and 100 of its own, at 1,000 a minute");
}

#[tokio::test(start_paused = true)]
async fn a_call_larger_than_the_bucket_goes_when_the_bucket_is_full() {
    let limit = limit(0, 1_000);
    limit.reserve(500).await.unwrap().settle(500);
    let begin = Instant::now();
    limit.reserve(5_000).await.unwrap().settle(1_500);
    assert_eq!(since(begin), 30_000);
    limit.reserve(1).await.unwrap().settle(1);
    assert_eq!(since(begin), 30_000 + 30_060, "the others wait for the 500 that it overdrew");
}

#[tokio::test(start_paused = true)]
async fn nobody_overtakes() {
    let limit = limit(0, 1_000);
    drop(limit.reserve(1_000).await.unwrap());
    let begin = Instant::now();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for (name, tokens) in [("large", 500), ("small", 1), ("last", 100)] {
        let (limit, order) = (limit.clone(), order.clone());
        tasks.push(tokio::spawn(async move {
            drop(limit.reserve(tokens).await.unwrap());
            order.lock().unwrap().push((name, since(begin)));
        }));
        settle().await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [("large", 30_000), ("small", 30_060), ("last", 36_060)]);
}

#[tokio::test(start_paused = true)]
async fn one_that_gives_up_waiting_leaves_its_place_to_the_next() {
    let limit = limit(0, 1_000);
    drop(limit.reserve(1_000).await.unwrap());
    let begin = Instant::now();
    let gives_up = tokio::time::timeout(ms(5_000), limit.reserve(900));
    let stays = async {
        tokio::task::yield_now().await;
        drop(limit.reserve(100).await.unwrap());
        since(begin)
    };
    let (given_up, at) = tokio::join!(gives_up, stays);
    assert!(given_up.is_err());
    assert_eq!(at, 6_000, "it is as if the first had never been there");
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_known_to_be_too_long_is_refused_at_once() {
    let limit = RateLimit::new(RatePolicy {
        tokens_per_minute: NonZeroU64::new(1_000),
        max_wait_ms: 10_000,
        ..Default::default()
    });
    drop(limit.reserve(1_000).await.unwrap());
    let begin = Instant::now();
    let refusal = limit.reserve(500).await.unwrap_err();
    assert_eq!(since(begin), 0);
    assert_eq!(refusal.retry_after_ms(), Some(30_000));
    assert_eq!(refusal.to_string(), "its turn does not come within 10000 ms");
    let error = refusal.of_model("large");
    assert!(error.is_transient());
    assert_eq!(error.retry_after_ms(), Some(30_000));
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let limit = RateLimit::new(RatePolicy {
        requests_per_minute: NonZeroU64::new(1),
        max_waiting: 1,
        ..Default::default()
    });
    drop(limit.reserve(0).await.unwrap());
    let waits = limit.reserve(0);
    let refused = async {
        tokio::task::yield_now().await;
        limit.reserve(0).await.unwrap_err().to_string()
    };
    let (waited, refused) = tokio::join!(waits, refused);
    assert!(waited.is_ok());
    assert_eq!(refused, "1 calls wait for their turn already");
    assert!(limit.reserve(0).await.is_ok(), "the one that waited has left the queue");
}

#[tokio::test(start_paused = true)]
async fn a_429_holds_everyone_who_shares_the_limit() {
    let limit = limit(1_000, 0);
    let busy =
        limit.wrap(FnModel::new(|_, _| Err(fault(ModelFault::RateLimited).with_retry_after_ms(7_000))));
    let other = limit.wrap(FnModel::new(|_, _| Ok(ChatResponse::text("test", "hi"))));
    let begin = Instant::now();
    assert_eq!(fault_of(ask(&busy).await), ModelFault::RateLimited);
    ask(&other).await.unwrap();
    assert_eq!(since(begin), 7_000);
}

#[tokio::test(start_paused = true)]
async fn a_model_is_charged_what_it_used_and_nothing_for_what_never_began() {
    let limit = limit(0, 10_000);
    let model = limit.wrap(FnModel::new(|count, _| {
        if count == 1 {
            return Err(fault(ModelFault::Connect));
        }
        let usage = Usage { input_tokens: 4_000, output_tokens: 1_000, ..Default::default() };
        Ok(ChatResponse { usage, ..ChatResponse::text("test", "hi") })
    }));
    let begin = Instant::now();
    ask(&model).await.unwrap_err();
    ask(&model).await.unwrap();
    // 10,000 less 5,000 used; each call reserves its estimate of 1,029.
    ask(&model).await.unwrap();
    assert_eq!(since(begin), 0);
    ask(&model).await.unwrap();
    assert_eq!(since(begin), 6_174, "the bucket is empty; 1,029 flow in in 6.174 s");
}

#[tokio::test(start_paused = true)]
async fn tools_are_limited_by_their_calls() {
    use coral_core::{Caller, Category, ToolCall, Toolbox};
    let tools = limit(1, 0).wrap(Sink::default());
    let call = ToolCall { id: "1".into(), name: "write".into(), arguments: serde_json::json!({}) };
    let cx = super::caller(Category::Specialist);
    let begin = Instant::now();
    for _ in 0..2 {
        tools.call(&call, &cx).await.unwrap();
    }
    assert_eq!(since(begin), 60_000);
    assert_eq!(tools.list(&Caller::default()).await.unwrap().len(), 1);
    assert_eq!(since(begin), 60_000, "a list is no call");
}

#[test]
fn the_estimate_counts_text_and_the_limit_of_output() {
    let request = ChatRequest {
        messages: vec![Message::user("x".repeat(400))],
        max_output_tokens: Some(50),
        ..Default::default()
    };
    let mut info = ModelInfo::default();
    let input = UpperEstimate.request(&request);
    assert!(input >= 100, "{input}");
    assert_eq!(estimate_tokens(&request, &info), input + 50);
    let open = ChatRequest { max_output_tokens: None, ..request };
    assert_eq!(estimate_tokens(&open, &info), input + 1_024);
    info.max_output_tokens = Some(9_000);
    assert_eq!(estimate_tokens(&open, &info), input + 9_000, "the model's own limit is the worst case");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is asked and whenever: what went out up to any moment is at most a full bucket and
    /// what flowed in.
    #[test]
    fn the_rate_is_never_passed(
        rate in 1_u64..5_000,
        calls in prop::collection::vec((1_u64..2_000, 0_u64..20_000), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let limit = RateLimit::new(RatePolicy {
                tokens_per_minute: NonZeroU64::new(rate),
                max_wait_ms: u64::from(u32::MAX),
                ..Default::default()
            });
            let begin = Instant::now();
            let mut out = 0;
            for (tokens, pause) in calls {
                tokio::time::advance(ms(pause)).await;
                let tokens = tokens.min(rate);
                limit.reserve(tokens).await.unwrap().settle(tokens);
                out += tokens;
                let allowed = rate * 60_000 + rate * since(begin);
                prop_assert!(out * 60_000 <= allowed, "{out} tokens after {} ms", since(begin));
            }
            Ok(())
        })?;
    }
}

#[test]
fn the_layer_is_a_model_like_the_one_inside() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _guard = runtime.enter();
    let model = limit(1, 1).wrap(FnModel::new(|_, _| Ok(ChatResponse::text("test", ""))));
    assert_eq!(model.name(), "test");
    assert_eq!(model.info(), ModelInfo::default());
}
