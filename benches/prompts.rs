//! What prompts cost: rendering one, loading the definitions of many, fitting a long one to its model. See
//! `benches/README.md`.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use coral_agents::Registry;
use coral_benches::{Entrant, Outcome, Report, Rounds, wanted};
use coral_core::{
    AgentSpec, Brief, EffectClass, HandoffMessage, MessageContext, MessageType, Partials, PromptAgent,
    PromptInput, PromptService, Task, TaskInput, TokenCounter, ToolDef, UpperEstimate,
};
use minijinja::Environment;
use minijinja::value::Serde;
use serde_json::json;

const DEFINITIONS: usize = 1_000;

fn main() -> Outcome {
    let mut report = Report::new("prompts");
    let registry = Registry::builtin();
    let spec = registry.agent("backend_developer")?;
    let prompts = PromptService::builder().partials(registry.partials().collect()).build()?;
    let agent = PromptAgent::with_prompts(AgentSpec::clone(spec), &prompts)?;
    let input = input("Lend tools to neighbours.", 0);

    if wanted("render of a prompt") {
        let env = environment(spec, &prompts)?;
        let scope = scope(spec, &input);
        let ours = || agent.prompt(&input).map(|prompt| prompt.messages.len());
        let mut entrants = [
            entrant("coral", 1, || Ok(ours()?)),
            entrant("minijinja, compiled, values made before", 1, || Ok(bare(&env, &scope)?)),
            entrant("minijinja, compiled, values made for each", 1, || {
                Ok(bare(&env, &self::scope(spec, &input))?)
            }),
        ];
        compare(&mut report, "render of a prompt", &mut entrants)?;
    }
    if wanted("render of a prompt, where tokens are counted") {
        let known = PromptInput { context_tokens: Some(200_000), ..input.clone() };
        let text: String =
            agent.prompt(&known)?.messages.iter().map(|message| message.text()).collect::<Vec<_>>().concat();
        let mut entrants = [
            entrant("coral", 1, || Ok(agent.prompt(&known)?.messages.len())),
            entrant("counting the tokens of the text", 1, || {
                Ok(usize::try_from(UpperEstimate.text(black_box(&text)))?)
            }),
        ];
        compare(&mut report, "render of a prompt, where tokens are counted", &mut entrants)?;
    }
    if wanted("first render of a prompt") {
        let env = environment(spec, &prompts)?;
        let mut phase = 0;
        let mut first = input.clone();
        let mut entrants = [
            // Nothing is kept of a phase that was not there before.
            entrant("coral, each in a new phase", 1, || {
                phase += 1;
                first.task.phase = phase.to_string();
                Ok(agent.prompt(&first)?.messages.len())
            }),
            entrant("minijinja, compiled, values made for each", 1, || {
                Ok(bare(&env, &self::scope(spec, &input))?)
            }),
        ];
        compare(&mut report, "first render of a prompt", &mut entrants)?;
    }
    if wanted("agents of 20 definitions") {
        let each: Partials = registry.partials().collect();
        let mut entrants = [
            entrant("coral, one service", 20, || {
                let prompts = PromptService::builder().partials(each.clone()).build()?;
                for spec in registry.agents() {
                    black_box(PromptAgent::with_prompts(AgentSpec::clone(spec), &prompts)?);
                }
                Ok(20)
            }),
            entrant("minijinja alone, partials compiled once", 20, || {
                let mut base = Environment::new();
                for (name, text) in each.iter() {
                    base.add_template_owned(name.to_owned(), text.to_owned())?;
                }
                for spec in registry.agents() {
                    let mut env = base.clone();
                    for (name, text) in texts(spec) {
                        env.add_template_owned(name, text.to_owned())?;
                    }
                    black_box(env.get_template("task")?);
                }
                Ok(20)
            }),
        ];
        compare(&mut report, "agents of 20 definitions", &mut entrants)?;
    }
    if wanted("start of the registry") {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../coral-agents");
        // Partials hold no YAML.
        let files: Vec<String> = ["agents", "workflows"]
            .iter()
            .map(|part| texts_in(&dir.join(part)))
            .collect::<Outcome<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect();
        let mut entrants = [
            // The built-in registry is made once a process, so the same files are taken from their directory here;
            // `cargo bench -p coral-agents` starts processes.
            entrant("coral, from files", 1, || Ok(Registry::new().load_dir(&dir)?.agents.len())),
            entrant("YAML events of the same texts", 1, || events(&files)),
        ];
        compare(&mut report, "start of the registry", &mut entrants)?;
    }
    if wanted("1,000 definitions") {
        let dir = tempfile::tempdir()?;
        let files = definitions(dir.path())?;
        let mut entrants = [
            entrant("coral, from files", 1, || {
                let loaded = Registry::new().load_dir(dir.path())?;
                if loaded.agents.len() != DEFINITIONS {
                    return Err(format!("{} agents loaded", loaded.agents.len()).into());
                }
                Ok(DEFINITIONS)
            }),
            entrant("YAML events of the same texts", 1, || events(&files)),
        ];
        compare(&mut report, "1,000 definitions", &mut entrants)?;
    }
    if wanted("fit to 200,000 tokens") {
        // Twice as much as fits, so that half of it goes.
        let mut long = self::input("Lend tools to neighbours.", 40);
        long.context_tokens = Some(200_000);
        let fitted = agent.prompt(&long)?.fitted.ok_or("it fits as it is")?;
        report.note(format!(
            "fit: {} tokens before, {} after, {} allowed",
            fitted.tokens_before, fitted.tokens_after, fitted.limit
        ));
        let text: String =
            agent.prompt(&PromptInput { context_tokens: None, ..long.clone() })?.messages[1].text();
        let mut entrants = [
            entrant("coral, fitted", 1, || Ok(agent.prompt(&long)?.messages.len())),
            entrant("counting the tokens of the text once", 1, || {
                Ok(usize::try_from(UpperEstimate.text(black_box(&text)))?)
            }),
        ];
        compare(&mut report, "fit to 200,000 tokens", &mut entrants)?;
    }
    report.finish()
}

