//! Data agents: prompts, tools, repairs, handoffs.

use std::sync::{Arc, Mutex};

use coral_core::{
    AgentSpec, Brief, ChatRequest, ChatResponse, ErrorKind, Event, GraphData, Input, Message, OutputSpec,
    Part, Partials, Program, PromptAgent, PromptTemplate, Runner, Stage, StepData, StepKind, StopReason,
    Team, ToolCall, ToolChoice,
};
use serde_json::{Value, json};

use crate::support::{FnModel, Sink, records};

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

/// openai-agents 844: reaching the turn limit must not lose the answer.
#[tokio::test]
async fn on_the_last_turn_the_model_gets_no_tools_and_answers() {
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

/// openai-agents 2352 and 617: words alone move nothing; a handoff outside of the list is refused.
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
