//! The built-in workflows and the three plain shapes, run to their ends with agents that report
//! what their definitions promise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_agents::{Registry, Severity, Verdict, parse_workflow};
use coral_core::{
    Brief, CallContext, ChatModel, ChatRequest, ChatResponse, Error, Event, GraphData, Program, RunStatus,
    Runner, StepKind,
};
use serde_json::{Map, Value, json};

/// Plays every agent by its definition.
#[derive(Clone)]
struct Cast {
    registry: Arc<Registry>,
    /// Who sends work back in the first round.
    strict: &'static [&'static str],
    /// Who left something out in the first round.
    forgetful: &'static [&'static str],
    asked: Arc<Mutex<Vec<String>>>,
}

impl Cast {
    fn new() -> Self {
        Cast { registry: Arc::new(Registry::builtin()), strict: &[], forgetful: &[], asked: Arc::default() }
    }
}

#[async_trait]
impl ChatModel for Cast {
    fn name(&self) -> &str {
        "cast"
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let caller = cx.caller();
        let times = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(caller.path.to_string());
            asked.iter().filter(|path| **path == *caller.path).count()
        };
        let spec = self.registry.agent(&caller.agent)?.in_phase(&caller.phase);
        let forgets = times == 1 && self.forgetful.contains(&&*caller.path);
        let outputs = spec.outputs.iter().filter(|output| !(output.optional && forgets));
        let deliverables: Vec<Value> = outputs
            .map(
                |output| json!({"type": output.kind, "path": output.path, "description": output.description}),
            )
            .collect();
        let mut report = json!({
            "summary": format!("{} did its part", spec.id),
            "deliverables": deliverables,
            "decisions": ["the simplest, since it is enough"],
            "next_tasks": ["Go on."],
        });
        if let Some(schema) = &spec.output_schema {
            report["data"] = instance(schema);
        }
        let schema = &request.output.as_ref().unwrap().schema;
        if let Some(whom) = schema.pointer("/properties/send_back/items/properties/to/enum/0") {
            let strict = times == 1 && self.strict.contains(&&*caller.path);
            report["send_back"] =
                if strict { json!([{"to": whom, "finding": "It does not start."}]) } else { json!([]) };
        }
        Ok(ChatResponse::text("cast", report.to_string()))
    }
}

/// The least value that fits a schema of the built-in definitions.
fn instance(schema: &Value) -> Value {
    if let Some(first) = schema.pointer("/enum/0") {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            required
                .map(|name| (name.to_owned(), instance(&schema["properties"][name])))
                .collect::<Map<_, _>>()
                .into()
        }
        Some("array") => {
            (0..schema["minItems"].as_u64().unwrap_or(0)).map(|_| instance(&schema["items"])).collect()
        }
        Some("boolean") => json!(false),
        Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or(json!(1)),
        _ => {
            let least = schema["minLength"].as_u64().unwrap_or(1);
            json!("x".repeat(usize::try_from(least).unwrap().max(1)))
        }
    }
}

/// Runs `graph`, and gives the steps that ran, in order, and the events.
async fn play(cast: &Cast, graph: &GraphData, facts: &[&str]) -> (Vec<String>, Vec<Event>) {
    let facts: BTreeMap<String, Value> = facts.iter().map(|name| ((*name).to_owned(), json!(true))).collect();
    let program = Program::from_graph(graph.clone(), &cast.registry.team().unwrap()).unwrap();
    let runner = Runner::builder().model(cast.clone()).build();
    let brief = Brief { project: "Lantern".into(), text: "Lend tools to neighbours.".into(), facts };
    let run = runner.start(&program, brief).await.unwrap();
    // Whoever is asked says the first that may be said.
    let people = async {
        let mut events = run.events(1);
        while let Some(record) = events.next().await {
            if let Event::QuestionAsked { question, .. } = record.unwrap().event {
                run.answer(&question.id, question.answer_schema["enum"][0].clone(), "ada").await.unwrap();
            }
        }
    };
    let (status, ()) = tokio::join!(run.wait(), people);
    let status = status.unwrap();
    assert_eq!(status, RunStatus::Succeeded, "{}: {:?}", graph.name, run.output().await);
    let records = runner.journal().read(run.id(), 1, 100_000).await.unwrap();
    let asked = std::mem::take(&mut *cast.asked.lock().unwrap());
    (asked, records.into_iter().map(|record| record.event).collect())
}

