//! Building a typed graph: handles carry types, and edges follow from use.

use std::any::TypeId;
use std::cell::RefCell;
use std::future::Future;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

use crate::agent::{Agent, ErasedAgent};
use crate::budget::Budget;
use crate::error::{AgentError, Error};
use crate::graph::{GraphData, Input, Join, RetryPolicy, StepData, StepKind};
use crate::handoff::{Handoff, HandoffContext, Hop, OnGap};
use crate::payload::{Data, Payload};
use crate::program::{Body, Feed, Program};

/// A typed workflow: says which steps feed which.
///
/// The engine asks it for a graph once; the graph's digest is journaled, and a run goes on only
/// under the same graph.
///
/// ```
/// use coral_core::{Flow, Handle, Workflow};
///
/// struct Greet;
///
/// impl Workflow for Greet {
///     type Input = String;
///     type Output = String;
///
///     fn name(&self) -> &str {
///         "greet"
///     }
///
///     fn build(&self, flow: &mut Flow<String>) -> Handle<String> {
///         let upper = flow.function("upper", flow.input(), |name: String| async move { Ok(name.to_uppercase()) });
///         flow.function("greet", &upper, |name: String| async move { Ok(format!("hello {name}")) })
///     }
/// }
/// # coral_core::Program::new(&Greet)?;
/// # Ok::<(), coral_core::Error>(())
/// ```
pub trait Workflow {
    /// What it takes.
    type Input: Data;
    /// What it gives.
    type Output: Data;

    /// Its name in journals.
    fn name(&self) -> &str;

    /// Says which steps feed which; gives the step whose output is the workflow's.
    fn build(&self, flow: &mut Flow<Self::Input>) -> Handle<Self::Output>;
}

#[derive(Default)]
struct Draft {
    steps: Vec<StepData>,
    bodies: Vec<Body>,
}

/// Builds a typed graph.
pub struct Flow<I> {
    draft: Rc<RefCell<Draft>>,
    input: PhantomData<fn(I)>,
}

/// A step's output of type `T`, before there is one. Give it to the steps that take it.
pub struct Handle<T> {
    draft: Rc<RefCell<Draft>>,
    /// `None` is the workflow's own input.
    step: Option<usize>,
    output: PhantomData<fn() -> T>,
}

/// The output of a step that may be skipped: its takers get an `Option`.
pub struct MaybeHandle<T>(Handle<T>);

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Handle { draft: self.draft.clone(), step: self.step, output: PhantomData }
    }
}

impl<T> Clone for MaybeHandle<T> {
    fn clone(&self) -> Self {
        MaybeHandle(self.0.clone())
    }
}

impl<I: Data> Flow<I> {
    /// The workflow's own input.
    pub fn input(&self) -> Handle<I> {
        Handle { draft: self.draft.clone(), step: None, output: PhantomData }
    }

    /// Adds a step in which `agent` takes what `feed` gives it: a handle, a tuple of handles, or a
    /// join such as [`FirstOk`]. It is named after the agent; see [`Handle::named`].
    pub fn step<A, F>(&mut self, agent: A, feed: F) -> Handle<A::Output>
    where
        A: Agent,
        F: Feeds<A::Input>,
    {
        let id: Arc<str> = agent.spec().id.as_str().into();
        let agent: Arc<dyn ErasedAgent> = Arc::new(agent);
        let body = Body::agent(agent, F::feed());
        self.add(id.clone(), StepKind::Agent(id), &feed, body)
    }

    /// Adds a step in which a function takes what `feed` gives it. What it gives is recorded
    /// once; on resume a finished function does not run again.
    ///
    /// It has no effects of its own that the engine could record: for those, write an [`Agent`]. So functions
    /// that follow each other at once share a write of the journal, and a crash may take the last millisecond of their
    /// work, which is done again; no agent begins before all is durable that came before it.
    pub fn function<N, U, F, Fut>(
        &mut self,
        name: &str,
        feed: F,
        function: impl Fn(N) -> Fut + Send + Sync + 'static,
    ) -> Handle<U>
    where
        N: Data,
        U: Data,
        F: Feeds<N>,
        Fut: Future<Output = Result<U, AgentError>> + Send + 'static,
    {
        let body = Body::function(F::feed(), function);
        self.add(name.into(), StepKind::Function(name.into()), &feed, body)
    }

