//! Pools, profiles and the lines of those who wait, on a paused clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::resilience::{Check, Health};
use coral_core::resources::{
    Capacity, Cpu, Memory, Permit, Pool, PoolUsage, Profile, Resources, ResourcesConfig,
};
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, Caller, Category, EffectClass, ErrorKind, Event, Flow,
    Handle, MemoryJournal, Run, RunStatus, Runner, Workflow,
};
use proptest::prelude::*;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

fn pool(min: usize, max: usize, threshold: u8) -> ResourcesConfig {
    ResourcesConfig {
        pools: BTreeMap::from([(Category::Specialist, Pool { min, max, threshold })]),
        ..Default::default()
    }
}

/// Four processors; `large` takes all, `half` two, any other agent one.
fn machine() -> ResourcesConfig {
    let cpu = |n: u64| Profile { cpu: Cpu::milli(n * 1_000), ..Default::default() };
    ResourcesConfig {
        profiles: BTreeMap::from([("large".to_owned(), cpu(4)), ("half".to_owned(), cpu(2))]),
        default_profile: cpu(1),
        capacity: Capacity { cpu: Some(Cpu::milli(4_000)), ..Default::default() },
        ..Default::default()
    }
}

fn caller(run: &str, agent: &str) -> Caller {
    Caller { run: run.into(), category: Category::Specialist, ..Caller::agent(agent) }
}

fn since(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_millis()).unwrap()
}

async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Who got a permit, and when.
#[derive(Clone)]
struct Log(Arc<Mutex<Vec<(String, u64)>>>, Instant);

impl Log {
    fn new() -> Self {
        Log(Arc::default(), Instant::now())
    }

    /// A step of `run` that works for `hold_ms` once it has its permit.
    fn step(&self, resources: &Resources, caller: Caller, hold_ms: u64) -> JoinHandle<()> {
        let (log, resources) = (self.clone(), resources.clone());
        tokio::spawn(async move {
            let _permit = resources.acquire(&caller).await.unwrap();
            log.0.lock().unwrap().push((format!("{} {}", caller.run, caller.agent), since(log.1)));
            tokio::time::sleep(Duration::from_millis(hold_ms)).await;
        })
    }

