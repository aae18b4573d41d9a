//! Running an agent that is data.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::answer::{Answers, refuse};
use self::written::Written;
use crate::agent::{Agent, HandoffDraft};
use crate::context::AgentContext;
use crate::error::{AgentError, Error, ErrorKind};
use crate::handoff::OnGap;
use crate::model::{ChatRequest, Message, OutputFormat, Part, StopReason, ToolChoice};
use crate::prompt::{
    ASK_FOR_SUMMARY, Compacted, Compiled, ContextQuery, Conversation, Fitted, Partials, PromptInput,
    PromptService, PromptUse, RenderedPrompt, Section, SectionPart,
};
use crate::spec::AgentSpec;
use crate::task::{MessageType, Report, Task};
use crate::tool::{EffectClass, ToolCall, ToolDef};

mod answer;
mod operations;
mod written;

pub use self::operations::OPERATIONS;

/// Runs an [`AgentSpec`]: prompt from its templates, a tool loop with a turn limit, and an answer
/// that is parsed against the output format, with a bounded number of repair turns.
///
/// The answer is a [`Report`]. It counts as one when it is a JSON object of that shape; when its
/// `data` fits the spec's output schema; when every deliverable that the spec promises is listed, and,
/// where the agent had tools to write with, was written by one of them, in this round or an earlier one; and when
/// `next_agent`, if there is one, is among the spec's suggested successors. What does not fit goes back to the model with the reason. On its last
/// turn the model gets no tools, so that a turn limit ends in an answer.
///
/// # Prompt and conversation
/// A [`PromptService`] makes the prompt, and fits it to the context of the runner's model by declared priorities. The
/// system message is the same for all tasks of a phase, and the conversation only grows at its end, so that
/// providers find it in their caches; it is marked for those that want marks. A conversation that outgrows the model is
/// compacted, in large steps. Nothing is left out silently: the model is told, and the journal has it as notes:
///
/// | topic | when | what |
/// |---|---|---|
/// | `prompt` | each attempt | [`PromptUse`]: the version of the prompt, and what it is fitted to |
/// | `context_fitted` | the prompt did not fit | [`Fitted`]: what was left out of it |
/// | `context_compacted` | the conversation did not fit | [`Compacted`]: what was left out of it |
/// | `operations_missing` | no tool does some operation that the spec asks for, see [`OPERATIONS`] | `{"operations": […]}` |
#[derive(Clone, Debug)]
pub struct PromptAgent {
    spec: AgentSpec,
    prompts: PromptService,
    own: Arc<Compiled>,
    answers: Answers,
}

impl PromptAgent {
    /// An agent whose templates include no others.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid), which names the field, template or keyword that can't be used.
    pub fn new(spec: AgentSpec) -> Result<Self, Error> {
        Self::with_partials(spec, &Partials::default())
    }

