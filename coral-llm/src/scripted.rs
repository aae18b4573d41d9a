//! A model for tests: it says what it was told to say, and remembers what it was asked.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use coral_core::{
    CallContext, ChatModel, ChatRequest, ChatResponse, Delta, Error, Message, ModelInfo, Part, Role,
    StopReason, ToolCall, Usage, Usd,
};
use serde_json::Value;

/// What a [`ScriptedModel`] answers once.
///
/// ```
/// use coral_llm::Reply;
/// use serde_json::json;
///
/// let reply = Reply::text("I look it up.").tool("search", json!({"query": "coral"})).usage(120, 30);
/// let failure = Reply::from(coral_core::Error::invalid("request", "no"));
/// ```
#[derive(Clone, Debug)]
pub struct Reply(Result<ChatResponse, Error>);

impl Reply {
    /// An answer of text.
    pub fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        let mut response = ChatResponse::text("scripted", text.clone());
        if text.is_empty() {
            response.message.parts.clear();
        }
        Reply(Ok(response))
    }

    /// An answer of JSON.
    pub fn json(value: &Value) -> Self {
        Self::text(value.to_string())
    }

    /// An answer that calls one tool. More calls may follow with [`Reply::tool`].
    pub fn call(name: impl Into<String>, arguments: Value) -> Self {
        Self::text("").tool(name, arguments)
    }

    /// Adds a tool call.
    #[must_use]
    pub fn tool(mut self, name: impl Into<String>, arguments: Value) -> Self {
        if let Ok(response) = &mut self.0 {
            let id = format!("call_{}", response.message.tool_calls().count());
            let call = ToolCall { id, name: name.into(), arguments };
            response.message.parts.push(Part::ToolCall(call));
            response.stop = StopReason::ToolCalls;
        }
        self
    }

    /// Sets the reason to stop.
    #[must_use]
    pub fn stop(mut self, stop: StopReason) -> Self {
        if let Ok(response) = &mut self.0 {
            response.stop = stop;
        }
        self
    }

    /// Sets the tokens used.
    #[must_use]
    pub fn usage(self, input_tokens: u64, output_tokens: u64) -> Self {
        self.full_usage(Usage { input_tokens, output_tokens, ..Default::default() })
    }

    /// Sets the tokens used, with cached and reasoning ones.
    #[must_use]
    pub fn full_usage(mut self, usage: Usage) -> Self {
        if let Ok(response) = &mut self.0 {
            response.usage = usage;
        }
        self
    }

    /// Sets what the call cost.
    #[must_use]
    pub fn cost(mut self, cost: Usd) -> Self {
        if let Ok(response) = &mut self.0 {
            response.cost = Some(cost);
        }
        self
    }
}

impl From<&str> for Reply {
    fn from(text: &str) -> Self {
        Reply::text(text)
    }
}

impl From<String> for Reply {
    fn from(text: String) -> Self {
        Reply::text(text)
    }
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        Reply(Err(error))
    }
}

impl From<ChatResponse> for Reply {
    fn from(response: ChatResponse) -> Self {
        Reply(Ok(response))
    }
}

type Matcher = Box<dyn Fn(&ChatRequest) -> bool + Send + Sync>;
type Answer = Box<dyn Fn(&ChatRequest) -> Reply + Send + Sync>;

