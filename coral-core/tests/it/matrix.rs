//! The crash matrix: workflows that nest, fan out, loop, ask, route and retry, killed at each of
//! their appends and again at drawn ones, end as if they had not been.
//!
//! `CORAL_SEEDS=10000 cargo test -p coral-core --features sim --test it matrix` draws more; a failure prints its seed.

mod forks;
mod journals;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, Brief, Budget, CallContext, Caller, ChatModel, ChatRequest,
    ChatResponse, Decision, EffectClass, Error, Event, Finding, GraphData, Join, Journal, ManualClock,
    MemoryJournal, ModelInfo, Outcome, Payload, Program, Question, Reconciled, Reconciliation, RetryPolicy,
    Run, Runner, StartOptions, StepData, StepKind, Team, ToolCall, ToolDef, ToolOutput, Toolbox, digest,
};
use serde_json::{Value, json};

use crate::support::{CrashJournal, TokioClock, agent_as as agent, records, step, tool_def};

/// The service outside: what arrived under each key, and how far the journal was each time.
#[derive(Clone)]
struct Shop {
    journal: Arc<MemoryJournal>,
    arrivals: Arc<Mutex<BTreeMap<String, Vec<u64>>>>,
}

impl Shop {
    fn new(journal: Arc<MemoryJournal>) -> Self {
        Shop { journal, arrivals: Arc::default() }
    }

    async fn arrives(&self, key: &str) {
        let seq = self.journal.head("run").await.unwrap().unwrap().last_seq;
        self.arrivals.lock().unwrap().entry(key.to_owned()).or_default().push(seq);
        tokio::task::yield_now().await;
    }

    fn knows(&self, key: &str) -> bool {
        self.arrivals.lock().unwrap().contains_key(key)
    }

    /// What a person knows who looks at the shop, and says of anything else `true`.
    fn answer(&self, question: &Question) -> Value {
        if &*question.label != "needs_reconciliation" {
            return json!(true);
        }
        let doubt = question.question.json().unwrap();
        let decision = match self.knows(doubt["key"].as_str().unwrap()) {
            true => Decision::Happened,
            false => Decision::DidNotHappen,
        };
        json!(Reconciliation {
            decision,
            result: (decision == Decision::Happened).then(|| doubt["effect"].clone())
        })
    }
}

/// Tools of each class that go to the shop and say their own name.
#[async_trait]
impl Toolbox for Shop {
    async fn list(&self, _: &Caller) -> Result<Vec<ToolDef>, Error> {
        let tools = [
            ("file", EffectClass::Idempotent),
            ("mail", EffectClass::Reconcile),
            ("ship", EffectClass::Irreversible),
        ];
        Ok(tools.map(|(name, effect)| tool_def(name, effect)).into())
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        self.arrives(cx.key()).await;
        Ok(ToolOutput::text(&call.name))
    }

    async fn reconcile(&self, call: &ToolCall, cx: &CallContext) -> Result<Reconciled, Error> {
        Ok(match self.knows(cx.key()) {
            true => Reconciled::Happened(ToolOutput::text(&call.name)),
            false => Reconciled::DidNotHappen,
        })
    }
}

/// Answers in one word; what it is asked arrives at the shop too.
struct Clerk(Shop);

#[async_trait]
impl ChatModel for Clerk {
    fn name(&self) -> &str {
        "clerk"
    }

    fn info(&self) -> ModelInfo {
        let mut info = ModelInfo::default();
        info.max_output_tokens = Some(100);
        info
    }

    async fn chat(&self, _: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        self.0.arrives(cx.key()).await;
        Ok(ChatResponse::text("clerk", "yes"))
    }
}

/// Sells something: asks a model, waits, calls tools of each class, and signs what can't be taken back.
struct Seller {
    spec: AgentSpec,
    shop: Shop,
}

#[async_trait]
impl Agent for Seller {
    type Input = Value;
    type Output = Value;

    fn spec(&self) -> &AgentSpec {
        &self.spec
    }

