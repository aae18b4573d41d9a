//! How the end of an attempt becomes the next round of another.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Driver;
use crate::error::{Error, ErrorKind};
use crate::event::Event;
use crate::handoff::{OnGap, Returned, ReviewPolicy, Rework, derived_uuid};
use crate::program::Body;
use crate::task::{HandoffMessage, MessageContext, MessageType};

impl Driver {
    /// What is recorded of an attempt that failed: where the step may send work back, and what it
    /// failed for is such a case, that; else nothing, and the reason to fail with.
    pub(super) fn sent_back(&self, at: usize, attempt: u32, error: Error) -> Result<Event, Error> {
        let Some((program, local)) = self.body(at) else { return Err(error) };
        let Some(step) = program.steps.get(local) else { return Err(error) };
        let Some(path) = self.machine.path(at).cloned() else { return Err(error) };
        let policy = &step.place.review;
        let Some(findings) = self.findings(at, &path, policy, &error) else { return Err(error) };
        let round = self.machine.rounds(at) + 1;
        if round > policy.max_rounds {
            let rounds = policy.max_rounds;
            return Err(error.with_help(format!("`{path}` sent this back {rounds} times, and its `max_rounds` allow no more; resuming the run allows as many again")));
        }
        let returned = findings
            .into_iter()
            .map(|(to, findings)| {
                let message = self.message(at, &path, attempt, to, findings)?;
                Some(Returned { to: self.machine.path(to)?.clone(), message: Arc::new(message) })
            })
            .collect::<Option<Vec<_>>>();
        match returned {
            Some(returned) => Ok(Event::SentBack { path, attempt, round, returned }),
            None => Err(error),
        }
    }

    /// What is to be mended, by the step that owes it; nothing where the error is no such case.
    fn findings(
        &self,
        at: usize,
        path: &str,
        policy: &ReviewPolicy,
        error: &Error,
    ) -> Option<BTreeMap<usize, Vec<String>>> {
        let mut by_step: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        match error.kind() {
            ErrorKind::MissingDependency { step, missing }
                if policy.on_gap == OnGap::SendBack && step == path =>
            {
                for kind in missing {
                    let finding = format!(
                        "`{path}` needs the deliverable `{kind}`, and it was not delivered: write it, and list it among your deliverables."
                    );
                    by_step.entry(self.owes(at, kind)?).or_default().push(finding);
                }
            }
            ErrorKind::Rejected { step, findings } if step == path => {
                for finding in findings {
                    let to = self.machine.sibling(at, policy.reviewed(&finding.to)?)?;
                    // What was skipped has nobody who could mend it.
                    self.machine.state(to)?.output()?;
                    by_step.entry(to).or_default().push(finding.finding.clone());
                }
            }
            _ => return None,
        }
        (!by_step.is_empty()).then_some(by_step)
    }

    /// The nearest step before `at` that worked, and whose agent promises deliverables of this type.
    fn owes(&self, at: usize, kind: &str) -> Option<usize> {
        self.machine.before(at).into_iter().find(|before| {
            let worked = self.machine.state(*before).and_then(|state| state.output()).is_some();
            let promises = || {
                let (program, local) = self.body(*before)?;
                let step = program.steps.get(local)?;
                let is_agent = matches!(step.body, Body::Agent { .. });
                Some(is_agent && step.spec.outputs.iter().any(|output| output.kind == kind))
            };
            worked && promises().unwrap_or(false)
        })
    }

    /// The message to the step that is to work again.
    fn message(
        &self,
        at: usize,
        path: &str,
        attempt: u32,
        to: usize,
        findings: Vec<String>,
    ) -> Option<HandoffMessage> {
        let to_path = self.machine.path(to)?;
        let agent = |step: usize| self.machine.data(step)?.kind.agent().map(|id| id.to_string());
        let handed_over = self.messages.get(&(to_path.clone(), path.into()));
        let deliverables =
            handed_over.map(|message| message.context.deliverables.clone()).unwrap_or_default();
        let number = attempt.to_string();
        Some(HandoffMessage {
            message_id: derived_uuid(&[&self.shared.id, path, &number, to_path, "review"]),
            timestamp: crate::clock::rfc3339(self.shared.ports.clock.now_ms()),
            from_agent: agent(at)?,
            to_agent: agent(to)?,
            message_type: MessageType::Review,
            context: MessageContext {
                project: self.shared.project.to_string(),
                phase: self.machine.data(at)?.phase.to_string(),
                deliverables,
            },
            next_tasks: findings,
        })
    }

    /// What came before the present round of a step; nothing in its first.
    pub(super) fn rework(&self, at: usize) -> Option<Arc<Rework>> {
        let previous = self.machine.previous(at).cloned();
        let messages = self.machine.path(at).and_then(|path| self.reviews.get(path)).cloned();
        (previous.is_some() || messages.is_some())
            .then(|| Arc::new(Rework { previous, messages: messages.unwrap_or_default() }))
    }
}
