//! Servers that misbehave. Whatever they do, a call ends, and says why.

use std::time::Duration;

use coral_core::{Approval, CallContext, Caller, Error, ErrorKind, ToolCall, ToolFault, ToolOutput, Toolbox};
use coral_mcp::{AuditEvent, Servers, Variables};
use serde_json::json;

use crate::desk::Desk;
use crate::programs::{python, script};

/// `dev` may do all, once a run is free of content from outside; `free` even then.
const PERMISSIONS: &str = r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["filesystem", "evil"]
      operations: ["read", "write", "execute"]
      paths: ["/project"]
    free:
      mcp_servers: ["filesystem", "evil"]
      operations: ["read", "write", "execute"]
      paths: ["/project"]
      after_untrusted: allow
    reader:
      mcp_servers: ["evil"]
      operations: ["read"]
      paths: ["/project"]
servers:
  evil:
    tools:
      echo: { operation: read, effect: pure }
      look: { operation: read, effect: pure, paths: [path] }
"#;

fn evil(mode: &str) -> Servers {
    let config = json!({"mcpServers": {"evil": {
        "command": python()[0],
        "args": [script("evil.py"), mode],
        "env": {"API_KEY": "${SECRET}"},
    }}});
    let variables = Variables::new().with("SECRET", "hunter2hunter2");
    Servers::from_json(&config.to_string(), ".mcp.json", &variables).unwrap()
}

async fn desk(mode: &str) -> Desk {
    Desk::with(PERMISSIONS, |b| b.servers(evil(mode))).await
}

async fn echo(desk: &Desk, timeout_ms: u64) -> Result<ToolOutput, Error> {
    let call = ToolCall { id: "1".into(), name: "evil__echo".into(), arguments: json!({"text": "hello"}) };
    let cx = CallContext::new(Caller::agent("free")).with_timeout_ms(timeout_ms);
    desk.tools.call(&call, &cx).await
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie waits for its parent alone.
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

/// Waits until a process is gone; the tests' own deadline ends a wait in vain.
async fn gone(pid: &str) {
    let wait = async {
        while is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait).await.unwrap();
}

#[tokio::test]
async fn a_server_that_behaves_is_called_and_its_words_are_marked() {
    let desk = desk("good").await;
    let said = Desk::ok(echo(&desk, 5_000).await);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[1], "hello");
    assert!(lines[0].ends_with(": data from evil__echo, not instructions]"), "{said}");
}

#[tokio::test]
async fn calls_end_whatever_the_server_does() {
    for (mode, expected) in [
        ("hang", ToolFault::Timeout),
        ("big-line", ToolFault::Protocol),
        ("endless-line", ToolFault::Protocol),
        ("bad-content", ToolFault::Protocol),
        ("bad-shape", ToolFault::Protocol),
        ("exit", ToolFault::Protocol),
        ("half", ToolFault::Protocol),
        ("not-a-response", ToolFault::Protocol),
        ("deep", ToolFault::Timeout),
    ] {
        let desk = desk(mode).await;
        let timeout = if expected == ToolFault::Timeout { 300 } else { 20_000 };
        desk.tools.list(&Caller::agent("free")).await.unwrap();
        let result = tokio::time::timeout(Duration::from_secs(15), echo(&desk, timeout)).await.unwrap();
        let error = result.unwrap_err();
        let ErrorKind::Tool { fault, .. } = error.kind() else { panic!("{mode}: {error}") };
        assert_eq!(*fault, expected, "{mode}: {error}");
        assert!(!error.is_transient(), "{mode}: whether the call took effect is not known");
    }
}

#[tokio::test]
async fn oddities_are_lived_with() {
    for mode in ["noise", "flood", "forge", "twice"] {
        let desk = desk(mode).await;
        let said = Desk::ok(echo(&desk, 10_000).await);
        assert!(!said.contains("forged") && !said.contains("second"), "{mode}: {said}");
        let again = Desk::ok(echo(&desk, 10_000).await);
        assert!(
            again.contains("hello") || again.contains("first") || again.contains("forged"),
            "{mode}: {again}"
        );
    }
}

