//! Agents and a workflow of your own, with types of your own.
//!
//! ```text
//! cargo run --example custom_agent
//! ```
//!
//! A designer's plan goes to two builders that work side by side; the second takes part only if
//! the run's facts say so; a tester takes what there is. Each edge is checked by the compiler:
//! remove one of the `Handoff`s below, and it says which output does not fit which input.

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, ChatRequest, Event, Flow, Handle, Handoff, HandoffContext,
    Runner, StartOptions, Workflow,
};
use coral_llm::ScriptedModel;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

// What passes between the agents: plain types.

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
struct Plan {
    operations: Vec<String>,
    screens: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
struct ApiTask {
    operations: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
struct Api {
    routes: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
struct Ui {
    pages: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
struct TestTask {
    subjects: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
struct Verdict {
    tested: usize,
    text: String,
}

// How one agent's output becomes the next one's input, where the types differ.

impl Handoff<ApiTask> for Plan {
    fn hand_off(self, _cx: &HandoffContext) -> Result<ApiTask, AgentError> {
        Ok(ApiTask { operations: self.operations })
    }
}

impl Handoff<TestTask> for (Api, Option<Ui>) {
    fn hand_off(self, _cx: &HandoffContext) -> Result<TestTask, AgentError> {
        let (api, ui) = self;
        let pages = ui.map(|ui| ui.pages).unwrap_or_default();
        Ok(TestTask { subjects: api.routes.into_iter().chain(pages).collect() })
    }
}

// The agents. All that they do to the world goes through `cx`, which records it: if the process
// dies here, `Runner::resume` goes on without asking the model again.

struct Designer(AgentSpec);

#[async_trait]
impl Agent for Designer {
    type Input = String;
    type Output = Plan;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, idea: String, cx: &mut AgentContext) -> Result<Plan, AgentError> {
        let request = ChatRequest::new("Answer with JSON: {\"operations\": [..], \"screens\": [..]}", idea);
        let answer = cx.chat(&request).await?;
        serde_json::from_str(&answer.message.text()).map_err(|error| {
            AgentError::transient(format!("the plan is not the JSON that was asked for: {error}"))
        })
    }
}

struct ApiBuilder(AgentSpec);

#[async_trait]
impl Agent for ApiBuilder {
    type Input = ApiTask;
    type Output = Api;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, task: ApiTask, cx: &mut AgentContext) -> Result<Api, AgentError> {
        let mut routes = Vec::new();
        for operation in &task.operations {
            let answer = cx.chat(&ChatRequest::new("Name one HTTP route.", operation.as_str())).await?;
            routes.push(answer.message.text());
        }
        Ok(Api { routes })
    }
}

struct UiBuilder(AgentSpec);

#[async_trait]
impl Agent for UiBuilder {
    type Input = Plan;
    type Output = Ui;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, plan: Plan, _cx: &mut AgentContext) -> Result<Ui, AgentError> {
        Ok(Ui {
            pages: plan.screens.iter().map(|screen| format!("{}.html", screen.to_lowercase())).collect(),
        })
    }
}

struct Tester(AgentSpec);

#[async_trait]
impl Agent for Tester {
    type Input = TestTask;
    type Output = Verdict;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, task: TestTask, cx: &mut AgentContext) -> Result<Verdict, AgentError> {
        let answer = cx.chat(&ChatRequest::new("What did you find?", task.subjects.join(", "))).await?;
        Ok(Verdict { tested: task.subjects.len(), text: answer.message.text() })
    }
}

struct BuildAndTest;

impl Workflow for BuildAndTest {
    type Input = String;
    type Output = Verdict;

    fn name(&self) -> &str {
        "build_and_test"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<Verdict> {
        let plan = flow.step(Designer(AgentSpec::new("designer", "Designer")), flow.input());
        let api = flow.step(ApiBuilder(AgentSpec::new("api_builder", "API builder")), &plan);
        let ui = flow.step(UiBuilder(AgentSpec::new("ui_builder", "UI builder")), &plan).when("has_screens");
        flow.step(Tester(AgentSpec::new("tester", "Tester")), (&api, &ui))
    }
}

/// Stands in for a provider; `coral_llm::from_env()` gives a real one.
fn model() -> ScriptedModel {
    let asked =
        |text: &'static str| move |request: &ChatRequest| request.messages[0].text().starts_with(text);
    ScriptedModel::new()
        .when(
            asked("Answer with JSON"),
            r#"{"operations": ["add a task", "list tasks"], "screens": ["Tasks"]}"#,
        )
        .when_then(asked("Name one HTTP route"), |request| match request.messages[1].text().as_str() {
            "add a task" => "POST /tasks",
            _ => "GET /tasks",
        })
        .when(asked("What did you find"), "All of it answers.")
}

#[tokio::main]
async fn main() -> Result<(), coral_core::Error> {
    for has_screens in [true, false] {
        let runner = Runner::builder().model(model()).build();
        let options = StartOptions::new().fact("has_screens", has_screens);
        let run = runner.start_with(&BuildAndTest, "a task list".to_owned(), options).await?;
        let mut events = run.events(1);
        while let Some(record) = events.next().await {
            match record?.event {
                Event::StepSucceeded { path, output, .. } => println!("{path}: {}", output.json()?),
                Event::StepSkipped { path, reason } => println!("{path}: skipped, {reason}"),
                _ => {}
            }
        }
        let verdict = run.output().await?;
        println!("tested {}: {}\n", verdict.tested, verdict.text);
    }
    Ok(())
}
