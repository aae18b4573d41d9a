//! A look at a prompt before a model gets it: what is wrong, where, and what to do.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::draft::{HANDOFF_NAMES, SYSTEM_NAMES, TASK_NAMES};
use super::template::Partials;
use super::tokens::{TokenCounter, UpperEstimate};
use crate::spec::AgentSpec;

mod conflicts;
mod variables;

/// How bad a [`PromptFinding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptSeverity {
    /// It fails when it is used.
    Error,
    /// It works, and is probably not what was meant.
    Warning,
}

/// Something about a prompt that should be otherwise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PromptFinding {
    /// How bad it is.
    pub severity: PromptSeverity,
    /// Where it stands, such as ``template `task`, line 3``.
    pub place: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for PromptFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            PromptSeverity::Error => "error",
            PromptSeverity::Warning => "warning",
        };
        write!(f, "{severity}: {}: {}; {}", self.place, self.message, self.fix)
    }
}

/// By what a prompt is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LintRules {
    /// Names that templates of the task may use beyond those of every prompt: those of context sources.
    pub names: Vec<String>,
    /// Tokens that the texts of a prompt may have, partials included; more is a warning.
    pub max_tokens: u64,
}

impl Default for LintRules {
    fn default() -> Self {
        LintRules { names: Vec::new(), max_tokens: 12_000 }
    }
}

/// Looks at the prompt of an agent. Errors come first; an empty list is a good prompt as far as a program can tell.
///
/// - **Variables**: one that a template does not get, also an attribute of `agent` and `brief` that is not there, each
///   with the nearest name; one that is `set` and never used; a brief, an input or a deliverable that the prompt is
///   about and never shows.
/// - **Sections** that are missing for what the definition promises.
/// - **Conflicts**, by a heuristic: two sentences without a condition (`if`, `when`, `unless`, …) that share most of
///   their words, one of which says `never`, `do not`, `must not` or `avoid` and the other does not; and two sentences that
///   demand answers in different formats only. It finds contradictions in much the same words, not in meaning.
/// - **Size**: too long as a whole, by [`UpperEstimate`]; the same paragraph twice.
///
/// ```
/// use coral_core::{AgentSpec, LintRules, Partials, lint_prompt};
///
/// let mut spec = AgentSpec::new("writer", "Writer");
/// spec.role_description = "You write manuals. Always ask questions before writing.".into();
/// spec.prompt.system_instructions = "Never ask questions before writing.".into();
/// spec.prompt.task_template = "Write about {{ breif.text }}.".into();
/// let found: Vec<String> =
///     lint_prompt(&spec, &Partials::new(), &LintRules::default()).iter().map(ToString::to_string).collect();
/// assert_eq!(
///     found[0],
///     "error: template `task`, line 1: variable `breif` is not known; did you mean `brief`?"
/// );
/// assert!(found.iter().any(|finding| finding.contains("contradicts")), "{found:?}");
/// ```
pub fn lint_prompt(spec: &AgentSpec, partials: &Partials, rules: &LintRules) -> Vec<PromptFinding> {
    let mut lint = Lint { spec, findings: Vec::new(), texts: texts(spec, partials) };
    lint.variables(partials, rules);
    lint.sections();
    lint.conflicts();
    lint.size(rules);
    lint.findings.sort();
    lint.findings.dedup();
    lint.findings
}

/// A text of a prompt and where it stands.
struct Text {
    place: String,
    text: String,
}

struct Lint<'a> {
    spec: &'a AgentSpec,
    findings: Vec<PromptFinding>,
    texts: Vec<Text>,
}

/// All texts that become part of the prompt.
fn texts(spec: &AgentSpec, partials: &Partials) -> Vec<Text> {
    let of = |place: String, text: &str| Text { place, text: text.to_owned() };
    let templates = templates_of(spec);
    let reached = partials
        .reached_from(templates.iter().filter(|(name, ..)| *name != "handoff").map(|(_, text, _)| *text));
    let mut texts = vec![of("role".to_owned(), &spec.role_description)];
    texts.extend(
        templates
            .iter()
            .filter(|(name, ..)| *name != "handoff")
            .map(|(name, text, _)| of(format!("template `{name}`"), text)),
    );
    texts.extend(reached.iter().map(|(name, text)| of(format!("partial `{name}`"), text)));
    texts.extend(
        spec.phases
            .iter()
            .map(|(name, phase)| of(format!("instructions of phase `{name}`"), &phase.instructions)),
    );
    texts.retain(|text| !text.text.trim().is_empty());
    texts
}

