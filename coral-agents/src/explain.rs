//! What a workflow would do, given the facts of a brief.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use coral_core::{Condition, Error, Graph, GraphData, Join, SkipReason, StepData, StepKind};
use serde_json::Value;

/// Whether a step would run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It runs, if the steps that it waits for succeed.
    Runs,
    /// It is skipped.
    Skipped(SkipReason),
    /// Only the run can tell: its condition reads this, or it waits for such a step.
    Open(Arc<str>),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Runs => f.write_str("runs"),
            Verdict::Skipped(reason) => write!(f, "skipped: {reason}"),
            Verdict::Open(reads) => write!(f, "open until the run knows `{reads}`"),
        }
    }
}

/// What a workflow would do, given some facts. As text, it lists the steps in the waves that can
/// run side by side; [`mermaid`](Self::mermaid) draws them.
///
/// ```
/// use std::collections::BTreeMap;
/// use coral_agents::{Explanation, Registry};
///
/// let registry = Registry::builtin();
/// let facts = BTreeMap::from([("needs_mobile".to_owned(), true.into())]);
/// let explanation = Explanation::new(registry.workflow("documentation_first")?, &facts)?;
/// assert!(explanation.runs("mobile_developer"));
/// assert!(!explanation.runs("ai_ml_specialist"));
/// assert!(explanation.to_string().contains("skipped: `has_ai_features` does not hold"));
/// assert!(explanation.mermaid().starts_with("flowchart TD"));
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Explanation {
    graph: Arc<GraphData>,
    facts: BTreeMap<String, Value>,
    verdicts: Vec<Verdict>,
    waves: Vec<Vec<usize>>,
    /// Of the steps that hold steps, by their number.
    inside: BTreeMap<usize, Explanation>,
}

impl Explanation {
    /// Looks at each step of `graph` in the light of `facts`.
    ///
    /// # Errors
    /// [`Problems`](coral_core::ErrorKind::Problems) if the graph can't run at all.
    pub fn new(graph: &Arc<GraphData>, facts: &BTreeMap<String, Value>) -> Result<Self, Error> {
        let checked = Graph::new(GraphData::clone(graph))?;
        let index: BTreeMap<&str, usize> =
            graph.steps.iter().enumerate().map(|(at, step)| (&*step.name, at)).collect();
        let mut verdicts = vec![Verdict::Runs; graph.steps.len()];
        let mut wave_of = vec![0; graph.steps.len()];
        for at in checked.order() {
            let Some(step) = graph.steps.get(at) else { continue };
            let of = |name: &str| index.get(name).copied();
            let before = step.inputs.iter().map(|input| &input.step).chain(&step.after);
            let wave = before
                .filter_map(|name| wave_of.get(of(name)?).map(|wave: &usize| wave + 1))
                .max()
                .unwrap_or_default();
            if let Some(slot) = wave_of.get_mut(at) {
                *slot = wave;
            }
            let verdict = match step.when.as_deref().map(|when| holds(when, facts)).transpose()? {
                Some(Verdict::Runs) | None => {
                    let inputs: Vec<(&Arc<str>, bool, &Verdict)> = step
                        .inputs
                        .iter()
                        .filter_map(|input| {
                            Some((&input.step, input.optional, verdicts.get(of(&input.step)?)?))
                        })
                        .collect();
                    joined(step.join, &inputs)
                }
                Some(other) => other,
            };
            if let Some(slot) = verdicts.get_mut(at) {
                *slot = verdict;
            }
        }
        let mut waves = vec![Vec::new(); wave_of.iter().max().map_or(0, |last| last + 1)];
        for (at, wave) in wave_of.into_iter().enumerate() {
            if let Some(members) = waves.get_mut(wave) {
                members.push(at);
            }
        }
        let mut inside = BTreeMap::new();
        for (at, step) in graph.steps.iter().enumerate() {
            if let StepKind::Workflow(body) | StepKind::Map { body, .. } | StepKind::Loop { body, .. } =
                &step.kind
            {
                inside.insert(at, Explanation::new(body, facts)?);
            }
        }
        Ok(Explanation { graph: graph.clone(), facts: facts.clone(), verdicts, waves, inside })
    }

    /// The steps and what becomes of them, in the order of the definition.
    pub fn verdicts(&self) -> impl Iterator<Item = (&str, &Verdict)> {
        self.graph.steps.iter().map(|step| &*step.name).zip(&self.verdicts)
    }

    /// Whether the step of this name runs.
    pub fn runs(&self, step: &str) -> bool {
        self.verdicts().any(|(name, verdict)| name == step && *verdict == Verdict::Runs)
    }

