//! Directories of definitions.

use std::fs;
use std::path::PathBuf;

use coral_agents::{LiveRegistry, Registry, Source};
use coral_core::ErrorKind;

/// A directory of this test alone, below the target directory.
fn fresh(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn a_directory_adds_to_the_built_in_agents() {
    let dir = fresh("house");
    for sub in ["agents", "partials", "workflows", "other"] {
        fs::create_dir(dir.join(sub)).unwrap();
    }
    fs::write(dir.join("agents/reviewer.md"), "---\nid: reviewer\nname: Reviewer\n---\n## Task\nReview.\n")
        .unwrap();
    fs::write(dir.join("qa.md"), "---\nextends: qa_testing\nsummary: Ours\n---\n## + System\nHouse rules.\n")
        .unwrap();
    fs::write(dir.join("agents/broken.md"), "---\nid: [\n---\n").unwrap();
    fs::write(dir.join("agents/latin1.md"), b"---\nid: caf\xe9\n---\n").unwrap();
    fs::write(dir.join("agents/notes.txt"), "not a definition").unwrap();
    fs::write(dir.join("partials/house.md"), "Be kind.").unwrap();
    fs::write(
        dir.join("workflows/review.yml"),
        "steps:\n  - agent: reviewer\n  - {agent: qa_testing, inputs: reviewer}\n",
    )
    .unwrap();
    fs::write(dir.join("other/ignored.md"), "ignored").unwrap();

    let (registry, loaded) = Registry::with_dir(&dir).unwrap();
    assert_eq!(loaded.agents, ["qa_testing", "reviewer"]);
    assert_eq!((loaded.partials, loaded.workflows), (vec!["house".to_owned()], vec!["review".to_owned()]));
    let skipped: Vec<_> =
        loaded.skipped.iter().map(|s| s.file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(skipped, ["broken.md", "latin1.md"]);
    assert!(loaded.skipped[0].error.to_string().contains("broken.md:2: "), "{}", loaded.skipped[0].error);

    let qa = registry.agent("qa_testing").unwrap();
    assert_eq!(qa.summary, "Ours");
    assert!(qa.prompt.system_instructions.ends_with("\n\nHouse rules."));
    assert_eq!(registry.source("qa_testing"), Some(&Source::File(dir.join("qa.md"))));
    assert_eq!(registry.source("project_architect"), Some(&Source::Builtin));
    assert_eq!(registry.workflow("review").unwrap().steps.len(), 2);
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let error = Registry::with_dir("/does/not/exist").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Storage { .. }), "{error}");
}

#[test]
fn a_live_registry_follows_its_directory() {
    let dir = fresh("live");
    let agent = |id: &str, summary: &str| {
        format!("---\nid: {id}\nname: N\nsummary: {summary}\n---\n## Task\nWork.\n")
    };
    fs::write(dir.join("a.md"), agent("a", "one")).unwrap();
    fs::write(dir.join("b.md"), agent("b", "one")).unwrap();
    let (live, loaded) = LiveRegistry::open(Registry::new(), &dir).unwrap();
    assert_eq!(loaded.agents, ["a", "b"]);
    assert_eq!(live.refresh().unwrap(), None);

    let before = live.current();
    fs::write(dir.join("a.md"), agent("a", "two")).unwrap();
    fs::write(dir.join("c.md"), agent("c", "one")).unwrap();
    fs::write(dir.join("w.yaml"), "steps: [{agent: a}]").unwrap();
    fs::remove_file(dir.join("b.md")).unwrap();
    let changes = live.refresh().unwrap().unwrap();
    assert_eq!(
        (changes.agents, changes.removed_agents),
        (vec!["a".to_owned(), "c".to_owned()], vec!["b".to_owned()])
    );
    assert_eq!(changes.workflows, ["w"]);
    assert_eq!(live.current().agent("a").unwrap().summary, "two");
    assert_eq!(before.agent("a").unwrap().summary, "one", "a snapshot stays as it was");

    // Broken in the middle of an edit: the last good version stays in force.
    for broken in ["---\nid: a\nname: ", "---\nid: a\nname: N\nsummary: [\n---\n"] {
        fs::write(dir.join("a.md"), broken).unwrap();
        let changes = live.refresh().unwrap().unwrap();
        assert_eq!(changes.agents, [""; 0]);
        assert_eq!(changes.skipped.len(), 1, "{changes:?}");
        assert_eq!(live.current().agent("a").unwrap().summary, "two");
        assert_eq!(live.current().workflow("w").unwrap().steps.len(), 1);
    }
    fs::write(dir.join("a.md"), agent("a", "three")).unwrap();
    assert_eq!(live.refresh().unwrap().unwrap().agents, ["a"]);
    assert_eq!(live.current().agent("a").unwrap().summary, "three");
}

