//! LangGraph, in a process of its own that `benches/peers` describes.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::measure::{Cost, Outcome};
use crate::peers::Process;
use crate::report::target_dir;
use crate::shapes::Shape;

#[derive(Serialize)]
#[serde(untagged)]
enum Order {
    Run { shape: &'static str, in_flight: u64, times: u64 },
    Waiting { waiting: u64 },
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Cost { cpu_us: f64, wall_us: f64 },
    Bytes(f64),
    Error(String),
}

/// LangGraph with its SQLite checkpointer, every checkpoint synced before the next step.
#[derive(Debug)]
pub struct LangGraph(Process);

impl LangGraph {
    /// Installs it from PyPI into `target/peers`, unless it is there, and starts it with its database in `dir`.
    ///
    /// # Errors
    /// If it can't be installed, for instance without a network; the bench then goes on without it.
    pub fn start(dir: &Path) -> Outcome<Self> {
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let requirements = peers.join("langgraph.requirements.txt");
        let venv = target_dir().join("peers/venv");
        let python = venv.join("bin/python");
        if !python.exists() {
            done(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        }
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
        done(Command::new(&python).args(install).arg(&requirements))?;
        let mut script = Command::new(&python);
        Process::start(script.arg(peers.join("langgraph_bench.py")).arg(dir)).map(LangGraph)
    }

    /// Runs a shape so many times with so many at once; gives what one workflow cost.
    ///
    /// # Errors
    /// What LangGraph says.
    pub fn run(&mut self, shape: Shape, in_flight: u64, times: u64) -> Outcome<Cost> {
        let shape = match shape {
            Shape::Chain(6) => "chain",
            Shape::FanOut => "fan-out",
            Shape::Chain(_) => return Err("LangGraph's chain has six steps".into()),
        };
        match self.0.ask(&Order::Run { shape, in_flight, times })? {
            Answer::Cost { cpu_us, wall_us } => Ok(Cost { cpu_us, wall_us }),
            Answer::Error(error) => Err(error.into()),
            Answer::Bytes(_) => Err("LangGraph answered something else".into()),
        }
    }

    /// Bytes that each of so many waiting runs takes, without a checkpointer.
    ///
    /// # Errors
    /// What LangGraph says.
    pub fn waiting(&mut self, runs: u64) -> Outcome<f64> {
        match self.0.ask(&Order::Waiting { waiting: runs })? {
            Answer::Bytes(bytes) => Ok(bytes),
            Answer::Error(error) => Err(error.into()),
            Answer::Cost { .. } => Err("LangGraph answered something else".into()),
        }
    }
}

fn done(command: &mut Command) -> Outcome {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} failed ({status})").into()) }
}
