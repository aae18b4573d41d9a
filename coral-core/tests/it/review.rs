//! Work that goes back: by a reviewer, and for a gap.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, Brief, Budget, ChatRequest, ChatResponse, ErrorKind, Event,
    Finding, Flow, GraphData, Handle, Input, MemoryJournal, MessageType, OnGap, OutputSpec, Program,
    PromptAgent, PromptTemplate, ResumeOptions, RunStatus, Runner, StartOptions, StepData, StepKind, Team,
    Workflow,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{FnModel, records, story};

fn finding(to: &str, finding: &str) -> Finding {
    Finding { to: to.into(), finding: finding.into() }
}

/// Writes a draft; with each round, another.
struct Writer(AgentSpec);

#[async_trait]
impl Agent for Writer {
    type Input = String;
    type Output = String;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, topic: String, cx: &mut AgentContext) -> Result<String, AgentError> {
        let asked: Vec<&str> =
            cx.reviews().iter().flat_map(|message| &message.next_tasks).map(String::as_str).collect();
        let previous = cx.previous::<String>()?.unwrap_or_else(|| topic.clone());
        Ok(format!("{previous}+{}", asked.last().unwrap_or(&"draft")))
    }
}

/// Sends back what is not long enough.
struct Critic {
    spec: AgentSpec,
    content_at: usize,
    to: &'static str,
}

#[async_trait]
impl Agent for Critic {
    type Input = String;
    type Output = String;

    fn spec(&self) -> &AgentSpec {
        &self.spec
    }

    async fn run(&self, draft: String, cx: &mut AgentContext) -> Result<String, AgentError> {
        if draft.matches('+').count() < self.content_at {
            return Err(cx.send_back([finding(self.to, &format!("more{}", cx.attempt()))]).into());
        }
        Ok(format!("{draft} passed"))
    }
}

struct Article {
    content_at: usize,
    to: &'static str,
}

impl Workflow for Article {
    type Input = String;
    type Output = String;

    fn name(&self) -> &str {
        "article"
    }

    fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
        let critic =
            Critic { spec: AgentSpec::new("critic", "Critic"), content_at: self.content_at, to: self.to };
        let draft = flow.step(Writer(AgentSpec::new("writer", "Writer")), flow.input()).named("draft");
        let set = flow.function("typeset", &draft, |text: String| async move { Ok(text) });
        flow.step(critic, &set).reviews(&draft).max_rounds(2)
    }
}

#[tokio::test]
async fn a_reviewer_sends_work_back_until_it_is_content() {
    let runner = Runner::builder().journal(MemoryJournal::new()).build();
    for to in ["draft", "writer"] {
        let run = runner.start(&Article { content_at: 3, to }, "x".to_owned()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), "x+draft+more1+more2 passed");
        let steps = |name: &str| {
            let wanted = name.to_owned();
            move |line: &String| line.starts_with(&wanted)
        };
        let story = story(&run).await;
        let path: Vec<&str> = story
            .iter()
            .filter(|line| steps("step_started")(line) || steps("sent_back")(line))
            .map(String::as_str)
            .collect();
        let round = ["step_started draft", "step_started typeset", "step_started critic"];
        let mut expected = round.to_vec();
        expected.push("sent_back critic to draft (1)");
        expected.extend(round);
        expected.push("sent_back critic to draft (2)");
        expected.extend(round);
        assert_eq!(path, expected);
        let recorded = records(&**runner.journal(), run.id()).await;
        let message = recorded.iter().find_map(|record| match &record.event {
            Event::SentBack { returned, .. } => Some(returned[0].message.clone()),
            _ => None,
        });
        let message = message.unwrap();
        assert_eq!((message.from_agent.as_str(), message.to_agent.as_str()), ("critic", "writer"));
        assert_eq!(
            (message.message_type, &*message.next_tasks),
            (MessageType::Review, &["more1".to_owned()][..])
        );
    }
}

