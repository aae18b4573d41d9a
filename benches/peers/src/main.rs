//! Runs the shapes of Coral's engine bench on other engines.
//!
//! Reads one JSON order per line from standard input, carries it out, and answers with one line: what one
//! step cost, or why the order can't be carried out. The bench sends its orders in turn with its own rounds.
#![forbid(unsafe_code)]

mod adk;
mod flow;

use std::error::Error;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// What is to be run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    peer: Peer,
    /// Steps one after the other; none for the fan-out.
    #[serde(default)]
    chain: usize,
    /// Steps at once, before one that joins them; none for the chain.
    #[serde(default)]
    fan_out: usize,
    /// Bytes of state.
    state: usize,
    /// Worker threads; 1 is tokio's current-thread runtime.
    threads: usize,
    /// Runs, one after the other.
    times: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Peer {
    AdkGraph,
    AdkGraphCheckpointed,
    GraphFlow,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Cost { cpu_us: f64, wall_us: f64 },
    Error(String),
}

/// A peer's workflow, built once and run many times.
enum Workflow {
    Adk(adk::Workflow),
    Flow(flow::Workflow),
}

struct Prepared {
    order: Order,
    runtime: Runtime,
    workflow: std::sync::Arc<Workflow>,
}

fn main() -> Outcome {
    let mut out = std::io::stdout().lock();
    let mut prepared: Vec<Prepared> = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let answer = serde_json::from_str(&line?)
            .map_err(Into::into)
            .and_then(|order| carry_out(order, &mut prepared))
            .unwrap_or_else(|error| Answer::Error(error.to_string()));
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    Ok(())
}

fn carry_out(order: Order, prepared: &mut Vec<Prepared>) -> Outcome<Answer> {
    let same = |known: &Order| Order { times: order.times, ..known.clone() } == order;
    let at = match prepared.iter().position(|known| same(&known.order)) {
        Some(at) => at,
        None => {
            // A case is measured to its end before the next, but its peers take turns.
            prepared.retain(|known| known.order.peer != order.peer);
            prepared.push(prepare(&order)?);
            prepared.len() - 1
        }
    };
    let Prepared { runtime, workflow, .. } = &prepared[at];
    let (workflow, times) = (workflow.clone(), order.times);
    let steps = times * (if order.chain > 0 { order.chain } else { order.fan_out + 1 }) as u64;
    let (cpu, wall) = (cpu_time(), Instant::now());
    runtime.block_on(async move {
        tokio::spawn(async move {
            match &*workflow {
                Workflow::Adk(workflow) => workflow.run(times).await,
                Workflow::Flow(workflow) => workflow.run(times).await,
            }
        })
        .await?
    })?;
    let per_step = |spent: Duration| spent.as_secs_f64() * 1e6 / steps as f64;
    Ok(Answer::Cost { wall_us: per_step(wall.elapsed()), cpu_us: per_step(cpu_time().saturating_sub(cpu)) })
}

fn prepare(order: &Order) -> Outcome<Prepared> {
    if (order.chain > 0) == (order.fan_out > 0) {
        return Err("say either `chain` or `fan_out`".into());
    }
    let workflow = match order.peer {
        Peer::AdkGraph => Workflow::Adk(adk::Workflow::new(order, false)?),
        Peer::AdkGraphCheckpointed => Workflow::Adk(adk::Workflow::new(order, true)?),
        Peer::GraphFlow => Workflow::Flow(flow::Workflow::new(order)?),
    };
    let runtime = match order.threads {
        1 => Builder::new_current_thread().enable_time().build()?,
        threads => Builder::new_multi_thread().worker_threads(threads).enable_time().build()?,
    };
    Ok(Prepared { order: order.clone(), runtime, workflow: workflow.into() })
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}
