use std::sync::Arc;

use coral_core::{Budget, Effort, OutputFormat, Part, Price, ToolDef};
use serde_json::json;

use super::*;
use crate::scripted::{Reply, ScriptedModel};

fn entry(id: &str, tier: Tier, price: f64, speed: u8) -> CatalogueEntry {
    CatalogueEntry {
        provider: "test".into(),
        id: id.into(),
        tier,
        speed,
        context_tokens: 100_000,
        max_output_tokens: None,
        price: Some(Price { input: price, output: price, cache_read: price, cache_write: price }),
        long_input: None,
        long_cache: None,
        cache_marks: false,
        capabilities: ["tools", "structured"].map(String::from).into(),
        refuses: Default::default(),
        efforts: Vec::new(),
        source: None,
    }
}

fn fault(fault: ModelFault) -> Error {
    Error::new(ErrorKind::Model { fault, model: "m".into(), problem: "x".into() })
}

fn priced(reply: Reply, price: f64) -> Reply {
    reply.usage(1_000, 0).cost(Usd::per_million(price, 1_000))
}

/// Three models that give `replies`, one each.
fn three(replies: [Reply; 3]) -> (Router, [Arc<ScriptedModel>; 3]) {
    let mut router = Router::new();
    let kinds = [
        ("small", Tier::Basic, 1.0, 3),
        ("middle", Tier::Standard, 5.0, 2),
        ("large", Tier::Strong, 20.0, 1),
    ];
    let models = replies.map(|reply| Arc::new(ScriptedModel::new().reply(reply)));
    for (model, (id, tier, price, speed)) in models.iter().zip(kinds) {
        router = router.route(entry(id, tier, price, speed), model.clone());
    }
    (router, models)
}

fn calls(models: &[Arc<ScriptedModel>; 3]) -> [usize; 3] {
    [models[0].calls(), models[1].calls(), models[2].calls()]
}

fn as_json() -> ChatRequest {
    let mut request = ChatRequest::user("?");
    let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}});
    request.output = Some(OutputFormat { name: "x".into(), schema: Arc::new(schema) });
    request
}

fn by(agent: &str) -> CallContext {
    CallContext::new(Caller::agent(agent))
}

#[track_caller]
fn chosen(router: &Router, request: &ChatRequest, agent: &str, expected: &str) -> Choice {
    let choice = router.choose(request, &by(agent)).unwrap();
    assert_eq!(choice.model, format!("test/{expected}"), "{}", choice.reason);
    choice
}

#[test]
fn needs_and_strategy_decide() {
    let (router, _) = three(["".into(), "".into(), "".into()]);
    let strong = ModelNeeds { tier: Tier::Strong, ..Default::default() };
    let named = ModelNeeds { name: Some("test/middle".into()), ..Default::default() };
    let router = router.for_agent("architect", strong).for_agent("special", named);
    let small = ChatRequest::user("?");
    chosen(&router, &small, "formatter", "small");
    chosen(&router, &small, "architect", "large");
    chosen(&router, &small, "special", "middle");
    chosen(&router, &ChatRequest { effort: Some(Effort::Max), ..small.clone() }, "x", "large");
    chosen(&router, &ChatRequest { model: Some("test/large".into()), ..small.clone() }, "x", "large");
    chosen(&router, &ChatRequest::user("x ".repeat(10_000)), "x", "middle");
    let router = router.strategy(Strategy::Best);
    chosen(&router, &small, "x", "large");
    let cost_of_middle = Usd::per_million(5.0, 2_010);
    let router = router.max_cost_per_call(cost_of_middle);
    let choice = chosen(&router, &small, "x", "middle");
    assert_eq!(choice.next, ["test/small"]);
    assert!(choice.refused[0].1.starts_with("would cost $0.04"), "{choice:?}");
    chosen(&router.strategy(Strategy::Fastest), &small, "x", "small");
}

#[test]
fn a_choice_explains_itself() {
    let (router, _) = three(["".into(), "".into(), "".into()]);
    let choice = chosen(&router, &as_json(), "x", "small");
    assert_eq!(
        choice.reason,
        format!(
            "the cheapest that fits, of 3 that do and 0 that do not; the work needs basic or better, about {} tokens, structured",
            choice.expected.total_tokens()
        )
    );
    let (dearest, most) = choice.dearest.unwrap();
    assert!(dearest == "test/large" && Some(most) > choice.cost);
}

