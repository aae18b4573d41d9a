//! The prompt service: what a model gets, what the journal says of it, and that neither changes on replay.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coral_core::{
    AgentSpec, Brief, CallContext, ChatModel, ChatRequest, ChatResponse, Compacted, Compaction, ContextQuery,
    ContextSource, DynamicSection, Error, ErrorKind, Event, Fit, FitPolicy, Fitted, GraphData, Input,
    Journal, MemoryJournal, Message, ModelFault, ModelInfo, Part, Partials, Program, PromptAgent,
    PromptDraft, PromptInput, PromptPhase, PromptService, PromptStage, PromptStore, PromptText, PromptUse,
    Role, Runner, SectionPart, StepData, StepKind, StopReason, Task, Team, ToolCall, ToolDef,
};
use serde_json::{Value, json};

use crate::support::{CrashJournal, FnModel, Sink, records};

fn spec(id: &str) -> AgentSpec {
    let mut spec = AgentSpec::new(id, id.to_uppercase());
    spec.role_description = format!("You are the {id}.");
    spec.expertise_areas = vec!["Reefs".into()];
    spec.prompt.system_instructions = "Write {{ agent.outputs|length }} files.".into();
    spec.prompt.task_template = "{% include 'brief' %}".into();
    spec.prompt.context_integration =
        "{% for i in inputs %}{{ i.message.from_agent }}: {{ i.preserved.data.log }}{% endfor %}".into();
    spec.prompt.output_format = "Answer with a report.".into();
    spec.handoff.preserve = vec!["data".into()];
    spec.output_schema = Some(json!({"type": "object", "properties": {"log": {"type": "string"}}}));
    spec
}

fn partials() -> Partials {
    Partials::new().with("brief", "Do this: {{ brief.text }}")
}

fn service() -> coral_core::PromptServiceBuilder {
    PromptService::builder().partials(partials())
}

fn graph(steps: &[(&str, &str, &[&str])]) -> GraphData {
    let steps = steps.iter().map(|(name, agent, inputs)| StepData {
        inputs: inputs.iter().map(|i| Input::from(*i)).collect(),
        ..StepData::new(*name, StepKind::Agent((*agent).into()))
    });
    GraphData { name: "w".into(), steps: steps.collect(), ..Default::default() }
}

fn program(prompts: &PromptService, steps: &[(&str, &str, &[&str])]) -> Program<Brief, Value> {
    let mut ids: Vec<&str> = steps.iter().map(|(_, agent, _)| *agent).collect();
    ids.dedup();
    let team = ids
        .into_iter()
        .fold(Team::new(), |team, id| team.with_agent(PromptAgent::with_prompts(spec(id), prompts).unwrap()));
    Program::from_graph(graph(steps), &team).unwrap()
}

fn report(log: &str) -> ChatResponse {
    let report =
        json!({"summary": "s", "deliverables": [], "decisions": [], "next_tasks": [], "data": {"log": log}});
    ChatResponse::text("test", report.to_string())
}

fn call(path: &str) -> ChatResponse {
    let call = ToolCall { id: path.into(), name: "write".into(), arguments: json!({"path": path}) };
    ChatResponse {
        message: Message { parts: vec![Part::ToolCall(call)], ..Message::assistant("") },
        stop: StopReason::ToolCalls,
        ..ChatResponse::text("test", "")
    }
}

/// A model whose context can be set.
struct Sized<M> {
    inner: M,
    context: Arc<AtomicU64>,
}

#[async_trait]
impl<M: ChatModel> ChatModel for Sized<M> {
    fn name(&self) -> &str {
        "sized"
    }

    fn info(&self) -> ModelInfo {
        let mut info = ModelInfo::default();
        info.context_tokens = Some(self.context.load(Ordering::SeqCst));
        info
    }

    async fn chat(&self, request: &ChatRequest, cx: &CallContext) -> Result<ChatResponse, Error> {
        self.inner.chat(request, cx).await
    }
}

fn brief(text: impl Into<Arc<str>>) -> Brief {
    Brief { project: "reef".into(), text: text.into(), ..Brief::default() }
}

async fn notes(journal: &dyn Journal, run: &str, wanted: &str) -> Vec<Value> {
    let notes = records(journal, run).await.into_iter().filter_map(|record| match record.event {
        Event::Noted { topic, note, .. } if *topic == *wanted => Some(note),
        _ => None,
    });
    notes.collect()
}

