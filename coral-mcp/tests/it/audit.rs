use std::sync::Arc;

use coral_core::{Error, ErrorKind};
use coral_mcp::{
    Audit, AuditEntry, AuditEvent, AuditKey, AuditRecord, AuditState, Checkpoint, FileAudit, GENESIS,
    MemoryAudit, Permissions, Sandbox, Verdict, audit_csv, audit_report, audit_table, check_audit,
    read_audit, summarize_audit, summarize_audit_of,
};
use serde_json::json;

use crate::desk::{Desk, PERMISSIONS};

#[tokio::test]
async fn decisions_and_ends_are_chained_and_hold_no_arguments() {
    let desk = Desk::new(PERMISSIONS).await;
    let write = json!({"path": "src/x", "content": "private words"});
    Desk::ok(desk.call("backend_developer", "filesystem__write_file", write).await);
    let records = desk.audit.records();
    let mut head = GENESIS.to_owned();
    for (i, record) in records.iter().enumerate() {
        assert_eq!(record.seq, i as u64 + 1);
        assert_eq!(record.prev, head);
        head = record.hash.clone();
    }
    let [.., decided, ended] = records.as_slice() else { panic!() };
    let AuditEvent::Decided { verdict: Verdict::Allow, paths, rule, .. } = &decided.entry.event else {
        panic!()
    };
    assert_eq!(paths, &["/project/src/x"]);
    assert_eq!(rule, "granted at permissions.yaml:9");
    assert!(matches!(&ended.entry.event, AuditEvent::Ended { outcome, .. } if outcome == "ok"));
    assert!(!serde_json::to_string(&records).unwrap().contains("private words"));
}

fn note(audit: &FileAudit, text: &str) {
    audit.append(AuditEntry::note(1, text)).unwrap();
}

#[test]
fn a_file_is_continued_and_locked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = FileAudit::open(&path).unwrap();
    note(&audit, "one\nline");
    let busy = FileAudit::open(&path).unwrap_err();
    assert!(busy.to_string().contains("another process writes it"), "{busy}");
    let head = audit.head();
    drop(audit);
    let audit = FileAudit::open(&path).unwrap();
    assert_eq!(audit.head(), head);
    note(&audit, "two");
    assert_eq!(audit.head().0, 2);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 2, "a line break in a field stays inside its line");
}

#[test]
fn records_of_every_kind_are_read_back_from_their_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = FileAudit::open(&path).unwrap();
    let text = String::new;
    let events = [
        AuditEvent::Decided {
            verdict: Verdict::Allow,
            rule: text(),
            operation: None,
            paths: vec!["/project/a".into()],
            arguments: text(),
            policy: text(),
            on_behalf: vec!["lead".into()],
            token: "t".into(),
        },
        AuditEvent::Ended { outcome: "ok".into(), took_ms: 1, bytes: 2, untrusted: true },
        AuditEvent::Connected { to: "example.com:443".into(), verdict: Verdict::Deny, rule: text() },
        AuditEvent::Blocked { why: text(), hash: "new".into(), before: "old".into(), now: text() },
        AuditEvent::Adopted { unsigned: 3 },
        AuditEvent::Noted { note: "n".into() },
    ];
    for event in &events {
        let event = event.clone();
        audit.append(AuditEntry { event, ..AuditEntry::note(1, "") }).unwrap();
    }
    let head = audit.head();
    drop(audit);
    assert_eq!(FileAudit::open(&path).unwrap().head(), head);
    let lines = std::fs::read_to_string(&path).unwrap();
    let records = lines.lines().map(|line| serde_json::from_str::<AuditRecord>(line).unwrap());
    assert!(records.map(|record| record.entry.event).eq(events));
}

#[test]
fn a_torn_last_record_is_cut_off_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = FileAudit::open(&path).unwrap();
    note(&audit, "one");
    drop(audit);
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{whole}{{\"seq\":2,\"pre")).unwrap();
    let audit = FileAudit::open(&path).unwrap();
    assert_eq!(audit.head().0, 2);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with(&whole) && text.contains("cut off a torn record of 13 bytes"), "{text}");
}

