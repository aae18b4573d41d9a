//! What every store does alike, whatever keeps it.

use std::sync::Arc;

use coral_core::{Clock, Event, Journal, MemoryJournal, Record, SystemClock};
use coral_state::{BlobSweep, DirectoryBlobs, collect_garbage};
use serde_json::json;

use crate::meddled::{Action, Meddled, Moment};
use crate::support::keep;

/// A run that refers to a blob.
fn referring(project: &str, blob: &coral_core::BlobRef) -> Vec<Record> {
    let mut records = crate::support::team_run(project, "a reef", json!({"tags": ["blue"]}));
    records[1].event =
        Event::Noted { path: "design".into(), topic: "kept".into(), note: json!({"at": blob.sha256}) };
    records
}

/// Waits until the clock shows another millisecond, so that what was kept is older than now.
fn tick() {
    let now = SystemClock.now_ms();
    while SystemClock.now_ms() == now {
        std::hint::spin_loop();
    }
}

/// What garbage collection promises, for any blobs and journal.
async fn collects_only_garbage<B>(blobs: B, journal: Arc<dyn Journal>, project: &str)
where
    B: BlobSweep + Clone + 'static,
{
    let kept = blobs.put(b"a run refers to this").await.unwrap();
    let lost = blobs.put(b"nothing refers to this").await.unwrap();
    keep(&journal, "refers", &referring(project, &kept)).await;
    tick();
    let now = SystemClock.now_ms();
    let early = collect_garbage(&journal, &blobs, 60_000, now).await.unwrap();
    assert_eq!((early.removed, early.referenced), (0, 0), "the grace is not over");
    let report = collect_garbage(&journal, &blobs, 0, now).await.unwrap();
    assert_eq!((report.removed, report.referenced), (1, 1));
    assert!(report.bytes > 0);
    assert!(blobs.get(&kept).await.unwrap().is_some());
    assert!(blobs.get(&lost).await.unwrap().is_none());
    assert_eq!(blobs.put(b"nothing refers to this").await.unwrap(), lost, "it may come back");

    // A writer appends the name while the first look reads: the second look finds it.
    let raced = blobs.put(b"named in the nick of time").await.unwrap();
    tick();
    let (to, records) = (journal.clone(), referring(project, &raced));
    let action: Action = Box::new(move || Box::pin(async move { keep(&to, "late", &records).await }));
    let during = Meddled::new(journal.clone(), Moment::Listed(1), action);
    collect_garbage(&during, &blobs, 0, SystemClock.now_ms()).await.unwrap();
    assert!(blobs.get(&raced).await.unwrap().is_some());

    // A writer puts the same bytes again after the marking, to name them later.
    let again = blobs.put(b"put again").await.unwrap();
    tick();
    let store = blobs.clone();
    let action: Action = Box::new(move || {
        Box::pin(async move {
            tick();
            store.put(b"put again").await.unwrap();
        })
    });
    let now = SystemClock.now_ms();
    let during = Meddled::new(journal.clone(), Moment::Listed(2), action);
    collect_garbage(&during, &blobs, 0, now).await.unwrap();
    assert!(blobs.get(&again).await.unwrap().is_some(), "it was put after the cutoff");
    tick();
    collect_garbage(&journal, &blobs, 0, SystemClock.now_ms()).await.unwrap();
    assert!(blobs.get(&again).await.unwrap().is_none(), "nobody named it after all");
    let left = blobs.older_than(u64::MAX >> 1).await.unwrap().len();
    assert_eq!(left, 2, "the two that are named");
}

#[tokio::test]
async fn a_sealed_directory_lets_go_of_garbage_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ring = coral_state::KeyRing::new(coral_state::MasterKey::generate().unwrap());
    let blobs = DirectoryBlobs::open_sealed(dir.path(), "reef", &ring).unwrap();
    collects_only_garbage(blobs, Arc::new(MemoryJournal::new()), "reef").await;
}

#[tokio::test]
async fn a_directory_lets_go_of_garbage_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("zz")).unwrap();
    std::fs::write(dir.path().join("zz/readme"), "somebody else's").unwrap();
    let blobs = DirectoryBlobs::open(dir.path()).unwrap();
    collects_only_garbage(blobs, Arc::new(MemoryJournal::new()), "reef").await;
    assert!(dir.path().join("zz/readme").exists());
}

