//! Agent definitions: Markdown with YAML front matter.

use coral_core::{AgentSpec, Error};
use serde_json::Value;

use crate::markdown::{self, Section};
use crate::problem::{Problems, hint};
use crate::yaml::{self, Entry, Node, Yaml};

const WHAT: &str = "agent definition";

/// The sections of the body, and where in the spec their text goes.
const SECTIONS: [&str; 6] = ["Role", "System", "Task", "Context", "Output", "Handoff"];

/// Reads an agent definition. `file` is the name for errors.
///
/// The front matter has the keys of [`AgentSpec`] but for the long texts, which are sections of
/// the body:
///
/// | section | field |
/// |---|---|
/// | `## Role` | `role_description` |
/// | `## System` | `prompt.system_instructions` |
/// | `## Task` | `prompt.task_template` |
/// | `## Context` | `prompt.context_integration` |
/// | `## Output` | `prompt.output_format` |
/// | `## Handoff` | `handoff.template` |
/// | `## Phase: NAME` | `phases.NAME.instructions` |
///
/// A heading inside a fenced code block is text. A definition that extends another one
/// (`extends: ID`) can only be read by a [`Registry`](crate::Registry), which knows the other.
///
/// # Errors
/// [`Problems`](coral_core::ErrorKind::Problems) with all that is wrong, each as `file:line: …`.
///
/// ```
/// let text = "---\nid: greeter\nname: Greeter\ncapabilities: [greeting]\n---\n\n## Task\n\nGreet {{ brief.project }}.\n";
/// let spec = coral_agents::parse_agent("greeter.md", text)?;
/// assert_eq!(spec.prompt.task_template, "Greet {{ brief.project }}.");
///
/// let error = coral_agents::parse_agent("greeter.md", "---\nid: greeter\nnmae: Greeter\n---\n").unwrap_err();
/// assert!(error.to_string().contains("greeter.md:3: unknown key `nmae`; did you mean `name`?"));
/// # Ok::<(), coral_core::Error>(())
/// ```
pub fn parse_agent(file: &str, text: &str) -> Result<AgentSpec, Error> {
    let definition = Definition::parse(file, text)?;
    definition.resolve(|_| None)
}

/// A definition whose front matter is read and whose base, if it extends one, is not yet known.
#[derive(Debug)]
pub(crate) struct Definition<'a> {
    file: &'a str,
    front: Node<'a>,
    sections: Vec<Section<'a>>,
    extends: Option<(usize, String)>,
}

impl<'a> Definition<'a> {
    pub(crate) fn parse(file: &'a str, text: &'a str) -> Result<Self, Error> {
        let mut problems = Problems::default();
        let document = markdown::split(text, &mut problems);
        let sections = markdown::sections(document.body, document.body_line, &mut problems);
        let front = match document.front {
            Some((front, line)) => yaml::parse(front, line).map_err(|problem| problems.push(problem)).ok(),
            None if problems.is_empty() => {
                problems
                    .add(1, "the file has no front matter: begin it with `---`, the keys and another `---`");
                None
            }
            None => None,
        };
        let Some(mut front) = front else { return Err(problems.error(WHAT, file)) };
        match &front.yaml {
            Yaml::Map(_) => {}
            Yaml::Null => front.yaml = Yaml::Map(Vec::new()),
            _ => {
                problems.add(front.line, format!("the front matter must be a mapping, not {}", front.kind()));
            }
        }
        let extends = take(&mut front, "extends").and_then(|entry| match entry.value.as_text() {
            Some(base) => Some((entry.line, base.to_owned())),
            None => {
                problems.add(entry.line, "`extends` must be the id of an agent");
                None
            }
        });
        misplaced_texts(&front, &mut problems);
        problems.finish(WHAT, file, Definition { file, front, sections, extends })
    }

