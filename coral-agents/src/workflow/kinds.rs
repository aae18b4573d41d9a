//! What a step runs, in the full form: an agent or a function, a wait, or steps of its own.

use std::num::NonZeroU32;

use serde_json::{Value, json};

use super::surface::{Draft, Word, items, read, typed, word, words};
use crate::problem::{Problems, hint};
use crate::yaml::{Node, Yaml};

/// What a step runs.
#[derive(Debug)]
pub(super) enum Runs {
    Agent(Word),
    Function(Word),
    Ask { question: Word, answer: Value, deadline_ms: Option<u64>, default: Option<Value> },
    Timer(u64),
    Signal(Word),
    Workflow(Body),
    Map { body: Body, over: Option<Word>, concurrency: NonZeroU32 },
    Loop { body: Body, until: Word, max_turns: NonZeroU32 },
    Route { agents: Vec<Word>, max_hops: NonZeroU32 },
}

/// The steps inside of a step.
#[derive(Debug)]
pub(super) enum Body {
    /// Those of a workflow that the registry knows.
    Known(Word),
    Here(Box<Draft>),
}

/// The keys that say what a step runs, each with those that belong to it.
const KINDS: [(&str, &[&str]); 9] = [
    ("agent", &[]),
    ("function", &[]),
    ("ask", &["answer", "deadline_ms", "default"]),
    ("timer", &[]),
    ("signal", &[]),
    ("workflow", &[]),
    ("map", &["over", "concurrency"]),
    ("loop", &["until", "max_turns"]),
    ("route", &["max_hops"]),
];

/// Items of a map that run at once, if the step does not say.
const CONCURRENCY: NonZeroU32 = NonZeroU32::new(4).unwrap();

/// All keys that say what a step runs, or belong to one that does.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    KINDS.iter().flat_map(|(kind, parts)| std::iter::once(*kind).chain(parts.iter().copied()))
}

impl Runs {
    /// What a step of this is called if it has no name.
    pub(super) fn name(&self) -> Option<&Word> {
        match self {
            Runs::Agent(word)
            | Runs::Function(word)
            | Runs::Signal(word)
            | Runs::Workflow(Body::Known(word)) => Some(word),
            _ => None,
        }
    }

    /// Whether what a step is told reaches somebody.
    pub(super) fn listens(&self) -> bool {
        matches!(self, Runs::Agent(_) | Runs::Function(_))
    }

    /// The known workflows that it, or a step inside of it, names.
    pub(super) fn uses<'a>(&'a self, names: &mut Vec<&'a str>) {
        match self {
            Runs::Workflow(body) | Runs::Map { body, .. } | Runs::Loop { body, .. } => match body {
                Body::Known(word) => names.push(&word.text),
                Body::Here(draft) => draft.uses(names),
            },
            _ => {}
        }
    }
}

