//! Data agents: prompts, tools, repairs, handoffs.

use std::sync::{Arc, Mutex};

use coral_core::{
    AgentSpec, Brief, CallContext, Caller, ChatRequest, ChatResponse, Decision, EffectClass, Error,
    ErrorKind, Event, GraphData, Input, MemoryJournal, Message, OutputSpec, Part, Partials, Program,
    PromptAgent, PromptTemplate, Reconciliation, Runner, Stage, StepData, StepKind, StopReason, Team,
    ToolCall, ToolChoice, ToolDef, ToolOutput, Toolbox,
};
use serde_json::{Value, json};

use crate::support::{FnModel, Sink, asked, records};

fn spec(id: &str, dependencies: &[&str], output: &str) -> AgentSpec {
    AgentSpec {
        dependencies: dependencies.iter().map(|d| (*d).to_owned()).collect(),
        outputs: vec![OutputSpec {
            kind: output.to_owned(),
            path: format!("docs/{output}.md"),
            description: format!("the {output}"),
            optional: false,
        }],
        prompt: PromptTemplate {
            system_instructions: "You are {{ agent.name }}.".into(),
            task_template: "{% include \"brief\" %}".into(),
            context_integration: "{% for i in inputs %}from {{ i.message.from_agent }}: {{ i.message.next_tasks|join(', ') }}\n{% endfor %}".into(),
            output_format: "Deliver {{ deliverables|map(attribute='type')|join(', ') }}.".into(),
        },
        handoff: coral_core::HandoffSpec {
            next_agents: vec!["writer".into()],
            template: "- Read {{ report.deliverables[0].path }}\n- Go on as {{ to }}\n".into(),
            preserve: vec!["decisions".into()],
            ..Default::default()
        },
        ..AgentSpec::new(id, id.to_uppercase())
    }
}

fn agent(spec: AgentSpec) -> PromptAgent {
    PromptAgent::with_partials(spec, &Partials::new().with("brief", "Brief: {{ brief.text }}")).unwrap()
}

fn step(name: &str, inputs: &[&str]) -> StepData {
    StepData {
        inputs: inputs.iter().map(|i| Input::from(*i)).collect(),
        phase: "design".into(),
        ..StepData::new(name, StepKind::Agent(name.into()))
    }
}

fn team() -> (GraphData, Team) {
    let graph = GraphData {
        name: "team".into(),
        steps: vec![step("architect", &[]), step("writer", &["architect"])],
        ..Default::default()
    };
    let team = Team::new().with_agent(agent(spec("architect", &[], "design"))).with_agent(agent(spec(
        "writer",
        &["design"],
        "manual",
    )));
    (graph, team)
}

fn write_call(kind: &str) -> ChatResponse {
    let call = ToolCall {
        id: "1".into(),
        name: "write".into(),
        arguments: json!({"path": format!("docs/{kind}.md")}),
    };
    ChatResponse {
        message: Message { parts: vec![Part::ToolCall(call)], ..Message::assistant("") },
        stop: StopReason::ToolCalls,
        ..ChatResponse::text("test", "")
    }
}

fn report(kind: &str) -> ChatResponse {
    let report = json!({
        "summary": format!("made the {kind}"),
        "deliverables": [{"type": kind, "path": format!("docs/{kind}.md"), "description": "it"}],
        "decisions": ["plain text, since it lasts"],
        "next_tasks": [],
    });
    ChatResponse::text("test", report.to_string())
}

/// Which of the two agents asks.
fn kind_of(request: &ChatRequest) -> &'static str {
    if request.messages[0].text().contains("ARCHITECT") { "design" } else { "manual" }
}

