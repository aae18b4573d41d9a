use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use coral_core::{Delta, EffectClass, Report, ToolDef};

use super::*;

const BRIEF: &str = "### Task \"Manager\" `x`\n\nA list for <small> teams.\n\n#### Users\n\n- Lead: creates projects.\n\n\
    #### What it must do\n\n- Create, edit and delete tasks with title, notes, due date and labels.\n\
    - Group tasks in projects; it's for members.\n- Send reminders \\ e-mails.\n\n#### Quality\n\n- Answers within 300 ms.\n";

fn prompt(deliverables: &[(&str, &str)]) -> ChatRequest {
    let mut user =
        format!("## Project\n\nName: TaskManager\nPhase: build\n\n## Brief\n\n{BRIEF}\n## Deliverables\n\n");
    for (kind, path) in deliverables {
        let _ = writeln!(user, "- `{kind}` at `{path}`: What {kind} holds (optional)");
    }
    user.push_str(
        "\n## Handed over\n\n- `requirements_document` at `docs/requirements.md` from `architect`: all\n",
    );
    let mut request = ChatRequest::new("You are the backend developer.", user);
    request.tools = Arc::from([ToolDef {
        name: "filesystem__write_file".into(),
        description: "writes a file".into(),
        input_schema: json!({"type": "object"}),
        effect: EffectClass::Idempotent,
    }]);
    request
}

fn with_report(mut request: ChatRequest) -> ChatRequest {
    let schema = json!({
        "type": "object", "required": ["summary"],
        "properties": {
            "summary": {"type": "string"}, "deliverables": {"type": "array"}, "decisions": {"type": "array"},
            "next_tasks": {"type": "array"}, "next_agent": {"type": ["string", "null"]},
            "data": {"type": "object", "required": ["state"], "properties": {"state": {"enum": ["done", "partial"]}}}
        }
    });
    request.output = Some(OutputFormat { name: "report".into(), schema: Arc::new(schema) });
    request
}

async fn ask(request: &ChatRequest) -> ChatResponse {
    OfflineModel::new().chat(request, &CallContext::default()).await.unwrap()
}

/// The files that the model writes for `deliverables`.
async fn files(deliverables: &[(&str, &str)]) -> Vec<(String, String)> {
    let response = ask(&prompt(deliverables)).await;
    assert_eq!(response.stop, StopReason::ToolCalls);
    let text = |call: &ToolCall, key: &str| call.arguments[key].as_str().unwrap().to_owned();
    response.message.tool_calls().map(|call| (text(call, "path"), text(call, "content"))).collect()
}

async fn file(kind: &str, path: &str) -> String {
    files(&[(kind, path)]).await.remove(0).1
}

#[tokio::test]
async fn it_writes_all_deliverables_in_one_turn_and_reports_those_that_were_written() {
    let wanted =
        [("api_specification", "docs/api_spec.yaml"), ("notes", "docs/notes.md"), ("secret", "/etc/x.md")];
    let mut request = with_report(prompt(&wanted));
    let first = ask(&request).await;
    let calls: Vec<ToolCall> = first.message.tool_calls().cloned().collect();
    assert_eq!(calls.len(), 3);
    assert_eq!(first, ask(&request).await, "the same request gives the same answer");

    request.messages.push(first.message);
    let results = calls.iter().map(|call| Part::ToolResult {
        call_id: call.id.clone(),
        name: call.name.clone(),
        content: if call.id == "write_2" { "denied: outside of the project".into() } else { "ok".into() },
        is_error: call.id == "write_2",
    });
    request.messages.push(Message::tool_results(results));
    let last = ask(&request).await;
    assert_eq!(last.stop, StopReason::End);
    let report: Report = serde_json::from_str(&last.message.text()).unwrap();
    let paths: Vec<&str> = report.deliverables.iter().map(|d| d.path.as_str()).collect();
    assert_eq!(paths, ["docs/api_spec.yaml", "docs/notes.md"]);
    assert!(report.summary.contains("no language model was called"), "{}", report.summary);
    assert!(
        report.summary.contains("Not written: /etc/x.md: denied: outside of the project."),
        "{}",
        report.summary
    );
    assert!(
        report.next_tasks.contains(&"Fulfil R3: Send reminders \\ e-mails".to_owned()),
        "{:?}",
        report.next_tasks
    );
    assert_eq!(report.data, json!({"state": "done"}));
    assert_eq!(report.next_agent, None);
}

#[tokio::test]
async fn without_a_tool_to_write_it_says_so() {
    let mut request = with_report(prompt(&[("notes", "docs/notes.md")]));
    request.tools = Arc::from([]);
    let report: Report = serde_json::from_str(&ask(&request).await.message.text()).unwrap();
    assert_eq!(report.deliverables, []);
    assert!(report.summary.contains("No tool to write files was offered"), "{}", report.summary);
}

#[tokio::test]
async fn without_tools_and_format_it_repeats_the_question() {
    let heard = Arc::new(Mutex::new(String::new()));
    let listener = heard.clone();
    let cx = CallContext::default()
        .on_delta(move |delta: &Delta| listener.lock().unwrap().push_str(&delta.to_string()));
    let response = OfflineModel.chat(&ChatRequest::user("Name\n three corals."), &cx).await.unwrap();
    let expected = "Offline: this answer was made by Coral's offline model; no language model was called. Asked: Name three corals.";
    assert_eq!(response.message.text(), expected);
    assert_eq!(*heard.lock().unwrap(), expected);
    assert_eq!((response.cost, response.usage.input_tokens), (Some(Usd::ZERO), 5));
}

