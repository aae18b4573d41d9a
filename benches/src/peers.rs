//! Other engines, in a process of their own that `benches/peers` builds.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::measure::{Cost, Outcome};
use crate::report::target_dir;
use crate::shapes::{Shape, Threads};

/// An engine that the peers' process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// graph-flow with its sessions in memory.
    GraphFlow,
    /// adk-graph, keeping nothing.
    AdkGraph,
    /// adk-graph with its checkpoints in memory.
    AdkGraphCheckpointed,
}

impl Peer {
    /// All of them.
    pub const ALL: [Peer; 3] = [Peer::GraphFlow, Peer::AdkGraph, Peer::AdkGraphCheckpointed];

    /// What the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Peer::GraphFlow => "graph-flow",
            Peer::AdkGraph => "adk-graph",
            Peer::AdkGraphCheckpointed => "adk-graph + checkpoints",
        }
    }
}

#[derive(Serialize)]
struct Order {
    peer: Peer,
    chain: usize,
    fan_out: usize,
    state: usize,
    threads: usize,
    times: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Cost { cpu_us: f64, wall_us: f64 },
    Error(String),
}

/// A process that answers each line with a line. It works only while it has an order, so its turns can
/// alternate with others'.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Outcome<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let answers = BufReader::new(answers.ok_or("the process has no output")?);
        Ok(Process { child, orders, answers })
    }

    pub(crate) fn ask<A: DeserializeOwned>(&mut self, order: &impl Serialize) -> Outcome<A> {
        let orders = self.orders.as_mut().ok_or("the process has ended")?;
        writeln!(orders, "{}", serde_json::to_string(order)?)?;
        orders.flush()?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process ends with its input.
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

/// The Rust peers' process.
#[derive(Debug)]
pub struct Peers(Process);

impl Peers {
    /// Builds the peers and starts them.
    ///
    /// # Errors
    /// If they can't be built, for instance without a network; the bench then goes on without them.
    pub fn start() -> Outcome<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/Cargo.toml");
        let target = target_dir().join("peers");
        let built = Command::new(cargo)
            .args(["build", "--release", "--quiet", "--locked", "--manifest-path"])
            .arg(&manifest)
            .arg("--target-dir")
            .arg(&target)
            .status()?;
        if !built.success() {
            return Err(
                format!("`cargo build --manifest-path {}` failed ({built})", manifest.display()).into()
            );
        }
        Process::start(&mut Command::new(target.join("release/coral-bench-peers"))).map(Peers)
    }

    /// Runs a shape on a peer; gives what one step cost.
    ///
    /// # Errors
    /// What the peer says; if its process has ended.
    pub fn run(
        &mut self,
        peer: Peer,
        shape: Shape,
        state: usize,
        threads: Threads,
        times: u64,
    ) -> Outcome<Cost> {
        let (chain, fan_out) = match shape {
            Shape::Chain(len) => (len, 0),
            Shape::FanOut => (0, Shape::WIDTH),
        };
        let order = Order { peer, chain, fan_out, state, threads: threads.count(), times };
        match self.0.ask(&order)? {
            Answer::Cost { cpu_us, wall_us } => Ok(Cost { cpu_us, wall_us }),
            Answer::Error(error) => Err(error.into()),
        }
    }
}