/// With no fact, with all, and with each alone: what runs is what `explain` says, and the run
/// comes to its end.
#[tokio::test]
async fn every_workflow_runs_to_its_end_with_its_conditions_both_ways() {
    let cast = Cast::new();
    for graph in cast.registry.workflows() {
        let names = crate::workflows::facts_of(graph);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let sets = [vec![], names.clone()].into_iter().chain(names.iter().map(|name| vec![*name]));
        for set in sets {
            let (asked, _) = play(&cast, graph, &set).await;
            let facts = set.iter().map(|name| ((*name).to_owned(), json!(true))).collect();
            let explanation = coral_agents::Explanation::new(graph, &facts).unwrap();
            let ran: BTreeSet<&str> = asked.iter().map(String::as_str).collect();
            let agents = graph.steps.iter().filter(|step| step.kind.agent().is_some());
            for (name, verdict) in
                agents.filter_map(|step| explanation.verdicts().find(|(name, _)| **name == *step.name))
            {
                match verdict {
                    Verdict::Runs => assert!(ran.contains(name), "{name} of {} with {set:?}", graph.name),
                    Verdict::Skipped(_) => {
                        assert!(!ran.contains(name), "{name} of {} with {set:?}", graph.name);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Nothing goes to production where a person has to say so and does not.
#[tokio::test]
async fn an_incident_waits_for_the_word_that_it_needs() {
    let cast = Cast::new();
    let graph = GraphData::clone(cast.registry.workflow("incident_response").unwrap());
    let facts = ["change_approval"];
    let (asked, _) = play(&cast, &graph, &facts).await;
    assert!(asked.contains(&"release".to_owned()), "{asked:?}");

    let mut held = graph;
    let approval = held.steps.iter_mut().find(|step| &*step.name == "approval").unwrap();
    let StepKind::Ask { answer, .. } = &mut approval.kind else { panic!("{approval:?}") };
    answer["enum"].as_array_mut().unwrap().reverse();
    let (asked, _) = play(&cast, &held, &facts).await;
    assert!(!asked.contains(&"release".to_owned()) && asked.contains(&"postmortem".to_owned()), "{asked:?}");
}

const SEQUENTIAL: &str = include_str!("../shapes/sequential.py");

const PARALLEL: &str = include_str!("../shapes/parallel.py");

const CONDITIONAL: &str = include_str!("../shapes/conditional.py");

/// What the journal notes of deliverables that nobody gave, by step.
fn taken_from_brief(events: &[Event]) -> Vec<(String, Value)> {
    let notes = events.iter().filter_map(|event| match event {
        Event::Noted { path, topic, note } if &**topic == "taken_from_brief" => {
            Some((path.to_string(), note["missing"].clone()))
        }
        _ => None,
    });
    let mut notes: Vec<_> = notes.collect();
    notes.sort_by(|a, b| a.0.cmp(&b.0));
    notes
}

#[tokio::test]
async fn the_plain_shapes_run_as_they_stand() {
    let cast = Cast::new();
    let load = |text: &str| parse_workflow("plain.py", text, &cast.registry).unwrap();

    let (asked, events) = play(&cast, &load(SEQUENTIAL), &[]).await;
    assert_eq!(
        asked,
        [
            "project_architect",
            "technical_writer",
            "backend_developer",
            "frontend_developer",
            "qa_testing",
            "devops_deployment"
        ]
    );
    assert_eq!(taken_from_brief(&events), []);

    let (asked, events) = play(&cast, &load(PARALLEL), &[]).await;
    let asked: Vec<BTreeSet<&str>> =
        [&asked[..3], &asked[3..]].iter().map(|wave| wave.iter().map(String::as_str).collect()).collect();
    assert_eq!(
        asked,
        [
            BTreeSet::from(["backend_developer", "frontend_developer", "database_admin"]),
            BTreeSet::from(["qa_testing", "security_specialist"]),
        ]
    );
    let taken = taken_from_brief(&events);
    assert!(!taken.is_empty());
    for (step, missing) in &taken {
        assert_eq!(missing, &json!(["technical_specification"]), "{step}");
    }
    let mut registry = (*cast.registry).clone();
    registry.insert_workflow(load(PARALLEL));
    let findings = registry.check();
    assert_eq!(findings.len(), taken.len());
    for (finding, (step, _)) in findings.iter().zip(&taken) {
        assert_eq!(finding.severity, Severity::Warning);
        assert_eq!(
            finding.to_string(),
            format!(
                "warning: workflow `plain`, step `{step}`: takes `technical_specification` from the brief, since no step before it delivers that"
            )
        );
    }

    let conditional = load(CONDITIONAL);
    let (asked, _) = play(&cast, &conditional, &["needs_mobile"]).await;
    assert_eq!(asked, ["mobile_developer"]);
    let (asked, _) =
        play(&cast, &conditional, &["has_ai_features", "needs_mobile", "enterprise_deployment"]).await;
    let asked: BTreeSet<&str> = asked.iter().map(String::as_str).collect();
    assert_eq!(
        asked,
        BTreeSet::from(["ai_ml_specialist", "mobile_developer", "cloud_architect", "monitoring_specialist"])
    );
}

/// QA sends the backend's work back once: it is mended, and all behind it is done again.
#[tokio::test]
async fn a_reviewer_of_a_built_in_workflow_sends_work_back() {
    let cast = Cast { strict: &["qa_testing"], ..Cast::new() };
    let graph = cast.registry.workflow("documentation_first").unwrap().clone();
    let (asked, events) = play(&cast, &graph, &[]).await;
    let times = |step: &str| asked.iter().filter(|path| *path == step).count();
    assert_eq!((times("architecture"), times("backend_developer"), times("frontend_developer")), (1, 2, 1));
    assert_eq!((times("qa_testing"), times("security_specialist"), times("deployment")), (2, 2, 1));
    let back = events.iter().find_map(|event| match event {
        Event::SentBack { path, round, returned, .. } => Some((path.to_string(), *round, returned.clone())),
        _ => None,
    });
    let (path, round, returned) = back.unwrap();
    assert_eq!((path.as_str(), round, &*returned[0].to), ("qa_testing", 1, "backend_developer"));
    assert_eq!(returned[0].message.next_tasks, ["It does not start."]);
}

/// A deliverable that its agent may leave out, and that a later one needs, is asked for again.
#[tokio::test]
async fn a_gap_sends_work_back_in_a_workflow_from_a_file() {
    let mut registry = Registry::builtin();
    for text in [
        "---\nid: giver\nname: G\noutputs: [{type: map, path: docs/map.md, description: m, optional: true}]\n---\n## Task\nx\n",
        "---\nid: taker\nname: T\ndependencies: [map]\n---\n## Task\nx\n",
    ] {
        registry.insert(coral_agents::parse_agent("a.md", text).unwrap()).unwrap();
    }
    let yaml =
        "on_gap: send_back\nmax_rounds: 1\nsteps:\n  - agent: giver\n  - {agent: taker, inputs: giver}\n";
    let graph = parse_workflow("gap.yaml", yaml, &registry).unwrap();
    let cast = Cast { registry: Arc::new(registry), forgetful: &["giver"], ..Cast::new() };
    let (asked, _) = play(&cast, &graph, &[]).await;
    assert_eq!(asked, ["giver", "giver", "taker"]);
}
