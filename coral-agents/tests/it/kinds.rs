//! Every kind of step that a workflow file may have, run to its end: what is inside of a step gets to know what came
//! before, and what comes behind gets to know what was inside.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_agents::{Registry, parse_agent, parse_workflow};
use coral_core::{
    Brief, CallContext, ChatModel, ChatRequest, ChatResponse, Error, ErrorKind, MemoryJournal, Program,
    Question, Run, RunStatus, Runner,
};
use serde_json::{Value, json};

/// What an agent says, by the path of its step.
type Answers = fn(&str) -> Value;

/// Agents that say what a test lets them say; it hears what they are asked.
#[derive(Clone)]
struct Voices {
    answers: Answers,
    asked: Arc<Mutex<Vec<(String, String)>>>,
}

#[async_trait]
impl ChatModel for Voices {
    fn name(&self) -> &str {
        "voices"
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let path = cx.caller().path.to_string();
        let text: Vec<String> = request.messages.iter().map(|message| message.text()).collect();
        let mut report = json!({"summary": "", "deliverables": [], "decisions": [], "next_tasks": []});
        for (key, value) in (self.answers)(&path).as_object().unwrap() {
            report[key] = value.clone();
        }
        self.asked.lock().unwrap().push((path, text.concat()));
        Ok(ChatResponse::text("voices", report.to_string()))
    }
}

impl Voices {
    fn new(answers: Answers) -> Self {
        Voices { answers, asked: Arc::default() }
    }

    fn paths(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(path, _)| path.clone()).collect()
    }

    /// What the agent at `path` was asked.
    #[track_caller]
    fn heard(&self, path: &str) -> String {
        let asked = self.asked.lock().unwrap();
        asked.iter().find(|(other, _)| other == path).map(|(_, text)| text.clone()).unwrap()
    }
}

/// Agents who tell all that they are told.
fn registry() -> Registry {
    const TASK: &str =
        "---\n## Task\n{{ instructions }} {{ inputs }} {% for d in available %}{{ d.path }} {% endfor %}\n";
    let mut registry = Registry::new();
    for front in [
        "id: lister\nname: L\noutputs: [{type: map, path: docs/map.md, description: m}]\nhandoff: {preserve: [data]}\noutput_schema: {type: object}\n",
        "id: worker\nname: W\ndependencies: [map]\noutputs: [{type: part, path: part.md, description: p, optional: true}]\noutput_schema: {type: object}\n",
        "id: taker\nname: T\ndependencies: [part]\n",
        "id: writer\nname: R\noutput_schema: {type: object}\n",
        "id: triage\nname: G\nhandoff: {next_agents: [writer, triage]}\n",
    ] {
        let text = format!("---\n{front}{TASK}");
        registry.insert(parse_agent("a.md", &text).unwrap()).unwrap();
    }
    registry
}

fn program(steps: &str) -> Program<Brief, Value> {
    let registry = registry();
    let graph = parse_workflow("w.yaml", &format!("steps:\n{steps}"), &registry).unwrap();
    Program::from_graph(graph, &registry.team().unwrap()).unwrap()
}

fn brief() -> Brief {
    Brief { project: "Lantern".into(), text: "Lend tools.".into(), ..Brief::default() }
}

async fn play(steps: &str, voices: &Voices) -> Result<Value, Error> {
    let runner = Runner::builder().model(voices.clone()).build();
    runner.start(&program(steps), brief()).await.unwrap().output().await
}

const MAP: &str = "
  - agent: lister
  - name: parts
    map: [{agent: worker}]
    over: data.services
    concurrency: 1
    inputs: lister
  - {agent: taker, inputs: parts}
";

fn of_map(path: &str) -> Value {
    match path {
        "lister" => json!({
            "summary": "Two of them.",
            "data": {"services": ["loans", {"name": "tools"}]},
            "deliverables": [{"type": "map", "path": "docs/map.md", "description": "m"}],
        }),
        "taker" => json!({"summary": "done"}),
        item => json!({
            "summary": format!("built {item}"),
            "data": {},
            "deliverables": [{"type": "part", "path": "part.md", "description": "p"}],
        }),
    }
}

