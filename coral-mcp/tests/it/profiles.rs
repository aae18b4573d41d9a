//! What profiles make of the tools and arguments of public servers: each call is to a server that
//! lists tools of these names and says what reached it.

use coral_core::{Caller, ErrorKind, Toolbox};
use coral_mcp::{Operation, Permissions, Profile, Servers};
use serde_json::{Value, json};

use crate::desk::Desk;
use crate::programs::{python, script};

/// A desk with a server called `server` that lists `tools`, to which `dev` has `grant`.
async fn desk(server: &str, tools: &[&str], grant: &str, rules: &str) -> Desk {
    let tools: Vec<Value> = tools
        .iter()
        .map(|name| json!({"name": name, "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": true}}))
        .collect();
    let args = [script("catalog.py"), json!(tools).to_string()];
    let servers = Servers::default().stdio(server, python()[0].clone(), args).unwrap();
    let text = format!(
        "permission_model:\n  agents:\n    dev:\n      mcp_servers: [{server}]\n      paths: [/project/src]\n      \
         after_untrusted: allow\n{grant}servers:\n  {server}: {{ {rules} }}\n"
    );
    Desk::with(&text, |b| b.servers(servers)).await
}

/// Calls as `dev`; what reached the server, or why nothing did.
async fn call(desk: &Desk, tool: &str, arguments: Value) -> Result<Value, String> {
    match desk.call("dev", tool, arguments).await {
        Ok(output) => Ok(serde_json::from_str(output.content.lines().nth(1).unwrap()).unwrap()),
        Err(error) => match error.kind() {
            ErrorKind::Denied { reason, .. } => Err(reason.clone()),
            _ => panic!("{error}"),
        },
    }
}

#[track_caller]
fn refused(result: Result<Value, String>, words: &str) {
    let reason = result.unwrap_err();
    assert!(reason.contains(words), "{reason}");
}

#[tokio::test]
async fn docker() {
    let tools = ["run_container", "fetch_container_logs", "push_image", "build_image"];
    let grant = "      operations: [container_logs, run_container]\n      programs: [python, sh, npm]\n";
    let desk = desk("docker", &tools, grant, "").await;
    let shown = desk.tools.list(&Caller::agent("dev")).await.unwrap();
    let shown: Vec<&str> = shown.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(shown, ["docker__fetch_container_logs", "docker__run_container"]);
    let run = |arguments: Value| call(&desk, "docker__run_container", arguments);
    let volumes = json!({"src": {"bind": "/work", "mode": "rw"}});
    let reached = run(json!({"image": "alpine", "command": "python -m http.server", "volumes": volumes}))
        .await
        .unwrap();
    let root = desk.project().canonicalize().unwrap();
    assert_eq!(
        reached["volumes"].as_object().unwrap().keys().next().unwrap(),
        root.join("src").to_str().unwrap()
    );
    run(json!({"image": "a", "command": ["npm", "test"]})).await.unwrap();
    run(json!({"image": "a", "command": "sh -c 'npm test'"})).await.unwrap();
    for (arguments, words) in [
        (json!({"volumes": {"/etc": {"bind": "/x"}}}), "outside `/project`"),
        (json!({"volumes": {"docs": {"bind": "/x"}}}), "not among the paths"),
        (json!({"network": "host"}), "refused whatever is granted"),
        (json!({"network": "Container:other"}), "refused whatever is granted"),
        (json!({"privileged": true}), "refused whatever is granted"),
        (json!({"command": "rm -rf /"}), "a program of the call"),
        (json!({"command": ["sh", "-c", "rm x"]}), "a program of the call"),
        (json!({"command": "sh -c 'npm test; rm x'"}), "`;`"),
        (json!({"command": "npm $(rm x)"}), "`$`"),
        (json!({"command": "npm `rm x`"}), "'`'"),
        (json!({"command": "npm 'x"}), "does not end"),
        (json!({"entrypoint": "/bin/bash"}), "a program of the call"),
        (json!({"command": 7}), "text or a list"),
    ] {
        let result = run(arguments).await;
        let reason = result.unwrap_err();
        assert!(reason.contains(words) || words == "'`'", "{reason}");
    }
    refused(call(&desk, "docker__push_image", json!({"repository": "x"})).await, "operation `write`");
}

