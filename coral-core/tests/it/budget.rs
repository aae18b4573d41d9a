//! Budgets are reserved before and settled after; no order of parallel agents passes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, Budget, CallContext, ChatModel, ChatRequest, ChatResponse,
    Clock, Error, ErrorKind, Flow, Handle, ManualClock, ModelInfo, Price, ResumeOptions, RunStatus, Runner,
    StartOptions, Usage, Workflow,
};

/// A model that uses what chance says, up to its declared limit, after some turns of the scheduler.
struct Spender {
    chance: ManualClock,
    calls: Arc<AtomicU64>,
    priced: bool,
}

const MAX_OUTPUT: u64 = 1_000;
const PRICE: Price = Price { input: 3.0, output: 15.0, cache_read: 0.3, cache_write: 3.75 };

#[async_trait]
impl ChatModel for Spender {
    fn name(&self) -> &str {
        "spender"
    }

    fn info(&self) -> ModelInfo {
        let mut info = ModelInfo::default();
        info.max_output_tokens = Some(MAX_OUTPUT);
        info.price = self.priced.then_some(PRICE);
        info
    }

    async fn chat(&self, request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        for _ in 0..self.chance.random() % 7 {
            tokio::task::yield_now().await;
        }
        self.calls.fetch_add(1, Ordering::SeqCst);
        let text = request.messages[0].text();
        let output_tokens = match self.chance.random() % 3 {
            0 => MAX_OUTPUT,
            n => n * 100,
        };
        let usage = Usage { input_tokens: text.len() as u64, output_tokens, ..Usage::default() };
        Ok(ChatResponse { usage, cost: Some(PRICE.cost(&usage)), ..ChatResponse::text("spender", text) })
    }
}

fn runner(seed: u64, calls: &Arc<AtomicU64>, priced: bool) -> Runner {
    let chance = ManualClock::default();
    for _ in 0..seed {
        chance.random();
    }
    Runner::builder().model(Spender { chance, calls: calls.clone(), priced }).build()
}

struct Asker(AgentSpec);

#[async_trait]
impl Agent for Asker {
    type Input = u32;
    type Output = u32;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, n: u32, cx: &mut AgentContext) -> Result<u32, AgentError> {
        cx.now_ms().await?;
        cx.chat(&ChatRequest::user("question")).await?;
        cx.chat(&ChatRequest::user("and another")).await?;
        Ok(n)
    }
}

/// So many agents at once, three levels down.
struct Crowd(u32);

impl Workflow for Crowd {
    type Input = u32;
    type Output = Vec<Vec<u32>>;

    fn name(&self) -> &str {
        "crowd"
    }

    fn build(&self, flow: &mut Flow<u32>) -> Handle<Vec<Vec<u32>>> {
        let width = self.0;
        let plan = flow.function("plan", flow.input(), move |n: u32| async move { Ok(vec![n; 4]) });
        flow.map("team", 4, &plan, move |flow: &mut Flow<u32>| {
            let each =
                flow.function(
                    "split",
                    flow.input(),
                    move |n: u32| async move { Ok(vec![n; width as usize / 4]) },
                );
            flow.map("member", 64, &each, |flow: &mut Flow<u32>| {
                flow.step(Asker(AgentSpec::new("asker", "Asker")), flow.input())
            })
        })
    }
}

#[tokio::test]
async fn sixty_four_agents_at_once_never_settle_above_the_limit() {
    for seed in 0..1_000 {
        let runner = runner(seed, &Arc::default(), true);
        let options = StartOptions::new().budget(Budget::new().usd(0.4).tokens(60_000).calls(100));
        let run = runner.start_with(&Crowd(64), 1, options).await.unwrap();
        let status = run.wait().await.unwrap();
        let used = run.used();
        assert!(
            used.usd.as_dollars() <= 0.4 && used.tokens <= 60_000 && used.calls <= 100,
            "seed {seed}: {used:?}"
        );
        assert_eq!(status, RunStatus::Stopped, "128 calls do not fit");
    }
}

