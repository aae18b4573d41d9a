//! Workflows as data: YAML files, in our own form and in three plain shapes.

mod kinds;
mod plain;
mod python;
mod resolve;
mod surface;

use std::path::Path;

use coral_core::{Error, GraphData};

use self::surface::Draft;
use crate::problem::Problems;
use crate::registry::Registry;
use crate::yaml;

const WHAT: &str = "workflow";

/// Reads a workflow. `file` is the name for errors; `registry` knows the agents.
///
/// ```yaml
/// name: small_team
/// description: Design, build and check.
/// output: docs
/// steps:
///   - name: design
///     agent: project_architect
///   - name: requirements
///     agent: technical_writer
///     phase: requirements
///     inputs: [design]
///   - group: development            # steps named after their agents, side by side
///     phase: development
///     agents: [backend_developer, frontend_developer, mobile_developer]
///     shared_context: requirements  # what each of them takes
///   - name: qa
///     agent: qa_testing
///     inputs: [development]         # a group's name stands for its members
///     reviews: [backend_developer]  # whose work it may send back
///     max_rounds: 2
///     retry: {max_attempts: 3}
///   - name: docs
///     agent: technical_writer
///     phase: documentation
///     inputs: [qa, "mobile_developer?"]
/// conditions:                       # these agents take part only if the fact holds
///   needs_mobile: [mobile_developer]
/// ```
///
/// A step has a `name` (its agent's, if left out), says what it runs, and may have: `phase`; `inputs`, the steps whose outputs it takes (the workflow's own input if left out),
/// where a `?` behind a name marks one that may be skipped; `after`, steps to wait for without
/// taking their outputs; `when`, a condition over facts, the input and earlier outputs; `join`
/// (`all`, `settle`, `first_ok` or `{quorum: 2}`); `instructions`; `retry`; `timeout_ms`; `reviews`, the
/// steps and groups before it whose work it may send back with findings; `on_gap`, what happens where
/// something that its agent depends on was not delivered (`fail`, `send_back` or `from_brief`);
/// `max_rounds`, how often it may send work back; `budget` (`usd`, `tokens`, `calls`, `agents`, `depth`, `wall_ms`),
/// what it may use with all that is inside of it. `on_gap` and `max_rounds` may also stand at the top,
/// for all steps that do not say otherwise.
///
/// A group has the same, and `group`, `agents` (names, or whole steps), `shared_context` (steps,
/// groups, or the type of a deliverable that earlier steps give) and `dependencies` (groups,
/// phases or steps). A member that has a condition is an input that may be skipped, where an
/// `inputs` names its group.
///
/// `conditions` maps a condition to agents: steps that run them get it. An agent that no step
/// runs gets a step of its own, on the workflow's input.
///
/// # What a step runs
/// | key | what runs | with it |
/// |---|---|---|
/// | `agent` | an agent, by its id or an alias | |
/// | `function` | a function of the team | |
/// | `ask` | a question to a person; gives the answer | `answer`: a type (`boolean` if left out), a list of answers or a JSON Schema; `deadline_ms` and the `default` answer then |
/// | `timer` | a wait of so many milliseconds; gives its input | |
/// | `signal` | a wait for a signal; gives what came with it | |
/// | `workflow` | steps in the same journal | |
/// | `map` | steps for each item of a list; gives the list of their outputs | `over`: where in the input the list is; `concurrency`: items at once, 4 if left out |
/// | `loop` | steps again and again, each turn on the output of the one before | `until`: a condition over `output` and `turn`; `max_turns` |
/// | `route` | agents that hand off to one another as they decide, beginning with the first | `max_hops`: agents at the most |
///
/// Steps inside of a step are the name of a workflow that the registry knows, a list of steps, or a mapping with
/// `steps` and all else that stands at the top of a file.
///
/// ```yaml
/// - name: services                  # for each service that the architect named
///   map:
///     - agent: backend_developer
///       phase: development
///   over: data.services
///   concurrency: 2
///   inputs: architecture
/// - name: release
///   ask: May this go to production?
///   answer: [go, wait]
///   deadline_ms: 86400000
///   default: wait
///   inputs: services
/// - agent: devops_deployment
///   when: steps.release == "go"
///   inputs: services
///   after: release
/// ```
///
/// # Plain shapes
/// A list of `[agent, {input: …}]` pairs under `workflow`, a list of groups under
/// `parallel_groups`, and a map under `conditional_workflow` load too, written as YAML, JSON or
/// Python literals. A pair runs after the one before it; its `input` is resolved as a step, as
/// a deliverable type (which settles the phase of the agent that gives it) or as `NAME_output`.
/// What is none of these is told to the agent, and the step takes the output of the one before.
/// Deliverables that an agent depends on, and no step of a plain shape gives, are taken from the brief
/// (`on_gap: from_brief`); [`Registry::check`] warns of each.
///
/// # Errors
/// [`Problems`](coral_core::ErrorKind::Problems) with all that is wrong, each as `file:line: …`.
pub fn parse_workflow(file: &str, text: &str, registry: &Registry) -> Result<GraphData, Error> {
    Written::read(file, text)?.resolve(registry)
}

/// A workflow as it is written, whose names are not looked up yet.
pub(crate) struct Written<'a> {
    file: &'a str,
    draft: Draft,
    problems: Problems,
}

impl<'a> Written<'a> {
    pub(crate) fn read(file: &'a str, text: &str) -> Result<Self, Error> {
        let mut problems = Problems::default();
        let literal = python::to_yaml(text);
        let node = match yaml::parse(literal.as_deref().unwrap_or(text), 1) {
            Ok(node) => node,
            Err(problem) => {
                problems.push(problem);
                return Err(problems.error(WHAT, file));
            }
        };
        let stem = Path::new(file).file_stem().unwrap_or_default().to_string_lossy();
        let draft = surface::read(&node, &stem, &mut problems);
        Ok(Written { file, draft, problems })
    }

    /// The file that it was read from.
    pub(crate) fn file(&self) -> &'a str {
        self.file
    }

    pub(crate) fn name(&self) -> &str {
        &self.draft.name
    }

    /// The workflows that run inside of it by their names.
    pub(crate) fn uses(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.draft.uses(&mut names);
        names
    }

    pub(crate) fn resolve(mut self, registry: &Registry) -> Result<GraphData, Error> {
        let graph = resolve::resolve(self.draft, registry, &mut self.problems);
        self.problems.finish(WHAT, self.file, graph)
    }
}

#[cfg(test)]
mod tests;
