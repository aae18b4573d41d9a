use std::sync::Mutex;

use async_trait::async_trait;
use coral_core::{ChatResponse, ErrorKind, ModelFault};

use super::*;

/// Answers by what it finds in the request.
struct Scripted {
    answers: Vec<(&'static str, &'static str)>,
    asked: Mutex<Vec<ChatRequest>>,
}

impl Scripted {
    fn new(answers: &[(&'static str, &'static str)]) -> Arc<Self> {
        Arc::new(Scripted { answers: answers.to_vec(), asked: Mutex::default() })
    }
}

#[async_trait]
impl ChatModel for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    async fn chat(&self, request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        self.asked.lock().unwrap().push(request.clone());
        let text: String = request.messages.iter().map(|message| message.text()).collect();
        match self.answers.iter().find(|(part, _)| text.contains(part)) {
            Some((_, answer)) => {
                let mut response = ChatResponse::text("scripted", *answer);
                response.usage.input_tokens = 10;
                Ok(response)
            }
            None => Err(Error::new(ErrorKind::Model {
                fault: ModelFault::InvalidRequest,
                model: "scripted".into(),
                problem: "no answer is written for this".into(),
            })),
        }
    }
}

const CASES: &str = "
name: greetings
cases:
  - name: short
    brief: Greet Ada.
    facts: {formal: true}
    expect:
      - contains: ada
      - lacks: bye
      - delivers: card
      - holds: output.decisions|length >= 1 and brief.facts.formal
        weight: 2
      - rubric: It is friendly.
        at_least: 0.5
  - name: other
    brief: Greet Bob.
    expect:
      - contains: Bob
";

fn registry(task: &str) -> Registry {
    let mut registry = Registry::new();
    let text = format!(
        "---\nid: greeter\nname: Greeter\ndependencies: [names]\nphases: {{late: {{dependencies: [more]}}}}\n---\n## Task\n{task} {{{{ brief.text }}}}\n"
    );
    registry.insert(crate::parse_agent("greeter.md", &text).unwrap()).unwrap();
    registry
}

const ADA: &str = r#"{"summary": "Hello Ada", "deliverables": [{"type": "card", "path": "c", "description": "d"}], "decisions": ["x"]}"#;

#[tokio::test]
async fn candidates_are_scored_and_compared() {
    let cases = parse_cases("greetings.yaml", CASES).unwrap();
    let candidate = |name: &str, task: &str, answers: &[(&'static str, &'static str)]| {
        let runner = Runner::builder().model(Scripted::new(answers)).build();
        Candidate::agent(name, &runner, &registry(task), "greeter", "late").unwrap()
    };
    let candidates = [
        candidate("v1", "Old:", &[("Ada", r#"{"summary": "Bye Ada"}"#), ("Bob", r#"{"summary": "Hi"}"#)]),
        candidate("v2", "New:", &[("New: Greet Ada", ADA), ("Bob", r#"{"summary": "Hi Bob"}"#)]),
        candidate("broken", "x", &[("Bob", r#"{"summary": "Hi Bob"}"#)]),
    ];
    let judge =
        Scripted::new(&[("Hello Ada", "Sure: {\"score\": 0.8, \"reason\": \"warm\"}"), ("Bye", "no JSON")]);
    let options = EvaluationOptions::new().judge(judge.clone()).parallel(3);
    let report = cases.run(&candidates, &options).await;

    let scores: Vec<Option<f64>> = report.candidates.iter().map(CandidateReport::score).collect();
    // v1, Ada: only `contains` of a weight of 5 (the judge failed, so the rubric counts for nothing).
    assert_eq!(scores, [Some((0.2 + 0.0) / 2.0), Some((5.8 / 6.0 + 1.0) / 2.0), Some(0.5)]);
    assert_eq!(report.compare(0, 1), Some((2, 0, 0)));
    assert_eq!(report.compare(1, 2), Some((0, 1, 1)));
    assert_eq!(report.candidates[1].passed(), (2, 2));
    assert_eq!(report.candidates[1].results[0].usage.input_tokens, 10);

    let text = report.to_string();
    for line in [
        "| v1 | 0.10 | 0 of 2 | 20 | – | 0.0 |",
        "`v2` against `v1`: better in 2, worse in 0, the same in 0.",
        "| short | 0.20 | 0.97 | 0.00 |",
        "- short: delivers `card`: 0.00: it is not among the deliverables",
        "- short: lacks `bye`: 0.00: the text is there",
        "- short: the run failed: ",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(text.contains("- short: It is friendly.: not graded: the judge failed: "), "{text}");
    let asked = judge.asked.lock().unwrap();
    assert!(asked[0].messages[1].text().contains("# Criterion\n\nIt is friendly."));
    assert!(
        serde_json::to_value(&report).unwrap()["candidates"][1]["results"][0]["checks"][4]["why"] == "warm"
    );
}

#[tokio::test]
async fn repeats_are_averaged_and_no_judge_is_no_grade() {
    let cases = parse_cases("greetings.yaml", CASES).unwrap();
    let runner = Runner::builder().model(Scripted::new(&[("Ada", ADA), ("Bob", ADA)])).build();
    let registry = registry("x");
    let graph =
        crate::parse_workflow("w.yaml", "output: greeter\nsteps: [{agent: greeter}]", &registry).unwrap();
    assert!(Candidate::workflow("w", &runner, &registry, &graph).is_err(), "its dependency is not there");
    let candidate = Candidate::agent("a", &runner, &registry, "greeter", "").unwrap();
    let report = cases.run(&[candidate], &EvaluationOptions::new().repeats(3)).await;
    assert_eq!(report.candidates[0].results.len(), 6);
    assert_eq!(report.candidates[0].case_score("short"), Some(1.0));
    assert_eq!(report.candidates[0].case_score("other"), Some(0.0));
    assert_eq!(report.candidates[0].passed(), (3, 6));
}

#[test]
fn problems_of_cases_come_with_lines() {
    let text = "nmae: x
cases:
  - name: a
    brief: b
    expect:
      - contain: x
      - contains: [x]
      - holds: a and
      - contains: x
        lacks: y
        weight: 0
      - delivers: x
        at_least: 0.5
      - rubric: x
        at_least: 2
  - name: a
    brief: b
  - name: c
    expect: []
  - 3
";
    let error = parse_cases("e.yaml", text).unwrap_err();
    let ErrorKind::Problems { problems, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(
        *problems,
        [
            "e.yaml:1: unknown key `nmae`; did you mean `name`?",
            "e.yaml:3: case `a` is there twice",
            "e.yaml:6: unknown key `contain`; did you mean `contains`?",
            "e.yaml:7: `contains` must be text, not a list",
            "e.yaml:8: expression `a and`: syntax error: unexpected end of input, expected expression",
            "e.yaml:10: a check is one thing, and this is `contains` already",
            "e.yaml:11: `weight` must be a number above 0",
            "e.yaml:13: `at_least` belongs to a `rubric`",
            "e.yaml:15: `at_least` must be a number from 0 to 1",
            "e.yaml:16: case `a` expects nothing: add `expect`",
            "e.yaml:18: the case has no `brief`",
            "e.yaml:20: expected a mapping, found a number",
            "e.yaml:20: the case has no `brief`",
            "e.yaml:20: the case has no `name`",
        ]
    );
    assert!(parse_cases("e.yaml", "cases: []").is_err());
    assert!(parse_cases("e.yaml", "cases: [{").is_err());
}
