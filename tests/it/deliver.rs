//! The main job from a brief to a report: offline, and with a provider in both wire formats.

use std::collections::BTreeSet;
use std::path::Path;

use coral_tests::{Job, Provider, Wire, files};
use serde_json::Value;

pub(crate) const DELIVER: &str = env!("CARGO_BIN_EXE_deliver");
pub(crate) const BRIEF: &str = "examples/briefs/task_manager.md";

pub(crate) fn start(out: &Path, more: &[&str]) -> Job {
    let out = out.to_string_lossy().into_owned();
    let args = [BRIEF, "--out", &out].into_iter().chain(more.iter().copied());
    Job::new(DELIVER, args)
}

pub(crate) fn run_json(out: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(out.join("run.json")).unwrap()).unwrap()
}

/// The steps of a run by their state.
fn in_state(run: &Value, state: &str) -> BTreeSet<String> {
    let steps = run["steps"].as_array().unwrap().iter();
    steps
        .filter(|step| step["state"] == state)
        .map(|step| step["name"].as_str().unwrap().to_owned())
        .collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

const ALWAYS: [&str; 9] = [
    "architecture",
    "requirements",
    "backend_developer",
    "frontend_developer",
    "database_specialist",
    "qa_testing",
    "security_specialist",
    "deployment",
    "user_documentation",
];

#[tokio::test]
async fn without_key_and_network_a_brief_becomes_deliverables_and_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let finished = start(&out, &[]).finish().await.unwrap();
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{}", finished.stdout);
    assert!(finished.stdout.contains("offline: no language model is called"), "{}", finished.stdout);
    assert!(finished.stdout.contains("--resume documentation_first-"), "{}", finished.stdout);
    assert!(finished.stdout.contains("report.html"), "{}", finished.stdout);

    let run = run_json(&out);
    assert_eq!(run["status"], "succeeded");
    assert_eq!(in_state(&run, "succeeded"), names(&ALWAYS));
    assert_eq!(
        in_state(&run, "skipped"),
        names(&["ai_ml_specialist", "mobile_developer", "cloud_architect", "monitoring_specialist"])
    );
    assert!(run["graph"].as_str().unwrap().starts_with("flowchart"));
    assert!(run["handoffs"].as_array().unwrap().len() >= ALWAYS.len() - 1);

    let files = files(&out).unwrap();
    let delivered: BTreeSet<_> = run["deliverables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["path"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(delivered, files.keys().cloned().collect());
    assert!(files.len() >= 30, "{delivered:?}");
    for (path, text) in &files {
        assert!(text.contains("no language model was called"), "{path} does not say that it is offline");
    }
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for path in &delivered {
        assert!(page.contains(&format!("href=\"./{path}\"")), "{path} is not linked");
    }
    assert!(page.contains("<svg") && page.contains("Offline."));
    for outside in ["http://", "https://", "src=", "<script", "<link"] {
        assert!(!page.contains(outside), "the report refers to {outside}");
    }
}

#[tokio::test]
async fn conditions_of_the_command_line_add_members() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let more = ["--condition", "needs_mobile=true", "--condition=enterprise_deployment=true"];
    let finished = start(&out, &more).finish().await.unwrap();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let run = run_json(&out);
    let mut expected = names(&ALWAYS);
    expected.extend(names(&["mobile_developer", "cloud_architect", "monitoring_specialist"]));
    assert_eq!(in_state(&run, "succeeded"), expected);
    assert_eq!(in_state(&run, "skipped"), names(&["ai_ml_specialist"]));
    assert_eq!(run["facts"]["needs_mobile"], true);
}

#[tokio::test]
async fn a_workflow_of_ones_own_runs() {
    let dir = tempfile::tempdir().unwrap();
    let workflow = dir.path().join("two.yaml");
    let text = "name: two\nsteps:\n  - agent: project_architect\n  - name: needs\n    agent: technical_writer\n    phase: requirements\n    inputs: [project_architect]\n";
    std::fs::write(&workflow, text).unwrap();
    let out = dir.path().join("out");
    let finished = start(&out, &["--workflow", &workflow.to_string_lossy()]).finish().await.unwrap();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert_eq!(in_state(&run_json(&out), "succeeded"), names(&["project_architect", "needs"]));
}

