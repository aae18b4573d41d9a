//! Whether a whole registry fits together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use coral_core::{
    AgentSpec, ErrorKind, Graph, GraphData, Join, LintRules, OPERATIONS, OnGap, Partials, PromptAgent,
    PromptFinding, PromptSeverity, StepData, StepKind, lint_prompt, nearest,
};
use minijinja::Environment;
use serde_json::Value;

use crate::problem::hint;
use crate::registry::Registry;

/// What of a report an agent may preserve besides deliverables and properties of its data.
const REPORT_FIELDS: [&str; 2] = ["decisions", "data"];

/// What every handoff carries, whether or not it is to be preserved.
const CARRIED: [&str; 3] = ["summary", "next_tasks", "deliverables"];

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It will fail when it is used.
    Error,
    /// It works, and is probably not what was meant.
    Warning,
}

/// Something in a registry that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, such as ``agent `x` `` or ``workflow `w`, step `s` ``.
    pub subject: String,
    /// What does not fit.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {}: {}", self.subject, self.message)
    }
}

impl Registry {
    /// Checks that everything fits together: each agent, deliverable, operation, partial and
    /// workflow that something names is there, templates parse and use what they get, and every step of every workflow
    /// works in a phase that its agent knows, and gets the deliverables that it depends on from steps before it. Errors
    /// come first.
    ///
    /// ```
    /// assert_eq!(coral_agents::Registry::builtin().check(), []);
    /// ```
    pub fn check(&self) -> Vec<Finding> {
        self.check_with(OPERATIONS.map(|(name, _)| name))
    }

    /// The same with a list of known operations of your own, in place of [`OPERATIONS`].
    pub fn check_with<'a>(&self, operations: impl IntoIterator<Item = &'a str>) -> Vec<Finding> {
        let mut check = Check {
            registry: self,
            operations: operations.into_iter().collect(),
            givers: BTreeMap::new(),
            findings: Vec::new(),
        };
        for spec in self.agents() {
            for output in outputs_of_all_phases(spec) {
                check.givers.entry(&output.kind).or_default().insert(&spec.id);
            }
        }
        for spec in self.agents() {
            check.agent(spec);
        }
        check.shared_names();
        check.templates();
        check.engine();
        let mut inner = Vec::new();
        for workflow in self.workflows() {
            bodies_of(workflow, &mut inner);
        }
        for workflow in self.workflows() {
            // One that runs inside of another has there what it needs.
            if !inner.contains(&&**workflow) {
                check.workflow(workflow);
            }
        }
        check.findings.sort();
        check.findings.dedup();
        check.findings
    }

    /// Looks at what the prompts of all agents say: variables that are not there or are never used, sections that are
    /// missing, sentences that contradict each other, what is said twice or at too great a length. This is more of an
    /// opinion than [`check`](Self::check); see [`lint_prompt`]. Errors come first.
    ///
    /// ```
    /// use coral_agents::Registry;
    /// use coral_core::LintRules;
    ///
    /// assert_eq!(Registry::builtin().lint(&LintRules::default()), []);
    /// ```
    pub fn lint(&self, rules: &LintRules) -> Vec<Finding> {
        let partials: Partials = self.partials().collect();
        let mut findings: Vec<Finding> = self
            .agents()
            .flat_map(|spec| {
                let finding = |found: PromptFinding| Finding {
                    severity: match found.severity {
                        PromptSeverity::Error => Severity::Error,
                        PromptSeverity::Warning => Severity::Warning,
                    },
                    subject: format!("agent `{}`, {}", spec.id, found.place),
                    message: format!("{}; {}", found.message, found.fix),
                };
                lint_prompt(spec, &partials, rules).into_iter().map(finding).collect::<Vec<_>>()
            })
            .collect();
        findings.sort();
        findings
    }
}

struct Check<'a> {
    registry: &'a Registry,
    operations: BTreeSet<&'a str>,
    /// Who gives each deliverable type.
    givers: BTreeMap<&'a str, BTreeSet<&'a str>>,
    findings: Vec<Finding>,
}

