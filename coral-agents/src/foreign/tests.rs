use minijinja::Environment;
use proptest::prelude::*;

use super::import::literal;
use super::*;

#[track_caller]
fn agent(imported: Result<Imported, Error>) -> (AgentSpec, Vec<String>) {
    match imported.unwrap() {
        Imported::Agent { spec, notes } => (*spec, notes.iter().map(ToString::to_string).collect()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sub_agent_maps_field_by_field() {
    let text = "---
name: Test Runner!
description: 'Runs tests. Use it PROACTIVELY after a change. <example>user: \"x\"</example><example>y</example>'
tools: [Read, Bash(cargo test:*), mcp__ci__start, Task(fixer), Read]
disallowedTools: Write
model: haiku
effort: xhigh
maxTurns: 12
permissionMode: bypassPermissions
colour: red
---

You run {{ tests }}.
Then $ARGUMENTS.
";
    let (spec, notes) = agent(import_subagent("x/test-runner.md", text));
    assert_eq!((spec.id.as_str(), spec.name.as_str()), ("test_runner", "Test Runner"));
    assert_eq!(spec.summary, "Runs tests.");
    assert_eq!(spec.role_description, "Runs tests. Use it PROACTIVELY after a change.");
    assert_eq!(spec.operations, ["read_file", "run_code"], "{notes:#?}");
    assert_eq!(spec.handoff.next_agents, ["fixer"]);
    assert_eq!(
        (spec.model.tier, spec.model.effort),
        (coral_core::Tier::Basic, Some(coral_core::Effort::ExtraHigh))
    );
    assert_eq!(spec.limits.max_turns, 12);
    assert_eq!(spec.prompt.system_instructions, "You run {{ \"{{\" }} tests }}.\nThen $ARGUMENTS.");
    assert_eq!(
        notes,
        [
            "line 2: `name: Test Runner!` → `id: test_runner`",
            "line 3: `description` → `summary` (its first sentence) and `role_description`",
            "line 3: 2 examples of `description`: left out: who is called when is said by the workflow",
            "line 4: tool `Read` → operation `read_file`",
            "line 4: tool `Bash` → operation `run_code`",
            "line 4: the restriction `cargo test:*` of `Bash`: left out: put it into the permission file",
            "line 4: tool `mcp__ci__start`: left out: grant the server to this agent in the permission file",
            "line 4: tool `Task(fixer)` → `handoff.next_agents`: `fixer`",
            "line 4: tool `Read` → operation `read_file`",
            "line 5: `disallowedTools`: left out: its tools are not asked for; a denial belongs into the permission file",
            "line 6: `model: haiku` → `model.tier: basic`",
            "line 7: `effort: xhigh` → `model.effort`",
            "line 8: `maxTurns: 12` → `limits.max_turns`",
            "line 9: `permissionMode`: left out: permissions belong into the permission file",
            "line 10: `colour`: left out: the key is not known",
            "line 13: what looks like a template in the text → text, escaped",
            "line 14: the meaning of `$ARGUMENTS`: left out: nothing is put in its place; the brief is part of the task",
            "line 13: the text → `prompt.system_instructions`",
        ]
    );
}

#[test]
fn front_matter_that_is_not_yaml_is_read_by_lines() {
    let text = "---
name: helper
description: Use this agent when: things break. Examples: <example>Context: x
  user: \"y\"</example>
tools: [Read, Grep]
model: claude-opus-5
maxTurns: 7
---
Help.
";
    let (spec, notes) = agent(import_subagent("helper.md", text));
    assert_eq!(spec.summary, "Use this agent when: things break.");
    assert_eq!(spec.model.name.as_deref(), Some("claude-opus-5"));
    assert_eq!(spec.operations, ["read_file", "search_files"]);
    assert_eq!(spec.limits.max_turns, 7);
    assert!(
        notes[0].starts_with("line 3: the front matter as a whole: left out: it is not YAML ("),
        "{notes:?}"
    );

    let (spec, notes) = agent(import_subagent("helper.md", "---\nname: helper\n---\nHelp. And so on."));
    assert_eq!(spec.summary, "Help.");
    assert_eq!(spec.operations, ["read_file", "search_files", "list_directory"]);
    assert!(notes.contains(&"`tools`: missing: all tools elsewhere; here it may read and search".to_owned()));
}

#[test]
fn what_is_no_agent_is_refused() {
    for (text, expected) in [
        (
            "Just text.",
            "a.md: foreign agent file is not valid: it has no front matter with a `name` and a `description`",
        ),
        (
            "---\nname: a\n---\n \n",
            "a.md: foreign agent file is not valid: it has no text below the front matter",
        ),
        (
            "---\nname: 日本\n---\nx",
            "a.md: foreign agent file is not valid: no id can be made of its name `日本`",
        ),
        ("---\n- a\n---\nx", "a.md: foreign agent file is not valid: its front matter has no keys"),
    ] {
        assert_eq!(import_subagent("a.md", text).unwrap_err().to_string(), expected);
    }
    assert!(import_instructions("AGENTS.md", "---\na: b\n---\n").is_err());
}

#[test]
fn a_skill_takes_its_name_from_its_folder() {
    let text = "---\ndescription: Makes tables.\nallowed-tools: Read Bash(python:*)\nlicense: MIT\nmodel: fast\n---\n# Tables\n\nRun !`ls`.\n";
    let (spec, notes) = agent(import_skill("skills/pdf-tables/SKILL.md", text, &["scripts/t.py".to_owned()]));
    assert_eq!(spec.id, "pdf_tables");
    assert_eq!(spec.operations, ["read_file", "run_code"]);
    assert_eq!(
        notes,
        [
            "`name`: missing: the file names it `pdf_tables`",
            "line 2: `description` → `summary`",
            "line 3: tool `Read` → operation `read_file`",
            "line 3: tool `Bash` → operation `run_code`",
            "line 3: the restriction `python:*` of `Bash`: left out: put it into the permission file",
            "line 4: `license`: left out: keep it with the text if you pass the agent on",
            "line 5: `model: fast`: left out: it is neither a model's full name nor a known nickname",
            "line 9: the meaning of `!``: left out: commands in the text are not run; give the agent the operation instead",
            "line 7: the text → `prompt.system_instructions`",
            "file `scripts/t.py`: left out: it stays where it is; an agent that may read files can read it there",
        ]
    );
}

#[test]
fn instructions_become_a_partial() {
    let imported = import_instructions(
        "repo/AGENTS.md",
        "# Repo\n\n## Build\nUse {% make %}.\n\n## Style\n@docs/style.md\n",
    )
    .unwrap();
    let Imported::Partial { name, text, notes } = &imported else { panic!("{imported:?}") };
    assert_eq!(name, "agents_md");
    assert_eq!(text, "# Repo\n\n## Build\nUse {{ \"{%\" }} make %}.\n\n## Style\n@docs/style.md");
    assert_eq!(
        notes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "line 3: section `Build` → partial `agents_md`",
            "line 6: section `Style` → partial `agents_md`",
            "line 7: `@docs/style.md`: left out: a reference to another file is not followed",
        ]
    );
}

#[test]
fn every_built_in_agent_can_be_taken_out_and_in_again() {
    let registry = Registry::builtin();
    for spec in registry.agents() {
        for format in [Format::Subagent, Format::Skill] {
            let file = export_agent(&registry, &spec.id, format).unwrap();
            assert!(!file.notes.is_empty());
            assert!(!file.text.contains("{%") && !file.text.contains("{{ agent"), "{}", file.text);
            let path = file.path.to_string_lossy();
            let (back, _) = match format {
                Format::Subagent => agent(import_subagent(&path, &file.text)),
                Format::Skill => agent(import_skill(&path, &file.text, &[])),
            };
            assert_eq!((&back.id, &back.summary), (&spec.id, &spec.summary));
            assert!(back.operations.contains(&"read_file".to_owned()), "{:?}", back.operations);
            assert!(spec.role_description.lines().all(|line| back.prompt.system_instructions.contains(line)));
            if format == Format::Subagent {
                assert_eq!(
                    (back.model.tier, back.limits.max_turns),
                    (spec.model.tier, spec.limits.max_turns)
                );
            }
        }
    }
    let team = export_team(&registry);
    assert!(registry.agents().all(|spec| team.text.contains(&format!("\n## {}\n", spec.name))));
}

/// The paths of all values that are set.
fn leaves(value: &serde_json::Value, at: &str, into: &mut Vec<(String, serde_json::Value)>) {
    match value {
        serde_json::Value::Object(map)
            if at.is_empty() || matches!(at, "model" | "limits" | "handoff" | "prompt") =>
        {
            for (key, value) in map {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                leaves(value, &at, into);
            }
        }
        other => into.push((at.to_owned(), other.clone())),
    }
}

/// Each field comes back as it was, or a note says what became of it.
#[test]
fn no_field_is_lost_without_a_word() {
    let text = "---
id: all
name: Everything
category: core
group: quality
summary: Does everything.
aliases: [factotum]
capabilities: [everything, more]
dependencies: [text]
optional_dependencies: [picture]
outputs: [{type: text, path: docs/a.md, description: A text}, {type: view, path: docs/b.md, description: A view, optional: true}]
expertise_areas: [Much]
methodologies: [Some]
handoff: {next_agents: [qa_testing], preserve: [decisions], on_gap: send_back, reviews: [qa_testing], max_rounds: 3}
model: {tier: strong, capabilities: [tools], effort: high, temperature: 0.25, max_output_tokens: 900}
operations: [read_file, commit_changes, build_image, execute_query]
limits: {max_turns: 7, max_repairs: 1, max_tool_calls: 3, timeout_ms: 1000}
output_schema: {type: object, properties: {n: {type: integer}}}
phases: {late: {dependencies: [view], outputs: [{type: more, path: docs/c.md, description: More}]}}
---
## Role
You do it.
## System
Do it well.
## Task
Do {{ brief.project }}.
## Context
{% include \"handed_over\" %}
## Output
{% include \"report\" %}
## Handoff
Go on.
## Phase: late
Be late.
";
    let mut registry = Registry::builtin();
    let spec = crate::parse_agent("all.md", text).unwrap();
    registry.insert(spec.clone()).unwrap();
    for format in [Format::Subagent, Format::Skill] {
        let file = export_agent(&registry, "all", format).unwrap();
        let path = file.path.to_string_lossy();
        let (back, _) = match format {
            Format::Subagent => agent(import_subagent(&path, &file.text)),
            Format::Skill => agent(import_skill(&path, &file.text, &[])),
        };
        let notes: Vec<String> = file.notes.iter().map(ToString::to_string).collect();
        let (mut set, mut came_back) = (Vec::new(), Vec::new());
        leaves(&serde_json::to_value(&spec).unwrap(), "", &mut set);
        leaves(&serde_json::to_value(&back).unwrap(), "", &mut came_back);
        let lost: Vec<&String> = set
            .iter()
            .filter(|leaf| !came_back.contains(leaf))
            .map(|(at, _)| at)
            .filter(|at| {
                let whole = at.split('.').next().unwrap();
                !notes
                    .iter()
                    .any(|note| note.contains(&format!("`{at}`")) || note.contains(&format!("`{whole}`")))
            })
            .collect();
        assert_eq!(lost, [""; 0], "{format:?}: {notes:#?}");
        // What the notes call mapped to the text stands there.
        for part in [
            "You do it.",
            "Do it well.",
            "Much",
            "Some",
            "`text`",
            "`picture`",
            "docs/a.md",
            "docs/c.md",
            "Be late.",
            "`qa-testing`",
        ] {
            assert!(file.text.contains(part), "{part} is not in {}", file.text);
        }
        assert!(
            notes.contains(&"operation `execute_query`: left out: there is no tool of that kind; connect a server that offers it".to_owned())
        );
        assert_eq!(back.operations, ["read_file", "commit_changes", "build_image"], "{}", file.text);
        if format == Format::Subagent {
            assert_eq!(
                (back.model.effort, back.model.temperature, back.limits.max_turns),
                (spec.model.effort, spec.model.temperature, 7)
            );
        }
    }
}

/// One operation never becomes the right to run anything, but for the one that is just that, and it is said.
#[test]
fn an_operation_is_not_widened_without_a_word() {
    let registry = Registry::builtin();
    let mut with_bash = 0;
    for spec in registry.agents() {
        let file = export_agent(&registry, &spec.id, Format::Subagent).unwrap();
        let tools = file.text.lines().find(|line| line.starts_with("tools: ")).unwrap_or_default();
        let any_command = tools.split([',', ' ']).any(|tool| tool == "Bash");
        assert_eq!(any_command, spec.operations.iter().any(|operation| operation == "run_code"), "{tools}");
        let said = file.notes.iter().any(|note| note.to_string().contains("`Bash` runs any command"));
        assert_eq!(said, any_command, "{}", spec.id);
        with_bash += usize::from(any_command);
    }
    assert!((1..registry.agents().count()).contains(&with_bash));
}

proptest! {
    #[test]
    fn a_literal_renders_to_itself(text in "([{}%#\"' a-c\n]|\\PC){0,60}") {
        let environment = Environment::new();
        let text = text.trim_end();
        prop_assert_eq!(environment.render_str(&literal(text), ()).unwrap(), text);
    }

    #[test]
    fn any_file_is_imported_or_refused(front in "([a-z-]{1,8}: [\\PC]{0,12}\n|  - x\n|tools: Read\\(\n|name: A b\n){0,5}", body in "\\PC{0,40}") {
        let text = format!("---\n{front}---\n{body}");
        if let Ok(Imported::Agent { spec, .. }) = import_subagent("dir/some file.md", &text) {
            prop_assert!(spec.validate().is_ok());
        }
        let _ = import_skill("dir/SKILL.md", &text, &[]);
        let _ = import_instructions("AGENTS.md", &text);
    }
}