fn entrant<'a>(name: &str, units: u64, mut work: impl FnMut() -> Outcome<usize> + 'a) -> Entrant<'a> {
    Entrant::new(name, units, move |times| {
        for _ in 0..times {
            black_box(work()?);
        }
        Ok(())
    })
}

/// The first against each of the others, in CPU time: the machine may have other work.
fn compare(report: &mut Report, case: &str, entrants: &mut [Entrant<'_>]) -> Outcome {
    let costs = Rounds::as_asked().run(entrants)?;
    let (Some(ours), peers) = (costs.first(), costs.iter().zip(entrants.iter()).skip(1)) else {
        return Ok(());
    };
    for (cost, entrant) in peers {
        report.row(case, "CPU µs", ours.cpu_us, entrant.name(), Some(cost.cpu_us));
        if ours.wall_us > 1e3 {
            // Files are loaded on all cores.
            report.row(case, "wall µs", ours.wall_us, entrant.name(), Some(cost.wall_us));
        }
    }
    Ok(())
}

fn input(brief: &str, logs: usize) -> PromptInput {
    let tool = |name: &str, effect| ToolDef {
        name: name.to_owned(),
        description: "Works on the files of the project.".to_owned(),
        input_schema: json!({"type": "object", "properties": {"path": {"type": "string"}}}),
        effect,
    };
    let handed = |n: usize| TaskInput {
        message: HandoffMessage {
            message_id: n.to_string(),
            timestamp: "2026-01-01T00:00:00Z".to_owned(),
            from_agent: "project_architect".to_owned(),
            to_agent: "backend_developer".to_owned(),
            message_type: MessageType::Handoff,
            context: MessageContext::default(),
            next_tasks: vec!["Take the operations in order".to_owned()],
        },
        preserved: [("data".to_owned(), json!({"log": "an old line of a log, with words\n".repeat(1_200)}))]
            .into(),
    };
    PromptInput {
        task: Task {
            brief: Brief { project: "Lantern".to_owned(), text: brief.into(), ..Brief::default() },
            inputs: (0..logs).map(handed).collect(),
            ..Task::default()
        },
        tools: Arc::new([
            tool("files__read_file", EffectClass::Pure),
            tool("files__write_file", EffectClass::Idempotent),
        ]),
        ..PromptInput::default()
    }
}

fn texts(spec: &AgentSpec) -> [(&'static str, &str); 3] {
    [
        ("task", &spec.prompt.task_template),
        ("context", &spec.prompt.context_integration),
        ("output", &spec.prompt.output_format),
    ]
}

/// The templates of the task and their partials, compiled by minijinja alone.
fn environment(spec: &AgentSpec, prompts: &PromptService) -> Outcome<Environment<'static>> {
    let mut env = Environment::new();
    env.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    for (name, text) in prompts.partials().iter() {
        env.add_template_owned(name.to_owned(), text.to_owned())?;
    }
    for (name, text) in texts(spec) {
        env.add_template_owned(name, text.to_owned())?;
    }
    Ok(env)
}

fn scope(spec: &AgentSpec, input: &PromptInput) -> minijinja::Value {
    minijinja::context! {
        agent => Serde(spec),
        brief => Serde(&input.task.brief),
        phase => input.task.phase.as_str(),
        instructions => Serde(&input.task.instructions),
        inputs => Serde(&input.task.inputs),
        available => Serde(&input.task.available),
        deliverables => Serde(&spec.outputs),
        tools => Serde(&input.tools),
    }
}

fn bare(env: &Environment<'_>, scope: &minijinja::Value) -> Result<usize, minijinja::Error> {
    let mut length = 0;
    for name in ["task", "context", "output"] {
        length += env.get_template(name)?.render(scope.clone())?.len();
    }
    Ok(length)
}

fn texts_in(dir: &Path) -> Outcome<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(dir)? {
        texts.push(fs::read_to_string(entry?.path())?);
    }
    texts.sort();
    Ok(texts)
}

/// A thousand definitions made of the built-in ones, whose text is what real ones are like.
fn definitions(dir: &Path) -> Outcome<Vec<String>> {
    let originals = texts_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../coral-agents/agents"))?;
    let mut texts = Vec::new();
    for (i, text) in originals.iter().cycle().take(DEFINITIONS).enumerate() {
        let (before, rest) = text.split_once("id: ").ok_or("no id")?;
        let (_, rest) = rest.split_once('\n').ok_or("no line behind the id")?;
        // An alias belongs to one agent.
        let rest: String = rest.split_inclusive('\n').filter(|line| !line.starts_with("aliases:")).collect();
        let text = format!("{before}id: agent_{i}\n{rest}");
        fs::write(dir.join(format!("agent_{i}.md")), &text)?;
        texts.push(text);
    }
    Ok(texts)
}

/// The floor of loading: the front matter parsed into events, and nothing made of them.
fn events(texts: &[String]) -> Outcome<usize> {
    let mut count = 0;
    for text in texts {
        let front = text.strip_prefix("---\n").and_then(|rest| rest.split("\n---").next()).unwrap_or(text);
        for event in granit_parser::Parser::new_from_str(front) {
            black_box(event?);
            count += 1;
        }
    }
    Ok(count)
}
