//! The error of this crate and of every adapter: plain data, so that a journal can record a
//! failure and replay it exactly.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::handoff::Finding;

/// What a caller may do about an error.
///
/// The class is decided where the error arises and never guessed from a message. A call is
/// repeated only when its error is [`Transient`](ErrorClass::Transient): for paid calls and
/// tools with side effects the default must be *not* to repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// The same call may succeed later; nothing was done or paid.
    Transient,
    /// Something Coral stands on failed; repeating blindly is not safe.
    System,
    /// The caller asked for something that can't be done; only a changed request helps.
    User,
}

/// How a call to a model failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelFault {
    /// The key is missing, wrong or not allowed to use this model.
    Authentication,
    /// The provider limits the rate; a reset hint may come with it.
    RateLimited,
    /// Credit or a spending limit is used up: waiting does not help.
    QuotaExhausted,
    /// The provider has too much load (HTTP 503, 529).
    Overloaded,
    /// The provider failed inside (HTTP 5xx).
    Provider,
    /// The request does not fit the model's context window.
    ContextTooLong,
    /// The provider refuses the request's form.
    InvalidRequest,
    /// The provider's filter stopped the request or the answer.
    ContentFiltered,
    /// No connection could be made; nothing was sent.
    Connect,
    /// No answer came in time.
    Timeout,
    /// The answer broke off, or ended without the provider's end mark.
    Truncated,
    /// The answer could not be understood.
    Malformed,
    /// The endpoint has no such model.
    UnknownModel,
}

/// How a tool call failed before the tool could answer.
///
/// A tool that runs and reports an error of its own is not a fault: that is a
/// [`ToolOutput`](crate::ToolOutput) with `is_error` set, which the model sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolFault {
    /// No server offers the tool.
    UnknownTool,
    /// The arguments do not fit the tool's schema.
    InvalidArguments,
    /// The server can't be reached, or went away before it took the call.
    Unavailable,
    /// No answer in time: whether the tool ran is unknown.
    Timeout,
    /// The server broke the protocol.
    Protocol,
}

