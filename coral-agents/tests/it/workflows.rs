//! The built-in workflows.

use std::collections::{BTreeMap, BTreeSet};

use coral_agents::{Explanation, Registry};
use coral_core::{Condition, GraphData};
use serde_json::Value;

fn facts(names: &[&str]) -> BTreeMap<String, Value> {
    names.iter().map(|name| ((*name).to_owned(), true.into())).collect()
}

/// The facts that a workflow's conditions ask for.
pub(crate) fn facts_of(graph: &GraphData) -> BTreeSet<String> {
    let conditions = graph.steps.iter().filter_map(|step| step.when.as_deref());
    conditions
        .map(|when| Condition::new(when).unwrap())
        .flat_map(|condition| condition.reads().map(str::to_owned).collect::<Vec<_>>())
        .filter(|name| !name.starts_with("steps."))
        .collect()
}

#[track_caller]
fn check(workflow: &str, names: &[&str], expected: &[&[&str]]) {
    let registry = Registry::builtin();
    let graph = registry.workflow(workflow).unwrap();
    let explanation = Explanation::new(graph, &facts(names)).unwrap();
    let running: Vec<Vec<&str>> = explanation
        .waves()
        .into_iter()
        .map(|wave| wave.into_iter().filter(|step| explanation.runs(step)).collect::<Vec<_>>())
        .filter(|wave| !wave.is_empty())
        .collect();
    assert_eq!(running, expected);
}

#[test]
fn documentation_first_is_the_team_of_the_main_job() {
    check(
        "documentation_first",
        &[],
        &[
            &["architecture"],
            &["requirements"],
            &["backend_developer", "frontend_developer", "database_specialist"],
            &["qa_testing", "security_specialist"],
            &["deployment"],
            &["user_documentation"],
        ],
    );
    check(
        "documentation_first",
        &["has_ai_features", "needs_mobile", "enterprise_deployment"],
        &[
            &["architecture"],
            &["requirements"],
            &[
                "backend_developer",
                "frontend_developer",
                "database_specialist",
                "ai_ml_specialist",
                "mobile_developer",
            ],
            &["qa_testing", "security_specialist", "cloud_architect", "monitoring_specialist"],
            &["deployment"],
            &["user_documentation"],
        ],
    );
}

#[test]
fn an_incident_calls_only_those_whom_it_concerns() {
    check(
        "incident_response",
        &["data_affected"],
        &[
            &["response"],
            &["database_specialist"],
            &["fix"],
            &["verification"],
            &["release"],
            &["postmortem"],
        ],
    );
    check(
        "incident_response",
        &["rolled_back", "security_incident", "handles_personal_data"],
        &[&["response"], &["security_specialist", "compliance_specialist"], &["postmortem"]],
    );
}

#[test]
fn every_agent_works_in_some_workflow() {
    let registry = Registry::builtin();
    let at_work: BTreeSet<&str> = registry
        .workflows()
        .flat_map(|graph| graph.steps.iter().filter_map(|step| step.kind.agent()).map(|id| &**id))
        .collect();
    let idle: Vec<&str> =
        registry.agents().map(|spec| spec.id.as_str()).filter(|id| !at_work.contains(id)).collect();
    assert_eq!(idle, [""; 0]);
}

/// Whatever the facts are, a workflow comes to its output: with none, each alone, and all.
#[test]
fn every_workflow_reaches_its_output() {
    let registry = Registry::builtin();
    let workflows: Vec<_> = registry.workflows().collect();
    assert_eq!(workflows.len(), 10);
    for graph in workflows {
        let names = facts_of(graph);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(!names.is_empty(), "{} has conditions", graph.name);
        let sets = [vec![], names.clone()].into_iter().chain(names.iter().map(|name| vec![*name]));
        for set in sets {
            let explanation = Explanation::new(graph, &facts(&set)).unwrap();
            let output = graph.output.as_deref().unwrap();
            assert!(explanation.runs(output), "{} with {set:?}:\n{explanation}", graph.name);
        }
    }
}

/// Who may send whose work back is in the text and in the drawing.
#[test]
fn an_explanation_shows_the_reviews() {
    let registry = Registry::builtin();
    let graph = registry.workflow("documentation_first").unwrap();
    let explanation = Explanation::new(graph, &facts(&[])).unwrap();
    let text = explanation.to_string();
    let qa = text.lines().find(|line| line.trim_start().starts_with("qa_testing")).unwrap();
    assert!(qa.ends_with("runs, may send back backend_developer, frontend_developer, database_specialist, ai_ml_specialist, mobile_developer"), "{qa}");
    let number = |name: &str| graph.steps.iter().position(|step| &*step.name == name).unwrap();
    let edge = format!("s{} -.->|sends back| s{}", number("qa_testing"), number("backend_developer"));
    assert!(explanation.mermaid().contains(&edge), "{}", explanation.mermaid());
}