    /// Adds a step that asks a person what `feed` gives it, and gives the answer. The process may
    /// exit meanwhile. See [`Run::answer`](crate::Run::answer).
    pub fn ask<Q, A, F>(&mut self, name: &str, feed: F) -> Handle<A>
    where
        Q: Data,
        A: Data,
        F: Feeds<Q>,
    {
        let answer = schemars::schema_for!(A).to_value();
        let kind = StepKind::Ask { answer, deadline_ms: None, default: None };
        self.add(name.into(), kind, &feed, Body::Wait { feed: F::feed() })
    }

    /// The same, but `default` is the answer if none came within `deadline_ms` milliseconds, restarts included.
    pub fn ask_within<Q, A, F>(&mut self, name: &str, feed: F, deadline_ms: u64, default: A) -> Handle<A>
    where
        Q: Data,
        A: Data,
        F: Feeds<Q>,
    {
        let answer = schemars::schema_for!(A).to_value();
        // Of what can't be JSON, building says that a default is needed.
        let default = serde_json::to_value(default).ok();
        let kind = StepKind::Ask { answer, deadline_ms: Some(deadline_ms), default };
        self.add(name.into(), kind, &feed, Body::Wait { feed: F::feed() })
    }

    /// Adds a step in which agents hand off to one another as they decide themselves, beginning with the
    /// first that `team` adds. After `max_hops` agents that did not end it, the step fails with
    /// [`Limit`](crate::ErrorKind::Limit).
    ///
    /// ```
    /// # use async_trait::async_trait;
    /// # use coral_core::{Agent, AgentContext, AgentError, AgentSpec, Flow, Handle, Hop, Workflow};
    /// struct Triage(AgentSpec);
    /// # struct Billing(AgentSpec);
    ///
    /// #[async_trait]
    /// impl Agent for Triage {
    ///     type Input = String;
    ///     type Output = Hop<String>;
    ///
    ///     async fn run(&self, mail: String, _cx: &mut AgentContext) -> Result<Hop<String>, AgentError> {
    ///         let ours = mail.contains("invoice");
    ///         Ok(if ours { Hop::to("billing", mail) } else { Hop::done(mail) })
    ///     }
    ///     # fn spec(&self) -> &AgentSpec { &self.0 }
    /// }
    /// # #[async_trait]
    /// # impl Agent for Billing {
    /// #     type Input = String;
    /// #     type Output = Hop<String>;
    /// #     fn spec(&self) -> &AgentSpec { &self.0 }
    /// #     async fn run(&self, mail: String, _: &mut AgentContext) -> Result<Hop<String>, AgentError> {
    /// #         Ok(Hop::done(mail))
    /// #     }
    /// # }
    ///
    /// struct Desk;
    ///
    /// impl Workflow for Desk {
    ///     type Input = String;
    ///     type Output = Hop<String>;
    ///
    ///     fn name(&self) -> &str {
    ///         "desk"
    ///     }
    ///
    ///     fn build(&self, flow: &mut Flow<String>) -> Handle<Hop<String>> {
    ///         flow.route("mail", 5, flow.input(), |team| {
    ///             team.agent(Triage(AgentSpec::new("triage", "Sorts mail")));
    ///             team.agent(Billing(AgentSpec::new("billing", "Answers about invoices")));
    ///         })
    ///     }
    /// }
    /// # coral_core::Program::new(&Desk)?;
    /// # Ok::<(), coral_core::Error>(())
    /// ```
    pub fn route<T, F>(
        &mut self,
        name: &str,
        max_hops: u32,
        feed: F,
        team: impl FnOnce(&mut RouteTeam<T>),
    ) -> Handle<Hop<T>>
    where
        T: Data,
        F: Feeds<T>,
    {
        let mut members = RouteTeam { agents: Vec::new(), carries: PhantomData };
        team(&mut members);
        let agents = members.agents.iter().map(|agent| agent.spec().id.as_str().into()).collect();
        let bodies = members.agents.into_iter().map(|agent| vec![Body::agent(agent, Hop::<T>::feed())]);
        let body = Body::Composite { graphs: bodies.collect(), feed: F::feed().then(Hop::<T>::begin) };
        self.add(name.into(), StepKind::Route { agents, max_hops }, &feed, body)
    }

