//! What the tests share: a project directory, a sandbox over it, and calls by name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coral_core::{CallContext, Caller, Error, ErrorKind, ToolCall, ToolFault, ToolOutput, Toolbox};
use coral_mcp::{AuditEvent, AuditRecord, MemoryAudit, Permissions, Sandbox, SandboxBuilder, Verdict};
use serde_json::Value;

/// The permission file of the project's documents, as it stands there.
pub(crate) const PERMISSIONS: &str = r#"
permission_model:
  agents:
    project_architect:
      mcp_servers: ["filesystem"]
      operations: ["read"]
      paths: ["/project/docs"]
    backend_developer:
      mcp_servers: ["filesystem", "database", "docker"]
      operations: ["read", "write"]
      paths: ["/project/src", "/project/tests"]
    devops_deployment:
      mcp_servers: ["docker", "github", "monitoring"]
      operations: ["read", "write", "execute"]
      paths: ["/project"]
  security_policies: [no_system_access, audit_all_operations, encrypt_sensitive_data, time_bound_tokens]
"#;

/// A project in a directory of its own, next to a secret that is outside of it.
pub(crate) struct Desk {
    dir: tempfile::TempDir,
    pub(crate) tools: Sandbox,
    pub(crate) audit: Arc<MemoryAudit>,
}

impl Desk {
    pub(crate) async fn new(permissions: &str) -> Self {
        Desk::with(permissions, |builder| builder).await
    }

    pub(crate) async fn with(permissions: &str, more: impl FnOnce(SandboxBuilder) -> SandboxBuilder) -> Self {
        Desk::at(permissions, |builder, _| more(builder)).await
    }

    /// As [`with`](Self::with), for what depends on where the project is.
    pub(crate) async fn at(
        permissions: &str,
        more: impl FnOnce(SandboxBuilder, &Path) -> SandboxBuilder,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("project/docs/plan.md", "# Plan\nfirst\nsecond\n"),
            ("project/src/main.rs", "fn main() {}\n"),
            ("project/srcx/other.rs", "// other\n"),
            ("project/tests/it.rs", "// tests\n"),
            ("outside/secret.txt", "TOP SECRET"),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let audit = Arc::new(MemoryAudit::new());
        let builder = Sandbox::builder()
            .permissions(Permissions::from_yaml(permissions, "permissions.yaml").unwrap())
            .root(dir.path().join("project"))
            .filesystem()
            .audit(Arc::clone(&audit));
        let tools = more(builder, &dir.path().join("project")).build().await.unwrap();
        Desk { dir, tools, audit }
    }

    pub(crate) fn project(&self) -> PathBuf {
        self.dir.path().join("project")
    }

    pub(crate) fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.project().join(path)).unwrap()
    }

    pub(crate) async fn call(&self, agent: &str, tool: &str, arguments: Value) -> Result<ToolOutput, Error> {
        let call = ToolCall { id: "1".into(), name: tool.into(), arguments };
        self.tools.call(&call, &CallContext::new(Caller::agent(agent))).await
    }

    /// The text of a call that must succeed.
    #[track_caller]
    pub(crate) fn ok(result: Result<ToolOutput, Error>) -> String {
        let output = result.unwrap();
        assert!(!output.is_error, "{}", output.content);
        output.content
    }

    /// The reason of a call that must be denied.
    #[track_caller]
    pub(crate) fn denied(result: Result<ToolOutput, Error>) -> String {
        match result.unwrap_err().kind() {
            ErrorKind::Denied { reason, .. } => reason.clone(),
            other => panic!("not a denial: {other:?}"),
        }
    }

    /// The reason why a person must be asked.
    #[track_caller]
    pub(crate) fn asked(result: Result<ToolOutput, Error>) -> String {
        match result.unwrap_err().kind() {
            ErrorKind::NeedsApproval { reason, .. } => reason.clone(),
            other => panic!("not a question: {other:?}"),
        }
    }

    /// The words of a tool that must fail.
    #[track_caller]
    pub(crate) fn failed(result: Result<ToolOutput, Error>) -> String {
        let output = result.unwrap();
        assert!(output.is_error, "{}", output.content);
        output.content
    }

    #[track_caller]
    pub(crate) fn fault(result: Result<ToolOutput, Error>) -> ToolFault {
        match result.unwrap_err().kind() {
            ErrorKind::Tool { fault, .. } => *fault,
            other => panic!("not a fault: {other:?}"),
        }
    }

    pub(crate) fn last(&self) -> AuditRecord {
        self.audit.records().pop().unwrap()
    }

    /// How many decisions of a verdict are in the audit.
    pub(crate) fn decided(&self, verdict: Verdict) -> usize {
        let is = |r: &AuditRecord| matches!(&r.entry.event, AuditEvent::Decided { verdict: v, .. } if *v == verdict);
        self.audit.records().iter().filter(|r| is(r)).count()
    }
}

/// Every file under `dir`, with its content.
pub(crate) fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                left.push(path);
            } else if meta.is_file() {
                let bytes = std::fs::read(&path).unwrap();
                files.push((path, bytes));
            }
        }
    }
    files.sort();
    files
}
