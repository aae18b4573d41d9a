//! The compiled prompt of one version of one agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use minijinja::value::Value as Jinja;
use serde::Serialize;
use serde_json::Value;

use super::draft::{Fit, HANDOFF_NAMES, PromptDraft, SYSTEM_NAMES, Scope, Section, SectionPart, TASK_NAMES};
use super::pipeline::{DynamicSection, jinja, own_section};
use super::service::{Parts, section_template, source_names};
use super::template::{Templates, first_of, line_of};
use super::tokens::TokenCounter;
use super::version::PromptText;
use crate::error::{Error, nearest};
use crate::hash::digest;
use crate::spec::AgentSpec;
use crate::tool::ToolDef;

/// The sections that every prompt may have.
pub(super) const OWN_SECTIONS: [&str; 10] = [
    "role",
    "system",
    "expertise",
    "methods",
    "task",
    "context",
    "output",
    "phase_instructions",
    "step_instructions",
    "left_out",
];

/// The templates of an agent: their names as compiled, and where they stand.
const TEMPLATES: [(&str, SectionPart); 4] = [
    ("@system", SectionPart::System),
    ("@task", SectionPart::Task),
    ("@context", SectionPart::Task),
    ("@output", SectionPart::Task),
];

/// Pairs of a phase and the tools in it for which what they share is kept. A workflow has a few; of more, the oldest goes.
const KEPT: usize = 64;

/// What a template may ask for whose text is the same for all tasks of a phase with the same tools.
const FIXED_NAMES: [&str; 5] = ["agent", "config", "deliverables", "phase", "tools"];

/// One version of an agent's prompt, its templates compiled.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) version: String,
    /// The digest of the definition that it is a version of the prompt of: the same texts may stand in definitions that
    /// promise other things.
    pub(super) definition: String,
    spec: AgentSpec,
    templates: Templates,
    /// The values that the templates of the task place somewhere.
    places: BTreeSet<String>,
    /// The templates, dynamic sections included, that ask only for what is the same for many tasks.
    fixed_templates: BTreeSet<String>,
    fixed: Mutex<Vec<Arc<Fixed>>>,
}

/// What is the same for all tasks of a phase with the same tools: the static prefix, sections, values, counts. Made once,
/// and each of the costly ones only when it is asked for.
#[derive(Debug)]
pub(crate) struct Fixed {
    phase: String,
    pub(super) spec: Arc<AgentSpec>,
    pub(super) tools: Arc<[ToolDef]>,
    pub(super) config: Arc<Value>,
    pub(super) values: FixedValues,
    tool_tokens: OnceLock<u64>,
    /// The system sections that stand in the definition.
    system: Vec<(Section, OnceLock<u64>)>,
    /// By the names of their templates.
    rendered: BTreeMap<String, FixedText>,
}

/// For templates.
#[derive(Debug)]
pub(super) struct FixedValues {
    pub(super) agent: Jinja,
    pub(super) config: Jinja,
    pub(super) deliverables: Jinja,
    pub(super) tools: Jinja,
}

#[derive(Debug, Default)]
struct FixedText {
    text: OnceLock<Arc<str>>,
    tokens: OnceLock<u64>,
}

impl Fixed {
    /// The tokens of a text that is one of these.
    pub(super) fn tokens_of(&self, text: &Arc<str>, counter: &dyn TokenCounter) -> Option<u64> {
        let system = self.system.iter().map(|(section, tokens)| (&section.text, tokens));
        let rendered = self.rendered.values().filter_map(|fixed| Some((fixed.text.get()?, &fixed.tokens)));
        let mut known = system.chain(rendered);
        let (_, tokens) = known.find(|(known, _)| Arc::ptr_eq(known, text))?;
        Some(*tokens.get_or_init(|| counter.text(text)))
    }

    /// The tokens of the tools' definitions.
    pub(super) fn tool_tokens(&self, counter: &dyn TokenCounter) -> u64 {
        *self.tool_tokens.get_or_init(|| counter.tools(&self.tools))
    }

    /// Where the text of a template is kept, if no stage has changed what it depends on.
    fn kept(&self, template: &str, draft: &PromptDraft) -> Option<&OnceLock<Arc<str>>> {
        let same = Arc::ptr_eq(&self.tools, &draft.tools)
            && Arc::ptr_eq(&self.config, &draft.config)
            && self.phase == draft.task.phase;
        self.rendered.get(template).filter(|_| same).map(|fixed| &fixed.text)
    }
}

