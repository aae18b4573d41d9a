//! Tools and models of other programs, and what they are called here.

use coral_core::{Effort, Tier};

/// A tool's name elsewhere and the operation that it stands for.
const TOOLS: [(&str, &str); 15] = [
    ("Read", "read_file"),
    ("Write", "write_file"),
    ("Edit", "edit_file"),
    ("MultiEdit", "edit_file"),
    ("NotebookEdit", "edit_file"),
    ("NotebookRead", "read_file"),
    ("Grep", "search_files"),
    ("Glob", "search_files"),
    ("LS", "list_directory"),
    ("Bash", "run_code"),
    ("BashOutput", "run_code"),
    ("PowerShell", "run_code"),
    ("WebFetch", "fetch_url"),
    ("WebSearch", "search_web"),
    ("Search", "search_files"),
];

/// What a tool of a foreign list means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    Operation(&'static str),
    /// It may call this other agent.
    Agent(&'a str),
    /// There is nothing of the kind here, for this reason.
    None(&'static str),
}

/// What `tool` (such as `Bash(git log:*)`) means, and the restriction that it carries.
pub(super) fn meaning(tool: &str) -> (Meaning<'_>, Option<&str>) {
    let (name, restriction) = match tool.split_once('(') {
        Some((name, rest)) => (name.trim(), Some(rest.trim_end_matches(')').trim())),
        None => (tool, None),
    };
    if name.eq_ignore_ascii_case("bash")
        && let Some(operation) = restriction.and_then(operation_of)
    {
        return (Meaning::Operation(operation), None);
    }
    if let Some((_, operation)) = TOOLS.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)) {
        return (
            Meaning::Operation(operation),
            restriction.filter(|restriction| !matches!(*restriction, "" | "*")),
        );
    }
    if matches!(name, "Task" | "Agent") {
        return match restriction {
            Some(agent) if !agent.is_empty() => (Meaning::Agent(agent), None),
            _ => (Meaning::None("who works next is said by the workflow"), None),
        };
    }
    if name.starts_with("mcp__") {
        return (Meaning::None("grant the server to this agent in the permission file"), None);
    }
    let why = match name {
        "TodoWrite" | "TodoRead" => "tasks are steps of the workflow",
        "ExitPlanMode" | "EnterPlanMode" | "AskUserQuestion" => {
            "questions to people belong to the program around the run"
        }
        "Skill" | "SlashCommand" => "skills are agents of their own here",
        "KillBash" | "KillShell" | "TaskOutput" | "TaskStop" => {
            "steps and their time limits belong to the engine"
        }
        _ => "no operation is known for it",
    };
    (Meaning::None(why), None)
}

/// Operations that are certain commands, and how these begin.
const COMMANDS: [(&str, &str); 13] = [
    ("git add", "commit_changes"),
    ("git commit", "commit_changes"),
    ("docker build", "build_image"),
    ("docker run", "run_container"),
    ("docker compose", "compose_up_down"),
    ("docker logs", "container_logs"),
    ("docker push", "push_pull_images"),
    ("docker pull", "push_pull_images"),
    ("gh pr create", "create_pull_request"),
    ("gh issue", "manage_issues"),
    ("gh workflow run", "trigger_workflows"),
    ("gh repo create", "create_repository"),
    ("git push", "create_pull_request"),
];

/// The operation that running these commands alone is.
fn operation_of(restriction: &str) -> Option<&'static str> {
    let mut operations = restriction.split(',').map(|command| {
        let command = command.trim();
        let command = command.strip_suffix(":*").or_else(|| command.strip_suffix(" *")).unwrap_or(command);
        COMMANDS.iter().find(|(begin, _)| *begin == command).map(|(_, operation)| *operation)
    });
    let first = operations.next()??;
    operations.all(|other| other == Some(first)).then_some(first)
}

