use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::*;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Sample {
    name: String,
    count: u32,
    nested: BTreeMap<String, Vec<String>>,
    join: Option<Join>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Join {
    All,
    Quorum(usize),
}

#[track_caller]
fn check(text: &str, expected: Result<Sample, &str>) {
    let found = parse(text, 1).and_then(|node| node.read::<Sample>()).map_err(|problem| problem.to_string());
    assert_eq!(found, expected.map_err(str::to_owned));
}

#[test]
fn typed_values_come_from_the_tree() {
    check(
        "name: x\ncount: 3\nnested:\n  a: [b, c]\njoin:\n  quorum: 2\n",
        Ok(Sample {
            name: "x".into(),
            count: 3,
            nested: BTreeMap::from([("a".to_owned(), vec!["b".to_owned(), "c".to_owned()])]),
            join: Some(Join::Quorum(2)),
        }),
    );
    check(
        "name: x\njoin: all\n",
        Ok(Sample { name: "x".into(), join: Some(Join::All), ..Sample::default() }),
    );
    check("nested:\n", Ok(Sample::default()));
}

#[test]
fn a_misfit_names_its_line_and_key() {
    check("name: x\n\ncount: many\n", Err("line 3: `count`: expected u32, found `many`"));
    check("name: x\ncuont: 3\n", Err("line 2: unknown key `cuont`; did you mean `count`?"));
    check(
        "nested:\n  a:\n    - b\n    - {c: d}\n",
        Err("line 4: `nested`: `a`: expected a string, found a mapping"),
    );
    check(
        "name: true\n",
        Err("line 1: `name`: expected a string, found `true`, which needs quotes to be text"),
    );
    check("join: some\n", Err("line 1: `join`: expected one of `all`, `quorum`, found `some`"));
    check("- a\n", Err("line 1: expected a mapping, found a list"));
}

#[test]
fn broken_yaml_names_its_line() {
    for (text, line) in [
        ("a: 1\nb: [1,\nc: 2\n", 2),
        ("a: 1\na: 2\n", 2),
        ("a: *nowhere\n", 1),
        ("a: 'open\nb: 2\n", 1),
        ("a: 1\n  b: 2\n", 2),
        ("? [complex, key]\n: 1\n", 1),
    ] {
        let problem = parse(text, 1).unwrap_err();
        assert_eq!(problem.line, line, "{text:?}: {problem}");
        assert!(!problem.message.is_empty() && !problem.message.contains('\n'), "{problem}");
        assert_eq!(parse(text, 11).unwrap_err().line, line + 10, "{text:?}");
    }
}

#[test]
fn words_stay_words() {
    let node = parse("a: yes\nb: 007\nc: 1.5\nd: ~\ne: \"3\"\nf: true\n", 1).unwrap();
    assert_eq!(node.to_json(), json!({"a": "yes", "b": "007", "c": 1.5, "d": null, "e": "3", "f": true}));
}

#[test]
fn scalars_follow_the_core_schema() {
    for (text, expected) in [
        ("0x1F", json!(31)),
        ("0o17", json!(15)),
        ("+3", json!(3)),
        ("-0.5e3", json!(-500.0)),
        (".5", json!(0.5)),
        ("1.2.3", json!("1.2.3")),
        ("2026-11-22", json!("2026-11-22")),
        ("1_000", json!("1_000")),
        ("18446744073709551615", json!(u64::MAX)),
        ("1e999", json!("1e999")),
        (".inf", json!(".inf")),
        ("-", json!([null])),
        ("e5", json!("e5")),
        ("!!str 5", json!("5")),
        ("\"5\"", json!("5")),
        ("&a [1, *b]", json!(null)),
    ] {
        match parse(text, 1) {
            Ok(node) => assert_eq!(node.to_json(), expected, "{text}"),
            Err(problem) => assert!(expected.is_null(), "{text}: {problem}"),
        }
    }
    let node = parse("a: &x {k: [1]}\nb: *x\n", 1).unwrap();
    assert_eq!(node.to_json(), json!({"a": {"k": [1]}, "b": {"k": [1]}}));
    for (text, expected) in [
        ("a: !secret b", "line 1: the tag `!secret` means nothing here"),
        ("a: &x [*x]", "line 1: the alias repeats something that it is part of"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins here, and only one is read"),
    ] {
        assert_eq!(parse(text, 1).unwrap_err().to_string(), expected);
    }
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 10].join(", ");
        text.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    assert!(parse(&text, 1).is_err());
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    assert!(parse(&deep, 1).is_err());
    let deep: String = (0..5_000).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    assert!(parse(&deep, 1).is_err());
    let wide: String = (0..5_000).map(|i| format!("a{i}: 1\n")).collect();
    assert!(parse(&wide, 1).is_err());
    let long = "- 1\n".repeat(200_000);
    assert!(parse(&long, 1).is_err());
}

/// Whatever the quick parser reads, the full one reads too, and alike.
#[track_caller]
fn check_both(text: &str) -> bool {
    let Some(quick) = everyday::read(text, 3) else { return false };
    assert_eq!(Ok(quick), parse_in_full(text, 3), "{text:?}");
    true
}

#[test]
fn what_people_write_is_read_in_one_pass() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for dir in ["agents", "workflows"] {
        for entry in std::fs::read_dir(root.join(dir)).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let front = text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n"));
            assert!(check_both(front.map_or(&*text, |(front, _)| front)), "{}", path.display());
        }
    }
    for text in [
        "a: b c # d\n\n# e\nf:\n  g: 1\n  h:\n  - x\n  - y: [1, two, 'three', \"fo ur\", {five: 6, s: t}]\n    z:\n",
        "- - \n",
        "-\n  a: 1\n-\n- b\n",
        "a: >-\n  one\n  two\n\nb: |\n  three\n  four\nc: é\n",
        "  a: -5\n  b: http://x.y:80/#z\n",
        "a: []\nb: {}\nc: ''\nd: \"\"\ntrue: x\n1.50: y\n~: z\n",
    ] {
        check_both(text);
    }
    for rare in [
        "",
        "a: b: c\n",
        "a: 1\na: 2\n",
        "a: &x 1\n",
        "a: \"\\n\"\n",
        "a: one\n  two\n",
        "a\tb: 1\n",
        "a: [1,\n  2]\n",
    ] {
        assert!(!check_both(rare), "{rare:?}");
    }
}