#[tokio::test]
async fn rounds_are_bounded_and_a_resumed_run_has_as_many_again() {
    let runner = Runner::builder().journal(MemoryJournal::new()).build();
    let flow = Article { content_at: 4, to: "draft" };
    let run = runner.start_with(&flow, "x".to_owned(), StartOptions::new().id("run")).await.unwrap();
    let error = run.output().await.unwrap_err();
    assert_eq!(error.code(), "CORAL0023");
    let text = error.to_string();
    assert!(
        text.starts_with("`critic` sends work back: `draft`: more3; `critic` sent this back 2 times"),
        "{text}"
    );
    assert_eq!(run.wait().await.unwrap(), RunStatus::Failed);
    let run = runner.resume(&flow, "run").await.unwrap();
    assert_eq!(run.output().await.unwrap(), "x+draft+more1+more2+more4 passed");
}

#[tokio::test]
async fn work_goes_back_only_to_those_who_are_reviewed() {
    let runner = Runner::builder().build();
    let run = runner.start(&Article { content_at: 3, to: "typeset" }, "x".to_owned()).await.unwrap();
    let error = run.output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Rejected { .. }), "{error}");
    assert!(!story(&run).await.iter().any(|line| line.starts_with("sent_back")));
}

#[tokio::test]
async fn every_round_counts_against_the_budget() {
    let runner = Runner::builder().journal(MemoryJournal::new()).build();
    let flow = Article { content_at: 3, to: "draft" };
    let budget = Budget { agents: Some(4), ..Budget::default() };
    let options = StartOptions::new().id("run").budget(budget);
    let run = runner.start_with(&flow, "x".to_owned(), options).await.unwrap();
    let error = run.output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Budget { .. }), "{error}");
    assert_eq!(run.used().agents, 4);
    // One for the start that was refused, two for the round.
    let more = Budget { agents: Some(3), ..Budget::default() };
    let run = runner.resume_with(&flow, "run", ResumeOptions::new().top_up(more)).await.unwrap();
    assert_eq!(run.output().await.unwrap(), "x+draft+more1+more2 passed");
}

/// Two reviewers side by side: both are heard before the writer works again, and once.
#[tokio::test]
async fn reviewers_side_by_side_are_heard_together() {
    struct Panel;
    impl Workflow for Panel {
        type Input = String;
        type Output = Vec<String>;
        fn name(&self) -> &str {
            "panel"
        }
        fn build(&self, flow: &mut Flow<String>) -> Handle<Vec<String>> {
            let critic = |id: &str| Critic { spec: AgentSpec::new(id, id), content_at: 2, to: "draft" };
            let draft = flow.step(Writer(AgentSpec::new("writer", "Writer")), flow.input()).named("draft");
            let one = flow.step(critic("one"), &draft).reviews(&draft);
            let late = flow.timer("late", 50, &draft);
            let two = flow.step(critic("two"), &late).reviews(&draft);
            flow.function("end", (&one, &two), |(a, b): (String, String)| async move { Ok(vec![a, b]) })
        }
    }
    let run = Runner::builder().build().start(&Panel, "x".to_owned()).await.unwrap();
    assert_eq!(run.output().await.unwrap(), ["x+draft+more1 passed", "x+draft+more1 passed"]);
    let story = story(&run).await;
    let count = |line: &str| story.iter().filter(|l| *l == line).count();
    assert_eq!(count("step_started draft"), 2);
    assert_eq!((count("sent_back one to draft (1)"), count("sent_back two to draft (1)")), (1, 0));
    // The first reviewer sent back at once; the second had not begun, and saw only the second draft.
    assert_eq!((count("step_started one"), count("step_started two")), (2, 1));
}

