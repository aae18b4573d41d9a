//! What counts as the answer of a data agent.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use super::written::Written;
use crate::error::{Error, ErrorKind, ModelFault};
use crate::model::{ChatResponse, OutputFormat, StopReason};
use crate::prompt::TokenCounter;
use crate::schema::Schema;
use crate::spec::AgentSpec;
use crate::task::Report;

/// The forms of an agent's answers.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    own: Answer,
    /// Of the phases whose answers hold other data.
    phases: BTreeMap<String, Answer>,
}

impl Answers {
    /// The forms that `spec` asks for.
    pub(super) fn new(spec: &AgentSpec) -> Result<Self, Error> {
        let differs = spec.phases.iter().filter(|(_, phase)| phase.output_schema.is_some());
        let phases = differs.map(|(name, phase)| {
            let answer = Answer::new(phase.output_schema.clone());
            Ok((
                name.clone(),
                answer.map_err(|error| error.at(format!("agent `{}`, phase `{name}`", spec.id)))?,
            ))
        });
        let own = Answer::new(spec.output_schema.clone());
        Ok(Answers {
            phases: phases.collect::<Result<_, Error>>()?,
            own: own.map_err(|error| error.at(format!("agent `{}`", spec.id)))?,
        })
    }

    /// The form in a phase.
    pub(super) fn of(&self, phase: &str) -> &Answer {
        self.phases.get(phase).unwrap_or(&self.own)
    }
}

/// The form of an answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    schema: Option<Schema>,
    format: OutputFormat,
    /// Those of `format`.
    tokens: OnceLock<u64>,
}

impl Answer {
    fn new(data: Option<Value>) -> Result<Self, Error> {
        let schema = data.map(Schema::new).transpose()?;
        let format =
            OutputFormat { name: "report".to_owned(), schema: Arc::new(report_schema(schema.as_ref())) };
        Ok(Answer { schema, format, tokens: OnceLock::new() })
    }

    /// The output format, with room for the agent to hand on to where the model `routes`, and for what
    /// goes back where it reviews.
    pub(super) fn format(&self, spec: &AgentSpec, routes: bool, reviewed: &[&str]) -> OutputFormat {
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

    /// The tokens of a format that was made here; an agent has one counter.
    pub(super) fn tokens(&self, format: &OutputFormat, counter: &dyn TokenCounter) -> u64 {
        match Arc::ptr_eq(&format.schema, &self.format.schema) {
            true => *self.tokens.get_or_init(|| counter.output(format)),
            false => counter.output(format),
        }
    }

    /// The report in `text`, or what is wrong with it.
    pub(super) fn parse(
        &self,
        spec: &AgentSpec,
        text: &str,
        written: Option<&Written>,
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
            if written.is_some_and(|written| !written.holds(&deliverable.path)) {
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
}

/// A refusal, or a filter's cut, is the end: another turn would only cost.
pub(super) fn refuse(response: &ChatResponse) -> Result<(), Error> {
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
