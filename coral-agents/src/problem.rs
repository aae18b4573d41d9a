//! Problems of a file, collected so that all are reported at once.

use std::fmt;

use coral_core::{Error, ErrorKind};

/// Something that is wrong in a text, with its line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(line: usize, message: impl Into<String>) -> Self {
        let message = message.into();
        // What is quoted from the file may have line breaks; a message is one line.
        let message = if message.contains(char::is_control) {
            message
                .chars()
                .map(|c| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() })
                .collect()
        } else {
            message
        };
        Problem { line, message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// The problems of one text.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, line: usize, message: impl Into<String>) {
        self.0.push(Problem::new(line, message));
    }

    pub(crate) fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `value` if there are no problems; else one error with all of them in the order of the
    /// lines, each as `file:line: message`.
    pub(crate) fn finish<T>(mut self, what: &str, file: &str, value: T) -> Result<T, Error> {
        if self.is_empty() { Ok(value) } else { Err(self.error(what, file)) }
    }

    #[cfg(test)]
    pub(crate) fn lines(mut self) -> Vec<String> {
        self.0.sort();
        self.0.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn error(&mut self, what: &str, file: &str) -> Error {
        self.0.sort();
        self.0.dedup();
        Error::new(ErrorKind::Problems {
            what: format!("{what} `{file}`"),
            problems: self.0.iter().map(|p| format!("{file}:{}: {}", p.line, p.message)).collect(),
        })
    }
}

/// ``; did you mean `x`?`` for the known name that is most like `name`, or nothing.
pub(crate) fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    coral_core::nearest(name, known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}
