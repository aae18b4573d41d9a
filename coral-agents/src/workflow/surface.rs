//! The form that workflow files are written in, read without looking at names yet.

use coral_core::{Budget, Join, OnGap, RetryPolicy, Usd};
use serde::Deserialize;

use super::kinds::{self, Runs};
use super::plain;
use crate::problem::{Problems, hint};
use crate::yaml::{Node, Yaml};

/// A text with its line.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Word {
    pub(super) line: usize,
    pub(super) text: String,
}

/// A workflow whose names are not resolved.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) output: Option<Word>,
    pub(super) items: Vec<Item>,
    /// A condition and an agent that takes part only if it holds.
    pub(super) conditions: Vec<(Word, Word)>,
    /// What holds for every step that does not say otherwise.
    pub(super) defaults: Options,
    /// Whether the agents of `conditions` that no step runs work from the brief.
    pub(super) plain_conditions: bool,
    /// The line that stands for the whole.
    pub(super) line: usize,
}

impl Draft {
    /// The known workflows that its steps name.
    pub(super) fn uses<'a>(&'a self, names: &mut Vec<&'a str>) {
        for item in &self.items {
            let steps = match item {
                Item::Step(step) => std::slice::from_ref(step),
                Item::Group(group) => group.members.as_slice(),
            };
            steps.iter().filter_map(|step| step.runs.as_ref()).for_each(|runs| runs.uses(names));
        }
    }
}

#[derive(Debug)]
pub(super) enum Item {
    Step(Step),
    Group(Group),
}

#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) line: usize,
    pub(super) name: Word,
    pub(super) runs: Option<Runs>,
    pub(super) inputs: Vec<Word>,
    /// Names of a plain list, which are resolved more freely than `inputs`.
    pub(super) loose: Vec<Word>,
    /// Whether it follows the step before it in any case.
    pub(super) linear: bool,
    pub(super) options: Options,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) name: Word,
    pub(super) members: Vec<Step>,
    pub(super) shared_context: Vec<Word>,
    /// Whether context that nothing gives is passed on as an instruction.
    pub(super) plain: bool,
    pub(super) inputs: Vec<Word>,
    pub(super) dependencies: Vec<Word>,
    pub(super) options: Options,
}

/// What a step and a group have in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) phase: Option<Word>,
    pub(super) after: Vec<Word>,
    pub(super) when: Option<Word>,
    pub(super) join: Option<(usize, Join)>,
    pub(super) instructions: Vec<String>,
    pub(super) retry: Option<(usize, RetryPolicy)>,
    pub(super) timeout_ms: Option<u64>,
    pub(super) budget: Option<Budget>,
    pub(super) on_gap: Option<OnGap>,
    pub(super) max_rounds: Option<u32>,
    pub(super) reviews: Vec<Word>,
}

impl Options {
    /// These, where `own` does not say otherwise.
    pub(super) fn under(&self, own: Options) -> Options {
        let when = match (&self.when, own.when) {
            (Some(outer), Some(own)) => {
                Some(Word { text: format!("({}) and ({})", outer.text, own.text), line: own.line })
            }
            (outer, own) => own.or_else(|| outer.clone()),
        };
        Options {
            phase: own.phase.or_else(|| self.phase.clone()),
            after: self.after.iter().cloned().chain(own.after).collect(),
            when,
            join: own.join.or(self.join),
            instructions: self.instructions.iter().cloned().chain(own.instructions).collect(),
            retry: own.retry.or_else(|| self.retry.clone()),
            timeout_ms: own.timeout_ms.or(self.timeout_ms),
            budget: own.budget.or_else(|| self.budget.clone()),
            on_gap: own.on_gap.or(self.on_gap),
            max_rounds: own.max_rounds.or(self.max_rounds),
            reviews: self.reviews.iter().cloned().chain(own.reviews).collect(),
        }
    }
}

const OPTIONS: [&str; 11] = [
    "phase",
    "after",
    "when",
    "join",
    "instructions",
    "retry",
    "timeout_ms",
    "budget",
    "on_gap",
    "max_rounds",
    "reviews",
];
const TOP: [&str; 11] = [
    "name",
    "description",
    "output",
    "steps",
    "conditions",
    "workflow",
    "parallel_groups",
    "conditional_workflow",
    "groups",
    "on_gap",
    "max_rounds",
];

