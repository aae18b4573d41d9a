//! An answer while it is put together, whatever wire it comes over.

use coral_core::{ChatRequest, ChatResponse, Delta, Message, Part, Role, StopReason, ToolCall, Usage};
use serde_json::{Map, Value};

use crate::failure::Failure;

#[derive(Default)]
pub(super) struct Assembly {
    pub(super) id: Option<String>,
    pub(super) model: Option<String>,
    pub(super) stop: Option<StopReason>,
    pub(super) usage: Usage,
    /// Whether the provider marked the end of its answer: nothing that follows would be read.
    pub(super) ended: bool,
    /// Whether the answer is whole if the bytes end here, though more may follow.
    pub(super) complete: bool,
    pub(super) deltas: Vec<Delta>,
    /// Whether nobody will hear of deltas, as in an answer that comes whole.
    quiet: bool,
    blocks: Vec<Block>,
    calls: usize,
    /// The number of the first call that the provider gives no id.
    first_number: usize,
}

/// What the ids begin with of calls that the provider gave none; their number follows.
const NUMBERED: &str = "call_";

enum Block {
    Text(String),
    Thinking { text: String, signature: Option<String> },
    Opaque { provider: &'static str, item: Value },
    Call { key: u64, index: usize, id: String, name: String, arguments: String },
}

impl Assembly {
    pub(super) fn new(quiet: bool) -> Self {
        Assembly { quiet, ..Default::default() }
    }

    pub(super) fn number_from(&mut self, request: &ChatRequest) {
        let known = request.messages.iter().flat_map(Message::tool_calls);
        let numbers = known.filter_map(|call| call.id.strip_prefix(NUMBERED)?.parse::<usize>().ok());
        self.first_number = numbers.max().map_or(0, |last| last.saturating_add(1));
    }

    /// Whether anything was said.
    pub(super) fn has_begun(&self) -> bool {
        !self.blocks.is_empty()
    }

    fn tell(&mut self, delta: impl FnOnce() -> Delta) {
        if !self.quiet {
            self.deltas.push(delta());
        }
    }

    /// More text: of the last block if that is text, else of a new one.
    pub(super) fn text(&mut self, more: &str) {
        if more.is_empty() {
            return;
        }
        match self.blocks.last_mut() {
            Some(Block::Text(text)) => text.push_str(more),
            _ => self.blocks.push(Block::Text(more.to_owned())),
        }
        self.tell(|| Delta::Text(more.to_owned()));
    }

    /// A new block of thinking.
    pub(super) fn thinking_block(&mut self) {
        self.blocks.push(Block::Thinking { text: String::new(), signature: None });
    }

    /// More thinking: of the last block if that is thinking, else of a new one.
    pub(super) fn thinking(&mut self, more: &str) {
        if more.is_empty() {
            return;
        }
        if !matches!(self.blocks.last(), Some(Block::Thinking { .. })) {
            self.thinking_block();
        }
        if let Some(Block::Thinking { text, .. }) = self.blocks.last_mut() {
            text.push_str(more);
        }
        self.tell(|| Delta::Thinking(more.to_owned()));
    }

    /// The provider's signature over the last block of thinking.
    pub(super) fn signature(&mut self, more: &str) {
        if let Some(Block::Thinking { signature, .. }) =
            self.blocks.iter_mut().rev().find(|block| matches!(block, Block::Thinking { .. }))
        {
            signature.get_or_insert_default().push_str(more);
        }
    }

    /// An item that only its provider understands.
    pub(super) fn opaque(&mut self, provider: &'static str, item: Value) {
        self.blocks.push(Block::Opaque { provider, item });
    }

    /// A tool call begins. `key` is what the wire tells its calls apart by.
    pub(super) fn call(&mut self, key: u64, id: &str, name: &str) {
        let index = self.calls;
        self.calls += 1;
        // Some providers name no call; its place in the conversation is then its id.
        let id = match id {
            "" => format!("{NUMBERED}{}", self.first_number.saturating_add(index)),
            id => id.to_owned(),
        };
        self.blocks.push(Block::Call { key, index, id, name: name.to_owned(), arguments: String::new() });
        self.tell(|| Delta::ToolCall { index, name: name.to_owned() });
    }

    /// More of a tool call's arguments.
    pub(super) fn arguments(&mut self, key: u64, fragment: &str) -> Result<(), Failure> {
        if fragment.is_empty() {
            return Ok(());
        }
        let block = self.blocks.iter_mut().rev().find_map(|block| match block {
            Block::Call { key: known, index, arguments, .. } if *known == key => Some((*index, arguments)),
            _ => None,
        });
        let Some((index, arguments)) = block else {
            return Err(Failure::malformed("arguments came for a tool call that did not begin"));
        };
        arguments.push_str(fragment);
        self.tell(|| Delta::ToolArguments { index, fragment: fragment.to_owned() });
        Ok(())
    }

    pub(super) fn finish(self) -> Result<ChatResponse, Failure> {
        if !self.ended && !self.complete {
            let said = self.blocks.len();
            return Err(Failure::truncated(format!(
                "the answer ended without the provider's end mark, after {said} part{}",
                if said == 1 { "" } else { "s" }
            )));
        }
        let called = self.calls > 0;
        let parts = self.blocks.into_iter().filter_map(Block::into_part).collect();
        // Servers differ in whether a call of a tool is a reason to stop of its own.
        let stop = match self.stop {
            Some(StopReason::End) | None if called => StopReason::ToolCalls,
            Some(stop) => stop,
            None => StopReason::End,
        };
        Ok(ChatResponse {
            message: Message { role: Role::Assistant, parts, cache: false },
            stop,
            usage: self.usage,
            model: self.model.unwrap_or_default(),
            cost: None,
            id: self.id.filter(|id| !id.is_empty()),
        })
    }
}

impl Block {
    fn into_part(self) -> Option<Part> {
        Some(match self {
            Block::Text(text) => Part::Text { text },
            Block::Thinking { text, signature: None } if text.is_empty() => return None,
            Block::Thinking { text, signature } => Part::Thinking { text, signature },
            Block::Opaque { provider, item } => Part::Opaque { provider: provider.to_owned(), item },
            Block::Call { id, name, arguments, .. } => {
                Part::ToolCall(ToolCall { id, name, arguments: parse_arguments(arguments) })
            }
        })
    }
}

/// Arguments as a value; text that is not JSON stays text, so that the tool's refusal can quote it.
fn parse_arguments(text: String) -> Value {
    if text.trim().is_empty() {
        return Value::Object(Map::new());
    }
    match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(_) => Value::String(text),
    }
}