/// A model for tests: it says what it was told to say, and remembers what it was asked.
///
/// Rules added with [`when`](ScriptedModel::when) are tried first, in their order; then the queue of
/// [`reply`](ScriptedModel::reply) is taken from; then [`otherwise`](ScriptedModel::otherwise) answers. A request
/// that nothing answers is an error that quotes it.
///
/// ```
/// use coral_core::{CallContext, ChatModel, ChatRequest};
/// use coral_llm::{Reply, ScriptedModel};
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), coral_core::Error> {
/// let model = ScriptedModel::new()
///     .when(|request| request.messages.iter().any(|m| m.text().contains("weather")), "It rains.")
///     .reply(Reply::call("search", json!({"query": "coral"})))
///     .reply("Corals are animals.");
/// let ask = async |text: &str| model.chat(&ChatRequest::user(text), &CallContext::default()).await;
/// assert_eq!(ask("What are corals?").await?.message.tool_calls().count(), 1);
/// assert_eq!(ask("How is the weather?").await?.message.text(), "It rains.");
/// assert_eq!(ask("And?").await?.message.text(), "Corals are animals.");
/// assert!(ask("And?").await.is_err());
/// assert_eq!(model.requests().len(), 4);
/// # Ok(()) }
/// ```
pub struct ScriptedModel {
    name: String,
    info: ModelInfo,
    rules: Vec<(Matcher, Answer)>,
    otherwise: Option<Answer>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Reply>,
    requests: Vec<ChatRequest>,
}

impl Default for ScriptedModel {
    fn default() -> Self {
        Self::new()
    }
}

impl ScriptedModel {
    /// A model that has nothing to say yet.
    pub fn new() -> Self {
        ScriptedModel {
            name: "scripted".to_owned(),
            info: ModelInfo::default(),
            rules: Vec::new(),
            otherwise: None,
            state: Mutex::default(),
        }
    }

    /// Gives the model a name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Says what the model can do and what it costs.
    #[must_use]
    pub fn info(mut self, info: ModelInfo) -> Self {
        self.info = info;
        self
    }

    /// Adds an answer to the queue.
    #[must_use]
    pub fn reply(self, reply: impl Into<Reply>) -> Self {
        self.push(reply);
        self
    }

    /// Adds answers to the queue.
    #[must_use]
    pub fn replies<R: Into<Reply>>(self, replies: impl IntoIterator<Item = R>) -> Self {
        for reply in replies {
            self.push(reply);
        }
        self
    }

    /// Adds an answer to the queue of a model that is in use.
    pub fn push(&self, reply: impl Into<Reply>) {
        self.state().queue.push_back(reply.into());
    }

    /// Answers every request that `matches`, before the queue is asked.
    #[must_use]
    pub fn when(
        self,
        matches: impl Fn(&ChatRequest) -> bool + Send + Sync + 'static,
        reply: impl Into<Reply>,
    ) -> Self {
        let reply = reply.into();
        self.when_then(matches, move |_| reply.clone())
    }

    /// Computes the answer to every request that `matches`, before the queue is asked.
    #[must_use]
    pub fn when_then<R: Into<Reply>>(
        mut self,
        matches: impl Fn(&ChatRequest) -> bool + Send + Sync + 'static,
        answer: impl Fn(&ChatRequest) -> R + Send + Sync + 'static,
    ) -> Self {
        self.rules.push((Box::new(matches), Box::new(move |request| answer(request).into())));
        self
    }

    /// Computes the answer to every request that nothing else answers.
    #[must_use]
    pub fn otherwise<R: Into<Reply>>(
        mut self,
        answer: impl Fn(&ChatRequest) -> R + Send + Sync + 'static,
    ) -> Self {
        self.otherwise = Some(Box::new(move |request| answer(request).into()));
        self
    }

    /// Every request so far, in the order in which they came.
    pub fn requests(&self) -> Vec<ChatRequest> {
        self.state().requests.clone()
    }

    /// How many requests came so far.
    pub fn calls(&self) -> usize {
        self.state().requests.len()
    }

    /// How many answers are left in the queue.
    pub fn left(&self) -> usize {
        self.state().queue.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: &ChatRequest) -> Result<ChatResponse, Error> {
        let place = {
            let mut state = self.state();
            state.requests.push(request.clone());
            state.requests.len()
        };
        if let Some((_, answer)) = self.rules.iter().find(|(matches, _)| matches(request)) {
            return answer(request).0;
        }
        if let Some(reply) = self.state().queue.pop_front() {
            return reply.0;
        }
        if let Some(answer) = &self.otherwise {
            return answer(request).0;
        }
        let asked = request.messages.last().map(Message::text).unwrap_or_default();
        let asked: String = asked.chars().take(80).collect();
        Err(Error::invalid("scripted model", format!("nothing answers request {place}: `{asked}`"))
            .with_help("add a reply, or answer the rest with `otherwise`"))
    }
}

#[async_trait]
impl ChatModel for ScriptedModel {
    fn name(&self) -> &str {
        &self.name
    }

    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let mut response = self.answer(request)?;
        if response.model == "scripted" {
            response.model.clone_from(&self.name);
        }
        response.message.role = Role::Assistant;
        if response.cost.is_none() {
            response.cost = self.info.cost(&response.usage);
        }
        stream_words(&response.message, cx);
        Ok(response)
    }
}

/// Reports a message as a provider would stream it: text word by word, arguments in two fragments.
pub(crate) fn stream_words(message: &Message, cx: &CallContext) {
    if !cx.streams() {
        return;
    }
    let mut index = 0;
    for part in &message.parts {
        match part {
            Part::Text { text } => {
                for word in text.split_inclusive(char::is_whitespace) {
                    cx.emit(&Delta::Text(word.to_owned()));
                }
            }
            Part::Thinking { text, .. } => cx.emit(&Delta::Thinking(text.clone())),
            Part::ToolCall(call) => {
                cx.emit(&Delta::ToolCall { index, name: call.name.clone() });
                let arguments = call.arguments.to_string();
                let (head, tail) = arguments.split_at(arguments.floor_char_boundary(arguments.len() / 2));
                for fragment in [head, tail].into_iter().filter(|fragment| !fragment.is_empty()) {
                    cx.emit(&Delta::ToolArguments { index, fragment: fragment.to_owned() });
                }
                index += 1;
            }
            _ => {}
        }
    }
}

impl fmt::Debug for ScriptedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedModel")
            .field("name", &self.name)
            .field("calls", &self.calls())
            .finish_non_exhaustive()
    }
}