macro_rules! parity {
    ($place:ty) => {
        use std::sync::Arc;

        use coral_core::{
            Blobs, Cache, Clock, Journal, ManualClock, Record, RunFilter, RunStatus, SystemClock,
        };
        use coral_state::{
            Archive, DataClass, KeyRing, MasterKey, ProjectDraft, ProjectStatus, Projects, RetentionAction,
            RetentionRule, RunIndex, RunQuery, Sessions, Snapshots, SortBy, WorkflowState,
        };
        use serde_json::json;

        use super::{collects_only_garbage, referring, tick};
        use crate::support::{keep, team_run};

        const MARKER: &str = "zanzibarmarker";
        /// For stores that are not encrypted: a server has the files of all of them.
        const TRACE: &str = "timbuktutrace";

        fn ring() -> KeyRing {
            KeyRing::new(MasterKey::generate().unwrap())
        }

        async fn one_by_one(journal: &impl Journal, run: &str, count: usize) {
            let epoch = journal.acquire(run).await.unwrap();
            for record in &team_run("reef", "a reef", json!({}))[..count] {
                journal.append(run, epoch, record.seq - 1, vec![record.clone()].into()).await.unwrap();
            }
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn nothing_that_was_kept_can_be_read_without_keys() {
            let place = <$place>::new().await;
            let ring = ring();
            let store = place.open(Some(ring.clone())).await.unwrap();
            let draft = ProjectDraft { description: Some(MARKER.into()), ..Default::default() };
            Projects::new(store.journal()).create("reef", draft).await.unwrap();
            let records = team_run("reef", MARKER, json!({ "tags": [MARKER] }));
            keep(&store.journal(), "run", &records).await;
            let blob = store.blobs_of("reef").put(MARKER.as_bytes()).await.unwrap();
            store.cache(9).put("key", MARKER.as_bytes().into(), None).await.unwrap();
            let mut long = records.clone();
            let (template, end) = (long[2].clone(), long.pop().unwrap());
            long.extend((16..700).map(|seq| Record { seq, ..template.clone() }));
            long.push(Record { seq: 700, ..end });
            keep(&store.journal(), "long", &long).await;
            WorkflowState::open(&store.journal(), &store, "long").await.unwrap();
            assert!(Snapshots::load(&store, "long").await.unwrap().is_some(), "a snapshot lies there too");
            assert_eq!(store.index().refresh().await.unwrap().changed, 2);
            let elsewhere = tempfile::tempdir().unwrap();
            let backup = elsewhere.path().join("backup.db");
            store.backup(&backup).await.unwrap();
            assert!(!crate::support::holds(elsewhere.path(), MARKER.as_bytes()), "nor in a backup");
            assert!(crate::support::holds(elsewhere.path(), b"delivery"));
            assert!(!place.holds(MARKER).await);
            assert!(place.holds("delivery").await, "the search finds what is not encrypted");
            drop(store);

            let store = place.open(Some(ring)).await.unwrap();
            assert_eq!(store.journal().read("run", 1, 99).await.unwrap(), records);
            let kept = store.blobs_of("reef").get(&blob).await.unwrap();
            assert_eq!(kept.as_deref(), Some(MARKER.as_bytes()));
            assert_eq!(store.blobs().get(&blob).await.unwrap(), None, "another scope");
            assert_eq!(store.cache(9).get("key").await.unwrap().as_deref(), Some(MARKER.as_bytes()));
            for (field, word) in [("text", MARKER), ("tag", MARKER), ("agent", "qa_testing"), ("phase", "check")] {
                let mut query = RunQuery::default();
                match field {
                    "text" => query.text = Some(word.to_uppercase()),
                    "tag" => query.tag = Some(word.into()),
                    "agent" => query.agent = Some(word.into()),
                    _ => query.phase = Some(word.into()),
                }
                let page = store.index().query(&query).await.unwrap();
                assert_eq!(page.runs.len(), 2, "by {field}");
                assert!(page.runs[0].tags.contains(MARKER), "the line is unsealed");
            }
            drop(store);
            let error = place.open(None).await.unwrap_err();
            assert!(error.to_string().contains("encrypted"), "{error}");
            let other = place.open(Some(self::ring())).await.unwrap();
            let error = other.journal().read("run", 1, 99).await.unwrap_err();
            assert!(error.to_string().contains("older"), "{error}");
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn keys_change_while_work_goes_on_and_a_project_is_erased_for_good() {
            let place = <$place>::new().await;
            let old = MasterKey::generate().unwrap();
            let store = place.open(Some(KeyRing::new(old.clone()))).await.unwrap();
            let journal = store.journal();
            let reef = team_run("reef", MARKER, json!({}));
            let kelp = team_run("kelp", "kelp", json!({}));
            keep(&journal, "kelp", &kelp).await;
            let blob = store.blobs_of("reef").put(MARKER.as_bytes()).await.unwrap();
            let epoch = journal.acquire("reef").await.unwrap();
            let new = MasterKey::generate().unwrap();
            let rotating = place.open(Some(KeyRing::new(new.clone()).and_older(old))).await.unwrap();
            let (writing, rotated) = tokio::join!(
                async {
                    for record in &reef {
                        journal.append("reef", epoch, record.seq - 1, vec![record.clone()].into()).await.unwrap();
                        if record.seq == 5 {
                            store.rotate_data_key("reef").await.unwrap();
                        }
                    }
                },
                rotating.rotate_master_key()
            );
            let () = writing;
            assert!(rotated.unwrap() >= 1);
            // Keys made by the first store since then are still wrapped by the old one.
            rotating.rotate_master_key().await.unwrap();
            assert_eq!(rotating.rotate_master_key().await.unwrap(), 0);
            // Who has not heard of the new master key can't unwrap by it.
            rotating.index().refresh().await.unwrap();
            drop((journal, store, rotating));

            let store = place.open(Some(KeyRing::new(new))).await.unwrap();
            let journal = store.journal();
            assert_eq!(journal.read("reef", 1, 99).await.unwrap(), reef);
            assert!(WorkflowState::open(&journal, &store, "reef").await.unwrap().is_some());
            store.cache(9).put("key", MARKER.as_bytes().into(), None).await.unwrap();
            let revision = journal.head("reef").await.unwrap().unwrap().revision;
            store.save("reef", 16, revision, MARKER.into()).await.unwrap();
            assert_eq!(store.load("reef").await.unwrap().as_deref(), Some(MARKER.as_bytes()));
            let stone = store.erase_project("reef").await.unwrap();
            assert_eq!(store.load("reef").await.unwrap(), None);
            store.save("reef", 16, revision, MARKER.into()).await.unwrap_err();
            assert_eq!(store.cache(9).get("key").await.unwrap(), None);
            assert_eq!((&*stone.project, stone.signature), ("reef", Some(true)));
            assert!(stone.keys >= 2);
            assert_eq!(store.erase_project("reef").await.unwrap(), stone, "the first tombstone stays");
            let gone = |result: Result<(), coral_core::Error>| {
                let error = result.unwrap_err();
                assert!(error.to_string().contains("data key of project"), "{error}");
            };
            gone(journal.read("reef", 1, 99).await.map(drop));
            gone(store.blobs_of("reef").get(&blob).await.map(drop));
            gone(store.blobs_of("reef").put(b"more").await.map(drop));
            gone(store.rotate_data_key("reef").await);
            assert_eq!(journal.verify("reef").await.unwrap(), 16, "the journal is whole without keys");
            assert_eq!(journal.read("kelp", 1, 99).await.unwrap(), kelp, "others are untouched");
            let mut query = RunQuery::default();
            query.text = Some(MARKER.into());
            assert_eq!(store.index().query(&query).await.unwrap().total, 0);
            store.index().refresh().await.unwrap();
            query = RunQuery::default();
            query.project = Some("reef".into());
            let page = store.index().query(&query).await.unwrap();
            assert_eq!(page.runs.len(), 1, "its head is left");
            assert!(page.runs[0].agents.is_empty());
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn retention_goes_by_class_and_by_the_first_rule_that_fits() {
            let place = <$place>::new().await;
            let store = place.open(None).await.unwrap();
            let journal = store.journal();
            Projects::new(journal.clone()).create("reef", Default::default()).await.unwrap();
            Sessions::new(journal.clone()).begin("s-1", "reef", json!({"name": "Ada"})).await.unwrap();
            one_by_one(&journal, "old-reef", 16).await;
            one_by_one(&journal, "at-work", 5).await;
            keep(&journal, "old-kelp", &team_run("kelp", "", json!({}))).await;
            let kept = store.blobs_of("reef").put(b"named").await.unwrap();
            let lost = store.blobs_of("reef").put(b"not named").await.unwrap();
            keep(&journal, "names", &referring("reef", &kept)).await;
            store.index().refresh().await.unwrap();
            tick();
            let mut reef = RetentionRule::after(1_000, RetentionAction::Compact);
            reef.project = Some("reef".into());
            let rest = RetentionRule::after(10_000, RetentionAction::Remove);
            let mut sessions = RetentionRule::after(1, RetentionAction::Remove);
            sessions.class = DataClass::Sessions;
            let mut blobs = RetentionRule::after(0, RetentionAction::Remove);
            blobs.class = DataClass::Blobs;
            let rules = [reef, rest, sessions, blobs];
            let report = store.retain(&rules, 1_016_000).await.unwrap();
            assert_eq!((report.compacted.len(), report.removed.len()), (0, 0), "too early");
            let report = store.retain(&rules, SystemClock.now_ms()).await.unwrap();
            assert_eq!(report.compacted, ["old-reef"]);
            assert_eq!(report.removed, ["old-kelp", "session:s-1"]);
            assert_eq!((report.blobs.removed, report.blobs.referenced), (1, 1));
            assert!(store.blobs_of("reef").get(&lost).await.unwrap().is_none());
            assert!(store.blobs_of("reef").get(&kept).await.unwrap().is_some());
            let heads = journal.runs(&RunFilter::default()).await.unwrap();
            let left: Vec<_> = heads.into_iter().map(|head| head.run).collect();
            assert_eq!(left, ["at-work", "names", "old-reef", "project:reef"]);
            assert_eq!(journal.read("old-reef", 1, 99).await.unwrap(), team_run("reef", "a reef", json!({})));
            assert_eq!(journal.read("old-reef", 5, 3).await.unwrap().len(), 3);
            assert_eq!(journal.verify("old-reef").await.unwrap(), 16);
            assert!(!store.compact("old-reef").await.unwrap(), "there is nothing left to gain");
            assert!(!store.compact("at-work").await.unwrap(), "it is still written to");
            assert_eq!(store.index().query(&RunQuery::default()).await.unwrap().total, 3);
        }

        #[cfg(feature = "privacy")]
        #[tokio::test(flavor = "multi_thread")]
        async fn all_that_is_held_on_a_person_is_handed_over_and_taken_away() {
            use coral_state::{RetentionOverview, Subject};

            for (person, keys) in [("subject.plain@example.org", None), ("subject.sealed@example.org", Some(ring()))] {
                let place = <$place>::alone().await;
                let store = place.open(keys.clone()).await.unwrap();
                let journal = store.journal();
                let projects = Projects::new(journal.clone());
                let draft = ProjectDraft { description: Some(person.into()), ..Default::default() };
                projects.create("reef", draft).await.unwrap();
                let user = json!({"mail": person, "theme": "dark"});
                Sessions::new(journal.clone()).begin("s-1", "reef", user).await.unwrap();
                keep(&journal, "about", &team_run("reef", &person.to_uppercase(), json!({}))).await;
                keep(&journal, "other", &team_run("reef", "bob@example.org", json!({}))).await;
                keep(&journal, "at-work", &team_run("reef", person, json!({}))[..9]).await;
                let blob = store.blobs_of("reef").put(format!("Dear {person},").as_bytes()).await.unwrap();
                let other = store.blobs_of("reef").put(b"Dear Bob,").await.unwrap();
                store.index().refresh().await.unwrap();
                let cache = store.cache(9);
                cache.put("answer", format!("Dear {person},").as_bytes().into(), None).await.unwrap();
                assert_eq!(place.holds(person).await, keys.is_none());

                let subject = Subject::known_by([person, "Ada Lovelace"]).unwrap();
                let export = subject.export(&journal).await.unwrap();
                let runs: Vec<_> = export.records.iter().map(|found| &*found.run).collect();
                assert_eq!(runs, ["about", "at-work", "project:reef", "session:s-1"]);
                assert_eq!(subject.blobs(&store.blobs_of("reef")).await.unwrap(), std::slice::from_ref(&blob));
                serde_json::to_string(&export).unwrap();

                let erasure = store.erase_subject(&subject).await.unwrap();
                assert_eq!(erasure.rewritten, ["about", "project:reef", "session:s-1"]);
                assert_eq!((erasure.at_work, erasure.blobs), (vec!["at-work".to_owned()], vec![blob.clone()]));
                let epoch = journal.acquire("at-work").await.unwrap();
                let rest = &team_run("reef", "", json!({}))[9..];
                journal.append("at-work", epoch, 9, rest.to_vec().into()).await.unwrap();
                let erasure = store.erase_subject(&subject).await.unwrap();
                assert_eq!((erasure.rewritten, erasure.at_work), (vec!["at-work".to_owned()], Vec::new()));
                assert!(subject.export(&journal).await.unwrap().records.is_empty());
                assert_eq!(journal.read("other", 1, 99).await.unwrap(), team_run("reef", "bob@example.org", json!({})));
                assert_eq!(cache.get("answer").await.unwrap(), None);
                let about = journal.read("about", 1, 99).await.unwrap();
                let shape = |records: &[coral_core::Record]| {
                    records.iter().map(|record| (record.seq, record.at_ms)).collect::<Vec<_>>()
                };
                assert_eq!(shape(&about), shape(&team_run("reef", "", json!({}))));
                assert_eq!(journal.verify("about").await.unwrap(), 16);
                assert!(serde_json::to_string(&about).unwrap().contains("[erased]"));
                assert!(store.blobs_of("reef").get(&blob).await.unwrap().is_none());
                assert!(store.blobs_of("reef").get(&other).await.unwrap().is_some());
                let session = Sessions::new(journal.clone()).get("s-1").await.unwrap().unwrap();
                assert_eq!(session.user["mail"], "[erased]");
                store.index().refresh().await.unwrap();
                if keys.is_none() {
                    assert!(!place.holds_now(person).await, "nothing lies on where it was");
                }

                let mut rule = RetentionRule::after(1_000, RetentionAction::Remove);
                rule.project = Some("reef".into());
                let now = SystemClock.now_ms();
                let overview = RetentionOverview::of(&journal, &[rule], now).await.unwrap();
                let of = |class| overview.holdings.iter().find(|holding| holding.class == class).unwrap();
                assert_eq!((of(DataClass::Runs).count, of(DataClass::Runs).due), (3, 3));
                assert_eq!((of(DataClass::Sessions).count, of(DataClass::Sessions).without_rule), (1, 1));
                assert!(overview.to_markdown().contains("| reef | runs | 3 | 0 | 1970-01-01T00:16:56.000Z | 3 | 0 |"));
            }
            assert!(coral_state::Subject::known_by(["Al"]).is_err());
            assert!(coral_state::Subject::known_by([]).is_err());
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn a_removed_project_leaves_nothing_but_that_it_was() {
            for keys in [None, Some(ring())] {
                let place = <$place>::alone().await;
                let store = place.open(keys.clone()).await.unwrap();
                let journal = store.journal();
                let projects = Projects::new(journal.clone());
                let draft = ProjectDraft { description: Some(TRACE.into()), ..Default::default() };
                projects.create("reef", draft).await.unwrap();
                projects.create("kelp", Default::default()).await.unwrap();
                keep(&journal, "run", &team_run("reef", TRACE, json!({}))).await;
                keep(&journal, "kelp", &team_run("kelp", "kelp", json!({}))).await;
                keep(&journal, "at-work", &team_run("reef", TRACE, json!({}))[..9]).await;
                Sessions::new(journal.clone()).begin("s-1", "reef", json!({ "name": TRACE })).await.unwrap();
                store.blobs_of("reef").put(TRACE.as_bytes()).await.unwrap();
                store.cache(9).put("key", TRACE.as_bytes().into(), None).await.unwrap();
                store.index().refresh().await.unwrap();
                let error = store.remove_project("reef").await.unwrap_err();
                assert!(error.to_string().contains("`at-work`"), "{error}");
                let epoch = journal.acquire("at-work").await.unwrap();
                let rest = &team_run("reef", "", json!({}))[9..];
                journal.append("at-work", epoch, 9, rest.to_vec().into()).await.unwrap();

                let removal = store.remove_project("reef").await.unwrap();
                assert_eq!(removal.journals, ["at-work", "run", "session:s-1", "project:reef"]);
                assert_eq!(removal.blobs, 1);
                let left: Vec<_> = journal.runs(&RunFilter::default()).await.unwrap();
                let left: Vec<_> = left.into_iter().map(|head| head.run).collect();
                assert_eq!(left, ["kelp", "project:kelp", "project:reef"]);
                let state = projects.get("reef").await.unwrap().unwrap();
                assert_eq!((state.status, &*state.description), (ProjectStatus::Deleted, ""));
                assert_eq!(projects.create("reef", Default::default()).await.unwrap_err().code(), "CORAL0001");
                let mut query = RunQuery::default();
                query.text = Some(TRACE.into());
                assert_eq!(store.index().query(&query).await.unwrap().total, 0);
                // What a transaction of the server's own might still look at stays until it is done again.
                let mut times = 0;
                while place.holds_now(TRACE).await {
                    times += 1;
                    assert!(times < 50, "nothing lies on where it was");
                    store.remove_project("reef").await.unwrap();
                }
                let again = store.remove_project("reef").await.unwrap();
                assert_eq!(again.journals, ["project:reef"]);
                assert_eq!(projects.get("reef").await.unwrap().unwrap().status, ProjectStatus::Deleted);
                assert_eq!(journal.read("kelp", 1, 99).await.unwrap(), team_run("kelp", "kelp", json!({})));
            }
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn a_project_moves_with_its_sessions_and_blobs() {
            let place = <$place>::new().await;
            let store = place.open(Some(ring())).await.unwrap();
            let projects = Projects::new(store.journal());
            projects.create("reef", Default::default()).await.unwrap();
            Sessions::new(store.journal()).begin("s-1", "reef", json!({ "name": "Ada" })).await.unwrap();
            Sessions::new(store.journal()).begin("s-2", "kelp", json!({})).await.unwrap();
            let own = store.blobs_of("reef").put(&[0, 159, 146, 150]).await.unwrap();
            let shared = store.blobs().put(b"named by a run").await.unwrap();
            store.blobs().put(b"named by nobody").await.unwrap();
            keep(&store.journal(), "run", &referring("reef", &shared)).await;
            let elsewhere = <$place>::new().await;
            let there = elsewhere.open(None).await.unwrap();
            for (from, to, name) in [
                (store.blobs_of("reef"), there.blobs_of("reef"), own),
                (store.blobs(), there.blobs(), shared),
            ] {
                let archive = projects.export_with("reef", &from).await.unwrap();
                let runs: Vec<&str> = archive.journals.iter().map(|journal| &*journal.run).collect();
                assert_eq!(runs, ["project:reef", "run", "session:s-1"]);
                assert_eq!(archive.blobs.len(), 1);
                let read = Archive::from_text(&archive.to_json().unwrap()).unwrap();
                assert_eq!(read, archive);
                assert!(!archive.to_markdown().unwrap().contains("session:"), "a session is no run");
                Projects::new(there.journal()).import_with(&read, &to).await.unwrap();
                assert_eq!(to.get(&name).await.unwrap(), from.get(&name).await.unwrap());
                let mut forged = archive.clone();
                forged.blobs[0].data = "AAAA".into();
                let error = Projects::new(there.journal()).import_with(&forged, &to).await.unwrap_err();
                assert!(error.to_string().contains("not what its name says"), "{error}");
            }
            let session = Sessions::new(there.journal()).get("s-1").await.unwrap().unwrap();
            assert_eq!(session.user["name"], "Ada");
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn what_is_plain_is_not_opened_as_if_it_were_encrypted() {
            let place = <$place>::new().await;
            let plain = place.open(None).await.unwrap();
            let records = team_run("reef", TRACE, json!({}));
            keep(&plain.journal(), "run", &records).await;
            keep(&plain.journal(), "free", &team_run("", TRACE, json!({}))).await;
            let blob = plain.blobs_of("reef").put(TRACE.as_bytes()).await.unwrap();
            plain.index().refresh().await.unwrap();
            let ring = ring();
            let error = place.open(Some(ring.clone())).await.unwrap_err();
            assert!(error.help().unwrap().contains("encrypted_copy"), "{error}");

            // By way of a file, whatever the backend.
            let dir = tempfile::tempdir().unwrap();
            let (backup, copy) = (dir.path().join("plain.db"), dir.path().join("copy/coral.db"));
            std::fs::create_dir(dir.path().join("copy")).unwrap();
            plain.backup(&backup).await.unwrap();
            let file = coral_state::SqliteStore::open(&backup).unwrap();
            file.encrypted_copy(&copy, &ring).await.unwrap();
            assert!(!crate::support::holds(&dir.path().join("copy"), TRACE.as_bytes()));
            let mut options = coral_state::SqliteOptions::at(&copy);
            options.keys = Some(ring);
            let sealed = coral_state::SqliteStore::open_with(options).unwrap();
            assert_eq!(sealed.journal().read("run", 1, 99).await.unwrap(), records);
            assert_eq!(sealed.journal().verify("free").await.unwrap(), 16);
            assert!(sealed.blobs_of("reef").get(&blob).await.unwrap().is_some());
            assert_eq!(sealed.index().refresh().await.unwrap().changed, 2);
            sealed.erase_project("reef").await.unwrap();
            assert_eq!(sealed.journal().read("run", 1, 9).await.unwrap_err().code(), "CORAL0003");
            assert_eq!(sealed.journal().read("free", 1, 99).await.unwrap().len(), 16);
            let error = sealed.encrypted_copy(dir.path().join("twice.db"), &self::ring()).await.unwrap_err();
            assert_eq!(error.code(), "CORAL0001");
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn only_garbage_is_collected() {
            for keys in [None, Some(ring())] {
                let place = <$place>::new().await;
                let store = place.open(keys).await.unwrap();
                collects_only_garbage(store.blobs_of("reef"), Arc::new(store.journal()), "reef").await;
            }
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn the_cache_expires_outlives_its_store_and_stays_bounded() {
            let place = <$place>::new().await;
            let clock = Arc::new(ManualClock::at_ms(1_000));
            let open = async || place.open(None).await.unwrap().cache(10).with_clock(clock.clone());
            let cache = open().await;
            let value = || Arc::<[u8]>::from(*b"value");
            let odd = format!("\0 {}", "long".repeat(2_000));
            cache.put("brief", value(), Some(10)).await.unwrap();
            cache.put("lasting", Arc::from(*b"another"), None).await.unwrap();
            cache.put("lasting", value(), None).await.unwrap();
            cache.put("removed", value(), None).await.unwrap();
            cache.put(&odd, value(), None).await.unwrap();
            cache.remove("removed").await.unwrap();
            drop(cache);
            let cache = open().await;
            assert_eq!(cache.get("brief").await.unwrap(), Some(value()));
            assert_eq!(cache.get("removed").await.unwrap(), None);
            assert_eq!(cache.get(&odd).await.unwrap(), Some(value()));
            clock.advance_ms(10);
            assert_eq!(cache.get("brief").await.unwrap(), None);
            assert_eq!(cache.get("lasting").await.unwrap(), Some(value()));
            let mut left = 0;
            for n in 0..200 {
                cache.put(&format!("k{n}"), value(), None).await.unwrap();
            }
            for n in 0..200 {
                left += usize::from(cache.get(&format!("k{n}")).await.unwrap().is_some());
            }
            assert!((10..=10 + 64).contains(&left), "{left} entries");
            assert_eq!(cache.get("lasting").await.unwrap(), None, "the oldest goes first");
            assert_eq!(cache.get("k199").await.unwrap(), Some(value()));
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn a_word_means_the_same_to_every_index() {
            const WORDS: [&str; 12] = [
                "café", "CAFE", "Ubuntu-24.04", "straße", "İstanbul", "ΟΔΟΣ", "東京タワー", "naïve_name", "a1b2",
                "नमस्ते", "o'brien", "x",
            ];
            let place = <$place>::new().await;
            let store = place.open(None).await.unwrap();
            let journal = store.journal();
            let endless = "ä".repeat(5_000);
            for (n, word) in WORDS.iter().chain([&&*endless]).enumerate() {
                keep(&journal, &format!("run-{n:02}"), &team_run("", word, json!({}))).await;
            }
            let (index, memory) = (store.index(), RunIndex::new(journal.clone()));
            index.refresh().await.unwrap();
            memory.refresh().await.unwrap();
            let mut found = 0;
            for word in WORDS.iter().chain([&&*endless, &"!?"]) {
                for length in [1, 2, 3, 4, usize::MAX] {
                    for case in [str::to_owned, str::to_lowercase, str::to_uppercase] {
                        let mut query = RunQuery::default();
                        query.text = Some(case(&word.chars().take(length).collect::<String>()));
                        let names = |page: coral_state::RunPage| {
                            page.runs.iter().map(|run| run.head.run.clone()).collect::<Vec<_>>()
                        };
                        let expected = names(memory.query(&query));
                        found += expected.len();
                        assert_eq!(names(index.query(&query).await.unwrap()), expected, "{:?}", query.text);
                    }
                }
            }
            assert!(found > WORDS.len() * 3, "whole words are found, and those that begin so");
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn the_index_answers_as_a_fold_of_the_journal() {
            let place = <$place>::new().await;
            let store = place.open(None).await.unwrap();
            let journal = store.journal();
            for n in 0..40u64 {
                let facts = json!({ "tags": if n % 3 == 0 { vec!["blue"] } else { vec![] } });
                let brief = format!("brief number {n} of a {}", if n % 2 == 0 { "reef" } else { "forest" });
                let mut records = team_run(if n % 5 == 0 { "kelp" } else { "reef" }, &brief, facts);
                records.truncate(if n % 4 == 0 { 9 } else { 16 });
                for record in &mut records {
                    record.at_ms += (n * 7_919) % 101 * 1_000;
                }
                keep(&journal, &format!("run-{n:02}"), &records).await;
            }
            Projects::new(journal.clone()).create("reef", Default::default()).await.unwrap();
            let index = store.index();
            let memory = RunIndex::new(journal.clone());
            assert_eq!(index.refresh().await.unwrap().changed, 40, "a project's own journal is no run");
            assert_eq!(index.refresh().await.unwrap().changed, 0);
            memory.refresh().await.unwrap();
            let mut queries = vec![RunQuery::default(); 9];
            queries[1].project = Some("kelp".into());
            queries[2].status = Some(RunStatus::Running);
            queries[2].agent = Some("qa_testing".into());
            queries[3].tag = Some("blue".into());
            queries[3].text = Some("FOREST".into());
            queries[4].phase = Some("build".into());
            queries[5].min_cost = Some(coral_core::Usd::from_dollars(1.0));
            queries[6].started_ms = Some(1_020_000..1_060_000);
            queries[7].text = Some("number 17".into());
            queries[8].text = Some("no such thing".into());
            for mut query in queries {
                for sort in [SortBy::Started, SortBy::Updated, SortBy::Cost, SortBy::Run] {
                    for descending in [false, true] {
                        (query.sort, query.descending, query.limit, query.after) = (sort, descending, 7, None);
                        loop {
                            let (page, expected) = (index.query(&query).await.unwrap(), memory.query(&query));
                            let names = |page: &coral_state::RunPage| {
                                page.runs.iter().map(|run| run.head.run.clone()).collect::<Vec<_>>()
                            };
                            assert_eq!(names(&page), names(&expected), "{query:?}");
                            assert_eq!((page.total, page.exact), (expected.total, true), "{query:?}");
                            assert_eq!(page.next, expected.next);
                            for (found, expected) in page.runs.iter().zip(&expected.runs) {
                                assert_eq!((&found.head, &found.phase), (&expected.head, &expected.phase));
                                assert_eq!((&found.agents, found.spent), (&expected.agents, expected.spent));
                            }
                            query.after = page.next;
                            if query.after.is_none() {
                                break;
                            }
                        }
                    }
                }
            }
            let epoch = journal.acquire("run-00").await.unwrap();
            let rest = &team_run("kelp", "", json!({}))[9..];
            journal.append("run-00", epoch, 9, rest.to_vec().into()).await.unwrap();
            assert!(store.remove_run("run-01").await.unwrap());
            assert_eq!(index.refresh().await.unwrap().changed, 1);
            let mut query = RunQuery::default();
            query.limit = 99;
            let page = index.query(&query).await.unwrap();
            assert_eq!(page.total, 39);
            assert_eq!(index.rebuild().await.unwrap().changed, 39);
            assert_eq!(index.query(&query).await.unwrap(), page, "made again it is the same");
        }
    };
}

mod sqlite {
    use crate::places::SqlitePlace;

    parity!(SqlitePlace);
}

#[cfg(feature = "postgres")]
mod postgres {
    use crate::places::PostgresPlace;

    parity!(PostgresPlace);
}
