//! Layers over real providers: who is asked, what is paid, and under which key.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{
    AgentSpec, Brief, Budget, Cache, CallContext, Caller, ChatModel, ChatRequest, ChatResponse, Effort,
    Error, ErrorKind, GraphData, MemoryCache, Message, ModelFault, ModelInfo, ModelNeeds, OutputFormat, Part,
    Price, Program, PromptAgent, PromptTemplate, Runner, StepData, StepKind, Team, Tier, TokenCounter,
    ToolChoice, ToolDef, Usd,
};
use coral_llm::{
    Cached, Catalogue, CatalogueEntry, Fitted, Overflow, Pool, Provider, Repaired, Reply, Router,
    ScriptedModel,
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::server::{Answer, Server};

fn entry(id: &str, tier: Tier, dollars: f64) -> CatalogueEntry {
    let text = json!({"format": 2, "date": "2026-11-22", "models": [{
        "provider": "test", "id": id, "tier": tier, "speed": 2, "context_tokens": 100_000, "max_output_tokens": 1_000,
        "price": {"input": dollars, "output": dollars, "cache_read": dollars, "cache_write": dollars},
        "capabilities": ["tools", "structured"]}]});
    Catalogue::from_json(&text.to_string()).unwrap().models.remove(0)
}

/// An answer of 1,000 tokens.
fn answer(text: &str) -> Answer {
    let usage = json!({"prompt_tokens": 900, "completion_tokens": 100});
    let choice = json!({"finish_reason": "stop", "message": {"content": text}});
    Answer::json(&json!({"choices": [choice], "usage": usage}))
}

/// A provider that was told no price, behind a gateway that takes idempotency keys.
fn unpriced(url: &str) -> Provider {
    let builder = Provider::openai_compatible(url).model("m");
    builder.dialect(|dialect| dialect.idempotency_header = Some("idempotency-key".into())).build().unwrap()
}

fn as_json() -> ChatRequest {
    let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}});
    let output = OutputFormat { name: "x".into(), schema: Arc::new(schema) };
    ChatRequest { output: Some(output), ..ChatRequest::user("?") }
}

/// The keys under which a server was asked.
fn keys(server: &Server) -> Vec<String> {
    let key =
        |head: &str| head.lines().find_map(|line| Some(line.strip_prefix("idempotency-key: ")?.to_owned()));
    server.seen().iter().map(|seen| key(&seen.head).unwrap_or_default()).collect()
}

fn thousand(dollars: f64) -> Usd {
    Usd::per_million(dollars, 1_000)
}

#[tokio::test]
async fn a_routed_call_is_priced_by_its_route() {
    let server = Server::start(std::iter::repeat_n(answer("ok"), 10)).await;
    let router = Router::new().route(entry("large", Tier::Strong, 2.0), unpriced(&server.url));
    let response = router.chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap();
    assert_eq!((response.cost, router.savings().spent), (Some(thousand(2.0)), thousand(2.0)));

    // The budget of a run is charged with it.
    let prompt = PromptTemplate { task_template: "Go.".into(), ..Default::default() };
    let agent = PromptAgent::new(AgentSpec { prompt, ..AgentSpec::new("writer", "Writer") }).unwrap();
    let graph = GraphData {
        name: "paid".into(),
        steps: vec![StepData::new("write", StepKind::Agent("writer".into()))],
        ..Default::default()
    };
    let program = Program::from_graph(graph, &Team::new().with_agent(agent)).unwrap();
    let runner = Runner::builder().model(router).build();
    let run = runner.start(&program, Brief { text: "write".into(), ..Default::default() }).await.unwrap();
    let id = run.id().to_owned();
    let _ = run.output().await;
    let records = serde_json::to_value(runner.journal().read(&id, 1, usize::MAX).await.unwrap()).unwrap();
    let spent = records.to_string();
    assert!(spent.contains(&format!("\"cost\":{}", json!(thousand(2.0)))), "{spent}");
}

