use std::sync::Mutex;

use coral_core::{Caller, MemoryCache};
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::embed::{Embedder, Embedding};
use crate::scripted::{Reply, ScriptedModel};

fn priced(text: &str) -> Reply {
    Reply::text(text).usage(10, 5).cost(Usd::from_pico(7))
}

fn ask(text: &str) -> ChatRequest {
    ChatRequest::user(text)
}

/// A model that waits for a permit before it answers.
struct Slow {
    began: Notify,
    permits: Semaphore,
    inner: ScriptedModel,
}

impl Slow {
    fn new(inner: ScriptedModel) -> Arc<Self> {
        Arc::new(Slow { began: Notify::new(), permits: Semaphore::new(0), inner })
    }
}

#[async_trait]
impl ChatModel for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        self.began.notify_one();
        self.permits.acquire().await.unwrap().forget();
        self.inner.chat(request, cx).await
    }
}

#[tokio::test]
async fn a_hit_costs_nothing_and_is_heard() {
    let model = Cached::new(ScriptedModel::new().reply(priced("hello"))).for_all();
    let first = model.chat(&ask("?"), &CallContext::default()).await.unwrap();
    assert_eq!((first.cost, first.usage.total_tokens()), (Some(Usd::from_pico(7)), 15));
    let heard = Arc::new(Mutex::new(String::new()));
    let sink = heard.clone();
    let cx = CallContext::default().on_delta(move |delta| sink.lock().unwrap().push_str(&delta.to_string()));
    let second = model.chat(&ask("?"), &cx).await.unwrap();
    assert_eq!(
        (second.message.text().as_str(), second.cost, second.usage.total_tokens()),
        ("hello", Some(Usd::ZERO), 0)
    );
    assert_eq!(*heard.lock().unwrap(), "hello");
    let expected = CacheStats { hits: 1, similar: 0, misses: 1, saved: Usd::from_pico(7), saved_tokens: 15 };
    assert_eq!(model.stats(), expected);
    assert!((model.stats().hit_ratio() - 0.5).abs() < 1e-9);
}

#[tokio::test]
async fn everything_in_a_request_counts() {
    let model = Cached::new(ScriptedModel::new().otherwise(|_| "x")).for_all();
    let variants = [
        ask("?"),
        ask("!"),
        ChatRequest::new("system", "?"),
        ChatRequest { temperature: Some(0.1), ..ask("?") },
        ChatRequest { model: Some("other".into()), ..ask("?") },
        ChatRequest {
            messages: vec![coral_core::Message::user("?"), coral_core::Message::assistant("")],
            ..ask("")
        },
    ];
    for request in &variants {
        model.chat(request, &CallContext::default()).await.unwrap();
    }
    assert_eq!(model.inner().calls(), variants.len());
}

#[tokio::test]
async fn only_named_agents_are_served() {
    let model = Cached::new(ScriptedModel::new().otherwise(|_| "x")).for_agents(["formatter"]);
    for agent in ["formatter", "formatter", "writer", "writer"] {
        model.chat(&ask("?"), &CallContext::new(Caller::agent(agent))).await.unwrap();
    }
    assert_eq!(model.inner().calls(), 3);
}

#[tokio::test]
async fn errors_and_cut_answers_are_not_kept() {
    let model = Cached::new(
        ScriptedModel::new()
            .reply(Error::invalid("request", "no"))
            .reply(priced("half").stop(StopReason::MaxTokens))
            .reply("whole"),
    )
    .for_all();
    let cx = CallContext::default();
    assert!(model.chat(&ask("?"), &cx).await.is_err());
    assert_eq!(model.chat(&ask("?"), &cx).await.unwrap().message.text(), "half");
    assert_eq!(model.chat(&ask("?"), &cx).await.unwrap().message.text(), "whole");
    assert_eq!(model.chat(&ask("?"), &cx).await.unwrap().message.text(), "whole");
    assert_eq!(model.inner().calls(), 3);
}

