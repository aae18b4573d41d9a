//! Briefs: Markdown with optional front matter.

use std::collections::BTreeMap;
use std::path::Path;

use coral_core::{Brief, Error};
use serde::Deserialize;
use serde_json::Value;

use crate::markdown;
use crate::problem::Problems;
use crate::yaml::{self, Yaml};

const WHAT: &str = "brief";

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Front {
    project: Option<String>,
    facts: BTreeMap<String, Value>,
}

/// Reads a brief. `file` is the name for errors.
///
/// Front matter is optional and has two keys: `project`, the project's name, and `facts`, what
/// the conditions of workflows ask for. Without `project`, the first heading of level 1 names the
/// project, and without one of those the file's own name.
///
/// # Errors
/// [`Problems`](coral_core::ErrorKind::Problems) with all that is wrong, each as `file:line: …`.
///
/// ```
/// let text = "---\nfacts: {needs_mobile: true}\n---\n# Task Manager\n\nA list of tasks for small teams.\n";
/// let brief = coral_agents::parse_brief("task_manager.md", text)?;
/// assert_eq!(brief.project, "Task Manager");
/// assert_eq!(brief.facts["needs_mobile"], true);
/// # Ok::<(), coral_core::Error>(())
/// ```
pub fn parse_brief(file: &str, text: &str) -> Result<Brief, Error> {
    let mut problems = Problems::default();
    let document = markdown::split(text, &mut problems);
    let front = match document.front {
        None => Front::default(),
        Some((front, line)) => match yaml::parse(front, line) {
            Ok(node) if node.yaml == Yaml::Null => Front::default(),
            Ok(node) => node.read::<Front>().map_err(|problem| problems.push(problem)).unwrap_or_default(),
            Err(problem) => {
                problems.push(problem);
                Front::default()
            }
        },
    };
    let body = document.body.trim();
    if problems.is_empty() && body.is_empty() {
        problems.add(
            document.body_line,
            "the brief says nothing: describe what is wanted below the front matter",
        );
    }
    let project = front
        .project
        .filter(|project| !project.trim().is_empty())
        .or_else(|| markdown::title(body).map(str::to_owned))
        .or_else(|| Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned()))
        .unwrap_or_default();
    problems.finish(WHAT, file, Brief { project, text: body.into(), facts: front.facts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_has_a_name_in_any_case() {
        for (text, expected) in [
            ("---\nproject: Mine\n---\n# Other\n", "Mine"),
            ("intro\n```\n# no\n```\n# The Heading #\nx", "The Heading"),
            ("only text", "idea"),
            ("---\n---\nonly text", "idea"),
        ] {
            assert_eq!(parse_brief("briefs/idea.md", text).unwrap().project, expected, "{text}");
        }
    }

    #[test]
    fn facts_are_any_values() {
        let brief = parse_brief("b.md", "---\nfacts:\n  users: 500\n  regions: [eu, us]\n---\ntext").unwrap();
        assert_eq!(
            serde_json::to_value(&brief.facts).unwrap(),
            serde_json::json!({"users": 500, "regions": ["eu", "us"]})
        );
        assert_eq!(&*brief.text, "text");
    }

    #[test]
    fn problems_name_file_and_line() {
        for (text, expected) in [
            (
                "",
                "brief `b.md` has 1 problem: b.md:1: the brief says nothing: describe what is wanted below the front matter",
            ),
            (
                "---\nfact: {a: b}\n---\nx",
                "brief `b.md` has 1 problem: b.md:2: unknown key `fact`; did you mean `facts`?",
            ),
            (
                "---\nfacts: [a]\n---\nx",
                "brief `b.md` has 1 problem: b.md:2: `facts`: expected a map, found a list",
            ),
            (
                "---\nfacts: {a: [}\n---\nx",
                "brief `b.md` has 1 problem: b.md:2: mismatched bracket '[' closed by '}'",
            ),
        ] {
            assert_eq!(parse_brief("b.md", text).unwrap_err().to_string(), expected);
        }
    }
}
