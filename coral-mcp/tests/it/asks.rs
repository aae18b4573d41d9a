//! Servers that ask back, report, list and change: in both generations of the protocol.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, Budget, CallContext, Caller, ChatModel, ChatRequest,
    ChatResponse, Error, Event, Flow, Handle, Journal, MemoryJournal, Runner, StartOptions, ToolCall,
    ToolDef, ToolFault, ToolOutput, Toolbox, Usage, Usd, Workflow,
};
use coral_mcp::{Counterpart, Elicitation, Reply, SandboxBuilder, Servers};
use serde_json::{Value, json};

use crate::desk::Desk;
use crate::programs::{python, script};

const GENERATIONS: [&str; 2] = ["old", "new"];

const PERMISSIONS: &str = r#"
permission_model:
  agents:
    dev:
      mcp_servers: [asks]
      operations: [read, write, execute]
      paths: ["/project"]
      after_untrusted: allow
    reader:
      mcp_servers: [asks]
      operations: [read]
      paths: ["/project"]
servers:
  asks:
    connection: { elicitation: true, sampling: true, resources: true, prompts: true, roots: ["/project/src"] }
    tools:
      ask: { operation: execute, effect: idempotent }
      sample: { operation: execute, effect: idempotent }
      work: { operation: execute, effect: idempotent }
"#;

/// Answers at once, and writes down what it was asked.
#[derive(Clone, Default)]
struct Anyone(Arc<Mutex<Vec<Elicitation>>>);

#[async_trait]
impl Counterpart for Anyone {
    async fn elicit(&self, question: &Elicitation, _cx: &CallContext) -> Result<Reply, Error> {
        self.0.lock().unwrap().push(question.clone());
        Ok(Reply::Accept(json!({"name": "Ann"})))
    }

    async fn sample(&self, request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        assert_eq!(request.max_output_tokens, Some(8_192), "what a server may have written is bounded");
        Ok(ChatResponse::text("m", format!("about {}", request.messages[0].text())))
    }
}

async fn desk(generation: &str, more: impl FnOnce(SandboxBuilder) -> SandboxBuilder) -> Desk {
    Desk::at(PERMISSIONS, |b, project| {
        let log = project.join("log").display().to_string();
        let args = [script("asks.py"), generation.to_owned(), log];
        more(b.servers(Servers::default().stdio("asks", &python()[0], args).unwrap()))
    })
    .await
}