#[tokio::test]
async fn github() {
    let tools =
        ["issue_write", "push_files", "actions_run_trigger", "create_pull_request", "issue_read", "invented"];
    let grant = "      operations: [read, manage_issues, commit_changes, trigger_workflows]\n      arguments: { owner: [acme] }\n";
    let desk = desk("github", &tools, grant, "").await;
    let go = |tool: &'static str, mut arguments: Value| {
        arguments["owner"] = arguments.get("owner").cloned().unwrap_or(json!("acme"));
        let desk = &desk;
        async move { call(desk, tool, arguments).await }
    };
    go("github__issue_read", json!({"method": "get"})).await.unwrap();
    go("github__issue_write", json!({"method": "create"})).await.unwrap();
    let reached = go("github__push_files", json!({"files": [{"path": "/project/a/./b", "content": "x"}]}))
        .await
        .unwrap();
    assert_eq!(reached["files"][0]["path"], "a/b", "what was checked is what the server gets");
    go("github__actions_run_trigger", json!({"method": "run_workflow"})).await.unwrap();
    refused(go("github__issue_read", json!({"method": "get", "owner": "evil"})).await, "argument `owner`");
    refused(go("github__issue_write", json!({"method": "delete"})).await, "not among create, update");
    refused(go("github__issue_write", json!({})).await, "it says what the tool does");
    refused(go("github__issue_write", json!({"method": ["create"]})).await, "it says what the tool does");
    refused(
        go("github__actions_run_trigger", json!({"method": "delete_workflow_run_logs"})).await,
        "not among",
    );
    refused(go("github__create_pull_request", json!({})).await, "operation `write`");
    // What its server says of it widens nothing.
    refused(go("github__invented", json!({})).await, "operation `execute`");
    for path in
        [".github/workflows/ci.yml", "./.github//workflows/ci.yml", ".GitHub/Workflows/x.yml", "action.yml"]
    {
        let files = json!({"files": [{"path": "ok"}, {"path": path}]});
        refused(go("github__push_files", files).await, "operation `execute`");
    }
    refused(
        go("github__push_files", json!({"files": [{"path": ".github/x/../workflows/a"}]})).await,
        "climbs",
    );
    refused(go("github__push_files", json!({"files": "x"})).await, "must be a list");
}

#[tokio::test]
async fn database() {
    let tools = ["execute_sql", "get_top_queries"];
    let grant = "      operations: [execute_query, create_tables, performance_monitoring]\n";
    let desk = desk("database", &tools, grant, "").await;
    let sql = |text: &'static str| call(&desk, "database__execute_sql", json!({"sql": text}));
    sql("SELECT * FROM orders").await.unwrap();
    sql("CREATE TABLE t (a INT)").await.unwrap();
    call(&desk, "database__get_top_queries", json!({})).await.unwrap();
    for text in [
        "DELETE FROM orders",
        "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
        "SELECT * INTO x FROM t",
    ] {
        refused(sql(text).await, "operation `write`");
    }
    // A name covers what it names: the schema is not changed under `execute_query`.
    refused(sql("DROP TABLE orders").await, "operation `write`");
    for text in ["SELECT 1; DROP TABLE t", "COMMIT; DELETE FROM t", "SELECT pg_read_file('/etc/passwd')"] {
        refused(sql(text).await, "operation `execute`");
    }
    refused(sql("SELEC 1").await, "can't be parsed");
}

#[tokio::test]
async fn addresses() {
    let grant = "      operations: [fetch_page]\n      hosts: [docs.rs, \"*.example.com\"]\n";
    let desk = desk("fetch", &["fetch"], grant, "").await;
    let fetch = |url: &'static str| call(&desk, "fetch__fetch", json!({"url": url}));
    fetch("https://docs.rs/serde").await.unwrap();
    fetch("https://api.EXAMPLE.com/x").await.unwrap();
    refused(fetch("https://example.com/").await, "a host of the call");
    refused(fetch("https://docs.rs.evil.net/").await, "a host of the call");
    refused(fetch("https://docs.rs@evil.net/").await, "a user's name");
    for url in ["http://127.0.0.1/", "http://[::ffff:169.254.169.254]/", "http://2130706433/", "http://db/"] {
        refused(fetch(url).await, "not a host of the public network");
    }
    refused(fetch("file:///etc/passwd").await, "not an address of the web");
}

#[tokio::test]
async fn a_trusted_servers_annotations_are_taken() {
    for (rules, allowed) in [("trusted: true", true), ("trusted: false", false)] {
        let desk = desk("notes", &["look"], "      operations: [read]\n", rules).await;
        let reached = desk.call("dev", "notes__look", json!({})).await;
        assert_eq!(reached.is_ok(), allowed, "{rules}");
    }
}

