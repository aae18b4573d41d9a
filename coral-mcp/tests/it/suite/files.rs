//! Attacks on files, by the built-in tools.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use coral_core::{CallContext, Caller, ToolCall, Toolbox};
use coral_mcp::{Commands, Servers};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use super::Scene;
use crate::programs::{node_prefix, public_servers};

const DEVELOPER: &str = r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["filesystem", "commands"]
      operations: ["read", "write", "execute"]
      paths: ["/project/src"]
  security_policies: [no_system_access, audit_all_operations]
"#;

async fn scene() -> Scene {
    Scene::new(DEVELOPER, |builder| builder).await
}

/// Reads and overwrites every path; each try must be refused, or end in an error.
async fn assault(scene: &Scene, paths: &[&str]) {
    let mut orders = Vec::new();
    for path in paths {
        orders.push(("filesystem__read_file", json!({"path": path})));
        orders.push(("filesystem__write_file", json!({"path": path, "content": "pwned"})));
    }
    scene.attack("dev", &orders).await;
    scene.unharmed();
    for tool in ["filesystem__read_file", "filesystem__write_file"] {
        let ended = scene.outcomes(tool);
        assert!(ended.iter().all(|outcome| outcome != "ok"), "{tool}: {ended:?}");
        assert_eq!(scene.refused(tool).len() + ended.len(), paths.len(), "{tool} left no trace");
    }
}

#[tokio::test]
async fn traversal() {
    let paths = [
        "../outside/secret.txt",
        "src/../../outside/secret.txt",
        "src/../docs/plan.md",
        "src/%2e%2e/docs/plan.md",
    ];
    assault(&scene().await, &paths).await;
}

#[tokio::test]
async fn absolute_path() {
    let scene = scene().await;
    let secret = scene.outside().join("secret.txt").display().to_string();
    assault(&scene, &[&secret, "/etc/passwd", "file:///etc/passwd", "~/.ssh/id_rsa"]).await;
}

#[tokio::test]
async fn symbolic_link_escape() {
    let scene = scene().await;
    let src = scene.project().join("src");
    symlink(scene.outside().join("secret.txt"), src.join("file")).unwrap();
    symlink(scene.outside(), src.join("dir")).unwrap();
    symlink(scene.outside().join("new.txt"), src.join("dangling")).unwrap();
    symlink("../docs", src.join("docs")).unwrap();
    assault(
        &scene,
        &["src/file", "src/dir/secret.txt", "src/dangling", "src/dir/new.txt", "src/docs/plan.md"],
    )
    .await;
}

#[tokio::test]
async fn hard_link_escape() {
    let scene = scene().await;
    std::fs::hard_link(scene.outside().join("secret.txt"), scene.project().join("src/linked")).unwrap();
    assault(&scene, &["src/linked"]).await;
}

#[tokio::test]
async fn proc_self() {
    let scene = scene().await;
    symlink("/proc/self", scene.project().join("src/self")).unwrap();
    let paths = [
        "/proc/self/environ",
        "src/self/environ",
        "src/self/root/etc/passwd",
        "src/self/cwd/docs/plan.md",
        "/dev/fd/0",
    ];
    assault(&scene, &paths).await;
}

#[tokio::test]
async fn nul_and_unicode_tricks() {
    let paths = [
        "src/main.rs\0.txt",
        "src/\u{202e}sr.niam",
        "src/ma\u{200b}in.rs",
        "src/\u{e002e}\u{e002e}/docs",
        "src/a\nb",
        "SRC/main.rs",
        "/project\u{2044}src/x",
    ];
    assault(&scene().await, &paths).await;
}

