//! The command line.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use coral_core::Error;
use lexopt::prelude::*;
use serde_json::Value;

pub const HELP: &str = "\
A team of agents works through a brief, and leaves its deliverables and a report.

Usage:
  cargo run --example deliver -- BRIEF [options]
  cargo run --example deliver -- --resume RUN [options]

Options:
  --out DIR            Where deliverables, report.html and run.json go [default: target/deliver]
  --model MODEL        `provider/model`, such as `ollama/qwen3`, or `offline`
                       [default: what the environment asks for]
  --workflow FILE      A workflow in YAML [default: the built-in `documentation_first`]
  --condition K=V      A fact that conditions ask for, such as `needs_mobile=true`; repeatable
  --permissions FILE   Who may use which tool, where [default: examples/permissions.yaml]
  --resume RUN         Go on with a run that was killed, stopped or failed
  --list-agents        Show the agents that workflows may name
  --help               Show this

Environment:
  ANTHROPIC_API_KEY, OPENAI_API_KEY (and OPENAI_BASE_URL) or OLLAMA_HOST choose the provider,
  CORAL_MODEL the model. Without any of them the run is offline: no language model is called.

Exit code: 0 when the run succeeded, 2 after an error, 130 when it was stopped.
";

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Asked {
    Help,
    ListAgents,
    Job(Job),
}

/// A run to start or to go on with.
#[derive(Debug, PartialEq)]
pub struct Job {
    pub source: Source,
    pub out: PathBuf,
    pub model: Option<String>,
    pub permissions: Option<PathBuf>,
}

#[derive(Debug, PartialEq)]
pub enum Source {
    Start { brief: PathBuf, workflow: Option<PathBuf>, conditions: BTreeMap<String, Value> },
    Resume { run: String },
}

pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Asked, Error> {
    read(args).map_err(|error| error.with_help("see --help"))
}

fn read(args: impl IntoIterator<Item = OsString>) -> Result<Asked, Error> {
    let (mut brief, mut workflow, mut resume) = (None, None, None);
    let (mut out, mut model, mut permissions) = (None, None, None);
    let mut conditions = BTreeMap::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next().map_err(wrong)? {
        match arg {
            Long("help") | Short('h') => return Ok(Asked::Help),
            Long("list-agents") => return Ok(Asked::ListAgents),
            Long("out") => out = Some(PathBuf::from(text(&mut parser)?)),
            Long("model") => model = Some(text(&mut parser)?),
            Long("workflow") => workflow = Some(PathBuf::from(text(&mut parser)?)),
            Long("permissions") => permissions = Some(PathBuf::from(text(&mut parser)?)),
            Long("resume") => resume = Some(text(&mut parser)?),
            Long("condition") => conditions.extend([condition(&text(&mut parser)?)?]),
            Value(path) if brief.is_none() => brief = Some(PathBuf::from(path)),
            other => return Err(wrong(other.unexpected())),
        }
    }
    let source = match (brief, resume) {
        (Some(brief), None) => Source::Start { brief, workflow, conditions },
        (None, Some(_)) if workflow.is_some() || !conditions.is_empty() => {
            return Err(Error::invalid(
                "command line",
                "a run goes on under the workflow and the conditions that it began with: leave out --workflow and \
                 --condition",
            ));
        }
        (None, Some(run)) => Source::Resume { run },
        (Some(_), Some(_)) => {
            return Err(Error::invalid(
                "command line",
                "a run that is resumed has its brief: give one of the two",
            ));
        }
        (None, None) => return Err(Error::invalid("command line", "no brief is given")),
    };
    let out = out.unwrap_or_else(|| PathBuf::from("target/deliver"));
    Ok(Asked::Job(Job { source, out, model, permissions }))
}

fn text(parser: &mut lexopt::Parser) -> Result<String, Error> {
    parser.value().and_then(|value| value.string()).map_err(wrong)
}

fn wrong(error: lexopt::Error) -> Error {
    Error::invalid("command line", error.to_string())
}

/// `needs_mobile=true`: a name, and a value that is `true`, `false`, a number or text.
fn condition(text: &str) -> Result<(String, Value), Error> {
    let fits = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match text.split_once('=') {
        Some((name, value)) if fits(name.trim()) && !value.trim().is_empty() => {
            let value = value.trim();
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            Ok((name.trim().to_owned(), value))
        }
        _ => Err(Error::invalid(
            "command line",
            format!("condition `{text}` is not of the form `NAME=VALUE`, such as `needs_mobile=true`"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(line: &str) -> Result<Asked, Error> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_start_has_a_brief_and_perhaps_conditions() {
        let asked =
            parsed("b.md --out o --condition a=true --condition=n=3 --condition who=me --model offline");
        let conditions = [("a", json!(true)), ("n", json!(3)), ("who", json!("me"))];
        let expected = Job {
            source: Source::Start {
                brief: "b.md".into(),
                workflow: None,
                conditions: conditions.map(|(name, value)| (name.to_owned(), value)).into(),
            },
            out: "o".into(),
            model: Some("offline".into()),
            permissions: None,
        };
        assert_eq!(asked.unwrap(), Asked::Job(expected));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for (line, expected) in [
            ("", "no brief is given"),
            ("a b", "unexpected argument \"b\""),
            ("a --modle x", "invalid option '--modle'"),
            ("a --out", "missing argument for option '--out'"),
            ("a --resume r", "a run that is resumed has its brief: give one of the two"),
            ("--resume r --condition a=b", "leave out --workflow and --condition"),
            ("a --condition mobile", "condition `mobile` is not of the form `NAME=VALUE`"),
            ("a --condition =true", "condition `=true` is not of the form `NAME=VALUE`"),
            ("a --condition b=", "condition `b=` is not of the form `NAME=VALUE`"),
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.contains(expected) && error.ends_with("; see --help"), "{line}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
