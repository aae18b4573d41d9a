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
    for id in
        ["api_reviewer", "incident_helper", "poet_laureate", "db_tuner", "invoice_tables", "release_notes"]
    {
        assert_eq!(registry.agent(id).unwrap().group, "imported");
    }
    assert_eq!(registry.agent("db-tuner").unwrap().id, "db_tuner");
    assert_ne!(registry.agent("qa_testing").unwrap().group, "imported");
    assert!(registry.partials().any(|(name, _)| name == "agents_md"));
    let findings: Vec<String> = registry.check().iter().map(ToString::to_string).collect();
    assert_eq!(findings, [""; 0]);
}