#[tokio::test]
async fn a_model_is_priced_as_itself_whichever_was_built() {
    let usage = json!({"input_tokens": 1_000_000, "output_tokens": 0});
    let body = json!({"content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn", "usage": usage});
    let server = Server::start(std::iter::repeat_n(Answer::json(&body), 3)).await;
    let builder = Provider::vendor("anthropic").unwrap().base_url(&server.url).key("sk-ant");
    let model = builder.model("claude-opus-5-5").build().unwrap();
    let cx = CallContext::default();
    let price = |name: &str| Catalogue::builtin().find(name).and_then(|entry| entry.price);
    for (asked, expected) in [
        (None, price("anthropic/claude-opus-5-5")),
        (Some("anthropic/claude-sonnet-5-5"), price("anthropic/claude-sonnet-5-5")),
        (Some("claude-unheard-of"), None),
    ] {
        let request = ChatRequest { model: asked.map(str::to_owned), ..ChatRequest::user("?") };
        let cost = model.chat(&request, &cx).await.unwrap().cost;
        assert_eq!(cost, expected.map(|price| Usd::from_dollars(price.input)), "{asked:?}");
        assert_eq!(model.info_for(&request, &cx).price, expected, "{asked:?}");
    }
}

#[tokio::test]
async fn a_named_model_must_be_able_to_do_the_work_too() {
    let unknown = CatalogueEntry { price: None, ..entry("unknown", Tier::Basic, 0.0) };
    let router = || {
        Router::new()
            .route(entry("small", Tier::Basic, 1.0), ScriptedModel::new().otherwise(|_| "ok"))
            .route(unknown.clone(), ScriptedModel::new().otherwise(|_| "ok"))
    };
    let named = |name: &str| ChatRequest { model: Some(name.into()), ..ChatRequest::user("?") };
    let cx = CallContext::default().with_needs(ModelNeeds { tier: Tier::Strong, ..Default::default() });
    let refused = |request: &ChatRequest| router().choose(request, &cx).unwrap_err().to_string();
    assert!(refused(&named("unknown")).contains("has no known price"));
    assert!(router().allow_unknown_prices().choose(&named("unknown"), &cx).is_ok());
    let mut image = named("small");
    image.messages[0].parts.push(Part::Image { media_type: "image/png".into(), data: String::new() });
    assert!(refused(&image).contains("has no `vision`"));
    let mut long = named("small");
    long.messages[0] = Message::user("reef ".repeat(200_000));
    assert!(refused(&long).contains("takes 100000 tokens"));
    assert_eq!(
        router().choose(&named("small"), &cx).unwrap().model,
        "test/small",
        "its tier is the caller's choice"
    );
}

