//! What the core costs to add.

use std::collections::BTreeSet;
use std::process::Command;

/// Crates at the most, `coral-core` itself included.
const MOST: usize = 45;

/// The crates that `coral-core` builds from with its default features.
fn crates() -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            "coral-core",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--offline",
        ])
        .current_dir(coral_tests::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    // A crate that was shown before is marked with a star.
    tree.lines()
        .map(|line| line.trim_end_matches(" (*)").to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn the_core_is_cheap_to_add_and_the_readme_says_how_cheap() {
    let crates = crates();
    assert!(crates.iter().any(|name| name.starts_with("coral-core ")), "{crates:?}");
    assert!(crates.len() <= MOST, "coral-core builds from {} crates: {crates:#?}", crates.len());
    let readme = std::fs::read_to_string(coral_tests::root().join("README.md")).unwrap();
    let expected = format!("coral-core: {} crates", crates.len());
    assert!(readme.contains(&expected), "the README must say `{expected}`");
}
