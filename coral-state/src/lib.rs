//! Storage for Coral: journals, caches and blobs that outlive the process.
//!
//! A run of Coral is a list of events; what keeps that list decides what a crash can take. This
//! crate keeps it in [`SqliteJournal`], one file that needs no server.
//!
//! ```
//! use coral_core::{Journal, RunFilter};
//! use coral_state::SqliteJournal;
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("coral.db");
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let journal = SqliteJournal::open(path)?;
//! assert!(journal.runs(&RunFilter::unfinished()).await?.is_empty());
//! # Ok::<(), coral_core::Error>(())
//! # }).unwrap();
//! ```
//!
//! # Crate features
//! - `sqlite` (default): [`SqliteStore`] with its journal, blobs and cache. Builds SQLite from source.
//! - `postgres`: [`PostgresJournal`](https://docs.rs/coral-state), for several machines.
//! - `conformance`: the exam for journals, for the tests of a backend of your own.
#![forbid(unsafe_code)]

#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod bell;
mod blob_name;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod codec;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "sqlite")]
mod crypto;
mod directory;
mod follow;
mod ledger;
#[cfg(feature = "postgres")]
mod postgres;
mod projects;
mod sessions;
#[cfg(feature = "sqlite")]
mod sqlite;
mod status;
mod views;

#[cfg(feature = "sqlite")]
pub use crate::crypto::{KeyRing, MasterKey};
pub use crate::directory::DirectoryBlobs;
pub use crate::follow::{Follow, Follower, Polled};
#[cfg(feature = "postgres")]
pub use crate::postgres::{PostgresJournal, PostgresOptions};
pub use crate::projects::{ProjectDraft, ProjectFilter, ProjectProgress, Projects};
pub use crate::sessions::Sessions;
#[cfg(feature = "sqlite")]
pub use crate::sqlite::{
    Durability, SqliteBlobs, SqliteCache, SqliteJournal, SqliteOptions, SqliteStore, Tombstone,
};
pub use crate::views::{
    AgentFailure, AgentOutput, AgentState, Progress, ProjectState, ProjectStatus, SessionState, Spending,
    StepStatus, StepView, WorkflowState,
};
