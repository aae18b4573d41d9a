//! What the tests share.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, Brief, CallContext, Caller, ChatModel, ChatRequest,
    ChatResponse, Clock, EffectClass, Error, ErrorKind, Event, GraphData, Journal, MemoryJournal, Program,
    Question, Record, Run, RunFilter, RunHead, Seq, StepData, StepKind, Team, ToolCall, ToolDef, ToolOutput,
    Toolbox,
};
use serde_json::{Value, json};

/// A model that answers by a function of the request, and counts.
pub(crate) struct FnModel<F> {
    answer: F,
    pub(crate) requests: Arc<Mutex<Vec<ChatRequest>>>,
}

impl<F: Fn(usize, &ChatRequest) -> Result<ChatResponse, Error> + Send + Sync> FnModel<F> {
    pub(crate) fn new(answer: F) -> Self {
        FnModel { answer, requests: Arc::default() }
    }
}

#[async_trait]
impl<F: Fn(usize, &ChatRequest) -> Result<ChatResponse, Error> + Send + Sync> ChatModel for FnModel<F> {
    fn name(&self) -> &str {
        "test"
    }

    async fn chat(&self, request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        let count = {
            let mut requests = self.requests.lock().unwrap();
            requests.push(request.clone());
            requests.len()
        };
        (self.answer)(count, request)
    }
}

/// A tool of this name that takes any object.
pub(crate) fn tool_def(name: &str, effect: EffectClass) -> ToolDef {
    ToolDef { name: name.into(), description: name.into(), input_schema: json!({"type": "object"}), effect }
}

/// Tools that write what they are called with into a shared list, by key.
#[derive(Clone, Default)]
pub(crate) struct Sink(pub(crate) Arc<Mutex<BTreeMap<String, Vec<String>>>>);

#[async_trait]
impl Toolbox for Sink {
    async fn list(&self, _caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        Ok(vec![ToolDef {
            name: "write".into(),
            description: "writes".into(),
            input_schema: json!({"type": "object", "properties": {"path": {"type": "string"}}}),
            effect: EffectClass::Idempotent,
        }])
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        self.0.lock().unwrap().entry(cx.key().to_owned()).or_default().push(call.arguments.to_string());
        Ok(ToolOutput::text("written"))
    }
}

/// What a scripted agent does.
pub(crate) type Act<'a> = Pin<Box<dyn Future<Output = Result<Value, AgentError>> + Send + 'a>>;
pub(crate) type Play = Arc<dyn for<'a> Fn(Value, &'a mut AgentContext) -> Act<'a> + Send + Sync>;

/// An agent that does what a closure says.
pub(crate) struct Actor(pub(crate) AgentSpec, pub(crate) Play);

#[async_trait]
impl Agent for Actor {
    type Input = Value;
    type Output = Value;

    fn spec(&self) -> &AgentSpec {
        &self.0
    }

    async fn run(&self, input: Value, cx: &mut AgentContext) -> Result<Value, AgentError> {
        (self.1)(input, cx).await
    }
}

/// Shows the time of tokio's clock, which tests pause.
pub(crate) struct TokioClock(pub(crate) tokio::time::Instant);

impl Clock for TokioClock {
    fn now_ms(&self) -> u64 {
        1 + u64::try_from(self.0.elapsed().as_millis()).unwrap()
    }

    fn random(&self) -> u64 {
        7
    }
}

/// A play from a closure.
pub(crate) fn play<F>(act: F) -> Play
where
    F: for<'a> Fn(Value, &'a mut AgentContext) -> Act<'a> + Send + Sync + 'static,
{
    Arc::new(act)
}

/// A workflow of these steps, with these agents; the function `pass` gives what it takes.
pub(crate) fn cast(steps: Vec<StepData>, actors: Vec<(&str, Play)>) -> Program<Brief, Value> {
    let mut team = Team::new().with_function("pass", |value: Value| async move { Ok(value) });
    for (id, play) in actors {
        team = team.with_agent(Actor(AgentSpec::new(id, id), play));
    }
    Program::from_graph(GraphData { name: "play".into(), steps, ..GraphData::default() }, &team).unwrap()
}

pub(crate) fn step(name: &str, kind: StepKind, inputs: &[&str]) -> StepData {
    StepData { inputs: inputs.iter().map(|input| (*input).into()).collect(), ..StepData::new(name, kind) }
}

/// A step in which the agent works that has the same name.
pub(crate) fn agent(id: &str, inputs: &[&str]) -> StepData {
    agent_as(id, id, inputs)
}