proptest! {
    #[test]
    fn what_is_read_in_one_pass_is_read_alike(parts in prop::collection::vec(
        prop_oneof![
            4 => prop_oneof![Just("\n"), Just("\n  "), Just("\n    "), Just("\n - "), Just("\n- "), Just("\n  - ")],
            4 => prop_oneof![Just("a: "), Just("b: "), Just("c:"), Just("\nd: "), Just("\ne:"), Just("\n  f: "), Just("\n  g:")],
            3 => prop_oneof![Just("x"), Just("y z"), Just("5"), Just("-5"), Just("true"), Just("~"), Just("null"), Just("0x1F"), Just("1.5"), Just("é")],
            3 => prop_oneof![Just("["), Just("]"), Just(", "), Just("{"), Just("}"), Just("\""), Just("'"), Just("[x, y]"), Just("{k: v}")],
            1 => prop_oneof![Just("|"), Just(">"), Just("|-\n  "), Just(">-\n  "), Just("|\n  "), Just(">\n   "), Just("#"), Just(" #"), Just(" "), Just("-"), Just("- "), Just(":")],
            1 => prop_oneof![Just("---"), Just("..."), Just("&"), Just("*"), Just("!"), Just("%"), Just("@"), Just("?"), Just("? "), Just("\\"), Just("\u{feff}"), Just("\u{85}"), Just("\u{2028}"), Just("\t"), Just("\r\n"), Just("`"), Just("<<: "), Just("\u{7f}"), Just(",")],
        ], 0..24)) {
        check_both(&parts.concat());
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}") {
        if let Ok(node) = parse(&text, 1) {
            let _ = node.read::<Sample>();
            let _ = node.read::<coral_core::AgentSpec>();
        }
    }

    #[test]
    fn nothing_like_yaml_makes_it_panic(parts in prop::collection::vec(
        prop_oneof![
            Just("- "), Just(": "), Just("\n"), Just("  "), Just("a"), Just("'"), Just("\""), Just("[") , Just("]"),
            Just("{"), Just("}"), Just("&x "), Just("*x"), Just("!!int "), Just("| \n"), Just("> "), Just("<<: "),
            Just("? "), Just("---\n"), Just("...\n"), Just("%YAML 1.2\n"), Just("#c\n"), Just("\t"), Just("0x"), Just("1e9"),
        ], 0..40)) {
        let text: String = parts.concat();
        match parse(&text, 1) {
            Ok(node) => { let _ = node.read::<Sample>(); }
            Err(problem) => prop_assert!(problem.line <= text.lines().count() + 1, "{problem}"),
        }
    }
}
