//! Real tools for agents, behind a sandbox that assumes the model is captured.
//!
//! [`Sandbox`] is a [`Toolbox`](coral_core::Toolbox): it connects agents to MCP servers and lets
//! nothing through that was not granted. [`Permissions`] say which agent may use which server, for
//! which operation, on which paths; every decision and every call is in the [`Audit`].
//!
//! ```
//! use coral_core::{CallContext, Caller, ToolCall, Toolbox};
//! use coral_mcp::{Permissions, Sandbox};
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
//! # What it does not do
//! - It does not decide by a server's own hints: what a tool does stands in a [`Profile`], and a
//!   tool that no profile knows counts as one that executes.
//! - It does not follow symbolic links, and does not read or change files with several hard links.
#![forbid(unsafe_code)]

mod access;
mod audit;
mod catalog;
mod config;
mod filesystem;
mod health;
mod jail;
mod path;
mod permissions;
mod pins;
mod pipe;
mod process;
mod profile;
mod quota;
mod sandbox;
mod screen;
mod secret;
mod server;
mod stdio;
mod text;
mod yaml;

pub use crate::access::{Access, Decision, Operation, Policy, Verdict};
pub use crate::audit::{Audit, AuditEntry, AuditEvent, AuditRecord, FileAudit, GENESIS, MemoryAudit};
pub use crate::config::{Servers, Variables};
pub use crate::jail::sandbox_hook;
pub use crate::path::ProjectPath;
pub use crate::permissions::{Grant, Permissions, SecurityPolicy};
pub use crate::profile::Profile;
pub use crate::sandbox::{Approval, Approver, BlockedTool, Sandbox, SandboxBuilder};