impl<'a> Check<'a> {
    fn add(&mut self, severity: Severity, subject: &str, message: impl Into<String>) {
        self.findings.push(Finding { severity, subject: subject.to_owned(), message: message.into() });
    }

    fn agent(&mut self, spec: &'a AgentSpec) {
        use Severity::{Error, Warning};
        let subject = format!("agent `{}`", spec.id);
        if let Err(error) = spec.validate() {
            self.add(Error, &subject, error.kind().to_string());
        }
        for (field, empty) in [
            ("summary", spec.summary.is_empty()),
            ("capabilities", spec.capabilities.is_empty()),
            ("## Role", spec.role_description.is_empty() && spec.prompt.system_instructions.is_empty()),
            ("## Task", spec.prompt.task_template.is_empty()),
        ] {
            if empty {
                self.add(Warning, &subject, format!("`{field}` is empty"));
            }
        }
        let next = spec.handoff.next_agents.iter();
        for name in next.chain(spec.phases.values().filter_map(|phase| phase.next_agents.as_ref()).flatten())
        {
            match self.registry.find(name) {
                None => {
                    let near = hint(name, self.registry.names());
                    self.add(
                        Error,
                        &subject,
                        format!("hands off to `{name}`, and no agent is called that{near}"),
                    );
                }
                Some(other) if other.id == spec.id => self.add(Warning, &subject, "hands off to itself"),
                Some(_) => {}
            }
        }
        for name in spec.handoff.reviews.iter().filter(|name| self.registry.find(name).is_none()) {
            let near = hint(name, self.registry.names());
            self.add(Error, &subject, format!("reviews `{name}`, and no agent is called that{near}"));
        }
        let required = spec.dependencies.iter();
        let required =
            required.chain(spec.phases.values().filter_map(|phase| phase.dependencies.as_ref()).flatten());
        for (severity, kind) in required
            .map(|kind| (Error, kind))
            .chain(spec.optional_dependencies.iter().map(|kind| (Warning, kind)))
        {
            if !self.givers.contains_key(kind.as_str()) {
                let near = hint(kind, self.givers.keys().copied());
                self.add(severity, &subject, format!("depends on `{kind}`, and no agent delivers it{near}"));
            }
        }
        for operation in &spec.operations {
            if !self.operations.contains(operation.as_str()) {
                let near = hint(operation, self.operations.iter().copied());
                self.add(Error, &subject, format!("needs operation `{operation}`, which is not known{near}"));
            }
        }
        for kept in &spec.handoff.preserve {
            if CARRIED.contains(&kept.as_str()) {
                let message = format!("preserves `{kept}`, which every handoff carries anyway");
                self.add(Warning, &subject, message);
                continue;
            }
            let known = REPORT_FIELDS.contains(&kept.as_str())
                || outputs_of_all_phases(spec).any(|output| output.kind == *kept)
                || schemas_of(spec).any(|(_, schema)| properties_of(schema).any(|name| name == kept));
            if !known {
                let message = format!(
                    "preserves `{kept}`, which is no output, no property of its data and no report field"
                );
                self.add(Error, &subject, message);
            }
        }
        for (phase, schema) in schemas_of(spec) {
            let subject = match phase {
                Some(phase) => format!("{subject}, phase `{phase}`"),
                None => subject.clone(),
            };
            if schema.get("type").and_then(Value::as_str) != Some("object") {
                self.add(Error, &subject, "`output_schema` must have `type: object`");
            }
            let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
            for name in required.filter_map(Value::as_str) {
                if !properties_of(schema).any(|property| property == name) {
                    let message = format!("`output_schema` requires `{name}` and does not describe it");
                    self.add(Error, &subject, message);
                }
            }
        }
    }

