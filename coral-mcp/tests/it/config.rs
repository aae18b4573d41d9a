use coral_core::ErrorKind;
use coral_mcp::{Permissions, Sandbox, Servers, Variables};

#[test]
fn files_that_people_have_are_read_as_they_stand() {
    for text in [
        r#"{"mcpServers": {"fs": {"command": "npx", "args": ["-y", "pkg", "/data"]}}}"#,
        r#"{"mcpServers": {"fs": {"type": "stdio", "command": "x", "env": {"A": "b"}, "cwd": "sub"}}, "other": 1}"#,
        r#"{"servers": {"fs": {"command": "x", "autoApprove": ["a"], "unknown": true}}, "inputs": []}"#,
        r#"{"mcpServers": {"fs": {"command": "x"}, "off": {"type": "sse", "url": "u", "disabled": true}}}"#,
    ] {
        let servers = Servers::from_json(text, ".mcp.json", &Variables::new()).unwrap();
        assert_eq!(servers.names().collect::<Vec<_>>(), ["fs"], "{text}");
    }
}

#[test]
fn what_is_wrong_is_told() {
    for (text, words) in [
        ("{\n\"mcpServers\": [}", ".mcp.json:2"),
        ("{}", "mcpServers"),
        (r#"{"mcpServers": {"a b": {"command": "x"}}}"#, "`a b` is not a server's name"),
        (r#"{"mcpServers": {"a__b": {"command": "x"}}}"#, "`a__b` is not a server's name"),
        (r#"{"mcpServers": {"a": {}}}"#, "it has no `command`"),
        (r#"{"mcpServers": {"a": {"type": "sse", "url": "http://x/sse"}}}"#, "withdrawn"),
        (r#"{"mcpServers": {"a": {"command": "x", "env": {"K": "${HOME}"}}}}"#, "`${HOME}` is not set"),
        (r#"{"mcpServers": {"a": {"command": "x", "args": "y"}}}"#, "expected a sequence"),
    ] {
        let error = Servers::from_json(text, ".mcp.json", &Variables::new()).unwrap_err();
        assert!(error.to_string().contains(words), "{text}: {error}");
        assert!(matches!(error.kind(), ErrorKind::Invalid { .. } | ErrorKind::Problems { .. }));
    }
}

#[tokio::test]
async fn settings_that_contradict_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let build = async |yaml: &str| {
        let permissions = Permissions::from_yaml(yaml, "p.yaml").unwrap();
        let servers = Servers::default().stdio("a", "x", ["y"]).unwrap();
        let built = Sandbox::builder()
            .permissions(permissions)
            .servers(servers)
            .root(dir.path())
            .helper(env!("CARGO_BIN_EXE_coral-jail"))
            .build()
            .await;
        built.err().map(|e| e.to_string())
    };
    let model = "permission_model:\n  security_policies: [no_system_access]\n";
    let error = build(&format!("{model}servers:\n  a: {{ isolation: none }}\n")).await.unwrap();
    assert!(error.contains("contradicts"), "{error}");
    let error = build(&format!("{model}servers:\n  aa: {{}}\n")).await.unwrap();
    assert!(error.contains("no server is called `aa`; did you mean `a`?"), "{error}");
    let error = build(&format!("{model}servers:\n  a: {{ profile: filesytem }}\n")).await.unwrap();
    assert!(error.contains("did you mean `filesystem`?"), "{error}");
    assert_eq!(build(model).await, None);
}
