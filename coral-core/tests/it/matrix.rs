//! The crash matrix: workflows that nest, fan out, loop, ask, route and retry, killed at each of
//! their appends and again at drawn ones, end as if they had not been.
//!
//! `CORAL_SEEDS=10000 cargo test -p coral-core --features sim --test it matrix` draws more; a failure prints its seed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, Brief, EffectClass, Error, Event, Finding, GraphData,
    Journal, ManualClock, MemoryJournal, Outcome, Payload, Program, RetryPolicy, Run, Runner, StartOptions,
    StepData, StepKind, Team, digest,
};
use serde_json::{Value, json};

use crate::support::{CrashJournal, records};

/// How often each key arrived at the service outside.
type Ledger = Arc<Mutex<BTreeMap<String, u32>>>;

/// Buys something outside, twice, and hands on as its input says.
struct Buyer {
    spec: AgentSpec,
    ledger: Ledger,
}

#[async_trait]
impl Agent for Buyer {
    type Input = Value;
    type Output = Value;

    fn spec(&self) -> &AgentSpec {
        &self.spec
    }

    async fn run(&self, input: Value, cx: &mut AgentContext) -> Result<Value, AgentError> {
        let mut bought = Vec::new();
        for n in 0..2 {
            let ledger = self.ledger.clone();
            let place = format!("{}:{n}", cx.path());
            let request = place.clone();
            let receipt: String = cx
                .effect("buy", EffectClass::Idempotent, &request, |key| async move {
                    *ledger.lock().unwrap().entry(key.to_string()).or_default() += 1;
                    tokio::task::yield_now().await;
                    Ok(place)
                })
                .await?;
            bought.push(receipt);
        }
        if self.spec.id == "flaky" && !cx.attempt().is_multiple_of(3) {
            return Err(AgentError::transient("not today"));
        }
        if let Some(patience) = self.spec.id.strip_prefix("critic") {
            let works = cx.reviewed_steps().map(str::to_owned).collect::<Vec<_>>();
            if cx.attempt() < patience.parse()? {
                let again = |to| Finding { to, finding: format!("attempt {} is not enough", cx.attempt()) };
                return Err(cx.send_back(works.into_iter().map(again)).into());
            }
        }
        let hops = input["hops"].as_u64().unwrap_or(0);
        let next = (hops > 0).then_some(if hops.is_multiple_of(2) { "buyer" } else { "other" });
        Ok(
            json!({"bought": bought, "hops": hops.saturating_sub(1), "next_agent": next, "turn": input["turn"].as_u64().unwrap_or(0) + 1}),
        )
    }
}

fn agent(name: &str, id: &str, inputs: &[&str]) -> StepData {
    step(name, StepKind::Agent(id.into()), inputs)
}

fn step(name: &str, kind: StepKind, inputs: &[&str]) -> StepData {
    StepData { inputs: inputs.iter().map(|input| (*input).into()).collect(), ..StepData::new(name, kind) }
}

fn graph(name: &str, steps: Vec<StepData>) -> Arc<GraphData> {
    Arc::new(GraphData { name: name.into(), steps, ..GraphData::default() })
}

fn ask(name: &str, inputs: &[&str]) -> StepData {
    let kind = StepKind::Ask { answer: json!({"type": "boolean"}), deadline_ms: None, default: Value::Null };
    step(name, kind, inputs)
}

fn flaky(name: &str, inputs: &[&str]) -> StepData {
    StepData { retry: RetryPolicy::attempts(3), ..agent(name, "flaky", inputs) }
}

/// Reviews the step `work`.
fn reviewer(name: &str, id: &str, inputs: &[&str]) -> StepData {
    StepData { reviews: vec!["work".into()], ..agent(name, id, inputs) }
}

fn each(name: &str, body: Vec<StepData>, inputs: &[&str]) -> StepData {
    step(name, StepKind::Map { body: graph("body", body), concurrency: 2 }, inputs)
}

