//! A workflow ready to run: its graph and the body of each step.

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;

use crate::agent::{Agent, ErasedAgent};
use crate::context::{StepPlace, Successor};
use crate::error::{AgentError, Error, ErrorKind, nearest};
use crate::event::Pins;
use crate::flow::{self, Workflow};
use crate::graph::{Graph, GraphData, StepData, StepKind};
use crate::handoff::{HandoffContext, OnGap, ReviewPolicy, task_of};
use crate::hash::digest;
use crate::machine::Machine;
use crate::migration::Migration;
use crate::payload::{Data, Payload};
use crate::spec::AgentSpec;
use crate::task::Brief;

type Convert = dyn Fn(&[Option<Payload>], &HandoffContext) -> Result<Payload, Error> + Send + Sync;

/// How the outputs of the steps before become a step's input.
#[doc(hidden)]
#[derive(Clone)]
pub struct Feed {
    /// `None` for the one output as it is.
    convert: Option<Arc<Convert>>,
    looks_around: bool,
}

impl Feed {
    /// The one output as it is.
    pub(crate) fn identity() -> Self {
        Feed { convert: None, looks_around: false }
    }

    pub(crate) fn convert(
        convert: impl Fn(&[Option<Payload>], &HandoffContext) -> Result<Payload, Error> + Send + Sync + 'static,
    ) -> Self {
        Feed { convert: Some(Arc::new(convert)), looks_around: true }
    }

    /// One that needs no context.
    pub(crate) fn plain(
        convert: impl Fn(&[Option<Payload>], &HandoffContext) -> Result<Payload, Error> + Send + Sync + 'static,
    ) -> Self {
        Feed { looks_around: false, ..Feed::convert(convert) }
    }

    /// This, and what it gives turned into something else.
    pub(crate) fn then(
        self,
        turn: impl Fn(&Payload) -> Result<Payload, Error> + Send + Sync + 'static,
    ) -> Self {
        let looks_around = self.looks_around;
        let turned = Feed::convert(move |outputs, cx| turn(&self.apply(outputs, cx)?));
        Feed { looks_around, ..turned }
    }

    /// Whether it gives the one output as it is.
    pub(crate) fn is_identity(&self) -> bool {
        self.convert.is_none()
    }

    /// Whether it looks at its context.
    pub(crate) fn looks_around(&self) -> bool {
        self.looks_around
    }

    pub(crate) fn apply(&self, outputs: &[Option<Payload>], cx: &HandoffContext) -> Result<Payload, Error> {
        match &self.convert {
            Some(convert) => convert(outputs, cx),
            None => outputs
                .first()
                .cloned()
                .flatten()
                .ok_or_else(|| Error::invalid("input", "the step before gave no output")),
        }
    }
}

pub(crate) type StepFuture = Pin<Box<dyn Future<Output = Result<Payload, Error>> + Send>>;

/// What a step runs.
#[derive(Clone)]
pub(crate) enum Body {
    Agent {
        agent: Arc<dyn ErasedAgent>,
        feed: Feed,
    },
    Function {
        call: Arc<dyn Fn(Payload) -> StepFuture + Send + Sync>,
        feed: Feed,
    },
    /// A wait for a person, a time or a signal, as the graph says.
    Wait {
        feed: Feed,
    },
    /// A step that holds steps: the bodies of each graph inside.
    Composite {
        graphs: Vec<Vec<Body>>,
        feed: Feed,
    },
}

impl Body {
    pub(crate) fn agent(agent: Arc<dyn ErasedAgent>, feed: Feed) -> Self {
        Body::Agent { agent, feed }
    }

    pub(crate) fn function<N, U, Fut>(feed: Feed, function: impl Fn(N) -> Fut + Send + Sync + 'static) -> Self
    where
        N: Data,
        U: Data,
        Fut: Future<Output = Result<U, AgentError>> + Send + 'static,
    {
        let call = move |input: Payload| -> StepFuture {
            match input.get::<N>() {
                Ok(input) => {
                    let future = function(input);
                    Box::pin(async move { future.await.map(Payload::new).map_err(AgentError::into_error) })
                }
                Err(error) => Box::pin(std::future::ready(Err(error))),
            }
        };
        Body::Function { call: Arc::new(call), feed }
    }
}

/// One step's body with all that is known of it before a run.
pub(crate) struct Step {
    pub(crate) body: Body,
    pub(crate) place: Arc<StepPlace>,
    /// The agent's spec as it stands in the step's phase; empty if no agent runs.
    pub(crate) spec: Arc<AgentSpec>,
    /// The graphs inside of a step that holds steps.
    pub(crate) inside: Vec<Arc<Inner>>,
    /// Whether it is a function that kept its thread for long the last time.
    pub(crate) is_slow: Arc<AtomicBool>,
}

pub(crate) struct Inner {
    pub(crate) graph: Arc<Graph>,
    pub(crate) steps: Vec<Step>,
    pub(crate) pins: Arc<Pins>,
}

/// A workflow that is checked and ready to run, from typed code ([`Program::new`]) or from data
/// ([`Program::from_graph`]). Cheap to clone; one serves any number of runs.
pub struct Program<I, O> {
    pub(crate) inner: Arc<Inner>,
    pub(crate) migrations: Arc<[Migration]>,
    types: PhantomData<fn(I) -> O>,
}

impl<I, O> Clone for Program<I, O> {
    fn clone(&self) -> Self {
        Program { inner: self.inner.clone(), migrations: self.migrations.clone(), types: PhantomData }
    }
}

impl<I, O> fmt::Debug for Program<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("graph", self.inner.graph.data()).finish_non_exhaustive()
    }
}

