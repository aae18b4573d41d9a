//! Command lines in arguments, read as a shell would read them and no further.

/// A longer text is not looked at, and so refused.
const MAX: usize = 16 * 1_024;
/// How deep commands may hold commands.
const MAX_DEPTH: usize = 4;

/// Programs that run their argument after `-c` as a command line.
const SHELLS: [&str; 8] = ["sh", "bash", "dash", "zsh", "ksh", "ash", "busybox", "fish"];
/// Programs whose first argument that is not an option or an assignment is a program.
const RUNNERS: [&str; 10] =
    ["env", "sudo", "doas", "nohup", "nice", "time", "xargs", "setsid", "exec", "command"];

/// The words of one simple command.
///
/// # Errors
/// Why it is not one: whatever would make a shell do more than run one program with these words
/// (substitution, redirection, pipes, lists, patterns, comments) is refused, and so are quotes that
/// do not end.
pub(crate) fn words(text: &str) -> Result<Vec<String>, String> {
    if text.len() > MAX {
        return Err(format!("a command of {} bytes is longer than {MAX}", text.len()));
    }
    let refused = |c: char| {
        format!("the command holds `{}`, which makes a shell do more than run one program", c.escape_debug())
    };
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next() {
                        Some('\'') => break,
                        Some('\0') => return Err(refused('\0')),
                        Some(c) => word.push(c),
                        None => return Err("a quote in the command does not end".to_owned()),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next() {
                        Some('"') => break,
                        Some(c @ ('$' | '`' | '\0')) => return Err(refused(c)),
                        Some('\\') => match rest.next() {
                            Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                            // Joins lines; nobody needs that here.
                            Some('\n') | None => return Err(refused('\\')),
                            Some(c) => word.extend(['\\', c]),
                        },
                        Some(c) => word.push(c),
                        None => return Err("a quote in the command does not end".to_owned()),
                    }
                }
            }
            '\\' => match rest.next() {
                Some('\n') | None => return Err(refused('\\')),
                Some(c) => word.get_or_insert_default().push(c),
            },
            ';' | '&' | '|' | '<' | '>' | '(' | ')' | '$' | '`' | '*' | '?' | '[' | ']' | '{' | '}' | '!' => {
                return Err(refused(c));
            }
            '#' | '~' if word.is_none() => return Err(refused(c)),
            c if c.is_control() => return Err(refused(c)),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match words.first() {
        None => Err("there is no command".to_owned()),
        Some(first) if is_assignment(first) => {
            Err("the command begins with an assignment; name the program first".to_owned())
        }
        Some(_) => Ok(words),
    }
}

/// `NAME=value`, which a shell takes for a variable.
fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !name.starts_with(|c: char| c.is_ascii_digit())
    })
}

/// The programs that a command runs, as far as can be seen: the first word, and what shells and
/// such as `env` are told to run.
///
/// # Errors
/// What can't be seen through: it must be refused.
pub(crate) fn programs(words: &[String]) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    look(words, MAX_DEPTH, &mut found)?;
    Ok(found)
}

fn look(words: &[String], depth: usize, found: &mut Vec<String>) -> Result<(), String> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err("the command holds commands too deep to be looked at".to_owned());
    };
    let Some((program, args)) = words.split_first() else {
        return Err("there is no command".to_owned());
    };
    let name = program.rsplit('/').next().unwrap_or_default();
    if name.is_empty() || program.contains('\0') {
        return Err(format!("`{}` is not a program", program.escape_debug()));
    }
    // A path names another file than the program of that name in `PATH`.
    found.push(program.clone());
    if SHELLS.contains(&name) {
        let is_script = |arg: &String| arg.starts_with('-') && !arg.starts_with("--") && arg.contains('c');
        let Some(at) = args.iter().position(is_script) else { return Ok(()) };
        // Options may stand between `-c` and its command.
        let script = args.iter().skip(at + 1).find(|arg| !arg.starts_with(['-', '+']));
        let script = script.ok_or("a shell is started with `-c` and no command")?;
        return look(&self::words(script)?, depth, found);
    }
    if RUNNERS.contains(&name) {
        let inner = args.iter().position(|arg| !arg.starts_with('-') && !is_assignment(arg));
        if args.iter().any(|arg| arg.starts_with("-S") || arg.starts_with("--split-string")) {
            return Err(format!("`{name}` is told to split a text into a command"));
        }
        if let Some(inner) = inner.and_then(|at| args.get(at..)) {
            return look(inner, depth, found);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(text: &str) -> Result<Vec<String>, String> {
        programs(&words(text)?)
    }

    #[test]
    fn programs_are_seen_through_what_runs_them() {
        for (text, expected) in [
            ("cargo test --all", vec!["cargo"]),
            ("  'my prog' \"a b\" c\\ d", vec!["my prog"]),
            ("/usr/bin/git log", vec!["/usr/bin/git"]),
            ("sh -c 'npm test'", vec!["sh", "npm"]),
            ("bash -ec \"env A=1 make all\"", vec!["bash", "env", "make"]),
            ("sudo -n nohup rm -rf /", vec!["sudo", "nohup", "rm"]),
            ("bash script.sh", vec!["bash"]),
            ("echo a=b", vec!["echo"]),
        ] {
            assert_eq!(seen(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_a_shell_would_make_more_of_is_refused() {
        for text in [
            "",
            "  ",
            "a; b",
            "a && b",
            "a & b",
            "a | b",
            "a > f",
            "a < f",
            "a $(b)",
            "a `b`",
            "a ${B}",
            "a $B",
            "a \"$(b)\"",
            "a \"`b`\"",
            "a\nb",
            "a\rb",
            "a 'b",
            "a \"b",
            "a \\",
            "A=1 b",
            "a {b,c}",
            "a *.rs",
            "a [b]",
            "! a",
            "a <(b)",
            "# a",
            "~/a",
            "a\0b",
            "a '\0'",
            "sh -c 'a; b'",
            "sh -c",
            "bash -c 'sh -c \"a | b\"'",
            "env -S 'a b'",
            "sh -c \"sh -c 'sh -c \\\"sh -c x\\\"'\"",
        ] {
            assert!(seen(text).is_err(), "{text:?}: {:?}", seen(text));
        }
        assert!(words(&"a".repeat(MAX + 1)).is_err());
    }

    proptest! {
        /// Another reader of the shell's quoting is the oracle.
        #[test]
        fn words_are_those_of_a_shell(text in "[ab 'x\"\\\\$;=#~\t]{0,24}") {
            if let Ok(words) = words(&text) {
                prop_assert_eq!(Ok(words), shell_words::split(&text));
            }
        }

        #[test]
        fn nothing_breaks_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = seen(&String::from_utf8_lossy(&bytes));
        }
    }
}
