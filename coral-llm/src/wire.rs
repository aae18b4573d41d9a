//! The wire formats: each a pure codec that encodes a request and decodes bytes, and does no I/O.

use bytes::Bytes;
use coral_core::{ChatRequest, ChatResponse, Delta, Error};
use serde::{Deserialize, Serialize};

use crate::dialect::Dialect;
use crate::failure::Failure;

mod alike;
mod anthropic;
mod assembly;
mod call;
mod framing;
mod gemini;
mod ollama;
mod openai_chat;
mod openai_responses;
mod read;
pub(crate) mod schema;

use assembly::Assembly;
use call::Call;
use framing::Framer;
pub use framing::Framing;

/// A wire format.
///
/// ```
/// use coral_core::{ChatRequest, Delta};
/// use coral_llm::{Dialect, Framing, Protocol};
///
/// let protocol = Protocol::OpenAiChat;
/// let request = protocol.encode(&ChatRequest::user("hello"), "gpt-x", true, &Dialect::default())?;
/// assert_eq!(request.path, "/chat/completions");
///
/// let mut decoder = protocol.decoder(Framing::Sse, &Dialect::default());
/// let mut seen = String::new();
/// for bytes in ["data: {\"choices\":[{\"delta\":{\"content\":\"hi\"},\"finish", "_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"] {
///     decoder.feed(bytes.into(), &mut |delta: &Delta| seen.push_str(&delta.to_string())).unwrap();
/// }
/// assert_eq!(seen, "hi");
/// assert_eq!(decoder.finish(&mut |_| {}).unwrap().message.text(), "hi");
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Protocol {
    /// Anthropic's Messages.
    Anthropic,
    /// OpenAI's chat completions, spoken by many.
    #[serde(rename = "openai_chat")]
    OpenAiChat,
    /// OpenAI's Responses.
    #[serde(rename = "openai_responses")]
    OpenAiResponses,
    /// Google's Gemini.
    Gemini,
    /// Ollama's own chat.
    Ollama,
}

/// A request as it travels, without host and key.
#[derive(Clone, Debug, PartialEq)]
pub struct WireRequest {
    /// What follows the base URL.
    pub path: String,
    /// Headers beyond `content-type` and the key.
    pub headers: Vec<(&'static str, String)>,
    /// The body, JSON.
    pub body: Bytes,
}

impl Protocol {
    /// Writes `request` for `model`.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if the protocol can't carry the request.
    pub fn encode(
        self,
        request: &ChatRequest,
        model: &str,
        stream: bool,
        dialect: &Dialect,
    ) -> Result<WireRequest, Error> {
        let call = Call { request, model, stream, dialect };
        match self {
            Protocol::Anthropic => anthropic::encode(&call),
            Protocol::OpenAiChat => openai_chat::encode(&call),
            Protocol::OpenAiResponses => openai_responses::encode(&call),
            Protocol::Gemini => gemini::encode(&call),
            Protocol::Ollama => ollama::encode(&call),
        }
    }

    /// A decoder of one answer.
    pub fn decoder(self, framing: Framing, dialect: &Dialect) -> Decoder {
        let reader: Box<dyn Reader> = match self {
            Protocol::Anthropic => Box::new(anthropic::Messages::default()),
            Protocol::OpenAiChat => Box::new(openai_chat::Completions::new(dialect)),
            Protocol::OpenAiResponses => Box::new(openai_responses::Responses::default()),
            Protocol::Gemini => Box::new(gemini::Contents::default()),
            Protocol::Ollama => Box::new(ollama::Lines::default()),
        };
        let out = Assembly::new(framing == Framing::Whole);
        Decoder { framer: Framer::new(framing, dialect.max_event_bytes), reader, out }
    }
}

/// What a codec makes of the events of an answer.
trait Reader: Send {
    /// One event of a stream: its name, where the framing has names, and its data.
    fn event(&mut self, name: Option<&str>, data: &str, out: &mut Assembly) -> Result<(), Failure>;

    /// An answer that came whole.
    fn whole(&mut self, body: &[u8], out: &mut Assembly) -> Result<(), Failure>;
}

/// Decodes one answer from bytes in pieces of any size: the same bytes give the same answer.
///
/// Whether a failure may be repeated depends on whether [anything came](Decoder::has_begun) of the answer. What came was
/// heard and is paid for, so from then on no failure is transient: an overloaded provider has
/// [truncated](coral_core::ModelFault::Truncated) its answer. Before that, an end without the provider's mark is a fault
/// of the [provider](coral_core::ModelFault::Provider) like any other.
pub struct Decoder {
    framer: Framer,
    reader: Box<dyn Reader>,
    out: Assembly,
}

impl Decoder {
    /// Numbers the calls of tools that the provider gives no id after those in `request`, so that each id names one call
    /// of the whole conversation.
    #[must_use]
    pub fn after(mut self, request: &ChatRequest) -> Self {
        self.out.number_from(request);
        self
    }

    /// Takes the next bytes, and reports what they say.
    ///
    /// # Errors
    /// A [`Failure`] ends the answer: the provider reported an error, or the bytes can't be understood.
    pub fn feed(&mut self, bytes: Bytes, listener: &mut dyn FnMut(&Delta)) -> Result<(), Failure> {
        self.framer.push(bytes).and_then(|()| self.read(listener)).map_err(|failure| self.placed(failure))
    }

    /// Whether anything of the answer came.
    pub fn has_begun(&self) -> bool {
        self.out.has_begun() || self.framer.has_whole()
    }

    /// A failure in the terms of how far the answer came.
    pub(crate) fn placed(&self, failure: Failure) -> Failure {
        failure.in_answer(self.has_begun())
    }

    fn read(&mut self, listener: &mut dyn FnMut(&Delta)) -> Result<(), Failure> {
        let mut outcome = Ok(());
        while outcome.is_ok() && !self.out.ended {
            match self.framer.next() {
                Ok(Some(event)) => {
                    outcome = self.reader.event(event.name, event.data, &mut self.out);
                }
                Ok(None) => break,
                Err(failure) => outcome = Err(failure),
            }
        }
        for delta in self.out.deltas.drain(..) {
            listener(&delta);
        }
        outcome
    }

    /// Whether the provider has marked the end of its answer: what follows would not be read.
    pub fn is_done(&self) -> bool {
        self.out.ended
    }

    /// The answer, after the last bytes; reports what only the end of the bytes completed.
    ///
    /// # Errors
    /// [`Truncated`](coral_core::ModelFault::Truncated) if the provider did not end its answer.
    pub fn finish(mut self, listener: &mut dyn FnMut(&Delta)) -> Result<ChatResponse, Failure> {
        let read = match self.framer.take_whole() {
            Some(body) => self.reader.whole(&body, &mut self.out),
            None if self.out.ended => Ok(()),
            None => {
                // Some servers leave out the blank line after their last event. An event that was cut
                // fails to parse here, and is no more than a broken end.
                self.framer.close();
                self.read(listener).or_else(|failure| match failure.fault {
                    coral_core::ModelFault::Malformed => Ok(()),
                    _ => Err(failure),
                })
            }
        };
        let has_begun = self.out.has_begun();
        read.and_then(|()| self.out.finish()).map_err(|failure| failure.in_answer(has_begun))
    }
}