impl Compiled {
    /// Compiles the templates of `spec`, whose texts are `text`.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for a template that can't be read, includes what is not there, or uses
    /// a variable that it does not get.
    pub(super) fn new(spec: &AgentSpec, text: PromptText, parts: &Parts) -> Result<Self, Error> {
        let mut templates = parts.templates.clone();
        // A version brings its own partials, as they were.
        for (name, text) in &text.partials {
            if templates.source(name).as_deref() != Some(text) {
                templates.add_at(&format!("partial `{name}`"), name.clone(), text.clone())?;
            }
        }
        let place = |name: &str| format!("agent `{}`, template `{}`", spec.id, name.trim_start_matches('@'));
        let texts = [
            &spec.prompt.system_instructions,
            &spec.prompt.task_template,
            &spec.prompt.context_integration,
            &spec.prompt.output_format,
        ];
        for ((name, _), text) in TEMPLATES.into_iter().zip(texts) {
            templates.add_at(&place(name), name.to_owned(), text.clone())?;
        }
        templates.add_at(&place("@handoff"), "@handoff".to_owned(), spec.handoff.template.clone())?;
        let mut places = BTreeSet::new();
        for (name, part) in TEMPLATES {
            let names = names_for(part, parts);
            let used = check_names(&templates, name, &names, &place(name))?;
            if part == SectionPart::Task {
                places.extend(used);
            }
        }
        check_names(&templates, "@handoff", &HANDOFF_NAMES, &place("@handoff"))?;
        for (name, _) in TEMPLATES {
            check_config(&templates, name, parts, &place(name))?;
        }
        for section in parts.sections.iter().filter(|section| section.part == SectionPart::Task) {
            let used = templates.variables(&section_template(&section.name))?;
            places.extend(used.iter().map(|variable| first_of(variable).to_owned()));
        }
        let mut fixed_templates = BTreeSet::new();
        let all = TEMPLATES.into_iter().map(|(name, _)| name.to_owned());
        for name in all.chain(parts.sections.iter().map(|section| section_template(&section.name))) {
            if templates.asks_only_for(&name, &FIXED_NAMES)? {
                fixed_templates.insert(name);
            }
        }
        Ok(Compiled {
            version: text.version(),
            definition: digest(spec)?,
            spec: text.apply_to(spec),
            templates,
            places,
            fixed_templates,
            fixed: Mutex::default(),
        })
    }

    /// What the tasks of a phase with these tools share. The static prefix is rendered once, and byte for byte the same
    /// from then on.
    pub(super) fn fixed(
        &self,
        phase: &str,
        tools: &Arc<[ToolDef]>,
        parts: &Parts,
    ) -> Result<Arc<Fixed>, Error> {
        let same = |fixed: &&Arc<Fixed>| {
            fixed.phase == phase && (Arc::ptr_eq(&fixed.tools, tools) || fixed.tools == *tools)
        };
        if let Some(fixed) = self.fixed.lock().unwrap_or_else(PoisonError::into_inner).iter().find(same) {
            return Ok(fixed.clone());
        }
        let spec = self.spec.in_phase(phase);
        let values = FixedValues {
            agent: jinja(&spec),
            config: jinja(&parts.config),
            deliverables: jinja(&spec.outputs),
            tools: jinja(tools),
        };
        let scope = [("agent", values.agent.clone()), ("config", values.config.clone())];
        let scope = Jinja::from(BTreeMap::from(scope));
        let system =
            self.templates.render_value("@system", &scope).map_err(|error| error.at(self.place()))?;
        let system = system_sections(&spec, system.trim());
        let fixed = Arc::new(Fixed {
            phase: phase.to_owned(),
            spec: Arc::new(spec),
            tools: tools.clone(),
            config: parts.config.clone(),
            values,
            tool_tokens: OnceLock::new(),
            system: system.into_iter().map(|section| (section, OnceLock::new())).collect(),
            rendered: self.fixed_templates.iter().map(|name| (name.clone(), FixedText::default())).collect(),
        });
        let mut kept = self.fixed.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(fixed.clone());
        Ok(fixed)
    }

    /// The sections that the prompt has.
    pub(super) fn add_sections(
        &self,
        draft: &mut PromptDraft,
        parts: &Parts,
        more: Vec<Section>,
    ) -> Result<(), Error> {
        let scope = Scope::of(draft);
        let (system, task): (Vec<_>, Vec<_>) =
            parts.sections.iter().partition(|section| section.part == SectionPart::System);
        let mut sections: Vec<Section> =
            draft.fixed.system.iter().map(|(section, _)| section.clone()).collect();
        let dynamic = |section: &DynamicSection| {
            Section::from_template(&section.name, section.part, section.fit, section_template(&section.name))
        };
        for section in system {
            if section.applies(draft, &scope)? {
                sections.push(dynamic(section));
            }
        }
        for (name, part) in TEMPLATES.into_iter().filter(|(_, part)| *part == SectionPart::Task) {
            sections.push(Section::from_template(name.trim_start_matches('@'), part, Fit::Pinned, name));
        }
        for section in task {
            if section.applies(draft, &scope)? {
                sections.push(dynamic(section));
            }
        }
        let (spec, task) = (&draft.agent, &draft.task);
        if let Some(phase) = spec.phases.get(&task.phase).filter(|phase| !phase.instructions.is_empty()) {
            let text = format!("## This phase: {}\n\n{}", task.phase, phase.instructions.trim());
            sections.push(Section::new("phase_instructions", SectionPart::Task, text));
        }
        if !task.instructions.is_empty() && !self.places.contains("instructions") {
            let text = format!("## Instructions for this step\n\n- {}", task.instructions.join("\n- "));
            sections.push(Section::new("step_instructions", SectionPart::Task, text));
        }
        sections.extend(more);
        draft.sections = sections;
        Ok(())
    }

