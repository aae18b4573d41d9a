use coral_core::Caller;

use super::*;
use crate::scripted::{Reply, ScriptedModel};

fn fault(fault: ModelFault) -> Error {
    Error::new(ErrorKind::Model { fault, model: "m".into(), problem: "x".into() })
}

fn pool(members: [ScriptedModel; 2]) -> (Pool, [Arc<ScriptedModel>; 2]) {
    let members = members.map(Arc::new);
    let pool = members.iter().fold(Pool::new("p"), |pool, member| pool.member(member.clone()));
    (pool, members)
}

async fn ask(pool: &Pool) -> Result<ChatResponse, Error> {
    pool.chat(&ChatRequest::user("?"), &CallContext::default()).await
}

fn good() -> ScriptedModel {
    ScriptedModel::new().otherwise(|_| "ok")
}

#[tokio::test(start_paused = true)]
async fn a_member_that_keeps_failing_is_ejected_and_comes_back() {
    let bad = ScriptedModel::new().replies([
        fault(ModelFault::Overloaded),
        fault(ModelFault::Connect),
        fault(ModelFault::Provider),
    ]);
    let (pool, members) = pool([bad.otherwise(|_| "back"), good()]);
    for _ in 0..20 {
        assert_eq!(ask(&pool).await.unwrap().message.text(), "ok", "the other member answers");
    }
    assert_eq!(members[0].calls(), 3);
    assert_eq!(pool.health()[0].ejected_for_ms, Some(10_000));
    tokio::time::advance(Duration::from_millis(10_001)).await;
    assert_eq!(ask(&pool).await.unwrap().message.text(), "back");
    assert_eq!((pool.health()[0].failures, pool.health()[0].ejected_for_ms), (0, None));
}

#[tokio::test(start_paused = true)]
async fn a_limited_key_rests_as_long_as_it_says() {
    let limited = fault(ModelFault::RateLimited).with_retry_after_ms(30_000);
    let (pool, members) = pool([ScriptedModel::new().reply(limited).otherwise(|_| "back"), good()]);
    for _ in 0..4 {
        assert_eq!(ask(&pool).await.unwrap().message.text(), "ok");
    }
    assert_eq!((members[0].calls(), pool.health()[0].ejected_for_ms), (1, Some(30_000)));
}

