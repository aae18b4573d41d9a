//! Markdown with front matter, split into its parts with their lines.

use crate::problem::Problems;

/// A Markdown text, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Document<'a> {
    /// The front matter without its fences, and the line that it begins on.
    pub(crate) front: Option<(&'a str, usize)>,
    /// All behind the front matter.
    pub(crate) body: &'a str,
    /// The line that the body begins on.
    pub(crate) body_line: usize,
}

/// A section under a level-2 heading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section<'a> {
    pub(crate) title: &'a str,
    /// The line of the heading.
    pub(crate) line: usize,
    /// The text below the heading, without blank lines around it.
    pub(crate) text: &'a str,
}

/// Takes `text` apart. Front matter that is opened and never closed is a problem.
pub(crate) fn split<'a>(text: &'a str, problems: &mut Problems) -> Document<'a> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let whole = Document { front: None, body: text, body_line: 1 };
    let mut lines = lines(text);
    let Some(first) = lines.next() else { return whole };
    if !is_fence(first.text) {
        return whole;
    }
    let Some(closing) = lines.find(|line| is_fence(line.text)) else {
        problems.add(1, "the front matter that begins here is never closed: put a line `---` behind it");
        return Document { front: None, body: "", body_line: 1 };
    };
    Document {
        front: Some((text.get(first.end..closing.start).unwrap_or_default(), 2)),
        body: text.get(closing.end..).unwrap_or_default(),
        body_line: closing.number + 1,
    }
}

fn is_fence(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.trim().is_empty())
}

#[derive(Clone, Copy)]
struct Line<'a> {
    /// From 1.
    number: usize,
    text: &'a str,
    /// Where it begins in the whole text.
    start: usize,
    /// Where the next one begins.
    end: usize,
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut end = 0;
    text.split_inclusive('\n').enumerate().map(move |(i, whole)| {
        let start = end;
        end += whole.len();
        Line { number: i + 1, text: whole.trim_end_matches(['\n', '\r']), start, end }
    })
}

/// A fenced code block that is open.
struct Fence {
    mark: char,
    length: usize,
    line: usize,
}

impl Fence {
    fn opened_by(line: &str, number: usize) -> Option<Fence> {
        let text = unindented(line)?;
        let mark = text.chars().next().filter(|c| matches!(c, '`' | '~'))?;
        let length = text.chars().take_while(|c| *c == mark).count();
        let info = text.get(length..).unwrap_or_default();
        // A backtick in the info string makes it inline code.
        (length >= 3 && !(mark == '`' && info.contains('`'))).then_some(Fence { mark, length, line: number })
    }

    fn is_closed_by(&self, line: &str) -> bool {
        let Some(text) = unindented(line) else { return false };
        let length = text.chars().take_while(|c| *c == self.mark).count();
        length >= self.length && text.get(length..).unwrap_or_default().trim().is_empty()
    }
}

/// The line without an indent of up to three blanks; a deeper one makes it code.
fn unindented(line: &str) -> Option<&str> {
    let text = line.trim_start_matches(' ');
    (line.len() - text.len() <= 3 && !text.starts_with('\t')).then_some(text)
}

/// The title of a heading of exactly `level`.
fn heading(line: &str, level: usize) -> Option<&str> {
    let text = unindented(line)?;
    let hashes = text.chars().take_while(|c| *c == '#').count();
    let rest = text.get(hashes..)?;
    if hashes != level || !(rest.is_empty() || rest.starts_with([' ', '\t'])) {
        return None;
    }
    let title = rest.trim();
    // Closing hashes are decoration: `## Task ##`.
    let bare = title.trim_end_matches('#');
    Some(if bare.is_empty() || bare.ends_with([' ', '\t']) { bare.trim_end() } else { title })
}

/// The sections of `body`. Text before the first one, but for a title of level 1, and a code
/// block that is never closed are problems.
pub(crate) fn sections<'a>(body: &'a str, first_line: usize, problems: &mut Problems) -> Vec<Section<'a>> {
    let mut found: Vec<(Section<'a>, usize)> = Vec::new();
    let mut fence: Option<Fence> = None;
    let mut stray = None;
    for line in lines(body) {
        let number = first_line + line.number - 1;
        if let Some(open) = &fence {
            if open.is_closed_by(line.text) {
                fence = None;
            }
            continue;
        }
        // Most lines are neither a heading nor the border of a code block, which their first character tells.
        let first = line.text.trim_start_matches(' ').as_bytes().first();
        if !found.is_empty() && !matches!(first, Some(b'#' | b'`' | b'~')) {
            continue;
        }
        if let Some(title) = heading(line.text, 2) {
            if let Some((section, start)) = found.last_mut() {
                section.text = trimmed(body.get(*start..line.start).unwrap_or_default());
            }
            found.push((Section { title, line: number, text: "" }, line.end));
            continue;
        }
        fence = Fence::opened_by(line.text, number);
        if found.is_empty()
            && stray.is_none()
            && !line.text.trim().is_empty()
            && heading(line.text, 1).is_none()
        {
            stray = Some(number);
        }
    }
    if let Some((section, start)) = found.last_mut() {
        section.text = trimmed(body.get(*start..).unwrap_or_default());
    }
    if let Some(open) = fence {
        problems.add(open.line, "the code block that begins here is never closed");
    }
    if let Some(line) = stray {
        problems.add(line, "text before the first section (`## …`) belongs to nothing");
    }
    found.into_iter().map(|(section, _)| section).collect()
}

