//! The plain shapes: a linear list, parallel groups, a conditional map.

use super::kinds::Runs;
use super::surface::{self, Draft, Item, Options, Step, Word, option, word, words};
use crate::problem::{Problems, hint};
use crate::yaml::{Node, Yaml};

/// A list of `[agent, {input: …}]` pairs or of groups, mixed as one likes.
pub(super) fn items(node: &Node<'_>, draft: &mut Draft, problems: &mut Problems) {
    let Yaml::List(nodes) = &node.yaml else {
        return problems.add(node.line, format!("expected a list of steps or groups, found {}", node.kind()));
    };
    for node in nodes {
        match &node.yaml {
            Yaml::Map(_) if node.get("agents").is_some() => {
                draft.items.extend(surface::group(node, true, problems).map(Item::Group));
            }
            Yaml::Map(_) => draft.items.extend(surface::step(node, problems).map(Item::Step)),
            Yaml::Text(_) => {
                if let Some(agent) = word(node, "agent", problems) {
                    push(agent, Vec::new(), Options::default(), draft);
                }
            }
            Yaml::List(pair) => match pair.as_slice() {
                [agent] => push_pair(agent, None, draft, problems),
                [agent, settings] => push_pair(agent, Some(settings), draft, problems),
                _ => problems.add(node.line, "a step is a pair of an agent and its settings"),
            },
            _ => problems.add(
                node.line,
                format!("a step is a pair of an agent and its settings, not {}", node.kind()),
            ),
        }
    }
}

fn push_pair(agent: &Node<'_>, settings: Option<&Node<'_>>, draft: &mut Draft, problems: &mut Problems) {
    let mut inputs = Vec::new();
    let mut options = Options::default();
    let settings_node = settings;
    if let Some(node) = settings_node.filter(|node| !matches!(node.yaml, Yaml::Map(_) | Yaml::Null)) {
        problems.add(node.line, format!("the settings of a step are a mapping, not {}", node.kind()));
    }
    for entry in settings_node.map(Node::entries).unwrap_or_default() {
        match &*entry.key {
            "input" | "inputs" => inputs = words(&entry.value, &entry.key, problems),
            other if option(other, &entry.value, &mut options, problems) => {}
            other => problems
                .add(entry.line, format!("unknown key `{other}`{}", hint(other, ["input", "phase", "when"]))),
        }
    }
    if let Some(agent) = word(agent, "agent", problems) {
        push(agent, inputs, options, draft);
    }
}

/// An agent may come twice in a linear list; its later steps get a number.
fn push(agent: Word, loose: Vec<Word>, options: Options, draft: &mut Draft) {
    let runs = draft
        .items
        .iter()
        .filter(|item| matches!(item, Item::Step(Step { runs: Some(Runs::Agent(other)), .. }) if other.text == agent.text))
        .count();
    let text = if runs == 0 { agent.text.clone() } else { format!("{}_{}", agent.text, runs + 1) };
    draft.items.push(Item::Step(Step {
        line: agent.line,
        name: Word { line: agent.line, text },
        runs: Some(Runs::Agent(agent)),
        loose,
        linear: true,
        options,
        ..Step::default()
    }));
}

/// `{conditions: {…}}`, or the map itself.
pub(super) fn conditional(node: &Node<'_>, draft: &mut Draft, problems: &mut Problems) {
    draft.plain_conditions = true;
    for entry in node.entries().iter().filter(|entry| entry.key != "conditions") {
        problems.add(entry.line, format!("unknown key `{}`{}", entry.key, hint(&entry.key, ["conditions"])));
    }
    match node.get("conditions") {
        Some(conditions) => surface::conditions(conditions, draft, problems),
        None => problems.add(node.line, "a conditional workflow has `conditions`"),
    }
}
