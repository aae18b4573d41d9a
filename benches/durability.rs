//! What durability costs: see `benches/README.md`.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use coral_benches::{
    BareSqlite, Bytes, Cost, Entrant, LangGraph, Outcome, Report, Rounds, Shape, Threads, Waiting, is_quick,
    scratch_dir, wanted,
};
use coral_core::{Flow, Handle, Program, Runner, StartOptions, Workflow};
use coral_state::{Durability, SqliteJournal, SqliteOptions};

/// Workflows at once.
const IN_FLIGHT: u64 = 64;

/// Bytes that one record takes in the floor's table.
const RECORD_BYTES: usize = 150;

/// Asks this program to measure memory in a process that has done nothing else.
const MEMORY_OF: &str = "CORAL_BENCH_MEMORY_OF";

fn main() -> Outcome {
    if let Ok(of) = std::env::var(MEMORY_OF) {
        return memory_of(&of);
    }
    let mut report = Report::new("durability");
    let dir = scratch_dir()?;
    let langgraph = match LangGraph::start(dir.path()) {
        Ok(langgraph) => Some(RefCell::new(langgraph)),
        Err(error) => {
            report.note(format!("LangGraph was left out: {error}"));
            None
        }
    };
    for (shape, name) in [(Shape::Chain(6), "durable 6 steps"), (Shape::FanOut, "durable fan-out of 100")] {
        for (in_flight, how) in [(1, "one at a time"), (IN_FLIGHT, "64 in flight")] {
            let case = format!("{name}, {how}");
            if wanted(&case) {
                durable(&mut report, dir.path(), &case, shape, in_flight, langgraph.as_ref())?;
            }
        }
    }
    if wanted("waiting") {
        waiting(&mut report, langgraph.as_ref())?;
    }
    if wanted("resume") {
        resume(&mut report, dir.path())?;
    }
    report.finish()
}

/// Commits that a careful program would make for one run: at its beginning, when what can run at once has
/// run, and at its end; with each, how many records.
fn commits(shape: Shape) -> Vec<usize> {
    match shape {
        Shape::Chain(len) => std::iter::once(1).chain(std::iter::repeat_n(2, len)).chain([1]).collect(),
        Shape::FanOut => vec![1, 2 * Shape::WIDTH, 2, 1],
    }
}

fn durable(
    report: &mut Report,
    dir: &Path,
    case: &str,
    shape: Shape,
    in_flight: u64,
    langgraph: Option<&RefCell<LangGraph>>,
) -> Outcome {
    let runtime = Threads::Two.runtime()?;
    let files = tempfile::tempdir_in(dir)?;
    let runner = Runner::builder().journal(SqliteJournal::open(files.path().join("coral.db"))?).build();
    let (program, state) = (shape.program()?, Bytes::of(0));
    let mut by_hand = BareSqlite::new(&files.path().join("by-hand.db"))?;
    let mut in_bulk = BareSqlite::new(&files.path().join("in-bulk.db"))?;
    let mut entrants = vec![
        Entrant::new("coral", in_flight, |times| {
            runtime.block_on(async {
                let tasks: Vec<_> = (0..in_flight)
                    .map(|_| {
                        let (runner, program, state) = (runner.clone(), program.clone(), state.clone());
                        tokio::spawn(async move { shape.run_on(&runner, &program, &state, times).await })
                    })
                    .collect();
                for task in tasks {
                    task.await??;
                }
                Ok(())
            })
        }),
        Entrant::new("by hand", in_flight, |times| {
            for _ in 0..times {
                for events in commits(shape) {
                    by_hand.commit_events(in_flight, events)?;
                }
            }
            Ok(())
        }),
        Entrant::new("in bulk", in_flight, |times| {
            for _ in 0..times {
                for events in commits(shape) {
                    in_bulk.commit(1, in_flight, events * RECORD_BYTES)?;
                }
            }
            Ok(())
        }),
    ];
    if let Some(langgraph) = langgraph {
        entrants.push(Entrant::measured("LangGraph", in_flight, |times| {
            langgraph.borrow_mut().run(shape, in_flight, times)
        }));
    }
    let costs = Rounds::as_asked().of(7, Duration::from_millis(700)).run(&mut entrants)?;
    let figure = |cost: &Cost| if in_flight == 1 { cost.wall_us / 1e3 } else { 1e6 / cost.wall_us };
    let unit = if in_flight == 1 { "ms" } else { "workflows/s" };
    let [ours, by_hand, in_bulk, others @ ..] = costs.as_slice() else { return Ok(()) };
    report.row(case, unit, figure(ours), "rusqlite by hand", Some(figure(by_hand)));
    report.row(case, unit, figure(ours), "as many bytes, ready made", Some(figure(in_bulk)));
    for other in others {
        report.row(case, unit, figure(ours), "LangGraph", Some(figure(other)));
    }
    Ok(())
}

