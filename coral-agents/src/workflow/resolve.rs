//! From the written form to a graph: groups expanded, names resolved, everything checked.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coral_core::{GraphData, Input, OnGap, OutputSpec, StepData, StepKind};

use super::kinds::{Body, Runs};
use super::surface::{Draft, Group, Item, Options, Step, Word};
use crate::problem::{Problems, hint};
use crate::registry::Registry;

/// Where a step's parts stand in the file.
#[derive(Clone, Debug, Default)]
struct Lines {
    step: usize,
    when: Option<usize>,
    join: Option<usize>,
    retry: Option<usize>,
    reviews: Option<usize>,
    /// The condition of a loop.
    until: Option<Word>,
}

/// A step before its references are resolved.
#[derive(Debug)]
struct Pending {
    data: StepData,
    lines: Lines,
    inputs: Vec<Word>,
    loose: Vec<Word>,
    after: Vec<Word>,
    reviews: Vec<Word>,
    linear: bool,
    plain: bool,
    shared: Vec<Word>,
}

struct Resolver<'a> {
    registry: &'a Registry,
    problems: &'a mut Problems,
    steps: Vec<Pending>,
    index: BTreeMap<Arc<str>, usize>,
    groups: BTreeMap<String, Vec<Arc<str>>>,
    defaults: Options,
    unresolved: bool,
}

pub(super) fn resolve(draft: Draft, registry: &Registry, problems: &mut Problems) -> GraphData {
    let mut resolver = Resolver {
        registry,
        problems,
        steps: Vec::new(),
        index: BTreeMap::new(),
        groups: BTreeMap::new(),
        defaults: draft.defaults,
        unresolved: false,
    };
    for item in draft.items {
        match item {
            Item::Step(step) => {
                resolver.add(step, &[]);
            }
            Item::Group(group) => resolver.add_group(group),
        }
    }
    resolver.add_conditions(draft.conditions, draft.plain_conditions);
    resolver.link();
    let output = draft.output.and_then(|word| resolver.output(&word));
    resolver.finish(draft.name, draft.description, output, draft.line)
}