#[tokio::test]
async fn escalations_are_spent_and_save_nothing() {
    let server = Server::start([answer("no json"), answer(r#"{"a":1}"#)]).await;
    let router = Router::new()
        .route(entry("small", Tier::Basic, 1.0), unpriced(&server.url))
        .route(entry("large", Tier::Strong, 10.0), unpriced(&server.url));
    let cx = CallContext::default().with_key("k");
    let response = router.chat(&as_json(), &cx).await.unwrap();
    assert_eq!(response.cost, Some(thousand(11.0)));
    let savings = router.savings();
    assert_eq!(
        (savings.dearest, savings.saved()),
        (thousand(10.0), Usd::ZERO),
        "one answer of the large model does"
    );
    // The body of each model is its own, and so is its key.
    let keys = keys(&server);
    assert!(
        keys.len() == 2 && keys[0] != keys[1] && keys.iter().all(|key| key.starts_with("k.")),
        "{keys:?}"
    );
}

#[tokio::test]
async fn every_body_has_a_key_of_its_own_and_every_try_of_it_the_same() {
    let cx = CallContext::default().with_key("k");
    for _ in 0..2 {
        let server = Server::start([answer("no json"), answer("none again"), answer(r#"{"a":1}"#)]).await;
        Repaired::new(unpriced(&server.url)).chat(&as_json(), &cx).await.unwrap();
        assert_eq!(keys(&server), ["k", "k.repair1", "k.repair2"]);
    }
    let busy = Answer::error("503 Service Unavailable", &json!({}));
    let (one, two) =
        (Server::start([busy.clone(), busy]).await, Server::start([answer("ok"), answer("ok")]).await);
    let pool =
        Pool::new("p").member(unpriced(&one.url)).member(unpriced(&two.url)).member(ScriptedModel::new());
    pool.chat(&ChatRequest::user("?"), &cx).await.unwrap();
    assert_eq!((keys(&one), keys(&two)), (vec!["k.member0".to_owned()], vec!["k.member1".to_owned()]));
}

#[tokio::test]
async fn a_cache_keeps_tiers_apart() {
    let route = |router: Router, id: &str, tier, says: &'static str| {
        let dollars = if tier == Tier::Basic { 1.0 } else { 2.0 };
        router.route(entry(id, tier, dollars), ScriptedModel::new().named(id).otherwise(move |_| says))
    };
    let router = route(route(Router::new(), "small", Tier::Basic, "small"), "large", Tier::Strong, "large");
    let strong = ModelNeeds { tier: Tier::Strong, ..Default::default() };
    let model = Cached::new(router.for_agent("architect", strong.clone())).for_all();
    let ask = async |cx: CallContext| model.chat(&ChatRequest::user("?"), &cx).await.unwrap().message.text();
    assert_eq!(ask(CallContext::default()).await, "small");
    assert_eq!(ask(CallContext::default().with_needs(strong)).await, "large", "by what the agent needs");
    assert_eq!(
        ask(CallContext::new(Caller::agent("architect"))).await,
        "large",
        "by what the router was told"
    );
    assert_eq!(ask(CallContext::new(Caller::agent("writer"))).await, "small");
    assert_eq!((model.stats().hits, model.stats().misses), (2, 2));
}

#[tokio::test]
async fn a_shared_cache_keeps_differently_set_up_models_apart() {
    let shared: Arc<dyn Cache> = Arc::new(MemoryCache::new(100));
    let schema = |text: &str| {
        let schema: Value = serde_json::from_str(text).unwrap();
        let output = OutputFormat { name: "x".into(), schema: Arc::new(schema) };
        ChatRequest { output: Some(output), ..ChatRequest::user("?") }
    };
    let one = schema(r#"{"type": "object", "properties": {"a": {"type": "string"}}}"#);
    let other = schema(r#"{"properties": {"a": {"type": "string"}}, "type": "object"}"#);
    let (here, there) =
        (Server::start(std::iter::repeat_n(answer("{}"), 3)).await, Server::start([answer("{}")]).await);
    let cached = |provider: Provider| Cached::new(provider).for_all().behind(shared.clone());
    let plain = |url: &str| Provider::openai_compatible(url).model("m");
    for (request, provider) in [
        (&one, plain(&here.url)),
        (&other, plain(&here.url)),
        (&one, plain(&there.url)),
        (&one, plain(&here.url).body_field("seed", 7)),
        (&one, plain(&here.url).dialect(|dialect| dialect.sampling = false)),
        (&one, plain(&there.url)),
    ] {
        cached(provider.build().unwrap()).chat(request, &CallContext::default()).await.unwrap();
    }
    assert_eq!((here.seen().len(), there.seen().len()), (3, 1), "the second and the last one are hits");
}

#[tokio::test]
async fn an_answer_lives_as_long_as_it_was_given_wherever_it_is_kept() {
    let shared: Arc<dyn Cache> = Arc::new(MemoryCache::new(100));
    let server = Server::start([answer("one"), answer("two")]).await;
    let cached = || {
        let provider = Provider::openai_compatible(&server.url).model("m").build().unwrap();
        Cached::new(provider).for_all().behind(shared.clone()).keeping(1 << 20, Duration::from_millis(400))
    };
    let ask = async |model: &Cached<Provider>| {
        model.chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap().message.text()
    };
    let given = std::time::Instant::now();
    assert_eq!(ask(&cached()).await, "one");
    let later = cached();
    while given.elapsed() < Duration::from_millis(300) {
        tokio::task::yield_now().await;
    }
    // A process that comes late finds the answer, and keeps it for what is left of its time.
    let _ = ask(&later).await;
    while given.elapsed() < Duration::from_millis(450) {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&later).await, "two");
}

/// A model that answers when it is let.
struct Gate(Semaphore, Result<&'static str, Error>);

#[async_trait]
impl ChatModel for Gate {
    fn name(&self) -> &str {
        "gate"
    }

    async fn chat(&self, _: &ChatRequest, _: &CallContext) -> Result<ChatResponse, Error> {
        self.0.acquire().await.unwrap().forget();
        self.1.clone().map(|text| ChatResponse::text("gate", text))
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_comes_back_is_tried_by_one_call() {
    let fault = |fault| Error::new(ErrorKind::Model { fault, model: "m".into(), problem: "x".into() });
    struct Failing(Arc<Gate>, Error, std::sync::atomic::AtomicUsize);
    #[async_trait]
    impl ChatModel for Failing {
        fn name(&self) -> &str {
            "failing"
        }
        async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
            if self.2.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
                return Err(self.1.clone());
            }
            self.0.chat(request, cx).await
        }
    }
    let gate = Arc::new(Gate(Semaphore::new(0), Ok("back")));
    let limited = fault(ModelFault::RateLimited).with_retry_after_ms(10_000);
    let failing = Arc::new(Failing(gate.clone(), limited, Default::default()));
    let other = Arc::new(Gate(Semaphore::new(1), Ok("other")));
    let pool = Arc::new(Pool::new("p").member(failing.clone()).member(other.clone()));
    let ask = || {
        let pool = pool.clone();
        tokio::spawn(async move {
            pool.chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap().message.text()
        })
    };
    assert_eq!(ask().await.unwrap(), "other");
    tokio::time::advance(Duration::from_secs(11)).await;
    let calls: Vec<_> = (0..6).map(|_| ask()).collect();
    while pool.health().iter().map(|member| member.under_way).sum::<usize>() < calls.len() {
        tokio::task::yield_now().await;
    }
    assert_eq!(pool.health()[0].under_way, 1, "while the trial is under way nobody else tries");
    gate.0.add_permits(100);
    other.0.add_permits(100);
    let mut back = 0;
    for call in calls {
        back += usize::from(call.await.unwrap() == "back");
    }
    assert_eq!((back, pool.health()[0].ejected_for_ms), (1, None));
}

#[tokio::test]
async fn a_waiting_call_does_not_get_the_budget_error_of_the_one_that_ran() {
    let broke = Error::new(ErrorKind::Budget { budget: "run".into(), problem: "used up".into() });
    struct Poor(Semaphore, Error);
    #[async_trait]
    impl ChatModel for Poor {
        fn name(&self) -> &str {
            "poor"
        }
        async fn chat(&self, _: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
            if cx.budget().usd.is_some() {
                self.0.acquire().await.unwrap().forget();
                return Err(self.1.clone());
            }
            Ok(ChatResponse::text("poor", "ok"))
        }
    }
    let poor = Arc::new(Poor(Semaphore::new(0), broke));
    let model = Arc::new(Cached::new(poor.clone()).for_all());
    let call = |cx: CallContext| {
        let model = model.clone();
        tokio::spawn(async move { model.chat(&ChatRequest::user("?"), &cx).await })
    };
    let budget = Budget { usd: Some(Usd::ZERO), ..Budget::default() };
    let first = call(CallContext::default().with_budget(budget));
    tokio::task::yield_now().await;
    let second = call(CallContext::default());
    tokio::task::yield_now().await;
    poor.0.add_permits(1);
    assert!(matches!(first.await.unwrap().unwrap_err().kind(), ErrorKind::Budget { .. }));
    assert_eq!(second.await.unwrap().unwrap().message.text(), "ok");
}

/// Six turns of about 250 tokens after a task.
fn conversation() -> ChatRequest {
    let mut request = ChatRequest::new("Be brief.", "The task.");
    for turn in 0..6 {
        request.messages.push(Message::user(format!("question {turn}")));
        request.messages.push(Message::assistant(format!("answer {turn} {}", "reef ".repeat(250))));
    }
    request
}

fn with_context(tokens: u64, dollars: f64) -> ModelInfo {
    let mut info = ModelInfo::default();
    info.context_tokens = Some(tokens);
    info.price = Some(Price { input: dollars, output: dollars, cache_read: dollars, cache_write: dollars });
    info
}

fn scripted(info: ModelInfo, says: &'static str) -> Arc<ScriptedModel> {
    let price = info.price.unwrap().input;
    let model = ScriptedModel::new().info(info);
    Arc::new(model.otherwise(move |_| Reply::text(says).usage(90, 10).cost(Usd::per_million(price, 100))))
}

#[tokio::test]
async fn a_summary_is_paid_out_of_what_the_call_leaves() {
    let request = ChatRequest { max_output_tokens: Some(100), ..conversation() };
    // Room for the call itself, and for little more.
    for (usd, summarised) in [(0.05, true), (0.0042, false)] {
        let model = scripted(with_context(1_000, 1.0), "ok");
        let summariser = scripted(with_context(100_000, 1.0), "They looked.");
        let fitted = Fitted::new(model.clone(), Overflow::Summarise(summariser.clone()));
        let budget = Budget { usd: Some(Usd::from_dollars(usd)), ..Budget::default() };
        let cx = CallContext::default().with_budget(budget).with_key("k");
        let response = fitted.chat(&request, &cx).await.unwrap();
        assert_eq!(summariser.calls() == 1, summarised, "{usd}");
        assert!(response.cost.unwrap() <= Usd::from_dollars(usd));
        let text = model.requests()[0].messages[2].text();
        assert_eq!(text.contains("A summary of them:\nThey looked."), summarised, "{text}");
        assert!(text.contains("were left out to fit the context"), "{text}");
    }
}

#[tokio::test]
async fn what_is_summarised_fits_the_summariser_piece_by_piece() {
    struct Words;
    impl TokenCounter for Words {
        fn name(&self) -> &str {
            "words"
        }
        fn text(&self, text: &str) -> u64 {
            text.split_whitespace().count() as u64
        }
    }
    let model = scripted(with_context(900, 1.0), "ok");
    let summariser = scripted(with_context(700, 1.0), "They looked.");
    let fitted = Fitted::new(model.clone(), Overflow::Summarise(summariser.clone())).counter(Words);
    let request = ChatRequest { max_output_tokens: Some(100), ..conversation() };
    let response = fitted.chat(&request, &CallContext::default()).await.unwrap();
    let asked = summariser.requests();
    assert!(asked.len() > 1, "one transcript would not fit");
    assert!(asked.iter().all(|request| Words.request(request) <= 700), "{asked:?}");
    assert!(
        asked[1].messages[1].text().starts_with("Summary of what came before:\nThey looked."),
        "{asked:?}"
    );
    let all: String = asked.iter().map(|request| request.messages[1].text()).collect();
    let left = model.requests()[0].messages.iter().map(Message::text).collect::<String>();
    for turn in 0..6 {
        let answer = format!("answer {turn} ");
        assert!(
            all.contains(&answer) != left.contains(&answer),
            "turn {turn} is there once, whole or summarised"
        );
    }
    assert_eq!(response.usage.input_tokens, 90 * (asked.len() as u64 + 1), "all calls are counted");
}

#[tokio::test]
async fn fitting_a_long_conversation_counts_each_message_a_few_times() {
    #[derive(Clone, Default)]
    struct Counting(Arc<std::sync::atomic::AtomicUsize>);
    impl TokenCounter for Counting {
        fn name(&self) -> &str {
            "counting"
        }
        fn text(&self, text: &str) -> u64 {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            text.len() as u64 / 4
        }
    }
    let counting = Counting::default();
    let mut request = ChatRequest::new("Be brief.", "The task.");
    request.messages.extend((0..2_000).map(|turn| Message::user(format!("turn {turn} {}", "x".repeat(40)))));
    let model = scripted(with_context(6_000, 1.0), "ok");
    let fitted = Fitted::new(model.clone(), Overflow::Drop).counter(counting.clone());
    fitted.chat(&request, &CallContext::default()).await.unwrap();
    assert!(model.requests()[0].messages.len() < 200);
    let counted = counting.0.load(std::sync::atomic::Ordering::Relaxed);
    assert!(counted < 4 * request.messages.len(), "{counted} texts were counted");
}

#[tokio::test]
async fn layers_pass_on_whether_their_endpoint_is_up() {
    use coral_llm::{Ledger, Probe as _, RetryPolicy, Retrying, Traced};
    let server = Server::start([
        Answer::json(&json!({"data": []})),
        Answer::error("500 Internal Server Error", &json!({})),
    ])
    .await;
    let provider = Retrying::new(unpriced(&server.url), RetryPolicy::default());
    let model = Ledger::default()
        .meter(Traced::new(Cached::new(Repaired::new(Fitted::new(provider, Overflow::Drop)))));
    model.probe().await.unwrap();
    assert!(model.probe().await.is_err());
    let pool = Pool::new("p").checked_member(model);
    assert_eq!(pool.health().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_model_whose_rate_is_used_up_rests() {
    let kind = ErrorKind::Model { fault: ModelFault::RateLimited, model: "m".into(), problem: "x".into() };
    let limited = Error::new(kind).with_retry_after_ms(20_000);
    let small = Arc::new(ScriptedModel::new().reply(limited).reply("small again"));
    let large = ScriptedModel::new().otherwise(|_| "large");
    let router = Router::new()
        .route(entry("small", Tier::Basic, 1.0), small.clone())
        .route(entry("large", Tier::Strong, 10.0), large);
    let ask =
        async || router.chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap().message.text();
    assert_eq!((ask().await, ask().await), ("large".to_owned(), "large".to_owned()));
    assert_eq!(small.calls(), 1, "the second call does not ask the one that rests");
    let choice = router.choose(&ChatRequest::user("?"), &CallContext::default()).unwrap();
    assert!(choice.reason.ends_with("test/small rests"), "{}", choice.reason);
    tokio::time::advance(Duration::from_secs(21)).await;
    assert_eq!(ask().await, "small again");
}

#[tokio::test]
async fn what_a_model_refuses_is_not_sent_to_it() {
    let say = |text: &str| json!({"status": "completed", "output": [{"type": "message", "content": [{"type": "output_text", "text": text}]}]});
    let tool = ToolDef {
        name: "find".into(),
        description: "finds".into(),
        input_schema: json!({"type": "object", "properties": {}}),
        effect: Default::default(),
    };
    let request = |vendor: &str| ChatRequest {
        tools: Arc::from([tool.clone()]),
        tool_choice: ToolChoice::Tool("find".into()),
        temperature: Some(0.5),
        effort: Some(Effort::Minimal),
        ..ChatRequest::user(vendor)
    };
    let cx = CallContext::default();

    // Tools of these models go over Responses alone; the least effort that they know is low.
    let server = Server::start([Answer::json(&say("x")), answer("y")]).await;
    let model = Provider::vendor("openai").unwrap().base_url(&server.url).key("sk").build().unwrap();
    model.chat(&request("openai"), &cx).await.unwrap();
    model.chat(&ChatRequest::user("no tools"), &cx).await.unwrap();
    let seen = server.seen();
    assert!(
        seen[0].head.starts_with("post /responses ") && seen[1].head.starts_with("post /chat/completions ")
    );
    assert_eq!(seen[0].body["reasoning"]["effort"], "low");
    assert!(
        seen[0].body.get("temperature").is_none()
            && seen[0].body["include"][0] == "reasoning.encrypted_content"
    );

    // This one thinks whatever it is told, and can't be made to call a tool; the other one can, by the same provider.
    let body = json!({"content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn"});
    let server = Server::start(std::iter::repeat_n(Answer::json(&body), 3)).await;
    let builder = Provider::vendor("anthropic").unwrap().base_url(&server.url).key("sk-ant");
    let model = builder.model("claude-opus-5-5").build().unwrap();
    model.chat(&request("anthropic"), &cx).await.unwrap();
    let other = ChatRequest { model: Some("claude-opus-5".into()), ..request("anthropic") };
    model.chat(&other, &cx).await.unwrap();
    let seen = server.seen();
    assert!(seen[0].body.get("tool_choice").is_none(), "{}", seen[0].body);
    assert_eq!(seen[0].body["system"][0]["text"], "Call the tool `find` now, and say nothing else.");
    assert_eq!(seen[0].body["thinking"], json!({"type": "adaptive", "display": "summarized"}));
    assert_eq!(seen[1].body["tool_choice"], json!({"type": "tool", "name": "find"}));
    assert!(seen[1].body.get("thinking").is_none(), "none may think that is made to call a tool");

    // An answer can't be begun for it; what its provider's own tools began can be gone on with.
    let mut begun = ChatRequest::user("?");
    begun.messages.push(Message::assistant("It is"));
    let error = model.chat(&begun, &cx).await.unwrap_err().to_string();
    assert!(error.contains("does not go on from an answer that was begun for it"), "{error}");
    begun.messages[1]
        .parts
        .push(Part::Opaque { provider: "anthropic".into(), item: json!({"type": "server_tool_use"}) });
    model.chat(&begun, &cx).await.unwrap();

    // The user's word counts before the catalogue's.
    let server = Server::start([answer("x")]).await;
    let builder = Provider::vendor("openai").unwrap().base_url(&server.url).key("sk");
    let model =
        builder.dialect(|dialect| (dialect.chat_tools, dialect.sampling) = (true, true)).build().unwrap();
    model.chat(&request("openai"), &cx).await.unwrap();
    assert_eq!(server.seen()[0].body["temperature"], 0.5);
}

#[tokio::test]
async fn what_is_kept_for_long_is_paid_for_as_that() {
    let usage = json!({"input_tokens": 0, "cache_creation_input_tokens": 1_000_000, "output_tokens": 0});
    let body = json!({"content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn", "usage": usage});
    let server = Server::start([Answer::json(&body), Answer::json(&body)]).await;
    for (ttl, dollars) in [(None, 5.0), (Some("1h".to_owned()), 8.0)] {
        let builder = Provider::vendor("anthropic").unwrap().base_url(&server.url).key("sk-ant");
        let builder = builder.model("claude-opus-5-5").dialect(|dialect| dialect.cache_ttl = ttl);
        let response =
            builder.build().unwrap().chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap();
        assert_eq!(response.cost, Some(Usd::from_dollars(dollars)));
    }
}