#[tokio::test]
async fn a_team_of_data_agents_hands_over_by_the_protocol() {
    let (graph, team) = team();
    let program = Program::from_graph(graph, &team).unwrap();
    let model = FnModel::new(|_, request: &ChatRequest| {
        let answered =
            request.messages.iter().any(|m| m.parts.iter().any(|p| matches!(p, Part::ToolResult { .. })));
        Ok(if answered { report(kind_of(request)) } else { write_call(kind_of(request)) })
    });
    let requests = model.requests.clone();
    let sink = Sink::default();
    let runner = Runner::builder().model(model).tools(sink.clone()).build();
    let brief = Brief { project: "demo".into(), text: "build it".into(), ..Default::default() };
    let run = runner.start(&program, brief).await.unwrap();
    let output = run.output().await.unwrap();
    assert_eq!(output["writer"]["summary"], "made the manual");

    let records = records(&**runner.journal(), run.id()).await;
    let message = records
        .iter()
        .find_map(|record| match &record.event {
            Event::HandedOff { message, .. } => Some(serde_json::to_value(message).unwrap()),
            _ => None,
        })
        .unwrap();
    let keys = |value: &Value| {
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(
        keys(&message),
        ["context", "from_agent", "message_id", "message_type", "next_tasks", "timestamp", "to_agent"]
    );
    assert_eq!(keys(&message["context"]), ["deliverables", "phase", "project"]);
    assert_eq!(
        message["context"],
        json!({
            "project": "demo", "phase": "design",
            "deliverables": [{"type": "design", "path": "docs/design.md", "description": "it"}],
        })
    );
    assert_eq!(message["message_type"], "handoff");
    assert_eq!(message["next_tasks"], json!(["Read docs/design.md", "Go on as writer"]));
    assert_eq!(message["from_agent"], "architect");

    let stages: Vec<Stage> = records
        .iter()
        .filter_map(|record| match &record.event {
            Event::StageEntered { path, stage, .. } if &**path == "architect" => Some(*stage),
            _ => None,
        })
        .collect();
    assert_eq!(stages, Stage::ALL);

    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 4);
    assert_eq!(requests[0].messages[0].text(), "You are ARCHITECT.");
    assert_eq!(requests[0].messages[1].text(), "Brief: build it\n\nDeliver design.");
    assert!(requests[2].messages[1].text().contains("from architect: Read docs/design.md, Go on as writer"));
    assert_eq!(sink.0.lock().unwrap().len(), 2);
}

async fn run_architect(
    spec: AgentSpec,
    answer: impl Fn(usize, &ChatRequest) -> ChatResponse + Send + Sync + 'static,
    with_tools: bool,
) -> (Result<Value, coral_core::Error>, Arc<Mutex<Vec<ChatRequest>>>) {
    let graph = GraphData { name: "one".into(), steps: vec![step("architect", &[])], ..Default::default() };
    let program = Program::from_graph(graph, &Team::new().with_agent(agent(spec))).unwrap();
    let model = FnModel::new(move |n, request: &ChatRequest| Ok(answer(n, request)));
    let requests = model.requests.clone();
    let builder = Runner::builder().model(model);
    let runner = if with_tools { builder.tools(Sink::default()).build() } else { builder.build() };
    let run = runner.start(&program, Brief::default()).await.unwrap();
    (run.output().await, requests)
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_mended() {
    let answer = |n, _: &ChatRequest| match n {
        1 => ChatResponse::text("test", "I am done!"),
        2 => ChatResponse::text("test", r#"{"summary": "s", "deliverables": []}"#),
        _ => report("design"),
    };
    let (output, requests) = run_architect(spec("architect", &[], "design"), answer, false).await;
    assert_eq!(output.unwrap()["architect"]["summary"], "made the design");
    let requests = requests.lock().unwrap();
    let last = |n: usize| requests[n].messages.last().unwrap().text();
    assert!(last(1).contains("not one JSON object"), "{}", last(1));
    assert!(last(2).contains("`design` at `docs/design.md` is not listed"), "{}", last(2));
}

#[tokio::test]
async fn a_deliverable_that_no_tool_wrote_does_not_count() {
    let answer = |n, _: &ChatRequest| match n {
        2 => write_call("design"),
        _ => report("design"),
    };
    let (output, requests) = run_architect(spec("architect", &[], "design"), answer, true).await;
    output.unwrap();
    let requests = requests.lock().unwrap();
    assert!(requests[1].messages.last().unwrap().text().contains("no tool call wrote it"));
}

#[tokio::test]
async fn repairs_are_bounded_and_the_reason_is_kept() {
    let (output, requests) =
        run_architect(spec("architect", &[], "design"), |_, _| ChatResponse::text("test", "no"), false).await;
    let error = output.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Output { .. }), "{error}");
    assert_eq!(requests.lock().unwrap().len(), 3);
}

/// Reaching the turn limit loses the answer.
#[tokio::test]
async fn openai_agents_844_on_the_last_turn_the_model_gets_no_tools_and_answers() {
    let mut spec = spec("architect", &[], "design");
    spec.limits.max_turns = 3;
    let answer = |_, request: &ChatRequest| match request.tool_choice {
        ToolChoice::None => report("design"),
        _ => write_call("design"),
    };
    let (output, requests) = run_architect(spec, answer, true).await;
    output.unwrap();
    assert_eq!(requests.lock().unwrap().len(), 3);
}

