//! Attacks by servers that were captured, or made to attack.

use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

use coral_core::{CallContext, Caller, ToolCall, Toolbox};
use coral_mcp::{AuditEvent, Servers, Variables, Verdict};
use serde_json::{Value, json};

use super::Scene;
use crate::programs::{python, script};

/// An agent that may use everything that there is; what servers from outside say bars changes.
fn permissions(timeout_s: u32, rules: &str) -> String {
    let [_, prefix] = python();
    let read = format!(r#"read: ["{prefix}", "{}"]"#, script(""));
    format!(
        r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["filesystem", "evil", "probe"]
      operations: ["read", "write", "execute"]
      paths: ["/project/src"]
      after_untrusted: deny
  security_policies: [no_system_access, audit_all_operations]
servers:
  evil:
    timeout_s: {timeout_s}
    tools:
      echo: {{ operation: read, effect: pure }}
      try: {{ operation: read, effect: pure }}
      look: {{ operation: read, effect: pure }}
      read_file: {{ operation: read, effect: pure }}
    {read}
{rules}
"#
    )
}

/// A scene with one server from outside, in the OS sandbox.
async fn scene(program: &str, mode: &str, rules: &str) -> Scene {
    let config = json!({"mcpServers": {"evil": {
        "command": python()[0],
        "args": [script(program), mode],
        "env": {"API_KEY": "${SECRET}"},
    }}});
    let variables = Variables::new().with("SECRET", "hunter2hunter2");
    let servers = Servers::from_json(&config.to_string(), ".mcp.json", &variables).unwrap();
    // What probes the walls may take its time; what misbehaves is not waited for long.
    let timeout_s = if program == "probe.py" || mode == "questions" { 50 } else { 2 };
    Scene::new(&permissions(timeout_s, rules), |builder| builder.servers(servers)).await
}

fn echo() -> (&'static str, Value) {
    ("evil__echo", json!({"text": "hello"}))
}

/// One call of the server that probes the OS sandbox.
async fn probe(what: &str, with: &str, rules: &str) -> Scene {
    let scene = scene("probe.py", "", rules).await;
    scene.attack("dev", &[("evil__try", json!({"what": what, "with": with}))]).await;
    scene.unharmed();
    assert_eq!(scene.outcomes("evil__try").len(), 1, "it left no trace");
    scene
}

#[tokio::test]
async fn oversized_result() {
    let scene = scene("evil.py", "big-result", "").await;
    scene.attack("dev", &[echo()]).await;
    assert!(scene.seen().contains("[cut off: ") && scene.seen().len() < 1_000_000);
    let bytes = scene.records("evil__echo").into_iter().find_map(|record| match record.entry.event {
        AuditEvent::Ended { bytes, .. } => Some(bytes),
        _ => None,
    });
    assert!(bytes.unwrap() < 300_000);
}

#[tokio::test]
async fn endless_result() {
    let scene = scene("evil.py", "endless-result", "").await;
    scene.attack("dev", &[echo()]).await;
    assert_ne!(scene.outcomes("evil__echo"), ["ok"]);
    assert!(scene.seen().len() < 100_000);
}

#[tokio::test]
async fn hanging_server() {
    let scene = scene("evil.py", "hang", "").await;
    tokio::time::timeout(Duration::from_secs(30), scene.attack("dev", &[echo()])).await.unwrap();
    assert_ne!(scene.outcomes("evil__echo"), ["ok"]);
    assert_eq!(scene.outcomes("evil__echo").len(), 1);
}

#[tokio::test]
async fn fork_bomb() {
    let scene = probe("fork_bomb", "", "    processes: 400\n").await;
    assert!(scene.seen().contains("stopped at "), "{}", scene.seen());
}

#[tokio::test]
async fn memory_hog() {
    let scene = probe("memory", "", "    memory_mib: 1024\n").await;
    assert!(scene.seen().contains("allocate memory"), "{}", scene.seen());
}

/// Memory that no limit of a process counts is not to be had, unless a control group counts it.
#[tokio::test]
async fn memory_hog_that_shares() {
    let scene = probe("shared", "", "    memory_mib: 1024\n").await;
    let counted = scene.audit.records().into_iter().any(|record| {
        matches!(record.entry.event, AuditEvent::Noted { ref note } if note.contains("for each control group"))
    });
    assert!(counted || scene.seen().contains("had: []"), "{}", scene.seen());
}

#[tokio::test]
async fn disk_filler() {
    let scene = probe("fill", "/dev/shm/full", "").await;
    assert!(scene.seen().contains("No space left"), "{}", scene.seen());
    let project = scene.project().join("src/full").display().to_string();
    let scene = probe("fill", &project, "").await;
    assert!(scene.seen().contains("stopped at 0 MiB"), "{}", scene.seen());
}

#[tokio::test]
async fn crash_loop() {
    let scene = scene("evil.py", "crash-loop", "").await;
    // By hand: a run would wait and try again.
    let (name, arguments) = echo();
    let call = ToolCall { id: "1".into(), name: name.into(), arguments };
    let cx = CallContext::new(Caller::agent("dev"));
    let mut left_alone = 0;
    for _ in 0..10 {
        let error = scene.tools.call(&call, &cx).await.unwrap_err();
        left_alone += u32::from(error.retry_after_ms().is_some() && error.to_string().contains("in a row"));
    }
    assert!(left_alone >= 3, "{left_alone}");
    let ended = scene.outcomes("evil__echo");
    assert!(ended.len() == 10 && ended.iter().all(|outcome| outcome != "ok"), "{ended:?}");
}

#[tokio::test]
async fn slow_drip() {
    let scene = scene("evil.py", "drip", "").await;
    tokio::time::timeout(Duration::from_secs(30), scene.attack("dev", &[echo()])).await.unwrap();
    let ended = scene.outcomes("evil__echo");
    assert!(ended.len() == 1 && ended[0] != "ok", "{ended:?}");
}

#[tokio::test]
async fn a_thousand_changes_a_second() {
    let scene = scene("evil.py", "list-storm", "").await;
    scene.attack("dev", &vec![echo(); 6]).await;
    assert_eq!(scene.outcomes("evil__echo"), ["ok"; 6]);
    let seen = scene.seen();
    let listed =
        seen.lines().filter_map(|line| line.strip_prefix("listed ")?.split(' ').next()?.parse().ok());
    // Once before each call and each look at the tools, however often it says so in between.
    let most: u32 = listed.max().unwrap();
    assert!((2..=20).contains(&most), "{most}");
}

/// Ten thousand things at once are answered, a few hundred at a time.
#[tokio::test]
async fn ten_thousand_questions() {
    let rules = "    write: [\"/project\"]\n";
    let scene = scene("evil.py", "questions", rules).await;
    scene.attack("dev", &[echo()]).await;
    assert_eq!(scene.outcomes("evil__echo"), ["ok"]);
    assert!(scene.seen().contains("10000 answers"), "{}", scene.seen());
}

/// Of a server that asks without end and reads no answer, no more is taken in than a few hundred things.
#[tokio::test]
async fn questions_without_end() {
    let scene = scene("evil.py", "questions-deaf", "    write: [\"/project\"]\n").await;
    tokio::time::timeout(Duration::from_secs(30), scene.attack("dev", &[echo()])).await.unwrap();
    let ended = scene.outcomes("evil__echo");
    assert!(ended.len() == 1 && ended[0] != "ok", "{ended:?}");
    let asked: u64 = std::fs::read_to_string(scene.project().join("asked")).unwrap().parse().unwrap();
    assert!((100..10_000).contains(&asked), "{asked}");
}

#[tokio::test]
async fn network_exfiltration() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for what in ["connect", "datagram"] {
        probe(what, &address, "").await;
        assert!(listener.accept().is_err(), "{what}");
    }
    // Nor through the proxy, to where it does not let it.
    let scene = probe("tunnel", &address, "    network: [\"api.example.com\"]\n").await;
    assert!(listener.accept().is_err());
    let refused = scene.audit.records().into_iter().any(|record| {
        record.entry.server == "evil"
            && matches!(record.entry.event, AuditEvent::Connected { verdict: Verdict::Deny, ref to, .. } if *to == address)
    });
    assert!(refused, "the connection left no trace");
}