/// The title of the first level-1 heading outside of code.
pub(crate) fn title(body: &str) -> Option<&str> {
    let mut fence: Option<Fence> = None;
    for line in lines(body) {
        match &fence {
            Some(open) if open.is_closed_by(line.text) => fence = None,
            Some(_) => {}
            None => match heading(line.text, 1).filter(|title| !title.is_empty()) {
                Some(title) => return Some(title),
                None => fence = Fence::opened_by(line.text, line.number),
            },
        }
    }
    None
}

/// Without the blank lines around it; the indent of the first line stays.
fn trimmed(text: &str) -> &str {
    let text = text.trim_end();
    let start = text
        .char_indices()
        .take_while(|(_, c)| c.is_whitespace())
        .filter(|(_, c)| *c == '\n')
        .last()
        .map_or(0, |(at, _)| at + 1);
    text.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(body: &str, expected: &[(&str, usize, &str)], expected_problems: &[&str]) {
        let mut problems = Problems::default();
        let found = sections(body, 1, &mut problems);
        let found: Vec<_> = found.iter().map(|s| (s.title, s.line, s.text)).collect();
        assert_eq!(found, expected);
        assert_eq!(problems.lines(), expected_problems);
    }

    #[test]
    fn sections_end_where_the_next_begins() {
        check(
            "# Title\n\n## A\n\n one\n\n### deeper\ntwo\n\n## B ##\n##C is text\n## C#\n",
            &[("A", 3, " one\n\n### deeper\ntwo"), ("B", 10, "##C is text"), ("C#", 12, "")],
            &[],
        );
    }

    #[test]
    fn headings_in_code_do_not_split() {
        check(
            "## A\n```md\n## not\n~~~\n```\n   ~~~~\n## not\n~~~\n~~~~\n    ## indented\n## B\n",
            &[
                ("A", 1, "```md\n## not\n~~~\n```\n   ~~~~\n## not\n~~~\n~~~~\n    ## indented"),
                ("B", 11, ""),
            ],
            &[],
        );
    }

    #[test]
    fn what_belongs_to_nothing_is_reported() {
        check(
            "\nhello\n## A\n```\n## B\n",
            &[("A", 3, "```\n## B")],
            &[
                "line 2: text before the first section (`## …`) belongs to nothing",
                "line 4: the code block that begins here is never closed",
            ],
        );
    }

    #[test]
    fn front_matter_is_split_off() {
        let mut problems = Problems::default();
        let document = split("\u{feff}---\r\nid: x\r\n--- \r\nbody\r\n", &mut problems);
        assert_eq!(document, Document { front: Some(("id: x\r\n", 2)), body: "body\r\n", body_line: 4 });
        let document = split("body\n---\n", &mut problems);
        assert_eq!(document, Document { front: None, body: "body\n---\n", body_line: 1 });
        assert!(problems.is_empty());
        split("---\nid: x\n", &mut problems);
        assert_eq!(
            problems.lines(),
            ["line 1: the front matter that begins here is never closed: put a line `---` behind it"]
        );
    }

    #[test]
    fn titles_are_found_outside_of_code() {
        assert_eq!(title("text\n```\n# no\n```\n## no\n#\n# Yes, this\n# Not this"), Some("Yes, this"));
        assert_eq!(title("#no"), None);
    }

    proptest! {
        #[test]
        fn any_text_splits(text in "([-#`~ \r\n\ta-b\u{feff}é]|---\n|## |```){0,60}") {
            let mut problems = Problems::default();
            let document = split(&text, &mut problems);
            let sections = sections(document.body, document.body_line, &mut problems);
            let last = text.lines().count().max(1);
            for section in &sections {
                prop_assert!(section.line <= last);
                prop_assert!(text.contains(section.text));
            }
            title(&text);
        }
    }
}