#[test]
fn a_graph_says_what_is_wrong_with_its_reviews() {
    let agent = |name: &str, inputs: &[&str], reviews: &[&str]| StepData {
        inputs: inputs.iter().map(|input| (*input).into()).collect(),
        reviews: reviews.iter().map(|step| (*step).into()).collect(),
        ..StepData::new(name, StepKind::Agent(name.into()))
    };
    let graph = |steps| GraphData { name: "g".into(), steps, ..GraphData::default() };
    let function =
        StepData { reviews: vec!["a".into()], ..StepData::new("f", StepKind::Function("f".into())) };
    let zero = StepData { max_rounds: Some(0), ..agent("z", &[], &[]) };
    let bad = graph(vec![
        agent("a", &[], &["b", "a", "nobody", "f"]),
        agent("b", &["a", "f"], &["a"]),
        function,
        zero,
    ]);
    let problems: Vec<String> = bad.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "step `a`: `reviews`: `b` does not come before it",
            "step `a`: `reviews`: `a` does not come before it",
            "step `a`: `reviews`: no step is called `nobody`",
            "step `a`: `reviews`: `f` runs no agent that could mend its work",
            "step `f`: only an agent can review",
            "step `f`: `reviews`: `a` does not come before it",
            "step `z`: `max_rounds` is 0, so it could never send work back",
        ]
    );
}

/// An agent that is data, with an output that it may leave out.
fn data_agent(id: &str, dependencies: &[&str], output: &str) -> PromptAgent {
    PromptAgent::new(AgentSpec {
        dependencies: dependencies.iter().map(|kind| (*kind).to_owned()).collect(),
        outputs: vec![OutputSpec {
            kind: output.to_owned(),
            path: format!("docs/{output}.md"),
            description: String::new(),
            optional: true,
        }],
        prompt: PromptTemplate { system_instructions: format!("You are {id}."), ..Default::default() },
        ..AgentSpec::new(id, id)
    })
    .unwrap()
}

fn data_graph(on_gap: OnGap, reviews: &[&str]) -> GraphData {
    let step = |name: &str, inputs: &[&str]| StepData {
        inputs: inputs.iter().map(|input| (*input).into()).collect(),
        ..StepData::new(name, StepKind::Agent(name.into()))
    };
    let reviews = reviews.iter().map(|step| (*step).into()).collect();
    GraphData {
        name: "docs".into(),
        steps: vec![
            step("designer", &[]),
            step("editor", &["designer"]),
            StepData { on_gap: Some(on_gap), reviews, max_rounds: Some(1), ..step("builder", &["editor"]) },
        ],
        ..GraphData::default()
    }
}

fn report(kind: Option<&str>, send_back: &[Finding]) -> ChatResponse {
    let listed: Vec<Value> = kind
        .iter()
        .map(|kind| json!({"type": kind, "path": format!("docs/{kind}.md"), "description": ""}))
        .collect();
    let mut report = json!({"summary": "done", "deliverables": listed, "decisions": [], "next_tasks": []});
    if !send_back.is_empty() {
        report["send_back"] = json!(send_back);
    }
    ChatResponse::text("test", report.to_string())
}

fn who(request: &ChatRequest) -> &'static str {
    let system = request.messages[0].text();
    ["designer", "editor", "builder"].into_iter().find(|id| system.contains(id)).unwrap()
}