async fn over_the_wire(wire: Wire) {
    let provider = Provider::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let finished = start(&out, &[]).env(provider.env(wire)).finish().await.unwrap();
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{}", finished.stdout);
    assert!(!finished.stdout.contains("offline:"), "{}", finished.stdout);

    let run = run_json(&out);
    assert_eq!(in_state(&run, "succeeded"), names(&ALWAYS));
    assert!(run["totals"]["input_tokens"].as_u64().unwrap() > 0);
    assert!(run["totals"]["output_tokens"].as_u64().unwrap() > 0);
    assert_eq!(run["steps"][0]["model"], "model-1");
    let calls = provider.calls();
    assert_eq!(run["totals"]["model_calls"], calls.len());
    assert!(calls.iter().all(|call| call.wire == wire && call.streamed && call.answered), "{calls:?}");
    let digests: BTreeSet<_> = calls.iter().map(|call| &call.digest).collect();
    assert_eq!(digests.len(), calls.len(), "no question was asked twice");

    let offline = dir.path().join("offline");
    let finished = start(&offline, &[]).finish().await.unwrap();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert_eq!(files(&out).unwrap(), files(&offline).unwrap(), "the wire loses and adds nothing");
}

#[tokio::test]
async fn the_job_runs_over_anthropics_messages() {
    over_the_wire(Wire::Anthropic).await;
}

#[tokio::test]
async fn the_job_runs_over_openais_chat_completions() {
    over_the_wire(Wire::OpenAi).await;
}

/// The permissions that come with the example, against the definitions of the agents.
#[test]
fn the_default_permissions_let_every_agent_write_what_it_promises_and_no_more() {
    use coral_core::Caller;
    use coral_mcp::{Access, Operation, Permissions, Policy};

    let path = coral_tests::root().join("examples/permissions.yaml");
    let permissions =
        Permissions::from_yaml(&std::fs::read_to_string(path).unwrap(), "permissions.yaml").unwrap();
    let registry = coral_agents::Registry::builtin();
    let ids: BTreeSet<String> = registry.agents().map(|agent| agent.id.clone()).collect();
    assert_eq!(ids, permissions.agents().map(str::to_owned).collect());
    for agent in registry.agents() {
        let mut caller = Caller::agent(agent.id.as_str());
        caller.category = agent.category;
        let may = |operation, path: &str| {
            let paths = [path.parse().unwrap()];
            permissions.may(&caller, operation, &paths)
        };
        let phases = agent.phases.values().filter_map(|phase| phase.outputs.as_ref());
        for output in phases.chain([&agent.outputs]).flatten() {
            assert!(may(Operation::Write, &output.path), "{} may not write {}", agent.id, output.path);
        }
        for other in registry.agents().flat_map(|other| &other.outputs) {
            assert!(may(Operation::Read, &other.path), "{} may not read {}", agent.id, other.path);
        }
        for forbidden in ["README.md", ".git/config", "src/other/main.rs"] {
            assert!(!may(Operation::Write, forbidden), "{} may write {forbidden}", agent.id);
        }
    }

    trait May {
        fn may(&self, caller: &Caller, operation: Operation, paths: &[coral_mcp::ProjectPath]) -> bool;
    }
    impl May for Permissions {
        fn may(&self, caller: &Caller, operation: Operation, paths: &[coral_mcp::ProjectPath]) -> bool {
            let tool = if operation == Operation::Read { "read_file" } else { "write_file" };
            let access =
                Access { caller, server: "filesystem", tool, operation, paths, recursive: false, now_ms: 0 };
            self.decide(&access).is_allowed()
        }
    }
}
