//! What a run takes that only waits.

use std::time::Duration;

use coral_core::{Flow, Handle, MemoryJournal, Program, Runner, Workflow};

use crate::measure::Outcome;

/// A workflow that waits an hour.
#[derive(Clone, Copy, Debug)]
pub struct Waiting;

const HOUR: Duration = Duration::from_secs(3_600);

impl Workflow for Waiting {
    type Input = u64;
    type Output = u64;

    fn name(&self) -> &str {
        "waiting"
    }

    fn build(&self, flow: &mut Flow<u64>) -> Handle<u64> {
        let before = flow.function("before", flow.input(), |n: u64| async move { Ok(n + 1) });
        let waited = flow.timer("wait", 3_600_000, &before);
        flow.function("after", &waited, |n: u64| async move { Ok(n + 1) })
    }
}

impl Waiting {
    /// Bytes that each of so many runs takes while it waits, journaled in memory.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn bytes_per_run(self, runs: u64) -> Outcome<f64> {
        let program = Program::new(&self)?;
        let runner = Runner::builder().journal(MemoryJournal::new()).build();
        // What the process needs once is there before it is looked at.
        let mut handles = vec![runner.start(&program, 0).await?];
        settled().await?;
        let before = resident_bytes()?;
        for n in 0..runs {
            handles.push(runner.start(&program, n).await?);
        }
        let bytes = settled().await?.saturating_sub(before);
        Ok(bytes as f64 / runs as f64)
    }

    /// The floor: a tokio task that sleeps.
    ///
    /// # Errors
    /// If the process's memory can't be read.
    pub async fn bytes_per_task(self, tasks: u64) -> Outcome<f64> {
        let wait = |n: u64| {
            tokio::spawn(async move {
                tokio::time::sleep(HOUR).await;
                n + 1
            })
        };
        let mut handles = vec![wait(0)];
        settled().await?;
        let before = resident_bytes()?;
        handles.extend((0..tasks).map(wait));
        let bytes = settled().await?.saturating_sub(before);
        Ok(bytes as f64 / tasks as f64)
    }
}

/// The process's memory once it has stopped growing.
async fn settled() -> Outcome<u64> {
    let mut last = 0;
    loop {
        let now = resident_bytes()?;
        if now == last {
            return Ok(now);
        }
        last = now;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Memory of this process that is in RAM.
///
/// # Errors
/// If the system does not say.
pub fn resident_bytes() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1_024)
}
