//! Durable workflows for teams of AI agents.
#![forbid(unsafe_code)]

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
mod model;
mod money;
mod outside;
mod payload;
mod program;
mod prompt;
mod prompt_agent;
pub mod resilience;
pub mod resources;
mod runner;
mod schema;
mod spec;
mod task;
mod tool;

pub use crate::agent::{Agent, ErasedAgent, HandoffDraft};
pub use crate::budget::{Budget, Used};
pub use crate::cache::{BlobRef, Blobs, Cache, MemoryBlobs, MemoryCache};
pub use crate::call::{CallContext, Caller};
pub use crate::clock::{Clock, ManualClock, SystemClock, rfc3339};
pub use crate::context::AgentContext;
pub use crate::error::{AgentError, Error, ErrorClass, ErrorKind, ModelFault, ToolFault, nearest};
pub use crate::event::{
    EVENT_FORMAT, EffectKind, Event, ForkPoint, Outcome, Pins, Question, Record, RunStatus, Seq, SkipReason,
    Spent, Stage,
};
pub use crate::flow::{All, Feeds, FirstOk, Flow, Handle, MaybeHandle, Quorum, Settle, Workflow};
pub use crate::graph::{Graph, GraphData, GraphProblem, Input, Join, RetryPolicy, StepData, StepKind};
pub use crate::handoff::{Contribution, Handoff, HandoffContext, HandoffSource};
pub use crate::hash::{digest, sha256_hex};
pub use crate::journal::{Journal, MemoryJournal, RunFilter, RunHead, check_append};
pub use crate::machine::{Command, Machine, StepState};
pub use crate::model::{
    ChatModel, ChatRequest, ChatResponse, Delta, Effort, Message, ModelInfo, OutputFormat, Part, Price, Role,
    StopReason, ToolChoice, Usage,
};
pub use crate::money::Usd;
pub use crate::payload::{Data, Payload};
pub use crate::program::{IntoProgram, Program, Team};
pub use crate::prompt::Partials;
pub use crate::prompt_agent::PromptAgent;
pub use crate::runner::{EventStream, ResumeOptions, Run, Runner, RunnerBuilder, StartOptions};
pub use crate::schema::Schema;
pub use crate::spec::{
    AgentLimits, AgentSpec, Category, HandoffSpec, ModelNeeds, OutputSpec, PhaseSpec, PromptTemplate, Tier,
};
pub use crate::task::{
    Brief, Deliverable, HandoffMessage, MessageContext, MessageType, Report, Task, TaskInput,
};
pub use crate::tool::{EffectClass, NoTools, ToolCall, ToolDef, ToolOutput, Toolbox};