impl Resolver<'_> {
    fn add(&mut self, step: Step, shared: &[Word]) -> Option<Arc<str>> {
        let name: Arc<str> = step.name.text.as_str().into();
        let mut asks = None;
        let mut until = None;
        let kind = match step.runs? {
            Runs::Agent(word) => StepKind::Agent(self.agent(&word)),
            Runs::Function(word) => StepKind::Function(word.text.into()),
            Runs::Ask { question, answer, deadline_ms, default } => {
                asks = Some(question.text);
                StepKind::Ask { answer, deadline_ms, default }
            }
            Runs::Timer(ms) => StepKind::Timer(ms),
            Runs::Signal(word) => StepKind::Signal(word.text.into()),
            Runs::Workflow(body) => StepKind::Workflow(self.body(body, &name)),
            Runs::Map { body, over, concurrency } => StepKind::Map {
                body: self.body(body, &name),
                over: over.map(|word| word.text.into()),
                concurrency: usize::try_from(concurrency.get()).unwrap_or(usize::MAX),
            },
            Runs::Loop { body, until: word, max_turns } => {
                let body = self.body(body, &name);
                let condition = word.text.as_str().into();
                until = Some(word);
                StepKind::Loop { body, until: condition, max_turns: max_turns.get() }
            }
            Runs::Route { agents, max_hops } => StepKind::Route {
                agents: agents.iter().map(|word| self.agent(word)).collect(),
                max_hops: max_hops.get(),
            },
        };
        if let Some(first) = self.index.get(&name).and_then(|at| self.steps.get(*at)) {
            self.problems.add(
                step.name.line,
                format!(
                    "step `{name}` stands on line {} too: give one of them another name",
                    first.lines.step
                ),
            );
            return None;
        }
        // What a plain shape leaves out comes from the brief: it knows no other source.
        let on_gap = step.linear.then_some(OnGap::FromBrief);
        let plain = Options { on_gap, ..Options::default() };
        let options = plain.under(self.defaults.under(step.options));
        let Options {
            phase,
            after,
            when,
            join,
            instructions,
            retry,
            timeout_ms,
            budget,
            on_gap,
            max_rounds,
            reviews,
        } = options;
        let lines = Lines {
            step: step.line,
            when: when.as_ref().map(|word| word.line),
            join: join.map(|(line, _)| line),
            retry: retry.as_ref().map(|(line, _)| *line),
            reviews: reviews.first().map(|word| word.line),
            until,
        };
        let mut data = StepData::new(name.clone(), kind);
        data.phase = phase.map(|word| word.text).unwrap_or_default().into();
        data.when = when.map(|word| word.text.into());
        data.join = join.map(|(_, join)| join).unwrap_or_default();
        // What a question asks is its instruction; those of its group are for agents.
        data.instructions = asks.map_or(instructions, |question| vec![question]);
        data.retry = retry.map(|(_, retry)| retry).unwrap_or_default();
        data.timeout_ms = timeout_ms;
        data.budget = budget.unwrap_or_default();
        data.on_gap = on_gap;
        data.max_rounds = max_rounds;
        self.index.insert(name.clone(), self.steps.len());
        self.steps.push(Pending {
            data,
            lines,
            inputs: step.inputs,
            loose: step.loose,
            after,
            reviews,
            linear: step.linear,
            plain: step.linear,
            shared: shared.to_vec(),
        });
        Some(name)
    }

    /// The id of an agent; a name that nobody has is reported, and stands as it is.
    fn agent(&mut self, word: &Word) -> Arc<str> {
        match self.registry.agent(&word.text) {
            Ok(spec) => spec.id.as_str().into(),
            Err(error) => {
                self.problems.add(word.line, error.kind().to_string());
                word.text.as_str().into()
            }
        }
    }

    /// The graph inside of the step `name`.
    fn body(&mut self, body: Body, name: &Arc<str>) -> Arc<GraphData> {
        match body {
            Body::Known(word) => match self.registry.workflow(&word.text) {
                Ok(graph) => graph.clone(),
                Err(error) => {
                    self.problems.add(word.line, error.kind().to_string());
                    Arc::default()
                }
            },
            Body::Here(mut draft) => {
                if draft.name.is_empty() {
                    name.as_ref().clone_into(&mut draft.name);
                }
                draft.defaults = self.defaults.under(draft.defaults);
                Arc::new(resolve(*draft, self.registry, self.problems))
            }
        }
    }

    fn add_group(&mut self, group: Group) {
        let mut members = Vec::new();
        let inputs: Vec<Word> = group.inputs.into_iter().chain(group.dependencies).collect();
        for mut member in group.members {
            member.inputs.splice(0..0, inputs.iter().cloned());
            member.options = group.options.under(member.options);
            members.extend(self.add(member, &group.shared_context));
        }
        if group.plain {
            let from = self.steps.len() - members.len();
            for step in self.steps.iter_mut().skip(from) {
                step.plain = true;
                step.data.on_gap.get_or_insert(OnGap::FromBrief);
            }
        }
        let name = group.name;
        if self.index.contains_key(name.text.as_str()) {
            let message = format!("`{}` names a step and a group: give one of them another name", name.text);
            self.problems.add(name.line, message);
        } else {
            match self.groups.entry(name.text) {
                Entry::Vacant(entry) => {
                    entry.insert(members.clone());
                }
                Entry::Occupied(entry) => {
                    let message =
                        format!("group `{}` is there twice: give one of them another name", entry.key());
                    self.problems.add(name.line, message);
                }
            }
        }
        // A group answers to its phase too, as `dependencies: [development]` means it.
        if let Some(phase) = group.options.phase
            && !self.index.contains_key(phase.text.as_str())
        {
            self.groups.entry(phase.text).or_insert(members);
        }
    }

    fn add_conditions(&mut self, conditions: Vec<(Word, Word)>, plain: bool) {
        for (condition, agent) in conditions {
            let id = match self.registry.agent(&agent.text) {
                Ok(spec) => spec.id.clone(),
                Err(error) => {
                    self.problems.add(agent.line, error.kind().to_string());
                    continue;
                }
            };
            let mut runs = false;
            for step in &mut self.steps {
                let named = *step.data.name == *agent.text;
                if named || step.data.kind.agent().is_some_and(|agent| **agent == *id) {
                    runs = true;
                    step.lines.when = Some(condition.line);
                    step.data.when = Some(match &step.data.when {
                        Some(own) => format!("({own}) and ({})", condition.text).into(),
                        None => condition.text.as_str().into(),
                    });
                }
            }
            if !runs {
                let on_gap = plain.then_some(OnGap::FromBrief);
                let options = Options { when: Some(condition), on_gap, ..Options::default() };
                let step = Step {
                    line: agent.line,
                    name: agent.clone(),
                    runs: Some(Runs::Agent(agent)),
                    options,
                    ..Step::default()
                };
                self.add(step, &[]);
            }
        }
    }

    /// Turns references into edges.
    fn link(&mut self) {
        for at in 0..self.steps.len() {
            let Some(step) = self.steps.get_mut(at) else { break };
            let inputs = std::mem::take(&mut step.inputs);
            let loose = std::mem::take(&mut step.loose);
            let after = std::mem::take(&mut step.after);
            let reviews = std::mem::take(&mut step.reviews);
            let shared = std::mem::take(&mut step.shared);
            let (linear, plain) = (step.linear, step.plain);
            let mut edges = Vec::new();
            let mut notes = Vec::new();
            for word in &inputs {
                self.reference(word, &mut edges);
            }
            for word in shared.iter().chain(&loose) {
                self.loose(word, at, plain, &mut edges, &mut notes);
            }
            let mut waits = Vec::new();
            for word in &after {
                self.reference(word, &mut waits);
            }
            let mut reviewed = Vec::new();
            for word in &reviews {
                self.reference(word, &mut reviewed);
            }
            if let Some(before) = at.checked_sub(1).and_then(|at| self.steps.get(at)).filter(|_| linear) {
                let name = before.data.name.clone();
                if edges.is_empty() {
                    edges.push(input_of(before));
                } else if !edges.iter().any(|edge| edge.step == name) {
                    waits.push(Input::required(name));
                }
            }
            let taken: BTreeSet<Arc<str>> = edges.iter().map(|edge| edge.step.clone()).collect();
            let Some(step) = self.steps.get_mut(at) else { break };
            step.data.inputs = edges;
            step.data.after =
                waits.into_iter().map(|edge| edge.step).filter(|step| !taken.contains(step)).collect();
            step.data.reviews = reviewed.into_iter().map(|edge| edge.step).collect();
            step.data.instructions.extend(notes);
        }
    }

    /// A step or the members of a group.
    fn reference(&mut self, word: &Word, edges: &mut Vec<Input>) {
        if !self.find(word, edges) {
            let name = word.text.trim_end_matches('?');
            let known = self.index.keys().map(|name| &**name).chain(self.groups.keys().map(String::as_str));
            let near = hint(name, known);
            self.problems.add(word.line, format!("no step or group is called `{name}`{near}"));
            self.unresolved = true;
        }
    }

    fn find(&self, word: &Word, edges: &mut Vec<Input>) -> bool {
        let input = Input::from(word.text.as_str());
        if self.index.contains_key(&input.step) {
            edges.push(input);
            return true;
        }
        let Some(members) = self.groups.get(&*input.step) else { return false };
        for member in members {
            let Some(step) = self.index.get(member).and_then(|at| self.steps.get(*at)) else { continue };
            let mut edge = input_of(step);
            edge.optional |= input.optional;
            if !edges.iter().any(|other| other.step == edge.step) {
                edges.push(edge);
            }
        }
        true
    }

    /// A step, a group, a deliverable of an earlier step or `NAME_output`. In a plain shape, what
    /// is none of these is told to the agent.
    fn loose(
        &mut self,
        word: &Word,
        at: usize,
        plain: bool,
        edges: &mut Vec<Input>,
        notes: &mut Vec<String>,
    ) {
        if self.find(word, edges) {
            return;
        }
        let earlier = self.steps.get(..at).unwrap_or_default();
        let giver = earlier.iter().rposition(|step| {
            let outputs = outputs_of(self.registry, &step.data);
            delivers(&outputs, &word.text, plain)
        });
        // A plain shape names no phases: the one that gives what is asked for is meant.
        let in_phase = || {
            earlier.iter().enumerate().rev().filter(|(_, step)| plain && step.data.phase.is_empty()).find_map(
                |(i, step)| {
                    let phases = &self.registry.find(step.data.kind.agent()?)?.phases;
                    let gives = |outputs: &Vec<OutputSpec>| delivers(outputs, &word.text, plain);
                    let (phase, _) =
                        phases.iter().find(|(_, spec)| spec.outputs.as_ref().is_some_and(gives))?;
                    Some((i, Some(Arc::<str>::from(phase.as_str()))))
                },
            )
        };
        let by_name = || {
            let stem = word.text.strip_suffix("_output").filter(|_| plain)?;
            earlier.iter().rposition(|step| is_meant(&step.data, stem)).map(|i| (i, None))
        };
        match giver.map(|i| (i, None)).or_else(in_phase).or_else(by_name) {
            Some((i, phase)) => {
                let Some(step) = self.steps.get_mut(i) else { return };
                if let Some(phase) = phase {
                    step.data.phase = phase;
                }
                if !edges.iter().any(|edge| edge.step == step.data.name) {
                    edges.push(input_of(step));
                }
            }
            None if plain => notes.push(format!("Work from `{}`.", word.text)),
            None => self.reference(word, edges),
        }
    }

    fn output(&mut self, word: &Word) -> Option<Arc<str>> {
        if let Some((name, _)) = self.index.get_key_value(word.text.as_str()) {
            return Some(name.clone());
        }
        let near = hint(&word.text, self.index.keys().map(|name| &**name));
        self.problems.add(word.line, format!("output: no step is called `{}`{near}", word.text));
        self.unresolved = true;
        None
    }

    /// The graph, and what the engine has to say about it, with lines.
    fn finish(self, name: String, description: String, output: Option<Arc<str>>, line: usize) -> GraphData {
        let (steps, lines): (Vec<StepData>, Vec<Lines>) =
            self.steps.into_iter().map(|pending| (pending.data, pending.lines)).unzip();
        let data = GraphData { name, description, steps, output };
        if data.steps.is_empty() {
            return data;
        }
        for problem in data.problems() {
            // A graph inside has been told where its own lines are.
            if problem.message.starts_with("inside: ") {
                continue;
            }
            // Where a name is unknown, an edge is missing, and complaints about that are noise.
            let noise = ["unreachable", "quorum", "a join needs inputs"];
            if self.unresolved && noise.iter().any(|noise| problem.message.contains(noise)) {
                continue;
            }
            let lines =
                problem.step.as_ref().and_then(|step| self.index.get(step)).and_then(|at| lines.get(*at));
            let of_loop = |lines: &&Lines| {
                let until = lines.until.as_ref()?;
                let about = format!("condition `{}`", until.text);
                problem.message.starts_with(&about).then_some(until.line)
            };
            let part = lines.and_then(|lines| {
                of_loop(&lines).or_else(|| match problem.message.as_str() {
                    message if message.contains("condition") => lines.when,
                    message if message.contains("retry") => lines.retry,
                    message if message.contains("review") => lines.reviews,
                    message if message.contains("quorum") || message.contains("join") => lines.join,
                    _ => None,
                })
            });
            let line = part.or(lines.map(|lines| lines.step)).unwrap_or(line);
            self.problems.add(line, problem.to_string());
        }
        data
    }
}

