//! What a workflow would do, given the facts of a brief.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use coral_core::{Condition, Error, Graph, GraphData, Join, SkipReason, StepKind};
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
        Ok(Explanation { graph: graph.clone(), facts: facts.clone(), verdicts, waves })
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
        let classes: BTreeMap<&str, &Verdict> = self.verdicts().collect();
        let mut out = self.graph.mermaid(|step| match classes.get(step)? {
            Verdict::Runs => None,
            Verdict::Skipped(_) => Some("skipped"),
            Verdict::Open(_) => Some("open"),
        });
        for (class, style) in [
            ("skipped", "fill:#eee,stroke:#999,color:#777,stroke-dasharray:4"),
            ("open", "fill:#fff7d6,stroke:#b58900,color:#333"),
        ] {
            if out.contains(&format!(":::{class}")) {
                out.push_str(&format!("    classDef {class} {style}\n"));
            }
        }
        out
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
        let width = self.graph.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or_default();
        for (i, wave) in self.waves.iter().enumerate() {
            writeln!(f, "wave {}", i + 1)?;
            for (step, verdict) in
                wave.iter().filter_map(|at| self.graph.steps.get(*at).zip(self.verdicts.get(*at)))
            {
                write!(f, "  {:width$}  ", step.name)?;
                match &step.kind {
                    StepKind::Agent(id) if *id == step.name => {}
                    StepKind::Agent(id) => write!(f, "{id}, ")?,
                    StepKind::Function(name) => write!(f, "function {name}, ")?,
                    _ => {}
                }
                write!(f, "{verdict}")?;
                match &step.when {
                    Some(when) if *verdict == Verdict::Runs => write!(f, ", as `{when}` holds")?,
                    _ => {}
                }
                if !step.reviews.is_empty() {
                    write!(f, ", may send back {}", step.reviews.join(", "))?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// Whether a condition holds, as far as facts alone can tell.
fn holds(when: &str, facts: &BTreeMap<String, Value>) -> Result<Verdict, Error> {
    let condition = Condition::new(when)?;
    let of_the_run = |name: &&str| matches!(name.split('.').next(), Some("steps" | "input"));
    if let Some(name) = condition.reads().find(of_the_run) {
        return Ok(Verdict::Open(name.into()));
    }
    Ok(if condition.holds_for(facts)? {
        Verdict::Runs
    } else {
        Verdict::Skipped(SkipReason::Condition { when: when.into() })
    })
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
