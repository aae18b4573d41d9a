use coral_core::{Caller, EffectClass, ToolFault, Toolbox};
use serde_json::json;

use crate::desk::Desk;

const ALL: &str = r#"
permission_model:
  agents:
    dev:
      mcp_servers: ["filesystem"]
      operations: ["read", "write"]
      paths: ["/project"]
"#;

#[tokio::test]
async fn files_are_written_read_edited_moved_and_found() {
    let desk = Desk::new(ALL).await;
    let path = "a/new/dir/notes.md";
    let wrote = desk
        .call("dev", "filesystem__write_file", json!({"path": path, "content": "one\ntwo\nthree\n"}))
        .await;
    assert_eq!(Desk::ok(wrote), "wrote 14 bytes to a/new/dir/notes.md");
    assert_eq!(desk.read(path), "one\ntwo\nthree\n");

    let read = |arguments| desk.call("dev", "filesystem__read_file", arguments);
    assert_eq!(Desk::ok(read(json!({"path": path})).await), "one\ntwo\nthree\n");
    assert_eq!(Desk::ok(read(json!({"path": format!("/project/{path}"), "head": 1})).await), "one\n");
    assert_eq!(Desk::ok(read(json!({"path": path, "tail": 2})).await), "two\nthree\n");
    assert!(Desk::failed(read(json!({"path": path, "tail": 2, "head": 1})).await).contains("not both"));
    assert_eq!(Desk::failed(read(json!({"path": "a/none"})).await), "`a/none` does not exist");
    assert!(Desk::failed(read(json!({"path": "a"})).await).contains("directory"));

    let edits = json!([{"oldText": "two", "newText": "2"}, {"oldText": "2\nthree", "newText": "2\n3"}]);
    Desk::ok(desk.call("dev", "filesystem__edit_file", json!({"path": path, "edits": edits})).await);
    assert_eq!(desk.read(path), "one\n2\n3\n");
    for edits in [
        json!([{"oldText": "one", "newText": "1"}, {"oldText": "absent", "newText": ""}]),
        json!([{"oldText": "\n", "newText": " "}]),
        json!([{"oldText": "", "newText": "x"}]),
    ] {
        Desk::failed(desk.call("dev", "filesystem__edit_file", json!({"path": path, "edits": edits})).await);
    }
    assert_eq!(desk.read(path), "one\n2\n3\n", "a failed edit changes nothing");

    let moved = json!({"source": path, "destination": "b/notes.md"});
    Desk::ok(desk.call("dev", "filesystem__move_file", moved).await);
    let over = json!({"source": "b/notes.md", "destination": "src/main.rs"});
    assert!(Desk::failed(desk.call("dev", "filesystem__move_file", over).await).contains("exists already"));

    let tree = Desk::ok(desk.call("dev", "filesystem__directory_tree", json!({})).await);
    assert_eq!(
        tree,
        "a/\n  new/\n    dir/\nb/\n  notes.md\ndocs/\n  plan.md\nsrc/\n  main.rs\nsrcx/\n  other.rs\ntests/\n  it.rs\n"
    );
    let list = Desk::ok(desk.call("dev", "filesystem__list_directory", json!({"path": "docs"})).await);
    assert_eq!(list, "plan.md (20 bytes)\n");
    let search = |arguments| desk.call("dev", "filesystem__search_files", arguments);
    assert_eq!(
        Desk::ok(search(json!({"pattern": "**/*.rs"})).await),
        "src/main.rs\nsrcx/other.rs\ntests/it.rs\n"
    );
    assert_eq!(Desk::ok(search(json!({"text": "second"})).await), "docs/plan.md:3: second\n");
    assert_eq!(Desk::ok(search(json!({"path": "src", "text": "second"})).await), "nothing found");
    let both = json!({"paths": ["b/notes.md", "b/none"]});
    assert_eq!(
        Desk::ok(desk.call("dev", "filesystem__read_multiple_files", both).await),
        "==> b/notes.md <==\none\n2\n3\n\n==> b/none <==\nerror: `b/none` does not exist\n"
    );
    let info = Desk::ok(desk.call("dev", "filesystem__get_file_info", json!({"path": "docs/plan.md"})).await);
    assert!(info.starts_with("kind: file\nsize: 20\nchanged: 20"), "{info}");
    Desk::ok(desk.call("dev", "filesystem__create_directory", json!({"path": "x/y"})).await);
    Desk::ok(desk.call("dev", "filesystem__create_directory", json!({"path": "x/y"})).await);
    assert!(desk.project().join("x/y").is_dir());
}

