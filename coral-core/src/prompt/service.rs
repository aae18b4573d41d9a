//! The prompt service: what all agents of a program share in the making of their prompts.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde_json::Value;

use super::compiled::{Compiled, OWN_SECTIONS, check_config, check_names, names_for};
use super::draft::{PromptDraft, Section, TASK_NAMES};
use super::fit::{FitPolicy, Fitted, fit};
use super::pipeline::{ContextSource, DynamicSection, PromptPhase, PromptStage};
use super::template::{Partials, Templates};
use super::tokens::{TokenCounter, UpperEstimate};
use super::version::{ChosenBy, PromptStore, PromptText, PromptUse};
use crate::error::Error;
use crate::model::Message;
use crate::spec::{AgentSpec, is_id};
use crate::task::Task;
use crate::tool::ToolDef;

/// Makes the prompts of agents: templates with partials, values from sources and configuration, a pipeline of stages,
/// versions, and the fitting to the model's context.
///
/// Cheap to clone; clones share everything, the versions included. [`PromptAgent::with_prompts`](crate::PromptAgent::with_prompts)
/// takes one.
///
/// ```
/// use coral_core::{AgentSpec, Partials, PromptAgent, PromptService, PromptStore, PromptText};
///
/// let mut spec = AgentSpec::new("greeter", "Greeter");
/// spec.prompt.task_template = "{% include 'hello' %}".into();
/// let partials = Partials::new().with("hello", "Greet {{ brief.project }} in {{ config.language }}.");
///
/// let mut store = PromptStore::new();
/// let version = store.commit("greeter", PromptText::of(&spec, &partials), "first")?;
/// let prompts = PromptService::builder().partials(partials).config("language", "French").store(store).build()?;
/// let agent = PromptAgent::with_prompts(spec, &prompts)?;
///
/// let prompt = agent.prompt(&Default::default())?;
/// assert_eq!(prompt.messages[1].text(), "Greet  in French.");
/// assert_eq!(prompt.used.version, version);
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone)]
pub struct PromptService {
    parts: Arc<Parts>,
    store: Arc<RwLock<Arc<PromptStore>>>,
    compiled: Arc<Mutex<CompiledVersions>>,
}

/// By agent and version.
type CompiledVersions = HashMap<(String, String), Arc<Compiled>>;

pub(super) struct Parts {
    partials: Partials,
    /// The partials and the dynamic sections, compiled.
    pub(super) templates: Templates,
    pub(super) sections: Vec<DynamicSection>,
    pub(super) stages: Vec<(PromptPhase, Arc<dyn PromptStage>)>,
    sources: Vec<Arc<dyn ContextSource>>,
    /// The configuration, as the value `config`.
    pub(super) config: Arc<Value>,
    pub(super) fit: FitPolicy,
    pub(super) counter: Arc<dyn TokenCounter>,
}

/// What a [`PromptService`] is made of; each part has a default.
#[must_use]
pub struct PromptServiceBuilder {
    partials: Partials,
    sections: Vec<DynamicSection>,
    stages: Vec<(PromptPhase, Arc<dyn PromptStage>)>,
    sources: Vec<Arc<dyn ContextSource>>,
    config: serde_json::Map<String, Value>,
    fit: FitPolicy,
    counter: Arc<dyn TokenCounter>,
    store: PromptStore,
}

impl PromptServiceBuilder {
    /// What templates may include. Default: nothing.
    pub fn partials(mut self, partials: Partials) -> Self {
        self.partials = partials;
        self
    }

    /// Adds a section for some agents or tools.
    pub fn section(mut self, section: DynamicSection) -> Self {
        self.sections.push(section);
        self
    }

    /// Adds a stage; those of one phase run in the order in which they were added, behind the built-in one.
    pub fn stage(mut self, phase: PromptPhase, stage: impl PromptStage + 'static) -> Self {
        self.stages.push((phase, Arc::new(stage)));
        self
    }

    /// Adds a value from outside.
    pub fn source(mut self, source: impl ContextSource + 'static) -> Self {
        self.sources.push(Arc::new(source));
        self
    }

