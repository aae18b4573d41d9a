//! The built-in server that runs programs.

use std::time::Duration;

use coral_core::{CallContext, Caller, ToolCall, ToolFault, Toolbox};
use coral_mcp::Commands;
use serde_json::json;

use crate::desk::Desk;

const PERMISSIONS: &str = r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["commands"]
      operations: ["execute"]
      paths: ["/project/src"]
    lister:
      mcp_servers: ["commands"]
      operations: ["execute"]
      paths: ["/project"]
      arguments: { program: ["ls"] }
  security_policies: [no_system_access]
servers:
  commands: { write: ["/project/src"] }
"#;

async fn desk() -> Desk {
    let commands = ["echo", "ls", "cat", "touch", "sleep", "false", "head"]
        .into_iter()
        .try_fold(Commands::new(), |commands, name| commands.allow(name))
        .unwrap();
    Desk::with(PERMISSIONS, |b| b.commands(commands).helper(env!("CARGO_BIN_EXE_coral-jail"))).await
}

#[tokio::test]
async fn programs_run_in_the_project_and_tell_their_end() {
    let desk = desk().await;
    let run = |arguments| desk.call("dev", "commands__run", arguments);
    let said = Desk::ok(run(json!({"program": "cat", "args": ["main.rs"], "cwd": "src"})).await);
    assert_eq!(said, "exit code 0\n--- stdout\nfn main() {}\n");
    Desk::ok(run(json!({"program": "touch", "args": ["new.rs"], "cwd": "/project/src"})).await);
    assert!(desk.project().join("src/new.rs").exists());
    assert_eq!(Desk::failed(run(json!({"program": "false", "cwd": "src"})).await), "exit code 1");
    let many = run(json!({"program": "head", "args": ["-c", "200000", "/dev/zero"], "cwd": "src"})).await;
    assert!(Desk::ok(many).ends_with("[cut off: 134464 more bytes]"));
}

#[tokio::test]
async fn nothing_in_an_argument_is_run() {
    let desk = desk().await;
    for attack in [
        "$(touch pwned)",
        "`touch pwned`",
        "; touch pwned",
        "| touch pwned",
        "&& touch pwned",
        "\ntouch pwned",
    ] {
        let said = desk
            .call("dev", "commands__run", json!({"program": "echo", "args": [attack], "cwd": "src"}))
            .await;
        assert_eq!(Desk::ok(said), format!("exit code 0\n--- stdout\n{attack}\n"));
    }
    assert!(!desk.project().join("src/pwned").exists());
    for program in ["sh", "/bin/sh", "echo; sh", "../../bin/sh"] {
        let said = desk.call("dev", "commands__run", json!({"program": program, "cwd": "src"})).await;
        assert!(Desk::failed(said).contains("not among the programs"), "{program}");
    }
    let nothing = desk.call("dev", "commands__run", json!({"program": "", "cwd": "src"})).await;
    assert!(Desk::denied(nothing).contains("not a program"));
}

#[tokio::test]
async fn programs_are_kept_inside() {
    let desk = desk().await;
    let secret = desk.outside().join("secret.txt").display().to_string();
    let run = |program: &str, args: serde_json::Value, cwd: &str| {
        desk.call("dev", "commands__run", json!({"program": program, "args": args, "cwd": cwd}))
    };
    assert!(Desk::failed(run("cat", json!([secret]), "src").await).contains("Permission denied"));
    assert!(Desk::failed(run("touch", json!(["../docs/x"]), "src").await).contains("Permission denied"));
    assert!(Desk::denied(run("ls", json!([]), "docs").await).contains("/project/docs"));
    assert!(Desk::denied(run("ls", json!([]), "../outside").await).contains("climbs"));
    std::os::unix::fs::symlink(desk.outside(), desk.project().join("src/link")).unwrap();
    assert!(Desk::failed(run("ls", json!([]), "src/link").await).contains("by a link"));
    let lister = desk.call("lister", "commands__run", json!({"program": "touch", "args": ["x"]})).await;
    assert!(Desk::denied(lister).contains("argument `program`"));
    Desk::ok(desk.call("lister", "commands__run", json!({"program": "ls"})).await);
}

#[tokio::test]
async fn a_program_ends_with_its_call() {
    let desk = desk().await;
    let call = ToolCall {
        id: "1".into(),
        name: "commands__run".into(),
        arguments: json!({"program": "sleep", "args": ["593"], "cwd": "src"}),
    };
    let cx = CallContext::new(Caller::agent("dev")).with_timeout_ms(500);
    assert_eq!(Desk::fault(desk.tools.call(&call, &cx).await), ToolFault::Timeout);
    let sleeping = || {
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path().join("cmdline")).ok())
            .any(|line| line.ends_with("593\x00"))
    };
    let gone = async {
        while sleeping() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
}
