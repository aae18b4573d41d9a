//! A directory of agent files as people have them: good, odd and broken.

use std::fs;
use std::path::Path;

use coral_agents::Registry;

/// The report on the corpus, with paths relative to it.
fn report() -> (Registry, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut registry = Registry::builtin();
    let import = registry.import_dir(&root).unwrap();
    (registry, import.to_string().replace(&format!("{}/", root.display()), ""))
}

/// The report says of every file and every field what became of it. To take over a wanted
/// change, run the test with `UPDATE_REPORT=1`.
#[test]
fn the_corpus_loads_with_the_right_report() {
    let (_, report) = report();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus.report.txt");
    if std::env::var_os("UPDATE_REPORT").is_some() {
        fs::write(&path, &report).unwrap();
    }
    assert_eq!(report, fs::read_to_string(&path).unwrap());
}

#[test]
fn what_was_imported_stands_beside_the_built_in_agents() {
    let (registry, _) = report();
    let imported = [
        "api_reviewer",
        "changelog_writer",
        "db_tuner",
        "incident_helper",
        "invoice_tables",
        "poet_laureate",
        "release_notes",
        "windows_helper",
    ];
    let found: Vec<&str> =
        registry.agents().filter(|spec| spec.group == "imported").map(|spec| spec.id.as_str()).collect();
    assert_eq!(found, imported, "a post and a page about a person are no agents");
    for id in imported {
        let context = &registry.agent(id).unwrap().prompt.context_integration;
        for instructions in ["agents_md", "claude_md"] {
            assert!(context.contains(&format!("{{% include \"{instructions}\" %}}")), "{context}");
        }
        assert!(!context.contains("web_agents_md"), "{context}");
    }
    let windows = registry.agent("windows_helper").unwrap();
    assert_eq!(windows.prompt.system_instructions, "You help.\n\nLine ends are kept simple.");
    assert_eq!(windows.operations, ["read_file", "commit_changes"]);
    assert_eq!(registry.agent("db-tuner").unwrap().id, "db_tuner");
    assert_ne!(registry.agent("qa_testing").unwrap().group, "imported");
    let partials: Vec<&str> =
        registry.partials().map(|(name, _)| name).filter(|name| name.ends_with("agents_md")).collect();
    assert_eq!(partials, ["agents_md", "web_agents_md"]);
    let findings: Vec<String> = registry.check().iter().map(ToString::to_string).collect();
    assert_eq!(findings, [""; 0]);
}
