//! Answers that are paid for once.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{
    Cache, CallContext, ChatModel, ChatRequest, ChatResponse, Clock, Error, ErrorKind, ModelFault,
    StopReason, SystemClock, Usage, Usd, sha256_hex,
};
use serde::{Deserialize, Serialize};

use crate::note;
use crate::pool::Probe;
use crate::relay::tell_whole;

mod similar;

use similar::Question;
pub use similar::Similar;

/// A model whose answers are kept: an equal request is answered from memory, and equal requests at the same time are
/// one call.
///
/// - Requests are equal if everything in them is: the whole conversation, tools, schema and settings, in whatever order
///   their fields stand, and the model's [identity](ChatModel::identity) with them: where it is, what is sent along, and
///   at a [`Router`](crate::Router) what the agent needs.
/// - Only agents that are [named](Cached::for_agents) are served, unless [all](Cached::for_all) are: for most agents a
///   second answer to the same question is worth having.
/// - Only whole answers are kept: none that was cut by a limit, refused or filtered, and no error.
/// - An answer from the cache used no tokens and cost nothing, and its response says so. What it saved is in
///   [`stats`](Cached::stats), and in a run it is noted as `cache_hit`.
/// - Questions that mean the same may have the same answer, see [`Similar`]; without it only equal ones do.
/// - Behind the memory of this process another [`Cache`] may stand, to be shared or to outlive it. If that one fails,
///   the model is asked: a cache may lose things.
///
/// ```
/// use coral_core::{CallContext, ChatModel, ChatRequest};
/// use coral_llm::{Cached, ScriptedModel};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), coral_core::Error> {
/// let model = Cached::new(ScriptedModel::new().reply("once")).for_all();
/// for _ in 0..3 {
///     let answer = model.chat(&ChatRequest::user("?"), &CallContext::default()).await?;
///     assert_eq!(answer.message.text(), "once");
/// }
/// assert_eq!((model.stats().hits, model.stats().misses), (2, 1));
/// # Ok(()) }
/// ```
pub struct Cached<M> {
    model: M,
    agents: Option<BTreeSet<Arc<str>>>,
    kept: moka::future::Cache<Key, Arc<Entry>>,
    behind: Option<Arc<dyn Cache>>,
    similar: Option<Similar>,
    ttl: Duration,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    similar: AtomicU64,
    misses: AtomicU64,
    saved_pico: AtomicU64,
    saved_tokens: AtomicU64,
}

/// What a [`Cached`] model did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheStats {
    /// Answers from the cache, those included that waited for an equal call.
    pub hits: u64,
    /// The part of the hits that answered another question, which means the same.
    pub similar: u64,
    /// Answers of the model.
    pub misses: u64,
    /// What the hits would have cost.
    pub saved: Usd,
    /// The tokens that the hits would have used.
    pub saved_tokens: u64,
}

impl CacheStats {
    /// The part of all answers that came from the cache.
    pub fn hit_ratio(&self) -> f64 {
        let all = self.hits + self.misses;
        if all == 0 { 0.0 } else { self.hits as f64 / all as f64 }
    }
}

/// The request's bytes themselves: comparing them costs less than a hash that nobody can forge.
#[derive(Clone)]
struct Key(Arc<[u8]>);

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    response: ChatResponse,
    /// What it takes up, for keeping the cache in its bounds.
    bytes: u32,
    /// Until when it is good, in milliseconds since the Unix epoch, for whoever finds it in the cache behind.
    until_ms: u64,
}

/// An answer lives as long as it was said to when it was given, wherever it was kept since.
struct UntilThen;

impl moka::Expiry<Key, Arc<Entry>> for UntilThen {
    fn expire_after_create(&self, _: &Key, entry: &Arc<Entry>, _: std::time::Instant) -> Option<Duration> {
        Some(Duration::from_millis(entry.until_ms.saturating_sub(SystemClock.now_ms())))
    }
}

/// The version of what the cache behind holds.
const FORMAT: &str = "chat2";

impl<M: ChatModel> Cached<M> {
    /// Keeps answers of `model` for a day, at most 64 MiB of them, for no agent yet.
    pub fn new(model: M) -> Self {
        Cached {
            model,
            agents: Some(BTreeSet::new()),
            kept: memory(64 << 20),
            behind: None,
            similar: None,
            ttl: Duration::from_secs(86_400),
            counts: Counts::default(),
        }
    }

    /// Serves these agents.
    #[must_use]
    pub fn for_agents<I: Into<Arc<str>>>(mut self, agents: impl IntoIterator<Item = I>) -> Self {
        self.agents.get_or_insert_default().extend(agents.into_iter().map(Into::into));
        self
    }

    /// Serves every caller.
    #[must_use]
    pub fn for_all(mut self) -> Self {
        self.agents = None;
        self
    }

