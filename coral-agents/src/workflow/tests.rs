use coral_core::{Budget, ErrorKind, Input, Join, StepKind, Usd};
use proptest::prelude::*;
use serde_json::json;

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
            "w.yaml:15: the step does not say what it runs: one of `agent`, `function`, `ask`, `timer`, `signal`, `workflow`, `map`, `loop`, `route`",
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

/// Every kind of step, as it is written and as it becomes.
#[test]
fn every_kind_of_step_is_read() {
    let graph = load(
        "
steps:
  - {name: design, agent: project_architect}
  - name: services
    map:
      - {agent: backend_developer, phase: development, on_gap: from_brief}
    over: data.services
    concurrency: 2
    inputs: design
    budget: {usd: 2.5, calls: 40}
  - name: polish
    loop:
      description: Until it is good.
      output: qa_testing
      steps:
        - {agent: frontend_developer, on_gap: from_brief}
        - {agent: qa_testing, inputs: frontend_developer}
    until: output.data.passed or turn == 2
    max_turns: 3
    inputs: services
  - name: release
    ask: May it go out?
    answer: [go, wait]
    deadline_ms: 1000
    default: wait
    inputs: [design, polish]
  - {name: rest, timer: 250, inputs: release}
  - signal: window
  - {workflow: documentation_only, inputs: [rest, window]}
  - {name: desk, route: [qa_testing, database_admin], max_hops: 4, inputs: release}
",
    );
    let kind = |name: &str| &graph.steps.iter().find(|step| *step.name == *name).unwrap().kind;
    let StepKind::Map { body, over, concurrency: 2 } = kind("services") else { panic!() };
    assert_eq!((&*body.name, over.as_deref()), ("services", Some("data.services")));
    assert_eq!(outline(body), ["backend_developer: backend_developer in development"]);
    let StepKind::Loop { body, until, max_turns: 3 } = kind("polish") else { panic!() };
    assert_eq!(&**until, "output.data.passed or turn == 2");
    assert_eq!((&*body.description, body.output.as_deref()), ("Until it is good.", Some("qa_testing")));
    assert_eq!(outline(body)[1], "qa_testing: qa_testing <- frontend_developer");
    let asked = StepKind::Ask {
        answer: json!({"enum": ["go", "wait"]}),
        deadline_ms: Some(1000),
        default: Some(json!("wait")),
    };
    assert_eq!(*kind("release"), asked);
    assert_eq!(graph.steps[3].instructions, ["May it go out?"]);
    assert_eq!(*kind("rest"), StepKind::Timer(250));
    assert_eq!(*kind("window"), StepKind::Signal("window".into()));
    let known = Registry::builtin().workflow("documentation_only").unwrap().clone();
    assert_eq!(*kind("documentation_only"), StepKind::Workflow(known));
    let agents = vec!["qa_testing".into(), "database_specialist".into()];
    assert_eq!(*kind("desk"), StepKind::Route { agents, max_hops: 4 });
    let budget = Budget { usd: Some(Usd::from_dollars(2.5)), calls: Some(40), ..Budget::default() };
    assert_eq!(graph.steps[1].budget, budget);
    assert!(graph.problems().is_empty());
    // As a journal keeps it, it comes back.
    let text = serde_json::to_string(&graph).unwrap();
    assert_eq!(serde_json::from_str::<GraphData>(&text).unwrap(), graph);
}

#[test]
fn answers_are_types_lists_and_schemas() {
    let answer = |line: &str| {
        let text = format!("steps:\n  - name: a\n    ask: x?\n{line}");
        let StepKind::Ask { answer, .. } = load(&text).steps[0].kind.clone() else { panic!() };
        answer
    };
    assert_eq!(answer(""), json!({"type": "boolean"}));
    assert_eq!(answer("    answer: string\n"), json!({"type": "string"}));
    assert_eq!(answer("    answer: [1, two]\n"), json!({"enum": [1, "two"]}));
    assert_eq!(answer("    answer: {type: integer, minimum: 2}\n"), json!({"type": "integer", "minimum": 2}));
}