    /// Renders the sections that are templates, and those of values that no template places.
    pub(super) fn render(&self, draft: &mut PromptDraft, parts: &Parts) -> Result<(), Error> {
        let scope = Scope::of(draft);
        let mut sections = std::mem::take(&mut draft.sections);
        for section in &mut sections {
            let Some(template) = &section.template else { continue };
            let kept = draft.fixed.kept(template, draft);
            section.text = match kept.and_then(OnceLock::get) {
                Some(text) => text.clone(),
                None => {
                    let rendered = self.templates.render_value(template, &scope);
                    let text: Arc<str> = rendered.map_err(|error| error.at(self.place()))?.trim().into();
                    kept.map_or(&text, |kept| kept.get_or_init(|| text.clone())).clone()
                }
            };
        }
        draft.sections = sections;
        for name in source_names(parts).filter(|name| !self.places.contains(*name)) {
            let text = draft.context.get(name).map(|value| own_section(name, value)).unwrap_or_default();
            draft.sections.push(Section::new(name, SectionPart::Task, text));
        }
        Ok(())
    }

    fn place(&self) -> String {
        format!("agent `{}`", self.spec.id)
    }

    /// Renders the tasks for the next agent.
    pub(crate) fn handoff(&self, scope: &impl Serialize) -> Result<String, Error> {
        self.templates.render("@handoff", scope)
    }
}

/// The sections of the system message that every agent has.
fn system_sections(spec: &AgentSpec, system: &str) -> Vec<Section> {
    let mut sections = vec![
        Section::new("role", SectionPart::System, spec.role_description.trim()),
        Section::new("system", SectionPart::System, system),
    ];
    for (name, title, list) in
        [("expertise", "Expertise", &spec.expertise_areas), ("methods", "Methods", &spec.methodologies)]
    {
        if !list.is_empty() {
            let text = format!("## {title}\n\n- {}", list.join("\n- "));
            sections.push(Section::new(name, SectionPart::System, text));
        }
    }
    sections
}

/// The names that templates of a part may use.
pub(super) fn names_for(part: SectionPart, parts: &Parts) -> Vec<&str> {
    match part {
        SectionPart::System => SYSTEM_NAMES.to_vec(),
        SectionPart::Task => TASK_NAMES.into_iter().chain(source_names(parts)).collect(),
    }
}

/// The variables that a template uses, all of which must be among `names`.
pub(super) fn check_names(
    templates: &Templates,
    template: &str,
    names: &[&str],
    place: &str,
) -> Result<BTreeSet<String>, Error> {
    let used: BTreeSet<String> =
        templates.variables(template)?.iter().map(|variable| first_of(variable).to_owned()).collect();
    let Some(variable) = used.iter().find(|variable| !names.contains(&variable.as_str())) else {
        return Ok(used);
    };
    let hint = match nearest(variable, names.iter().copied()) {
        Some(known) => format!("did you mean `{known}`?"),
        None => format!("it gets {}", names.join(", ")),
    };
    let line = templates.source(template).and_then(|text| line_of(&text, variable));
    let line = line.map_or_else(|| " of a partial".to_owned(), |line| format!(" of line {line}"));
    Err(Error::invalid(place, format!("variable `{variable}`{line} is not known; {hint}")))
}

/// Each value of the configuration that a template names must be there, but for one that it asks whether it is, and
/// where a stage may put it there.
pub(super) fn check_config(
    templates: &Templates,
    template: &str,
    parts: &Parts,
    place: &str,
) -> Result<(), Error> {
    if !parts.stages.is_empty() {
        return Ok(());
    }
    for path in templates.variables(template)? {
        let mut segments = path.split('.');
        if segments.next() != Some("config") {
            continue;
        }
        let mut value = &*parts.config;
        let mut so_far = "config".to_owned();
        for segment in segments {
            let Some(map) = value.as_object() else { break };
            so_far = format!("{so_far}.{segment}");
            if let Some(next) = map.get(segment) {
                value = next;
                continue;
            }
            if templates.asks_whether(template, &so_far) || templates.asks_whether(template, &path) {
                break;
            }
            let hint = match nearest(segment, map.keys().map(String::as_str)) {
                Some(known) => format!("did you mean `{known}`?"),
                None if map.is_empty() => "nothing is there".to_owned(),
                None => {
                    format!("there is {}", map.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
                }
            };
            return Err(Error::invalid(place, format!("`{so_far}` is not in the configuration; {hint}")));
        }
    }
    Ok(())
}
