//! Answers to questions that mean the same.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coral_core::{Caller, ChatRequest, Error, Part, Role, Usd, digest};
use tokio::time::Instant;

use super::Entry;
use crate::embed::{Embedder, Embedding};

/// Lets a [`Cached`](super::Cached) model answer a question with the answer to one that means the same.
///
/// Two requests are alike if all of them is equal but the text of the last message, the texts name the same numbers,
/// and the angle between the texts' vectors is small. They must come from the same agent of the same project, unless it
/// is [said](Similar::across_agents) otherwise: what one was told is not for all to hear. Vectors are kept in memory
/// alone. What the embedder costs is part of what the call costs, hit or not.
///
/// A likeness is a guess. It suits questions that people ask in many words, and no work whose input differs in
/// details.
///
/// ```
/// # use coral_llm::{Cached, Embedder, OfflineModel, Similar};
/// # fn f(embedder: impl Embedder + 'static) {
/// let model = Cached::new(OfflineModel::new()).for_agents(["support"]).similar(Similar::new(embedder).threshold(0.97));
/// # }
/// ```
pub struct Similar {
    embedder: Arc<dyn Embedder>,
    threshold: f32,
    most: usize,
    across_agents: bool,
    across_projects: bool,
    /// Oldest first.
    known: Mutex<VecDeque<Known>>,
}

struct Known {
    /// All of the request but the text of its last message.
    scope: Arc<str>,
    numbers: Vec<String>,
    vector: Vec<f32>,
    entry: Arc<Entry>,
    until: Instant,
}

/// A question on its way through the cache.
pub(super) struct Question {
    scope: Arc<str>,
    numbers: Vec<String>,
    /// Its vector, of length one.
    vector: Vec<f32>,
    /// Tokens that the embedder counted.
    pub(super) tokens: u64,
    /// What the embedder cost.
    pub(super) cost: Option<Usd>,
}

impl Similar {
    /// Compares by the vectors of `embedder`. Texts are alike from a cosine of 0.95 on, and the last 4,096 questions
    /// are remembered.
    pub fn new(embedder: impl Embedder + 'static) -> Self {
        Similar {
            embedder: Arc::new(embedder),
            threshold: 0.95,
            most: 4_096,
            across_agents: false,
            across_projects: false,
            known: Mutex::default(),
        }
    }

    /// Sets the least cosine at which texts are alike, up to 1.0 for vectors that point the same way. What is good
    /// depends on the embedder: try it with questions of your own.
    #[must_use]
    pub fn threshold(mut self, cosine: f32) -> Self {
        self.threshold = cosine;
        self
    }

    /// Sets how many questions are remembered. A new one is compared with each that could answer it.
    #[must_use]
    pub fn remembering(mut self, questions: usize) -> Self {
        self.most = questions.max(1);
        self
    }

    /// Lets agents have each other's answers.
    #[must_use]
    pub fn across_agents(mut self) -> Self {
        self.across_agents = true;
        self
    }

    /// Lets projects have each other's answers.
    #[must_use]
    pub fn across_projects(mut self) -> Self {
        self.across_projects = true;
        self
    }

    /// Who may have the same answers as `caller`, as part of a key.
    pub(super) fn circle(&self, caller: &Caller) -> String {
        let agent = if self.across_agents { "" } else { &caller.agent };
        let project = if self.across_projects { "" } else { &caller.project };
        format!("{}:{agent}{}:{project}", agent.len(), project.len())
    }

    /// The question that a request asks, if it asks one: its last message is text of the user.
    ///
    /// # Errors
    /// Those of the embedder.
    pub(super) async fn question(
        &self,
        model: &str,
        request: &ChatRequest,
        caller: &Caller,
    ) -> Result<Option<Question>, Error> {
        let Some((last, before)) = request.messages.split_last() else { return Ok(None) };
        if last.role != Role::User || !last.parts.iter().all(|part| matches!(part, Part::Text { .. })) {
            return Ok(None);
        }
        let text = last.text();
        let rest = ChatRequest { messages: before.to_vec(), ..request.clone() };
        let Ok(scope) = digest(&(self.embedder.name(), model, self.circle(caller), rest)) else {
            return Ok(None);
        };
        let Embedding { vector, tokens, cost } = self.embedder.embed(&text).await?;
        let Some(vector) = unit(vector) else { return Ok(None) };
        Ok(Some(Question { scope: scope.into(), numbers: numbers(&text), vector, tokens, cost }))
    }

    /// The answer to the question that is most alike, and how much it is.
    pub(super) fn find(&self, question: &Question) -> Option<(Arc<Entry>, f32)> {
        let now = Instant::now();
        let mut known = self.known();
        // All live equally long, so that the oldest expire first.
        while known.front().is_some_and(|oldest| oldest.until <= now) {
            known.pop_front();
        }
        known
            .iter()
            .filter(|known| known.scope == question.scope && known.numbers == question.numbers)
            .filter(|known| known.vector.len() == question.vector.len())
            .map(|known| (known, cosine(&known.vector, &question.vector)))
            .filter(|(_, alike)| *alike >= self.threshold)
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(known, alike)| (known.entry.clone(), alike))
    }

    /// Remembers an answer.
    pub(super) fn remember(&self, question: Question, entry: &Arc<Entry>, ttl: Duration) {
        let Question { scope, numbers, vector, .. } = question;
        let mut known = self.known();
        while known.len() >= self.most {
            known.pop_front();
        }
        known.push_back(Known { scope, numbers, vector, entry: entry.clone(), until: Instant::now() + ttl });
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The numbers in a text, in order. To an embedder order 41 is as good as order 42.
fn numbers(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty()).map(str::to_owned).collect()
}

/// The vector at length one. `None` if it has no direction.
fn unit(mut vector: Vec<f32>) -> Option<Vec<f32>> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if !length.is_normal() {
        return None;
    }
    for x in &mut vector {
        *x /= length;
    }
    Some(vector)
}

/// The cosine of the angle between two vectors of length one.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

impl fmt::Debug for Similar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Similar")
            .field("embedder", &self.embedder.name())
            .field("threshold", &self.threshold)
            .finish_non_exhaustive()
    }
}
