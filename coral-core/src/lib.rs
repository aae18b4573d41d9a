//! Durable workflows for teams of AI agents.
#![forbid(unsafe_code)]

mod cache;
mod call;
mod clock;
mod error;
mod event;
mod graph;
mod hash;
mod journal;
mod model;
mod money;
mod payload;
mod spec;
mod task;
mod tool;

pub use crate::cache::{BlobRef, Blobs, Cache, MemoryBlobs, MemoryCache};
pub use crate::call::{CallContext, Caller};
pub use crate::clock::{Clock, ManualClock, SystemClock, rfc3339};
pub use crate::error::{AgentError, Error, ErrorClass, ErrorKind, ModelFault, ToolFault, nearest};
pub use crate::event::{
    EVENT_FORMAT, EffectKind, Event, Outcome, Pins, Record, RunStatus, Seq, SkipReason, Spent, Stage,
};
pub use crate::graph::{GraphData, StepData};
pub use crate::hash::{digest, sha256_hex};
pub use crate::journal::{Journal, MemoryJournal, RunFilter, RunHead, check_append};
pub use crate::model::{
    ChatModel, ChatRequest, ChatResponse, Delta, Effort, Message, ModelInfo, OutputFormat, Part, Price, Role,
    StopReason, ToolChoice, Usage,
};
pub use crate::money::Usd;
pub use crate::payload::{Data, Payload};
pub use crate::spec::{
    AgentLimits, AgentSpec, Category, HandoffSpec, ModelNeeds, OutputSpec, PhaseSpec, PromptTemplate, Tier,
};
pub use crate::task::{
    Brief, Deliverable, HandoffMessage, MessageContext, MessageType, Report, Task, TaskInput,
};
pub use crate::tool::{EffectClass, NoTools, ToolCall, ToolDef, ToolOutput, Toolbox};
