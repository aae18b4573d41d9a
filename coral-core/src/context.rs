//! What an agent works with: its effects, each recorded once.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::agent::HandoffDraft;
use crate::budget::{Ledger, Used};
use crate::call::{CallContext, Caller};
use crate::driver::{RecordedEffect, RunShared, StepLog, ToDriver};
use crate::error::{AgentError, Error, ErrorKind};
use crate::event::{EffectKind, Event, Outcome, Question, Spent, Stage};
use crate::handoff::derived_uuid;
use crate::hash::{digest, jitter, sha256_hex};
use crate::model::{ChatRequest, ChatResponse, ModelInfo};
use crate::payload::{Data, Payload};
use crate::resources::Permit;
use crate::spec::AgentSpec;
use crate::task::HandoffMessage;
use crate::tool::{EffectClass, ToolCall, ToolDef, ToolOutput};

/// The world as one attempt of one step sees it.
///
/// Each method that reaches outside is an **effect**: its intent is recorded before, its outcome
/// after, once. After a crash the recorded outcomes are given back in the same order and nothing
/// is done or paid again. Effects take `&mut self`, so the compiler keeps them in one order, and
/// an effect's identity is its step, attempt and index.
pub struct AgentContext {
    run: Arc<RunShared>,
    spec: Arc<AgentSpec>,
    step: Arc<StepPlace>,
    attempt: u32,
    next: u32,
    log: StepLog,
    tools: Option<Arc<[ToolDef]>>,
    caller: Arc<Caller>,
    cancel: Option<oneshot::Receiver<Arc<str>>>,
    permit: Option<Permit>,
}

/// Where a step stands in its graph.
#[derive(Debug)]
pub(crate) struct StepPlace {
    pub(crate) path: Arc<str>,
    pub(crate) phase: Arc<str>,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) successors: Arc<[Successor]>,
    /// In a route, the path of the agent that works next, without its name.
    pub(crate) next_hop: Option<String>,
}

/// A step that takes the output of this one.
#[derive(Clone, Debug)]
pub(crate) struct Successor {
    pub(crate) path: Arc<str>,
    pub(crate) agent: Arc<str>,
}

/// What is compared with the journal when a step runs again.
struct Intent {
    effect: EffectKind,
    label: Arc<str>,
    digest: String,
    class: EffectClass,
}

/// What is reserved for calls that are being made; given back when they are over, however they end.
struct Reserved {
    run: Arc<RunShared>,
    path: Arc<str>,
    amount: Used,
}

impl Reserved {
    /// The calls are over and used so much.
    fn settle(mut self, used: Used) {
        let amount = std::mem::take(&mut self.amount);
        self.run.ledger().settle(&self.path, amount, used);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.amount != Used::default() {
            self.run.ledger().settle(&self.path, self.amount, Used::default());
        }
    }
}

/// How an effect stands when a step asks for it.
enum Stand {
    /// Its outcome is recorded.
    Done(Outcome),
    /// Its intent is durable now, or was before a crash; it may be carried out.
    Go,
}

impl AgentContext {
    pub(crate) fn new(
        run: Arc<RunShared>,
        spec: Arc<AgentSpec>,
        step: Arc<StepPlace>,
        attempt: u32,
        log: StepLog,
        cancel: Option<oneshot::Receiver<Arc<str>>>,
    ) -> Self {
        let caller = Arc::new(Caller {
            run: run.id.clone(),
            path: step.path.clone(),
            agent: spec.id.as_str().into(),
            category: spec.category,
            project: run.project.clone(),
            phase: step.phase.clone(),
        });
        AgentContext { run, spec, step, attempt, next: 0, log, tools: None, caller, cancel, permit: None }
    }

    /// The run's id.
    pub fn run_id(&self) -> &Arc<str> {
        &self.run.id
    }

    /// The project that the run belongs to; may be empty.
    pub fn project(&self) -> &str {
        &self.run.project
    }

