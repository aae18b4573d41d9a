//! An agent works on a Git repository through real servers: the built-in files, and `mcp-server-git` in
//! the OS sandbox. One call is denied, one waits for a person, and at the end the audit is verified.
//! The model is a script, so that it runs offline.
//!
//! ```text
//! sh tests/setup/mcp.sh
//! cargo run --example tools
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use coral_core::{
    AgentSpec, ApprovalAnswer, ApprovalRequest, Brief, Clock, EffectKind, Event, GraphData, Outcome, Program,
    PromptAgent, PromptTemplate, Runner, StepData, StepKind, SystemClock, Team,
};
use coral_llm::{Reply, ScriptedModel};
use coral_mcp::{AuditKey, FileAudit, Permissions, Sandbox, Servers, check_audit};
use serde_json::{Value, json};

type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// What the agent may do: work on the repository, but for the workflows that its host would run; and
/// nothing is committed that a person did not see.
const PERMISSIONS: &str = r#"
permission_model:
  agents:
    maintainer:
      mcp_servers: ["filesystem", "git"]
      operations: ["read", "write"]
      paths: ["/project"]
      after_untrusted: allow
      deny:
        - paths: ["/project/.github"]
          operations: ["write"]
      ask:
        - tools: ["git__git_commit"]
  security_policies: [no_system_access, audit_all_operations]
servers:
  git: { write: ["/project"], read: [READ] }
"#;

fn main() -> Done {
    // Makes this program the helper that starts servers in the OS sandbox, too.
    coral_mcp::sandbox_hook();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work())
}

async fn work() -> Done {
    let out = PathBuf::from("target/example-tools");
    let repository = repository(&out)?;
    let key = AuditKey::generate();
    let verifying_key = key.verifying_key();
    let audit = Arc::new(FileAudit::signed(out.join("audit.jsonl"), key)?);
    let (permissions, servers) = servers()?;
    let tools = Sandbox::builder()
        .permissions(Permissions::from_yaml(&permissions, "permissions.yaml")?)
        .root(&repository)
        .filesystem()
        .servers(servers)
        .audit(Arc::clone(&audit))
        .build()
        .await?;

    let report =
        r#"{"summary": "The notes are committed.", "deliverables": [], "decisions": [], "next_tasks": []}"#;
    let model = ScriptedModel::new()
        .reply(Reply::call("filesystem__write_file", json!({"path": "NOTES.md", "content": "# Notes\n"})))
        .reply(Reply::call(
            "filesystem__write_file",
            json!({"path": ".github/workflows/x.yml", "content": "on: push"}),
        ))
        .reply(Reply::call("git__git_add", json!({"repo_path": ".", "files": ["NOTES.md"]})))
        .reply(Reply::call("git__git_commit", json!({"repo_path": ".", "message": "Take notes"})))
        .reply(Reply::call("git__git_log", json!({"repo_path": "."})))
        .reply(report);
    let runner = Runner::builder().model(model).tools(tools).build();
    let run = runner.start(&program()?, Brief { text: "Take notes.".into(), ..Brief::default() }).await?;

    let mut events = run.events(1);
    while let Some(record) = events.next().await {
        match record?.event {
            Event::EffectIntended { effect: EffectKind::Tool, label, .. } => println!("{label}"),
            Event::EffectDone { outcome: Outcome::Err(error), .. } => println!("  {error}"),
            Event::QuestionAsked { question, .. } => {
                let asked: ApprovalRequest = question.question.get()?;
                println!(
                    "  may `{}` call {} with {}? ({})",
                    asked.agent, asked.tool, asked.arguments, asked.reason
                );
                run.answer(&question.id, ApprovalAnswer { approved: true, reason: None }, "ann").await?;
            }
            _ => {}
        }
    }
    println!("{}", run.output().await?["work"]["summary"]);
    drop(runner);

    assert!(!repository.join(".github").exists(), "the denied call changed nothing");
    let log = git(&repository, &["log", "--format=%s"])?;
    assert_eq!(log, "Take notes\nBegin\n", "the approved call was made");

    audit.checkpoint(SystemClock.now_ms())?;
    let text = std::fs::read_to_string(out.join("audit.jsonl"))?;
    let check = check_audit(&text, &verifying_key, None)?;
    assert!(check.is_intact() && check.unsigned() == 0, "{:?}", check.problems);
    println!("the audit of {} records is intact", check.records);
    let forged = text.replacen("\"deny\"", "\"allow\"", 1);
    let check = check_audit(&forged, &verifying_key, None)?;
    println!("a forged one is not: {}", check.problems.join("; "));
    assert!(!check.is_intact());
    Ok(())
}

fn program() -> Done<Program<Brief, Value>> {
    let spec = AgentSpec {
        prompt: PromptTemplate { task_template: "{{ brief.text }}".into(), ..PromptTemplate::default() },
        ..AgentSpec::new("maintainer", "Maintainer")
    };
    let graph = GraphData {
        name: "notes".into(),
        steps: vec![StepData::new("work", StepKind::Agent("maintainer".into()))],
        ..GraphData::default()
    };
    Ok(Program::from_graph(graph, &Team::new().with_agent(PromptAgent::new(spec)?))?)
}

/// The permissions and the servers, by where `tests/setup/mcp.sh` put them.
fn servers() -> Done<(String, Servers)> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let installed = std::path::absolute(target.join("mcp-servers/python"))?;
    let server = installed.join("bin/mcp-server-git");
    if !server.exists() {
        return Err(format!("`{}` is missing: run `sh tests/setup/mcp.sh` first", server.display()).into());
    }
    // Python's own files lie elsewhere than the environment that the server is installed in.
    let code = "import sys; print(sys.base_prefix)";
    let prefix = Command::new(installed.join("bin/python")).args(["-c", code]).output()?.stdout;
    let read = [installed.display().to_string(), String::from_utf8(prefix)?.trim().to_owned()];
    let read: Vec<String> =
        read.iter().filter(|path| *path != "/usr").map(|path| json!(path).to_string()).collect();
    let permissions = PERMISSIONS.replace("READ", &read.join(", "));
    Ok((permissions, Servers::default().stdio("git", server.display().to_string(), Vec::<String>::new())?))
}

/// A new repository with one commit.
fn repository(out: &Path) -> Done<PathBuf> {
    let repository = out.join("repository");
    if out.exists() {
        std::fs::remove_dir_all(out)?;
    }
    std::fs::create_dir_all(&repository)?;
    git(&repository, &["init", "--quiet", "--initial-branch=main"])?;
    git(&repository, &["config", "user.name", "Ann"])?;
    git(&repository, &["config", "user.email", "ann@example.invalid"])?;
    git(&repository, &["commit", "--quiet", "--allow-empty", "--message=Begin"])?;
    Ok(repository)
}

fn git(repository: &Path, args: &[&str]) -> Done<String> {
    let output = Command::new("git").args(args).current_dir(repository).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