    /// Adds a step that waits so many milliseconds, restarts included, and gives what `feed` gave it.
    pub fn timer<T, F>(&mut self, name: &str, ms: u64, feed: F) -> Handle<T>
    where
        T: Data,
        F: Feeds<T>,
    {
        self.add(name.into(), StepKind::Timer(ms), &feed, Body::Wait { feed: F::feed() })
    }

    /// Adds a step that waits for a signal, from when its graph begins, and gives what came with
    /// it. See [`Run::signal`](crate::Run::signal).
    pub fn signal<T: Data>(&mut self, name: &str) -> Handle<T> {
        let feed = self.input();
        let body = Body::Wait { feed: <Handle<I> as Feeds<I>>::feed() };
        self.add::<I, T>(name.into(), StepKind::Signal(name.into()), &feed, body)
    }

    /// Adds a step in which another workflow runs, in the same journal. It is named after the
    /// workflow.
    pub fn workflow<W, F>(&mut self, workflow: &W, feed: F) -> Handle<W::Output>
    where
        W: Workflow,
        F: Feeds<W::Input>,
    {
        let (graph, bodies) = sketch(workflow.name(), |flow| workflow.build(flow));
        self.hold(workflow.name(), StepKind::Workflow(graph), bodies, &feed)
    }

    /// Adds a step in which a graph runs for each item of a list, at most `concurrency` at once;
    /// gives the list of their outputs, in the order of the items.
    pub fn map<T, U, F>(
        &mut self,
        name: &str,
        concurrency: usize,
        feed: F,
        body: impl FnOnce(&mut Flow<T>) -> Handle<U>,
    ) -> Handle<Vec<U>>
    where
        T: Data,
        U: Data,
        F: Feeds<Vec<T>>,
    {
        let (body, bodies) = sketch(name, body);
        self.hold(name, StepKind::Map { body, over: None, concurrency }, bodies, &feed)
    }

    /// Adds a step in which a graph runs again and again, each turn on the output of the one
    /// before, until `until` holds: an expression over `output` and `turn`. After `max_turns` turns in
    /// which it did not, the step fails with [`Limit`](crate::ErrorKind::Limit).
    pub fn repeat<T, F>(
        &mut self,
        name: &str,
        until: &str,
        max_turns: u32,
        feed: F,
        body: impl FnOnce(&mut Flow<T>) -> Handle<T>,
    ) -> Handle<T>
    where
        T: Data,
        F: Feeds<T>,
    {
        let (body, bodies) = sketch(name, body);
        self.hold(name, StepKind::Loop { body, until: until.into(), max_turns }, bodies, &feed)
    }

    fn hold<N, U, F: Feeds<N>>(
        &mut self,
        name: &str,
        kind: StepKind,
        bodies: Vec<Body>,
        feed: &F,
    ) -> Handle<U> {
        let body = Body::Composite { graphs: vec![bodies], feed: F::feed() };
        self.add(name.into(), kind, feed, body)
    }

    fn add<N, U>(&mut self, name: Arc<str>, kind: StepKind, feed: &impl Feeds<N>, body: Body) -> Handle<U> {
        let mut draft = self.draft.borrow_mut();
        let taken = |name: &str| draft.steps.iter().any(|step| &*step.name == name);
        let name = if taken(&name) {
            (2..).map(|n| format!("{name}-{n}").into()).find(|name: &Arc<str>| !taken(name)).unwrap_or(name)
        } else {
            name
        };
        let mut wires = Wires { names: Vec::new(), draft: &self.draft, steps: &draft.steps };
        feed.wire(&mut wires);
        let inputs = wires.names;
        let step = draft.steps.len();
        draft.steps.push(StepData { inputs, join: feed.join(), ..StepData::new(name, kind) });
        draft.bodies.push(body);
        Handle { draft: self.draft.clone(), step: Some(step), output: PhantomData }
    }
}

