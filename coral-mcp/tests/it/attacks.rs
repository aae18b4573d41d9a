//! Attacks on the project's files by an agent that may read and write `src`, and always does what
//! the attacker says. None succeeds, and each leaves its trace.

use std::os::unix::fs::symlink;

use coral_mcp::Verdict;
use serde_json::{Value, json};

use crate::desk::{Desk, PERMISSIONS, snapshot};

const AGENT: &str = "backend_developer";

/// Tries every tool with `path` in the place of each path; nothing outside of `src` and `tests`
/// may be read or changed.
async fn assault(desk: &Desk, path: &str) {
    let before = snapshot(&desk.outside());
    let others = snapshot(&desk.project().join("docs"));
    let calls: Vec<(&str, Value)> = vec![
        ("read_file", json!({"path": path})),
        ("read_multiple_files", json!({"paths": ["src/main.rs", path]})),
        ("write_file", json!({"path": path, "content": "pwned"})),
        ("edit_file", json!({"path": path, "edits": [{"oldText": "SECRET", "newText": "pwned"}]})),
        ("create_directory", json!({"path": path})),
        ("list_directory", json!({"path": path})),
        ("directory_tree", json!({"path": path})),
        ("search_files", json!({"path": path, "text": "SECRET"})),
        ("get_file_info", json!({"path": path})),
        ("move_file", json!({"source": path, "destination": "src/stolen"})),
        ("move_file", json!({"source": "src/main.rs", "destination": path})),
    ];
    for (tool, arguments) in calls {
        let recorded = desk.audit.records().len();
        let result = desk.call(AGENT, &format!("filesystem__{tool}"), arguments.clone()).await;
        let said = match &result {
            Ok(output) => output.content.clone(),
            Err(error) => error.to_string(),
        };
        assert!(!said.contains("TOP SECRET"), "{tool} {arguments}: {said}");
        assert!(!said.contains("secret.txt ("), "{tool} {arguments}: {said}");
        assert!(desk.audit.records().len() > recorded, "{tool} {arguments} left no trace");
        assert_eq!(snapshot(&desk.outside()), before, "{tool} {arguments}");
        assert_eq!(snapshot(&desk.project().join("docs")), others, "{tool} {arguments}");
    }
    assert_eq!(desk.read("src/main.rs"), "fn main() {}\n");
}

#[tokio::test]
async fn traversal() {
    let desk = Desk::new(PERMISSIONS).await;
    for path in [
        "../outside/secret.txt",
        "src/../../outside/secret.txt",
        "src/../docs/plan.md",
        "/project/src/../../outside/secret.txt",
        "src/..",
        "src/./../../outside",
        "src\\..\\..\\outside\\secret.txt",
        "src/%2e%2e/%2e%2e/outside/secret.txt",
        "src/..%2f..%2foutside",
        "src/. ./x",
    ] {
        assault(&desk, path).await;
    }
    assert_eq!(desk.decided(Verdict::Allow), 0);
}

#[tokio::test]
async fn absolute_paths() {
    let desk = Desk::new(PERMISSIONS).await;
    let secret = desk.outside().join("secret.txt").display().to_string();
    for path in [
        secret.as_str(),
        "/etc/passwd",
        "/",
        "//",
        "~/.ssh/id_rsa",
        "~root",
        "file:///etc/passwd",
        "/proc/self/environ",
    ] {
        assault(&desk, path).await;
    }
    assert_eq!(desk.decided(Verdict::Allow), 0);
}

#[tokio::test]
async fn sibling_prefix() {
    let desk = Desk::new(PERMISSIONS).await;
    for path in ["srcx/other.rs", "/project/srcx", "src2", "Src/main.rs", "/projectx/src/main.rs"] {
        assault(&desk, path).await;
    }
    assert_eq!(desk.decided(Verdict::Allow), 0);
    assert_eq!(desk.read("srcx/other.rs"), "// other\n");
}

#[tokio::test]
async fn nul_and_unicode_tricks() {
    let desk = Desk::new(PERMISSIONS).await;
    for path in [
        "src/main.rs\0.txt",
        "src/\u{202e}sr.niam",
        "src/ma\u{200b}in.rs",
        "src\u{feff}/main.rs",
        "src/\u{e002e}\u{e002e}/x",
        "src/a\nb",
    ] {
        assault(&desk, path).await;
    }
    assert_eq!(desk.decided(Verdict::Allow), 0);
}

#[tokio::test]
async fn symbolic_links() {
    let desk = Desk::new(PERMISSIONS).await;
    let (src, outside) = (desk.project().join("src"), desk.outside());
    symlink(outside.join("secret.txt"), src.join("file")).unwrap();
    symlink(&outside, src.join("dir")).unwrap();
    symlink("../docs/plan.md", src.join("inner")).unwrap();
    symlink("../docs", src.join("innerdir")).unwrap();
    symlink(outside.join("none"), src.join("dangling")).unwrap();
    symlink("/proc/self/root", src.join("proc")).unwrap();
    symlink("loop", src.join("loop")).unwrap();
    for path in [
        "src/file",
        "src/dir",
        "src/dir/secret.txt",
        "src/dir/new",
        "src/inner",
        "src/innerdir/plan.md",
        "src/innerdir/new.md",
        "src/dangling",
        "src/dangling/x",
        "src/proc/etc/passwd",
        "src/loop",
    ] {
        assault(&desk, path).await;
    }
    let tree = Desk::ok(desk.call(AGENT, "filesystem__directory_tree", json!({"path": "src"})).await);
    assert!(!tree.contains("secret.txt") && !tree.contains("plan.md"), "{tree}");
    let found = desk.call(AGENT, "filesystem__search_files", json!({"path": "src", "text": "first"})).await;
    assert_eq!(Desk::ok(found), "nothing found");
}