#[test]
fn a_changed_chain_is_not_continued() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = FileAudit::open(&path).unwrap();
    for i in 0..5 {
        note(&audit, &format!("entry {i}"));
    }
    drop(audit);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let changed = |lines: &[&str]| lines.iter().map(|l| format!("{l}\n")).collect::<String>();
    let edited = lines[2].replace("entry 2", "entry X");
    let cases = [
        ("edited", changed(&[lines[0], lines[1], &edited, lines[3], lines[4]])),
        ("deleted", changed(&[lines[0], lines[1], lines[3], lines[4]])),
        ("first deleted", changed(&lines[1..])),
        ("reordered", changed(&[lines[0], lines[2], lines[1], lines[3], lines[4]])),
        ("repeated", changed(&[lines[0], lines[1], lines[1], lines[2]])),
        ("not a record", format!("{text}{{}}\n")),
        ("an unhashed field", text.replacen("{\"seq\":3", "{\"note2\":1,\"seq\":3", 1)),
    ];
    for (what, text) in cases {
        std::fs::write(&path, text).unwrap();
        let error = FileAudit::open(&path).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Invalid { .. }), "{what}: {error}");
    }
}

#[tokio::test]
async fn nothing_is_done_that_cannot_be_recorded() {
    struct Full;
    impl Audit for Full {
        fn append(&self, entry: AuditEntry) -> Result<(), Error> {
            match entry.event {
                AuditEvent::Noted { .. } => Ok(()),
                _ => Err(Error::storage("writing the audit", "no space left")),
            }
        }
    }
    let desk = Desk::with(PERMISSIONS, |b| b.audit(Arc::new(Full))).await;
    let write =
        || desk.call("backend_developer", "filesystem__write_file", json!({"path": "src/x", "content": "x"}));
    let error = write().await.unwrap_err();
    assert!(error.to_string().contains("audit_all_operations"), "{error}");
    assert!(!desk.project().join("src/x").exists());

    let lenient = PERMISSIONS.replace("audit_all_operations, ", "");
    let desk = Desk::with(&lenient, |b| b.audit(Arc::new(Full))).await;
    let write =
        || desk.call("backend_developer", "filesystem__write_file", json!({"path": "src/x", "content": "x"}));
    Desk::ok(write().await);
}

#[tokio::test]
async fn names_that_are_made_up_do_not_forge_records() {
    let desk = Desk::new(PERMISSIONS).await;
    let name = "filesystem__x\n{\"seq\":99}\u{1b}[2J";
    assert!(desk.call("backend_developer", name, json!({})).await.is_err());
    let AuditRecord { entry, .. } = desk.last();
    assert!(!entry.tool.contains('\u{1b}'), "{}", entry.tool);
    assert_eq!(serde_json::to_string(&desk.last()).unwrap().lines().count(), 1);
}

/// A signed audit of `n` entries: its text, its key, and the checkpoint that was kept elsewhere.
fn signed(n: u64) -> (String, AuditKey, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let key = AuditKey::open(&dir.path().join("key")).unwrap();
    assert_eq!(AuditKey::open(&dir.path().join("key")).unwrap().verifying_key(), key.verifying_key());
    let audit = FileAudit::signed(&path, key.clone()).unwrap();
    for i in 0..n {
        audit.append(AuditEntry::note(i, format!("entry {i}"))).unwrap();
    }
    let checkpoint = audit.checkpoint(n).unwrap().unwrap();
    drop(audit);
    (std::fs::read_to_string(path).unwrap(), key, checkpoint)
}

#[test]
fn a_signed_audit_that_was_not_touched_is_intact() {
    let (text, key, checkpoint) = signed(5);
    let check = check_audit(&text, &key.verifying_key(), Some(&checkpoint)).unwrap();
    assert!(check.is_intact(), "{check:?}");
    assert_eq!((check.records, check.signed_to, check.unsigned()), (6, 6, 0));
    assert!(!format!("{key:?}").contains(&"0".repeat(64)));
}