/// What a tool said: its text without the mark around it.
async fn said(desk: &Desk, tool: &str) -> String {
    let said = Desk::ok(desk.call("dev", &format!("asks__{tool}"), json!({})).await);
    said.lines().nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn forms_are_put_to_a_person_and_their_defaults_filled_in() {
    for generation in GENERATIONS {
        let anyone = Anyone::default();
        let desk = desk(generation, |b| b.counterpart(anyone.clone())).await;
        let answer = said(&desk, "ask").await;
        assert_eq!(
            answer, r#"{"action": "accept", "content": {"name": "Ann", "tone": "kind"}}"#,
            "{generation}"
        );
        let asked = anyone.0.lock().unwrap().clone();
        assert_eq!((asked[0].tool.as_str(), asked[0].message.as_str()), ("ask", "Who are[2J you?"));
    }
}

#[tokio::test]
async fn secrets_are_not_asked_for_and_strange_pages_not_opened() {
    for generation in GENERATIONS {
        let anyone = Anyone::default();
        let desk = desk(generation, |b| b.counterpart(anyone.clone())).await;
        for tool in ["ask_secret", "ask_page"] {
            assert!(said(&desk, tool).await.contains("decline"), "{generation} {tool}");
        }
        assert!(anyone.0.lock().unwrap().is_empty(), "nobody saw them");
    }
    let desk = desk("old", |b| b.counterpart(Anyone::default())).await;
    assert_eq!(said(&desk, "ask_often").await, "16");
}

#[tokio::test]
async fn samples_and_roots_are_what_the_rules_allow() {
    for generation in GENERATIONS {
        let desk = desk(generation, |b| b.counterpart(Anyone::default())).await;
        let sample: Value = serde_json::from_str(&said(&desk, "sample").await).unwrap();
        assert_eq!(
            (&sample["content"]["text"], &sample["model"]),
            (&json!("about sum up"), &json!("m")),
            "{sample}"
        );
        let roots = said(&desk, "roots").await;
        let place = desk.project().canonicalize().unwrap().join("src");
        assert!(roots.contains(&format!("file://{}\"", place.display())), "{roots}");
    }
}

#[tokio::test]
async fn what_was_not_declared_is_not_answered() {
    let quiet = PERMISSIONS
        .replace("elicitation: true, sampling: true, ", "")
        .replace(", roots: [\"/project/src\"]", "");
    for tool in ["ask", "sample", "roots"] {
        let desk = Desk::at(&quiet, |b, project| {
            let args = [script("asks.py"), "old".to_owned(), project.join("log").display().to_string()];
            b.servers(Servers::default().stdio("asks", &python()[0], args).unwrap())
                .counterpart(Anyone::default())
        })
        .await;
        let answer = said(&desk, tool).await;
        assert!(answer.contains("not declared"), "{tool}: {answer}");
    }
}

#[tokio::test]
async fn lists_are_read_to_their_end_and_resources_pass_the_gate() {
    for generation in GENERATIONS {
        let desk = desk(generation, |b| b).await;
        let shown = desk.tools.list(&Caller::agent("reader")).await.unwrap();
        let names: Vec<&str> = shown.iter().map(|tool| tool.name.as_str()).collect();
        let extras =
            ["asks__get_prompt", "asks__list_prompts", "asks__list_resources", "asks__read_resource"];
        assert_eq!(names, extras, "{generation}");
        let listed = Desk::ok(desk.call("reader", "asks__list_resources", json!({})).await);
        assert!(listed.contains("memo://4") && listed.contains("memo://by/{author}"), "{listed}");
        for (uri, fits) in [
            ("memo://3", true),
            ("memo://by/ann", true),
            ("memo://9", false),
            ("memo://by/../3", false),
            ("file:///etc/hosts", false),
        ] {
            let read = desk.call("reader", "asks__read_resource", json!({"uri": uri})).await;
            match fits {
                true => assert!(Desk::ok(read).contains(&format!("read {uri}"))),
                false => assert_eq!(Desk::fault(read), ToolFault::InvalidArguments, "{uri}"),
            }
        }
        let prompts = Desk::ok(desk.call("reader", "asks__list_prompts", json!({})).await);
        assert!(prompts.contains("greet") && prompts.contains("who"), "{prompts}");
        let greet = json!({"name": "greet", "arguments": {"who": "Ann"}});
        assert!(Desk::ok(desk.call("reader", "asks__get_prompt", greet).await).contains("Greet Ann"));
        let status = desk.tools.status().await;
        let asks = status.iter().find(|status| status.name == "asks").unwrap();
        let revision = if generation == "new" { "2026-07-28" } else { "2025-11-25" };
        assert_eq!((asks.connections, asks.protocol.as_deref()), (1, Some(revision)));
    }
}

#[tokio::test]
async fn a_denied_call_does_not_reach_the_server() {
    for generation in GENERATIONS {
        let desk = desk(generation, |b| b).await;
        Desk::denied(desk.call("reader", "asks__pid", json!({})).await);
        Desk::denied(desk.call("nobody", "asks__pid", json!({})).await);
        assert!(!desk.read("log").contains("tools/call"), "{}", desk.read("log"));
        said(&desk, "pid").await;
        assert!(desk.read("log").contains("tools/call \"pid\""));
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_is_cancelled_at_the_server() {
    for generation in GENERATIONS {
        let desk = desk(generation, |b| b).await;
        let pid = said(&desk, "pid").await;
        let call = ToolCall { id: "1".into(), name: "asks__hang".into(), arguments: json!({}) };
        let cx = CallContext::new(Caller::agent("dev"));
        let given_up = desk.tools.call(&call, &cx);
        assert!(tokio::time::timeout(Duration::from_millis(200), given_up).await.is_err());
        let told = async {
            while !desk.read("log").contains("notifications/cancelled") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), told).await.unwrap();
        assert_eq!(said(&desk, "pid").await, pid, "{generation}: the server lives on");
    }
}

#[tokio::test]
async fn a_list_that_changed_is_read_again_on_the_same_connection() {
    let desk = desk("old", |b| b).await;
    let pid = said(&desk, "pid").await;
    assert_eq!(said(&desk, "grow").await, "grown");
    let blocked = async {
        loop {
            let blocked = desk.tools.blocked_tools("asks").await.unwrap();
            if !blocked.is_empty() {
                return blocked;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let blocked = tokio::time::timeout(Duration::from_secs(5), blocked).await.unwrap();
    assert_eq!(blocked[0].name, "asks__extra");
    assert_eq!(said(&desk, "pid").await, pid);
}

/// What was not told while nobody listened is looked for.
#[tokio::test]
async fn a_stream_of_changes_that_ends_is_begun_again() {
    let desk = desk("ends", |b| b).await;
    assert_eq!(said(&desk, "grow").await, "grown");
    let blocked = async {
        while desk.tools.blocked_tools("asks").await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), blocked).await.unwrap();
    assert!(desk.read("log").matches("subscriptions/listen").count() >= 1, "{}", desk.read("log"));
}

#[tokio::test]
async fn data_must_fit_what_its_tool_promised() {
    for generation in GENERATIONS {
        let desk = desk(generation, |b| b).await;
        let fits = desk.call("dev", "asks__fits", json!({})).await.unwrap();
        assert_eq!(fits.structured, Some(json!({"n": 7})));
        let error = desk.call("dev", "asks__misfits", json!({})).await.unwrap_err();
        assert!(error.to_string().contains("does not fit the tool's output schema"), "{error}");
    }
}

#[tokio::test]
async fn connections_are_as_many_as_the_rules_say_and_close_when_idle() {
    let pooled = PERMISSIONS.replace("connection: { ", "connection: { connections: 2, idle_s: 1, ");
    let desk = Desk::at(&pooled, |b, project| {
        let args = [script("asks.py"), "old".to_owned(), project.join("log").display().to_string()];
        b.servers(Servers::default().stdio("asks", &python()[0], args).unwrap())
            .counterpart(Anyone::default())
    })
    .await;
    let both = futures_util::future::join_all((0..4).map(|_| said(&desk, "ask"))).await;
    assert!(both.iter().all(|answer| answer.contains("Ann")));
    let open = desk.tools.status().await.into_iter().find(|status| status.name == "asks").unwrap();
    assert_eq!(open.connections, 2);
    let closed = async {
        while desk.tools.status().await.iter().any(|status| status.connections > 0 && status.name == "asks") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), closed).await.unwrap();
    assert!(said(&desk, "ask").await.contains("Ann"), "and open again when they are needed");
}

/// Makes one call, and gives what came of it.
struct Clerk(AgentSpec);

#[async_trait]
impl Agent for Clerk {
    type Input = String;
    type Output = String;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, tool: String, cx: &mut AgentContext) -> Result<String, AgentError> {
        let call = ToolCall { id: "1".into(), name: format!("asks__{tool}"), arguments: json!({}) };
        let mut outcomes = cx.call_tools(&[call]).await?;
        Ok(outcomes.remove(0).map(|output: ToolOutput| output.content)?)
    }
}

struct Office;

impl Workflow for Office {
    type Input = String;
    type Output = String;

    fn name(&self) -> &str {
        "office"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
        flow.step(Clerk(AgentSpec::new("dev", "Developer")), flow.input())
    }
}

/// A desk as the tools of a runner: its directory must outlive it.
struct Held(Desk);

#[async_trait]
impl Toolbox for Held {
    async fn list(&self, caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        self.0.tools.list(caller).await
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        self.0.tools.call(call, cx).await
    }
}

struct Model;

#[async_trait]
impl ChatModel for Model {
    async fn chat(&self, _request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        let usage = Usage { input_tokens: 10, output_tokens: 5, ..Usage::default() };
        Ok(ChatResponse {
            usage,
            cost: Some(Usd::from_dollars(0.25)),
            ..ChatResponse::text("m", "a summary")
        })
    }

    fn name(&self) -> &str {
        "m"
    }
}

#[tokio::test]
async fn a_run_answers_what_its_servers_ask_durably_and_from_its_budget() {
    for generation in GENERATIONS {
        let journal = Arc::new(MemoryJournal::new());
        let runner = async || {
            let tools = Held(desk(generation, |b| b).await);
            Runner::builder().journal(journal.clone()).tools(tools).model(Model).build()
        };
        let first = runner().await;
        let run = first.start(&Office, "ask".to_owned()).await.unwrap();
        let mut events = run.events(1);
        while run.questions().await.is_empty() {
            events.next().await.unwrap().unwrap();
        }
        let question = run.questions().await.remove(0);
        assert_eq!(&*question.label, "mcp_elicitation");
        assert_eq!(question.question.json().unwrap()["server"], "asks");
        first.shutdown().await;
        // Another process, another server: the same question, which is answered now.
        let second = runner().await;
        let run = second.resume(&Office, run.id()).await.unwrap();
        let answer = json!({"action": "accept", "content": {"name": "Bo"}});
        run.answer(&question.id, answer, "bo").await.unwrap();
        let said = run.output().await.unwrap();
        assert!(said.contains(r#""content": {"name": "Bo", "tone": "kind"}"#), "{generation}: {said}");

        let budget = StartOptions::new().budget(Budget::new().calls(2));
        let run = second.start_with(&Office, "sample".to_owned(), budget).await.unwrap();
        assert!(run.output().await.unwrap().contains("a summary"));
        let budget = StartOptions::new().budget(Budget::new().calls(1));
        let run = second.start_with(&Office, "sample".to_owned(), budget).await.unwrap();
        assert!(run.output().await.unwrap_or_else(|e| e.to_string()).contains("refused"));
    }
}

#[tokio::test]
async fn progress_is_noted_with_the_call_and_not_without_end() {
    let journal = Arc::new(MemoryJournal::new());
    let tools = Held(desk("old", |b| b).await);
    let runner = Runner::builder().journal(journal.clone()).tools(tools).model(Model).build();
    let run = runner.start(&Office, "work".to_owned()).await.unwrap();
    assert!(run.output().await.unwrap().contains("worked"));
    let head = journal.read(run.id(), 1, 10_000).await.unwrap();
    let notes: Vec<&Value> = head
        .iter()
        .filter_map(|record| match &record.event {
            Event::CallNoted { topic, note, .. } if &**topic == "mcp.progress" => Some(note),
            _ => None,
        })
        .collect();
    assert!(!notes.is_empty() && notes.len() < 100, "{}", notes.len());
    assert_eq!((&notes[0]["tool"], &notes[0]["message"]), (&json!("work"), &json!("on it")));
}