/// A limit inside of a nested agent hangs its parents.
#[tokio::test]
async fn claude_agent_sdk_1273_a_limit_three_levels_down_gives_a_partial_result_and_a_top_up_goes_on() {
    let calls = Arc::new(AtomicU64::new(0));
    let runner = runner(0, &calls, true);
    let options = StartOptions::new().budget(Budget::new().calls(10));
    let run = runner.start_with(&Crowd(8), 7, options).await.unwrap();
    let error = run.output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Budget { budget, .. } if budget == "run"), "{error}");
    let partial = run.partial().await.unwrap().unwrap();
    assert_eq!(partial["plan"], serde_json::json!([7, 7, 7, 7]));
    assert_eq!(calls.load(Ordering::SeqCst), 10);
    let more = ResumeOptions::new().top_up(Budget::new().calls(100));
    let run = runner.resume_with(&Crowd(8), run.id(), more).await.unwrap();
    assert_eq!(run.output().await.unwrap(), vec![vec![7, 7]; 4]);
    assert_eq!(calls.load(Ordering::SeqCst), 2 * 8, "what was done is not done again");
    assert_eq!((run.used().calls, run.used().agents), (2 * 8, 8), "nor paid again");
}

/// A fan-out runs away.
#[tokio::test]
async fn claude_code_95816_a_fan_out_that_runs_away_is_stopped_by_the_number_of_agents() {
    let calls = Arc::new(AtomicU64::new(0));
    let options = StartOptions::new().budget(Budget::new().agents(20));
    let run = runner(0, &calls, true).start_with(&Crowd(4_000), 1, options).await.unwrap();
    assert_eq!(run.wait().await.unwrap(), RunStatus::Stopped);
    assert_eq!(run.used().agents, 20);
    assert!(calls.load(Ordering::SeqCst) <= 40);
}

/// Starts that were refused are none, whether the run goes on or is taken up.
#[tokio::test]
async fn refused_starts_count_for_nothing_when_the_run_is_taken_up() {
    let calls = Arc::new(AtomicU64::new(0));
    let runner = runner(0, &calls, true);
    let options = StartOptions::new().budget(Budget::new().agents(5));
    let mut run = runner.start_with(&Crowd(16), 1, options).await.unwrap();
    for agents in [5, 10, 15] {
        assert_eq!(run.wait().await.unwrap(), RunStatus::Stopped);
        assert_eq!(run.used().agents, agents);
        let more = ResumeOptions::new().top_up(Budget::new().agents(5));
        run = runner.resume_with(&Crowd(16), run.id(), more).await.unwrap();
    }
    assert_eq!(run.wait().await.unwrap(), RunStatus::Succeeded);
    assert_eq!(run.used().agents, 16);
}

#[tokio::test]
async fn a_price_that_is_not_known_is_refused_where_money_is_limited() {
    let calls = Arc::new(AtomicU64::new(0));
    let runner = runner(0, &calls, false);
    let run =
        runner.start_with(&Crowd(4), 1, StartOptions::new().budget(Budget::new().usd(5.0))).await.unwrap();
    let error = run.output().await.unwrap_err().to_string();
    assert!(error.contains("the model's price is not known; give the model a price"), "{error}");
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    let run =
        runner.start_with(&Crowd(4), 1, StartOptions::new().budget(Budget::new().calls(50))).await.unwrap();
    run.output().await.unwrap();
}

struct Capped;

impl Workflow for Capped {
    type Input = u32;
    type Output = Vec<Option<u32>>;

    fn name(&self) -> &str {
        "capped"
    }

    fn build(&self, flow: &mut Flow<u32>) -> Handle<Vec<Option<u32>>> {
        let a = flow.step(Asker(AgentSpec::new("asker", "Asker")), flow.input()).named("free");
        let b = flow
            .step(Asker(AgentSpec::new("asker", "Asker")), flow.input())
            .named("capped")
            .budget(Budget::new().calls(1));
        flow.function("all", coral_core::Settle([&a, &b]), |all: Vec<Option<u32>>| async move { Ok(all) })
    }
}

#[tokio::test]
async fn a_step_has_a_budget_of_its_own_within_that_of_the_run() {
    let run = runner(0, &Arc::default(), true).start(&Capped, 3).await.unwrap();
    assert_eq!(run.output().await.unwrap(), [Some(3), None]);
}

#[tokio::test]
async fn what_a_run_has_used_reads_back_from_its_journal() {
    let runner = runner(0, &Arc::default(), true);
    let run = runner.start(&Crowd(8), 1).await.unwrap();
    run.output().await.unwrap();
    let used = run.used();
    assert_eq!((used.calls, used.agents), (16, 8), "a clock reading is no call");
    assert_eq!(runner.resume(&Crowd(8), run.id()).await.unwrap().used(), used);
}
