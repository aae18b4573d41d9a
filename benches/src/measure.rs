//! Measuring: process CPU time and wall time, in rounds that take turns.

use std::error::Error;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// What a bench or one of its entrants ends with.
pub type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Whether the bench was asked to be quick: by `--quick` or by `CORAL_BENCH_QUICK=1`. It then does
/// everything once, in seconds, and its figures mean little.
pub fn is_quick() -> bool {
    std::env::args().any(|arg| arg == "--quick")
        || std::env::var("CORAL_BENCH_QUICK").is_ok_and(|value| !value.is_empty() && value != "0")
}

/// Whether the bench was asked for `case`: it is if it was asked for nothing in particular, or for a part of
/// the case's name (`cargo bench -p coral-benches --bench engine -- "chain of 6"`).
pub fn wanted(case: &str) -> bool {
    let mut parts = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).peekable();
    parts.peek().is_none() || parts.any(|part| case.contains(&part))
}

/// What one unit of work cost, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// CPU time of all threads of the process.
    pub cpu_us: f64,
    /// Time that passed.
    pub wall_us: f64,
}

/// Measures from when it is started.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    cpu: Duration,
    wall: Instant,
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}

impl Stopwatch {
    /// Starts.
    pub fn start() -> Self {
        Stopwatch { cpu: cpu_time(), wall: Instant::now() }
    }

    /// What was spent since the start, divided by `units`.
    pub fn per(&self, units: u64) -> Cost {
        let (wall, cpu) = (self.wall.elapsed(), cpu_time().saturating_sub(self.cpu));
        let units = units.max(1) as f64;
        Cost { cpu_us: cpu.as_secs_f64() * 1e6 / units, wall_us: wall.as_secs_f64() * 1e6 / units }
    }
}

/// Turns of an entrant that takes far longer than a turn should.
const SLOW_TURNS: usize = 3;

type Work<'a> = Box<dyn FnMut(u64) -> Outcome<Cost> + 'a>;

/// Something that takes part in the rounds.
pub struct Entrant<'a> {
    name: String,
    units: u64,
    work: Work<'a>,
    times: u64,
    /// Whether a single time takes far more than a turn.
    is_slow: bool,
    costs: Vec<Cost>,
}

impl<'a> Entrant<'a> {
    /// Work that does something a given number of times; each time is `units` units.
    pub fn new(name: impl Into<String>, units: u64, mut work: impl FnMut(u64) -> Outcome + 'a) -> Self {
        Entrant::measured(name, units, move |times| {
            let watch = Stopwatch::start();
            work(times)?;
            Ok(watch.per(times * units))
        })
    }

    /// Work that measures itself, for instance in another process: it is told how many times to do it,
    /// and says what one unit cost.
    pub fn measured(
        name: impl Into<String>,
        units: u64,
        work: impl FnMut(u64) -> Outcome<Cost> + 'a,
    ) -> Self {
        Entrant {
            name: name.into(),
            units,
            work: Box::new(work),
            times: 1,
            is_slow: false,
            costs: Vec::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn go(&mut self) -> Outcome<Cost> {
        (self.work)(self.times).map_err(|error| format!("{}: {error}", self.name).into())
    }
}

/// How often each entrant takes its turn, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    count: usize,
    turn: Duration,
}

impl Rounds {
    /// Enough for figures that hold.
    pub fn full() -> Self {
        Rounds { count: 11, turn: Duration::from_millis(60) }
    }

    /// Just enough to see that it works.
    pub fn quick() -> Self {
        Rounds { count: 1, turn: Duration::from_millis(1) }
    }

    /// [`quick`](Self::quick) if the bench was asked to be, else [`full`](Self::full).
    pub fn as_asked() -> Self {
        if is_quick() { Rounds::quick() } else { Rounds::full() }
    }

    /// Other rounds of the same kind, unless they are quick.
    #[must_use]
    pub fn of(self, count: usize, turn: Duration) -> Self {
        if is_quick() { self } else { Rounds { count, turn } }
    }

    /// Lets all take turns, A B A B, so that what disturbs one disturbs all; gives the median of each.
    ///
    /// # Errors
    /// The first entrant's that fails.
    pub fn run(self, entrants: &mut [Entrant<'_>]) -> Outcome<Vec<Cost>> {
        for entrant in entrants.iter_mut() {
            self.calibrate(entrant)?;
        }
        for round in 0..self.count {
            for entrant in entrants.iter_mut().filter(|entrant| round < SLOW_TURNS || !entrant.is_slow) {
                let cost = entrant.go()?;
                entrant.costs.push(cost);
            }
        }
        Ok(entrants.iter().map(|entrant| median(&entrant.costs)).collect())
    }

    /// Warms up, and finds how many times fill a turn.
    fn calibrate(self, entrant: &mut Entrant<'_>) -> Outcome {
        let turn_us = self.turn.as_secs_f64() * 1e6;
        loop {
            let per_time = entrant.go()?.wall_us * entrant.units as f64;
            if per_time * entrant.times as f64 >= turn_us / 4.0 {
                entrant.times = ((turn_us / per_time) as u64).max(1);
                entrant.is_slow = per_time > 4.0 * turn_us;
                return Ok(());
            }
            entrant.times *= 2;
        }
    }
}

fn median(costs: &[Cost]) -> Cost {
    let of = |value: fn(&Cost) -> f64| {
        let mut values: Vec<f64> = costs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
        let at = |i: usize| values.get(i).copied().unwrap_or_default();
        (at(low) + at(high)) / 2.0
    };
    Cost { cpu_us: of(|cost| cost.cpu_us), wall_us: of(|cost| cost.wall_us) }
}
