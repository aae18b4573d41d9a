//! Graphs within graphs: sub-workflows, maps, loops, routes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, CallContext, Caller, Error, ErrorKind, Event, Flow,
    GraphData, Handle, Hop, MemoryJournal, NoTools, Program, RunStatus, Runner, StepData, StepKind, Team,
    ToolCall, ToolDef, ToolOutput, Toolbox, Workflow,
};
use serde_json::{Value, json};

use crate::support::{Act, agent, asked, cast, play, records, story, until};

fn runner() -> Runner {
    Runner::builder().build()
}

struct Double;

impl Workflow for Double {
    type Input = u32;
    type Output = u32;

    fn name(&self) -> &str {
        "double"
    }

    fn build(&self, flow: &mut Flow<u32>) -> Handle<u32> {
        let once = flow.function("once", flow.input(), |n: u32| async move { Ok(n) });
        flow.function("sum", (&once, flow.input()), |(a, b): (u32, u32)| async move { Ok(a + b) })
    }
}

struct Nested;

impl Workflow for Nested {
    type Input = Vec<u32>;
    type Output = u32;

    fn name(&self) -> &str {
        "nested"
    }

    fn build(&self, flow: &mut Flow<Vec<u32>>) -> Handle<u32> {
        let doubled = flow.map("each", 2, flow.input(), |flow: &mut Flow<u32>| {
            let doubled = flow.workflow(&Double, flow.input());
            flow.function("inc", &doubled, |n: u32| async move { Ok(n + 1) })
        });
        let sum = flow.function("sum", &doubled, |all: Vec<u32>| async move { Ok(all.iter().sum::<u32>()) });
        flow.repeat("grow", "output >= 100", 9, &sum, |flow: &mut Flow<u32>| {
            flow.function("times", flow.input(), |n: u32| async move { Ok(n * 3) })
        })
    }
}

#[tokio::test]
async fn workflows_maps_and_loops_nest() {
    let runner = runner();
    let run = runner.start(&Nested, vec![1, 2, 3]).await.unwrap();
    assert_eq!(run.output().await.unwrap(), 135);
    let story = story(&run).await;
    for line in [
        "scope_opened each",
        "step_succeeded each/item[0]/double/sum",
        "step_succeeded each/item[2]/inc",
        "step_succeeded grow/turn[2]/times",
        "step_succeeded grow",
    ] {
        assert!(story.contains(&line.to_owned()), "{line} is not in {story:#?}");
    }
    // Two at once: the third item opens when one of the first two is over.
    let at = |line: &str| story.iter().position(|l| l == line).unwrap();
    assert!(at("step_started each/item[2]/double") > at("step_succeeded each/item[0]/inc"));
}

struct Endless;

impl Workflow for Endless {
    type Input = u32;
    type Output = u32;

    fn name(&self) -> &str {
        "endless"
    }

    fn build(&self, flow: &mut Flow<u32>) -> Handle<u32> {
        flow.repeat("review", "output.done", 3, flow.input(), |flow: &mut Flow<u32>| {
            flow.function("same", flow.input(), |n: u32| async move { Ok(n) })
        })
    }
}

/// The error of a loop names the loop.
#[tokio::test]
async fn langgraph_148_the_error_of_an_endless_loop_names_the_loop() {
    let run = runner().start(&Endless, 1).await.unwrap();
    let error = run.output().await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Limit { limit, max: 3 } if limit == "max_turns of `review`"),
        "{error}"
    );
    assert!(error.to_string().contains("`output.done` did not hold"), "{error}");
}

struct Fragile(Arc<AtomicUsize>, Arc<AtomicUsize>);

impl Workflow for Fragile {
    type Input = Vec<u32>;
    type Output = Vec<u32>;

    fn name(&self) -> &str {
        "fragile"
    }

    fn build(&self, flow: &mut Flow<Vec<u32>>) -> Handle<Vec<u32>> {
        let (good, bad) = (self.0.clone(), self.1.clone());
        flow.map("each", 8, flow.input(), move |flow: &mut Flow<u32>| {
            let first = flow.function("first", flow.input(), move |n: u32| {
                good.fetch_add(1, Ordering::SeqCst);
                async move { Ok(n) }
            });
            flow.function("second", &first, move |n: u32| {
                let fails = n == 2 && bad.fetch_add(1, Ordering::SeqCst) == 0;
                async move { if fails { Err(AgentError::user("not yet")) } else { Ok(n * 10) } }
            })
        })
    }
}

