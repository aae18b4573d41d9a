use std::sync::Arc;

use coral_core::{Approval, CallContext, Caller, Category, ErrorKind, ManualClock, ToolCall, Toolbox};
use coral_mcp::{Access, AuditEvent, Operation, Permissions, Policy, SecurityPolicy, Verdict};
use serde_json::json;

use crate::desk::{Desk, PERMISSIONS};

#[tokio::test]
async fn the_permission_file_is_enforced_as_it_stands() {
    let desk = Desk::new(PERMISSIONS).await;
    let read = |agent, path| desk.call(agent, "filesystem__read_file", json!({"path": path}));
    let write =
        |agent, path| desk.call(agent, "filesystem__write_file", json!({"path": path, "content": "x"}));

    Desk::ok(read("project_architect", "docs/plan.md").await);
    assert_eq!(
        Desk::denied(write("project_architect", "docs/plan.md").await),
        "operation `write` is not among those granted at permissions.yaml:5"
    );
    Desk::ok(write("backend_developer", "src/lib.rs").await);
    Desk::ok(write("backend_developer", "/project/tests/new.rs").await);
    assert_eq!(
        Desk::denied(write("backend_developer", "docs/plan.md").await),
        "`/project/docs/plan.md` is not among the paths granted at permissions.yaml:9"
    );
    assert!(
        Desk::denied(read("backend_developer", "srcx/other.rs").await).contains("/project/srcx/other.rs")
    );
    assert!(Desk::denied(read("devops_deployment", "src/main.rs").await).contains("server `filesystem`"));
    assert!(Desk::denied(read("nobody", "docs/plan.md").await).contains("server `filesystem`"));
    assert!(Desk::denied(read("", "docs/plan.md").await).contains("server `filesystem`"));
    assert_eq!(desk.decided(Verdict::Allow), 3);
    assert_eq!(desk.decided(Verdict::Deny), 6);
}

#[tokio::test]
async fn an_agent_sees_the_tools_that_it_may_call() {
    let desk = Desk::new(PERMISSIONS).await;
    let names = |agent: &'static str| {
        let tools = &desk.tools;
        async move {
            let tools = tools.list(&Caller::agent(agent)).await.unwrap();
            tools.into_iter().map(|t| t.name).collect::<Vec<_>>()
        }
    };
    let architect = names("project_architect").await;
    assert!(architect.contains(&"filesystem__read_file".to_owned()));
    assert!(!architect.contains(&"filesystem__write_file".to_owned()));
    assert!(names("backend_developer").await.contains(&"filesystem__write_file".to_owned()));
    assert!(names("devops_deployment").await.is_empty());
    assert!(names("nobody").await.is_empty());
}

fn decide(permissions: &Permissions, caller: &Caller, tool: &str, path: &str, now_ms: u64) -> Verdict {
    let paths = [path.parse().unwrap()];
    let operation = if tool.starts_with("write") { Operation::Write } else { Operation::Read };
    let mut access = Access::new(caller, "filesystem", tool, operation).on(&paths).at_ms(now_ms);
    access.recursive = tool == "directory_tree" || tool == "search_files";
    permissions.decide(&access).verdict
}

#[test]
fn refusal_beats_question_beats_grant() {
    let permissions = Permissions::from_yaml(
        r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["filesystem"]
      operations: ["read", "write"]
      paths: ["/project"]
      tools: ["*_file", "filesystem__directory_*"]
      ask:
        - paths: ["/project/.github"]
      deny:
        - paths: ["/project/.github/workflows"]
          operations: ["write"]
  deny:
    - paths: ["/project/.env"]
"#,
        "p.yaml",
    )
    .unwrap();
    let dev = Caller::agent("dev");
    for (tool, path, expected) in [
        ("write_file", "src/x", Verdict::Allow),
        ("write_file", ".github/x", Verdict::Ask),
        ("write_file", ".github/workflows/ci.yml", Verdict::Deny),
        ("write_file", ".GitHub/Workflows/ci.yml", Verdict::Deny),
        ("read_file", ".github/workflows/ci.yml", Verdict::Ask),
        ("read_file", ".env", Verdict::Deny),
        ("read_file", ".environment", Verdict::Allow),
        // What reaches everything under a place reaches what is refused there.
        ("directory_tree", "", Verdict::Deny),
        ("directory_tree", "src", Verdict::Allow),
        ("search_files", "src", Verdict::Deny),
    ] {
        assert_eq!(decide(&permissions, &dev, tool, path, 0), expected, "{tool} {path}");
    }
}

