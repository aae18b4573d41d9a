//! The compiled prompt of one version of one agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::Value as Jinja;
use serde::Serialize;

use super::draft::{Fit, HANDOFF_NAMES, PromptDraft, SYSTEM_NAMES, Scope, Section, SectionPart, TASK_NAMES};
use super::pipeline::{DynamicSection, jinja, own_section};
use super::service::{Parts, section_template, source_names};
use super::template::{Templates, first_of, line_of};
use super::version::PromptText;
use crate::error::{Error, nearest};
use crate::spec::AgentSpec;

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

/// Phases whose rendered prefix is kept. A workflow has a few; what names more renders them again.
const PHASES: usize = 64;

/// One version of an agent's prompt, its templates compiled.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) version: String,
    spec: AgentSpec,
    templates: Templates,
    /// The values that the templates of the task place somewhere.
    places: BTreeSet<String>,
    phases: Mutex<BTreeMap<String, Arc<OfPhase>>>,
}

/// What is the same for all tasks of a phase: the static prefix.
#[derive(Debug)]
pub(crate) struct OfPhase {
    pub(crate) spec: Arc<AgentSpec>,
    agent: Jinja,
    deliverables: Jinja,
    /// The system sections that stand in the definition, rendered.
    system: Vec<Section>,
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
        for section in parts.sections.iter().filter(|section| section.part == SectionPart::Task) {
            let used = templates.variables(&section_template(&section.name))?;
            places.extend(used.iter().map(|variable| first_of(variable).to_owned()));
        }
        Ok(Compiled {
            version: text.version(),
            spec: text.apply_to(spec),
            templates,
            places,
            phases: Mutex::default(),
        })
    }

    /// The static prefix of a phase: rendered once, and byte for byte the same from then on.
    pub(super) fn of_phase(&self, phase: &str, parts: &Parts) -> Result<Arc<OfPhase>, Error> {
        if let Some(fixed) = self.phases.lock().unwrap_or_else(PoisonError::into_inner).get(phase) {
            return Ok(fixed.clone());
        }
        let spec = self.spec.in_phase(phase);
        let agent = jinja(&spec);
        let scope = Jinja::from(BTreeMap::from([("agent", agent.clone()), ("config", jinja(&parts.config))]));
        let system =
            self.templates.render_value("@system", &scope).map_err(|error| error.at(self.place()))?;
        let fixed = Arc::new(OfPhase {
            agent,
            deliverables: jinja(&spec.outputs),
            system: system_sections(&spec, system.trim()),
            spec: Arc::new(spec),
        });
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        if phases.len() < PHASES {
            phases.insert(phase.to_owned(), fixed.clone());
        }
        Ok(fixed)
    }

    /// The sections that the prompt has.
    pub(super) fn add_sections(
        &self,
        draft: &mut PromptDraft,
        fixed: &OfPhase,
        parts: &Parts,
        more: Vec<Section>,
    ) -> Result<(), Error> {
        let scope = Scope::of(draft, fixed.agent.clone(), fixed.deliverables.clone());
        let (system, task): (Vec<_>, Vec<_>) =
            parts.sections.iter().partition(|section| section.part == SectionPart::System);
        let mut sections = fixed.system.clone();
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
    pub(super) fn render(
        &self,
        draft: &mut PromptDraft,
        fixed: &OfPhase,
        parts: &Parts,
    ) -> Result<(), Error> {
        let scope = Scope::of(draft, fixed.agent.clone(), fixed.deliverables.clone());
        for section in &mut draft.sections {
            if let Some(template) = &section.template {
                let rendered = self.templates.render_value(template, &scope);
                section.text = trimmed(rendered.map_err(|error| error.at(self.place()))?);
            }
        }
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

fn trimmed(text: String) -> String {
    let trimmed = text.trim();
    if trimmed.len() == text.len() { text } else { trimmed.to_owned() }
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
