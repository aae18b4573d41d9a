//! What the engine costs per step: see `benches/README.md`.

use coral_benches::{Bytes, Entrant, Outcome, Report, Rounds, Shape, Threads, block_on};

fn main() -> Outcome {
    let mut report = Report::new("engine");
    let shapes =
        [Shape::Chain(6), Shape::Chain(10), Shape::Chain(1_000), Shape::Chain(10_000), Shape::FanOut];
    for threads in [Threads::Two, Threads::One] {
        for shape in shapes {
            for (size, label) in [(0, "empty"), (1 << 20, "1 MB")] {
                case(&mut report, threads, shape, size, label)?;
            }
        }
    }
    report.finish()
}

fn case(report: &mut Report, threads: Threads, shape: Shape, size: usize, label: &str) -> Outcome {
    let runtime = threads.runtime()?;
    let (program, state) = (shape.program()?, Bytes::of(size));
    let mut entrants = vec![
        Entrant::new("coral", shape.steps(), |times| {
            block_on(&runtime, shape.run(program.clone(), state.clone(), times))
        }),
        Entrant::new("tokio", shape.steps(), |times| {
            block_on(&runtime, shape.run_bare(state.clone(), times))
        }),
        Entrant::new("coral, watched", shape.steps(), |times| {
            block_on(&runtime, shape.run_watched(program.clone(), state.clone(), times))
        }),
    ];
    let costs = Rounds::as_asked().run(&mut entrants)?;
    let case = format!("{shape}, {label} state, {threads}");
    for (name, value) in [("CPU", 0), ("wall", 1)] {
        let of = |i: usize| if value == 0 { costs[i].cpu_us } else { costs[i].wall_us };
        report.row(case.clone(), &format!("{name} µs/step"), of(0), "tokio", Some(of(1)));
        report.row(format!("{case}, watched"), &format!("{name} µs/step"), of(2), "tokio", Some(of(1)));
    }
    Ok(())
}
