//! Rules of the repository that no compiler holds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use coral_tests::root;

/// Lines of a Rust file at the most.
const MOST_LINES: usize = 900;

/// Every file of the repository, as far as it is ours.
fn ours() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![root()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let skip = ["target", ".git", "node_modules", "__pycache__", ".venv", "Cargo.lock"];
            if skip.contains(&name.as_str()) || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                dirs.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn rust() -> impl Iterator<Item = (String, String)> {
    ours()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "rs"))
        .map(|path| (shown(&path), std::fs::read_to_string(&path).unwrap()))
}

/// The codes in the source of errors, such as `CORAL0001`.
fn codes() -> BTreeSet<String> {
    let source = std::fs::read_to_string(root().join("coral-core/src/error.rs")).unwrap();
    let codes = source.split("\"CORAL").skip(1).filter_map(|rest| rest.get(..4));
    codes.filter(|code| code.bytes().all(|b| b.is_ascii_digit())).map(|code| format!("CORAL{code}")).collect()
}

#[test]
fn every_error_code_has_a_page_and_every_page_a_code() {
    let codes = codes();
    assert!(codes.len() >= 21, "{codes:?}");
    let pages: BTreeSet<String> = std::fs::read_dir(root().join("docs/errors"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .filter(|stem| stem.starts_with("CORAL"))
        .collect();
    assert_eq!(pages, codes);
    for code in &codes {
        let page = std::fs::read_to_string(root().join(format!("docs/errors/{code}.md"))).unwrap();
        assert!(page.starts_with(&format!("# {code}: ")), "{code}: the page begins with its code");
        for heading in ["## What happened", "## Why", "## What to do", "## Example"] {
            assert!(page.contains(heading), "{code}: `{heading}` is missing");
        }
    }
}

#[test]
fn the_changelog_has_this_version() {
    let changelog = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let heading = format!("## {}", env!("CARGO_PKG_VERSION"));
    assert!(
        changelog.lines().any(|line| line == heading || line.starts_with(&format!("{heading} "))),
        "`{heading}` is missing"
    );
}

#[test]
fn no_file_speaks_of_one_machine() {
    // Put together, so that this file does not hold them.
    let banned = [["/wo", "rk/main"], ["/wo", "rk/shared"], ["/tmp/", "brief"], ["/root/", ".cargo"]]
        .map(|parts| parts.concat());
    for path in ours() {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for word in &banned {
            assert!(!text.contains(word.as_str()), "{}: `{word}` is a path of one machine", shown(&path));
        }
    }
}

#[test]
fn rust_files_are_of_a_size_to_read() {
    for (path, text) in rust() {
        let lines = text.lines().count();
        assert!(lines <= MOST_LINES, "{path} has {lines} lines, more than {MOST_LINES}: split it");
    }
}

#[test]
fn nothing_is_left_to_do_and_no_test_is_left_out() {
    let banned = [["todo", "!("], ["unimplemented", "!("], ["#[ig", "nore"]].map(|parts| parts.concat());
    for (path, text) in rust() {
        for word in &banned {
            assert!(!text.contains(word.as_str()), "{path}: `{word}`");
        }
    }
}

#[test]
fn modules_lie_beside_their_directories() {
    for (path, _) in rust() {
        assert!(!path.ends_with("/mod.rs"), "{path}: write `name.rs` beside `name/`");
    }
}

#[test]
fn the_first_program_is_short() {
    let hello = std::fs::read_to_string(root().join("examples/examples/hello.rs")).unwrap();
    assert!(hello.lines().count() <= 20, "the first program has {} lines", hello.lines().count());
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    assert!(
        readme.contains(hello.trim()),
        "the README shows another first program than `examples/examples/hello.rs`"
    );
}
