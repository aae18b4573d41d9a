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
#![forbid(unsafe_code)]

mod brief;
mod builtin;
mod check;
mod definition;
mod explain;
mod foreign;
mod live;
mod markdown;
mod problem;
mod registry;
mod workflow;
mod yaml;

pub use crate::brief::parse_brief;
pub use crate::check::{Finding, OPERATIONS, Severity};
pub use crate::definition::parse_agent;
pub use crate::explain::{Explanation, Verdict};
pub use crate::foreign::{
    Exported, Fate, Format, Import, Imported, Note, export_agent, export_team, import_instructions,
    import_skill, import_subagent,
};
pub use crate::live::{Changes, LiveRegistry};
pub use crate::registry::{Loaded, Registry, Skipped, Source};
pub use crate::workflow::parse_workflow;