#[tokio::test]
async fn equal_requests_at_once_are_one_call() {
    for reply in [priced("x"), priced("x").stop(StopReason::MaxTokens)] {
        let slow = Slow::new(ScriptedModel::new().reply(reply));
        let model = Arc::new(Cached::new(slow.clone()).for_all());
        let calls: Vec<_> = (0..10)
            .map(|_| {
                let model = model.clone();
                tokio::spawn(async move { model.chat(&ask("?"), &CallContext::default()).await.unwrap() })
            })
            .collect();
        slow.began.notified().await;
        slow.permits.add_permits(1);
        for call in calls {
            assert_eq!(call.await.unwrap().message.text(), "x");
        }
        assert_eq!((slow.inner.calls(), model.stats().hits, model.stats().misses), (1, 9, 1));
    }
}

#[tokio::test]
async fn a_dropped_call_leaves_the_others_an_answer() {
    let slow = Slow::new(ScriptedModel::new().otherwise(|_| "x"));
    let model = Arc::new(Cached::new(slow.clone()).for_all());
    let spawn = || {
        let model = model.clone();
        tokio::spawn(async move { model.chat(&ask("?"), &CallContext::default()).await })
    };
    let first = spawn();
    slow.began.notified().await;
    let second = spawn();
    tokio::task::yield_now().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    slow.permits.add_permits(1);
    assert_eq!(second.await.unwrap().unwrap().message.text(), "x");
}

#[tokio::test]
async fn what_stands_behind_outlives_the_process() {
    let behind: Arc<dyn Cache> = Arc::new(MemoryCache::new(10));
    let cx = CallContext::default();
    for expected in [1, 0] {
        let model = Cached::new(ScriptedModel::new().reply(priced("kept"))).for_all().behind(behind.clone());
        assert_eq!(model.chat(&ask("?"), &cx).await.unwrap().message.text(), "kept");
        assert_eq!(model.inner().calls(), expected);
    }
}

struct Broken;

#[async_trait]
impl Cache for Broken {
    async fn get(&self, _key: &str) -> Result<Option<Arc<[u8]>>, Error> {
        Err(Error::storage("get", "broken"))
    }

    async fn put(&self, _key: &str, _value: Arc<[u8]>, _ttl_ms: Option<u64>) -> Result<(), Error> {
        Err(Error::storage("put", "broken"))
    }

    async fn remove(&self, _key: &str) -> Result<(), Error> {
        Err(Error::storage("remove", "broken"))
    }
}

#[tokio::test]
async fn a_broken_cache_behind_is_no_obstacle() {
    let model = Cached::new(ScriptedModel::new().reply("x")).for_all().behind(Arc::new(Broken));
    for _ in 0..2 {
        assert_eq!(model.chat(&ask("?"), &CallContext::default()).await.unwrap().message.text(), "x");
    }
}

/// Vectors by hand: the direction is how often `reef` and `boat` are said; what says neither can't be compared.
#[derive(Default)]
struct Counting(AtomicU64);

#[async_trait]
impl Embedder for Counting {
    fn name(&self) -> &str {
        "counting"
    }

    async fn embed(&self, text: &str) -> Result<Embedding, Error> {
        self.0.fetch_add(1, Ordering::Relaxed);
        if text.contains("broken") {
            return Err(Error::invalid("embedder", "broken"));
        }
        let vector = ["reef", "boat"].map(|word| text.matches(word).count() as f32).to_vec();
        Ok(Embedding { vector, tokens: 3, cost: Some(Usd::from_pico(2)) })
    }
}

fn alike() -> Cached<ScriptedModel> {
    Cached::new(ScriptedModel::new().otherwise(|_| priced("x")))
        .for_all()
        .similar(Similar::new(Counting::default()))
}

fn caller(agent: &str, project: &str) -> CallContext {
    CallContext::new(Caller { project: project.into(), ..Caller::agent(agent) })
}

