//! Attacks by servers that were captured, or made to attack.

use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

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
    let timeout_s = if program == "probe.py" { 50 } else { 2 };
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
