//! Waits: for a person, a time, a signal.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::oneshot;

use super::{AgentContext, Intent, Stand, replayed};
use crate::driver::ToDriver;
use crate::error::Error;
#[expect(unused_imports, reason = "named in the documentation")]
use crate::error::ErrorKind;
use crate::event::{EffectKind, Question, Spent};
use crate::hash::digest;
use crate::payload::{Data, Payload};
use crate::tool::EffectClass;

/// A question before it is asked; with `default`, what is taken for an answer after so many
/// milliseconds.
pub(super) struct Asking {
    pub(super) label: Arc<str>,
    pub(super) question: Payload,
    pub(super) answer_schema: Value,
    pub(super) default: Option<(u64, Payload)>,
}

impl AgentContext {
    /// Asks a person and waits for the answer, however long that takes: the process may exit
    /// meanwhile, and another may take the answer. Many questions may be open at once; the first answer
    /// counts. An answer is given with [`Run::answer`](crate::Run::answer).
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if the answer is not an `A`;
    /// [`Divergence`](ErrorKind::Divergence) on replay.
    pub async fn ask<Q: Data, A: Data>(&mut self, label: &str, question: &Q) -> Result<A, Error> {
        let schema = schemars::schema_for!(A).to_value();
        self.ask_person(label, Payload::new(question.clone()), schema, None).await?.get()
    }

    /// [`ask`](Self::ask), but takes `default` if no answer has come after `deadline_ms`
    /// milliseconds.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn ask_within<Q: Data, A: Data>(
        &mut self,
        label: &str,
        question: &Q,
        deadline_ms: u64,
        default: A,
    ) -> Result<A, Error> {
        let schema = schemars::schema_for!(A).to_value();
        let default = Some((deadline_ms, Payload::new(default)));
        self.ask_person(label, Payload::new(question.clone()), schema, default).await?.get()
    }

    async fn ask_person(
        &mut self,
        label: &str,
        question: Payload,
        answer_schema: Value,
        default: Option<(u64, Payload)>,
    ) -> Result<Payload, Error> {
        let asking = Asking { label: label.into(), question, answer_schema, default };
        match self.ask_all(vec![asking]).await?.pop() {
            Some((_, answer)) => answer,
            None => std::future::pending().await,
        }
    }

    /// Asks several questions at once and waits for all answers: each with its question's id, in the
    /// order of the questions.
    pub(super) async fn ask_all(
        &mut self,
        asking: Vec<Asking>,
    ) -> Result<Vec<(Arc<str>, Result<Payload, Error>)>, Error> {
        let intents = asking.iter().map(|asking| {
            let (effect, label) = (EffectKind::Ask, asking.label.clone());
            Ok(Intent { effect, label, digest: digest(&asking.question)?, class: EffectClass::Pure })
        });
        let intents = intents.collect::<Result<Vec<_>, Error>>()?;
        let first = self.take(u32::try_from(asking.len()).unwrap_or(u32::MAX));
        let asked_ms: Vec<Option<u64>> = (first..)
            .take(asking.len())
            .map(|index| self.log.effect(index).map(|recorded| recorded.at_ms))
            .collect();
        let stands = self.begin(first, &intents).await?;
        let waits = stands.iter().any(|stand| !matches!(stand, Stand::Done(_)));
        let this = &*self;
        let answers = asking.into_iter().zip(intents).zip(stands).zip(asked_ms).zip(first..).map(
            |((((asking, intent), stand), asked_ms), index)| async move {
                let id = Question::id_of(&this.step.path, this.attempt, index, &intent.digest);
                let answer = match stand {
                    Stand::Done(outcome) => replayed(outcome),
                    _ => {
                        let result = Ok(this.wait_for_answer(id.clone(), asking, asked_ms).await);
                        this.end(index, &result, Spent::default()).await;
                        result
                    }
                };
                (id, answer)
            },
        );
        let answers = futures_util::future::join_all(answers);
        // Meanwhile others may have the agent's permit.
        if waits { self.presence.wait(answers).await } else { Ok(answers.await) }
    }

    async fn wait_for_answer(&self, id: Arc<str>, asking: Asking, asked_ms: Option<u64>) -> Payload {
        let Asking { label, question, answer_schema, default } = asking;
        let now_ms = self.run.ports.clock.now_ms();
        let deadline_ms = default.as_ref().map(|(ms, _)| asked_ms.unwrap_or(now_ms).saturating_add(*ms));
        let question = Question { id: id.clone(), label, question, answer_schema, deadline_ms };
        let answer = self.run.ask(self.step.path.clone(), Arc::new(question));
        let Some(((_, default), deadline_ms)) = default.zip(deadline_ms) else { return answer.await };
        tokio::pin!(answer);
        let wait = Duration::from_millis(deadline_ms.saturating_sub(now_ms));
        match tokio::time::timeout(wait, &mut answer).await {
            Ok(answer) => answer,
            Err(_) => {
                // Recorded like any other answer, so that one that comes at the same time is
                // either before it or too late.
                self.run.answer(id, default, "deadline".into()).await;
                answer.await
            }
        }
    }

    /// Waits so many milliseconds. The wait survives restarts: what has passed of it counts.
    ///
    /// # Errors
    /// [`Divergence`](ErrorKind::Divergence) on replay.
    pub async fn sleep_ms(&mut self, ms: u64) -> Result<(), Error> {
        let began_ms = self.log.effect(self.next).map(|recorded| recorded.at_ms);
        let intent = Intent {
            effect: EffectKind::Timer,
            label: "wait".into(),
            digest: ms.to_string(),
            class: EffectClass::Pure,
        };
        let clock = self.run.ports.clock.clone();
        self.wait(intent, |_| async move {
            let now_ms = clock.now_ms();
            let due_ms = began_ms.unwrap_or(now_ms).saturating_add(ms);
            tokio::time::sleep(Duration::from_millis(due_ms.saturating_sub(now_ms))).await;
            Ok(())
        })
        .await
    }

    /// Waits for a signal of this name and gives what came with it. Signals that come before they
    /// are waited for are kept; each is taken once, in the order in which they came.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if what came is not a `T`;
    /// [`Divergence`](ErrorKind::Divergence) on replay.
    pub async fn signal<T: Data>(&mut self, name: &str) -> Result<T, Error> {
        self.wait_for_signal(name).await?.get()
    }

    async fn wait_for_signal(&mut self, name: &str) -> Result<Payload, Error> {
        let intent = Intent {
            effect: EffectKind::Signal,
            label: name.into(),
            digest: String::new(),
            class: EffectClass::Pure,
        };
        let (run, name) = (self.run.clone(), intent.label.clone());
        self.wait(intent, |_| async move {
            let (reply, signal) = oneshot::channel();
            run.send(ToDriver::AwaitSignal { name, reply }).await;
            match signal.await {
                Ok(payload) => Ok(payload),
                Err(_) => std::future::pending().await,
            }
        })
        .await
    }

    /// As [`perform`](Self::perform), for a wait: meanwhile others may have the agent's permit.
    async fn wait<T, F>(&mut self, intent: Intent, act: impl FnOnce(Arc<str>) -> F) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, Error>>,
    {
        let index = self.take(1);
        if let Stand::Done(outcome) = self.begin(index, std::slice::from_ref(&intent)).await?.remove(0) {
            return replayed(outcome);
        }
        let waiting = async {
            let result = act(self.key(index)).await;
            // Recorded while it still waits, so that what came is not lost for want of a permit.
            self.end(index, &result, Spent::default()).await;
            result
        };
        self.presence.wait(waiting).await?
    }
}
