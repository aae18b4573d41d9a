//! JSON answers that are held against their schema, and mended.

use std::fmt;

use async_trait::async_trait;
use coral_core::{
    CallContext, ChatModel, ChatRequest, ChatResponse, Error, Message, Part, Schema, StopReason,
};
use serde_json::Value;

use crate::note;
use crate::pool::Probe;
use crate::purse::Purse;
use crate::relay::{Relay, added, tell_whole};

/// A model whose JSON answers are held against the schema that was asked for, and mended.
///
/// An answer that wraps its JSON in words or in a code fence is taken out of them. One that does not fit goes back with
/// what is wrong with it, and the model mends it: twice at the most, unless [said otherwise](Repaired::repairs), and
/// within the budget of the call. What all tries used and cost is counted in the response; each is noted as
/// `answer_repaired`. An answer that still does not fit comes back as it is: an error would not say what it cost.
/// It is heard when it is there, not while it comes. Requests without a schema, and answers that call tools, pass as
/// they are.
///
/// It stands around any model, and is for those above all that can't be held to a schema, see
/// [`Structured`](crate::Structured). Agents that are data mend their answers by themselves.
///
/// ```
/// use std::sync::Arc;
///
/// use coral_core::{CallContext, ChatModel, ChatRequest, OutputFormat};
/// use coral_llm::{ScriptedModel, Repaired};
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), coral_core::Error> {
/// let model = Repaired::new(ScriptedModel::new().reply("depth: 12").reply(r#"{"depth": 12}"#));
/// let schema = json!({"type": "object", "properties": {"depth": {"type": "integer"}}, "required": ["depth"]});
/// let output = OutputFormat { name: "reef".into(), schema: Arc::new(schema) };
/// let request = ChatRequest { output: Some(output), ..ChatRequest::user("How deep is it?") };
/// let answer = model.chat(&request, &CallContext::default()).await?;
/// assert_eq!(answer.message.text(), r#"{"depth": 12}"#);
/// # Ok(()) }
/// ```
pub struct Repaired<M> {
    model: M,
    repairs: u32,
}

impl<M: ChatModel> Repaired<M> {
    /// Mends the answers of `model`.
    pub fn new(model: M) -> Self {
        Repaired { model, repairs: 2 }
    }

    /// Sets how often an answer may be mended.
    #[must_use]
    pub fn repairs(mut self, repairs: u32) -> Self {
        self.repairs = repairs;
        self
    }

    /// The model itself.
    pub fn inner(&self) -> &M {
        &self.model
    }
}

/// What came of an answer that should fit a schema.
pub(crate) enum Fit {
    /// There is no schema, or the answer is none in words, or it fits.
    Yes,
    /// This part of its text fits.
    Part(String),
    /// What is wrong with it, in one line.
    No(String),
}

/// Holds an answer against the schema that was asked for.
pub(crate) fn fit(request: &ChatRequest, response: &ChatResponse) -> Fit {
    let Some(output) = &request.output else { return Fit::Yes };
    if response.message.tool_calls().next().is_some() {
        return Fit::Yes;
    }
    if response.stop == StopReason::MaxTokens {
        return Fit::No("it was cut off at the limit of output tokens; answer more briefly".to_owned());
    }
    let text = response.message.text();
    let (found, answer) = match json_in(&text) {
        Ok(found) => found,
        Err(error) => return Fit::No(format!("it is not JSON: {error}")),
    };
    let problems = match Schema::new((*output.schema).clone()) {
        Ok(schema) => schema.problems(&answer),
        // A schema that says more than can be checked still says what must be there.
        Err(_) => missing(&output.schema, &answer),
    };
    match problems.as_slice() {
        [] if found.len() == text.trim().len() => Fit::Yes,
        [] => Fit::Part(found.to_owned()),
        problems => Fit::No(problems.join("; ")),
    }
}

/// The JSON in a text: all of it, else the last fenced block, else from the first brace to the last.
fn json_in(text: &str) -> Result<(&str, Value), serde_json::Error> {
    let text = text.trim();
    let whole = serde_json::from_str(text);
    let Err(error) = whole else { return whole.map(|value| (text, value)) };
    let fenced = || {
        let (before, _) = text.rsplit_once("```")?;
        let (_, block) = before.rsplit_once("```")?;
        Some(block.strip_prefix("json").unwrap_or(block).trim())
    };
    let braced = || text.get(text.find('{')?..=text.rfind('}')?);
    let parse = |text| Some((text, serde_json::from_str(text).ok()?));
    fenced().and_then(parse).or_else(|| braced().and_then(parse)).ok_or(error)
}

fn missing(schema: &Value, answer: &Value) -> Vec<String> {
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    let names = required.filter_map(Value::as_str).filter(|name| answer.get(name).is_none());
    names.map(|name| format!("/: `{name}` is missing")).collect()
}

#[async_trait]
impl<M: ChatModel> ChatModel for Repaired<M> {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn inner(&self) -> Option<&dyn ChatModel> {
        Some(&self.model)
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        if request.output.is_none() {
            return self.model.chat(request, cx).await;
        }
        let relay = Relay::new(cx).unheard();
        let mut purse = Purse::of(cx);
        let mut asked = request.clone();
        let mut response = self.model.chat(&asked, &relay.next()).await?;
        for repair in 1..=self.repairs {
            if matches!(response.stop, StopReason::Refusal | StopReason::ContentFilter | StopReason::Pause) {
                break;
            }
            let Fit::No(problem) = fit(request, &response) else { break };
            asked.messages.push(response.message.clone());
            asked.messages.push(Message::user(format!(
                "That answer does not fit: {problem}. Give the whole answer again, mended, as one JSON value and \
                 nothing else."
            )));
            purse.spend(&response);
            let Some(limit) = purse.output_limit(&self.model.info_for(&asked, cx), &asked) else { break };
            asked.max_output_tokens = limit.or(request.max_output_tokens);
            note::answer_repaired(cx, &response.model, &problem);
            // What is there already can still be mended by who asked for it; an error can't.
            let terms = purse.within(relay.next_as("repair", repair as usize));
            let Ok(mended) = self.model.chat(&asked, &terms).await else { break };
            let earlier = std::mem::replace(&mut response, mended);
            response.usage += earlier.usage;
            response.cost = added(response.cost, earlier.cost);
        }
        if let Fit::Part(json) = fit(request, &response) {
            response.message.parts.retain(|part| !matches!(part, Part::Text { .. }));
            response.message.parts.push(Part::Text { text: json });
        }
        tell_whole(&response, cx);
        Ok(response)
    }
}

#[async_trait]
impl<M: Probe> Probe for Repaired<M> {
    async fn probe(&self) -> Result<(), Error> {
        self.model.probe().await
    }
}

impl<M: ChatModel> fmt::Debug for Repaired<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repaired").field("model", &self.model.name()).field("repairs", &self.repairs).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use coral_core::{Budget, ErrorKind, ModelFault, OutputFormat, Usd};
    use serde_json::json;

    use super::*;
    use crate::scripted::{Reply, ScriptedModel};

    fn asked() -> ChatRequest {
        let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}});
        let output = OutputFormat { name: "x".into(), schema: Arc::new(schema) };
        ChatRequest { output: Some(output), ..ChatRequest::user("?") }
    }

    fn paid(text: &str) -> Reply {
        Reply::text(text).usage(10, 1).cost(Usd::from_pico(5))
    }

    async fn ask(replies: Vec<Reply>, cx: &CallContext) -> (ChatResponse, Vec<ChatRequest>) {
        let model = Repaired::new(ScriptedModel::new().replies(replies));
        let response = model.chat(&asked(), cx).await.unwrap();
        (response, model.inner().requests())
    }

    #[tokio::test]
    async fn the_model_hears_what_is_wrong_and_all_tries_are_paid_for() {
        let heard = Arc::new(Mutex::new(String::new()));
        let sink = heard.clone();
        let cx =
            CallContext::default().on_delta(move |delta| sink.lock().unwrap().push_str(&delta.to_string()));
        let replies = vec![paid("it is one"), paid(r#"{"a":"one"}"#), paid(r#"{"a":1}"#)];
        let (response, requests) = ask(replies, &cx).await;
        assert_eq!(
            (response.message.text().as_str(), heard.lock().unwrap().as_str()),
            (r#"{"a":1}"#, r#"{"a":1}"#)
        );
        assert_eq!((response.usage.input_tokens, response.cost), (30, Some(Usd::from_pico(15))));
        let last: Vec<String> = requests[2].messages.iter().map(Message::text).collect();
        assert!(last[2].contains("it is not JSON") && last[4].contains("/a: "), "{last:?}");
    }

    #[tokio::test]
    async fn json_is_taken_out_of_what_stands_around_it() {
        for text in ["Sure:\n```json\n{\"a\":1}\n```\nDone.", "It is {\"a\":1}."] {
            let (response, requests) = ask(vec![paid(text)], &CallContext::default()).await;
            assert_eq!((response.message.text().as_str(), requests.len()), (r#"{"a":1}"#, 1));
        }
    }

    #[tokio::test]
    async fn what_can_not_be_mended_comes_back_as_it_was() {
        let busy = Error::new(ErrorKind::Model {
            fault: ModelFault::Overloaded,
            model: "m".into(),
            problem: "x".into(),
        });
        for (replies, calls, cost) in [
            (vec![paid("no"), paid("no"), paid("still no")], 3, 15),
            (vec![paid("no"), busy.into()], 2, 5),
            (vec![paid("no").stop(StopReason::Refusal)], 1, 5),
        ] {
            let (response, requests) = ask(replies, &CallContext::default()).await;
            assert!(response.message.text().contains("no"));
            assert_eq!((requests.len(), response.cost), (calls, Some(Usd::from_pico(cost))));
        }
    }

    #[tokio::test]
    async fn no_repair_goes_beyond_the_budget() {
        let budget = Budget { tokens: Some(600), ..Budget::default() };
        let cx = CallContext::default().with_budget(budget);
        let model = Repaired::new(ScriptedModel::new().replies([paid("no"), paid("never asked")]));
        let request = ChatRequest { max_output_tokens: Some(300), ..asked() };
        assert_eq!(model.chat(&request, &cx).await.unwrap().message.text(), "no");
    }
}
