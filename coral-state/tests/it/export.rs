//! Projects taken out and put back, and told to people.

use std::sync::Arc;

use coral_core::{Event, Journal, MemoryJournal, Record};
use coral_state::{Archive, ProjectDraft, Projects};
use serde_json::json;

use crate::support::{keep, team_run};

const NASTY: &str = "a|b *c* <script>alert('x')</script> & \"q\" # -\n- : é 𝄞 ~ 'y': [1]";

async fn filled() -> (Arc<MemoryJournal>, Projects) {
    let journal = Arc::new(MemoryJournal::new());
    let projects = Projects::new(journal.clone());
    let draft = ProjectDraft {
        name: Some(NASTY.into()),
        description: Some(NASTY.into()),
        config: Some(
            json!({"n": 1.0 / 3.0, "max": u64::MAX, "text": "007", "yes": "no", "none": null, "": NASTY}),
        ),
        ..Default::default()
    };
    projects.create("reef", draft).await.unwrap();
    projects.create("other", ProjectDraft::default()).await.unwrap();
    keep(&journal, "run-1", &team_run("reef", NASTY, json!({}))).await;
    keep(&journal, "run-2", &team_run("reef", "", json!({}))[..6]).await;
    keep(&journal, "run-3", &team_run("other", "", json!({}))).await;
    (journal, projects)
}

#[tokio::test]
async fn what_is_exported_can_be_put_back() {
    let (_, projects) = filled().await;
    let archive = projects.export("reef").await.unwrap();
    assert_eq!(
        archive.journals.iter().map(|j| &*j.run).collect::<Vec<_>>(),
        ["project:reef", "run-1", "run-2"]
    );
    let mut texts = vec![archive.to_json().unwrap()];
    if cfg!(feature = "yaml") {
        texts.push(archive.to_yaml().unwrap());
    }
    for text in texts {
        let read = Archive::from_text(&text).unwrap();
        assert_eq!(read, archive);
        let elsewhere = Projects::new(MemoryJournal::new());
        let imported = elsewhere.import(&read).await.unwrap();
        assert_eq!((imported.new, imported.extended, imported.unchanged), (3, 0, 0));
        assert_eq!(elsewhere.export("reef").await.unwrap(), archive);
        assert_eq!(elsewhere.get("reef").await.unwrap(), projects.get("reef").await.unwrap());
        let again = elsewhere.import(&read).await.unwrap();
        assert_eq!((again.new, again.extended, again.unchanged), (0, 0, 3));
    }
}

#[tokio::test]
async fn an_import_extends_and_never_overwrites() {
    let (journal, projects) = filled().await;
    let early = projects.export("reef").await.unwrap();
    let elsewhere = Projects::new(MemoryJournal::new());
    elsewhere.import(&early).await.unwrap();
    let epoch = journal.acquire("run-2").await.unwrap();
    journal.append("run-2", epoch, 6, team_run("reef", "", json!({}))[6..9].to_vec().into()).await.unwrap();
    let late = projects.export("reef").await.unwrap();
    let imported = elsewhere.import(&late).await.unwrap();
    assert_eq!((imported.new, imported.extended, imported.unchanged), (0, 1, 2));
    assert_eq!(elsewhere.export("reef").await.unwrap(), late);
    assert_eq!(elsewhere.import(&early).await.unwrap().unchanged, 3, "what is ahead stays");

    let mut changed = late.clone();
    changed.journals[2].records[1].at_ms += 1;
    let error = elsewhere.import(&changed).await.unwrap_err();
    assert!(error.to_string().contains("`run-2`"), "{error}");
    assert_eq!(elsewhere.export("reef").await.unwrap(), late);
}

#[tokio::test]
async fn archives_that_do_not_hold_together_are_refused() {
    let (_, projects) = filled().await;
    let whole = projects.export("reef").await.unwrap();
    let damaged = |damage: fn(&mut Archive)| {
        let mut archive = whole.clone();
        damage(&mut archive);
        Archive::from_text(&archive.to_json().unwrap()).unwrap_err().to_string()
    };
    for (says, message) in [
        ("format is 9", damaged(|archive| archive.format = 9)),
        ("`../x`", damaged(|archive| archive.project = "../x".into())),
        ("records of `run-1` are missing", damaged(|archive| drop(archive.journals[1].records.remove(3)))),
        ("`run-1` is there twice", damaged(|archive| archive.journals.push(archive.journals[1].clone()))),
        (
            "`run-1` begins again at seq 17",
            damaged(|archive| {
                let first = archive.journals[1].records[0].clone();
                archive.journals[1].records.push(Record { seq: 17, ..first });
            }),
        ),
        ("`run-1` is not where", damaged(|archive| drop(archive.journals.remove(0)))),
        ("`project:other` is not where", damaged(|archive| archive.journals[1].run = "project:other".into())),
        ("`run-1` does not begin", damaged(|archive| archive.journals[1].records.clear())),
        ("it is empty", damaged(|archive| archive.journals.clear())),
    ] {
        assert!(message.contains(says), "{message}");
    }
    for text in ["", "{", "[]", "null", "{\"format\": 1}"] {
        assert!(Archive::from_text(text).is_err(), "{text}");
    }
    assert_eq!(projects.export("none").await.unwrap_err().code(), "CORAL0003");
}

#[tokio::test]
async fn reports_hold_what_happened_and_nothing_that_acts() {
    let (_, projects) = filled().await;
    let archive = projects.export("reef").await.unwrap();
    let html = archive.to_html().unwrap();
    let markdown = archive.to_markdown().unwrap();
    for text in ["run-1", "project", "qa", "succeeded", "$1.00", "docs/architecture.md", "build the API"] {
        assert!(html.contains(text), "{text}");
        assert!(markdown.replace('\\', "").contains(text), "{text}");
    }
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)") && !html.contains("<script"));
    assert!(!html.contains("http"), "it loads nothing");
    assert!(!markdown.contains("<script"));
    for line in markdown.lines().filter(|line| line.starts_with("| architecture")) {
        assert_eq!(line.replace("\\|", "").matches('|').count(), 4, "{line}");
    }
}

#[tokio::test]
async fn an_archive_of_a_newer_project_says_so() {
    let (_, projects) = filled().await;
    let mut archive = projects.export("reef").await.unwrap();
    let event = Event::Noted { path: "".into(), topic: "".into(), note: json!({"change": "flown"}) };
    let seq = archive.journals[0].records.len() as u64 + 1;
    archive.journals[0].records.push(Record { seq, at_ms: 1, event });
    assert!(archive.to_html().unwrap_err().to_string().contains("flown"));
}
