//! The shapes that are measured, in Coral and as bare tokio tasks.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use coral_core::{All, Flow, Handle, MemoryJournal, Program, Runner, Workflow};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

use crate::measure::Outcome;

/// What steps take and hand on.
pub type State = Arc<Bytes>;

/// The content of a [`State`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bytes {
    text: String,
}

impl Bytes {
    /// So many bytes.
    pub fn of(len: usize) -> State {
        Arc::new(Bytes { text: "x".repeat(len) })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

/// A graph of steps that hand their state on and do nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// So many steps, one after the other.
    Chain(usize),
    /// A hundred steps at once, and one that takes what all of them give.
    FanOut,
}

impl Shape {
    /// Steps of a fan-out that run at once.
    pub const WIDTH: usize = 100;

    /// Steps in all.
    pub fn steps(self) -> u64 {
        match self {
            Shape::Chain(len) => len as u64,
            Shape::FanOut => Self::WIDTH as u64 + 1,
        }
    }

    /// The workflow, ready to run.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn program(self) -> Outcome<Program<State, State>> {
        Ok(Program::new(&self)?)
    }

    /// Runs `program` so many times, one after the other, each with a journal in memory of its own: what is
    /// left of a run goes with it, as it does with the peers.
    ///
    /// # Errors
    /// Those of the engine; if a run loses its state.
    pub async fn run(self, program: Program<State, State>, state: State, times: u64) -> Outcome {
        for _ in 0..times {
            let runner = Runner::builder().journal(MemoryJournal::new()).build();
            self.run_on(&runner, &program, &state, 1).await?;
        }
        Ok(())
    }

    /// Runs `program` so many times, one after the other, on one runner.
    ///
    /// # Errors
    /// Those of the engine; if a run loses its state.
    pub async fn run_on(
        self,
        runner: &Runner,
        program: &Program<State, State>,
        state: &State,
        times: u64,
    ) -> Outcome {
        for _ in 0..times {
            let output = runner.start(program, state.clone()).await?.output().await?;
            same(&output, state)?;
        }
        Ok(())
    }

    /// The same, and each event is read by a subscriber while the run goes on.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_watched(self, program: Program<State, State>, state: State, times: u64) -> Outcome {
        for _ in 0..times {
            let runner = Runner::builder().journal(MemoryJournal::new()).build();
            let run = runner.start(&program, state.clone()).await?;
            let mut events = run.events(1);
            let mut seen = 0;
            while let Some(record) = events.next().await {
                seen = record?.seq;
            }
            if seen < 2 * self.steps() {
                return Err(format!("{seen} events of {} steps", self.steps()).into());
            }
            same(&run.output().await?, &state)?;
        }
        Ok(())
    }

    /// The floor: each step a tokio task that is spawned and joined.
    ///
    /// # Errors
    /// If a task is lost.
    pub async fn run_bare(self, state: State, times: u64) -> Outcome {
        for _ in 0..times {
            let mut output = state.clone();
            match self {
                Shape::Chain(len) => {
                    for _ in 0..len {
                        output = tokio::spawn(async move { output }).await?;
                    }
                }
                Shape::FanOut => {
                    let tasks: Vec<_> = (0..Self::WIDTH)
                        .map(|_| {
                            let state = output.clone();
                            tokio::spawn(async move { state })
                        })
                        .collect();
                    let mut outputs = Vec::with_capacity(Self::WIDTH);
                    for task in tasks {
                        outputs.push(task.await?);
                    }
                    output = tokio::spawn(async move { first(outputs) }).await?;
                }
            }
            same(&output, &state)?;
        }
        Ok(())
    }
}

fn first(states: Vec<State>) -> State {
    states.into_iter().next().unwrap_or_default()
}

fn same(output: &State, input: &State) -> Outcome {
    if Arc::ptr_eq(output, input) { Ok(()) } else { Err("a run copied or lost its state".into()) }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Chain(len) => write!(f, "chain of {len}"),
            Shape::FanOut => write!(f, "fan-out of {} and join", Shape::WIDTH),
        }
    }
}

impl Workflow for Shape {
    type Input = State;
    type Output = State;

    fn name(&self) -> &str {
        match self {
            Shape::Chain(_) => "chain",
            Shape::FanOut => "fan-out",
        }
    }

    fn build(&self, flow: &mut Flow<State>) -> Handle<State> {
        match self {
            Shape::Chain(len) => (0..*len).fold(flow.input(), |before, n| {
                flow.function(&format!("step-{n}"), &before, |state: State| async move { Ok(state) })
            }),
            Shape::FanOut => {
                let branches: [Handle<State>; Shape::WIDTH] =
                    std::array::from_fn(|n| {
                        flow.function(&format!("branch-{n}"), flow.input(), |state: State| async move {
                            Ok(state)
                        })
                    });
                flow.function("join", All(branches), |states: Vec<State>| async move { Ok(first(states)) })
            }
        }
    }
}

/// The tokio runtime that a bench runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// One thread does everything.
    One,
    /// Two workers.
    Two,
}

impl Threads {
    /// How many.
    pub fn count(self) -> usize {
        match self {
            Threads::One => 1,
            Threads::Two => 2,
        }
    }

    /// The runtime.
    ///
    /// # Errors
    /// If its threads can't be started.
    pub fn runtime(self) -> Outcome<Runtime> {
        let mut builder = match self {
            Threads::One => Builder::new_current_thread(),
            Threads::Two => {
                let mut builder = Builder::new_multi_thread();
                builder.worker_threads(2);
                builder
            }
        };
        Ok(builder.enable_time().build()?)
    }
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Threads::One => "1 thread",
            Threads::Two => "2 workers",
        })
    }
}

/// Runs `work` as a task of `runtime`, where its steps run too.
///
/// # Errors
/// Those of `work`; if it panics.
pub fn block_on(runtime: &Runtime, work: impl Future<Output = Outcome> + Send + 'static) -> Outcome {
    runtime.block_on(async { tokio::spawn(work).await? })
}