/// Finished tasks in a sub-graph must not run again.
#[tokio::test]
async fn langgraph_6792_resuming_a_failed_map_runs_only_what_failed() {
    let runner = runner();
    let flow = Fragile(Arc::default(), Arc::default());
    let run = runner.start(&flow, vec![1, 2, 3]).await.unwrap();
    assert_eq!(run.output().await.unwrap_err().to_string(), "not yet");
    let run = runner.resume(&flow, run.id()).await.unwrap();
    assert_eq!(run.output().await.unwrap(), [10, 20, 30]);
    assert_eq!(flow.0.load(Ordering::SeqCst), 3, "no finished step ran again");
    let again = records(&**runner.journal(), run.id())
        .await
        .iter()
        .filter(
            |record| matches!(&record.event, Event::StepStarted { path, .. } if path.ends_with("/second")),
        )
        .count();
    assert_eq!(again, 4);
}

#[tokio::test]
async fn a_map_over_nothing_gives_nothing() {
    let run = runner().start(&Fragile(Arc::default(), Arc::default()), vec![]).await.unwrap();
    assert!(run.output().await.unwrap().is_empty());
}

struct Waits;

impl Workflow for Waits {
    type Input = Vec<u32>;
    type Output = Vec<u32>;

    fn name(&self) -> &str {
        "waits"
    }

    fn build(&self, flow: &mut Flow<Vec<u32>>) -> Handle<Vec<u32>> {
        flow.map("each", 1, flow.input(), |flow: &mut Flow<u32>| {
            flow.function("wait", flow.input(), |n: u32| async move {
                std::future::pending::<()>().await;
                Ok(n)
            })
        })
    }
}

#[tokio::test]
async fn cancelling_reaches_into_graphs_within_graphs() {
    let runner = runner();
    let run = runner.start(&Waits, vec![1, 2]).await.unwrap();
    let mut events = run.events(1);
    while let Some(record) = events.next().await {
        if matches!(&record.unwrap().event, Event::StepStarted { path, .. } if path.contains('/')) {
            break;
        }
    }
    run.cancel("enough").await;
    assert_eq!(run.wait().await.unwrap(), RunStatus::Cancelled);
    assert!(!story(&run).await.iter().any(|line| line.contains("item[1]")), "no item opens after that");
}

/// An agent that hands on to the next of a list of names.
struct Planned(AgentSpec);

#[async_trait::async_trait]
impl Agent for Planned {
    type Input = Value;
    type Output = Value;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, input: Value, cx: &mut AgentContext) -> Result<Value, AgentError> {
        let mut plan = input["plan"].as_array().cloned().unwrap_or_default();
        let next = if plan.is_empty() { Value::Null } else { plan.remove(0) };
        Ok(json!({"by": cx.path(), "next_agent": next, "plan": plan}))
    }
}

fn route(max_hops: u32) -> Program<coral_core::Brief, Value> {
    let agents = vec!["triage".into(), "billing".into(), "refunds".into()];
    let graph = GraphData {
        name: "support".into(),
        steps: vec![
            StepData::new("plan", StepKind::Function("plan".into())),
            StepData {
                inputs: vec!["plan".into()],
                ..StepData::new("desk", StepKind::Route { agents, max_hops })
            },
        ],
        output: Some("desk".into()),
        ..GraphData::default()
    };
    let mut team = Team::new().with_function("plan", |brief: coral_core::Brief| async move {
        Ok(serde_json::from_str::<Value>(&brief.text).map(|plan| json!({"plan": plan}))?)
    });
    for id in ["triage", "billing", "refunds"] {
        let mut spec = AgentSpec::new(id, id);
        // Of these, one is bound by its definition, besides the route.
        if id == "refunds" {
            spec.handoff.next_agents = vec!["billing".into()];
        }
        team = team.with_agent(Planned(spec));
    }
    Program::from_graph(graph, &team).unwrap()
}