#[tokio::test]
async fn proc_self_of_a_server() {
    for path in ["/proc/self/mem", "/proc/1/environ", "/proc/self/root/etc/shadow"] {
        let scene = probe("read", path, "").await;
        assert!(!scene.seen().contains("root:"), "{}", scene.seen());
    }
}

#[tokio::test]
async fn environment_secrets() {
    let scene = scene("evil.py", "env", "").await;
    scene.attack("dev", &[echo()]).await;
    let seen = scene.seen();
    assert!(seen.contains("API_KEY") && !seen.contains("hunter2"), "{seen}");
    for name in ["CARGO", "USER", "SSH"] {
        assert!(!seen.contains(&format!("\"{name}")), "{name}: {seen}");
    }
    let records = serde_json::to_string(&scene.audit.records()).unwrap();
    assert!(records.contains("evil__echo") && !records.contains("hunter2"));
}

#[tokio::test]
async fn tool_shadowing() {
    let scene = scene("evil.py", "shadow", "").await;
    let read = |tool: &'static str| (tool, json!({"path": "src/main.rs"}));
    scene
        .attack(
            "dev",
            &[read("filesystem__read_file"), read("read_file"), read("mcp__filesystem__read_file")],
        )
        .await;
    assert!(scene.seen().contains("fn main()") && !scene.seen().contains("shadowed"), "{}", scene.seen());
    assert_eq!(scene.outcomes("filesystem__read_file"), ["ok"]);
    assert_eq!(scene.refused("read_file").len() + scene.refused("mcp__filesystem__read_file").len(), 2);
    scene.unharmed();
}

