//! How many tokens a text is, before it is sent.

use crate::model::{ChatRequest, Message, OutputFormat, Part};
use crate::tool::ToolDef;

/// Counts the tokens of what a prompt is made of.
///
/// Providers count each in their own way, and few publish how, so the default, [`UpperEstimate`], is an
/// estimate that errs upwards. Who has the tokenizer of a model at hand gives it to
/// [`PromptServiceBuilder::counter`](crate::PromptServiceBuilder::counter).
///
/// # Duties of an implementation
/// The same text must give the same number, in every process: what is fitted by it is compared when
/// a step is resumed.
pub trait TokenCounter: Send + Sync {
    /// The name, for the journal.
    fn name(&self) -> &str;

    /// The tokens of a text.
    fn text(&self, text: &str) -> u64;

    /// The tokens of a message with its frame.
    fn message(&self, message: &Message) -> u64 {
        message.parts.iter().map(|part| self.part(part)).sum::<u64>().saturating_add(FRAME)
    }

    /// The tokens of a piece of a message.
    fn part(&self, part: &Part) -> u64 {
        match part {
            Part::Text { text } => self.text(text),
            Part::Thinking { text, signature } => {
                self.text(text).saturating_add(signature.as_deref().map_or(0, |text| self.text(text)))
            }
            Part::Image { .. } => IMAGE,
            Part::Opaque { item, .. } => self.text(&item.to_string()),
            Part::ToolCall(call) => self.text(&call.name) + self.text(&call.arguments.to_string()) + FRAME,
            Part::ToolResult { content, .. } => self.text(content) + FRAME,
        }
    }

    /// The tokens of the definitions of tools.
    fn tools(&self, tools: &[ToolDef]) -> u64 {
        let of = |tool: &ToolDef| {
            self.text(&tool.name)
                + self.text(&tool.description)
                + self.text(&tool.input_schema.to_string())
                + 2 * FRAME
        };
        tools.iter().map(of).sum()
    }

    /// The tokens of a request: its messages, tools and output format.
    fn request(&self, request: &ChatRequest) -> u64 {
        let messages: u64 = request.messages.iter().map(|message| self.message(message)).sum();
        let output = request.output.as_ref().map_or(0, |output| self.output(output));
        messages.saturating_add(self.tools(&request.tools)).saturating_add(output)
    }

    /// The tokens of an output format.
    fn output(&self, output: &OutputFormat) -> u64 {
        self.text(&output.schema.to_string()) + 2 * FRAME
    }
}

/// Tokens that the frame of a message takes.
pub(super) const FRAME: u64 = 4;

/// What providers ask for one image of common size, at the most.
const IMAGE: u64 = 1_600;

/// An estimate that errs upwards, for any model.
///
/// It walks over a text as tokenizers do that split words first: a word is a token for each 3¾
/// letters, and at least one; a number one for each two digits; a sign half a token; a character
/// beyond ASCII 0.8 to 3.2, by its bytes. Long runs of mixed letters and digits, such as base64, count
/// three tokens for four characters.
///
/// Held against the tokenizers `o200k_base` and `cl100k_base`, it gave 1.0 to 1.4 times the larger
/// count of the two for English, German and Chinese prose, Markdown, Rust, JavaScript, JSON, lock
/// files, CSV and hexadecimal, and 1.5 times for Russian. It is no proof: for a guarantee give the
/// [`PromptService`](crate::PromptService) the model's own tokenizer.
///
/// ```
/// use coral_core::{TokenCounter, UpperEstimate};
///
/// let tokens = UpperEstimate.text("Corals are marine invertebrates.");
/// assert!((6..16).contains(&tokens));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpperEstimate;

/// Parts of a token, so that whole numbers do.
const UNIT: u64 = 240;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Letter,
    Digit,
    Sign,
    Blank,
    Other,
}

/// A run of characters that may be an encoding, such as base64.
#[derive(Default)]
struct Blob {
    length: u64,
    before: u64,
    lower: bool,
    upper: bool,
    digit: bool,
}

impl Blob {
    const LENGTH: u64 = 32;

    /// What the text so far counts at least, if the run is an encoding.
    fn floor(&self, sum: u64) -> u64 {
        if self.length >= Self::LENGTH && self.lower && self.upper && self.digit {
            sum.max(self.before + self.length * UNIT * 3 / 4)
        } else {
            sum
        }
    }
}