async fn routed(plan: &str, max_hops: u32) -> (Result<Value, Error>, Vec<String>) {
    let runner = Runner::builder().journal(MemoryJournal::new()).build();
    let brief = coral_core::Brief { text: plan.into(), ..Default::default() };
    let run = runner.start(&route(max_hops), brief).await.unwrap();
    (run.output().await, story(&run).await)
}

#[tokio::test]
async fn agents_route_among_those_that_the_graph_allows() {
    let (output, story) = routed(r#"["billing", "refunds", "billing"]"#, 5).await;
    assert_eq!(output.unwrap()["by"], "desk/hop[4]/billing");
    for line in [
        "handed_off desk/hop[1]/triage to desk/hop[2]/billing",
        "handed_off desk/hop[2]/billing to desk/hop[3]/refunds",
        "handed_off desk/hop[3]/refunds to desk/hop[4]/billing",
    ] {
        assert!(story.contains(&line.to_owned()), "{line} is not in {story:#?}");
    }
    let (output, _) = routed(r#"["billing", "boss"]"#, 5).await;
    assert!(matches!(output.unwrap_err().kind(), ErrorKind::NotFound { name, .. } if name == "boss"));
    let (output, _) = routed(r#"["billing", "refunds", "triage"]"#, 5).await;
    let error = output.unwrap_err().to_string();
    assert!(error.contains("names `triage`, and may hand on to `billing` alone"), "{error}");
    let (output, _) = routed(r#"["billing", "refunds", "billing"]"#, 3).await;
    assert!(
        matches!(output.unwrap_err().kind(), ErrorKind::Limit { limit, .. } if limit == "max_hops of `desk`")
    );
}

/// One desk of a typed route: passes a ticket on as its plan says.
struct Clerk(AgentSpec);

#[async_trait::async_trait]
impl Agent for Clerk {
    type Input = Vec<String>;
    type Output = Hop<Vec<String>>;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(
        &self,
        mut plan: Vec<String>,
        _cx: &mut AgentContext,
    ) -> Result<Hop<Vec<String>>, AgentError> {
        Ok(if plan.is_empty() { Hop::done(vec![self.0.id.clone()]) } else { Hop::to(plan.remove(0), plan) })
    }
}

struct Counter(u32);

impl Workflow for Counter {
    type Input = Vec<String>;
    type Output = String;

    fn name(&self) -> &str {
        "counter"
    }

    fn build(&self, flow: &mut Flow<Vec<String>>) -> Handle<String> {
        let done = flow.route("desk", self.0, flow.input(), |team| {
            for id in ["triage", "billing", "refunds"] {
                team.agent(Clerk(AgentSpec::new(id, id)));
            }
        });
        // What a hop carries goes on as it is.
        flow.function("sign", &done, |by: Vec<String>| async move { Ok(by.join(" ")) })
    }
}

#[tokio::test]
async fn typed_agents_route_and_carry_their_work_along() {
    let runner = Runner::builder().journal(MemoryJournal::new()).build();
    let plan = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    let run = runner.start(&Counter(4), plan(&["refunds", "billing", "refunds"])).await.unwrap();
    assert_eq!(run.output().await.unwrap(), "refunds");
    let told = story(&run).await;
    let line = "handed_off desk/hop[2]/refunds to desk/hop[3]/billing".to_owned();
    assert!(told.contains(&line), "{told:#?}");

    let error = runner.start(&Counter(4), plan(&["boss"])).await.unwrap().output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotFound { name, .. } if name == "boss"), "{error}");
    let error = runner.start(&Counter(1), plan(&["billing"])).await.unwrap().output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Limit { max: 1, .. }), "{error}");
}

/// Hears who acts for whom.
#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<String>>>);

#[async_trait::async_trait]
impl Toolbox for Ear {
    async fn list(&self, _: &Caller) -> Result<Vec<ToolDef>, Error> {
        Ok(Vec::new())
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        NoTools.call(call, cx).await
    }

    fn delegate(&self, from: &Caller, to: &Caller) -> Result<(), Error> {
        self.0.lock().unwrap().push(format!("{} to {}", from.path, to.path));
        Ok(())
    }

