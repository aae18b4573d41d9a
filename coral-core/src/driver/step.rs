//! What runs in the tasks of steps that no agent works in.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::HandoffDraft;
use crate::context::{AgentContext, StepPlace};
use crate::driver::log::StepLog;
use crate::driver::shared::RunShared;
use crate::error::{Error, ErrorKind};
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

/// What a function takes.
pub(super) enum FunctionInput {
    /// The output before it, as it is.
    Is(Option<Payload>),
    /// What its feed makes of the outputs before it.
    From(Box<(Feed, Vec<Option<Payload>>, HandoffContext)>),
}

/// Calls a function, which may take so long; a panic of its is the future's.
pub(super) fn begin_function(
    call: &(dyn Fn(Payload) -> StepFuture + Send + Sync),
    condition: Result<(), Error>,
    input: FunctionInput,
    place: &StepPlace,
) -> StepFuture {
    let work = call_function(call, condition, input);
    let Some(limit_ms) = place.timeout_ms else { return work };
    let what = place.path.to_string();
    Box::pin(async move {
        let ended = tokio::time::timeout(Duration::from_millis(limit_ms), work).await;
        ended.unwrap_or_else(|_| Err(Error::new(ErrorKind::TimedOut { what, limit_ms })))
    })
}

fn call_function(
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