#[test]
fn every_kind_of_tampering_is_found() {
    let (text, key, checkpoint) = signed(5);
    let lines: Vec<&str> = text.lines().collect();
    let join = |lines: &[&str]| lines.iter().map(|l| format!("{l}\n")).collect::<String>();
    let edited = lines[2].replace("entry 2", "entry X");
    let (rewritten, other, _) = signed(5);
    let mut cases = vec![
        ("edited", join(&[lines[0], lines[1], &edited, lines[3], lines[4], lines[5]])),
        ("deleted", join(&[lines[0], lines[1], lines[3], lines[4], lines[5]])),
        ("reordered", join(&[lines[0], lines[2], lines[1], lines[3], lines[4], lines[5]])),
        ("cut off", join(&lines[..3])),
        ("empty", String::new()),
        ("torn", text.trim_end().to_owned()),
        ("rewritten with another key", rewritten),
    ];
    // A rewrite that forges every hash, which anyone can, still lacks the signature.
    cases.push(("hashes forged", forged(&text, |_| true)));
    for (what, text) in cases {
        let check = check_audit(&text, &key.verifying_key(), Some(&checkpoint)).unwrap();
        assert!(!check.is_intact(), "{what}: {check:?}");
    }
    assert!(
        !check_audit(&text, &other.verifying_key(), None).unwrap().is_intact(),
        "another key's signatures"
    );
    assert!(check_audit(&text, "zz", None).is_err());
}

/// `text` with another second entry, of what `keep` keeps, and every hash made anew.
fn forged(text: &str, keep: impl Fn(&AuditRecord) -> bool) -> String {
    let mut head = GENESIS.to_owned();
    let mut forged = String::new();
    let mut seq = 0;
    for line in text.lines() {
        let mut record: AuditRecord = serde_json::from_str(&line.replace("entry 2", "entry X")).unwrap();
        if !keep(&record) {
            continue;
        }
        seq += 1;
        (record.seq, record.prev, record.hash) = (seq, head, String::new());
        record.hash = coral_core::digest(&record).unwrap();
        head = record.hash.clone();
        forged += &format!("{}\n", serde_json::to_string(&record).unwrap());
    }
    forged
}

fn is_sealed(record: &AuditRecord) -> bool {
    matches!(record.entry.event, AuditEvent::Sealed { .. })
}

#[test]
fn a_restart_does_not_launder_a_rewrite() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let kept = AuditKey::open(&dir.path().join("key")).unwrap();
    let begin = |key: &AuditKey, n: u64| {
        let _ = std::fs::remove_file(&path);
        for file in std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|ending| ending == "head") {
                std::fs::remove_file(file).unwrap();
            }
        }
        let audit = FileAudit::signed(&path, key.clone()).unwrap();
        for i in 0..n {
            audit.append(AuditEntry::note(i, format!("entry {i}"))).unwrap();
        }
        let checkpoint = audit.checkpoint(n).unwrap().unwrap();
        drop(audit);
        (std::fs::read_to_string(&path).unwrap(), checkpoint)
    };
    let refused = |result: Result<FileAudit, Error>, words: &str| {
        let error = result.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    // The latest checkpoint is beside the key.
    let (text, _) = begin(&kept, 5);
    std::fs::write(&path, forged(&text, |_| true)).unwrap();
    refused(FileAudit::signed(&path, kept.clone()), "record 5 is not the one that was signed");
    std::fs::write(&path, forged(&text, |record| !is_sealed(record))).unwrap();
    refused(FileAudit::signed(&path, kept.clone()), "record 5 is not the one that was signed");
    std::fs::write(&path, "").unwrap();
    refused(FileAudit::signed(&path, kept.clone()), "ends before record 5");
    std::fs::write(&path, &text).unwrap();
    FileAudit::signed(&path, kept).unwrap();
    refused(FileAudit::open(&path), "its records are signed");

    // A key that is kept nowhere leaves that to the caller.
    let loose = AuditKey::generate();
    let (text, checkpoint) = begin(&loose, 5);
    std::fs::write(&path, forged(&text, |record| !is_sealed(record))).unwrap();
    refused(
        FileAudit::signed_after(&path, loose.clone(), &checkpoint),
        "record 5 is not the one that was signed",
    );
    std::fs::write(&path, forged(&text, |_| true)).unwrap();
    refused(FileAudit::signed(&path, loose.clone()), "not signed by this key");
    std::fs::write(&path, forged(&text, |record| !is_sealed(record))).unwrap();
    // Without it the records are taken up, and that nobody vouches for them stays known.
    drop(FileAudit::signed(&path, loose.clone()).unwrap());
    let adopted = std::fs::read_to_string(&path).unwrap();
    let check = check_audit(&adopted, &loose.verifying_key(), None).unwrap();
    assert_eq!((check.state(), check.adopted), (AuditState::Incomplete, 5), "{check:?}");
    // More than a signature's interval is no crash's doing.
    let (text, _) = begin(&loose, 2_100);
    let bare = forged(&text, |record| !is_sealed(record));
    std::fs::write(&path, &bare).unwrap();
    refused(FileAudit::signed(&path, loose.clone()), "are not signed");
    let check = check_audit(&bare, &loose.verifying_key(), None).unwrap();
    assert_eq!(check.state(), AuditState::Tampered, "{check:?}");
}