    /// The step's path in the run.
    pub fn path(&self) -> &Arc<str> {
        &self.step.path
    }

    /// The phase of the workflow; may be empty.
    pub fn phase(&self) -> &str {
        &self.step.phase
    }

    /// The attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The spec of the agent, as it stands in this phase.
    pub fn spec(&self) -> &AgentSpec {
        &self.spec
    }

    /// A fact of the run, as conditions see it.
    pub fn fact(&self, name: &str) -> Option<&Value> {
        self.run.facts.get(name)
    }

    /// What the runner's model can do and what it costs, as it stands now: not recorded, so what
    /// depends on it must be [noted](Self::note) before it is acted upon.
    pub fn model_info(&self) -> ModelInfo {
        self.run.ports.model.info()
    }

    /// Calls the model. A transient failure is tried again within the runner's policy; what comes
    /// back is the last outcome.
    ///
    /// # Errors
    /// [`Model`](ErrorKind::Model), or [`Divergence`](ErrorKind::Divergence) on replay.
    pub async fn chat(&mut self, request: &ChatRequest) -> Result<ChatResponse, Error> {
        let model = self.run.ports.model.clone();
        let label = request.model.as_deref().unwrap_or_else(|| model.name());
        let intent = Intent {
            effect: EffectKind::Chat,
            label: label.into(),
            digest: digest(request)?,
            // A model call changes nothing but the bill. One that a crash cut off is made again.
            class: EffectClass::Idempotent,
        };
        let index = self.take(1);
        let reserved = self.reserve(|ledger, path| match self.is_done(index) {
            true => Ok(Used::default()),
            false => ledger.worst_case(path, request, &model.info()),
        })?;
        if let Stand::Done(outcome) = self.begin(index, std::slice::from_ref(&intent)).await?.remove(0) {
            return replayed(outcome);
        }
        let mut cx = self.call_context(index);
        if let Some(listener) = self.run.ports.on_delta.clone() {
            let path = self.step.path.clone();
            cx = cx.on_delta(move |delta| listener(&path, delta));
        }
        let (result, tries) = self.tried(index, intent.class, || model.chat(request, &cx)).await;
        let spent = match &result {
            Ok(response) => Spent {
                model: Some(response.model.as_str().into()),
                usage: response.usage,
                cost: response.cost,
                tries,
            },
            Err(_) => Spent { tries, ..Spent::default() },
        };
        reserved.settle(Used::of_call(&spent));
        self.end(index, &result, spent).await;
        result
    }

    /// Whether the outcome of an effect is recorded.
    fn is_done(&self, index: u32) -> bool {
        self.log.effect(index).is_some_and(|recorded| recorded.outcome.is_some())
    }

