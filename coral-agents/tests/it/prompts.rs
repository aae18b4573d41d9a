//! What each built-in agent is told, as the model gets it.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_agents::Registry;
use coral_core::{
    AgentSpec, Brief, CallContext, Caller, ChatModel, ChatRequest, ChatResponse, EffectClass, Error,
    ErrorKind, GraphData, ModelFault, Part, Partials, Program, PromptAgent, Runner, StepData, StepKind, Team,
    ToolCall, ToolDef, ToolOutput, Toolbox,
};
use serde_json::json;

/// Keeps the first request and gives no answer.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Option<ChatRequest>>>);

#[async_trait]
impl ChatModel for Recorder {
    fn name(&self) -> &str {
        "recorder"
    }

    async fn chat(&self, request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        self.0.lock().unwrap().get_or_insert_with(|| request.clone());
        let (model, problem) = ("recorder".to_owned(), "it only records".to_owned());
        Err(Error::new(ErrorKind::Model { fault: ModelFault::InvalidRequest, model, problem }))
    }
}

/// Two tools that are never called.
struct Files;

#[async_trait]
impl Toolbox for Files {
    async fn list(&self, _caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        let tool = |name: &str, description: &str, effect| ToolDef {
            name: name.to_owned(),
            description: description.to_owned(),
            input_schema: json!({"type": "object", "properties": {"path": {"type": "string"}}}),
            effect,
        };
        Ok(vec![
            tool("filesystem__read_file", "Reads a file.", EffectClass::Pure),
            tool("filesystem__write_file", "Writes a file.", EffectClass::Idempotent),
        ])
    }

    async fn call(&self, call: &ToolCall, _cx: &CallContext) -> Result<ToolOutput, Error> {
        Ok(ToolOutput::error(format!("`{}` is not to be called", call.name)))
    }
}

/// The request that the agent of this spec makes first for `brief`.
async fn request(spec: &AgentSpec, partials: &Partials, brief: Brief) -> ChatRequest {
    request_in(spec, "", partials, brief).await
}

/// The same in a phase.
async fn request_in(spec: &AgentSpec, phase: &str, partials: &Partials, brief: Brief) -> ChatRequest {
    let mut spec = spec.clone();
    spec.dependencies.clear();
    for phase in spec.phases.values_mut() {
        phase.dependencies = None;
    }
    let mut step = StepData::new(spec.id.as_str(), StepKind::Agent(spec.id.as_str().into()));
    step.instructions = vec!["Keep it small.".to_owned()];
    step.phase = phase.into();
    let graph = GraphData { name: "one".to_owned(), steps: vec![step], ..GraphData::default() };
    let team = Team::new().with_agent(PromptAgent::with_partials(spec, partials).unwrap());
    let recorder = Recorder::default();
    let runner = Runner::builder().model(recorder.clone()).tools(Files).build();
    let run = runner.start(&Program::from_graph(graph, &team).unwrap(), brief).await.unwrap();
    assert!(run.output().await.is_err());
    let request = recorder.0.lock().unwrap().take();
    request.unwrap()
}

fn brief(text: &str) -> Brief {
    Brief {
        project: "Lantern".to_owned(),
        text: text.into(),
        facts: [("needs_mobile".to_owned(), json!(true))].into(),
    }
}

/// To take over a wanted change of a prompt, run the test with `UPDATE_PROMPTS=1`.
#[tokio::test]
async fn the_rendered_prompts_are_as_recorded() {
    let registry = Registry::builtin();
    let partials: Partials = registry.partials().collect();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/prompts");
    let update = std::env::var_os("UPDATE_PROMPTS").is_some();
    let mut different = Vec::new();
    for spec in registry.agents() {
        let request =
            request(spec, &partials, brief("# Lantern\n\n## Goal\n\nLend tools to neighbours.")).await;
        let rendered: String = request
            .messages
            .iter()
            .map(|message| format!("===== {:?}\n\n{}\n\n", message.role, message.text()))
            .collect();
        let path = dir.join(format!("{}.txt", spec.id));
        if update {
            fs::create_dir_all(&dir).unwrap();
            fs::write(&path, &rendered).unwrap();
        }
        let recorded = fs::read_to_string(&path).unwrap_or_default();
        if recorded != rendered {
            let line = recorded.lines().zip(rendered.lines()).take_while(|(a, b)| a == b).count() + 1;
            different.push(format!("{} from line {line}", path.display()));
        }
    }
    assert_eq!(different, [""; 0], "run with UPDATE_PROMPTS=1 if the change is wanted");
}

