//! Ports that fail as the seed says.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::chance::Chance;
use crate::call::{CallContext, Caller};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, ModelFault, ToolFault};
use crate::event::{Record, Seq};
use crate::journal::{Journal, MemoryJournal, RunFilter, RunHead};
use crate::model::{ChatModel, ChatRequest, ChatResponse, Part};
use crate::tool::{ToolCall, ToolDef, ToolOutput, Toolbox};

/// 2025-01-01T00:00:00Z.
const BEGIN_MS: u64 = 1_735_689_600_000;

const HOUR_MS: u64 = 3_600_000;

/// Virtual time, with jumps.
pub(super) struct JumpingClock {
    chance: Arc<Chance>,
    began: tokio::time::Instant,
    jumped_ms: AtomicI64,
}

impl JumpingClock {
    pub(super) fn new(chance: Arc<Chance>) -> Self {
        JumpingClock { chance, began: tokio::time::Instant::now(), jumped_ms: AtomicI64::new(0) }
    }
}

impl Clock for JumpingClock {
    fn now_ms(&self) -> u64 {
        if self.chance.strikes("the clock jumps", self.chance.faults().clock_jump) {
            let by = self.chance.below("by how much", 2 * HOUR_MS).cast_signed() - HOUR_MS.cast_signed();
            self.jumped_ms.fetch_add(by, Ordering::SeqCst);
        }
        let passed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        BEGIN_MS.saturating_add(passed).saturating_add_signed(self.jumped_ms.load(Ordering::SeqCst))
    }

    fn random(&self) -> u64 {
        self.chance.draw("random").1
    }
}

/// The journal as one process sees it, which may die over an append.
pub(super) struct DyingJournal {
    inner: Arc<MemoryJournal>,
    chance: Arc<Chance>,
    dead: Arc<AtomicBool>,
}

impl DyingJournal {
    pub(super) fn new(inner: Arc<MemoryJournal>, chance: Arc<Chance>, dead: Arc<AtomicBool>) -> Self {
        DyingJournal { inner, chance, dead }
    }

    fn die(&self) -> Error {
        self.dead.store(true, Ordering::SeqCst);
        Error::storage("append", "the process was killed")
    }
}

#[async_trait]
impl Journal for DyingJournal {
    async fn acquire(&self, run: &str) -> Result<u64, Error> {
        self.inner.acquire(run).await
    }

    async fn append(
        &self,
        run: &str,
        epoch: u64,
        expected: Seq,
        records: Arc<[Record]>,
    ) -> Result<(), Error> {
        let crash = self.chance.faults().crash;
        self.chance.delay("append").await;
        if self.dead.load(Ordering::SeqCst) || self.chance.strikes("a crash before an append", crash / 2) {
            return Err(self.die());
        }
        self.inner.append(run, epoch, expected, records).await?;
        if self.chance.strikes("a crash after an append has landed", crash / 2) {
            return Err(self.die());
        }
        Ok(())
    }

    async fn read(&self, run: &str, from: Seq, limit: usize) -> Result<Vec<Record>, Error> {
        self.inner.read(run, from, limit).await
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, Error> {
        self.inner.head(run).await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunHead>, Error> {
        self.inner.runs(filter).await
    }
}

pub(super) struct FaultyModel<M> {
    inner: M,
    chance: Arc<Chance>,
}

impl<M: ChatModel> FaultyModel<M> {
    pub(super) fn new(inner: M, chance: Arc<Chance>) -> Self {
        FaultyModel { inner, chance }
    }

    fn fault(&self, fault: ModelFault, problem: &str) -> Error {
        let (model, problem) = (self.inner.name().to_owned(), problem.to_owned());
        Error::new(ErrorKind::Model { model, fault, problem })
    }
}

#[async_trait]
impl<M: ChatModel> ChatModel for FaultyModel<M> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn inner(&self) -> Option<&dyn ChatModel> {
        Some(&self.inner)
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let faults = *self.chance.faults();
        self.chance.delay("model").await;
        if self.chance.strikes("a model call is refused for its rate", faults.rate_limit) {
            let wait_ms = 1 + self.chance.below("retry after", 5_000);
            return Err(self.fault(ModelFault::RateLimited, "429").with_retry_after_ms(wait_ms));
        }
        let mut response = self.inner.chat(request, cx).await?;
        self.chance.delay("model").await;
        if self.chance.strikes("a model's answer breaks off", faults.cut_answer) {
            return Err(self.fault(ModelFault::Truncated, "the stream ended in the midst of the answer"));
        }
        if request.output.is_some() && self.chance.strikes("an answer is half of its JSON", faults.bad_json) {
            for part in &mut response.message.parts {
                if let Part::Text { text } = part {
                    let half = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
                    text.truncate(half);
                }
            }
        }
        Ok(response)
    }
}

pub(super) struct FaultyTools<T> {
    inner: T,
    chance: Arc<Chance>,
    /// The tools whose calls may be repeated.
    repeatable: Mutex<BTreeSet<String>>,
}

impl<T: Toolbox> FaultyTools<T> {
    pub(super) fn new(inner: T, chance: Arc<Chance>) -> Self {
        FaultyTools { inner, chance, repeatable: Mutex::default() }
    }

    fn may_repeat(&self, tool: &str) -> bool {
        self.repeatable.lock().unwrap_or_else(PoisonError::into_inner).contains(tool)
    }
}

#[async_trait]
impl<T: Toolbox> Toolbox for FaultyTools<T> {
    async fn list(&self, caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        let tools = self.inner.list(caller).await?;
        let repeatable =
            tools.iter().filter(|tool| tool.effect.is_repeatable()).map(|tool| tool.name.clone());
        self.repeatable.lock().unwrap_or_else(PoisonError::into_inner).extend(repeatable);
        Ok(tools)
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        let faults = *self.chance.faults();
        self.chance.delay("tool").await;
        if self.chance.strikes("a tool's server is away", faults.tool_away) {
            let (tool, problem) = (call.name.clone(), "the connection was refused".to_owned());
            return Err(Error::new(ErrorKind::Tool { tool, fault: ToolFault::Unavailable, problem }));
        }
        let output = self.inner.call(call, cx).await?;
        self.chance.delay("tool").await;
        // A run that is taken up does not list again: only what this process has seen listed counts.
        if self.may_repeat(&call.name) && self.chance.strikes("a tool gets a call twice", faults.twice) {
            return self.inner.call(call, cx).await;
        }
        Ok(output)
    }

    fn beneath(&self) -> Option<&dyn Toolbox> {
        Some(&self.inner)
    }
}
