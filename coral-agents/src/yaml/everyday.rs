//! The YAML that most files are written in, read in one pass.
//!
//! The full grammar needs a scanner that looks at each character with all of YAML in mind; events alone take it
//! longer than all else that a load does. What people write is mappings, lists, flow lists of a line, and scalars.
//! This reads those and nothing else. At the first thing that it does not know for sure, be it rare or wrong, it
//! gives up, and the full parser reads the text from its beginning and says what is wrong with it.
//! **What this reads, it reads as the full parser does**; a property test compares both.

use std::borrow::Cow;

use super::{Entry, MAX_KEYS, MAX_NODES, Node, ScalarStyle, Yaml, scalar};

/// How deep values may be nested here; the full parser goes deeper.
const MAX_DEPTH: usize = 24;

/// Bytes of a key at the most; YAML has a limit of its own.
const MAX_KEY: usize = 128;

/// The tree of `text`, whose first line is line `first_line` of its file, or nothing if it is not that simple.
pub(super) fn read(text: &str, first_line: usize) -> Option<Node<'_>> {
    if !is_plain(text) {
        return None;
    }
    let mut reader = Reader { rest: text, number: first_line, ahead: None, nodes: 0 };
    let indent = reader.peek()?.indent;
    let root = reader.block(indent, 0)?;
    reader.peek().is_none().then_some(root)
}

/// Whether it has no character that YAML treats in a way of its own: controls, tabs, carriage returns, line breaks
/// beyond ASCII and byte order marks.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~' | 0x80..))
        && (text.is_ascii()
            || text.chars().all(|c| {
                !matches!(
                    c,
                    '\u{80}'..='\u{a0}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
                )
            }))
}

/// A line that is not blank and no comment, or what is left of it.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    /// The column that its text begins at.
    indent: usize,
    /// Without blanks at its end.
    text: &'a str,
}

