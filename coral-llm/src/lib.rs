//! Language models for [Coral](coral_core): providers, and models that need none.
//!
//! Everything here is a [`ChatModel`](coral_core::ChatModel). [`from_env`] chooses one by the environment's variables
//! and falls back to the [`OfflineModel`], so that a program runs with no key and no network.
//!
//! ```
//! use coral_core::{CallContext, ChatModel, ChatRequest};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), coral_core::Error> {
//! let model = coral_llm::from_vars(|_| None)?; // `from_env()` in a program
//! let cx = CallContext::default().on_delta(|delta| print!("{delta}"));
//! let answer = model.chat(&ChatRequest::user("Name three corals."), &cx).await?;
//! assert!(model.info().offline && answer.usage.output_tokens > 0);
//! # Ok(()) }
//! ```
//!
//! # Providers
//! A [`Provider`] is one model of one vendor: a [`Protocol`] (a pure codec: it encodes a request and decodes bytes,
//! and does no I/O) over a [`Transport`]. Vendors that speak another's protocol are data, see [`Vendor`], and how they
//! depart from it is a [`Dialect`]. Streamed and whole answers go through one decoder; an answer that the provider did
//! not end is an error, never a short answer.
//!
//! # Layers
//! Each is a model around a model, so that they compose in any order:
//!
//! | Layer | Adds |
//! |---|---|
//! | [`Router`] | a model per call from a [`Catalogue`], explained; escalation to the next tier |
//! | [`Pool`] | several endpoints or keys: least connections, ejection, recovery |
//! | [`Cached`] | equal requests are paid for once; equal requests at once are one call; on demand, questions that mean the same too |
//! | [`Fitted`] | conversations made to fit the context: refused, old turns dropped or summarised, never silently |
//! | [`Repaired`] | JSON answers that fit their schema: taken out of what stands around them, mended by the model |
//! | [`Retrying`] | repeats for calls outside of a run (in a run the engine repeats) |
//! | [`Ledger`] | what calls used and cost, by project, run, step, agent and model |
//! | [`Traced`] | spans by the OpenTelemetry conventions for generative AI |
//!
//! ```
//! use coral_llm::{Cached, Ledger, OfflineModel, Traced};
//!
//! let ledger = Ledger::default();
//! let model = Cached::new(ledger.meter(Traced::new(OfflineModel::new()))).for_agents(["formatter"]);
//! ```
//!
//! In a run the layers note what they did about a call, and the notes are events of its journal. [`CostReport`] reads
//! from there what calls cost, why their models were chosen, and what was saved.
//!
//! # Tests
//! [`ScriptedModel`] says what a test tells it to, fails as it is told, and remembers what it was asked. A [`Recorder`]
//! keeps real exchanges on a [`Cassette`], without keys, to be played again without a network.
//!
//! # Crate features
//! - `otel`: metrics by OpenTelemetry's API, see [`Traced`]. Spans need no feature.
//! - `tokenizer`: exact counts of tokens for OpenAI's models, 3.6 MB of tables. Without it sizes are upper estimates.
//! - `tls` (default): HTTPS, by rustls on ring, with the system's certificates.
#![forbid(unsafe_code)]

mod answer_tool;
mod cached;
mod catalogue;
mod dialect;
mod embed;
mod env;
mod failure;
mod fitted;
mod ledger;
#[cfg(feature = "otel")]
mod metrics;
mod note;
mod offline;
mod pool;
mod provider;
mod purse;
mod relay;
mod repaired;
mod report;
mod retry_after;
mod retrying;
mod router;
mod scripted;
mod secrets;
#[cfg(feature = "tokenizer")]
mod tokenizer;
mod traced;
mod transport;
mod vendor;
mod wire;

pub use crate::cached::{CacheStats, Cached, Similar};
pub use crate::catalogue::{Catalogue, CatalogueEntry};
pub use crate::dialect::{Dialect, MaxTokensField, Structured};
pub use crate::embed::{Embedder, Embedding, HttpEmbedder};
pub use crate::env::{from_env, from_vars};
pub use crate::failure::Failure;
pub use crate::fitted::{Fitted, LeftOut, Overflow};
pub use crate::ledger::{Account, Ledger, Metered, Total};
pub use crate::offline::OfflineModel;
pub use crate::pool::{MemberHealth, Pool, Probe};
pub use crate::provider::{CountTokens, Provider, ProviderBuilder, Timeouts};
pub use crate::repaired::Repaired;
pub use crate::report::{CallCost, CostReport, CostTotal};
pub use crate::retrying::{RetryPolicy, Retrying};
pub use crate::router::{Choice, Router, Savings, Strategy};
pub use crate::scripted::{Reply, ScriptedModel};
#[cfg(feature = "tokenizer")]
pub use crate::tokenizer::OpenAiTokens;
pub use crate::traced::Traced;
pub use crate::transport::cassette::{Cassette, Recorder};
pub use crate::transport::net::HttpTransport;
pub use crate::transport::{Body, Transport};
pub use crate::vendor::Vendor;
pub use crate::wire::{Decoder, Framing, Protocol, WireRequest};