    /// The file that it was read from.
    pub(crate) fn file(&self) -> &'a str {
        self.file
    }

    /// The agent that it extends.
    pub(crate) fn extends(&self) -> Option<&str> {
        self.extends.as_ref().map(|(_, base)| base.as_str())
    }

    /// The id that the result will have, where the text says it.
    pub(crate) fn id(&self) -> Option<&str> {
        self.front.get("id").and_then(Node::as_text).or(self.extends())
    }

    /// The spec; `find` looks up the agent that it extends.
    pub(crate) fn resolve<'s>(
        &self,
        find: impl FnOnce(&str) -> Option<&'s AgentSpec>,
    ) -> Result<AgentSpec, Error> {
        let mut problems = Problems::default();
        let front = match &self.extends {
            None => None,
            Some((line, base)) => match find(base) {
                Some(spec) => Some(merged(spec, &self.front, *line)),
                None => {
                    problems.add(*line, format!("no agent is called `{base}`, so it can't be extended"));
                    return Err(problems.error(WHAT, self.file));
                }
            },
        };
        let front = front.as_ref().unwrap_or(&self.front);
        let spec = front.read::<AgentSpec>().map_err(|problem| problems.push(problem));
        let mut spec = spec.unwrap_or_default();
        for section in &self.sections {
            self.apply(section, &mut spec, &mut problems);
        }
        for (i, section) in self.sections.iter().enumerate() {
            if let Some(first) = self.sections.iter().take(i).find(|other| other.title == section.title) {
                problems.add(
                    section.line,
                    format!("section `{}` stands on line {} too", section.title, first.line),
                );
            }
        }
        if problems.is_empty()
            && let Err(error) = spec.validate()
        {
            let message = match error.kind() {
                coral_core::ErrorKind::Invalid { problem, .. } => problem.clone(),
                other => other.to_string(),
            };
            problems.add(self.line_of(&message), message);
        }
        problems.finish(WHAT, self.file, spec)
    }

    /// The line of what `message` is about: it quotes a key (`limits.max_turns`) or a value.
    fn line_of(&self, message: &str) -> usize {
        let quoted = message.split('`').nth(1).unwrap_or("outputs");
        let key = quoted.split('.').next().unwrap_or_default();
        self.front
            .entry(key)
            .map(|entry| entry.line)
            .or_else(|| self.front.line_of_text(quoted))
            .unwrap_or(self.front.line)
    }

    fn apply(&self, section: &Section<'_>, spec: &mut AgentSpec, problems: &mut Problems) {
        let (adds, title) = match section.title.strip_prefix("+ ") {
            Some(title) => (true, title.trim()),
            None => (false, section.title),
        };
        if adds && self.extends.is_none() {
            problems.add(section.line, format!("`## + {title}` adds to a base, and this agent extends none"));
        }
        let text = match title {
            "Role" => &mut spec.role_description,
            "System" => &mut spec.prompt.system_instructions,
            "Task" => &mut spec.prompt.task_template,
            "Context" => &mut spec.prompt.context_integration,
            "Output" => &mut spec.prompt.output_format,
            "Handoff" => &mut spec.handoff.template,
            _ => match title.strip_prefix("Phase:").map(str::trim) {
                Some(phase) if !phase.is_empty() => {
                    &mut spec.phases.entry(phase.to_owned()).or_default().instructions
                }
                Some(_) => return problems.add(section.line, "`## Phase:` needs the name of a phase"),
                None => {
                    let near = hint(title, SECTIONS);
                    let known = if near.is_empty() {
                        "; known are `Role`, `System`, `Task`, `Context`, `Output`, `Handoff` and `Phase: NAME`; \
                         use `###` for a heading within a section"
                    } else {
                        ""
                    };
                    return problems.add(section.line, format!("unknown section `{title}`{near}{known}"));
                }
            },
        };
        if adds && !text.is_empty() {
            text.push_str("\n\n");
            text.push_str(section.text);
        } else {
            section.text.clone_into(text);
        }
    }
}

fn take<'a>(front: &mut Node<'a>, key: &str) -> Option<Entry<'a>> {
    let Yaml::Map(entries) = &mut front.yaml else { return None };
    let at = entries.iter().position(|entry| entry.key == key)?;
    Some(entries.remove(at))
}

/// Long texts belong in the body, where they read as what they are.
fn misplaced_texts(front: &Node<'_>, problems: &mut Problems) {
    let mut report = |entry: &Entry<'_>, section: &str| {
        problems.add(
            entry.line,
            format!("`{}` is a text: write it as section `## {section}` of the body", entry.key),
        );
    };
    for (key, section) in [("role_description", "Role"), ("prompt", "System` or `## Task")] {
        if let Some(entry) = front.entry(key) {
            report(entry, section);
        }
    }
    if let Some(entry) = front.get("handoff").and_then(|handoff| handoff.entry("template")) {
        report(entry, "Handoff");
    }
    for phase in front.get("phases").map(Node::entries).unwrap_or_default() {
        if let Some(entry) = phase.value.entry("instructions") {
            report(entry, &format!("Phase: {}", phase.key));
        }
    }
}

/// `base` with `patch` laid over it, as JSON merge patch (RFC 7396) does: mappings merge key by
/// key, null takes a key away, all else replaces.
fn merged<'a>(base: &AgentSpec, patch: &Node<'a>, line: usize) -> Node<'a> {
    let mut node =
        serde_json::to_value(base).map_or(Node { line, yaml: Yaml::Null }, |value| from_json(&value, line));
    if let Yaml::Map(entries) = &mut node.yaml
        && patch.get("id").is_some_and(|id| id.as_text() != Some(&base.id))
    {
        // Another agent, so the names of the base are not its own.
        entries.retain(|entry| entry.key != "aliases");
    }
    merge(&mut node, patch);
    node
}

fn merge<'a>(into: &mut Node<'a>, patch: &Node<'a>) {
    let Yaml::Map(changes) = &patch.yaml else {
        *into = patch.clone();
        return;
    };
    if !matches!(into.yaml, Yaml::Map(_)) {
        *into = Node { line: patch.line, yaml: Yaml::Map(Vec::new()) };
    }
    let Yaml::Map(entries) = &mut into.yaml else { return };
    for change in changes {
        let at = entries.iter().position(|entry| entry.key == change.key);
        match (at.and_then(|at| entries.get_mut(at)), &change.value.yaml) {
            (_, Yaml::Null) => entries.retain(|entry| entry.key != change.key),
            (Some(entry), _) => {
                entry.line = change.line;
                merge(&mut entry.value, &change.value);
            }
            (None, _) => entries.push(change.clone()),
        }
    }
}

fn from_json(value: &Value, line: usize) -> Node<'static> {
    let yaml = match value {
        Value::Null => Yaml::Null,
        Value::Bool(value) => Yaml::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Yaml::Int(value),
            (None, Some(value)) => Yaml::Uint(value),
            (None, None) => Yaml::Float(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => Yaml::Text(text.clone().into()),
        Value::Array(items) => Yaml::List(items.iter().map(|item| from_json(item, line)).collect()),
        Value::Object(map) => Yaml::Map(
            map.iter()
                .map(|(key, value)| Entry { line, key: key.clone().into(), value: from_json(value, line) })
                .collect(),
        ),
    };
    Node { line, yaml }
}

#[cfg(test)]
mod tests;