/// What is said in a phase is recorded as the message that gives the task; the system message is that of every phase.
#[tokio::test]
async fn the_tasks_of_every_phase_are_as_recorded() {
    let registry = Registry::builtin();
    let partials: Partials = registry.partials().collect();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/prompts");
    let mut different = Vec::new();
    for spec in registry.agents() {
        let plain = request(spec, &partials, brief("Lend tools.")).await;
        let mut tasks = String::new();
        for phase in spec.phases.keys() {
            let request = request_in(spec, phase, &partials, brief("Lend tools.")).await;
            assert_eq!(request.messages[0], plain.messages[0], "{} in {phase}", spec.id);
            tasks.push_str(&format!("===== {phase}\n\n{}\n\n", request.messages[1].text()));
        }
        let path = dir.join(format!("{}.phases.txt", spec.id));
        if std::env::var_os("UPDATE_PROMPTS").is_some() {
            fs::write(&path, &tasks).unwrap();
        }
        if fs::read_to_string(&path).unwrap_or_default() != tasks {
            different.push(path.display().to_string());
        }
    }
    assert_eq!(different, [""; 0], "run with UPDATE_PROMPTS=1 if the change is wanted");
}

/// The system message is the same for every task, byte for byte, so that a provider can cache it.
#[tokio::test]
async fn the_system_message_does_not_depend_on_the_task() {
    let registry = Registry::builtin();
    let partials: Partials = registry.partials().collect();
    for spec in registry.agents() {
        let one = request(spec, &partials, brief("One.")).await;
        let other = request(spec, &partials, Brief { project: "Other".to_owned(), ..brief("Two.") }).await;
        assert_eq!(one.messages[0], other.messages[0], "{}", spec.id);
        assert!(one.messages[0].cache, "{}", spec.id);
        assert_ne!(one.messages[1], other.messages[1], "{}", spec.id);
    }
}

/// Asks for a tool first, and ends without an answer on the second turn; keeps both requests.
#[derive(Clone, Default)]
struct TwoTurns(Arc<Mutex<Vec<ChatRequest>>>);

#[async_trait]
impl ChatModel for TwoTurns {
    fn name(&self) -> &str {
        "two-turns"
    }

    async fn chat(&self, request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        let mut requests = self.0.lock().unwrap();
        requests.push(request.clone());
        if requests.len() > 1 {
            let (model, problem) = ("two-turns".to_owned(), "it has two turns".to_owned());
            return Err(Error::new(ErrorKind::Model { fault: ModelFault::InvalidRequest, model, problem }));
        }
        let mut response = ChatResponse::text("two-turns", "I look first.");
        response.message.parts.push(Part::ToolCall(ToolCall {
            id: "call-1".to_owned(),
            name: "filesystem__read_file".to_owned(),
            arguments: json!({"path": "README.md"}),
        }));
        Ok(response)
    }
}

/// A turn repeats all of the turn before it, byte for byte, and adds to its end: what a provider
/// has cached of the first serves the second.
#[tokio::test]
async fn two_turns_share_their_whole_prefix() {
    let registry = Registry::builtin();
    let partials: Partials = registry.partials().collect();
    for spec in registry.agents() {
        let mut spec = (**spec).clone();
        spec.dependencies.clear();
        let step = StepData::new(spec.id.as_str(), StepKind::Agent(spec.id.as_str().into()));
        let graph = GraphData { name: "one".to_owned(), steps: vec![step], ..GraphData::default() };
        let id = spec.id.clone();
        let team = Team::new().with_agent(PromptAgent::with_partials(spec, &partials).unwrap());
        let model = TwoTurns::default();
        let runner = Runner::builder().model(model.clone()).tools(Files).build();
        let run = runner.start(&Program::from_graph(graph, &team).unwrap(), brief("One.")).await.unwrap();
        assert!(run.output().await.is_err());
        let requests = model.0.lock().unwrap();
        let [first, second] = requests.as_slice() else { panic!("{id}: {} turns", requests.len()) };
        assert!(second.messages.starts_with(&first.messages), "{id}");
        assert!(second.messages.len() > first.messages.len(), "{id}");
        assert_eq!(
            (&first.tools, &first.output, &first.tool_choice),
            (&second.tools, &second.output, &second.tool_choice)
        );
    }
}