    /// An agent whose templates may include `partials`. For many agents with the same partials, [`with_prompts`](Self::with_prompts)
    /// compiles them once.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_partials(spec: AgentSpec, partials: &Partials) -> Result<Self, Error> {
        Self::with_prompts(spec, &PromptService::builder().partials(partials.clone()).build()?)
    }

    /// An agent whose prompts are made by `prompts`.
    ///
    /// # Errors
    /// As [`new`](Self::new), also for the versions that the service has of this agent's prompt.
    pub fn with_prompts(spec: AgentSpec, prompts: &PromptService) -> Result<Self, Error> {
        spec.validate()?;
        let own = prompts.compile(&spec)?;
        let answers = Answers::new(&spec)?;
        for (version, _) in prompts.store().versions(&spec.id) {
            prompts.version(&spec, version, &own)?;
        }
        Ok(PromptAgent { spec, prompts: prompts.clone(), own, answers })
    }

    /// The prompt that a model would be given first, outside of any run.
    ///
    /// # Errors
    /// What the stages of the prompt service say; [`Model`](ErrorKind::Model) of fault
    /// [`ContextTooLong`](crate::ModelFault::ContextTooLong) if what is pinned does not fit.
    pub fn prompt(&self, input: &PromptInput) -> Result<RenderedPrompt, Error> {
        let mut input = input.clone();
        for source in self.prompts.sources() {
            input.context.entry(source.name().to_owned()).or_insert(Value::Null);
        }
        let used = self.choose(&input.step, self.context_tokens(input.context_tokens));
        let format = self.answers.of(&input.task.phase).format(&self.spec, false, &[]);
        self.make(used, input, &format)
    }

    fn choose(&self, step: &str, context_tokens: Option<u64>) -> PromptUse {
        let (version, by) = self.prompts.choose(&self.spec.id, step, &self.own);
        let (agent, counter) = (self.spec.id.clone(), self.prompts.counter().name().to_owned());
        PromptUse { agent, version, by, context_tokens, counter }
    }

    /// What prompts are fitted to, where a model has `known`.
    fn context_tokens(&self, known: Option<u64>) -> Option<u64> {
        known.into_iter().chain(self.prompts.fit_policy().context_tokens).min()
    }

    /// `format` is that of the answers, which takes room too.
    fn make(
        &self,
        used: PromptUse,
        input: PromptInput,
        format: &OutputFormat,
    ) -> Result<RenderedPrompt, Error> {
        let compiled = self.prompts.version(&self.spec, &used.version, &self.own)?;
        // Where there is no limit, nothing need be counted.
        let answer = self.answers.of(&input.task.phase);
        let besides = used.context_tokens.map_or(0, |_| answer.tokens(format, &**self.prompts.counter()));
        self.prompts.make(&compiled, used, input, besides)
    }

    /// The first prompt of an attempt. What it depends on besides the definition is recorded before it is used.
    async fn begin(
        &self,
        task: Task,
        reviewed: &[&str],
        format: &OutputFormat,
        cx: &mut AgentContext,
    ) -> Result<RenderedPrompt, AgentError> {
        let tools = cx.tools().await?;
        let missing = json!(operations::missing(&cx.spec().operations, &tools));
        if missing != json!([]) {
            cx.note("operations_missing", json!({ "operations": missing })).await;
        }
        let mut context = BTreeMap::new();
        for source in self.prompts.sources() {
            let (run, project) = (cx.run_id().clone(), cx.project().to_owned());
            let query = ContextQuery { agent: &self.spec.id, run: &run, project: &project, task: &task };
            let load = |_| async move { source.load(&query).await.map_err(AgentError::from) };
            let label = format!("context {}", source.name());
            let value: Value = cx.effect(&label, EffectClass::Pure, &(), load).await?;
            context.insert(source.name().to_owned(), value);
        }
        let step = format!("{}/{}", cx.run_id(), cx.path());
        let context_tokens = cx.model_info(cx.spec().model.name.as_deref()).context_tokens;
        let used = self.choose(&step, self.context_tokens(context_tokens));
        let used = noted(cx, PromptUse::TOPIC, used).await;
        let sections = own_sections(cx.spec(), &task, cx.routes(), reviewed);
        let input = PromptInput { task, tools, context, context_tokens, sections, step };
        let prompt = self.make(used, input, format)?;
        if let Some(fitted) = &prompt.fitted {
            noted(cx, Fitted::TOPIC, fitted.clone()).await;
        }
        Ok(prompt)
    }

    /// Makes the conversation shorter if it has outgrown its model.
    async fn compact(
        &self,
        conversation: &mut Conversation,
        cx: &mut AgentContext,
    ) -> Result<(), AgentError> {
        let Some((done, transcript)) = conversation.compact()? else { return Ok(()) };
        if let Some(transcript) = transcript {
            let request = ChatRequest {
                model: cx.spec().model.name.clone(),
                max_output_tokens: cx.spec().model.max_output_tokens,
                ..ChatRequest::new(ASK_FOR_SUMMARY, transcript)
            };
            let response = cx.chat(&request).await?;
            refuse(&response)?;
            conversation.summary(&response.message.text());
        }
        noted(cx, Compacted::TOPIC, done).await;
        Ok(())
    }

    /// Calls the tools that the model asks for, and gives their answers back to it.
    async fn call_tools(
        &self,
        calls: Vec<ToolCall>,
        tools: &[ToolDef],
        written: &mut Written,
        cx: &mut AgentContext,
    ) -> Result<Message, AgentError> {
        let allowed = usize::try_from(cx.spec().limits.max_tool_calls).unwrap_or(usize::MAX);
        let (now, excess) = calls.split_at(allowed.min(calls.len()));
        let outputs = cx.call_tools(now).await?;
        let mut parts = Vec::with_capacity(calls.len());
        for (call, output) in now.iter().zip(outputs) {
            let (content, is_error) = match output {
                Ok(output) => (output.content, output.is_error),
                // What nobody can tell of is not for the model to try again.
                Err(error) if error.is_cancelled() || matches!(error.kind(), ErrorKind::InDoubt { .. }) => {
                    return Err(error.into());
                }
                // The model is told, and may find another way.
                Err(error) => (error.to_string(), true),
            };
            if !is_error
                && tools.iter().any(|tool| tool.name == call.name && tool.effect != EffectClass::Pure)
            {
                written.by(call);
            }
            parts.push(Part::ToolResult {
                call_id: call.id.clone(),
                name: call.name.clone(),
                content,
                is_error,
            });
        }
        parts.extend(excess.iter().map(|call| Part::ToolResult {
            call_id: call.id.clone(),
            name: call.name.clone(),
            content: format!("not called: at most {allowed} tool calls are allowed at once"),
            is_error: true,
        }));
        Ok(Message::tool_results(parts))
    }
}

