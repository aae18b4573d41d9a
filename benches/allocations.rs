//! What the engine allocates per step: see `benches/README.md`.

use std::alloc::System;

use coral_benches::{Bytes, Outcome, Report, Shape, Threads, block_on};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> Outcome {
    let mut report = Report::new("allocations");
    let runtime = Threads::One.runtime()?;
    for shape in [Shape::Chain(6), Shape::Chain(1_000), Shape::Chain(10_000), Shape::FanOut] {
        let (program, state) = (shape.program()?, Bytes::of(0));
        let times = (20_000 / shape.steps()).max(1);
        let steps = (times * shape.steps()) as f64;
        let ours = || block_on(&runtime, shape.run(program.clone(), state.clone(), times));
        let bare = || block_on(&runtime, shape.run_bare(state.clone(), times));
        ours()?;
        bare()?;
        let region = Region::new(ALLOCATOR);
        ours()?;
        let ours = region.change();
        let region = Region::new(ALLOCATOR);
        bare()?;
        let bare = region.change();
        let of = |stats: &stats_alloc::Stats| (stats.allocations + stats.reallocations) as f64 / steps;
        report.row(shape.to_string(), "allocations/step", of(&ours), "tokio", Some(of(&bare)));
        let of = |stats: &stats_alloc::Stats| stats.bytes_allocated as f64 / steps;
        report.row(shape.to_string(), "bytes/step", of(&ours), "tokio", Some(of(&bare)));
    }
    report.finish()
}