/// The agents that may take part in a [`route`](Flow::route).
pub struct RouteTeam<T> {
    agents: Vec<Arc<dyn ErasedAgent>>,
    carries: PhantomData<fn() -> T>,
}

impl<T: Data> RouteTeam<T> {
    /// Adds an agent; the first that is added begins.
    pub fn agent<A: Agent<Input = T, Output = Hop<T>>>(&mut self, agent: A) {
        self.agents.push(Arc::new(agent));
    }
}

impl<T> Handle<T> {
    fn edit(&self, edit: impl FnOnce(&mut StepData)) {
        let mut draft = self.draft.borrow_mut();
        if let Some(step) = self.step.and_then(|step| draft.steps.get_mut(step)) {
            edit(step);
        }
    }

    /// Names the step. Do so before other steps take its output.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        self.edit(|step| step.name = name.into());
        self
    }

    /// Puts the step into a phase of the workflow.
    #[must_use]
    pub fn phase(self, phase: &str) -> Self {
        self.edit(|step| step.phase = phase.into());
        self
    }

    /// Says how often the step is tried.
    #[must_use]
    pub fn retry(self, retry: RetryPolicy) -> Self {
        self.edit(|step| step.retry = retry);
        self
    }

    /// Limits one attempt of the step to so many milliseconds.
    #[must_use]
    pub fn timeout_ms(self, timeout_ms: u64) -> Self {
        self.edit(|step| step.timeout_ms = Some(timeout_ms));
        self
    }

    /// Limits what the step, with all steps inside of it, may use.
    #[must_use]
    pub fn budget(self, budget: Budget) -> Self {
        self.edit(|step| step.budget = budget);
        self
    }

    /// Lets the step send the work of `other` back with findings, at most as often as
    /// [`max_rounds`](Self::max_rounds) says. See [`AgentContext::send_back`](crate::AgentContext::send_back).
    #[must_use]
    pub fn reviews<U>(self, other: &Handle<U>) -> Self {
        let reviewed =
            other.step.and_then(|other| self.draft.borrow().steps.get(other).map(|step| step.name.clone()));
        self.edit(|step| step.reviews.extend(reviewed));
        self
    }

    /// Says what happens where something that the step's agent depends on was not delivered.
    #[must_use]
    pub fn on_gap(self, on_gap: OnGap) -> Self {
        self.edit(|step| step.on_gap = Some(on_gap));
        self
    }

    /// Says how often the step may send work back.
    #[must_use]
    pub fn max_rounds(self, max_rounds: u32) -> Self {
        self.edit(|step| step.max_rounds = Some(max_rounds));
        self
    }

    /// Lets the step wait for another whose output it does not take.
    #[must_use]
    pub fn after<U>(self, other: &Handle<U>) -> Self {
        let before =
            other.step.and_then(|other| self.draft.borrow().steps.get(other).map(|step| step.name.clone()));
        self.edit(|step| step.after.extend(before));
        self
    }

    /// Runs the step only where `condition` holds: an expression over the run's `facts`, the
    /// workflow's `input` and the outputs of the `steps` before it.
    #[must_use]
    pub fn when(self, condition: &str) -> MaybeHandle<T> {
        self.edit(|step| step.when = Some(condition.into()));
        MaybeHandle(self)
    }
}

/// Collects the edges of a step that is being added.
#[doc(hidden)]
pub struct Wires<'a> {
    names: Vec<Input>,
    draft: &'a Rc<RefCell<Draft>>,
    steps: &'a [StepData],
}