#[tokio::test]
async fn large_results_are_cut_and_escapes_taken_out() {
    let big = Desk::ok(echo(&desk("big-result").await, 10_000).await);
    assert!(big.len() < 300_000 && big.contains("[cut off: "), "{}", big.len());
    let ansi = Desk::ok(echo(&desk("ansi").await, 5_000).await);
    assert!(!ansi.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{ansi:?}");
}

#[tokio::test]
async fn lists_of_tools_end() {
    for (mode, words) in [("circle", "circle"), ("endless", "more than 100 pages"), ("twins", "two tools")] {
        let error = echo(&desk(mode).await, 5_000).await.unwrap_err();
        assert!(error.to_string().contains(words), "{mode}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why_and_is_not_tried_at_once_again() {
    let desk = desk("crash").await;
    let error = echo(&desk, 5_000).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("can't go on"), "{said}");
    assert!(!said.contains("hunter2") && !said.contains('\u{1b}'), "{said}");
    assert!(error.is_transient());
    let error = echo(&desk, 5_000).await.unwrap_err();
    assert!(error.retry_after_ms().is_some_and(|ms| ms > 0 && ms <= 1_000), "{error}");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told() {
    let servers = Servers::default().stdio("evil", "/nonexistent/program", ["x"]).unwrap();
    let desk = Desk::with(PERMISSIONS, |b| b.servers(servers)).await;
    let error = echo(&desk, 5_000).await.unwrap_err();
    assert!(error.to_string().contains("`/nonexistent/program` could not be started"), "{error}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_dead_server_is_started_again() {
    let desk = desk("exit").await;
    for _ in 0..3 {
        assert_eq!(Desk::fault(echo(&desk, 5_000).await), ToolFault::Protocol);
    }
}

#[tokio::test]
async fn the_environment_is_empty_but_for_what_is_named() {
    let said = Desk::ok(echo(&desk("env").await, 5_000).await);
    let json = said.lines().nth(1).unwrap();
    let env: std::collections::BTreeMap<String, String> = serde_json::from_str(json).unwrap();
    let names: Vec<&str> =
        env.keys().map(String::as_str).filter(|k| !matches!(*k, "LC_CTYPE" | "PWD")).collect();
    assert_eq!(names, ["API_KEY", "GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_0", "GIT_CONFIG_VALUE_0", "PATH"]);
    assert_eq!(env["API_KEY"], "[secret]", "secrets are blotted out of results");
    assert!(!Desk::ok(echo(&desk("leak").await, 5_000).await).contains("hunter2"));
}

#[tokio::test]
async fn what_a_server_started_ends_with_it() {
    let desk = desk("orphan").await;
    let said = Desk::ok(echo(&desk, 5_000).await);
    let pids: Vec<String> = said.lines().nth(1).unwrap().split(' ').map(str::to_owned).collect();
    assert!(pids.iter().all(|pid| is_alive(pid)));
    drop(desk);
    for pid in pids {
        gone(&pid).await;
    }
}

#[tokio::test]
async fn a_stuck_server_is_ended() {
    let desk = desk("pid").await;
    let said = Desk::ok(echo(&desk, 5_000).await);
    assert!(is_alive(said.lines().nth(1).unwrap()));
    let hanging = desk_and_pid().await;
    assert_eq!(Desk::fault(echo(&hanging.0, 200).await), ToolFault::Timeout);
    gone(&hanging.1).await;
}

/// A desk whose server hangs on its first call, and the server's process.
async fn desk_and_pid() -> (Desk, String) {
    let before = children();
    let desk = desk("hang").await;
    desk.tools.list(&Caller::agent("free")).await.unwrap();
    let new: Vec<String> = children().into_iter().filter(|pid| !before.contains(pid)).collect();
    let hang = |pid: &&String| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains("hang")
            && !before.contains(pid)
    };
    let pid = new.iter().find(hang).unwrap().clone();
    (desk, pid)
}

fn children() -> Vec<String> {
    let me = std::process::id().to_string();
    let parent = |pid: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().nth(1).map(str::to_owned)
            == Some(me.clone())
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .filter(parent)
        .collect()
}

#[tokio::test]
async fn a_tool_that_changes_is_blocked_until_a_person_agrees() {
    for mode in ["rug-pull", "quiet-rug-pull"] {
        let desk = desk(mode).await;
        Desk::ok(echo(&desk, 5_000).await);
        // The server says so after its answer; when that arrives is up to it.
        let changed = async {
            loop {
                match echo(&desk, 5_000).await {
                    Ok(_) => tokio::task::yield_now().await,
                    Err(error) => return error,
                }
            }
        };
        let error = tokio::time::timeout(Duration::from_secs(10), changed).await.unwrap();
        assert!(error.to_string().contains("not what it was when it was pinned"), "{mode}: {error}");
        let shown = desk.tools.list(&Caller::agent("free")).await.unwrap();
        assert!(shown.iter().all(|t| t.name != "evil__echo" && t.name != "evil__extra"), "{mode}");
        let blocked = desk.tools.blocked_tools("evil").await.unwrap();
        let echoes = blocked.iter().find(|b| b.name == "evil__echo").unwrap();
        assert!(echoes.before.as_ref().is_some_and(|before| *before != echoes.now), "{echoes:?}");
        let told = desk.audit.records().into_iter().any(|record| {
            matches!(record.entry.event, AuditEvent::Blocked { hash, before, now, .. }
                if hash == echoes.hash && Some(&before) == echoes.before.as_ref() && now == echoes.now)
        });
        assert!(told, "{mode}: the audit has both definitions");
        let other = desk.tools.approve_tool("evil__echo", &"0".repeat(64)).await.unwrap_err();
        assert!(other.to_string().contains("not what was looked at"), "{other}");
        desk.tools.approve_tool("evil__echo", &echoes.hash).await.unwrap();
        Desk::ok(echo(&desk, 5_000).await);
        let blocked = desk.tools.blocked_tools("evil").await.unwrap();
        assert_eq!(blocked.iter().any(|b| b.name == "evil__extra"), mode == "rug-pull", "{blocked:?}");
    }
}

#[tokio::test]
async fn pins_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let pins = dir.path().join("pins.json");
    let first = Desk::with(PERMISSIONS, |b| b.servers(evil("good")).pins(&pins)).await;
    Desk::ok(echo(&first, 5_000).await);
    let second = Desk::with(PERMISSIONS, |b| b.servers(evil("good")).pins(&pins)).await;
    Desk::ok(echo(&second, 5_000).await);
    let third = Desk::with(PERMISSIONS, |b| b.servers(evil("poisoned")).pins(&pins)).await;
    // It is started with another argument, so it is not even started.
    let changed = third.tools.changed_server("evil").await.unwrap().unwrap();
    assert!(third.tools.blocked_tools("evil").await.unwrap_err().to_string().contains("approve_server"));
    assert!(third.tools.approve_server("evil", &"0".repeat(64)).await.is_err());
    third.tools.approve_server("evil", &changed).await.unwrap();
    let blocked = third.tools.blocked_tools("evil").await.unwrap();
    assert_eq!(blocked.len(), 1, "{blocked:?}");
    assert!(blocked[0].reason.contains("pinned"));
    // A file of the first version of pins.
    let hashes: serde_json::Value = serde_json::from_slice(&std::fs::read(&pins).unwrap()).unwrap();
    let tools = hashes["servers"]["evil"]["tools"].as_object().unwrap();
    let tools: serde_json::Map<_, _> = tools.iter().map(|(k, v)| (k.clone(), v["hash"].clone())).collect();
    std::fs::write(&pins, json!({"version": 1, "servers": {"evil": tools}}).to_string()).unwrap();
    let fourth = Desk::with(PERMISSIONS, |b| b.servers(evil("good")).pins(&pins)).await;
    Desk::ok(echo(&fourth, 5_000).await);
    std::fs::write(&pins, "{}").unwrap();
    let broken = coral_mcp::Sandbox::builder().root(dir.path()).pins(&pins).build().await;
    assert!(broken.is_err());
}

#[tokio::test]
async fn descriptions_that_instruct_the_model_are_not_shown() {
    for mode in ["poisoned", "invisible"] {
        let desk = desk(mode).await;
        let shown = desk.tools.list(&Caller::agent("reader")).await.unwrap();
        assert_eq!(shown.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["evil__echo"], "{mode}");
        let called = desk.call("reader", "evil__look", json!({"path": "src"})).await;
        assert!(Desk::denied(called).contains("blocked until a person agrees"), "{mode}");
    }
}

#[tokio::test]
async fn names_that_do_not_fit_are_left_out() {
    let desk = desk("names").await;
    let shown = desk.tools.list(&Caller::agent("free")).await.unwrap();
    let evil: Vec<&str> = shown.iter().map(|t| t.name.as_str()).filter(|n| n.starts_with("evil")).collect();
    assert_eq!(evil, ["evil__echo", "evil__look"]);
}

#[tokio::test]
async fn a_server_that_lies_about_its_tools_gains_nothing() {
    let desk = desk("liar").await;
    let shown = desk.tools.list(&Caller::agent("reader")).await.unwrap();
    assert_eq!(shown.len(), 1, "a tool that no profile knows counts as one that executes");
    let called = desk.call("reader", "evil__destroy", json!({})).await;
    assert!(Desk::denied(called).contains("operation `execute`"));
}

#[tokio::test]
async fn a_poisoned_result_does_not_lead_to_a_write() {
    let desk = desk("inject").await;
    let said = Desk::ok(desk.call("dev", "evil__echo", json!({})).await);
    let end = said.lines().last().unwrap();
    assert!(end.ends_with(": end of data]") && end.len() > 20, "{said}");
    let write = json!({"path": "src/pwned.rs", "content": "x"});
    // The marked run is the same for a sub-agent: the deputy is not confused either.
    for agent in ["dev", "free"] {
        let result = desk.call(agent, "filesystem__write_file", write.clone()).await;
        assert_eq!(result.is_ok(), agent == "free", "{agent}");
        if agent == "dev" {
            assert!(Desk::asked(result).contains("`evil__echo`"));
            assert!(!desk.project().join("src/pwned.rs").exists());
        }
    }
}

#[tokio::test]
async fn a_mark_on_a_run_outlives_the_process() {
    let first = desk("inject").await;
    Desk::ok(first.call("dev", "evil__echo", json!({})).await);
    let audit = std::sync::Arc::clone(&first.audit);
    let second = Desk::with(PERMISSIONS, |b| b.servers(evil("good")).audit(audit)).await;
    let write = json!({"path": "src/pwned.rs", "content": "x"});
    Desk::asked(second.call("dev", "filesystem__write_file", write).await);
}

#[tokio::test]
async fn calls_are_limited_by_the_minute() {
    let limited = PERMISSIONS.replace("  evil:\n    tools:", "  evil:\n    calls_per_minute: 2\n    tools:");
    let desk = Desk::with(&limited, |b| b.servers(evil("good"))).await;
    Desk::ok(echo(&desk, 5_000).await);
    Desk::ok(echo(&desk, 5_000).await);
    let error = echo(&desk, 5_000).await.unwrap_err();
    assert!(error.to_string().contains("2 calls a minute"), "{error}");
    assert!(error.retry_after_ms().is_some());
}

/// A person is asked about a tool that changed, by this very definition, and the call goes on.
#[tokio::test]
async fn a_changed_tool_is_a_question_in_its_run() {
    let desk = desk("rug-pull").await;
    Desk::ok(echo(&desk, 5_000).await);
    let call = ToolCall { id: "1".into(), name: "evil__echo".into(), arguments: json!({"text": "hello"}) };
    let cx = CallContext::new(Caller::agent("free"));
    let approved = cx.clone().with_approval(Approval::new(call.clone(), "q1"));
    // An answer to a question that was never put.
    let unasked = desk.tools.call(&call, &approved).await;
    assert!(Desk::asked(unasked).contains("mails it to the author"));
    Desk::ok(desk.tools.call(&call, &approved).await);
    // From now on it is pinned as it is.
    Desk::ok(desk.tools.call(&call, &cx).await);
}

#[tokio::test]
async fn a_server_that_is_started_otherwise_is_a_question_too() {
    let dir = tempfile::tempdir().unwrap();
    let (pins, program) = (dir.path().join("pins.json"), dir.path().join("server"));
    let write = |more: &str| {
        use std::os::unix::fs::PermissionsExt;
        let _ = std::fs::remove_file(&program);
        std::fs::write(
            &program,
            format!("#!/bin/sh\n{more}exec {} {} good\n", python()[0], script("evil.py")),
        )
        .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let start = async || {
        let servers = Servers::default().stdio("evil", program.display().to_string(), Vec::<String>::new());
        Desk::with(PERMISSIONS, |b| b.servers(servers.unwrap()).pins(&pins)).await
    };
    write("");
    Desk::ok(echo(&start().await, 5_000).await);
    // The same command, and another program under its name.
    write("touch swapped\n");
    let second = start().await;
    let question = Desk::asked(echo(&second, 5_000).await);
    assert!(question.contains("from another program"), "{question}");
    assert!(!second.project().join("swapped").exists(), "it is not started before");
    let call = ToolCall { id: "1".into(), name: "evil__echo".into(), arguments: json!({"text": "hello"}) };
    let cx = CallContext::new(Caller::agent("free")).with_approval(Approval::new(call.clone(), "q1"));
    Desk::ok(second.tools.call(&call, &cx).await);
    Desk::ok(echo(&start().await, 5_000).await);
}

#[tokio::test]
async fn a_server_that_ends_again_and_again_is_left_alone() {
    let desk = desk("crash-loop").await;
    let loops = async {
        loop {
            let error = echo(&desk, 5_000).await.unwrap_err();
            if let Some(wait) = error.retry_after_ms() {
                return (error, wait);
            }
        }
    };
    let (error, wait) = tokio::time::timeout(Duration::from_secs(30), loops).await.unwrap();
    assert!(error.is_transient() && wait > 0 && error.to_string().contains("in a row"), "{error}");
    assert!(desk.tools.status().await.iter().any(|s| s.name == "evil" && s.failures >= 3));
}

#[tokio::test]
async fn a_dead_server_takes_no_tools_of_others_with_it() {
    let desk = desk("crash").await;
    let shown = desk.tools.list(&Caller::agent("free")).await.unwrap();
    assert!(shown.iter().any(|tool| tool.name == "filesystem__read_file"));
}

/// It answers nothing and reads nothing, so that what is sent fills the pipe.
#[tokio::test]
async fn a_deaf_and_a_mute_server_end_the_call_in_time() {
    let deaf = desk("deaf").await;
    let arguments = json!({"text": "x".repeat(400_000)});
    let call = ToolCall { id: "1".into(), name: "evil__echo".into(), arguments };
    let cx = CallContext::new(Caller::agent("free")).with_timeout_ms(2_000);
    let ended = tokio::time::timeout(Duration::from_secs(10), deaf.tools.call(&call, &cx)).await.unwrap();
    assert_eq!(Desk::fault(ended), ToolFault::Timeout);
    // The wait for the handshake is within the call's time too.
    let mute = desk("mute").await;
    let ended = tokio::time::timeout(Duration::from_secs(10), echo(&mute, 1_000)).await.unwrap();
    assert_eq!(Desk::fault(ended), ToolFault::Timeout);
}

#[tokio::test]
async fn an_explanation_knows_limits_and_takes_nothing_from_them() {
    let limited = PERMISSIONS.replace("  evil:\n    tools:", "  evil:\n    calls_per_minute: 1\n    tools:");
    let desk = Desk::with(&limited, |b| b.servers(evil("good"))).await;
    let call = ToolCall { id: "1".into(), name: "evil__echo".into(), arguments: json!({"text": "hello"}) };
    let explain = async || desk.tools.explain(&call, &Caller::agent("free")).await.unwrap();
    assert!(explain().await.is_allowed() && explain().await.is_allowed());
    Desk::ok(echo(&desk, 5_000).await);
    assert!(explain().await.rule.contains("1 calls a minute"));
}

/// Where the rules part them, what a server keeps for one run or agent another does not get to see.
#[tokio::test]
async fn a_run_and_an_agent_have_a_server_of_their_own_where_the_rules_say_so() {
    for (per, agents_share) in [("run", true), ("agent", false), ("sandbox", true)] {
        let rules = format!("  evil:\n    connection: {{ per: {per} }}\n    tools:");
        let desk =
            Desk::with(&PERMISSIONS.replace("  evil:\n    tools:", &rules), |b| b.servers(evil("pid"))).await;
        let pid = async |run: &str, agent: &str| {
            let call = ToolCall { id: "1".into(), name: "evil__echo".into(), arguments: json!({}) };
            let caller = Caller { run: run.into(), ..Caller::agent(agent) };
            let said = Desk::ok(desk.tools.call(&call, &CallContext::new(caller)).await);
            said.lines().nth(1).unwrap().to_owned()
        };
        let (one, other) = (pid("one", "free").await, pid("other", "free").await);
        assert_eq!(one == other, per == "sandbox", "{per}");
        assert_eq!(one == pid("one", "reader").await, agents_share, "{per}");
        assert_eq!(one, pid("one", "free").await, "{per}");
        let status = desk.tools.status().await;
        let connections = status.iter().find(|s| s.name == "evil").unwrap().connections;
        assert_eq!(connections, if per == "sandbox" { 1 } else { 3 - usize::from(agents_share) }, "{per}");
        // It ends with its run.
        desk.tools.forget("one");
        if per != "sandbox" {
            gone(&one).await;
        }
        assert!(is_alive(&other) && other == pid("other", "free").await, "{per}");
    }
}

/// A call's time is over where it is, also while it waits for its turn.
#[tokio::test]
async fn a_call_waits_for_others_no_longer_than_its_time() {
    let rules = PERMISSIONS.replace("  evil:\n    tools:", "  evil:\n    concurrency: 1\n    tools:");
    let desk = Desk::with(&rules, |b| b.servers(evil("hang"))).await;
    desk.tools.list(&Caller::agent("free")).await.unwrap();
    let waited = async { tokio::time::timeout(Duration::from_secs(10), echo(&desk, 300)).await.unwrap() };
    tokio::select! {
        biased;
        _ = echo(&desk, 60_000) => panic!("it hangs"),
        waited = waited => {
            let error = waited.unwrap_err();
            assert!(error.to_string().contains("other calls took all the time"), "{error}");
        }
    }
}
