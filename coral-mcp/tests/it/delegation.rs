//! Rights on their way from agent to agent: they only shrink.

use coral_core::{Caller, ToolCall, Toolbox};
use coral_mcp::{Grant, Operation, Permissions, Sandbox, Verdict};
use proptest::prelude::*;
use serde_json::json;

use crate::desk::{Desk, PERMISSIONS};

#[tokio::test]
async fn a_deputy_does_not_lend_its_rights() {
    let desk = Desk::new(PERMISSIONS).await;
    let architect = Caller::agent("project_architect");
    let developer = Caller::agent("backend_developer");
    let write =
        || desk.call("backend_developer", "filesystem__write_file", json!({"path": "src/x", "content": "x"}));
    Desk::ok(write().await);
    desk.tools.delegate(&architect, &developer).unwrap();
    let reason = Desk::denied(write().await);
    assert!(reason.starts_with("for `project_architect`, on whose behalf this is: "), "{reason}");
    let shown = desk.tools.list(&developer).await.unwrap();
    assert!(shown.iter().all(|tool| tool.name != "filesystem__write_file"));
    // The parent's own rights are as they were, and another run is not concerned.
    Desk::ok(desk.call("project_architect", "filesystem__read_file", json!({"path": "docs/plan.md"})).await);
    let elsewhere = Caller { run: "other".into(), ..developer };
    let call = ToolCall {
        id: "1".into(),
        name: "filesystem__write_file".into(),
        arguments: json!({"path": "src/x", "content": "x"}),
    };
    assert!(desk.tools.explain(&call, &elsewhere).await.unwrap().is_allowed());
    desk.tools.forget("");
    Desk::ok(write().await);
}

const PATHS: [&str; 5] = ["/project", "/project/a", "/project/a/b", "/project/a/c", "/project/d"];
const TOOLS: [(&str, Operation); 3] = [
    ("read_file", Operation::Read),
    ("directory_tree", Operation::Read),
    ("create_directory", Operation::Write),
];

/// A grant and its rules as they stand in a file, by nine small numbers.
fn written(choice: &[usize]) -> String {
    let pick = |at: usize, of: &[&str]| of[choice[at] % of.len()].to_owned();
    let mut text = String::from("      mcp_servers: [filesystem]\n");
    text += &format!(
        "      operations: [{}]\n",
        pick(
            0,
            &[
                "read",
                "write",
                "execute",
                "read, write",
                "read, write, execute",
                "list_files",
                "create_directories",
                "read, create_directories"
            ]
        )
    );
    text += &format!("      paths: [{}]\n", pick(1, &PATHS));
    text += &pick(2, &["", "", "      tools: [\"read_*\"]\n", "      tools: [\"*directory*\"]\n"]);
    text += &pick(
        3,
        &[
            "",
            "",
            "      valid_until: \"1970-01-01T00:00:01Z\"\n",
            "      valid_from: \"1970-01-01T00:00:05Z\"\n",
        ],
    );
    for (rule, at) in [("deny", 4), ("ask", 6)] {
        let place = pick(at, &["", "", PATHS[1], PATHS[2], PATHS[4]]);
        let operations = pick(
            at + 1,
            &["", "", "          operations: [write]\n", "          tools: [\"directory_tree\"]\n"],
        );
        if !place.is_empty() {
            text += &format!("      {rule}:\n        - paths: [{place}]\n{operations}");
        }
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// With all that a file can say: named operations, tools, windows of time, refusals and questions. The
    /// verdict on a descendant is never milder than that on its ancestors.
    #[test]
    fn no_rule_is_lost_on_the_way(
        choices in prop::collection::vec(prop::collection::vec(0..40_usize, 9), 2..6),
        parents in prop::collection::vec(any::<prop::sample::Index>(), 5),
        now_ms in 0..10_000_u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let agent = |i: usize| Caller::agent(format!("agent{i}"));
            let mut text = String::from("permission_model:\n  agents:\n");
            for (i, choice) in choices.iter().enumerate() {
                text += &format!("    agent{i}:\n{}", written(choice));
            }
            let dir = tempfile::tempdir().unwrap();
            let tools = Sandbox::builder()
                .permissions(Permissions::from_yaml(&text, "p.yaml").unwrap())
                .clock(coral_core::ManualClock::at_ms(now_ms))
                .root(dir.path())
                .filesystem()
                .build()
                .await
                .unwrap();
            let edges: Vec<(usize, usize)> = (1..choices.len()).map(|i| (parents[i - 1].index(i), i)).collect();
            for (parent, child) in &edges {
                tools.delegate(&agent(*parent), &agent(*child)).unwrap();
            }
            for (tool, _) in TOOLS {
                for path in PATHS {
                    let call = ToolCall { id: "1".into(), name: format!("filesystem__{tool}"), arguments: json!({"path": path}) };
                    let mut verdicts = Vec::new();
                    for i in 0..choices.len() {
                        verdicts.push(tools.explain(&call, &agent(i)).await.unwrap().verdict);
                    }
                    for (parent, child) in &edges {
                        assert!(verdicts[*child] >= verdicts[*parent], "{tool} {path}: {child} for {parent}\n{text}");
                    }
                }
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Agent `i` has random grants, and acts for a random earlier agent; cycles are tried too.
    #[test]
    fn what_a_descendant_may_its_ancestors_may(
        grants in prop::collection::vec((any::<bool>(), any::<bool>(), prop::collection::vec(0..PATHS.len(), 0..3)), 2..7),
        parents in prop::collection::vec(any::<prop::sample::Index>(), 6),
        cycle in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let agent = |i: usize| Caller::agent(format!("agent{i}"));
            let permissions = grants.iter().enumerate().fold(Permissions::new(), |permissions, (i, (read, write, paths))| {
                let operations = [(*read, Operation::Read), (*write, Operation::Write)];
                let operations = operations.into_iter().filter(|(on, _)| *on).map(|(_, operation)| operation);
                let grant = Grant::new(["filesystem"], operations, paths.iter().map(|p| PATHS[*p])).unwrap();
                permissions.grant(format!("agent{i}"), grant)
            });
            let dir = tempfile::tempdir().unwrap();
            let tools = Sandbox::builder().permissions(permissions).root(dir.path()).filesystem().build().await.unwrap();
            let mut edges = Vec::new();
            for i in 1..grants.len() {
                edges.push((parents[i - 1].index(i), i));
            }
            if cycle {
                edges.push((grants.len() - 1, 0));
            }
            for (parent, child) in &edges {
                tools.delegate(&agent(*parent), &agent(*child)).unwrap();
            }
            for (tool, _) in TOOLS {
                for path in PATHS {
                    let call = ToolCall {
                        id: "1".into(),
                        name: format!("filesystem__{tool}"),
                        arguments: json!({"path": path}),
                    };
                    let mut allowed = Vec::new();
                    for i in 0..grants.len() {
                        allowed.push(tools.explain(&call, &agent(i)).await.unwrap().verdict == Verdict::Allow);
                    }
                    for (parent, child) in &edges {
                        assert!(!allowed[*child] || allowed[*parent], "{tool} {path}: {child} for {parent}");
                    }
                }
            }
        });
    }
}
