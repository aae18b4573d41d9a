//! Making values and texts shorter.

use std::sync::Arc;

use serde_json::Value;

use crate::prompt::draft::PromptDraft;
use crate::prompt::tokens::TokenCounter;
use crate::task::Deliverable;

/// The tokens of a value of the task or of a source, counted once: it may be long.
pub(super) struct Sizes {
    /// Of each text, in their order.
    texts: Vec<u64>,
    /// Of all else.
    rest: u64,
}

impl Sizes {
    pub(super) fn of(draft: &PromptDraft, name: &str) -> Self {
        let counter = &*draft.counter;
        let mut sizes = Sizes { texts: Vec::new(), rest: 0 };
        match name {
            "brief" => sizes.texts.push(counter.text(&draft.task.brief.text)),
            "inputs" => {
                let values = draft.task.inputs.iter().flat_map(|input| input.preserved.values());
                values.for_each(|value| sizes.add(value, counter));
            }
            "available" => {
                sizes.texts.extend(draft.task.available.iter().map(|item| tokens_of_item(item, counter)));
            }
            name => {
                if let Some(value) = draft.context.get(name) {
                    sizes.add(value, counter);
                }
            }
        }
        sizes
    }

    pub(super) fn total(&self) -> u64 {
        self.texts.iter().sum::<u64>() + self.rest
    }

