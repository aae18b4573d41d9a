//! Durable workflows for teams of AI agents.
//!
//! A **run** is one execution of a workflow, and its whole state is a fold over its **journal**, an
//! append-only list of events. A workflow is a graph of **steps**; a step runs an **agent** or a function,
//! or holds other steps. Whatever an agent does to the world outside (a model call, a tool call, a clock
//! reading, a question to a person) is an **effect**: its intent is recorded before, its outcome after, once. So
//! a run can be killed anywhere and resumed anywhere, and pays for nothing twice.
//!
//! ```
//! use coral_core::{AgentError, Flow, Handle, MemoryJournal, Runner, Workflow};
//!
//! struct Greet;
//!
//! impl Workflow for Greet {
//!     type Input = Vec<String>;
//!     type Output = String;
//!
//!     fn name(&self) -> &str {
//!         "greet"
//!     }
//!
//!     fn build(&self, flow: &mut Flow<Vec<String>>) -> Handle<String> {
//!         let each = flow.map("each", 8, flow.input(), |flow: &mut Flow<String>| {
//!             flow.function("greet", flow.input(), |name: String| async move { Ok(format!("hello {name}")) })
//!         });
//!         flow.function("join", &each, |all: Vec<String>| async move { Ok(all.join(", ")) })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), coral_core::Error> {
//! let runner = Runner::builder().journal(MemoryJournal::new()).build();
//! let run = runner.start(&Greet, vec!["coral".into(), "reef".into()]).await?;
//! assert_eq!(run.output().await?, "hello coral, hello reef");
//!
//! // The same from the journal alone, in this process or another.
//! let again = runner.resume(&Greet, run.id()).await?;
//! assert_eq!(again.output().await?, "hello coral, hello reef");
//! # Ok(()) }
//! ```
//!
//! # What to implement
//! - [`Agent`]: one specialist, typed. [`PromptAgent`] runs one that is data, an [`AgentSpec`].
//! - [`Workflow`]: which steps feed which, typed: an edge compiles only where the output can be
//!   handed off ([`Handoff`]) to the next input. [`Program::from_graph`] takes the same as data.
//! - The ports, for what is not there yet: [`ChatModel`], [`Toolbox`], [`Journal`], [`Cache`], [`Blobs`],
//!   [`Clock`]. `coral-llm`, `coral-mcp` and `coral-state` have implementations; the ones here are in memory.
//!
//! # What to call
//! - [`Runner`]: start, resume, recover, fork, inspect. [`Run`]: its events, its questions, its output.
//! - [`Budget`]: what a run may use, reserved before each call.
//! - [`resilience`]: layers around models and tools. [`resources`]: what agents of all runs share.
//!
//! This crate does no I/O: it opens no file, socket or process, and reads no clock but through [`Clock`]. The one
//! feature, `sim`, brings the module of that name: workflows under crashes and faults, by seeds.
#![forbid(unsafe_code)]
// The order of a hash map is drawn anew in each process, and nothing drawn may enter a run.
#![warn(clippy::iter_over_hash_type)]

mod agent;
mod budget;
mod cache;
mod call;
mod clock;
mod condition;
mod context;
mod driver;
mod error;
mod event;
mod flow;
mod graph;
mod handoff;
mod hash;
mod journal;
mod machine;
mod migration;
mod model;
mod money;
mod offload;
mod outside;
mod payload;
mod program;
mod prompt;
mod prompt_agent;
pub mod resilience;
pub mod resources;
mod run;
mod runner;
mod schema;
#[cfg(feature = "sim")]
pub mod sim;
mod spec;
mod task;
mod tool;

pub use crate::agent::{Agent, ErasedAgent, HandoffDraft};
pub use crate::budget::{Budget, Used};
pub use crate::cache::{BlobRef, Blobs, Cache, MemoryBlobs, MemoryCache};
pub use crate::call::{CallContext, Caller};
pub use crate::clock::{Clock, ManualClock, SystemClock, rfc3339};
pub use crate::condition::Condition;
pub use crate::context::AgentContext;
pub use crate::error::{AgentError, Error, ErrorClass, ErrorKind, ModelFault, ToolFault, nearest};
pub use crate::event::{
    EVENT_FORMAT, EffectKind, EffectPlace, Event, ForkPoint, Outcome, Pins, Question, Record, Renamed,
    RunStatus, Seq, SkipReason, Spent, Stage,
};
pub use crate::flow::{All, Feeds, FirstOk, Flow, Handle, MaybeHandle, Quorum, RouteTeam, Settle, Workflow};
pub use crate::graph::{Graph, GraphData, GraphProblem, Input, Join, RetryPolicy, StepData, StepKind};
pub use crate::handoff::{
    Contribution, Finding, Handoff, HandoffContext, HandoffSource, Hop, OnGap, Returned,
};
pub use crate::hash::{canonical_json, canonical_value, digest, hex, sha256_hex};
pub use crate::journal::{Journal, MemoryJournal, RunFilter, RunHead, check_append, check_begin};
pub use crate::machine::{Command, Machine, StepState};
pub use crate::migration::Migration;
pub use crate::model::{
    ChatModel, ChatRequest, ChatResponse, Delta, Effort, LongCache, LongInput, Message, ModelInfo,
    OutputFormat, Part, Price, Role, StopReason, ToolChoice, Usage,
};
pub use crate::money::Usd;
pub use crate::offload::OffloadingJournal;
pub use crate::payload::{Data, Payload};
pub use crate::program::{IntoProgram, Program, Team};
pub use crate::prompt::{
    ChosenBy, Compacted, Compaction, ContextQuery, ContextSource, DynamicSection, Fit, FitPolicy, Fitted,
    LeftOut, LintRules, Partials, PromptChange, PromptDraft, PromptFinding, PromptInput, PromptPhase,
    PromptService, PromptServiceBuilder, PromptSeverity, PromptStage, PromptStore, PromptText, PromptUse,
    PromptVersion, RenderedPrompt, Section, SectionPart, Templates, TokenCounter, UpperEstimate, lint_prompt,
};
pub use crate::prompt_agent::{OPERATIONS, PromptAgent};
pub use crate::run::{EventStream, Run};
pub use crate::runner::{ResumeOptions, Runner, RunnerBuilder, StartOptions};
pub use crate::schema::Schema;
pub use crate::spec::{
    AgentLimits, AgentSpec, Category, HandoffSpec, ModelNeeds, OutputSpec, PhaseSpec, PromptTemplate, Tier,
};
pub use crate::task::{
    Brief, Deliverable, HandoffMessage, MessageContext, MessageType, Report, Task, TaskInput,
};
pub use crate::tool::{
    Approval, ApprovalAnswer, ApprovalRequest, Decision, EffectClass, InDoubtEffect, NoTools, Reconciled,
    Reconciliation, ToolCall, ToolDef, ToolOutput, Toolbox,
};