#[tokio::test(start_paused = true)]
async fn the_fault_of_a_request_goes_nowhere_else() {
    let (pool, members) = pool([ScriptedModel::new().reply(fault(ModelFault::InvalidRequest)), good()]);
    assert!(ask(&pool).await.is_err());
    assert_eq!((members[1].calls(), pool.health()[0].failures), (0, 0));
    let (pool, members) = self::pool([ScriptedModel::new().reply(fault(ModelFault::Truncated)), good()]);
    assert!(ask(&pool).await.is_err(), "what was paid for is not bought again unasked");
    assert_eq!((members[1].calls(), pool.health()[0].failures), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn when_all_are_ejected_the_first_to_return_is_asked() {
    let limited = |ms| Reply::from(fault(ModelFault::RateLimited).with_retry_after_ms(ms));
    let model = |ms| ScriptedModel::new().reply(limited(ms)).otherwise(|_| "late");
    let (pool, members) = pool([model(60_000), model(30_000)]);
    assert_eq!(ask(&pool).await.unwrap_err().retry_after_ms(), Some(30_000));
    assert_eq!(ask(&pool).await.unwrap().message.text(), "late");
    assert_eq!((members[0].calls(), members[1].calls()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_sticky_pool_keeps_a_run_where_it_is() {
    let (pool, members) = pool([good(), good()]);
    let pool = pool.sticky();
    let cx = CallContext::new(Caller { run: "run-1".into(), ..Default::default() });
    for _ in 0..6 {
        pool.chat(&ChatRequest::user("?"), &cx).await.unwrap();
    }
    let calls = [members[0].calls(), members[1].calls()];
    assert!(calls == [6, 0] || calls == [0, 6], "{calls:?}");
}

#[tokio::test]
async fn a_dropped_call_is_no_longer_under_way() {
    struct Never;
    #[async_trait]
    impl ChatModel for Never {
        fn name(&self) -> &str {
            "never"
        }
        async fn chat(&self, _: &ChatRequest, _: &CallContext) -> Result<ChatResponse, Error> {
            std::future::pending().await
        }
    }
    let pool = Pool::new("p").member(Never);
    {
        let (request, cx) = (ChatRequest::user("?"), CallContext::default());
        let mut call = pool.chat(&request, &cx);
        assert!(std::future::poll_fn(|c| std::task::Poll::Ready(call.as_mut().poll(c).is_pending())).await);
        assert_eq!(pool.health()[0].under_way, 1);
    }
    assert_eq!(pool.health()[0].under_way, 0);
}

/// An endpoint that is up or down, as a test says.
#[derive(Default)]
struct Endpoint {
    down: std::sync::atomic::AtomicBool,
    looks: AtomicU64,
    calls: AtomicU64,
}

impl Endpoint {
    fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }
}

#[async_trait]
impl ChatModel for Endpoint {
    fn name(&self) -> &str {
        "endpoint"
    }
    async fn chat(&self, _: &ChatRequest, _: &CallContext) -> Result<ChatResponse, Error> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(ChatResponse::text("endpoint", "ok"))
    }
}

#[async_trait]
impl Probe for Endpoint {
    async fn probe(&self) -> Result<(), Error> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        if self.down.load(Ordering::Relaxed) { Err(fault(ModelFault::Connect)) } else { Ok(()) }
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_down_is_found_before_a_call_meets_it() {
    let endpoint = Arc::new(Endpoint::default());
    let pool = Pool::new("p").checked_member(endpoint.clone()).member(good());
    for _ in 0..2 {
        ask(&pool).await.unwrap();
    }
    pass(1).await;
    endpoint.set_down(true);
    pass(10).await;
    assert!(!pool.health()[0].down, "one failed look is not enough");
    pass(10).await;
    assert!(pool.health()[0].down);
    for _ in 0..4 {
        ask(&pool).await.unwrap();
    }
    assert_eq!(endpoint.calls.load(Ordering::Relaxed), 1, "no call has met it");
    endpoint.set_down(false);
    pass(10).await;
    assert!(!pool.health()[0].down);
    ask(&pool).await.unwrap();
    assert_eq!(endpoint.calls.load(Ordering::Relaxed), 2);
    drop(pool);
    tokio::task::yield_now().await;
    let looks = endpoint.looks.load(Ordering::Relaxed);
    pass(60).await;
    assert_eq!(endpoint.looks.load(Ordering::Relaxed), looks, "the looking ends with the pool");
}

#[tokio::test(start_paused = true)]
async fn a_member_is_back_as_soon_as_it_is_found_up_unless_its_key_rests() {
    for (kind, back) in [(ModelFault::Overloaded, true), (ModelFault::RateLimited, false)] {
        struct Failing(ModelFault);
        #[async_trait]
        impl ChatModel for Failing {
            fn name(&self) -> &str {
                "failing"
            }
            async fn chat(&self, _: &ChatRequest, _: &CallContext) -> Result<ChatResponse, Error> {
                Err(fault(self.0))
            }
        }
        #[async_trait]
        impl Probe for Failing {
            async fn probe(&self) -> Result<(), Error> {
                Ok(())
            }
        }
        let pool =
            Pool::new("p").checked_member(Failing(kind)).member(good()).check_every(Duration::from_secs(3));
        for _ in 0..8 {
            ask(&pool).await.unwrap();
        }
        assert!(pool.health()[0].ejected_for_ms.is_some());
        pass(4).await;
        assert_eq!(pool.health()[0].ejected_for_ms.is_none(), back, "{kind:?}");
    }
}
