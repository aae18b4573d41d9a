//! Finds a planted bug by simulation, and shows that the mended version holds.
//!
//! A shop charges a card through a tool. The tool is declared to be idempotent, so the engine may call it again
//! when an answer is lost; but the first version of the shop's cash desk does not look at the idempotency key. No
//! ordinary test notices. The simulation crashes processes, loses answers and delivers calls twice, until a
//! customer has paid two times, and says with which seed.
//!
//! ```text
//! cargo run --example simulate
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use coral_core::sim::{Explored, Faults, Found, Simulation};
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, CallContext, Caller, EffectClass, Error, Flow, Handle,
    ToolCall, ToolDef, ToolOutput, Toolbox, Workflow,
};
use serde_json::json;

/// The world outside: what was charged, by idempotency key, and how many dollars that makes.
#[derive(Clone, Default)]
struct CashDesk {
    looks_at_keys: bool,
    charged: Arc<Mutex<(BTreeMap<String, u64>, u64)>>,
}

impl CashDesk {
    fn total(&self) -> u64 {
        self.charged.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

#[async_trait]
impl Toolbox for CashDesk {
    async fn list(&self, _: &Caller) -> Result<Vec<ToolDef>, Error> {
        Ok(vec![ToolDef {
            name: "charge".into(),
            description: "Charges a card.".into(),
            input_schema: json!({"type": "object", "properties": {"dollars": {"type": "integer"}}}),
            effect: EffectClass::Idempotent,
        }])
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        let dollars = call.arguments["dollars"].as_u64().unwrap_or(0);
        let mut charged = self.charged.lock().unwrap_or_else(PoisonError::into_inner);
        let (keys, total) = &mut *charged;
        let is_new = keys.insert(cx.key().to_owned(), dollars).is_none();
        if is_new || !self.looks_at_keys {
            *total += dollars;
        }
        Ok(ToolOutput::text("charged"))
    }
}

struct Cashier(AgentSpec);

#[async_trait]
impl Agent for Cashier {
    type Input = u64;
    type Output = String;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, dollars: u64, cx: &mut AgentContext) -> Result<String, AgentError> {
        let arguments = json!({"dollars": dollars});
        let receipt = cx.call_tool(&ToolCall { id: "1".into(), name: "charge".into(), arguments }).await?;
        Ok(receipt.content)
    }
}

/// Charges every order of a list, three at a time.
struct Checkout;

impl Workflow for Checkout {
    type Input = Vec<u64>;
    type Output = Vec<String>;

    fn name(&self) -> &str {
        "checkout"
    }

    fn build(&self, flow: &mut Flow<Vec<u64>>) -> Handle<Vec<String>> {
        flow.map("orders", 3, flow.input(), |flow: &mut Flow<u64>| {
            flow.step(Cashier(AgentSpec::new("cashier", "Cashier")), flow.input())
        })
    }
}

/// Three orders of 40 dollars in all. What the customers paid must be the same whatever happens.
fn explore(looks_at_keys: bool, seeds: std::ops::Range<u64>) -> Result<Explored<u64>, Box<Found>> {
    Simulation::new().seeds(seeds).faults(Faults::all()).explore(|world| async move {
        let desk = CashDesk { looks_at_keys, ..CashDesk::default() };
        world.tools(desk.clone()).run(&Checkout, vec![10, 20, 10]).await?;
        Ok(desk.total())
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let found = match explore(false, 0..200) {
        Ok(_) => return Err("the planted bug was not found".into()),
        Err(found) => found,
    };
    println!("The cash desk that ignores idempotency keys:\n{found}\n");
    let seed = found.seed.ok_or("it was found in calm")?;
    if explore(false, seed..seed + 1).err() != Some(found) {
        return Err("the same seed found something else".into());
    }
    println!("The same seed finds the same again.\n");

    let report = explore(true, 0..200)?;
    println!(
        "The one that looks at them: {} dollars under each of {} seeds, with {} faults and {} crashes.",
        report.calm, report.seeds, report.faults, report.crashes
    );
    Ok(())
}