/// Memory of runs that wait.
fn waiting(report: &mut Report, langgraph: Option<&RefCell<LangGraph>>) -> Outcome {
    let runs = if is_quick() { 500 } else { 10_000 };
    let of = |what: &str| -> Outcome<f64> {
        let output =
            Command::new(std::env::current_exe()?).env(MEMORY_OF, format!("{what} {runs}")).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(String::from_utf8(output.stdout)?.trim().parse()?)
    };
    let (ours, tokio) = (of("coral")?, of("tokio")?);
    let case = format!("memory of {runs} waiting runs");
    report.row(&case, "bytes/run", ours, "tokio", Some(tokio));
    if let Some(langgraph) = langgraph {
        report.row(&case, "bytes/run", ours, "LangGraph", Some(langgraph.borrow_mut().waiting(runs)?));
    }
    Ok(())
}

fn memory_of(what: &str) -> Outcome {
    let runtime = Threads::Two.runtime()?;
    let bytes = match what.split_once(' ') {
        Some(("coral", runs)) => runtime.block_on(Waiting.bytes_per_run(runs.parse()?))?,
        Some(("tokio", tasks)) => runtime.block_on(Waiting.bytes_per_task(tasks.parse()?))?,
        _ => return Err(format!("{MEMORY_OF} is `{what}`, which is not known").into()),
    };
    println!("{bytes}");
    Ok(())
}

/// Many steps, and then a wait for a signal.
struct Long(usize);

impl Workflow for Long {
    type Input = u64;
    type Output = u64;

    fn name(&self) -> &str {
        "long"
    }

    fn build(&self, flow: &mut Flow<u64>) -> Handle<u64> {
        let counted = (0..self.0).fold(flow.input(), |before, n| {
            flow.function(&format!("step-{n}"), &before, |n: u64| async move { Ok(n + 1) })
        });
        let signal = flow.signal::<u64>("go");
        flow.function("sum", (&counted, &signal), |(a, b): (u64, u64)| async move { Ok(a + b) })
    }
}

/// Taking a long run up again.
fn resume(report: &mut Report, dir: &Path) -> Outcome {
    let steps = if is_quick() { 100 } else { 5_000 };
    let runtime = Threads::Two.runtime()?;
    let files = tempfile::tempdir_in(dir)?;
    let program = Program::new(&Long(steps))?;
    let last = format!("step-{}", steps - 1);
    let mut options = SqliteOptions::at(files.path().join("coral.db"));
    // Only the preparation: nothing of it is measured.
    options.durability = Durability::Normal;
    let events = runtime.block_on(async {
        let runner = Runner::builder().journal(SqliteJournal::open_with(options.clone())?).build();
        let run = runner.start_with(&program, 0, StartOptions::new().id("long")).await?;
        let mut events = run.events(1);
        loop {
            let record = events.next().await.ok_or("the run ended before its signal")??;
            if let coral_core::Event::StepSucceeded { path, .. } = &record.event
                && **path == *last
            {
                runner.shutdown().await;
                return Outcome::Ok(record.seq);
            }
        }
    })?;
    options.durability = Durability::Full;
    let mut bare = BareSqlite::new(&files.path().join("bare.db"))?;
    bare.commit(1, events, RECORD_BYTES)?;
    let mut entrants = [
        Entrant::measured("coral", 1, |times| {
            let mut total = Cost::default();
            for _ in 0..times {
                let journal = SqliteJournal::open_with(options.clone())?;
                let runner = Runner::builder().journal(journal).build();
                total = runtime.block_on(async {
                    let watch = coral_benches::Stopwatch::start();
                    runner.resume(&program, "long").await?;
                    let cost = watch.per(1);
                    runner.shutdown().await;
                    Outcome::Ok(Cost {
                        cpu_us: total.cpu_us + cost.cpu_us,
                        wall_us: total.wall_us + cost.wall_us,
                    })
                })?;
            }
            Ok(Cost { cpu_us: total.cpu_us / times as f64, wall_us: total.wall_us / times as f64 })
        }),
        Entrant::new("bare SQLite", 1, |times| {
            for _ in 0..times {
                if bare.read_all()? != events {
                    return Err("rows were lost".into());
                }
            }
            Ok(())
        }),
    ];
    let costs = Rounds::as_asked().of(7, Duration::from_millis(200)).run(&mut entrants)?;
    let [ours, bare] = costs.as_slice() else { return Ok(()) };
    let case = format!("resume of a run of {events} events");
    report.row(case, "ms", ours.wall_us / 1e3, "rusqlite, reading as many rows", Some(bare.wall_us / 1e3));
    Ok(())
}