/// A step as an input: one that may be skipped is optional.
fn input_of(step: &Pending) -> Input {
    let name = step.data.name.clone();
    if step.data.when.is_some() { Input::optional(name) } else { Input::required(name) }
}

/// What a step delivers, the steps inside of it included.
fn outputs_of(registry: &Registry, step: &StepData) -> Vec<OutputSpec> {
    match &step.kind {
        StepKind::Agent(id) => {
            registry.find(id).map(|spec| spec.in_phase(&step.phase).outputs).unwrap_or_default()
        }
        StepKind::Workflow(body) | StepKind::Map { body, .. } | StepKind::Loop { body, .. } => {
            body.steps.iter().flat_map(|step| outputs_of(registry, step)).collect()
        }
        StepKind::Route { agents, .. } => {
            agents.iter().filter_map(|id| registry.find(id)).flat_map(|spec| spec.outputs.clone()).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether `outputs` have the deliverable `kind`; a plain shape may shorten its name
/// (`requirements_doc`).
fn delivers(outputs: &[OutputSpec], kind: &str, plain: bool) -> bool {
    outputs
        .iter()
        .any(|output| output.kind == kind || (plain && kind.len() >= 8 && output.kind.starts_with(kind)))
}

/// Whether `stem` (`backend`, `architecture`) means this step: one of the words of its name or
/// its agent begins with the stem, or the stem begins with the word.
fn is_meant(step: &StepData, stem: &str) -> bool {
    let agent = step.kind.agent().map(|agent| &**agent).unwrap_or_default();
    *step.name == *stem
        || step.name.split('_').chain(agent.split('_')).any(|word| {
            let (short, long) = if word.len() < stem.len() { (word, stem) } else { (stem, word) };
            short.len() >= 4 && long.starts_with(short)
        })
}
