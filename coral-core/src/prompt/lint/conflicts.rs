//! Sentences that contradict each other.

use std::collections::BTreeSet;

use super::{Lint, PromptSeverity};

impl Lint<'_> {
    pub(super) fn conflicts(&mut self) {
        let statements: Vec<Statement> =
            self.texts.iter().flat_map(|text| statements(&text.place, &text.text)).collect();
        let mut found = Vec::new();
        for (i, one) in statements.iter().enumerate() {
            for other in statements.iter().skip(i + 1) {
                if one.contradicts(other) {
                    let message = format!("`{}` contradicts `{}` ({})", other.said, one.said, one.place);
                    found.push((
                        other.place.clone(),
                        message,
                        "keep the one that is meant, or say when each holds",
                    ));
                } else if let (Some(a), Some(b)) = (one.format, other.format)
                    && a != b
                {
                    let message = format!(
                        "`{}` demands {b} only, and `{}` ({}) demands {a} only",
                        other.said, one.said, one.place
                    );
                    found.push((other.place.clone(), message, "demand one format"));
                }
            }
        }
        for (place, message, fix) in found {
            self.add(PromptSeverity::Warning, place, message, fix);
        }
    }
}

/// A sentence that tells the model to do or not to do something, whatever happens.
struct Statement {
    place: String,
    said: String,
    forbids: bool,
    words: BTreeSet<String>,
    /// The format that it demands of answers, if it demands one only.
    format: Option<&'static str>,
}

/// Words that make a sentence hold sometimes only.
const CONDITIONS: [&str; 12] = [
    "if",
    "when",
    "unless",
    "where",
    "except",
    "until",
    "once",
    "otherwise",
    "without",
    "while",
    "only",
    "instead",
];

const FORBIDDING: [&str; 7] = ["never", "not", "don't", "avoid", "no", "cannot", "can't"];

/// Words that say nothing of what a sentence is about.
const EMPTY: [&str; 36] = [
    "the", "a", "an", "and", "or", "of", "to", "in", "on", "at", "for", "with", "is", "are", "be", "it",
    "its", "your", "you", "that", "this", "as", "by", "do", "does", "must", "should", "may", "always", "all",
    "any", "every", "each", "will", "have", "has",
];

impl Statement {
    fn contradicts(&self, other: &Statement) -> bool {
        if self.forbids == other.forbids {
            return false;
        }
        let common = self.words.intersection(&other.words).count();
        let all = self.words.union(&other.words).count();
        common >= 2 && common * 4 >= all * 3
    }
}

fn statements(place: &str, text: &str) -> Vec<Statement> {
    let mut statements = Vec::new();
    for (line, paragraph) in lines_of_prose(text) {
        for sentence in paragraph.split(['.', '!', ';', ':', '?']) {
            let words: Vec<String> = sentence
                .split(|c: char| !c.is_alphanumeric() && c != '\'')
                .filter(|word| !word.is_empty())
                .map(str::to_lowercase)
                .collect();
            let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
            let format = format_only(&words);
            if format.is_none() && has(&CONDITIONS) {
                continue;
            }
            let forbids = has(&FORBIDDING);
            let content: BTreeSet<String> = words
                .iter()
                .filter(|word| !EMPTY.contains(&word.as_str()) && !FORBIDDING.contains(&word.as_str()))
                .map(|word| stem(word).to_owned())
                .collect();
            if format.is_none() && !(2..=12).contains(&content.len()) {
                continue;
            }
            statements.push(Statement {
                place: format!("{place}, line {line}"),
                said: sentence.split_whitespace().collect::<Vec<_>>().join(" "),
                forbids,
                words: content,
                format,
            });
        }
    }
    statements
}

/// `answer only in JSON`, `reply with nothing but Markdown`.
fn format_only(words: &[String]) -> Option<&'static str> {
    let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    if !has(&["answer", "respond", "reply", "return", "output"])
        || !has(&["only", "nothing", "solely", "exclusively"])
    {
        return None;
    }
    let formats = [
        ("json", "JSON"),
        ("markdown", "Markdown"),
        ("yaml", "YAML"),
        ("xml", "XML"),
        ("html", "HTML"),
        ("csv", "CSV"),
    ];
    let mut named = formats.iter().filter(|(word, _)| words.iter().any(|found| found == word));
    // Two in one sentence: who can say which one is meant.
    named.next().filter(|_| named.next().is_none()).map(|(_, format)| *format)
}

/// A word without the commonest endings of English.
fn stem(word: &str) -> &str {
    ["ing", "ed", "es", "s"]
        .iter()
        .find_map(|ending| word.strip_suffix(ending).filter(|stem| stem.len() >= 3))
        .unwrap_or(word)
}

/// The lines of a text that are prose, with their numbers: no code, headings, tables, tags.
fn lines_of_prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced && !line.starts_with(['#', '|']) && !line.contains("{%") && !line.contains("{{") {
            lines.push((i + 1, line));
        }
    }
    lines
}