    /// Sets how much is kept in memory, and for how long. What was kept so far is forgotten.
    #[must_use]
    pub fn keeping(mut self, bytes: u64, ttl: Duration) -> Self {
        self.kept = memory(bytes);
        self.ttl = ttl;
        self
    }

    /// Puts another cache behind the memory.
    #[must_use]
    pub fn behind(mut self, cache: Arc<dyn Cache>) -> Self {
        self.behind = Some(cache);
        self
    }

    /// Answers questions that mean the same with the same answer.
    #[must_use]
    pub fn similar(mut self, similar: Similar) -> Self {
        self.similar = Some(similar);
        self
    }

    /// What was saved so far.
    pub fn stats(&self) -> CacheStats {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CacheStats {
            hits: read(&self.counts.hits),
            similar: read(&self.counts.similar),
            misses: read(&self.counts.misses),
            saved: Usd::from_pico(read(&self.counts.saved_pico)),
            saved_tokens: read(&self.counts.saved_tokens),
        }
    }

    /// The model itself.
    pub fn inner(&self) -> &M {
        &self.model
    }

    fn key(&self, request: &ChatRequest, cx: &CallContext) -> Option<Key> {
        let mut bytes = Vec::with_capacity(1_024);
        bytes.extend_from_slice(self.model.identity(cx).as_bytes());
        bytes.push(0);
        // What is kept under a key may be an answer to another question, which is not for everyone.
        if let Some(similar) = &self.similar {
            bytes.extend_from_slice(similar.circle(cx.caller()).as_bytes());
            bytes.push(0);
        }
        // The fields of schemas and arguments have one order.
        if sorts_objects() {
            serde_json::to_writer(&mut bytes, request).ok()?;
        } else {
            let mut request = serde_json::to_value(request).ok()?;
            request.sort_all_objects();
            serde_json::to_writer(&mut bytes, &request).ok()?;
        }
        Some(Key(bytes.into()))
    }