fn samples() -> Vec<Arc<GraphData>> {
    let list = || step("list", StepKind::Function("list".into()), &[]);
    let sub = |name: &str, body, inputs: &[&str]| step(name, StepKind::Workflow(graph("sub", body)), inputs);
    let turns = |name: &str, body, inputs: &[&str]| {
        let (body, until) = (graph("body", body), "output.work.turn >= 3 or turn >= 3".into());
        step(name, StepKind::Loop { body, until, max_turns: 5 }, inputs)
    };
    let route = |name: &str, inputs: &[&str]| {
        let agents = vec!["buyer".into(), "other".into()];
        step(name, StepKind::Route { agents, max_hops: 9 }, inputs)
    };
    let start = || step("start", StepKind::Function("start".into()), &[]);
    vec![
        // Sub-workflow × fan-out.
        graph(
            "one",
            vec![
                sub("a", vec![agent("x", "buyer", &[]), agent("y", "buyer", &["x"])], &[]),
                agent("b", "buyer", &[]),
                agent("c", "buyer", &["a", "b"]),
            ],
        ),
        // Map × sub-workflow × retry.
        graph(
            "two",
            vec![
                list(),
                each("m", vec![sub("s", vec![flaky("f", &[])], &[]), agent("g", "buyer", &["s"])], &["list"]),
            ],
        ),
        // Map × question, beside a loop.
        graph(
            "three",
            vec![
                list(),
                each(
                    "m",
                    vec![agent("x", "buyer", &[]), ask("q", &["x"]), agent("y", "buyer", &["q"])],
                    &["list"],
                ),
                turns("l", vec![agent("work", "buyer", &[])], &[]),
            ],
        ),
        // Loop × map × question.
        graph(
            "four",
            vec![turns(
                "l",
                vec![list(), each("m", vec![ask("q", &[])], &["list"]), agent("work", "buyer", &["m"])],
                &[],
            )],
        ),
        // Route × fan-out × retry.
        graph(
            "five",
            vec![start(), route("r", &["start"]), flaky("f", &[]), agent("end", "buyer", &["r", "f"])],
        ),
        // Reviewers side by side, with a sub-workflow and a question between them and the work; in a sub-workflow.
        graph(
            "review",
            vec![sub(
                "m",
                vec![
                    agent("before", "buyer", &[]),
                    agent("work", "buyer", &["before"]),
                    sub("s", vec![agent("x", "buyer", &[])], &["work"]),
                    ask("q", &["work"]),
                    reviewer("fast", "critic2", &["work"]),
                    reviewer("slow", "critic3", &["q", "s"]),
                    agent("end", "buyer", &["fast", "slow"]),
                ],
                &[],
            )],
        ),
        // Everything in everything.
        graph(
            "six",
            vec![
                list(),
                each(
                    "m",
                    vec![
                        sub("s", vec![start(), route("r", &["start"]), ask("q", &["r"])], &[]),
                        flaky("f", &["s"]),
                        turns("l", vec![agent("work", "buyer", &[])], &["f"]),
                    ],
                    &["list"],
                ),
                agent("end", "buyer", &["m"]),
            ],
        ),
    ]
}

struct World {
    journal: Arc<MemoryJournal>,
    ledger: Ledger,
    program: Program<Brief, Value>,
}

impl World {
    fn new(graph: &GraphData) -> Self {
        let ledger = Ledger::default();
        let mut team = Team::new()
            .with_function("list", |_: Value| async move { Ok(json!([{"n": 1}, {"n": 2}, {"n": 3}])) })
            .with_function("start", |_: Value| async move { Ok(json!({"hops": 3})) });
        for id in ["buyer", "other", "flaky", "critic2", "critic3"] {
            team = team.with_agent(Buyer { spec: AgentSpec::new(id, id), ledger: ledger.clone() });
        }
        let program = Program::from_graph(graph.clone(), &team).unwrap();
        World { journal: Arc::default(), ledger, program }
    }

    fn runner(&self, journal: impl Journal + 'static) -> Runner {
        Runner::builder().journal(journal).clock(ManualClock::at_ms(1)).build()
    }

    /// Begins or goes on, on a journal that dies after so many appends, or on one that does not.
    async fn live(&self, dies: Option<(usize, bool)>) -> Result<Value, Error> {
        let runner = match dies {
            Some((after, lands)) => self.runner(CrashJournal::new(self.journal.clone(), after, lands)),
            None => self.runner(self.journal.clone()),
        };
        let run = match self.journal.head("run").await? {
            None => runner.start_with(&self.program, Brief::default(), StartOptions::new().id("run")).await?,
            Some(_) => runner.resume(&self.program, "run").await?,
        };
        let answers = tokio::spawn(answer_all(run.clone()));
        let output = run.output().await;
        answers.abort();
        output
    }

    /// What the run comes to: the output of every step, by path.
    async fn state(&self) -> String {
        let machine = self.runner(self.journal.clone()).inspect("run", None).await.unwrap();
        let outputs: BTreeMap<&Arc<str>, Option<&Payload>> =
            machine.steps().map(|(path, state)| (path, state.output())).collect();
        digest(&outputs).unwrap()
    }

    /// Every effect is recorded once; every key that the service saw is of one of them; and a key
    /// that arrived twice was in doubt when it did.
    async fn check(&self, deaths: u32) {
        let mut done = BTreeMap::new();
        for record in records(&*self.journal, "run").await {
            if let Event::EffectDone { path, attempt, index, outcome: Outcome::Ok(_), .. } = record.event {
                assert!(
                    done.insert((path.to_string(), attempt, index), ()).is_none(),
                    "{path} {index} twice"
                );
            }
        }
        let ledger = self.ledger.lock().unwrap();
        assert!(ledger.len() <= done.len());
        assert!(ledger.values().all(|times| *times <= deaths + 1));
    }
}

