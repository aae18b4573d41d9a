//! Running an agent that is data.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use serde_json::{Value, json};

use crate::agent::{Agent, HandoffDraft};
use crate::context::AgentContext;
use crate::error::{AgentError, Error, ErrorKind, ModelFault};
use crate::handoff::OnGap;
use crate::model::{ChatRequest, ChatResponse, Message, OutputFormat, Part, StopReason, ToolChoice};
use crate::prompt::{Partials, Prompt};
use crate::schema::Schema;
use crate::spec::{AgentSpec, OutputSpec};
use crate::task::{Brief, Deliverable, MessageType, Report, Task, TaskInput};
use crate::tool::{EffectClass, ToolCall, ToolDef};

/// Runs an [`AgentSpec`]: prompt from its templates, a tool loop with a turn limit, and an answer
/// that is parsed against the output format, with a bounded number of repair turns.
///
/// The answer is a [`Report`]. It counts as one when it is a JSON object of that shape; when its
/// `data` fits the spec's output schema; when every deliverable that the spec promises is listed, and,
/// where the agent had tools to write with, was written by one of them; and when `next_agent`, if there is one, is among the spec's
/// suggested successors. What does not fit goes back to the model with the reason. On its last
/// turn the model gets no tools, so that a turn limit ends in an answer.
#[derive(Clone, Debug)]
pub struct PromptAgent {
    spec: AgentSpec,
    prompt: Prompt,
    schema: Option<Schema>,
    format: OutputFormat,
}

impl PromptAgent {
    /// An agent whose templates include no others.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid), which names the field, template or keyword that can't be used.
    pub fn new(spec: AgentSpec) -> Result<Self, Error> {
        Self::with_partials(spec, &Partials::default())
    }

