use coral_core::ErrorKind;
use proptest::prelude::*;

use super::*;

const WHOLE: &str = "---
id: tester
name: Tester
category: core
capabilities: [testing, review]
dependencies: [api_specification]
outputs:
  - type: test_report
    path: docs/test.md
    description: What was tested
    optional: true
handoff:
  next_agents: [devops]
  preserve: [decisions]
model: {tier: strong, capabilities: [tools], effort: high, temperature: 0.2}
operations: [read_file]
limits: {max_turns: 3}
output_schema:
  type: object
  required: [passed]
phases:
  late:
    dependencies: []
    next_agents: [writer]
---
# Tester

## Role
You test.

## System

### Rules
```
## Not a section
```

## Task
Test {{ brief.project }}.

## Phase: late
Be quick.

## Handoff
{{ x }}
";

#[test]
fn a_whole_definition_is_read() {
    let spec = parse_agent("tester.md", WHOLE).unwrap();
    assert_eq!(spec.category, coral_core::Category::Core);
    assert_eq!(spec.role_description, "You test.");
    assert_eq!(spec.prompt.system_instructions, "### Rules\n```\n## Not a section\n```");
    assert_eq!(spec.prompt.task_template, "Test {{ brief.project }}.");
    assert_eq!(spec.prompt.context_integration, "");
    assert_eq!(spec.handoff.template, "{{ x }}");
    assert_eq!(spec.model.effort, Some(coral_core::Effort::High));
    assert_eq!(spec.limits.max_turns, 3);
    assert_eq!(spec.limits.max_repairs, 2);
    assert!(spec.outputs[0].optional);
    let late = &spec.phases["late"];
    assert_eq!(late.instructions, "Be quick.");
    assert_eq!(late.dependencies.as_deref(), Some(&[][..]));
    assert_eq!(late.outputs, None);
}