/// What happened. Each kind has a stable code and a page under `docs/errors/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// A definition, a request or a setting is not usable.
    #[error("{what} is not valid: {problem}")]
    Invalid {
        /// What is wrong, such as `workflow` or `permission file`.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Several problems found at once while loading.
    #[error("{what} has {} problem{}: {}", problems.len(), if problems.len() == 1 { "" } else { "s" }, problems.join("; "))]
    Problems {
        /// What was loaded.
        what: String,
        /// Every problem, in the order of the source.
        problems: Vec<String>,
    },
    /// A name that nothing answers to.
    #[error("no {what} is called `{name}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    NotFound {
        /// The kind of thing looked for, such as `agent`.
        what: String,
        /// The name as it was asked for.
        name: String,
        /// The known name that is most alike, if any is.
        nearest: Option<String>,
    },
    /// A step lacks a deliverable that its agent depends on.
    #[error("step `{step}` needs {missing:?}, and no earlier step delivers it")]
    MissingDependency {
        /// The step.
        step: String,
        /// The deliverable types that nothing delivers.
        missing: Vec<String>,
    },
    /// A permission check refused the call.
    #[error("`{action}` is denied to `{agent}`: {reason}")]
    Denied {
        /// The agent that asked.
        agent: String,
        /// What it asked for.
        action: String,
        /// The rule that decided.
        reason: String,
    },
    /// A tool call that a person must approve first. In a run the engine asks, and calls again with
    /// the [`Approval`](crate::Approval); elsewhere this is the refusal.
    #[error("`{tool}` needs a person's approval: {reason}")]
    NeedsApproval {
        /// The tool.
        tool: String,
        /// Why somebody must look at it: what the person is told.
        reason: String,
    },
    /// A reviewer is not content with the work of steps before it.
    #[error("`{step}` sends work back: {}", findings.iter().map(|f| format!("`{}`: {}", f.to, f.finding)).collect::<Vec<_>>().join("; "))]
    Rejected {
        /// The path of the reviewer's step.
        step: String,
        /// What is to be mended, and by whom.
        findings: Vec<Finding>,
    },
    /// A replayed step asked for another effect than the one recorded.
    #[error(
        "replay of `{path}` diverged at effect {index} (seq {seq}): recorded {expected}, asked for {found}"
    )]
    Divergence {
        /// The step's path.
        path: String,
        /// The effect's index in the step.
        index: u32,
        /// Where the recorded intent stands in the journal.
        seq: u64,
        /// The recorded effect.
        expected: String,
        /// The effect that was asked for now.
        found: String,
    },
    /// A run would go on under another definition than the one it began with.
    #[error("run `{run}` began under another definition: {diff}")]
    DefinitionChanged {
        /// The run.
        run: String,
        /// What differs, readable.
        diff: String,
    },
    /// An append found the journal at another position.
    #[error("run `{run}` is at seq {found}, expected {expected}")]
    Conflict {
        /// The run.
        run: String,
        /// The position that the writer expected.
        expected: u64,
        /// The position found.
        found: u64,
    },
    /// Another process took the run over.
    #[error("run `{run}` was taken over: this writer holds epoch {held}, the journal is at {found}")]
    Fenced {
        /// The run.
        run: String,
        /// The epoch of this writer.
        held: u64,
        /// The epoch of the journal.
        found: u64,
    },
    /// A model call failed.
    #[error("model `{model}` failed ({}): {problem}", snake(fault))]
    Model {
        /// How it failed.
        fault: ModelFault,
        /// The model asked.
        model: String,
        /// What the provider said, without secrets.
        problem: String,
    },
    /// A tool call failed before the tool could answer.
    #[error("tool `{tool}` failed ({}): {problem}", snake(fault))]
    Tool {
        /// How it failed.
        fault: ToolFault,
        /// The tool's full name.
        tool: String,
        /// What went wrong.
        problem: String,
    },
    /// An answer did not fit its schema after the allowed repair turns.
    #[error("the answer does not fit the output format: {problem}")]
    Output {
        /// What does not fit.
        problem: String,
    },
    /// A named limit ended the work.
    #[error("limit `{limit}` of {max} reached")]
    Limit {
        /// The limit's name, such as `max_turns` of a named loop.
        limit: String,
        /// Its value.
        max: u64,
    },
    /// A budget does not allow the next call.
    #[error("budget `{budget}` is used up: {problem}")]
    Budget {
        /// The budget's name.
        budget: String,
        /// What was asked and what is left.
        problem: String,
    },
    /// A crash left it unknown whether an effect took place.
    #[error("effect {index} of `{path}` ({label}) began and its outcome is unknown")]
    InDoubt {
        /// The step's path.
        path: String,
        /// The effect's index in the step.
        index: u32,
        /// What the effect is.
        label: String,
    },
    /// A journal, cache or blob store failed.
    #[error("{operation} failed: {problem}")]
    Storage {
        /// What was tried.
        operation: String,
        /// What went wrong.
        problem: String,
        /// Whether a later try may succeed.
        transient: bool,
    },
    /// The work was cancelled.
    #[error("cancelled: {reason}")]
    Cancelled {
        /// Why.
        reason: String,
    },
    /// A step did not end within its time.
    #[error("`{what}` did not end within {limit_ms} ms")]
    TimedOut {
        /// What ran.
        what: String,
        /// Its limit in milliseconds.
        limit_ms: u64,
    },
    /// User code panicked; the panic was caught at the step's border.
    #[error("`{what}` panicked: {message}")]
    Panicked {
        /// What ran.
        what: String,
        /// The panic's message.
        message: String,
    },
    /// The run stands still and can be resumed.
    #[error("run `{run}` is suspended")]
    Suspended {
        /// The run.
        run: String,
    },
    /// An agent ended with an error of its own.
    #[error("{message}")]
    Agent {
        /// The agent's words.
        message: String,
        /// The agent's verdict.
        class: ErrorClass,
    },
}

fn snake<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => "unknown".to_owned(),
    }
}