    /// The names of the steps in waves: each after all that it waits for, at the earliest.
    pub fn waves(&self) -> Vec<Vec<&str>> {
        let name = |at: &usize| self.graph.steps.get(*at).map(|step| &*step.name);
        self.waves.iter().map(|wave| wave.iter().filter_map(name).collect()).collect()
    }

    /// The workflow as a Mermaid flowchart, what is skipped and what is open marked.
    pub fn mermaid(&self) -> String {
        let mut classes = BTreeMap::new();
        self.classes("", None, &mut classes);
        let mut out = self.graph.mermaid(|step| classes.get(step).copied());
        for (class, style) in [
            ("skipped", "fill:#eee,stroke:#999,color:#777,stroke-dasharray:4"),
            ("open", "fill:#fff7d6,stroke:#b58900,color:#333"),
        ] {
            if classes.values().any(|used| *used == class) {
                out.push_str(&format!("    classDef {class} {style}\n"));
            }
        }
        out
    }

    /// How each step is marked, those inside of others too; `outer` is the mark of the step around.
    fn classes(&self, path: &str, outer: Option<&'static str>, classes: &mut BTreeMap<String, &'static str>) {
        for (at, (name, verdict)) in self.verdicts().enumerate() {
            let path = format!("{path}{name}");
            let class = outer.or(match verdict {
                Verdict::Runs => None,
                Verdict::Skipped(_) => Some("skipped"),
                Verdict::Open(_) => Some("open"),
            });
            if let Some(inside) = self.inside.get(&at) {
                inside.classes(&format!("{path}/"), class, classes);
            }
            classes.extend(class.map(|class| (path, class)));
        }
    }

    /// The steps in their waves, each line behind `indent`.
    fn list(&self, f: &mut fmt::Formatter<'_>, indent: &str) -> fmt::Result {
        let width = self.graph.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or_default();
        for (i, wave) in self.waves.iter().enumerate() {
            writeln!(f, "{indent}wave {}", i + 1)?;
            for at in wave {
                let Some((step, verdict)) = self.graph.steps.get(*at).zip(self.verdicts.get(*at)) else {
                    continue;
                };
                write!(f, "{indent}  {:width$}  ", step.name)?;
                write!(f, "{}{verdict}", what_runs(step))?;
                match &step.when {
                    Some(when) if *verdict == Verdict::Runs => write!(f, ", as `{when}` holds")?,
                    _ => {}
                }
                if !step.reviews.is_empty() {
                    write!(f, ", may send back {}", step.reviews.join(", "))?;
                }
                writeln!(f)?;
                if let Some(inside) = self.inside.get(at).filter(|_| !matches!(verdict, Verdict::Skipped(_)))
                {
                    inside.list(f, &format!("{indent}    "))?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.graph.name)?;
        if !self.graph.description.is_empty() {
            writeln!(f, "{}", self.graph.description)?;
        }
        for (name, value) in &self.facts {
            writeln!(f, "fact {name} = {value}")?;
        }
        self.list(f, "")
    }
}

/// What a step runs, with a comma behind it; nothing if that is its name.
fn what_runs(step: &StepData) -> String {
    match &step.kind {
        StepKind::Agent(id) if *id == step.name => String::new(),
        StepKind::Agent(id) => format!("{id}, "),
        StepKind::Function(name) => format!("function {name}, "),
        StepKind::Ask { deadline_ms, default, .. } => {
            let question = step.instructions.join(" ");
            let asked = if question.is_empty() { String::new() } else { format!(" \"{question}\"") };
            match (deadline_ms, default) {
                (Some(ms), Some(default)) => format!("asks{asked}, takes {default} after {ms} ms, "),
                _ => format!("asks{asked}, "),
            }
        }
        StepKind::Timer(ms) => format!("waits {ms} ms, "),
        StepKind::Signal(name) => format!("waits for signal {name}, "),
        StepKind::Workflow(body) if body.name == *step.name => String::new(),
        StepKind::Workflow(body) => format!("workflow {}, ", body.name),
        StepKind::Map { over, concurrency, .. } => {
            let over = over.as_deref().unwrap_or("its input");
            format!("for each of {over}, {concurrency} at once, ")
        }
        StepKind::Loop { until, max_turns, .. } => format!("until {until}, {max_turns} turns at the most, "),
        StepKind::Route { agents, max_hops } => {
            format!("{} as they decide, {max_hops} at the most, ", agents.join(" or "))
        }
        _ => String::new(),
    }
}

/// Whether a condition holds, as far as facts alone can tell.
fn holds(when: &str, facts: &BTreeMap<String, Value>) -> Result<Verdict, Error> {
    let mut verdict = Verdict::Skipped(SkipReason::Condition { when: when.into() });
    for part in parts(when, " or ") {
        match all_hold(part, facts)? {
            Verdict::Runs => return Ok(Verdict::Runs),
            Verdict::Skipped(_) => {}
            open @ Verdict::Open(_) => verdict = open,
        }
    }
    Ok(verdict)
}

fn all_hold(when: &str, facts: &BTreeMap<String, Value>) -> Result<Verdict, Error> {
    let mut verdict = Verdict::Runs;
    for part in parts(when, " and ") {
        let condition = Condition::new(part)?;
        let of_the_run = |name: &&str| matches!(name.split('.').next(), Some("steps" | "input"));
        if let Some(name) = condition.reads().find(of_the_run) {
            verdict = Verdict::Open(name.into());
        } else if !condition.holds_for(facts)? {
            return Ok(Verdict::Skipped(SkipReason::Condition { when: when.into() }));
        }
    }
    Ok(verdict)
}

/// The conditions that `word` joins; the whole one if it joins none, or does so within brackets or quotes.
fn parts<'a>(when: &'a str, word: &str) -> Vec<&'a str> {
    let parts: Vec<&str> = when.split(word).collect();
    let is_apart = !when.contains(" if ") && parts.iter().all(|part| Condition::new(part).is_ok());
    if is_apart { parts } else { vec![when] }
}

