//! The model that answers without a model: for trying a team with no key and no network, and for tests.

use std::fmt::Write as _;

use async_trait::async_trait;
use coral_core::{
    CallContext, ChatModel, ChatRequest, ChatResponse, Error, Message, ModelInfo, OutputFormat, Part, Price,
    Role, StopReason, ToolCall, ToolChoice, Usage, Usd,
};
use serde_json::{Value, json};

use crate::scripted::stream_words;

mod brief;
mod content;
mod instance;
mod prompt;

use brief::Brief;
use prompt::{Asked, Wanted};

/// Stands in each file that the offline model causes, and in each of its answers.
const NOTICE: &str = "made by Coral's offline model; no language model was called";

const NAME: &str = "offline";

/// A model that needs no key and no network: a program that derives each deliverable from the brief.
///
/// It is deterministic: the same request gives the same answer, on every machine. What it writes is a starting
/// point that fits the file's type (headings, requirements, an OpenAPI document, a schema in SQL), and each file
/// says that no language model was called.
///
/// It answers as follows:
/// - Is a tool offered whose name ends in `write_file`, and does the prompt list deliverables, it calls the tool once
///   for each, all in one turn.
/// - After that, or without such a tool, it answers with JSON that fits the request's output format. Files whose
///   writing failed are left out of a report, and its summary says so.
/// - Without an output format it says in a sentence that it is offline, and repeats what it was asked.
///
/// ```
/// use coral_core::{CallContext, ChatModel, ChatRequest};
/// use coral_llm::OfflineModel;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), coral_core::Error> {
/// let answer = OfflineModel::new().chat(&ChatRequest::user("Name three corals."), &CallContext::default()).await?;
/// assert!(answer.message.text().contains("no language model was called"));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct OfflineModel;

impl OfflineModel {
    /// The offline model.
    pub fn new() -> Self {
        OfflineModel
    }
}

#[async_trait]
impl ChatModel for OfflineModel {
    fn name(&self) -> &str {
        NAME
    }

    fn info(&self) -> ModelInfo {
        let mut info = ModelInfo::default();
        info.price = Some(Price { input: 0.0, output: 0.0, cache_read: 0.0, cache_write: 0.0 });
        info.offline = true;
        info
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let parts = answer(request);
        let called = parts.iter().any(|part| matches!(part, Part::ToolCall(_)));
        let message = Message { role: Role::Assistant, parts, cache: false };
        stream_words(&message, cx);
        Ok(ChatResponse {
            stop: if called { StopReason::ToolCalls } else { StopReason::End },
            usage: Usage {
                input_tokens: request.messages.iter().map(tokens).sum(),
                output_tokens: tokens(&message),
                ..Default::default()
            },
            message,
            model: NAME.to_owned(),
            cost: Some(Usd::ZERO),
            id: None,
        })
    }
}

/// An estimate: four bytes to a token.
fn tokens(message: &Message) -> u64 {
    let bytes: usize = message
        .parts
        .iter()
        .map(|part| match part {
            Part::Text { text } | Part::Thinking { text, .. } => text.len(),
            Part::ToolCall(call) => call.name.len() + call.arguments.to_string().len(),
            Part::ToolResult { content, .. } => content.len(),
            _ => 0,
        })
        .sum();
    bytes.div_ceil(4) as u64
}

fn answer(request: &ChatRequest) -> Vec<Part> {
    let asked = Asked::read(&request.messages);
    let brief = Brief::read(&asked);
    let writer = request
        .tools
        .iter()
        .find(|tool| tool.name.ends_with("write_file"))
        .filter(|_| request.tool_choice != ToolChoice::None);
    let turns = Turns::read(&request.messages);
    if let Some(writer) = writer
        && turns.writes.is_empty()
        && !asked.deliverables.is_empty()
    {
        let calls = asked.deliverables.iter().enumerate().map(|(index, wanted)| {
            Part::ToolCall(ToolCall {
                id: format!("write_{index}"),
                name: writer.name.clone(),
                arguments: json!({"path": wanted.path, "content": content::of(wanted, &brief, &asked)}),
            })
        });
        let text = format!("Offline: {NOTICE}. Writing {}.", count(asked.deliverables.len(), "file"));
        return std::iter::once(Part::Text { text }).chain(calls).collect();
    }
    let text = match &request.output {
        Some(output) => report(output, &asked, &brief, &turns),
        None => plain(&asked, &turns),
    };
    vec![Part::Text { text }]
}

/// What came of the files that were written in earlier turns.
#[derive(Default)]
struct Turns {
    writes: Vec<Write>,
}

struct Write {
    path: String,
    /// What the tool said, if it did not write.
    refused: Option<String>,
}

