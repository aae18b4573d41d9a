//! Versions of prompts, and what they are versions of.

use coral_core::{
    AgentSpec, Brief, DynamicSection, ErrorKind, OutputSpec, Partials, PromptAgent, PromptInput, PromptPhase,
    PromptService, PromptStage, PromptStore, PromptText, Task,
};
use serde_json::json;

fn spec(task: &str) -> AgentSpec {
    let mut spec = AgentSpec::new("a", "A");
    spec.prompt.task_template = task.into();
    spec
}

fn text(role: &str) -> PromptText {
    let mut spec = spec("Work.");
    spec.role_description = role.into();
    PromptText::of(&spec, &Partials::new())
}

#[test]
fn a_store_keeps_history_and_refuses_what_was_changed_behind_its_ids() {
    let mut store = PromptStore::new();
    let ids: Vec<String> = ["one", "two", "three"]
        .into_iter()
        .map(|role| store.commit("a", text(role), role).unwrap())
        .collect();
    assert_eq!(store.commit("a", text("three"), "again").unwrap(), ids[2]);
    assert_eq!(store.history("a").len(), 3);
    let diff = store.diff("a", &ids[0][..8], &ids[1]).unwrap();
    assert!(diff.contains("--- role") && diff.contains("-one") && diff.contains("+two"), "{diff}");
    store.pin("a", &ids[0]).unwrap();
    assert_eq!(store.choose("a", "r/s").unwrap().0, ids[0]);
    store.unpin("a").unwrap();
    store.roll_back("a", "worse").unwrap();
    assert_eq!(store.current("a"), Some(ids[1].as_str()));
    store.begin_trial("a", [(ids[0].as_str(), 30), (ids[2].as_str(), 80)]).unwrap_err();
    store.begin_trial("a", [(ids[0].as_str(), 25), (ids[2].as_str(), 25)]).unwrap();
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for i in 0..4_000 {
        *counts.entry(store.choose("a", &format!("run-{i}/x")).unwrap().0.to_owned()).or_default() += 1;
    }
    assert!(
        (900..1_100).contains(&counts[&ids[0]]) && (1_800..2_200).contains(&counts[&ids[1]]),
        "{counts:?}"
    );
    let error = store.version("a", "ffff").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotFound { .. }));

    let mut json = serde_json::to_value(&store).unwrap();
    assert_eq!(serde_json::from_value::<PromptStore>(json.clone()).unwrap(), store);
    json["prompts"]["a"]["versions"][&ids[0]]["text"]["role_description"] = json!("tampered");
    let error = serde_json::from_value::<PromptStore>(json).unwrap_err().to_string();
    assert!(error.contains("its texts were changed"), "{error}");

    store.end_trial("a").unwrap();
    store.prune("a", 1);
    let kept: Vec<&str> = store.versions("a").map(|(id, _)| id).collect();
    assert_eq!(kept.len(), 3, "the current one, the one before it, and the last: {kept:?}");
}

/// Texts that come back are the version that they were, and come after another now.
#[test]
fn rolling_back_goes_the_way_back_that_the_versions_came() {
    let mut store = PromptStore::new();
    let a = store.commit("x", text("a"), "first").unwrap();
    let b = store.commit("x", text("b"), "second").unwrap();
    assert_eq!(store.commit("x", text("a"), "as before").unwrap(), a);
    assert_eq!(store.roll_back("x", "b was better").unwrap(), b);
    assert_eq!(store.roll_back("x", "a was better").unwrap(), a);
    let error = store.roll_back("x", "none was good").unwrap_err().to_string();
    assert!(error.ends_with("is the first"), "{error}");
    // Forward again by name, and what was forgotten is passed over.
    store.roll_back_to("x", &b, "after all").unwrap();
    let c = store.commit("x", text("c"), "third").unwrap();
    store.commit("x", text("d"), "fourth").unwrap();
    store.roll_back_to("x", &a, "all the way").unwrap();
    store.commit("x", text("e"), "fifth").unwrap();
    store.prune("x", 1);
    assert!(store.version("x", &c).is_err());
    assert_eq!(store.roll_back("x", "e is worse").unwrap(), a);
}

/// Two definitions may have the same texts and promise other things.
#[test]
fn a_version_is_compiled_for_the_definition_that_it_is_used_with() {
    let mut store = PromptStore::new();
    let id = store
        .commit("a", PromptText::of(&spec("Deliver {{ deliverables[0].path }}."), &Partials::new()), "x")
        .unwrap();
    let service = PromptService::builder().store(store).build().unwrap();
    let say = |path: &str| {
        let mut spec = spec("Something else.");
        spec.outputs = vec![OutputSpec { kind: "k".into(), path: path.into(), ..OutputSpec::default() }];
        let agent = PromptAgent::with_prompts(spec, &service).unwrap();
        let prompt = agent.prompt(&PromptInput::default()).unwrap();
        assert_eq!(prompt.used.version, id);
        prompt.messages[1].text()
    };
    assert_eq!(say("docs/one.md"), "Deliver docs/one.md.");
    assert_eq!(say("docs/two.md"), "Deliver docs/two.md.");
    assert_eq!(say("docs/one.md"), "Deliver docs/one.md.");
}

/// Puts a value into the configuration.
struct Puts;

impl PromptStage for Puts {
    fn name(&self) -> &str {
        "puts"
    }

    fn apply(&self, draft: &mut coral_core::PromptDraft) -> Result<(), coral_core::Error> {
        draft.config = json!({"lnad": "Kummerland"}).into();
        Ok(())
    }
}

#[test]
fn values_of_the_configuration_are_checked_when_the_service_and_the_agent_are_built() {
    let service = || PromptService::builder().config("land", json!({"name": "Lummerland"}));
    let built = |task: &str| PromptAgent::with_prompts(spec(task), &service().build().unwrap());
    let error = |task: &str| built(task).unwrap_err().to_string();
    assert_eq!(
        error("{{ config.lnad }}"),
        "agent `a`, template `task` is not valid: `config.lnad` is not in the configuration; did you mean `land`?"
    );
    assert!(
        error("{{ config.land.nmae }}")
            .ends_with("`config.land.nmae` is not in the configuration; did you mean `name`?")
    );
    assert!(
        error("{{ config.season }}").ends_with("`config.season` is not in the configuration; there is land")
    );
    for good in [
        "{{ config.land.name }} {{ config.land.name.anything }}",
        "{% if config.season is defined and config.season.warm %}warm{% endif %}",
        "{{ config.season|default('summer') }}",
    ] {
        built(good).unwrap();
    }
    let section = service().section(DynamicSection::new("where", "{{ config.lnad }}")).build().unwrap_err();
    assert!(section.to_string().starts_with("section `where` is not valid: `config.lnad`"), "{section}");

    // A stage may put a value there.
    let service = service().stage(PromptPhase::Validation, Puts).build().unwrap();
    let agent = PromptAgent::with_prompts(spec("{{ config.lnad }}"), &service).unwrap();
    let task = Task { brief: Brief::default(), ..Task::default() };
    let prompt = agent.prompt(&PromptInput { task, ..PromptInput::default() }).unwrap();
    assert_eq!(prompt.messages[1].text(), "Kummerland");
}
