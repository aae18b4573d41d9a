//! What runs cost, and why, from their journals.

use std::sync::Arc;

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, Budget, ChatRequest, Error, ErrorKind, Event, Flow, Handle,
    Journal, MemoryJournal, Message, ModelFault, ModelInfo, OutputFormat, Price, Record, Runner,
    StartOptions, Tier, Usd, Workflow,
};
use coral_llm::{
    Cached, CatalogueEntry, CostReport, Fitted, Overflow, Reply, Router, ScriptedModel, Strategy,
};
use serde_json::json;

struct Asker(AgentSpec);

impl Asker {
    fn new(id: &str, tier: Tier) -> Self {
        let mut spec = AgentSpec::new(id, id);
        spec.model.tier = tier;
        Asker(spec)
    }
}

#[async_trait]
impl Agent for Asker {
    type Input = String;
    type Output = String;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, text: String, cx: &mut AgentContext) -> Result<String, AgentError> {
        let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}});
        let mut request = ChatRequest::user(text.as_str());
        if &*self.0.id == "talker" {
            request
                .messages
                .extend((0..20).map(|turn| Message::user(format!("{turn} {}", "reef ".repeat(100)))));
        }
        request.output = Some(OutputFormat { name: "a".into(), schema: schema.into() });
        cx.chat(&request).await?;
        Ok(text)
    }
}

/// A cheap agent that gets no JSON from the cheap model, then a strong one twice, the second time from the cache.
struct Asking;

impl Workflow for Asking {
    type Input = String;
    type Output = String;

    fn name(&self) -> &str {
        "asking"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
        let cheap = flow.step(Asker::new("cheap", Tier::Basic), flow.input());
        let strong = flow.step(Asker::new("strong", Tier::Strong), &cheap);
        flow.step(Asker::new("again", Tier::Strong), &strong)
    }
}

/// One agent with a long conversation behind it.
struct Talking;

impl Workflow for Talking {
    type Input = String;
    type Output = String;

    fn name(&self) -> &str {
        "talking"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
        flow.step(Asker::new("talker", Tier::Basic), flow.input())
    }
}

fn entry(id: &str, tier: Tier, dollars: f64) -> CatalogueEntry {
    CatalogueEntry {
        provider: "test".into(),
        id: id.into(),
        tier,
        speed: 2,
        context_tokens: 100_000,
        max_output_tokens: Some(10_000),
        price: Some(Price { input: dollars, output: dollars, cache_read: dollars, cache_write: dollars }),
        long_input: None,
        long_cache: None,
        cache_marks: false,
        capabilities: ["structured".to_owned()].into(),
        refuses: Default::default(),
        efforts: Vec::new(),
        source: None,
    }
}

