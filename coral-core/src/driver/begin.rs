//! The beginning of a step: what runs it, where it stands, and the task that works for it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::ahead::timed;
use super::step::{FunctionInput, begin_function, hand_off_function};
use super::{Driver, Live, ONE_AGENT, ToDriver};
use crate::agent::panicked;
use crate::call::Caller;
use crate::context::{AgentContext, StepPlace, Successor};
use crate::error::Error;
use crate::event::Event;
use crate::handoff::HandoffContext;
use crate::machine::StepState;
use crate::program::{self, Body};

impl Driver {
    /// The body of a step, which may be in a graph within a graph.
    pub(super) fn body(&self, at: usize) -> Option<(Arc<program::Inner>, usize)> {
        let mut program = self.program.clone();
        for (step, graph) in self.machine.lineage(at) {
            let inside = program.steps.get(step)?.inside.get(graph)?.clone();
            program = inside;
        }
        Some((program, self.machine.local(at)?))
    }

    /// Tells the toolbox for whom the agent of a route's hop acts: the agent that chose it, and the one that
    /// chose that, from the first on.
    fn delegate(&self, at: usize) -> Result<(), Error> {
        let mut hops = vec![at];
        while let Some((Some(before), _)) = hops.last().and_then(|at| self.machine.hops(*at)) {
            hops.push(before);
        }
        let callers: Vec<Caller> = hops.iter().rev().filter_map(|at| self.caller(*at)).collect();
        let mut pairs = callers.iter().zip(callers.iter().skip(1));
        pairs.try_for_each(|(from, to)| self.shared.ports.tools.delegate(from, to))
    }

    fn caller(&self, at: usize) -> Option<Caller> {
        let (program, local) = self.body(at)?;
        let step = program.steps.get(local)?;
        Some(self.shared.caller(&step.spec, &self.place(at, step)))
    }

    /// Where a step stands: as its program has it, or, within another step, under that one's path.
    fn place(&self, at: usize, step: &program::Step) -> Arc<StepPlace> {
        let Some(path) = self.machine.path(at) else { return step.place.clone() };
        let rework = self.rework(at);
        if *path == step.place.path && rework.is_none() {
            return step.place.clone();
        }
        let prefix = path.strip_suffix(&*step.place.path).unwrap_or_default();
        let successors = step.place.successors.iter().map(|successor| Successor {
            path: format!("{prefix}{}", successor.path).into(),
            agent: successor.agent.clone(),
        });
        Arc::new(StepPlace {
            path: path.clone(),
            phase: step.place.phase.clone(),
            timeout_ms: step.place.timeout_ms,
            successors: successors.collect(),
            next_hop: self.machine.hops(at).map(|(_, next)| next),
            review: step.place.review.clone(),
            rework,
        })
    }