/// What a provider's cache sees of a request: tools, schema and messages, without the marks for the cache.
fn wire(request: &ChatRequest, messages: usize) -> String {
    let mut request = request.clone();
    request.messages.truncate(messages);
    request.messages.iter_mut().for_each(|message| message.cache = false);
    json!([request.tools, request.output, request.messages]).to_string()
}

#[tokio::test]
async fn turns_attempts_and_steps_of_an_agent_share_their_static_prefix() {
    let prompts = service().build().unwrap();
    let mut data = graph(&[("first", "architect", &[]), ("second", "architect", &["first"])]);
    data.steps[0].retry = coral_core::RetryPolicy::attempts(2);
    let team = Team::new().with_agent(PromptAgent::with_prompts(spec("architect"), &prompts).unwrap());
    let program = Program::<Brief, Value>::from_graph(data, &team).unwrap();
    // Two turns and a failure, two turns and a report, then the second step.
    let model = FnModel::new(|n, _: &ChatRequest| match n {
        1 | 3 => Ok(call("a.md")),
        2 => Err(Error::new(ErrorKind::Model {
            fault: ModelFault::Overloaded,
            model: "test".into(),
            problem: "busy".into(),
        })),
        _ => Ok(report("done")),
    });
    let requests = model.requests.clone();
    let runner = Runner::builder()
        .model(model)
        .tools(Sink::default())
        .retry(coral_core::RetryPolicy::attempts(1))
        .build();
    let run = runner.start(&program, brief("a reef")).await.unwrap();
    run.output().await.unwrap();
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 5);
    // The golden prefix.
    assert_eq!(
        requests[0].messages[0].text(),
        "You are the architect.\n\nWrite 0 files.\n\n## Expertise\n\n- Reefs"
    );
    assert_eq!(requests[0].messages[1].text(), "Do this: a reef\n\nAnswer with a report.");
    // A turn has all that the turn before had, byte for byte, and more at its end.
    assert_eq!(wire(&requests[1], 2), wire(&requests[0], 2));
    assert!(requests[1].messages.len() > requests[0].messages.len());
    // An attempt begins as the one before.
    assert_eq!(wire(&requests[2], 4), wire(&requests[0], 4));
    assert_eq!(wire(&requests[3], 2), wire(&requests[1], 2));
    // A step of the same agent with another task has the same tools, form and system message.
    assert_eq!(wire(&requests[4], 1), wire(&requests[0], 1));
    assert_ne!(wire(&requests[4], 2), wire(&requests[0], 2));
    for request in requests.iter() {
        let marked: Vec<usize> =
            (0..request.messages.len()).filter(|at| request.messages[*at].cache).collect();
        assert!(marked.starts_with(&[0, 1]) && marked.len() <= 4, "{marked:?}");
        assert_eq!(marked.last(), Some(&(request.messages.len() - 1)));
    }
}

#[tokio::test]
async fn a_prompt_is_fitted_to_the_model_and_the_journal_and_the_model_are_told() {
    let prompts = service().build().unwrap();
    let program = program(&prompts, &[("a", "architect", &[]), ("b", "writer", &["a"])]);
    let model = FnModel::new(|n, _: &ChatRequest| {
        Ok(report(&if n == 1 { "an old line of the log\n".repeat(3_000) } else { "short".into() }))
    });
    let requests = model.requests.clone();
    let context = Arc::new(AtomicU64::new(16_000));
    let runner = Runner::builder().model(Sized { inner: model, context }).build();
    let run = runner.start(&program, brief("a reef")).await.unwrap();
    run.output().await.unwrap();

    let fitted = notes(&**runner.journal(), run.id(), Fitted::TOPIC).await;
    assert_eq!(fitted.len(), 1);
    let fitted: Fitted = serde_json::from_value(fitted[0].clone()).unwrap();
    assert_eq!(fitted.left_out[0].part, "inputs");
    assert!(fitted.tokens_before > fitted.limit && fitted.tokens_after <= fitted.limit, "{fitted:?}");
    // No more than had to go.
    assert!(fitted.tokens_after * 10 > fitted.limit * 9, "{fitted:?}");
    let requests = requests.lock().unwrap();
    let text = requests[1].messages[1].text();
    assert!(text.contains("tokens left out …]") && text.contains("## Left out"), "{text}");
    assert!(text.contains("Do this: a reef") && text.contains("Answer with a report."));
}