#[tokio::test]
async fn a_write_keeps_the_mode_and_takes_over_what_a_crash_left() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::new(ALL).await;
    let file = desk.project().join("src/main.rs");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(desk.project().join("src/.main.rs.coral-tmp"), "half").unwrap();
    let list = Desk::ok(desk.call("dev", "filesystem__list_directory", json!({"path": "src"})).await);
    assert_eq!(list, "main.rs (13 bytes)\n", "files being written are not shown");
    let write = json!({"path": "src/main.rs", "content": "new"});
    Desk::ok(desk.call("dev", "filesystem__write_file", write).await);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(desk.read("src/main.rs"), "new");
    assert!(!desk.project().join("src/.main.rs.coral-tmp").exists());
}

#[tokio::test]
async fn writes_side_by_side_are_each_whole() {
    let desk = Desk::new(ALL).await;
    let texts: Vec<String> = (0..8).map(|i| format!("{i}").repeat(50_000)).collect();
    let writes = texts.iter().map(|text| {
        desk.call("dev", "filesystem__write_file", json!({"path": "docs/one.txt", "content": text}))
    });
    let done: Vec<_> = futures_util::future::join_all(writes).await;
    done.into_iter().for_each(|result| drop(Desk::ok(result)));
    assert!(texts.contains(&desk.read("docs/one.txt")));
}

#[tokio::test]
async fn arguments_that_do_not_fit_are_refused_with_a_hint() {
    let desk = Desk::new(ALL).await;
    for (tool, arguments) in [
        ("filesystem__write_file", json!({"path": "a"})),
        ("filesystem__write_file", json!({"path": "a", "content": "x", "mode": "append"})),
        ("filesystem__write_file", json!({"path": "a", "content": "x", "tool": "read_file"})),
        ("filesystem__write_file", json!("not an object")),
        ("filesystem__read_file", json!({"path": "docs/plan.md", "head": -1})),
    ] {
        assert_eq!(
            Desk::fault(desk.call("dev", tool, arguments.clone()).await),
            ToolFault::InvalidArguments,
            "{tool} {arguments}"
        );
    }
    assert_eq!(Desk::fault(desk.call("dev", "filesystem__chmod", json!({})).await), ToolFault::UnknownTool);
    let hint = desk.call("dev", "filesystem__read_file", json!({"pth": "docs/plan.md"})).await.unwrap_err();
    assert!(hint.to_string().contains("did you mean `path`?"), "{hint}");
}

#[tokio::test]
async fn large_results_are_cut_off_and_say_so() {
    let desk = Desk::new(ALL).await;
    std::fs::write(desk.project().join("big.txt"), "x".repeat(1_000_000)).unwrap();
    let text = Desk::ok(desk.call("dev", "filesystem__read_file", json!({"path": "big.txt"})).await);
    assert!(text.len() < 300_000 && text.ends_with("more bytes]"), "{}", text.len());
}

#[tokio::test]
async fn tools_tell_what_may_be_repeated() {
    let desk = Desk::new(ALL).await;
    let tools = desk.tools.list(&Caller::agent("dev")).await.unwrap();
    let effect = |name: &str| tools.iter().find(|t| t.name == name).unwrap().effect;
    assert_eq!(effect("filesystem__read_file"), EffectClass::Pure);
    assert_eq!(effect("filesystem__write_file"), EffectClass::Idempotent);
    assert_eq!(effect("filesystem__edit_file"), EffectClass::Irreversible);
    assert!(tools.iter().all(|t| t.input_schema["type"] == "object" && !t.description.is_empty()));
    assert!(tools.is_sorted_by_key(|t| &t.name));
}
