//! What counts as written: a deliverable is one only if a tool call made its file.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_core::{
    AgentSpec, Brief, CallContext, Caller, ChatRequest, ChatResponse, EffectClass, Error, ErrorKind,
    GraphData, Message, OutputSpec, Part, Program, PromptAgent, Runner, StepData, StepKind, StopReason, Team,
    ToolCall, ToolDef, ToolOutput, Toolbox,
};
use serde_json::{Value, json};

use crate::support::FnModel;

/// Reads, writes and moves files, and says that it did.
struct Files;

#[async_trait]
impl Toolbox for Files {
    async fn list(&self, _caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        let tool = |name: &str, arguments: &[&str], effect| ToolDef {
            name: name.to_owned(),
            description: String::new(),
            input_schema: json!({
                "type": "object",
                "properties": arguments.iter().map(|name| (*name, json!({"type": "string"})))
                    .collect::<std::collections::BTreeMap<_, _>>(),
            }),
            effect,
        };
        Ok(vec![
            tool("read", &["path"], EffectClass::Pure),
            tool("write", &["path"], EffectClass::Idempotent),
            tool("move", &["source", "destination"], EffectClass::Irreversible),
        ])
    }

    async fn call(&self, call: &ToolCall, _cx: &CallContext) -> Result<ToolOutput, Error> {
        Ok(ToolOutput::text(format!("{} done", call.name)))
    }
}

fn agent(id: &str, outputs: &[&str]) -> PromptAgent {
    let output = |path: &&str| OutputSpec {
        kind: path.replace(['/', '.'], "_"),
        path: (*path).to_owned(),
        description: String::new(),
        optional: false,
    };
    let mut spec =
        AgentSpec { outputs: outputs.iter().map(output).collect(), ..AgentSpec::new(id, id.to_uppercase()) };
    spec.prompt.system_instructions = format!("You are {id}.");
    PromptAgent::new(spec).unwrap()
}

fn call(name: &str, arguments: Value) -> ChatResponse {
    let call = ToolCall { id: "1".into(), name: name.into(), arguments };
    ChatResponse {
        message: Message { parts: vec![Part::ToolCall(call)], ..Message::assistant("") },
        stop: StopReason::ToolCalls,
        ..ChatResponse::text("test", "")
    }
}

fn report(paths: &[&str]) -> Value {
    let deliverables: Vec<Value> = paths
        .iter()
        .map(|path| json!({"type": path.replace(['/', '.'], "_"), "path": path, "description": "it"}))
        .collect();
    json!({"summary": "done", "deliverables": deliverables, "decisions": [], "next_tasks": []})
}

/// What comes of an agent that owes `path`, makes these calls, and then says that it is done.
async fn after(path: &str, calls: Vec<ChatResponse>) -> Result<Value, Error> {
    let steps = vec![StepData::new("writer", StepKind::Agent("writer".into()))];
    let graph = GraphData { name: "one".into(), steps, ..GraphData::default() };
    let program = Program::from_graph(graph, &Team::new().with_agent(agent("writer", &[path]))).unwrap();
    let answer = ChatResponse::text("test", report(&[path]).to_string());
    let model = FnModel::new(move |n, _: &ChatRequest| {
        Ok(calls.get(n - 1).cloned().unwrap_or_else(|| answer.clone()))
    });
    let runner = Runner::builder().model(model).tools(Files).build();
    runner.start(&program, Brief::default()).await.unwrap().output().await
}

#[tokio::test]
async fn a_file_that_was_only_read_was_not_written() {
    let read = || call("read", json!({"path": "docs/a.md"}));
    let write = || call("write", json!({"path": "./docs/a.md"}));
    let error = after("docs/a.md", vec![read()]).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Output { problem } if problem == "`docs/a.md` is listed, but no tool call wrote it"),
        "{error}"
    );
    after("docs/a.md", vec![read(), write()]).await.unwrap();
}

#[tokio::test]
async fn a_file_is_written_where_it_was_moved_to() {
    let write = || call("write", json!({"path": "drafts/a.md"}));
    let moved = |source: &str, to: &str| call("move", json!({"source": source, "destination": to}));
    after("docs/a.md", vec![write(), moved("drafts/a.md", "docs/a.md")]).await.unwrap();
    after("docs/a.md", vec![write(), moved("drafts/", "docs")]).await.unwrap();
    let error = after("drafts/a.md", vec![write(), moved("drafts", "docs")]).await.unwrap_err();
    assert!(error.to_string().contains("no tool call wrote it"), "{error}");
}

/// A finding about one file of two: in the second round the other need not be written again.
#[tokio::test]
async fn what_was_good_in_the_round_before_need_not_be_written_again() {
    let (bad, good) = ("docs/bad.md", "docs/good.md");
    let step = |name: &str, inputs: &[&str], reviews: &[&str]| StepData {
        inputs: inputs.iter().map(|input| (*input).into()).collect(),
        reviews: reviews.iter().map(|step| (*step).into()).collect(),
        ..StepData::new(name, StepKind::Agent(name.into()))
    };
    let graph = GraphData {
        name: "reviewed".into(),
        steps: vec![step("writer", &[], &[]), step("reader", &["writer"], &["writer"])],
        ..GraphData::default()
    };
    let team = Team::new().with_agent(agent("writer", &[bad, good])).with_agent(agent("reader", &[]));
    let calls: Arc<Mutex<Vec<String>>> = Arc::default();
    let made = calls.clone();
    let model = FnModel::new(move |_, request: &ChatRequest| {
        let turn = request.messages.iter().filter(|message| !message.parts.is_empty()).count();
        let again = request.messages[1].text().contains("sent back");
        if request.messages[0].text().contains("reader") {
            let mut answer = report(&[]);
            let findings = if again { json!([]) } else { json!([{"to": "writer", "finding": "It is bad."}]) };
            answer["send_back"] = findings;
            return Ok(ChatResponse::text("test", answer.to_string()));
        }
        let path = match (again, turn) {
            (_, 2) => bad,
            (false, 4) => good,
            _ => return Ok(ChatResponse::text("test", report(&[bad, good]).to_string())),
        };
        made.lock().unwrap().push(path.to_owned());
        Ok(call("write", json!({"path": path})))
    });
    let runner = Runner::builder().model(model).tools(Files).build();
    let run = runner.start(&Program::from_graph(graph, &team).unwrap(), Brief::default()).await.unwrap();
    let output = run.output().await.unwrap();
    assert_eq!(output["reader"]["summary"], "done");
    assert_eq!(*calls.lock().unwrap(), [bad, good, bad]);
}
