use super::*;

fn file<'a>(kind: Kind, file: &'a str, text: &'a str) -> SourceFile<'a> {
    SourceFile { kind, file, text }
}

fn agent_text(id: &str, more: &str) -> String {
    format!("---\nid: {id}\nname: {id}\n{more}---\n## Task\nWork.\n")
}

#[test]
fn the_built_in_files_are_all_good() {
    assert_eq!(Registry::builtin_skipped(), &[]);
    let registry = Registry::builtin();
    assert!(registry.agents().all(|spec| registry.source(&spec.id) == Some(&Source::Builtin)));
    assert!(registry.workflow("documentation_first").is_ok());
}

#[test]
fn a_bad_file_is_skipped_and_the_rest_loads() {
    let (good, twin, helper) =
        (agent_text("good", ""), agent_text("good", ""), agent_text("helper", "aliases: [aide]\n"));
    let mut registry = Registry::new();
    let loaded = registry.take_in(
        [
            file(Kind::Workflow, "w.yaml", "steps: [{agent: aide, name: first}]"),
            file(Kind::Workflow, "v.yaml", "steps: [{agent: nobody}]"),
            file(Kind::Agent, "bad.md", "no front matter"),
            file(Kind::Agent, "good.md", &good),
            file(Kind::Agent, "twin.md", &twin),
            file(Kind::Agent, "helper.md", &helper),
            file(Kind::Partial, "p/house.md", "Be kind."),
        ],
        |name| Source::File(name.into()),
    );
    assert_eq!(loaded.agents, ["good", "helper"]);
    assert_eq!(loaded.workflows, ["w"]);
    assert_eq!(loaded.partials, ["house"]);
    let reasons: Vec<String> = loaded.skipped.iter().map(|skipped| skipped.error.to_string()).collect();
    assert_eq!(
        reasons,
        [
            "agent definition `bad.md` has 1 problem: bad.md:1: text before the first section (`## …`) belongs to nothing",
            "twin.md: agent definition is not valid: `good.md` defines agent `good` too",
            "workflow `v.yaml` has 1 problem: v.yaml:1: no agent is called `nobody`",
        ]
    );
    assert_eq!(registry.partials().collect::<Vec<_>>(), [("house", "Be kind.")]);
}

#[test]
fn an_extension_comes_after_what_it_extends() {
    let base = agent_text("base", "summary: Base\naliases: [old]\n");
    let mut registry = Registry::new();
    let loaded = registry.take_in(
        [
            file(
                Kind::Agent,
                "c.md",
                "---\nextends: mid\nid: top\nsummary: Top\n---\n## + Task\nAnd rest.\n",
            ),
            file(Kind::Agent, "b.md", "---\nextends: base\nid: mid\ncapabilities: [x]\n---\n"),
            file(Kind::Agent, "a.md", &base),
            file(Kind::Agent, "x.md", "---\nextends: y\nid: x\n---\n"),
            file(Kind::Agent, "y.md", "---\nextends: x\nid: y\n---\n"),
        ],
        |_| Source::Code,
    );
    assert_eq!(loaded.agents, ["base", "mid", "top"]);
    let top = registry.agent("top").unwrap();
    assert_eq!((top.summary.as_str(), top.prompt.task_template.as_str()), ("Top", "Work.\n\nAnd rest."));
    assert_eq!(top.capabilities, ["x"]);
    assert_eq!(registry.agent("old").unwrap().id, "base");
    let reasons: Vec<String> = loaded.skipped.iter().map(|skipped| skipped.error.to_string()).collect();
    assert_eq!(
        reasons[0],
        "x.md: agent definition is not valid: these agents extend each other in a circle: x, y"
    );

    registry
        .take_in([file(Kind::Agent, "d.md", "---\nextends: base\nsummary: Ours\n---\n")], |_| Source::Code);
    assert_eq!(registry.agent("base").unwrap().summary, "Ours");
}

#[test]
fn capabilities_are_found_by_their_words() {
    let mut registry = Registry::new();
    for (id, capabilities) in [("a", vec!["load_testing"]), ("b", vec!["testing"]), ("c", vec!["tester"])] {
        let mut spec = AgentSpec::new(id, id);
        spec.capabilities = capabilities.into_iter().map(str::to_owned).collect();
        registry.insert(spec).unwrap();
    }
    let ids = |capability| {
        registry.with_capability(capability).iter().map(|spec| spec.id.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(ids("testing"), ["b", "a"]);
    assert_eq!(ids("Load Testing"), ["a"]);
    assert_eq!(ids("test"), [""; 0]);
    assert_eq!(ids(" "), [""; 0]);
}

#[test]
fn names_are_looked_up_with_help() {
    let registry = Registry::builtin();
    assert_eq!(registry.agent("database_admin").unwrap().id, "database_specialist");
    for (name, expected) in [
        ("qa_testin", "no agent is called `qa_testin`; did you mean `qa_testing`?"),
        ("zzz", "no agent is called `zzz`"),
    ] {
        assert_eq!(registry.agent(name).unwrap_err().to_string(), expected);
    }
    assert_eq!(
        registry.workflow("documentation-first").unwrap_err().to_string(),
        "no workflow is called `documentation-first`; did you mean `documentation_first`?"
    );
}

#[test]
fn an_invalid_spec_is_refused() {
    assert!(Registry::new().insert(AgentSpec::new("Not An Id", "x")).is_err());
}
