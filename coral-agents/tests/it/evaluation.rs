//! Two versions of a prompt, held against each other on answers of a server that were recorded, and played again without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coral_agents::{
    Candidate, Evaluation, EvaluationOptions, EvaluationReport, Registry, parse_agent, parse_cases,
};
use coral_core::{Partials, PromptService, PromptStore, PromptText, Runner};
use coral_llm::{Cassette, HttpTransport, Provider, Recorder, Transport};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn cases() -> Evaluation {
    let case = |name: &str| {
        format!(
            "  - name: {name}\n    brief: A {name}.\n    expect:\n      - holds: output.decisions|length >= 2\n      - rubric: It names a risk.\n        at_least: 0.5\n"
        )
    };
    let cases: String = ["shed", "bridge", "tower", "harbour", "road", "well"].map(case).concat();
    parse_cases("plans.yaml", &format!("name: plans\ncases:\n{cases}")).unwrap()
}

/// Answers over the OpenAI protocol as an obedient model would: as many decisions as the prompt asks for, a risk if it is
/// asked for, and as a judge by whether one is there.
fn reply(request: &Value) -> String {
    let of = |role: &str| -> String {
        let messages = request["messages"].as_array().unwrap().iter();
        messages.filter(|m| m["role"] == role).map(|m| m["content"].to_string()).collect()
    };
    let (system, task) = (of("system"), of("user"));
    if system.contains("You grade the work") {
        let score = if task.contains("may sink") { 0.9 } else { 0.1 };
        return json!({"score": score, "reason": "by whether a risk is named"}).to_string();
    }
    let decisions = if system.contains("two decisions") { vec!["wood", "nails"] } else { vec!["wood"] };
    let summary = if system.contains("name a risk") { "It stands, but may sink." } else { "It stands." };
    json!({"summary": summary, "deliverables": [], "decisions": decisions, "next_tasks": []}).to_string()
}

/// One request of a connection, and its answer.
async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let body = loop {
        let mut more = [0; 4096];
        let read = stream.read(&mut more).await?;
        bytes.extend_from_slice(&more[..read]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
        });
        if body.len() >= length.unwrap() || read == 0 {
            break body.to_owned();
        }
    };
    let request: Value = serde_json::from_str(&body)?;
    let usage = json!({"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70});
    let text = reply(&request);
    let (kind, answer) = if request["stream"] == true {
        let chunk = json!({"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]});
        let last = json!({"choices": [], "usage": usage});
        ("text/event-stream", format!("data: {chunk}\n\ndata: {last}\n\ndata: [DONE]\n\n"))
    } else {
        let message = json!({"role": "assistant", "content": text});
        let choices = json!([{"finish_reason": "stop", "message": message}]);
        ("application/json", json!({"choices": choices, "usage": usage}).to_string())
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        answer.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(answer.as_bytes()).await
}

async fn evaluate(url: &str, transport: Arc<dyn Transport>) -> EvaluationReport {
    let model = || {
        let provider = Provider::vendor("openai").unwrap().base_url(url).key("sk-secret").model("m");
        provider.transport(transport.clone()).build().unwrap()
    };
    let mut registry = Registry::new();
    let text =
        "---\nid: planner\nname: Planner\n---\n## Role\nYou plan buildings.\n\n## Task\n{{ brief.text }}\n";
    registry.insert(parse_agent("planner.md", text).unwrap()).unwrap();
    let mut spec = registry.agent("planner").unwrap().as_ref().clone();
    let mut store = PromptStore::new();
    let mut version = |spec: &coral_core::AgentSpec, note: &str| {
        store.commit("planner", PromptText::of(spec, &Partials::new()), note).unwrap()
    };
    let first = version(&spec, "first");
    spec.prompt.system_instructions = "Write down two decisions at least, and name a risk.".into();
    let second = version(&spec, "asks for decisions and a risk");
    let candidates = [first, second].map(|version| {
        let mut store = store.clone();
        store.pin("planner", &version).unwrap();
        let prompts = PromptService::builder().store(store).build().unwrap();
        let runner = Runner::builder().model(model()).build();
        Candidate::agent_with(version, &runner, &registry, "planner", "", &prompts).unwrap()
    });
    cases().run(&candidates, &EvaluationOptions::new().judge(model())).await
}

/// All but how long it took.
fn timeless(report: &EvaluationReport) -> EvaluationReport {
    let mut report = report.clone();
    let results = report.candidates.iter_mut().flat_map(|candidate| &mut candidate.results);
    results.for_each(|result| result.duration_ms = 0);
    report
}

#[tokio::test]
async fn an_evaluation_of_two_prompt_versions_is_recorded_and_played_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = Arc::new(AtomicUsize::new(0));
    let server = tokio::spawn({
        let served = served.clone();
        async move {
            while let Ok((stream, _)) = listener.accept().await {
                served.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream));
            }
        }
    });
    let recorder = Recorder::new(Arc::new(HttpTransport::for_url(&url).unwrap()));
    let live = evaluate(&url, Arc::new(recorder.clone())).await;
    // Six cases, two versions, and a grade for each.
    assert_eq!(served.load(Ordering::SeqCst), 24);
    let comparison = live.compare(0, 1).unwrap();
    assert_eq!((comparison.better, comparison.worse, comparison.same), (6, 0, 0), "{live}");
    assert_eq!(comparison.verdict(), "more than chance would explain");
    let scores: Vec<_> = live.candidates.iter().map(|candidate| candidate.score().unwrap()).collect();
    assert!((scores[0] - 0.05).abs() < 1e-9 && (scores[1] - 0.95).abs() < 1e-9, "{scores:?}");
    assert_eq!(live.candidates[0].results[0].usage.input_tokens, 50);

    server.abort();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plans.json");
    recorder.cassette().save(&path).unwrap();
    assert!(!std::fs::read_to_string(&path).unwrap().contains("sk-secret"));
    let cassette = Arc::new(Cassette::load(&path).unwrap());
    let played = evaluate("http://nobody.invalid", cassette.clone()).await;
    assert_eq!((timeless(&played), cassette.left()), (timeless(&live), 0));
    assert_eq!(served.load(Ordering::SeqCst), 24);

    // What was not recorded is no score but an error that says so.
    let empty = evaluate("http://nobody.invalid", Arc::new(Cassette::new())).await;
    let error = empty.candidates[0].results[0].error.as_deref().unwrap();
    assert!(error.contains("no exchange is left on the cassette"), "{error}");
}