/// A file that can't be read for a moment is there all the same: its last good version stays, and goes with the file.
#[test]
fn an_unreadable_file_keeps_its_last_good_version() {
    let dir = fresh("unreadable");
    fs::write(dir.join("a.md"), "---\nid: a\nname: N\n---\n## Task\nWork.\n").unwrap();
    fs::write(dir.join("w.yaml"), "steps: [{agent: a}]").unwrap();
    let (live, _) = LiveRegistry::open(Registry::new(), &dir).unwrap();

    fs::write(dir.join("a.md"), b"---\nid: a\nname: \xff").unwrap();
    let changes = live.refresh().unwrap().unwrap();
    assert_eq!((changes.removed_agents, changes.agents), (vec![], vec![]));
    assert_eq!(changes.skipped.len(), 1, "{:?}", changes.skipped);
    assert!(changes.skipped[0].file.ends_with("a.md"));
    assert_eq!(live.current().agent("a").unwrap().name, "N");
    assert_eq!(live.current().workflow("w").unwrap().steps.len(), 1);
    assert_eq!(live.refresh().unwrap(), None);

    // One that was never good brings nothing.
    fs::write(dir.join("b.md"), b"\xff").unwrap();
    assert_eq!(live.refresh().unwrap().unwrap().skipped.len(), 2);

    fs::remove_file(dir.join("a.md")).unwrap();
    assert_eq!(live.refresh().unwrap().unwrap().removed_agents, ["a"]);
    let (opened, loaded) = LiveRegistry::open(Registry::new(), &dir).unwrap();
    assert!(loaded.skipped.iter().any(|skipped| skipped.file.ends_with("b.md")), "{loaded:?}");
    assert_eq!(opened.current().agents().count(), 0);
}

/// A changed file is seen whenever it was written, also where its time and length stay the same.
#[test]
fn a_poll_reads_only_where_something_may_have_changed() {
    let dir = fresh("poll");
    let agent = |summary: &str| format!("---\nid: a\nname: N\nsummary: {summary}\n---\n## Task\nWork.\n");
    let path = dir.join("a.md");
    let write = |summary: &str, age_s: u64| {
        fs::write(&path, agent(summary)).unwrap();
        let then = std::time::SystemTime::now() - std::time::Duration::from_secs(age_s);
        fs::File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
        then
    };
    write("one", 0);
    let (live, _) = LiveRegistry::open(Registry::new(), &dir).unwrap();
    // Just written: a second change in the same moment would not show, so it is read again.
    let then = write("two", 0);
    assert_eq!(live.poll().unwrap().unwrap().agents, ["a"]);
    fs::write(&path, agent("new")).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
    assert_eq!(live.poll().unwrap().unwrap().agents, ["a"]);
    assert_eq!(live.current().agent("a").unwrap().summary, "new");
    // Written long ago: nothing is read until its time or its length is another.
    write("old", 100);
    assert!(live.poll().unwrap().is_some());
    assert_eq!(live.poll().unwrap(), None);
    write("older", 100);
    assert_eq!(live.poll().unwrap().unwrap().agents, ["a"]);
    fs::remove_file(&path).unwrap();
    assert_eq!(live.poll().unwrap().unwrap().removed_agents, ["a"]);
}

#[cfg(feature = "watch")]
#[test]
fn a_directory_is_followed_until_nobody_listens() {
    let dir = fresh("follow");
    let (live, _) = LiveRegistry::open(Registry::new(), &dir).unwrap();
    let live = std::sync::Arc::new(live);
    let (tell, told) = std::sync::mpsc::channel();
    let following = live.follow(move |changes| tell.send(changes).unwrap()).unwrap();
    fs::write(dir.join("p.md"), "---\nid: a\nname: N\n---\n## Task\nWork.\n").unwrap();
    let patience = std::time::Duration::from_secs(30);
    // A file may be seen half written first.
    while live.current().agent("a").is_err() {
        told.recv_timeout(patience).unwrap().unwrap();
    }
    fs::remove_dir_all(&dir).unwrap();
    let error = loop {
        if let Err(error) = told.recv_timeout(patience).unwrap() {
            break error;
        }
    };
    assert!(matches!(error.kind(), ErrorKind::Storage { .. }), "{error}");
    // A directory that comes back is found, with directories in it that were not there before.
    fs::create_dir_all(dir.join("agents")).unwrap();
    fs::write(dir.join("agents/b.md"), "---\nid: b\nname: N\n---\n## Task\nWork.\n").unwrap();
    while live.current().agent("b").is_err() {
        told.recv_timeout(patience).unwrap().unwrap();
    }
    fs::write(dir.join("agents/c.md"), "---\nid: c\nname: N\n---\n## Task\nWork.\n").unwrap();
    while live.current().agent("c").is_err() {
        told.recv_timeout(patience).unwrap().unwrap();
    }
    drop(following);
    assert!(told.iter().count() < 10, "the listener is gone, so this ends");
}

/// More files than one thread parses: the order of the files decides, not that of the threads.
#[test]
fn a_large_directory_loads_in_the_order_of_its_files() {
    let dir = fresh("large");
    for i in 0..400 {
        let id = if i == 399 { 0 } else { i };
        let text = if i % 100 == 7 {
            "broken".to_owned()
        } else {
            format!("---\nid: a{id}\nname: N{i}\n---\n## Task\nx\n")
        };
        fs::write(dir.join(format!("{i:03}.md")), text).unwrap();
    }
    let mut registry = Registry::new();
    let loaded = registry.load_dir(&dir).unwrap();
    assert_eq!((loaded.agents.len(), loaded.skipped.len()), (395, 5));
    assert_eq!(registry.agent("a0").unwrap().name, "N0");
    let skipped: Vec<_> =
        loaded.skipped.iter().map(|s| s.file.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(skipped, ["007", "107", "207", "307", "399"]);
}

#[test]
fn the_evaluations_that_come_along_can_be_read() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("evaluations");
    let mut read = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let evaluation =
            coral_agents::parse_cases(&path.to_string_lossy(), &fs::read_to_string(&path).unwrap()).unwrap();
        assert!(Registry::builtin().agent(&evaluation.name).is_ok(), "{}", evaluation.name);
        read += 1;
    }
    assert!(read > 0);
}
