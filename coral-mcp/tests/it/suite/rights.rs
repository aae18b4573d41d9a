//! Attacks on rights: those of others, those of yesterday, and more than were given.

use std::time::Duration;

use coral_core::Caller;
#[cfg(feature = "tokens")]
use coral_mcp::{BiscuitTokens, Operation, TokenRight, TokenTerms, Tokens};
use serde_json::{Value, json};

use super::{RUN, Scene};

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