    /// Starts a step. A function that is [taken in turn](super::ahead) is polled here once, and becomes a task only if
    /// it has to wait; one that is `alone` has nobody to run beside.
    pub(super) fn start(&mut self, at: usize, attempt: u32, alone: bool) {
        let Some((program, local)) = self.body(at) else { return };
        let Some(step) = program.steps.get(local) else { return };
        let place = self.place(at, step);
        let path = place.path.clone();
        let mut log = self.logs.take(&path, attempt);
        log.keep(self.kept.of_step(&path));
        let before = self.batch.len();
        if !matches!(self.machine.state(at), Some(StepState::Running { attempt: a }) if *a == attempt) {
            self.open_budget(at, false);
            let in_time = self.shared.ledger().check_time(&path, || self.shared.ports.clock.now_ms());
            if let Err(error) = in_time {
                return self.settle(at, attempt, Err(error));
            }
            if matches!(step.body, Body::Agent { .. }) {
                let now_ms = self.shared.ports.clock.now_ms();
                let mut ledger = self.shared.ledger();
                let begun = ledger.reserve(&path, ONE_AGENT, now_ms);
                if let Err(error) = begun {
                    drop(ledger);
                    // It never started, so a replay does not count it either.
                    return self.settle(at, attempt, Err(error));
                }
                ledger.settle(&path, ONE_AGENT, ONE_AGENT);
            }
            self.batch.push((Event::StepStarted { path: path.clone(), attempt }, Some(at)));
        }
        let mut condition = self.machine.condition_holds(at).map(|_| ());
        if matches!(step.body, Body::Composite { .. }) {
            let depth = self.machine.depth(at) + 1;
            condition = condition.and_then(|()| self.shared.ledger().check_depth(&path, depth));
        }
        let shared = self.shared.clone();
        let mut cancel = None;
        let task = match &step.body {
            Body::Composite { feed, .. } => {
                let (cx, feed, outputs) =
                    (self.handoff_context(at), feed.clone(), self.machine.inputs_of(at));
                tokio::spawn(async move {
                    let open = AssertUnwindSafe(async {
                        condition?;
                        feed.apply(&outputs, &cx)
                    });
                    let result =
                        open.catch_unwind().await.unwrap_or_else(|panic| Err(panicked(&path, &*panic)));
                    shared.send(ToDriver::Opened { step: at, attempt, result }).await;
                })
            }
            Body::Function { call, feed } => {
                let input = if feed.is_identity() {
                    FunctionInput::Is(self.machine.input_of(at))
                } else {
                    let cx = if feed.looks_around() {
                        self.handoff_context(at)
                    } else {
                        HandoffContext::default()
                    };
                    FunctionInput::From(Box::new((feed.clone(), self.machine.inputs_of(at), cx)))
                };
                let after = (!place.successors.is_empty()).then(|| Box::new((place.clone(), log)));
                let call = call.clone();
                if after.is_none() && self.is_in_turn(step, alone) {
                    let (polled, work) = self.in_turn(step, alone, || {
                        let work = begin_function(&*call, condition, input, &place);
                        let mut work = AssertUnwindSafe(work).catch_unwind();
                        let mut cx = Context::from_waker(Waker::noop());
                        (work.poll_unpin(&mut cx), work)
                    });
                    if let Poll::Ready(result) = polled {
                        let result = result.unwrap_or_else(|panic| Err(panicked(&path, &*panic)));
                        self.settle(at, attempt, result);
                        return self.ahead.count(self.batch.len() - before);
                    }
                    tokio::spawn(async move {
                        let result = work.await.unwrap_or_else(|panic| Err(panicked(&path, &*panic)));
                        shared.send(ToDriver::StepDone { step: at, attempt, result }).await;
                    })
                } else {
                    let is_slow = step.is_slow.clone();
                    tokio::spawn(async move {
                        let begin = || {
                            AssertUnwindSafe(begin_function(&*call, condition, input, &place)).catch_unwind()
                        };
                        let result = timed(&is_slow, begin)
                            .await
                            .unwrap_or_else(|panic| Err(panicked(&path, &*panic)));
                        if let (Ok(_), Some(after)) = (&result, after) {
                            let (place, log) = *after;
                            Box::pin(hand_off_function(shared.clone(), place, attempt, log)).await;
                        }
                        shared.send(ToDriver::StepDone { step: at, attempt, result }).await;
                    })
                }
            }
            Body::Wait { feed } => {
                let cx = self.handoff_context(at);
                let outputs = self.machine.inputs_of(at);
                let input = std::panic::catch_unwind(AssertUnwindSafe(|| feed.apply(&outputs, &cx)))
                    .unwrap_or_else(|panic| Err(panicked(&path, &*panic)));
                return self.begin_wait(at, attempt, &log, condition.and(input));
            }
            Body::Agent { agent, feed } => {
                let (cx, outputs) = (self.handoff_context(at), self.machine.inputs_of(at));
                let (agent, feed, spec) = (agent.clone(), feed.clone(), step.spec.clone());
                let delegated = self.delegate(at);
                let (ask, cancelled) = oneshot::channel();
                cancel = Some(ask);
                let span = tracing::info_span!(
                    "invoke_agent",
                    "gen_ai.operation.name" = "invoke_agent",
                    "gen_ai.agent.name" = %spec.id,
                    coral.run = %shared.id,
                    coral.step = %path,
                    coral.attempt = attempt,
                );
                let work = async move {
                    let mut context =
                        AgentContext::new(shared.clone(), spec, place, attempt, log, Some(cancelled));
                    let work = async {
                        condition.and(delegated)?;
                        let input = feed.apply(&outputs, &cx)?;
                        agent.run_erased(input, &mut context).await
                    };
                    // Only a conversion can panic here; the agent's own panics are caught inside,
                    // so that its clean-up runs.
                    let result = AssertUnwindSafe(work).catch_unwind().await;
                    let result = result.unwrap_or_else(|panic| Err(panicked(&path, &*panic)));
                    shared.send(ToDriver::StepDone { step: at, attempt, result }).await;
                };
                tokio::spawn(work.instrument(span))
            }
        };
        self.set_live(at, Live { attempt, task: task.abort_handle(), cancel });
    }
}