#[tokio::test]
async fn hard_links() {
    let desk = Desk::new(PERMISSIONS).await;
    std::fs::hard_link(desk.outside().join("secret.txt"), desk.project().join("src/linked")).unwrap();
    assault(&desk, "src/linked").await;
    let read = desk.call(AGENT, "filesystem__read_file", json!({"path": "src/linked"})).await;
    assert!(Desk::failed(read).contains("hard links"));
}

#[tokio::test]
async fn a_link_where_the_temporary_file_goes() {
    let desk = Desk::new(PERMISSIONS).await;
    symlink(desk.outside().join("secret.txt"), desk.project().join("src/.x.rs.coral-tmp")).unwrap();
    let write = json!({"path": "src/x.rs", "content": "mine"});
    Desk::ok(desk.call(AGENT, "filesystem__write_file", write).await);
    assert_eq!(desk.read("src/x.rs"), "mine");
    assert_eq!(std::fs::read_to_string(desk.outside().join("secret.txt")).unwrap(), "TOP SECRET");
    assault(&desk, "src/.x.rs.coral-tmp").await;
}

#[tokio::test]
async fn a_pipe_does_not_hold_the_call_up() {
    let desk = Desk::new(PERMISSIONS).await;
    let pipe = desk.project().join("src/pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let read = desk.call(AGENT, "filesystem__read_file", json!({"path": "src/pipe"})).await;
    assert!(Desk::failed(read).contains("neither a file nor a directory"));
}

/// A directory is swapped with a link to the outside, over and over, while the agent reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_between_check_and_use() {
    let desk = Desk::new(PERMISSIONS).await;
    let src = desk.project().join("src");
    std::fs::create_dir(src.join("real")).unwrap();
    std::fs::write(src.join("real/secret.txt"), "harmless").unwrap();
    let outside = desk.outside();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut harmless = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::fs::rename(src.join("real"), src.join("spot")).unwrap();
                std::fs::rename(src.join("spot"), src.join("real")).unwrap();
                symlink(&outside, src.join("spot")).unwrap();
                std::fs::remove_file(src.join("spot")).unwrap();
            }
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                for _ in 0..2_000 {
                    let read = desk
                        .call(AGENT, "filesystem__read_file", json!({"path": "src/spot/secret.txt"}))
                        .await;
                    let said = read.unwrap().content;
                    assert!(!said.contains("TOP SECRET"));
                    harmless += usize::from(said == "harmless");
                }
            });
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(harmless > 0, "the race was never on");
}

/// What Git runs is executed, whoever writes it: a look at the repository is enough.
#[tokio::test]
async fn a_write_does_not_become_an_execution_by_git() {
    let desk = Desk::new(PERMISSIONS).await;
    std::fs::create_dir_all(desk.project().join("src/nested/.git/hooks")).unwrap();
    std::fs::create_dir_all(desk.project().join("src/plain/deep")).unwrap();
    for (tool, arguments) in [
        ("write_file", json!({"path": "src/.git/config", "content": "[core]\nfsmonitor = x"})),
        ("write_file", json!({"path": "src/.git", "content": "gitdir: elsewhere"})),
        ("write_file", json!({"path": "src/x/.GIT/hooks/post-checkout", "content": "x"})),
        ("create_directory", json!({"path": "src/.git"})),
        ("edit_file", json!({"path": "src/nested/.git/config", "edits": []})),
        ("move_file", json!({"source": "src/main.rs", "destination": "src/.git/config"})),
        ("move_file", json!({"source": "src/plain", "destination": "src/.git"})),
        ("move_file", json!({"source": "src/nested/.git", "destination": "src/g"})),
        ("move_file", json!({"source": "src/nested", "destination": "src/other"})),
    ] {
        let denied = Desk::denied(desk.call(AGENT, &format!("filesystem__{tool}"), arguments.clone()).await);
        assert!(denied.contains("operation `execute`"), "{tool} {arguments}: {denied}");
    }
    assert!(!desk.project().join("src/.git").exists());
    for (tool, arguments) in [
        ("list_directory", json!({"path": "src/nested/.git"})),
        ("write_file", json!({"path": "src/.gitignore", "content": "target"})),
        ("move_file", json!({"source": "src/plain", "destination": "src/simple"})),
    ] {
        Desk::ok(desk.call(AGENT, &format!("filesystem__{tool}"), arguments).await);
    }
}

#[tokio::test]
async fn paths_where_none_are_expected() {
    let desk = Desk::new(PERMISSIONS).await;
    for (tool, arguments) in [
        ("read_file", json!({"path": ["src/main.rs", "../outside/secret.txt"]})),
        ("read_file", json!({"path": {"path": "../outside/secret.txt"}})),
        ("read_file", json!({"path": "src/main.rs", "Path": "../outside/secret.txt"})),
        ("read_multiple_files", json!({"paths": [["../outside/secret.txt"]]})),
        ("read_multiple_files", json!({"paths": "../outside/secret.txt"})),
        ("move_file", json!({"source": "src/main.rs", "destination": null})),
        ("list_directory", json!({})),
        ("list_directory", json!({"path": null})),
    ] {
        let result = desk.call(AGENT, &format!("filesystem__{tool}"), arguments.clone()).await;
        assert!(result.is_err(), "{tool} {arguments}: {result:?}");
    }
    assert_eq!(desk.read("src/main.rs"), "fn main() {}\n");
}
