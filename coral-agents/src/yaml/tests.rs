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

proptest! {
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
