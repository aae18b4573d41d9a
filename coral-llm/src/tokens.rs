//! How many tokens a request is, before it is sent.

use coral_core::{ChatRequest, Message, Part};

/// An upper estimate of the input tokens of `request`.
///
/// Most providers publish no tokenizer, and a count that is asked of them costs a round trip. So this is a bound for
/// reserving budget and for choosing a context size, not a count to bill by: four bytes of plain English make a token,
/// one letter of another script makes one, and a fifth is added on top.
///
/// ```
/// use coral_core::ChatRequest;
///
/// let english = coral_llm::estimate_tokens(&ChatRequest::user("Corals are marine invertebrates."));
/// assert!((8..20).contains(&english));
/// ```
pub fn estimate_tokens(request: &ChatRequest) -> u64 {
    let messages: f64 = request.messages.iter().map(of_message).sum();
    let tools: f64 = request
        .tools
        .iter()
        .map(|tool| {
            of_text(&tool.name) + of_text(&tool.description) + of_text(&tool.input_schema.to_string()) + 8.0
        })
        .sum();
    let output = request.output.as_ref().map_or(0.0, |output| of_text(&output.schema.to_string()) + 8.0);
    ((messages + tools + output) * 1.2).ceil() as u64
}

/// Tokens that the frame of a message takes.
const FRAME: f64 = 4.0;

/// What providers ask for one image of common size, at the most.
const IMAGE: f64 = 1_600.0;

fn of_message(message: &Message) -> f64 {
    let parts: f64 = message
        .parts
        .iter()
        .map(|part| match part {
            Part::Text { text } => of_text(text),
            Part::Thinking { text, signature } => {
                of_text(text) + of_text(signature.as_deref().unwrap_or_default())
            }
            Part::Image { .. } => IMAGE,
            Part::Opaque { item, .. } => of_text(&item.to_string()),
            Part::ToolCall(call) => of_text(&call.name) + of_text(&call.arguments.to_string()) + FRAME,
            Part::ToolResult { content, .. } => of_text(content) + FRAME,
            _ => 0.0,
        })
        .sum();
    parts + FRAME
}

fn of_text(text: &str) -> f64 {
    let ascii = text.bytes().filter(u8::is_ascii).count();
    // Every character beyond ASCII has exactly one byte that begins it.
    let others = text.bytes().filter(|byte| *byte >= 0xc0).count();
    ascii as f64 / 4.0 + others as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_grows_with_what_is_sent() {
        let small = estimate_tokens(&ChatRequest::user("x"));
        let large = estimate_tokens(&ChatRequest::user("x ".repeat(4_000)));
        assert!(small < 10 && (2_000..3_000).contains(&large), "{small} {large}");
        let other = estimate_tokens(&ChatRequest::user("珊瑚是动物".repeat(100)));
        assert!(other >= 500, "{other}");
    }
}