/// What two definitions say alike belongs in a partial: no sentence of eight words or more stands in
/// two of them.
#[test]
fn no_sentence_stands_in_two_definitions() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("agents");
    let mut seen: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    let mut shared = Vec::new();
    let mut sentences = 0;
    for spec in Registry::builtin().agents() {
        let text = fs::read_to_string(dir.join(format!("{}.md", spec.id))).unwrap();
        // Tags of templates are no sentences.
        let text: String =
            text.lines().filter(|line| !line.starts_with("{%")).map(|line| format!("{line}\n")).collect();
        let (_, body) = text.strip_prefix("---\n").and_then(|text| text.split_once("\n---\n")).unwrap();
        for sentence in body.split(['\n', '.', ';', ':', '?', '!']) {
            let words: Vec<String> = sentence
                .split(|c: char| !c.is_alphanumeric())
                .filter(|word| !word.is_empty())
                .map(str::to_lowercase)
                .collect();
            if words.len() < 8 {
                continue;
            }
            sentences += 1;
            let words = words.join(" ");
            match seen.get(&words) {
                Some(other) if *other != spec.id => shared.push(format!("{other}, {}: {words}", spec.id)),
                _ => drop(seen.insert(words, spec.id.clone())),
            }
        }
    }
    assert_eq!(shared, [""; 0]);
    assert!(sentences > 1_500, "only {sentences} sentences were compared");
}

/// The sections that the next agent and a person rely on are in every definition, each with something
/// in it.
#[test]
fn every_definition_has_the_sections_of_a_professional() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("agents");
    let mut lacking = Vec::new();
    for spec in Registry::builtin().agents() {
        let text = fs::read_to_string(dir.join(format!("{}.md", spec.id))).unwrap();
        let section = |title: &str| -> String {
            let after = text.split_once(&format!("\n{title}")).map(|(_, after)| after).unwrap_or_default();
            let level = title.split(' ').next().unwrap();
            let ends = |line: &&str| {
                let hashes = line.chars().take_while(|c| *c == '#').count();
                hashes > 0 && hashes <= level.len()
            };
            after.lines().take_while(|line| !ends(line)).collect::<Vec<_>>().join("\n")
        };
        let mut need = |good: bool, what: &str| {
            if !good {
                lacking.push(format!("{}: {what}", spec.id));
            }
        };
        let scope = section("### Scope");
        need(scope.contains("Yours") && scope.contains("Not yours"), "scope, in and out");
        need(section("### Inputs you need").len() > 80, "the inputs it needs");
        let steps = section("### Method")
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
            .count();
        need(steps >= 5, "a method of five steps at least");
        let checklist = text.lines().filter(|line| line.starts_with("- ")).count();
        need(checklist >= 12, "checklists");
        need(text.contains("{% include \"decisions\" %}"), "decisions to write down");
        let criteria =
            section("### Acceptance criteria").lines().filter(|line| line.starts_with("- ")).count();
        need(criteria >= 4, "four acceptance criteria at least");
        need(section("### Limits").len() > 80, "limits");
        need(spec.output_schema.is_some(), "a schema of its data");
        need(
            !spec.outputs.is_empty() && spec.outputs.iter().all(|output| output.description.len() > 40),
            "outputs, described",
        );
        need(
            !spec.handoff.next_agents.is_empty() && !spec.handoff.preserve.is_empty(),
            "successors, and what goes along",
        );
        need(spec.handoff.template.lines().count() > 5, "a handoff template that tells its takers apart");
        need(!spec.operations.is_empty() && !spec.model.capabilities.is_empty(), "needs of tools and model");
        let standards = spec.methodologies.len() + spec.expertise_areas.len();
        need(standards >= 8, "methods and fields");
    }
    assert_eq!(lacking, [""; 0]);
}