impl ErrorKind {
    /// The stable code, such as `CORAL0006`; `docs/errors/` has a page for each.
    pub fn code(&self) -> &'static str {
        match self {
            ErrorKind::Invalid { .. } => "CORAL0001",
            ErrorKind::Problems { .. } => "CORAL0002",
            ErrorKind::NotFound { .. } => "CORAL0003",
            ErrorKind::MissingDependency { .. } => "CORAL0004",
            ErrorKind::Denied { .. } => "CORAL0005",
            ErrorKind::Divergence { .. } => "CORAL0006",
            ErrorKind::DefinitionChanged { .. } => "CORAL0007",
            ErrorKind::Conflict { .. } => "CORAL0008",
            ErrorKind::Fenced { .. } => "CORAL0009",
            ErrorKind::Model { .. } => "CORAL0010",
            ErrorKind::Tool { .. } => "CORAL0011",
            ErrorKind::Output { .. } => "CORAL0012",
            ErrorKind::Limit { .. } => "CORAL0013",
            ErrorKind::Budget { .. } => "CORAL0014",
            ErrorKind::InDoubt { .. } => "CORAL0015",
            ErrorKind::Storage { .. } => "CORAL0016",
            ErrorKind::Cancelled { .. } => "CORAL0017",
            ErrorKind::TimedOut { .. } => "CORAL0018",
            ErrorKind::Panicked { .. } => "CORAL0019",
            ErrorKind::Agent { .. } => "CORAL0020",
            ErrorKind::Suspended { .. } => "CORAL0021",
            ErrorKind::NeedsApproval { .. } => "CORAL0022",
            ErrorKind::Rejected { .. } => "CORAL0023",
        }
    }

    /// What a caller may do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            ErrorKind::Model { fault, .. } => match fault {
                ModelFault::RateLimited
                | ModelFault::Overloaded
                | ModelFault::Provider
                | ModelFault::Connect => ErrorClass::Transient,
                ModelFault::Timeout | ModelFault::Truncated | ModelFault::Malformed => ErrorClass::System,
                _ => ErrorClass::User,
            },
            ErrorKind::Tool { fault, .. } => match fault {
                ToolFault::Unavailable => ErrorClass::Transient,
                ToolFault::Timeout | ToolFault::Protocol => ErrorClass::System,
                _ => ErrorClass::User,
            },
            ErrorKind::Storage { transient: true, .. } => ErrorClass::Transient,
            ErrorKind::Agent { class, .. } => *class,
            ErrorKind::Conflict { .. }
            | ErrorKind::Fenced { .. }
            | ErrorKind::Output { .. }
            | ErrorKind::InDoubt { .. }
            | ErrorKind::Storage { .. }
            | ErrorKind::TimedOut { .. }
            | ErrorKind::Panicked { .. } => ErrorClass::System,
            _ => ErrorClass::User,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Repr {
    #[serde(flatten)]
    kind: ErrorKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    help: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<String>,
}

/// An error of Coral: what happened ([`kind`](Error::kind)), what may be done about it
/// ([`class`](Error::class)), what to do next ([`help`](Error::help)).
///
/// It is one word wide and serialises without loss.
///
/// ```
/// use coral_core::{Error, ErrorClass, ErrorKind, ModelFault};
///
/// let error = Error::new(ErrorKind::Model {
///     fault: ModelFault::RateLimited,
///     model: "small".into(),
///     problem: "60 requests a minute".into(),
/// })
/// .with_retry_after_ms(7_000);
/// assert_eq!(error.class(), ErrorClass::Transient);
/// assert_eq!(error.code(), "CORAL0010");
/// assert_eq!(error.to_string(), "model `small` failed (rate_limited): 60 requests a minute");
/// ```
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Error(Box<Repr>);