#[test]
fn an_audit_is_verified_and_reported_on_by_a_program() {
    let (text, key, checkpoint) = signed(5);
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let run = |args: &[&str]| {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_coral-audit")).args(args).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let key = key.verifying_key();
    let whole = file("whole", &text);
    let known = file("known", &serde_json::to_string(&checkpoint).unwrap());
    assert_eq!(run(&["verify", &whole, &key]).0, 0);
    assert_eq!(run(&["verify", &whole, &key, &known]).0, 0);
    let bare = file("bare", &forged(&text, |record| !is_sealed(record)));
    assert_eq!(run(&["verify", &bare, &key]).0, 2);
    let (code, said) = run(&["verify", &bare, &key, &known]);
    assert!(code == 1 && said.contains("tampered with"), "{said}");
    assert_eq!(run(&["verify", &file("forged", &forged(&text, |_| true)), &key]).0, 1);
    for wrong in [&["verify", &whole][..], &["verify", "/nowhere", &key], &["verify", &whole, "zz"], &[]] {
        assert_eq!(run(wrong).0, 3, "{wrong:?}");
    }
    assert!(run(&["report", &whole]).1.starts_with("from"));
}

#[tokio::test]
async fn arguments_are_hashed_under_a_key() {
    let key = AuditKey::generate();
    let dir = tempfile::tempdir().unwrap();
    let audit = Arc::new(FileAudit::signed(dir.path().join("audit.jsonl"), key.clone()).unwrap());
    let desk = Desk::with(PERMISSIONS, |b| b.audit(Arc::clone(&audit))).await;
    let read = json!({"path": "src/main.rs"});
    let architect = coral_core::Caller::agent("project_architect");
    let developer = coral_core::Caller::agent("backend_developer");
    coral_core::Toolbox::delegate(&desk.tools, &architect, &developer).unwrap();
    Desk::denied(desk.call("backend_developer", "filesystem__read_file", read.clone()).await);
    drop(desk);
    let records = read_audit(&std::fs::read_to_string(audit.path()).unwrap()).unwrap();
    let decided = records.into_iter().find_map(|record| match record.entry.event {
        AuditEvent::Decided { arguments, on_behalf, .. } => Some((arguments, on_behalf)),
        _ => None,
    });
    let (arguments, on_behalf) = decided.unwrap();
    assert_eq!(arguments, key.arguments_hash(&read).unwrap());
    assert_ne!(arguments, coral_core::digest(&read).unwrap(), "who guesses them can't tell");
    assert_eq!(on_behalf, ["project_architect"]);
}

#[tokio::test]
async fn an_audit_of_everything_is_not_taken_for_granted() {
    let permissions = Permissions::from_yaml(PERMISSIONS, "p.yaml").unwrap();
    let error = Sandbox::builder().permissions(permissions).build().await.err().unwrap();
    assert!(error.to_string().contains("there is no audit"), "{error}");
    let audit = MemoryAudit::of(3);
    for i in 0..10 {
        audit.append(AuditEntry::note(i, "x")).unwrap();
    }
    let kept: Vec<u64> = audit.records().iter().map(|record| record.seq).collect();
    assert_eq!(kept, [8, 9, 10]);
}

#[test]
fn writers_that_wait_share_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = FileAudit::open(&path).unwrap();
    let write = AuditEntry {
        event: serde_json::from_value(json!({
            "what": "decided", "verdict": "allow", "rule": "r", "operation": "write", "arguments": "", "policy": ""
        }))
        .unwrap(),
        ..AuditEntry::note(0, "")
    };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..50).for_each(|_| audit.append(write.clone()).unwrap()));
        }
    });
    drop(audit);
    assert_eq!(read_audit(&std::fs::read_to_string(&path).unwrap()).unwrap().len(), 400);
    FileAudit::open(&path).unwrap();
}

