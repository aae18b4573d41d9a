//! What a prompt asks for.

use coral_core::{Message, Role};

/// What can be read from the prompt of an agent that is data.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) project: String,
    pub(super) phase: String,
    pub(super) brief: String,
    pub(super) deliverables: Vec<Wanted>,
    pub(super) handed_over: Vec<String>,
    pub(super) question: String,
}

/// A deliverable that the prompt lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) kind: String,
    pub(super) path: String,
    pub(super) description: String,
}

impl Asked {
    pub(super) fn read(messages: &[Message]) -> Asked {
        let of = |role: Role| messages.iter().filter(move |message| message.role == role);
        let task =
            of(Role::User).find(|message| message.text().contains("\n## ")).or_else(|| of(Role::User).next());
        let task = task.map(Message::text).unwrap_or_default();
        let project = section(&task, "Project");
        let fact = |name: &str| {
            project
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|rest| rest.trim().to_owned())
                .unwrap_or_default()
        };
        // What a prompt that is no agent's asks for stands in its last message.
        let question = of(Role::User).next_back().map(Message::text).unwrap_or_default();
        Asked {
            project: fact("Name:"),
            phase: fact("Phase:"),
            brief: section(&task, "Brief"),
            deliverables: section(&task, "Deliverables").lines().filter_map(Wanted::parse).collect(),
            handed_over: section(&task, "Handed over").lines().filter_map(handed_over).collect(),
            question,
        }
    }

    /// What was asked, in one short line.
    pub(super) fn question(&self) -> String {
        let words: Vec<&str> = self.question.split_whitespace().collect();
        let line = words.join(" ");
        if line.chars().count() <= 300 { line } else { line.chars().take(299).chain(['…']).collect() }
    }
}

impl Wanted {
    /// Reads a line of the form "- `type` at `path`: description", with " (optional)" at the end perhaps.
    fn parse(line: &str) -> Option<Wanted> {
        let rest = line.trim().strip_prefix("- `")?;
        let (kind, rest) = rest.split_once("` at `")?;
        let (path, rest) = rest.split_once('`')?;
        let description = rest.trim_start_matches(':').trim();
        let description = description.strip_suffix("(optional)").unwrap_or(description).trim();
        if kind.is_empty() || path.is_empty() {
            return None;
        }
        Some(Wanted { kind: kind.to_owned(), path: path.to_owned(), description: description.to_owned() })
    }
}

/// The path in a line such as "- `type` at `path` from `agent`: description".
fn handed_over(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("` at `")?;
    rest.split_once('`').map(|(path, _)| path.to_owned())
}

/// The lines below the heading `## name`, up to the next heading of its level or above.
fn section(text: &str, name: &str) -> String {
    let mut inside = false;
    let mut out = String::new();
    for line in text.lines() {
        if line.starts_with("# ") || line.starts_with("## ") {
            inside = line.strip_prefix("## ").is_some_and(|heading| heading.trim() == name);
        } else if inside {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// The first line that says something.
pub(super) fn first_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("no reason given")
        .trim_end_matches('.')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_deliverables_are_read_exactly() {
        let wanted =
            Wanted::parse("- `api_specification` at `docs/api_spec.yaml`: REST API documentation (optional)");
        let expected = Wanted {
            kind: "api_specification".into(),
            path: "docs/api_spec.yaml".into(),
            description: "REST API documentation".into(),
        };
        assert_eq!(wanted, Some(expected));
        for other in ["- something", "`a` at `b`: c", "- `` at `x`: y", "- `a` at ``: y", ""] {
            assert_eq!(Wanted::parse(other), None, "{other}");
        }
    }

    #[test]
    fn sections_end_at_the_next_heading_of_their_level() {
        let text = "# Task\n\n## Brief\n\n### Users\n- one\n## Deliverables\n- two\n# End\n- three\n";
        assert_eq!(section(text, "Brief"), "\n### Users\n- one\n");
        assert_eq!(section(text, "Deliverables"), "- two\n");
        assert_eq!(section(text, "Nothing"), "");
    }
}
