//! A fallback chain: another model, and at last an answer of the embedder's own.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde_json::json;

use crate::call::CallContext;
use crate::error::{Error, ErrorKind, ModelFault};
use crate::model::{ChatModel, ChatRequest, ChatResponse, ModelInfo};

type Answer = dyn Fn(&ChatRequest, &Error) -> Option<ChatResponse> + Send + Sync;
type When = dyn Fn(&Error) -> bool + Send + Sync;

/// Calls under way whose failures are remembered. One that is forgotten starts at the first
/// model again, which costs a try.
const MAX_CALLS: usize = 4_096;

/// A chain of models, tried in order. See [`resilience`](super) for where it stands.
///
/// A request that names a model keeps that name for the first model of the chain; the others
/// answer with their own. Deltas of an answer that broke off are not taken back: a listener sees
/// the next model's answer begin after them. A model that is passed over, and the answer of the embedder's
/// own, are noted with the call as `model_passed_over` and `default_answer`.
///
/// # Example
/// ```
/// use coral_core::resilience::Fallback;
/// use coral_core::ChatModel;
///
/// fn chain(large: impl ChatModel + 'static, small: impl ChatModel + 'static) -> impl ChatModel {
///     Fallback::first(large).then(small).tries(2).or_answer("No model can be reached.")
/// }
/// ```
///
/// # Retry or fall back
/// A fallback comes after the retries of the model before it, or the chain would leave its best
/// model at the first hiccup. The retries are the engine's, which stands outside: it waits and
/// makes the whole call again, under the same key. So the chain counts, by key, how often the
/// first model has failed, and hands a failure out as long as that model has tries left. What is
/// not worth a wait goes to the next model at once: an error that no repeat mends (a bad key, a
/// used-up quota), an open circuit, a `Retry-After` beyond the chain's patience. The models after
/// the first get one try each, without a wait in between: the call has waited enough.
///
/// # What does not fall back
/// A request that is malformed stays so at every model. And an answer that a provider's filter
/// stopped is not asked for elsewhere unless the embedder says so ([`Fallback::when`]): going
/// round a filter is a decision, not a defence.
pub struct Fallback {
    models: Vec<Arc<dyn ChatModel>>,
    answer: Option<Box<Answer>>,
    when: Box<When>,
    tries: u32,
    patience_ms: u64,
    calls: Mutex<Calls>,
}

/// How often each call under way has failed at the first model.
#[derive(Default)]
struct Calls {
    failures: BTreeMap<Box<str>, u32>,
    order: VecDeque<Box<str>>,
}

impl Calls {
    /// Counts one more failure and gives their number.
    fn count(&mut self, key: &str) -> u32 {
        if let Some(failures) = self.failures.get_mut(key) {
            *failures += 1;
            return *failures;
        }
        if self.order.len() >= MAX_CALLS
            && let Some(oldest) = self.order.pop_front()
        {
            self.failures.remove(&oldest);
        }
        self.order.push_back(key.into());
        self.failures.insert(key.into(), 1);
        1
    }

    fn forget(&mut self, key: &str) {
        if self.failures.remove(key).is_some() {
            self.order.retain(|known| &**known != key);
        }
    }
}

impl Fallback {
    /// A chain that begins with `model`.
    pub fn first(model: impl ChatModel + 'static) -> Self {
        Fallback {
            models: vec![Arc::new(model)],
            answer: None,
            when: Box::new(is_of_model),
            tries: 3,
            patience_ms: 5_000,
            calls: Mutex::default(),
        }
    }

    /// Adds the next model.
    #[must_use]
    pub fn then(mut self, model: impl ChatModel + 'static) -> Self {
        self.models.push(Arc::new(model));
        self
    }

    /// Answers with `text` when all models have failed.
    #[must_use]
    pub fn or_answer(self, text: impl Into<String>) -> Self {
        let text = text.into();
        self.or_else(move |_, _| Some(ChatResponse::text("fallback", text.clone())))
    }