fn model(strategy: Strategy) -> Cached<Router> {
    let mut router = Router::new().strategy(strategy);
    for (id, tier, dollars, says) in [
        ("small", Tier::Basic, 1.0, "words"),
        ("middle", Tier::Standard, 2.0, r#"{"a":1}"#),
        ("large", Tier::Strong, 10.0, r#"{"a":2}"#),
    ] {
        let entry = entry(id, tier, dollars);
        let model = ScriptedModel::new()
            .named(entry.name())
            .info(entry.info())
            .otherwise(move |_| Reply::text(says).usage(1_000, 0));
        router = router.route(entry, model);
    }
    Cached::new(router).for_agents(["strong", "again"])
}

async fn run(strategy: Strategy, budget: Option<f64>) -> (Arc<MemoryJournal>, String, Vec<Record>) {
    let journal = Arc::new(MemoryJournal::default());
    let runner = Runner::builder().model(model(strategy)).journal(journal.clone()).build();
    let mut options = StartOptions::new().project("reef");
    if let Some(dollars) = budget {
        options = options.budget(Budget { usd: Some(Usd::from_dollars(dollars)), ..Budget::default() });
    }
    let run = runner.start_with(&Asking, "?".to_owned(), options).await.unwrap();
    run.wait().await.unwrap();
    let records = journal.read(run.id(), 1, 10_000).await.unwrap();
    (journal, run.id().to_owned(), records)
}

fn thousand(dollars: f64) -> Usd {
    Usd::per_million(dollars, 1_000)
}

#[tokio::test]
async fn a_run_says_what_it_cost_and_why() {
    let (journal, id, records) = run(Strategy::Cheapest, None).await;
    let topics = |path: &str| -> Vec<String> {
        let notes = records.iter().filter_map(|record| match &record.event {
            Event::CallNoted { path: at, topic, .. } if **at == *path => Some(topic.to_string()),
            _ => None,
        });
        notes.collect()
    };
    assert_eq!(topics("cheap"), ["model_chosen", "model_escalated", "model_paid"]);
    assert_eq!(topics("strong"), ["model_chosen", "model_paid"]);
    assert_eq!(topics("again"), ["cache_hit"]);

    let report = CostReport::of_run(&journal, &id).await.unwrap();
    let by_agent = report.by(|call| call.agent.clone());
    assert_eq!(by_agent["cheap"].cost, thousand(1.0) + thousand(2.0), "both tries are paid for");
    assert_eq!((by_agent["cheap"].escalations, by_agent["cheap"].usage.input_tokens), (1, 2_000));
    assert_eq!(by_agent["cheap"].dearest, thousand(10.0), "the large model would have been asked once");
    assert_eq!((by_agent["strong"].cost, by_agent["strong"].saved()), (thousand(10.0), Usd::ZERO));
    let again = by_agent["again"];
    assert_eq!((again.cost, again.cache_hits, again.saved_by_cache), (Usd::ZERO, 1, thousand(10.0)));
    let total = report.total();
    assert_eq!((total.calls, total.cost, total.saved()), (3, thousand(13.0), thousand(17.0)));
    let first = report.calls().find(|call| &*call.agent == "cheap").unwrap();
    assert!(first.reason.as_ref().unwrap().starts_with("the cheapest that fits, of 3"), "{first:?}");

    // The project's report is the same, and so is one that is folded as the events come.
    let of_project = CostReport::of_project(&journal, "reef").await.unwrap();
    assert_eq!(of_project.total(), total);
    assert_eq!(CostReport::of_project(&journal, "other").await.unwrap().total().calls, 0);
    let mut folded = CostReport::default();
    for record in &records {
        folded.fold(&id, record);
    }
    assert_eq!(folded.to_string(), report.to_string());
    assert!(report.to_string().ends_with("total: 3 calls, 3000 tokens, $0.013, $0.017 saved"), "{report}");
}

#[tokio::test]
async fn the_best_model_is_the_best_that_the_runs_budget_leaves() {
    // With five cents the strong agents after it get no model, which ends the run.
    for (dollars, expected) in [(1.0, "large"), (0.05, "middle")] {
        let (journal, id, _) = run(Strategy::Best, Some(dollars)).await;
        let report = CostReport::of_run(&journal, &id).await.unwrap();
        let first = report.calls().find(|call| &*call.agent == "cheap").unwrap();
        assert_eq!(&*first.model, format!("test/{expected}"), "{dollars}");
    }
}

#[tokio::test]
async fn the_next_tier_answers_within_a_budget_too() {
    let (journal, id, _) = run(Strategy::Cheapest, Some(1.0)).await;
    let report = CostReport::of_run(&journal, &id).await.unwrap();
    assert_eq!(report.by(|call| call.agent.clone())["cheap"].escalations, 1);
    assert_eq!(
        report.total().dearest,
        Usd::per_million(10.0, 3_000),
        "what there is no money for counts, too"
    );
}

#[tokio::test]
async fn a_fork_does_not_pay_for_what_its_parent_paid() {
    let (journal, id, records) = run(Strategy::Cheapest, None).await;
    let runner = Runner::builder().model(model(Strategy::Cheapest)).journal(journal.clone()).build();
    let second = records
        .iter()
        .find(|record| matches!(&record.event, Event::StepStarted { path, .. } if **path == *"strong"))
        .unwrap();
    let fork = runner.fork(&Asking, &id, second.seq - 1, None).await.unwrap();
    fork.output().await.unwrap();
    let report = CostReport::of_project(&journal, "reef").await.unwrap();
    let by_run = report.by(|call| call.run.to_string());
    assert_eq!((by_run[&id].calls, by_run[fork.id()].calls), (3, 2), "the fork's own calls");
}

#[tokio::test]
async fn a_summary_is_on_the_bill_although_the_call_behind_it_failed() {
    let mut info = ModelInfo::default();
    info.context_tokens = Some(6_000);
    let down = ErrorKind::Model { fault: ModelFault::InvalidRequest, model: "m".into(), problem: "x".into() };
    let failing = ScriptedModel::new().info(info).otherwise(move |_| Error::new(down.clone()));
    let summariser =
        ScriptedModel::new().otherwise(|_| Reply::text("They looked.").usage(900, 100).cost(thousand(1.0)));
    let model = Fitted::new(failing, Overflow::Summarise(Arc::new(summariser)));
    let journal = Arc::new(MemoryJournal::default());
    let runner = Runner::builder().model(model).journal(journal.clone()).build();
    let run = runner.start(&Talking, "?".to_owned()).await.unwrap();
    run.output().await.unwrap_err();
    let report = CostReport::of_run(&journal, run.id()).await.unwrap();
    assert_eq!((report.total().cost, report.total().usage.input_tokens), (thousand(1.0), 900), "{report}");
}