/// An answer that only says that it hands over moves the run.
#[tokio::test]
async fn openai_agents_2352_617_words_alone_hand_over_nothing() {
    let agents = vec!["architect".into(), "writer".into()];
    let graph = GraphData {
        name: "desk".into(),
        steps: vec![StepData::new("desk", StepKind::Route { agents, max_hops: 3 })],
        ..Default::default()
    };
    for named in [false, true] {
        let team = Team::new().with_agent(agent(spec("architect", &[], "design"))).with_agent(agent(spec(
            "writer",
            &[],
            "manual",
        )));
        let program = Program::from_graph(graph.clone(), &team).unwrap();
        let model = FnModel::new(move |_, request: &ChatRequest| {
            let kind = kind_of(request);
            let mut value: Value = serde_json::from_str(&report(kind).message.text()).unwrap();
            value["summary"] = json!("I hand this over to the writer: transfer_to_writer. Handing off now.");
            value["next_tasks"] = json!(["writer: write the manual"]);
            value["next_agent"] = if named && kind == "design" { json!("writer") } else { Value::Null };
            Ok(ChatResponse::text("test", value.to_string()))
        });
        let runner = Runner::builder().model(model).build();
        let run = runner.start(&program, Brief::default()).await.unwrap();
        run.output().await.unwrap();
        let hops = records(&**runner.journal(), run.id()).await;
        let hops = hops.iter().filter(
            |record| matches!(&record.event, Event::StepStarted { path, .. } if path.starts_with("desk/")),
        );
        assert_eq!(hops.count(), 1 + usize::from(named), "only `next_agent` hands over");
    }
}

/// Begins what can't be taken back, and never says what came of it.
struct Silent(Arc<tokio::sync::Notify>);

#[async_trait::async_trait]
impl Toolbox for Silent {
    async fn list(&self, caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        let mut tools = Sink::default().list(caller).await?;
        tools.iter_mut().for_each(|tool| tool.effect = EffectClass::Irreversible);
        Ok(tools)
    }

    async fn call(&self, _: &ToolCall, _: &CallContext) -> Result<ToolOutput, Error> {
        self.0.notify_one();
        std::future::pending().await
    }
}

#[tokio::test]
async fn what_nobody_can_tell_of_stops_the_step_and_is_not_for_the_model_to_try_again() {
    let (graph, team) = team();
    let program = Program::from_graph(graph, &team).unwrap();
    let (journal, called) = (Arc::new(MemoryJournal::new()), Arc::new(tokio::sync::Notify::new()));
    let model = || FnModel::new(|_, request: &ChatRequest| Ok(write_call(kind_of(request))));
    let build =
        |model| Runner::builder().journal(journal.clone()).tools(Silent(called.clone())).model(model).build();
    let first = build(model());
    let run = first.start(&program, Brief::default()).await.unwrap();
    called.notified().await;
    first.shutdown().await;
    let model = model();
    let requests = model.requests.clone();
    let run = build(model).resume(&program, run.id()).await.unwrap();
    let open = asked(&run, 1).await;
    let give_up = Reconciliation { decision: Decision::GiveUp, result: None };
    run.answer(&open[0].id, give_up, "ann").await.unwrap();
    let error = run.output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InDoubt { .. }), "{error}");
    assert!(requests.lock().unwrap().is_empty(), "the model is not asked what to do about it");
}

#[tokio::test]
async fn a_successor_outside_of_the_list_is_refused() {
    let answer = |n, _: &ChatRequest| {
        let mut value: Value = serde_json::from_str(&report("design").message.text()).unwrap();
        value["next_agent"] = json!(if n == 1 { "boss" } else { "writer" });
        ChatResponse::text("test", value.to_string())
    };
    let (output, requests) = run_architect(spec("architect", &[], "design"), answer, false).await;
    output.unwrap();
    assert!(requests.lock().unwrap()[1].messages.last().unwrap().text().contains("must be one of: writer"));
}

#[test]
fn what_is_wrong_with_a_graph_names_the_step() {
    let (mut graph, team) = team();
    graph.steps.swap(0, 1);
    graph.steps[0].inputs = vec![];
    let error = Program::from_graph(graph.clone(), &team).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::MissingDependency { step, missing } if step == "writer" && *missing == ["design"])
    );
    graph.steps[0].inputs = vec!["architekt".into()];
    graph.steps[1].kind = StepKind::Agent("architec".into());
    let error = Program::from_graph(graph, &team).unwrap_err().to_string();
    assert!(
        error.contains("step `writer`: no step is called `architekt`; did you mean `architect`?"),
        "{error}"
    );
    assert!(
        error.contains("step `architect`: no agent is called `architec`; did you mean `architect`?"),
        "{error}"
    );
}

