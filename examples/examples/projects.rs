//! A project from its beginning to its end: created, worked in, queried, exported and put back
//! elsewhere, its keys changed, and erased for good. Needs no network: the steps are functions.
//!
//! ```text
//! cargo run -p coral-examples --example projects [DIRECTORY]
//! ```

use std::error::Error;
use std::path::PathBuf;

use coral_core::{Flow, Handle, Journal, Runner, StartOptions, Workflow};
use coral_state::{
    Archive, KeyRing, MasterKey, ProjectDraft, Projects, RunQuery, SortBy, SqliteOptions, SqliteStore,
};
use serde_json::json;

/// Counts the corals of each reef, then adds them up.
struct Survey;

impl Workflow for Survey {
    type Input = Vec<String>;
    type Output = usize;

    fn name(&self) -> &str {
        "survey"
    }

    fn build(&self, flow: &mut Flow<Vec<String>>) -> Handle<usize> {
        let counts = flow.map("reefs", 4, flow.input(), |flow: &mut Flow<String>| {
            flow.function("count", flow.input(), |reef: String| async move { Ok(reef.len()) })
        });
        flow.function("sum", &counts, |counts: Vec<usize>| async move { Ok(counts.iter().sum()) })
    }
}

fn open(path: PathBuf, keys: KeyRing) -> Result<SqliteStore, coral_core::Error> {
    let mut options = SqliteOptions::at(path);
    options.keys = Some(keys);
    SqliteStore::open_with(options)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = dir.join(format!("coral-projects-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;

    // Everything is encrypted, each project by a key of its own. The master key that wraps these
    // belongs elsewhere: `MasterKey::from_env`, `from_file` and `from_command` fetch it.
    let old = MasterKey::generate()?;
    let store = open(dir.join("coral.db"), KeyRing::new(old.clone()))?;
    let projects = Projects::new(store.journal());

    let draft = ProjectDraft {
        name: Some("Reefs of the north".into()),
        config: Some(json!({"season": "spring"})),
        tags: Some(["field-work".to_owned()].into()),
        ..Default::default()
    };
    projects.create("north", draft).await?;
    projects.create("south", ProjectDraft::default()).await?;
    projects.share("north", "contact", json!("ada@example.org")).await?;
    projects.grant("north", "south", &["contact"]).await?;
    println!("south reads {:?} of north", projects.shared("south", "north", "contact").await?);

    let runner = Runner::builder().journal(store.journal()).build();
    for (id, project, reefs) in [
        ("survey-1", "north", vec!["horn", "brain"]),
        ("survey-2", "north", vec!["fan"]),
        ("survey-3", "south", vec!["star"]),
    ] {
        let reefs = reefs.into_iter().map(str::to_owned).collect();
        let options = StartOptions::new().id(id).project(project);
        let run = runner.start_with(&Survey, reefs, options).await?;
        println!("{id}: {} corals", run.output().await?);
    }
    let progress = projects.progress("north").await?;
    println!("north: {} of {} steps done, {:?}", progress.done, progress.total, progress.runs);

    // The index is a fold over the journal, kept in the file; here its words are keyed hashes.
    let index = store.index();
    index.refresh().await?;
    let mut query = RunQuery::default();
    query.project = Some("north".into());
    query.text = Some("brain".into());
    (query.sort, query.descending) = (SortBy::Updated, true);
    for run in index.query(&query).await?.runs {
        println!("found {} in {}", run.head.run, run.head.project);
    }

    let archive = projects.export("north").await?;
    std::fs::write(dir.join("north.json"), archive.to_json()?)?;
    std::fs::write(dir.join("north.md"), archive.to_markdown()?)?;
    std::fs::write(dir.join("north.html"), archive.to_html()?)?;

    // The master key changes while work goes on; the old one may then be destroyed.
    let new = MasterKey::generate()?;
    drop((runner, projects, index, store));
    let store = open(dir.join("coral.db"), KeyRing::new(new.clone()).and_older(old))?;
    println!("{} data keys wrapped anew", store.rotate_master_key().await?);
    store.rotate_data_key("north").await?;
    drop(store);
    let store = open(dir.join("coral.db"), KeyRing::new(new))?;

    // Erasing destroys the project's keys: its records stay, and nobody can read them.
    let stone = store.erase_project("north").await?;
    println!("north: {} keys destroyed, signature good: {:?}", stone.keys, stone.signature);
    if let Err(error) = store.journal().read("survey-1", 1, 10).await {
        println!("survey-1: {error}");
    }
    println!("survey-1: {} records, all there", store.journal().verify("survey-1").await?);
    println!("survey-3: {} records to be read", store.journal().read("survey-3", 1, 100).await?.len());

    // What was exported before can be put back, in another store or under another roof.
    let elsewhere = SqliteStore::open(dir.join("elsewhere.db"))?;
    let archive = Archive::from_text(&std::fs::read_to_string(dir.join("north.json"))?)?;
    let imported = Projects::new(elsewhere.journal()).import(&archive).await?;
    let runs = Projects::new(elsewhere.journal()).runs("north").await?;
    println!("{} journals put back, {} runs of north", imported.new, runs.len());
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
