//! Tool calls: recorded, approved by a person where they must be, and reconciled after a crash.

use std::sync::Arc;

use serde_json::json;

use super::effect::Reserved;
use super::{AgentContext, Intent, Stand, replayed};
use crate::context::doubt::Known;
use crate::context::waits::Asking;
use crate::error::{Error, ErrorKind};
use crate::event::{EffectKind, Spent};
use crate::hash::digest;
use crate::payload::Payload;
use crate::tool::{
    Approval, ApprovalAnswer, ApprovalRequest, EffectClass, Reconciled, ToolCall, ToolDef, ToolOutput,
};

impl AgentContext {
    /// The tools that this agent may call here. Listed once a step; the list is recorded, so that
    /// a resumed step sees the same tools.
    ///
    /// # Errors
    /// [`Tool`](ErrorKind::Tool), or [`Divergence`](ErrorKind::Divergence) on replay.
    pub async fn tools(&mut self) -> Result<Arc<[ToolDef]>, Error> {
        if let Some(tools) = &self.tools {
            return Ok(tools.clone());
        }
        let toolbox = self.run.ports.tools.clone();
        let caller = self.caller.clone();
        let intent = Intent {
            effect: EffectKind::ListTools,
            label: "tools".into(),
            digest: String::new(),
            class: EffectClass::Pure,
        };
        let tools: Vec<ToolDef> =
            self.perform(intent, |_| async move { toolbox.list(&caller).await }).await?;
        let tools: Arc<[ToolDef]> = tools.into();
        self.tools = Some(tools.clone());
        Ok(tools)
    }

    /// Calls one tool.
    ///
    /// # Errors
    /// As [`call_tools`](Self::call_tools) gives them for each call.
    pub async fn call_tool(&mut self, call: &ToolCall) -> Result<ToolOutput, Error> {
        self.call_tools(std::slice::from_ref(call)).await?.pop().unwrap_or_else(|| Ok(ToolOutput::text("")))
    }