async fn answer_all(run: Run<Value>) {
    let mut events = run.events(1);
    while let Some(Ok(record)) = events.next().await {
        if let Event::QuestionAsked { question, .. } = record.event {
            // One that was answered before the crash stays as it was answered.
            let _ = run.answer(&question.id, true, "tester").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_append_every_sample_ends_as_if_it_had_not_been() {
    let mut kills = 0;
    for graph in samples() {
        let calm = World::new(&graph);
        let expected = calm.live(None).await.unwrap();
        let state = calm.state().await;
        for lands in [false, true] {
            for after in 1.. {
                let world = World::new(&graph);
                if world.live(Some((after, lands))).await.is_ok() {
                    break;
                }
                kills += 1;
                let output = world.live(None).await.unwrap();
                let place = format!("`{}` killed at append {after}, landed: {lands}", graph.name);
                assert_eq!(output, expected, "{place}");
                assert_eq!(world.state().await, state, "{place}");
                world.check(1).await;
            }
        }
    }
    assert!(kills > 300, "only {kills} places to be killed at");
}

#[cfg(feature = "sim")]
#[test]
fn under_every_seed_each_sample_ends_as_in_calm() {
    let seeds: u64 = std::env::var("CORAL_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(500);
    let samples = samples();
    let each = seeds.div_ceil(samples.len() as u64);
    for graph in samples {
        let report = coral_core::sim::Simulation::new().seeds(0..each).explore(|world| {
            let shop = World { journal: world.journal().clone(), ..World::new(&graph) };
            async move {
                let world = world.answers(|_| Some(json!(true)));
                let output = world.run(&shop.program, Brief::default()).await?;
                shop.check(u32::MAX - 1).await;
                Ok((output, shop.state().await))
            }
        });
        let report = report.unwrap_or_else(|found| panic!("`{}`: {found}", graph.name));
        assert!(report.crashes > each / 2, "`{}`: only {} crashes", graph.name, report.crashes);
    }
}

/// What a machine decides over `recorded`: its commands after each record, and how every step stands in the end.
fn decisions(graph: &GraphData, recorded: &[coral_core::Record]) -> String {
    let mut machine = coral_core::Machine::new(Arc::new(coral_core::Graph::new(graph.clone()).unwrap()));
    let mut decided = String::new();
    for record in recorded {
        let mut commands = Vec::new();
        machine.on_event(&record.event, &mut commands);
        decided.push_str(&format!("{} {commands:?}\n", record.seq));
    }
    format!("{decided}{:?}", machine.steps().collect::<Vec<_>>())
}

/// Threads and hash seeds change in which order things happen, and nothing of what is decided over it: each hash map
/// has a seed of its own, so folding twice is folding under two of them.
#[test]
fn a_replay_is_the_same_under_any_number_of_threads_and_any_hash_seed() {
    for graph in samples() {
        let mut states = Vec::new();
        for threads in [1, 2, 4] {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_time().build();
            let world = World::new(&graph);
            let (recorded, state) = runtime.unwrap().block_on(async {
                world.live(None).await.unwrap();
                (records(&*world.journal, "run").await, world.state().await)
            });
            let first = decisions(&graph, &recorded);
            let others = std::thread::scope(|scope| {
                let fold = || scope.spawn(|| decisions(&graph, &recorded));
                [fold(), fold(), fold()].map(|thread| thread.join().unwrap())
            });
            assert!(others.iter().all(|other| *other == first), "`{}`, {threads} threads", graph.name);
            states.push(state);
        }
        assert!(states.iter().all(|state| *state == states[0]), "`{}`", graph.name);
    }
}

/// Where the journals of releases are kept: they load and go on forever.
fn fixture(release: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/journal-{release}.json"))
}

/// A run of the last sample, cut off in its middle, as each release wrote it. A new release adds its own:
/// `CORAL_WRITE_FIXTURE=1.2.3 cargo test -p coral-core --test it journals_of_every_release`.
#[tokio::test(start_paused = true)]
async fn journals_of_every_release_load_and_go_on() {
    let six = samples().pop().unwrap();
    let calm = World::new(&six);
    let expected = calm.live(None).await.unwrap();
    if let Ok(release) = std::env::var("CORAL_WRITE_FIXTURE") {
        let cut = World::new(&six);
        cut.live(Some((24, true))).await.unwrap_err();
        let text = serde_json::to_string_pretty(&records(&*cut.journal, "run").await).unwrap();
        std::fs::write(fixture(&release), text + "\n").unwrap();
    }
    for release in ["0.1.0"] {
        let text = std::fs::read_to_string(fixture(release)).unwrap();
        let recorded: Vec<coral_core::Record> = serde_json::from_str(&text).unwrap();
        let open =
            recorded.iter().filter(|record| matches!(record.event, Event::QuestionAsked { .. })).count();
        assert!(open > 0 && recorded.len() > 60, "{release}: a fixture that shows something");
        let world = World::new(&six);
        let epoch = world.journal.acquire("run").await.unwrap();
        world.journal.append("run", epoch, 0, recorded.clone().into()).await.unwrap();
        assert_eq!(world.live(None).await.unwrap(), expected, "{release}");
        let after = records(&*world.journal, "run").await;
        assert_eq!(after[..recorded.len()], recorded[..], "{release}: what was recorded stays");
        world.check(1).await;
    }
}