#[tokio::test]
async fn every_file_says_that_it_is_offline() {
    let paths = [
        "a.md",
        "api.yaml",
        "compose.yaml",
        "ci/pipeline.yaml",
        "other.yml",
        "a.json",
        "openapi.json",
        "schema.json",
        "a.toml",
        "a.csv",
        ".env",
        "a.sql",
        "seeds.sql",
        "a.rs",
        "a.ts",
        "a.tsx",
        "a.js",
        "a.py",
        "test_a.py",
        "a.html",
        "a.css",
        "a.mmd",
        "a.sh",
        "main.tf",
        "Dockerfile",
        "Makefile",
        "unknown.xyz",
        "noextension",
    ];
    let wanted: Vec<(&str, &str)> = paths.iter().map(|path| ("something", *path)).collect();
    for (path, content) in files(&wanted).await {
        assert!(
            content.contains("ade by Coral's offline model; no language model was called"),
            "{path}:\n{content}"
        );
        assert!(content.ends_with('\n') && !content.contains("\n\n\n\n"), "{path}");
    }
}

#[tokio::test]
async fn documents_are_drawn_from_the_brief() {
    for (kind, expected) in [
        (
            "requirements_document",
            "- **R1** Create, edit and delete tasks with title, notes, due date and labels.",
        ),
        ("technical_specification", "| Tasks | has title, notes, due date, labels | R1, R2 |"),
        ("architecture_diagrams", "erDiagram\n    TASK {\n"),
        ("architecture_decisions", "ADR-1: honour Q1"),
        ("database_schema", "## Table `tasks`"),
        ("threat_model", "Somebody reads or changes another's task"),
        ("test_plan", "| T-R1 |"),
        ("deployment_runbook", "Run the migrations."),
        ("user_guide", "## Working with tasks"),
        ("api_implementation", "| createTask | POST /tasks | 201, 422 |"),
    ] {
        let text = file(kind, "docs/x.md").await;
        assert!(text.contains(expected), "{kind}:\n{text}");
        assert!(text.contains("- `docs/requirements.md`"), "{kind}");
    }
}

#[tokio::test]
async fn json_files_are_json() {
    for (kind, path) in
        [("api_specification", "api_spec.json"), ("config", "a.json"), ("event_schema", "s.json")]
    {
        let value: Value = serde_json::from_str(&file(kind, path).await).unwrap();
        assert!(value.is_object(), "{path}");
    }
    let api: Value = serde_json::from_str(&file("api_specification", "api_spec.json").await).unwrap();
    assert_eq!(api["paths"]["/tasks"]["post"]["operationId"], "createTask");
    assert_eq!(api["components"]["schemas"]["NewTask"]["properties"]["due_date"]["format"], "date");
}

/// Runs a program over `input` and fails with what it said.
fn accepts(program: &str, arguments: &[&str], input: &str) {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{program} refused:\n{}\n{input}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn sql_files_run() {
    let script = file("database_migrations", "a.sql").await + &file("seed_data", "seeds.sql").await;
    let run = "import sqlite3,sys; db=sqlite3.connect(':memory:'); db.execute('pragma foreign_keys=on'); \
               db.executescript(sys.stdin.read()); assert db.execute('select count(*) from tasks').fetchone()[0]==2";
    accepts("python3", &["-c", run], &script);
}

#[tokio::test]
async fn programs_parse() {
    let compile = "import sys; compile(sys.stdin.read(), 'x', 'exec')";
    accepts("python3", &["-c", compile], &file("service", "a.py").await);
    accepts("python3", &["-c", compile], &file("unit_tests", "tests/a.py").await);
    accepts(
        "python3",
        &["-c", "import sys,tomllib; tomllib.loads(sys.stdin.read())"],
        &file("config", "a.toml").await,
    );
    accepts("node", &["--check", "--input-type=module", "-"], &file("service", "a.js").await);
    accepts("sh", &["-n"], &file("script", "a.sh").await);
    let directory = env!("CARGO_MANIFEST_DIR").to_owned() + "/../target/tmp";
    std::fs::create_dir_all(&directory).unwrap();
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let source = file("service", "a.rs").await;
    let arguments = [
        "-",
        "--crate-name=offline_source",
        "--crate-type=lib",
        "--edition=2024",
        "--emit=metadata",
        "--out-dir",
        &directory,
    ];
    accepts(&rustc, &arguments, &source);
}

#[tokio::test]
async fn yaml_files_are_what_json_says_they_are() {
    let read =
        |text: &str| serde_saphyr::from_str::<Value>(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let yaml = file("api_specification", "api_spec.yaml").await;
    assert!(yaml.starts_with("# Made by"), "{yaml}");
    let mut json: Value = serde_json::from_str(&file("api_specification", "api_spec.json").await).unwrap();
    json.as_object_mut().unwrap().remove("x-made-by");
    assert_eq!(read(&yaml), json);
    let compose = read(&file("deployment_configuration", "compose.yaml").await);
    assert_eq!(compose["services"]["db"]["image"], "postgres:17");
    let pipeline = read(&file("ci_pipeline", "ci/pipeline.yaml").await);
    assert_eq!(pipeline["jobs"]["image"]["needs"], "verify");
    let other = read(&file("x", "other.yml").await);
    assert_eq!(other["requirements"][2]["text"], "Send reminders / e-mails");
}
