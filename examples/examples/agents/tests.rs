//! One test for each command, and the ways to get it wrong.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use coral_core::{Partials, PromptStore, PromptText};

use super::*;

/// A directory of this test alone.
fn fresh(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("coral-agents-{}-{name}", std::process::id()));
    if dir.exists() {
        fs::remove_dir_all(&dir).expect("it was made by this test");
    }
    fs::create_dir_all(&dir).expect("there is a directory for temporary files");
    dir
}

async fn with(words: &[&str], options: &Options) -> (String, bool) {
    match run(words, options, &mut std::io::empty()).await {
        Ok(printed) => printed,
        Err(Refused::Usage(problem)) => panic!("{problem}"),
        Err(Refused::Failed(error)) => panic!("{error}"),
    }
}

async fn printed(words: &[&str]) -> String {
    let (text, good) = with(words, &Options::default()).await;
    assert!(good, "{text}");
    text
}

#[tokio::test]
async fn list_names_every_agent() {
    let text = printed(&["list"]).await;
    let ids: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(ids.len(), Registry::builtin().agents().count());
    assert_eq!(ids.first(), Some(&"project_architect"), "who leads comes first");
}

#[tokio::test]
async fn search_finds_by_capability_and_helps_where_there_is_none() {
    let text = printed(&["search", "load", "testing"]).await;
    assert!(text.contains("performance_engineer") && !text.contains("ui_designer"), "{text}");
    let refused = run(&["search", "lode", "testing"], &Options::default(), &mut std::io::empty()).await;
    assert!(
        matches!(&refused, Err(Refused::Failed(error)) if error.to_string().contains("did you mean `load_testing`?"))
    );
}