    async fn run(&self, _: Value, cx: &mut AgentContext) -> Result<Value, AgentError> {
        let said = cx.chat(&ChatRequest::user(cx.path().to_string())).await?.message.text();
        cx.sleep_ms(10).await?;
        let calls = ["file", "mail", "ship"].map(|name| ToolCall {
            id: name.into(),
            name: name.into(),
            arguments: json!({ "for": cx.path() }),
        });
        let mut told = vec![said];
        for outcome in cx.call_tools(&calls).await? {
            told.push(outcome?.content);
        }
        let shop = self.shop.clone();
        let signed: String = cx
            .effect("sign", EffectClass::Irreversible, "here", |key| async move {
                shop.arrives(&key).await;
                Ok("sign".to_owned())
            })
            .await?;
        told.push(signed);
        // The next attempt does nothing of this again that can't be repeated.
        if cx.attempt() == 1 {
            return Err(AgentError::transient("once more"));
        }
        Ok(json!(told))
    }
}

/// Buys something outside, twice, and hands on as its input says.
struct Buyer {
    spec: AgentSpec,
    shop: Shop,
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
            let shop = self.shop.clone();
            let place = format!("{}:{n}", cx.path());
            let request = place.clone();
            let receipt: String = cx
                .effect("buy", EffectClass::Idempotent, &request, |key| async move {
                    shop.arrives(&key).await;
                    Ok(place)
                })
                .await?;
            bought.push(receipt);
        }
        if self.spec.id == "broken" {
            return Err(AgentError::user("out of order"));
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

fn graph(name: &str, steps: Vec<StepData>) -> Arc<GraphData> {
    Arc::new(GraphData { name: name.into(), steps, ..GraphData::default() })
}

fn ask(name: &str, inputs: &[&str]) -> StepData {
    let kind = StepKind::Ask { answer: json!({"type": "boolean"}), deadline_ms: None, default: None };
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
    step(name, StepKind::Map { body: graph("body", body), over: None, concurrency: 2 }, inputs)
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
    let sell = |name: &str, inputs: &[&str]| StepData {
        retry: RetryPolicy::attempts(2),
        budget: Budget::new().calls(40).tokens(1_000_000).wall_ms(86_400_000),
        ..agent(name, "seller", inputs)
    };
    let joined = |name: &str, join, inputs: &[&str]| StepData { join, ..agent(name, "buyer", inputs) };
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
        // Every kind of effect × retry × map × timer × signal × joins × budget.
        graph(
            "shop",
            vec![
                list(),
                each("m", vec![sell("sell", &[])], &["list"]),
                step("soon", StepKind::Timer(50), &["list"]),
                step("late", StepKind::Timer(3_600_000), &["list"]),
                step("go", StepKind::Signal("go".into()), &["list"]),
                agent("broken", "broken", &["list"]),
                joined("first", Join::FirstOk, &["soon", "late"]),
                joined("two", Join::Quorum(2), &["m", "go", "broken"]),
                joined("all", Join::Settle, &["first", "two", "broken"]),
            ],
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
    shop: Shop,
    program: Program<Brief, Value>,
    /// Whether its clock stands still.
    stands: bool,
    /// Whether another process may take a run over while one still works on it.
    taken_over: bool,
}

impl World {
    fn new(graph: &GraphData) -> Self {
        World::on(Arc::default(), graph)
    }

    fn on(journal: Arc<MemoryJournal>, graph: &GraphData) -> Self {
        let shop = Shop::new(journal.clone());
        let mut team = Team::new()
            .with_function("list", |_: Value| async move { Ok(json!([{"n": 1}, {"n": 2}, {"n": 3}])) })
            .with_function("start", |_: Value| async move { Ok(json!({"hops": 3})) })
            .with_agent(Seller { spec: AgentSpec::new("seller", "seller"), shop: shop.clone() });
        for id in ["buyer", "other", "flaky", "broken", "critic2", "critic3"] {
            team = team.with_agent(Buyer { spec: AgentSpec::new(id, id), shop: shop.clone() });
        }
        let program = Program::from_graph(graph.clone(), &team).unwrap();
        World { journal, shop, program, stands: false, taken_over: false }
    }

    fn runner(&self, journal: impl Journal + 'static) -> Runner {
        let builder = Runner::builder().journal(journal);
        let builder = match self.stands {
            true => builder.clock(ManualClock::at_ms(1)),
            false => builder.clock(TokioClock(tokio::time::Instant::now())),
        };
        builder.model(Clerk(self.shop.clone())).tools(self.shop.clone()).build()
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
        let answers = tokio::spawn(self.answering(&run));
        let output = run.output().await;
        answers.abort();
        output
    }

    /// Answers what the run asks, and sends it the signal, if it waits for one.
    fn answering(&self, run: &Run<Value>) -> impl Future<Output = ()> + Send + use<> {
        let steps = &self.program.graph().data().steps;
        let waits = steps.iter().any(|step| matches!(step.kind, StepKind::Signal(_)));
        let (run, shop) = (run.clone(), self.shop.clone());
        async move {
            // Each process is told; a signal that nobody needs any more is kept.
            if waits {
                let _ = run.signal("go", true).await;
            }
            answer_all(run, shop).await;
        }
    }

    /// What the run comes to: the output of every step, by path.
    async fn state(&self) -> String {
        let machine = self.runner(self.journal.clone()).inspect("run", None).await.unwrap();
        let outputs: BTreeMap<&Arc<str>, Option<&Payload>> =
            machine.steps().map(|(path, state)| (path, state.output())).collect();
        digest(&outputs).unwrap()
    }

    /// Every effect is recorded once. What is recorded does not arrive again, and what can't be repeated does not
    /// arrive twice at all.
    async fn check(&self) {
        let (mut done, mut resumed) = (BTreeMap::new(), Vec::new());
        let (mut once, mut intended) = (BTreeSet::new(), BTreeMap::new());
        for record in records(&*self.journal, "run").await {
            match record.event {
                Event::RunResumed { .. } => resumed.push(record.seq),
                Event::EffectDone { path, attempt, index, outcome: Outcome::Ok(_), .. } => {
                    let before = done.insert(key(&path, attempt, index), record.seq);
                    assert!(before.is_none(), "{path} {index} twice");
                }
                Event::EffectIntended { path, attempt, index, class, .. } => {
                    let key = key(&path, attempt, index);
                    if !class.is_repeatable() {
                        once.insert(key.clone());
                    }
                    intended.entry(key).or_insert(record.seq);
                }
                _ => {}
            }
        }
        let arrivals = self.shop.arrivals.lock().unwrap();
        for (key, seqs) in &*arrivals {
            let intended = intended.get(key).unwrap_or_else(|| panic!("`{key}` is no effect of the run"));
            // One whose answer broke off, or that nobody needed any more, has arrived and failed.
            let recorded = done.get(key).copied().unwrap_or(u64::MAX);
            // What a process was about to send may arrive when another has taken the run over meanwhile.
            let is_late = self.taken_over && resumed.iter().any(|seq| (*intended..=recorded).contains(seq));
            assert!(
                is_late || seqs.iter().all(|seq| *seq < recorded),
                "recorded at {recorded}, it arrived at {seqs:?}"
            );
            assert!(!once.contains(key) || seqs.len() == 1, "it can't be repeated, and arrived at {seqs:?}");
        }
    }
}

/// The key of an effect: what the shop knows it by.
fn key(path: &str, attempt: u32, index: u32) -> String {
    coral_core::sha256_hex(format!("run/{path}#{attempt}:{index}").as_bytes())
}

async fn answer_all(run: Run<Value>, shop: Shop) {
    let mut events = run.events(1);
    while let Some(Ok(record)) = events.next().await {
        if let Event::QuestionAsked { question, .. } = record.event {
            // One that was answered before the crash stays as it was answered.
            let _ = run.answer(&question.id, shop.answer(&question), "tester").await;
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
                world.check().await;
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
        let is_race = graph.steps.iter().any(|step| matches!(step.join, Join::FirstOk | Join::Quorum(_)));
        let report = coral_core::sim::Simulation::new().seeds(0..each).explore(|world| {
            let town = World { taken_over: true, ..World::on(world.journal().clone(), &graph) };
            async move {
                let shop = town.shop.clone();
                let world = world.answers(move |question| Some(shop.answer(question)));
                let world = world.signals(|name| (name == "go").then(|| json!(true)));
                let world = world.model(Clerk(town.shop.clone())).tools(town.shop.clone());
                let output = world.run(&town.program, Brief::default()).await?;
                town.check().await;
                // Which input comes first is a matter of time, and so is what the others came to.
                Ok((output, if is_race { String::new() } else { town.state().await }))
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