#[async_trait]
impl Agent for PromptAgent {
    type Input = Task;
    type Output = Report;

    fn spec(&self) -> &AgentSpec {
        &self.spec
    }

    async fn validate_dependencies(&self, task: &Task, cx: &mut AgentContext) -> Result<(), AgentError> {
        let missing = missing(cx.spec(), task);
        if missing.is_empty() {
            return Ok(());
        }
        if cx.on_gap() == OnGap::FromBrief {
            cx.note("taken_from_brief", json!({ "missing": missing })).await;
            return Ok(());
        }
        Err(Error::new(ErrorKind::MissingDependency { step: cx.path().to_string(), missing })
            .with_help("the agent that should have delivered it reported less than its definition promises")
            .into())
    }

    async fn prepare_context(&self, mut task: Task, cx: &mut AgentContext) -> Result<Task, AgentError> {
        let missing = missing(cx.spec(), &task);
        if !missing.is_empty() {
            task.instructions.push(format!(
                "Nobody before you delivered {}. Take what you need of it from the brief, and write down as a decision whatever you had to assume.",
                missing.iter().map(|kind| format!("`{kind}`")).collect::<Vec<_>>().join(", ")
            ));
        }
        Ok(task)
    }

    async fn run(&self, task: Task, cx: &mut AgentContext) -> Result<Report, AgentError> {
        let spec = cx.spec().clone();
        let reviewed: Vec<String> = cx.reviewed_steps().map(str::to_owned).collect();
        let reviewed: Vec<&str> = reviewed.iter().map(String::as_str).collect();
        let answer = self.answers.of(cx.phase());
        let format = answer.format(&spec, cx.routes(), &reviewed);
        let mut written = Written::before(&task);
        let prompt = self.begin(task, &reviewed, &format, cx).await?;
        let tools = cx.tools().await?;
        let writes = tools.iter().any(|tool| {
            tool.effect != EffectClass::Pure && tool.input_schema.pointer("/properties/path").is_some()
        });
        let (policy, counter) = (self.prompts.fit_policy(), self.prompts.counter().clone());
        let mut conversation = Conversation::new(prompt.messages, prompt.limit, policy, counter);
        let mut request = ChatRequest {
            model: spec.model.name.clone(),
            tools,
            output: Some(format),
            max_output_tokens: spec.model.max_output_tokens,
            temperature: spec.model.temperature,
            effort: spec.model.effort,
            ..ChatRequest::default()
        };
        let mut repairs = 0;
        for turn in 1..=spec.limits.max_turns {
            let last = turn == spec.limits.max_turns;
            if last && !request.tools.is_empty() {
                request.tool_choice = ToolChoice::None;
            }
            self.compact(&mut conversation, cx).await?;
            conversation.lend_to(&mut request);
            let response = cx.chat(&request).await;
            conversation.take_back(&mut request);
            let response = response?;
            refuse(&response)?;
            let calls: Vec<ToolCall> = response.message.tool_calls().cloned().collect();
            let paused = response.stop == StopReason::Pause;
            let cut = response.stop == StopReason::MaxTokens;
            let text = response.message.text();
            conversation.push(response.message);
            if !calls.is_empty() && !last {
                let answers = self.call_tools(calls, &request.tools, &mut written, cx).await?;
                conversation.push(answers);
                continue;
            }
            if paused && !last {
                continue;
            }
            let problem = match answer.parse(&spec, &text, writes.then_some(&written), &reviewed) {
                Ok(report) if report.send_back.is_empty() => return Ok(report),
                Ok(report) => return Err(cx.send_back(report.send_back).into()),
                Err(_) if cut => {
                    "the answer was cut off at the limit of output tokens; answer more briefly".to_owned()
                }
                Err(problem) => problem,
            };
            if repairs == spec.limits.max_repairs || last {
                return Err(Error::new(ErrorKind::Output { problem })
                    .at(format!("agent `{}`", spec.id))
                    .with_help(format!(
                        "after {turn} turns and {repairs} repairs; raise `limits`, or use a stronger model"
                    ))
                    .into());
            }
            repairs += 1;
            conversation.push(Message::user(format!(
                "That is not yet the report that is asked for: {problem}. Mend it, and answer with the whole report as one JSON object."
            )));
        }
        Err(Error::new(ErrorKind::Limit { limit: "max_turns".to_owned(), max: spec.limits.max_turns.into() })
            .into())
    }