impl Turns {
    fn read(messages: &[Message]) -> Turns {
        let results: Vec<(&str, &str, bool)> = messages
            .iter()
            .flat_map(|message| &message.parts)
            .filter_map(|part| match part {
                Part::ToolResult { call_id, content, is_error, .. } => {
                    Some((call_id.as_str(), content.as_str(), *is_error))
                }
                _ => None,
            })
            .collect();
        let writes = messages
            .iter()
            .flat_map(Message::tool_calls)
            .filter(|call| call.name.ends_with("write_file"))
            .map(|call| {
                let refused = match results.iter().find(|(id, ..)| *id == call.id) {
                    Some((_, said, true)) => Some(prompt::first_line(said)),
                    Some((_, _, false)) => None,
                    None => Some("the tool gave no answer".to_owned()),
                };
                let path = call.arguments.get("path").and_then(Value::as_str).unwrap_or_default();
                Write { path: path.to_owned(), refused }
            })
            .collect();
        Turns { writes }
    }

    fn wrote(&self, wanted: &Wanted) -> bool {
        self.writes.iter().any(|write| write.path == wanted.path && write.refused.is_none())
    }

    fn refused(&self) -> impl Iterator<Item = (&str, &str)> {
        self.writes.iter().filter_map(|write| Some((write.path.as_str(), write.refused.as_deref()?)))
    }
}

fn report(output: &OutputFormat, asked: &Asked, brief: &Brief, turns: &Turns) -> String {
    let mut value = instance::of(&output.schema, &format!("Offline placeholder, {NOTICE}"));
    let says = |name: &str| output.schema.pointer("/properties").is_some_and(|all| all.get(name).is_some());
    if let Value::Object(fields) = &mut value
        && says("summary")
        && says("deliverables")
    {
        let delivered: Vec<Value> = asked
            .deliverables
            .iter()
            .filter(|wanted| turns.wrote(wanted))
            .map(|wanted| {
                let description = format!("{} (offline draft)", wanted.description);
                json!({"type": wanted.kind, "path": wanted.path, "description": description})
            })
            .collect();
        fields.insert("summary".into(), summary(asked, brief, turns).into());
        fields.insert("deliverables".into(), delivered.into());
        if says("decisions") {
            fields.insert("decisions".into(), json!([format!(
                "Derive every draft from the headings and points of the brief alone, because it is {NOTICE}; instead of inventing facts"
            )]));
        }
        if says("next_tasks") {
            fields.insert("next_tasks".into(), next_tasks(asked, brief, turns).into());
        }
        // Words alone must not move a run, and these would be words.
        if fields.contains_key("next_agent") {
            fields.remove("next_agent");
        }
        // Nor has it judged anything that others should mend.
        if says("send_back") {
            fields.insert("send_back".into(), json!([]));
        }
    }
    value.to_string()
}

fn summary(asked: &Asked, brief: &Brief, turns: &Turns) -> String {
    let written = asked.deliverables.iter().filter(|wanted| turns.wrote(wanted)).count();
    let mut text = format!(
        "Offline: {NOTICE}. Wrote {} of {} for {} from {} of the brief.",
        written,
        count(asked.deliverables.len(), "deliverable"),
        brief.title,
        count(brief.requirements.len(), "requirement"),
    );
    if turns.writes.is_empty() && !asked.deliverables.is_empty() {
        text.push_str(" No tool to write files was offered, so nothing was written.");
    }
    for (path, said) in turns.refused() {
        let _ = write!(text, " Not written: {path}: {said}.");
    }
    text
}

fn next_tasks(asked: &Asked, brief: &Brief, turns: &Turns) -> Vec<String> {
    let mut tasks: Vec<String> =
        turns.refused().map(|(path, _)| format!("Write {path}, which was refused")).collect();
    tasks.extend(
        asked
            .deliverables
            .iter()
            .filter(|wanted| turns.wrote(wanted))
            .take(3)
            .map(|wanted| format!("Review the offline draft {} against the brief", wanted.path)),
    );
    tasks.extend(brief.requirements.iter().take(5).map(|r| format!("Fulfil {}: {}", r.id, r.text)));
    tasks
}

fn plain(asked: &Asked, turns: &Turns) -> String {
    let mut text = format!("Offline: this answer was {NOTICE}.");
    if !turns.writes.is_empty() {
        let refused: Vec<&str> = turns.refused().map(|(path, _)| path).collect();
        let _ = write!(
            text,
            " Wrote {} of {}.",
            turns.writes.len() - refused.len(),
            count(turns.writes.len(), "file")
        );
        if !refused.is_empty() {
            let _ = write!(text, " Not written: {}.", refused.join(", "));
        }
    }
    let _ = write!(text, " Asked: {}", asked.question());
    text
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
