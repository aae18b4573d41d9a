use std::sync::Arc;

use coral_core::{OutputFormat, Price, ToolDef};
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
        capabilities: ["tools", "structured"].map(String::from).into(),
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

#[track_caller]
fn chosen(router: &Router, request: &ChatRequest, agent: &str, expected: &str) -> Choice {
    let choice = router.choose(request, &Caller::agent(agent)).unwrap();
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
    let error = router.choose(&ChatRequest::user("?"), &Caller::agent("a")).unwrap_err().to_string();
    assert!(error.contains("test/free has no known price; test/small is basic"), "{error}");
    let mut request = ChatRequest::user("?");
    request.messages[0].parts.push(Part::Image { media_type: "image/png".into(), data: String::new() });
    let error = router.choose(&request, &Caller::default()).unwrap_err().to_string();
    assert!(error.contains("test/small has no `vision`"), "{error}");
    let error = router
        .choose(&ChatRequest { model: Some("test/smal".into()), ..request }, &Caller::default())
        .unwrap_err();
    assert!(error.to_string().contains("did you mean `test/small`"), "{error}");
    assert!(router.allow_unknown_prices().choose(&ChatRequest::user("?"), &Caller::agent("a")).is_ok());
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