    fn handoff(&self, report: &Report, to: &str, cx: &AgentContext) -> Result<HandoffDraft, AgentError> {
        // A template that loops over the report's tasks keeps them; without one they go as they are.
        let next_tasks = if cx.spec().handoff.template.trim().is_empty() {
            report.next_tasks.clone()
        } else {
            let scope = json!({ "agent": cx.spec(), "phase": cx.phase(), "report": report, "to": to });
            let lines = self.own.handoff(&scope)?;
            let lines = lines.lines().map(|line| line.trim().trim_start_matches("- "));
            lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
        };
        Ok(HandoffDraft {
            message_type: MessageType::Handoff,
            deliverables: report.deliverables.clone(),
            next_tasks,
        })
    }
}

/// What the agent depends on and nobody delivered.
fn missing(spec: &AgentSpec, task: &Task) -> Vec<String> {
    let there = |kind: &String| task.available.iter().any(|deliverable| deliverable.kind == *kind);
    spec.dependencies.iter().filter(|kind| !there(kind)).cloned().collect()
}

/// What the prompt says besides what the definition does: of the rounds before, and of whom the answer may name.
fn own_sections(spec: &AgentSpec, task: &Task, routes: bool, reviewed: &[&str]) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut add = |name: &str, text: String| sections.push(Section::new(name, SectionPart::Task, text));
    if let Some(text) = came_back(spec, task) {
        add("rounds_before", text);
    }
    if !reviewed.is_empty() {
        add(
            "sending_back",
            format!(
                "## Sending back\n\nYou review the work of: {}. If something of it must be mended before anyone may build on it, list each such finding in `send_back` with the one of these it goes `to`: what is wrong, where, and what would be right. What can be mended later belongs in `next_tasks`. If nothing must be mended, `send_back` is empty.",
                reviewed.join(", ")
            ),
        );
    }
    if routes {
        add(
            "handing_on",
            format!(
                "## Handing on\n\nIf another agent should go on with the work, name it in `next_agent`, one of: {}. If the work is done, `next_agent` is null.",
                spec.handoff.next_agents.join(", ")
            ),
        );
    }
    sections
}

/// What is said of the rounds before, if there were any.
fn came_back(spec: &AgentSpec, task: &Task) -> Option<String> {
    let mut text = String::new();
    for message in &task.reviews {
        let who = if message.from_agent == spec.id {
            format!("You sent back to `{}`:", message.to_agent)
        } else {
            format!("`{}` sent back to you:", message.from_agent)
        };
        text.push_str(&format!("{who}\n\n- {}\n\n", message.next_tasks.join("\n- ")));
    }
    if let Some(previous) = &task.previous {
        text.push_str(&format!("Your report of the round before: {}\n\n", previous.summary.trim()));
        for deliverable in &previous.deliverables {
            text.push_str(&format!("- `{}`: {}\n", deliverable.path, deliverable.kind));
        }
        text.push('\n');
    }
    if text.is_empty() {
        return None;
    }
    Some(format!(
        "## Rounds before\n\n{}\n\nWhat you wrote is still there: mend what is named, keep what is good, and check that each finding is dealt with. Report the whole of your work again.",
        text.trim()
    ))
}

/// Notes what was decided, and gives it as it is recorded: a resumed step decides as it did the first time.
async fn noted<T: Serialize + DeserializeOwned>(cx: &mut AgentContext, topic: &str, note: T) -> T {
    let json = json!(note);
    let recorded = cx.note(topic, json).await;
    T::deserialize(recorded).unwrap_or(note)
}
