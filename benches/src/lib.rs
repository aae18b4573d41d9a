//! What Coral's benches share: a clock for CPU time, fair rounds, the shapes that are measured, and the
//! table and JSON that come out.
//!
//! A bench never asserts on time: it measures Coral and what it stands against in the same run, turn by
//! turn, and reports the ratio. `benches/README.md` says how to run each.
//!
//! ```
//! use coral_benches::{Entrant, Rounds};
//!
//! let mut sum = 0u64;
//! let mut entrants = [Entrant::new("sum", 1_000, |times| {
//!     for n in 0..times {
//!         sum = sum.wrapping_add(n);
//!     }
//!     Ok(())
//! })];
//! let costs = Rounds::quick().run(&mut entrants).unwrap();
//! assert!(costs[0].wall_us > 0.0);
//! ```
#![forbid(unsafe_code)]

mod disk;
mod langgraph;
mod measure;
mod memory;
mod peers;
mod report;
mod shapes;

pub use crate::disk::{BareSqlite, Writers, scratch_dir};
pub use crate::langgraph::LangGraph;
pub use crate::measure::{Cost, Entrant, Outcome, Rounds, Stopwatch, is_quick, wanted};
pub use crate::memory::{Waiting, resident_bytes};
pub use crate::peers::{Peer, Peers};
pub use crate::report::{Report, Row};
pub use crate::shapes::{Bytes, Shape, State, Threads, block_on};
