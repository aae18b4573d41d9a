//! The cases of an evaluation, from a YAML file.

use std::collections::BTreeMap;
use std::path::Path;

use coral_core::{Brief, Error};
use serde_json::Value;

use super::{CheckResult, expression_problem};
use crate::problem::{Problems, hint};
use crate::yaml::{self, Entry, Node, Yaml};

const WHAT: &str = "evaluation";
const KINDS: [&str; 5] = ["contains", "lacks", "delivers", "holds", "rubric"];

/// A set of cases.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Its name.
    pub name: String,
    /// The cases, in order.
    pub cases: Vec<Case>,
}

/// One case: what is asked, and what a good answer has.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Its name, unique in the set.
    pub name: String,
    /// What the candidate is given.
    pub brief: Brief,
    /// Files that are there when it begins, by path: what is to be reviewed, changed or measured.
    pub files: BTreeMap<String, String>,
    /// What its output is held against.
    pub checks: Vec<Check>,
}

/// Something that an output is held against.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What is looked at.
    pub kind: CheckKind,
    /// The file that is looked at instead of the output, by its path or the type of its deliverable.
    pub file: Option<String>,
    /// How much it counts against the others.
    pub weight: f64,
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum CheckKind {
    /// Some text of the output has this, in whatever case.
    Contains(String),
    /// No text of the output has this.
    Lacks(String),
    /// A deliverable of this type is listed.
    Delivers(String),
    /// An expression over `output` and `brief` holds, such as `output.decisions|length >= 2`.
    Holds(String),
    /// A model grades how well this criterion is met.
    Rubric {
        /// The criterion.
        text: String,
        /// The grade, from 0 to 1, that is good enough.
        at_least: f64,
    },
}

impl Check {
    /// What it is, in a few words.
    pub fn label(&self) -> String {
        let label = match &self.kind {
            CheckKind::Contains(text) => format!("contains `{text}`"),
            CheckKind::Lacks(text) => format!("lacks `{text}`"),
            CheckKind::Delivers(kind) => format!("delivers `{kind}`"),
            CheckKind::Holds(expression) => format!("`{expression}`"),
            CheckKind::Rubric { text, .. } => text.clone(),
        };
        match &self.file {
            Some(file) => format!("`{file}`: {label}"),
            None => label,
        }
    }

    pub(super) fn result(&self, score: f64, why: &str) -> CheckResult {
        CheckResult {
            check: self.label(),
            score,
            weight: self.weight,
            passed: score >= 1.0,
            graded: true,
            why: why.to_owned(),
        }
    }
}

/// Reads the cases of an evaluation. `file` is the name for errors.
///
/// ```yaml
/// name: architect
/// cases:
///   - name: small
///     brief: A page to write notes on, for one person.
///     facts: {expects_load: false}
///     expect:
///       - delivers: technical_specification
///       - lacks: microservice
///       - holds: output.decisions|length >= 2
///         weight: 2
///       - rubric: Every decision names what was chosen against it.
///         at_least: 0.6
///       - file: technical_specification   # a deliverable's type, or a path
///         contains: backup
/// ```
///
/// A check with a `file` looks at its text instead of the output: `contains`, `lacks`, `rubric`, or
/// `holds`, where `output` is then the text. A case may bring `files` along, a map of paths to texts.
/// Both need [`Candidate::with_workspaces`](crate::Candidate::with_workspaces).
///
/// # Errors
/// [`Problems`](coral_core::ErrorKind::Problems) with all that is wrong, each as `file:line: …`.
pub fn parse_cases(file: &str, text: &str) -> Result<Evaluation, Error> {
    let mut problems = Problems::default();
    let stem = Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut evaluation = Evaluation { name: stem, cases: Vec::new() };
    match yaml::parse(text, 1) {
        Err(problem) => problems.push(problem),
        Ok(node) => {
            for entry in keys(&node, &["name", "cases"], &mut problems) {
                match (&*entry.key, &entry.value.yaml) {
                    ("name", Yaml::Text(name)) => name.as_ref().clone_into(&mut evaluation.name),
                    ("cases", Yaml::List(cases)) => {
                        evaluation.cases =
                            cases.iter().filter_map(|node| case(node, &mut problems)).collect();
                    }
                    (key, _) => problems.add(entry.line, format!("`{key}` can't be {}", entry.value.kind())),
                }
            }
            if problems.is_empty() && evaluation.cases.is_empty() {
                problems.add(node.line, "there are no `cases`");
            }
            for (i, case) in evaluation.cases.iter().enumerate() {
                if evaluation.cases.iter().take(i).any(|other| other.name == case.name) {
                    let line = node.line_of_text(&case.name).unwrap_or(node.line);
                    problems.add(line, format!("case `{}` is there twice", case.name));
                }
            }
        }
    }
    problems.finish(WHAT, file, evaluation)
}