    /// An agent whose templates may include `partials`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_partials(spec: AgentSpec, partials: &Partials) -> Result<Self, Error> {
        spec.validate()?;
        let at = |error: Error| error.at(format!("agent `{}`", spec.id));
        let prompt = Prompt::new(&spec, partials)?;
        let schema = spec.output_schema.clone().map(Schema::new).transpose().map_err(at)?;
        let format =
            OutputFormat { name: "report".to_owned(), schema: Arc::new(report_schema(schema.as_ref())) };
        Ok(PromptAgent { spec, prompt, schema, format })
    }

    /// The messages that the model is first given for `task` with `tools`, as `spec` stands in its
    /// phase. Where the model `routes`, it is told among whom; where it reviews, whose work.
    fn messages(
        &self,
        spec: &AgentSpec,
        task: &Task,
        tools: &[ToolDef],
        routes: bool,
        reviewed: &[&str],
    ) -> Result<Vec<Message>, Error> {
        #[derive(Serialize)]
        struct Scope<'a> {
            agent: &'a AgentSpec,
            brief: &'a Brief,
            phase: &'a str,
            instructions: &'a [String],
            inputs: &'a [TaskInput],
            available: &'a [Deliverable],
            deliverables: &'a [OutputSpec],
            tools: &'a [ToolDef],
        }
        let mut system = vec![spec.role_description.trim().to_owned()];
        system.push(self.prompt.render("@system", json!({ "agent": spec }))?.trim().to_owned());
        for (title, list) in [("Expertise", &spec.expertise_areas), ("Methods", &spec.methodologies)] {
            if !list.is_empty() {
                system.push(format!("## {title}\n\n- {}", list.join("\n- ")));
            }
        }
        let scope = Scope {
            agent: spec,
            brief: &task.brief,
            phase: &task.phase,
            instructions: &task.instructions,
            inputs: &task.inputs,
            available: &task.available,
            deliverables: &spec.outputs,
            tools,
        };
        let mut user = Vec::new();
        for name in ["@task", "@context", "@output"] {
            user.push(self.prompt.render(name, &scope)?.trim().to_owned());
        }
        if let Some(phase) = spec.phases.get(&task.phase).filter(|phase| !phase.instructions.is_empty()) {
            user.push(format!("## This phase: {}\n\n{}", task.phase, phase.instructions.trim()));
        }
        if !task.instructions.is_empty() && !self.prompt.places_instructions {
            user.push(format!("## Instructions for this step\n\n- {}", task.instructions.join("\n- ")));
        }
        user.extend(came_back(spec, task));
        if !reviewed.is_empty() {
            user.push(format!(
                "## Sending back\n\nYou review the work of: {}. If something of it must be mended before anyone may build on it, list each such finding in `send_back` with the one of these it goes `to`: what is wrong, where, and what would be right. What can be mended later belongs in `next_tasks`. If nothing must be mended, `send_back` is empty.",
                reviewed.join(", ")
            ));
        }
        if routes {
            user.push(format!(
                "## Handing on\n\nIf another agent should go on with the work, name it in `next_agent`, one of: {}. If the work is done, `next_agent` is null.",
                spec.handoff.next_agents.join(", ")
            ));
        }
        let join = |mut parts: Vec<String>| {
            parts.retain(|part| !part.is_empty());
            parts.join("\n\n")
        };
        let mut system = Message::system(join(system));
        system.cache = true;
        Ok(vec![system, Message::user(join(user))])
    }

    /// The output format, with room for the agent to hand on to where the model `routes`, and for what
    /// goes back where it reviews.
    fn format(&self, spec: &AgentSpec, routes: bool, reviewed: &[&str]) -> OutputFormat {
        let mut more = Vec::new();
        if routes {
            let mut agents: Vec<Value> = spec.handoff.next_agents.iter().map(|id| json!(id)).collect();
            agents.push(Value::Null);
            more.push(("next_agent", json!({"enum": agents})));
        }
        if !reviewed.is_empty() {
            let finding = json!({
                "type": "object",
                "properties": {"to": {"enum": reviewed}, "finding": {"type": "string"}},
                "required": ["to", "finding"],
                "additionalProperties": false,
            });
            more.push(("send_back", json!({"type": "array", "items": finding})));
        }
        if more.is_empty() {
            return self.format.clone();
        }
        let mut schema = (*self.format.schema).clone();
        for (name, property) in more {
            if let Some(properties) = schema.pointer_mut("/properties").and_then(Value::as_object_mut) {
                properties.insert(name.to_owned(), property);
            }
            if let Some(required) = schema.pointer_mut("/required").and_then(Value::as_array_mut) {
                required.push(json!(name));
            }
        }
        OutputFormat { name: self.format.name.clone(), schema: Arc::new(schema) }
    }

    /// The report in `text`, or what is wrong with it.
    fn parse(
        &self,
        spec: &AgentSpec,
        text: &str,
        written: Option<&BTreeSet<String>>,
        reviewed: &[&str],
    ) -> Result<Report, String> {
        let value = json_in(text).ok_or_else(|| "the answer is not one JSON object".to_owned())?;
        let report: Report =
            serde_json::from_value(value).map_err(|error| format!("the report's shape is wrong: {error}"))?;
        let mut problems = Vec::new();
        for finding in report.send_back.iter().filter(|finding| !reviewed.contains(&finding.to.as_str())) {
            problems.push(format!(
                "`send_back` names `{}`, and you review only: {}",
                finding.to,
                reviewed.join(", ")
            ));
        }
        if let Some(schema) = &self.schema {
            problems
                .extend(schema.problems(&report.data).into_iter().map(|problem| format!("data{problem}")));
        }
        for output in spec.outputs.iter().filter(|output| !output.optional) {
            if !report.deliverables.iter().any(|deliverable| deliverable.kind == output.kind) {
                problems.push(format!("deliverable `{}` at `{}` is not listed", output.kind, output.path));
            }
        }
        for deliverable in &report.deliverables {
            if written.is_some_and(|written| !written.contains(normal(&deliverable.path))) {
                problems.push(format!("`{}` is listed, but no tool call wrote it", deliverable.path));
            }
        }
        if let Some(next) = report.next_agent.as_ref().filter(|next| !spec.handoff.next_agents.contains(next))
        {
            let allowed = spec.handoff.next_agents.join(", ");
            problems.push(format!("`next_agent` is `{next}`, but it must be one of: {allowed}"));
        }
        if problems.is_empty() { Ok(report) } else { Err(problems.join("; ")) }
    }

    /// Calls the tools that the model asks for, and gives their answers back to it.
    async fn call_tools(
        &self,
        calls: Vec<ToolCall>,
        written: &mut BTreeSet<String>,
        cx: &mut AgentContext,
    ) -> Result<Message, AgentError> {
        let allowed = usize::try_from(cx.spec().limits.max_tool_calls).unwrap_or(usize::MAX);
        let (now, excess) = calls.split_at(allowed.min(calls.len()));
        let outputs = cx.call_tools(now).await?;
        let mut parts = Vec::with_capacity(calls.len());
        for (call, output) in now.iter().zip(outputs) {
            let (content, is_error) = match output {
                Ok(output) => (output.content, output.is_error),
                Err(error) if error.is_cancelled() => return Err(error.into()),
                // The model is told, and may find another way.
                Err(error) => (error.to_string(), true),
            };
            if !is_error && let Some(path) = call.arguments.get("path").and_then(Value::as_str) {
                written.insert(normal(path).to_owned());
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
        let tools = cx.tools().await?;
        let writes = tools.iter().any(|tool| {
            tool.effect != EffectClass::Pure && tool.input_schema.pointer("/properties/path").is_some()
        });
        let mut request = ChatRequest {
            model: spec.model.name.clone(),
            messages: self.messages(&spec, &task, &tools, cx.routes(), &reviewed)?,
            tools,
            output: Some(self.format(&spec, cx.routes(), &reviewed)),
            max_output_tokens: spec.model.max_output_tokens,
            temperature: spec.model.temperature,
            effort: spec.model.effort,
            ..ChatRequest::default()
        };
        let mut written = BTreeSet::new();
        let mut repairs = 0;
        for turn in 1..=spec.limits.max_turns {
            let last = turn == spec.limits.max_turns;
            if last && !request.tools.is_empty() {
                request.tool_choice = ToolChoice::None;
            }
            let response = cx.chat(&request).await?;
            refuse(&response)?;
            let calls: Vec<ToolCall> = response.message.tool_calls().cloned().collect();
            let paused = response.stop == StopReason::Pause;
            let cut = response.stop == StopReason::MaxTokens;
            let text = response.message.text();
            request.messages.push(response.message);
            if !calls.is_empty() && !last {
                let answers = self.call_tools(calls, &mut written, cx).await?;
                request.messages.push(answers);
                continue;
            }
            if paused && !last {
                continue;
            }
            let problem = match self.parse(&spec, &text, writes.then_some(&written), &reviewed) {
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
            request.messages.push(Message::user(format!(
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
            let scope = json!({ "agent": cx.spec(), "report": report, "to": to });
            let lines = self.prompt.render("@handoff", scope)?;
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

/// A refusal, or a filter's cut, is the end: another turn would only cost.
fn refuse(response: &ChatResponse) -> Result<(), Error> {
    let problem = match response.stop {
        StopReason::Refusal => "the model refuses to answer",
        StopReason::ContentFilter => "the provider's filter cut the answer",
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::Model {
        fault: ModelFault::ContentFiltered,
        model: response.model.clone(),
        problem: problem.to_owned(),
    }))
}

/// The one JSON object in `text`: all of it, the last fenced block, or from the first brace to the last.
fn json_in(text: &str) -> Option<Value> {
    let text = text.trim();
    let fenced = || {
        let (before, _) = text.rsplit_once("```")?;
        let (_, block) = before.rsplit_once("```")?;
        Some(block.strip_prefix("json").unwrap_or(block))
    };
    let braced = || text.get(text.find('{')?..=text.rfind('}')?);
    let parse = |text: &str| serde_json::from_str(text.trim()).ok().filter(Value::is_object);
    parse(text).or_else(|| parse(fenced()?)).or_else(|| parse(braced()?))
}

/// A path as deliverables name it: relative to the project's root.
fn normal(path: &str) -> &str {
    let path = path.strip_prefix("/project/").unwrap_or(path);
    path.strip_prefix("./").unwrap_or(path).trim_start_matches('/')
}

/// JSON Schema of a report whose `data` is `data`, in the strict form that providers ask for: every
/// property required, none beyond.
fn report_schema(data: Option<&Schema>) -> Value {
    let strings = json!({"type": "array", "items": {"type": "string"}});
    let mut properties = json!({
        "summary": {"type": "string", "description": "What was done, in a few sentences."},
        "deliverables": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"type": "string"},
                    "path": {"type": "string"},
                    "description": {"type": "string"},
                },
                "required": ["type", "path", "description"],
                "additionalProperties": false,
            },
        },
        "decisions": strings,
        "next_tasks": strings,
    });
    let mut required = vec!["summary", "deliverables", "decisions", "next_tasks"];
    if let (Some(data), Some(properties)) = (data, properties.as_object_mut()) {
        properties.insert("data".to_owned(), data.as_json().clone());
        required.push("data");
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_found_where_models_put_it() {
        for text in [
            r#"{"summary":"x"}"#,
            "Here it is:\n```json\n{\"summary\":\"x\"}\n```\nDone.",
            "```\n{\"summary\":\"x\"}\n```",
            "I am done. {\"summary\":\"x\"} Bye.",
        ] {
            assert_eq!(json_in(text), Some(json!({"summary": "x"})), "{text}");
        }
        for text in ["", "none", "[1]", "{broken", "``` ```"] {
            assert_eq!(json_in(text), None, "{text}");
        }
    }
}