/// Each item is a task of its own; what there was before the map is there in it, and what it gave behind it.
#[tokio::test]
async fn a_map_goes_over_a_list_that_an_agent_reported() {
    let voices = Voices::new(of_map);
    let output = play(MAP, &voices).await.unwrap();
    assert_eq!(output["taker"]["summary"], "done");
    assert_eq!(voices.paths(), ["lister", "parts/item[0]/worker", "parts/item[1]/worker", "taker"]);
    let second = voices.heard("parts/item[1]/worker");
    assert!(second.contains(r#"{\"name\":\"tools\"}"#) || second.contains(r#"{"name":"tools"}"#), "{second}");
    assert!(second.contains("docs/map.md") && !second.contains("loans"), "{second}");
    let taker = voices.heard("taker");
    assert!(taker.contains("built parts/item[0]/worker") && taker.contains("part.md"), "{taker}");
}

#[tokio::test]
async fn a_map_over_what_is_no_list_says_what_there_is() {
    let voices = Voices::new(|path| match path {
        "lister" => {
            json!({"data": {"service": "loans"}, "deliverables": [{"type": "map", "path": "docs/map.md", "description": "m"}]})
        }
        other => of_map(other),
    });
    let error = play(MAP, &voices).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "input of `parts` is not valid: the map goes over `data.services`, and there is no `services`; there are service"
    );
}

/// Each turn knows what the one before reported.
#[tokio::test]
async fn a_loop_goes_on_until_its_condition_holds() {
    const LOOP: &str = "
  - name: draft
    loop: [{agent: writer}]
    until: output.writer.data.good
    max_turns: MAX
";
    let voices = Voices::new(
        |path| json!({"summary": format!("from {path}"), "data": {"good": path.contains("turn[3]")}}),
    );
    let output = play(&LOOP.replace("MAX", "3"), &voices).await.unwrap();
    assert_eq!(output["draft"]["writer"]["summary"], "from draft/turn[3]/writer");
    assert_eq!(voices.paths(), ["draft/turn[1]/writer", "draft/turn[2]/writer", "draft/turn[3]/writer"]);
    let second = voices.heard("draft/turn[2]/writer");
    assert!(second.contains("from draft/turn[1]/writer"), "{second}");
    assert!(!voices.heard("draft/turn[1]/writer").contains("Lend tools"), "the brief is not told twice");

    let error = play(&LOOP.replace("MAX", "2"), &voices).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Limit { limit, max: 2 } if limit == "max_turns of `draft`"),
        "{error}"
    );
}

/// A workflow of another file, in whatever order the files come.
#[tokio::test]
async fn a_workflow_runs_inside_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let outer = "steps:\n  - agent: lister\n  - {name: build, workflow: z_inner, inputs: lister}\n  - {agent: taker, inputs: build}\n";
    let inner =
        "name: z_inner\nsteps:\n  - agent: worker\n  - {name: again, agent: writer, inputs: worker}\n";
    std::fs::write(dir.path().join("a_outer.yaml"), outer).unwrap();
    std::fs::write(dir.path().join("b_inner.yaml"), inner).unwrap();
    std::fs::write(dir.path().join("c.yaml"), "name: c\nsteps: [{workflow: d}]\n").unwrap();
    std::fs::write(dir.path().join("d.yaml"), "name: d\nsteps: [{workflow: c}]\n").unwrap();
    let mut registry = registry();
    let loaded = registry.load_dir(dir.path()).unwrap();
    assert_eq!(loaded.workflows, ["z_inner", "a_outer"]);
    let reasons: Vec<String> = loaded.skipped.iter().map(|skipped| skipped.error.to_string()).collect();
    assert_eq!(reasons.len(), 2);
    assert!(
        reasons.iter().all(|reason| reason.ends_with("workflows run inside of each other in a circle: c, d")),
        "{reasons:?}"
    );
    let findings: Vec<String> = registry.check().iter().map(ToString::to_string).collect();
    assert_eq!(findings.iter().find(|finding| finding.contains("workflow")), None);

    let graph = registry.workflow("a_outer").unwrap();
    let program = Program::from_graph((**graph).clone(), &registry.team().unwrap()).unwrap();
    let voices = Voices::new(|path| match path {
        "build/again" => json!({"summary": "once more", "data": {}}),
        other => of_map(other),
    });
    let runner = Runner::builder().model(voices.clone()).build();
    let output = runner.start(&program, brief()).await.unwrap().output().await.unwrap();
    assert_eq!(output["taker"]["summary"], "done");
    assert_eq!(voices.paths(), ["lister", "build/worker", "build/again", "taker"]);
    // The worker needs the map from before, and its part reaches the taker although another gave the output.
    assert!(voices.heard("build/worker").contains("Two of them."));
    let taker = voices.heard("taker");
    assert!(taker.contains("once more") && taker.contains("part.md"), "{taker}");
}

