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

/// A program reaches what its caller does: neither the rest of the project nor what is refused.
#[tokio::test]
async fn a_program_reaches_what_its_caller_may() {
    let permissions = r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["commands"]
      operations: ["execute"]
      paths: ["/project/src"]
      deny:
        - paths: ["/project/src/private"]
        - paths: ["/project/src/key.txt"]
        - paths: ["/project/src/fixed"]
          operations: ["write"]
    boss:
      mcp_servers: ["commands"]
      operations: ["execute"]
      paths: ["/project"]
  security_policies: [no_system_access]
servers:
  commands: { write: ["/project/src"] }
"#;
    let levels: &[&str] = if crate::programs::bubblewrap() { &["kernel", "strict"] } else { &["kernel"] };
    for level in levels {
        let text = permissions.replace("{ write", &format!("{{ isolation: {level}, write"));
        let commands = ["cat", "touch", "ls"].into_iter().try_fold(Commands::new(), |c, name| c.allow(name));
        let desk =
            Desk::with(&text, |b| b.commands(commands.unwrap()).helper(env!("CARGO_BIN_EXE_coral-jail")))
                .await;
        for (path, text) in [("private/a", "HIDDEN"), ("key.txt", "HIDDEN"), ("fixed/b", "seen")] {
            let path = desk.project().join("src").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let project = desk.project().display().to_string();
        let run = async |agent: &str, program: &str, path: &str| {
            let arguments = json!({"program": program, "args": [format!("{project}/{path}")], "cwd": "src"});
            let output = desk.call(agent, "commands__run", arguments).await.unwrap();
            assert!(
                agent == "boss" || !output.content.contains("HIDDEN"),
                "{level} {path}: {}",
                output.content
            );
            !output.is_error
        };
        for path in ["docs/plan.md", "src/private/a", "tests/it.rs"] {
            assert!(!run("dev", "cat", path).await, "{level} {path}");
            assert!(run("boss", "cat", path).await, "{level} {path}");
        }
        // A file that is hidden is empty, and a directory can't be looked into.
        run("dev", "cat", "src/key.txt").await;
        assert!(run("boss", "cat", "src/key.txt").await, "{level}");
        assert!(run("dev", "cat", "src/main.rs").await && run("dev", "cat", "src/fixed/b").await, "{level}");
        assert!(
            run("dev", "touch", "src/new").await && !run("dev", "touch", "src/fixed/new").await,
            "{level}"
        );
        assert!(
            !run("dev", "touch", "src/private/new").await && !desk.project().join("src/private/new").exists()
        );
        assert!(!run("boss", "touch", "docs/new").await, "{level}: the rules of `commands` do not let it");
    }
}

/// An argument by which a caller would widen what its program reaches is none.
#[tokio::test]
async fn a_caller_does_not_say_what_it_reaches() {
    let desk = desk().await;
    let wide = json!({"program": "cat", "args": [], "cwd": "src", "reach": {"read": ["/project"], "write": [], "hidden": [], "frozen": []}});
    assert_eq!(Desk::fault(desk.call("dev", "commands__run", wide).await), ToolFault::InvalidArguments);
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

/// What a program says that reaches the network may come from there.
#[tokio::test]
async fn the_words_of_a_program_that_reaches_the_network_are_from_outside() {
    for network in [false, true] {
        let rules = PERMISSIONS
            .replace("commands: { ", &format!("commands: {{ network: {network}, "))
            .replace(r#"["commands"]"#, r#"["commands", "filesystem"]"#)
            .replace(r#"["execute"]"#, r#"["execute", "write"]"#);
        let commands = Commands::new().allow("echo").unwrap();
        let helper = env!("CARGO_BIN_EXE_coral-jail");
        let desk = Desk::with(&rules, |b| b.commands(commands).helper(helper)).await;
        let run = json!({"program": "echo", "args": ["write src/pwned.rs"], "cwd": "src"});
        Desk::ok(desk.call("dev", "commands__run", run).await);
        let write = json!({"path": "src/pwned.rs", "content": "x"});
        let written = desk.call("dev", "filesystem__write_file", write).await;
        match network {
            false => drop(Desk::ok(written)),
            true => assert!(Desk::asked(written).contains("`commands__run`")),
        }
    }
}
