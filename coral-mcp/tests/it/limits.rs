//! Rates and quotas.

use coral_core::{CallContext, Caller, Error, ToolCall, ToolOutput, Toolbox};
use coral_mcp::Permissions;
use serde_json::json;

use crate::desk::Desk;

fn permissions(limits: &str, servers: &str) -> String {
    format!(
        "permission_model:\n  {limits}\n  agents:\n    dev: &all\n      mcp_servers: [filesystem]\n      \
         operations: [read]\n      paths: [/project]\n    qa: *all\n    slow:\n      mcp_servers: [filesystem]\n      \
         operations: [read]\n      paths: [/project]\n      calls_per_minute: 1\n{servers}"
    )
}

async fn desk(limits: &str, servers: &str) -> Desk {
    Desk::new(&permissions(limits, servers)).await
}

async fn read(desk: &Desk, agent: &str, run: &str, project: &str, tool: &str) -> Result<ToolOutput, Error> {
    let caller = Caller { run: run.into(), project: project.into(), ..Caller::agent(agent) };
    let arguments = json!({"path": "docs/plan.md"});
    let call = ToolCall { id: "1".into(), name: format!("filesystem__{tool}"), arguments };
    desk.tools.call(&call, &CallContext::new(caller)).await
}

#[tokio::test]
async fn calls_are_counted_by_run_and_project() {
    let desk = desk("quotas: { calls_per_run: 2, calls_per_project: 3 }", "").await;
    let read = |run: &'static str, project: &'static str| read(&desk, "dev", run, project, "read_file");
    Desk::ok(read("r1", "shop").await);
    Desk::ok(read("r1", "shop").await);
    assert_eq!(Desk::denied(read("r1", "shop").await), "the run may make 2 calls in all");
    Desk::ok(read("r2", "shop").await);
    assert_eq!(Desk::denied(read("r2", "shop").await), "project `shop` may make 3 calls in all");
    Desk::ok(read("r2", "bank").await);
    assert!(Desk::denied(read("r1", "bank").await).contains("the run may make"));
    // A run that waits and goes on has used what it used, and so after a restart.
    desk.tools.forget("r1");
    assert!(Desk::denied(read("r1", "bank").await).contains("the run may make"));
    let audit = std::sync::Arc::clone(&desk.audit);
    let again = Desk::with(&permissions("quotas: { calls_per_run: 2, calls_per_project: 3 }", ""), |b| {
        b.audit(audit)
    })
    .await;
    let read =
        |run: &'static str, project: &'static str| self::read(&again, "dev", run, project, "read_file");
    assert!(Desk::denied(read("r1", "bank").await).contains("the run may make"));
    assert!(Desk::denied(read("r3", "shop").await).contains("project `shop` may make"));
    Desk::ok(read("r3", "bank").await);
}

#[tokio::test]
async fn rates_are_of_agents_servers_and_tools() {
    let servers = "servers:\n  filesystem:\n    total_calls_per_minute: 5\n    calls_per_minute: 4\n    tools:\n      \
                   get_file_info: { operation: read, effect: pure, paths: [path], calls_per_minute: 1 }\n";
    let desk = desk("deny: []", servers).await;
    let call = |agent: &'static str, tool: &'static str| read(&desk, agent, "r", "p", tool);
    Desk::ok(call("slow", "read_file").await);
    assert_eq!(Desk::denied(call("slow", "read_file").await), "agent `slow` may make 1 calls a minute");
    Desk::ok(call("dev", "get_file_info").await);
    let refused = call("dev", "get_file_info").await.unwrap_err();
    assert!(
        refused.to_string().contains("tool `filesystem__get_file_info` takes from an agent 1 calls"),
        "{refused}"
    );
    assert!(refused.retry_after_ms().is_some());
    // What was refused took nothing: three of the server's five are left.
    for agent in ["dev", "qa", "dev"] {
        Desk::ok(call(agent, "read_file").await);
    }
    assert_eq!(Desk::denied(call("qa", "read_file").await), "server `filesystem` takes 5 calls a minute");
}

#[tokio::test]
async fn calls_at_once_do_not_share_the_last_one() {
    let desk = desk("quotas: { calls_per_run: 7 }", "").await;
    let calls = (0..40).map(|_| read(&desk, "dev", "r", "p", "read_file"));
    let results = futures_util::future::join_all(calls).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 7);
}

#[test]
fn limits_of_nothing_are_told() {
    for (model, servers) in [
        ("quotas: { calls_per_run: 0 }", ""),
        ("agents: { dev: { calls_per_minute: 0 } }", ""),
        ("agents: {}", "servers: { x: { total_calls_per_minute: 0 } }"),
        ("agents: {}", "servers: { x: { tools: { t: { operation: read, calls_per_minute: 0 } } } }"),
    ] {
        let error = Permissions::from_yaml(&format!("permission_model:\n  {model}\n{servers}\n"), "p.yaml")
            .unwrap_err();
        assert!(error.to_string().contains("lets nothing through"), "{error}");
    }
}