    /// Adds a value of the configuration, which templates find as `config.NAME`. It belongs to the definition: a step that
    /// is resumed must find it as it was.
    pub fn config(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.config.insert(name.into(), value.into());
        self
    }

    /// How prompts and conversations are fitted to the model's context.
    pub fn fit(mut self, policy: FitPolicy) -> Self {
        self.fit = policy;
        self
    }

    /// How tokens are counted. Default: [`UpperEstimate`].
    pub fn counter(mut self, counter: impl TokenCounter + 'static) -> Self {
        self.counter = Arc::new(counter);
        self
    }

    /// The versions of prompts. Default: none, so that each agent has the prompt of its definition.
    pub fn store(mut self, store: PromptStore) -> Self {
        self.store = store;
        self
    }

    /// The service.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for a partial or a section that can't be read, a name that is taken, a value
    /// of the configuration that a section names and that is not there, and a fit policy that makes no sense.
    pub fn build(self) -> Result<PromptService, Error> {
        let mut templates = Templates::new();
        for (name, text) in self.partials.iter() {
            templates.add_at(&format!("partial `{name}`"), name.to_owned(), text.to_owned())?;
        }
        let mut taken: Vec<&str> = TASK_NAMES.to_vec();
        for source in &self.sources {
            let name = source.name();
            if !is_id(name) || name.contains('-') || taken.contains(&name) {
                return Err(Error::invalid(
                    format!("context source `{name}`"),
                    "its name must be lower-case letters, digits and `_`, and no other value may have it",
                ));
            }
            taken.push(name);
        }
        for section in &self.sections {
            if !is_id(&section.name)
                || OWN_SECTIONS.contains(&section.name.as_str())
                || taken.contains(&section.name.as_str())
            {
                return Err(Error::invalid(
                    format!("section `{}`", section.name),
                    "its name must be lower-case letters, digits and `_`, and no other section or value may have it",
                ));
            }
            taken.push(&section.name);
            let place = format!("section `{}`", section.name);
            templates.add_at(&place, section_template(&section.name), section.template.clone())?;
        }
        let percents = [self.fit.prompt_percent, self.fit.compact_above_percent, self.fit.compact_to_percent];
        if percents.iter().any(|percent| *percent == 0 || *percent > 100)
            || self.fit.compact_to_percent >= self.fit.compact_above_percent
        {
            return Err(Error::invalid(
                "fit policy",
                "percentages are from 1 to 100, and `compact_to_percent` is less than `compact_above_percent`",
            ));
        }
        let parts = Parts {
            partials: self.partials,
            templates,
            sections: self.sections,
            stages: self.stages,
            sources: self.sources,
            config: Arc::new(Value::Object(self.config)),
            fit: self.fit,
            counter: self.counter,
        };
        let service = PromptService {
            parts: Arc::new(parts),
            store: Arc::new(RwLock::new(Arc::new(self.store))),
            compiled: Arc::default(),
        };
        for section in &service.parts.sections {
            let names = names_for(section.part, &service.parts);
            let template = section_template(&section.name);
            let place = format!("section `{}`", section.name);
            check_names(&service.parts.templates, &template, &names, &place)?;
            check_config(&service.parts.templates, &template, &service.parts, &place)?;
        }
        Ok(service)
    }
}

/// The name of the compiled template of a dynamic section, which no partial can have taken.
pub(super) fn section_template(name: &str) -> String {
    format!("@section {name}")
}

impl Default for PromptServiceBuilder {
    fn default() -> Self {
        PromptServiceBuilder {
            partials: Partials::new(),
            sections: Vec::new(),
            stages: Vec::new(),
            sources: Vec::new(),
            config: serde_json::Map::new(),
            fit: FitPolicy::default(),
            counter: Arc::new(UpperEstimate),
            store: PromptStore::new(),
        }
    }
}

/// A prompt as a model is given it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RenderedPrompt {
    /// The system message and the message that gives the task.
    pub messages: Vec<Message>,
    /// Which version of the prompt it is, and what it was fitted to.
    pub used: PromptUse,
    /// What was left out so that it fits; `None` if all is there.
    pub fitted: Option<Fitted>,
    /// The tokens that the messages of the whole conversation may have, where the model's context is known.
    pub limit: Option<u64>,
}