type Asked = Arc<Mutex<Vec<(&'static str, String)>>>;

async fn run_data(
    graph: GraphData,
    answer: impl Fn(&'static str, usize) -> ChatResponse + Send + Sync + 'static,
) -> (Result<Value, coral_core::Error>, Vec<(&'static str, String)>, Vec<Event>) {
    let asked: Asked = Arc::default();
    let seen = asked.clone();
    let model = FnModel::new(move |_, request: &ChatRequest| {
        let mut seen = seen.lock().unwrap();
        seen.push((who(request), request.messages[1].text()));
        let times = seen.iter().filter(|(id, _)| *id == who(request)).count();
        Ok(answer(who(request), times))
    });
    let team = Team::new()
        .with_agent(data_agent("designer", &[], "design"))
        .with_agent(data_agent("editor", &[], "text"))
        .with_agent(data_agent("builder", &["design"], "product"));
    let runner = Runner::builder().model(model).build();
    let brief = Brief { text: "Build it.".into(), ..Brief::default() };
    let run = runner.start(&Program::from_graph(graph, &team).unwrap(), brief).await.unwrap();
    let output = run.output().await;
    let events =
        records(&**runner.journal(), run.id()).await.into_iter().map(|record| record.event).collect();
    let asked = asked.lock().unwrap().clone();
    (output, asked, events)
}

#[tokio::test]
async fn a_gap_goes_back_to_the_agent_that_owes() {
    let answer = |who, times| match (who, times) {
        ("designer", 1) => report(None, &[]),
        ("designer", _) => report(Some("design"), &[]),
        ("editor", _) => report(Some("text"), &[]),
        _ => report(Some("product"), &[]),
    };
    let (output, asked, events) = run_data(data_graph(OnGap::SendBack, &[]), answer).await;
    output.unwrap();
    let order: Vec<&str> = asked.iter().map(|(id, _)| *id).collect();
    assert_eq!(order, ["designer", "editor", "designer", "editor", "builder"]);
    assert!(
        asked[2].1.contains("`builder` sent back to you:\n\n- `builder` needs the deliverable `design`"),
        "{}",
        asked[2].1
    );
    assert!(asked[2].1.contains("Your report of the round before: done"), "{}", asked[2].1);
    assert_eq!(events.iter().filter(|event| matches!(event, Event::SentBack { .. })).count(), 1);

    let (output, asked, _) = run_data(data_graph(OnGap::SendBack, &[]), |_, _| report(None, &[])).await;
    let error = output.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::MissingDependency { missing, .. } if *missing == ["design"]));
    assert!(error.to_string().contains("sent this back 1 times"), "{error}");
    assert_eq!(asked.len(), 4);

    let (output, asked, _) = run_data(data_graph(OnGap::Fail, &[]), |_, _| report(None, &[])).await;
    assert!(matches!(output.unwrap_err().kind(), ErrorKind::MissingDependency { .. }));
    assert_eq!(asked.len(), 2);
}

#[tokio::test]
async fn a_gap_may_be_filled_from_the_brief_and_is_noted() {
    let (output, asked, events) = run_data(data_graph(OnGap::FromBrief, &[]), |_, _| report(None, &[])).await;
    output.unwrap();
    assert!(asked[2].1.contains("Nobody before you delivered `design`."), "{}", asked[2].1);
    let note = events.iter().find_map(|event| match event {
        Event::Noted { path, topic, note } if &**topic == "taken_from_brief" => {
            Some((path.clone(), note.clone()))
        }
        _ => None,
    });
    assert_eq!(note, Some(("builder".into(), json!({"missing": ["design"]}))));
}

#[tokio::test]
async fn a_model_that_reviews_sends_back_to_those_it_reviews_and_no_others() {
    let answer = |who, times| match (who, times) {
        ("builder", 1) => report(None, &[finding("designer", "no colours")]),
        ("builder", 2) => report(None, &[finding("editor", "too long")]),
        ("builder", _) => report(Some("product"), &[]),
        _ => report(Some(if who == "designer" { "design" } else { "text" }), &[]),
    };
    let (output, asked, _) = run_data(data_graph(OnGap::Fail, &["editor"]), answer).await;
    output.unwrap();
    let order: Vec<&str> = asked.iter().map(|(id, _)| *id).collect();
    assert_eq!(
        order,
        ["designer", "editor", "builder", "builder", "editor", "builder"],
        "one repair, one round"
    );
    assert!(asked[2].1.contains("You review the work of: editor."), "{}", asked[2].1);
    assert!(asked[4].1.contains("`builder` sent back to you:\n\n- too long"), "{}", asked[4].1);
    assert!(asked[5].1.contains("You sent back to `editor`:\n\n- too long"), "{}", asked[5].1);
}

/// Says what it worked from; sends work back so often before it is content.
struct Node {
    spec: AgentSpec,
    patience: usize,
}

#[async_trait]
impl Agent for Node {
    type Input = Value;
    type Output = Value;

    fn spec(&self) -> &AgentSpec {
        &self.spec
    }

    async fn run(&self, input: Value, cx: &mut AgentContext) -> Result<Value, AgentError> {
        tokio::task::yield_now().await;
        let sent = cx.reviews().iter().filter(|message| message.from_agent == self.spec.id).count();
        let to: Vec<String> = cx.reviewed_steps().map(str::to_owned).collect();
        if let Some(to) = to.get(sent % to.len().max(1)).filter(|_| sent < self.patience) {
            return Err(cx.send_back([finding(to, "again")]).into());
        }
        let inputs = match &input["name"] {
            Value::String(_) => vec![&input],
            // The brief, of a step that takes nothing else, has no such values.
            _ => input
                .as_object()
                .into_iter()
                .flat_map(|all| all.values())
                .filter(|v| v["name"].is_string())
                .collect(),
        };
        let saw: Vec<Value> = inputs.iter().map(|input| json!([input["name"], input["attempt"]])).collect();
        Ok(json!({"name": self.spec.id, "attempt": cx.attempt(), "saw": saw}))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However reviewers send work back: the run ends, nobody is asked for more rounds than it takes, and in
    /// the end every step has worked from the last outputs of those before it. A replay comes to the same.
    #[test]
    fn in_the_end_everything_rests_on_what_came_last(
        steps in prop::collection::vec((prop::collection::vec(any::<prop::sample::Index>(), 0..3), prop::collection::vec(any::<prop::sample::Index>(), 0..3), 0_usize..3), 2..8),
    ) {
        let mut data: Vec<StepData> = Vec::new();
        let mut behind: Vec<BTreeSet<usize>> = Vec::new();
        let mut team = Team::new();
        for (i, (inputs, reviews, patience)) in steps.iter().enumerate() {
            let name = format!("s{i}");
            let inputs: BTreeSet<usize> = inputs.iter().filter(|_| i > 0).map(|at| at.index(i)).collect();
            let mut ancestors = inputs.clone();
            for input in &inputs {
                ancestors.extend(&behind[*input]);
            }
            let ancestors_list: Vec<usize> = ancestors.iter().copied().collect();
            let reviews: BTreeSet<usize> = reviews
                .iter()
                .filter(|_| !ancestors_list.is_empty())
                .map(|at| *at.get(&ancestors_list))
                .collect();
            behind.push(ancestors);
            team = team.with_agent(Node { spec: AgentSpec::new(&name, &name), patience: *patience });
            data.push(StepData {
                inputs: inputs.iter().map(|at| Input::required(format!("s{at}"))).collect(),
                reviews: reviews.iter().map(|at| format!("s{at}").into()).collect(),
                max_rounds: Some(2),
                ..StepData::new(name.as_str(), StepKind::Agent(name.as_str().into()))
            });
        }
        let graph = GraphData { name: "any".into(), steps: data.clone(), ..GraphData::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (outputs, replayed) = runtime.block_on(async {
            let runner = Runner::builder().build();
            let program = Program::from_graph(graph, &team).unwrap();
            let run = runner.start(&program, Brief::default()).await.unwrap();
            assert_eq!(run.wait().await.unwrap(), RunStatus::Succeeded);
            let mut outputs = BTreeMap::new();
            let mut rounds: BTreeMap<String, u32> = BTreeMap::new();
            for record in records(&**runner.journal(), run.id()).await {
                match record.event {
                    Event::StepSucceeded { path, output, .. } => {
                        outputs.insert(path.to_string(), output.json().unwrap().clone());
                    }
                    Event::SentBack { path, round, .. } => {
                        let last = rounds.insert(path.to_string(), round).unwrap_or(0);
                        assert_eq!(round, last + 1, "{path}");
                    }
                    _ => {}
                }
            }
            let machine = runner.inspect(run.id(), None).await.unwrap();
            let replayed: BTreeMap<String, Value> = machine
                .steps()
                .filter_map(|(path, state)| Some((path.to_string(), state.output()?.json().unwrap().clone())))
                .collect();
            (outputs, replayed)
        });
        prop_assert_eq!(&outputs, &replayed);
        for step in &data {
            let output = &outputs[&*step.name];
            let saw = output["saw"].as_array().unwrap();
            prop_assert_eq!(saw.len(), step.inputs.len());
            for pair in saw {
                let giver = &outputs[pair[0].as_str().unwrap()];
                prop_assert_eq!(&giver["attempt"], &pair[1], "{} worked from an old {}", step.name, giver["name"]);
            }
        }
    }
}