impl Wires<'_> {
    fn add<T>(&mut self, handle: &Handle<T>, optional: bool) {
        // A handle of another flow gets a name that no step can have, which building reports.
        let step: Arc<str> = if !Rc::ptr_eq(self.draft, &handle.draft) {
            "<a step of another workflow>".into()
        } else {
            match handle.step {
                None => "input".into(),
                Some(step) => self.steps.get(step).map(|step| step.name.clone()).unwrap_or_default(),
            }
        };
        self.names.push(Input { step, optional });
    }
}

/// A handle by itself, by value or by reference.
#[doc(hidden)]
pub trait Source {
    type Value: 'static;
    fn wire(&self, wires: &mut Wires<'_>);
    fn value(payload: Option<&Payload>) -> Result<Self::Value, Error>;
}

fn missing() -> Error {
    Error::invalid("input", "a step before gave no output")
}

impl<T: Data> Source for Handle<T> {
    type Value = T;

    fn wire(&self, wires: &mut Wires<'_>) {
        wires.add(self, false);
    }

    fn value(payload: Option<&Payload>) -> Result<T, Error> {
        payload.ok_or_else(missing)?.get()
    }
}

impl<T: Data> Source for MaybeHandle<T> {
    type Value = Option<T>;

    fn wire(&self, wires: &mut Wires<'_>) {
        wires.add(&self.0, true);
    }

    fn value(payload: Option<&Payload>) -> Result<Option<T>, Error> {
        payload.map(Payload::get).transpose()
    }
}

impl<S: Source> Source for &S {
    type Value = S::Value;

    fn wire(&self, wires: &mut Wires<'_>) {
        (*self).wire(wires);
    }