#[test]
fn grants_go_by_category_project_phase_and_time() {
    let permissions = Permissions::from_yaml(
        r#"
permission_model:
  categories:
    core:
      mcp_servers: ["*"]
      operations: ["read"]
      paths: ["/project"]
  agents:
    night:
      mcp_servers: ["filesystem"]
      operations: ["read"]
      paths: ["/project"]
      valid_from: "1970-01-02T00:00:00Z"
      valid_until: "1970-01-03T00:00:00Z"
      hours: "22:00-06:00"
      projects: ["shop"]
      phases: ["build", "test"]
"#,
        "p.yaml",
    )
    .unwrap();
    let hour = 3_600_000;
    let mut night = Caller { project: "shop".into(), phase: "test".into(), ..Caller::agent("night") };
    for (at, expected) in [
        (23 * hour, Verdict::Deny),
        (25 * hour, Verdict::Allow),
        (31 * hour, Verdict::Deny),
        (47 * hour, Verdict::Allow),
        (48 * hour, Verdict::Deny),
    ] {
        assert_eq!(decide(&permissions, &night, "read_file", "a", at), expected, "{at}");
    }
    night.phase = "release".into();
    assert_eq!(decide(&permissions, &night, "read_file", "a", 25 * hour), Verdict::Deny);
    let anyone = Caller { category: Category::Core, ..Caller::agent("anyone") };
    assert_eq!(decide(&permissions, &anyone, "read_file", "a", 0), Verdict::Allow);
    assert_eq!(decide(&permissions, &anyone, "write_file", "a", 0), Verdict::Deny);
}

#[test]
fn every_problem_of_a_file_is_told_with_its_line() {
    let error = Permissions::from_yaml(
        r#"permission_model:
  agents:
    dev:
      mcp_servers: ["file system", "a__b"]
      operations: ["raed"]
      paths:
        - "src"
        - "/project/../etc"
        - "/etc"
      tools: ["github__*"]
      valid_until: "tomorrow"
      hours: "9-5"
      deny:
        - {}
        - paths: []
  categories:
    boss: {}
  security_policies: [no_system_acces]
"#,
        "p.yaml",
    )
    .unwrap_err();
    let ErrorKind::Problems { problems, .. } = error.kind() else { panic!("{error}") };
    let mut lines: Vec<u32> = problems
        .iter()
        .map(|p| p.strip_prefix("p.yaml:").unwrap().split(':').next().unwrap().parse().unwrap())
        .collect();
    lines.sort_unstable();
    assert_eq!(lines, [4, 4, 5, 7, 8, 9, 10, 11, 12, 14, 15, 17, 18], "{problems:#?}");
    assert!(error.to_string().contains("did you mean `no_system_access`?"), "{error}");
    assert!(error.to_string().contains("did you mean `read`?"), "{error}");
}

