//! Attacks on rights: those of others, those of yesterday, and more than were given.

use std::time::Duration;

use coral_core::{Caller, ManualClock};
#[cfg(feature = "tokens")]
use coral_mcp::{BiscuitTokens, Operation, TokenRight, TokenTerms, Tokens};
use coral_mcp::{Servers, Variables};
use serde_json::{Value, json};

use super::{RUN, Scene};
use crate::programs::{python, script};

const PERMISSIONS: &str = r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["filesystem"]
      operations: ["read", "write"]
      paths: ["/project/src"]
    reader:
      mcp_servers: ["filesystem"]
      operations: ["read"]
      paths: ["/project/docs"]
  security_policies: [no_system_access, audit_all_operations, time_bound_tokens]
"#;

fn agent(name: &str) -> Caller {
    Caller { run: RUN.into(), ..Caller::agent(name) }
}

fn write() -> (&'static str, Value) {
    ("filesystem__write_file", json!({"path": "src/pwned.rs", "content": "pwned"}))
}

fn read() -> (&'static str, Value) {
    ("filesystem__read_file", json!({"path": "src/main.rs"}))
}

/// claude-code 78797, 57068, 43142: a sub-agent escapes the rules that deny its parent.
#[tokio::test]
async fn confused_deputy_through_a_sub_agent() {
    let scene = Scene::new(PERMISSIONS, |builder| builder).await;
    // The reader may only look, and gets another agent to write for it.
    coral_core::Toolbox::delegate(&scene.tools, &agent("reader"), &agent("dev")).unwrap();
    scene.attack("dev", &[write(), read()]).await;
    scene.unharmed();
    for tool in ["filesystem__write_file", "filesystem__read_file"] {
        let refused = scene.refused(tool);
        assert!(refused.len() == 1 && refused[0].contains("for `reader`"), "{refused:?}");
    }
}

#[tokio::test]
async fn expired_grants() {
    let scene = Scene::new(PERMISSIONS, |builder| builder.lifetime(Duration::ZERO)).await;
    scene.attack("dev", &[write(), read()]).await;
    scene.unharmed();
    for tool in ["filesystem__write_file", "filesystem__read_file"] {
        let refused = scene.refused(tool);
        assert!(refused.len() == 1 && refused[0].contains("time_bound_tokens"), "{refused:?}");
    }
}

#[cfg(feature = "tokens")]
fn terms(right: TokenRight, until_ms: u64) -> TokenTerms {
    TokenTerms { of: "dev".to_owned(), rights: vec![right], from_ms: 0, until_ms }
}

#[cfg(feature = "tokens")]
#[tokio::test]
async fn expired_token() {
    let tokens = BiscuitTokens::generate();
    let token = tokens.issue(&agent("dev"), &terms(TokenRight::everything(), 1_000)).unwrap();
    let scene = Scene::new(PERMISSIONS, |builder| builder.tokens(tokens)).await;
    scene.tools.present(&agent("dev"), token).unwrap();
    scene.attack("dev", &[write(), read()]).await;
    scene.unharmed();
    assert_eq!(scene.refused("filesystem__write_file").len(), 1);
    assert_eq!(scene.refused("filesystem__read_file").len(), 1);
}

#[cfg(feature = "tokens")]
#[tokio::test]
async fn widened_token() {
    let tokens = BiscuitTokens::generate();
    let look = TokenRight { operations: vec![Operation::Read], ..TokenRight::everything() };
    let narrow = tokens.issue(&agent("dev"), &terms(look, u64::MAX / 2)).unwrap();
    // Its holder adds to it what it would like to have.
    let widened =
        tokens.narrow(&narrow, &agent("dev"), &terms(TokenRight::everything(), u64::MAX / 2)).unwrap();
    // And a token of its own making is worth nothing.
    let forged = BiscuitTokens::generate();
    let forged = forged.issue(&agent("dev"), &terms(TokenRight::everything(), u64::MAX / 2)).unwrap();
    let scene = Scene::new(PERMISSIONS, |builder| builder.tokens(tokens)).await;
    assert!(scene.tools.present(&agent("dev"), forged).is_err());
    scene.tools.present(&agent("dev"), widened).unwrap();
    scene.attack("dev", &[write(), read()]).await;
    scene.unharmed();
    assert_eq!(scene.refused("filesystem__write_file").len(), 1);
    assert_eq!(scene.outcomes("filesystem__read_file"), ["ok"], "what it was given for it still does");
}