#[tokio::test]
async fn what_is_pinned_and_does_not_fit_is_an_error_that_says_what_to_do() {
    let agent = PromptAgent::with_prompts(
        spec("architect"),
        &service()
            .section(DynamicSection::new("law", "word ".repeat(9_000)))
            .section(DynamicSection::new("taste", "word ".repeat(500)).fit(Fit::Drop { priority: 1 }))
            .build()
            .unwrap(),
    )
    .unwrap();
    let error =
        agent.prompt(&PromptInput { context_tokens: Some(12_000), ..PromptInput::default() }).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Model { fault: ModelFault::ContextTooLong, .. }));
    let text = error.to_string();
    assert!(text.contains("`taste` are as short as they may be") && text.contains("`law` with 9"), "{text}");
    assert!(error.help().unwrap().contains("larger context"));
    // With room for what is pinned, what is least needed goes as a whole.
    let prompt =
        agent.prompt(&PromptInput { context_tokens: Some(17_400), ..PromptInput::default() }).unwrap();
    let fitted = prompt.fitted.unwrap();
    assert_eq!((fitted.left_out[0].part.as_str(), fitted.left_out[0].tokens_after), ("taste", 0));
    // Where nothing is known of the model, all is there.
    assert_eq!(agent.prompt(&PromptInput::default()).unwrap().fitted, None);
}

/// What was fitted is compared when a step is resumed, so it must not follow the model of the day.
#[tokio::test]
async fn a_resumed_step_keeps_its_fit_and_its_version_whatever_has_changed() {
    for after in 1..40 {
        for lands in [false, true] {
            let journal = Arc::new(MemoryJournal::new());
            let context = Arc::new(AtomicU64::new(9_000));
            let mut store = PromptStore::new();
            let first =
                store.commit("architect", PromptText::of(&spec("architect"), &partials()), "1").unwrap();
            let prompts = service().store(store).build().unwrap();
            let program = program(&prompts, &[("a", "architect", &[])]);
            let runner = |journal: Arc<dyn Journal>| {
                let model = FnModel::new(|n, request: &ChatRequest| {
                    let answered = request.messages.iter().filter(|m| m.role == Role::Assistant).count();
                    assert!(n < 9);
                    Ok(if answered < 2 { call("a.md") } else { report("done") })
                });
                let model = Sized { inner: model, context: context.clone() };
                Runner::builder().journal(journal).model(model).tools(Sink::default()).build()
            };
            let long = brief("a line of the brief\n".repeat(2_000));
            let crashing = runner(Arc::new(CrashJournal::new(journal.clone(), after, lands)));
            let options = coral_core::StartOptions::new().id("r");
            let finished = match crashing.start_with(&program, long, options).await {
                Ok(run) => run.output().await.is_ok(),
                Err(_) => continue,
            };
            // The model is another one now, and the prompt has another version.
            context.store(64_000, Ordering::SeqCst);
            let mut store = PromptStore::clone(&prompts.store());
            let mut changed = spec("architect");
            changed.role_description = "You are somebody else.".into();
            store.commit("architect", PromptText::of(&changed, &partials()), "2").unwrap();
            prompts.set_store(store);
            let noted = notes(&*journal, "r", PromptUse::TOPIC).await;
            let run = runner(journal.clone()).resume(&program, "r").await.unwrap();
            run.output().await.unwrap();
            if let Some(noted) = noted.first() {
                assert_eq!(noted["version"], first);
                assert_eq!(notes(&*journal, "r", PromptUse::TOPIC).await, std::slice::from_ref(noted));
                assert_eq!(notes(&*journal, "r", Fitted::TOPIC).await.len(), 1);
            }
            if finished {
                return;
            }
        }
    }
    panic!("the run never got through");
}

#[tokio::test]
async fn versions_are_tried_by_share_and_the_journal_says_which_made_what() {
    let mut store = PromptStore::new();
    let one = store.commit("architect", PromptText::of(&spec("architect"), &partials()), "first").unwrap();
    let mut other = spec("architect");
    other.role_description = "You are the bold architect.".into();
    let two = store.commit("architect", PromptText::of(&other, &partials()), "bolder").unwrap();
    store.roll_back("architect", "too bold for all").unwrap();
    store.begin_trial("architect", [(two.as_str(), 50)]).unwrap();
    let prompts = service().store(store).build().unwrap();
    let names: Vec<String> = (0..12).map(|i| format!("s{i}")).collect();
    let steps: Vec<(&str, &str, &[&str])> =
        names.iter().map(|name| (name.as_str(), "architect", [].as_slice())).collect();
    let program = program(&prompts, &steps);
    let model = FnModel::new(|_, request: &ChatRequest| {
        Ok(report(if request.messages[0].text().contains("bold") { "bold" } else { "plain" }))
    });
    let runner = Runner::builder().model(model).build();
    let run = runner.start(&program, brief("x")).await.unwrap();
    let output = run.output().await.unwrap();
    let records = records(&**runner.journal(), run.id()).await;
    let uses: Vec<_> = records.iter().filter_map(|record| PromptUse::of(&record.event)).collect();
    assert_eq!(uses.len(), 12);
    for (path, used) in &uses {
        let made = if used.version == two { "bold" } else { "plain" };
        assert_eq!(output[&**path]["data"]["log"], made);
        assert!(used.version == one || used.version == two);
    }
    let bold = uses.iter().filter(|(_, used)| used.version == two).count();
    assert!((1..12).contains(&bold), "{bold}");
}

