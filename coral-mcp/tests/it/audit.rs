use std::sync::Arc;

use coral_core::{Error, ErrorKind};
use coral_mcp::{Audit, AuditEntry, AuditEvent, AuditRecord, FileAudit, GENESIS, Verdict};
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