const ASK: &str = "
  - agent: writer
  - name: release
    ask: May it go out?
    answer: [go, wait]
    inputs: writer
  - {name: out, agent: writer, inputs: release, when: steps.release == \"go\"}
";

async fn question<O>(run: &Run<O>) -> Arc<Question> {
    loop {
        if let Some(question) = run.questions().await.into_iter().next() {
            return question;
        }
        tokio::task::yield_now().await;
    }
}

/// The process that asked is gone when the answer comes.
#[tokio::test]
async fn a_question_is_answered_in_another_process() {
    let voices = Voices::new(|path| json!({"summary": format!("{path} did it"), "data": {}}));
    let journal = Arc::new(MemoryJournal::new());
    let runner = || Runner::builder().model(voices.clone()).journal(journal.clone()).build();
    let first = runner();
    let run = first.start(&program(ASK), brief()).await.unwrap();
    let id = run.id().to_owned();
    let asked = question(&run).await;
    let text = asked.question.json().unwrap();
    assert_eq!(text["question"], "May it go out?");
    assert_eq!(text["about"]["summary"], "writer did it");
    assert_eq!(asked.answer_schema, json!({"enum": ["go", "wait"]}));
    first.shutdown().await;

    let run = runner().resume(&program(ASK), &id).await.unwrap();
    let asked = question(&run).await;
    assert!(run.answer(&asked.id, json!("perhaps"), "ada").await.is_err());
    assert!(run.answer(&asked.id, json!("go"), "ada").await.unwrap());
    assert_eq!(run.wait().await.unwrap(), RunStatus::Succeeded);
    assert_eq!(voices.paths(), ["writer", "out"]);
    let out = voices.heard("out");
    assert!(out.contains("`release` gave: go"), "{out}");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_nobody_answers_takes_its_default() {
    let voices = Voices::new(|_| json!({"data": {}}));
    let steps = ASK
        .replace("    inputs: writer\n", "    inputs: writer\n    deadline_ms: 60000\n    default: wait\n");
    let runner = Runner::builder().model(voices.clone()).build();
    let run = runner.start(&program(&steps), brief()).await.unwrap();
    assert_eq!(run.wait().await.unwrap(), RunStatus::Succeeded);
    assert_eq!(voices.paths(), ["writer"], "what waits for a `go` does not run");
}

/// A report goes through a timer as it is, and its deliverables with it.
#[tokio::test(start_paused = true)]
async fn a_timer_waits_and_hands_on_what_it_was_given() {
    let voices = Voices::new(of_map);
    let began = tokio::time::Instant::now();
    play("  - agent: lister\n  - {name: rest, timer: 90000, inputs: lister}\n  - {agent: worker, inputs: rest}\n", &voices)
        .await
        .unwrap();
    assert!(began.elapsed().as_millis() >= 90_000);
    let worker = voices.heard("worker");
    assert!(worker.contains("Two of them.") && worker.contains("docs/map.md"), "{worker}");
}

#[tokio::test]
async fn a_signal_lets_a_step_go_on_with_what_came() {
    let voices = Voices::new(|_| json!({"data": {}}));
    let runner = Runner::builder().model(voices.clone()).build();
    let run = runner
        .start(&program("  - signal: window\n  - {agent: writer, inputs: window}\n"), brief())
        .await
        .unwrap();
    run.signal("window", json!({"from": "22:00"})).await.unwrap();
    assert_eq!(run.wait().await.unwrap(), RunStatus::Succeeded);
    let told = voices.heard("writer");
    assert!(told.contains("22:00"), "{told}");
}

/// The first agent chooses who goes on; nobody goes on longer than is allowed.
#[tokio::test]
async fn a_route_goes_where_its_agents_say() {
    let steps = "  - {name: desk, route: [triage, writer], max_hops: 3}\n";
    let voices = Voices::new(|path| match path {
        "desk/hop[1]/triage" => json!({"summary": "It is a text.", "next_agent": "writer"}),
        _ => json!({"summary": "written", "data": {}}),
    });
    let output = play(steps, &voices).await.unwrap();
    assert_eq!(output["desk"]["summary"], "written");
    assert_eq!(voices.paths(), ["desk/hop[1]/triage", "desk/hop[2]/writer"]);
    assert!(voices.heard("desk/hop[2]/writer").contains("It is a text."));

    let restless = Voices::new(|_| json!({"next_agent": "triage"}));
    let error = play(steps, &restless).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Limit { limit, max: 3 } if limit == "max_hops of `desk`"),
        "{error}"
    );
}