#[tokio::test]
async fn a_version_that_is_gone_is_asked_back() {
    let prompts = service().build().unwrap();
    let before = program(&prompts, &[("a", "architect", &[])]);
    let model = || FnModel::new(|_, _: &ChatRequest| Ok(report("x")));
    // Cut off between the note of the version and the end of the step.
    let mut journal = Arc::new(MemoryJournal::new());
    for after in 1.. {
        journal = Arc::new(MemoryJournal::new());
        let crashing = CrashJournal::new(journal.clone(), after, true);
        let crashing = Runner::builder().journal(crashing).model(model()).build();
        let options = coral_core::StartOptions::new().id("r");
        let Ok(run) = crashing.start_with(&before, brief("x"), options).await else { continue };
        assert!(run.output().await.is_err(), "it was never cut off in the middle");
        if notes(&*journal, "r", PromptUse::TOPIC).await.len() == 1 {
            break;
        }
    }

    let changed = prompts.with_partials(Partials::new().with("brief", "Do that: {{ brief.text }}")).unwrap();
    let after = program(&changed, &[("a", "architect", &[])]);
    let runner = Runner::builder().journal(journal.clone()).model(model()).build();
    let error = runner.resume(&after, "r").await.unwrap().output().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotFound { .. }), "{error}");
    assert!(error.help().unwrap().contains("put that version back"), "{error:?}");
}

#[tokio::test]
async fn a_long_conversation_is_compacted_and_what_was_written_still_counts() {
    for compaction in [Compaction::LeaveOut, Compaction::Summarise] {
        let fit = FitPolicy::new().compaction(compaction).context_tokens(6_000);
        let prompts = service().fit(fit).build().unwrap();
        let mut spec = spec("architect");
        spec.limits.max_turns = 80;
        spec.outputs =
            vec![coral_core::OutputSpec { kind: "notes".into(), path: "0.md".into(), ..Default::default() }];
        let team = Team::new().with_agent(PromptAgent::with_prompts(spec, &prompts).unwrap());
        let program = Program::<Brief, Value>::from_graph(graph(&[("a", "architect", &[])]), &team).unwrap();
        let turns = Arc::new(Mutex::new(0));
        let model = FnModel::new(move |_, request: &ChatRequest| {
            if request.messages[0].text().starts_with("Summarise the part") {
                return Ok(ChatResponse::text("test", "0.md was written."));
            }
            let mut turns = turns.lock().unwrap();
            *turns += 1;
            Ok(if *turns < 70 {
                let mut call = call(&format!("{}.md", *turns - 1));
                call.message.parts.insert(0, Part::Text { text: "I think about the reef. ".repeat(10) });
                call
            } else {
                let mut answer: Value = serde_json::from_str(&report("x").message.text()).unwrap();
                answer["deliverables"] = json!([{"type": "notes", "path": "0.md", "description": "n"}]);
                ChatResponse::text("test", answer.to_string())
            })
        });
        let requests = model.requests.clone();
        let runner = Runner::builder().model(model).tools(Sink::default()).build();
        let run = runner.start(&program, brief("a reef")).await.unwrap();
        run.output().await.unwrap();
        let noted = notes(&**runner.journal(), run.id(), Compacted::TOPIC).await;
        assert!((2..20).contains(&noted.len()), "{noted:?}");
        let requests = requests.lock().unwrap();
        let kept: Vec<&ChatRequest> = requests.iter().filter(|r| !r.tools.is_empty()).collect();
        assert!(kept.iter().all(|request| wire(request, 2) == wire(kept[0], 2)));
        // Between two compactions a conversation only grows.
        let grown =
            kept.windows(2).filter(|pair| wire(pair[1], pair[0].messages.len()) == wire(pair[0], usize::MAX));
        assert_eq!(grown.count(), kept.len() - 1 - noted.len());
        let said = kept.last().unwrap().messages[2].text();
        let summarised = said.contains("0.md was written.");
        assert_eq!(summarised, compaction == Compaction::Summarise, "{said}");
    }
}