impl Error {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind) -> Self {
        Error(Box::new(Repr { kind, help: None, retry_after_ms: None, place: None }))
    }

    /// A definition, request or setting that is not usable.
    pub fn invalid(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid { what: what.into(), problem: problem.into() })
    }

    /// A name that nothing answers to; the most similar of `known` is suggested.
    pub fn not_found<'a>(
        what: impl Into<String>,
        name: impl Into<String>,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let name = name.into();
        let nearest = nearest(&name, known).map(str::to_owned);
        Error::new(ErrorKind::NotFound { what: what.into(), name, nearest })
    }

    /// A failed journal, cache or blob operation that a later try does not mend.
    pub fn storage(operation: impl Into<String>, problem: impl fmt::Display) -> Self {
        Error::new(ErrorKind::Storage {
            operation: operation.into(),
            problem: problem.to_string(),
            transient: false,
        })
    }

    /// Says what to do next.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// Says when the same call may be made again, in milliseconds from now.
    #[must_use]
    pub fn with_retry_after_ms(mut self, retry_after_ms: u64) -> Self {
        self.0.retry_after_ms = Some(retry_after_ms);
        self
    }

    /// Says where it happened, such as a file and line or a step; an inner place stays.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.0.place.get_or_insert_with(|| place.into());
        self
    }

    /// What happened.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The stable code, such as `CORAL0006`.
    pub fn code(&self) -> &'static str {
        self.0.kind.code()
    }

    /// What a caller may do about it.
    pub fn class(&self) -> ErrorClass {
        self.0.kind.class()
    }

    /// Whether the same call may be repeated.
    pub fn is_transient(&self) -> bool {
        self.class() == ErrorClass::Transient
    }

    /// Whether it leaves open what the call that it ended did outside, and what it cost. A refusal does not: nothing
    /// was done.
    pub(crate) fn leaves_doubt(&self) -> bool {
        let filtered = ModelFault::ContentFiltered;
        matches!(&self.0.kind, ErrorKind::Cancelled { .. })
            || matches!(&self.0.kind, ErrorKind::Model { fault, .. } if *fault == filtered)
            || self.class() == ErrorClass::System
    }

    /// Whether another writer holds the run now, so that this one must stop.
    pub fn is_fenced(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Fenced { .. } | ErrorKind::Conflict { .. })
    }

    /// Whether the work was cancelled.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Cancelled { .. })
    }

    /// What to do next, where that is known.
    pub fn help(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// Milliseconds after which the same call may be made again, where the other side said so.
    pub fn retry_after_ms(&self) -> Option<u64> {
        self.0.retry_after_ms
    }

    /// Where it happened, where that is known.
    pub fn place(&self) -> Option<&str> {
        self.0.place.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.0.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}", self.0.kind)?;
        if let Some(help) = &self.0.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{} {:?}]", self, self.code(), self.class())
    }
}

impl std::error::Error for Error {}

/// What an agent returns when it fails: any error of its own, through `?`.
///
/// An error that is not Coral's is classed [`System`](ErrorClass::System), which is never
/// repeated; say [`AgentError::transient`] where repeating the step is safe.
///
/// ```
/// use coral_core::{AgentError, ErrorClass};
///
/// fn parse(text: &str) -> Result<u32, AgentError> {
///     Ok(text.parse::<u32>()?)
/// }
/// let error = parse("x").unwrap_err().into_error();
/// assert_eq!(error.class(), ErrorClass::System);
/// ```
#[derive(Debug)]
pub struct AgentError(Error);

impl AgentError {
    fn of(message: impl Into<String>, class: ErrorClass) -> Self {
        AgentError(Error::new(ErrorKind::Agent { message: message.into(), class }))
    }

    /// The step may be run again.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::of(message, ErrorClass::Transient)
    }

    /// Something that the agent stands on failed.
    pub fn system(message: impl Into<String>) -> Self {
        Self::of(message, ErrorClass::System)
    }

    /// The agent's input can't be worked with.
    pub fn user(message: impl Into<String>) -> Self {
        Self::of(message, ErrorClass::User)
    }

    /// The error as data.
    pub fn into_error(self) -> Error {
        self.0
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for AgentError {
    fn from(error: E) -> Self {
        let error: Box<dyn std::error::Error + Send + Sync> = Box::new(error);
        match error.downcast::<Error>() {
            Ok(error) => AgentError(*error),
            Err(other) => {
                let mut message = other.to_string();
                let mut source = other.source();
                while let Some(cause) = source {
                    message.push_str(": ");
                    message.push_str(&cause.to_string());
                    source = cause.source();
                }
                AgentError::system(message)
            }
        }
    }
}

/// The one of `known` that is most like `name`, if any is alike enough to suggest.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = name.chars().count().div_ceil(3).max(1);
    known
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (slot, y) in row.iter_mut().skip(1).zip(&b) {
            let here = (diagonal + usize::from(x != *y)).min(*slot + 1).min(left + 1);
            diagonal = *slot;
            *slot = here;
            left = here;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, expected) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("qa", "aq", 2)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn errors_round_trip_as_data() {
        let error =
            Error::not_found("agent", "backend_develper", ["frontend_developer", "backend_developer"])
                .with_help("list the agents with --list-agents")
                .at("team.yaml:3");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(serde_json::from_str::<Error>(&text).unwrap(), error);
        assert_eq!(
            error.to_string(),
            "team.yaml:3: no agent is called `backend_develper`; did you mean `backend_developer`?; \
             list the agents with --list-agents"
        );
    }
}
