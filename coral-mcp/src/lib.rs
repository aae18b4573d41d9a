//! Real tools for agents, behind a sandbox that assumes the model is captured.
//!
//! [`Sandbox`] is a [`Toolbox`](coral_core::Toolbox): it connects agents to MCP servers and lets
//! nothing through that was not granted. [`Permissions`] say which agent may use which server, for
//! which operation, on which paths; every decision and every call is in the [`Audit`].
//!
//! ```
//! use coral_core::{CallContext, Caller, ToolCall, Toolbox};
//! use coral_mcp::{MemoryAudit, Permissions, Sandbox};
//! use serde_json::json;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let permissions = r#"
//! permission_model:
//!   agents:
//!     backend_developer:
//!       mcp_servers: ["filesystem"]
//!       operations: ["read", "write"]
//!       paths: ["/project/src"]
//!   security_policies: [no_system_access, audit_all_operations]
//! "#;
//! let project = tempfile::tempdir()?;
//! let tools = Sandbox::builder()
//!     .permissions(Permissions::from_yaml(permissions, "permissions.yaml")?)
//!     .root(project.path())
//!     .filesystem()
//!     .audit(MemoryAudit::new())
//!     .build()
//!     .await?;
//!
//! let cx = CallContext::new(Caller::agent("backend_developer"));
//! let mut call = ToolCall {
//!     id: "1".into(),
//!     name: "filesystem__write_file".into(),
//!     arguments: json!({"path": "src/main.rs", "content": "fn main() {}\n"}),
//! };
//! tools.call(&call, &cx).await?;
//! assert_eq!(std::fs::read_to_string(project.path().join("src/main.rs"))?, "fn main() {}\n");
//!
//! call.arguments["path"] = json!("docs/plan.md");
//! let refused = tools.call(&call, &cx).await.unwrap_err();
//! assert_eq!(
//!     refused.to_string(),
//!     "`write with filesystem__write_file on /project/docs/plan.md` is denied to \
//!      `backend_developer`: `/project/docs/plan.md` is not among the paths granted at \
//!      permissions.yaml:5",
//! );
//! # Ok(())
//! # }
//! ```
//!
//! # Servers
//! - [`filesystem`](SandboxBuilder::filesystem) and [`commands`](SandboxBuilder::commands) are in
//!   this process: files confined to the project's root by directory handles, and programs run
//!   without a shell.
//! - [`Servers`] reads the `mcpServers` JSON that people have. A server is a process, started when
//!   it is first needed, with an empty environment but for `PATH` and what its configuration
//!   names. Where this program can be the helper for it, or `isolation` in its rules or the security
//!   policy `no_system_access` says so, it runs in the OS sandbox: see [`sandbox_hook`] and, for what
//!   each level stops, `docs/security.md`.
//! - [`Profile`]s say what the tools of known servers do, and which of their arguments are paths
//!   and SQL. Rules of `servers` in the permission file add to them.
//!
//! # What is done about a server's words
//! - Tools are pinned, and so is how their server is started; what changes is a question to a person, in
//!   the run that wants it or by [`approve_tool`](Sandbox::approve_tool). A tool whose description
//!   instructs the model, or holds what can't be seen, is blocked from the first.
//! - Results are cut to a size, freed of control characters and secrets, and marked as data. A run
//!   that took some in may write and execute only where a rule or a person says so.
//! - Every wait has an end: for the start, the list, an answer, a server that does not read.
//!
//! # The audit
//! [`FileAudit`] is a chain of hashes, signed where it is given an [`AuditKey`];
//! [`check_audit`] finds edits, deletions, reordering, truncation and rewrites, and so does the program
//! `coral-audit` of this crate, which also makes a report.
//!
//! # What it does not do
//! - It does not decide by a server's own hints: what a tool does stands in a [`Profile`], and a
//!   tool that no profile knows counts as one that executes.
//! - It does not follow symbolic links, and does not read or change files with several hard links.
#![forbid(unsafe_code)]

mod access;
mod asked;
mod audit;
mod calls;
mod catalog;
mod client;
mod command;
mod commands;
mod config;
mod container;
mod counterpart;
mod egress;
#[cfg(feature = "cedar")]
mod engine;
mod extras;
mod filesystem;
mod health;
#[cfg(feature = "http")]
mod http;
mod jail;
mod launch;
mod path;
mod permissions;
mod pins;
mod pipe;
mod pool;
mod process;
mod profile;
mod quota;
mod results;
mod sandbox;
mod screen;
mod secret;
mod server;
mod shape;
mod sql;
mod stdio;
mod text;
mod token;
mod tool_call;
mod url_guard;
mod yaml;

pub use crate::access::{Access, Decision, Operation, Policy, Verdict};
pub use crate::audit::{
    Audit, AuditCheck, AuditEntry, AuditEvent, AuditKey, AuditLine, AuditPast, AuditRecord, AuditState,
    AuditSummary, Checkpoint, FileAudit, GENESIS, MemoryAudit, audit_csv, audit_report, audit_table,
    check_audit, read_audit, summarize_audit, summarize_audit_of,
};
pub use crate::commands::Commands;
pub use crate::config::{OAuth, Servers, Variables};
pub use crate::counterpart::{ByRun, Counterpart, Elicitation, Reply};
#[cfg(feature = "cedar")]
pub use crate::engine::PolicyEngine;
#[cfg(feature = "http")]
pub use crate::http::{Consent, ConsentRequest, LoopbackConsent, MemoryTokenStore, TokenStore};
pub use crate::jail::sandbox_hook;
pub use crate::path::ProjectPath;
pub use crate::permissions::{Grant, Permissions, SecurityPolicy};
pub use crate::pool::ServerStatus;
pub use crate::profile::Profile;
pub use crate::sandbox::{BlockedTool, Sandbox, SandboxBuilder};
#[cfg(feature = "tokens")]
pub use crate::token::BiscuitTokens;
pub use crate::token::{Token, TokenRight, TokenTerms, Tokens};
