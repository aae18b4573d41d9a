//! Prompts from templates, strict about their variables.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use crate::condition::explain;
use crate::error::{Error, nearest};
use crate::spec::AgentSpec;

/// What templates of one part of an agent's prompt may use.
const TASK_NAMES: [&str; 8] =
    ["agent", "available", "brief", "deliverables", "inputs", "instructions", "phase", "tools"];
const SYSTEM_NAMES: [&str; 1] = ["agent"];
const HANDOFF_NAMES: [&str; 3] = ["agent", "report", "to"];

/// Pieces of templates that agents share: `{% include "name" %}`.
#[derive(Clone, Debug, Default)]
pub struct Partials(BTreeMap<String, String>);

impl Partials {
    /// No pieces.
    pub fn new() -> Self {
        Partials::default()
    }

    /// Adds a piece; one of the same name is replaced.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.0.insert(name.into(), text.into());
        self
    }
}

impl<N: Into<String>, T: Into<String>> FromIterator<(N, T)> for Partials {
    fn from_iter<I: IntoIterator<Item = (N, T)>>(pieces: I) -> Self {
        Partials(pieces.into_iter().map(|(name, text)| (name.into(), text.into())).collect())
    }
}

/// The compiled templates of one agent.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    env: Arc<Environment<'static>>,
    /// Whether some template says where the step's instructions go.
    pub(crate) places_instructions: bool,
}

impl Prompt {
    /// Compiles the templates of `spec`.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for a template that can't be read, includes what is not there, or uses
    /// a variable that it does not get.
    pub(crate) fn new(spec: &AgentSpec, partials: &Partials) -> Result<Self, Error> {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        let own = [
            ("@system", &spec.prompt.system_instructions, SYSTEM_NAMES.as_slice()),
            ("@task", &spec.prompt.task_template, TASK_NAMES.as_slice()),
            ("@context", &spec.prompt.context_integration, TASK_NAMES.as_slice()),
            ("@output", &spec.prompt.output_format, TASK_NAMES.as_slice()),
            ("@handoff", &spec.handoff.template, HANDOFF_NAMES.as_slice()),
        ];
        let place = |name: &str| format!("agent `{}`, template `{}`", spec.id, name.trim_start_matches('@'));
        let shared = partials.0.iter().map(|(name, text)| (name.as_str(), text));
        for (name, text) in own.iter().map(|(name, text, _)| (*name, *text)).chain(shared) {
            bounded(text).map_err(|problem| Error::invalid(place(name), problem))?;
            env.add_template_owned(name.to_owned(), text.clone())
                .map_err(|error| bad(&place(name), &error))?;
        }
        let mut places_instructions = false;
        for (name, _, names) in own {
            let template = env.get_template(name).map_err(|error| bad(&place(name), &error))?;
            let mut unknown: Vec<String> = template
                .undeclared_variables(false)
                .into_iter()
                .filter(|variable| !names.contains(&variable.as_str()))
                // Functions of the template language.
                .filter(|variable| {
                    !matches!(variable.as_str(), "range" | "dict" | "namespace" | "debug" | "loop")
                })
                .collect();
            unknown.sort_unstable();
            if let Some(variable) = unknown.first() {
                let hint = match nearest(variable, names.iter().copied()) {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => format!("it gets {}", names.join(", ")),
                };
                return Err(Error::invalid(
                    place(name),
                    format!("variable `{variable}` is not known; {hint}"),
                ));
            }
        }
        for name in own.iter().map(|(name, ..)| *name).chain(partials.0.keys().map(String::as_str)) {
            let template = env.get_template(name).map_err(|error| bad(&place(name), &error))?;
            places_instructions |= template.undeclared_variables(false).contains("instructions");
        }
        Ok(Prompt { env: Arc::new(env), places_instructions })
    }

    /// Renders one of the agent's templates.
    pub(crate) fn render(&self, name: &str, context: impl Serialize) -> Result<String, Error> {
        let place = || format!("template `{}`", name.trim_start_matches('@'));
        let template = self.env.get_template(name).map_err(|error| bad(&place(), &error))?;
        template.render(Serde(context)).map_err(|error| bad(&place(), &error))
    }
}

/// The parser of templates recurses for each operator of a tag and each branch of an `if`; a
/// template from outside must not be able to overflow its stack.
fn bounded(text: &str) -> Result<(), String> {
    const TAG: usize = 1_000;
    const BRANCHES: usize = 200;
    let is_long = |at: usize| {
        let tag = text.as_bytes().get(at..at + TAG);
        tag.is_some_and(|tag| !tag.windows(2).any(|end| end == b"%}" || end == b"}}"))
    };
    let opens = text.match_indices("{%").chain(text.match_indices("{{"));
    if let Some((at, _)) = opens.clone().find(|(at, _)| is_long(*at)) {
        let line = text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
        return Err(format!("the tag in line {line} is longer than {TAG} bytes"));
    }
    if text.matches("elif").count() > BRANCHES
        || text.matches("{% if").count() + text.matches("{%- if").count() > BRANCHES
    {
        return Err(format!("it has more than {BRANCHES} branches"));
    }
    if opens.filter(|(_, tag)| *tag == "{%").count() > 1_000 {
        return Err("it has more than 1,000 block tags".to_owned());
    }
    Ok(())
}

fn bad(place: &str, error: &minijinja::Error) -> Error {
    let mut problem = explain(error);
    if let Some(line) = error.line() {
        let name = error.name().unwrap_or_default();
        problem.push_str(&format!(" (line {line} of `{}`)", name.trim_start_matches('@')));
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        problem.push_str(": ");
        problem.push_str(&cause.to_string());
        source = cause.source();
    }
    Error::invalid(place, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_would_overflow_the_parser_is_refused() {
        for text in [
            format!("{{{{ {}x }}}}", "not ".repeat(20_000)),
            format!("{{% if a %}}{}{{% endif %}}", "{% elif b %}".repeat(20_000)),
            format!("{}{}", "{% for a in b %}".repeat(20_000), "{% endfor %}".repeat(20_000)),
        ] {
            let mut spec = AgentSpec::new("long", "Long");
            spec.prompt.task_template = text;
            let error = Prompt::new(&spec, &Partials::new()).unwrap_err().to_string();
            assert!(error.starts_with("agent `long`, template `task` is not valid:"), "{error}");
        }
    }
}