/// Reads what the step `node` runs; nothing, with the problem reported, if it does not say so rightly.
pub(super) fn runs(node: &Node<'_>, problems: &mut Problems) -> Option<Runs> {
    let mut said = node.entries().iter().filter_map(|entry| {
        let (_, parts) = KINDS.iter().find(|(kind, _)| *kind == entry.key)?;
        Some((entry, *parts))
    });
    let Some((entry, parts)) = said.next() else {
        let kinds = KINDS.map(|(kind, _)| format!("`{kind}`"));
        problems.add(node.line, format!("the step does not say what it runs: one of {}", kinds.join(", ")));
        return None;
    };
    for (other, _) in said {
        let message = format!("a step runs one thing, and this one has `{}` and `{}`", entry.key, other.key);
        problems.add(other.line, message);
    }
    for stray in node.entries().iter().filter(|stray| !parts.contains(&&*stray.key)) {
        if let Some((owner, _)) = KINDS.iter().find(|(_, parts)| parts.contains(&&*stray.key)) {
            let message = format!("`{}` belongs to `{owner}`, and this step has `{}`", stray.key, entry.key);
            problems.add(stray.line, message);
        }
    }
    let part = |key: &str| node.get(key);
    let needed = |key: &str, problems: &mut Problems| {
        let found = node.get(key);
        if found.is_none() {
            problems.add(entry.line, format!("`{}` needs `{key}`", entry.key));
        }
        found
    };
    let value = &entry.value;
    match &*entry.key {
        "agent" => word(value, "agent", problems).map(Runs::Agent),
        "function" => word(value, "function", problems).map(Runs::Function),
        "ask" => {
            let answer =
                part("answer").map_or(Some(json!({"type": "boolean"})), |node| answer(node, problems));
            let deadline_ms =
                part("deadline_ms").map(|node| (node.line, typed(node, "deadline_ms", problems)));
            let default = part("default").and_then(|node| typed(node, "default", problems));
            if let (Some(node), None) = (part("default"), &deadline_ms) {
                problems.add(node.line, "`default` is the answer at a `deadline_ms`, and there is none");
            }
            let deadline_ms = deadline_ms.and_then(|(_, ms)| ms);
            Some(Runs::Ask { question: word(value, "ask", problems)?, answer: answer?, deadline_ms, default })
        }
        "timer" => typed(value, "timer", problems).map(Runs::Timer),
        "signal" => word(value, "signal", problems).map(Runs::Signal),
        "workflow" => body(value, "workflow", problems).map(Runs::Workflow),
        "map" => {
            let over = part("over").and_then(|node| word(node, "over", problems));
            let concurrency =
                part("concurrency").map_or(Some(CONCURRENCY), |node| typed(node, "concurrency", problems));
            Some(Runs::Map { body: body(value, "map", problems)?, over, concurrency: concurrency? })
        }
        "loop" => {
            let until = needed("until", problems).and_then(|node| word(node, "until", problems));
            let max_turns = needed("max_turns", problems).and_then(|node| typed(node, "max_turns", problems));
            Some(Runs::Loop { body: body(value, "loop", problems)?, until: until?, max_turns: max_turns? })
        }
        _ => {
            let max_hops = needed("max_hops", problems).and_then(|node| typed(node, "max_hops", problems));
            let agents = words(value, "route", problems);
            if agents.is_empty() {
                problems.add(entry.line, "`route` lists the agents that may take part, and there are none");
            }
            (!agents.is_empty()).then_some(Runs::Route { agents, max_hops: max_hops? })
        }
    }
}

/// A known workflow by its name, steps in a list, or a whole workflow.
fn body(node: &Node<'_>, key: &str, problems: &mut Problems) -> Option<Body> {
    match &node.yaml {
        Yaml::Text(_) => word(node, key, problems).map(Body::Known),
        Yaml::List(steps) if steps.is_empty() => {
            problems.add(node.line, format!("`{key}` has no steps"));
            None
        }
        Yaml::List(_) => {
            let mut draft = Draft { line: node.line, ..Draft::default() };
            items(node, &mut draft, problems);
            Some(Body::Here(Box::new(draft)))
        }
        Yaml::Map(_) => Some(Body::Here(Box::new(read(node, "", problems)))),
        _ => {
            let message = format!(
                "`{key}` is the name of a workflow, its steps or the whole of it, not {}",
                node.kind()
            );
            problems.add(node.line, message);
            None
        }
    }
}

/// The JSON Schema of an answer: as it stands, the name of a type, or the answers that there are.
fn answer(node: &Node<'_>, problems: &mut Problems) -> Option<Value> {
    const TYPES: [&str; 4] = ["boolean", "string", "integer", "number"];
    match &node.yaml {
        Yaml::Map(_) => typed(node, "answer", problems),
        Yaml::List(items) if !items.is_empty() => {
            typed::<Vec<Value>>(node, "answer", problems).map(|answers| json!({"enum": answers}))
        }
        Yaml::Text(text) if TYPES.contains(&&**text) => Some(json!({"type": text})),
        Yaml::Text(text) => {
            let near = hint(text, TYPES);
            let message = format!(
                "`answer`: no type is called `{text}`{near}; a type is one of {}, a list of answers or a JSON Schema",
                TYPES.join(", ")
            );
            problems.add(node.line, message);
            None
        }
        _ => {
            let message =
                format!("`answer` is a type, a list of answers or a JSON Schema, not {}", node.kind());
            problems.add(node.line, message);
            None
        }
    }
}
