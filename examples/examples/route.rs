//! Why each model is chosen, and what that saves, from the run's own events. No key, no network: the models are
//! stand-ins with the catalogue's prices.
//!
//! ```text
//! cargo run --example route
//! ```
//!
//! Four agents that need different models work one after the other. The formatter's model is asked for JSON and gives
//! words, so that the next tier answers; the reviewer asks what was asked before, and the cache answers.

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, Budget, ChatRequest, Error, Event, Flow, Handle,
    OutputFormat, Runner, StartOptions, Tier, TokenCounter, UpperEstimate, Usd, Workflow,
};
use coral_llm::{Cached, Catalogue, CostReport, Reply, Router, ScriptedModel, Strategy};
use serde_json::{Value, json};

struct Worker {
    spec: AgentSpec,
    wants_json: bool,
}

impl Worker {
    fn new(id: &str, tier: Tier) -> Self {
        let mut spec = AgentSpec::new(id, id);
        spec.model.tier = tier;
        Worker { spec, wants_json: false }
    }
}

#[async_trait]
impl Agent for Worker {
    type Input = String;
    type Output = String;

    fn spec(&self) -> &AgentSpec {
        &self.spec
    }

    async fn run(&self, brief: String, cx: &mut AgentContext) -> Result<String, AgentError> {
        let mut request = ChatRequest::new("Work from the brief.", brief.as_str());
        if self.wants_json {
            let schema =
                json!({"type": "object", "required": ["title"], "properties": {"title": {"type": "string"}}});
            request.output = Some(OutputFormat { name: "page".into(), schema: schema.into() });
        }
        cx.chat(&request).await?;
        Ok(brief)
    }
}

struct Build;

impl Workflow for Build {
    type Input = String;
    type Output = String;

    fn name(&self) -> &str {
        "build"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
        let plan = flow.step(Worker::new("project_architect", Tier::Strong), flow.input());
        let code = flow.step(Worker::new("backend_developer", Tier::Standard), &plan);
        let page = flow.step(Worker { wants_json: true, ..Worker::new("formatter", Tier::Basic) }, &code);
        flow.step(Worker::new("reviewer", Tier::Standard), &page)
    }
}

fn model() -> Cached<Router> {
    // The architect may have the best that the budget allows; the others have the cheapest that fits.
    let mut router = Router::new().strategy_for("project_architect", Strategy::Best);
    for entry in &Catalogue::builtin().models {
        let info = entry.info();
        let says = if entry.tier == Tier::Basic { "In words." } else { r#"{"title": "Reef"}"# };
        let stand_in = ScriptedModel::new()
            .named(entry.name())
            .info(info)
            .otherwise(move |request| Reply::text(says).usage(UpperEstimate.request(request), 800));
        router = router.route(entry.clone(), stand_in);
    }
    Cached::new(router).for_agents(["backend_developer", "reviewer"])
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let report = build().await?;
    println!("\n{report}");
    let total = report.total();
    println!(
        "the most expensive models that fit would have cost {}: {} saved, {} of it by the cache",
        total.dearest,
        total.saved(),
        total.saved_by_cache
    );
    Ok(())
}

/// Runs the four agents, tells of each choice, and gives the bill.
async fn build() -> Result<CostReport, Error> {
    let brief = "Design a reef monitoring service: sensors, alerts, a public map. ".repeat(40);
    let runner = Runner::builder().model(model()).build();
    let budget = Budget { usd: Some(Usd::from_dollars(1.0)), ..Budget::default() };
    let run = runner.start_with(&Build, brief, StartOptions::new().budget(budget)).await?;

    let mut report = CostReport::default();
    let mut events = run.events(1);
    while let Some(record) = events.next().await {
        let record = record?;
        report.fold(run.id(), &record);
        if let Event::CallNoted { path, topic, note, .. } = &record.event {
            tell(path, topic, note);
        }
    }
    run.output().await?;
    Ok(report)
}

fn tell(step: &str, topic: &str, note: &Value) {
    let text = |pointer: &str| note.pointer(pointer).and_then(Value::as_str).unwrap_or("none").to_owned();
    let usd = |pointer: &str| {
        let pico = note.pointer(pointer).and_then(Value::as_u64);
        pico.map_or("an unknown price".to_owned(), |pico| Usd::from_pico(pico).to_string())
    };
    match topic {
        "model_chosen" => {
            println!("{step}: {}", text("/model"));
            println!("  why: {}", text("/reason"));
            println!(
                "  expected: {}, dearest that fits: {} at {}",
                usd("/expected/cost"),
                text("/dearest/model"),
                usd("/dearest/cost")
            );
            for (reason, models) in note["refused"].as_object().into_iter().flatten() {
                println!("  refused: {} that {reason}", models.as_array().map_or(0, Vec::len));
            }
        }
        "model_escalated" => {
            println!("  {} did not do: {}; next is {}", text("/from"), text("/problem"), text("/to"))
        }
        "model_paid" => println!("  cost {}, saved {}", usd("/cost"), usd("/saved")),
        "cache_hit" => println!("{step}: answered from the cache, which saved {}", usd("/saved")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_bill_says_what_was_chosen_and_saved() {
        let report = build().await.unwrap();
        let total = report.total();
        assert_eq!((total.escalations, total.cache_hits), (1, 1));
        assert!(total.saved() > total.saved_by_cache && total.saved_by_cache > Usd::ZERO, "{report}");
        assert!(report.calls().all(|call| call.reason.is_some() || call.cost == Some(Usd::ZERO)), "{report}");
    }
}