#[tokio::test]
async fn a_question_that_means_the_same_has_the_same_answer_and_pays_for_finding_out() {
    let model = alike();
    let cx = caller("a", "p");
    let first = model.chat(&ask("where is the reef?"), &cx).await.unwrap();
    assert_eq!(
        (first.cost, first.usage.total_tokens()),
        (Some(Usd::from_pico(9)), 18),
        "the vector is paid for"
    );
    let second = model.chat(&ask("the reef is where?"), &cx).await.unwrap();
    assert_eq!((second.cost, second.usage.total_tokens()), (Some(Usd::from_pico(2)), 3));
    // Asked again, it is equal.
    let third = model.chat(&ask("the reef is where?"), &cx).await.unwrap();
    assert_eq!(third.cost, Some(Usd::ZERO));
    let expected = CacheStats { hits: 2, similar: 1, misses: 1, saved: Usd::from_pico(14), saved_tokens: 30 };
    assert_eq!((model.stats(), model.inner().calls()), (expected, 1));
}

#[tokio::test]
async fn what_differs_in_anything_but_words_is_not_alike() {
    let model = alike();
    let reef = ask("reef 41");
    let with_system = ChatRequest::new("Be brief.", "reef 41, please");
    let mut as_image = ask("reef 41");
    as_image.messages[0]
        .parts
        .push(coral_core::Part::Image { media_type: "image/png".into(), data: "x".into() });
    let asked = [
        (reef.clone(), "a", "p"),
        (ask("reef 42"), "a", "p"),
        (ask("reef boat 41"), "a", "p"),
        (ask("neither 41"), "a", "p"),
        (with_system, "a", "p"),
        (as_image, "a", "p"),
        (ChatRequest { temperature: Some(0.5), ..ask("reef 41!") }, "a", "p"),
        (ask("the reef 41"), "b", "p"),
        (reef.clone(), "b", "q"),
        (reef, "a", "q"),
    ];
    for (request, agent, project) in &asked {
        model.chat(request, &caller(agent, project)).await.unwrap();
    }
    assert_eq!((model.inner().calls(), model.stats().hits), (asked.len(), 0));
}

#[tokio::test]
async fn agents_and_projects_share_only_if_told() {
    let shared = Similar::new(Counting::default()).across_agents().across_projects();
    let model = Cached::new(ScriptedModel::new().reply(priced("x"))).for_all().similar(shared);
    for (text, agent, project) in [("reef", "a", "p"), ("a reef", "b", "q"), ("reef", "c", "q")] {
        model.chat(&ask(text), &caller(agent, project)).await.unwrap();
    }
    assert_eq!((model.stats().similar, model.stats().hits), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn likeness_has_a_threshold_a_lifetime_and_a_bound() {
    let minute = Duration::from_secs(60);
    let model = |similar: Similar| {
        Cached::new(ScriptedModel::new().otherwise(|_| "x"))
            .for_all()
            .keeping(1 << 20, minute)
            .similar(similar)
    };
    let cx = caller("a", "p");
    // The cosine of "reef" and "reef reef boat" is 0.89.
    let strict = model(Similar::new(Counting::default()));
    let lax = model(Similar::new(Counting::default()).threshold(0.85).remembering(1));
    for text in ["reef", "reef reef boat"] {
        strict.chat(&ask(text), &cx).await.unwrap();
        lax.chat(&ask(text), &cx).await.unwrap();
    }
    assert_eq!((strict.stats().similar, lax.stats().similar), (0, 1));
    lax.chat(&ask("boat"), &cx).await.unwrap();
    lax.chat(&ask("a reef"), &cx).await.unwrap();
    assert_eq!(lax.stats().similar, 1, "the boat took the reef's place");
    tokio::time::advance(minute).await;
    lax.chat(&ask("one more reef"), &cx).await.unwrap();
    assert_eq!(lax.stats().similar, 1, "old answers are forgotten");
}

#[tokio::test]
async fn a_broken_embedder_is_no_obstacle() {
    let model = alike();
    for text in ["broken", "broken!"] {
        assert_eq!(model.chat(&ask(text), &caller("a", "p")).await.unwrap().message.text(), "x");
    }
    assert_eq!(model.inner().calls(), 2);
}