pub(crate) fn agent_as(name: &str, id: &str, inputs: &[&str]) -> StepData {
    step(name, StepKind::Agent(id.into()), inputs)
}

/// The open questions, once there are so many.
pub(crate) async fn asked<O>(run: &Run<O>, count: usize) -> Vec<Arc<Question>> {
    let mut events = run.events(1);
    loop {
        let open = run.questions().await;
        if open.len() >= count {
            return open;
        }
        events.next().await.unwrap().unwrap();
    }
}

/// Waits until something is recorded.
pub(crate) async fn until<O>(run: &Run<O>, recorded: impl Fn(&Event) -> bool) {
    let mut events = run.events(1);
    while let Some(record) = events.next().await {
        if recorded(&record.unwrap().event) {
            return;
        }
    }
    panic!("the run ended before");
}

/// All records of a run.
pub(crate) async fn records(journal: &dyn Journal, run: &str) -> Vec<Record> {
    journal.read(run, 1, usize::MAX).await.unwrap()
}

/// The run's events as short texts: `event path`.
pub(crate) async fn story<O>(run: &Run<O>) -> Vec<String> {
    let mut events = run.events(1);
    let mut story = Vec::new();
    while let Some(record) = events.next().await {
        story.push(line(&record.unwrap().event));
    }
    story
}

pub(crate) fn line(event: &Event) -> String {
    let name = match serde_json::to_value(event).unwrap() {
        serde_json::Value::Object(map) => map.keys().next().unwrap().clone(),
        other => other.to_string(),
    };
    let detail = match event {
        Event::StageEntered { stage, .. } => format!(" {}", json!(stage).as_str().unwrap()),
        Event::RunFinished { status, .. } => format!(" {}", json!(status).as_str().unwrap()),
        Event::HandedOff { to, .. } => format!(" to {to}"),
        Event::SentBack { round, returned, .. } => {
            let to: Vec<&str> = returned.iter().map(|returned| &*returned.to).collect();
            format!(" to {} ({round})", to.join(" and "))
        }
        Event::StepSkipped { reason, .. } => format!(" because {reason}"),
        _ => String::new(),
    };
    match event.path() {
        Some(path) => format!("{name} {path}{detail}"),
        None => format!("{name}{detail}"),
    }
}

/// A journal that "loses its process" after so many appends.
pub(crate) struct CrashJournal {
    inner: Arc<MemoryJournal>,
    left: AtomicUsize,
    /// Whether the append that crashes still takes effect, only its answer being lost.
    lands: bool,
}

impl CrashJournal {
    pub(crate) fn new(inner: Arc<MemoryJournal>, after: usize, lands: bool) -> Self {
        CrashJournal { inner, left: AtomicUsize::new(after), lands }
    }

    fn crash() -> Error {
        Error::storage("append", "the process was killed")
    }
}

#[async_trait]
impl Journal for CrashJournal {
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
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(1) => {
                if self.lands {
                    self.inner.append(run, epoch, expected, records).await?;
                }
                Err(Self::crash())
            }
            Ok(_) => self.inner.append(run, epoch, expected, records).await,
            Err(_) => Err(Self::crash()),
        }
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

/// A journal that counts what is read and written, and fails as many reads as it is told to.
#[derive(Default)]
pub(crate) struct Watched {
    pub(crate) inner: Arc<MemoryJournal>,
    reads: AtomicUsize,
    pub(crate) failing: AtomicUsize,
    appends: AtomicUsize,
}

#[async_trait]
impl Journal for Watched {
    async fn acquire(&self, run: &str) -> Result<u64, Error> {
        self.inner.acquire(run).await
    }

    async fn append(&self, run: &str, epoch: u64, expected: Seq, all: Arc<[Record]>) -> Result<(), Error> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        self.inner.append(run, epoch, expected, all).await
    }

    async fn read(&self, run: &str, from: Seq, limit: usize) -> Result<Vec<Record>, Error> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let fails = |left: usize| left.checked_sub(1);
        if self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
            return Err(Error::new(ErrorKind::Storage {
                operation: "read".into(),
                problem: "busy".into(),
                transient: true,
            }));
        }
        self.inner.read(run, from, limit).await
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, Error> {
        self.inner.head(run).await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunHead>, Error> {
        self.inner.runs(filter).await
    }
}

impl Watched {
    /// How many reads there were since this was asked last.
    pub(crate) fn reads(&self) -> usize {
        self.reads.swap(0, Ordering::SeqCst)
    }

    /// How many appends there were since this was asked last.
    pub(crate) fn appends(&self) -> usize {
        self.appends.swap(0, Ordering::SeqCst)
    }
}