    /// Asks what stands behind, then who asked something alike, then the model; remembers a whole answer everywhere.
    async fn fill(
        &self,
        key: &Key,
        request: &ChatRequest,
        cx: &CallContext,
    ) -> Result<(Arc<Entry>, Source), Unkept> {
        let far = self.behind.as_ref().map(|cache| (cache, format!("{FORMAT}/{}", sha256_hex(&key.0))));
        if let Some((cache, name)) = &far {
            match cache.get(name).await {
                Ok(Some(bytes)) => {
                    let entry = serde_json::from_slice::<Entry>(&bytes).ok();
                    if let Some(entry) = entry.filter(|entry| entry.until_ms > SystemClock.now_ms()) {
                        return Ok((Arc::new(entry), Source::Equal));
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "the cache behind can't be read"),
            }
        }
        let question = self.question(request, cx).await;
        if let Some((similar, question)) = &question
            && let Some((entry, alike)) = similar.find(question)
        {
            let source = Source::Alike { cosine: alike, tokens: question.tokens, cost: question.cost };
            return Ok((entry, source));
        }
        let mut response = self.model.chat(request, cx).await.map_err(Unkept::Error)?;
        let asked = question.as_ref().map(|(_, question)| (question.tokens, question.cost));
        if !matches!(response.stop, StopReason::End | StopReason::ToolCalls | StopReason::StopText) {
            add(&mut response, asked);
            return Err(Unkept::Answer(Box::new(response)));
        }
        let ttl = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let mut entry = Entry { response, bytes: 0, until_ms: SystemClock.now_ms().saturating_add(ttl) };
        let bytes = serde_json::to_vec(&entry).unwrap_or_default();
        entry.bytes = u32::try_from(bytes.len() + key.0.len()).unwrap_or(u32::MAX);
        if let Some((cache, name)) = &far
            && let Err(error) = cache.put(name, bytes.into(), Some(ttl)).await
        {
            tracing::warn!(%error, "the cache behind can't be written");
        }
        let entry = Arc::new(entry);
        if let Some((similar, question)) = question {
            similar.remember(question, &entry, self.ttl);
        }
        Ok((entry, Source::Model { embedded: asked }))
    }

    /// The question as a vector. If the embedder fails, the model is asked.
    async fn question(&self, request: &ChatRequest, cx: &CallContext) -> Option<(&Similar, Question)> {
        let similar = self.similar.as_ref()?;
        match similar.question(&self.model.identity(cx), request, cx.caller()).await {
            Ok(question) => Some((similar, question?)),
            Err(error) => {
                tracing::warn!(%error, "the question can't be compared with others");
                None
            }
        }
    }

    /// The response of a hit, counted and noted.
    fn hit(&self, kept: &ChatResponse, source: Source, cx: &CallContext) -> ChatResponse {
        let mut response = kept.clone();
        let saved = (response.usage.total_tokens(), response.cost.unwrap_or_default());
        self.counts.hits.fetch_add(1, Ordering::Relaxed);
        self.counts.saved_tokens.fetch_add(saved.0, Ordering::Relaxed);
        self.counts.saved_pico.fetch_add(saved.1.as_pico(), Ordering::Relaxed);
        response.usage = Usage::default();
        response.cost = Some(Usd::ZERO);
        let mut alike = None;
        if let Source::Alike { cosine, tokens, cost } = source {
            self.counts.similar.fetch_add(1, Ordering::Relaxed);
            add(&mut response, Some((tokens, cost)));
            alike = Some(cosine);
        }
        note::cache_hit(cx, &response.model, alike, saved.0, saved.1);
        tell_whole(&response, cx);
        response
    }
}

/// Where an answer came from.
#[derive(Clone, Copy)]
enum Source {
    /// The same question was asked before.
    Equal,
    /// A question was asked before that means the same. What finding out used and cost.
    Alike { cosine: f32, tokens: u64, cost: Option<Usd> },
    /// The model, and what looking for a question alike used and cost.
    Model { embedded: Option<(u64, Option<Usd>)> },
}

/// Adds what the embedder used and cost.
fn add(response: &mut ChatResponse, embedded: Option<(u64, Option<Usd>)>) {
    let Some((tokens, cost)) = embedded else { return };
    response.usage.input_tokens += tokens;
    if let Some(cost) = cost {
        response.cost = Some(response.cost.unwrap_or_default() + cost);
    }
}

/// Whether `serde_json` keeps the fields of objects in the order of their names: it does, unless some crate of the build
/// has turned its `preserve_order` on. Builds of either kind only find nothing under each other's keys.
fn sorts_objects() -> bool {
    static SORTS: LazyLock<bool> =
        LazyLock::new(|| serde_json::json!({"b": 0, "a": 0}).to_string().starts_with(r#"{"a""#));
    *SORTS
}

fn memory(bytes: u64) -> moka::future::Cache<Key, Arc<Entry>> {
    moka::future::Cache::builder()
        .max_capacity(bytes)
        .weigher(|_: &Key, entry: &Arc<Entry>| entry.bytes)
        .expire_after(UntilThen)
        .build()
}

/// An outcome that is not kept, on its way through the cache.
enum Unkept {
    Error(Error),
    Answer(Box<ChatResponse>),
}

#[async_trait]
impl<M: ChatModel> ChatModel for Cached<M> {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn inner(&self) -> Option<&dyn ChatModel> {
        Some(&self.model)
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let served = self.agents.as_ref().is_none_or(|agents| agents.contains(&cx.caller().agent));
        let Some(key) = served.then(|| self.key(request, cx)).flatten() else {
            return self.model.chat(request, cx).await;
        };
        if let Some(entry) = self.kept.get(&key).await {
            return Ok(self.hit(&entry.response, Source::Equal, cx));
        }
        // One of all equal calls runs; the others wait for what it brings. If it is dropped, the next one runs.
        let mut mine = None;
        let brought = self
            .kept
            .try_get_with_by_ref(&key, async {
                let outcome = self.fill(&key, request, cx).await;
                let source = outcome.as_ref().map_or(Source::Model { embedded: None }, |(_, source)| *source);
                mine = Some(source);
                outcome.map(|(entry, _)| entry)
            })
            .await;
        match (brought, mine) {
            (Ok(entry), Some(Source::Model { embedded })) => {
                self.counts.misses.fetch_add(1, Ordering::Relaxed);
                let mut response = entry.response.clone();
                add(&mut response, embedded);
                Ok(response)
            }
            (Ok(entry), source) => Ok(self.hit(&entry.response, source.unwrap_or(Source::Equal), cx)),
            (Err(unkept), mine) => match (&*unkept, mine) {
                (Unkept::Answer(response), Some(_)) => {
                    self.counts.misses.fetch_add(1, Ordering::Relaxed);
                    Ok((**response).clone())
                }
                (Unkept::Answer(response), None) => Ok(self.hit(response, Source::Equal, cx)),
                // The one that ran may have had less time or money than this one.
                (Unkept::Error(error), None) if !is_for_all(error) => self.model.chat(request, cx).await,
                (Unkept::Error(error), _) => Err(error.clone()),
            },
        }
    }
}

/// Whether an error would be every caller's: the provider's word, which does not hang on the terms of the call.
fn is_for_all(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Model { fault, .. } if *fault != ModelFault::Timeout)
}

#[async_trait]
impl<M: Probe> Probe for Cached<M> {
    async fn probe(&self) -> Result<(), Error> {
        self.model.probe().await
    }
}

impl<M: ChatModel> fmt::Debug for Cached<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached")
            .field("model", &self.model.name())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