    /// Aliases and paths that more than one agent claims.
    fn shared_names(&mut self) {
        let mut aliases: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut paths: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for spec in self.registry.agents() {
            for alias in &spec.aliases {
                aliases.entry(alias).or_default().push(&spec.id);
            }
            for output in outputs_of_all_phases(spec) {
                paths.entry(&output.path).or_default().insert(&spec.id);
            }
        }
        for (alias, ids) in aliases {
            let id = self.registry.agents().any(|spec| spec.id == alias);
            for owner in ids.iter().skip(usize::from(!id)) {
                let other = if id { "is the id of an agent" } else { "is an alias of another agent" };
                self.add(Severity::Error, &format!("agent `{owner}`"), format!("alias `{alias}` {other}"));
            }
        }
        for (path, ids) in paths {
            if let (Some(first), Some(second)) = (ids.iter().next(), ids.iter().nth(1)) {
                let message = format!("writes `{path}`, and so does `{first}`");
                self.add(Severity::Warning, &format!("agent `{second}`"), message);
            }
        }
    }

    fn templates(&mut self) {
        let partials: BTreeMap<&str, &str> = self.registry.partials().collect();
        let mut environment = Environment::new();
        for (name, text) in &partials {
            let subject = format!("partial `{name}`");
            if let Err(error) = environment.add_template(name, text) {
                self.add(Severity::Error, &subject, template_problem(&error));
            }
            self.includes(&subject, text, &partials);
            if reaches(name, text, &partials, &mut BTreeSet::new()) {
                self.add(Severity::Error, &subject, "includes itself, directly or through others");
            }
        }
        for spec in self.registry.agents() {
            // The role and the instructions of phases are texts as they stand.
            for (title, text) in [
                ("System", &spec.prompt.system_instructions),
                ("Task", &spec.prompt.task_template),
                ("Context", &spec.prompt.context_integration),
                ("Output", &spec.prompt.output_format),
                ("Handoff", &spec.handoff.template),
            ] {
                let subject = format!("agent `{}`, section `{title}`", spec.id);
                if let Err(error) = environment.template_from_str(text) {
                    self.add(Severity::Error, &subject, template_problem(&error));
                }
                self.includes(&subject, text, &partials);
            }
        }
    }

    /// What only the engine can tell: variables that a template does not get, and schemas that
    /// an answer can't be held against.
    fn engine(&mut self) {
        let partials: Partials = self.registry.partials().collect();
        for spec in self.registry.agents() {
            // What is reported already, in more words, need not be reported again.
            let about = format!("agent `{}`", spec.id);
            let known = |finding: &Finding| {
                finding.severity == Severity::Error
                    && (finding.subject.starts_with(&about) || finding.subject.starts_with("partial "))
            };
            if self.findings.iter().any(known) {
                continue;
            }
            if let Err(error) = PromptAgent::with_partials(AgentSpec::clone(spec), &partials) {
                let (subject, message) = match error.kind() {
                    ErrorKind::Invalid { what, problem } if what.starts_with(&about) => {
                        (what.clone(), problem.clone())
                    }
                    ErrorKind::Invalid { what, problem } => (format!("{about}, {what}"), problem.clone()),
                    other => (about.clone(), other.to_string()),
                };
                self.add(Severity::Error, &subject, message);
            }
        }
    }

    fn includes(&mut self, subject: &str, text: &str, partials: &BTreeMap<&str, &str>) {
        for name in included(text) {
            if !partials.contains_key(name) {
                let near = hint(name, partials.keys().copied());
                self.add(
                    Severity::Error,
                    subject,
                    format!("includes `{name}`, and no partial is called that{near}"),
                );
            }
        }
    }

    fn workflow(&mut self, data: &'a GraphData) {
        let subject = format!("workflow `{}`", data.name);
        for problem in &data.problems() {
            self.add(Severity::Error, &subject, problem.to_string());
        }
        self.steps(&subject, data, &Around::default());
    }