impl<I: Data, O: Data> Program<I, O> {
    /// Builds and checks a typed workflow.
    ///
    /// # Errors
    /// [`Problems`](ErrorKind::Problems) with all that is wrong with its graph.
    pub fn new<W>(workflow: &W) -> Result<Self, Error>
    where
        W: Workflow<Input = I, Output = O> + ?Sized,
    {
        flow::build(workflow)
    }
}

impl<I, O> Program<I, O> {
    /// The graph.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.inner.graph
    }

    /// What runs of it are pinned to.
    pub fn pins(&self) -> &Arc<Pins> {
        &self.inner.pins
    }

    /// Lets runs that began under another definition go on under this one. Several migrations are for
    /// several older definitions.
    #[must_use]
    pub fn with_migration(mut self, migration: Migration) -> Self {
        self.migrations = self.migrations.iter().cloned().chain([migration]).collect();
        self
    }

    /// The spec of the agent of each step, as it stands in the step's phase, in the order of the
    /// graph; `None` where no agent runs.
    pub fn agents(&self) -> impl Iterator<Item = Option<&AgentSpec>> {
        self.inner.steps.iter().map(|step| matches!(step.body, Body::Agent { .. }).then_some(&*step.spec))
    }

    /// The same program with its types erased.
    pub fn erase(&self) -> Program<Value, Value> {
        Program { inner: self.inner.clone(), migrations: self.migrations.clone(), types: PhantomData }
    }

    pub(crate) fn assemble(data: GraphData, bodies: Vec<Body>) -> Result<Self, Error> {
        let vain: Vec<String> = data.said_in_vain().iter().map(ToString::to_string).collect();
        if !vain.is_empty() {
            let what = format!("workflow `{}`", data.name);
            return Err(Error::new(ErrorKind::Problems { what, problems: vain }));
        }
        let graph = Arc::new(Graph::new(data)?);
        let mut pins = Pins { graph: graph.digest().to_owned(), agents: BTreeMap::new() };
        let steps = assemble_steps(&graph, bodies, &mut pins)?;
        check_dependencies(&graph, &steps, &BTreeSet::new())?;
        let inner = Inner { graph, steps, pins: Arc::new(pins) };
        Ok(Program { inner: Arc::new(inner), migrations: Arc::default(), types: PhantomData })
    }
}

/// Pins a run to `spec`. An id that stood for two definitions would pin it to one of them.
fn pin(pins: &mut Pins, spec: &AgentSpec, step: &str) -> Result<(), Error> {
    let digest = digest(spec)?;
    match pins.agents.insert(spec.id.clone(), digest.clone()) {
        Some(before) if before != digest => Err(Error::invalid(
            format!("step `{step}`"),
            format!("agent `{}` has another definition here than in a step before", spec.id),
        )
        .with_help("give each definition an id of its own")),
        _ => Ok(()),
    }
}