#[test]
fn what_fits_nowhere_is_refused_with_every_reason() {
    let mut unpriced = entry("free", Tier::Strong, 0.0, 1);
    unpriced.price = None;
    let router = Router::new()
        .route(unpriced, ScriptedModel::new())
        .route(entry("small", Tier::Basic, 1.0, 1), ScriptedModel::new())
        .for_agent("a", ModelNeeds { tier: Tier::Standard, ..Default::default() });
    let error = router.choose(&ChatRequest::user("?"), &by("a")).unwrap_err().to_string();
    assert!(error.contains("test/free has no known price; test/small is basic"), "{error}");
    let mut request = ChatRequest::user("?");
    request.messages[0].parts.push(Part::Image { media_type: "image/png".into(), data: String::new() });
    let error = router.choose(&request, &CallContext::default()).unwrap_err().to_string();
    assert!(error.contains("test/small has no `vision`"), "{error}");
    let error = router
        .choose(&ChatRequest { model: Some("test/smal".into()), ..request }, &CallContext::default())
        .unwrap_err();
    assert!(error.to_string().contains("did you mean `test/small`"), "{error}");
    assert!(router.allow_unknown_prices().choose(&ChatRequest::user("?"), &by("a")).is_ok());
}

#[tokio::test]
async fn an_answer_that_is_no_good_goes_to_the_next_tier() {
    let good = priced(Reply::text(r#"{"a":1}"#), 20.0);
    let (router, models) = three([priced("no json".into(), 1.0), priced(r#"{"b":1}"#.into(), 5.0), good]);
    let response = router.chat(&as_json(), &CallContext::default()).await.unwrap();
    assert_eq!(response.message.text(), r#"{"a":1}"#);
    assert_eq!(calls(&models), [1, 1, 1]);
    assert_eq!(response.usage.input_tokens, 3_000, "all tries are counted");
    assert_eq!(response.cost, Some(Usd::per_million(26.0, 1_000)), "all tries are paid for");
    assert_eq!(models[2].requests()[0].model, None);
}

#[tokio::test]
async fn a_failing_endpoint_passes_the_call_on() {
    let (router, models) = three([fault(ModelFault::Overloaded).into(), priced("ok".into(), 5.0), "".into()]);
    let response = router.chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap();
    assert_eq!((response.message.text().as_str(), calls(&models)), ("ok", [1, 1, 0]));
    let savings = router.savings();
    assert_eq!((savings.calls, savings.spent), (1, Usd::per_million(5.0, 1_000)));
    assert_eq!(savings.saved(), Usd::per_million(15.0, 1_000));
}

#[tokio::test]
async fn an_answer_that_is_no_good_is_better_than_an_error() {
    let failing = || Reply::from(fault(ModelFault::Connect));
    let (router, models) = three(["no json".into(), failing(), failing()]);
    let response = router.chat(&as_json(), &CallContext::default()).await.unwrap();
    assert_eq!((response.message.text().as_str(), calls(&models)), ("no json", [1, 1, 1]));
}

#[tokio::test]
async fn a_request_that_is_wrong_is_wrong_everywhere() {
    let (router, models) = three([fault(ModelFault::InvalidRequest).into(), "".into(), "".into()]);
    router.chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap_err();
    assert_eq!(calls(&models), [1, 0, 0]);
}

#[tokio::test]
async fn an_answer_that_was_heard_is_not_begun_anew() {
    let (router, models) = three(["no json".into(), r#"{"a":1}"#.into(), "".into()]);
    let cx = CallContext::default().on_delta(|_| {});
    let response = router.chat(&as_json(), &cx).await.unwrap();
    assert_eq!((response.message.text().as_str(), calls(&models)), ("no json", [1, 0, 0]));
}

#[tokio::test]
async fn a_validator_and_a_listener_are_heard() {
    let (router, models) = three(["bad".into(), "good".into(), "".into()]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let router = router
        .validator(|_, response| if response.message.text() == "bad" { Err("bad".into()) } else { Ok(()) })
        .on_choice(move |caller, choice| {
            sink.lock().unwrap().push((caller.agent.clone(), choice.model.clone()));
        });
    let cx = CallContext::new(Caller::agent("qa"));
    let mut request = ChatRequest::user("?");
    request.tools = Arc::from([ToolDef {
        name: "t".into(),
        description: String::new(),
        input_schema: json!({}),
        effect: Default::default(),
    }]);
    assert_eq!(router.chat(&request, &cx).await.unwrap().message.text(), "good");
    assert_eq!(calls(&models), [1, 1, 0]);
    assert_eq!(*seen.lock().unwrap(), [("qa".into(), "test/small".to_owned())]);
}

#[test]
fn what_the_agent_needs_comes_with_the_call() {
    let (router, _) = three(["".into(), "".into(), "".into()]);
    let request = ChatRequest::user("?");
    let with = |needs: ModelNeeds| by("writer").with_needs(needs);
    let strong = with(ModelNeeds { tier: Tier::Strong, ..Default::default() });
    let choose = |router: &Router, cx: &CallContext| router.choose(&request, cx).unwrap().model;
    assert_eq!(choose(&router, &strong), "test/large");
    let named = with(ModelNeeds { name: Some("test/middle".into()), ..Default::default() });
    assert_eq!(choose(&router, &named), "test/middle");
    // The router's own word on an agent counts for more.
    let router = router.for_agent("writer", ModelNeeds { tier: Tier::Basic, ..Default::default() });
    assert_eq!(choose(&router, &strong), "test/small");
    let router = router.strategy_for("writer", Strategy::Best);
    assert_eq!(choose(&router, &strong), "test/large");
    assert_eq!(choose(&router, &by("other")), "test/small");
}

#[test]
fn hard_work_is_raised_by_one_tier_and_the_choice_says_why() {
    let (router, _) = three(["".into(), "".into(), "".into()]);
    let basic = || by("a").with_needs(ModelNeeds { tier: Tier::Basic, ..Default::default() });
    let mut request = ChatRequest::user("x ".repeat(20_000));
    assert_eq!(router.choose(&request, &basic()).unwrap().tier, Tier::Basic, "long input alone is not hard");
    request.messages.extend((0..30).map(|_| coral_core::Message::user("more")));
    let tool = |n: usize| ToolDef {
        name: format!("t{n}"),
        description: String::new(),
        input_schema: json!({}),
        effect: Default::default(),
    };
    request.tools = (0..20).map(tool).collect();
    let choice = router.choose(&request, &basic()).unwrap();
    assert_eq!(choice.tier, Tier::Standard);
    let signs = "standard or better (long input, many tools, very many tools, long conversation)";
    assert!(choice.reason.contains(signs), "{}", choice.reason);
}

/// A budget that leaves so many dollars.
fn left(dollars: f64) -> CallContext {
    let budget = Budget { usd: Some(Usd::from_dollars(dollars)), ..Budget::default() };
    by("a").with_budget(budget)
}

#[test]
fn the_best_is_the_best_that_the_budget_leaves() {
    let mut router = Router::new().strategy(Strategy::Best);
    for (id, tier, price) in
        [("small", Tier::Basic, 1.0), ("middle", Tier::Standard, 5.0), ("large", Tier::Strong, 20.0)]
    {
        let entry = CatalogueEntry { max_output_tokens: Some(50_000), ..entry(id, tier, price, 1) };
        router = router.route(entry, ScriptedModel::new());
    }
    let request = ChatRequest::user("?");
    // The worst case of `large` is a little over a dollar, or some 0.16 with 8,000 tokens of output.
    for (dollars, expected, limit) in [
        (2.0, "large", None),
        (0.5, "large", Some(8_000)),
        (0.1, "middle", Some(8_000)),
        (0.03, "small", Some(8_000)),
    ] {
        let choice = router.choose(&request, &left(dollars)).unwrap();
        assert_eq!(
            (choice.model.as_str(), choice.output_limit),
            (&*format!("test/{expected}"), limit),
            "{dollars}"
        );
        let info = router.info_for(&request, &left(dollars));
        assert_eq!(info.max_output_tokens, Some(limit.map_or(50_000, u64::from)));
        assert_eq!(
            info.price.unwrap().input,
            router.routes.iter().find(|r| r.name == choice.model).unwrap().entry.price.unwrap().input
        );
    }
    let error = router.choose(&request, &left(0.001)).unwrap_err().to_string();
    assert!(error.contains("test/small might cost more than $0.001, which the budget leaves"), "{error}");
    // A limit of the request's own is not made smaller.
    let long = ChatRequest { max_output_tokens: Some(40_000), ..request };
    assert_eq!(router.choose(&long, &left(0.5)).unwrap().model, "test/middle");
}

#[tokio::test]
async fn the_next_model_has_what_the_first_one_left() {
    let bad = || priced("no json".into(), 1.0);
    let good = || priced(Reply::text(r#"{"a":1}"#), 5.0);
    // The first answer costs a tenth of a cent; of what is left, 8,000 tokens of `middle` take four.
    let (router, models) = three([bad(), good(), "".into()]);
    let response = router.chat(&as_json(), &left(0.05)).await.unwrap();
    assert_eq!((response.message.text().as_str(), calls(&models)), (r#"{"a":1}"#, [1, 1, 0]));
    assert_eq!(models[1].requests()[0].max_output_tokens, Some(8_000));
    // With less, no other model fits, and the answer that is there is what there is.
    let (router, models) = three([bad(), good(), "".into()]);
    let response = router.chat(&as_json(), &left(0.009)).await.unwrap();
    assert_eq!((response.message.text().as_str(), calls(&models)), ("no json", [1, 0, 0]));
}

#[tokio::test(start_paused = true)]
async fn the_fastest_is_the_one_that_was_fastest_of_late() {
    struct Slow(u64);
    #[async_trait]
    impl ChatModel for Slow {
        fn name(&self) -> &str {
            "slow"
        }
        async fn chat(&self, _: &ChatRequest, _: &CallContext) -> Result<ChatResponse, Error> {
            tokio::time::sleep(std::time::Duration::from_millis(self.0)).await;
            Ok(ChatResponse::text("slow", "ok"))
        }
    }
    let router = Router::new()
        .route(entry("claimed_fast", Tier::Basic, 1.0, 3), Slow(60_000))
        .route(entry("claimed_slow", Tier::Basic, 1.0, 2), Slow(100));
    let hurry =
        ModelNeeds { tier: Tier::Basic, capabilities: vec!["low_latency".into()], ..Default::default() };
    let cx = by("a").with_needs(hurry);
    let request = ChatRequest::user("?");
    let chosen = || router.choose(&request, &cx).unwrap();
    assert_eq!((chosen().model.as_str(), chosen().strategy), ("test/claimed_fast", Strategy::Fastest));
    router.chat(&request, &cx).await.unwrap();
    assert_eq!(chosen().model, "test/claimed_slow", "a minute is not fast");
    router.chat(&request, &cx).await.unwrap();
    assert_eq!((chosen().model.as_str(), chosen().expected_ms), ("test/claimed_slow", 4_100));
    tokio::time::advance(std::time::Duration::from_secs(600)).await;
    assert_eq!(chosen().model, "test/claimed_fast", "it may have been a bad hour");
}

#[tokio::test]
async fn what_is_held_back_can_still_be_answered_by_the_next() {
    let (router, models) = three(["no json".into(), r#"{"a":1}"#.into(), "".into()]);
    let heard = Arc::new(Mutex::new(String::new()));
    let sink = heard.clone();
    let cx = CallContext::default().on_delta(move |delta| sink.lock().unwrap().push_str(&delta.to_string()));
    router.hold_back().chat(&as_json(), &cx).await.unwrap();
    assert_eq!((heard.lock().unwrap().as_str(), calls(&models)), (r#"{"a":1}"#, [1, 1, 0]));
}

#[tokio::test]
async fn json_in_a_fence_is_good_enough_and_a_wrong_type_is_not() {
    for (first, expected) in [("Here:\n```json\n{\"a\": 1}\n```", [1, 0, 0]), (r#"{"a": "one"}"#, [1, 1, 0])]
    {
        let (router, models) = three([first.into(), r#"{"a":1}"#.into(), "".into()]);
        router.chat(&as_json(), &CallContext::default()).await.unwrap();
        assert_eq!(calls(&models), expected, "{first}");
    }
}

#[tokio::test]
async fn what_may_be_paid_already_is_not_asked_of_another() {
    for doubtful in [ModelFault::Truncated, ModelFault::Timeout, ModelFault::Malformed] {
        let (router, models) = three([fault(doubtful).into(), "".into(), "".into()]);
        router.chat(&ChatRequest::user("?"), &CallContext::default()).await.unwrap_err();
        assert_eq!(calls(&models), [1, 0, 0]);
    }
}