    /// Each step's agent is there, and its dependencies come from steps before it, or from what is there around the
    /// graph. Gives all that there is behind it.
    fn steps(&mut self, subject: &str, data: &'a GraphData, around: &Around<'a>) -> Given<'a> {
        let Ok(graph) = Graph::new(data.clone()) else { return Given::new() };
        let index: BTreeMap<&str, usize> =
            data.steps.iter().enumerate().map(|(at, s)| (&*s.name, at)).collect();
        // For each step, what is there with it, and the conditions that hold if it runs: its own, and those of what it
        // can't do without.
        let mut all: Vec<Around<'a>> = vec![Around::default(); data.steps.len()];
        for at in graph.order() {
            let Some(step) = data.steps.get(at) else { continue };
            let mut here = around.clone();
            let before = step.inputs.iter().map(|input| &input.step).chain(&step.after);
            for before in before.filter_map(|name| all.get(*index.get(&**name)?)) {
                here.given.extend(before.given.iter().cloned());
            }
            let needed = step.inputs.iter().filter(|input| step.join == Join::All && !input.optional);
            for needed in needed.filter_map(|input| all.get(*index.get(&*input.step)?)) {
                here.holds.extend(needed.holds.iter().copied());
            }
            here.holds.extend(step.when.as_deref());
            let subject = format!("{subject}, step `{}`", step.name);
            match &step.kind {
                StepKind::Agent(id) => {
                    let outputs = self.works(&subject, id, &step.phase, step, &here);
                    here.given.extend(outputs);
                }
                StepKind::Route { agents, .. } => {
                    let team = agents.iter().filter_map(|id| self.registry.find(id));
                    let given = team.flat_map(|spec| spec.outputs.clone());
                    // Whoever hands off to an agent of the route has delivered before.
                    here.given.extend(given.map(|output| (output.kind, step.when.as_deref())));
                    for id in agents {
                        self.works(&subject, id, "", step, &here);
                    }
                    self.route(&subject, agents);
                }
                StepKind::Workflow(body) | StepKind::Map { body, .. } | StepKind::Loop { body, .. } => {
                    let given = self.steps(&subject, body, &here);
                    here.given
                        .extend(given.into_iter().map(|(kind, when)| (kind, when.or(step.when.as_deref()))));
                }
                _ => {}
            }
            if let Some(slot) = all.get_mut(at) {
                *slot = here;
            }
        }
        all.into_iter().flat_map(|step| step.given).collect()
    }

    /// The agent of a step is there, and what it depends on too. Gives what it delivers.
    fn works(
        &mut self,
        subject: &str,
        id: &str,
        phase: &str,
        step: &'a StepData,
        here: &Around<'a>,
    ) -> Given<'a> {
        let Some(spec) = self.registry.find(id) else {
            let near = nearest(id, self.registry.names());
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            self.add(Severity::Error, subject, format!("no agent is called `{id}`{near}"));
            return Given::new();
        };
        self.phase(subject, spec, phase);
        let spec = spec.in_phase(phase);
        for kind in &spec.dependencies {
            let from_brief = step.on_gap.or(spec.handoff.on_gap) == Some(OnGap::FromBrief);
            self.dependency(subject, kind, here, from_brief);
        }
        spec.outputs.into_iter().map(|output| (output.kind, step.when.as_deref())).collect()
    }

    /// The first agent of a route can hand off to another of them.
    fn route(&mut self, subject: &str, agents: &[Arc<str>]) {
        let Some(first) = agents.first().and_then(|id| self.registry.find(id)) else { return };
        let others = || agents.iter().skip(1);
        let next = |id: &Arc<str>| first.handoff.next_agents.iter().any(|next| **next == **id);
        if others().next().is_some() && !others().any(next) {
            let message =
                format!("`{}` begins the route, and suggests none of the others as successor", first.id);
            self.add(Severity::Warning, subject, message);
        }
    }

    /// An agent that tells phases apart should know the one that it works in.
    fn phase(&mut self, subject: &str, spec: &AgentSpec, phase: &str) {
        if phase.is_empty() || spec.phases.is_empty() || spec.phases.contains_key(phase) {
            return;
        }
        let known = || spec.phases.keys().map(String::as_str);
        let near = match nearest(phase, known()) {
            Some(near) => format!("; did you mean `{near}`?"),
            None => format!("; it defines {}", known().collect::<Vec<_>>().join(", ")),
        };
        let message = format!(
            "`{}` defines no phase `{phase}`, so it owes there what it owes without one{near}",
            spec.id
        );
        self.add(Severity::Warning, subject, message);
    }

    fn dependency(&mut self, subject: &str, kind: &str, here: &Around<'_>, from_brief: bool) {
        let givers: Vec<Option<&str>> =
            here.given.iter().filter(|(given, _)| given == kind).map(|(_, condition)| *condition).collect();
        if givers.is_empty() && from_brief {
            let message = format!("takes `{kind}` from the brief, since no step before it delivers that");
            self.add(Severity::Warning, subject, message);
        } else if givers.is_empty() {
            let who = match self.givers.get(kind) {
                Some(ids) => format!("; {} would", Names(ids)),
                None => String::new(),
            };
            self.add(
                Severity::Error,
                subject,
                format!("needs `{kind}`, and no step before it delivers that{who}"),
            );
        } else if !givers.iter().any(|giver| giver.is_none_or(|when| here.holds.contains(when))) {
            let condition = givers.into_iter().flatten().next().unwrap_or_default();
            let message = format!("needs `{kind}`, which is delivered only if `{condition}` holds");
            self.add(Severity::Warning, subject, message);
        }
    }
}