struct Reader<'a> {
    rest: &'a str,
    /// The number of the line that `rest` begins with.
    number: usize,
    ahead: Option<Line<'a>>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    /// The next line as it stands, with its number.
    fn raw(&mut self) -> Option<(usize, &'a str)> {
        if self.rest.is_empty() {
            return None;
        }
        let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        self.rest = rest;
        self.number += 1;
        Some((self.number - 1, line))
    }

    fn peek(&mut self) -> Option<Line<'a>> {
        while self.ahead.is_none() {
            let (number, line) = self.raw()?;
            let text = line.trim_start_matches(' ');
            if !text.is_empty() && !text.starts_with('#') {
                let indent = line.len() - text.len();
                self.ahead = Some(Line { number, indent, text: text.trim_end_matches(' ') });
            }
        }
        self.ahead
    }

    fn node(&mut self, line: usize, yaml: Yaml<'a>) -> Option<Node<'a>> {
        self.nodes += 1;
        (self.nodes < MAX_NODES).then_some(Node { line, yaml })
    }

    /// A list or a mapping whose lines begin at `indent`.
    fn block(&mut self, indent: usize, depth: usize) -> Option<Node<'a>> {
        if depth > MAX_DEPTH {
            return None;
        }
        if is_item(self.peek()?.text) { self.list(indent, depth) } else { self.mapping(indent, depth) }
    }

    fn mapping(&mut self, indent: usize, depth: usize) -> Option<Node<'a>> {
        let first = self.peek()?.number;
        let mut entries: Vec<Entry<'a>> = Vec::new();
        while let Some(line) = self.peek().filter(|line| line.indent >= indent) {
            if line.indent > indent || is_item(line.text) || entries.len() == MAX_KEYS {
                return None;
            }
            let (key, value) = split_key(line.text)?;
            let key =
                self.node(line.number, scalar(Cow::Borrowed(key), ScalarStyle::Plain, false))?.into_key()?;
            if entries.iter().any(|entry| entry.key == key) {
                return None;
            }
            self.ahead = None;
            let value = match value {
                "" => match self.peek() {
                    Some(below) if below.indent > indent => self.block(below.indent, depth + 1)?,
                    Some(below) if below.indent == indent && is_item(below.text) => {
                        self.list(indent, depth + 1)?
                    }
                    _ => self.node(line.number, Yaml::Null)?,
                },
                value => self.value(value, line.number, indent, depth)?,
            };
            entries.push(Entry { line: line.number, key, value });
        }
        self.node(first, Yaml::Map(entries))
    }

    fn list(&mut self, indent: usize, depth: usize) -> Option<Node<'a>> {
        let first = self.peek()?.number;
        let mut items = Vec::new();
        while let Some(line) = self.peek().filter(|line| line.indent >= indent) {
            if line.indent > indent {
                return None;
            }
            // The end of a list that stands at the indent of its key.
            if !is_item(line.text) {
                break;
            }
            self.ahead = None;
            let text = line.text.get(1..)?.trim_start_matches(' ');
            let item = match text {
                "" => match self.peek() {
                    Some(below) if below.indent > indent => self.block(below.indent, depth + 1)?,
                    _ => self.node(line.number, Yaml::Null)?,
                },
                _ if is_item(text) || text.starts_with('#') => return None,
                _ if split_key(text).is_some() => {
                    let indent = line.indent + line.text.len() - text.len();
                    self.ahead = Some(Line { indent, text, ..line });
                    self.block(indent, depth + 1)?
                }
                _ => self.value(text, line.number, indent, depth)?,
            };
            items.push(item);
        }
        self.node(first, Yaml::List(items))
    }

    /// What stands on the line of its key or its dash.
    fn value(&mut self, text: &'a str, number: usize, indent: usize, depth: usize) -> Option<Node<'a>> {
        match text.as_bytes().first()? {
            b'|' | b'>' => {
                let (number, yaml) = self.text_block(text, indent)?;
                self.node(number, yaml)
            }
            b'[' | b'{' => {
                let mut rest = text;
                let node = self.flow(&mut rest, number, depth + 1)?;
                is_over(rest).then_some(node)
            }
            b'"' | b'\'' => {
                let mut rest = text;
                let yaml = quoted(&mut rest)?;
                is_over(rest).then(|| self.node(number, yaml))?
            }
            _ => {
                let text = pair_at(text, b" #")
                    .and_then(|at| text.get(..at))
                    .map_or(text, |text| text.trim_end_matches(' '));
                if !begins_plain(text) || pair_at(text, b": ").is_some() || text.ends_with(':') {
                    return None;
                }
                self.node(number, scalar(Cow::Borrowed(text), ScalarStyle::Plain, false))
            }
        }
    }

    /// A text of several lines, all of one indent and none of them blank, and the line that it begins on.
    fn text_block(&mut self, header: &str, parent: usize) -> Option<(usize, Yaml<'a>)> {
        let (joint, strip) = match header {
            "|" => ("\n", false),
            "|-" => ("\n", true),
            ">" => (" ", false),
            ">-" => (" ", true),
            _ => return None,
        };
        let first = self.number;
        let mut lines: Vec<&'a str> = Vec::new();
        let mut indent = 0;
        let mut blank = false;
        loop {
            let (rest, number) = (self.rest, self.number);
            let Some((_, line)) = self.raw() else { break };
            let text = line.trim_start_matches(' ');
            let depth = line.len() - text.len();
            if text.is_empty() {
                // Blanks of its own may make it a line of the text.
                if lines.is_empty() || depth > 0 {
                    return None;
                }
                blank = true;
                continue;
            }
            if lines.is_empty() {
                indent = depth;
            }
            if depth <= parent || depth < indent {
                (self.rest, self.number) = (rest, number);
                break;
            }
            if blank || depth > indent || text.ends_with(' ') {
                return None;
            }
            // Without a line break behind it, how the text ends is a matter of its own.
            if self.rest.is_empty() && !rest.ends_with('\n') {
                return None;
            }
            lines.push(text);
        }
        if lines.is_empty() {
            return None;
        }
        let mut text = lines.join(joint);
        if !strip {
            text.push('\n');
        }
        Some((first, Yaml::Text(Cow::Owned(text))))
    }

    /// A value between brackets, commas and braces, of which `rest` is what follows.
    fn flow(&mut self, rest: &mut &'a str, number: usize, depth: usize) -> Option<Node<'a>> {
        if depth > MAX_DEPTH {
            return None;
        }
        let yaml = match rest.as_bytes().first()? {
            b'[' => {
                let mut items = Vec::new();
                let mut more = open(rest, ']')?;
                while more {
                    items.push(self.flow(rest, number, depth + 1)?);
                    more = goes_on(rest, ']')?;
                }
                Yaml::List(items)
            }
            b'{' => {
                let mut entries: Vec<Entry<'a>> = Vec::new();
                let mut more = open(rest, '}')?;
                while more {
                    let at = pair_at(rest, b": ")?;
                    let (key, value) = (rest.get(..at)?, rest.get(at + 2..)?);
                    if !begins_plain(key)
                        || key.len() > MAX_KEY
                        || key.contains([',', '[', ']', '{', '}', '#'])
                    {
                        return None;
                    }
                    let key = key.trim_end_matches(' ');
                    let key = self
                        .node(number, scalar(Cow::Borrowed(key), ScalarStyle::Plain, false))?
                        .into_key()?;
                    if entries.len() == MAX_KEYS || entries.iter().any(|entry| entry.key == key) {
                        return None;
                    }
                    *rest = value.trim_start_matches(' ');
                    let value = self.flow(rest, number, depth + 1)?;
                    entries.push(Entry { line: number, key, value });
                    more = goes_on(rest, '}')?;
                }
                Yaml::Map(entries)
            }
            b'"' | b'\'' => quoted(rest)?,
            _ => {
                let end = rest.find([',', ']', '}', '[', '{', '#'])?;
                let (text, behind) = rest.split_at_checked(end)?;
                let text = text.trim_end_matches(' ');
                if behind.starts_with(['[', '{', '#'])
                    || !begins_plain(text)
                    || pair_at(text, b": ").is_some()
                    || text.ends_with(':')
                {
                    return None;
                }
                *rest = behind;
                scalar(Cow::Borrowed(text), ScalarStyle::Plain, false)
            }
        };
        self.node(number, yaml)
    }
}

/// Where two characters stand. In texts of a line this is faster than a search that prepares for long ones.
fn pair_at(text: &str, pair: &[u8; 2]) -> Option<usize> {
    text.as_bytes().windows(2).position(|two| two == pair)
}

/// Whether a line is an item of a list.
fn is_item(text: &str) -> bool {
    text == "-" || text.starts_with("- ")
}

/// The key that a line begins with, and what follows.
fn split_key(text: &str) -> Option<(&str, &str)> {
    let (key, value) = match pair_at(text, b": ") {
        Some(at) => (text.get(..at)?, text.get(at + 2..)?.trim_start_matches(' ')),
        None => (text.strip_suffix(':')?, ""),
    };
    let known =
        begins_plain(key) && key.len() <= MAX_KEY && pair_at(key, b" #").is_none() && !key.starts_with("...");
    let value = if value.starts_with('#') { "" } else { value };
    known.then_some((key.trim_end_matches(' '), value))
}

/// Whether a scalar that begins like this is a plain one.
fn begins_plain(text: &str) -> bool {
    match text.as_bytes() {
        [b'-', next, ..] => next.is_ascii_digit(),
        [first, ..] => !b" -?:,[]{}#&*!|>'\"%@`".contains(first),
        [] => false,
    }
}

/// Whether only a comment follows.
fn is_over(rest: &str) -> bool {
    let text = rest.trim_start_matches(' ');
    text.is_empty() || text.starts_with('#') && text.len() < rest.len()
}

/// A text between quotes in which nothing is escaped.
fn quoted<'a>(rest: &mut &'a str) -> Option<Yaml<'a>> {
    let quote = rest.chars().next()?;
    let (text, behind) = rest.get(1..)?.split_once(quote)?;
    if behind.starts_with(quote) || quote == '"' && text.contains('\\') {
        return None;
    }
    *rest = behind;
    Some(Yaml::Text(Cow::Borrowed(text)))
}

/// Goes behind an opening bracket; whether a value follows.
fn open(rest: &mut &str, close: char) -> Option<bool> {
    *rest = rest.get(1..)?.trim_start_matches(' ');
    match rest.strip_prefix(close) {
        Some(behind) => {
            *rest = behind;
            Some(false)
        }
        None => Some(true),
    }
}

/// Goes behind the comma or the closing bracket that must follow; whether a further value does.
fn goes_on(rest: &mut &str, close: char) -> Option<bool> {
    *rest = rest.trim_start_matches(' ');
    let more = rest.starts_with(',');
    *rest = rest.strip_prefix([',', close])?.trim_start_matches(' ');
    Some(more)
}