    fn take(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

async fn join(steps: Vec<JoinHandle<()>>) {
    for step in steps {
        step.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_grows_while_it_is_busy_and_shrinks_when_it_is_not() {
    let resources = Resources::new(pool(1, 3, 70)).unwrap();
    let log = Log::new();
    join((0..5).map(|_| log.step(&resources, caller("r", "a"), 10_000)).collect()).await;
    let times: Vec<u64> = log.take().into_iter().map(|(_, at)| at).collect();
    assert_eq!(times, [0, 1_000, 2_000, 10_000, 11_000], "one more each second, up to three");
    let size = || resources.usage().pools[&Category::Specialist].size;
    // For its last second one of three was busy, which two permits can bear.
    let mut sizes = Vec::new();
    for _ in 0..3 {
        sizes.push(size());
        tokio::time::advance(Duration::from_millis(1_000)).await;
    }
    assert_eq!(sizes, [2, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_short_peak_does_not_make_a_pool_grow() {
    let resources = Resources::new(pool(2, 10, 80)).unwrap();
    let log = Log::new();
    join((0..6).map(|_| log.step(&resources, caller("r", "a"), 300)).collect()).await;
    assert_eq!(since(log.1), 900);
    let usage = resources.usage().pools[&Category::Specialist];
    assert_eq!(usage, PoolUsage { size: 2, in_use: 0, waiting: 0 });
}

#[tokio::test(start_paused = true)]
async fn below_its_threshold_a_pool_keeps_its_size() {
    let resources = Resources::new(pool(4, 8, 80)).unwrap();
    let permits: Vec<Permit> = {
        let mut permits = Vec::new();
        for _ in 0..3 {
            permits.push(resources.acquire(&caller("r", "a")).await.unwrap());
        }
        permits
    };
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(resources.usage().pools[&Category::Specialist].size, 4, "three of four are 75 %");
    let fourth = resources.acquire(&caller("r", "a")).await.unwrap();
    tokio::time::advance(Duration::from_millis(999)).await;
    assert_eq!(resources.usage().pools[&Category::Specialist].size, 4);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(resources.usage().pools[&Category::Specialist].size, 5);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(resources.usage().pools[&Category::Specialist].size, 6, "four of five are 80 %, of six 66 %");
    drop((permits, fourth));
}

#[tokio::test(start_paused = true)]
async fn runs_take_turns() {
    let resources = Resources::new(pool(1, 1, 100)).unwrap();
    let log = Log::new();
    let mut steps = Vec::new();
    for (run, agent) in [
        ("wide", "1"),
        ("wide", "2"),
        ("wide", "3"),
        ("wide", "4"),
        ("second", "1"),
        ("second", "2"),
        ("third", "1"),
    ] {
        steps.push(log.step(&resources, caller(run, agent), 10));
        settle().await;
    }
    join(steps).await;
    let order: Vec<String> = log.take().into_iter().map(|(step, _)| step).collect();
    assert_eq!(
        order,
        ["wide 1", "wide 2", "second 1", "third 1", "wide 3", "second 2", "wide 4"],
        "each run in its own order, the runs by turns"
    );
}

#[tokio::test(start_paused = true)]
async fn one_category_does_not_wait_for_the_other() {
    let resources = Resources::new(pool(1, 1, 100)).unwrap();
    let _specialist = resources.acquire(&caller("r", "a")).await.unwrap();
    let core = Caller { category: Category::Core, ..caller("r", "architect") };
    let _first = resources.acquire(&core).await.unwrap();
    let _second = resources.acquire(&core).await.unwrap();
    let usage = resources.usage();
    assert_eq!((usage.in_use(), usage.waiting()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_large_step_is_not_passed_by_small_ones_for_ever() {
    let resources = Resources::new(machine()).unwrap();
    let log = Log::new();
    let mut steps: Vec<_> =
        (0..4).map(|n| log.step(&resources, caller("a", "small"), 100 * (n + 1))).collect();
    settle().await;
    steps.push(log.step(&resources, caller("b", "large"), 100));
    settle().await;
    // A stream of small ones that would fit at 100, 200 and 300 ms.
    steps.extend((0..4).map(|_| log.step(&resources, caller("c", "small"), 100)));
    let other_category = Caller { category: Category::Core, ..caller("d", "small") };
    steps.push(log.step(&resources, other_category, 100));
    join(steps).await;
    let log = log.take();
    assert_eq!(log[4], ("b large".to_owned(), 400));
    assert!(log[5..].iter().all(|(_, at)| *at >= 500), "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn a_large_step_that_gives_up_lets_the_small_ones_go() {
    let resources = Resources::new(machine()).unwrap();
    let held = resources.acquire(&caller("a", "half")).await.unwrap();
    let large = tokio::spawn({
        let resources = resources.clone();
        async move { resources.acquire(&caller("b", "large")).await.map(drop) }
    });
    settle().await;
    let small = tokio::spawn({
        let resources = resources.clone();
        async move { resources.acquire(&caller("c", "small")).await.unwrap() }
    });
    settle().await;
    assert_eq!(resources.usage().waiting(), 2);
    large.abort();
    let small = small.await.unwrap();
    assert_eq!(resources.usage().used.cpu, Cpu::milli(3_000));
    drop((held, small));
    assert_eq!(resources.usage().used, Profile::default());
}

#[tokio::test(start_paused = true)]
async fn a_pool_grows_for_one_that_waited_for_the_machine_first() {
    let mut config = machine();
    config.pools = BTreeMap::from([(Category::Specialist, Pool { min: 1, max: 2, threshold: 100 })]);
    let resources = Resources::new(config).unwrap();
    let core = Caller { category: Category::Core, ..caller("z", "large") };
    let log = Log::new();
    let machine_is_full = log.step(&resources, core, 5_000);
    settle().await;
    let steps = ["1", "2"].map(|agent| log.step(&resources, caller("a", agent), 60_000));
    join([machine_is_full].into_iter().chain(steps).collect()).await;
    assert_eq!(
        log.take(),
        [("z large".to_owned(), 0), ("a 1".to_owned(), 5_000), ("a 2".to_owned(), 6_000)],
        "the pool was full from 5 s on, and grew a second later"
    );
}

#[tokio::test(start_paused = true)]
async fn the_line_is_bounded_and_new_runs_are_kept_out_first() {
    let resources = Resources::new(ResourcesConfig { max_waiting: 1, ..pool(1, 1, 100) }).unwrap();
    let held = resources.acquire(&caller("r", "a")).await.unwrap();
    assert!(resources.admit().is_ok());
    assert_eq!(resources.check().await.to_string(), "resources: up (1 at work, 0 waiting)");
    let waits = tokio::spawn({
        let resources = resources.clone();
        async move { resources.acquire(&caller("r", "b")).await.map(drop) }
    });
    settle().await;
    let error = resources.acquire(&caller("r", "c")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "limit `max_waiting of the resources` of 1 reached; start fewer runs at once, or raise `max_waiting`"
    );
    assert_eq!(resources.admit().unwrap_err(), error);
    assert_eq!(resources.check().await.health, Health::Degraded);
    drop(held);
    waits.await.unwrap().unwrap();
    assert_eq!(resources.check().await.health, Health::Up);
}

#[tokio::test(start_paused = true)]
async fn none_need_wait_where_none_may() {
    let resources = Resources::new(ResourcesConfig { max_waiting: 0, ..pool(1, 1, 100) }).unwrap();
    let held = resources.acquire(&caller("r", "a")).await.unwrap();
    assert!(matches!(
        resources.acquire(&caller("r", "a")).await.unwrap_err().kind(),
        ErrorKind::Limit { max: 0, .. }
    ));
    drop(held);
    drop(resources.acquire(&caller("r", "a")).await.unwrap());
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let mut config = pool(0, 0, 0);
    config.pools.insert(Category::Core, Pool { min: 3, max: 2, threshold: 101 });
    config.capacity = Capacity { cpu: Some(Cpu::milli(1_000)), gpu: Some(0), ..Default::default() };
    config.profiles.insert(
        "ai_ml_specialist".to_owned(),
        Profile { cpu: Cpu::milli(1_500), memory: Memory::bytes(4 << 30), gpu: 1 },
    );
    let error = Resources::new(config).unwrap_err();
    let ErrorKind::Problems { problems, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(
        problems,
        &[
            "pool `core`: `min` is 3, more than `max`, which is 2",
            "pool `core`: `threshold` is 101, and must be 1 to 100 percent",
            "pool `specialist`: `min` must be at least 1",
            "pool `specialist`: `threshold` is 0, and must be 1 to 100 percent",
            "profile `ai_ml_specialist` needs cpu 1500m, memory 4Gi, gpu 1, more than there is in all",
        ]
    );
}

#[test]
fn the_config_is_data() {
    let config: ResourcesConfig = serde_json::from_value(json!({
        "agent_pools": {
            "core": {"min": 1, "max": 3, "cpu_threshold": 70},
            "specialist": {"min": 2, "max": 10, "threshold": 80},
        },
        "resource_profiles": {
            "project_architect": {"cpu": "2", "memory": "4Gi"},
            "ai_ml_specialist": {"cpu": 0.5, "memory": 1024, "gpu": 1},
        },
        "capacity": {"cpu": "8", "memory": "1.5G"},
    }))
    .unwrap();
    assert_eq!(config.pools[&Category::Core], Pool { min: 1, max: 3, threshold: 70 });
    assert_eq!(
        config.profiles["ai_ml_specialist"],
        Profile { cpu: Cpu::milli(500), memory: Memory::bytes(1_024), gpu: 1 }
    );
    assert_eq!(config.capacity.memory, Some(Memory::bytes(1_500_000_000)));
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<ResourcesConfig>(&text).unwrap(), config);
    for (wrong, why) in [
        (json!({"capacity": {"cpu": "-1"}}), "cpu `-1` is not valid: expected is `2`, `0.5` or `500m`"),
        (json!({"capacity": {"memory": "4Gb"}}), "memory `4Gb` is not valid"),
        (json!({"capacity": {"memory": -4}}), "memory `-4` is not valid"),
        (json!({"capacity": {"memory": true}}), "expected an amount such as `2`, `500m` or `4Gi`"),
        (json!({"capacity": {"disk": 1}}), "unknown field `disk`"),
        (json!({"pools": {"other": {"min": 1, "max": 1, "threshold": 1}}}), "unknown variant `other`"),
    ] {
        let error = serde_json::from_value::<ResourcesConfig>(wrong).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

/// A step of the random load: run, agent, category, arrival, work, and when it gives up waiting.
type Step = (u8, u8, bool, u64, u64, Option<u64>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (
        0_u8..4,
        0_u8..3,
        any::<bool>(),
        0_u64..3_000,
        1_u64..2_000,
        prop::option::weighted(0.3, 0_u64..2_000),
    );
    prop::collection::vec(step, 1..40)
}

/// The grants of a random load, in their order. Checks at each that nothing is passed.
async fn load(steps: &[Step]) -> Vec<(usize, u64)> {
    let mut config = machine();
    config.pools = BTreeMap::from([
        (Category::Specialist, Pool { min: 1, max: 3, threshold: 60 }),
        (Category::Core, Pool { min: 1, max: 1, threshold: 100 }),
    ]);
    let resources = Resources::new(config).unwrap();
    let begin = Instant::now();
    let grants = Arc::new(Mutex::new(Vec::new()));
    let tasks = steps
        .iter()
        .enumerate()
        .map(|(n, &(run, agent, core, arrives, works, gives_up))| {
            let (resources, grants) = (resources.clone(), grants.clone());
            tokio::spawn(async move {
                let agent = ["small", "half", "large"][usize::from(agent)];
                let category = if core { Category::Core } else { Category::Specialist };
                let caller = Caller { category, ..caller(&format!("run-{run}"), agent) };
                tokio::time::sleep(Duration::from_millis(arrives)).await;
                let patience = Duration::from_millis(gives_up.unwrap_or(u64::from(u32::MAX)));
                let Ok(permit) = tokio::time::timeout(patience, resources.acquire(&caller)).await else {
                    return;
                };
                let usage = resources.usage();
                assert!(usage.used.cpu <= Cpu::milli(4_000), "{usage:?}");
                assert!(usage.pools.values().all(|pool| pool.in_use <= pool.size), "{usage:?}");
                assert!(usage.pools[&Category::Specialist].size <= 3, "{usage:?}");
                grants.lock().unwrap().push((n, since(begin)));
                tokio::time::sleep(Duration::from_millis(works)).await;
                drop(permit);
            })
        })
        .collect();
    join(tasks).await;
    let usage = resources.usage();
    assert_eq!((usage.in_use(), usage.waiting(), usage.used), (0, 0, Profile::default()));
    Arc::into_inner(grants).unwrap().into_inner().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever comes: no limit is passed, all who stay get their permit, steps of one run and
    /// kind keep their order, nothing is left over, and the same load gives the same grants.
    #[test]
    fn any_load_is_served_within_the_limits(steps in steps()) {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.unwrap().block_on(async {
                // A hang would otherwise jump on for ever on the paused clock.
                tokio::time::timeout(Duration::from_secs(100_000), load(&steps)).await.expect("no step is stuck")
            })
        };
        let grants = run();
        for (n, step) in steps.iter().enumerate() {
            let granted = grants.iter().any(|(granted, _)| *granted == n);
            prop_assert!(granted || step.5.is_some(), "step {n} never got its permit");
        }
        for (earlier, (a, _)) in grants.iter().enumerate() {
            for (b, _) in &grants[earlier + 1..] {
                let (x, y) = (&steps[*a], &steps[*b]);
                let same_line = x.0 == y.0 && x.2 == y.2;
                prop_assert!(!same_line || x.3 <= y.3, "step {a} came later than {b} and was served before");
            }
        }
        prop_assert_eq!(grants, run());
    }
}

/// An agent that works for a second, asks a person, and works for another.
struct Asker(AgentSpec);

#[async_trait]
impl Agent for Asker {
    type Input = u32;
    type Output = u32;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, input: u32, cx: &mut AgentContext) -> Result<u32, AgentError> {
        let work = |_key| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(())
        };
        cx.effect("before", EffectClass::Pure, &input, work).await?;
        let more: u32 = cx.ask("how much more?", &input).await?;
        cx.effect("after", EffectClass::Pure, &input, work).await?;
        Ok(input + more)
    }
}

/// A workflow with one asker for each item.
struct Poll;

impl Workflow for Poll {
    type Input = Vec<u32>;
    type Output = Vec<u32>;

    fn name(&self) -> &str {
        "poll"
    }

    fn build(&self, flow: &mut Flow<Vec<u32>>) -> Handle<Vec<u32>> {
        flow.map("each", 100, flow.input(), |flow: &mut Flow<u32>| {
            flow.step(Asker(AgentSpec::new("asker", "Asker")), flow.input())
        })
    }
}

async fn questions(run: &Run<Vec<u32>>, count: usize) -> Vec<String> {
    let mut events = run.events(1);
    let mut asked = Vec::new();
    while asked.len() < count {
        if let Event::QuestionAsked { question, .. } = events.next().await.unwrap().unwrap().event {
            asked.push(question.id.to_string());
        }
    }
    asked
}

#[tokio::test(start_paused = true)]
async fn agents_of_a_run_share_a_pool_and_leave_it_while_a_person_thinks() {
    let resources = Resources::new(pool(2, 2, 100)).unwrap();
    let runner = Runner::builder().journal(MemoryJournal::new()).resources(resources.clone()).build();
    let begin = Instant::now();
    let run = runner.start(&Poll, vec![1, 2, 3, 4, 5, 6]).await.unwrap();
    let asked = questions(&run, 6).await;
    assert!((3_000..3_100).contains(&since(begin)), "six, two at a time: {} ms", since(begin));
    settle().await;
    assert_eq!(resources.usage().in_use(), 0, "six wait for a person, and none of them holds a permit");
    let begin = Instant::now();
    for id in &asked {
        assert!(run.answer(id, 10_u32, "person").await.unwrap());
    }
    assert_eq!(run.output().await.unwrap(), [11, 12, 13, 14, 15, 16]);
    assert!((3_000..3_100).contains(&since(begin)), "two at a time again: {} ms", since(begin));
    settle().await;
    assert_eq!(resources.usage().in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_cancelled_leaves_the_line() {
    let resources = Resources::new(pool(1, 1, 100)).unwrap();
    let held = resources.acquire(&caller("other", "a")).await.unwrap();
    let runner = Runner::builder().journal(MemoryJournal::new()).resources(resources.clone()).build();
    let run = runner.start(&Poll, vec![1, 2]).await.unwrap();
    while resources.usage().waiting() < 2 {
        tokio::task::yield_now().await;
    }
    run.cancel("enough").await;
    assert_eq!(run.wait().await.unwrap(), RunStatus::Cancelled);
    settle().await;
    let usage = resources.usage();
    assert_eq!((usage.in_use(), usage.waiting()), (1, 0));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_is_shut_down_gives_everything_back() {
    let resources = Resources::new(pool(1, 1, 100)).unwrap();
    let runner = Runner::builder().journal(MemoryJournal::new()).resources(resources.clone()).build();
    runner.start(&Poll, vec![1, 2]).await.unwrap();
    while resources.usage().waiting() < 1 {
        tokio::task::yield_now().await;
    }
    runner.shutdown().await;
    settle().await;
    let usage = resources.usage();
    assert_eq!((usage.in_use(), usage.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn no_new_run_begins_while_the_line_is_full() {
    let resources = Resources::new(ResourcesConfig { max_waiting: 1, ..pool(1, 1, 100) }).unwrap();
    let runner = Runner::builder().journal(MemoryJournal::new()).resources(resources.clone()).build();
    let run = runner.start(&Poll, vec![1, 2]).await.unwrap();
    while resources.usage().waiting() < 1 {
        tokio::task::yield_now().await;
    }
    let error = runner.start(&Poll, vec![3]).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Limit { max: 1, .. }), "{error}");
    for id in questions(&run, 2).await {
        run.answer(&id, 0_u32, "person").await.unwrap();
    }
    assert_eq!(run.output().await.unwrap(), [1, 2]);
    runner.start(&Poll, vec![3]).await.unwrap();
}
