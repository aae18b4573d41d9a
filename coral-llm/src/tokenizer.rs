//! Exact counts of tokens, where a tokenizer is public.

use bpe_openai::{Tokenizer, cl100k_base, o200k_base};
use coral_core::TokenCounter;

/// Counts the tokens of texts as OpenAI's models do, by tables that are built in.
///
/// Texts are counted exactly. The frame of a message, definitions of tools and images are estimates, since OpenAI does not
/// say how they are written for the model. A model of another provider has another tokenizer, and most publish none: for
/// those [`UpperEstimate`](coral_core::UpperEstimate) errs upwards.
///
/// The time is linear in the length of the text, whatever stands in it. The tables are read at the first count.
///
/// ```
/// use coral_core::TokenCounter;
/// use coral_llm::{Fitted, OfflineModel, OpenAiTokens, Overflow};
///
/// assert_eq!(OpenAiTokens::o200k().text("hello world"), 2);
/// let model = Fitted::new(OfflineModel::new(), Overflow::Drop).counter(OpenAiTokens::o200k());
/// ```
#[derive(Clone, Copy)]
pub struct OpenAiTokens {
    name: &'static str,
    tokenizer: &'static Tokenizer,
}

impl OpenAiTokens {
    /// The tokens of `gpt-4o` and all since.
    pub fn o200k() -> Self {
        OpenAiTokens { name: "o200k_base", tokenizer: o200k_base() }
    }

    /// The tokens of `gpt-4` and of the embedding models.
    pub fn cl100k() -> Self {
        OpenAiTokens { name: "cl100k_base", tokenizer: cl100k_base() }
    }
}

impl TokenCounter for OpenAiTokens {
    fn name(&self) -> &str {
        self.name
    }

    fn text(&self, text: &str) -> u64 {
        self.tokenizer.count(text) as u64
    }
}

impl std::fmt::Debug for OpenAiTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OpenAiTokens").field(&self.name).finish()
    }
}