fn templates_of(spec: &AgentSpec) -> [(&'static str, &str, &'static [&'static str]); 5] {
    [
        ("system", &spec.prompt.system_instructions, &SYSTEM_NAMES),
        ("task", &spec.prompt.task_template, &TASK_NAMES),
        ("context", &spec.prompt.context_integration, &TASK_NAMES),
        ("output", &spec.prompt.output_format, &TASK_NAMES),
        ("handoff", &spec.handoff.template, &HANDOFF_NAMES),
    ]
}

impl Lint<'_> {
    fn add(
        &mut self,
        severity: PromptSeverity,
        place: impl Into<String>,
        message: String,
        fix: impl Into<String>,
    ) {
        self.findings.push(PromptFinding { severity, place: place.into(), message, fix: fix.into() });
    }

    fn sections(&mut self) {
        let spec = self.spec;
        let empty = |text: &str| text.trim().is_empty();
        let depends = !spec.dependencies.is_empty();
        for (place, missing, message, fix) in [
            (
                "template `system`",
                empty(&spec.role_description) && empty(&spec.prompt.system_instructions),
                "neither a role nor a system text says who the agent is",
                "say what it is responsible for, and what is out of its scope",
            ),
            (
                "template `task`",
                empty(&spec.prompt.task_template),
                "it is empty",
                "say what is to be done with the brief",
            ),
            (
                "template `context`",
                depends && empty(&spec.prompt.context_integration),
                "it is empty, and the agent depends on what others deliver",
                "say how what was handed over is to be used",
            ),
            (
                "template `output`",
                !spec.outputs.is_empty() && empty(&spec.prompt.output_format),
                "it is empty, and the agent promises deliverables",
                "say what they must look like",
            ),
        ] {
            if missing {
                self.add(PromptSeverity::Warning, place, message.to_owned(), fix);
            }
        }
    }

    fn size(&mut self, rules: &LintRules) {
        let tokens: u64 = self.texts.iter().map(|text| UpperEstimate.text(&text.text)).sum();
        if tokens > rules.max_tokens {
            let message =
                format!("its texts have about {tokens} tokens, and {} are allowed", rules.max_tokens);
            self.add(
                PromptSeverity::Warning,
                "prompt",
                message,
                "say less, or move reference material into files that the agent reads",
            );
        }
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        let mut twice = Vec::new();
        for text in &self.texts {
            for (line, paragraph) in paragraphs(&text.text) {
                // Short ones may well stand in two places.
                if paragraph.len() < 120 {
                    continue;
                }
                let place = format!("{}, line {line}", text.place);
                if let Some(first) = seen.get(&paragraph) {
                    twice.push((place, format!("the paragraph stands in {first} too")));
                } else {
                    seen.insert(paragraph, place);
                }
            }
        }
        for (place, message) in twice {
            self.add(PromptSeverity::Warning, place, message, "say it once, in a partial if agents share it");
        }
    }
}

/// The paragraphs of a text that are no code and no tags, with their lines, blanks made even.
fn paragraphs(text: &str) -> Vec<(usize, String)> {
    let mut paragraphs = Vec::new();
    let (mut line, mut fenced) = (1, false);
    for block in text.split("\n\n") {
        let fences = block.matches("```").count();
        if !fenced && fences == 0 && !block.contains("{%") {
            let even = block.split_whitespace().collect::<Vec<_>>().join(" ");
            let before = block.len() - block.trim_start().len();
            let skipped = block.get(..before).map_or(0, |blank| blank.matches('\n').count());
            paragraphs.push((line + skipped, even));
        }
        fenced ^= fences % 2 == 1;
        line += block.matches('\n').count() + 2;
    }
    paragraphs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::OutputSpec;

    fn good() -> AgentSpec {
        let mut spec = AgentSpec::new("writer", "Writer");
        spec.role_description = "You write the manual of the product for those who use it.".into();
        spec.dependencies = vec!["design".into()];
        spec.outputs = vec![OutputSpec {
            kind: "manual".into(),
            path: "docs/manual.md".into(),
            ..OutputSpec::default()
        }];
        spec.prompt.system_instructions = "Say who does what. Never use the passive voice.".into();
        spec.prompt.task_template = "Write the manual.\n\n{{ brief.text }}".into();
        spec.prompt.context_integration =
            "{% for input in inputs %}{{ input.message.from_agent }}{% endfor %}".into();
        spec.prompt.output_format = "{% include 'form' %}".into();
        spec
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut AgentSpec), expected: &[&str]) {
        let mut spec = good();
        change(&mut spec);
        let partials = Partials::new()
            .with("form", "{% for item in deliverables %}{{ item.path }}{% endfor %}")
            .with("bad", "\n{{ agnt.id }}");
        let found: Vec<String> =
            lint_prompt(&spec, &partials, &LintRules::default()).iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_good_prompt_has_no_findings() {
        check(|_| {}, &[]);
    }

    #[test]
    fn variables_are_known_and_used() {
        check(
            |spec| {
                spec.prompt.task_template = "\n{{ brief.txt }} {{ agent.modle.tier }}{% set x = 1 %}".into();
            },
            &[
                "error: template `task`, line 2: variable `agent.modle` is not known; did you mean `agent.model`?",
                "error: template `task`, line 2: variable `brief.txt` is not known; did you mean `brief.text`?",
                "warning: template `task`: `x` is set and never used; use it or take it out",
            ],
        );
        check(
            |spec| {
                spec.prompt.system_instructions =
                    "{{ brief.text }}{% include 'bad' %}{% include 'fomr' %}".into();
            },
            &[
                "error: partial `bad`, line 2: variable `agnt` is not known; did you mean `agent`?",
                "error: template `system`: it includes `fomr`, and no partial is called that; did you mean `form`?",
                "error: template `system`, line 1: variable `brief` is not known; it gets agent, config",
            ],
        );
        check(
            |spec| spec.prompt.task_template = "Write.".into(),
            &[
                "warning: prompt: no template uses `brief`, so the model never sees what is wanted; show `{{ brief }}` in a template of the task",
            ],
        );
    }

    #[test]
    fn sections_that_are_promised_are_there() {
        check(
            |spec| {
                spec.prompt.output_format.clear();
                spec.role_description.clear();
                spec.prompt.system_instructions.clear();
            },
            &[
                "warning: prompt: no template uses `deliverables`, so the model never sees what it is to deliver; show `{{ deliverables }}` in a template of the task",
                "warning: template `output`: it is empty, and the agent promises deliverables; say what they must look like",
                "warning: template `system`: neither a role nor a system text says who the agent is; say what it is responsible for, and what is out of its scope",
            ],
        );
    }

    #[test]
    fn contradictions_in_the_same_words_are_found() {
        check(
            |spec| spec.prompt.task_template.push_str("\n\nUse the passive voice."),
            &[
                "warning: template `task`, line 5: `Use the passive voice` contradicts `Never use the passive voice` (template `system`, line 1); keep the one that is meant, or say when each holds",
            ],
        );
        check(|spec| spec.prompt.task_template.push_str("\n\nUse the passive voice when nobody acts."), &[]);
        check(|spec| spec.prompt.task_template.push_str("\n\nNever use the future tense."), &[]);
        check(
            |spec| {
                spec.prompt.system_instructions = "Answer in JSON only.".into();
                spec.prompt.task_template.push_str("\nReply with nothing but Markdown.");
            },
            &[
                "warning: template `task`, line 4: `Reply with nothing but Markdown` demands Markdown only, and `Answer in JSON only` (template `system`, line 1) demands JSON only; demand one format",
            ],
        );
    }

    #[test]
    fn size_and_repetition_are_found() {
        let paragraph = "Each section begins with what the reader wants to do, in the words that the reader would use for it, and ends with how to see that it worked.";
        check(
            |spec| {
                spec.role_description = paragraph.into();
                spec.prompt.system_instructions = format!("Be brief.\n\n{paragraph}");
            },
            &[
                "warning: template `system`, line 3: the paragraph stands in role, line 1 too; say it once, in a partial if agents share it",
            ],
        );
        check(
            |spec| spec.prompt.system_instructions = "Many different words here. ".repeat(4_000),
            &[
                "warning: prompt: its texts have about 27540 tokens, and 12000 are allowed; say less, or move reference material into files that the agent reads",
            ],
        );
    }
}