impl TokenCounter for UpperEstimate {
    fn name(&self) -> &str {
        "upper_estimate"
    }

    fn text(&self, text: &str) -> u64 {
        let mut sum = 0;
        let mut blob = Blob::default();
        let (mut kind, mut run, mut last) = (Kind::None, 0, b' ');
        for byte in text.bytes() {
            let now = match byte {
                b'a'..=b'z' | b'A'..=b'Z' => Kind::Letter,
                b'0'..=b'9' => Kind::Digit,
                b' ' | b'\t' | b'\n' | b'\r' => Kind::Blank,
                0..=0x7f => Kind::Sign,
                _ => Kind::Other,
            };
            // A capital begins a new word.
            let begins = byte.is_ascii_uppercase() && last.is_ascii_lowercase();
            let encodes = byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'_' | b'-');
            if now != kind || begins || encodes != (blob.length > 0) {
                sum += of_run(kind, run);
                (kind, run) = (now, 0);
            }
            if !encodes {
                sum = blob.floor(sum);
                blob.length = 0;
            } else if blob.length == 0 {
                blob = Blob { before: sum, ..Blob::default() };
            }
            run += match now {
                Kind::Sign if byte == last => 1,
                Kind::Sign => 4,
                Kind::Other => of_first_byte(byte),
                _ => 1,
            };
            if encodes {
                blob.length += 1;
                blob.lower |= byte.is_ascii_lowercase();
                blob.upper |= byte.is_ascii_uppercase();
                blob.digit |= byte.is_ascii_digit();
            }
            last = byte;
        }
        sum += of_run(kind, run);
        blob.floor(sum).div_ceil(UNIT)
    }
}

/// What a run counts, in parts of a token. Runs of signs are given in quarters.
fn of_run(kind: Kind, run: u64) -> u64 {
    match kind {
        _ if run == 0 => 0,
        Kind::Letter => UNIT.max(run * UNIT * 4 / 15),
        Kind::Digit => run * UNIT * 11 / 20,
        Kind::Sign => UNIT.max(run * UNIT / 8),
        // A single blank is part of the word behind it.
        Kind::Blank if run == 1 => 0,
        Kind::Blank => UNIT + run * UNIT / 16,
        Kind::Other => run,
        Kind::None => 0,
    }
}

/// What the character counts that begins with this byte; the others of it count nothing.
fn of_first_byte(byte: u8) -> u64 {
    match byte {
        0x80..=0xbf => 0,
        0xc0..=0xdf => UNIT * 4 / 5,
        0xe0..=0xef => UNIT * 7 / 5,
        _ => UNIT * 16 / 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `o200k_base` and `cl100k_base` count, the larger of the two.
    #[test]
    fn the_estimate_errs_upwards_and_not_by_much() {
        for (text, counted) in [
            ("Corals are marine invertebrates within the class Anthozoa.", 15),
            ("{\"id\":42,\"name\":\"reef\",\"tags\":[\"a\",\"b\"],\"depth\":12.75}", 22),
            ("fn main() {\n    let total: u64 = items.iter().map(|i| i.size).sum();\n}\n", 24),
            ("珊瑚是动物，它们生活在温暖的海水里。", 24),
            ("c2hhNTEyLVpXRm1ZVzV2ZEdobGNnPT1BQkNERUZHSElKS0xNTk9Q", 38),
        ] {
            let estimate = UpperEstimate.text(text);
            assert!(estimate >= counted && estimate <= counted * 2, "{text}: {estimate}, counted {counted}");
        }
        assert_eq!(UpperEstimate.text(""), 0);
    }

    #[test]
    fn a_longer_text_never_counts_less_by_more_than_a_word() {
        let text = "Pin the version `0.4.1` of libfoo, see https://example.org/a-b_c?x=1 … 珊瑚 WXyz09+/WXyz09+/WXyz09+/WXyz09+/.";
        let mut most = 0;
        for (end, _) in text.char_indices() {
            let tokens = UpperEstimate.text(&text[..end]);
            assert!(tokens + 1 >= most, "{} {tokens} {most}", &text[..end]);
            most = most.max(tokens);
        }
    }
}