/// Counts how often it is asked.
struct Tickets(Arc<AtomicU64>);

#[async_trait]
impl ContextSource for Tickets {
    fn name(&self) -> &str {
        "tickets"
    }

    async fn load(&self, query: &ContextQuery<'_>) -> Result<Value, Error> {
        let asked = self.0.fetch_add(1, Ordering::SeqCst);
        Ok(json!([format!("{} for {} no. {asked}", query.task.brief.text, query.agent)]))
    }
}

#[tokio::test]
async fn a_source_is_asked_once_and_its_answer_is_placed_or_gets_a_section() {
    let asked = Arc::new(AtomicU64::new(0));
    let prompts = service().source(Tickets(asked.clone())).build().unwrap();
    let program_of = |context: &str| {
        let mut spec = spec("architect");
        spec.prompt.context_integration = context.into();
        let team = Team::new().with_agent(PromptAgent::with_prompts(spec, &prompts).unwrap());
        Program::<Brief, Value>::from_graph(graph(&[("a", "architect", &[])]), &team).unwrap()
    };
    for (template, expected) in [
        ("Open: {{ tickets|first }}", "Open: x for architect no. 0"),
        ("", "## Tickets\n\n```json\n[\n  \"x for architect no. 0\"\n]\n```"),
    ] {
        asked.store(0, Ordering::SeqCst);
        let program = program_of(template);
        let journal = Arc::new(MemoryJournal::new());
        let runner = |journal: Arc<dyn Journal>| {
            let model = FnModel::new(|_, _: &ChatRequest| Ok(report("x")));
            let requests = model.requests.clone();
            (Runner::builder().journal(journal).model(model).build(), requests)
        };
        let (first, _) = runner(Arc::new(CrashJournal::new(journal.clone(), 6, true)));
        let options = coral_core::StartOptions::new().id("r");
        let _ = first.start_with(&program, brief("x"), options).await.unwrap().output().await;
        let (second, requests) = runner(journal.clone());
        second.resume(&program, "r").await.unwrap().output().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        for request in requests.lock().unwrap().iter() {
            assert!(request.messages[1].text().contains(expected), "{}", request.messages[1].text());
        }
    }
}

struct Shout;

impl PromptStage for Shout {
    fn name(&self) -> &str {
        "shout"
    }

    fn apply(&self, draft: &mut PromptDraft) -> Result<(), Error> {
        let section = draft.section("task").ok_or_else(|| Error::invalid("draft", "it has no task"))?;
        section.text = section.text.to_uppercase().into();
        Ok(())
    }
}

struct Shorter;

impl PromptStage for Shorter {
    fn name(&self) -> &str {
        "shorter"
    }

    fn apply(&self, draft: &mut PromptDraft) -> Result<(), Error> {
        let task: &mut Task = Arc::make_mut(&mut draft.task);
        task.brief.text = task.brief.text.trim().into();
        draft.sections.push(coral_core::Section::new("added", SectionPart::Task, "Added."));
        Ok(())
    }
}

#[test]
fn stages_and_sections_of_ones_own_make_the_prompt() {
    let prompts = service()
        .section(DynamicSection::new("sql", "Look at {{ tools|length }} tools.").for_tool("query"))
        .section(
            DynamicSection::new("law", "The law of {{ config.land }}.").for_capability("law").in_system(),
        )
        .section(DynamicSection::new("fixing", "Fix it.").when("phase == 'fix' and not inputs").unwrap())
        .config("land", "Lummerland")
        .stage(PromptPhase::Enrichment, Shorter)
        .stage(PromptPhase::Transformation, Shout)
        .build()
        .unwrap();
    let names: Vec<&str> = prompts.stages().into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["task", "sections", "shorter", "render", "shout", "fit"]);
    let render = |spec: AgentSpec, input: &PromptInput| {
        let messages = PromptAgent::with_prompts(spec, &prompts).unwrap().prompt(input).unwrap().messages;
        (messages[0].text(), messages[1].text())
    };
    let mut input =
        PromptInput { task: Task { brief: brief("  a reef "), ..Task::default() }, ..PromptInput::default() };
    let (system, task) = render(spec("a"), &input);
    assert!(!system.contains("law"), "{system}");
    assert_eq!(task, "DO THIS: A REEF\n\nAnswer with a report.\n\nAdded.");

    input.tools = [ToolDef {
        name: "db__query".into(),
        description: String::new(),
        input_schema: json!({}),
        effect: Default::default(),
    }]
    .into();
    input.task.phase = "fix".into();
    let mut lawyer = spec("a");
    lawyer.capabilities = vec!["law".into()];
    let (system, task) = render(lawyer, &input);
    assert!(system.ends_with("- Reefs\n\nThe law of Lummerland."), "{system}");
    assert_eq!(task, "DO THIS: A REEF\n\nAnswer with a report.\n\nLook at 1 tools.\n\nFix it.\n\nAdded.");
}