/// Types of deliverables, each with the condition of its giver.
type Given<'a> = BTreeSet<(String, Option<&'a str>)>;

/// What there is where a step begins.
#[derive(Clone, Default)]
struct Around<'a> {
    given: Given<'a>,
    /// Conditions that hold there.
    holds: BTreeSet<&'a str>,
}

struct Names<'a>(&'a BTreeSet<&'a str>);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            write!(f, "{}`{name}`", if i == 0 { "" } else { " or " })?;
        }
        Ok(())
    }
}

/// The graphs inside of a graph, at any depth.
fn bodies_of<'a>(data: &'a GraphData, bodies: &mut Vec<&'a GraphData>) {
    for step in &data.steps {
        if let StepKind::Workflow(body) | StepKind::Map { body, .. } | StepKind::Loop { body, .. } =
            &step.kind
        {
            bodies.push(body);
            bodies_of(body, bodies);
        }
    }
}

fn outputs_of_all_phases(spec: &AgentSpec) -> impl Iterator<Item = &coral_core::OutputSpec> {
    spec.outputs.iter().chain(spec.phases.values().filter_map(|phase| phase.outputs.as_ref()).flatten())
}

/// The schemas of what an agent reports: its own, and those of its phases.
fn schemas_of(spec: &AgentSpec) -> impl Iterator<Item = (Option<&str>, &Value)> {
    let own = spec.output_schema.iter().map(|schema| (None, schema));
    let phases = spec.phases.iter();
    own.chain(phases.filter_map(|(name, phase)| Some((Some(name.as_str()), phase.output_schema.as_ref()?))))
}

fn properties_of(schema: &Value) -> impl Iterator<Item = &String> {
    schema.get("properties").and_then(Value::as_object).into_iter().flat_map(|properties| properties.keys())
}

fn template_problem(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!("line {line} of the text: ")).unwrap_or_default();
    match error.detail() {
        Some(detail) => format!("{line}{}: {detail}", error.kind()),
        None => format!("{line}{}", error.kind()),
    }
}

/// The names that a template includes as literals.
fn included(template: &str) -> impl Iterator<Item = &str> {
    template.split("{%").skip(1).filter_map(|rest| {
        let tag = rest.split("%}").next()?.trim_start_matches(['-', '+']).trim_start();
        let name = ["include", "import", "extends", "from"]
            .iter()
            .find_map(|word| tag.strip_prefix(word))?
            .trim_start();
        let quote = name.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        name.get(1..)?.split(quote).next()
    })
}

/// Whether `text` leads back to the partial `to`.
fn reaches<'a>(
    to: &str,
    text: &'a str,
    partials: &BTreeMap<&str, &'a str>,
    seen: &mut BTreeSet<&'a str>,
) -> bool {
    included(text).any(|name| {
        name == to
            || (seen.insert(name) && partials.get(name).is_some_and(|text| reaches(to, text, partials, seen)))
    })
}

#[cfg(test)]
mod tests;