    fn forget(&self, run: &str) {
        self.0.lock().unwrap().push(format!("forget {run}"));
    }
}

#[tokio::test]
async fn the_toolbox_hears_who_acts_for_whom_and_when_the_run_is_over() {
    let ear = Ear::default();
    let runner = Runner::builder().tools(ear.clone()).build();
    let brief = coral_core::Brief { text: r#"["billing", "refunds"]"#.into(), ..Default::default() };
    let run = runner.start(&route(5), brief).await.unwrap();
    run.output().await.unwrap();
    let first = "desk/hop[1]/triage to desk/hop[2]/billing".to_owned();
    let second = "desk/hop[2]/billing to desk/hop[3]/refunds".to_owned();
    // The third acts for the second, and with it for the first.
    let heard = [first.clone(), first, second, format!("forget {}", run.id())];
    assert_eq!(*ear.0.lock().unwrap(), heard);
}

#[test]
fn an_agent_that_is_twice_in_a_route_is_a_problem_of_the_graph() {
    let agents = vec!["triage".into(), "billing".into(), "triage".into()];
    let steps = vec![StepData::new("desk", StepKind::Route { agents, max_hops: 2 })];
    let graph = GraphData { name: "support".into(), steps, ..GraphData::default() };
    let problems: Vec<String> = graph.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        ["step `desk`: agent `triage` is in its route twice, and only the first would work"]
    );
    let team = Team::new()
        .with_agent(Planned(AgentSpec::new("triage", "triage")))
        .with_agent(Planned(AgentSpec::new("billing", "billing")));
    assert!(Program::from_graph(graph, &team).unwrap_err().to_string().contains("twice"));
}

#[tokio::test]
async fn a_driver_that_was_taken_over_does_not_make_the_toolbox_forget_the_run() {
    let (journal, ear) = (Arc::new(MemoryJournal::new()), Ear::default());
    let asker = play(|_, cx: &mut AgentContext| -> Act<'_> {
        Box::pin(async move { Ok(json!(cx.ask::<String, bool>("ok", &"?".into()).await?)) })
    });
    let program = cast(vec![agent("asker", &[])], vec![("asker", asker)]);
    let build = || Runner::builder().journal(journal.clone()).tools(ear.clone()).build();
    let (first, second) = (build(), build());
    let slow = first.start(&program, coral_core::Brief::default()).await.unwrap();
    until(&slow, |event| matches!(event, coral_core::Event::QuestionAsked { .. })).await;
    let fast = second.resume(&program, slow.id()).await.unwrap();
    let open = asked(&fast, 1).await;
    let error = slow.answer(&open[0].id, true, "slow").await.unwrap_err();
    assert!(error.is_fenced(), "{error}");
    assert!(slow.output().await.unwrap_err().is_fenced());
    assert!(ear.0.lock().unwrap().is_empty(), "the run goes on elsewhere");
    fast.answer(&open[0].id, true, "fast").await.unwrap();
    fast.output().await.unwrap();
    assert_eq!(*ear.0.lock().unwrap(), [format!("forget {}", fast.id())]);
}

/// Never ends its clean-up.
struct Clinging(AgentSpec);

#[async_trait::async_trait]
impl Agent for Clinging {
    type Input = Value;
    type Output = Value;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, _: Value, _: &mut AgentContext) -> Result<Value, AgentError> {
        std::future::pending().await
    }

    async fn clean_up(&self, _: &mut AgentContext) {
        std::future::pending::<()>().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clean_up_that_does_not_end_keeps_no_run_from_being_cancelled() {
    let steps = vec![agent("clinging", &[])];
    let graph = GraphData { name: "cling".into(), steps, ..GraphData::default() };
    let team = Team::new().with_agent(Clinging(AgentSpec::new("clinging", "Clinging")));
    let program = Program::from_graph(graph, &team).unwrap();
    let run = Runner::builder().build().start(&program, coral_core::Brief::default()).await.unwrap();
    until(&run, |event| matches!(event, coral_core::Event::StepStarted { .. })).await;
    run.cancel("enough").await;
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), run.wait()).await;
    assert_eq!(ended.unwrap().unwrap(), coral_core::RunStatus::Cancelled);
}