    /// Makes an answer from the request and the last error when all models have failed. `None`
    /// lets the call fail with that error.
    #[must_use]
    pub fn or_else(
        mut self,
        answer: impl Fn(&ChatRequest, &Error) -> Option<ChatResponse> + Send + Sync + 'static,
    ) -> Self {
        self.answer = Some(Box::new(answer));
        self
    }

    /// How often a call is made to the first model before the next one's turn. Default: 3. It must
    /// not be more than the runner's own retries, which make these tries; else the runner gives
    /// up first.
    #[must_use]
    pub fn tries(mut self, tries: u32) -> Self {
        self.tries = tries;
        self
    }

    /// Milliseconds that a model may ask to wait before it is passed over. Default: 5,000.
    #[must_use]
    pub fn patience_ms(mut self, patience_ms: u64) -> Self {
        self.patience_ms = patience_ms;
        self
    }

    /// Which errors let the next model have its turn. Default: those of the model or its provider,
    /// but not a malformed request, nor one that a filter stopped.
    #[must_use]
    pub fn when(mut self, when: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        self.when = Box::new(when);
        self
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether to let the engine wait and make the call to the first model again.
    fn is_worth_a_wait(&self, error: &Error, key: &str) -> bool {
        // Outside of a run a call has no key, and nobody makes it again.
        !key.is_empty()
            && error.is_transient()
            && error.retry_after_ms().is_none_or(|ms| ms <= self.patience_ms)
            && self.calls().count(key) < self.tries
    }
}

/// Whether another model may do better.
fn is_of_model(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Model { fault, .. } => {
            !matches!(fault, ModelFault::InvalidRequest | ModelFault::ContentFiltered)
        }
        _ => false,
    }
}

/// What the first can do, at the highest price of all.
fn worst(mut infos: impl Iterator<Item = ModelInfo>) -> ModelInfo {
    let Some(first) = infos.next() else { return ModelInfo::default() };
    infos.fold(first, |worst, other| worst.at_worst(&other))
}

#[async_trait]
impl ChatModel for Fallback {
    /// The name of the first model.
    fn name(&self) -> &str {
        self.models.first().map_or("fallback", |model| model.name())
    }

    /// What the first model can do, at the highest price in the chain: a budget must reserve for
    /// the worst case. Unknown if the price of any is.
    fn info(&self) -> ModelInfo {
        worst(self.models.iter().map(|model| model.info()))
    }

    fn info_for(&self, request: &ChatRequest, cx: &CallContext) -> ModelInfo {
        worst(self.models.iter().map(|model| model.info_for(request, cx)))
    }

    /// Those of all models of the chain.
    fn identity(&self, cx: &CallContext) -> Cow<'_, str> {
        let all: Vec<Cow<'_, str>> = self.models.iter().map(|model| model.identity(cx)).collect();
        all.join(" else ").into()
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let key = cx.key();
        let mut request = Cow::Borrowed(request);
        let mut last = None;
        for (at, model) in self.models.iter().enumerate() {
            if at > 0 && request.model.is_some() {
                request.to_mut().model = None;
            }
            let error = match model.chat(&request, cx).await {
                Ok(response) => {
                    self.calls().forget(key);
                    return Ok(response);
                }
                Err(error) => error,
            };
            if !(self.when)(&error) {
                self.calls().forget(key);
                return Err(error);
            }
            if at == 0 && self.is_worth_a_wait(&error, key) {
                return Err(error);
            }
            tracing::warn!(model = model.name(), %error, "the model is passed over");
            cx.note("model_passed_over", json!({"model": model.name(), "error": error.to_string()}));
            last = Some(error);
        }
        self.calls().forget(key);
        let error = last.unwrap_or_else(|| Error::invalid("fallback chain", "it has no model"));
        match self.answer.as_ref().and_then(|answer| answer(&request, &error)) {
            Some(response) => {
                cx.note("default_answer", json!({"error": error.to_string()}));
                Ok(response)
            }
            None => Err(error),
        }
    }
}

impl fmt::Debug for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let models: Vec<&str> = self.models.iter().map(|model| model.name()).collect();
        f.debug_struct("Fallback").field("models", &models).finish_non_exhaustive()
    }
}
