//! Reading YAML with messages that name the line.

use coral_core::{Error, ErrorKind};
use serde::de::DeserializeOwned;
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

/// Reads a document whose keys are all known and occur once.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, what: &str, name: &str) -> Result<T, Error> {
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::Error };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let place = match error.location() {
            Some(at) if at.line() > 0 => format!("{name}:{}", at.line()),
            _ => name.to_owned(),
        };
        let message = error.without_snippet().to_string();
        // The parser repeats the position and may draw the source; the place says it already.
        let problem = message.lines().next().unwrap_or_default();
        let problem = problem.split(" at line ").next().unwrap_or(problem);
        Error::invalid(what, problem.trim_start_matches("error: ")).at(place)
    })
}

/// Problems of one document, each with its line.
pub(crate) struct Findings<'a> {
    name: &'a str,
    problems: Vec<String>,
    /// Names that the document itself gives to operations.
    operations: Vec<String>,
}

impl<'a> Findings<'a> {
    pub(crate) fn new(name: &'a str) -> Self {
        Findings { name, problems: Vec::new(), operations: Vec::new() }
    }

    /// Lets the document use a name that it gives to an operation itself.
    pub(crate) fn define_operation(&mut self, name: &str) {
        self.operations.push(name.to_owned());
    }

    pub(crate) fn defines_operation(&self, name: &str) -> bool {
        self.operations.iter().any(|known| known == name)
    }

    /// The place of a value, such as `permissions.yaml:7`.
    pub(crate) fn place<T>(&self, value: &Spanned<T>) -> String {
        match value.referenced.line() {
            0 => self.name.to_owned(),
            line => format!("{}:{line}", self.name),
        }
    }

    pub(crate) fn add<T>(&mut self, value: &Spanned<T>, problem: impl AsRef<str>) {
        self.problems.push(format!("{}: {}", self.place(value), problem.as_ref()));
    }

    /// # Errors
    /// [`Problems`](ErrorKind::Problems) if there are any.
    pub(crate) fn finish(self, what: &str) -> Result<(), Error> {
        if self.problems.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Problems { what: what.to_owned(), problems: self.problems }))
    }
}
