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
//! - `postgres`: [`PostgresStore`], the same on a PostgreSQL server, for several machines.
//! - `postgres-tls`: encrypted connections to it.
//! - `encryption`: keys and what they seal; the stores switch it on.
//! - `layers`: a cache in layers, memory in front of what is shared and what lasts.
//! - `redis`: a cache on a Redis server, best as one of those layers.
//! - `redis-tls`: encrypted connections to it.
//! - `privacy`: finding and replacing personal data in texts, prompts and exports.
//! - `yaml`: reading exported projects as YAML; they are written as YAML without it.
//! - `conformance`: the exam for journals, for the tests of a backend of your own.
#![forbid(unsafe_code)]

#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod bell;
mod blob_name;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod codec;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "encryption")]
#[cfg_attr(
    not(any(feature = "sqlite", feature = "postgres")),
    expect(dead_code, reason = "without a store, keys only make pseudonyms")
)]
mod crypto;
mod directory;
mod export;
mod follow;
mod garbage;
mod index;
#[cfg(feature = "layers")]
mod layers;
mod ledger;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod lines;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "privacy")]
mod privacy;
mod projects;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod retention;
#[cfg(feature = "encryption")]
mod sealed;
mod sessions;
mod snapshots;
#[cfg(feature = "sqlite")]
mod sqlite;
mod status;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod vault;
mod views;

#[cfg(feature = "encryption")]
pub use crate::crypto::{KeyRing, MasterKey};
pub use crate::directory::DirectoryBlobs;
pub use crate::export::{Archive, ArchivedBlob, ArchivedJournal, Imported};
pub use crate::follow::{Follow, Follower, Polled};
pub use crate::garbage::{BlobSweep, GarbageReport, collect_garbage};
pub use crate::index::{Cursor, Refreshed, RunIndex, RunPage, RunQuery, RunSummary, SortBy};
#[cfg(feature = "layers")]
pub use crate::layers::{CacheStats, LayerOptions, LayeredCache};
pub use crate::ledger::is_run;
#[cfg(feature = "postgres")]
pub use crate::postgres::{
    PostgresBlobs, PostgresCache, PostgresIndex, PostgresJournal, PostgresOptions, PostgresStore,
};
#[cfg(feature = "privacy")]
pub use crate::privacy::{
    Anonymizer, Detector, PiiFinding, PiiKind, PrivacyPolicy, PrivateModel, PrivateWriter, Treatment,
};
#[cfg(all(feature = "privacy", any(feature = "sqlite", feature = "postgres")))]
pub use crate::privacy::{Subject, SubjectBlob, SubjectErasure, SubjectExport, SubjectFinding};
pub use crate::projects::{ProjectDraft, ProjectFilter, ProjectProgress, Projects};
#[cfg(feature = "redis")]
pub use crate::redis::RedisCache;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use crate::retention::{
    DataClass, Holding, ProjectRemoval, RetentionAction, RetentionOverview, RetentionReport, RetentionRule,
};
#[cfg(feature = "encryption")]
pub use crate::sealed::SealedCache;
pub use crate::sessions::Sessions;
pub use crate::snapshots::{CachedSnapshots, Snapshots};
#[cfg(feature = "sqlite")]
pub use crate::sqlite::{
    Durability, SqliteBlobs, SqliteCache, SqliteIndex, SqliteJournal, SqliteOptions, SqliteStore,
};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use crate::vault::Tombstone;
pub use crate::views::{
    AgentFailure, AgentOutput, AgentState, Progress, ProjectState, ProjectStatus, SessionState, Spending,
    StepStatus, StepView, Worked, WorkflowState,
};