#[test]
fn operations_that_people_expect_are_named() {
    let of = |profile: &str, tool: &str| Profile::built_in(profile).unwrap().operation(tool);
    assert_eq!(of("e2b", "run_code"), Some(Operation::Execute));
    assert_eq!(of("search", "brave_web_search"), Some(Operation::Read));
    let ops = "create_repository, commit_changes, create_pull_request, manage_issues, trigger_workflows, build_image, \
               run_container, push_pull_images, container_logs, execute_query, create_tables, run_migrations, \
               performance_monitoring";
    let text = |ops: &str| {
        format!(
            "permission_model:\n  agents:\n    dev: {{ mcp_servers: [github], operations: [{ops}], paths: [] }}\n"
        )
    };
    Permissions::from_yaml(&text(ops), "p.yaml").unwrap();
    Permissions::from_yaml(&text("compose_up_down, backup_restore"), "p.yaml").unwrap();
    let error = Permissions::from_yaml(&text("create_pul_request"), "p.yaml").unwrap_err();
    assert!(error.to_string().contains("did you mean `create_pull_request`?"), "{error}");
}

/// A server of the embedder's own, by its own profile, whose operation the permission file names.
#[tokio::test]
async fn a_server_in_this_process_goes_by_a_profile_of_ones_own() {
    let profile = Profile::from_yaml(
        "name: stock\ntools:\n  look: { operation: read, named: look_up_stock, effect: pure }\n  sell: { operation: write, named: sell_stock }\n",
        "stock.yaml",
    )
    .unwrap();
    let text = "permission_model:\n  agents:\n    dev: { mcp_servers: [stock], operations: [look_up_stock], paths: [] }\n";
    assert!(Permissions::from_yaml(text, "p.yaml").is_err(), "nobody knows the operation yet");
    let permissions = Permissions::from_yaml_with(text, "p.yaml", std::slice::from_ref(&profile)).unwrap();
    let server = || {
        let (ours, theirs) = tokio::io::duplex(4_096);
        tokio::spawn(stock(theirs));
        ours
    };
    let tools = coral_mcp::Sandbox::builder()
        .permissions(permissions)
        .profile(profile)
        .in_process("stock", server)
        .build()
        .await
        .unwrap();
    let caller = coral_core::Caller::agent("dev");
    let shown = coral_core::Toolbox::list(&tools, &caller).await.unwrap();
    assert_eq!(shown.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), ["stock__look"]);
    let call = |name: &str| coral_core::ToolCall {
        id: "1".into(),
        name: name.into(),
        arguments: serde_json::json!({}),
    };
    let cx = coral_core::CallContext::new(caller);
    let said = coral_core::Toolbox::call(&tools, &call("stock__look"), &cx).await.unwrap();
    assert!(
        said.content.contains("seven left") && said.content.contains("not instructions"),
        "{}",
        said.content
    );
    assert!(coral_core::Toolbox::call(&tools, &call("stock__sell"), &cx).await.is_err());
}

/// Speaks the protocol by hand.
async fn stock(stream: tokio::io::DuplexStream) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let (reads, mut writes) = tokio::io::split(stream);
    let mut lines = BufReader::new(reads).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let message: serde_json::Value = serde_json::from_str(&line).unwrap();
        let Some(id) = message.get("id") else { continue };
        let schema = serde_json::json!({"type": "object", "properties": {}});
        let answer = match message["method"].as_str() {
            Some("initialize") => serde_json::json!({"result": {
                "protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
                "serverInfo": {"name": "stock", "version": "1"},
            }}),
            Some("tools/list") => serde_json::json!({"result": {"tools": [
                {"name": "look", "inputSchema": schema}, {"name": "sell", "inputSchema": schema},
            ]}}),
            Some("tools/call") => {
                serde_json::json!({"result": {"content": [{"type": "text", "text": "seven left"}]}})
            }
            _ => serde_json::json!({"error": {"code": -32601, "message": "no such method"}}),
        };
        let mut answer = answer;
        answer["jsonrpc"] = "2.0".into();
        answer["id"] = id.clone();
        writes.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
    }
}

/// What no tool of a public server does is named by the first words of a command.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn commands_are_named_by_their_first_words() {
    let text = "permission_model:\n  agents:\n    dev: { mcp_servers: [commands], operations: [backup_restore], paths: [/project] }\n  security_policies: [no_system_access]\n";
    let commands = coral_mcp::Commands::new().allow_at("pg_dump", "/bin/true").allow_at("psql", "/bin/true");
    let desk =
        crate::desk::Desk::with(text, |b| b.commands(commands).helper(env!("CARGO_BIN_EXE_coral-jail")))
            .await;
    let run = |program: &'static str| {
        desk.call("dev", "commands__run", serde_json::json!({"program": program, "args": ["shop"]}))
    };
    crate::desk::Desk::ok(run("pg_dump").await);
    assert!(crate::desk::Desk::denied(run("psql").await).contains("operation `execute`"));
}