fn assemble_steps(graph: &Arc<Graph>, bodies: Vec<Body>, pins: &mut Pins) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::with_capacity(bodies.len());
    for (i, (data, mut body)) in graph.steps().iter().zip(bodies).enumerate() {
        let mut spec = Arc::default();
        let mut inside = Vec::new();
        match &mut body {
            Body::Agent { agent, .. } => {
                agent.spec().validate()?;
                for spec in std::iter::once(agent.spec()).chain(agent.stand_ins()) {
                    pin(pins, spec, &data.name)?;
                }
                spec = Arc::new(agent.spec().in_phase(&data.phase));
            }
            Body::Function { .. } | Body::Wait { .. } => {}
            Body::Composite { graphs, .. } => {
                for (graph, bodies) in graph.bodies(i).iter().zip(std::mem::take(graphs)) {
                    let steps = assemble_steps(graph, bodies, pins)?;
                    inside.push(Arc::new(Inner { graph: graph.clone(), steps, pins: Arc::default() }));
                }
            }
        }
        let successors = Machine::successors(graph, i)
            .into_iter()
            .map(|(path, agent)| Successor { path, agent })
            .collect();
        let place = Arc::new(StepPlace {
            path: data.name.clone(),
            phase: data.phase.clone(),
            timeout_ms: data.timeout_ms,
            successors,
            next_hop: None,
            review: Arc::new(ReviewPolicy::of(graph, i, data, &spec)),
            rework: None,
        });
        steps.push(Step { body, place, spec, inside, is_slow: Arc::default() });
    }
    Ok(steps)
}

impl Program<Brief, Value> {
    /// Checks a graph that is data, and finds its agents and functions in `team`.
    ///
    /// An agent that takes a [`Task`](crate::Task) gets the run's [`Brief`] and what the steps before handed
    /// over. Any other agent, and a function, gets the output of the step before it; of several, a JSON object by
    /// the names of the steps.
    ///
    /// # Errors
    /// [`Problems`](ErrorKind::Problems) with all that is wrong, each naming its step.
    pub fn from_graph(data: GraphData, team: &Team) -> Result<Self, Error> {
        let mut problems: Vec<String> = data.problems().iter().map(ToString::to_string).collect();
        let bodies = bodies_of(&data.steps, team, &mut problems);
        if !problems.is_empty() {
            return Err(Error::new(ErrorKind::Problems {
                what: format!("workflow `{}`", data.name),
                problems,
            }));
        }
        Program::assemble(data, bodies)
    }
}

/// The bodies of steps that are data; what is not to be had is added to `problems`.
fn bodies_of(steps: &[StepData], team: &Team, problems: &mut Vec<String>) -> Vec<Body> {
    let mut bodies = Vec::with_capacity(steps.len());
    for step in steps {
        let inputs = step.inputs.iter().map(|input| input.step.clone()).collect();
        let agent = |id: &Arc<str>, inputs, problems: &mut Vec<String>| match team.agent(id) {
            Ok(agent) => Some(Body::agent(agent.clone(), feed_for(&**agent, inputs))),
            Err(error) => {
                problems.push(format!("step `{}`: {error}", step.name));
                None
            }
        };
        bodies.extend(match &step.kind {
            StepKind::Agent(id) => agent(id, inputs, problems),
            StepKind::Function(name) => match team.functions.get(&**name) {
                Some(call) => Some(Body::Function { call: call.clone(), feed: by_name(inputs) }),
                None => {
                    let error =
                        Error::not_found("function", &**name, team.functions.keys().map(|name| &**name));
                    problems.push(format!("step `{}`: {error}", step.name));
                    None
                }
            },
            StepKind::Ask { .. } | StepKind::Timer(_) | StepKind::Signal(_) => {
                Some(Body::Wait { feed: by_name(inputs) })
            }
            StepKind::Workflow(body) | StepKind::Map { body, .. } | StepKind::Loop { body, .. } => {
                let inside = bodies_of(&body.steps, team, problems);
                Some(Body::Composite { graphs: vec![inside], feed: by_name(inputs) })
            }
            StepKind::Route { agents, .. } => {
                let graphs =
                    agents.iter().map(|id| agent(id, Vec::new(), problems).into_iter().collect()).collect();
                Some(Body::Composite { graphs, feed: by_name(inputs) })
            }
        });
    }
    bodies
}

fn feed_for(agent: &dyn ErasedAgent, inputs: Vec<Arc<str>>) -> Feed {
    if agent.takes_task() {
        Feed::convert(|outputs, cx| Ok(Payload::new(task_of(outputs, cx))))
    } else {
        by_name(inputs)
    }
}

fn by_name(inputs: Vec<Arc<str>>) -> Feed {
    if inputs.len() <= 1 {
        return Feed::identity();
    }
    Feed::convert(move |outputs, _cx| {
        let named =
            inputs.iter().zip(outputs).filter_map(|(name, output)| Some((name.clone(), output.clone()?)));
        Ok(Payload::new(named.collect::<BTreeMap<Arc<str>, Payload>>()))
    })
}