    fn value(payload: Option<&Payload>) -> Result<S::Value, Error> {
        S::value(payload)
    }
}

/// What can feed an agent that takes `Next`: a [`Handle`] or [`MaybeHandle`], a tuple of them, an
/// array (as [`All`]), or another join ([`FirstOk`], [`Quorum`], [`Settle`]), wherever what they
/// give together is [`Handoff<Next>`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not feed an agent that takes `{Next}`",
    label = "not handles, or what they give together can't be handed off to that agent",
    note = "expected is a handle, a tuple of handles, or a join of them; a tuple gives its outputs in its order",
    note = "implement `Handoff<{Next}>` for what they give together, or put a function step in between"
)]
pub trait Feeds<Next> {
    #[doc(hidden)]
    fn wire(&self, wires: &mut Wires<'_>);
    #[doc(hidden)]
    fn feed() -> Feed;
    #[doc(hidden)]
    fn join(&self) -> Join {
        Join::All
    }
}

fn feed_of<V, Next>(collect: impl Fn(&[Option<Payload>]) -> Result<V, Error> + Send + Sync + 'static) -> Feed
where
    V: Handoff<Next> + 'static,
    Next: Data,
{
    let convert = move |outputs: &[Option<Payload>], cx: &HandoffContext| {
        let next = collect(outputs)?.hand_off(cx).map_err(AgentError::into_error)?;
        Ok(Payload::new(next))
    };
    // Handing a value on as it is never looks around.
    if TypeId::of::<V>() == TypeId::of::<Next>() { Feed::plain(convert) } else { Feed::convert(convert) }
}

impl<S, Next> Feeds<Next> for S
where
    S: Source,
    S::Value: Handoff<Next>,
    Next: Data,
{
    fn wire(&self, wires: &mut Wires<'_>) {
        Source::wire(self, wires);
    }

    fn feed() -> Feed {
        if TypeId::of::<S::Value>() == TypeId::of::<Next>() {
            return Feed::identity();
        }
        feed_of::<S::Value, Next>(|outputs| S::value(outputs.first().and_then(Option::as_ref)))
    }
}

macro_rules! feed_tuples {
    ($(($($name:ident)+))+) => {$(
        #[diagnostic::do_not_recommend]
        impl<$($name,)+ Next> Feeds<Next> for ($($name,)+)
        where
            $($name: Source,)+
            ($($name::Value,)+): Handoff<Next>,
            Next: Data,
        {
            #[expect(non_snake_case, reason = "the variables are named as their types")]
            fn wire(&self, wires: &mut Wires<'_>) {
                let ($($name,)+) = self;
                $($name.wire(wires);)+
            }

            fn feed() -> Feed {
                feed_of::<($($name::Value,)+), Next>(|outputs| {
                    let mut outputs = outputs.iter();
                    Ok(($($name::value(outputs.next().and_then(Option::as_ref))?,)+))
                })
            }
        }
    )+};
}

feed_tuples! { (A B) (A B C) (A B C D) (A B C D E) (A B C D E F) }

/// Waits for all of several steps of one type; gives a `Vec` in their order.
pub struct All<S, const N: usize>(pub [S; N]);

/// Waits for the first of several steps that succeeds; gives its output.
pub struct FirstOk<S, const N: usize>(pub [S; N]);

/// Waits until so many of several steps have succeeded; gives a `Vec` of their outputs, in the
/// order of the steps.
pub struct Quorum<S, const N: usize>(pub usize, pub [S; N]);

/// Waits until several steps are over, however they ended; gives a `Vec` of `Option`s.
pub struct Settle<S, const N: usize>(pub [S; N]);

macro_rules! feed_joins {
    ($($join:ident($([$how:ident],)? $steps:ident) gives $value:ty as $policy:expr, $collect:expr;)+) => {$(
        #[diagnostic::do_not_recommend]
        impl<S, Next, const N: usize> Feeds<Next> for $join<S, N>
        where
            S: Source,
            S::Value: Data,
            $value: Handoff<Next>,
            Next: Data,
        {
            fn wire(&self, wires: &mut Wires<'_>) {
                let $join($($how,)? $steps) = self;
                $(let _ = $how;)?
                for step in $steps {
                    step.wire(wires);
                }
            }

            fn feed() -> Feed {
                feed_of::<$value, Next>($collect)
            }

            fn join(&self) -> Join {
                let $join($($how,)? $steps) = self;
                let _ = $steps;
                $policy
            }
        }
    )+};
}

feed_joins! {
    All(steps) gives Vec<S::Value> as Join::All,
        |outputs| outputs.iter().map(|output| S::value(output.as_ref())).collect();
    FirstOk(steps) gives S::Value as Join::FirstOk,
        |outputs| S::value(outputs.iter().flatten().next());
    Quorum([count], steps) gives Vec<S::Value> as Join::Quorum(*count),
        |outputs| outputs.iter().flatten().map(|output| S::value(Some(output))).collect();
    Settle(steps) gives Vec<Option<S::Value>> as Join::Settle,
        |outputs| outputs.iter().map(|output| output.as_ref().map(|o| S::value(Some(o))).transpose()).collect();
}

/// Lets `build` draw a graph. A graph whose output is its own input, or a step of another graph,
/// gets an output that no step can have, which building reports.
fn sketch<I: Data, O>(
    name: &str,
    build: impl FnOnce(&mut Flow<I>) -> Handle<O>,
) -> (Arc<GraphData>, Vec<Body>) {
    let draft = Rc::new(RefCell::new(Draft::default()));
    let handle = build(&mut Flow { draft: draft.clone(), input: PhantomData });
    let own = Rc::ptr_eq(&handle.draft, &draft);
    let draft = draft.take();
    let output = match handle.step.filter(|_| own).and_then(|step| draft.steps.get(step)) {
        Some(step) => step.name.clone(),
        None => "<not a step of this workflow>".into(),
    };
    let graph = GraphData {
        name: name.to_owned(),
        description: String::new(),
        steps: draft.steps,
        output: Some(output),
    };
    (Arc::new(graph), draft.bodies)
}

/// Asks `workflow` for its graph.
pub(crate) fn build<W: Workflow + ?Sized>(workflow: &W) -> Result<Program<W::Input, W::Output>, Error> {
    let (graph, bodies) = sketch(workflow.name(), |flow| workflow.build(flow));
    Program::assemble(Arc::unwrap_or_clone(graph), bodies)
}