/// What the fate of its inputs means for a step.
fn joined(join: Join, inputs: &[(&Arc<str>, bool, &Verdict)]) -> Verdict {
    let skipped = |(step, _, verdict): &(&Arc<str>, bool, &Verdict)| {
        matches!(verdict, Verdict::Skipped(_)).then(|| SkipReason::InputSkipped { step: Arc::clone(step) })
    };
    let open = inputs.iter().find(|(_, _, verdict)| matches!(verdict, Verdict::Open(_)));
    let needed = match join {
        Join::All => {
            let required = || inputs.iter().filter(|(_, optional, _)| !optional);
            if let Some(reason) = required().find_map(skipped) {
                return Verdict::Skipped(reason);
            }
            let open = required().find(|(_, _, verdict)| matches!(verdict, Verdict::Open(_)));
            return open.map_or(Verdict::Runs, |(step, ..)| Verdict::Open(Arc::clone(step)));
        }
        Join::FirstOk => 1,
        Join::Quorum(needed) => needed,
        _ => return Verdict::Runs,
    };
    let sure = inputs.iter().filter(|(_, _, verdict)| **verdict == Verdict::Runs).count();
    if sure >= needed {
        return Verdict::Runs;
    }
    match (open, inputs.iter().find_map(skipped)) {
        (Some((step, ..)), _) => Verdict::Open(Arc::clone(step)),
        (None, Some(reason)) => Verdict::Skipped(reason),
        (None, None) => Verdict::Runs,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Registry, parse_workflow};

    fn explain(text: &str, facts: Value) -> Explanation {
        let graph = parse_workflow("w.yaml", text, &Registry::builtin()).unwrap();
        Explanation::new(&Arc::new(graph), &serde_json::from_value(facts).unwrap()).unwrap()
    }

    const TEXT: &str = "
name: small
description: For the test.
steps:
  - {name: a, agent: project_architect}
  - {name: b, agent: ai_ml_specialist, when: ai and users > 10, inputs: a}
  - {name: c, agent: backend_developer, inputs: b}
  - {name: d, agent: qa_testing, inputs: [a, 'c?']}
  - {name: e, function: merge, when: steps.d.passed, inputs: d}
  - {name: f, function: merge, inputs: [c, e], join: first_ok}
  - {name: g, function: merge, inputs: [b, c], join: {quorum: 2}}
  - {name: h, function: merge, inputs: [b, c], join: settle}
";

    #[test]
    fn verdicts_follow_conditions_and_joins() {
        let text = explain(TEXT, json!({"ai": true, "users": 5})).to_string();
        assert_eq!(
            text,
            "small
For the test.
fact ai = true
fact users = 5
wave 1
  a  project_architect, runs
wave 2
  b  ai_ml_specialist, skipped: `ai and users > 10` does not hold
wave 3
  c  backend_developer, skipped: `b` was skipped
wave 4
  d  qa_testing, runs
  g  function merge, skipped: `b` was skipped
  h  function merge, runs
wave 5
  e  function merge, open until the run knows `steps.d.passed`
wave 6
  f  function merge, open until the run knows `e`
"
        );
        let explanation = explain(TEXT, json!({"ai": true, "users": 50}));
        assert!(explanation.runs("f") && explanation.runs("g"));
        assert!(explanation.to_string().contains("b  ai_ml_specialist, runs, as `ai and users > 10` holds"));
        assert_eq!(explanation.waves()[3], ["d", "g", "h"]);
    }

    #[test]
    fn a_condition_is_as_open_as_what_the_run_decides_of_it() {
        let verdict = |when: &str| {
            let facts = BTreeMap::from([("yes".to_owned(), json!(true))]);
            holds(when, &facts).unwrap().to_string()
        };
        assert_eq!(verdict("yes or steps.a.ok"), "runs");
        assert_eq!(verdict("no or steps.a.ok"), "open until the run knows `steps.a.ok`");
        assert_eq!(verdict("steps.a.ok and no"), "skipped: `steps.a.ok and no` does not hold");
        assert_eq!(verdict("steps.a.ok and yes"), "open until the run knows `steps.a.ok`");
        assert_eq!(verdict("no and steps.a.ok or no"), "skipped: `no and steps.a.ok or no` does not hold");
        // Not taken apart: it is open as a whole.
        assert_eq!(verdict("not (yes or steps.a.ok)"), "open until the run knows `steps.a.ok`");
        assert_eq!(verdict("yes if steps.a.ok else yes or yes"), "open until the run knows `steps.a.ok`");
    }

    #[test]
    fn steps_inside_of_steps_are_shown_there() {
        let explanation = explain(
            "
name: deep
steps:
  - {name: a, agent: project_architect}
  - name: b
    loop:
      - {name: c, agent: backend_developer, on_gap: from_brief}
      - {name: d, agent: qa_testing, inputs: c, when: tested}
      - {name: e, map: [{agent: ui_designer}], over: data.pages, inputs: c, when: steps.c.data.pages}
    until: output.d.data.passed
    max_turns: 3
    inputs: a
  - {name: f, ask: 'Go?', deadline_ms: 60000, default: false, inputs: b}
  - {name: g, timer: 500, inputs: f}
  - {name: h, signal: window}
  - {name: i, route: [qa_testing, backend_developer], max_hops: 4, inputs: h, when: tested}
  - {name: j, workflow: [{function: x}], when: tested}
",
            json!({}),
        );
        assert_eq!(
            explanation.to_string(),
            "deep
wave 1
  a  project_architect, runs
  h  waits for signal window, runs
  j  skipped: `tested` does not hold
wave 2
  b  until output.d.data.passed, 3 turns at the most, runs
    wave 1
      c  backend_developer, runs
    wave 2
      d  qa_testing, skipped: `tested` does not hold
      e  for each of data.pages, 4 at once, open until the run knows `steps.c.data.pages`
        wave 1
          ui_designer  runs
  i  qa_testing or backend_developer as they decide, 4 at the most, skipped: `tested` does not hold
wave 3
  f  asks \"Go?\", takes false after 60000 ms, runs
wave 4
  g  waits 500 ms, runs
"
        );
        let drawing = explanation.mermaid();
        for line in [
            "    subgraph s1[\"b<br/>b until output.d.data.passed\"]\n        s1_0[\"c<br/>backend_developer\"]\n        s1_1[\"d<br/>qa_testing\"]:::skipped\n        subgraph s1_2[",
            "            s1_2_0[\"ui_designer\"]:::open\n        end\n        class s1_2 open\n        s1_0 -->|\"tested\"| s1_1\n",
            "    end\n    s2[\"f<br/>ask\"]\n",
            "    class s6 skipped\n",
            "    s0 --> s1\n",
            "classDef open ",
        ] {
            assert!(drawing.contains(line), "{line}\n{drawing}");
        }
    }

    #[test]
    fn the_drawing_marks_what_does_not_run() {
        let drawing = explain(TEXT, json!({})).mermaid();
        assert!(drawing.contains("s1[\"b<br/>ai_ml_specialist\"]:::skipped"), "{drawing}");
        assert!(drawing.contains("s4[\"e<br/>merge\"]:::open"), "{drawing}");
        assert!(drawing.contains("classDef skipped ") && drawing.contains("classDef open "), "{drawing}");
        let plain = explain("steps: [{name: a, agent: project_architect}]", json!({})).mermaid();
        assert_eq!(plain, "flowchart TD\n    s0[\"a<br/>project_architect\"]\n");
        // A step without an edge that could carry its condition has it in its box.
        let alone =
            explain("steps: [{name: a, agent: project_architect, when: x == \"y\"}]", json!({"x": "y"}))
                .mermaid();
        assert!(alone.contains("s0[\"a<br/>project_architect<br/>if x == 'y'\"]"), "{alone}");
    }
}