#[test]
fn what_a_crash_left_unsigned_is_told_and_long_chains_are_signed_on_the_way() {
    let (text, key, kept) = signed(5);
    let crashed: String = text.lines().take(5).map(|l| format!("{l}\n")).collect();
    let check = check_audit(&crashed, &key.verifying_key(), None).unwrap();
    assert_eq!((check.state(), check.unsigned()), (AuditState::Incomplete, 5));
    let check = check_audit(&crashed, &key.verifying_key(), Some(&kept)).unwrap();
    assert_eq!((check.is_intact(), check.unsigned()), (true, 0), "what was kept elsewhere vouches too");
    let (text, _, _) = signed(2_100);
    assert_eq!(text.matches("\"what\":\"sealed\"").count(), 3);
}

#[tokio::test]
async fn an_audit_is_exported_and_summed_up() {
    let desk = Desk::new(PERMISSIONS).await;
    Desk::ok(desk.call("backend_developer", "filesystem__read_file", json!({"path": "src/main.rs"})).await);
    Desk::failed(desk.call("backend_developer", "filesystem__read_file", json!({"path": "src/none"})).await);
    Desk::denied(
        desk.call("backend_developer", "filesystem__read_file", json!({"path": "docs/plan.md"})).await,
    );
    let records = desk.audit.records();
    let text: String = records.iter().map(|r| serde_json::to_string(r).unwrap() + "\n").collect();
    assert_eq!(read_audit(&text).unwrap(), records);
    assert!(read_audit("{}\n").unwrap_err().to_string().starts_with("line 1"));
    let csv = audit_csv(&records);
    assert_eq!(csv.lines().count(), records.len() + 1);
    assert!(csv.contains(",decided,deny,read,/project/docs/plan.md,"), "{csv}");
    let sums = summarize_audit(&records);
    let sum = &sums[&("backend_developer".to_owned(), "filesystem".to_owned())];
    assert_eq!((sum.allowed, sum.asked, sum.denied, sum.failed), (2, 0, 1, 1));
    let outcomes: Vec<(&str, u64)> = sum.outcomes.iter().map(|(outcome, n)| (outcome.as_str(), *n)).collect();
    assert_eq!(outcomes, [("ok", 1), ("tool_error", 1)]);
    let (first, last) = sum.span_ms;
    assert!(summarize_audit_of(&records, 0, first).is_empty());
    assert_eq!(summarize_audit_of(&records, first, last + 1), sums);
    let report = audit_report(&records, 3_600_000);
    assert!(serde_json::to_string(&report).unwrap().contains("\"allowed\":2"));
    let table = audit_table(&report);
    assert!(table.contains("backend_developer") && table.lines().count() == report.len() + 1, "{table}");
    assert!(
        csv.lines().next().unwrap().contains(",key,") && csv.contains(&desk.tools.permissions().digest())
    );
}

#[test]
fn a_field_is_no_formula() {
    let audit = coral_mcp::MemoryAudit::new();
    audit
        .append(AuditEntry { agent: "=1+1".into(), run: "a,\"b\"".into(), ..AuditEntry::note(0, "x\ny") })
        .unwrap();
    let csv = audit_csv(&audit.records());
    assert!(csv.contains("\"'=1+1\"") && csv.contains("\"a,\"\"b\"\"\""), "{csv}");
}