#[test]
fn what_is_not_yaml_of_this_shape_is_told_with_its_line() {
    for (text, line, words) in [
        ("permission_model:\n  agents: [\n", 2, ""),
        ("permission_model:\n  agnts: {}\n", 2, "agnts"),
        ("permission_model:\n  agents:\n    dev:\n      path: [/project]\n", 4, "path"),
        ("permission_model:\n  agents:\n    dev: {}\n    dev: {}\n", 4, "dev"),
        ("permission_model:\n  agents:\n    dev:\n      paths: /project\n", 4, ""),
    ] {
        let error = Permissions::from_yaml(text, "p.yaml").unwrap_err();
        assert_eq!(error.class(), coral_core::ErrorClass::User);
        let place = error.place().unwrap();
        let found: u32 = place.strip_prefix("p.yaml:").unwrap().parse().unwrap();
        assert!(found.abs_diff(line) <= 1, "{text}: {error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    for text in ["", "[]", "other: 1"] {
        assert!(Permissions::from_yaml(text, "p.yaml").is_err(), "{text}");
    }
}

#[tokio::test]
async fn a_person_is_asked_where_a_rule_wants_it() {
    let asking = PERMISSIONS.replace(
        "paths: [\"/project/src\", \"/project/tests\"]",
        "paths: [\"/project/src\"]\n      ask: [{operations: [write]}]",
    );
    let desk = Desk::new(&asking).await;
    let write = |content: &str| ToolCall {
        id: "1".into(),
        name: "filesystem__write_file".into(),
        arguments: json!({"path": "/project/./src/x", "content": content}),
    };
    let cx = CallContext::new(Caller::agent("backend_developer"));
    let error = desk.tools.call(&write("x"), &cx).await.unwrap_err();
    let ErrorKind::NeedsApproval { tool, reason } = error.kind() else { panic!("{error}") };
    assert_eq!(tool, "filesystem__write_file");
    assert!(reason.starts_with("a person must agree, by the `ask` rule at permissions.yaml:"), "{reason}");
    assert!(!desk.project().join("src/x").exists());
    assert_eq!(desk.decided(Verdict::Ask), 1);
    // An approval of this very call, and of no other.
    let approved = cx.with_approval(Approval::new(write("x"), "question-7"));
    let other = desk.tools.call(&write("y"), &approved).await.unwrap_err();
    assert!(matches!(other.kind(), ErrorKind::NeedsApproval { .. }), "{other}");
    Desk::ok(desk.tools.call(&write("x"), &approved).await);
    assert_eq!(desk.read("src/x"), "x");
    let allowed = desk.audit.records().into_iter().find_map(|record| match record.entry.event {
        AuditEvent::Decided { verdict: Verdict::Allow, rule, .. } => Some(rule),
        _ => None,
    });
    assert!(allowed.unwrap().starts_with("a person agreed by the answer to question question-7; "));
    // What is refused stays refused, whoever approves it.
    let refused = ToolCall { arguments: json!({"path": "docs/x", "content": "x"}), ..write("x") };
    let cx = CallContext::new(Caller::agent("backend_developer"));
    let cx = cx.with_approval(Approval::new(refused.clone(), "question-8"));
    Desk::denied(desk.tools.call(&refused, &cx).await);
}

#[tokio::test]
async fn a_policy_of_the_embedder_narrows_and_never_widens() {
    struct Never;
    impl Policy for Never {
        fn decide(&self, _: &Access<'_>) -> coral_mcp::Decision {
            coral_mcp::Decision::deny("closed today")
        }
        fn may_reach(&self, _: &Caller, _: &str, _: u64) -> bool {
            true
        }
        fn may_see(&self, _: &Access<'_>) -> bool {
            true
        }
    }
    let desk = Desk::with(PERMISSIONS, |b| b.policy(Never)).await;
    let read = desk.call("backend_developer", "filesystem__read_file", json!({"path": "src/main.rs"})).await;
    assert_eq!(Desk::denied(read), "closed today");
    let widened = desk.tools.list(&Caller::agent("nobody")).await.unwrap();
    assert!(widened.is_empty());
}

#[tokio::test]
async fn grants_run_out_and_are_renewed_under_time_bound_tokens() {
    let clock = Arc::new(ManualClock::at_ms(1_000));
    struct Shared(Arc<ManualClock>);
    impl coral_core::Clock for Shared {
        fn now_ms(&self) -> u64 {
            self.0.now_ms()
        }
        fn random(&self) -> u64 {
            self.0.random()
        }
    }
    let shared = Shared(Arc::clone(&clock));
    let hour = std::time::Duration::from_secs(3_600);
    let desk = Desk::with(PERMISSIONS, |b| b.clock(shared).lifetime(hour)).await;
    let read = || desk.call("backend_developer", "filesystem__read_file", json!({"path": "src/main.rs"}));
    Desk::ok(read().await);
    clock.advance_ms(3_600_000);
    assert!(Desk::denied(read().await).contains("time_bound_tokens"));
    assert!(desk.tools.list(&Caller::agent("backend_developer")).await.unwrap().is_empty());
    desk.tools.renew();
    Desk::ok(read().await);
}

#[tokio::test]
async fn secrets_are_not_written_in_the_clear() {
    let desk = Desk::new(PERMISSIONS).await;
    let token = format!("{}{}", "ghp_", "a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6q7r8");
    let write = json!({"path": "src/config.rs", "content": format!("const TOKEN: &str = \"{token}\";")});
    let reason = Desk::denied(desk.call("backend_developer", "filesystem__write_file", write).await);
    assert!(reason.contains("encrypt_sensitive_data"), "{reason}");
    assert!(!desk.project().join("src/config.rs").exists());
    // Nor do the places, names and reasons that the audit keeps hold one.
    for (tool, path) in
        [("filesystem__read_file", format!("src/{token}")), ("filesystem__read_file", format!("../{token}"))]
    {
        let _ = desk.call("backend_developer", tool, json!({"path": path})).await;
    }
    let _ = desk.call("backend_developer", &format!("filesystem__{token}"), json!({})).await;
    let audited = serde_json::to_string(&desk.audit.records()).unwrap();
    assert!(!audited.contains(&token));
}

#[tokio::test]
async fn a_decision_is_explained_without_a_trace() {
    let desk = Desk::new(PERMISSIONS).await;
    let before = desk.audit.records().len();
    let explain = async |agent: &str, tool: &str, arguments: serde_json::Value| {
        let call = coral_core::ToolCall { id: "1".into(), name: tool.into(), arguments };
        let decision = desk.tools.explain(&call, &Caller::agent(agent)).await.unwrap();
        (decision.verdict, decision.rule)
    };
    let write = json!({"path": "src/x", "content": "x"});
    let (verdict, rule) = explain("backend_developer", "filesystem__write_file", write.clone()).await;
    assert_eq!((verdict, rule.as_str()), (Verdict::Allow, "granted at permissions.yaml:9"));
    for (agent, tool, arguments, words) in [
        ("project_architect", "filesystem__write_file", write, "operation `write`"),
        ("backend_developer", "filesystem__read_file", json!({"path": "../x"}), "climbs"),
        ("backend_developer", "filesystem__read_file", json!({"pth": "x"}), "did you mean `path`?"),
        ("backend_developer", "filesystem__none", json!({}), "no server offers"),
        ("backend_developer", "nowhere__none", json!({}), "no grant names"),
    ] {
        let (verdict, rule) = explain(agent, tool, arguments).await;
        assert_eq!(verdict, Verdict::Deny);
        assert!(rule.contains(words), "{rule}");
    }
    assert_eq!(desk.audit.records().len(), before);
    assert!(!desk.project().join("src/x").exists());
}

#[test]
fn arguments_are_bound_by_patterns() {
    let permissions = Permissions::from_yaml(
        r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["github"]
      operations: ["write"]
      arguments:
        owner: ["acme"]
        repo: ["shop-*"]
      deny:
        - arguments: { branch: ["main", "release/*"] }
"#,
        "p.yaml",
    )
    .unwrap();
    let dev = Caller::agent("dev");
    for (arguments, expected) in [
        (json!({"owner": "acme", "repo": "shop-web", "branch": "topic"}), Verdict::Allow),
        (json!({"owner": "acme", "repo": "shop-web"}), Verdict::Allow),
        (json!({"owner": "acme", "repo": "shop-web", "branch": "main"}), Verdict::Deny),
        (json!({"owner": "acme", "repo": "shop-web", "branch": ["topic", "release/1"]}), Verdict::Deny),
        (json!({"owner": "acme", "repo": "shop-web", "branch": {"name": "main"}}), Verdict::Deny),
        (json!({"owner": "acme", "repo": "bank"}), Verdict::Deny),
        (json!({"owner": ["acme", "evil"], "repo": "shop-web"}), Verdict::Deny),
        (json!({"owner": ["acme"], "repo": "shop-web"}), Verdict::Allow),
        (json!({"owner": {"login": "acme"}, "repo": "shop-web"}), Verdict::Deny),
        (json!({"repo": "shop-web"}), Verdict::Deny),
    ] {
        let mut access = Access::new(&dev, "github", "push_files", Operation::Write);
        access.arguments = arguments.as_object();
        assert_eq!(permissions.decide(&access).verdict, expected, "{arguments}");
    }
}

proptest::proptest! {
    /// Whatever stands in a permission file, reading it ends in a document or in a message.
    #[test]
    fn nothing_breaks_the_reader(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = Permissions::from_yaml(&text, "p.yaml");
        let _ = Permissions::from_yaml(&format!("permission_model:\n  agents:\n    dev:\n      {text}"), "p.yaml");
        let _ = text.parse::<coral_mcp::ProjectPath>();
    }
}

#[test]
fn a_refused_program_is_refused_wherever_it_lies() {
    let text = r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["commands"]
      operations: ["execute"]
      paths: ["/project"]
      deny:
        - programs: ["rm"]
"#;
    let permissions = Permissions::from_yaml(text, "p.yaml").unwrap();
    let caller = Caller::agent("dev");
    let decide = |programs: &[&str]| {
        let programs: Vec<String> = programs.iter().map(|p| (*p).to_owned()).collect();
        let mut access = Access::new(&caller, "commands", "run", Operation::Execute);
        access.programs = &programs;
        let decisions = [permissions.decide(&access)];
        #[cfg(feature = "cedar")]
        let decisions = [
            decisions.into_iter().next().unwrap(),
            coral_mcp::PolicyEngine::new(permissions.clone()).unwrap().decide(&access),
        ];
        decisions.iter().all(coral_mcp::Decision::is_allowed)
    };
    assert!(decide(&["ls"]) && decide(&["/bin/ls"]) && decide(&["rmdir"]));
    for programs in [&["rm"][..], &["/bin/rm"], &["sudo", "rm"], &["sudo", "/usr/bin/rm"]] {
        assert!(!decide(programs), "{programs:?}");
    }
}

#[test]
fn the_hash_of_a_document_is_of_all_of_it() {
    let plain = Permissions::new();
    let strict = Permissions::new().enforce(SecurityPolicy::NoSystemAccess);
    assert_ne!(plain.digest(), strict.digest());
    assert_ne!(strict.digest(), strict.enforce(SecurityPolicy::TimeBoundTokens).digest());
}

#[test]
fn what_narrows_a_process_is_not_written_where_nothing_does() {
    let text = |rules: &str| {
        format!("permission_model:\n  agents: {{}}\nservers:\n  x: {{ isolation: none, {rules} }}\n")
    };
    for rules in [
        "network: false",
        "network: [\"a.example\"]",
        "read: [\"/opt/x\"]",
        "write: [\"/project\"]",
        "memory_mib: 5",
        "processes: 5",
    ] {
        let error = Permissions::from_yaml(&text(rules), "p.yaml").unwrap_err();
        assert!(error.to_string().contains("holds only where the process is isolated"), "{rules}: {error}");
    }
    Permissions::from_yaml(&text("network: true"), "p.yaml").unwrap();
}