    fn add(&mut self, value: &Value, counter: &dyn TokenCounter) {
        match value {
            Value::String(text) => self.texts.push(counter.text(text)),
            Value::Array(items) => {
                self.rest += items.len() as u64;
                items.iter().for_each(|item| self.add(item, counter));
            }
            Value::Object(map) => map.iter().for_each(|(name, value)| {
                self.rest += counter.text(name) + 1;
                self.add(value, counter);
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) => self.rest += 1,
        }
    }
}

/// Shortens the value of this name, whose sizes are given, to no more than `target` tokens, if it can be, and gives what
/// it has then.
pub(super) fn shorten_value_of(draft: &mut PromptDraft, name: &str, sizes: &Sizes, target: u64) -> u64 {
    let counter = draft.counter.clone();
    match name {
        "brief" => {
            let task = Arc::make_mut(&mut draft.task);
            let kept = cut_from(&task.brief.text, sizes.total(), target, &*counter);
            task.brief.text = kept.into();
            counter.text(&task.brief.text)
        }
        "inputs" => {
            let task = Arc::make_mut(&mut draft.task);
            let mut values: Vec<&mut Value> =
                task.inputs.iter_mut().flat_map(|input| input.preserved.values_mut()).collect();
            shorten(&mut values, sizes, target, &*counter)
        }
        "available" => {
            let task = Arc::make_mut(&mut draft.task);
            let mut left = target;
            // What was delivered last matters most.
            let kept = task.available.iter().rev().take_while(|item| {
                let tokens = tokens_of_item(item, &*counter);
                let fits = tokens <= left;
                left = if fits { left - tokens } else { left };
                fits
            });
            let gone = task.available.len() - kept.count();
            task.available.drain(..gone);
            target - left
        }
        name => match Arc::make_mut(&mut draft.context).get_mut(name) {
            Some(value) => shorten(&mut [value], sizes, target, &*counter),
            None => 0,
        },
    }
}

fn tokens_of_item(item: &Deliverable, counter: &dyn TokenCounter) -> u64 {
    counter.text(&item.kind) + counter.text(&item.path) + counter.text(&item.description)
}

fn tokens_of(value: &Value, counter: &dyn TokenCounter) -> u64 {
    let mut sizes = Sizes { texts: Vec::new(), rest: 0 };
    sizes.add(value, counter);
    sizes.total()
}

/// Shortens the texts in `values`, the longest first, and then their lists, until all together have `target` tokens,
/// if they can. Gives what they have then.
fn shorten(values: &mut [&mut Value], sizes: &Sizes, target: u64, counter: &dyn TokenCounter) -> u64 {
    if sizes.total() <= target {
        return sizes.total();
    }
    let room = target.saturating_sub(sizes.rest);
    let cap = cap_for(sizes.texts.clone(), room);
    let mut known = sizes.texts.iter().copied();
    values.iter_mut().for_each(|value| cap_texts(value, cap, &mut known, counter));
    let mut total = values.iter().map(|value| tokens_of(value, counter)).sum::<u64>();
    // Lists lose their oldest items.
    for value in values.iter_mut() {
        if let Value::Array(items) = &mut **value {
            let mut gone = 0;
            for item in items.iter() {
                if total <= target || gone + 1 == items.len() {
                    break;
                }
                total = total.saturating_sub(tokens_of(item, counter) + 1);
                gone += 1;
            }
            items.drain(..gone);
        }
    }
    total
}

/// The most that each text may have so that all together have no more than `room`.
fn cap_for(mut sizes: Vec<u64>, room: u64) -> u64 {
    sizes.sort_unstable();
    let mut left = room;
    for (i, size) in sizes.iter().enumerate() {
        let others = (sizes.len() - i) as u64;
        if size.saturating_mul(others) > left {
            return left / others;
        }
        left -= size;
    }
    u64::MAX
}

/// `sizes` are those of the texts, in their order.
fn cap_texts(value: &mut Value, cap: u64, sizes: &mut impl Iterator<Item = u64>, counter: &dyn TokenCounter) {
    match value {
        Value::String(text) => {
            if let Some(size) = sizes.next().filter(|size| *size > cap) {
                *text = cut_from(text, size, cap, counter);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| cap_texts(item, cap, sizes, counter)),
        Value::Object(map) => map.values_mut().for_each(|value| cap_texts(value, cap, sizes, counter)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// `text` with its middle left out, so that it has no more than `target` tokens, the mark that says so included. The
/// beginning is kept, and a third of what is kept is from the end: texts begin with what they are about, and end with what
/// came out.
pub(in crate::prompt) fn cut(text: &str, target: u64, counter: &dyn TokenCounter) -> String {
    cut_from(text, counter.text(text), target, counter)
}

/// The same of a text that has so many tokens.
fn cut_from(text: &str, tokens: u64, target: u64, counter: &dyn TokenCounter) -> String {
    if tokens <= target {
        return text.to_owned();
    }
    let mark = format!("\n[… about {} tokens left out …]\n", tokens - target);
    let mut room = target.saturating_sub(counter.text(&mark) + 1);
    while room > 0 {
        let keep = (text.len() as u128 * u128::from(room) / u128::from(tokens.max(1))) as usize;
        let head = floor(text, keep - keep / 3);
        let tail = ceil(text, text.len() - keep / 3);
        let kept =
            format!("{}{mark}{}", text.get(..head).unwrap_or_default(), text.get(tail..).unwrap_or_default());
        if counter.text(&kept) <= target {
            return kept;
        }
        room = room * 9 / 10;
    }
    if counter.text(&mark) <= target { mark } else { String::new() }
}

/// The place at or before `at` where a line ends, if one does not far from there; else where a character does.
fn floor(text: &str, at: usize) -> usize {
    let at = text.floor_char_boundary(at);
    let line = text.get(..at).and_then(|before| before.rfind('\n')).filter(|line| at - line < at / 8);
    line.unwrap_or(at)
}

/// The same at or behind `at`.
fn ceil(text: &str, at: usize) -> usize {
    let at = text.ceil_char_boundary(at);
    let behind = text.get(at..).unwrap_or_default();
    let line = behind.find('\n').filter(|line| *line < behind.len() / 8);
    line.map_or(at, |line| at + line + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::prompt::tokens::UpperEstimate;

    fn shorten_all(values: &mut [&mut Value], target: u64) {
        let mut sizes = Sizes { texts: Vec::new(), rest: 0 };
        values.iter().for_each(|value| sizes.add(value, &UpperEstimate));
        let said = shorten(values, &sizes, target, &UpperEstimate);
        assert_eq!(said, values.iter().map(|value| tokens_of(value, &UpperEstimate)).sum::<u64>());
    }

    #[test]
    fn the_longest_texts_give_way_first() {
        let mut a = json!({"summary": "short", "log": "line of a log\n".repeat(2_000)});
        let mut b = json!(["keep me"]);
        shorten_all(&mut [&mut a, &mut b], 1_000);
        assert_eq!(a["summary"], "short");
        assert_eq!(b, json!(["keep me"]));
        let log = a["log"].as_str().unwrap();
        assert!(log.contains("tokens left out") && log.starts_with("line of a log\nline"), "{log}");
        let tokens = tokens_of(&a, &UpperEstimate) + tokens_of(&b, &UpperEstimate);
        assert!(tokens <= 1_000 && tokens > 800, "{tokens}");
    }

    #[test]
    fn lists_of_small_things_lose_the_oldest() {
        let mut list: Value = (0..1_000).map(|i| json!({"decision": i})).collect();
        shorten_all(&mut [&mut list], 500);
        let items = list.as_array().unwrap();
        assert!(tokens_of(&list, &UpperEstimate) <= 500 && items.len() > 50, "{}", items.len());
        assert_eq!(items.last().unwrap()["decision"], 999);
    }

    proptest! {
        #[test]
        fn a_cut_text_fits_and_is_made_of_its_ends(text in "(?s).{0,400}", target in 0u64..200) {
            let kept = cut(&text, target, &UpperEstimate);
            prop_assert!(UpperEstimate.text(&kept) <= target.max(UpperEstimate.text(&text).min(target)));
            if let Some((head, tail)) = kept.split_once("\n[… about ") {
                let (_, tail) = tail.split_once(" tokens left out …]\n").unwrap();
                prop_assert!(text.starts_with(head) && text.ends_with(tail));
            } else {
                prop_assert!(kept.is_empty() || kept == text);
            }
        }
    }
}
