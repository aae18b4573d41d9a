//! A bulkhead: what one category of agents does can't take all the room from the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Refusal;
use crate::call::{CallContext, Caller};
use crate::error::{Error, ModelFault};
use crate::model::{ChatModel, ChatRequest, ChatResponse};
use crate::spec::Category;
use crate::tool::{ToolCall, ToolDef, ToolOutput, Toolbox};

/// The room of one category.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lane {
    /// Calls that may run at once; none can run if this is 0.
    pub concurrent: usize,
    /// Calls that may wait for room; one more is refused.
    pub waiting: usize,
}

/// A bulkhead, shared by its clones. A category without a [`Lane`] is not limited.
///
/// # Example
/// ```
/// use std::collections::BTreeMap;
///
/// use coral_core::Category;
/// use coral_core::resilience::{Bulkhead, Lane};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), coral_core::resilience::Refusal> {
/// let lanes = BTreeMap::from([(Category::Specialist, Lane { concurrent: 1, waiting: 0 })]);
/// let bulkhead = Bulkhead::new(lanes);
/// let first = bulkhead.enter(Category::Specialist).await?;
/// assert!(bulkhead.enter(Category::Specialist).await.is_err());
/// let _core = bulkhead.enter(Category::Core).await?;
/// drop(first);
/// let _second = bulkhead.enter(Category::Specialist).await?;
/// # Ok(()) }
/// ```
///
/// # Why by category
/// Specialists come in dozens, core agents in ones and twos, and every phase of a workflow waits
/// for a core agent. Without a wall between them fifty specialists that call a model at once keep
/// the architect waiting behind all of them.
///
/// # Why a bounded queue
/// A queue without a bound turns overload into memory and into answers that come too late for
/// anyone. When the queue is full a call is refused at once, as a transient error: the engine
/// waits, with jitter, and comes again.
#[derive(Clone, Debug, Default)]
pub struct Bulkhead(Arc<BTreeMap<Category, Room>>);

#[derive(Debug)]
struct Room {
    lane: Lane,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// A call's place in a [`Bulkhead`]; dropping it makes room for the next.
#[derive(Debug)]
#[must_use = "dropping it makes room for the next call"]
pub struct Slot(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

impl Bulkhead {
    /// A bulkhead with these lanes.
    pub fn new(lanes: BTreeMap<Category, Lane>) -> Self {
        let room = |lane: Lane| Room {
            lane,
            places: Arc::new(Semaphore::new(lane.concurrent.min(Semaphore::MAX_PERMITS))),
            waiting: AtomicUsize::new(0),
        };
        Bulkhead(Arc::new(lanes.into_iter().map(|(category, lane)| (category, room(lane))).collect()))
    }

    /// Waits for room, in the order in which the callers came.
    ///
    /// # Errors
    /// A [`Refusal`] if as many wait as may.
    pub async fn enter(&self, category: Category) -> Result<Slot, Refusal> {
        let Some(room) = self.0.get(&category) else { return Ok(Slot(None)) };
        // The semaphore is fair: a place that comes free goes to the first who waits, so a try
        // never overtakes.
        if let Ok(place) = room.places.clone().try_acquire_owned() {
            return Ok(Slot(Some(place)));
        }
        let _waits = room.line_up(category)?;
        match room.places.clone().acquire_owned().await {
            Ok(place) => Ok(Slot(Some(place))),
            // Nothing closes it.
            Err(closed) => Err(Refusal::new(ModelFault::RateLimited, closed.to_string(), None)),
        }
    }

    /// Wraps a model or a toolbox, so that its calls keep to the lanes.
    pub fn wrap<T>(&self, inner: T) -> Bounded<T> {
        Bounded { bulkhead: self.clone(), inner }
    }
}

impl Room {
    fn line_up(&self, category: Category) -> Result<Waits<'_>, Refusal> {
        let joined = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            (waiting < self.lane.waiting).then_some(waiting + 1)
        });
        joined.map(|_| Waits(&self.waiting)).map_err(|waiting| {
            let problem = format!("{waiting} calls of {} agents wait already", category.as_str());
            Refusal::new(ModelFault::RateLimited, problem, None)
        })
    }
}

/// Counts one that waits, as long as it does.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A model or a toolbox whose calls keep to a [`Bulkhead`].
#[derive(Clone, Debug)]
pub struct Bounded<T> {
    bulkhead: Bulkhead,
    inner: T,
}

#[async_trait]
impl<M: ChatModel> ChatModel for Bounded<M> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn inner(&self) -> Option<&dyn ChatModel> {
        Some(&self.inner)
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let entered = self.bulkhead.enter(cx.caller().category).await;
        let _slot = entered.map_err(|refusal| refusal.of_model(self.name()))?;
        self.inner.chat(request, cx).await
    }
}

#[async_trait]
impl<T: Toolbox> Toolbox for Bounded<T> {
    async fn list(&self, caller: &Caller) -> Result<Vec<ToolDef>, Error> {
        self.inner.list(caller).await
    }

    fn beneath(&self) -> Option<&dyn Toolbox> {
        Some(&self.inner)
    }

    async fn call(&self, call: &ToolCall, cx: &CallContext) -> Result<ToolOutput, Error> {
        let entered = self.bulkhead.enter(cx.caller().category).await;
        let _slot = entered.map_err(|refusal| refusal.of_tool(&call.name))?;
        self.inner.call(call, cx).await
    }
}