/// The tools that offer an operation elsewhere.
pub(super) fn tools_for(operation: &str) -> Vec<String> {
    let named: &[&str] = match operation {
        "read_file" => &["Read"],
        "write_file" => &["Write"],
        "edit_file" => &["Edit"],
        "search_files" => &["Grep", "Glob"],
        "list_directory" => &["Glob"],
        "run_code" => &["Bash"],
        "fetch_url" => &["WebFetch"],
        "search_web" => &["WebSearch"],
        _ => &[],
    };
    let commands =
        COMMANDS.iter().filter(|(_, of)| *of == operation).map(|(begin, _)| format!("Bash({begin}:*)"));
    named.iter().map(|tool| (*tool).to_owned()).chain(commands).collect()
}

/// A list of tools, separated by commas or blanks outside of parentheses.
pub(super) fn split(list: &str) -> Vec<&str> {
    let mut tools = Vec::new();
    let (mut start, mut depth) = (0, 0usize);
    for (at, c) in list.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 && (c == ',' || c.is_whitespace()) => {
                tools.push(list.get(start..at).unwrap_or_default().trim());
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    tools.push(list.get(start..).unwrap_or_default().trim());
    tools.retain(|tool| !tool.is_empty());
    tools
}

/// The tier that a model's nickname stands for.
pub(super) fn tier(model: &str) -> Option<Tier> {
    match model {
        "haiku" => Some(Tier::Basic),
        "sonnet" | "sonnet[1m]" => Some(Tier::Standard),
        "opus" | "opus[1m]" | "opusplan" => Some(Tier::Strong),
        _ => None,
    }
}

/// The nickname of a model of this tier.
pub(super) fn model_of(tier: Tier) -> &'static str {
    match tier {
        Tier::Basic => "haiku",
        Tier::Standard => "sonnet",
        Tier::Strong => "opus",
    }
}

/// Efforts by their names elsewhere, the usual one of each first.
const EFFORTS: [(&str, Effort); 6] = [
    ("minimal", Effort::Minimal),
    ("low", Effort::Low),
    ("medium", Effort::Medium),
    ("high", Effort::High),
    ("max", Effort::Max),
    ("xhigh", Effort::ExtraHigh),
];

pub(super) fn effort(text: &str) -> Option<Effort> {
    EFFORTS.iter().find(|(name, _)| *name == text).map(|(_, effort)| *effort)
}

pub(super) fn effort_name(effort: Effort) -> Option<&'static str> {
    EFFORTS.iter().find(|(_, other)| *other == effort).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_split_outside_of_parentheses() {
        for (list, expected) in [
            ("Read, Grep,Glob", vec!["Read", "Grep", "Glob"]),
            ("Bash(git add:*, git log) Read", vec!["Bash(git add:*, git log)", "Read"]),
            ("", vec![]),
            ("Bash(open", vec!["Bash(open"]),
        ] {
            assert_eq!(split(list), expected, "{list}");
        }
    }

    #[test]
    fn tools_have_a_meaning() {
        for (tool, expected) in [
            ("Read", (Meaning::Operation("read_file"), None)),
            ("bash", (Meaning::Operation("run_code"), None)),
            ("Bash(git log:*)", (Meaning::Operation("run_code"), Some("git log:*"))),
            ("Bash(*)", (Meaning::Operation("run_code"), None)),
            ("Bash(git commit:*)", (Meaning::Operation("commit_changes"), None)),
            (
                "Bash(git add:*, git commit -m:*)",
                (Meaning::Operation("run_code"), Some("git add:*, git commit -m:*")),
            ),
            ("Bash(git add *, git commit:*)", (Meaning::Operation("commit_changes"), None)),
            (
                "Bash(git commit:*, docker run:*)",
                (Meaning::Operation("run_code"), Some("git commit:*, docker run:*")),
            ),
            ("Agent(reviewer)", (Meaning::Agent("reviewer"), None)),
            ("Task", (Meaning::None("who works next is said by the workflow"), None)),
            (
                "mcp__github__search",
                (Meaning::None("grant the server to this agent in the permission file"), None),
            ),
            ("Telepathy", (Meaning::None("no operation is known for it"), None)),
        ] {
            assert_eq!(meaning(tool), expected, "{tool}");
        }
    }
}