/// For some tasks, other tools, configuration and phase than were given.
struct Otherwise;

impl PromptStage for Otherwise {
    fn name(&self) -> &str {
        "otherwise"
    }

    fn apply(&self, draft: &mut PromptDraft) -> Result<(), Error> {
        if &*draft.task.brief.text == "otherwise" {
            draft.tools = Arc::new([]);
            draft.config = json!({"land": "Kummerland"}).into();
            Arc::make_mut(&mut draft.task).phase = "late".into();
        }
        Ok(())
    }
}

#[test]
fn what_is_kept_for_later_prompts_is_never_another_prompt_s() {
    let prompts = service()
        .config("land", "Lummerland")
        .stage(PromptPhase::Enrichment, Otherwise)
        .section(DynamicSection::new("where", "{% for name in ['place'] %}{% include name %}{% endfor %}"))
        .build()
        .unwrap()
        .with_partials(partials().with("place", "{{ brief.text }}"))
        .unwrap();
    let mut spec = spec("a");
    spec.prompt.output_format = "{{ tools|length }} tools in {{ config.land }}, {{ phase }}.".into();
    let agent = PromptAgent::with_prompts(spec, &prompts).unwrap();
    let tool = |name: &str| ToolDef {
        name: name.into(),
        description: String::new(),
        input_schema: json!({}),
        effect: Default::default(),
    };
    let say = |text: &str, phase: &str, tools: &[&str]| {
        let task = Task { brief: brief(text), phase: phase.into(), ..Task::default() };
        let tools = tools.iter().map(|name| tool(name)).collect();
        agent.prompt(&PromptInput { task, tools, ..PromptInput::default() }).unwrap().messages[1].text()
    };
    for _ in 0..2 {
        assert_eq!(say("one", "p", &["x"]), "Do this: one\n\n1 tools in Lummerland, p.\n\none");
        assert_eq!(say("two", "p", &["x"]), "Do this: two\n\n1 tools in Lummerland, p.\n\ntwo");
        assert_eq!(say("one", "p", &["x", "y"]), "Do this: one\n\n2 tools in Lummerland, p.\n\none");
        assert_eq!(say("one", "q", &["y"]), "Do this: one\n\n1 tools in Lummerland, q.\n\none");
        assert_eq!(
            say("otherwise", "p", &["x"]),
            "Do this: otherwise\n\n0 tools in Kummerland, late.\n\notherwise"
        );
    }
}

#[test]
fn what_can_not_work_is_refused_when_the_service_is_built() {
    let error = |builder: coral_core::PromptServiceBuilder| builder.build().unwrap_err().to_string();
    let text = error(service().section(DynamicSection::new("x", "{{ breif }}")));
    assert!(text.contains("section `x`") && text.contains("did you mean `brief`?"), "{text}");
    let text = error(service().section(DynamicSection::new("x", "{{ brief }}").in_system()));
    assert!(text.contains("variable `brief` of line 1 is not known; it gets agent, config"), "{text}");
    let text = error(service().section(DynamicSection::new("task", "x")));
    assert!(text.contains("no other section or value may have it"), "{text}");
    let text = error(PromptService::builder().partials(Partials::new().with("p", "{% if %}")));
    assert!(text.starts_with("partial `p` is not valid: syntax error"), "{text}");
    assert!(DynamicSection::new("x", "x").when("a and (b").is_err());
    let bad =
        PromptAgent::with_prompts(spec("a"), &service().build().unwrap()).unwrap().prompt(&PromptInput {
            task: Task { brief: brief("a\u{0}b"), ..Task::default() },
            ..PromptInput::default()
        });
    assert!(bad.unwrap_err().to_string().contains("U+0000"));
}