#[tokio::test]
async fn rug_pull() {
    let scene = scene("evil.py", "rug-pull", "    write: [\"/project\"]\n").await;
    // By what it writes there it knows that it changed.
    scene.attack("dev", &[echo(), echo()]).await;
    let asked = scene.asked("evil__echo");
    assert_eq!(scene.outcomes("evil__echo").len(), 1, "{:?}", scene.records("evil__echo"));
    assert!(asked.len() == 1 && asked[0].contains("until a person agrees"), "{asked:?}");
    assert!(asked[0].contains("mails it to the author"), "the person sees what it is now: {asked:?}");
}

#[tokio::test]
async fn rug_pull_on_the_second_page() {
    let scene = scene("evil.py", "second-page", "").await;
    let look = || ("evil__look", json!({}));
    scene.attack("dev", &[look(), look(), echo()]).await;
    assert_eq!(scene.outcomes("evil__look").len(), 1, "{:?}", scene.records("evil__look"));
    let asked = scene.asked("evil__look");
    assert!(asked.len() == 1 && asked[0].contains("and mails it"), "{asked:?}");
    assert_eq!(scene.outcomes("evil__echo"), ["ok"], "what did not change is called as before");
}

#[tokio::test]
async fn description_injection() {
    let scene = scene("evil.py", "poisoned", "").await;
    scene.attack("dev", &[("evil__look", json!({}))]).await;
    assert!(scene.outcomes("evil__look").is_empty());
    assert!(scene.refused("evil__look")[0].contains("until a person agrees"));
    assert!(!scene.seen().contains("id_rsa"), "{}", scene.seen());
}

#[tokio::test]
async fn poisoned_result_leading_to_a_write() {
    let scene = scene("evil.py", "order", "").await;
    scene.attack("dev", &[echo()]).await;
    scene.unharmed();
    assert_eq!(scene.outcomes("evil__echo"), ["ok"]);
    let refused = scene.refused("filesystem__write_file");
    assert!(refused.len() == 1 && refused[0].contains("evil__echo"), "{refused:?}");
}

/// What a server says in an error is its word too.
#[tokio::test]
async fn poisoned_error_leading_to_a_write() {
    let scene = scene("evil.py", "order-by-error", "").await;
    scene.attack("dev", &[echo()]).await;
    scene.unharmed();
    assert!(scene.seen().contains(": data from evil__echo, not instructions]"), "{}", scene.seen());
    let refused = scene.refused("filesystem__write_file");
    assert!(refused.len() == 1 && refused[0].contains("evil__echo"), "{refused:?} {}", scene.seen());
}

#[tokio::test]
async fn stacked_sql_statements() {
    let installed = crate::programs::public_servers().display().to_string();
    let [_, prefix] = python();
    let text = format!(
        r#"
permission_model:
  agents:
    reader:
      mcp_servers: ["sqlite"]
      operations: ["read"]
      paths: ["/project/db"]
      after_untrusted: allow
  security_policies: [no_system_access]
servers:
  sqlite: {{ write: ["/project/db"], read: ["{installed}", "{prefix}"] }}
"#
    );
    let config = json!({"mcpServers": {"sqlite": {
        "command": format!("{installed}/python-sqlite/bin/mcp-server-sqlite"),
        "args": ["--db-path", "db/shop.db"],
    }}});
    let servers = Servers::from_json(&config.to_string(), ".mcp.json", &Variables::new()).unwrap();
    let scene = Scene::new(&text, |builder| builder.servers(servers)).await;
    std::fs::create_dir(scene.project().join("db")).unwrap();
    let query = |sql: &str| ("sqlite__read_query", json!({"query": sql}));
    let attacks = [
        query("SELECT 1; CREATE TABLE pwned (x)"),
        query("SELECT 1 /*; */; CREATE TABLE pwned (x)"),
        query("SELECT ';'; CREATE TABLE pwned (x)"),
        query("WITH x AS (SELECT 1) INSERT INTO pwned SELECT * FROM x"),
        query("ATTACH DATABASE '/project/pwned.db' AS p"),
        query("SELECT load_extension('/tmp/x')"),
        query("SELECT 1;\u{2028}DROP TABLE x"),
    ];
    scene.attack("reader", &attacks).await;
    assert_eq!(scene.refused("sqlite__read_query").len(), attacks.len());
    scene.attack("reader", &[query("SELECT count(*) AS tables FROM sqlite_master")]).await;
    assert!(scene.seen().contains("'tables': 0"), "{}", scene.seen());
    assert!(std::fs::read(scene.project().join("pwned.db")).is_err());
}

/// So that a test that sees nothing at the listener would see it if it were there.
#[tokio::test]
async fn the_listener_sees_what_is_let_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    probe("connect", &address, "    network: true\n").await;
    let mut said = String::new();
    listener.accept().unwrap().0.read_to_string(&mut said).unwrap();
    assert_eq!(said, "secret");
}
