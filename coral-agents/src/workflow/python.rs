//! Python literals: `workflow = [("agent", {"input": "x"}), …]`.

/// The same as YAML, line for line, if `text` is an assignment of a Python literal; else nothing.
pub(super) fn to_yaml(text: &str) -> Option<String> {
    if !begins_with_assignment(text) {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    let mut depth = 0usize;
    let mut chars = text.chars().peekable();
    let mut word = String::new();
    while let Some(c) = chars.next() {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        out.push_str(match word.as_str() {
            "None" => "null",
            "True" => "true",
            "False" => "false",
            other => other,
        });
        word.clear();
        match c {
            '"' | '\'' => {
                out.push(c);
                while let Some(inner) = chars.next() {
                    out.push(inner);
                    if inner == '\\' {
                        out.extend(chars.next());
                    } else if inner == c {
                        break;
                    }
                }
            }
            '#' => {
                out.push(c);
                while let Some(inner) = chars.next_if(|inner| *inner != '\n') {
                    out.push(inner);
                }
            }
            '(' | '[' | '{' => {
                depth += 1;
                out.push(if c == '(' { '[' } else { c });
            }
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                out.push(if c == ')' { ']' } else { c });
            }
            '=' if depth == 0 && chars.peek() != Some(&'=') => {
                // YAML wants the colon right behind the key.
                out.truncate(out.trim_end_matches([' ', '\t']).len());
                out.push(':');
            }
            other => out.push(other),
        }
    }
    out.push_str(&word);
    Some(out)
}

/// Whether the first line that says something is `name = [` or the like.
fn begins_with_assignment(text: &str) -> bool {
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let Some((name, value)) = first.and_then(|line| line.split_once('=')) else { return false };
    let name = name.trim();
    !name.is_empty()
        && name.chars().all(|c| c.is_alphanumeric() || c == '_')
        && value.trim_start().starts_with(['[', '{', '('])
}
