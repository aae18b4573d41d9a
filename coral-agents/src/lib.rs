//! The agents and workflows that come with Coral, and the loaders for your own.
//!
//! An agent is data: a Markdown file with YAML front matter that says who it is, what it needs
//! and gives, and how it is prompted ([`parse_agent`]). A workflow is a YAML file that says who
//! works after whom ([`parse_workflow`]). A brief is a Markdown file that says what is wanted
//! ([`parse_brief`]). A [`Registry`] holds the built-in ones and takes in directories of yours,
//! which may replace or extend them.
//!
//! ```
//! use coral_agents::{Registry, parse_brief, parse_workflow};
//!
//! let registry = Registry::builtin();
//! let workflow = parse_workflow(
//!     "small.yaml",
//!     "steps:\n  - {name: design, agent: project_architect}\n  - {agent: backend_developer, inputs: design}\n",
//!     &registry,
//! )?;
//! assert_eq!(workflow.name, "small");
//! let brief = parse_brief("idea.md", "# Notes\n\nA page to write notes on.\n")?;
//! assert_eq!(brief.project, "Notes");
//! # Ok::<(), coral_core::Error>(())
//! ```
//!
//! Everything that is wrong with a file is reported at once, with its lines, and a bad file in a
//! directory never keeps the others from loading.
//!
//! # What else there is
//! - [`Registry::check`] finds what no file shows alone: an agent, a deliverable, an operation, a
//!   partial or a variable that is not there, and steps that never get what they depend on.
//! - [`Registry::team`] makes agents of the definitions, to run workflows with.
//! - [`Explanation`] says what a workflow would do with the facts of a brief, as text and drawn.
//! - [`LiveRegistry`] follows a directory while a program runs.
//! - [`Registry::import_dir`] takes in sub-agents, skills and `AGENTS.md` as other tools have them,
//!   and says what became of every field; [`export_agent`] and [`export_team`] write them.
//! - [`Evaluation`] runs an agent or a workflow on cases, scores the answers by assertions and
//!   graded rubrics, and sets prompts or models side by side.
//!
//! # Features
//! - `watch`: `LiveRegistry::follow`, which is told by the operating system when a file changes.
//!
//! The crate depends on `coral-core` alone among the crates of Coral. It reads files, and does no
//! other I/O.
#![forbid(unsafe_code)]

mod brief;
mod builtin;
mod check;
mod definition;
mod eval;
mod explain;
mod foreign;
mod live;
mod markdown;
mod problem;
mod registry;
mod workflow;
mod yaml;

pub use crate::brief::parse_brief;
pub use crate::check::{Finding, Severity};
pub use crate::definition::parse_agent;
pub use crate::eval::{
    Candidate, CandidateReport, Case, CaseResult, Check, CheckKind, CheckResult, Comparison, Evaluation,
    EvaluationOptions, EvaluationReport, parse_cases,
};
pub use crate::explain::{Explanation, Verdict};
pub use crate::foreign::{
    Exported, Fate, Format, Import, Imported, Note, export_agent, export_team, import_instructions,
    import_skill, import_subagent,
};
#[cfg(feature = "watch")]
pub use crate::live::Following;
pub use crate::live::{Changes, LiveRegistry};
pub use crate::registry::{Loaded, Registry, Skipped, Source};
pub use crate::workflow::parse_workflow;