/// What a prompt is made of, besides what the agent's definition says.
#[derive(Clone, Debug, Default)]
pub struct PromptInput {
    /// The task, with the phase of the workflow.
    pub task: Task,
    /// The tools that the agent may call.
    pub tools: Arc<[ToolDef]>,
    /// The values of the sources, by name.
    pub context: BTreeMap<String, Value>,
    /// Tokens of the model's context, where known.
    pub context_tokens: Option<u64>,
    /// Further sections of the task, behind all others.
    pub sections: Vec<Section>,
    /// The names of run and step, `RUN/PATH`: what a trial of versions goes by.
    pub step: String,
}

impl PromptService {
    /// A service with all parts at their defaults, to be set.
    pub fn builder() -> PromptServiceBuilder {
        PromptServiceBuilder::default()
    }

    /// The stages in their order: the built-in one of each phase, then those that were added.
    pub fn stages(&self) -> Vec<(PromptPhase, &str)> {
        let mut stages = Vec::new();
        for phase in PromptPhase::ALL {
            let own = match phase {
                PromptPhase::Validation => Some("task"),
                PromptPhase::Enrichment => Some("sections"),
                PromptPhase::Transformation => Some("render"),
                PromptPhase::Optimisation => None,
            };
            stages.extend(own.map(|name| (phase, name)));
            stages.extend(self.added(phase).map(|stage| (phase, stage.name())));
        }
        stages.push((PromptPhase::Optimisation, "fit"));
        stages
    }

    /// The same service with other partials. It shares the versions.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for a partial that can't be read, or in which a section uses what it does
    /// not get.
    pub fn with_partials(&self, partials: Partials) -> Result<PromptService, Error> {
        let parts = &self.parts;
        let Value::Object(config) = Value::clone(&parts.config) else {
            return Err(Error::invalid("configuration", "it is no object"));
        };
        let builder = PromptServiceBuilder {
            partials,
            sections: parts.sections.clone(),
            stages: parts.stages.clone(),
            sources: parts.sources.clone(),
            config,
            fit: parts.fit.clone(),
            counter: parts.counter.clone(),
            store: PromptStore::new(),
        };
        Ok(PromptService { store: self.store.clone(), ..builder.build()? })
    }

    /// What templates may include.
    pub fn partials(&self) -> &Partials {
        &self.parts.partials
    }

    /// How prompts and conversations are fitted.
    pub fn fit_policy(&self) -> &FitPolicy {
        &self.parts.fit
    }

    /// How tokens are counted.
    pub fn counter(&self) -> &Arc<dyn TokenCounter> {
        &self.parts.counter
    }

    /// The versions of prompts as they stand.
    pub fn store(&self) -> Arc<PromptStore> {
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other versions in force, for all agents that share this service. Steps that have begun keep the version
    /// that they began with.
    pub fn set_store(&self, store: PromptStore) {
        let store = Arc::new(store);
        self.compiled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(agent, version), _| store.version(agent, version).is_ok());
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = store;
    }

    pub(crate) fn sources(&self) -> &[Arc<dyn ContextSource>] {
        &self.parts.sources
    }

    fn added(&self, phase: PromptPhase) -> impl Iterator<Item = &Arc<dyn PromptStage>> {
        self.parts.stages.iter().filter(move |(of, _)| *of == phase).map(|(_, stage)| stage)
    }

    fn run_added(&self, phase: PromptPhase, draft: &mut PromptDraft) -> Result<(), Error> {
        for stage in self.added(phase) {
            stage.apply(draft).map_err(|error| match error.place() {
                Some(_) => error,
                None => error.at(format!("agent `{}`, prompt stage `{}`", draft.agent.id, stage.name())),
            })?;
        }
        Ok(())
    }

    /// Compiles the prompt of a definition.
    pub(crate) fn compile(&self, spec: &AgentSpec) -> Result<Arc<Compiled>, Error> {
        Compiled::new(spec, PromptText::of(spec, &self.parts.partials), &self.parts).map(Arc::new)
    }

