use coral_core::{ErrorKind, Input, Join};
use proptest::prelude::*;

use super::*;

fn load(text: &str) -> GraphData {
    parse_workflow("w.yaml", text, &Registry::builtin()).unwrap()
}

/// The graph in short: one line a step.
fn outline(graph: &GraphData) -> Vec<String> {
    let listed = |inputs: &[Input]| inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    graph
        .steps
        .iter()
        .map(|step| {
            let agent = step.kind.agent().map_or("a function", |agent| agent);
            let mut line = format!("{}: {agent}", step.name);
            for (label, text) in [
                ("in", &*step.phase),
                ("<-", &listed(&step.inputs)),
                ("after", &step.after.join(" ")),
                ("if", step.when.as_deref().unwrap_or_default()),
                ("told", &step.instructions.join(" ")),
            ] {
                if !text.is_empty() {
                    line.push_str(&format!(" {label} {text}"));
                }
            }
            line
        })
        .collect()
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    assert_eq!(outline(&load(text)), expected);
}

#[track_caller]
fn check_problems(text: &str, expected: &[&str]) {
    let error = parse_workflow("w.yaml", text, &Registry::builtin()).unwrap_err();
    let ErrorKind::Problems { problems, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(problems, expected);
}

#[test]
fn the_full_form_is_read() {
    let text = "
name: full
description: All of it.
output: docs
steps:
  - name: design
    agent: project_architect
  - agent: technical_writer
    phase: requirements
    inputs: design
    timeout_ms: 1000
    retry: {max_attempts: 3}
  - group: build
    phase: development
    when: has_code
    agents:
      - backend_developer
      - {agent: frontend_developer, name: web, instructions: [Use the tokens.]}
      - mobile_developer
    shared_context: technical_writer
    instructions: Write tests.
  - name: merge
    function: merge
    inputs: [build, \"design?\"]
    join: {quorum: 2}
  - name: docs
    agent: technical_writer
    inputs: [merge]
    after: [design]
conditions:
  needs_mobile: mobile_developer
";
    let graph = load(text);
    assert_eq!((graph.name.as_str(), graph.description.as_str()), ("full", "All of it."));
    assert_eq!(graph.output.as_deref(), Some("docs"));
    assert_eq!(graph.steps[1].retry.max_attempts, 3);
    assert_eq!(graph.steps[1].timeout_ms, Some(1000));
    assert_eq!(graph.steps[5].join, Join::Quorum(2));
    assert_eq!(
        outline(&graph),
        [
            "design: project_architect",
            "technical_writer: technical_writer in requirements <- design",
            "backend_developer: backend_developer in development <- technical_writer if has_code told Write tests.",
            "web: frontend_developer in development <- technical_writer if has_code told Write tests. Use the tokens.",
            "mobile_developer: mobile_developer in development <- technical_writer if (has_code) and (needs_mobile) told Write tests.",
            "merge: a function <- backend_developer? web? mobile_developer? design?",
            "docs: technical_writer <- merge after design",
        ]
    );
}

/// The shapes as they were given, byte by byte: one has a blank at the end of a line.
const SEQUENTIAL: &str = include_str!("../../tests/shapes/sequential.py");

const PARALLEL: &str = include_str!("../../tests/shapes/parallel.py");

const CONDITIONAL: &str = include_str!("../../tests/shapes/conditional.py");

const SEQUENTIAL_OUTLINE: [&str; 6] = [
    "project_architect: project_architect",
    "technical_writer: technical_writer in requirements <- project_architect",
    "backend_developer: backend_developer <- technical_writer",
    "frontend_developer: frontend_developer <- technical_writer after backend_developer",
    "qa_testing: qa_testing <- backend_developer frontend_developer",
    "devops_deployment: devops_deployment <- qa_testing told Work from `tested_application`.",
];

#[test]
fn a_linear_list_loads_as_it_stands() {
    check(SEQUENTIAL, &SEQUENTIAL_OUTLINE);
    check(
        "- [project_architect, {}]
- [technical_writer, {input: architecture_output, phase: requirements}]
- [backend_developer, {input: requirements_document}]
- [frontend_developer, {input: api_specification}]
- technical_writer",
        &[
            "project_architect: project_architect",
            "technical_writer: technical_writer in requirements <- project_architect",
            "backend_developer: backend_developer <- technical_writer",
            "frontend_developer: frontend_developer <- technical_writer after backend_developer",
            "technical_writer_2: technical_writer <- frontend_developer",
        ],
    );
}

#[test]
fn parallel_groups_load_as_they_stand() {
    let expected = [
        "backend_developer: backend_developer in development told Work from `technical_specification`.",
        "frontend_developer: frontend_developer in development told Work from `technical_specification`.",
        "database_admin: database_specialist in development told Work from `technical_specification`.",
        "qa_testing: qa_testing in validation <- backend_developer frontend_developer database_admin",
        "security_specialist: security_specialist in validation <- backend_developer frontend_developer database_admin",
    ];
    check(PARALLEL, &expected);
    let json = PARALLEL.split_once('=').unwrap().1.trim();
    check(json, &expected);
    check(&format!("name: p\nparallel_groups: {}", json.replace('\n', "\n  ")), &expected);
}

#[test]
fn a_conditional_map_loads_as_it_stands() {
    let expected = [
        "ai_ml_specialist: ai_ml_specialist if has_ai_features",
        "mobile_developer: mobile_developer if needs_mobile",
        "cloud_architect: cloud_architect if enterprise_deployment",
        "monitoring_specialist: monitoring_specialist if enterprise_deployment",
    ];
    check(CONDITIONAL, &expected);
    check(CONDITIONAL.split_once('=').unwrap().1, &expected);
}

#[test]
fn shared_context_may_name_a_deliverable() {
    check(
        "
steps:
  - {name: design, agent: project_architect}
  - group: build
    agents: [backend_developer]
    shared_context: technical_specification
",
        &["design: project_architect", "backend_developer: backend_developer <- design"],
    );
}

#[test]
fn all_problems_come_at_once_with_lines() {
    check_problems(
        "name: bad
output: don
steps:
  - name: design
    agent: project_architekt
    input: [requirement]
  - name: requirements
    agent: technical_writer
    inputs: [design]
    when: needs and (
    retry: {max_attempts: 0}
  - name: design
    agent: backend_developer
    inputs: [nothing_like_it]
  - name: lost
    inptus: [design]
  - group: build
    agents: [frontend_developer, {nmae: x, agent: qa_testing}]
    dependencies: [design]
    join: {quorum: 9}
    colour: red
  - 3
conditions:
  needs_mobile: [mobile_develper]
extra: 1
",
        &[
            "w.yaml:2: output: no step is called `don`",
            "w.yaml:5: no agent is called `project_architekt`; did you mean `project_architect`?",
            "w.yaml:6: no step or group is called `requirement`; did you mean `requirements`?",
            "w.yaml:10: step `requirements`: condition `needs and (`: syntax error: unexpected end of input, expected expression",
            "w.yaml:11: step `requirements`: `retry.max_attempts` counts the first try, so it is at least 1",
            "w.yaml:12: step `design` stands on line 4 too: give one of them another name",
            "w.yaml:15: the step says neither which `agent` nor which `function` it runs",
            "w.yaml:16: unknown key `inptus`; did you mean `inputs`?",
            "w.yaml:18: unknown key `nmae`; did you mean `name`?",
            "w.yaml:21: unknown key `colour`",
            "w.yaml:22: a step is a mapping such as `{name: …, agent: …}`, not a number",
            "w.yaml:24: no agent is called `mobile_develper`; did you mean `mobile_developer`?",
            "w.yaml:25: unknown key `extra`",
        ],
    );
}

#[test]
fn structure_is_checked_with_lines() {
    check_problems(
        "steps:
  - {name: a, agent: qa_testing, inputs: [c]}
  - {name: b, agent: qa_testing, inputs: [a]}
  - {name: c, agent: qa_testing, inputs: [b]}
  - name: d
    agent: qa_testing
    inputs: [c]
    join:
      quorum: 2
",
        &[
            "w.yaml:2: step `a`: steps wait for each other in a circle: a, b, c",
            "w.yaml:9: step `d`: a quorum of 2 of 1 inputs can't be met",
        ],
    );
    check_problems("steps: []\n", &["w.yaml:1: the workflow has no `steps`"]);
    check_problems("name: x\n", &["w.yaml:1: the workflow has no `steps`"]);
    check_problems("", &["w.yaml:1: a workflow is a mapping with `steps`, not nothing"]);
    check_problems(
        "steps: [{agent: qa_testing, name: QA}]\n",
        &[
            "w.yaml:1: step `QA`: a step's name is lower-case letters, digits, `_` and `-`, begins with a letter, and is at most 64 long",
        ],
    );
    check_problems(
        "steps:\n  - {name: build, agent: qa_testing}\n  - {group: build, agents: [backend_developer]}\n  - {group: late, agents: []}\n  - {agents: [qa_testing]}\n",
        &[
            "w.yaml:3: `build` names a step and a group: give one of them another name",
            "w.yaml:4: group `late` has no `agents`",
            "w.yaml:5: the group has neither a `group` name nor a `phase`",
        ],
    );
}

#[test]
fn python_is_only_what_looks_like_it() {
    assert_eq!(python::to_yaml("name: x\nsteps: []\n"), None);
    assert_eq!(python::to_yaml("when = 3"), None);
    assert_eq!(
        python::to_yaml("w = [\n  ('a(\\'', None), # (x)\n]\nb = {True: 1}").as_deref(),
        Some("w: [\n  ['a(\\'', null], # (x)\n]\nb: {true: 1}")
    );
}

proptest! {
    #[test]
    fn a_workflow_of_any_shape_is_read_or_refused(parts in prop::collection::vec(prop_oneof![
        Just("steps:\n"), Just("  - name: a\n"), Just("  - group: g\n"), Just("    agents: [qa_testing, x]\n"),
        Just("    agent: qa_testing\n"), Just("    inputs: [a, g, \"b?\"]\n"), Just("    when: x and\n"),
        Just("    join: {quorum: 0}\n"), Just("    join: some\n"), Just("conditions:\n  x: [qa_testing]\n"),
        Just("workflow = [\n"), Just("(\"a\", {}),\n"), Just("]\n"), Just("output: a\n"), Just("- [a, {input: b}]\n"),
        Just("    after: [g]\n"), Just("name: {}\n"), Just("    agents: 3\n"), Just("    - {agent: [x]}\n"), Just("'"),
    ], 0..14)) {
        let text = parts.concat();
        match parse_workflow("w.yaml", &text, &Registry::builtin()) {
            Ok(graph) => prop_assert!(graph.problems().is_empty()),
            Err(error) => {
                let ErrorKind::Problems { problems, .. } = error.kind() else { panic!("{error}") };
                prop_assert!(!problems.is_empty());
            }
        }
    }
}
