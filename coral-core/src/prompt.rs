//! The prompt service: templates, context, sections by capability, fitting, checks, caching, versions.
//!
//! A prompt goes through four stages: **validation** (can the task be worked with), **enrichment** (which
//! values and sections there are), **transformation** (templates to texts) and **optimisation** (to what fits
//! the model). Users add stages of their own, and values from outside. What is the same for all tasks of an agent is
//! the system message: rendered once, and the same bytes in every turn, attempt and step, so that the caches of
//! providers hit.

mod compiled;
mod draft;
mod fit;
mod history;
mod lint;
mod pipeline;
mod service;
mod template;
mod tokens;
mod version;

pub(crate) use self::compiled::Compiled;
pub use self::draft::{Fit, LeftOut, PromptDraft, Section, SectionPart};
pub use self::fit::{Compaction, FitPolicy, Fitted};
pub use self::history::Compacted;
pub(crate) use self::history::{ASK_FOR_SUMMARY, Conversation};
pub use self::lint::{LintRules, PromptFinding, PromptSeverity, lint_prompt};
pub use self::pipeline::{ContextQuery, ContextSource, DynamicSection, PromptPhase, PromptStage};
pub use self::service::{PromptInput, PromptService, PromptServiceBuilder, RenderedPrompt};
pub use self::template::{Partials, Templates};
pub use self::tokens::{TokenCounter, UpperEstimate};
pub use self::version::{ChosenBy, PromptChange, PromptStore, PromptText, PromptUse, PromptVersion};
