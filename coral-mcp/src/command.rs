//! Command lines in arguments, read as a shell would read them and no further.

/// A longer text is not looked at, and so refused.
const MAX: usize = 16 * 1_024;
/// How deep commands may hold commands.
const MAX_DEPTH: usize = 4;

/// Programs that run their argument after `-c` as a command line.
const SHELLS: [&str; 7] = ["sh", "bash", "dash", "zsh", "ksh", "ash", "fish"];

/// A program that runs another: how its own words end.
struct Runner {
    name: &'static str,
    /// Options that stand alone.
    flags: &'static [&'static str],
    /// Options that take the next word, or what is written behind them.
    valued: &'static [&'static str],
    /// How many words of its own come before the program.
    words: usize,
}

const fn runner(
    name: &'static str,
    flags: &'static [&'static str],
    valued: &'static [&'static str],
    words: usize,
) -> Runner {
    Runner { name, flags, valued, words }
}

/// Programs that are seen through. An option that is not here is refused: it might take a word, or make
/// something else of the rest.
const RUNNERS: [Runner; 17] = [
    runner("busybox", &[], &[], 0),
    runner("command", &["-p"], &[], 0),
    runner("doas", &["-n"], &["-u"], 0),
    runner("env", &["-", "-i", "--ignore-environment", "-v"], &["-u", "--unset", "-C", "--chdir"], 0),
    runner("exec", &["-c", "-l"], &["-a"], 0),
    runner("ionice", &["-t"], &["-c", "--class", "-n", "--classdata"], 0),
    runner("nice", &[], &["-n", "--adjustment"], 0),
    runner("nohup", &[], &[], 0),
    runner("setsid", &["-c", "-f", "-w", "--ctty", "--fork", "--wait"], &[], 0),
    runner("stdbuf", &[], &["-i", "-o", "-e", "--input", "--output", "--error"], 0),
    runner("strace", &["-f", "-q", "-c"], &["-e", "-o"], 0),
    runner("sudo", &["-n", "-E", "-H", "-S", "-k", "-b"], &["-u", "--user", "-g", "--group"], 0),
    runner("taskset", &["-a", "-c"], &[], 1),
    runner("time", &["-p", "-v", "--portability", "--verbose"], &["-o", "-f", "--output", "--format"], 0),
    runner(
        "timeout",
        &["-v", "--verbose", "--foreground", "--preserve-status"],
        &["-k", "--kill-after", "-s", "--signal"],
        1,
    ),
    runner(
        "xargs",
        &["-0", "-r", "-t", "-x", "--null", "--no-run-if-empty"],
        &["-n", "-I", "-P", "-L", "-d", "-s", "--max-args", "--max-procs", "--delimiter"],
        0,
    ),
    runner("unbuffer", &[], &[], 0),
];

/// Programs that run others in ways that are not seen through.
const OPAQUE: [&str; 13] = [
    "chroot", "chrt", "eval", "flock", "ltrace", "nsenter", "parallel", "runuser", "script", "source", "su",
    "unshare", "watch",
];

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
    if OPAQUE.contains(&name) || (name == "find" && args.iter().any(|arg| runs_others(arg))) {
        return Err(format!("what `{name}` is told to run can't be looked at; name that program itself"));
    }
    match RUNNERS.iter().find(|runner| runner.name == name) {
        Some(runner) => match runner.inner(args)? {
            [] => Ok(()),
            inner => look(inner, depth, found),
        },
        None => Ok(()),
    }
}

/// What makes `find` run programs.
fn runs_others(arg: &str) -> bool {
    matches!(arg, "-exec" | "-execdir" | "-ok" | "-okdir")
}

impl Runner {
    /// The words of the command that it runs.
    fn inner<'a>(&self, args: &'a [String]) -> Result<&'a [String], String> {
        let mut rest = args;
        let mut own = self.words;
        while let Some((arg, more)) = rest.split_first() {
            rest = if arg == "--" {
                return Ok(more.get(own..).unwrap_or_default());
            } else if self.flags.contains(&arg.as_str())
                || (matches!(self.name, "env" | "sudo") && is_assignment(arg))
            {
                more
            } else if self.valued.contains(&arg.as_str()) {
                more.get(1..).unwrap_or_default()
            } else if arg.starts_with('-') {
                let is_joined = |option: &&str| match option.starts_with("--") {
                    true => arg.strip_prefix(option).is_some_and(|value| value.starts_with('=')),
                    // `-n5`
                    false => arg.len() > option.len() && arg.starts_with(option),
                };
                // `nice -5`
                let is_number = self.name == "nice" && arg.chars().skip(1).all(|c| c.is_ascii_digit());
                if !is_number && !self.valued.iter().any(is_joined) {
                    return Err(format!("`{arg}` of `{}` is not an option that is known here", self.name));
                }
                more
            } else if own > 0 {
                own -= 1;
                more
            } else {
                return Ok(rest);
            };
        }
        Ok(rest)
    }
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
            ("sudo -u www rm x", vec!["sudo", "rm"]),
            ("nice -n 5 rm x", vec!["nice", "rm"]),
            ("nice -5 rm x", vec!["nice", "rm"]),
            ("nice --adjustment=5 rm x", vec!["nice", "rm"]),
            ("timeout -k 1 5 rm x", vec!["timeout", "rm"]),
            ("env -u A B=1 rm x", vec!["env", "rm"]),
            ("busybox rm x", vec!["busybox", "rm"]),
            ("env -- rm x", vec!["env", "rm"]),
            ("find . -name x", vec!["find"]),
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
            "env --split-string='a b'",
            "sudo -D / rm x",
            "sudo -nu root rm x",
            "nice --weird 5 rm x",
            "su -c 'rm x'",
            "find . -exec rm {} +",
            "flock x rm y",
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