#[track_caller]
fn check_problems(text: &str, expected: &[&str]) {
    let error = parse_agent("a.md", text).unwrap_err();
    let ErrorKind::Problems { problems, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(problems, expected);
}

#[test]
fn problems_name_file_and_line() {
    check_problems("no front", &["a.md:1: text before the first section (`## …`) belongs to nothing"]);
    check_problems(
        "## Role\n",
        &["a.md:1: the file has no front matter: begin it with `---`, the keys and another `---`"],
    );
    check_problems(
        "---\nid: a\n",
        &["a.md:1: the front matter that begins here is never closed: put a line `---` behind it"],
    );
    check_problems("---\n- a\n---\n", &["a.md:2: the front matter must be a mapping, not a list"]);
    check_problems("---\nid: a\nname: A\nid: b\n---\n", &["a.md:4: key `id` stands on line 2 too"]);
    check_problems(
        "---\nid: a\nname: A\nmodel:\n  tier: best\n---\n",
        &["a.md:5: `model`: `tier`: expected one of `basic`, `standard`, `strong`, found `best`"],
    );
    check_problems("---\nid: a\n---\n", &["a.md:2: key `name` is missing"]);
    check_problems(
        "---\nid: a\ncategory: |\n  of\n  two\n---\n",
        &["a.md:4: `category`: expected one of `core`, `specialist`, found `of\\ntwo\\n`"],
    );
    check_problems("---\n---\n", &["a.md:2: key `id` is missing"]);
    check_problems(
        "---\nname: A\nid: Not An Id\n---\n",
        &["a.md:3: `id` must be lower-case letters, digits and `_`, and begin with a letter"],
    );
    check_problems(
        "---\nname: A\nid: a\noutputs:\n  - {type: x, path: ../x, description: d}\n---\n",
        &["a.md:5: output path `../x` must be relative and stay inside the project"],
    );
    check_problems(
        "---\nid: a\nname: A\nextends: b\n---\n",
        &["a.md:4: no agent is called `b`, so it can't be extended"],
    );
}

#[test]
fn all_problems_come_at_once() {
    check_problems(
        "---\nid: a\nname: A\nlimits: {max_turns: lots}\n---\n## Roles\n## Task\n## Task\n## Phase:\n## Whatever else\n## + Role\n",
        &[
            "a.md:4: `limits`: `max_turns`: expected u32, found `lots`",
            "a.md:6: unknown section `Roles`; did you mean `Role`?",
            "a.md:8: section `Task` stands on line 7 too",
            "a.md:9: `## Phase:` needs the name of a phase",
            "a.md:10: unknown section `Whatever else`; known are `Role`, `System`, `Task`, `Context`, `Output`, \
             `Handoff` and `Phase: NAME`; use `###` for a heading within a section",
            "a.md:11: `## + Role` adds to a base, and this agent extends none",
        ],
    );
    check_problems(
        "---\nid: a\nname: A\nrole_description: long\nprompt: {}\nhandoff: {template: x}\nphases: {p: {instructions: x}}\n---\n",
        &[
            "a.md:4: `role_description` is a text: write it as section `## Role` of the body",
            "a.md:5: `prompt` is a text: write it as section `## System` or `## Task` of the body",
            "a.md:6: `template` is a text: write it as section `## Handoff` of the body",
            "a.md:7: `instructions` is a text: write it as section `## Phase: p` of the body",
        ],
    );
}

#[test]
fn an_extension_changes_only_what_it_names() {
    let base = parse_agent("tester.md", WHOLE).unwrap();
    let text = "---\nextends: tester\nsummary: Ours\nmodel: {effort: low, temperature: null}\ncapabilities: [house_rules]\n---\n\
                ## + System\nFollow the house rules.\n## Task\nOther task.\n";
    let definition = Definition::parse("ours.md", text).unwrap();
    assert_eq!((definition.id(), definition.extends()), (Some("tester"), Some("tester")));
    let spec = definition.resolve(|id| (id == "tester").then_some(&base)).unwrap();
    let mut expected = base.clone();
    expected.summary = "Ours".into();
    expected.model.effort = Some(coral_core::Effort::Low);
    expected.model.temperature = None;
    expected.capabilities = vec!["house_rules".into()];
    expected.prompt.system_instructions.push_str("\n\nFollow the house rules.");
    expected.prompt.task_template = "Other task.".into();
    assert_eq!(spec, expected);

    let wrong = Definition::parse("ours.md", "---\nextends: tester\nmodel:\n  effort: 3\n---\n").unwrap();
    let error = wrong.resolve(|_| Some(&base)).unwrap_err().to_string();
    assert!(error.contains("ours.md:4: `model`: `effort`: "), "{error}");
}

/// Text with the shape of a definition: front matter of any keys and values, sections of any title.
fn definition_like() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("id"),
        Just("name"),
        Just("category"),
        Just("outputs"),
        Just("handoff"),
        Just("model"),
        Just("limits"),
        Just("phases"),
        Just("output_schema"),
        Just("extends"),
        Just("aliases"),
        Just("other")
    ];
    let value = prop_oneof![
        "[a-z_]{0,8}",
        "[0-9.e+-]{1,6}",
        Just("[a, b]".to_owned()),
        Just("{a: {b: c}}".to_owned()),
        Just("{max_turns: -1}".to_owned()),
        Just("[{type: t, path: p, description: d}]".to_owned()),
        Just("\n  - a\n  - b: c".to_owned()),
        Just("|\n  text\n\n  more".to_owned()),
        Just("~".to_owned()),
        Just("*a".to_owned()),
        Just("&a x".to_owned()),
        "\\PC{0,12}",
    ];
    let title = prop_oneof![
        Just("Role"),
        Just("Task"),
        Just("+ System"),
        Just("Phase: x"),
        Just("Phase:"),
        Just("#"),
        Just("")
    ];
    let sections = prop::collection::vec((title, "(\\PC|\n|```){0,20}"), 0..4);
    (prop::collection::vec((key, value), 0..6), sections).prop_map(|(keys, sections)| {
        let front: String = keys.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        let body: String = sections.iter().map(|(title, text)| format!("## {title}\n{text}\n")).collect();
        format!("---\n{front}---\n{body}")
    })
}

proptest! {
    #[test]
    fn front_matter_of_any_shape_is_read_or_refused(text in definition_like()) {
        match parse_agent("x.md", &text) {
            Ok(spec) => prop_assert!(spec.validate().is_ok()),
            Err(error) => {
                let ErrorKind::Problems { problems, .. } = error.kind() else { panic!("{error}") };
                prop_assert!(!problems.is_empty());
                let last = text.lines().count();
                for problem in problems {
                    let line: usize = problem.split(':').nth(1).unwrap().parse().unwrap();
                    prop_assert!((1..=last + 1).contains(&line), "{problem} of {last} lines");
                    prop_assert!(!problem.contains('\n'), "{problem}");
                }
            }
        }
    }
}