    /// Which version a step of `agent` gets whose definition has `own`.
    pub(crate) fn choose(&self, agent: &str, identity: &str, own: &Compiled) -> (String, ChosenBy) {
        match self.store().choose(agent, identity) {
            Some((version, by)) => (version.to_owned(), by),
            None => (own.version.clone(), ChosenBy::Definition),
        }
    }

    /// The compiled prompt of a version; `own` is that of the definition.
    pub(crate) fn version(
        &self,
        spec: &AgentSpec,
        version: &str,
        own: &Arc<Compiled>,
    ) -> Result<Arc<Compiled>, Error> {
        if own.version == version {
            return Ok(own.clone());
        }
        let key = (spec.id.clone(), version.to_owned());
        if let Some(compiled) = self.compiled.lock().unwrap_or_else(PoisonError::into_inner).get(&key)
            && compiled.definition == own.definition
        {
            return Ok(compiled.clone());
        }
        let store = self.store();
        let text = store.version(&spec.id, version).map_err(|error| {
            error.at(format!("agent `{}`", spec.id)).with_help(
                "a step that began with a version of its prompt goes on with it: put that version back, \
                 or fork the run before the step",
            )
        })?;
        let text = PromptText::clone(&text.text);
        let mut compiled = Compiled::new(&text.apply_to(spec), text, &self.parts)?;
        compiled.definition.clone_from(&own.definition);
        let compiled = Arc::new(compiled);
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner).insert(key, compiled.clone());
        Ok(compiled)
    }

    /// Takes a prompt through its stages. `besides` are the tokens that the output format takes.
    pub(crate) fn make(
        &self,
        compiled: &Compiled,
        used: PromptUse,
        what: PromptInput,
        besides: u64,
    ) -> Result<RenderedPrompt, Error> {
        let parts = &self.parts;
        let fixed = compiled.fixed(&what.task.phase, &what.tools, parts)?;
        let room = used.context_tokens.map(|context| {
            let output = fixed.spec.model.max_output_tokens.map_or(parts.fit.reserved_output, u64::from);
            // A small model must not lose all its room to an answer that it can't give anyway.
            let tools = fixed.tool_tokens(&*parts.counter);
            context.saturating_sub(output.min(context / 2)).saturating_sub(tools).saturating_sub(besides)
        });
        let mut draft = PromptDraft {
            agent: fixed.spec.clone(),
            task: Arc::new(what.task),
            tools: fixed.tools.clone(),
            context: Arc::new(what.context),
            config: parts.config.clone(),
            sections: Vec::new(),
            limit: room.map(|room| FitPolicy::percent(room, parts.fit.prompt_percent)),
            counter: parts.counter.clone(),
            left_out: Vec::new(),
            fixed,
        };
        check_task(&draft)?;
        self.run_added(PromptPhase::Validation, &mut draft)?;
        compiled.add_sections(&mut draft, parts, what.sections)?;
        self.run_added(PromptPhase::Enrichment, &mut draft)?;
        let fitted = fit(&mut draft, &parts.fit, |draft| {
            compiled.render(draft, parts)?;
            self.run_added(PromptPhase::Transformation, draft)?;
            self.run_added(PromptPhase::Optimisation, draft)
        })?;
        Ok(RenderedPrompt { messages: draft.messages(), used, fitted, limit: room })
    }
}

/// What no agent can work with.
fn check_task(draft: &PromptDraft) -> Result<(), Error> {
    let bad = draft.task.brief.text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    match bad {
        Some(control) => Err(Error::invalid(
            "brief",
            format!("it holds the control character U+{:04X}, so it is no text", u32::from(control)),
        )),
        None => Ok(()),
    }
}

impl fmt::Debug for PromptService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromptService").field("stages", &self.stages()).finish_non_exhaustive()
    }
}

impl fmt::Debug for PromptServiceBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromptServiceBuilder").finish_non_exhaustive()
    }
}

/// A value that templates of the task see besides those of every task.
pub(super) fn source_names(parts: &Parts) -> impl Iterator<Item = &str> {
    parts.sources.iter().map(|source| source.name())
}