#[test]
fn an_unknown_variable_is_named_with_the_nearest_known() {
    let mut bad = spec("architect", &[], "design");
    bad.prompt.task_template = "{{ breif.text }}".into();
    let error = PromptAgent::new(bad).unwrap_err().to_string();
    assert_eq!(
        error,
        "agent `architect`, template `task` is not valid: variable `breif` of line 1 is not known; did you mean `brief`?"
    );
}

/// In a phase an agent may owe other data, and hand over other tasks.
#[tokio::test]
async fn data_and_handoff_differ_by_phase() {
    let number = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
    let word = json!({"type": "object", "properties": {"w": {"type": "string"}}, "required": ["w"]});
    for (phase, data, tasks) in [("design", json!({"w": "x"}), "Draw it"), ("late", json!({"n": 1}), "Go on")]
    {
        let mut architect = spec("architect", &[], "design");
        architect.output_schema = Some(number.clone());
        let differs = coral_core::PhaseSpec { output_schema: Some(word.clone()), ..Default::default() };
        architect.phases.insert("design".into(), differs);
        architect.handoff.template = "{% if phase == 'design' %}Draw it{% else %}Go on{% endif %}".into();
        let graph = GraphData {
            name: "team".into(),
            steps: vec![
                StepData { phase: phase.into(), ..step("architect", &[]) },
                step("writer", &["architect"]),
            ],
            ..Default::default()
        };
        let team =
            Team::new().with_agent(agent(architect)).with_agent(agent(spec("writer", &["design"], "manual")));
        let wanted = data.clone();
        let model = FnModel::new(move |n, request: &ChatRequest| {
            let mut answer: Value = serde_json::from_str(&report(kind_of(request)).message.text()).unwrap();
            // The first answer has the data of another phase.
            answer["data"] = if n == 1 { json!({"other": true}) } else { wanted.clone() };
            Ok(ChatResponse::text("test", answer.to_string()))
        });
        let requests = model.requests.clone();
        let runner = Runner::builder().model(model).build();
        let run = runner.start(&Program::from_graph(graph, &team).unwrap(), Brief::default()).await.unwrap();
        assert_eq!(run.output().await.unwrap()["writer"]["summary"], "made the manual");
        let requests = requests.lock().unwrap();
        assert_eq!(requests.len(), 3, "the first answer did not fit the data of `{phase}`");
        let property = data.as_object().unwrap().keys().next().unwrap();
        let schema = &requests[0].output.as_ref().unwrap().schema;
        assert!(schema.pointer(&format!("/properties/data/properties/{property}")).is_some(), "{schema}");
        let handed = requests[2].messages[1].text();
        assert!(handed.contains(&format!("from architect: {tasks}")), "{handed}");
    }
}

/// An agent that can't do what its definition asks for works all the same, and the journal says what it lacked.
#[tokio::test]
async fn operations_that_no_tool_does_are_noted() {
    for (needed, missing) in [
        (&["write", "execute_query", "run_code"][..], Some(json!(["execute_query", "run_code"]))),
        (&["write"], None),
        (&[], None),
    ] {
        let mut architect = spec("architect", &[], "design");
        architect.operations = needed.iter().map(|operation| (*operation).to_owned()).collect();
        let graph =
            GraphData { name: "one".into(), steps: vec![step("architect", &[])], ..Default::default() };
        let program = Program::from_graph(graph, &Team::new().with_agent(agent(architect))).unwrap();
        let model = FnModel::new(|n, _: &ChatRequest| {
            Ok(if n == 1 { write_call("design") } else { report("design") })
        });
        let runner = Runner::builder().model(model).tools(Sink::default()).build();
        let run = runner.start(&program, Brief::default()).await.unwrap();
        run.output().await.unwrap();
        let noted =
            records(&**runner.journal(), run.id()).await.into_iter().find_map(|record| match record.event {
                Event::Noted { topic, note, .. } if &*topic == "operations_missing" => Some(note),
                _ => None,
            });
        assert_eq!(noted.map(|note| note["operations"].clone()), missing, "{needed:?}");
    }
}