/// Every deliverable that an agent depends on must come from some step before it, or be among
/// `given`. Gives all that there is in the end.
fn check_dependencies<'a>(
    graph: &Graph,
    steps: &'a [Step],
    given: &BTreeSet<&'a str>,
) -> Result<BTreeSet<&'a str>, Error> {
    let mut delivered: Vec<BTreeSet<&str>> = vec![BTreeSet::new(); steps.len()];
    for at in graph.order() {
        let Some(step) = steps.get(at) else { continue };
        let before = graph.wiring(at).map(|wires| wires.before.as_slice()).unwrap_or_default();
        let mut known = given.clone();
        known.extend(before.iter().filter_map(|(from, _)| delivered.get(*from)).flatten());
        let missing: Vec<String> =
            step.spec.dependencies.iter().filter(|kind| !known.contains(kind.as_str())).cloned().collect();
        if !missing.is_empty() && step.place.review.on_gap != OnGap::FromBrief {
            return Err(Error::new(ErrorKind::MissingDependency {
                step: step.place.path.to_string(),
                missing,
            })
            .with_help("add a step before it that delivers this, make the dependency optional, or say `on_gap: from_brief`"));
        }
        known.extend(step.spec.outputs.iter().map(|output| output.kind.as_str()));
        for inside in &step.inside {
            let more = check_dependencies(&inside.graph, &inside.steps, &known)?;
            known.extend(more);
        }
        if let Some(slot) = delivered.get_mut(at) {
            *slot = known;
        }
    }
    Ok(delivered.into_iter().flatten().collect())
}

/// The agents and functions that data graphs may name.
#[derive(Clone, Default)]
pub struct Team {
    agents: BTreeMap<String, Arc<dyn ErasedAgent>>,
    aliases: BTreeMap<String, String>,
    functions: BTreeMap<Arc<str>, Arc<dyn Fn(Payload) -> StepFuture + Send + Sync>>,
}

impl Team {
    /// A team of nobody.
    pub fn new() -> Self {
        Team::default()
    }

    /// Adds an agent; one of the same id is replaced.
    #[must_use]
    pub fn with_agent(self, agent: impl Agent) -> Self {
        self.with_erased(Arc::new(agent))
    }

    /// Adds an agent whose types are erased; one of the same id is replaced.
    #[must_use]
    pub fn with_erased(mut self, agent: Arc<dyn ErasedAgent>) -> Self {
        for alias in &agent.spec().aliases {
            self.aliases.insert(alias.clone(), agent.spec().id.clone());
        }
        self.agents.insert(agent.spec().id.clone(), agent);
        self
    }

    /// Adds a function.
    #[must_use]
    pub fn with_function<N, U, Fut>(
        mut self,
        name: &str,
        function: impl Fn(N) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        N: Data,
        U: Data,
        Fut: Future<Output = Result<U, AgentError>> + Send + 'static,
    {
        if let Body::Function { call, .. } = Body::function(Feed::identity(), function) {
            self.functions.insert(name.into(), call);
        }
        self
    }

    /// The agent of an id or alias.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), with the nearest name.
    pub fn agent(&self, id: &str) -> Result<&Arc<dyn ErasedAgent>, Error> {
        let id = self.aliases.get(id).map_or(id, String::as_str);
        self.agents.get(id).ok_or_else(|| {
            let known = self.agents.keys().chain(self.aliases.keys()).map(String::as_str);
            Error::new(ErrorKind::NotFound {
                what: "agent".to_owned(),
                name: id.to_owned(),
                nearest: nearest(id, known).map(str::to_owned),
            })
        })
    }

    /// All agents, by id.
    pub fn agents(&self) -> impl Iterator<Item = &Arc<dyn ErasedAgent>> {
        self.agents.values()
    }
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Team")
            .field("agents", &self.agents.keys())
            .field("functions", &self.functions.keys())
            .finish_non_exhaustive()
    }
}

/// What a [`Runner`](crate::Runner) can start: a reference to a [`Workflow`] or to a [`Program`].
pub trait IntoProgram {
    /// What it takes.
    type Input: Data;
    /// What it gives.
    type Output: Data;

    /// Builds and checks it.
    ///
    /// # Errors
    /// [`Problems`](ErrorKind::Problems) with all that is wrong with its graph.
    fn into_program(self) -> Result<Program<Self::Input, Self::Output>, Error>;
}

impl<W: Workflow> IntoProgram for &W {
    type Input = W::Input;
    type Output = W::Output;

    fn into_program(self) -> Result<Program<W::Input, W::Output>, Error> {
        Program::new(self)
    }
}

impl<I: Data, O: Data> IntoProgram for &Program<I, O> {
    type Input = I;
    type Output = O;

    fn into_program(self) -> Result<Program<I, O>, Error> {
        Ok(self.clone())
    }
}

/// Whether `T` is the task of data agents.
pub(crate) fn is_task<T: 'static>() -> bool {
    TypeId::of::<T>() == TypeId::of::<crate::task::Task>()
}