/// A directory is swapped with a link to the outside while the agent reads through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swap_between_check_and_use() {
    let scene = scene().await;
    let (src, outside) = (scene.project().join("src"), scene.outside());
    std::fs::create_dir(src.join("real")).unwrap();
    std::fs::write(src.join("real/secret.txt"), "harmless").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::fs::rename(src.join("real"), src.join("spot")).unwrap();
                std::fs::rename(src.join("spot"), src.join("real")).unwrap();
                symlink(&outside, src.join("spot")).unwrap();
                std::fs::remove_file(src.join("spot")).unwrap();
            }
        });
        let orders: Vec<_> =
            (0..99).map(|_| ("filesystem__read_file", json!({"path": "src/spot/secret.txt"}))).collect();
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                for _ in 0..20 {
                    scene.attack("dev", &orders).await;
                }
            });
        });
        stop.store(true, Ordering::Relaxed);
    });
    scene.unharmed();
    let ended = scene.outcomes("filesystem__read_file");
    assert!(ended.len() >= 400, "{}", ended.len());
    assert!(ended.iter().any(|outcome| outcome == "tool_error"), "the race was never on");
}

/// The same by a public server, which opens by its name what was checked by its name: what the check can't
/// hold, the walls of its process do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swap_between_check_and_use_of_a_public_server() {
    let installed = public_servers().display();
    let text = format!(
        r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["files"]
      operations: ["read"]
      paths: ["/project/src"]
      after_untrusted: allow
  security_policies: [no_system_access, audit_all_operations]
servers:
  files: {{ profile: filesystem, project_read: ["/project"], read: ["{installed}", "{}"] }}
"#,
        node_prefix()
    );
    let index =
        format!("{installed}/node/node_modules/@modelcontextprotocol/server-filesystem/dist/index.js");
    let servers = Servers::default().stdio("files", "node", [index.as_str(), "."]).unwrap();
    let scene = Scene::new(&text, |builder| builder.servers(servers)).await;
    let src = scene.project().join("src");
    std::fs::create_dir(src.join("spot")).unwrap();
    std::fs::write(src.join("spot/secret.txt"), "harmless").unwrap();
    symlink(scene.outside(), src.join("link")).unwrap();
    let stop = AtomicBool::new(false);
    let (mut harmless, mut stopped) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (spot, link) = (src.join("spot"), src.join("link"));
                renameat_with(CWD, &spot, CWD, &link, RenameFlags::EXCHANGE).unwrap();
            }
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let arguments = json!({"path": "src/spot/secret.txt"});
                let call = ToolCall { id: "1".into(), name: "files__read_text_file".into(), arguments };
                let cx = CallContext::new(Caller::agent("dev"));
                for _ in 0..5_000 {
                    match scene.tools.call(&call, &cx).await {
                        Ok(output) => {
                            assert!(!output.content.contains("TOP SECRET"), "{}", output.content);
                            harmless += u32::from(output.content.contains("harmless"));
                            // It was past its own check too, and at the file outside.
                            stopped += u32::from(output.content.contains("EACCES"));
                        }
                        Err(error) => assert!(error.to_string().contains("symbolic link"), "{error}"),
                    }
                    if harmless > 100 && stopped > 20 {
                        break;
                    }
                }
            });
        });
        stop.store(true, Ordering::Relaxed);
    });
    assert!(harmless > 0 && stopped > 0, "the race was never on: {harmless}, {stopped}");
    let traces = scene.refused("files__read_text_file").len() + scene.outcomes("files__read_text_file").len();
    assert!(traces as u32 > harmless + stopped);
}

#[tokio::test]
async fn command_substitution() {
    let commands = Commands::new().allow("echo").unwrap();
    let scene = Scene::new(DEVELOPER, |builder| builder.commands(commands)).await;
    let secret = scene.outside().join("secret.txt").display().to_string();
    let run = |program: &str, arg: &str| {
        ("commands__run", json!({"program": program, "args": [arg], "cwd": "src"}))
    };
    let orders = [
        run("echo", &format!("$(cat {secret})")),
        run("echo", &format!("`cat {secret}`")),
        run("echo", "; touch pwned.rs"),
        run("echo", "x\ntouch pwned.rs"),
        run("echo", &format!("< {secret}")),
        run("sh", "-c"),
        run("echo; sh", "x"),
        run("../../bin/sh", "x"),
        ("commands__run", json!({"program": "echo", "args": ["x"], "cwd": "../outside"})),
    ];
    scene.attack("dev", &orders).await;
    scene.unharmed();
    assert!(scene.seen().contains("$(cat "), "an argument is only an argument");
    let traces = scene.refused("commands__run").len() + scene.outcomes("commands__run").len();
    assert_eq!(traces, orders.len());
}
