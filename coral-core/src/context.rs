//! What an agent works with: its effects, each recorded once.

mod doubt;
mod effect;
mod in_call;
mod presence;
mod tools;
mod waits;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::agent::HandoffDraft;
use crate::budget::Used;
use crate::call::{CallContext, Caller};
use crate::driver::{RunShared, StepLog};
use crate::error::{AgentError, Error, ErrorKind};
use crate::event::{EffectKind, EffectPlace, Event, Outcome, Spent, Stage};
use crate::handoff::{Finding, OnGap, ReviewPolicy, Rework, derived_uuid};
use crate::hash::{digest, jitter, sha256_hex};
use crate::model::{ChatRequest, ChatResponse, ModelInfo};
use crate::payload::{Data, Payload};
use crate::spec::AgentSpec;
use crate::task::HandoffMessage;
use crate::tool::{EffectClass, ToolDef};

use self::doubt::Known;
use self::effect::Reserved;
pub(crate) use self::effect::{Intent, Stand};
pub(crate) use self::in_call::{InCall, used_by};
pub(crate) use self::presence::Presence;

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
    cancel: Option<oneshot::Receiver<Error>>,
    presence: Arc<Presence>,
    /// The effects of this process that go on with one of an earlier attempt.
    followed: Vec<(u32, EffectPlace)>,
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
    pub(crate) review: Arc<ReviewPolicy>,
    /// What came before, where work was sent back.
    pub(crate) rework: Option<Arc<Rework>>,
}

/// A step that takes the output of this one.
#[derive(Clone, Debug)]
pub(crate) struct Successor {
    pub(crate) path: Arc<str>,
    pub(crate) agent: Arc<str>,
}