    /// Makes a call, again and again if it fails transiently and may be repeated, within the
    /// runner's policy. Gives the last outcome and how often it was made.
    async fn tried<T, F>(
        &self,
        index: u32,
        class: EffectClass,
        call: impl Fn() -> F,
    ) -> (Result<T, Error>, u32)
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match call().await {
                Ok(value) => return (Ok(value), tries),
                Err(error) => error,
            };
            match self.run.ports.retry.delay_ms(tries, &error, self.jitter(index, tries)) {
                Some(delay_ms) if class.is_repeatable() => self.pause(index, error, delay_ms).await,
                _ => return (Err(error), tries),
            }
        }
    }

    /// Reserves what `worst` says from the budgets of this step. What takes nothing, since it is
    /// recorded, is not held against limits that were reached since.
    fn reserve(&self, worst: impl FnOnce(&Ledger, &str) -> Result<Used, Error>) -> Result<Reserved, Error> {
        let mut ledger = self.run.ledger();
        let amount = worst(&ledger, &self.step.path)?;
        if amount != Used::default() {
            ledger.reserve(&self.step.path, amount, self.run.ports.clock.now_ms())?;
        }
        Ok(Reserved { run: self.run.clone(), path: self.step.path.clone(), amount })
    }

    /// The tools that this agent may call here. Listed once a step; the list is recorded, so that
    /// a resumed step sees the same tools.
    ///
    /// # Errors
    /// [`Tool`](ErrorKind::Tool), or [`Divergence`](ErrorKind::Divergence) on replay.
    pub async fn tools(&mut self) -> Result<Arc<[ToolDef]>, Error> {
        if let Some(tools) = &self.tools {
            return Ok(tools.clone());
        }
        let toolbox = self.run.ports.tools.clone();
        let caller = self.caller.clone();
        let intent = Intent {
            effect: EffectKind::ListTools,
            label: "tools".into(),
            digest: String::new(),
            class: EffectClass::Pure,
        };
        let tools: Vec<ToolDef> =
            self.perform(intent, |_| async move { toolbox.list(&caller).await }).await?;
        let tools: Arc<[ToolDef]> = tools.into();
        self.tools = Some(tools.clone());
        Ok(tools)
    }

    /// Calls one tool.
    ///
    /// # Errors
    /// As [`call_tools`](Self::call_tools) gives them for each call.
    pub async fn call_tool(&mut self, call: &ToolCall) -> Result<ToolOutput, Error> {
        self.call_tools(std::slice::from_ref(call)).await?.pop().unwrap_or_else(|| Ok(ToolOutput::text("")))
    }

    /// Calls several tools at once and gives their outputs in the order of the calls. One that
    /// fails does not take the others with it.
    ///
    /// # Errors
    /// Outside, what stops the step: [`Divergence`](ErrorKind::Divergence) on replay, or
    /// [`InDoubt`](ErrorKind::InDoubt) when a crash left it unknown whether an irreversible call
    /// took place. Inside, each call's own: [`Denied`](ErrorKind::Denied),
    /// [`Tool`](ErrorKind::Tool).
    pub async fn call_tools(&mut self, calls: &[ToolCall]) -> Result<Vec<Result<ToolOutput, Error>>, Error> {
        let tools = self.tools().await?;
        let class = |name: &str| {
            tools.iter().find(|tool| tool.name == name).map(|tool| tool.effect).unwrap_or_default()
        };
        let intents = calls
            .iter()
            .map(|call| {
                Ok(Intent {
                    effect: EffectKind::Tool,
                    label: call.name.as_str().into(),
                    digest: digest(&json!([call.name, call.arguments]))?,
                    class: class(&call.name),
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let first = self.take(u32::try_from(calls.len()).unwrap_or(u32::MAX));
        let fresh = (first..).take(calls.len()).filter(|index| !self.is_done(*index));
        let fresh = Used { calls: fresh.count() as u64, ..Used::default() };
        let reserved = self.reserve(|_, _| Ok(fresh))?;
        let stands = self.begin(first, &intents).await?;
        let this = &*self;
        let outcomes = calls.iter().zip(stands).zip(&intents).zip(first..).map(
            |(((call, stand), intent), index)| async move {
                match stand {
                    Stand::Done(outcome) => replayed(outcome),
                    Stand::Go => this.carry_out_tool(call, intent.class, index).await,
                }
            },
        );
        let outcomes = futures_util::future::join_all(outcomes).await;
        reserved.settle(fresh);
        Ok(outcomes)
    }

    async fn carry_out_tool(
        &self,
        call: &ToolCall,
        class: EffectClass,
        index: u32,
    ) -> Result<ToolOutput, Error> {
        let cx = self.call_context(index);
        let (result, tries) = self.tried(index, class, || self.run.ports.tools.call(call, &cx)).await;
        self.end(index, &result, Spent { tries, ..Spent::default() }).await;
        result
    }

    /// The wall time in milliseconds since the Unix epoch, recorded.
    ///
    /// # Errors
    /// [`Divergence`](ErrorKind::Divergence) on replay.
    pub async fn now_ms(&mut self) -> Result<u64, Error> {
        let clock = self.run.ports.clock.clone();
        self.perform(plain(EffectKind::Now, "now"), |_| async move { Ok(clock.now_ms()) }).await
    }

    /// A number that nobody can tell beforehand, recorded. Not for cryptography.
    ///
    /// # Errors
    /// [`Divergence`](ErrorKind::Divergence) on replay.
    pub async fn random(&mut self) -> Result<u64, Error> {
        let clock = self.run.ports.clock.clone();
        self.perform(plain(EffectKind::Random, "random"), |_| async move { Ok(clock.random()) }).await
    }

    /// An effect of the agent's own, such as a request to a service. `request` is what the effect
    /// depends on: replay compares it. `act` gets the effect's key, the same for each try of the
    /// same effect: hand it to the service as its idempotency key.
    ///
    /// ```
    /// # use coral_core::{AgentContext, AgentError, EffectClass};
    /// # async fn example(cx: &mut AgentContext) -> Result<(), AgentError> {
    /// let receipt: String = cx
    ///     .effect("charge_card", EffectClass::Idempotent, &("order-7", 1_999), |key| async move {
    ///         Ok(format!("charged under {key}"))
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of `act`; [`Divergence`](ErrorKind::Divergence) on replay;
    /// [`InDoubt`](ErrorKind::InDoubt) when a crash left it unknown whether an effect of class
    /// [`Irreversible`](EffectClass::Irreversible) or [`Reconcile`](EffectClass::Reconcile) took place.
    pub async fn effect<T, F>(
        &mut self,
        label: &str,
        class: EffectClass,
        request: &(impl Serialize + ?Sized),
        act: impl FnOnce(Arc<str>) -> F,
    ) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, AgentError>>,
    {
        let intent =
            Intent { effect: EffectKind::Custom, label: label.into(), digest: digest(request)?, class };
        self.perform(intent, |key| async move { act(key).await.map_err(AgentError::into_error) }).await
    }

    /// Asks a person and waits for the answer, however long that takes: the process may exit
    /// meanwhile, and another may take the answer. Many questions may be open at once; the first answer
    /// counts. An answer is given with [`Run::answer`](crate::Run::answer).
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the answer is not an `A`;
    /// [`Divergence`](ErrorKind::Divergence) on replay.
    pub async fn ask<Q: Data, A: Data>(&mut self, label: &str, question: &Q) -> Result<A, Error> {
        let schema = schemars::schema_for!(A).to_value();
        self.ask_person(label, Payload::new(question.clone()), schema, None).await?.get()
    }

    /// [`ask`](Self::ask), but takes `default` if no answer has come after `deadline_ms`
    /// milliseconds.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn ask_within<Q: Data, A: Data>(
        &mut self,
        label: &str,
        question: &Q,
        deadline_ms: u64,
        default: A,
    ) -> Result<A, Error> {
        let schema = schemars::schema_for!(A).to_value();
        let default = Some((deadline_ms, Payload::new(default)));
        self.ask_person(label, Payload::new(question.clone()), schema, default).await?.get()
    }

    pub(crate) async fn ask_person(
        &mut self,
        label: &str,
        question: Payload,
        answer_schema: Value,
        default: Option<(u64, Payload)>,
    ) -> Result<Payload, Error> {
        let digest = digest(&question)?;
        let intent = Intent {
            effect: EffectKind::Ask,
            label: label.into(),
            digest: digest.clone(),
            class: EffectClass::Pure,
        };
        let index = self.take(1);
        let id: Arc<str> =
            format!("{}#{}:{index}@{}", self.step.path, self.attempt, digest.get(..16).unwrap_or(&digest))
                .into();
        let asked_ms = self.log.effect(index).map(|recorded| recorded.at_ms);
        if let Stand::Done(outcome) = self.begin(index, std::slice::from_ref(&intent)).await?.remove(0) {
            return replayed(outcome);
        }
        let now_ms = self.run.ports.clock.now_ms();
        let deadline_ms = default.as_ref().map(|(ms, _)| asked_ms.unwrap_or(now_ms).saturating_add(*ms));
        let question = Question { id: id.clone(), label: intent.label, question, answer_schema, deadline_ms };
        let path = self.step.path.clone();
        let (reply, answer) = oneshot::channel();
        self.run.send(ToDriver::Ask { path, question: Arc::new(question), reply }).await;
        let worked = self.permit.take().is_some();
        let answer = async {
            match answer.await {
                Ok(answer) => answer,
                // The driver is gone and drops this step next.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::pin!(answer);
        let answer = match default.zip(deadline_ms) {
            None => answer.await,
            Some(((_, default), deadline_ms)) => {
                let wait = Duration::from_millis(deadline_ms.saturating_sub(now_ms));
                match tokio::time::timeout(wait, &mut answer).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        // Recorded like any other answer, so that one that comes at the same
                        // time is either before it or too late.
                        self.run.answer(id, default, "deadline".into()).await;
                        answer.await
                    }
                }
            }
        };
        let result = Ok(answer);
        self.end(index, &result, Spent::default()).await;
        if worked {
            self.begin_work().await?;
        }
        result
    }

    /// Waits so many milliseconds. The wait survives restarts: what has passed of it counts.
    ///
    /// # Errors
    /// [`Divergence`](ErrorKind::Divergence) on replay.
    pub async fn sleep_ms(&mut self, ms: u64) -> Result<(), Error> {
        let began_ms = self.log.effect(self.next).map(|recorded| recorded.at_ms);
        let intent = Intent {
            effect: EffectKind::Timer,
            label: "wait".into(),
            digest: ms.to_string(),
            class: EffectClass::Pure,
        };
        let clock = self.run.ports.clock.clone();
        self.wait(intent, |_| async move {
            let now_ms = clock.now_ms();
            let due_ms = began_ms.unwrap_or(now_ms).saturating_add(ms);
            tokio::time::sleep(Duration::from_millis(due_ms.saturating_sub(now_ms))).await;
            Ok(())
        })
        .await
    }

    /// Waits for a signal of this name and gives what came with it. Signals that come before they
    /// are waited for are kept; each is taken once, in the order in which they came.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if what came is not a `T`;
    /// [`Divergence`](ErrorKind::Divergence) on replay.
    pub async fn signal<T: Data>(&mut self, name: &str) -> Result<T, Error> {
        self.wait_for_signal(name).await?.get()
    }

    pub(crate) async fn wait_for_signal(&mut self, name: &str) -> Result<Payload, Error> {
        let intent = Intent {
            effect: EffectKind::Signal,
            label: name.into(),
            digest: String::new(),
            class: EffectClass::Pure,
        };
        let (run, name) = (self.run.clone(), intent.label.clone());
        self.wait(intent, |_| async move {
            let (reply, signal) = oneshot::channel();
            run.send(ToDriver::AwaitSignal { name, reply }).await;
            match signal.await {
                Ok(payload) => Ok(payload),
                Err(_) => std::future::pending().await,
            }
        })
        .await
    }

    /// Notes something for people, metrics and audits, and gives the note as it is recorded.
    ///
    /// A note is not an effect: it is recorded once, and a resumed step does not repeat it. What
    /// the resumed step gets is the note of the first time, so a decision that is noted before it is
    /// acted upon stays as it was, even if what it was made of is different now.
    pub async fn note(&mut self, topic: &str, note: Value) -> Value {
        if let Some(recorded) = self.log.take_note(topic) {
            return recorded;
        }
        let event = Event::Noted { path: self.step.path.clone(), topic: topic.into(), note: note.clone() };
        self.send(event).await;
        note
    }

    async fn perform<T, F>(&mut self, intent: Intent, act: impl FnOnce(Arc<str>) -> F) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, Error>>,
    {
        let index = self.take(1);
        if let Stand::Done(outcome) = self.begin(index, std::slice::from_ref(&intent)).await?.remove(0) {
            return replayed(outcome);
        }
        let result = act(self.key(index)).await;
        self.end(index, &result, Spent::default()).await;
        result
    }

    /// As [`perform`](Self::perform), for a wait: meanwhile others may have the agent's permit.
    async fn wait<T, F>(&mut self, intent: Intent, act: impl FnOnce(Arc<str>) -> F) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, Error>>,
    {
        let index = self.take(1);
        if let Stand::Done(outcome) = self.begin(index, std::slice::from_ref(&intent)).await?.remove(0) {
            return replayed(outcome);
        }
        let worked = self.permit.take().is_some();
        let result = act(self.key(index)).await;
        self.end(index, &result, Spent::default()).await;
        if worked {
            self.begin_work().await?;
        }
        result
    }

    /// Waits until the agent may work, where the runner's resources are bounded.
    pub(crate) async fn begin_work(&mut self) -> Result<(), Error> {
        if let Some(resources) = &self.run.ports.resources {
            self.permit = Some(resources.acquire(&self.caller).await?);
        }
        Ok(())
    }

    fn take(&mut self, count: u32) -> u32 {
        let index = self.next;
        self.next = self.next.saturating_add(count);
        index
    }

    /// Compares the intents from `first` on with the journal, and makes those durable that are
    /// not recorded yet, in one append.
    async fn begin(&mut self, first: u32, intents: &[Intent]) -> Result<Vec<Stand>, Error> {
        let mut stands = Vec::with_capacity(intents.len());
        let mut fresh = Vec::new();
        for (intent, index) in intents.iter().zip(first..) {
            let Some(recorded) = self.log.effect(index) else {
                fresh.push(Event::EffectIntended {
                    path: self.step.path.clone(),
                    attempt: self.attempt,
                    index,
                    effect: intent.effect,
                    label: intent.label.clone(),
                    digest: intent.digest.clone(),
                    class: intent.class,
                });
                stands.push(Stand::Go);
                continue;
            };
            stands.push(self.stand(recorded, intent, index)?);
        }
        if !fresh.is_empty() {
            self.run.append(fresh).await?;
        }
        Ok(stands)
    }

    /// How a recorded effect stands that is asked for again as `intent`.
    fn stand(&self, recorded: &RecordedEffect, intent: &Intent, index: u32) -> Result<Stand, Error> {
        if recorded.effect != intent.effect || recorded.digest != intent.digest {
            let shown = |effect: EffectKind, label: &str, digest: &str| {
                format!("{effect:?} `{label}` {}", digest.get(..12).unwrap_or(digest))
            };
            return Err(Error::new(ErrorKind::Divergence {
                path: self.step.path.to_string(),
                index,
                seq: recorded.seq,
                expected: shown(recorded.effect, &recorded.label, &recorded.digest),
                found: shown(intent.effect, &intent.label, &intent.digest),
            })
            .with_help("an agent must ask for the same effects in the same order when it runs again"));
        }
        match recorded.outcome.clone() {
            Some(outcome) => Ok(Stand::Done(outcome)),
            None if recorded.class.is_repeatable() => Ok(Stand::Go),
            None => Err(Error::new(ErrorKind::InDoubt {
                path: self.step.path.to_string(),
                index,
                label: recorded.label.to_string(),
            })
            .with_help("look whether it took place; resuming the run starts a new attempt of the step")),
        }
    }

    async fn end<T>(&self, index: u32, result: &Result<T, Error>, spent: Spent)
    where
        T: Serialize + Clone + Send + Sync + 'static,
    {
        let outcome = match result {
            Ok(value) => Outcome::Ok(Payload::new(value.clone())),
            Err(error) => Outcome::Err(error.clone()),
        };
        let path = self.step.path.clone();
        self.send(Event::EffectDone { path, attempt: self.attempt, index, outcome, spent }).await;
    }

    async fn pause(&self, index: u32, error: Error, delay_ms: u64) {
        let path = self.step.path.clone();
        self.send(Event::CallRetried { path, attempt: self.attempt, index, error, delay_ms }).await;
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    }

    /// Sends an event that the step need not wait for. It is durable before any later one.
    async fn send(&self, event: Event) {
        self.run.send(ToDriver::Record(Box::new(event))).await;
    }

    /// The effect's key: the same for each try, on every machine.
    fn key(&self, index: u32) -> Arc<str> {
        let text = format!("{}/{}#{}:{index}", self.run.id, self.step.path, self.attempt);
        sha256_hex(text.as_bytes()).into()
    }

    /// A number to spread waits by. Derived, so that a replay waits as long.
    fn jitter(&self, index: u32, tries: u32) -> u64 {
        jitter(&format!("{}/{}#{}:{index}/{tries}", self.run.id, self.step.path, self.attempt))
    }

    fn call_context(&self, index: u32) -> CallContext {
        CallContext::new(self.caller.clone()).with_key(self.key(index))
    }

    pub(crate) fn timeout_ms(&self) -> Option<u64> {
        self.step.timeout_ms
    }

    /// Resolves when this step is to stop, with the reason.
    pub(crate) fn cancelled(&mut self) -> impl Future<Output = Arc<str>> + Send + use<> {
        let cancel = self.cancel.take();
        async move {
            match cancel {
                Some(cancel) => match cancel.await {
                    Ok(reason) => reason,
                    // The run's driver is gone; it never asks for anything again.
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        }
    }

    /// The steps that take the output of this one; in a route also the agent that the output names.
    pub(crate) fn successors(&self, output: &Payload) -> Vec<Successor> {
        let mut successors = self.step.successors.to_vec();
        let next = self.step.next_hop.as_ref().and_then(|prefix| {
            let agent = output.json().ok()?.get("next_agent")?.as_str()?;
            Some(Successor { path: format!("{prefix}/{agent}").into(), agent: agent.into() })
        });
        successors.extend(next);
        successors
    }

    /// Whether the step is part of a route, where its output says which agent works next.
    pub fn routes(&self) -> bool {
        self.step.next_hop.is_some()
    }

    /// Enters a stage of the lifecycle; one that is recorded already is not recorded again.
    pub(crate) async fn enter(&mut self, stage: Stage) {
        if self.log.entered(stage) {
            return;
        }
        let event = Event::StageEntered { path: self.step.path.clone(), attempt: self.attempt, stage };
        self.send(event).await;
    }

    /// Records the message to `to`, unless it is recorded already.
    pub(crate) async fn hand_off(&mut self, to: &Successor, draft: HandoffDraft) {
        if self.log.has_handed_off(&to.path) {
            return;
        }
        let message_type = draft.message_type;
        let (context, next_tasks) = draft.into_context(&self.run.project, &self.step.phase);
        let attempt = self.attempt.to_string();
        let message = HandoffMessage {
            message_id: derived_uuid(&[&self.run.id, &self.step.path, &attempt, &to.path]),
            timestamp: crate::clock::rfc3339(self.run.ports.clock.now_ms()),
            from_agent: self.spec.id.clone(),
            to_agent: to.agent.to_string(),
            message_type,
            context,
            next_tasks,
        };
        let event = Event::HandedOff {
            from: self.step.path.clone(),
            to: to.path.clone(),
            message: Arc::new(message),
        };
        self.send(event).await;
    }
}

impl fmt::Debug for AgentContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentContext")
            .field("run", &self.run.id)
            .field("path", &self.step.path)
            .field("attempt", &self.attempt)
            .field("next_effect", &self.next)
            .finish_non_exhaustive()
    }
}

fn plain(effect: EffectKind, label: &str) -> Intent {
    Intent { effect, label: label.into(), digest: String::new(), class: EffectClass::Pure }
}

fn replayed<T: DeserializeOwned + Clone + 'static>(outcome: Outcome) -> Result<T, Error> {
    match outcome {
        Outcome::Ok(payload) => payload.get(),
        Outcome::Err(error) => Err(error),
    }
}
