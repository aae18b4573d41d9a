//! Why each model is chosen, and what that saves. No key, no network: the models are stand-ins with real prices.
//!
//! ```text
//! cargo run --example route
//! ```

use coral_core::{CallContext, Caller, ChatModel, ChatRequest, Error, ModelNeeds, Tier};
use coral_llm::{Catalogue, Reply, Router, ScriptedModel, estimate_tokens};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let needs = |tier| ModelNeeds { tier, ..Default::default() };
    let mut router = Router::new()
        .for_agent("project_architect", needs(Tier::Strong))
        .for_agent("backend_developer", needs(Tier::Standard))
        .for_agent("formatter", needs(Tier::Basic))
        .on_choice(|caller, choice| {
            println!("{}: {}", caller.agent, choice.model);
            println!("  why: {}", choice.reason);
            println!("  expected: {}", choice.cost.map_or("unknown".to_owned(), |cost| cost.to_string()));
            if let Some((model, cost)) = &choice.dearest {
                println!("  dearest that fits: {model} at {cost}");
            }
        });
    for entry in &Catalogue::builtin().models {
        let stand_in = ScriptedModel::new()
            .named(entry.name())
            .info(entry.info())
            .otherwise(|request| Reply::text("Done.").usage(estimate_tokens(request), 800));
        router = router.route(entry.clone(), stand_in);
    }

    let brief = "Design a reef monitoring service: sensors, alerts, a public map. ".repeat(40);
    for agent in ["project_architect", "backend_developer", "formatter"] {
        let cx = CallContext::new(Caller::agent(agent));
        router.chat(&ChatRequest::new("Work from the brief.", brief.as_str()), &cx).await?;
    }

    let savings = router.savings();
    println!(
        "\n{} calls cost {}; the most expensive models that fit would have cost {}: {} saved",
        savings.calls,
        savings.spent,
        savings.dearest,
        savings.saved()
    );
    Ok(())
}
