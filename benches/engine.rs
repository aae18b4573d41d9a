//! What the engine costs per step: see `benches/README.md`.

use std::cell::RefCell;
use std::time::Duration;

use coral_benches::{
    BareSqlite, Bytes, Cost, Entrant, Outcome, Peer, Peers, Report, Rounds, Shape, Threads, Writers,
    block_on, is_quick, scratch_dir, wanted,
};

/// Runs that are written at once.
const WRITERS: usize = 64;

fn main() -> Outcome {
    let mut report = Report::new("engine");
    let peers = match Peers::start() {
        Ok(peers) => Some(RefCell::new(peers)),
        Err(error) => {
            report.note(format!("graph-flow and adk-graph were left out: {error}"));
            None
        }
    };
    let shapes =
        [Shape::Chain(6), Shape::Chain(10), Shape::Chain(1_000), Shape::Chain(10_000), Shape::FanOut];
    // Quick is for seeing that it works: once on one runtime.
    let runtimes: &[Threads] = if is_quick() { &[Threads::Two] } else { &[Threads::Two, Threads::One] };
    for &threads in runtimes {
        for shape in shapes {
            for (size, label) in [(0, "empty"), (1 << 20, "1 MB")] {
                let case = Case { name: format!("{shape}, {label} state, {threads}"), threads, shape, size };
                if wanted(&case.name) {
                    case.measure(&mut report, peers.as_ref())?;
                }
            }
        }
    }
    journal(&mut report)?;
    report.finish()
}

/// Events per second that are durable, each waited for by its writer.
fn journal(report: &mut Report) -> Outcome {
    let case = "SQLite journal, synced";
    if !wanted(case) {
        return Ok(());
    }
    let dir = scratch_dir()?;
    let runtime = Threads::Two.runtime()?;
    let mut bare = BareSqlite::new(&dir.path().join("bare.db"))?;
    let mut one = runtime.block_on(Writers::new(dir.path(), 1))?;
    let mut many = runtime.block_on(Writers::new(dir.path(), WRITERS))?;
    let mut entrants = [
        Entrant::new("bare SQLite", 1, |times| bare.write_each(times)),
        Entrant::new("one writer", 1, |times| runtime.block_on(one.write(times))),
        Entrant::new("many writers", WRITERS as u64, |times| runtime.block_on(many.write(times))),
    ];
    let costs = Rounds::as_asked().of(7, Duration::from_millis(400)).run(&mut entrants)?;
    let [bare, one, many] = costs.as_slice() else { return Ok(()) };
    let per_second = |cost: &Cost| 1e6 / cost.wall_us;
    let peer = "rusqlite, a transaction each";
    report.row(format!("{case}, 1 writer"), "events/s", per_second(one), peer, Some(per_second(bare)));
    report.row(
        format!("{case}, {WRITERS} writers"),
        "events/s",
        per_second(many),
        peer,
        Some(per_second(bare)),
    );
    Ok(())
}

type Figure = fn(&Cost) -> f64;

struct Case {
    name: String,
    threads: Threads,
    shape: Shape,
    size: usize,
}

impl Case {
    fn measure(&self, report: &mut Report, peers: Option<&RefCell<Peers>>) -> Outcome {
        let Case { threads, shape, size, .. } = *self;
        let runtime = threads.runtime()?;
        let (program, state) = (shape.program()?, Bytes::of(size));
        // The lengths of 10 and 10,000 are there to show that a step costs the same in both.
        let known: &[Peer] = match shape {
            Shape::Chain(10 | 10_000) => &[],
            // Seconds for each run.
            Shape::Chain(1_000) if is_quick() && size > 0 => &[Peer::GraphFlow],
            _ => &Peer::ALL,
        };
        let mut entrants = vec![
            Entrant::new("coral", shape.steps(), |times| {
                block_on(&runtime, shape.run(program.clone(), state.clone(), times))
            }),
            Entrant::new("tokio", shape.steps(), |times| {
                block_on(&runtime, shape.run_bare(state.clone(), times))
            }),
            Entrant::new("coral, events read", shape.steps(), |times| {
                block_on(&runtime, shape.run_watched(program.clone(), state.clone(), times))
            }),
        ];
        for (peers, peer) in peers.into_iter().flat_map(|peers| known.iter().map(move |peer| (peers, *peer)))
        {
            entrants.push(Entrant::measured(peer.name(), shape.steps(), move |times| {
                peers.borrow_mut().run(peer, shape, size, threads, times)
            }));
        }
        let costs = Rounds::as_asked().run(&mut entrants)?;
        let [ours, bare, watched, others @ ..] = costs.as_slice() else { return Ok(()) };
        let units: [(&str, Figure); 2] =
            [("CPU µs/step", |cost| cost.cpu_us), ("wall µs/step", |cost| cost.wall_us)];
        for (unit, of) in units {
            report.row(&self.name, unit, of(ours), "tokio", Some(of(bare)));
            report.row(format!("{}, events read", self.name), unit, of(watched), "tokio", Some(of(bare)));
            for (peer, cost) in known.iter().zip(others) {
                report.row(&self.name, unit, of(ours), peer.name(), Some(of(cost)));
            }
        }
        Ok(())
    }
}
