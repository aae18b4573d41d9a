//! Effects of which a crash left it unknown whether they took place.

use std::sync::Arc;

use serde_json::Value;

use super::{AgentContext, Intent};
use crate::error::{Error, ErrorKind};
use crate::event::Question;
use crate::payload::Payload;
use crate::tool::{Decision, InDoubtEffect, Reconciliation};

/// What a person knows of an effect in doubt.
pub(super) enum Known {
    /// It took place, and gave this, if that is known.
    Happened(Option<Value>),
    /// It may be done now; its intent is recorded again.
    DidNotHappen,
}

impl AgentContext {
    /// Puts an effect before a person that was intended so many times and has no outcome. The
    /// question's id counts the intents: an answer holds for one doubt and not for the next.
    pub(super) async fn ask_what_happened(
        &self,
        index: u32,
        intent: &Intent,
        intents: u32,
        arguments: Option<Value>,
    ) -> Result<Known, Error> {
        let path = self.step.path.clone();
        tracing::warn!(run = %self.run.id, step = %path, effect = %intent.label, "in doubt: a person must say whether it took place");
        let in_doubt =
            InDoubtEffect { effect: intent.label.to_string(), key: self.key(index).to_string(), arguments };
        let question = Question {
            id: format!("{path}#{}:{index}@in-doubt-{intents}", self.attempt).into(),
            label: "needs_reconciliation".into(),
            question: Payload::new(in_doubt),
            answer_schema: schemars::schema_for!(Reconciliation).to_value(),
            deadline_ms: None,
        };
        let asking = self.run.ask(path.clone(), Arc::new(question));
        let answer: Reconciliation = self.presence.wait(asking).await?.get()?;
        match answer.decision {
            Decision::Happened => Ok(Known::Happened(answer.result)),
            Decision::DidNotHappen => {
                self.intend_again(index, intent).await?;
                Ok(Known::DidNotHappen)
            }
            Decision::GiveUp => Err(Error::new(ErrorKind::InDoubt {
                path: path.to_string(),
                index,
                label: intent.label.to_string(),
            })
            .with_help("resuming the run starts a new attempt of the step, which asks again")),
        }
    }
}