#[tokio::test]
async fn show_tells_what_an_agent_needs_and_gives() {
    let text = printed(&["show", "technical_writer"]).await;
    for part in ["Technical Writer", "docs/guide/README.md", "in requirements", "docs/requirements.md"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[tokio::test]
async fn handoffs_and_workflows_are_drawn_and_listed() {
    let text = printed(&["handoffs"]).await;
    assert!(text.starts_with("flowchart LR\n") && text.contains("project_architect --> technical_writer"));
    let text = printed(&["workflows"]).await;
    assert_eq!(text.lines().count(), Registry::builtin().workflows().count());
}

#[tokio::test]
async fn explain_goes_by_the_facts() {
    let plain = printed(&["explain", "documentation_first"]).await;
    let mobile = printed(&["explain", "documentation_first", "needs_mobile=true"]).await;
    assert_ne!(plain, mobile);
    assert!(mobile.contains("flowchart"), "{mobile}");
    let refused =
        run(&["explain", "documentation_first", "x"], &Options::default(), &mut std::io::empty()).await;
    assert!(matches!(&refused, Err(Refused::Failed(error)) if error.to_string().contains("`name=value`")));
}

#[tokio::test]
async fn check_looks_at_the_built_in_ones_and_at_a_directory() {
    assert!(printed(&["check"]).await.ends_with("0 findings, 0 files skipped\n"));
    let dir = fresh("check");
    fs::write(dir.join("a.md"), "---\nid: a\nname: A\ndependencies: [nothing]\n---\n## Task\nx\n")
        .expect("write");
    let (text, good) = with(&["check", &dir.to_string_lossy()], &Options::default()).await;
    assert!(!good && text.contains("depends on `nothing`"), "{text}");
    fs::remove_dir_all(dir).expect("it was made by this test");
}

#[tokio::test]
async fn what_is_exported_can_be_imported() {
    let dir = fresh("export");
    let project = dir.to_string_lossy().into_owned();
    let exported = printed(&["export", &project]).await;
    assert!(exported.contains("qa-testing.md") && exported.contains("AGENTS.md"), "{exported}");
    let again = printed(&["export", &project]).await;
    assert!(again.lines().all(|line| line.ends_with("is there already and stays as it is")), "{again}");

    // Beside the built-in agents of the same names none is taken; a new one is.
    let new = "---\nname: new-one\ndescription: Is new.\n---\nYou are new.\n";
    fs::write(dir.join(".claude/agents/new.md"), new).expect("write");
    let imported = printed(&["import", &project]).await;
    assert!(imported.contains("agent `new_one`"), "{imported}");
    assert!(imported.contains("`qa_testing` is there already"), "{imported}");
    fs::remove_dir_all(dir).expect("it was made by this test");
}

#[tokio::test]
async fn evaluate_compares_definitions_models_and_versions() {
    let dir = fresh("evaluate");
    let cases = dir.join("cases.yaml");
    let text =
        "name: example\ncases:\n  - {name: one, brief: Say something., expect: [holds: output.summary]}\n";
    fs::write(&cases, text).expect("write");
    fs::write(dir.join("qa.md"), "---\nextends: qa_testing\nsummary: Ours\n---\n").expect("write");
    let cases = cases.to_string_lossy().into_owned();
    let words = ["evaluate", cases.as_str(), "qa_testing"];
    let out = || Some(dir.join("out"));

    let mut options =
        Options { models: vec!["offline".into(), "offline".into()], out: out(), ..Options::default() };
    options.phase = "check".into();
    let (text, _) = with(&words, &options).await;
    assert!(text.matches("built-in on offline").count() >= 2, "{text}");

    let options =
        Options { dir: Some(dir.clone()), models: vec!["offline".into()], out: out(), ..Options::default() };
    let (text, _) = with(&words, &options).await;
    assert!(text.contains("built-in") && text.contains(&*dir.to_string_lossy()), "{text}");

    let registry = Registry::builtin();
    let partials: Partials = registry.partials().collect();
    let mut spec = registry.agent("qa_testing").expect("it is built in").as_ref().clone();
    let mut store = PromptStore::new();
    let first = store.commit("qa_testing", PromptText::of(&spec, &partials), "first").expect("commit");
    spec.role_description.push_str(" You are kind.");
    let second = store.commit("qa_testing", PromptText::of(&spec, &partials), "second").expect("commit");
    let file = dir.join("prompts.json");
    fs::write(&file, serde_json::to_string(&store).expect("it is JSON")).expect("write");
    let options = Options {
        prompts: Some(file),
        versions: vec![first.clone(), second.clone()],
        models: vec!["offline".into()],
        out: out(),
        ..Options::default()
    };
    let (text, _) = with(&words, &options).await;
    assert!(text.contains(&first) && text.contains(&second), "{text}");

    let options = Options { versions: vec![first], ..Options::default() };
    let refused = run(&words, &options, &mut std::io::empty()).await;
    assert!(
        matches!(&refused, Err(Refused::Failed(error)) if error.to_string().contains("store of the versions"))
    );
    fs::remove_dir_all(dir).expect("it was made by this test");
}

/// Gives a line when it is told to.
struct Keyboard(mpsc::Receiver<()>);

impl std::io::Read for Keyboard {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match (self.0.recv(), buffer) {
            (Ok(()), [first, ..]) => {
                *first = b'\n';
                Ok(1)
            }
            _ => Ok(0),
        }
    }
}

#[test]
fn watch_says_what_changes_until_a_line_is_entered() {
    let dir = fresh("watch");
    let (press, pressed) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let watching = std::thread::spawn({
        let dir = dir.clone();
        move || {
            let mut input = std::io::BufReader::new(Keyboard(pressed));
            watch(&dir, &mut input, move |text| drop(tell.send(text.to_owned())))
                .map_err(|error| error.to_string())
        }
    });
    let patience = Duration::from_secs(30);
    let first = told.recv_timeout(patience).expect("it says that it begins");
    assert!(first.starts_with("0 agents of "), "{first}");
    fs::write(dir.join("a.md"), "---\nid: a\nname: A\n---\n## Task\nx\n").expect("write");
    // A file may be seen half written first.
    while !told.recv_timeout(patience).expect("it says what changed").contains("agents: a") {}
    press.send(()).expect("it waits for a line");
    assert_eq!(watching.join().expect("it ends"), Ok(String::new()));
    fs::remove_dir_all(dir).expect("it was made by this test");
}

#[tokio::test]
async fn what_is_wrong_with_a_command_is_said() {
    for (words, expected) in [
        (&["watch"][..], "`watch` needs a directory: give it as `--dir DIR`"),
        (&[], "which command?"),
        (&["lst"], "there is no command `lst`"),
        (&["show"], "`show` is not given what it needs, or too much"),
    ] {
        let refused = run(words, &Options::default(), &mut std::io::empty()).await;
        assert!(matches!(&refused, Err(Refused::Usage(problem)) if problem == expected), "{expected}");
    }
    let mut options = Options::default();
    assert!(options.set("modle", "x".into()).is_err());
}