/// The entries of a mapping whose keys are known; others are problems.
fn keys<'a>(node: &'a Node<'a>, known: &[&str], problems: &mut Problems) -> Vec<&'a Entry<'a>> {
    if !matches!(node.yaml, Yaml::Map(_)) {
        problems.add(node.line, format!("expected a mapping, found {}", node.kind()));
    }
    node.entries()
        .iter()
        .filter(|entry| {
            let is_known = known.contains(&&*entry.key);
            if !is_known {
                let near = hint(&entry.key, known.iter().copied());
                problems.add(entry.line, format!("unknown key `{}`{near}", entry.key));
            }
            is_known
        })
        .collect()
}

fn case(node: &Node<'_>, problems: &mut Problems) -> Option<Case> {
    let (mut name, mut text, mut project, mut facts) = (None, None, None, BTreeMap::new());
    let mut files = BTreeMap::new();
    let mut checks = Vec::new();
    for entry in keys(node, &["name", "brief", "project", "facts", "files", "expect"], problems) {
        match (&*entry.key, &entry.value.yaml) {
            ("name", Yaml::Text(value)) => name = Some(value.to_string()),
            ("brief", Yaml::Text(value)) => text = Some(value.to_string()),
            ("project", Yaml::Text(value)) => project = Some(value.to_string()),
            ("facts", Yaml::Map(_)) => match entry.value.read::<BTreeMap<String, Value>>() {
                Ok(value) => facts = value,
                Err(problem) => problems.push(problem),
            },
            ("files", Yaml::Map(_)) => match entry.value.read::<BTreeMap<String, String>>() {
                Ok(value) => files = value,
                Err(problem) => problems.push(problem),
            },
            ("expect", Yaml::List(nodes)) => {
                checks = nodes.iter().filter_map(|node| check(node, problems)).collect();
            }
            (key, _) => problems.add(entry.line, format!("`{key}` can't be {}", entry.value.kind())),
        }
    }
    match (name, text) {
        (Some(name), Some(text)) => {
            if node.get("expect").is_none_or(|expect| expect.yaml == Yaml::List(Vec::new())) {
                problems.add(node.line, format!("case `{name}` expects nothing: add `expect`"));
            }
            let brief = Brief { project: project.unwrap_or_else(|| name.clone()), text: text.into(), facts };
            Some(Case { name, brief, files, checks })
        }
        (name, text) => {
            for (key, missing) in [("name", name.is_none()), ("brief", text.is_none())] {
                if missing && node.get(key).is_none() {
                    problems.add(node.line, format!("the case has no `{key}`"));
                }
            }
            None
        }
    }
}

fn check(node: &Node<'_>, problems: &mut Problems) -> Option<Check> {
    let (mut found, mut weight, mut at_least, mut file) = (None, 1.0, None, None);
    let known: Vec<&str> = KINDS.into_iter().chain(["file", "weight", "at_least"]).collect();
    for entry in keys(node, &known, problems) {
        let value = &entry.value;
        match &*entry.key {
            "file" => match value.as_text() {
                Some(text) if !text.trim().is_empty() => file = Some((value.line, text.trim().to_owned())),
                _ => problems.add(value.line, "`file` must be a path or the type of a deliverable"),
            },
            "weight" => match value.read::<f64>() {
                Ok(number) if number > 0.0 => weight = number,
                _ => problems.add(value.line, "`weight` must be a number above 0"),
            },
            "at_least" => match value.read::<f64>() {
                Ok(number) if (0.0..=1.0).contains(&number) => at_least = Some((value.line, number)),
                _ => problems.add(value.line, "`at_least` must be a number from 0 to 1"),
            },
            kind => match (value.as_text(), &found) {
                (Some(text), None) => {
                    if let Some(problem) = (kind == "holds").then(|| expression_problem(text)).flatten() {
                        problems.add(value.line, format!("expression `{text}`: {problem}"));
                    }
                    found = Some((kind.to_owned(), text.to_owned()));
                }
                (Some(_), Some((other, _))) => {
                    problems.add(entry.line, format!("a check is one thing, and this is `{other}` already"));
                }
                (None, _) => problems.add(value.line, format!("`{kind}` must be text, not {}", value.kind())),
            },
        }
    }
    let Some((kind, text)) = found else {
        if problems.is_empty() {
            problems.add(node.line, format!("a check has one of the keys `{}`", KINDS.join("`, `")));
        }
        return None;
    };
    if let Some((line, _)) = at_least.filter(|_| kind != "rubric") {
        problems.add(line, "`at_least` belongs to a `rubric`");
    }
    if let Some((line, _)) = file.as_ref().filter(|_| kind == "delivers") {
        problems.add(*line, "`delivers` is about the report, not about a `file`");
    }
    let kind = match kind.as_str() {
        "contains" => CheckKind::Contains(text),
        "lacks" => CheckKind::Lacks(text),
        "delivers" => CheckKind::Delivers(text),
        "holds" => CheckKind::Holds(text),
        _ => CheckKind::Rubric { text, at_least: at_least.map_or(0.7, |(_, number)| number) },
    };
    Some(Check { kind, file: file.map(|(_, file)| file), weight })
}
