//! A model that never sees personal data.

use std::sync::Arc;

use async_trait::async_trait;
use coral_core::{
    CallContext, ChatModel, ChatRequest, ChatResponse, Error, Message, Part, ToolCall, ToolDef,
};

use super::Anonymizer;
use super::json::each_text;

/// A model that never sees personal data: what is found in a request is replaced on its way out,
/// and with a key turned back in the answer. Pieces of a streamed answer come with pseudonyms, as
/// one may be cut in two.
///
/// A request is its messages, with the arguments and results of tools, and what it says of tools and of
/// the form of the answer. Images, what a provider signed and what only a provider understands go as they
/// came. Texts that are to be embedded go to no such model: give them to
/// [`Anonymizer::text`] first.
#[derive(Clone, Debug)]
pub struct PrivateModel<M> {
    model: M,
    anonymizer: Anonymizer,
}

impl<M: ChatModel> PrivateModel<M> {
    /// Stands between `model` and everyone else.
    pub fn new(model: M, anonymizer: Anonymizer) -> Self {
        PrivateModel { model, anonymizer }
    }
}

#[async_trait]
impl<M: ChatModel> ChatModel for PrivateModel<M> {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn inner(&self) -> Option<&dyn ChatModel> {
        Some(&self.model)
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        let without = |text: &str| self.anonymizer.text(text);
        let tool = |tool: &ToolDef| ToolDef {
            description: without(&tool.description),
            input_schema: each_text(tool.input_schema.clone(), &without),
            ..tool.clone()
        };
        let mut private = request.clone();
        private.messages = request.messages.iter().map(|said| message(said, &without)).collect();
        private.tools = request.tools.iter().map(tool).collect();
        private.stop = request.stop.iter().map(|text| without(text)).collect();
        if let Some(output) = &mut private.output {
            output.schema = Arc::new(each_text((*output.schema).clone(), &without));
        }
        let mut response = self.model.chat(&private, cx).await?;
        response.message = message(&response.message, &|text| self.anonymizer.restore(text));
        Ok(response)
    }
}

fn message(said: &Message, change: &impl Fn(&str) -> String) -> Message {
    let parts = said.parts.iter().map(|piece| part(piece, change)).collect();
    Message { parts, ..said.clone() }
}

fn part(part: &Part, change: &impl Fn(&str) -> String) -> Part {
    match part {
        Part::Text { text } => Part::Text { text: change(text) },
        Part::Thinking { text, signature: None } => Part::Thinking { text: change(text), signature: None },
        Part::ToolCall(call) => {
            Part::ToolCall(ToolCall { arguments: each_text(call.arguments.clone(), change), ..call.clone() })
        }
        Part::ToolResult { call_id, name, content, is_error } => Part::ToolResult {
            call_id: call_id.clone(),
            name: name.clone(),
            content: change(content),
            is_error: *is_error,
        },
        other => other.clone(),
    }
}