pub(super) fn read(node: &Node<'_>, stem: &str, problems: &mut Problems) -> Draft {
    let mut draft = Draft { name: stem.to_owned(), line: node.line, ..Draft::default() };
    match &node.yaml {
        Yaml::Map(entries) => {
            for entry in entries {
                match &*entry.key {
                    "name" => {
                        draft.name =
                            word(&entry.value, "name", problems).map_or(draft.name, |word| word.text);
                    }
                    "description" => {
                        draft.description =
                            word(&entry.value, "description", problems).unwrap_or_default().text;
                    }
                    "output" => draft.output = word(&entry.value, "output", problems),
                    key @ ("on_gap" | "max_rounds") => {
                        option(key, &entry.value, &mut draft.defaults, problems);
                    }
                    "steps" => items(&entry.value, &mut draft, problems),
                    "workflow" | "parallel_groups" | "groups" => {
                        plain::items(&entry.value, &mut draft, problems);
                    }
                    "conditions" => conditions(&entry.value, &mut draft, problems),
                    "conditional_workflow" => plain::conditional(&entry.value, &mut draft, problems),
                    other => problems.add(entry.line, format!("unknown key `{other}`{}", hint(other, TOP))),
                }
            }
        }
        Yaml::List(_) => plain::items(node, &mut draft, problems),
        _ => problems.add(node.line, format!("a workflow is a mapping with `steps`, not {}", node.kind())),
    }
    if problems.is_empty() && draft.items.is_empty() && draft.conditions.is_empty() {
        problems.add(draft.line, "the workflow has no `steps`");
    }
    draft
}

pub(super) fn items(node: &Node<'_>, draft: &mut Draft, problems: &mut Problems) {
    let Yaml::List(nodes) = &node.yaml else {
        return problems.add(node.line, format!("`steps` must be a list, not {}", node.kind()));
    };
    for node in nodes {
        if !matches!(node.yaml, Yaml::Map(_)) {
            problems.add(
                node.line,
                format!("a step is a mapping such as `{{name: …, agent: …}}`, not {}", node.kind()),
            );
        } else if node.get("group").is_some() || node.get("agents").is_some() {
            draft.items.extend(group(node, false, problems).map(Item::Group));
        } else {
            draft.items.extend(step(node, problems).map(Item::Step));
        }
    }
}

pub(super) fn step(node: &Node<'_>, problems: &mut Problems) -> Option<Step> {
    let mut step = Step { line: node.line, ..Step::default() };
    let mut name = None;
    for entry in node.entries() {
        match &*entry.key {
            "name" => name = word(&entry.value, "name", problems),
            "inputs" | "input" => step.inputs = words(&entry.value, &entry.key, problems),
            kind if kinds::keys().any(|key| key == kind) => {}
            other if option(other, &entry.value, &mut step.options, problems) => {}
            other => {
                let near = hint(other, ["name", "inputs"].into_iter().chain(OPTIONS));
                let near = if near.is_empty() { hint(other, kinds::keys()) } else { near };
                problems.add(entry.line, format!("unknown key `{other}`{near}"));
            }
        }
    }
    let runs = kinds::runs(node, problems)?;
    if let Some(entry) = node.entry("instructions").filter(|_| !runs.listens()) {
        problems.add(entry.line, "`instructions` are for an agent; give them to the steps inside");
    }
    let Some(name) = name.or_else(|| runs.name().cloned()) else {
        problems.add(step.line, "the step needs a `name`");
        return None;
    };
    Some(Step { name, runs: Some(runs), ..step })
}

pub(super) fn group(node: &Node<'_>, plain: bool, problems: &mut Problems) -> Option<Group> {
    let mut group = Group { plain, ..Group::default() };
    let mut name = None;
    for entry in node.entries() {
        let value = &entry.value;
        match &*entry.key {
            "group" | "name" => name = word(value, &entry.key, problems),
            "agents" => match &value.yaml {
                Yaml::List(members) => {
                    for member in members {
                        match &member.yaml {
                            Yaml::Text(_) => {
                                group.members.extend(word(member, "agents", problems).map(|name| Step {
                                    line: name.line,
                                    runs: Some(Runs::Agent(name.clone())),
                                    name,
                                    ..Step::default()
                                }));
                            }
                            Yaml::Map(_) => group.members.extend(step(member, problems)),
                            _ => problems.add(
                                member.line,
                                format!("`agents` lists names or steps, not {}", member.kind()),
                            ),
                        }
                    }
                }
                _ => problems.add(value.line, format!("`agents` must be a list, not {}", value.kind())),
            },
            "shared_context" => group.shared_context = words(value, "shared_context", problems),
            "inputs" => group.inputs = words(value, "inputs", problems),
            "dependencies" => group.dependencies = words(value, "dependencies", problems),
            other if option(other, value, &mut group.options, problems) => {}
            other => {
                let known = ["group", "agents", "shared_context", "inputs", "dependencies"];
                problems.add(
                    entry.line,
                    format!("unknown key `{other}`{}", hint(other, known.into_iter().chain(OPTIONS))),
                );
            }
        }
    }
    let Some(name) = name.or_else(|| group.options.phase.clone()) else {
        problems.add(node.line, "the group has neither a `group` name nor a `phase`");
        return None;
    };
    if group.members.is_empty() {
        problems.add(node.line, format!("group `{}` has no `agents`", name.text));
    }
    Some(Group { name, ..group })
}

