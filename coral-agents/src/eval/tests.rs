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
    let counts = |base, other| {
        let comparison = report.compare(base, other).unwrap();
        (comparison.better, comparison.worse, comparison.same)
    };
    assert_eq!((counts(0, 1), counts(1, 2)), ((2, 0, 0), (0, 1, 1)));
    assert_eq!(report.compare(0, 3), None);
    assert_eq!(report.candidates[1].passed(), (2, 2));
    assert_eq!(report.candidates[1].results[0].usage.input_tokens, 10);

    let text = report.to_string();
    for line in [
        "| v1 | 0.10 | 0 of 2 | 20 | – | ",
        "`v2` against `v1`: better in 2, worse in 0, the same in 0; mean difference +0.88, sign test p = 0.500: too few cases to tell a difference from chance.",
        "| short | 0.20 | 0.97 | 0.00 |",
        "- short: delivers `card`: 0.00: it is not among the deliverables",
        "- short: lacks `bye`: 0.00: the text is there",
        "- short: the run failed: ",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(text.contains("- short: It is friendly.: not graded: the judge failed: "), "{text}");
    let html = report.html();
    for part in [
        "<td class=\"n\">0.97</td>",
        "0.80 It is friendly.: warm",
        "not graded It is friendly.",
        "the run failed: ",
    ] {
        assert!(html.contains(part), "{part}\n{html}");
    }
    let json = report.json();
    assert_eq!(json["comparisons"][0]["comparison"]["better"], 2);
    assert_eq!((&json["candidates"][1]["passed"], &json["candidates"][1]["runs"]), (&json!(2), &json!(2)));
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

/// Writes what the model says to, below one directory.
struct Disk(PathBuf);

#[async_trait]
impl coral_core::Toolbox for Disk {
    async fn list(&self, _caller: &Caller) -> Result<Vec<coral_core::ToolDef>, Error> {
        Ok(vec![coral_core::ToolDef {
            name: "write_file".into(),
            description: "Writes.".into(),
            input_schema: json!({"type": "object", "properties": {"path": {"type": "string"}}}),
            effect: coral_core::EffectClass::Idempotent,
        }])
    }

    async fn call(
        &self,
        call: &coral_core::ToolCall,
        _cx: &CallContext,
    ) -> Result<coral_core::ToolOutput, Error> {
        let brought = std::fs::read_to_string(self.0.join("in/names.txt")).unwrap();
        std::fs::write(self.0.join("card.txt"), format!("Dear {brought}")).unwrap();
        Ok(coral_core::ToolOutput::text(format!("{} written", call.name)))
    }
}

/// Writes a card, then says so.
struct Writer;

#[async_trait]
impl ChatModel for Writer {
    fn name(&self) -> &str {
        "writer"
    }

    async fn chat(&self, request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        let mut response = ChatResponse::text(
            "writer",
            r#"{"summary": "s", "deliverables": [{"type": "card", "path": "card.txt", "description": "d"}]}"#,
        );
        if request.messages.len() == 2 {
            response.message.parts = vec![coral_core::Part::ToolCall(coral_core::ToolCall {
                id: "1".into(),
                name: "write_file".into(),
                arguments: json!({"path": "card.txt"}),
            })];
        }
        Ok(response)
    }
}

#[tokio::test]
async fn checks_look_into_the_files_of_each_run() {
    let text = "
cases:
  - name: ada
    brief: Write a card.
    files: {in/names.txt: Ada}
    expect:
      - {file: card, contains: dear ada}
      - {file: card.txt, lacks: Bob}
      - {file: card.txt, holds: output|length == 8}
      - {file: card, rubric: It is kind.}
      - {file: nothing.txt, contains: x}
      - {file: ../ada-1/card.txt, contains: x}
  - name: bob
    brief: Write a card.
    files: {in/names.txt: Bob}
    expect:
      - {file: card, contains: dear bob}
";
    let cases = parse_cases("files.yaml", text).unwrap();
    let runner = Runner::builder().model(Writer).build();
    let candidate = Candidate::agent("a_b", &runner, &registry("x"), "greeter", "").unwrap();
    let judge = Scripted::new(&[("# Work\n\n\"Dear Ada\"", "{\"score\": 1, \"reason\": \"r\"}")]);
    let options = EvaluationOptions::new().judge(judge);

    let without = cases.run(std::slice::from_ref(&candidate), &options).await;
    let error = without.candidates[0].results[0].error.as_deref().unwrap();
    assert!(error.contains("there is no workspace to put them into"), "{error}");

    let root = std::env::temp_dir().join(format!("coral-eval-{}", std::process::id()));
    let candidate = candidate.with_workspaces(&root, |dir| async move {
        Ok(Runner::builder().model(Writer).tools(Disk(dir)).build())
    });
    for _ in 0..2 {
        let report = cases.run(std::slice::from_ref(&candidate), &options).await;
        let [ada, bob] = report.candidates[0].results.as_slice() else { panic!("{report}") };
        let scores: Vec<f64> = ada.checks.iter().map(|check| check.score).collect();
        assert_eq!(scores, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0], "{report}");
        assert!(ada.checks[4].why.contains("nothing.txt"), "{}", ada.checks[4].why);
        assert!(ada.checks[5].why.contains("stay inside"), "{}", ada.checks[5].why);
        assert_eq!(ada.checks[0].check, "`card`: contains `dear ada`");
        assert_eq!(bob.score(), Some(1.0));
    }
    assert!(root.join("a_b/ada-1/card.txt").exists());
    std::fs::remove_dir_all(&root).unwrap();
    for bad in ["{file: x, delivers: y}", "{file: '', contains: y}"] {
        let text = format!("cases: [{{name: a, brief: b, expect: [{bad}]}}]");
        assert!(parse_cases("e.yaml", &text).is_err(), "{bad}");
    }
}
