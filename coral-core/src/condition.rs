//! Conditions: expressions over recorded facts and outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, LazyLock};

use minijinja::value::{Enumerator, Object, Serde, Value as Jinja};
use minijinja::{Environment, Expression, UndefinedBehavior};
use serde_json::Value;

use crate::error::Error;
use crate::payload::Payload;

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Chainable);
    env
});

/// A condition as data, such as `needs_mobile`, `not facts.offline` or
/// `steps.qa.data.passed and steps.qa.data.coverage >= 0.8`.
///
/// It sees the run's facts, each by its own name and under `facts`; the workflow's input as
/// `input`; and the outputs of the steps before it as `steps`. What is not there is false. The
/// language is that of minijinja's expressions: no I/O, no clock, no loops.
///
/// Workflows have conditions as texts, which are checked when a graph is. This type is for looking at one without a
/// run.
///
/// ```
/// use coral_core::Condition;
///
/// let condition = Condition::new("needs_mobile and facts.users > 100")?;
/// assert_eq!(condition.reads().collect::<Vec<_>>(), ["facts.users", "needs_mobile"]);
/// let facts = [("needs_mobile".to_owned(), true.into()), ("users".to_owned(), 500.into())].into();
/// assert!(condition.holds_for(&facts)?);
/// # Ok::<(), coral_core::Error>(())
/// ```
pub struct Condition {
    source: String,
    expression: Expression<'static, 'static>,
    reads: BTreeSet<String>,
    steps: BTreeSet<String>,
}

/// Bytes of a condition at the most. The parser recurses once for each operator, so a long chain
/// of them would overflow the stack, and that ends the process.
const MAX_LENGTH: usize = 1_000;

impl Condition {
    /// Reads a condition.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if it can't be read.
    pub fn new(source: &str) -> Result<Self, Error> {
        Self::parse(source).map_err(|problem| Error::invalid(format!("condition `{source}`"), problem))
    }

    /// What it reads: `needs_mobile`, `facts.users`, `steps.qa.passed`.
    pub fn reads(&self) -> impl Iterator<Item = &str> {
        self.reads.iter().map(String::as_str)
    }

    /// Whether it holds where nothing is known but facts: no input, and no outputs of steps.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if it does with a fact what can't be done with it.
    pub fn holds_for(&self, facts: &BTreeMap<String, Value>) -> Result<bool, Error> {
        self.holds(&Arc::new(facts.clone()), &Payload::from_json(Value::Null), |_| None, None)
    }

    pub(crate) fn parse(source: &str) -> Result<Self, String> {
        if source.len() > MAX_LENGTH {
            return Err(format!("it is {} bytes long, and may be at most {MAX_LENGTH}", source.len()));
        }
        let expression = ENVIRONMENT.compile_expression_owned(source.to_owned()).map_err(|e| explain(&e))?;
        let reads: BTreeSet<String> = expression.undeclared_variables(true).into_iter().collect();
        let steps = reads
            .iter()
            .filter_map(|name| name.strip_prefix("steps."))
            .filter_map(|rest| rest.split('.').next())
            .map(str::to_owned)
            .collect();
        Ok(Condition { source: source.to_owned(), expression, reads, steps })
    }

    /// The steps whose outputs it reads.
    pub(crate) fn steps(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(String::as_str)
    }

    /// Whether it holds. `output` gives the output of a step, if it has one; `turn` is the number
    /// and the output of a loop's last turn.
    pub(crate) fn holds(
        &self,
        facts: &Arc<BTreeMap<String, Value>>,
        input: &Payload,
        output: impl Fn(&str) -> Option<Payload>,
        turn: Option<(u32, Payload)>,
    ) -> Result<bool, Error> {
        let steps = self.steps().filter_map(|name| Some((name.to_owned(), output(name)?))).collect();
        let scope = Scope { facts: facts.clone(), input: input.clone(), steps, turn };
        self.holds_in(Jinja::from_object(scope))
    }

    /// Whether it holds in a scope of templates.
    pub(crate) fn holds_in(&self, scope: Jinja) -> Result<bool, Error> {
        self.expression
            .eval(scope)
            .map(|value| value.is_true())
            .map_err(|e| Error::invalid(format!("condition `{}`", self.source), explain(&e)))
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Condition").field(&self.source).finish()
    }
}

/// The names that a condition sees, turned into template values only where it looks.
#[derive(Debug)]
struct Scope {
    facts: Arc<BTreeMap<String, Value>>,
    input: Payload,
    steps: BTreeMap<String, Payload>,
    turn: Option<(u32, Payload)>,
}

impl Object for Scope {
    fn get_value(self: &Arc<Self>, key: &Jinja) -> Option<Jinja> {
        match key.as_str()? {
            "facts" => Some(Jinja::from(Serde(&*self.facts))),
            "input" => Some(Jinja::from(Serde(&self.input))),
            "steps" => Some(Jinja::from(Serde(&self.steps))),
            "turn" if self.turn.is_some() => self.turn.as_ref().map(|(number, _)| Jinja::from(*number)),
            "output" if self.turn.is_some() => {
                self.turn.as_ref().map(|(_, output)| Jinja::from(Serde(output)))
            }
            fact => self.facts.get(fact).map(|fact| Jinja::from(Serde(fact))),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["facts", "input", "steps"])
    }
}

/// A template error in one line.
pub(crate) fn explain(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(source: &str, expected: bool) {
        let facts = Arc::new(BTreeMap::from([
            ("needs_mobile".to_owned(), json!(true)),
            ("users".to_owned(), json!(500)),
        ]));
        let input = Payload::from_json(json!({"kind": "web"}));
        let output =
            |name: &str| (name == "qa").then(|| Payload::from_json(json!({"passed": true, "coverage": 0.9})));
        let condition = Condition::parse(source).unwrap();
        assert_eq!(condition.holds(&facts, &input, output, None).unwrap(), expected, "{source}");
    }

    #[test]
    fn conditions_read_facts_input_and_outputs() {
        check("needs_mobile", true);
        check("not needs_mobile", false);
        check("facts.needs_mobile and users > 100", true);
        check("has_ai_features", false);
        check("has_ai_features.at.any.depth", false);
        check("input.kind == 'web'", true);
        check("steps.qa.passed and steps.qa.coverage >= 0.8", true);
        check("steps.security.passed", false);
    }

    #[test]
    fn conditions_name_the_steps_they_read() {
        let condition = Condition::parse("steps.qa.passed or steps.dev.done and x").unwrap();
        assert_eq!(condition.steps().collect::<Vec<_>>(), ["dev", "qa"]);
    }

    #[test]
    fn a_condition_that_would_overflow_the_stack_is_refused() {
        let error = Condition::parse(&"not ".repeat(10_000)).unwrap_err();
        assert_eq!(error, "it is 40000 bytes long, and may be at most 1000");
        assert!(Condition::parse(&"-".repeat(999)).is_err());
        assert!(Condition::parse(&format!("{}x", "-".repeat(999))).is_ok());
    }

    #[test]
    fn a_broken_condition_says_why() {
        let error = Condition::parse("a and (b").unwrap_err();
        assert!(error.contains("syntax error"), "{error}");
    }
}