#[test]
fn what_is_wrong_with_a_kind_is_told_with_its_line() {
    check_problems(
        "steps:
  - name: a
    loop:
      - {name: in, agent: qa_tester}
      - {name: out, agent: qa_testing, inputs: inn}
    until: output and (
    max_turns: 2
  - name: b
    map: documentation
    concurrency: 0
  - name: c
    ask: Well?
    answer: bool
    until: x
  - name: d
    ask: Well?
    answer: [go, wait]
    deadline_ms: 5
    default: perhaps
  - name: e
    ask: Well?
    default: true
  - {name: f, timer: soon}
  - {name: g, route: [qa_testing]}
  - {name: h, loop: [{agent: qa_testing}]}
  - {name: i, agent: qa_testing, function: f}
  - timer: 5
  - {name: j, workflow: 3}
  - {name: k, timer: 5, instructions: Hurry.}
  - name: l
    workflow:
      - {name: x, agent: qa_testing, when: steps.y.data}
",
        &[
            "w.yaml:4: no agent is called `qa_tester`; did you mean `qa_testing`?",
            "w.yaml:5: no step or group is called `inn`; did you mean `in`?",
            "w.yaml:6: step `a`: condition `output and (`: syntax error: unexpected end of input, expected expression",
            "w.yaml:10: `concurrency`: invalid value: integer `0`, expected a nonzero u32",
            "w.yaml:13: `answer`: no type is called `bool`; a type is one of boolean, string, integer, number, a list of answers or a JSON Schema",
            "w.yaml:14: `until` belongs to `loop`, and this step has `ask`",
            "w.yaml:15: step `d`: the default answer does not fit: /: \"perhaps\" is none of \"go\", \"wait\"",
            "w.yaml:22: `default` is the answer at a `deadline_ms`, and there is none",
            "w.yaml:23: `timer`: expected u64, found `soon`",
            "w.yaml:24: `route` needs `max_hops`",
            "w.yaml:25: `loop` needs `max_turns`",
            "w.yaml:25: `loop` needs `until`",
            "w.yaml:26: a step runs one thing, and this one has `agent` and `function`",
            "w.yaml:27: the step needs a `name`",
            "w.yaml:28: `workflow` is the name of a workflow, its steps or the whole of it, not a number",
            "w.yaml:29: `instructions` are for an agent; give them to the steps inside",
            "w.yaml:32: step `x`: its condition: no step is called `y`; did you mean `x`?",
        ],
    );
    check_problems(
        "steps:\n  - {name: a, workflow: []}\n  - name: b\n    workflow: [[qa_testing, {}], {group: g, agents: [qa_testing], shared_context: unheard_of}]\n",
        &[
            "w.yaml:2: `workflow` has no steps",
            "w.yaml:4: a step is a mapping such as `{name: …, agent: …}`, not a list",
            "w.yaml:4: no step or group is called `unheard_of`",
        ],
    );
    check_problems(
        "steps:\n  - {name: a, workflow: documentation_onyl}\n",
        &["w.yaml:2: no workflow is called `documentation_onyl`; did you mean `documentation_only`?"],
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
        Just("    after: [g]\n"), Just("  - name: l\n"), Just("    loop: [{agent: qa_testing}]\n"), Just("    until: turn > 1\n"),
        Just("    max_turns: 2\n"), Just("    ask: Well?\n"), Just("    deadline_ms: 5\n"), Just("    default: true\n"),
        Just("    map:\n      - {name: i, timer: 1}\n"), Just("    over: a.b\n"), Just("    workflow: documentation_only\n"),
        Just("    route: [qa_testing, nobody]\n"), Just("    max_hops: 1\n"), Just("    signal: s\n"), Just("name: {}\n"), Just("    agents: 3\n"), Just("    - {agent: [x]}\n"), Just("'"),
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