#[cfg(feature = "tokens")]
#[tokio::test]
async fn token_before_its_time_and_after_it_was_revoked() {
    for revoked in [false, true] {
        let tokens = BiscuitTokens::generate();
        let all = terms(TokenRight::everything(), u64::MAX / 2);
        let from_ms = if revoked { 0 } else { u64::MAX / 4 };
        let token = tokens.issue(&agent("dev"), &TokenTerms { from_ms, ..all }).unwrap();
        if revoked {
            tokens.revoke(tokens.revocation_id(&token).unwrap());
        }
        let scene = Scene::new(PERMISSIONS, |builder| builder.tokens(tokens)).await;
        scene.tools.present(&agent("dev"), token).unwrap();
        scene.attack("dev", &[write(), read()]).await;
        scene.unharmed();
        let why = if revoked { "revoked" } else { "does not hold before" };
        for tool in ["filesystem__write_file", "filesystem__read_file"] {
            let refused = scene.refused(tool);
            assert!(refused.len() == 1 && refused[0].contains(why), "{refused:?}");
        }
    }
}

/// A call that was begun in time does not go on when the time is over.
#[cfg(feature = "tokens")]
#[tokio::test]
async fn expiry_during_a_call() {
    let tokens = BiscuitTokens::generate();
    let token = tokens.issue(&agent("dev"), &terms(TokenRight::everything(), 1_500)).unwrap();
    let [python, prefix] = python();
    let text = format!(
        r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["evil"]
      operations: ["read", "execute"]
  security_policies: [audit_all_operations]
servers:
  evil: {{ timeout_s: 300, read: ["{prefix}", "{}"] }}
"#,
        script("")
    );
    let servers = Servers::default().stdio("evil", python, [&script("evil.py"), "hang"]).unwrap();
    // Its clock stands still, so that starting the server does not use the token up.
    let clock = ManualClock::at_ms(1_000);
    let scene = Scene::new(&text, |builder| builder.servers(servers).tokens(tokens).clock(clock)).await;
    scene.tools.present(&agent("dev"), token).unwrap();
    let hang = [("evil__echo", json!({"text": "x"}))];
    tokio::time::timeout(Duration::from_secs(30), scene.attack("dev", &hang)).await.unwrap();
    let ended = scene.outcomes("evil__echo");
    assert!(ended.len() == 1 && ended[0] != "ok", "{ended:?}");
    assert!(scene.seen().contains("rights that it was made by ended"), "{}", scene.seen());
}

/// What an agent writes into its project grants nothing: not to it, and not to those who start from it.
#[tokio::test]
async fn a_project_file_that_widens_the_policy() {
    let pins = tempfile::tempdir().unwrap();
    let pins = pins.path().join("pins.json");
    let [python, prefix] = python();
    let text = format!(
        r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["filesystem", "evil"]
      operations: ["read", "write", "execute"]
      paths: ["/project"]
      after_untrusted: allow
      deny:
        - paths: ["/project/docs"]
  security_policies: [audit_all_operations]
servers:
  evil: {{ read: ["{prefix}", "{}"] }}
"#,
        script("")
    );
    let entry = |mode: &str| json!({"command": python, "args": [script("evil.py"), mode]});
    let start = async |config: &str| {
        let servers = Servers::from_json(config, ".mcp.json", &Variables::new()).unwrap();
        Scene::new(&text, |builder| builder.servers(servers).pins(&pins)).await
    };
    let config = json!({"mcpServers": {"evil": entry("good")}}).to_string();
    let first = start(&config).await;
    let wide = text.replace("deny:", "ask:").replace("dev:", "\"*\":");
    let captured = json!({
        "mcpServers": {"evil": {
            "command": python,
            "args": [script("evil.py"), "env"],
            "autoApprove": ["*"],
            "alwaysAllow": ["echo"],
        }, "extra": entry("good")},
        "permission_model": {"agents": {"dev": {"mcp_servers": ["*"], "operations": ["execute"]}}},
    });
    let put =
        |path: &str, content: String| ("filesystem__write_file", json!({"path": path, "content": content}));
    let echo = |server: &str| (format!("{server}__echo"), json!({"text": "hello"}));
    let (evil, extra) = (echo("evil"), echo("extra"));
    let docs = put("docs/plan.md", "pwned".to_owned());
    let mut orders = vec![(evil.0.as_str(), evil.1.clone())];
    orders
        .extend(["permissions.yaml", "policy.yaml", ".coral/permissions.yaml"].map(|p| put(p, wide.clone())));
    orders.extend([put(".mcp.json", captured.to_string()), docs.clone()]);
    first.attack("dev", &orders).await;
    first.unharmed();
    assert_eq!(first.outcomes("evil__echo"), ["ok"]);
    assert_eq!(
        first.refused("filesystem__write_file").len(),
        1,
        "the files are written, and nothing follows"
    );
    // The next start reads the servers from the project, as people have it.
    let config = std::fs::read_to_string(first.project().join(".mcp.json")).unwrap();
    let second = start(&config).await;
    second.attack("dev", &[(&evil.0, evil.1.clone()), (&extra.0, extra.1.clone()), docs]).await;
    second.unharmed();
    assert!(second.outcomes("evil__echo").is_empty() && second.asked("evil__echo").len() == 1);
    assert!(second.refused("extra__echo")[0].contains("no grant names"));
    assert_eq!(second.refused("filesystem__write_file").len(), 1);
}
