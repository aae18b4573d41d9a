//! What runs in the tasks of steps that no agent works in.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use crate::agent::HandoffDraft;
use crate::context::{AgentContext, StepPlace};
use crate::driver::log::StepLog;
use crate::driver::shared::RunShared;
use crate::error::Error;
use crate::graph::StepKind;
use crate::handoff::HandoffContext;
use crate::payload::Payload;
use crate::program::{Feed, StepFuture};
use crate::spec::AgentSpec;

/// Hands the turn from a function to the agents that take its output.
pub(super) async fn hand_off_function(
    shared: Arc<RunShared>,
    place: Arc<StepPlace>,
    attempt: u32,
    log: StepLog,
) {
    let spec = Arc::new(AgentSpec::new(&*place.path, &*place.path));
    let mut cx = AgentContext::new(shared, spec, place.clone(), attempt, log, None);
    for successor in place.successors.iter() {
        cx.hand_off(successor, HandoffDraft::empty()).await;
    }
}

/// Waits for a person, a time or a signal.
pub(super) async fn wait_for(
    kind: Option<StepKind>,
    input: Payload,
    cx: &mut AgentContext,
) -> Result<Payload, Error> {
    match kind {
        Some(StepKind::Ask { answer, deadline_ms, default }) => {
            let label = cx.path().to_string();
            let default = deadline_ms.map(|ms| (ms, Payload::from_json(default)));
            cx.ask_person(&label, input, answer, default).await
        }
        Some(StepKind::Timer(ms)) => cx.sleep_ms(ms).await.map(|()| input),
        Some(StepKind::Signal(name)) => cx.wait_for_signal(&name).await,
        _ => Ok(input),
    }
}

/// What a function takes.
pub(super) enum FunctionInput {
    /// The output before it, as it is.
    Is(Option<Payload>),
    /// What its feed makes of the outputs before it.
    From(Box<(Feed, Vec<Option<Payload>>, HandoffContext)>),
}

/// Calls a function; a panic of its is the future's.
pub(super) fn begin_function(
    call: &(dyn Fn(Payload) -> StepFuture + Send + Sync),
    condition: Result<(), Error>,
    input: FunctionInput,
) -> StepFuture {
    let begin = || {
        condition?;
        let input = match input {
            FunctionInput::Is(input) => {
                input.ok_or_else(|| Error::invalid("input", "the step before gave no output"))?
            }
            FunctionInput::From(from) => {
                let (feed, outputs, cx) = *from;
                feed.apply(&outputs, &cx)?
            }
        };
        Ok(call(input))
    };
    match std::panic::catch_unwind(AssertUnwindSafe(begin)) {
        Ok(Ok(work)) => work,
        Ok(Err(error)) => Box::pin(std::future::ready(Err(error))),
        Err(panic) => Box::pin(async move { std::panic::resume_unwind(panic) }),
    }
}