    /// Calls several tools at once and gives their outputs in the order of the calls. One that
    /// fails does not take the others with it.
    ///
    /// A call that a person must approve waits for that: the question is an [`ApprovalRequest`] under the
    /// label `approve_tool_call`, and its id holds for these very arguments. One that a crash cut off is
    /// made again, looked for, or put before a person as an [`InDoubtEffect`](crate::InDoubtEffect), as
    /// its tool's [`EffectClass`] says.
    ///
    /// # Errors
    /// Outside, what stops the step: [`Divergence`](ErrorKind::Divergence) on replay. Inside, each
    /// call's own: [`Denied`](ErrorKind::Denied), [`Tool`](ErrorKind::Tool), and
    /// [`InDoubt`](ErrorKind::InDoubt) when nobody can tell whether it took place.
    pub async fn call_tools(&mut self, calls: &[ToolCall]) -> Result<Vec<Result<ToolOutput, Error>>, Error> {
        let none = vec![None; calls.len()];
        let mut outcomes = self.make_calls(calls, none).await?;
        let wanted: Vec<(usize, &ToolCall, String)> = outcomes
            .iter()
            .zip(calls)
            .enumerate()
            .filter_map(|(at, (outcome, call))| match outcome.as_ref().err()?.kind() {
                ErrorKind::NeedsApproval { reason, .. } => Some((at, call, reason.clone())),
                _ => None,
            })
            .collect();
        if wanted.is_empty() {
            return Ok(outcomes);
        }
        let schema = schemars::schema_for!(ApprovalAnswer).to_value();
        let questions = wanted.iter().map(|(_, call, reason)| Asking {
            label: "approve_tool_call".into(),
            question: Payload::new(ApprovalRequest {
                agent: self.spec.id.clone(),
                tool: call.name.clone(),
                arguments: call.arguments.clone(),
                reason: reason.clone(),
            }),
            answer_schema: schema.clone(),
            default: None,
        });
        let answers = self.ask_all(questions.collect()).await?;
        let (mut approved, mut approvals, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for ((at, call, _), (id, answer)) in wanted.into_iter().zip(answers) {
            let answer: ApprovalAnswer = answer.and_then(|answer| answer.get())?;
            if answer.approved {
                places.push(at);
                approved.push(call.clone());
                approvals.push(Some(Approval::new(call.clone(), id)));
            } else if let Some(outcome) = outcomes.get_mut(at) {
                *outcome = Err(Error::new(ErrorKind::Denied {
                    agent: self.spec.id.clone(),
                    action: call.name.clone(),
                    reason: answer.reason.unwrap_or_else(|| "a person refused it".to_owned()),
                }));
            }
        }
        for (at, made) in places.into_iter().zip(self.make_calls(&approved, approvals).await?) {
            if let Some(outcome) = outcomes.get_mut(at) {
                *outcome = made;
            }
        }
        Ok(outcomes)
    }

    async fn make_calls(
        &mut self,
        calls: &[ToolCall],
        approvals: Vec<Option<Approval>>,
    ) -> Result<Vec<Result<ToolOutput, Error>>, Error> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let tools = self.tools().await?;
        let class = |name: &str| {
            tools.iter().find(|tool| tool.name == name).map(|tool| tool.effect).unwrap_or_default()
        };
        let intents = calls
            .iter()
            .map(|call| {
                Ok(Intent {
                    effect: EffectKind::Tool,
                    label: call.name.as_str().into(),
                    digest: digest(&json!([call.name, call.arguments]))?,
                    class: class(&call.name),
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let first = self.take(u32::try_from(calls.len()).unwrap_or(u32::MAX));
        let stands = self.begin_calls(first, &intents).await?;
        let origins: Vec<_> =
            intents.iter().zip(first..).map(|(intent, index)| self.set_out(index, intent)).collect();
        let open = stands.iter().filter(|stand| !matches!(stand, Stand::Done(_))).count();
        let this = &*self;
        let fan_out = this.presence.fan_out(open.max(1));
        let made = calls.iter().zip(stands).zip(&intents).zip(approvals).zip(first..).map(
            |((((call, stand), intent), approval), index)| async move {
                match stand {
                    Stand::Done(outcome) => replayed(outcome),
                    Stand::Refused(error) => Err(error),
                    stand => {
                        let result = this.carry_out_tool(call, intent, stand, approval, index).await;
                        this.presence.end_branch().await;
                        result
                    }
                }
            },
        );
        let results = futures_util::future::join_all(made).await;
        drop(fan_out);
        for (origin, result) in origins.into_iter().zip(&results) {
            self.arrive(origin, result);
        }
        Ok(results)
    }

    /// Makes the intents of calls durable, if the budgets allow all of those that are to be made now. Of effects in
    /// doubt it is first to be seen whether they are to be done.
    async fn begin_calls(&mut self, first: u32, intents: &[Intent]) -> Result<Vec<Stand>, Error> {
        let (stands, mut events) = self.stands(first, intents)?;
        let refusal = stands.iter().find_map(|stand| match stand {
            Stand::Refused(error) => Some(error.clone()),
            _ => None,
        });
        if let Some(error) = refusal {
            return Err(error);
        }
        let to_make = || {
            let stands = stands.iter().zip(intents).zip(first..);
            stands
                .filter(|((stand, _), _)| matches!(stand, Stand::Go))
                .map(|((_, intent), index)| (intent, index))
        };
        let reserved = to_make().map(|(intent, index)| {
            let total = self.once_more(index, intent);
            Reserved::new(&self.run, &self.step.path, index, total)
        });
        match reserved.collect::<Result<Vec<_>, Error>>() {
            Ok(reserved) => {
                let again = to_make().zip(&reserved);
                let again = again.filter_map(|((intent, index), reserved)| {
                    self.intended_again(index, intent, reserved.total)
                });
                events.extend(again);
                self.intend(events, reserved).await?;
                Ok(stands)
            }
            Err(error) => {
                let refused: Vec<u32> = to_make().map(|(_, index)| index).collect();
                self.refuse(events, refused, &error).await;
                Err(error)
            }
        }
    }

    async fn carry_out_tool(
        &self,
        call: &ToolCall,
        intent: &Intent,
        stand: Stand,
        approval: Option<Approval>,
        index: u32,
    ) -> Result<ToolOutput, Error> {
        let tools = &self.run.ports.tools;
        let (within, mut cx) = self.call_context(index, intent);
        within.begin(self.held(index));
        if let Some(approval) = approval {
            cx = cx.with_approval(approval);
        }
        let mut tries = 0;
        let known = match stand {
            Stand::Doubt { intents } => self.known_of_tool(call, intent, intents, &cx, index).await,
            _ => Ok(None),
        };
        let result = match known {
            Ok(Some(output)) => Ok(output),
            Ok(None) => {
                within.begin(self.held(index));
                let (result, times) = self.tried(index, intent.class, || tools.call(call, &cx)).await;
                tries = times;
                result
            }
            Err(error) => Err(error),
        };
        let held = within.before();
        let (spent, inside) = within.finish().await;
        self.end(index, &result, Spent { tries, ..spent }.settling(held.plus(inside))).await;
        result
    }

    /// What is known of a call that a crash cut off; `None` if it is to be made.
    async fn known_of_tool(
        &self,
        call: &ToolCall,
        intent: &Intent,
        intents: u32,
        cx: &crate::call::CallContext,
        index: u32,
    ) -> Result<Option<ToolOutput>, Error> {
        if intent.class == EffectClass::Reconcile {
            match self.run.ports.tools.reconcile(call, cx).await? {
                Reconciled::Happened(output) => return Ok(Some(output)),
                Reconciled::DidNotHappen => {
                    self.intend_again(index, intent).await?;
                    return Ok(None);
                }
                Reconciled::Unknown => {}
            }
        }
        match self.ask_what_happened(index, intent, intents, Some(call.arguments.clone())).await? {
            Known::DidNotHappen => Ok(None),
            Known::Happened(None) => {
                Ok(Some(ToolOutput::text("the call took place; what it answered is not known")))
            }
            Known::Happened(Some(serde_json::Value::String(text))) => Ok(Some(ToolOutput::text(text))),
            Known::Happened(Some(value)) => Ok(Some(ToolOutput {
                structured: Some(value.clone()),
                ..ToolOutput::text(value.to_string())
            })),
        }
    }
}