impl AgentContext {
    pub(crate) fn new(
        run: Arc<RunShared>,
        spec: Arc<AgentSpec>,
        step: Arc<StepPlace>,
        attempt: u32,
        log: StepLog,
        cancel: Option<oneshot::Receiver<Error>>,
    ) -> Self {
        let caller = Arc::new(run.caller(&spec, &step));
        let presence = Presence::new(run.clone(), caller.clone());
        let (tools, followed) = (None, Vec::new());
        AgentContext { run, spec, step, attempt, next: 0, log, tools, caller, cancel, presence, followed }
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

    /// What was sent back to this step, and by it, in the rounds before; empty in the first.
    pub fn reviews(&self) -> &[Arc<HandoffMessage>] {
        self.step.rework.as_ref().map(|rework| rework.messages.as_slice()).unwrap_or_default()
    }

    /// What this step gave before its work, or what that was built on, was sent back.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if it is not a `T`.
    pub fn previous<T: Data>(&self) -> Result<Option<T>, Error> {
        self.step.rework.as_ref().and_then(|rework| rework.previous.as_ref()).map(Payload::get).transpose()
    }

    /// The steps whose work this one may send back; empty for most.
    pub fn reviewed_steps(&self) -> impl Iterator<Item = &str> {
        self.step.review.reviews.iter().map(|(step, _)| &**step)
    }

    /// What happens where something that the agent depends on was not delivered.
    pub fn on_gap(&self) -> OnGap {
        self.step.review.on_gap
    }

    /// The error that sends work back: return it, and those who are to mend something work again,
    /// with all steps behind them. Where the graph does not let this step send work back to them, or
    /// its rounds are used up, the step fails with it.
    ///
    /// ```
    /// use async_trait::async_trait;
    /// use coral_core::{Agent, AgentContext, AgentError, AgentSpec, Finding, Flow, Handle, Runner, Workflow};
    ///
    /// struct Author(AgentSpec);
    ///
    /// #[async_trait]
    /// impl Agent for Author {
    ///     type Input = String;
    ///     type Output = String;
    ///
    ///     fn spec(&self) -> &AgentSpec {
    ///         &self.0
    ///     }
    ///
    ///     async fn run(&self, topic: String, cx: &mut AgentContext) -> Result<String, AgentError> {
    ///         let findings: Vec<&str> =
    ///             cx.reviews().iter().flat_map(|message| &message.next_tasks).map(String::as_str).collect();
    ///         Ok(if findings.is_empty() { topic } else { format!("{topic}, with {}", findings.join(" and ")) })
    ///     }
    /// }
    ///
    /// struct Editor(AgentSpec);
    ///
    /// #[async_trait]
    /// impl Agent for Editor {
    ///     type Input = String;
    ///     type Output = String;
    ///
    ///     fn spec(&self) -> &AgentSpec {
    ///         &self.0
    ///     }
    ///
    ///     async fn run(&self, text: String, cx: &mut AgentContext) -> Result<String, AgentError> {
    ///         if !text.contains("sources") {
    ///             let finding = Finding { to: "author".into(), finding: "sources".into() };
    ///             return Err(cx.send_back([finding]).into());
    ///         }
    ///         Ok(text)
    ///     }
    /// }
    ///
    /// struct Article;
    ///
    /// impl Workflow for Article {
    ///     type Input = String;
    ///     type Output = String;
    ///
    ///     fn name(&self) -> &str {
    ///         "article"
    ///     }
    ///
    ///     fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
    ///         let text = flow.step(Author(AgentSpec::new("author", "Author")), flow.input());
    ///         flow.step(Editor(AgentSpec::new("editor", "Editor")), &text).reviews(&text).max_rounds(1)
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), coral_core::Error> {
    /// let run = Runner::builder().build().start(&Article, "Corals".to_owned()).await?;
    /// assert_eq!(run.output().await?, "Corals, with sources");
    /// # Ok(())
    /// # }
    /// ```
    pub fn send_back(&self, findings: impl IntoIterator<Item = Finding>) -> Error {
        Error::new(ErrorKind::Rejected {
            step: self.step.path.to_string(),
            findings: findings.into_iter().collect(),
        })
    }

    /// A fact of the run, as conditions see it.
    pub fn fact(&self, name: &str) -> Option<&Value> {
        self.run.facts.get(name)
    }

    /// What the runner's model can do and what it costs, or the one of a name that it stands for. As it stands now:
    /// it is not recorded, so what depends on it must be [noted](Self::note) before it is acted upon.
    pub fn model_info(&self, name: Option<&str>) -> ModelInfo {
        let model = &self.run.ports.model;
        match name {
            None => model.info(),
            Some(name) => {
                let request = ChatRequest { model: Some(name.to_owned()), ..ChatRequest::default() };
                model.info_for(&request, &CallContext::new(self.caller.clone()))
            }
        }
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
        let (mut stands, mut events) = self.stands(index, std::slice::from_ref(&intent))?;
        match stands.pop() {
            Some(Stand::Done(outcome)) => return replayed(outcome),
            Some(Stand::Refused(error)) => return Err(error),
            _ => {}
        }
        let (within, mut cx) = self.call_context(index, &intent);
        if let Some(listener) = self.run.ports.on_delta.clone() {
            let path = self.step.path.clone();
            cx = cx.on_delta(move |delta| listener(&path, delta));
        }
        let cx = cx.with_needs(self.spec.model.clone());
        let (before, counted) = (self.held(index), self.is_counted(index));
        let for_chat = Reserved::for_chat(&self.run, &self.step.path, index, (before, !counted), request, cx);
        let (reserved, cx, worst) = match for_chat {
            Ok(reserved) => reserved,
            Err(error) => {
                self.refuse(events, [index], &error).await;
                return Err(error);
            }
        };
        let total = reserved.total;
        match events.first_mut() {
            Some(event) => *event = self.intended(index, &intent, total),
            None => events.extend(self.intended_again(index, &intent, total)),
        }
        self.intend(events, vec![reserved]).await?;
        let (result, tries) = self.tried(index, intent.class, || model.chat(request, &cx)).await;
        let spent = match &result {
            Ok(response) => Spent {
                model: Some(response.model.as_str().into()),
                usage: response.usage,
                cost: response.cost,
                tries,
                settled: None,
            },
            Err(_) => Spent { tries, ..Spent::default() },
        };
        let used = before.plus(Used { calls: u64::from(!counted), ..used_by(&result, worst) });
        let (_, inside) = within.finish().await;
        self.end(index, &result, spent.settling(used.plus(inside))).await;
        result
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
        let stand = self.begin(index, std::slice::from_ref(&intent)).await?.remove(0);
        let origin = self.set_out(index, &intent);
        let result = match stand {
            Stand::Done(outcome) => {
                let result = replayed(outcome);
                self.arrive(origin, &result);
                return result;
            }
            Stand::Refused(error) => return Err(error),
            Stand::Go => act(self.key(index)).await,
            Stand::Doubt { intents } => {
                match Box::pin(self.ask_what_happened(index, &intent, intents, None)).await {
                    Ok(Known::DidNotHappen) => act(self.key(index)).await,
                    Ok(Known::Happened(result)) => Payload::from_json(result.unwrap_or_default()).get(),
                    Err(error) => Err(error),
                }
            }
        };
        self.arrive(origin, &result);
        self.end(index, &result, Spent::default()).await;
        result
    }

    /// Waits until the agent may work, where the runner's resources are bounded.
    pub(crate) async fn begin_work(&mut self) -> Result<(), Error> {
        self.presence.begin_work().await
    }

    /// Whether this attempt works, or only waits.
    pub(crate) fn presence(&self) -> Arc<Presence> {
        self.presence.clone()
    }

    fn take(&mut self, count: u32) -> u32 {
        let index = self.next;
        self.next = self.next.saturating_add(count);
        index
    }

    async fn pause(&self, index: u32, error: Error, delay_ms: u64) {
        let path = self.step.path.clone();
        self.send(Event::CallRetried { path, attempt: self.attempt, index, error, delay_ms }).await;
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    }

    /// The effect's key: the same for each try, on every machine, and for an attempt that goes on with the effect of
    /// another.
    fn key(&self, index: u32) -> Arc<str> {
        let own = EffectPlace { attempt: self.attempt, index };
        let EffectPlace { attempt, index } = self.follows(index).unwrap_or(own);
        let text = format!("{}/{}#{attempt}:{index}", self.run.id, self.step.path);
        sha256_hex(text.as_bytes()).into()
    }

    /// A number to spread waits by. Derived, so that a replay waits as long.
    fn jitter(&self, index: u32, tries: u32) -> u64 {
        jitter(&format!("{}/{}#{}:{index}/{tries}", self.run.id, self.step.path, self.attempt))
    }

    fn call_context(&self, index: u32, intent: &Intent) -> (Arc<InCall>, CallContext) {
        let within = Arc::new(InCall::new(self, index, intent.clone()));
        (within.clone(), CallContext::new(self.caller.clone()).with_key(self.key(index)).within(within))
    }

    pub(crate) fn timeout_ms(&self) -> Option<u64> {
        self.step.timeout_ms
    }

    /// Resolves when this step is to stop, with what it fails with.
    pub(crate) fn cancelled(&mut self) -> impl Future<Output = Error> + Send + use<> {
        let cancel = self.cancel.take();
        async move {
            match cancel {
                Some(cancel) => match cancel.await {
                    Ok(error) => error,
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

    /// In a route: checks that the agent may hand on to the one that its output names. An agent whose definition names
    /// none may hand on within the whole route.
    pub(crate) fn check_next_agent(&self, output: &Payload) -> Result<(), Error> {
        let allowed = &self.spec.handoff.next_agents;
        if !self.routes() || allowed.is_empty() {
            return Ok(());
        }
        match output.json()?.get("next_agent").and_then(Value::as_str) {
            Some(next) if !allowed.iter().any(|id| id == next) => {
                let what = format!("handoff of agent `{}`", self.spec.id);
                let allowed = allowed.join("`, `");
                Err(Error::invalid(what, format!("it names `{next}`, and may hand on to `{allowed}` alone"))
                    .with_help("add the agent to `handoff.next_agents` of the definition, if it may"))
            }
            _ => Ok(()),
        }
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

impl Drop for AgentContext {
    fn drop(&mut self) {
        self.presence.end();
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

pub(crate) fn replayed<T: DeserializeOwned + Clone + 'static>(outcome: Outcome) -> Result<T, Error> {
    match outcome {
        Outcome::Ok(payload) => payload.get(),
        Outcome::Err(error) => Err(error),
    }
}