/// Reads an option; `false` if `key` is none.
pub(super) fn option(key: &str, value: &Node<'_>, options: &mut Options, problems: &mut Problems) -> bool {
    match key {
        "phase" => options.phase = word(value, key, problems),
        "after" => options.after = words(value, key, problems),
        // `when: true` is a condition too.
        "when" => {
            options.when = match &value.yaml {
                Yaml::Bool(holds) => Some(Word { line: value.line, text: holds.to_string() }),
                _ => word(value, key, problems),
            }
        }
        "join" => options.join = typed(value, key, problems).map(|join| (value.line, join)),
        "instructions" => {
            options.instructions = words(value, key, problems).into_iter().map(|word| word.text).collect();
        }
        "retry" => options.retry = typed(value, key, problems).map(|retry| (value.line, retry)),
        "timeout_ms" => options.timeout_ms = typed(value, key, problems),
        "budget" => options.budget = typed::<Limits>(value, key, problems).map(Limits::budget),
        "on_gap" => options.on_gap = typed(value, key, problems),
        "max_rounds" => options.max_rounds = typed(value, key, problems),
        "reviews" => options.reviews = words(value, key, problems),
        _ => return false,
    }
    true
}

/// A budget as it is written: money in dollars.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    usd: Option<f64>,
    tokens: Option<u64>,
    calls: Option<u64>,
    agents: Option<u64>,
    depth: Option<u64>,
    wall_ms: Option<u64>,
}

impl Limits {
    fn budget(self) -> Budget {
        let Limits { usd, tokens, calls, agents, depth, wall_ms } = self;
        Budget { usd: usd.map(Usd::from_dollars), tokens, calls, agents, depth, wall_ms }
    }
}

pub(super) fn typed<T: for<'de> Deserialize<'de>>(
    value: &Node<'_>,
    key: &str,
    problems: &mut Problems,
) -> Option<T> {
    value
        .read()
        .map_err(|mut problem| {
            problem.message = format!("`{key}`: {}", problem.message);
            problems.push(problem);
        })
        .ok()
}

pub(super) fn word(node: &Node<'_>, key: &str, problems: &mut Problems) -> Option<Word> {
    match node.as_text() {
        Some(text) if !text.trim().is_empty() => Some(Word { line: node.line, text: text.trim().to_owned() }),
        Some(_) => {
            problems.add(node.line, format!("`{key}` is empty"));
            None
        }
        None => {
            problems.add(node.line, format!("`{key}` must be text, not {}", node.kind()));
            None
        }
    }
}

/// A text or a list of texts.
pub(super) fn words(node: &Node<'_>, key: &str, problems: &mut Problems) -> Vec<Word> {
    match &node.yaml {
        Yaml::List(items) => items.iter().filter_map(|item| word(item, key, problems)).collect(),
        Yaml::Null => Vec::new(),
        _ => word(node, key, problems).into_iter().collect(),
    }
}

/// A map from a condition to one agent or several.
pub(super) fn conditions(node: &Node<'_>, draft: &mut Draft, problems: &mut Problems) {
    if !matches!(node.yaml, Yaml::Map(_)) {
        return problems
            .add(node.line, format!("`conditions` maps conditions to agents; it can't be {}", node.kind()));
    }
    for entry in node.entries() {
        let condition = Word { line: entry.line, text: entry.key.to_string() };
        for agent in words(&entry.value, &entry.key, problems) {
            draft.conditions.push((condition.clone(), agent));
        }
    }
}
